"""
The rate of a destination, and the hours of a rule. No I/O, no clock.
"""

from __future__ import annotations

from time import localtime
from typing import Final

from dicomtwist.forwarding.values import Hours

__all__ = ["Rate", "wait_for_hours"]

#: The time whose bytes may be sent at once after a pause, in seconds.
BURST: Final = 1.0


class Rate:
    """
    A token bucket: bytes may be sent while it is not empty, so the last of them may put it into debt.

    :param rate: the bytes a second.

    :ivar rate: see above.
    """

    __slots__ = ("_at", "_level", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._level = rate * BURST
        self._at: float | None = None

    def wait(self, now: float) -> float:
        """Return the seconds after which bytes may be sent; 0 if they may be sent now."""
        self._fill(now)
        return 0.0 if self._level > 0 else max(-self._level / self.rate, 0.001)

    def take(self, count: int, now: float) -> None:
        """Take *count* bytes."""
        self._fill(now)
        self._level -= count

    def _fill(self, now: float) -> None:
        if self._at is not None and now > self._at:
            self._level = min(self._level + (now - self._at) * self.rate, self.rate * BURST)
        self._at = now


def wait_for_hours(hours: Hours | None, now: float) -> float:
    """
    Return the seconds until a rule may send.

    :param hours: its hours, in local time.
    :param now: the time in seconds since 1970.
    """
    if hours is None:
        return 0.0
    local = localtime(now)
    minute = local.tm_hour * 60 + local.tm_min
    wait = hours.wait(minute)
    return 0.0 if not wait else wait * 60.0 - local.tm_sec - now % 1
