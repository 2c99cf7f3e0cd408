"""
The calls that executors make in their threads (:mod:`dicomtwist.runtime.executors`).
"""

from __future__ import annotations

from collections.abc import Callable
from threading import local
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

__all__ = ["Call", "Owner", "Work", "check_wanted", "current", "is_wanted", "order_of"]


class _Executor(Protocol):
    """The executor that a call belongs to."""

    def remove(self, work: Work, /) -> None:
        """Remove a call, whose Deferred was cancelled, from the queue if no thread has begun with it."""

    def seconds(self) -> float:
        """Return the time in seconds."""


class _Current(local):
    """
    The call that the running thread performs.

    :ivar work: the call; ``None`` outside of executors.
    """

    work: Work | None = None


current = _Current()


def is_wanted() -> bool:
    """
    Return whether a caller still waits for the call that this thread performs; ``True`` outside of executors.

    Long work calls this between its steps, and stops if its peer has cancelled the request or its association has ended.
    """
    work = current.work
    return work is None or not work.is_cancelled


def check_wanted() -> None:
    """
    Raise an exception if no caller waits for the call that this thread performs, see :func:`is_wanted`.

    :raises CancelledError: no caller waits any more.
    """
    if not is_wanted():
        raise CancelledError


class Work:
    """
    One call.

    :ivar owner: the share that it belongs to, if any.
    :ivar order: its place among the calls of its owner that wait: the lowest is first.
    :ivar started: the time when a thread began with it, in seconds of the reactor.
    :ivar is_cancelled: whether its result is not wanted any more.
    """

    __slots__ = (
        *("arguments", "executor", "function", "is_cancelled", "keywords"),
        *("name", "order", "outcome", "owner", "result", "started", "succeeded"),
    )

    result: Deferred[Any]

    def __init__(
        self, executor: _Executor, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        self.executor = executor
        self.function: Callable[..., Any] | None = function
        self.arguments = arguments
        self.keywords = keywords
        self.is_cancelled = self.succeeded = False
        self.name = ""
        self.owner: Owner | None = None
        self.order: tuple[int, ...] = ()
        self.started = 0.0
        self.outcome: Any = None

    def promise(self) -> Deferred[Any]:
        """Return a Deferred for the outcome."""
        self.result = Deferred(self._cancel)
        return self.result

    def _cancel(self, _: Deferred[Any]) -> None:
        self.is_cancelled = True
        self.executor.remove(self)

    def perform(self) -> None:
        """Make the call, in a worker thread."""
        function, arguments, keywords = self.function, self.arguments, self.keywords
        assert function is not None
        # The arguments, such as a megabyte of pixels, are not kept until the result is delivered.
        self.function, self.arguments, self.keywords = None, (), {}
        self.name = getattr(function, "__qualname__", type(function).__name__)
        try:
            self.outcome = function(*arguments, **keywords)
            self.succeeded = True
        except BaseException:
            self.outcome = Failure()

    def deliver(self) -> None:
        """Fire the Deferred, in the reactor thread."""
        if self.is_cancelled:
            return
        if self.succeeded:
            self.result.callback(self.outcome)
        else:
            self.result.errback(self.outcome)


class Call(Work):
    """
    A call without a Deferred, whose outcome goes to one of two functions.

    :ivar then: called with the result.
    :ivar failed: called with the Failure.
    """

    __slots__ = ("failed", "then")

    log = Logger()

    then: Callable[[Any], object]
    failed: Callable[[Failure], object]

    def deliver(self) -> None:
        """Pass the outcome on, in the reactor thread."""
        try:
            if self.succeeded:
                self.then(self.outcome)
            else:
                self.failed(self.outcome)
        except BaseException:  # as a Deferred does
            self.log.failure("the result of {name} could not be handled", name=self.name)


def order_of(work: Work) -> tuple[int, ...]:
    """Return the place of a call among those of its owner that wait."""
    return work.order


class Owner:
    """
    A peer with calls in an executor.

    :ivar key: its name; ``None`` for the owner of the calls that have an order.
    :ivar limit: the maximum of *active*.
    :ivar active: the calls of it that run or wait in the queue of the executor.
    :ivar waiting: the calls that wait until one of these has ended, by their order.
    """

    __slots__ = ("active", "key", "limit", "waiting")

    def __init__(self, key: str | None, limit: int) -> None:
        self.key = key
        self.limit = limit
        self.active = 0
        self.waiting: list[Work] = []
