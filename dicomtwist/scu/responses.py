"""
The responses to C-FIND, C-GET and C-MOVE: one request, many responses, which the caller takes one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final

from pydicom import Dataset
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python import threadable
from twisted.python.failure import Failure

from dicomtwist.datasets.codec import DecodingLimits
from dicomtwist.datasets.identifier import decode_identifier, failed_instances
from dicomtwist.datasets.sources import BytesSource
from dicomtwist.dimse.messages import CGetRSP, CMoveRSP, Request, Response
from dicomtwist.dimse.status import Status
from dicomtwist.errors import DataSetError, OperationFailed, TooManyAnswers, loggable
from dicomtwist.exchange import nesting
from dicomtwist.exchange.invoked import Operation
from dicomtwist.exchange.invoking import InvokingAssociation
from dicomtwist.presentation import PresentationContextTuple

#: The number of answers, and of their bytes, that may wait for the caller before reading from the peer pauses.
FULL_COUNT: Final = 100
FULL_SIZE: Final = 1024 * 1024

#: These limits while other operations of the association wait for their responses, which come after the answers.
OVERFULL_COUNT: Final = 10_000
OVERFULL_SIZE: Final = 64 * 1024 * 1024

#: The default limit of :meth:`Answers.collect`.
MAX_COLLECTED: Final = 100_000

#: The most errors of lost identifiers that are kept.
MAX_LOST: Final = 100

#: One answer: its status, and its data set or ``None``.
Answer = tuple[Status, Dataset | None]


class Lost:
    """
    Identifiers of a peer that could not be decoded.

    :ivar count: the number of them.
    :ivar errors: the first of the errors, :data:`MAX_LOST` at the most.
    """

    __slots__ = ("count", "errors")

    def __init__(self) -> None:
        self.count = 0
        self.errors: list[DataSetError] = []

    def add(self, error: DataSetError) -> None:
        """Note one."""
        self.count += 1
        if len(self.errors) < MAX_LOST:
            self.errors.append(error.with_traceback(None))

    def __bool__(self) -> bool:
        return bool(self.count)

    def __str__(self) -> str:
        if not self.count:
            return "no identifier was lost"
        number = "one identifier" if self.count == 1 else f"{self.count} identifiers"
        return f"{number} could not be decoded: {self.errors[0]}"

    def __repr__(self) -> str:
        return f"<Lost: {self}>"


class Collected(list[Dataset]):
    """
    The identifiers that :meth:`Answers.collect` gives.

    :ivar lost: the identifiers that could not be decoded, which are not in the list.
    """

    def __init__(self, lost: Lost) -> None:
        super().__init__()
        self.lost = lost


class _ResponseQueue:
    """
    The responses to one operation, between the exchange and the caller.

    :ivar message_id: the Message ID of the request, ``None`` until it is sent.
    :ivar final: the status of the final response.
    :ivar lost: the identifiers that could not be decoded.
    """

    log = Logger()

    def __init__(
        self,
        assoc: InvokingAssociation,
        context: PresentationContextTuple,
        request: Request,
        identifier: bytes,
        arrived: Callable[[Response, Status], None],
    ) -> None:
        self.assoc = assoc
        self.context = context
        self.message_id: int | None = None
        self.final: Status | None = None
        self.is_left = False
        self._is_cancelled = False
        self._request = request
        self._identifier = identifier
        self._arrived: Callable[[Response, Status], None] | None = arrived
        self._waiting: Deferred[None] | None = None
        self._answers: deque[tuple[Status, bytes | None]] = deque()
        self._size = 0
        self._operation: Operation | None = None
        self._failure: Failure | None = None
        self.lost = Lost()
        self._inside = nesting.frames()
        self._entering = assoc.exchange.enter_window()
        self._entering.addCallbacks(self._start, self._failed)

    # --- for the exchange

    def _start(self, place: None) -> None:
        exchange = self.assoc.exchange
        if self.is_left:
            exchange.leave_window()
            return
        try:
            operation = exchange.begin(
                self.context.context_id, self._request, BytesSource(self._identifier), self._pending, self._inside
            )
        except Exception:  # the association has ended, or the request cannot be encoded
            exchange.leave_window()
            self._failed(Failure())
            return
        self._operation = operation
        self.message_id = operation.message_id
        if self._is_cancelled:
            exchange.cancel(operation.message_id)
        operation.result.addCallbacks(self._finished, self._failed)
        operation.result.addBoth(lambda _: exchange.leave_window())

    def _status_of(self, response: Response) -> Status:
        status = self.assoc.status_of(response, str(self.context.abstract_syntax))
        if self._arrived is not None:
            self._arrived(response, status)
        return status

    def _pending(self, response: Response, data: bytes | None) -> None:
        if self.is_left or self._failure is not None:
            return
        self._put(self._status_of(response), data)

    def _put(self, status: Status, data: bytes | None) -> None:
        self._answers.append((status, data))
        self._size += len(data) if data else 0
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)
        self._balance(True)

    def _balance(self, more: bool) -> None:
        """Tell the exchange when the queue becomes full, or has room again."""
        count, size = len(self._answers), self._size
        operation = self._operation
        if operation is None or self.final is not None or self._failure is not None:
            return
        full = count >= FULL_COUNT or size >= FULL_SIZE
        if full or not more:
            overfull = count >= OVERFULL_COUNT or size >= OVERFULL_SIZE
            self.assoc.exchange.calls.set_full(operation, full, overfull)

    def _finished(self, result: tuple[Response, bytes | None]) -> None:
        response, data = result
        status = self._status_of(response)
        self.final = status
        if not self.is_left:
            self._put(status, data)
        self._arrived = None

    def _failed(self, reason: Failure) -> None:
        if self.is_left and reason.check(CancelledError):
            return  # it was left before the request was sent
        self._failure = reason
        self._arrived = None
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)

    # --- for the caller

    async def take(self) -> Answer:
        """
        Return the next answer, the final one included; stop after that.

        Pending responses whose identifiers cannot be decoded are left out, and noted in :attr:`lost`: the peer has sent the
        others as well, and one of them must not end the query.
        """
        settings = self.assoc.settings
        limits = DecodingLimits(elements=settings.maximum_attributes, values=settings.maximum_attribute_values)
        while True:
            status, data = await self._next()
            if not data:
                return status, None
            try:
                return status, await decode_identifier(
                    data,
                    str(self.context.transfer_syntax),
                    self.assoc.ae.executors.decoding,
                    limits,
                )
            except DataSetError as error:
                self._note_lost(error)
                if not status.is_pending:
                    return status, None

    def _note_lost(self, error: DataSetError) -> None:
        if not self.lost.count:
            self.log.warn(
                "{peer!r} at {address} sent an identifier that cannot be decoded, it is left out: {error}",
                peer=self.assoc.remote.ae_title,
                address=self.assoc.remote.address,
                error=loggable(error),
            )
        self.lost.add(error)

    def enter_loop(self) -> None:
        """Note that the running code takes the responses in a loop."""
        if self._operation is not None and self.final is None:
            nesting.enter_loop(self._operation)

    async def _next(self) -> tuple[Status, bytes | None]:
        operation = self._operation
        while not self._answers:
            if operation is not None and (self.final is not None or self._failure is not None):
                nesting.leave_loop(operation)
            if self._failure is not None:
                self._failure.raiseException()
            if self.is_left or self.final is not None:
                raise StopAsyncIteration
            if self._waiting is not None:
                raise RuntimeError("another call waits for the next answer already")
            self._waiting = Deferred(self._not_waiting)
            await self._waiting
        status, data = self._answers.popleft()
        if data:
            self._size -= len(data)
        self._balance(False)
        if self.final is None:
            self.enter_loop()
        elif self._operation is not None:
            nesting.leave_loop(self._operation)
        return status, data

    def _not_waiting(self, cancelled: Deferred[None]) -> None:
        self._waiting = None

    def cancel(self) -> None:
        """Send C-CANCEL, after the request if that waits for the window; answers arrive until the peer ends the operation."""
        self._is_cancelled = True
        if self.message_id is not None and self.final is None:
            self.assoc.exchange.cancel(self.message_id)

    def leave(self) -> None:
        """Send C-CANCEL, and drop the answers that still arrive."""
        if self.is_left:
            return
        self.is_left = True
        self._answers.clear()
        self._size = 0
        self._arrived = None
        if self.final is not None or self._failure is not None:
            return
        if self._operation is None:
            self._entering.cancel()
        else:
            self._balance(False)
            self.cancel()
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)


class _Cursor:
    """The iterator of a loop: if the loop drops it before the end, the operation is cancelled."""

    __slots__ = ("_answers",)

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def __aiter__(self) -> _Cursor:
        return self

    def __anext__(self) -> Awaitable[Answer]:
        # Not a coroutine of this object: the traceback of its exceptions would keep the object alive.
        return self._answers.__anext__()

    def __del__(self) -> None:
        _let_go(self._answers._responses)


def _let_go(responses: _ResponseQueue) -> None:
    """Leave *responses* in the reactor thread; Python may free an object in any thread."""
    if responses.is_left or responses.final is not None:
        responses.is_left = True
    elif threadable.ioThread in (None, threadable.getThreadID()):
        responses.leave()
    else:
        responses.assoc.ae.reactor.callFromThread(responses.leave)


class Answers:
    """
    The answers to a C-FIND, as they arrive: an asynchronous iterator of (:class:`Status`, identifier).

    .. code-block:: python

        async for status, identifier in association.send_c_find(keys, StudyRootQueryRetrieveInformationModelFind):
            if status.is_pending:
                print(identifier.PatientName)

    The last item is the final response, mostly with ``None`` for the identifier. A pending response whose identifier cannot be
    decoded is left out, and noted in :attr:`lost`. Iterating raises the
    :class:`AssociationError` if the association ends before that.

    The peer sends no faster than the caller takes answers: the queue is bounded. Leaving the loop before its end, by
    ``break`` or an exception, sends C-CANCEL and drops the answers that still arrive. Dropping the object has this effect
    as well, and so has leaving it as an asynchronous context manager, which does not depend on the time when Python frees
    objects. The request is sent at once, or when the asynchronous operations window has a place for it.
    """

    log = Logger()

    def __init__(
        self, assoc: InvokingAssociation, context: PresentationContextTuple, request: Request, identifier: bytes
    ) -> None:
        self._responses = _ResponseQueue(assoc, context, request, identifier, self._hook())

    def _hook(self) -> Callable[[Response, Status], None]:
        return lambda response, status: None

    @property
    def message_id(self) -> int | None:
        """The Message ID of the request, ``None`` while it waits for a place in the window."""
        return self._responses.message_id

    @property
    def status(self) -> Status | None:
        """The status of the final response, ``None`` until it has arrived."""
        return self._responses.final

    @property
    def lost(self) -> Lost:
        """The identifiers so far that could not be decoded. Iterating and :meth:`collect` leave them out."""
        return self._responses.lost

    def __aiter__(self) -> _Cursor:
        return _Cursor(self)

    def __anext__(self) -> Awaitable[Answer]:
        # Noted here as well: with inlineCallbacks, the coroutine itself runs in a context of its own.
        self._responses.enter_loop()
        return self._responses.take()

    def cancel(self) -> None:
        """
        Send C-CANCEL (PS3.7 9.3.2.3). Answers that the peer has sent still arrive, the last one mostly with status 0xFE00.
        """
        self._responses.cancel()

    def leave(self) -> None:
        """Send C-CANCEL if the operation has not ended, and drop the answers that still arrive."""
        self._responses.leave()

    async def aclose(self) -> None:
        """Call :meth:`leave`."""
        self.leave()

    async def __aenter__(self) -> Answers:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()

    def __del__(self) -> None:
        responses = self.__dict__.get("_responses")  # missing if the constructor raised
        if responses is not None:
            _let_go(responses)

    def collect(self, limit: int = MAX_COLLECTED) -> Deferred[Collected]:
        """
        Take all answers.

        :param limit: the most identifiers to take.
        :returns: a Deferred with the identifiers of the pending responses, in a list whose ``lost`` says how many could not be
            decoded, and why. It fails with

            * :class:`OperationFailed` if the final status is a failure, or 0xFE00,
            * :class:`TooManyAnswers` if there are more than *limit*; the operation is cancelled,
            * the :class:`AssociationError` that ended the association.
        """
        return Deferred.fromCoroutine(self._collect(limit))

    async def _collect(self, limit: int) -> Collected:
        collected = Collected(self.lost)
        async for status, identifier in self:
            if status.is_pending:
                if len(collected) >= limit:
                    raise TooManyAnswers(
                        f"more than {limit} answers: narrow the query, or pass a higher limit to collect()"
                    )
                if identifier is not None:
                    collected.append(identifier)
        check_done(self.status)
        return collected


def check_done(status: Status | None) -> None:
    """:raises OperationFailed: *status* is neither a success nor a warning."""
    if status is not None and not (status.is_success or status.is_warning):
        raise OperationFailed(status)


class SubOperations:
    """
    The progress of a C-GET or C-MOVE (PS3.4 C.4.2.1.6, C.4.3.1.4).

    :ivar remaining: the number of sub-operations to come, ``None`` if the peer did not send it.
    :ivar completed: the number of sub-operations that were completed.
    :ivar failed: the number of sub-operations that failed.
    :ivar warning: the number of sub-operations that ended with a warning.
    """

    __slots__ = ("completed", "failed", "remaining", "warning")

    def __init__(self) -> None:
        self.remaining: int | None = None
        self.completed = self.failed = self.warning = 0

    def update(self, response: Response) -> None:
        """Take over the counts of *response*; counts that it does not contain stay as they are."""
        assert isinstance(response, CGetRSP | CMoveRSP)
        # A final response has no remaining count (PS3.7 9.1.3.1.6), unless the operation was cancelled.
        self.remaining = response.number_of_remaining_suboperations
        for name in ("completed", "failed", "warning"):
            number = getattr(response, f"number_of_{name}_suboperations")
            if number is not None:
                setattr(self, name, number)

    def __repr__(self) -> str:
        remaining = "?" if self.remaining is None else self.remaining
        return (
            f"<sub-operations: {self.completed} completed, {self.warning} with warning, {self.failed} failed,"
            f" {remaining} remaining>"
        )


#: A function that is called with the counts after each change.
OnProgress = Callable[[SubOperations], object]


class Retrieval(Answers):
    """
    The answers to a C-GET or C-MOVE: an asynchronous iterator like :class:`Answers`.

    The data set of the final response is ``None``, or has the Failed SOP Instance UID List (0008,0058).

    :ivar suboperations: the progress; it is up to date even if the caller does not iterate.
    """

    def __init__(
        self,
        assoc: InvokingAssociation,
        context: PresentationContextTuple,
        request: Request,
        identifier: bytes,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.suboperations = SubOperations()
        if on_progress is not None and not callable(on_progress):
            raise TypeError(f"on_progress is a function, not {type(on_progress).__name__}")
        self._on_progress = on_progress
        super().__init__(assoc, context, request, identifier)

    def _hook(self) -> Callable[[Response, Status], None]:
        # Not a method of this object: the exchange would hold it, and the object has to notice when its user drops it.
        counts, on_progress, log = self.suboperations, self._on_progress, self.log

        def arrived(response: Response, status: Status) -> None:
            counts.update(response)
            if on_progress is None:
                return
            try:
                on_progress(counts)
            except Exception:
                log.failure("the progress callback of {name} raised", name=response.NAME)

        return arrived

    def when_done(self) -> Deferred[RetrievalResult]:
        """
        Wait for the final response.

        :returns: a Deferred with the :class:`RetrievalResult`, also if some sub-operations failed; it fails with
            :class:`OperationFailed` if the final status is a failure or 0xFE00, or with the
            :class:`AssociationError` that ended the association.
        """
        return Deferred.fromCoroutine(self._wait())

    async def _wait(self) -> RetrievalResult:
        last: Dataset | None = None
        async for _, identifier in self:
            last = identifier
        assert self.status is not None
        result = RetrievalResult(self.status, self.suboperations, failed_instances(last))
        if not (self.status.is_success or self.status.is_warning):
            raise OperationFailed(self.status, result)
        return result


class RetrievalResult:
    """
    The result of a C-GET or C-MOVE.

    :ivar status: the final status.
    :ivar suboperations: the counts.
    :ivar failed_instances: the SOP Instance UIDs of failed sub-operations, as far as the peer sent them.
    """

    __slots__ = ("failed_instances", "status", "suboperations")

    def __init__(self, status: Status, suboperations: SubOperations, failed: list[str]) -> None:
        self.status = status
        self.suboperations = suboperations
        self.failed_instances = failed

    def __repr__(self) -> str:
        return f"<RetrievalResult {self.status}, {self.suboperations!r}>"
