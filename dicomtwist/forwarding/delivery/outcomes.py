"""
Outcomes of tasks, which are recorded in batches: one transaction, and one trip to a thread, for many of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from dicomtwist.forwarding.delivery.interfaces import TaskQueue, when_fired
from dicomtwist.forwarding.tasks.types import Outcome, TaskState
from dicomtwist.runtime.backoff import Backoff
from dicomtwist.runtime.executors import Runner

__all__ = ["Outcomes"]

#: The most outcomes that are recorded in one transaction.
MAX_TOGETHER: Final = 500
#: The outcomes from which on they are recorded at once, and the time for which fewer wait for others, in seconds.
ENOUGH: Final = 100
PAUSE: Final = 0.1
#: The outcomes that wait from which on nothing more is claimed: the database refuses them, or is too slow.
MAX_WAITING: Final = 2000

_DELAYS: Final = Backoff(first=1.0, longest=30.0)


class Outcomes:
    """
    The outcomes that are to be recorded.

    :param queue: records them.
    :param executor: where that blocks.
    :param reactor: for timers.
    :param recorded: called when some have been recorded, with whether any of their tasks wait again; or when that failed.
    """

    log = Logger()

    def __init__(self, queue: TaskQueue, executor: Runner, reactor: Any, recorded: Callable[[bool], object]) -> None:
        self._queue = queue
        self._executor = executor
        self._reactor = reactor
        self._recorded = recorded
        self._waiting: list[Outcome] = []
        self._recording: Deferred[None] | None = None
        self._timer: Any = None
        self._failures = 0

    @property
    def waiting(self) -> int:
        """The number of outcomes that are not recorded yet."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether so many wait that nothing more is to be claimed."""
        return len(self._waiting) >= MAX_WAITING

    def add(self, outcome: Outcome) -> None:
        """Record an outcome, soon and together with others."""
        self._waiting.append(outcome)
        if self._recording is None:
            if len(self._waiting) >= ENOUGH and not self._failures:
                self._record()
            elif self._timer is None:
                self._timer = self._reactor.callLater(PAUSE, self._record)

    def _record(self) -> None:
        if self._timer is not None:
            timer, self._timer = self._timer, None
            if timer.active():
                timer.cancel()
        if self._recording is None and self._waiting:
            self._recording = Deferred.fromCoroutine(self._run())
            if self._recording.called:
                self._recording = None

    async def _run(self) -> None:
        batch = self._waiting[:MAX_TOGETHER]
        waits = False
        try:
            await self._executor.run(self._queue.finish, batch)
        except Exception as error:
            self._failures += 1
            delay = _DELAYS(self._failures)
            if self._failures == 1:
                self.log.error("outcomes of forwarding cannot be recorded: {why}", why=str(error))
            self._timer = self._reactor.callLater(delay, self._record)
        else:
            del self._waiting[: len(batch)]
            waits = any(one.state is TaskState.WAITING for one in batch)
            if self._failures:
                self._failures = 0
                self.log.info("outcomes of forwarding are recorded again")
        self._recording = None
        if self._waiting and self._timer is None:
            if len(self._waiting) >= ENOUGH:
                self._record()
            else:
                self._timer = self._reactor.callLater(PAUSE, self._record)
        self._recorded(waits)

    async def flush(self) -> None:
        """Record all that wait, with one attempt; those that cannot be recorded are dropped, and their tasks sent again."""
        while self._recording is not None:
            await when_fired(self._recording)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_TOGETHER], self._waiting[MAX_TOGETHER:]
            try:
                await self._executor.run(self._queue.finish, batch)
            except Exception as error:
                self.log.error("{count} outcomes of forwarding are lost: {why}", count=len(batch), why=str(error))
