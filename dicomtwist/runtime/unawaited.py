"""Calls whose result nobody waits for: their failures are logged, and a script that never runs the reactor gets a hint."""

from __future__ import annotations

import atexit
import sys
import warnings
from typing import Any, TypeVar
from weakref import ref

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.eventloop.default import follow_loop

__all__ = ["expect_reactor", "log_unawaited", "reactor_ran"]

_log = Logger()


_T = TypeVar("_T")


def log_unawaited(deferred: Deferred[_T], reactor: Any, what: str) -> Deferred[_T]:
    """
    Log the failure of *deferred* if nothing has taken it by the next turn of *reactor*.

    Twisted logs it as well, but only when Python frees the object: a program that keeps it in an attribute is told nothing.

    :param what: the call that returned it, for the log.
    :returns: *deferred*.
    """
    kept = ref(deferred)

    def look(error: str) -> None:
        # Twisted notes here whether a failure is unhandled; nothing public says so, since an awaited Deferred keeps its result.
        if getattr(getattr(kept(), "_debugInfo", None), "failResult", None) is not None:
            # Critical messages are printed even if the program has begun no logging.
            _log.critical("{what} failed, and nothing waits for its result: {error}", what=what, error=error)

    def failed(reason: Failure) -> Failure:
        # Not callLater: a fake clock in a test would have to be advanced for it.
        soon = getattr(reactor, "callFromThread", None)  # a plain fake clock has none
        if soon is not None and not reason.check(CancelledError):
            soon(look, reason.getErrorMessage())
        return reason

    return deferred.addErrback(failed)


class _Expectation:
    """
    The reactor is expected to run.

    :ivar what: the first call that needs it; ``""`` for none, or if it has run.
    """

    def __init__(self) -> None:
        self.what = ""
        self._is_noted = False

    def note(self, reactor: Any, what: str) -> None:
        if self._is_noted or getattr(reactor, "running", True) or reactor is not _installed():
            return
        self._is_noted = True
        self.what = what
        reactor.callWhenRunning(self.ran)
        atexit.register(self.hint)

    def ran(self) -> None:
        self.what = ""

    def hint(self) -> None:
        """Warn at the end of a program that ends in no other error."""
        if self.what and not hasattr(sys, "last_type"):
            warnings.warn(
                f"{self.what} was called, but the program has ended and no reactor ran, so nothing was sent or served: await"
                " the call in a coroutine that twisted.internet.task.react() runs, or call reactor.run() behind it",
                RuntimeWarning,
                stacklevel=1,
            )


def _installed() -> Any:
    """Return the reactor of the process if there is one, without installing it."""
    return sys.modules.get("twisted.internet.reactor")


_expectation = _Expectation()


def expect_reactor(reactor: Any, what: str) -> None:
    """
    Note that *what* has effect only if *reactor* runs. If the program ends without that, a ``RuntimeWarning`` says so.

    It is for the reactor of the process alone: a reactor in memory is driven by its test. A reactor on an event loop of asyncio
    moves on to the loop that runs in this thread.
    """
    follow_loop(reactor)
    _expectation.note(reactor, what)


def reactor_ran() -> None:
    """Note that the reactor has done something, for event loops that run a reactor without its ``run()``."""
    _expectation.ran()
