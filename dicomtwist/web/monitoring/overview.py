"""
The whole server as an operator sees it: the figures and events of all processes together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from time import time
from typing import Any, Final, Generic, TypeVar

from twisted.internet.defer import Deferred

from dicomtwist import evt
from dicomtwist.archive.index.reading import count_entities
from dicomtwist.archive.server import ArchiveServer
from dicomtwist.archive.storage.types import IndexFailed
from dicomtwist.errors import ExecutorFull
from dicomtwist.web.monitoring import history, recent, state
from dicomtwist.web.monitoring.monitor import Monitor

__all__ = ["Overview"]

#: The time for which an answer of the processes is used again, in seconds, however many pages ask.
FRESH: Final = 0.9
#: The time for which the numbers of studies and instances are used again, in seconds.
COUNTED: Final = 30.0
#: The figures of the history of which the largest of all processes counts.
_MAXIMA: Final = frozenset(("lag",))

_T = TypeVar("_T")


class _Kept(Generic[_T]):
    """
    A value that takes time to get: it is got once for all callers of the same time, and kept for some seconds.

    :param clock: the reactor.
    :param get: gets the value.
    :param seconds: the time for which it is kept.
    """

    def __init__(self, clock: Any, get: Callable[[], Awaitable[_T]], seconds: float) -> None:
        self._clock = clock
        self._get = get
        self._seconds = seconds
        self._value: tuple[float, _T] | None = None
        self._waiting: list[Deferred[_T]] | None = None

    async def value(self) -> _T:
        """Return the value."""
        if self._value is not None and self._clock.seconds() - self._value[0] < self._seconds:
            return self._value[1]
        waiter: Deferred[_T] = Deferred()
        if self._waiting is None:
            self._waiting = [waiter]
            # Nobody who asks cancels it: others may wait for the same value.
            Deferred.fromCoroutine(self._gotten()).addBoth(self._tell)
        else:
            self._waiting.append(waiter)
        return await waiter

    async def _gotten(self) -> _T:
        value = await self._get()
        self._value = (self._clock.seconds(), value)
        return value

    def _tell(self, result: Any) -> None:
        waiting, self._waiting = self._waiting, None
        for waiter in waiting or ():
            if not waiter.called:
                waiter.callback(result)  # a Failure fails it


class Overview:
    """
    The server as an operator sees it.

    :param monitor: the metrics of this process, and the way to ask the others.
    :param server: the archive with its services.

    :ivar recent: the recent events of this process.
    :ivar history: the figures of this process in the last minutes.
    """

    def __init__(self, monitor: Monitor, server: ArchiveServer) -> None:
        self._monitor = monitor
        self._server = server
        clock = server.ae.reactor
        self.recent = recent.Recent(server.ae)
        self.history = history.History(clock, self._gauges, self._totals)
        self._numbers = _Kept(clock, self._count, COUNTED)
        self._activity = _Kept(clock, self._ask_activity, FRESH)
        self._state = _Kept(clock, self._ask_state, FRESH)
        self._figures = _Kept(clock, self._ask_figures, FRESH)
        #: The answers of this process to questions of others.
        self.answers: dict[str, Callable[[], Any]] = {
            "recent": self.recent.snapshot,
            "history": self.history.snapshot,
            "retention": self._retention,
        }
        server.ae.bind(evt.EVT_RECORD, self.recent.association_ended)
        if server.access is not None:
            server.access.refusals.listeners.append(self.recent.refused)
        if monitor.site is not None:
            monitor.site.listeners.append(self.recent.request_ended)

    def start(self) -> None:
        """Begin the history."""
        self.history.start()

    def stop(self) -> None:
        """End the history; idempotent."""
        self.history.stop()

    # --- what an operator sees

    async def activity(self) -> dict[str, list[recent.Entry]]:
        """Return the open associations, and the last associations, requests and refusals, see :mod:`.recent`."""
        return await self._activity.value()

    async def state(self) -> dict[str, Any]:
        """Return the state of the processes, the disk, the index and the executors, see :mod:`.state`."""
        return await self._state.value()

    async def retention(self) -> dict[str, int | None]:
        """Return how many studies the retention has deleted and kept; ``None`` if a process does not answer."""
        answers = [*(await self._ask("retention")).values()]
        if None in answers:
            return dict.fromkeys(self._retention())
        return {name: sum(one[name] for one in answers) for name in self._retention()}

    def _retention(self) -> dict[str, int]:
        retention = self._server.retention
        return {"deleted": retention.deleted, "kept": retention.kept}

    async def figures(self) -> dict[str, Any]:
        """Return the figures of the last minutes: ``step`` in seconds, ``end``, and ``series``, a list by the name of each."""
        return await self._figures.value()

    async def _ask(self, what: str) -> Mapping[str, Any]:
        """Return the answers of all processes by their names; ``None`` for one that did not answer."""
        asking = self._monitor.ask_others(what)
        return {self._monitor.name: self.answers[what](), **await asking}

    async def _ask_activity(self) -> dict[str, list[recent.Entry]]:
        return recent.merged(await self._ask("recent"))

    async def _ask_figures(self) -> dict[str, Any]:
        answers = await self._ask("history")
        now = time()
        series = history.merged([samples for samples in answers.values() if samples], now, _MAXIMA)
        return {"step": history.STEP, "end": int(now // history.STEP) * history.STEP, "series": series}

    async def _ask_state(self) -> dict[str, Any]:
        snapshots = await self._monitor.collect_all()
        numbers = await self._numbers.value()
        return state.state_of(snapshots, numbers, self._server.ae.ae_title, await self._monitor.problems())

    async def _count(self) -> dict[str, int] | None:
        """Return the numbers of entities of the index, ``None`` if it cannot be read."""
        archive = self._server.archive
        try:
            return await self._server.ae.executors.querying.share("").run(lambda: count_entities(archive.index.engine))
        except (IndexFailed, ExecutorFull):
            return None

    # --- the history of this process

    def _gauges(self) -> dict[str, float]:
        ae, server = self._server.ae, self._server
        vitals = ae.executors.vitals()
        found: dict[str, float] = {
            "associations": float(len(ae.active_associations)),
            "busy": float(sum(one.busy for one in vitals)),
            "queued": float(sum(one.queued for one in vitals)),
            "inbox": float(server.archive.unindexed),
        }
        if self._monitor.service is not None:
            found["lag"] = self._monitor.service.lag.maximum_of(history.STEP)
        return found

    def _totals(self) -> dict[str, float]:
        ae, server, site = self._server.ae, self._server, self._monitor.site
        figures, open_ones = ae.figures, ae.connections
        found: dict[str, float] = {
            "operations": float(sum(count for _, count in figures.performed.counts.items())),
            "instances": float(server.ingest.outcomes[("stored",)]),
            "received": float(figures.bytes_received + sum(one.bytes_received for one in open_ones)),
            "sent": float(figures.bytes_sent + sum(one.bytes_sent for one in open_ones)),
        }
        if site is not None:
            found["requests"] = float(sum(count for _, count in site.figures.counts.items()))
            found["received"] += site.figures.bytes_received
            found["sent"] += site.figures.bytes_sent
        return found
