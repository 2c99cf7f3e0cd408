"""
The connection to a peer as the options describe it, in the form that an AE and its associations need.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import click
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint

from dicomtwist import AE, Association, AsyncOperationsWindow, PresentationContext, UserIdentity
from dicomtwist.association.explanations import Proposal
from dicomtwist.endpoints import EndpointError, client_tls_options
from dicomtwist.evt import HandlerTuple
from dicomtwist.settings import Settings
from dicomtwist.tools.user_identity import identity_from_options
from dicomtwist.transport.peer_address import Peer


@dataclass(slots=True)
class Connection:
    """
    A peer, how to connect to it, and what to negotiate.

    :ivar peer: the address and AE title of the peer.
    :ivar calling: our AE title.
    :ivar endpoint: the endpoint to connect to, ``None`` for the host and port of *peer*.
    :ivar tls_args: the TLS arguments of :meth:`dicomtwist.AE.associate`, ``None`` without TLS.
    :ivar identity: the user identity to negotiate; left out of ``repr``, since it holds secrets.
    :ivar settings: attributes of the AE, such as its timeouts.
    :ivar async_ops: the number of outstanding operations on one association.
    :ivar associations: the number of concurrent associations.
    """

    peer: Peer
    calling: str
    endpoint: IStreamClientEndpoint | None = None
    tls_args: Any = None
    identity: UserIdentity | None = field(default=None, repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    async_ops: int = 1
    associations: int = 1

    @property
    def secure(self) -> bool:
        """Whether the connection uses TLS."""
        return self.tls_args is not None or self.peer.secure

    def make_ae(self, reactor: Any) -> AE:
        """Return an AE with the settings that the options describe."""
        ae = AE(self.calling, reactor=reactor)
        for name, value in self.settings.items():
            setattr(ae, name, value)
        ae.maximum_operations = max(ae.maximum_operations, self.async_ops)
        return ae

    def negotiation_items(self) -> list[object]:
        """Return the extended negotiation items to propose."""
        items: list[object] = []
        if self.async_ops > 1:
            # The peer invokes no operations on us, so a window of one is enough for it.
            items.append(AsyncOperationsWindow(self.async_ops, 1))
        if self.identity is not None:
            items.append(self.identity)
        return items

    def associate(
        self,
        ae: AE,
        contexts: Iterable[PresentationContext],
        handlers: Iterable[HandlerTuple] = (),
        items: Iterable[object] = (),
    ) -> Deferred[Association]:
        """
        Request an association, see :meth:`dicomtwist.AE.associate`.

        :param items: extended negotiation items in addition to those that the options ask for.
        """
        associating = ae.associate(
            self.peer.host if self.endpoint is None else self.endpoint,
            self.peer.port if self.endpoint is None else None,
            ae_title=self.peer.title,
            contexts=contexts,
            ext_neg=[*self.negotiation_items(), *items],
            tls_args=self.tls_args,
            evt_handlers=handlers,
        )
        return associating.addCallback(_without_calls)


def _without_calls(association: Association) -> Association:
    association.proposal = Proposal.PROGRAM  # the user of a subcommand has no call to change
    return association


def make_connection(values: dict[str, Any]) -> Connection:
    """
    Return the connection that the options in *values* describe.

    :raises click.UsageError: the options contradict each other, or a file that they name cannot be used.
    """
    from twisted.internet import reactor

    peer: Peer = values["peer"]
    settings = {
        "maximum_pdu_size": values["max_pdu"],
        "connection_timeout": values["connect_timeout"],
        "acse_timeout": values["acse_timeout"],
        "dimse_timeout": values["dimse_timeout"],
        "network_timeout": values["network_timeout"],
    }
    try:
        Settings(**settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        endpoint = peer.endpoint(reactor)
    except EndpointError as error:
        raise click.UsageError(f"PEER: {error}") from None
    return Connection(
        peer=peer,
        calling=values["calling"],
        endpoint=endpoint,
        tls_args=_tls_args(peer, values),
        identity=identity_from_options(values),
        settings=settings,
        async_ops=values["async_ops"],
        associations=values["associations"],
    )


#: The TLS options by the names of the same options in endpoint strings.
_TLS_NAMES = {
    "trustRoots": "--tls-roots",
    "privateKey": "--tls-key",
    "certKey": "--tls-certificate",
    "extraCertChain": "--tls-chain",
    "crl": "--tls-crl",
    "profile": "--tls-profile",
    "hostname": "--tls-hostname",
}


def _tls_args(peer: Peer, values: dict[str, Any]) -> Any:
    wanted = [name for name in values if name.startswith("tls") and values[name]]
    if not wanted:
        return None
    if peer.secure:
        option = wanted[0].replace("_", "-")
        raise click.UsageError(
            f"--{option} has no place beside an endpoint string that sets up TLS itself: give it one or the other"
        )
    hostname = values["tls_hostname"] or peer.host
    if not hostname:
        raise click.UsageError(
            "--tls-hostname is missing: PEER names no host, so give the name that its certificate is issued for"
        )
    try:
        return client_tls_options(
            hostname,
            values["tls_roots"],
            values["tls_key"],
            values["tls_certificate"],
            crl=values["tls_crl"],
            extra_chain=values["tls_chain"],
            profile=values["tls_profile"] or "bcp195",
        )
    except EndpointError as error:
        option = _TLS_NAMES.get(error.option or "", "--tls")
        raise click.UsageError(f"{option}: {str(error).removeprefix(f'{error.option}: ')}") from None
