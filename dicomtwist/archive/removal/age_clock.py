"""
The clock that the ages of studies are measured with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from twisted.logger import Logger

__all__ = ["AgeClock"]

#: The seconds by which the system clock may be ahead of where it was at the start; corrections by a time service are shorter.
MAX_AHEAD: Final = 600.0


def _steady() -> float:
    """Return the seconds since the start of the machine, with those for which it was suspended if the system knows them."""
    return time.monotonic()


if hasattr(time, "CLOCK_BOOTTIME"):
    _steady = partial(time.clock_gettime, time.CLOCK_BOOTTIME)


class AgeClock:
    """
    The system clock, but a step forward is left out: it would make all studies old at once, and they would be deleted.

    A step back is followed, since it makes studies younger. The time before the start of the program is not known.

    :param wall: returns the time of the system clock, in seconds since 1970.
    :param steady: returns the time of a clock that is never set, in seconds.
    """

    log = Logger()

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = _steady) -> None:
        self._wall = wall
        self._steady = steady
        self._offset = wall() - steady()
        self._is_ahead = False

    def __call__(self) -> float:
        """Return the time, in seconds since 1970."""
        wall, steady = self._wall(), self._steady()
        self._offset = min(self._offset, wall - steady)
        expected = steady + self._offset
        was_ahead, self._is_ahead = self._is_ahead, wall - expected > MAX_AHEAD
        if not self._is_ahead:
            return wall
        if not was_ahead:
            self.log.warn(
                "the system clock was set forward by {seconds:.0f} s: the retention goes on by the old time;"
                " restart the server if the new time is right",
                seconds=wall - expected,
            )
        return expected
