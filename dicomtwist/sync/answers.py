"""
The responses to C-FIND, C-GET and C-MOVE for code that blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

from twisted.internet.defer import Deferred

from dicomtwist import scu
from dicomtwist.dimse.status import Status
from dicomtwist.eventloop.reactor_thread import wait_for
from dicomtwist.scu.responses import MAX_COLLECTED, Answer, Collected, Lost

__all__ = ["Answers", "Retrieval"]

#: The answers that are brought from the reactor's thread in one call, at the most.
BATCH: Final = 64


class _Batches:
    """
    Takes answers in the reactor's thread, a few at a time, for a loop in another thread.

    A call into the other thread costs more than an answer does. At the most two batches wait for the loop, so the peer still
    sends no faster than the loop takes answers.
    """

    def __init__(self, answers: scu.Answers) -> None:
        self._answers = answers
        self._held: deque[Answer | BaseException] = deque()
        self._task: Deferred[None] | None = None
        self._arrived: Deferred[None] | None = None
        self._room: Deferred[None] | None = None

    def next(self) -> Deferred[list[Answer | BaseException]]:
        """Return a Deferred with the next answers, one at least; the exception that ends them is the last one."""
        return Deferred.fromCoroutine(self._next())

    async def _next(self) -> list[Answer | BaseException]:
        if self._task is None:
            self._task = Deferred.fromCoroutine(self._take())
        while not self._held:
            self._arrived = Deferred()
            await self._arrived
        batch = [self._held.popleft() for _ in range(min(BATCH, len(self._held)))]
        room, self._room = self._room, None
        if room is not None:
            room.callback(None)
        return batch

    async def _take(self) -> None:
        while True:
            try:
                self._put(await self._answers.__anext__())
            except BaseException as error:
                self._put(error)
                return
            if len(self._held) >= BATCH:
                self._room = Deferred()
                await self._room

    def _put(self, item: Answer | BaseException) -> None:
        self._held.append(item)
        arrived, self._arrived = self._arrived, None
        if arrived is not None:
            arrived.callback(None)

    def leave(self) -> None:
        """Send C-CANCEL if the operation has not ended."""
        self._answers.leave()


class _Cursor(Iterator[Answer]):
    """The iterator of a loop: if the loop drops it before the end, the operation is cancelled."""

    def __init__(self, reactor: Any, batches: _Batches, owner: object) -> None:
        self._reactor = reactor
        self._batches = batches
        self._owner = owner
        self._ready: deque[Answer | BaseException] = deque()
        self._error: BaseException | None = None

    def __next__(self) -> Answer:
        if self._error is not None:
            raise StopIteration
        if not self._ready:
            try:
                batch = wait_for(self._reactor, self._batches.next)
                self._ready.extend(batch)
            except BaseException as error:
                self._error = error
                self.close()
                raise
        item = self._ready.popleft()
        if isinstance(item, BaseException):
            self._error = item
            if isinstance(item, StopAsyncIteration):
                raise StopIteration
            raise item
        return item

    def close(self) -> None:
        """Send C-CANCEL if the operation has not ended, and drop the answers that still arrive."""
        self._reactor.callFromThread(self._batches.leave)

    def __del__(self) -> None:
        if self._error is None:
            self.close()


class Answers:
    """
    The answers to a C-FIND: an iterable of (:class:`Status`, identifier).

    .. code-block:: python

        for status, identifier in assoc.find(keys, StudyRootQueryRetrieveInformationModelFind):
            if status.is_pending:
                print(identifier.PatientName)

    The peer sends no faster than the loop takes answers, but for some that are read ahead. Leaving the loop before its end, by
    ``break`` or an exception, sends C-CANCEL; so does the end of a block ``with answers:``.
    """

    def __init__(self, reactor: Any, inner: scu.Answers, owner: object) -> None:
        self._reactor = reactor
        self._inner = inner
        self._owner = owner  # an association that nobody has any more is aborted
        self._batches = _Batches(inner)
        self._own: _Cursor | None = None
        self._is_taken = False

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

    def __iter__(self) -> Iterator[Answer]:
        self._is_taken = True
        return _Cursor(self._reactor, self._batches, self._owner)

    def __next__(self) -> Answer:
        if self._own is None:
            self._own = _Cursor(self._reactor, self._batches, self._owner)
        return next(self._own)

    def cancel(self) -> None:
        """Send C-CANCEL (PS3.7 9.3.2.3). Answers that the peer has sent still arrive, the last one mostly with 0xFE00."""
        self._reactor.callFromThread(self._inner.cancel)

    def close(self) -> None:
        """Send C-CANCEL if the operation has not ended, and drop the answers that still arrive."""
        self._reactor.callFromThread(self._inner.leave)

    leave = close

    def __del__(self) -> None:
        inner = self.__dict__.get("_inner")
        if inner is not None and not self._is_taken:
            # In the reactor's thread, which the object below takes for that of the process.
            self._reactor.callFromThread(inner.leave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def collect(self, limit: int = MAX_COLLECTED) -> Collected:
        """
        Take all answers.

        :param limit: the most identifiers to take.
        :returns: the identifiers in a list, whose ``lost`` says how many could not be decoded.
        :raises OperationFailed: the final status is a failure, or 0xFE00.
        :raises TooManyAnswers: there are more than *limit*; the operation is cancelled.
        :raises AssociationError: the association ended before the final response.
        """
        try:
            return wait_for(self._reactor, lambda: self._inner.collect(limit))
        except BaseException:
            self.close()
            raise


class Retrieval(Answers):
    """The answers to a C-GET or C-MOVE: an iterable of (:class:`Status`, data set or ``None``)."""

    _inner: scu.Retrieval

    @property
    def suboperations(self) -> scu.SubOperations:
        """The progress."""
        return self._inner.suboperations

    def when_done(self) -> scu.RetrievalResult:
        """
        Wait for the final response.

        :returns: the result, also if some sub-operations failed.
        :raises OperationFailed: the final status is a failure or 0xFE00.
        :raises AssociationError: the association ended before the final response.
        """
        try:
            return wait_for(self._reactor, self._inner.when_done)
        except BaseException:
            self.close()
            raise
