"""
The queue as an operator sees it: tasks are found, held, released, tried again and dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from heapq import merge
from itertools import islice
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, func, select, update

from dicomtwist.forwarding.tasks.claims import to_destination, to_task
from dicomtwist.forwarding.tasks.database import TaskDatabase
from dicomtwist.forwarding.tasks.schema import (
    DELAYED,
    FAILED,
    HELD,
    QUIET,
    READY,
    SENDING,
    STATES,
    quiet,
    route,
    rule,
    series,
    states_of,
    task,
)
from dicomtwist.forwarding.tasks.types import Counts, Selection, Task

__all__ = ["Queue"]

#: The tasks that are changed in one transaction: between two of them instances that arrive get their tasks.
_STEP: Final = 2000
#: The states of tasks that are still to be sent and are not held.
_WAITING: Final = (READY, DELAYED, QUIET)

_ROUTES: Final = select(route.c.id, route.c.rule, route.c.destination, rule.c.name, rule.c.priority).join_from(
    route, rule, rule.c.id == route.c.rule
)
_ROWS: Final = (
    select(task, series.c.study, series.c.series.label("series_uid"))
    .join_from(task, series, series.c.id == task.c.series)
    .where(task.c.id.in_(bindparam("ids_", expanding=True)))
    .order_by(task.c.id)
)
_BY_ID: Final = task.c.id == bindparam("id_")
_HOLD: Final = update(task).where(_BY_ID).values(state=HELD, at=bindparam("now_"))
#: A task that is tried again is as new. One that a process sends while it is tried again is sent twice.
_READY_AGAIN: Final = (
    update(task).where(_BY_ID).values(state=READY, at=0.0, tries=0, owner="", version=task.c.version + 1)
)
_RELEASED: Final = update(task).where(_BY_ID).values(state=READY, at=0.0)
_DROP: Final = delete(task).where(_BY_ID)


class Queue:
    """
    The tasks as an operator sees them.

    :param database: the database.
    """

    def __init__(self, database: TaskDatabase) -> None:
        self._database = database

    def find(self, selection: Selection, limit: int, after: int) -> list[Task]:
        """Find tasks, see :meth:`~dicomtwist.forwarding.tasks.store.TaskStore.find`."""
        with self._database.reading() as connection:
            routes = {one.id: one for one in _routes(connection, selection)}
            states = [number for number, one in enumerate(STATES) if not selection.states or one in selection.states]
            ids = list(islice(_ids(connection, selection, routes, states, limit, after), limit))
            rows = connection.execute(_ROWS, {"ids_": ids}).all() if ids else []
            until: dict[tuple[str, int], float] = {}
            if any(row.state == QUIET for row in rows):
                until = {(one.study, one.route): one.until for one in connection.execute(select(quiet))}
        found = []
        for row in rows:
            one = to_task(row, routes[row.route])
            found.append(one if row.state != QUIET else _with_next_try(one, until.get((one.study, row.route), 0.0)))
        return found

    def hold(self, selection: Selection, now: float) -> int:
        """Hold waiting tasks; return their number."""
        return self._change(selection, _WAITING, _HOLD, {"now_": now})

    def release_held(self, selection: Selection) -> int:
        """Let held tasks wait again; return their number."""
        return self._change(selection, (HELD,), _RELEASED, {})

    def retry(self, selection: Selection) -> int:
        """Let tasks be tried at once, see :meth:`~dicomtwist.forwarding.tasks.store.TaskStore.retry`."""
        states = {number for state in selection.states for number in states_of(state)} - {READY, SENDING}
        return self._change(selection, sorted(states) or (DELAYED, QUIET, FAILED), _READY_AGAIN, {})

    def drop(self, selection: Selection) -> int:
        """Remove tasks; return their number."""
        return self._change(selection, range(len(STATES)), _DROP, {})

    def counts(self) -> Counts:
        """Return the number of tasks by rule, destination and state."""
        with self._database.reading() as connection:
            routes = {one.id: one for one in connection.execute(_ROUTES)}
            rows = connection.execute(
                select(task.c.route, task.c.state, func.count()).group_by(task.c.route, task.c.state)
            ).all()
        found: Counts = {}
        for number, state, count in rows:
            one = routes[number]
            key = (one.rule, to_destination(one.destination), STATES[state])
            found[key] = found.get(key, 0) + count
        return found

    def oldest(self) -> dict[tuple[str, ...], float]:
        """Return for each destination when the oldest task was made that waits or is being sent."""
        with self._database.reading() as connection:
            first = [
                (one, connection.execute(_oldest(state), {"route_": one.id}).scalar())
                for one in connection.execute(_ROUTES).all()
                for state in (*_WAITING, SENDING)
            ]
        found: dict[tuple[str, ...], float] = {}
        for one, made_at in first:
            if made_at is not None:
                destination = to_destination(one.destination)
                found[destination] = min(made_at, found.get(destination, made_at))
        return found

    def _change(self, selection: Selection, states: Iterable[int], statement: Any, values: dict[str, Any]) -> int:
        """Change the tasks that are in one of *states*, in steps."""
        numbers = [number for number in states if not selection.states or STATES[number] in selection.states]
        count = after = 0
        while True:
            with self._database.writing() as connection:
                routes = {one.id: one for one in _routes(connection, selection)}
                ids = list(islice(_ids(connection, selection, routes, numbers, _STEP, after), _STEP))
                if ids:
                    connection.execute(statement, [{"id_": number, **values} for number in ids])
                    count, after = count + len(ids), ids[-1]
            if len(ids) < _STEP:
                return count


def _oldest(state: int) -> Any:
    """Return the statement for the time of the oldest task of a route in a state."""
    same = (task.c.route == bindparam("route_")) & (task.c.state == state)
    if state == READY:
        return select(task.c.made_at).where(same).order_by(task.c.at, task.c.id).limit(1)
    return select(task.c.made_at).where(task.c.id == select(func.min(task.c.id)).where(same).scalar_subquery())


def _routes(connection: Connection, selection: Selection) -> list[Any]:
    return [
        one
        for one in connection.execute(_ROUTES)
        if (not selection.destination or selection.destination in to_destination(one.destination))
        and (not selection.rule or selection.rule == one.name)
    ]


def _ids(
    connection: Connection,
    selection: Selection,
    routes: Iterable[int],
    states: Sequence[int],
    limit: int,
    after: int,
) -> Iterable[int]:
    """Yield the numbers of tasks in their order."""
    routes = list(routes)
    if selection.ids or selection.instance or selection.study:
        statement = select(task.c.id).where(task.c.id > after, task.c.route.in_(routes), task.c.state.in_(states))
        if selection.ids:
            statement = statement.where(task.c.id.in_(sorted(i for i in set(selection.ids) if i > after)[:limit]))
        if selection.instance:
            statement = statement.where(task.c.instance == selection.instance)
        if selection.study:
            in_study = connection.scalars(select(series.c.id).where(series.c.study == selection.study)).all()
            statement = statement.where(task.c.series.in_(in_study))
        return connection.scalars(statement.order_by(task.c.id).limit(limit)).all()
    # Each from the index of its route and state: a few that have failed are found among a million that wait.
    found = []
    for number in routes:
        for state in states:
            same = [task.c.route == number, task.c.state == state, task.c.id > after]
            if state == READY:
                same.append(task.c.at == 0.0)
            found.append(connection.scalars(select(task.c.id).where(*same).order_by(task.c.id).limit(limit)).all())
    return merge(*found)


def _with_next_try(one: Task, at: float) -> Task:
    return replace(one, next_try=at)
