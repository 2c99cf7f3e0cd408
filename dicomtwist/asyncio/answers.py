"""
The responses to C-FIND, C-GET and C-MOVE for coroutines of asyncio.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, cast

from dicomtwist import scu
from dicomtwist.dimse.status import Status
from dicomtwist.eventloop.coroutines import await_any, from_deferred
from dicomtwist.scu.responses import MAX_COLLECTED, Answer, Collected, Lost

__all__ = ["Answers", "Retrieval"]


async def _next(take: Coroutine[Any, Any, Answer], leave: Callable[[], None]) -> Answer:
    """Return the next answer; after a cancellation nobody takes the others, so they are left."""
    try:
        return await await_any(take)
    except StopAsyncIteration:
        raise
    except BaseException:
        leave()
        raise


class _Cursor:
    """The iterator of a loop: if the loop drops it before the end, the operation is cancelled."""

    __slots__ = ("_answers", "_cursor", "_owner")

    def __init__(self, answers: scu.Answers, owner: object) -> None:
        self._answers = answers
        self._owner = owner
        self._cursor = answers.__aiter__()

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[Answer]:
        return _next(cast("Coroutine[Any, Any, Answer]", self._cursor.__anext__()), self._answers.leave)


class Answers:
    """
    The answers to a C-FIND, as they arrive: an asynchronous iterator of (:class:`Status`, identifier).

    The peer sends no faster than the loop takes answers. Leaving the loop before its end sends C-CANCEL: by ``break``, by an
    exception, or by a cancellation, such as of ``asyncio.timeout``. So does the end of a block ``async with answers:``.
    """

    def __init__(self, inner: scu.Answers, owner: object) -> None:
        self._inner = inner
        self._owner = owner  # an association that nobody has any more is aborted

    @property
    def message_id(self) -> int | None:
        """The Message ID of the request, ``None`` while it waits for a place in the window."""
        return self._inner.message_id

    @property
    def status(self) -> Status | None:
        """The status of the final response, ``None`` until it has arrived."""
        return self._inner.status

    @property
    def lost(self) -> Lost:
        """The identifiers so far that could not be decoded."""
        return self._inner.lost

    def __aiter__(self) -> _Cursor:
        return _Cursor(self._inner, self._owner)

    def __anext__(self) -> Awaitable[Answer]:
        return _next(cast("Coroutine[Any, Any, Answer]", self._inner.__anext__()), self._inner.leave)

    def cancel(self) -> None:
        """Send C-CANCEL (PS3.7 9.3.2.3). Answers that the peer has sent still arrive, the last one mostly with 0xFE00."""
        self._inner.cancel()

    def leave(self) -> None:
        """Send C-CANCEL if the operation has not ended, and drop the answers that still arrive."""
        self._inner.leave()

    async def aclose(self) -> None:
        """Call :meth:`leave`."""
        self.leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()

    async def collect(self, limit: int = MAX_COLLECTED) -> Collected:
        """
        Take all answers.

        :param limit: the most identifiers to take.
        :returns: the identifiers in a list, whose ``lost`` says how many could not be decoded.
        :raises OperationFailed: the final status is a failure, or 0xFE00.
        :raises TooManyAnswers: there are more than *limit*; the operation is cancelled.
        :raises AssociationError: the association ended before the final response.
        """
        try:
            return await from_deferred(self._inner.collect(limit))
        except BaseException:
            self.leave()
            raise


class Retrieval(Answers):
    """The answers to a C-GET or C-MOVE: an asynchronous iterator of (:class:`Status`, data set or ``None``)."""

    _inner: scu.Retrieval

    @property
    def suboperations(self) -> scu.SubOperations:
        """The progress."""
        return self._inner.suboperations

    async def when_done(self) -> scu.RetrievalResult:
        """
        Wait for the final response.

        :returns: the result, also if some sub-operations failed.
        :raises OperationFailed: the final status is a failure or 0xFE00.
        :raises AssociationError: the association ended before the final response.
        """
        try:
            return await from_deferred(self._inner.when_done())
        except BaseException:
            self.leave()
            raise
