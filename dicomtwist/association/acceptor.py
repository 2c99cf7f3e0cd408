"""
The acceptor's side of an association: the request is received, judged and answered (PS3.8 7.1).
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.association.answer_cache import AnswerCache
from dicomtwist.association.association import Association
from dicomtwist.association.negotiation import accept_window, check_length, check_request
from dicomtwist.association.timeouts import Deadline
from dicomtwist.errors import AssociationAborted, AssociationRejected
from dicomtwist.interfaces import AEInterface
from dicomtwist.presentation import SupportedContexts
from dicomtwist.runtime.call_handler import await_handler
from dicomtwist.runtime.networks import parse_networks
from dicomtwist.settings import Settings
from dicomtwist.tls.errors import describe_tls_error
from dicomtwist.transport.upper_layer import UpperLayerProtocol, address_of, proxy_of
from dicomtwist.ul.connection import AbortIndication
from dicomtwist.ul.items import (
    AsyncOperationsWindow,
    SOPClassCommonExtended,
    SOPClassExtended,
    UserIdentity,
    UserInformation,
)
from dicomtwist.ul.pdu import AAssociateAC, AAssociateRJ, AAssociateRQ

#: The types of user identity that are confirmed with an empty response, whatever the handler returns (PS3.7 D.3.3.7.2).
_WITHOUT_SERVER_RESPONSE = (1, 2)

#: The longest response to a user identity, in bytes: its item has its length in it, and one of its own.
_LONGEST_RESPONSE = 0xFFFF - 2

_T = TypeVar("_T")

#: The rejections of an acceptor besides those of :func:`~dicomtwist.association.negotiation.check_request`.
_TOO_MANY = AAssociateRJ(2, 3, 2)  # local limit exceeded
_NOT_NOW = AAssociateRJ(2, 3, 1)  # temporary congestion
_NO_REASON = AAssociateRJ(1, 1, 1)  # no reason given
_NOT_VERIFIED = AAssociateRJ(2, 2, 1)
_BAD_IDENTITY = AAssociateRJ(1, 2, 1)


#: The number of connections beyond a limit that stay open until their association request is rejected. More connections
#: are closed at once.
MAX_SURPLUS = 64

#: The number of file descriptors that stay free for files and for connections that only get a rejection; at most a quarter
#: of the descriptors that the process may have.
RESERVED_DESCRIPTORS = 128

#: The number of addresses whose association requests are counted in a minute.
MAX_COUNTED_ADDRESSES = 10_000


class Host:
    """
    An AE that answers under one AE title on a port.

    :ivar ae: the AE.
    :ivar settings: the settings of its associations.
    :ivar supported: the presentation contexts that it accepts.
    :ivar handlers: the handlers of its associations.
    :ivar answers: the answers to proposals of contexts.
    """

    __slots__ = ("ae", "answers", "handlers", "settings", "supported")

    def __init__(
        self, ae: AEInterface, settings: Settings, supported: SupportedContexts, handlers: evt.Handlers
    ) -> None:
        self.ae = ae
        self.settings = settings
        self.supported = supported
        self.handlers = handlers
        self.answers = AnswerCache(supported)


class AcceptorAssociation(Association):
    """
    An association that a peer requests.

    :ivar host: the AE that answers.
    :ivar counted_address: the address under which the server counts the connection.
    :ivar is_surplus: whether the connection is beyond a limit, and stays open only for a rejection.
    """

    mode = "acceptor"

    def __init__(self, factory: AcceptorFactory) -> None:
        self._factory = factory
        self.host = host = factory.hosts[0]
        self.counted_address = ""
        self.is_surplus = False
        super().__init__(host.ae, host.settings, host.handlers)
        self._asked_at: float | None = None
        self.acceptor.ae_title = host.settings.ae_title

    def transport_opened(self) -> None:
        """Have the server count the connection, and close it if there are too many."""
        super().transport_opened()
        if not self._factory.opened(self):
            self._over(Failure(AssociationAborted(0, 0, by_peer=False, detail="the server takes no more connections")))
            # The connection is closed without any wait, even in the middle of a TLS handshake.
            self._protocol.transport.abortConnection()

    def associate_indication(self, request: AAssociateRQ) -> None:
        """Accept or reject the request; handlers may take time for it."""
        self._learn(request)
        self._asked_at = self.ae.reactor.seconds()
        if self.settings.acse_timeout is not None:
            self._protocol.watch(self.settings.acse_timeout)
        self.notify(evt.EVT_PDU_RECV, pdu=request)
        self.notify(evt.EVT_ACSE_RECV, primitive="A-ASSOCIATE indication")
        proxy = self.requestor.proxy
        if proxy and not parse_networks(self.settings.trusted_proxies).has(proxy):
            # Handlers never see the address that it claims.
            self._reject(_NO_REASON, f"it came with a PROXY header from {proxy}, which is no trusted proxy")
            return
        self.notify(evt.EVT_REQUESTED, pdu=request)
        if self._end is not None:
            return  # a handler aborted or rejected
        settings = self.settings
        rejection = check_request(
            request,
            called=self._factory.titles if settings.require_called_aet else (),
            calling=settings.require_calling_aet,
        )
        if rejection is None and (self.is_surplus or self._factory.full(self.host)):
            rejection = _TOO_MANY
        if rejection is None and not self._factory.in_rate(self):
            rejection = _NOT_NOW
        if rejection is not None:
            self._reject(rejection)
            return
        Deferred.fromCoroutine(self._negotiate(request)).addErrback(self._negotiation_failed)

    def _learn(self, request: AAssociateRQ) -> None:
        """Take over the requestor's side of the request, and choose the host that it calls."""
        requestor = self.requestor
        # Behind a proxy, the transport learns the peer's address from the first bytes.
        requestor.address, requestor.port = address_of(self._protocol.transport.getPeer())
        requestor.proxy = proxy_of(self._protocol.transport)
        requestor.ae_title = request.calling_ae_title
        requestor.called_ae_title = request.called_ae_title
        requestor.learn(request.user_information)
        window = request.user_information.async_operations
        if window is not None:
            requestor.asynchronous_operations = (window.invoked, window.performed)
        self.host = host = self._factory.host_of(request.called_ae_title)
        host.ae.association_opened(self)
        if host.ae is not self.ae:
            self.ae.association_closed(self)
        self.ae, self.settings = host.ae, host.settings
        self._handlers.parent = host.handlers
        self._trace()
        self.acceptor.ae_title = host.settings.ae_title

    def _negotiation_failed(self, reason: Failure) -> None:
        self.log.failure("the negotiation with {peer!r} failed", reason, peer=self.requestor.ae_title)
        if self._end is None:
            self._reject(_NOT_NOW)

    async def _negotiate(self, request: AAssociateRQ) -> None:
        information = request.user_information
        identity_response: bytes | None = None
        if information.user_identity is not None:
            verified, identity_response = await self._verify(information.user_identity)
            if self._end is not None:
                return
            if not verified:
                known = 1 <= information.user_identity.identity_type <= 5
                self._reject(_NOT_VERIFIED if known else _BAD_IDENTITY)
                return
        window = await self._answer_window(information.async_operations)
        extended = await self._answer_extended()
        common = await self._answer_common()
        if self._end is not None:
            return
        if self._factory.full(self.host):
            self._reject(_TOO_MANY)  # others were accepted while the handlers decided
            return
        if information.roles:
            try:
                self.host.supported.check()
            except ValueError as error:  # a role was set on a context since the server started
                self.log.error("a proposal of roles is not answered: {error}", error=error)
        answers = self.host.answers.answer(
            request.presentation_contexts, information.roles, self.settings, self.host.ae.sendable_syntaxes
        )
        settings = self.settings
        own = UserInformation(
            maximum_length=settings.maximum_pdu_size,
            implementation_class_uid=settings.implementation_class_uid,
            implementation_version_name=settings.implementation_version_name,
            async_operations=window,
            roles=tuple(answers.roles),
            sop_class_extended=extended,
            user_identity_response=identity_response,
        )
        self.acceptor.learn(own)
        self.acceptor.sop_class_common_extended = common
        self.acceptor.presentation_contexts = answers.contexts
        if window is not None:
            self.acceptor.asynchronous_operations = (window.performed, window.invoked)
        self._asked_at = None
        answer = AAssociateAC(request.called_ae_title, request.calling_ae_title, answers.items(), own)
        self._protocol.accept(answer)
        self.notify(evt.EVT_PDU_SENT, pdu=answer)
        self.notify(evt.EVT_ACSE_SENT, primitive="A-ASSOCIATE response")
        # The window is given from the requestor's side: the operations that it invokes are those that this side performs.
        invoked, performed = (window.performed, window.invoked) if window is not None else (1, 1)
        self.log_deviation(request.tolerated)
        self.established(answer, answers.contexts, invoked, performed)

    async def _verify(self, identity: UserIdentity) -> tuple[bool, bytes | None]:
        """Return whether the user is accepted, and the response to send if the requestor wants one."""
        if not 1 <= identity.identity_type <= 5:
            return False, None
        bound = self.handler(evt.EVT_USER_ID)
        if bound is None:
            return True, None
        try:
            event = evt.Event(
                evt.EVT_USER_ID,
                self,
                user_id_type=identity.identity_type,
                primary_field=identity.primary,
                secondary_field=identity.secondary,
                response_requested=identity.response_requested,
            )
            verified, response = await await_handler(bound[0], event, bound[1])
            if response is not None and not isinstance(response, bytes):
                raise TypeError(f"a response to a user identity must be bytes or None, not {type(response).__name__}")
            if response is not None and len(response) > _LONGEST_RESPONSE:
                raise ValueError(f"a response to a user identity of {len(response)} bytes is too long")
        except Exception:
            self.log.failure("the handler of {event!r} raised: the user is not accepted", event=evt.EVT_USER_ID)
            return False, None
        if not identity.response_requested or not verified:
            return bool(verified), None
        return True, b"" if identity.identity_type in _WITHOUT_SERVER_RESPONSE else response

    async def _ask(self, event: evt.EventType, understand: Callable[[Any], _T], **attributes: Any) -> _T | None:
        """
        Return the result of the handler of a negotiation event, converted by *understand*.

        :returns: ``None`` if no handler is bound, or its result is ``None`` or not valid.
        """
        bound = self.handler(event)
        if bound is None:
            return None
        try:
            answer = await await_handler(bound[0], evt.Event(event, self, **attributes), bound[1])
            return None if answer is None else understand(answer)
        except Exception:
            self.log.failure("the handler of {event!r} failed: the item is not answered", event=event)
            return None

    async def _answer_window(self, proposed: AsyncOperationsWindow | None) -> AsyncOperationsWindow | None:
        if proposed is None:
            return None

        def understand(answer: Any) -> AsyncOperationsWindow:
            invoked, performed = answer
            if invoked < 0 or performed < 0:
                raise ValueError(f"the window {answer} has a negative number; 0 stands for no limit")
            return accept_window(proposed, (int(invoked), int(performed)), self.settings.maximum_operations)

        return await self._ask(
            evt.EVT_ASYNC_OPS, understand, nr_invoked=proposed.invoked, nr_performed=proposed.performed
        )

    async def _answer_extended(self) -> tuple[SOPClassExtended, ...]:
        proposed = self.requestor.sop_class_extended
        if not proposed:
            return ()

        def understand(answer: Mapping[str, bytes]) -> tuple[SOPClassExtended, ...]:
            items = [SOPClassExtended(str(uid), bytes(info)) for uid, info in answer.items() if uid in proposed]
            for item in items:
                check_length(item, 2 + len(item.sop_class_uid) + len(item.information))
            return tuple(items)

        return await self._ask(evt.EVT_SOP_EXTENDED, understand, app_info=dict(proposed)) or ()

    async def _answer_common(self) -> dict[str, SOPClassCommonExtended]:
        """Return the accepted items. They have no response (PS3.7 D.3.3.6): only the acceptor knows them."""
        proposed = self.requestor.sop_class_common_extended
        if not proposed:
            return {}

        def understand(answer: Mapping[str, object]) -> dict[str, SOPClassCommonExtended]:
            return {uid: item for uid, item in proposed.items() if uid in answer}

        return await self._ask(evt.EVT_SOP_COMMON, understand, items=dict(proposed)) or {}

    def reject(self, result: int, source: int, reason: int, why: str = "") -> None:
        """
        Reject the requested association: for handlers of ``EVT_REQUESTED``. A request that is answered stays as it is.

        :param result: 1 for permanent, 2 for transient; *source* and *reason* as in PS3.8 9.3.4.
        :param why: the reason in words, for the log.
        :raises ValueError: one of the three numbers does not fit in a byte.
        """
        if not all(0 <= value <= 255 for value in (result, source, reason)):
            raise ValueError(f"result, source and reason are a byte each, not {(result, source, reason)}")
        if self._end is None and self._asked_at is not None:
            self._reject(AAssociateRJ(result, source, reason), why)

    def _reject(self, answer: AAssociateRJ, why: str = "") -> None:
        reason = AssociationRejected(answer.result, answer.source, answer.reason)
        self.log.info(
            "{peer!r} at {address} requested {called!r}: {reason}{why}",
            peer=self.requestor.ae_title,
            address=self.requestor.address,
            called=self.requestor.called_ae_title,
            reason=reason,
            why=f": {why}" if why else "",
        )
        self._asked_at = None
        self.is_rejected = True
        self._over(Failure(reason))
        self._protocol.reject(answer)
        self.notify(evt.EVT_PDU_SENT, pdu=answer)
        self.notify(evt.EVT_REJECTED, pdu=answer, why=why)

    def abort_indication(self, indication: AbortIndication) -> None:
        """Log a connection that never became an association; nothing else logs it."""
        if self._end is None and not self.is_established:
            self.log.info(
                "{address}: no association: {detail}",
                address=self.requestor.address,
                detail=indication.detail or "aborted by the peer",
            )
        super().abort_indication(indication)

    def transport_closed(self, reason: Failure) -> None:
        """Remove the connection from the server's counts, and log a TLS handshake that failed."""
        if self._protocol.secure and self._end is None and not self.was_established:
            words = describe_tls_error(reason, handshaking=self._protocol.handshaking)
            if words is not None:
                self.log.info("{address}: no association: {detail}", address=self.requestor.address, detail=words)
        super().transport_closed(reason)
        self._factory.closed(self)

    def _deadlines(self) -> list[Deadline]:
        if self._asked_at is None or self.settings.acse_timeout is None:
            return super()._deadlines()
        return [
            Deadline("acse", self.settings.acse_timeout, self._asked_at, "the handlers did not decide on the request")
        ]


