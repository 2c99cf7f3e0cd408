"""
Association: the object that users hold, from its establishment to its end.

:mod:`dicomtwist.association.requestor` and :mod:`dicomtwist.association.acceptor` establish it,
:mod:`dicomtwist.exchange.exchange` exchanges its messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, NoReturn

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.association.explanations import Proposal, explain_missing_context
from dicomtwist.association.log_lines import LogLines
from dicomtwist.association.record import Progress, RecordKeeper, count_ended, lists_operations
from dicomtwist.association.release import Release
from dicomtwist.association.service_user import ServiceUser
from dicomtwist.association.timeouts import Deadline, deadlines, shortest_timeout
from dicomtwist.errors import (
    AssociationAborted,
    AssociationLost,
    AssociationReleased,
    AssociationTimeout,
    InvalidMessage,
    NoPresentationContext,
    NotEstablished,
)
from dicomtwist.exchange.exchange import Exchange
from dicomtwist.interfaces import AEInterface
from dicomtwist.presentation import PresentationContext, PresentationContextTuple
from dicomtwist.runtime.call_handler import call_handler
from dicomtwist.scp.services import performance
from dicomtwist.scu.dimse_n import NormalisedUser
from dicomtwist.settings import Settings
from dicomtwist.tls.errors import describe_tls_error
from dicomtwist.transport.upper_layer import UpperLayerProtocol, address_of
from dicomtwist.ul.connection import AbortIndication
from dicomtwist.ul.framing import Fragment
from dicomtwist.ul.pdu import AAbort, AAssociateAC, AAssociateRJ, AAssociateRQ, AReleaseRP, AReleaseRQ
from dicomtwist.ul.state_machine import State

_numbers = count(1)


class Association(LogLines, NormalisedUser):
    """
    An association with a peer. Its operations are those of :class:`~dicomtwist.scu.ServiceClassUser` and
    :class:`~dicomtwist.scu.NormalisedUser`.

    :ivar ae: the AE that it belongs to.
    :ivar mode: the role of this side, ``"requestor"`` or ``"acceptor"``.
    :ivar number: its number in this process, from 1 on, by which the log names it.
    :ivar opened_at: when its connection was made, in seconds of the reactor's clock.
    :ivar requestor: the requestor's side, as it was negotiated.
    :ivar acceptor: the acceptor's side, as it was negotiated.
    :ivar is_established: whether it can be used now.
    :ivar is_rejected: whether the acceptor rejected it.
    :ivar is_aborted: whether it ended with an abort, by either side, or the connection was lost.
    :ivar is_released: whether it was released.
    :ivar was_established: whether it was ever established.
    :ivar progress_elsewhere: returns when an operation of this side last made progress on another association, in seconds of
        the reactor's clock; it restarts the DIMSE timeout. For a C-MOVE whose instances arrive here, from a peer that sends no
        pending responses.
    :ivar observes_messages: whether a handler or a record needs each message and fragment. The flag is tested for each of
        them.
    """

    log = Logger()
    mode = ""
    # Few associations set these. An instance with more than 30 attributes of its own costs 1.5 KB more, because CPython then
    # no longer shares the keys of its dict with other instances.
    progress_elsewhere: Callable[[], float] | None = None
    _release: Release | None = None

    def __init__(self, ae: AEInterface, settings: Settings, handlers: evt.Handlers) -> None:
        self.ae = ae
        self.number = next(_numbers)
        self.settings = settings
        self.requestor = ServiceUser(mode="requestor")
        self.acceptor = ServiceUser(mode="acceptor")
        self.is_established = False
        self.was_established = False
        self.is_rejected = False
        self.is_aborted = False
        self.is_released = False
        self._handlers = evt.Handlers(parent=handlers)
        self._protocol: UpperLayerProtocol = self._make_protocol()
        self._contexts: dict[int, PresentationContext] = {}
        self._tuples: dict[int, PresentationContextTuple] = {}
        self._rejected: list[PresentationContext] = []
        #: How this side proposed the contexts, for the advice of errors.
        self.proposal = Proposal.AE
        self._exchange: Exchange | None = None
        self._end: Failure | None = None
        self._closed = False
        self._keeper: RecordKeeper | None = None
        self._waiting_for_end: list[Deferred[Association]] = []
        self.opened_at: float = ae.reactor.seconds()
        self.observes_messages = False
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
    def name(self) -> str:
        """A name for logs: the role of this side, and the title and address of the peer. No other open connection has it."""
        return f"{self.mode} with {self.remote.ae_title!r} at {self.remote.address}:{self.remote.port}"

    @property
    def protocol(self) -> UpperLayerProtocol:
        """The Twisted protocol under the association."""
        return self._protocol

    @property
    def exchange(self) -> Exchange:
        """
        The messages that it carries.

        :raises NotEstablished: it was never established.
        """
        if self._exchange is None:
            raise NotEstablished("the association is not established")
        return self._exchange

    @property
    def is_requestor(self) -> bool:
        """Whether this side requested it."""
        return self.mode == "requestor"

    @property
    def is_acceptor(self) -> bool:
        """Whether the peer requested it."""
        return self.mode == "acceptor"

    @property
    def accepted_contexts(self) -> list[PresentationContext]:
        """The accepted presentation contexts, in the order of their IDs."""
        return [self._contexts[context_id] for context_id in sorted(self._contexts)]

    @property
    def rejected_contexts(self) -> list[PresentationContext]:
        """The presentation contexts that were not accepted, each with its result (PS3.8 9.3.3.2)."""
        return list(self._rejected)

    @property
    def bytes_received(self) -> int:
        """The number of bytes that were received."""
        return self._protocol.bytes_received

    @property
    def bytes_sent(self) -> int:
        """The number of bytes that were given to the transport."""
        return self._protocol.bytes_sent

    @property
    def end_reason(self) -> BaseException | None:
        """The error that ended it, ``None`` if it was released or has not ended."""
        return None if self._end is None or self.is_released else self._end.value

    @property
    def progress(self) -> Progress | None:
        """Its operations so far; ``None`` if no handler is bound to ``EVT_RECORD``."""
        return None if self._keeper is None else self._keeper.progress(self.ae.reactor.seconds())

    # --- hooks

    def bind(self, event: evt.EventType, handler: evt.Handler, args: Sequence[Any] | None = None) -> None:
        """Bind *handler* to *event* for this association, see :meth:`dicomtwist.evt.Handlers.bind`."""
        self._handlers.bind(event, handler, args)
        self._trace()

    def unbind(self, event: evt.EventType, handler: evt.Handler) -> None:
        """Unbind *handler* from *event* if it was bound for this association."""
        self._handlers.unbind(event, handler)
        self._trace()

    def get_handlers(self, event: evt.EventType | None = None) -> list[evt.HandlerTuple]:
        """
        Return the handlers that events of this association reach, whether they are bound for it, its server or its AE.

        :param event: the event, ``None`` for all events.
        :returns: a list of (event, handler, arguments).
        """
        return self._handlers.reached(event)

    def get_events(self) -> list[evt.EventType]:
        """Return the events that reach a handler, in the order of their names."""
        return sorted({bound[0] for bound in self._handlers.reached()}, key=lambda event: event.name)

    def handlers_changed(self) -> None:
        """Take notice of handlers that the server or AE has bound or unbound."""
        self._trace()

    def _trace(self) -> None:
        """Have the upper layer report bytes and states, and begin a record, if handlers are bound for these."""
        self._protocol.tracing = any(
            self._handlers.wants(event) for event in (evt.EVT_DATA_RECV, evt.EVT_DATA_SENT, evt.EVT_FSM_TRANSITION)
        )
        if not self._handlers.wants(evt.EVT_RECORD):
            self._keeper = None
        else:
            lists = lists_operations(self._handlers.listeners(evt.EVT_RECORD))
            if self._keeper is None:
                self._keeper = RecordKeeper(self.ae.reactor.seconds(), lists=lists)
            else:
                self._keeper.lists = lists
        self.observes_messages = self._keeper is not None or any(
            self._handlers.wants(event) for event in (evt.EVT_PDU_RECV, evt.EVT_DIMSE_RECV, evt.EVT_DIMSE_SENT)
        )

    def notify(self, event: evt.EventType, **attributes: Any) -> None:
        """Call the handlers of a notification. Their exceptions are logged and not raised."""
        if self._keeper is not None:
            self._keeper.notified(event, attributes, self.ae.reactor.seconds())
        if not self._handlers.wants(event):
            return
        occurrence = evt.Event(event, self, **attributes)
        for handler, arguments in self._handlers.listeners(event):
            try:
                result = call_handler(handler, occurrence, arguments)
                if isinstance(result, Deferred):
                    result.addErrback(self._handler_failed, event)
            except (Exception, SystemExit, GeneratorExit):
                self._handler_failed(Failure(), event)

    def _handler_failed(self, reason: Failure, event: evt.EventType) -> None:
        self.log.failure("a handler of {event} raised", reason, event=event)

    def has_role(self, context_id: int, *, as_scu: bool) -> bool:
        """Whether this side is SCU, or SCP, in a presentation context."""
        context = self._contexts[context_id]
        return bool(context.as_scu if as_scu else context.as_scp)

    def has_proposed_scp(self, context_id: int) -> bool:
        """Whether this side is the requestor, and has proposed to be SCP in a presentation context."""
        return self.mode == "requestor" and bool(self._contexts[context_id].scp_role)

    def has_handler(self, event: evt.EventType) -> bool:
        """Whether a handler of an intervention is bound."""
        return self._handlers.get(event) is not None

    def handler(self, event: evt.EventType) -> tuple[evt.Handler, tuple[Any, ...]] | None:
        """Return the handler and arguments of an intervention, or ``None``."""
        return self._handlers.get(event)

    def note_study(self, uid: str) -> None:
        """
        Count a study in the line of the log about the end of the association.

        :param uid: the Study Instance UID of an instance that was stored, or of what was retrieved.
        """
        if self._exchange is not None:
            self._exchange.totals.note_study(uid)

    # --- ending it

    def release(self) -> Deferred[None]:
        """
        Release the association when all operations of this side are answered, and those of the peer (PS3.8 7.2): this side may
        send nothing after its A-RELEASE-RQ.

        A handler that calls this ends behind the release, and its operation is not answered. A handler of another operation is
        waited for until nothing has been sent or received for the ACSE timeout.

        :returns: a Deferred that fires with ``None`` when the connection is closed. It fails with an
            :class:`AssociationError` if the peer does not agree within the ACSE timeout, if it aborts, or if the connection
            is lost; with :class:`WouldDeadlock` if the operations wait for the caller.
        """
        if self._closed or not self.is_established:
            if self.is_released or (self._closed and self._end is None):
                return succeed(None)
            return fail(self._end or Failure(NotEstablished("the association is not established")))
        return self._releasing().request()

    def _releasing(self) -> Release:
        if self._release is None:
            self._release = Release(self, self._released)
        return self._release

    def abort(self, detail: str = "", *, within: float | None = None) -> None:
        """
        Abort the association (A-ABORT, PS3.8 7.3). Messages that wait to be sent are dropped, operations that wait for a
        response fail. A connection on which no association was requested yet is closed.

        :param detail: the reason in words, for the exceptions and the log of this side. It is not sent.
        :param within: the time for the peer to close the connection, in seconds; then this side closes it. By default the ACSE
            timeout. It holds for an association as well that has ended already and whose connection is not closed.
        """
        if self._closed:
            return
        if within is not None:
            self._protocol.cut_within(within)
        if self._end is not None:
            return
        self._over(Failure(AssociationAborted(0, 0, by_peer=False, detail=detail)))
        if self._protocol.connection.state in (State.STA1, State.STA2):
            self._protocol.close()  # no association was requested that could be aborted
            return
        self._protocol.abort()
        self.notify(evt.EVT_ACSE_SENT, primitive="A-ABORT request")
        self.notify(evt.EVT_PDU_SENT, pdu=AAbort(0, 0))

    def when_ended(self) -> Deferred[Association]:
        """Return a Deferred that fires with this association when its connection is closed."""
        waiting: Deferred[Association] = Deferred()
        if self._closed:
            waiting.callback(self)
        else:
            self._waiting_for_end.append(waiting)
        return waiting

    def join(self, *args: object) -> NoReturn:
        """:raises TypeError: always, since there is no thread; the message names ``when_ended()``."""
        raise TypeError("an association is not a thread, and the reactor must not block: await when_ended() instead")

    async def __aenter__(self) -> Association:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort(f"its block ended with {kind.__name__}")
            await self.when_ended()
        elif self.is_established:
            await self.release()

    def _timed_out(self, timer: str, seconds: float, what: str) -> None:
        if self._closed or self._end is not None:
            return
        self._over(Failure(AssociationTimeout(timer, seconds, what)))
        self._protocol.abort()
        self.notify(evt.EVT_PDU_SENT, pdu=AAbort(0, 0))
        # The peer has missed one deadline: its close is not waited for.
        self._protocol.close()

    def _over(self, reason: Failure) -> None:
        """End the exchange: fail everything that waits, once. The connection may still have to close."""
        if self._end is not None:
            return
        self._end = reason
        self.is_established = False
        self.is_aborted = not (self.is_rejected or self.is_released)
        if self._exchange is not None:
            self._exchange.fail(reason)

    # --- UpperLayerUser: events of the upper layer

    def transport_opened(self) -> None:
        """Note the addresses of a transport that is open."""
        self.local.address, self.local.port = address_of(self._protocol.transport.getHost())
        self.remote.address, self.remote.port = address_of(self._protocol.transport.getPeer())
        self.opened_at = self.ae.reactor.seconds()
        self.ae.association_opened(self)
        self.notify(evt.EVT_CONN_OPEN, address=(self.remote.address, self.remote.port))

    def transport_ready(self) -> None:
        """Do nothing at the end of the TLS handshake; a requestor sends its request."""

    def associate_indication(self, request: AAssociateRQ) -> None:
        """Fail: an acceptor overrides this."""
        raise AssertionError("a requestor received an A-ASSOCIATE indication")

    def associate_confirmation(self, answer: AAssociateAC | AAssociateRJ) -> None:
        """Fail: a requestor overrides this."""
        raise AssertionError("an acceptor received an A-ASSOCIATE confirmation")

    def established(
        self, answer: AAssociateAC, contexts: list[PresentationContext], invoked: int, performed: int
    ) -> None:
        """
        Begin the exchange of messages.

        :param answer: the A-ASSOCIATE-AC of the acceptor.
        :param contexts: all presentation contexts, each with its result.
        :param invoked: the number of operations that this side may have outstanding, 0 for no limit.
        :param performed: the number of operations that the peer may have outstanding, 0 for no limit.
        """
        if self._end is not None:
            return  # a handler aborted
        for context in contexts:
            if context.result == 0 and context.context_id is not None:
                self._contexts[context.context_id] = context
                self._tuples[context.context_id] = context.as_tuple
            else:
                self._rejected.append(context)
        cap = self.settings.maximum_operations
        self._exchange = Exchange(
            self, self._tuples, min(invoked or cap, cap), min(performed or cap, cap), partial(performance, self)
        )
        self.is_established = self.was_established = True
        self._protocol.last_received = self.ae.reactor.seconds()
        shortest = shortest_timeout(self.settings)
        if shortest is not None:
            self._protocol.watch(shortest)
        if self._rejected:
            self.log_refused_contexts()
        self.notify(evt.EVT_ACCEPTED, pdu=answer)
        self.notify(evt.EVT_ESTABLISHED)

    def fragment_received(self, fragment: Fragment) -> None:
        """Receive a fragment; one that violates the protocol aborts the association."""
        if self.observes_messages:
            self.notify(evt.EVT_PDU_RECV, pdu=fragment)
        if self._end is not None or self._exchange is None:
            return
        try:
            self._exchange.receive(fragment)
        except InvalidMessage as error:
            self._protocol.protocol_error(error.reason, str(error))
        except Exception:
            # For example a sink that raises. The peer receives an A-ABORT before the connection closes.
            self.log.failure("a fragment from {peer!r} could not be processed", peer=self.remote.ae_title)
            self.abort("a fragment could not be processed, see the log")

    def release_indication(self, collision: bool) -> None:
        """Answer a release request of the peer when its operations are performed."""
        self.notify(evt.EVT_PDU_RECV, pdu=AReleaseRQ())
        self.notify(evt.EVT_ACSE_RECV, primitive="A-RELEASE indication")
        if self._end is not None:
            return  # a handler aborted
        if self.exchange.mid_message:
            self._protocol.protocol_error(2, "A-RELEASE-RQ inside a message")
            return
        self._releasing().requested(collision)

    def _released(self) -> None:
        if self._end is not None:
            return
        self.is_released = True
        self._over(Failure(AssociationReleased("the association was released before the response arrived")))

    def release_confirmation(self) -> None:
        """Take the answer to the release request of this side."""
        self.notify(evt.EVT_PDU_RECV, pdu=AReleaseRP())
        self.notify(evt.EVT_ACSE_RECV, primitive="A-RELEASE confirmation")
        self._releasing().confirmed()

    def abort_indication(self, indication: AbortIndication) -> None:
        """End the association after an abort by the peer, or by this side for a protocol violation."""
        if not indication.lost:
            event = evt.EVT_PDU_RECV if indication.by_peer else evt.EVT_PDU_SENT
            self.notify(event, pdu=AAbort(indication.source, indication.reason))
        self.notify(evt.EVT_ACSE_RECV, primitive="A-ABORT indication")
        if self._end is None:
            error = AssociationAborted(
                indication.source, indication.reason, by_peer=indication.by_peer, detail=indication.detail
            )
            self._over(Failure(error))

    def transport_writable(self) -> None:
        """Continue to send: the transport takes more bytes."""
        if self._exchange is not None:
            self._exchange.writable()

    def exchange_advanced(self) -> None:
        """Continue a release that waits for an operation or a message that has ended."""
        if self._release is not None:
            self._release.proceed()

    def transport_closed(self, reason: Failure) -> None:
        """End the association after its connection: fire everything that still waits, once."""
        if self._closed:
            return
        self._closed = True
        if self._end is None:
            self._over(self._lost(reason))
        assert self._end is not None
        if self.is_released:
            self.notify(evt.EVT_RELEASED)
        elif self.is_aborted:
            self.notify(evt.EVT_ABORTED, reason=self._end.value)
        self.notify(evt.EVT_CONN_CLOSE)
        if self._keeper is not None:
            self.notify(evt.EVT_RECORD, record=self._keeper.finish(self, self.ae.reactor.seconds()))
        if self._release is not None:
            self._release.ended(None if self.is_released else self._end)
        count_ended(self, self.ae.figures, self.ae.reactor.seconds() - self.opened_at)
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
        """Notify handlers of bytes that were received or sent."""
        self.notify(evt.EVT_DATA_SENT if sent else evt.EVT_DATA_RECV, data=data)

    def state_traced(self, before: int, after: int) -> None:
        """Notify handlers of a transition of the state machine."""
        self.notify(evt.EVT_FSM_TRANSITION, current_state=State(before).name, next_state=State(after).name)

    # --- presentation contexts

    def check_established(self) -> None:
        """:raises NotEstablished: the association is not established; the cause is the error that ended it."""
        if not self.is_established:
            raise NotEstablished("the association is not established") from (self._end.value if self._end else None)

    def context_for(
        self, abstract_syntax: str, transfer_syntax: str | None = None, *, as_scu: bool = True
    ) -> PresentationContextTuple:
        """
        Return the accepted presentation context for a service.

        :param abstract_syntax: the SOP Class UID.
        :param transfer_syntax: the transfer syntax UID, ``None`` for any.
        :param as_scu: whether this side acts as SCU, otherwise as SCP.
        :raises NotEstablished: the association is not established.
        :raises NoPresentationContext: no accepted context fits.
        """
        self.check_established()
        for context_id, context in self._tuples.items():
            if context.abstract_syntax != abstract_syntax:
                continue
            if transfer_syntax is not None and context.transfer_syntax != transfer_syntax:
                continue
            if self.has_role(context_id, as_scu=as_scu):
                return context
        raise NoPresentationContext(self._why_no_context(abstract_syntax, transfer_syntax, as_scu))

    def _why_no_context(self, abstract_syntax: str, transfer_syntax: str | None, as_scu: bool) -> str:
        of_class = {
            context_id: one for context_id, one in self._tuples.items() if one.abstract_syntax == abstract_syntax
        }
        return explain_missing_context(
            abstract_syntax,
            transfer_syntax,
            role="SCU" if as_scu else "SCP",
            accepted=[one.transfer_syntax for one in of_class.values()],
            has_role=any(self.has_role(context_id, as_scu=as_scu) for context_id in of_class),
            rejected=self._rejected,
            is_requestor=self.is_requestor,
            proposal=self.proposal,
        )

    # --- time

    def check_time(self, now: float) -> float | None:
        """Abort if a timeout has expired at *now*, else return the time of the next check, in seconds of the clock."""
        if self._end is not None:
            return None
        shortest = shortest_timeout(self.settings)
        again = None if shortest is None else now + shortest
        if self._release is not None:
            self._release.check_time()
        dimse, exchange = self.settings.dimse_timeout, self._exchange
        if exchange is not None and dimse is not None:
            stalled = exchange.calls.stalled_since
            if stalled is not None and stalled + dimse <= now:
                exchange.calls.refuse_stalled(dimse)
            elif stalled is not None and again is not None:
                again = min(again, stalled + dimse)
        for timer, seconds, since, what in self._deadlines():
            if since + seconds <= now:
                if timer == "dimse" and exchange is not None and exchange.calls.refuse_stalled(seconds):
                    continue  # calls of a handler, perhaps, which may end now
                self._timed_out(timer, seconds, what)
                return None
            again = since + seconds if again is None else min(again, since + seconds)
        return again

    def _deadlines(self) -> list[Deadline]:
        asked_at = None if self._release is None else self._release.asked_at
        return deadlines(self.settings, self._protocol, self._exchange, asked_at, self.progress_elsewhere)
