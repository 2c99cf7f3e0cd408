"""
Association: what users hold. It sends requests and matches their responses, and performs what the peer asks for.

How an association comes about is in :mod:`dicomtwist.requestor` and :mod:`dicomtwist.acceptor`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from pydicom import Dataset
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.datasets import DataSetSource, DataSetStream
from dicomtwist.dimse import status as codes
from dicomtwist.dimse.messages import RESPONSES, CCancelRQ, CEchoRQ, Message, Request, Response
from dicomtwist.dimse.status import Status
from dicomtwist.dimse.stream import MessageReceiver
from dicomtwist.errors import (
    AssociationAborted,
    AssociationLost,
    AssociationReleased,
    AssociationTimeout,
    InvalidMessage,
    NoPresentationContext,
    NotEstablished,
)
from dicomtwist.negotiation import ServiceUser
from dicomtwist.outgoing import Outgoing
from dicomtwist.presentation import PresentationContext, PresentationContextTuple
from dicomtwist.protocol import UpperLayerProtocol, address_of
from dicomtwist.services import SERVICES, Performance
from dicomtwist.settings import Settings
from dicomtwist.sop_class import SOPClass
from dicomtwist.storescu import store
from dicomtwist.tls_errors import describe_tls_error
from dicomtwist.ul.connection import AbortIndication
from dicomtwist.ul.framing import Fragment
from dicomtwist.ul.machine import State
from dicomtwist.ul.pdu import AAssociateAC, AAssociateRJ, AAssociateRQ
from dicomtwist.window import Window

if TYPE_CHECKING:
    from dicomtwist.ae import AE

#: Message IDs are 16 bits (PS3.7 9.1).
_MAX_MESSAGE_ID = 0xFFFF


class Operation:
    """A request that we sent, until its response has come."""

    __slots__ = ("message_id", "request", "response", "result", "sent_at")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.message_id = request.message_id
        self.sent_at: float | None = None
        self.response: Response | None = None  # while its data set is still coming
        # The response may come when the caller has lost interest: Deferred takes care of a result after cancel().
        self.result: Deferred[tuple[Response, bytes | None]] = Deferred()


class WindowPlace:
    """A place in the asynchronous operations window, for ``async with``."""

    __slots__ = ("_assoc",)

    def __init__(self, assoc: Association) -> None:
        self._assoc = assoc

    async def __aenter__(self) -> None:
        await self._assoc.enter_window()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._assoc.leave_window()


class Association:
    """
    An association with a peer.

    :ivar ae: the AE that it belongs to.
    :ivar mode: ``"requestor"`` or ``"acceptor"``: which side we are.
    :ivar requestor: what the requestor told of itself.
    :ivar acceptor: what the acceptor told of itself.
    :ivar is_established: whether it can be used now.
    :ivar is_rejected: whether the acceptor rejected it.
    :ivar is_aborted: whether it ended with an abort, by either side, or the connection was lost.
    :ivar is_released: whether it was released.
    :ivar performed: how many operations were performed for the peer, by service, such as ``"C-STORE"``.
    :ivar failed: how many of them with a failure status.
    """

    log = Logger()
    mode = ""

    def __init__(self, ae: AE, settings: Settings, handlers: evt.Handlers) -> None:
        self.ae = ae
        self.settings = settings
        self.requestor = ServiceUser()
        self.acceptor = ServiceUser()
        self.is_established = False
        self.was_established = False
        self.is_rejected = False
        self.is_aborted = False
        self.is_released = False
        self.performed: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.invoked: Counter[str] = Counter()
        self._handlers = evt.Handlers(parent=handlers)
        self._protocol: UpperLayerProtocol = self._make_protocol()
        self._contexts: dict[int, PresentationContext] = {}
        self._tuples: dict[int, PresentationContextTuple] = {}
        self._rejected: list[PresentationContext] = []
        self._receiver = MessageReceiver(self, self._tuples, settings.maximum_object_size)
        self._outgoing: Outgoing | None = None
        self._window = Window(1)
        self._perform_limit = 1
        self._operations: dict[int, Operation] = {}
        self._performing: dict[int, Performance] = {}
        self._last_message_id = 0
        self._incoming: Operation | DataSetStream | None = None
        self._collected: list[memoryview] = []
        self._collected_length = 0
        self._end: Failure | None = None
        self._closed = False
        self._release_asked_at: float | None = None
        self._release_to_answer = False
        self._waiting_for_release: list[Deferred[None]] = []
        self._waiting_for_end: list[Deferred[Association]] = []
        self._trace()

    def _make_protocol(self) -> UpperLayerProtocol:
        return UpperLayerProtocol(
            self,
            requestor=self.mode == "requestor",
            max_length=self.settings.maximum_pdu_size,
            artim_seconds=self.settings.acse_timeout,
            clock=self.ae.reactor,
        )

    def __repr__(self) -> str:
        words = "established" if self.is_established else "over" if self._closed else "not established"
        return f"<Association with {self.remote.ae_title!r} at {self.remote.address}:{self.remote.port}, {words}>"

    # --- what it is

    @property
    def local(self) -> ServiceUser:
        """This side."""
        return self.requestor if self.mode == "requestor" else self.acceptor

    @property
    def remote(self) -> ServiceUser:
        """The peer."""
        return self.acceptor if self.mode == "requestor" else self.requestor

    @property
    def protocol(self) -> UpperLayerProtocol:
        """The Twisted protocol that carries it."""
        return self._protocol

    @property
    def is_requestor(self) -> bool:
        """Whether this side asked for it."""
        return self.mode == "requestor"

    @property
    def is_acceptor(self) -> bool:
        """Whether the peer asked for it."""
        return self.mode == "acceptor"

    @property
    def accepted_contexts(self) -> list[PresentationContext]:
        """The accepted presentation contexts, in the order of their IDs."""
        return [self._contexts[context_id] for context_id in sorted(self._contexts)]

    @property
    def rejected_contexts(self) -> list[PresentationContext]:
        """The other presentation contexts, each with the result that says why."""
        return list(self._rejected)

    @property
    def bytes_received(self) -> int:
        """How many bytes came over the connection."""
        return self._protocol.bytes_received

    @property
    def bytes_sent(self) -> int:
        """How many bytes were given to the connection."""
        return self._protocol.bytes_sent

    @property
    def end_reason(self) -> Exception | None:
        """Why it ended, ``None`` where it was released or is not over."""
        return None if self._end is None or self.is_released else self._end.value

    # --- hooks

    def bind(self, event: evt.EventType, handler: evt.Handler, args: Sequence[Any] | None = None) -> None:
        """Bind *handler* to *event* for this association, see :meth:`dicomtwist.evt.Handlers.bind`."""
        self._handlers.bind(event, handler, args)
        self._trace()

    def unbind(self, event: evt.EventType, handler: evt.Handler) -> None:
        """Unbind *handler* from *event* where it was bound for this association."""
        self._handlers.unbind(event, handler)
        self._trace()

    def _trace(self) -> None:
        """Tell the upper layer whether anybody wants to know of every byte and state."""
        self._protocol.tracing = any(
            self._handlers.wants(event) for event in (evt.EVT_DATA_RECV, evt.EVT_DATA_SENT, evt.EVT_FSM_TRANSITION)
        )

    def notify(self, event: evt.EventType, **attributes: Any) -> None:
        """Call the handlers of a notification; what they raise is logged and goes no further."""
        if not self._handlers.wants(event):
            return
        occurrence = evt.Event(event, self, **attributes)
        for handler, arguments in self._handlers.listeners(event):
            try:
                result = handler(occurrence, *arguments)
                if type(result) is CoroutineType:
                    result = Deferred.fromCoroutine(result)
                if isinstance(result, Deferred):
                    result.addErrback(self._handler_failed, event)
            except Exception:
                self._handler_failed(Failure(), event)

    def _handler_failed(self, reason: Failure, event: evt.EventType) -> None:
        self.log.failure("a handler of {event} raised", reason, event=event)

    def has_handler(self, event: evt.EventType) -> bool:
        """Whether a handler of an intervention is bound."""
        return self._handlers.get(event) is not None

    def handler(self, event: evt.EventType) -> tuple[evt.Handler, tuple[Any, ...]] | None:
        """Return the handler and arguments of an intervention, or ``None``."""
        return self._handlers.get(event)

    # --- ending it

    def release(self) -> Deferred[None]:
        """
        Release the association, when what has been asked for is answered (PS3.8 7.2).

        :returns: a Deferred that fires with ``None`` when the connection is closed. It fails with the
            :class:`AssociationError` that came instead: the peer did not agree in the ACSE timeout, aborted, or was lost.
        """
        done: Deferred[None] = Deferred()
        if self._closed or not self.is_established:
            if self.is_released or (self._closed and self._end is None):
                done.callback(None)
            else:
                done.errback(self._end or Failure(NotEstablished("the association is not established")))
            return done
        self._waiting_for_release.append(done)
        self._release_when_idle()
        return done

    def _release_when_idle(self) -> None:
        if self._release_asked_at is not None or self._operations or self._window.waiting:
            return
        if self._outgoing is not None and self._outgoing.busy:
            return
        if not self.is_established or self._protocol.connection.state is not State.STA6:
            return  # the peer asks for it as well; its request is answered
        self._release_asked_at = self.ae.reactor.seconds()
        self._protocol.release()
        self.notify(evt.EVT_ACSE_SENT, primitive="A-RELEASE request")
        if self.settings.acse_timeout is not None:
            self._protocol.watch(self.settings.acse_timeout)

    def abort(self, detail: str = "") -> None:
        """
        Abort the association (A-ABORT, PS3.8 7.3). What waits to be sent is dropped, what waits for an answer fails.

        :param detail: why, in words; for the exceptions and the log of this side, the peer is not told.
        """
        if self._closed or self._end is not None:
            return
        self._over(Failure(AssociationAborted(0, 0, by_peer=False, detail=detail)))
        self.is_aborted = True
        self._protocol.abort()
        self.notify(evt.EVT_ACSE_SENT, primitive="A-ABORT request")

    def drop(self) -> None:
        """End what is not established: abort what was asked for, close what was not."""
        if self._protocol.connection.state in (State.STA1, State.STA2):
            self._protocol.close()
        else:
            self.abort("the server is shutting down")

    def when_ended(self) -> Deferred[Association]:
        """Return a Deferred that fires with this association when its connection is closed."""
        waiting: Deferred[Association] = Deferred()
        if self._closed:
            waiting.callback(self)
        else:
            self._waiting_for_end.append(waiting)
        return waiting

    async def __aenter__(self) -> Association:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort(f"left by {kind.__name__}")
            await self.when_ended()
        elif self.is_established:
            await self.release()

    def _timed_out(self, timer: str, seconds: float, what: str) -> None:
        if self._closed or self._end is not None:
            return
        self._over(Failure(AssociationTimeout(timer, seconds, what)))
        self.is_aborted = True
        self._protocol.abort()

    def _over(self, reason: Failure) -> None:
        """Nothing more is sent or answered: fail what waits, each once. The connection may still have to close."""
        if self._end is not None:
            return
        self._end = reason
        self.is_established = False
        if self._outgoing is not None:
            self._outgoing.close()
        operations, self._operations = list(self._operations.values()), {}
        for operation in operations:
            if not operation.result.called:
                operation.result.errback(reason)
        self._window.fail(reason)
        incoming, self._incoming = self._incoming, None
        self._collected.clear()
        if isinstance(incoming, DataSetStream):
            incoming.fail(reason)
        performing, self._performing = list(self._performing.values()), {}
        for performance in performing:
            performance.cancel()

    # --- UpperLayerUser: what the upper layer tells

    def transport_opened(self) -> None:
        """The transport is open."""
        self.local.address, self.local.port = address_of(self._protocol.transport.getHost())
        self.remote.address, self.remote.port = address_of(self._protocol.transport.getPeer())
        self.ae.association_opened(self)
        self.notify(evt.EVT_CONN_OPEN, address=(self.remote.address, self.remote.port))

    def transport_ready(self) -> None:
        """The TLS handshake, if any, is done."""

    def associate_indication(self, request: AAssociateRQ) -> None:
        """Only an acceptor is asked."""
        raise AssertionError("a requestor got an A-ASSOCIATE indication")

    def associate_confirmation(self, answer: AAssociateAC | AAssociateRJ) -> None:
        """Only a requestor is answered."""
        raise AssertionError("an acceptor got an A-ASSOCIATE confirmation")

    def established(self, contexts: list[PresentationContext], invoked: int, performed: int) -> None:
        """
        Begin to exchange messages.

        :param contexts: all of the presentation contexts, each with its result.
        :param invoked: how many operations this side may have outstanding, 0 for any number.
        :param performed: how many the peer may have, 0 for any number.
        """
        for context in contexts:
            if context.result == 0 and context.context_id is not None:
                self._contexts[context.context_id] = context
                self._tuples[context.context_id] = context.as_tuple
            else:
                self._rejected.append(context)
        cap = self.settings.maximum_operations
        self._window.limit = min(invoked or cap, cap)
        self._perform_limit = min(performed or cap, cap)
        self._outgoing = Outgoing(self._protocol, self.remote.maximum_length, self._send_failed)
        self.is_established = self.was_established = True
        self._protocol.last_received = self.ae.reactor.seconds()
        shortest = self._shortest_timeout()
        if shortest is not None:
            self._protocol.watch(shortest)
        self.notify(evt.EVT_ACCEPTED)
        self.notify(evt.EVT_ESTABLISHED)

    def fragment_received(self, fragment: Fragment) -> None:
        """Take a fragment; what breaks the rules aborts."""
        if self._end is not None:
            return
        try:
            self._receiver.receive(fragment)
        except InvalidMessage as error:
            self._protocol.protocol_error(error.reason, str(error))

    def release_indication(self, collision: bool) -> None:
        """The peer asks for the release: it is answered when what it asked for before is done."""
        self.notify(evt.EVT_ACSE_RECV, primitive="A-RELEASE indication")
        if self._receiver.mid_message:
            self._protocol.protocol_error(2, "A-RELEASE-RQ inside a message")
            return
        self._release_to_answer = True
        if self.mode == "acceptor" and collision:
            return  # Sta10: our own request is answered first (PS3.8 Table 9-10, AR-10)
        self._answer_release()

    def _answer_release(self) -> None:
        if not self._release_to_answer or self._performing or (self._outgoing is not None and self._outgoing.busy):
            return
        if self._protocol.connection.state not in (State.STA8, State.STA9, State.STA12):
            return
        self._release_to_answer = False
        waits_for_confirmation = self._protocol.connection.state is State.STA9
        self._protocol.respond_release()
        self.notify(evt.EVT_ACSE_SENT, primitive="A-RELEASE response")
        if not waits_for_confirmation:
            self._released()

    def _released(self) -> None:
        if self._end is not None:
            return
        self.is_released = True
        self._over(Failure(AssociationReleased("the association was released before the answer came")))

    def release_confirmation(self) -> None:
        """The peer agrees."""
        self.notify(evt.EVT_ACSE_RECV, primitive="A-RELEASE confirmation")
        self._release_asked_at = None
        if self._protocol.connection.state is State.STA12:
            self._answer_release()
        else:
            self._released()

    def abort_indication(self, indication: AbortIndication) -> None:
        """The peer aborted, or we did for what it sent."""
        self.notify(evt.EVT_ACSE_RECV, primitive="A-ABORT indication")
        if self._end is None:
            error = AssociationAborted(
                indication.source, indication.reason, by_peer=indication.by_peer, detail=indication.detail
            )
            self.is_aborted = True
            self._over(Failure(error))

    def transport_writable(self) -> None:
        """The transport takes more."""
        if self._outgoing is not None:
            self._outgoing.writable()

    def transport_closed(self, reason: Failure) -> None:
        """The connection is gone: whatever still waits is told, once."""
        if self._closed:
            return
        self._closed = True
        if self._end is None:
            self._over(self._lost(reason))
            self.is_aborted = True
        assert self._end is not None
        if self.is_released:
            self.notify(evt.EVT_RELEASED)
        elif self.is_aborted:
            self.notify(evt.EVT_ABORTED, reason=self._end.value)
        self.notify(evt.EVT_CONN_CLOSE)
        waiting, self._waiting_for_release = self._waiting_for_release, []
        for release in waiting:
            if self.is_released:
                release.callback(None)
            else:
                release.errback(self._end)
        self.ae.association_closed(self)
        ended, self._waiting_for_end = self._waiting_for_end, []
        for end in ended:
            end.callback(self)

    def _lost(self, reason: Failure) -> Failure:
        words = None
        if self._protocol.secure:
            words = describe_tls_error(reason, handshaking=self._protocol.handshaking)
        lost = AssociationLost(f"the connection was lost: {words or reason.getErrorMessage()}")
        lost.__cause__ = reason.value
        return Failure(lost)

    def data_traced(self, sent: bool, data: bytes) -> None:
        """Bytes came or went."""
        self.notify(evt.EVT_DATA_SENT if sent else evt.EVT_DATA_RECV, data=data)

    def state_traced(self, before: int, after: int) -> None:
        """The state machine moved."""
        self.notify(evt.EVT_FSM_TRANSITION, current_state=State(before).name, next_state=State(after).name)

    # --- MessageUser: what the message stream tells

    def message_received(self, context_id: int, message: Message) -> None:
        """A command set came; if it says so, its data set follows."""
        if self._handlers.wants(evt.EVT_DIMSE_RECV):
            self.notify(evt.EVT_DIMSE_RECV, message=message, context_id=context_id)
        if isinstance(message, Request):
            self._request_received(context_id, message)
        elif isinstance(message, Response):
            self._response_received(message)
        elif isinstance(message, CCancelRQ):
            performance = self._performing.get(message.message_id_being_responded_to)
            if performance is not None:
                performance.cancel()

    def dataset_fragment_received(self, data: memoryview) -> None:
        """A piece of a data set came."""
        incoming = self._incoming
        if type(incoming) is DataSetStream:
            incoming.feed(data)
            return
        self._collected_length += len(data)
        if self._collected_length > self.settings.maximum_buffered_size:
            raise InvalidMessage(f"a response with a data set of more than {self.settings.maximum_buffered_size} bytes")
        self._collected.append(data)

    def dataset_received(self) -> None:
        """A data set is complete."""
        incoming, self._incoming = self._incoming, None
        if isinstance(incoming, DataSetStream):
            incoming.end()
        elif isinstance(incoming, Operation):
            data = b"".join(self._collected)
            self._collected.clear()
            assert incoming.response is not None
            self._complete(incoming, incoming.response, data)

    # --- performing what the peer asks for

    def _request_received(self, context_id: int, request: Request) -> None:
        performance = Performance(self, self._tuples[context_id], request)
        if request.has_dataset:
            self._incoming = performance.stream = DataSetStream(self._protocol)
        context = self._contexts[context_id]
        service = SERVICES.get(type(request))
        as_performer = context.as_scu if request.COMMAND_FIELD == 0x0100 else context.as_scp
        if request.message_id in self._performing:
            performance.refuse(codes.DUPLICATE_INVOCATION, "this Message ID is in use")
        elif len(self._performing) >= self._perform_limit:
            performance.refuse(codes.RESOURCE_LIMITATION, f"no more than {self._perform_limit} operations at once")
        elif service is None:
            performance.refuse(codes.UNRECOGNISED_OPERATION, "this service is not provided")
        elif not as_performer:
            performance.refuse(codes.SOP_CLASS_NOT_SUPPORTED, "not in this role")
        else:
            self._performing[request.message_id] = performance
            service(performance)

    def respond(self, performance: Performance, response: Response, source: DataSetSource | None = None) -> None:
        """Send a response; called by :class:`Performance`."""
        if self._end is not None or self._outgoing is None or not self._protocol.may_send_data:
            if source is not None:
                source.close()
            return
        if self._handlers.wants(evt.EVT_DIMSE_SENT):
            self.notify(evt.EVT_DIMSE_SENT, message=response, context_id=performance.context.context_id)
        self._outgoing.send(performance.context.context_id, response, source, self._sent_response)

    def performance_done(self, performance: Performance, status: int) -> None:
        """An operation was answered for good; called by :class:`Performance`."""
        if self._performing.get(performance.request.message_id) is performance:
            del self._performing[performance.request.message_id]
        service = performance.service_name
        self.performed[service] += 1
        if status and codes.category(status) is codes.StatusCategory.FAILURE:
            self.failed[service] += 1
        if self._release_to_answer:
            self._answer_release()

    def _sent_response(self) -> None:
        if self._release_to_answer:
            self._answer_release()

    # --- asking the peer

    def window(self) -> WindowPlace:
        """Return an asynchronous context that has a place in the asynchronous operations window."""
        return WindowPlace(self)

    def enter_window(self) -> Deferred[None]:
        """Return a Deferred that fires when one more operation may be outstanding."""
        return self._window.enter()

    def leave_window(self) -> None:
        """Give the place back."""
        self._window.leave()
        if self._waiting_for_release:
            self._release_when_idle()

    def start(
        self, context_id: int, request: Request, source: DataSetSource | None = None
    ) -> Deferred[tuple[Response, bytes | None]]:
        """
        Send *request*; the caller has a place in the window.

        :param source: its data set, which is closed in any case.
        :returns: a Deferred with the response and its data set; it fails with the :class:`AssociationError` that ended
            the association before the answer came.
        """
        if self._end is not None or self._outgoing is None or not self._protocol.may_send_data:
            if source is not None:
                source.close()
            return fail(self._end or NotEstablished("the association is being released"))
        request.message_id = self._next_message_id()
        request.has_dataset = source is not None
        operation = Operation(request)
        self._operations[request.message_id] = operation
        self.invoked[request.NAME.removesuffix("-RQ")] += 1

        def sent() -> None:
            operation.sent_at = self.ae.reactor.seconds()

        if self._handlers.wants(evt.EVT_DIMSE_SENT):
            self.notify(evt.EVT_DIMSE_SENT, message=request, context_id=context_id)
        self._outgoing.send(context_id, request, source, sent)
        return operation.result

    def _next_message_id(self) -> int:
        while True:
            self._last_message_id = self._last_message_id % _MAX_MESSAGE_ID + 1
            if self._last_message_id not in self._operations:
                return self._last_message_id

    def _response_received(self, response: Response) -> None:
        operation = self._operations.get(response.message_id_being_responded_to)
        if operation is None:
            raise InvalidMessage(
                f"{response.NAME} to Message ID {response.message_id_being_responded_to}, which waits for none"
            )
        if type(response) is not RESPONSES[type(operation.request)]:
            raise InvalidMessage(f"{response.NAME} to {operation.request.NAME}")
        if response.has_dataset:
            self._incoming = operation
            operation.response = response
            self._collected_length = 0
        else:
            self._complete(operation, response, None)

    def _complete(self, operation: Operation, response: Response, data: bytes | None) -> None:
        del self._operations[operation.message_id]
        if not operation.result.called:
            operation.result.callback((response, data))

    def _send_failed(self, message: Message, reason: Failure) -> None:
        """A data set that has begun cannot be finished: there is no way to take it back but to abort."""
        operation = self._operations.pop(message.message_id, None) if isinstance(message, Request) else None
        if operation is not None and not operation.result.called:
            operation.result.errback(reason)
        self.abort(f"the data set of {message.NAME} could not be read: {reason.getErrorMessage()}")

    # --- services

    def send_c_echo(self) -> Deferred[Status]:
        """
        Ask whether the peer is there (C-ECHO, PS3.7 9.1.5).

        :returns: a Deferred with the :class:`Status`; it fails with the :class:`AssociationError` that ended the
            association before the answer came, :class:`NotEstablished` or :class:`NoPresentationContext`.
        """
        return Deferred.fromCoroutine(self._echo())

    async def _echo(self) -> Status:
        context = self.context_for("1.2.840.10008.1.1")
        async with self.window():
            response, _ = await self.start(context.context_id, CEchoRQ())
        return self.status_of(response)

    def send_c_store(
        self,
        dataset: str | os.PathLike[str] | Dataset | BinaryIO,
        *,
        priority: int = 2,
        originator_aet: str | None = None,
        originator_id: int | None = None,
    ) -> Deferred[Status]:
        """
        Ask the peer to store an instance (C-STORE, PS3.7 9.1.1).

        :param dataset: the path of a Part 10 file, which is streamed from disk; a pydicom Dataset; or an open binary
            file or the like that gives a Part 10 file from where it stands.
        :param priority: 0 medium, 1 high, 2 low.
        :param originator_aet: for a C-MOVE's sub-operation, the AE title that asked for it.
        :param originator_id: and the Message ID that it was asked with.
        :returns: a Deferred with the :class:`Status`, whatever it says; it fails with

            * the :class:`AssociationError` that ended the association before the answer came, :class:`NotEstablished`,
            * :class:`NoPresentationContext` where no accepted context fits the SOP Class and transfer syntax,
            * ``OSError``, :class:`~dicomtwist.part10.NotDicomFile` or :class:`~dicomtwist.errors.DataSetError` where
              the data set cannot be read or encoded. If that shows when part of it is sent, the association is aborted.
        """
        return Deferred.fromCoroutine(store(self, dataset, priority, originator_aet, originator_id))

    @staticmethod
    def status_of(response: Response) -> Status:
        """Return the status of *response*, with what it says beside it."""
        return Status(
            response.status,
            response.NAME.removesuffix("-RSP"),
            response.error_comment,
            response.offending_element,
            response.error_id,
        )

    def check_established(self) -> None:
        """:raises NotEstablished: it is not established, or no longer; the cause says why."""
        if not self.is_established:
            raise NotEstablished("the association is not established") from (self._end.value if self._end else None)

    def context_for(
        self, abstract_syntax: str, transfer_syntax: str | None = None, *, as_scu: bool = True
    ) -> PresentationContextTuple:
        """
        Return the accepted presentation context for a service.

        :param abstract_syntax: the SOP Class UID.
        :param transfer_syntax: the transfer syntax UID, ``None`` for any.
        :param as_scu: whether this side is to be the SCU; otherwise the SCP.
        :raises NotEstablished: the association is not established.
        :raises NoPresentationContext: there is none.
        """
        self.check_established()
        named = False
        for context_id, context in self._tuples.items():
            if context.abstract_syntax != abstract_syntax:
                continue
            named = True
            if transfer_syntax is not None and context.transfer_syntax != transfer_syntax:
                continue
            whole = self._contexts[context_id]
            if whole.as_scu if as_scu else whole.as_scp:
                return context
        raise NoPresentationContext(self._why_no_context(abstract_syntax, transfer_syntax, named, as_scu))

    def _why_no_context(self, abstract_syntax: str, transfer_syntax: str | None, named: bool, as_scu: bool) -> str:
        name = SOPClass(abstract_syntax).name
        if named:
            wanted = f" with transfer syntax {transfer_syntax}" if transfer_syntax else ""
            return f"no accepted presentation context for {name}{wanted} as {'SCU' if as_scu else 'SCP'}"
        for context in self._rejected:
            if context.abstract_syntax == abstract_syntax:
                return f"the peer did not accept a presentation context for {name}: {context.status}"
        return f"no presentation context was proposed for {name}: add it to the requested contexts"

    # --- time

    def _shortest_timeout(self) -> float | None:
        settings = self.settings
        times = [settings.acse_timeout, settings.dimse_timeout, settings.network_timeout]
        return min((seconds for seconds in times if seconds is not None), default=None)

    def check_time(self, now: float) -> float | None:
        """Abort if something has run out by *now*; return when to look again."""
        if self._end is not None:
            return None
        shortest = self._shortest_timeout()
        again = None if shortest is None else now + shortest
        for timer, seconds, since, what in self._deadlines():
            if since + seconds <= now:
                self._timed_out(timer, seconds, what)
                return None
            again = since + seconds if again is None else min(again, since + seconds)
        return again

    def _deadlines(self) -> list[tuple[str, float, float, str]]:
        """Return what can run out: (timer, seconds, since when, what did not happen)."""
        settings, protocol = self.settings, self._protocol
        found: list[tuple[str, float, float, str]] = []
        if settings.acse_timeout is not None and self._release_asked_at is not None:
            found.append(
                ("acse", settings.acse_timeout, self._release_asked_at, "the peer did not agree to the release")
            )
        if settings.network_timeout is not None:
            if protocol.write_paused_since is not None:
                since = protocol.write_paused_since
                found.append(("write", settings.network_timeout, since, "the peer did not read what was written"))
            if protocol.read_paused_since is not None:
                since = protocol.read_paused_since
                found.append(("network", settings.network_timeout, since, "a received data set was not taken"))
        reading = protocol.read_paused_since is None
        if settings.dimse_timeout is not None and reading:
            if self._receiver.mid_message or protocol.connection.mid_pdu:
                found.append(("dimse", settings.dimse_timeout, protocol.last_received, "a message did not go on"))
            sent = [operation.sent_at for operation in self._operations.values() if operation.sent_at is not None]
            if sent:
                since = max(min(sent), protocol.last_received)
                found.append(("dimse", settings.dimse_timeout, since, "the peer did not answer a request"))
        if settings.network_timeout is not None and not found and not self._operations and not self._performing:
            since = max(protocol.last_received, protocol.last_sent)
            found.append(("network", settings.network_timeout, since, "nothing happened"))
        return found
