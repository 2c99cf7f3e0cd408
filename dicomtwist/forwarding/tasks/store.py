"""
The store of the tasks of forwarding.

It lies in a database of its own, apart from the index, which can be removed and made again. All methods block and are meant for
worker threads, any number of them; several processes may use one store at the same time.

Three decisions differ from what one would write first:

- A task is for one *copy* of an instance, which the time of its file identifies. So a replay of the inbox after a crash makes
  nothing twice, a copy with other bytes is sent again, even if the one before it was deleted meanwhile, and an instance that
  is sent again after the program has died between its file and its tasks gets its tasks then.
- A task has a version. A copy that arrives while an earlier one is being sent raises it, and the outcome of the earlier one
  does not count.
- Claims are not synced: after a power cut they are made again, and the instance is sent twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, bindparam, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from dicomtwist.forwarding.rules import Destination
from dicomtwist.forwarding.tasks.claims import Claims, to_destination, to_json
from dicomtwist.forwarding.tasks.database import TaskDatabase
from dicomtwist.forwarding.tasks.schema import (
    DELAYED,
    DONE,
    FAILED,
    HELD,
    QUIET,
    READY,
    REMOVED,
    route,
    rule,
    series,
    task,
)
from dicomtwist.forwarding.tasks.selections import Queue
from dicomtwist.forwarding.tasks.statements import (
    AGAIN,
    DELIVERED_EVERYWHERE,
    FIND_REMOVABLE,
    FINISH,
    FORGET_ROUTES,
    FORGET_RULES,
    FORGET_SERIES,
    FORGOTTEN,
    KEEP,
    MARK_REMOVED,
    OTHER_COPY,
    POSTPONE,
    REMOVABLE_IN,
    STILL_ARRIVES,
    UNFINISHED,
    insert_quiet,
    insert_task,
)
from dicomtwist.forwarding.tasks.types import (
    MAX_SAID,
    Arrival,
    Counts,
    Definition,
    Due,
    Made,
    Outcome,
    Selection,
    Task,
    TasksFailed,
    TaskState,
)

__all__ = ["TaskStore"]

#: The time for which a rule that left the configuration is kept if it has no tasks, in seconds: notes may name it.
KEEP_RULES: Final = 30 * 86400.0
#: The most tasks that are forgotten in one transaction.
MAX_FORGOTTEN: Final = 1000

_TO_STATE: Final = {TaskState.HELD: HELD, TaskState.FAILED: FAILED, TaskState.DONE: DONE}


class _Route(NamedTuple):
    """A route as new tasks need it."""

    id: int
    quiet: float


class TaskStore:
    """
    The tasks of forwarding.

    :param folder: the folder of the database; :meth:`open` makes it if it is missing and its parent exists.
    :param full: whether a task that is made is on the medium when the call returns.
    :param engine: a database of PostgreSQL in place of the file; the caller disposes of it.

    :ivar identity: a random text that tells this database from another one, after :meth:`open`.
    """

    def __init__(self, folder: Path | None, *, full: bool = True, engine: Engine | None = None) -> None:
        self._folder = folder
        self._full = full
        self._engine = engine
        self._database: TaskDatabase | None = None
        self.identity = ""
        # By the number of the rule; rules do not change.
        self._routes: dict[int, list[_Route]] = {}
        self._may_remove = False
        self._may_wait = False

    def open(self) -> None:
        """
        Open the database, or make it; idempotent.

        :raises TasksUnusable: it cannot be used; the text says why.
        """
        if self._database is not None:
            return
        self._database = database = TaskDatabase(self._folder, full=self._full, engine=self._engine)
        self.identity = database.identity
        self._claims = Claims(database)
        self._queue = Queue(database)
        module: Any = postgresql if database.is_postgresql else sqlite
        self._insert_series = module.insert(series).on_conflict_do_nothing()
        self._insert_task = insert_task(module)
        self._insert_quiet = insert_quiet(module)
        with database.reading() as connection:
            self._load(connection)

    @property
    def is_shared(self) -> bool:
        """Whether programs on other machines may use the store as well."""
        return self._engine is not None

    def close(self) -> None:
        """Close the database; idempotent."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    @property
    def _db(self) -> TaskDatabase:
        if self._database is None:
            raise TasksFailed("the tasks of forwarding are closed")
        return self._database

    # --- rules

    def register(self, definitions: Sequence[Definition], now: float | None = None) -> list[int]:
        """
        Make *definitions* the rules of the configuration. An equal one has the number that it had before.

        :returns: their numbers, which :meth:`make` takes.
        :raises TasksFailed: the database refused.
        """
        now = time.time() if now is None else now
        numbers: list[int] = []
        with self._db.writing() as connection:
            if self._db.is_postgresql:
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(4712002)")
            for one in definitions:
                text = one.json
                same = (rule.c.name == one.name) & (rule.c.definition == text)
                number = connection.scalar(select(func.min(rule.c.id)).where(same))
                values = {"priority": one.priority, "study_quiet": one.study_quiet, "keep": one.keep}
                if number is None:
                    row = rule.insert().values(name=one.name, definition=text, retired=0.0, **values)
                    number = connection.execute(row).inserted_primary_key[0]  # type: ignore[index]
                else:
                    connection.execute(update(rule).where(rule.c.id == number).values(retired=0.0, **values))
                for destination in one.to:
                    same = (route.c.rule == number) & (route.c.destination == to_json(destination))
                    if connection.scalar(select(route.c.id).where(same)) is None:
                        connection.execute(route.insert().values(rule=number, destination=to_json(destination)))
                numbers.append(number)
            left = (rule.c.retired == 0.0) & rule.c.id.not_in(numbers)
            connection.execute(update(rule).where(left).values(retired=now))
            self._load(connection)
        return numbers

    def definitions(self) -> dict[int, Definition]:
        """
        Return all rules that tasks may name, by number: those of the configuration and earlier ones.

        :raises TasksFailed: the database refused.
        """
        with self._db.reading() as connection:
            to: dict[int, list[Destination]] = {}
            for row in connection.execute(select(route).order_by(route.c.id)):
                to.setdefault(row.rule, []).append(to_destination(row.destination))
            return {
                row.id: Definition(
                    *(row.name, json.loads(row.definition), tuple(to.get(row.id, ()))),
                    *(row.priority, row.study_quiet, row.keep, row.id),
                )
                for row in connection.execute(select(rule).order_by(rule.c.id))
            }

    def _load(self, connection: Connection) -> None:
        routes: dict[int, list[_Route]] = {}
        joined = select(route.c.rule, route.c.id, rule.c.study_quiet, rule.c.keep).join_from(
            route, rule, rule.c.id == route.c.rule
        )
        rows = connection.execute(joined.order_by(route.c.id)).all()
        for row in rows:
            routes.setdefault(row.rule, []).append(_Route(row.id, row.study_quiet))
        self._routes = routes
        self._may_remove = any(not row.keep for row in rows)
        self._may_wait = any(row.study_quiet > 0 for row in rows)

    # --- new tasks

    def make(self, arrivals: Sequence[Arrival], now: float | None = None) -> Made:
        """
        Make the tasks of instances that the archive has, all or none; they are on the medium afterwards.

        A task that is there already stays as it is if it is for the same copy. If it is for another copy, it waits again. The
        tasks of the instance by other rules wait again as well, if these are in the configuration or the task is not done.

        :param arrivals: instances, at most some hundreds.
        :param now: the time in seconds since 1970, by default that of the clock.
        :raises TasksFailed: the database refused; nothing has changed.
        """
        now = time.time() if now is None else now
        if not arrivals:
            return Made(0)
        # Sorted, so that two processes which make tasks of the same instances wait for each other and do not lock up.
        ordered = sorted(arrivals, key=lambda one: one[:3])
        with self._db.writing() as connection:
            if any(number not in self._routes for one in ordered for number in one.rules):
                self._load(connection)  # another process may have registered it
            routes = self._routes
            numbers = self._series(connection, ordered)
            rows: list[dict[str, Any]] = []
            waits: dict[tuple[str, int], float] = {}
            unknown: set[int] = set()
            for one in ordered:
                in_series = numbers[one.study, one.series]
                for number in one.rules:
                    if number not in routes:
                        unknown.add(number)
                    for to in routes.get(number, ()):
                        if to.quiet > 0:
                            waits[one.study, to.id] = to.quiet
                        rows.append(_new_row(one, in_series, to, now))
            count = 0
            copies = [
                {"instance_": one.instance, "series_": numbers[one.study, one.series], "received_": one.received}
                for one in ordered
                if one.received
            ]
            if copies:
                # Before the insert, which would make those of the note look as if they were for the same copy.
                count += max(0, connection.execute(OTHER_COPY, copies).rowcount)
            if rows:
                made = connection.execute(self._insert_task, rows).rowcount
                count += len(rows) if self._db.is_postgresql else made
            if self._may_wait:
                self._note_arrivals(connection, {one.study for one in ordered}, waits, now)
        return Made(count, frozenset(unknown))

    def _series(self, connection: Connection, arrivals: Sequence[Arrival]) -> dict[tuple[str, str], int]:
        """Return the numbers of the series of instances."""
        wanted = {(one.study, one.series) for one in arrivals}
        uids = sorted({uid for _, uid in wanted})
        statement = select(series).where(series.c.study.in_({study for study, _ in wanted}), series.c.series.in_(uids))

        def look() -> dict[tuple[str, str], int]:
            return {(row.study, row.series): row.id for row in connection.execute(statement)}

        found = look()
        missing = sorted(wanted - found.keys())
        if missing:
            connection.execute(self._insert_series, [{"study": study, "series": uid} for study, uid in missing])
            found = look()
        return found

    def _note_arrivals(
        self, connection: Connection, studies: Iterable[str], waits: dict[tuple[str, int], float], now: float
    ) -> None:
        """Let studies that have to be quiet begin to wait again."""
        connection.execute(STILL_ARRIVES, [{"study_": study, "now_": now} for study in sorted(studies)])
        if waits:
            connection.execute(
                self._insert_quiet,
                [
                    {"study": study, "route": number, "wait": wait, "until": now + wait}
                    for (study, number), wait in sorted(waits.items())
                ],
            )

    # --- sending

    def claim(
        self,
        destination: Destination,
        limit: int,
        now: float,
        lease: float,
        owner: str,
        rules: Collection[int] | None = None,
    ) -> list[Task]:
        """
        Claim tasks that are due: those with the highest priority first, then the oldest. No other claim gets them before
        :meth:`finish`, :meth:`release` or the end of the lease.

        :param destination: the destination.
        :param limit: the most tasks, at most :data:`~dicomtwist.forwarding.tasks.types.MAX_CLAIM`.
        :param now: the time, in seconds since 1970.
        :param lease: for how long, in seconds; :meth:`renew` begins that time again.
        :param owner: the name of the process, which no other process has or had; not empty.
        :param rules: the numbers of the rules whose tasks may be sent now; ``None`` for all.
        :raises TasksFailed: the database refused.
        """
        _ = self._db
        return self._claims.claim(destination, limit, now, lease, owner, rules)

    def finish(self, outcomes: Sequence[Outcome], now: float | None = None) -> None:
        """
        Note the outcomes of claimed tasks, in one transaction, which is on the medium afterwards.

        An outcome does not count if the task is claimed no more, or if another copy of its instance has arrived since.

        :raises TasksFailed: the database refused; nothing has changed.
        """
        now = time.time() if now is None else now
        if not outcomes:
            return
        rows = [_finished(one, now) for one in sorted(outcomes)]
        with self._db.writing() as connection:
            connection.execute(FINISH, rows)
            done = [{"id_": row["id_"]} for row in rows if row["state_"] == DONE]
            if done and self._may_remove:
                connection.execute(DELIVERED_EVERYWHERE, done)

    def renew(self, owner: str, now: float, lease: float) -> int:
        """
        Begin the leases of *owner* again. Tasks that wait for a time more than a day ahead, because the clock was wrong when it
        was noted, are due.

        :returns: the number of its tasks.
        :raises TasksFailed: the database refused.
        """
        _ = self._db
        return self._claims.renew(owner, now, lease)

    def release(self, owner: str | None) -> int:
        """
        Give back the tasks that *owner* has claimed; they can be claimed again at once.

        :param owner: ``None`` for every owner: only if no other process sends.
        :returns: the number of tasks.
        :raises TasksFailed: the database refused.
        """
        _ = self._db
        return self._claims.release(owner)

    def due(self) -> list[Due]:
        """
        Return when tasks can be claimed, for each destination and rule that has any.

        :raises TasksFailed: the database refused.
        """
        _ = self._db
        return self._claims.due()

    def next_due(self, now: float) -> dict[Destination, float]:
        """
        Return for each destination when tasks can be claimed, in seconds since 1970, *now* at the earliest.

        :raises TasksFailed: the database refused.
        """
        found: dict[Destination, float] = {}
        for one in self.due():
            found[one.destination] = max(now, min(one.at, found.get(one.destination, one.at)))
        return found

    # --- the queue

    def find(self, selection: Selection, limit: int, after: int = 0) -> list[Task]:
        """
        Return tasks in the order of their numbers.

        :param limit: the most tasks.
        :param after: return tasks with higher numbers only.
        :raises TasksFailed: the database refused.
        """
        _ = self._db
        return self._queue.find(selection, limit, after)

    def hold(self, selection: Selection, now: float | None = None) -> int:
        """Put waiting tasks on hold; return their number. A task that is being sent stays so."""
        _ = self._db
        return self._queue.hold(selection, time.time() if now is None else now)

    def release_held(self, selection: Selection) -> int:
        """Let tasks on hold be sent; return their number."""
        _ = self._db
        return self._queue.release_held(selection)

    def retry(self, selection: Selection) -> int:
        """
        Let tasks be tried at once, as if they were new; return their number.

        Without states in *selection* these are the ones that failed and those that wait for their next try or for a quiet
        study; tasks that are done are sent again if it names that state.
        """
        _ = self._db
        return self._queue.retry(selection)

    def drop(self, selection: Selection) -> int:
        """Remove tasks, which are not sent then; return their number. One that is being sent may arrive all the same."""
        _ = self._db
        return self._queue.drop(selection)

    def counts(self) -> Counts:
        """Return the number of tasks by rule, destination and state. A million tasks take half a second."""
        _ = self._db
        return self._queue.counts()

    def oldest(self) -> dict[Destination, float]:
        """Return for each destination when the oldest task was made that waits or is being sent, in seconds since 1970."""
        _ = self._db
        return self._queue.oldest()

    # --- what the archive may remove

    def unfinished(self, study: str) -> bool:
        """
        Whether a task of the study is not done; a task that failed is not done.

        :raises TasksFailed: the database refused.
        """
        with self._db.reading() as connection:
            return connection.scalar(UNFINISHED, {"study_": study}) is not None

    def removable(self, before: float, limit: int) -> list[tuple[str, str, str]]:
        """
        Return instances whose tasks are all done, by rules that do not keep them; an instance stays if one of its rules keeps
        it.

        :param before: the time that the last task was done before, in seconds since 1970.
        :param limit: the most instances.
        :returns: their Study, Series and SOP Instance UIDs.
        :raises TasksFailed: the database refused.
        """
        with self._db.reading() as connection:
            found = connection.execute(FIND_REMOVABLE, {"before_": before, "limit_": limit})
            return [(row.study, row.series, row.instance) for row in found]

    def removable_in(self, study: str) -> set[tuple[str, str]]:
        """
        Return the instances of a study that :meth:`removable` may return: their Series and SOP Instance UIDs.

        An instance that has got another task since does not count any more.

        :raises TasksFailed: the database refused.
        """
        with self._db.reading() as connection:
            rows = connection.execute(REMOVABLE_IN, {"study_": study}).all()
        return {(row.series, row.instance) for row in rows}

    def keep(self, study: str) -> None:
        """
        Let :meth:`removable` not return the instances of a study that have got another task since.

        :raises TasksFailed: the database refused.
        """
        with self._db.writing() as connection:
            connection.execute(KEEP, {"study_": study})

    def removed(self, instances: Iterable[tuple[str, str, str]], now: float | None = None) -> None:
        """
        Note that the archive has removed *instances*. If they arrive again, they are sent again.

        :raises TasksFailed: the database refused.
        """
        self._mark(MARK_REMOVED, instances, time.time() if now is None else now)

    def postpone_removal(self, instances: Iterable[tuple[str, str, str]], until: float) -> None:
        """
        Let :meth:`removable` return *instances* again after *until*, because they cannot be removed now.

        :raises TasksFailed: the database refused.
        """
        self._mark(POSTPONE, instances, until)

    def _mark(self, statement: Any, instances: Iterable[tuple[str, str, str]], at: float) -> None:
        rows = [{"study_": study, "uid_": uid, "instance_": instance, "at_": at} for study, uid, instance in instances]
        if rows:
            with self._db.writing() as connection:
                connection.execute(statement, rows)

    def forget(self, before: float, limit: int = MAX_FORGOTTEN) -> int:
        """
        Remove tasks that were done before a time, in seconds since 1970, and what no task needs any more.

        :param limit: the most tasks.
        :returns: the number of tasks; call it again if that is *limit*.
        :raises TasksFailed: the database refused.
        """
        with self._db.writing() as connection:
            found: list[int] = []
            for number in connection.scalars(select(route.c.id)).all():
                for state in (DONE, REMOVED):
                    values = {"route_": number, "state_": state, "before_": before, "limit_": limit - len(found)}
                    found += connection.scalars(FORGOTTEN, values)
            if found:
                holders = set(connection.scalars(select(task.c.series).where(task.c.id.in_(found))))
                connection.execute(delete(task).where(task.c.id == bindparam("id_")), [{"id_": one} for one in found])
                connection.execute(FORGET_SERIES, [{"id_": one} for one in sorted(holders)])
            if len(found) < limit:
                connection.execute(FORGET_ROUTES, {"before_": before - KEEP_RULES})
                connection.execute(FORGET_RULES, {"before_": before - KEEP_RULES})
                self._load(connection)
        return len(found)


def _new_row(one: Arrival, in_series: int, to: _Route, now: float) -> dict[str, Any]:
    state, at = (QUIET, float(in_series)) if to.quiet > 0 else (READY, 0.0)
    return {
        "route": to.id,
        "state": state,
        "at": at,
        "series": in_series,
        "instance": one.instance,
        "received": one.received,
        "size": one.size,
        "version": 0,
        "made_at": now,
        **AGAIN,
    }


def _finished(one: Outcome, now: float) -> dict[str, Any]:
    if one.state is TaskState.WAITING:
        state, at = (DELAYED, one.next_try) if one.next_try > now else (READY, 0.0)
    elif one.state in _TO_STATE:
        state, at = _TO_STATE[one.state], now
    else:
        raise ValueError(f"a task cannot end as {one.state}")
    said = one.said.replace("\0", " ")[:MAX_SAID]
    return {"id_": one.task_id, "version_": one.version, "state_": state, "at_": at, "tries_": one.tries, "said_": said}
