"""
The signals of ``twist dicom`` while it runs, and the deadline of its stop.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Timer
from typing import Any, Final

from twisted.internet.error import ReactorNotRunning

__all__ = ["STOP_SECONDS", "exit_with_words", "limit_stop", "take_signals"]

#: The time that a stop may take beyond the grace of the associations, in seconds. After it the process ends as it is, which
#: the next start repairs as it does after a power cut.
STOP_SECONDS: Final = 10.0
#: The time that the start has to end after a SIGTERM, in seconds. Then the process ends as it is, with status 0.
START_STOP_SECONDS: Final = 3.0


def take_signals(
    reactor: Any,
    reload: Callable[[], Any],
    log: Callable[[], Any],
    reopen_log: Callable[[], Any],
    received: Iterable[int],
    is_starting: Callable[[], bool] = lambda: False,
) -> None:
    """
    Handle the signals of a server that has started: SIGTERM stops it, SIGHUP opens its log file again and reloads, SIGUSR1 logs
    its vital figures. Of several SIGINT, or those behind a SIGTERM, the first one counts.

    SIGUSR2 is for workers: it opens the log file again without a reload, which they do not begin if the supervisor has found a
    mistake.

    A signal that arrives before the reactor runs is handled when it runs. The reactor installs handlers of its own then, with
    which ``twist`` stops in order as well, but ends by the signal that it got; a supervisor takes that for a failure. So the
    reactor gets these handlers to install: there is no instant at which others are in place.

    :param reload: called at SIGHUP, after *reopen_log*.
    :param log: called at SIGUSR1.
    :param reopen_log: called at SIGHUP and SIGUSR2.
    :param received: the signals that arrived before; they are handled as well.
    :param is_starting: returns whether the start has not ended. It has nothing to finish, and may be in a system call that does
        not return: a SIGTERM ends the process after :data:`START_STOP_SECONDS` at the latest.
    """
    present = signal.getsignal(signal.SIGINT)
    is_default = present is signal.default_int_handler
    interrupted = getattr(reactor, "sigInt", None) if is_default else present

    def stop() -> None:
        if callable(signal.getsignal(signal.SIGINT)):
            signal.signal(signal.SIGINT, _pass)
        try:
            reactor.stop()
        except ReactorNotRunning:
            pass  # a second SIGTERM

    def interrupt(number: int, frame: Any = None) -> None:
        # The first Ctrl-C stops as the reactor does it: the process ends by the signal, as a shell expects. A second one, or
        # one behind a SIGTERM, would only log a traceback.
        signal.signal(signal.SIGINT, _pass)
        if callable(interrupted):
            interrupted(number, frame)

    def hang_up() -> None:
        reopen_log()
        reload()

    actions = {signal.SIGTERM: stop, signal.SIGHUP: hang_up, signal.SIGUSR1: log, signal.SIGUSR2: reopen_log}

    def end_start() -> None:
        if is_starting():
            os.write(2, b"twist dicom: SIGTERM during the start\n")
            os._exit(0)

    def handle(number: int, frame: object = None) -> None:
        if number == signal.SIGTERM and is_starting():
            _later(START_STOP_SECONDS, end_start)
        reactor.callFromThread(actions[signal.Signals(number)])

    reactor.sigTerm, reactor.sigInt = handle, interrupt
    for number in actions:
        signal.signal(number, handle)
    if callable(present) and not is_default:  # not if the program was started with the signal ignored
        signal.signal(signal.SIGINT, interrupt)
    for earlier in received:
        handle(earlier)
    atexit.register(_ignore, actions)


def _pass(number: int, frame: object) -> None:
    """Handle a signal by doing nothing."""


def _ignore(numbers: Iterable[int]) -> None:
    """
    Ignore signals while the interpreter ends.

    It restores their default actions before it frees its modules: a second SIGTERM, or the SIGHUP of a log rotation, would kill
    a process that has stopped in order.
    """
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def limit_stop(reactor: Any, grace: Callable[[], float | None]) -> Callable[[], None]:
    """
    Kill the process if its stop takes longer than the grace and :data:`STOP_SECONDS`.

    A thread that hangs in a system call, as on a network drive that is gone, cannot be ended in another way, and the reactor
    may have to wait for it.

    :param grace: returns the time for associations to finish, in seconds; ``None`` for no limit. A reload may change it.
    :returns: a function to call during the stop when the associations have ended. Without a limit for them, the time counts
        from there; otherwise it does nothing.
    """

    def stopping() -> None:
        seconds = grace()
        if seconds is not None:
            _later(seconds + STOP_SECONDS, _expired)

    def drained() -> None:
        if grace() is None:
            _later(STOP_SECONDS, _expired)

    reactor.addSystemEventTrigger("before", "shutdown", stopping)
    return drained


def exit_with_words(reactor: Any) -> Callable[[str], None]:
    """
    Prepare the end of a program whose start fails while the reactor runs.

    :param reactor: the reactor, which does not run yet.
    :returns: a function that stops the reactor. The program then ends with its argument on standard error, and with status 1:
        the reactor does not let a ``SystemExit`` through.
    """
    words: list[str] = []
    run = reactor.run

    def run_and_exit(*arguments: Any, **keywords: Any) -> None:
        run(*arguments, **keywords)
        if words:
            # twist has replaced sys.stderr by its log.
            os.write(2, f"{words[0]}\n".encode("utf-8", "backslashreplace"))
            raise SystemExit(1)

    def end(text: str) -> None:
        words.append(text)
        with suppress(ReactorNotRunning):
            reactor.stop()

    reactor.run = run_and_exit
    return end


def _later(seconds: float, function: Callable[[], None]) -> None:
    timer = Timer(seconds, function)
    timer.daemon = True
    timer.start()


def _expired() -> None:
    os.write(2, b"twist dicom: the stop is late, the process kills itself\n")
    signal.raise_signal(signal.SIGKILL)
