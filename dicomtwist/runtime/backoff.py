"""
Back-off: the time to wait before the next attempt, by the number of failures in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["Backoff"]

#: The power beyond which a delay is not computed; the longest one is reached long before.
_MOST: Final = 100


def _no_jitter() -> float:
    return 0.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """
    Delays that grow with each failure. A delay depends on the number of failures and on *jitter*, not on a clock.

    :ivar first: the delay after the first failure, in seconds.
    :ivar longest: the longest delay before jitter, in seconds.
    :ivar factor: the ratio of a delay to the one before.
    :ivar jitter: returns the seconds to add to a delay, such as ``random.random``, so that the clients of a restarted peer
        do not all connect at once; 0 by default.
    :raises ValueError: a delay is negative or *longest* is below *first*, or *factor* is below 1.
    """

    first: float
    longest: float
    factor: float = 2.0
    jitter: Callable[[], float] = _no_jitter

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.longest or self.factor < 1:
            raise ValueError(f"{self.first} to {self.longest} s, times {self.factor}: delays do not become shorter")

    def __call__(self, failures: int) -> float:
        """Return the delay after *failures* failures in a row, 1 or more, in seconds."""
        return min(self.first * self.factor ** min(max(failures - 1, 0), _MOST), self.longest) + self.jitter()
