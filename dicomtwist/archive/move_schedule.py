"""
The schedule of the work that follows acknowledgements: when files and rows are made, and when the inbox is emptied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.errors import loggable
from dicomtwist.runtime.executors import Executor

__all__ = ["BURST", "EAGER_TURNS", "LONGEST_TURNS", "PAUSE", "TRY_AGAIN", "MoveSchedule", "Movable"]

#: Files and rows that may follow an acknowledgement are made after no instance has arrived for this time, in seconds.
PAUSE: Final = 0.05
#: They are made without a pause when they follow for this number of instances, or for this number of times :data:`PAUSE`.
BURST: Final = 1800
LONGEST_TURNS: Final = 20
#: The time after which they are tried again if the database has refused them, in seconds.
TRY_AGAIN: Final = 5.0
#: The time between two lines of the log about instances that cannot be moved, in seconds.
COMPLAIN_AFTER: Final = 60.0
#: After a query they are made without a pause for this number of times :data:`PAUSE`.
EAGER_TURNS: Final = 100


class Movable(Protocol):
    """The archive as the schedule sees it, see :class:`dicomtwist.archive.archive.Archive`."""

    @property
    def unindexed(self) -> int:
        """The number of stored instances that have no file or no row yet."""

    @property
    def unsettled(self) -> int:
        """The number of stored instances with a file that are still in the inbox."""

    @property
    def asked(self) -> int:
        """A number that rises with each query."""

    def move(self) -> None:
        """Give all stored instances their files and rows, see :meth:`dicomtwist.archive.archive.Archive.move`."""

    def settle(self) -> None:
        """Take instances out of the inbox, see :meth:`dicomtwist.archive.archive.Archive.settle`."""


class MoveSchedule:
    """
    Decides when an archive moves and settles, in the reactor thread; a worker thread does it.

    Moving slows down a burst, so it waits for a pause in the arrivals; but not if many instances wait, and not longer than a
    second. From then on until the next pause, and after a query, it moves at each turn, so that a query has little to wait for.
    A turn lasts :data:`PAUSE`.

    :param archive: the archive, open.
    :param executor: the threads that move, and the clock.
    """

    log = Logger()

    def __init__(self, archive: Movable, executor: Executor) -> None:
        self._archive = archive
        self._executor = executor
        self._came = 0
        self._asked = 0
        self._turns = 0
        self._idle_turns = 0
        self._eager = 0
        self._is_sustained = self._is_moving = self._is_stopped = False
        self._waiting: IDelayedCall | None = None
        self._complained: float | None = None

    def came(self, count: int) -> None:
        """Note that instances were acknowledged, whose files or rows may have to follow."""
        self._came += count
        if self._waiting is None and not self._is_moving and not self._is_stopped:
            if self._archive.unindexed or self._archive.unsettled:
                self._wait()

    def stop(self) -> None:
        """Make no further files and rows; closing the archive does so."""
        self._is_stopped = True
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _wait(self, seconds: float = PAUSE) -> None:
        self._waiting = self._executor.call_later(seconds, self._turn, self._came)

    def _turn(self, came: int) -> None:
        """Move, settle, or wait for the next turn."""
        self._waiting = None
        archive = self._archive
        is_pause = came == self._came
        self._turns += 1
        self._idle_turns = self._idle_turns + 1 if is_pause else 0
        if archive.asked != self._asked:
            self._asked = archive.asked
            self._eager = EAGER_TURNS
        behind = archive.unindexed
        if behind >= BURST or self._turns >= LONGEST_TURNS:
            self._is_sustained = True
        if behind and (is_pause or self._is_sustained or self._eager):
            self._begin(archive.move, is_pause)
        elif archive.unsettled and self._idle_turns >= LONGEST_TURNS:
            self._begin(archive.settle, is_pause)
        elif behind or archive.unsettled:
            self._wait()
        else:
            self._turns = 0
        self._eager = max(0, self._eager - 1)

    def _begin(self, function: Callable[[], None], is_pause: bool) -> None:
        self._is_moving = True
        if is_pause:
            self._is_sustained = False
            self._turns = 0
        self._executor.run_admitted(function).addCallbacks(self._moved, self._not_moved)

    def _moved(self, _: None, seconds: float = PAUSE) -> None:
        self._is_moving = False
        if not self._is_stopped and (self._archive.unindexed or self._archive.unsettled):
            self._wait(seconds)

    def _not_moved(self, reason: Failure) -> None:
        """Try again later; the next query tries as well."""
        self._moved(None, TRY_AGAIN)
        now = self._executor.seconds()
        if self._complained is None or now - self._complained >= COMPLAIN_AFTER:
            self._complained = now
            self.log.error(
                "instances that are stored wait for their files or their rows: {reason}", reason=loggable(reason.value)
            )
