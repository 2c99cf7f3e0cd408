"""
The signals of ``twist dicom`` while it runs, and the deadline of its stop.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from threading import Timer
from typing import Any, Final

from twisted.internet.error import ReactorNotRunning

__all__ = ["STOP_SECONDS", "limit_stop", "take_signals"]

#: The time that a stop may take beyond the grace of the associations, in seconds. After it the process ends as it is, which
#: the next start repairs as it does after a power cut.
STOP_SECONDS: Final = 10.0


def take_signals(reactor: Any, reload: Callable[[], Any], log: Callable[[], Any], received: Iterable[int]) -> None:
    """
    Handle the signals of a running server: SIGTERM stops it, SIGHUP reloads, SIGUSR1 logs its vital figures. Of
    several SIGINT, or those behind a SIGTERM, the first one counts.

    Call it when the reactor runs, which installs handlers of its own. With those, ``twist`` stops in order as well, and then
    ends by the signal that it got; a supervisor takes that for a failure.

    :param reload: called at SIGHUP.
    :param log: called at SIGUSR1.
    :param received: the signals that arrived before; they are handled now.
    """

    def stop() -> None:
        if callable(signal.getsignal(signal.SIGINT)):
            signal.signal(signal.SIGINT, lambda number, frame: None)
        try:
            reactor.stop()
        except ReactorNotRunning:
            pass  # a second SIGTERM

    interrupted = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: Any) -> None:
        # The first Ctrl-C stops as the reactor does it: the process ends by the signal, as a shell expects. A second one, or
        # one behind a SIGTERM, would only log a traceback.
        signal.signal(signal.SIGINT, lambda number, frame: None)
        if callable(interrupted):
            interrupted(number, frame)

    actions = {signal.SIGTERM: stop, signal.SIGHUP: reload, signal.SIGUSR1: log}

    def handle(number: int, frame: object) -> None:
        reactor.callFromThread(actions[signal.Signals(number)])

    for number in actions:
        signal.signal(number, handle)
    if callable(interrupted):  # not if the program was started with the signal ignored
        signal.signal(signal.SIGINT, interrupt)
    for earlier in received:
        handle(earlier, None)


def limit_stop(reactor: Any, grace: float | None) -> None:
    """
    Kill the process if its stop takes longer than *grace* and :data:`STOP_SECONDS`.

    A thread that hangs in a system call, as on a network drive that is gone, cannot be ended in another way, and the reactor
    may have to wait for it.

    :param grace: the time for associations to finish, in seconds; ``None`` for no limit, which the stop then does not have
        either.
    """
    if grace is None:
        return
    timer = Timer(grace + STOP_SECONDS, _expired)
    timer.daemon = True
    reactor.addSystemEventTrigger("before", "shutdown", timer.start)


def _expired() -> None:
    os.write(2, b"twist dicom: the stop is late, the process kills itself\n")
    signal.raise_signal(signal.SIGKILL)
