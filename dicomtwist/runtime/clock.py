"""
The reactor's clock: timers and timeouts that a step of the wall clock does not move.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

from twisted.internet.base import ReactorBase

__all__ = ["use_monotonic_clock"]


def use_monotonic_clock(reactor: Any) -> None:
    """
    Make the timers of *reactor*, and its ``seconds()``, follow the monotonic clock from now on.

    Twisted's reactors take the time from ``time.time()``. If an administrator or a time service sets the wall clock forward
    by an hour, every timer of the next hour fires at once; set back by an hour, none fires for an hour. All timeouts,
    back-offs and rates of this package use the clock of their reactor, so the correction is made there, for the whole reactor.

    ``seconds()`` continues from the wall-clock time of this call, and calls that are scheduled already keep their time, so
    nothing that uses the reactor has to know of the change. A reactor that has a clock of its own keeps it: one for tests, or
    a later Twisted's.

    :param reactor: a reactor. Calls after the first have no effect.
    """
    if not isinstance(reactor, ReactorBase) or reactor.seconds is not ReactorBase.seconds:
        return
    offset = reactor.seconds() - monotonic()

    def seconds() -> float:
        """Return the time, in seconds."""
        return monotonic() + offset

    reactor.seconds = seconds
    pending: Sequence[Any] = reactor.getDelayedCalls()
    for call in pending:
        if call.seconds is ReactorBase.seconds:
            # A call takes the time from here when it is reset.
            call.seconds = seconds
