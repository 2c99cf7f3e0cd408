"""
What the options say about the way to a peer, as an AE and its associations need it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint

from dicomtwist import AE, Association, AsyncOperationsWindow, PresentationContext, UserIdentity
from dicomtwist.evt import HandlerTuple
from dicomtwist.transport.peer_address import Peer


@dataclass(slots=True)
class Connection:
    """
    How to get to a peer, and what to tell it.

    :ivar peer: whom to ask.
    :ivar calling: our AE title.
    :ivar endpoint: where it is, ``None`` for the host and port of *peer*.
    :ivar tls_args: TLS around it, as :meth:`dicomtwist.AE.associate` takes it, or ``None``.
    :ivar identity: the user identity to tell; not part of what ``repr`` says.
    :ivar settings: attributes of the AE, such as its timeouts.
    :ivar async_ops: how many operations to have outstanding at once on an association.
    :ivar associations: how many associations at once.
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
        """Whether it goes over TLS."""
        return self.tls_args is not None or self.peer.secure

    def make_ae(self, reactor: Any) -> AE:
        """Return an AE that asks as the options say."""
        ae = AE(self.calling, reactor=reactor)
        for name, value in self.settings.items():
            setattr(ae, name, value)
        ae.maximum_operations = max(ae.maximum_operations, self.async_ops)
        return ae

    def negotiation_items(self) -> list[object]:
        """Return the extended negotiation items to propose."""
        items: list[object] = []
        if self.async_ops > 1:
            # What the peer may ask of us is nothing: there is no second operation for it to invoke.
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
        Ask for an association, see :meth:`dicomtwist.AE.associate`.

        :param items: extended negotiation items besides those that the options ask for.
        """
        return ae.associate(
            self.peer.host if self.endpoint is None else self.endpoint,
            self.peer.port if self.endpoint is None else None,
            ae_title=self.peer.title,
            contexts=contexts,
            ext_neg=[*self.negotiation_items(), *items],
            tls_args=self.tls_args,
            evt_handlers=handlers,
        )
