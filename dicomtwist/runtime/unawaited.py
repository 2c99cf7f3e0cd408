"""
Calls whose result nobody waits for: their failures are logged, and a script that never runs the reactor gets a hint.

A program that takes the Deferred for its result, or awaits it in a task of asyncio, is told what to write.
"""

from __future__ import annotations

import atexit
import sys
import warnings
from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from weakref import ref

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.errors import ReactorConflict
from dicomtwist.eventloop.coroutines import running_loop
from dicomtwist.eventloop.default import follow_loop

__all__ = ["Call", "expect_reactor", "log_unawaited", "reactor_ran"]

_log = Logger()


_T = TypeVar("_T")


class Call(Deferred[_T]):
    """
    The Deferred of a call, such as ``associate()``, which scripts for pynetdicom take for its result.

    ``async with`` enters its result, so ``async with ae.associate(...) as assoc:`` does what
    ``async with await ae.associate(...) as assoc:`` does.

    :ivar what: the call, for errors.
    :ivar call_elsewhere: the call of ``dicomtwist.asyncio`` and of ``dicomtwist.sync`` to use in its place.
    """

    # On the class, because an object that is being copied has no attributes yet.
    what = "the call"
    call_elsewhere = "connect()"
    _entered: Any = None

    @classmethod
    def of(cls, coroutine: Coroutine[Any, Any, _T], reactor: Any, what: str, call_elsewhere: str) -> Call[_T]:
        """Run *coroutine* and return its Deferred. If nothing waits for it, a failure is logged."""
        call: Any = Deferred.fromCoroutine(coroutine)
        # Not a second Deferred that waits for the first one: it would fire before a cancelled coroutine has ended.
        call.__class__ = cls
        call.what, call.call_elsewhere = what, call_elsewhere
        log_unawaited(call, reactor, what)
        found: Call[_T] = call
        return found

    # Type checkers would take every attribute for one that exists.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("__"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise AttributeError(
                f"{self.what} returns a Deferred, which has no {name!r}: await it in a coroutine,"
                f" or call dicomtwist.sync.{self.call_elsewhere} in a script that blocks"
            )

    def __await__(self) -> Generator[Any, None, _T]:
        try:
            return (yield from super().__await__())
        except RuntimeError as error:
            # A task of asyncio raises this in place of waiting.
            if self.called or running_loop() is None:
                raise
            self.addErrback(lambda reason: None)
            self.cancel()
            raise ReactorConflict(
                f"a task of asyncio cannot await the Deferred of {self.what}: call dicomtwist.asyncio.{self.call_elsewhere}"
                " there, or await dicomtwist.asyncio.from_deferred(deferred)"
            ) from error

    async def __aenter__(self) -> Any:
        self._entered = await self
        return await self._entered.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> Any:
        return await self._entered.__aexit__(kind, value, traceback)

    def __enter__(self) -> NoReturn:
        raise TypeError(
            f"{self.what} returns a Deferred: write 'async with' in a coroutine, or 'with dicomtwist.sync."
            f"{self.call_elsewhere.removesuffix(')')}...)' in a script that blocks"
        )

    def __exit__(self, *why: object) -> None:
        """Never called; ``with`` looks for it before it calls ``__enter__``."""


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