def _few_descriptors(transport: Any) -> bool:
    """
    Whether *transport* has one of the last file descriptors of the process.

    A new descriptor is always the lowest free one, so its number shows how many descriptors are in use for all purposes.
    """
    fileno = getattr(transport, "fileno", None)
    if fileno is None:
        return False
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit != resource.RLIM_INFINITY and bool(fileno() >= limit - min(RESERVED_DESCRIPTORS, limit // 4))


class AcceptorFactory(Factory):
    """
    Builds the protocols of a server: ``endpoint.listen(ae.acceptor_factory(...))``.

    :param hosts: the AEs that answer, each to its own title; the first also answers to titles that no AE has.
    :param ended: called with each association when its connection is closed.

    :ivar associations: the associations whose connection is open, established or not.
    :ivar performed: the number of operations that closed associations performed, by service.
    """

    noisy = False
    log = Logger()

    def __init__(self, hosts: Iterable[Host], ended: Callable[[Association], None] | None = None) -> None:
        self.hosts = list(hosts)
        self.associations: set[AcceptorAssociation] = set()
        self.performed: Counter[str] = Counter()
        self._by_title = {host.settings.ae_title: host for host in reversed(self.hosts)}
        self._ended = ended
        self._connections: Counter[str] = Counter()  # by address
        self._surplus = 0
        self._refused = 0  # connections closed at once, since connections were last below the limits
        self._few_descriptors = False  # whether descriptors ran out since then
        self._is_closed = False
        self._requests: Counter[str] = Counter()  # by address, in the current minute
        self._minute = 0

    @property
    def titles(self) -> frozenset[str]:
        """The AE titles of all hosts."""
        return frozenset(self._by_title)

    def host_of(self, called_ae_title: str) -> Host:
        """Return the AE that answers to *called_ae_title*."""
        return self._by_title.get(called_ae_title, self.hosts[0])

    def full(self, host: Host) -> bool:
        """Whether *host* has reached its ``maximum_associations``."""
        established = sum(one.is_established and one.host is host for one in self.associations)
        return established >= host.settings.maximum_associations

    def in_rate(self, association: AcceptorAssociation) -> bool:
        """Count a request, and return whether its address is within ``maximum_association_rate`` in the current minute."""
        minute = int(association.ae.reactor.seconds() // 60)
        if minute != self._minute or len(self._requests) >= MAX_COUNTED_ADDRESSES:
            self._requests.clear()
            self._minute = minute
        address = association.requestor.address
        self._requests[address] += 1
        rate = association.settings.maximum_association_rate
        return rate is None or self._requests[address] <= rate

    def buildProtocol(self, addr: IAddress | None) -> UpperLayerProtocol:
        """Return the protocol of a new association."""
        return AcceptorAssociation(self).protocol

    def close(self) -> None:
        """Close further connections at once. One may be accepted already, and wait for its PROXY header."""
        self._is_closed = True

    def opened(self, association: AcceptorAssociation) -> bool:
        """Count a new connection. Return whether it stays open, if only for a rejection."""
        settings, address = self.hosts[0].settings, association.requestor.address
        association.counted_address = address  # a proxy may report another one later
        few_descriptors = _few_descriptors(association.protocol.transport)
        association.is_surplus = (
            few_descriptors
            or len(self.associations) - self._surplus >= settings.maximum_connections
            or self._connections[address] >= settings.maximum_connections_per_peer
        )
        if few_descriptors and not self._few_descriptors:
            self._few_descriptors = True
            self.log.warn(
                "{address}: file descriptors run out with {count} connections: new associations are rejected",
                address=address,
                count=len(self.associations),
            )
        self.associations.add(association)
        self._connections[address] += 1
        self._surplus += association.is_surplus
        if self._is_closed:
            return False
        if self._surplus <= MAX_SURPLUS:
            return True
        self._refused += 1
        if self._refused == 1:
            self.log.warn(
                "{address}: closed at once: {own} of {count} connections are from there; further ones are closed as well",
                address=address,
                count=len(self.associations),
                own=self._connections[address],
            )
        return False

    def closed(self, association: AcceptorAssociation) -> None:
        """Remove a connection from the counts."""
        if association not in self.associations:
            return
        self.associations.discard(association)
        if association.was_established:
            self.performed.update(association.exchange.counts)
        address = association.counted_address
        self._connections[address] -= 1
        if not self._connections[address]:
            del self._connections[address]
        self._surplus -= association.is_surplus
        if self._refused and not self._surplus:
            self.log.info(
                "{count} connections were closed at once; connections are accepted again", count=self._refused
            )
            self._refused = 0
        if self._few_descriptors and not self._surplus:
            self._few_descriptors = False
            self.log.info("file descriptors are free again, with {count} connections", count=len(self.associations))
        if self._ended is not None:
            self._ended(association)
