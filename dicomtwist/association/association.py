"""
Association: what users hold. Its life from establishment to its end is here.

How it comes about is in :mod:`dicomtwist.association.requestor` and :mod:`dicomtwist.association.acceptor`, the messages
that it carries are in :mod:`dicomtwist.exchange.exchange`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.association.record import RecordKeeper
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
from dicomtwist.sop_class import SOPClass
from dicomtwist.tls.errors import describe_tls_error
from dicomtwist.transport.upper_layer import UpperLayerProtocol, address_of
from dicomtwist.ul.connection import AbortIndication
from dicomtwist.ul.framing import Fragment
from dicomtwist.ul.pdu import AAbort, AAssociateAC, AAssociateRJ, AAssociateRQ, AReleaseRP, AReleaseRQ
from dicomtwist.ul.state_machine import State


class Association(NormalisedUser):
    """
    An association with a peer. What the peer is asked for is in :class:`~dicomtwist.scu.ServiceClassUser` and
    :class:`~dicomtwist.scu.NormalisedUser`.

    :ivar ae: the AE that it belongs to.
    :ivar mode: ``"requestor"`` or ``"acceptor"``: which side we are.
    :ivar requestor: what the requestor told of itself.
    :ivar acceptor: what the acceptor told of itself.
    :ivar is_established: whether it can be used now.
    :ivar is_rejected: whether the acceptor rejected it.
    :ivar is_aborted: whether it ended with an abort, by either side, or the connection was lost.
    :ivar is_released: whether it was released.
    :ivar was_established: whether it ever could.
    :ivar observes_messages: whether anybody wants to know of each message and fragment, which is asked for each.
    """

    log = Logger()
    mode = ""

    def __init__(self, ae: AEInterface, settings: Settings, handlers: evt.Handlers) -> None:
        self.ae = ae
        self.settings = settings
        self.requestor = ServiceUser()
        self.acceptor = ServiceUser()
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
        self._exchange: Exchange | None = None
        self._end: Failure | None = None
        self._closed = False
        self._keeper: RecordKeeper | None = None
        self._release_asked_at: float | None = None
        self._release_to_answer = False
        self._tolerated: tuple[str, ...] = ()
        self._waiting_for_release: list[Deferred[None]] = []
        self._waiting_for_end: list[Deferred[Association]] = []
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
    def protocol(self) -> UpperLayerProtocol:
        """The Twisted protocol that carries it."""
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
    def end_reason(self) -> BaseException | None:
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

    def get_handlers(self, event: evt.EventType | None = None) -> list[evt.HandlerTuple]:
        """Return what is bound for this association alone, to *event* or to any, as (event, handler, arguments)."""
        return self._handlers.bound(event)

    def handlers_changed(self) -> None:
        """Handlers of the server or AE were bound or unbound."""
        self._trace()

    def _trace(self) -> None:
        """Tell the upper layer whether anybody wants to know of every byte and state; keep a record where one is wanted."""
        self._protocol.tracing = any(
            self._handlers.wants(event) for event in (evt.EVT_DATA_RECV, evt.EVT_DATA_SENT, evt.EVT_FSM_TRANSITION)
        )
        if not self._handlers.wants(evt.EVT_RECORD):
            self._keeper = None
        elif self._keeper is None:
            self._keeper = RecordKeeper(self.ae.reactor.seconds())
        self.observes_messages = self._keeper is not None or any(
            self._handlers.wants(event) for event in (evt.EVT_PDU_RECV, evt.EVT_DIMSE_RECV, evt.EVT_DIMSE_SENT)
        )

    def notify(self, event: evt.EventType, **attributes: Any) -> None:
        """Call the handlers of a notification; what they raise is logged and goes no further."""
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
            except Exception:
                self._handler_failed(Failure(), event)

    def _handler_failed(self, reason: Failure, event: evt.EventType) -> None:
        self.log.failure("a handler of {event} raised", reason, event=event)

    def has_role(self, context_id: int, *, as_scu: bool) -> bool:
        """Whether this side is SCU, or SCP, in a presentation context."""
        context = self._contexts[context_id]
        return bool(context.as_scu if as_scu else context.as_scp)

    def has_handler(self, event: evt.EventType) -> bool:
        """Whether a handler of an intervention is bound."""
        return self._handlers.get(event) is not None

    def handler(self, event: evt.EventType) -> tuple[evt.Handler, tuple[Any, ...]] | None:
        """Return the handler and arguments of an intervention, or ``None``."""
        return self._handlers.get(event)

    def log_deviation(self, what: Sequence[str]) -> None:
        """
        Log what the peer does in another way than the standard has it, each thing once.

        :param what: in words, of which none are the peer's.
        """
        news = tuple(words for words in what if words not in self._tolerated)
        if news:
            self._tolerated += news
            self.log.info(
                "{peer!r} at {address}: tolerated, though the standard has it otherwise: {what}",
                peer=self.remote.ae_title,
                address=self.remote.address,
                what="; ".join(news),
            )

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
        if self._release_asked_at is not None or self.exchange.asking:
            return
        if not self.is_established or self._protocol.connection.state is not State.STA6:
            return  # the peer asks for it as well; its request is answered
        self._release_asked_at = self.ae.reactor.seconds()
        self._protocol.release()
        self.notify(evt.EVT_ACSE_SENT, primitive="A-RELEASE request")
        self.notify(evt.EVT_PDU_SENT, pdu=AReleaseRQ())
        if self.settings.acse_timeout is not None:
            self._protocol.watch(self.settings.acse_timeout)

    def abort(self, detail: str = "") -> None:
        """
        Abort the association (A-ABORT, PS3.8 7.3). What waits to be sent is dropped, what waits for an answer fails.
        A connection on which none was asked for yet is closed.

        :param detail: why, in words; for the exceptions and the log of this side, the peer is not told.
        """
        if self._closed or self._end is not None:
            return
        self._over(Failure(AssociationAborted(0, 0, by_peer=False, detail=detail)))
        if self._protocol.connection.state in (State.STA1, State.STA2):
            self._protocol.close()  # nothing was asked for that could be aborted
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
        """:raises TypeError: there is no thread; the message says what to wait for instead."""
        raise TypeError("an association is no thread, and nothing may wait on a reactor: await when_ended()")

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
        self._protocol.abort()
        self.notify(evt.EVT_PDU_SENT, pdu=AAbort(0, 0))
        # Whoever did not keep the time is not waited for again, to close.
        self._protocol.close()

    def _over(self, reason: Failure) -> None:
        """Nothing more is sent or answered: fail what waits, each once. The connection may still have to close."""
        if self._end is not None:
            return
        self._end = reason
        self.is_established = False
        self.is_aborted = not (self.is_rejected or self.is_released)
        if self._exchange is not None:
            self._exchange.fail(reason)

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

    def established(
        self, answer: AAssociateAC, contexts: list[PresentationContext], invoked: int, performed: int
    ) -> None:
        """
        Begin to exchange messages.

        :param answer: what the acceptor answered.
        :param contexts: all of the presentation contexts, each with its result.
        :param invoked: how many operations this side may have outstanding, 0 for any number.
        :param performed: how many the peer may have, 0 for any number.
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
        self.notify(evt.EVT_ACCEPTED, pdu=answer)
        self.notify(evt.EVT_ESTABLISHED)

    def fragment_received(self, fragment: Fragment) -> None:
        """Take a fragment; what breaks the rules aborts."""
        if self.observes_messages:
            self.notify(evt.EVT_PDU_RECV, pdu=fragment)
        if self._end is not None or self._exchange is None:
            return
        try:
            self._exchange.receive(fragment)
        except InvalidMessage as error:
            self._protocol.protocol_error(error.reason, str(error))
        except Exception:
            # Such as a sink that raises. The peer gets an A-ABORT, and not just a connection that goes away.
            self.log.failure("what came from {peer!r} could not be taken", peer=self.remote.ae_title)
            self.abort("what the peer sent could not be taken, the log says why")

    def release_indication(self, collision: bool) -> None:
        """The peer asks for the release: it is answered when what it asked for before is done."""
        self.notify(evt.EVT_PDU_RECV, pdu=AReleaseRQ())
        self.notify(evt.EVT_ACSE_RECV, primitive="A-RELEASE indication")
        if self._end is not None:
            return  # a handler aborted
        if self.exchange.mid_message:
            self._protocol.protocol_error(2, "A-RELEASE-RQ inside a message")
            return
        self._release_to_answer = True
        if self.mode == "acceptor" and collision:
            return  # Sta10: our own request is answered first (PS3.8 Table 9-10, AR-10)
        self._answer_release()

    def _answer_release(self) -> None:
        if not self._release_to_answer or self.exchange.answering:
            return
        if self._protocol.connection.state not in (State.STA8, State.STA9, State.STA12):
            return
        self._release_to_answer = False
        waits_for_confirmation = self._protocol.connection.state is State.STA9
        self._protocol.respond_release()
        self.notify(evt.EVT_ACSE_SENT, primitive="A-RELEASE response")
        self.notify(evt.EVT_PDU_SENT, pdu=AReleaseRP())
        if not waits_for_confirmation:
            self._released()

    def _released(self) -> None:
        if self._end is not None:
            return
        self.is_released = True
        self._over(Failure(AssociationReleased("the association was released before the answer came")))

    def release_confirmation(self) -> None:
        """The peer agrees."""
        self.notify(evt.EVT_PDU_RECV, pdu=AReleaseRP())
        self.notify(evt.EVT_ACSE_RECV, primitive="A-RELEASE confirmation")
        self._release_asked_at = None
        if self._protocol.connection.state is State.STA12:
            self._answer_release()
        else:
            self._released()

    def abort_indication(self, indication: AbortIndication) -> None:
        """The peer aborted, or we did for what it sent."""
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
        """The transport takes more."""
        if self._exchange is not None:
            self._exchange.writable()

    def exchange_advanced(self) -> None:
        """An operation was answered, or a message is out: what waits for that may go on."""
        if self._waiting_for_release:
            self._release_when_idle()
        if self._release_to_answer:
            self._answer_release()

    def transport_closed(self, reason: Failure) -> None:
        """The connection is gone: whatever still waits is told, once."""
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

    # --- presentation contexts

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
            if self.has_role(context_id, as_scu=as_scu):
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

    def check_time(self, now: float) -> float | None:
        """Abort if something has run out by *now*; return when to look again."""
        if self._end is not None:
            return None
        shortest = shortest_timeout(self.settings)
        again = None if shortest is None else now + shortest
        for timer, seconds, since, what in self._deadlines():
            if since + seconds <= now:
                self._timed_out(timer, seconds, what)
                return None
            again = since + seconds if again is None else min(again, since + seconds)
        return again

    def _deadlines(self) -> list[Deadline]:
        return deadlines(self.settings, self._protocol, self._exchange, self._release_asked_at)
