"""
The queue of forwarding as operators see it: tasks, destinations, and what the rules say about an instance.

The functions block and are meant for threads, but for :class:`ForwardQueue`, which calls them there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from dicomtwist.access.rules import Requestor
from dicomtwist.forwarding.operators.explanations import explanations, named
from dicomtwist.forwarding.rules import Destination, ForwardRules
from dicomtwist.forwarding.tasks.store import TaskStore
from dicomtwist.forwarding.tasks.types import Definition, Selection, Task, TaskState
from dicomtwist.runtime.executors import Executor

__all__ = ["Change", "ForwardQueue"]

#: The most tasks that one look returns.
MAX_LISTED: Final = 1000
#: How long the numbers of tasks are believed, in seconds: those of a million tasks take a tenth of a second.
FRESH: Final = 5.0


class Change(StrEnum):
    """The changes that an operator makes to tasks."""

    RETRY = "retry"
    HOLD = "hold"
    RELEASE = "release"
    DROP = "drop"


class ForwardQueue:
    """
    The queue of a server.

    :param executor: the threads of the tasks.
    :param changed: called in the reactor's thread after tasks were changed, so that they are sent. It is called after each
        retry: destinations that are down are then tried at once.
    :param clock: returns the time in seconds since 1970.

    :ivar store: the tasks; ``None`` while nothing is forwarded.
    :ivar rules: the rules in force.
    :ivar ask_peers: returns the state of the peers, by name, from the process that sends.
    """

    log = Logger()

    def __init__(
        self,
        executor: Executor,
        changed: Callable[[Change], object] = lambda what: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store: TaskStore | None = None
        self.rules = ForwardRules()
        self.ask_peers: Callable[[], Deferred[Mapping[str, Any]]] = lambda: succeed({})
        self.changed = changed
        self._executor = executor
        self._clock = clock
        self._numbers: tuple[float, list[dict[str, Any]]] = (-FRESH, [])

    async def tasks(self, selection: Selection, limit: int, after: int = 0) -> list[dict[str, Any]]:
        """
        Return tasks in the order of their numbers, as values of JSON.

        :param limit: the most tasks, at most :data:`MAX_LISTED`.
        :param after: return tasks with higher numbers only.
        """
        if self.store is None:
            return []
        return await self._executor.run(_listed, self.store, selection, min(limit, MAX_LISTED), after, self._clock())

    async def change(self, what: Change, selection: Selection, by: str) -> int:
        """
        Change tasks; return their number.

        :param by: the operator, for the log.
        """
        store = self.store
        if store is None:
            return 0
        methods: Mapping[Change, Callable[[Selection], int]] = {
            Change.RETRY: store.retry,
            Change.HOLD: store.hold,
            Change.RELEASE: store.release_held,
            Change.DROP: store.drop,
        }
        count: int = await self._executor.run(methods[what], selection)
        self._numbers = (-FRESH, [])
        self.log.info("{by}: {what} {count} tasks of forwarding", by=by, what=what.value, count=count)
        if count or what is Change.RETRY:
            self.changed(what)
        return count

    async def numbers(self) -> list[dict[str, Any]]:
        """Return the destinations with the numbers of their tasks by state, as values of JSON."""
        now = self._executor.seconds()
        if self.store is None:
            return []
        at, found = self._numbers
        if now - at >= FRESH:
            found = await self._executor.run(_numbers, self.store, self._clock())
            self._numbers = (now, found)
        return found

    async def destinations(self) -> list[dict[str, Any]]:
        """Return the destinations with the numbers of their tasks, and the state of their peers, as values of JSON."""
        peers = await self.ask_peers()
        found = [dict(one) for one in await self.numbers()]
        known = {one["destination"] for one in found}
        for destination in dict.fromkeys(each for rule in self.rules.rules for each in rule.to):
            if named(destination) not in known:
                found.append(_row(destination))
        for one in found:
            one["peers"] = [{"name": name, **peers.get(name, {})} for name in one.pop("names")]
        return found

    async def definitions(self) -> list[dict[str, Any]]:
        """Return the rules that tasks were made by and those in force, as values of JSON."""
        if self.store is None:
            return []
        found = await self._executor.run(self.store.definitions)
        in_force = {rule.name for rule in self.rules.rules}
        return [_definition(one, in_force) for one in found.values()]

    async def explain(self, file: bytes, requestor: Requestor) -> list[dict[str, Any]]:
        """
        Return what each rule says about an instance, as values of JSON.

        :param file: a PS3.10 file, or its front up to the pixel data.
        :param requestor: the peer that it comes from.
        :raises NotDicomFile: it is another kind of file.
        :raises DataSetError: its header cannot be decoded.
        """
        return await self._executor.run(explanations, self.rules, file, requestor)


def _listed(store: TaskStore, selection: Selection, limit: int, after: int, now: float) -> list[dict[str, Any]]:
    found = store.find(selection, limit, after)
    names = {number: one.name for number, one in store.definitions().items()} if found else {}
    return [_task(one, names, now) for one in found]


def _task(task: Task, names: Mapping[int, str], now: float) -> dict[str, Any]:
    is_waiting = task.state is TaskState.WAITING and task.next_try > 0
    return {
        "id": task.id,
        "instance": task.instance,
        "series": task.series,
        "study": task.study,
        "destination": named(task.destination),
        "rule": names.get(task.rule, str(task.rule)),
        "state": task.state.value,
        "tries": task.tries,
        "next_try": _time(task.next_try) if is_waiting else None,
        "age": round(max(0.0, now - task.made_at), 3),
        "said": task.said,
        "priority": task.priority,
        "size": task.size,
    }


def _numbers(store: TaskStore, now: float) -> list[dict[str, Any]]:
    rows: dict[Destination, dict[str, Any]] = {}
    for (_, destination, state), count in store.counts().items():
        row = rows.setdefault(destination, _row(destination))
        row[state.value] += count
    for destination, made_at in store.oldest().items():
        rows.setdefault(destination, _row(destination))["oldest_age"] = round(max(0.0, now - made_at), 3)
    return [rows[one] for one in sorted(rows)]


def _row(destination: Destination) -> dict[str, Any]:
    numbers = {state.value: 0 for state in TaskState}
    return {"destination": named(destination), "names": destination, **numbers, "oldest_age": None}


def _definition(one: Definition, in_force: Sequence[str] | set[str]) -> dict[str, Any]:
    return {
        "rule": one.name,
        "number": one.id,
        "destinations": [named(each) for each in one.to],
        "priority": one.priority,
        "study_quiet": one.study_quiet,
        "keep": one.keep,
        "in_force": one.name in in_force,
        "table": dict(one.table),
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
