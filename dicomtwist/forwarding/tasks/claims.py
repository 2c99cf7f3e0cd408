"""
Claims: which tasks are to be sent next, and which process sends them.

A claim takes the oldest tasks of the rules with the highest priority. A lease of its owner ends by itself, so that the tasks of
a process that has died are claimed by another one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from heapq import merge
from itertools import groupby, islice
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, bindparam, func, select, update

from dicomtwist.forwarding.rules import Destination
from dicomtwist.forwarding.tasks.database import TaskDatabase
from dicomtwist.forwarding.tasks.schema import (
    DELAYED,
    DONE,
    QUIET,
    READY,
    REMOVABLE,
    REMOVED,
    SENDING,
    STATES,
    among,
    quiet,
    route,
    rule,
    series,
    task,
)
from dicomtwist.forwarding.tasks.types import MAX_CLAIM, Due, Task

__all__ = ["Claims", "to_destination", "to_json", "to_task"]

#: The most tasks of one route and state that become ready in one claim.
_MAX_DUE: Final = 1000
#: The most studies of one route whose tasks become ready in one claim.
_MAX_QUIET: Final = 20
#: The longest time from now that a task may wait or be leased for, in seconds. A time that is later was noted while the clock
#: was wrong: a machine may start years ahead until it asks a time server.
MAX_AHEAD: Final = 86400.0
_LEASE_ENDED: Final = "the process that was sending it has ended, or was too slow"


def to_json(destination: Destination) -> str:
    """Return a destination as the database has it."""
    return json.dumps(destination, separators=(",", ":"))


def to_destination(text: str) -> Destination:
    """Return a destination that the database has."""
    return tuple(json.loads(text))


class _Route(NamedTuple):
    """A route, and when its tasks are due: of each state the earliest, ``None`` if there are none."""

    id: int
    rule: int
    destination: str
    priority: int
    ready: int | None
    delayed: float | None
    sending: float | None
    quiet: float | None

    @property
    def at(self) -> float | None:
        """When a task can be claimed, ``None`` if there is none."""
        if self.ready is not None:
            return 0.0
        return min((one for one in (self.delayed, self.sending, self.quiet) if one is not None), default=None)

    def is_due(self, now: float) -> bool:
        """Whether tasks that are not ready can be made so."""
        return any(one is not None and one <= now for one in (self.delayed, self.sending, self.quiet))


def _first(state: int, column: Any) -> Any:
    same = (task.c.route == route.c.id) & (task.c.state == state)
    return select(func.min(column)).where(same).correlate(route).scalar_subquery()


#: All routes, and for those of one destination. Of READY tasks the lowest number is that of the oldest.
_ROUTES: Final = select(
    *(route.c.id, route.c.rule, route.c.destination, rule.c.priority),
    select(task.c.id)
    .where((task.c.route == route.c.id) & (task.c.state == READY))
    .order_by(task.c.at, task.c.id)
    .limit(1)
    .correlate(route)
    .scalar_subquery(),
    _first(DELAYED, task.c.at),
    _first(SENDING, task.c.at),
    select(func.min(quiet.c.until)).where(quiet.c.route == route.c.id).correlate(route).scalar_subquery(),
).join_from(route, rule, rule.c.id == route.c.rule)
_ROUTES_TO: Final = _ROUTES.where(route.c.destination == bindparam("destination_"))

#: The oldest tasks of a route that are ready.
_READY: Final = (
    select(task, series.c.study, series.c.series.label("series_uid"))
    .join_from(task, series, series.c.id == task.c.series)
    .where((task.c.route == bindparam("route_")) & (task.c.state == READY))
    .order_by(task.c.at, task.c.id)
    .limit(bindparam("limit_"))
)
_CLAIM: Final = (
    update(task)
    .where(task.c.id == bindparam("id_"))
    .values(state=SENDING, at=bindparam("until_"), owner=bindparam("owner_"))
)
_DUE: Final = (
    select(task.c.id)
    .where((task.c.route == bindparam("route_")) & (task.c.state == bindparam("state_")))
    .where(task.c.at <= bindparam("now_"))
    .order_by(task.c.at)
    .limit(_MAX_DUE)
)
_MAKE_READY: Final = update(task).where(task.c.id == bindparam("id_")).values(state=READY, at=0.0)
_LEASE_ENDS: Final = (
    update(task)
    .where(task.c.id == bindparam("id_"))
    .values(state=READY, at=0.0, owner="", version=task.c.version + 1, tries=task.c.tries + 1, said=_LEASE_ENDED)
)
_QUIET: Final = (
    select(quiet.c.study)
    .where((quiet.c.route == bindparam("route_")) & (quiet.c.until <= bindparam("now_")))
    .order_by(quiet.c.until)
    .limit(_MAX_QUIET)
)
_SERIES_IN: Final = select(series.c.id).where(series.c.study == bindparam("study_"))
#: The tasks of a series that wait for its study.
_STUDY_IS_QUIET: Final = (
    update(task)
    .where((task.c.route == bindparam("route_")) & (task.c.state == QUIET) & (task.c.at == bindparam("series_")))
    .values(state=READY, at=0.0)
)
_FORGET_QUIET: Final = quiet.delete().where(
    (quiet.c.study == bindparam("study_")) & (quiet.c.route == bindparam("route_"))
)
_OWNED: Final = (task.c.owner == bindparam("owner_")) & (task.c.owner != "")
_RENEW: Final = update(task).where(_OWNED & (task.c.state == SENDING)).values(at=bindparam("until_"))
_ANY_ROUTE: Final = task.c.route.in_(select(route.c.id))
_AHEAD: Final = (
    update(task)
    .where(_ANY_ROUTE & (task.c.state == DELAYED) & (task.c.at > bindparam("latest_")))
    .values(state=READY, at=0.0),
    update(task)
    .where(_ANY_ROUTE & among(task.c.state, (SENDING, DONE, REMOVABLE, REMOVED)) & (task.c.at > bindparam("latest_")))
    .values(at=bindparam("until_")),
    update(quiet)
    .where(quiet.c.until > bindparam("latest_") + quiet.c.wait)
    .values(until=bindparam("now_") + quiet.c.wait),
)
_RELEASE: Final = update(task).where(_OWNED & (task.c.state == SENDING)).values(state=READY, at=0.0, owner="")
_RELEASE_ALL: Final = (
    update(task).where((task.c.owner != "") & (task.c.state == SENDING)).values(state=READY, at=0.0, owner="")
)


def to_task(row: Row[Any], one: Any, until: float | None = None) -> Task:
    """
    Return a task.

    :param row: a row of the table of tasks, with the columns ``study`` and ``series_uid``.
    :param one: its route, with the columns ``rule``, ``destination`` and ``priority``.
    :param until: the end of the lease of a task that is being claimed.
    """
    state, at = (SENDING, until) if until is not None else (row.state, 0.0 if row.state == QUIET else row.at)
    return Task(
        *(row.id, row.study, row.series_uid, row.instance, one.rule, to_destination(one.destination), STATES[state]),
        *(row.tries, at, row.made_at, one.priority, row.said, row.size, row.version),
    )


class Claims:
    """
    Claims of tasks.

    :param database: the database.
    """

    def __init__(self, database: TaskDatabase) -> None:
        self._database = database
        # In PostgreSQL claims that run at the same time take other tasks; in SQLite a transaction is alone.
        self._skip = database.is_postgresql

    def claim(
        self,
        destination: Destination,
        limit: int,
        now: float,
        lease: float,
        owner: str,
        rules: Collection[int] | None,
    ) -> list[Task]:
        """Claim tasks, see :meth:`~dicomtwist.forwarding.tasks.store.TaskStore.claim`."""
        wanted = {"destination_": to_json(destination)}
        limit = min(limit, MAX_CLAIM)
        with self._database.reading() as connection:
            # Most calls for a destination find nothing, and keep no writer waiting.
            if not any(one.ready is not None or one.is_due(now) for one in _routes(connection, wanted, rules)):
                return []
        with self._database.writing(quick=True) as connection:
            routes = _routes(connection, wanted, rules)
            if sum(self._promote(connection, one, now) for one in routes if one.is_due(now)):
                routes = _routes(connection, wanted, rules)
            found = list(islice(self._oldest(connection, routes, limit), limit))
            if found:
                until = now + lease
                connection.execute(_CLAIM, [{"id_": row.id, "until_": until, "owner_": owner} for row, _ in found])
        return [to_task(row, one, until) for row, one in found]

    def _oldest(
        self, connection: Connection, routes: Sequence[_Route], limit: int
    ) -> Iterable[tuple[Row[Any], _Route]]:
        """Yield tasks that are ready, those with the highest priority first, then the oldest."""
        ready = sorted((one for one in routes if one.ready is not None), key=lambda one: -one.priority)
        statement = _READY.with_for_update(of=task, skip_locked=True) if self._skip else _READY
        for _, group in groupby(ready, key=lambda one: one.priority):
            rows = [
                [(row, one) for row in connection.execute(statement, {"route_": one.id, "limit_": limit})]
                for one in group
            ]
            yield from merge(*rows, key=lambda found: found[0].id)

    def _promote(self, connection: Connection, one: _Route, now: float) -> int:
        """Make tasks of a route ready whose time has come; return how much was done."""
        count = 0
        for state, statement, first in ((DELAYED, _MAKE_READY, one.delayed), (SENDING, _LEASE_ENDS, one.sending)):
            if first is not None and first <= now:
                due = _DUE.with_for_update(skip_locked=True) if self._skip else _DUE
                found = connection.scalars(due, {"route_": one.id, "state_": state, "now_": now}).all()
                if found:
                    connection.execute(statement, [{"id_": number} for number in found])
                    count += len(found)
        if one.quiet is not None and one.quiet <= now:
            for study in connection.scalars(_QUIET, {"route_": one.id, "now_": now}).all():
                in_study = connection.scalars(_SERIES_IN, {"study_": study}).all()
                if in_study:
                    connection.execute(_STUDY_IS_QUIET, [{"route_": one.id, "series_": number} for number in in_study])
                connection.execute(_FORGET_QUIET, {"study_": study, "route_": one.id})
                count += 1
        return count

    def due(self) -> list[Due]:
        """Return when tasks can be claimed."""
        with self._database.reading() as connection:
            return [
                Due(to_destination(one.destination), one.rule, one.at)
                for one in _routes(connection, None, None)
                if one.at is not None
            ]

    def renew(self, owner: str, now: float, lease: float) -> int:
        """Begin the leases of *owner* again, and correct times that are too far ahead; return the number of its tasks."""
        with self._database.writing(quick=True) as connection:
            count = connection.execute(_RENEW, {"owner_": owner, "until_": now + lease}).rowcount
            for statement in _AHEAD:
                connection.execute(statement, {"latest_": now + MAX_AHEAD, "now_": now, "until_": now + lease})
            return count

    def release(self, owner: str | None) -> int:
        """Give back the tasks of *owner*, or all that are claimed; return their number."""
        with self._database.writing(quick=True) as connection:
            if owner is None:
                return connection.execute(_RELEASE_ALL).rowcount
            return connection.execute(_RELEASE, {"owner_": owner}).rowcount


def _routes(connection: Connection, wanted: dict[str, str] | None, rules: Collection[int] | None) -> list[_Route]:
    statement = _ROUTES if wanted is None else _ROUTES_TO
    found = [_Route(*row) for row in connection.execute(statement, wanted or {})]
    return [one for one in found if rules is None or one.rule in rules]
