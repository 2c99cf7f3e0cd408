"""
The exchange of DIMSE messages on an established association (PS3.7 8): the requests that wait for responses, and the
operations that are performed for the peer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.datasets.chunk_buffer import ChunkBuffer
from dicomtwist.datasets.sources import DataSetSource
from dicomtwist.datasets.stream import DataSetStream
from dicomtwist.dimse import status as codes
from dicomtwist.dimse.command import MAX_COMMAND_LENGTH
from dicomtwist.dimse.message_stream import MessageReceiver
from dicomtwist.dimse.messages import RESPONSES, CCancelRQ, CGetRQ, CStoreRQ, Message, NEventReportRQ, Request, Response
from dicomtwist.errors import AssociationError, InvalidMessage, NotEstablished, WouldDeadlock
from dicomtwist.exchange import nesting
from dicomtwist.exchange.invoked import Operation, PendingResponses
from dicomtwist.exchange.operations_window import Window
from dicomtwist.exchange.send_queue import Outgoing
from dicomtwist.exchange.totals import Totals
from dicomtwist.exchange.waiting_calls import WaitingCalls
from dicomtwist.exchange.waiting_requests import WaitingRequests
from dicomtwist.interfaces import ExchangeOwner, PerformedOperation
from dicomtwist.presentation import PresentationContextTuple

#: The statuses of responses that more responses follow (PS3.7 C.1.3).
PENDING_STATUSES = frozenset((codes.PENDING, codes.PENDING_WARNING))

#: Message IDs are 16 bits (PS3.7 9.1).
_MAX_MESSAGE_ID = 0xFFFF

#: Makes the operation for a request of the peer: :func:`dicomtwist.scp.services.performance` of an association.
MakeOperation: TypeAlias = Callable[[PresentationContextTuple, Request], PerformedOperation]


class Exchange:
    """
    Sends and receives the messages of one association.

    :param owner: the association.
    :param contexts: the accepted presentation contexts by their IDs.
    :param invoked: the number of operations that this side may have outstanding.
    :param performed: the number of operations that the peer may have outstanding.
    :param make_operation: makes the operation, with its service, for each request of the peer.

    :ivar calls: the calls of this side that wait.
    :ivar counts: the number of operations that were performed for the peer, by service.
    :ivar failures: the number of those that got a failure status, by service.
    :ivar totals: the totals of these operations, in instances, studies and matches.
    """

    def __init__(
        self,
        owner: ExchangeOwner,
        contexts: dict[int, PresentationContextTuple],
        invoked: int,
        performed: int,
        make_operation: MakeOperation,
    ) -> None:
        self._owner = owner
        self._protocol = owner.protocol
        self._figures = owner.ae.figures
        self._seconds = owner.ae.reactor.seconds
        self._make_operation = make_operation
        self._contexts = contexts
        self._receiver = MessageReceiver(self, contexts, owner.settings.maximum_object_size)
        self._outgoing = Outgoing(
            self._protocol, owner.remote.maximum_length, self._send_failed, owner.exchange_advanced
        )
        self._window = Window(invoked)
        self._perform_limit = performed
        self._operations: dict[int, Operation] = {}
        self._performing: dict[int, PerformedOperation] = {}
        self.calls = WaitingCalls(owner, self._window, self._operations, self._performing, self.cancel)
        self._waiting_requests = WaitingRequests(self._protocol, owner.settings.maximum_waiting)
        self._is_taking = False
        self._last_asked_on = (
            0  # the context of the last request that fitted the role of this side, which cannot change
        )
        self._last_message_id = 0
        self._incoming: Operation | DataSetStream | None = None
        self._collected = ChunkBuffer()
        self._failure: Failure | None = None
        self.receive = self._receiver.receive
        self.writable = self._outgoing.writable
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.totals = Totals()

    # --- state

    @property
    def mid_message(self) -> bool:
        """Whether the peer has begun a message and not finished it."""
        return self._receiver.mid_message

    @property
    def asking(self) -> bool:
        """Whether an operation of this side is outstanding or waits for the window, or a message is being sent."""
        return bool(self._operations) or bool(self._window.waiting) or self._outgoing.busy

    @property
    def answering(self) -> bool:
        """Whether an operation of the peer is being performed, or a message is being sent."""
        return bool(self._performing) or bool(self._waiting_requests) or self._outgoing.busy

    def performs_besides(self, inside: nesting.Frames) -> bool:
        """Return whether an operation of the peer is being performed, besides those whose handlers code is *inside* of."""
        return any(not nesting.is_inside(inside, performance) for performance in self._performing.values())

    @property
    def under_way(self) -> bool:
        """
        Whether an operation of either side is being performed, or waits for the window.

        The rest of a data set is not: a peer may answer a request before it has received the data set.
        """
        return bool(self._operations) or bool(self._window.waiting) or bool(self._performing)

    @property
    def waiting_since(self) -> float | None:
        """When the oldest outstanding request was sent, in seconds of the clock; ``None`` if there is none."""
        return min(
            (operation.sent_at for operation in self._operations.values() if operation.sent_at is not None),
            default=None,
        )

    @property
    def invoke_limit(self) -> int:
        """The number of operations that this side may have outstanding."""
        return self._window.limit

    def check(self) -> None:
        """:raises AssociationError: it ended the association."""
        if self._failure is not None:
            self._failure.raiseException()

    def fail(self, reason: Failure) -> None:
        """End the exchange: fail everything that waits, once."""
        self._failure = reason
        self.calls.close()
        self._outgoing.close()
        # Calls that wait for a place fail first: an operation that fails gives its place to the next call.
        self._window.fail(reason)
        operations = list(self._operations.values())
        self._operations.clear()
        for operation in operations:
            if not operation.result.called:
                operation.result.errback(reason)
        incoming, self._incoming = self._incoming, None
        self._collected.clear()
        performing = [*self._performing.values(), *self._waiting_requests.clear()]
        self._performing.clear()
        for performance in performing:
            performance.cancel()
        if isinstance(incoming, DataSetStream):
            incoming.fail(reason)

    # --- MessageUser: events of the message stream

    def message_received(self, context_id: int, message: Message) -> None:
        """Take a command set; its data set follows if it has one."""
        if self._owner.observes_messages:
            self._owner.notify(evt.EVT_DIMSE_RECV, message=message, context_id=context_id)
            if self._failure is not None:
                return  # a handler aborted
        if message.tolerated:
            self._owner.log_deviation(message.tolerated)
        if isinstance(message, Request):
            self._request_received(context_id, message)
        elif isinstance(message, Response):
            self._response_received(message)
        elif isinstance(message, CCancelRQ):
            message_id = message.message_id_being_responded_to
            performance = self._performing.get(message_id) or self._waiting_requests.find(message_id)
            if performance is not None:
                self._owner.notify(
                    evt.EVT_C_CANCEL, message_id=message.message_id_being_responded_to, request=performance.request
                )
                performance.cancel()

    def dataset_fragment_received(self, data: memoryview) -> None:
        """Take a fragment of a data set."""
        incoming = self._incoming
        if type(incoming) is DataSetStream:
            incoming.feed(data)
            return
        limit = self._owner.settings.maximum_buffered_size
        self._collected.append(data)
        if self._collected.length > limit:
            raise InvalidMessage(f"a response with a data set of more than {limit} bytes")

    def dataset_received(self) -> None:
        """Take the end of a data set."""
        incoming, self._incoming = self._incoming, None
        if isinstance(incoming, DataSetStream):
            incoming.end()
        elif isinstance(incoming, Operation):
            data = self._collected.take()
            assert incoming.response is not None
            self._complete(incoming, incoming.response, data)

    # --- operations of the peer

    def _request_received(self, context_id: int, request: Request) -> None:
        performance = self._make_operation(self._contexts[context_id], request)
        performance.started = self._protocol.last_received
        if request.has_dataset:
            self._incoming = performance.stream = DataSetStream(self._protocol)
        waiting = self._waiting_requests
        if request.message_id in self._performing or (waiting.requests and waiting.find(request.message_id)):
            performance.refuse(codes.DUPLICATE_INVOCATION, "this Message ID is in use")
        elif not self._may_be_asked(context_id, request):
            performance.refuse(codes.SOP_CLASS_NOT_SUPPORTED, self._why_not_in_this_role(context_id))
        elif len(self._performing) < self._perform_limit and not waiting.requests:
            self._performing[request.message_id] = performance
            performance.perform()
        elif waiting.add(performance, may_pause=not self._needs_peer()):
            if request.has_dataset:
                self._incoming = performance.stream
            self._owner.log_deviation(("more requests at once than the asynchronous operations window allows",))
        else:
            performance.refuse(codes.RESOURCE_LIMITATION, f"no more than {self._perform_limit} operations at once")

    def _needs_peer(self) -> bool:
        """Whether an operation that is performed needs messages of the peer, so that reading must not be paused."""
        return any(type(one.request) is CGetRQ for one in self._performing.values()) or any(
            operation.is_nested for operation in self._operations.values()
        )

    def _perform_waiting(self) -> None:
        """Perform requests that wait, as far as the window allows; not within itself, since a handler may answer at once."""
        if self._is_taking:
            return
        self._is_taking = True
        try:
            while self._waiting_requests and len(self._performing) < self._perform_limit and self._failure is None:
                performance = self._waiting_requests.take()
                self._performing[performance.request.message_id] = performance
                performance.perform()
                if self._needs_peer():
                    self._make_way()
        finally:
            self._is_taking = False

    def _make_way(self) -> None:
        """Read from the peer again, if requests that wait have paused that."""
        for performance in self._waiting_requests.make_way():
            performance.refuse(codes.RESOURCE_LIMITATION, f"no more than {self._perform_limit} operations at once")

    def _may_be_asked(self, context_id: int, request: Request) -> bool:
        """
        Whether this side has the role that performs *request*.

        An N-EVENT-REPORT goes to the SCU. But many SCPs send it on an association of their own without negotiating their
        role (Storage Commitment, PS3.4 J.3.3), or they propose a role and ignore the answer. If a handler for it is bound,
        the request is accepted: a refusal would lose the event, and the request can mean nothing else.

        A C-STORE goes to the SCP. But many SCPs of C-GET answer no role, and send their instances nevertheless. They are
        accepted if this side has proposed to be SCP and a C-GET of it is under way, for the same reason.
        """
        if context_id == self._last_asked_on or self._owner.has_role(context_id, as_scu=False):
            if type(request) is not NEventReportRQ:
                self._last_asked_on = context_id
                return True
        if type(request) is CStoreRQ:
            if not self.calls.is_getting or not self._owner.has_proposed_scp(context_id):
                return False
            self._owner.log_deviation(("C-STORE for a C-GET without the SCP role of the requestor in the answer",))
            return True
        if type(request) is not NEventReportRQ:
            return False
        return self._owner.has_role(context_id, as_scu=True) or self._owner.has_handler(evt.EVT_N_EVENT_REPORT)

    def why_gets_wait(self, more: int = 0) -> str | None:
        """
        Return why the C-GETs of both sides wait for each other; ``None`` if they do not.

        :param more: the number of C-GETs of this side that are about to begin.
        """
        asked = sum(type(operation.request) is CGetRQ for operation in self._operations.values())
        performed = sum(type(one.request) is CGetRQ for one in self._performing.values())
        return nesting.why_gets_wait(asked + more, self._window.limit, performed, self._perform_limit)

    def _why_not_in_this_role(self, context_id: int) -> str:
        """Return why a request is refused, in the 64 characters of an Error Comment."""
        if self._owner.has_proposed_scp(context_id):
            return "the SCP role was not accepted, and no C-GET is under way"
        return "not in this role"

    @property
    def may_respond(self) -> bool:
        """Whether a response can still be sent."""
        return self._failure is None and self._protocol.may_send_data

    @property
    def outgoing(self) -> Outgoing:
        """The queue of messages to send."""
        return self._outgoing

    def respond(self, performance: PerformedOperation, response: Response, source: DataSetSource | None = None) -> None:
        """
        Send a response; called by the operation.

        :param source: its data set; it is closed in any case.
        :raises ValueError: *response* cannot be encoded; nothing was sent.
        """
        if self._failure is not None or not self._protocol.may_send_data:
            if source is not None:
                source.close()
            return
        if source is None:
            response.has_dataset = False
            command = response.encode()
        else:
            response.has_dataset = True
            command = _encode(response, source)
        context_id = performance.context.context_id
        if self._owner.observes_messages:
            self._owner.notify(evt.EVT_DIMSE_SENT, message=response, context_id=context_id)
        self._outgoing.send(context_id, response, command, source)

    def respond_all(
        self, performance: PerformedOperation, response: Response, datasets: Sequence[bytes | memoryview]
    ) -> None:
        """
        Send a response once for each of *datasets*; called by the operation.

        :param datasets: data sets in memory, some dozens of KiB together.
        :raises ValueError: *response* cannot be encoded; nothing was sent.
        """
        if not self.may_respond:
            return
        response.has_dataset = True
        command = response.encode()
        context_id = performance.context.context_id
        if self._owner.observes_messages:
            for _ in datasets:
                self._owner.notify(evt.EVT_DIMSE_SENT, message=response, context_id=context_id)
        self._outgoing.send_all(context_id, response, command, datasets)

    def performance_done(self, performance: PerformedOperation, status: int) -> None:
        """Count an operation whose final response was sent; called by the operation."""
        request = performance.request
        if self._performing.get(request.message_id) is performance:
            del self._performing[request.message_id]
        service = request.SERVICE
        self.counts[service] += 1
        self._figures.performed.done(service, status, self._seconds() - performance.started)
        if status and codes.category(status) is codes.StatusCategory.FAILURE:
            self.failures[service] += 1
        if self._waiting_requests.requests:
            self._perform_waiting()
        self._owner.exchange_advanced()

    # --- operations of this side

    def enter_window(self) -> Deferred[None]:
        """Return a Deferred that fires with a place in the window, see :meth:`WaitingCalls.enter_window`."""
        return self.calls.enter_window()

    def leave_window(self) -> None:
        """Give back a place in the window."""
        self._window.leave()
        self._owner.exchange_advanced()

    def start(
        self, context_id: int, request: Request, source: DataSetSource | None = None
    ) -> Deferred[tuple[Response, bytes | None]]:
        """
        Send *request*; the caller has a place in the window.

        :param source: its data set; it is closed in any case.
        :returns: a Deferred with the response and its data set; it fails with the :class:`AssociationError` that ended
            the association before the response arrived, or with the ``ValueError`` of :meth:`begin`.
        """
        try:
            return self.begin(context_id, request, source).result
        except (AssociationError, NotEstablished, ValueError):
            return fail()

    def begin(
        self,
        context_id: int,
        request: Request,
        source: DataSetSource | None = None,
        pending: PendingResponses | None = None,
        inside: nesting.Frames | None = None,
    ) -> Operation:
        """
        Send *request*; the caller has a place in the window.

        :param source: its data set; it is closed in any case.
        :param pending: called with each pending response; without it, any response is the final one.
        :param inside: the operations that the caller is inside of, if the caller is not the code that runs now.
        :raises AssociationError: the association has ended.
        :raises NotEstablished: the association is being released.
        :raises ValueError: *request* cannot be encoded; nothing was sent, and no response is expected.
        :raises WouldDeadlock: the peer could not perform it before the handler has ended that makes it, or before a C-GET of
            the peer has ended, which would wait for it.
        """
        if self._failure is not None or not self._protocol.may_send_data:
            if source is not None:
                source.close()
            self.check()
            raise NotEstablished("the association is being released")
        if inside is None:
            inside = nesting.frames()
        if self._performing and type(request) is CGetRQ:
            why = nesting.why_get_waits(inside, self._performing, self._perform_limit) if inside else None
            if why is None and (why := self.why_gets_wait(1)) is not None:
                why += ": ask when the C-GET of the peer has ended, or negotiate an asynchronous operations window"
            if why is not None:
                if source is not None:
                    source.close()
                raise WouldDeadlock(why)
        request.message_id = self._next_message_id()
        request.has_dataset = source is not None
        # Encoded before it is registered: no response would ever come for a request that cannot be sent.
        command = _encode(request, source)
        operation = Operation(context_id, request, self._window, pending)
        operation.inside = inside
        self._operations[request.message_id] = operation
        self.calls.begun(operation)
        if self._performing:
            operation.is_nested = True
            if self._waiting_requests:
                self._make_way()

        def sent() -> None:
            operation.sent_at = self._protocol.last_sent

        if self._owner.observes_messages:
            self._owner.notify(evt.EVT_DIMSE_SENT, message=request, context_id=context_id)
        self._outgoing.send(context_id, request, command, source, sent)
        return operation

    def cancel(self, message_id: int) -> None:
        """
        Send C-CANCEL for an operation of this side, unless it has ended (PS3.7 9.3.2.3).

        :raises NotEstablished: the association is not established.
        """
        operation = self._operations.get(message_id)
        if operation is None or self._failure is not None or not self._protocol.may_send_data:
            return
        message = CCancelRQ(message_id_being_responded_to=message_id)
        self._owner.notify(evt.EVT_DIMSE_SENT, message=message, context_id=operation.context_id)
        self._outgoing.send(operation.context_id, message, message.encode())

    def _next_message_id(self) -> int:
        while True:
            self._last_message_id = self._last_message_id % _MAX_MESSAGE_ID + 1
            if self._last_message_id not in self._operations:
                return self._last_message_id

    def _response_received(self, response: Response) -> None:
        operation = self._operations.get(response.message_id_being_responded_to)
        if operation is None or self._outgoing.waits(operation.request):
            raise InvalidMessage(
                f"{response.NAME} to Message ID {response.message_id_being_responded_to}, which waits for none"
            )
        if type(response) is not RESPONSES[type(operation.request)]:
            raise InvalidMessage(f"{response.NAME} to {operation.request.NAME}")
        if response.has_dataset:
            self._incoming = operation
            operation.response = response
        else:
            self._complete(operation, response, None)

    def _complete(self, operation: Operation, response: Response, data: bytes | None) -> None:
        if operation.pending is not None and response.status in PENDING_STATUSES:
            operation.pending(response, data)
            return
        # The operation is gone if the association ended, or if its response came again within the data set.
        known = self._operations.pop(operation.message_id, None)
        if known is not None:
            now = self._seconds()
            self._figures.invoked.done(operation.request.SERVICE, response.status, now - (operation.sent_at or now))
        if self.calls.full:
            self.calls.set_full(operation, False)
        if known is not None and operation.is_given_up:
            self.leave_window()
        elif not operation.result.called:
            operation.result.callback((response, data))

    def _send_failed(self, message: Message, reason: Failure) -> None:
        """Abort: a data set that is sent in part cannot be finished, and there is no other way to take it back."""
        operation = self._operations.pop(message.message_id, None) if isinstance(message, Request) else None
        if operation is not None and not operation.result.called:
            operation.result.errback(reason)
        self._owner.abort(f"the data set of {message.NAME} could not be read: {reason.getErrorMessage()}")


def _encode(message: Message, source: DataSetSource | None) -> bytes:
    """
    Return the command set of *message*; close *source* if it cannot be encoded.

    :raises ValueError: it cannot be encoded, or is a request longer than a command set may be.
    """
    try:
        command = message.encode()
        if len(command) > MAX_COMMAND_LENGTH and isinstance(message, Request):
            raise ValueError(f"{message.NAME} of {len(command)} bytes, the maximum is {MAX_COMMAND_LENGTH}")
        return command
    except Exception:
        if source is not None:
            source.close()
        raise
