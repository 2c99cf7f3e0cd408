"""
The breaker of a destination: one that is down costs one attempt at a time, after longer and longer pauses. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final

from dicomtwist.runtime.backoff import Backoff

__all__ = ["Breaker", "BreakerState"]

#: The pauses between attempts, in seconds, before up to a quarter more at random.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
#: The longest pause that a destination can ask for, in seconds.
LONGEST_ASKED: Final = 3600.0
#: The connections in a row that may end without any answer before the destination counts as down.
MAX_LOST: Final = 3

_PAUSES: Final = Backoff(FIRST_PAUSE, LONGEST_PAUSE)


class BreakerState(StrEnum):
    """The state of a breaker."""

    CLOSED = "closed"
    """The destination is used."""
    OPEN = "open"
    """The destination is down: nothing is sent."""
    PROBING = "probing"
    """The pause is over: one attempt is made."""


class Breaker:
    """
    Counts the failures of one destination as a whole.

    :param jitter: returns a number from 0 to 1, such as ``random.random``.

    :ivar failures: the failures in a row.
    :ivar until: the end of the pause, in seconds of the clock.
    :ivar said: why the destination counts as down; empty if it does not.
    :ivar since: since when it counts as down, in seconds of the clock.
    """

    __slots__ = ("_is_probing", "_jitter", "_lost", "failures", "said", "since", "until")

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._lost = 0
        self._is_probing = False
        self.failures = 0
        self.until = 0.0
        self.since = 0.0
        self.said = ""

    def state(self, now: float) -> BreakerState:
        """Return the state at *now*."""
        if not self.failures:
            return BreakerState.CLOSED
        return BreakerState.PROBING if self._is_probing or now >= self.until else BreakerState.OPEN

    def room(self, now: float) -> int | None:
        """Return how many instances may be sent; ``None`` for any number."""
        if not self.failures:
            return None
        return 0 if self._is_probing or now < self.until else 1

    def begin(self) -> None:
        """Note that an attempt begins."""
        self._is_probing = bool(self.failures)

    def give_up(self) -> None:
        """Note that the attempt said nothing about the destination: another may be made."""
        self._is_probing = False

    def succeeded(self) -> bool:
        """
        Note that the destination has answered.

        :returns: whether it counted as down.
        """
        was_down = bool(self.failures)
        self.failures = self._lost = 0
        self._is_probing = False
        self.until = self.since = 0.0
        self.said = ""
        return was_down

    def lost(self, now: float, said: str) -> bool:
        """
        Note that a connection has ended without any answer.

        :returns: whether the destination counts as down from now on, and did not before.
        """
        self._lost += 1
        if self._lost < MAX_LOST and not self.failures:
            return False
        return self.failed(now, said)

    def failed(self, now: float, said: str, after: float | None = None) -> bool:
        """
        Note that the destination cannot be used.

        :param said: its words, or why it cannot be reached.
        :param after: the pause in seconds that it asks for.
        :returns: whether it counts as down from now on, and did not before.
        """
        was_up = not self.failures
        if not was_up and not self._is_probing and now < self.until:
            # Another attempt that had begun before the failure; it does not make the pause longer.
            return False
        self.failures += 1
        self._is_probing = False
        pause = max(_PAUSES(self.failures), min(after or 0.0, LONGEST_ASKED))
        self.until = now + pause * (1 + self._jitter() / 4)
        self.said = said
        if was_up:
            self.since = now
        return was_up
