"""
AE: an Application Entity, as requestor and as acceptor of associations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeAlias, TypeVar, cast, overload

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    TCP6ClientEndpoint,
    TCP6ServerEndpoint,
)
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint

from dicomtwist import evt
from dicomtwist.ae.legacy_callbacks import LegacyCallbacks
from dicomtwist.ae.server import CLOSE_SECONDS, Server, log_ended
from dicomtwist.association.acceptor import AcceptorFactory, Host
from dicomtwist.association.association import Association
from dicomtwist.association.explanations import Proposal
from dicomtwist.association.negotiation import merge_items
from dicomtwist.association.requestor import RequestorAssociation, RequestorFactory
from dicomtwist.endpoints import check_port, client_endpoint, server_endpoint
from dicomtwist.errors import AssociationTimeout, ReactorConflict
from dicomtwist.eventloop.default import default_reactor
from dicomtwist.presentation import (
    PresentationContext,
    RequestedContexts,
    SupportedContexts,
    TransferSyntaxes,
)
from dicomtwist.runtime.budget import Budget
from dicomtwist.runtime.clock import use_monotonic_clock
from dicomtwist.runtime.executors import Executors
from dicomtwist.runtime.figures.network import NetworkFigures
from dicomtwist.runtime.unawaited import Call, expect_reactor, reactor_ran
from dicomtwist.settings import Settings
from dicomtwist.sop_class import UIDLike
from dicomtwist.tls.contexts import client_tls, server_tls
from dicomtwist.tls.transport import wrap_client_tls, wrap_server_tls
from dicomtwist.trace import EVERYWHERE
from dicomtwist.ul.ae_title import check_ae_title

if TYPE_CHECKING:
    from dicomtwist.datasets.outgoing_instance import Transcoder
    from dicomtwist.transport.upper_layer import UpperLayerProtocol

#: (host, port), for IPv6 also (host, port, flowinfo, scope_id).
BindAddress = tuple[str, int] | tuple[str, int, int, int]


_Get = TypeVar("_Get")
_Put = TypeVar("_Put")


class _Setting(Generic[_Get, _Put]):
    """
    An attribute of an AE that reads and assigns the setting of the same name.

    The type parameters are what reading gives and what may be assigned: :class:`Settings` checks and converts the value.

    :param unit: the unit of its value.
    """

    def __init__(self, unit: str = "") -> None:
        self._unit = unit

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        self.__doc__ = f"See :attr:`Settings.{name}`{', in ' if self._unit else ''}{self._unit}."

    @overload
    def __get__(self, ae: None, owner: type) -> _Setting[_Get, _Put]: ...
    @overload
    def __get__(self, ae: AE, owner: type) -> _Get: ...
    def __get__(self, ae: AE | None, owner: type) -> Any:
        return self if ae is None else getattr(ae.settings, self._name)

    def __set__(self, ae: AE, value: _Put) -> None:
        setattr(ae.settings, self._name, value)


_Seconds: TypeAlias = _Setting[float | None, float | None]
_Number: TypeAlias = _Setting[int, int]


class AE(LegacyCallbacks):
    """
    An Application Entity (PS3.8 7): its title, what it requests and supports, its limits.

    :param ae_title: its AE title, 1 to 16 characters.
    :param port: the port that :meth:`start` listens at; :meth:`start_server` takes its own.
    :param reactor: the reactor to use; Twisted's own by default. Its timers follow the monotonic clock from then on, see
        :func:`~dicomtwist.runtime.clock.use_monotonic_clock`.
    :raises ValueError: the title is not a valid AE title.

    :ivar settings: all of its settings; the attributes below read and assign them.
    :ivar sendable_syntaxes: returns for a SOP Class the transfer syntaxes of the instances that this AE can send, the most
        frequent first; ``None`` if it is not known. Negotiation prefers them for a requestor that is to receive by C-GET,
        so that instances are sent as they are stored.
    :ivar transcoder: converts images that a peer does not take in their transfer syntax, if one of the two is compressed: a
        :class:`~dicomtwist.pixels.pool.Pixels`, or ``None``.
    :ivar figures: its figures of the network since it was made: operations, associations, bytes.
    """

    def __init__(self, ae_title: str | bytes = "DICOMTWIST", port: int = 0, *, reactor: Any = None) -> None:
        self.settings = Settings(ae_title=cast("str", ae_title))
        self.sendable_syntaxes: Callable[[str], Sequence[str]] | None = None
        self.transcoder: Transcoder | None = None
        self._reactor = reactor
        if reactor is not None:
            use_monotonic_clock(reactor)
        self._requested = RequestedContexts()
        self._supported = SupportedContexts()
        self._handlers = evt.Handlers(parent=EVERYWHERE)
        self._associations: set[Association] = set()
        self._servers: list[Server] = []
        self._executors: Executors | None = None
        self._request_memory = Budget()
        self.figures = NetworkFigures()
        super().__init__(port)

    @property
    def reactor(self) -> Any:
        """The reactor that it uses."""
        if self._reactor is None:
            self.use_reactor(default_reactor())
        return self._reactor

    def use_reactor(self, reactor: Any) -> None:
        """
        Use *reactor*, if no other one was named or used before.

        :raises ReactorConflict: this AE uses another reactor.
        """
        if self._reactor is None:
            use_monotonic_clock(reactor)
            self._reactor = reactor
        elif self._reactor is not reactor:
            raise ReactorConflict(
                f"the AE {self.ae_title} uses another reactor: make an AE for each reactor, and one in each process"
            )

    @property
    def executors(self) -> Executors:
        """The executors for blocking work, one for each purpose. Their threads live while the AE has connections."""
        if self._executors is None:
            self._executors = Executors(self.reactor)
        return self._executors

    @property
    def request_memory(self) -> Budget:
        """The memory that the data sets of requests take which it performs, those of C-STORE excepted."""
        return self._request_memory

    # --- settings

    ae_title = _Setting[str, str | bytes]()
    acse_timeout = _Seconds("seconds")
    dimse_timeout = _Seconds("seconds")
    network_timeout = _Seconds("seconds")
    write_timeout = _Seconds("seconds")
    pdu_timeout = _Seconds("seconds")
    connection_timeout = _Seconds("seconds")
    maximum_associations = _Number()
    maximum_connections = _Number()
    maximum_connections_per_peer = _Number()
    maximum_association_rate = _Setting[int | None, int | None]()
    maximum_pdu_size = _Number("bytes")
    maximum_operations = _Number()
    move_associations = _Number()
    maximum_object_size = _Number("bytes")
    maximum_buffered_size = _Number("bytes")
    maximum_refusals_logged = _Number()
    trusted_proxies = _Setting[list[str], "str | list[str]"]()
    maximum_identifier_size = _Number("bytes")
    maximum_identifier_elements = _Number()
    maximum_identifier_values = _Number()
    maximum_attributes = _Number()
    maximum_attribute_values = _Number()
    maximum_request_memory = _Number("bytes")
    promiscuous = _Setting[bool, bool]()
    keep_compression = _Setting[bool, bool]()
    requestor_order = _Setting[bool, bool]()
    maximum_waiting = _Number()
    implementation_class_uid = _Setting[str, str]()
    implementation_version_name = _Setting[str | None, str | bytes | None]()

    @property
    def require_called_aet(self) -> bool:
        """
        Whether to reject requests that call another AE title.

        As in pynetdicom 1, the AE's own title may be assigned instead of ``True``, and an empty title instead of ``False``.
        """
        return self.settings.require_called_aet

    @require_called_aet.setter
    def require_called_aet(self, value: bool | str | bytes) -> None:
        if isinstance(value, str | bytes):
            if value.strip() and check_ae_title(value) != self.ae_title:
                raise ValueError(
                    f"require_called_aet = {value!r} would reject every request for {self.ae_title!r}: set ae_title to the"
                    " title that is called, and require_called_aet = True"
                )
            value = bool(value.strip())
        self.settings.require_called_aet = value

    @property
    def require_calling_aet(self) -> list[str]:
        """The Calling AE Titles that are accepted; empty for any. One title may be assigned in place of a list."""
        return list(self.settings.require_calling_aet)

    @require_calling_aet.setter
    def require_calling_aet(self, titles: Iterable[str | bytes] | str | bytes) -> None:
        self.settings.require_calling_aet = cast("list[str]", titles)

    # --- contexts

    @property
    def requested_contexts(self) -> list[PresentationContext]:
        """The presentation contexts to propose, in the order they were added; may be assigned."""
        return self._requested.as_list()

    @requested_contexts.setter
    def requested_contexts(self, contexts: Iterable[PresentationContext]) -> None:
        self._requested.replace(contexts)

    def add_requested_context(self, abstract_syntax: UIDLike, transfer_syntax: TransferSyntaxes | None = None) -> None:
        """
        Propose one more presentation context.

        :param abstract_syntax: the SOP Class.
        :param transfer_syntax: one or a list; the four uncompressed ones by default.
        :raises ValueError: there are 128 contexts already, or a UID is not valid.
        """
        self._requested.add(abstract_syntax, transfer_syntax)

    def remove_requested_context(
        self, abstract_syntax: UIDLike, transfer_syntax: TransferSyntaxes | None = None
    ) -> None:
        """Remove a presentation context, or some of its transfer syntaxes, from the proposal."""
        self._requested.remove(abstract_syntax, transfer_syntax)

    @property
    def supported_contexts(self) -> list[PresentationContext]:
        """The presentation contexts that are accepted, ordered by abstract syntax; may be assigned."""
        return self._supported.as_list()

    @supported_contexts.setter
    def supported_contexts(self, contexts: Iterable[PresentationContext]) -> None:
        self._supported.replace(contexts)

    def add_supported_context(
        self,
        abstract_syntax: UIDLike,
        transfer_syntax: TransferSyntaxes | None = None,
        scu_role: bool | None = None,
        scp_role: bool | None = None,
    ) -> None:
        """
        Accept one more abstract syntax, or more transfer syntaxes of it.

        :param scu_role: whether a requestor that proposes to be SCU may be; ``None`` for both roles: a proposal of roles is
            not answered and the default roles hold (PS3.7 D.3.3.4).
        :param scp_role: whether a requestor that proposes to be SCP may be.
        :raises ValueError: one role is given without the other, or a UID is not one.
        """
        self._supported.add(abstract_syntax, transfer_syntax, scu_role, scp_role)

    def remove_supported_context(
        self, abstract_syntax: UIDLike, transfer_syntax: TransferSyntaxes | None = None
    ) -> None:
        """Remove an abstract syntax, or some of its transfer syntaxes, from the supported contexts."""
        self._supported.remove(abstract_syntax, transfer_syntax)

    # --- hooks

    def bind(self, event: evt.EventType, handler: evt.Handler, args: Sequence[Any] | None = None) -> None:
        """Bind *handler* to *event* for every association of this AE, see :meth:`dicomtwist.evt.Handlers.bind`."""
        self._handlers.bind(event, handler, args)
        self._handlers_changed()

    def unbind(self, event: evt.EventType, handler: evt.Handler) -> None:
        """Unbind *handler* from *event* if it was bound for this AE."""
        self._handlers.unbind(event, handler)
        self._handlers_changed()

    def get_handlers(self, event: evt.EventType | None = None) -> list[evt.HandlerTuple]:
        """Return the handlers of this AE for *event*, or for all events, as (event, handler, arguments)."""
        return self._handlers.bound(event)

    def get_events(self) -> list[evt.EventType]:
        """Return the events that handlers of this AE are bound to, in the order of their names."""
        return self._handlers.events()

    def _handlers_changed(self) -> None:
        for association in self._associations:
            association.handlers_changed()

    # --- associations

    @property
    def active_associations(self) -> list[Association]:
        """The associations that are established, of both roles."""
        return [association for association in self._associations if association.is_established]

    @property
    def connections(self) -> list[Association]:
        """The associations whose connection is open, established or not, of both roles."""
        return list(self._associations)

    def association_opened(self, association: Association) -> None:
        """Count *association*, whose connection was made."""
        if association not in self._associations:
            reactor_ran()
            self._associations.add(association)
            self.executors.acquire()

    def association_closed(self, association: Association) -> None:
        """Remove *association*, whose connection is closed, from the counts."""
        if association in self._associations:
            self._associations.discard(association)
            self.executors.release()

    # --- as requestor

    def requestor_factory(
        self,
        ae_title: str | bytes = "ANY-SCP",
        *,
        contexts: Iterable[PresentationContext] | None = None,
        ext_neg: Iterable[object] | None = None,
        max_pdu: int | None = None,
        evt_handlers: Iterable[evt.HandlerTuple] | None = None,
    ) -> RequestorFactory:
        """
        Return a factory for ``endpoint.connect``; the parameters are those of :meth:`associate`.

        :raises ValueError: a title, a context or an item is wrong, or there are more than 128 contexts.
        :raises RuntimeError: there are no contexts.
        """
        settings = self.settings if max_pdu is None else replace(self.settings, maximum_pdu_size=max_pdu)
        proposed = self.requested_contexts if contexts is None else list(contexts)
        if not proposed:
            advice = "call add_requested_context() first" if contexts is None else "contexts= is empty"
            raise RuntimeError(f"there are no presentation contexts to propose: {advice}")
        return RequestorFactory(
            self,
            settings,
            evt.Handlers(evt_handlers, parent=self._handlers),
            check_ae_title(ae_title, "the called AE title"),
            proposed,
            merge_items(ext_neg or ()),
            Proposal.AE if contexts is None else Proposal.ASSOCIATE,
        )

    def associate(
        self,
        address: str | IStreamClientEndpoint | None = None,
        port: int | None = None,
        *,
        addr: str | None = None,
        ae_title: str | bytes = "ANY-SCP",
        contexts: Iterable[PresentationContext] | None = None,
        ext_neg: Iterable[object] | None = None,
        max_pdu: int | None = None,
        bind_address: BindAddress | None = None,
        tls_args: object = None,
        evt_handlers: Iterable[evt.HandlerTuple] | None = None,
    ) -> Call[Association]:
        """
        Request an association (PS3.8 7.1).

        :param address: a host name or IP address together with *port*; or an endpoint string such as
            ``"tls:host:2762"`` or ``"dicomtls:host:2762:trustRoots=ca.pem"``; or an endpoint.
        :param port: the peer's port.
        :param addr: another name for *address*, as pynetdicom has it.
        :param ae_title: the peer's AE title.
        :param contexts: the presentation contexts to propose; by default :attr:`requested_contexts`.
        :param ext_neg: extended negotiation items: ``build_role(...)``, ``AsyncOperationsWindow``, ``SOPClassExtended``,
            ``SOPClassCommonExtended``, ``UserIdentity``.
        :param max_pdu: the longest P-DATA-TF that this side receives, in bytes, 0 for no limit.
        :param bind_address: (host, port), for IPv6 also (host, port, flowinfo, scope_id), to connect from; with a host
            and port only.
        :param tls_args: TLS for the connection: (context, host name), see :func:`dicomtwist.tls.client_tls`. An
            endpoint string contains its TLS options.
        :param evt_handlers: handlers for this association.
        :returns: a Deferred with the established :class:`Association`; ``async with`` takes it as well. It fails with
            :class:`AssociationRejected` (with result, source and reason), :class:`AssociationAborted`,
            :class:`AssociationTimeout`, :class:`NoAcceptedContexts` or :class:`AssociationLost`; or with the error of the
            connection or of the TLS handshake as it is. Cancelling it, at any stage, closes the connection.
        :raises TypeError: an argument is of a wrong type, such as a context of the module ``ssl``.
        :raises ValueError: an argument is wrong.
        :raises RuntimeError: there are no presentation contexts to propose.
        """
        place = addr if address is None else address
        if place is None or None not in (address, addr):
            raise TypeError("associate() needs one address: associate('pacs.example.org', 11112)")
        factory = self.requestor_factory(
            ae_title, contexts=contexts, ext_neg=ext_neg, max_pdu=max_pdu, evt_handlers=evt_handlers
        )
        endpoint = self._client_endpoint(place, port, bind_address)
        if tls_args is not None:
            endpoint = wrap_client_tls(client_tls(tls_args), endpoint)
        expect_reactor(self.reactor, "associate()")
        where = str(place) if port is None else f"{place} port {port}"
        return Call.of(self._associate(endpoint, factory, where), self.reactor, "associate()", "connect()")

    def _client_endpoint(
        self, address: str | IStreamClientEndpoint, port: int | None, bind_address: tuple[Any, ...] | None
    ) -> IStreamClientEndpoint:
        if port is None:
            if bind_address is not None:
                raise ValueError("bind_address needs a host and a port: an endpoint contains its own bind address")
            return client_endpoint(self.reactor, address)
        if not isinstance(address, str):
            raise TypeError(f"port needs a host name as address, not {type(address).__name__}")
        check_port(port)
        bind = None if bind_address is None else _host_and_port(bind_address)
        # No timeouts of the endpoint: they would expire before those of the AE, or fail with another error.
        unlimited: Any = None
        if isIPAddress(address):
            return TCP4ClientEndpoint(self.reactor, address, port, unlimited, bind)
        if isIPv6Address(address):
            return TCP6ClientEndpoint(self.reactor, address, port, unlimited, bind)
        return HostnameEndpoint(self.reactor, address, port, _FOR_EVER, bind)

    async def _associate(self, endpoint: IStreamClientEndpoint, factory: RequestorFactory, where: str) -> Association:
        connecting: Deferred[Any] = endpoint.connect(factory)
        seconds = self.settings.connection_timeout
        if seconds is not None:
            limit = seconds

            def timed_out(result: Any, _: float) -> None:
                raise AssociationTimeout("connection", limit, "no connection was made")

            connecting.addTimeout(seconds, self.reactor, timed_out)
        try:
            protocol = await connecting
        except ConnectingCancelledError as error:
            # Cancelling fails with this error at every stage, because addTimeout() recognises it.
            raise CancelledError from error
        except ConnectError as error:
            error.add_note(f"while dicomtwist connected to {where}")
            raise
        association = _unwrapped(protocol).user
        assert isinstance(association, RequestorAssociation)
        return await association.when_established()

    # --- as acceptor

    def host(
        self,
        *,
        ae_title: str | bytes | None = None,
        contexts: Iterable[PresentationContext] | None = None,
        evt_handlers: Iterable[evt.HandlerTuple] | None = None,
    ) -> Host:
        """
        Return a host for this AE, for the :meth:`acceptor_factory` of another AE; see :meth:`start_server`.
        """
        settings = self.settings
        if ae_title is not None:
            settings = replace(settings, ae_title=check_ae_title(ae_title))
        supported = self._supported
        if contexts is not None:
            supported = SupportedContexts()
            supported.replace(contexts)
        supported.check()
        return Host(self, settings, supported, evt.Handlers(evt_handlers, parent=self._handlers))

    def acceptor_factory(
        self,
        *,
        ae_title: str | bytes | None = None,
        contexts: Iterable[PresentationContext] | None = None,
        evt_handlers: Iterable[evt.HandlerTuple] | None = None,
        others: Iterable[Host | AE] = (),
    ) -> AcceptorFactory:
        """Return a factory for ``endpoint.listen``; the parameters are those of :meth:`start_server`."""
        hosts = [self.host(ae_title=ae_title, contexts=contexts, evt_handlers=evt_handlers)]
        hosts += [other.host() if isinstance(other, AE) else other for other in others]
        titles = [host.settings.ae_title for host in hosts]
        if len(set(titles)) < len(titles):
            raise ValueError(f"AE titles on one port must differ: {', '.join(titles)}")
        if not any(len(host.supported) or host.settings.promiscuous for host in hosts):
            raise ValueError("there are no supported presentation contexts: call add_supported_context() first")
        return AcceptorFactory(hosts, log_ended)

    def start_server(
        self,
        address: BindAddress | int | str | IStreamServerEndpoint,
        *,
        block: bool = False,
        ssl_context: object = None,
        ae_title: str | bytes | None = None,
        contexts: Iterable[PresentationContext] | None = None,
        evt_handlers: Iterable[evt.HandlerTuple] | None = None,
        others: Iterable[Host | AE] = (),
    ) -> Call[Server]:
        """
        Listen for association requests.

        :param address: (host, port), for IPv6 also (host, port, flowinfo, scope_id), the host ``""`` for all of IPv4; a
            port; an endpoint string such as ``"tcp6:11112"`` or ``"dicomtls:2762:..."``; or an endpoint. Port 0 takes a
            free one.
        :param block: must be ``False``, since nothing may block a reactor; the error for ``True`` names the alternatives.
        :param ssl_context: TLS for every connection, see :func:`dicomtwist.tls.server_tls`. An endpoint string contains its
            TLS options.
        :param ae_title: the AE title of this server, by default that of the AE.
        :param contexts: the presentation contexts that this server accepts, by default :attr:`supported_contexts`.
        :param evt_handlers: handlers for the associations of this server.
        :param others: further AEs that answer on the same port, each to its own title, with its own contexts, handlers and
            settings. Requests for any other title go to this AE, or are rejected if it requires the called title.
        :returns: a Deferred with the :class:`Server`; it fails with ``CannotListenError`` if the port is not available. A
            failure that nothing waits for is logged. If the program ends and no reactor ran, a ``RuntimeWarning`` says so.
        :raises TypeError: an argument is of a wrong type, such as a context of the module ``ssl``.
        :raises ValueError: an argument is wrong.
        """
        if block:
            raise ValueError(
                "block=True would block the reactor: leave it out, await start_server(), and"
                " let twisted.internet.task.react(), reactor.run() or 'twist dicom' run the reactor. In a script without a"
                " reactor, dicomtwist.sync.serve(...).wait() blocks until Ctrl-C"
            )
        factory = self.acceptor_factory(ae_title=ae_title, contexts=contexts, evt_handlers=evt_handlers, others=others)
        endpoint = self._server_endpoint(address)
        if ssl_context is not None:
            endpoint = wrap_server_tls(server_tls(ssl_context), endpoint)
        expect_reactor(self.reactor, "start_server()")
        return Call.of(self._listen(endpoint, factory), self.reactor, "start_server()", "serve()")

    def _server_endpoint(self, address: Any) -> IStreamServerEndpoint:
        if isinstance(address, tuple):
            host, port = _host_and_port(address)
            if ":" in host:
                return TCP6ServerEndpoint(self.reactor, port, interface=host)
            return TCP4ServerEndpoint(self.reactor, port, interface=host)
        return server_endpoint(self.reactor, address)

    def make_server(self, *args: object, **kwargs: object) -> NoReturn:
        """:raises TypeError: always; the message names :meth:`acceptor_factory`, which serves any endpoint."""
        raise TypeError(
            "make_server() would block the reactor: endpoint.listen(ae.acceptor_factory(...)) serves the AE"
        )

    async def _listen(self, endpoint: IStreamServerEndpoint, factory: AcceptorFactory) -> Server:
        server = Server(factory, self.reactor)
        server.listening(await endpoint.listen(factory))
        self._servers.append(server)
        return server

    def shutdown(self, grace: float | None = 0.0) -> Deferred[None]:
        """
        Stop every server and abort every association of this AE, after *grace* seconds.

        :returns: a Deferred that fires with ``None`` when all connections are closed.
        """
        servers, self._servers = self._servers, []
        waiting: list[Deferred[Any]] = [server.shutdown(grace) for server in servers]
        for association in self.active_associations:
            if association.is_requestor:
                waiting.append(association.when_ended())
                association.abort("the AE is shutting down", within=CLOSE_SECONDS)
        return DeferredList(waiting).addCallback(lambda _: None)

    def __str__(self) -> str:
        settings = self.settings
        lines = [
            f"Application Entity {settings.ae_title!r}",
            f"  Implementation: {settings.implementation_class_uid} {settings.implementation_version_name or ''}".rstrip(),
            f"  Maximum PDU size: {settings.maximum_pdu_size or 'no limit'}",
            f"  Timeouts in seconds: ACSE {settings.acse_timeout}, DIMSE {settings.dimse_timeout},"
            f" network {settings.network_timeout}, connection {settings.connection_timeout}",
            f"  Associations: {len(self.active_associations)} active, {settings.maximum_associations} at the most",
            f"  Called AE title: {'must be ours' if settings.require_called_aet else 'any'}",
            f"  Calling AE titles: {', '.join(settings.require_calling_aet) or 'any'}",
        ]
        for words, contexts in (("Requested", self.requested_contexts), ("Supported", self.supported_contexts)):
            lines.append(f"  {words} presentation contexts: {len(contexts) or 'none'}")
            for context in contexts:
                lines += [f"    {line}" for line in str(context).splitlines()]
        return "\n".join(lines)


def _host_and_port(address: tuple[Any, ...]) -> tuple[str, int]:
    """Return an address as Twisted takes it, with the scope of IPv6 after the host."""
    if len(address) not in (2, 4):
        raise ValueError(f"an address is (host, port), for IPv6 also (host, port, flowinfo, scope_id), not {address!r}")
    host, port, flow, scope = address if len(address) == 4 else (*address, 0, 0)
    if not isinstance(host, str) or isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"an address is a host as str and a port as int, not {address!r}")
    if flow:
        raise ValueError(f"Twisted's endpoints have no place for the flow label {flow}, it must be 0")
    return (f"{host}%{scope}" if scope else host), check_port(port)


#: HostnameEndpoint needs a number for its timeout: a week, in seconds, stands for no limit.
_FOR_EVER = 7 * 24 * 3600


def _unwrapped(protocol: Any) -> UpperLayerProtocol:
    """Return the upper layer protocol inside the wrappers that an endpoint may have put around it."""
    while not hasattr(protocol, "user") and hasattr(protocol, "wrappedProtocol"):
        protocol = protocol.wrappedProtocol
    result: UpperLayerProtocol = protocol
    return result
