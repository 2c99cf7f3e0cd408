"""
Operations with many responses: the handler's generator is advanced as fast as the transport takes the responses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Final

from pydicom import Dataset
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.datasets.stream import CollectingSink
from dicomtwist.dimse.status import OUT_OF_RESOURCES
from dicomtwist.errors import AssociationError, DataSetTooLong, ExecutorFull, Refused
from dicomtwist.exchange.nesting import resume_handler, suspend_handler
from dicomtwist.runtime.budget import Share
from dicomtwist.runtime.call_handler import await_handler, items_of
from dicomtwist.runtime.networks import host_of
from dicomtwist.scp.performed import Performance

if TYPE_CHECKING:
    from dicomtwist.exchange.send_queue import Outgoing

#: The longest time that one generator is advanced without a pause before other work gets its turn, in seconds.
TURN_SECONDS: Final = 0.01


class NoMoreItems(Exception):
    """The generator has ended, the operation was cancelled, or the association has ended."""


class YieldingHandler:
    """
    Takes the items that a handler yields, one by one, while its operation is performed.

    :param performance: the operation.
    :param event: the event that the handler is bound to.
    :param failure_status: the status of the final response if the handler raises.
    """

    __slots__ = (
        "_async",
        "_event",
        "_failure_status",
        "_items",
        "_outgoing",
        "_performance",
        "_reactor",
        "_task",
        "_turn",
    )
    log = Logger()

    def __init__(self, performance: Performance, event: evt.EventType, failure_status: int) -> None:
        self._performance = performance
        self._event = event
        self._failure_status = failure_status
        self._outgoing = performance.assoc.exchange.outgoing
        self._items: Any = None
        self._async = False
        self._reactor = performance.assoc.ae.reactor
        self._turn = 0.0
        self._task: Deferred[None] | None = None

    # --- for the service

    def run(self, work: Callable[[YieldingHandler], Awaitable[None]], cancelled: Callable[[], None]) -> None:
        """
        Start *work*, and close the generator at its end.

        A C-CANCEL meanwhile cancels the Deferred that is awaited, so that an asynchronous generator gets a
        ``CancelledError``.

        :param work: calls the handler, takes its items, and responds.
        :param cancelled: sends the final response of an operation that was cancelled.
        """
        steps = _CorkedSteps(self._outgoing, self._work(work, cancelled))

        def cancel() -> None:
            # While the steps run, they check for a cancellation themselves.
            if self._task is not None and not self._task.called and not steps.running:
                self._task.cancel()

        async def task() -> None:
            await steps

        self._performance.on_cancel = cancel
        self._turn = self._reactor.seconds()
        self._task = Deferred.fromCoroutine(task())
        self._task.addErrback(lambda reason: self.log.failure("while {event} was answered", reason, event=self._event))

    async def call(self, occurrence: object) -> None:
        """
        Call the handler. It is a generator, an asynchronous generator, or a function that returns an iterable or a Deferred or
        coroutine of one.

        :raises NoMoreItems: the operation was cancelled.
        :raises TypeError: the handler returned something else.
        """
        if self._performance.is_cancelled:
            raise NoMoreItems
        bound = self._performance.assoc.handler(self._event)
        assert bound is not None
        handler, arguments = bound
        resume_handler(self._performance)
        try:
            result = await await_handler(handler, occurrence, arguments)
            self._async = hasattr(result, "__aiter__")
            if self._async:
                self._items = items_of(result)
            elif hasattr(result, "__iter__") and not isinstance(result, str | bytes | Dataset):
                self._items = iter(result)
        finally:
            suspend_handler(self._performance)
        if self._items is None:
            raise TypeError(f"a handler returned {type(result).__name__} where a generator was expected")

    async def next(self) -> Any:
        """
        Return the next item of the handler.

        :raises NoMoreItems: the handler has ended, or the operation was cancelled.
        """
        if self._performance.is_cancelled:
            raise NoMoreItems
        resume_handler(self._performance)
        try:
            if self._async:
                item = await self._items.__anext__()
            else:
                item = next(self._items)
        except (StopIteration, StopAsyncIteration):
            raise NoMoreItems from None
        except GeneratorExit as error:
            if self._async:
                raise
            # In a coroutine it would mean that Python frees the coroutine.
            raise RuntimeError("a handler raised GeneratorExit") from error
        finally:
            suspend_handler(self._performance)
        if self._performance.is_cancelled:
            raise NoMoreItems
        return item

    async def room(self) -> None:
        """
        Wait until the transport takes more responses; after :data:`TURN_SECONDS` seconds also let other work have its turn.

        :raises NoMoreItems: the operation was cancelled meanwhile, or the association has ended.
        """
        waiting = self._outgoing.room()
        if waiting is None:
            if self._reactor.seconds() - self._turn < TURN_SECONDS:
                return
            waiting = deferLater(self._reactor, 0)
        await waiting
        if not self._performance.assoc.is_established or self._performance.is_cancelled:
            raise NoMoreItems
        self._turn = self._reactor.seconds()

    # --- inside

    async def _work(self, work: Callable[[YieldingHandler], Awaitable[None]], cancelled: Callable[[], None]) -> None:
        failure: Failure | None = None
        try:
            try:
                await work(self)
            except GeneratorExit:
                # The coroutine is being garbage collected with a handler that waits for ever; it cannot await any more.
                self._items = None
                raise
            finally:
                await self._close()
        except CancelledError:
            failure = Failure()
        except NoMoreItems:
            pass
        except (Exception, SystemExit):
            failure = Failure()
        if not self._performance.is_cancelled:
            if failure is not None:
                self._failed(failure)
            return
        if failure is not None and not failure.check(CancelledError, AssociationError):
            self._log_failure("the handler of {event} raised when it was cancelled", failure)
        if not self._performance.is_done:
            cancelled()

    async def _close(self) -> None:
        """Close the generator, so that its ``finally`` is run."""
        items, self._items = self._items, None
        resume_handler(self._performance)
        try:
            if hasattr(items, "aclose"):
                await items.aclose()
            elif hasattr(items, "close"):
                items.close()
        finally:
            suspend_handler(self._performance)

    def _failed(self, reason: Failure) -> None:
        if self._performance.is_done:
            self._log_failure("the handler of {event} raised after the final response", reason)
        elif isinstance(reason.value, Refused):
            if reason.value.__cause__ is not None:
                self._log_failure("the handler of {event} yielded an item that cannot be used", reason)
            self._performance.refuse(reason.value.status, str(reason.value), reason.value.details)
        else:
            self._performance.handler_failed(reason, self._event, self._failure_status)

    def _log_failure(self, message: str, reason: Failure) -> None:
        self._performance.assoc.log_refusal(self.log.failure, message, reason, event=self._event)


class _CorkedSteps:
    """
    Awaits *steps*, and holds back their messages until they await something, so that these go out in one write.

    :ivar running: whether the steps are running at the moment.
    """

    __slots__ = ("_outgoing", "_steps", "running")

    def __init__(self, outgoing: Outgoing, steps: Coroutine[Any, Any, None]) -> None:
        self._outgoing = outgoing
        self._steps = steps
        self.running = False

    def _step(self, proceed: Callable[[Any], Any], value: Any) -> Any:
        self._outgoing.cork()
        self.running = True
        try:
            return proceed(value)
        finally:
            self.running = False
            self._outgoing.uncork()

    def __await__(self) -> Generator[Any, Any, None]:
        send, throw = self._steps.send, self._steps.throw
        try:
            awaited = self._step(send, None)
            while True:
                try:
                    value = yield awaited
                except GeneratorExit:
                    self._steps.close()
                    raise
                except BaseException as error:
                    awaited = self._step(throw, error)
                else:
                    awaited = self._step(send, value)
        except StopIteration:
            return


def with_dataset(
    performance: Performance,
    missing: int,
    then: Callable[[bytes], None],
    limit: int,
    too_long: int = OUT_OF_RESOURCES,
    is_counted: bool = True,
) -> None:
    """
    Collect the data set of a request and call *then* with it; refuse a request without one, or with one that is too long.

    :param missing: the status if there is no data set.
    :param limit: the most bytes to collect.
    :param too_long: the status if there are more, or if the data sets of other requests take the memory.
    :param is_counted: whether the data set takes a part of the memory for data sets of requests.
    """
    stream = performance.stream
    if stream is None:
        performance.refuse(missing, "a request without its data set")
        return

    def collected(data: bytes) -> None:
        performance.stream = None
        then(data)

    def failed(reason: Failure) -> None:
        # For any other reason the peer is gone, and nobody waits for an answer.
        if reason.check(DataSetTooLong):
            performance.stream = None
            performance.refuse(too_long, str(reason.value))

    if is_counted:
        assoc = performance.assoc
        limit_of_all = assoc.settings.maximum_request_memory
        performance.memory = Share(assoc.ae.request_memory, assoc.remote.address, limit_of_all)
    sink = CollectingSink(limit, performance.memory)
    sink.done.addCallbacks(collected, failed).addErrback(_broken, performance)
    stream.deliver_to(sink)


def with_identifier(
    performance: Performance, event: evt.EventType, missing: int, then: Callable[[evt.IdentifierEvent], None]
) -> None:
    """
    Collect and decode the identifier of a request, and call *then* with the event of it; refuse a request without one, or
    with one that exceeds the limits.

    :param missing: the status if there is no identifier.
    """

    def start(identifier: bytes) -> None:
        occurrence = evt.IdentifierEvent(event, performance, identifier)
        with_decoded(performance, occurrence, OUT_OF_RESOURCES, lambda: then(occurrence))

    with_dataset(performance, missing, start, performance.assoc.settings.maximum_identifier_size)


def with_decoded(performance: Performance, event: evt.DataSetEvent, too_long: int, then: Callable[[], None]) -> None:
    """
    Decode the data set of *event*, in a thread if it is not a small one, and call *then*; refuse the request if the data set
    exceeds the limits, or too many others wait for a thread.

    If the data set cannot be decoded, the error is raised when the handler asks for it, so that the handler can deal with it.
    A handler that is marked with :func:`~dicomtwist.evt.decoding` decodes it itself.
    After a C-CANCEL, or if the peer is gone, the data set is not waited for.

    :param too_long: the status of a refusal.
    """

    def decoded(reason: Failure | None) -> None:
        performance.on_cancel = None
        if reason is not None and reason.check(DataSetTooLong):
            performance.refuse(too_long, str(reason.value))
        elif reason is not None and reason.check(ExecutorFull):
            performance.refuse(too_long, "too many data sets wait to be decoded")
        else:
            then()

    try:
        if event.decode_small():
            then()
            return
    except DataSetTooLong:
        decoded(Failure())
        return
    bound = performance.assoc.handler(event.event)
    if bound is not None and getattr(bound[0], "is_decoding", False):
        then()
        return
    # One peer never has all threads.
    share = performance.assoc.ae.executors.decoding.share(host_of(performance.assoc.remote.address))
    decoding = share.run(event.decode)
    performance.on_cancel = decoding.cancel
    decoding.addCallbacks(lambda _: decoded(None), decoded).addErrback(_broken, performance)


def _broken(reason: Failure, performance: Performance) -> None:
    assoc = performance.assoc
    YieldingHandler.log.failure("a request of {peer!r} could not be performed", reason, peer=assoc.remote.ae_title)
    assoc.abort("a request could not be performed, the log says why")
