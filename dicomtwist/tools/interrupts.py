"""
A subcommand under the reactor: it runs until it is done or interrupted, and ends with an exit status.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from twisted.internet import task
from twisted.internet.defer import CancelledError, Deferred

from dicomtwist.tools.display.console import Output

#: Exit statuses.
SUCCESS, FAILURE, USAGE_ERROR, NO_ASSOCIATION = 0, 1, 2, 3

#: The effect of the first signal, by the kind of operation.
ANSWERED_FIRST = "the instances under way are answered first, and no others are sent"
CANCELLED = "the peer is asked to cancel (C-CANCEL), and what it has sent is kept"
MOVE_CANCELLED = "the peer is asked to cancel (C-CANCEL), and what it has moved stays there"
CLOSED = "the connections are closed, and what has arrived is kept"
NO_LONGER_WAITING = "the result is no longer waited for"


class Interrupts:
    """
    The handling of SIGINT (Ctrl-C) and SIGTERM: the first stops in order, the second aborts, a third kills.

    A subcommand without a handler is cancelled at the first.

    :ivar count: the number of signals so far.
    """

    def __init__(self, reactor: Any, output: Output) -> None:
        self.count = 0
        self._reactor = reactor
        self._output = output
        self._stop: Callable[[], None] | None = None
        self._abort: Callable[[], None] | None = None
        self._words = ""
        self._running: Deferred[int] | None = None

    def handle(self, stop: Callable[[], None], abort: Callable[[], None], words: str) -> None:
        """
        Have *stop* called at the first signal and *abort* at the second.

        :param words: the effect of *stop*, for the user, one of the constants of this module.
        """
        self._stop, self._abort, self._words = stop, abort, words

    def install(self, running: Deferred[int]) -> None:
        """Handle the signals from now on; once more when the reactor starts, since it installs its own handlers."""
        self._running = running

        def take_over() -> None:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: self._reactor.callFromThread(self._interrupted))

        take_over()
        # After the reactor has installed its handlers, and before it makes the first connection.
        self._reactor.callWhenRunning(take_over)

    def _interrupted(self) -> None:
        self.count += 1
        if self.count > 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
        if self.count == 1 and self._stop is not None:
            self._output.note(f"stopping: {self._words}; interrupt once more to abort")
            self._stop()
        elif self.count <= 2 and self._abort is not None:
            self._abort()
        elif self._running is not None:
            self._running.cancel()


Main = Callable[[Any, Interrupts], Coroutine[Any, Any, int]]


def run_command(main: Main, output: Output) -> NoReturn:
    """
    Run *main* under the reactor and exit with the status that it returns.

    :param main: a coroutine function of the reactor and the :class:`Interrupts`.
    :raises SystemExit: always.
    """
    output.begin_logging()

    async def guarded(running: Deferred[int]) -> None:
        try:
            status = await running
        except CancelledError:
            output.error("interrupted")
            status = FAILURE
        except BrokenPipeError:
            status = FAILURE
        except Exception as error:
            if "DICOMTWIST_TRACEBACK" in os.environ:
                raise
            output.error(
                f"{type(error).__name__}: {error} (this is a bug; set DICOMTWIST_TRACEBACK=1 to see the traceback)"
            )
            status = FAILURE
        raise SystemExit(status)

    def start(reactor: Any) -> Deferred[None]:
        interrupts = Interrupts(reactor, output)
        running = Deferred.fromCoroutine(main(reactor, interrupts))
        interrupts.install(running)
        return Deferred.fromCoroutine(guarded(running))

    task.react(start)
    raise AssertionError("not reached")
