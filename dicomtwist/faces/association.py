"""
The attributes of associations and servers of both faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dicomtwist import evt
from dicomtwist.ae.ae import AE
from dicomtwist.ae.server import Server
from dicomtwist.association.association import Association
from dicomtwist.association.service_user import ServiceUser
from dicomtwist.errors import NoPresentationContext
from dicomtwist.presentation import PresentationContext

__all__ = ["AssociationFace", "ServerFace", "check_receives"]


class AssociationFace:
    """
    An established association.

    :ivar inner: the :class:`dicomtwist.Association`, whose methods return Deferreds. It belongs to the reactor's thread.
    """

    def __init__(self, inner: Association) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return repr(self.inner)

    # A handler of a notification finds the inner association, and one that blocks a face of it: they are one key of a dict.

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AssociationFace):
            return self.inner is other.inner
        return other is self.inner if isinstance(other, Association) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.inner)

    @property
    def name(self) -> str:
        """The association in words, for logs: ``requestor with 'PACS' at 10.1.2.3:104``."""
        return self.inner.name

    @property
    def ae(self) -> AE:
        """The AE that it belongs to."""
        ae: Any = self.inner.ae
        assert isinstance(ae, AE)
        return ae

    @property
    def requestor(self) -> ServiceUser:
        """The requestor's side, as it was negotiated."""
        return self.inner.requestor

    @property
    def acceptor(self) -> ServiceUser:
        """The acceptor's side, as it was negotiated."""
        return self.inner.acceptor

    @property
    def local(self) -> ServiceUser:
        """This side."""
        return self.inner.local

    @property
    def remote(self) -> ServiceUser:
        """The peer."""
        return self.inner.remote

    @property
    def is_established(self) -> bool:
        """Whether it can be used now."""
        return self.inner.is_established

    @property
    def was_established(self) -> bool:
        """Whether it was established at some time."""
        return self.inner.was_established

    @property
    def is_released(self) -> bool:
        """Whether it was released."""
        return self.inner.is_released

    @property
    def is_aborted(self) -> bool:
        """Whether it ended with an abort, by either side, or the connection was lost."""
        return self.inner.is_aborted

    @property
    def is_rejected(self) -> bool:
        """``False``: a request that is rejected raises :class:`AssociationRejected`."""
        return self.inner.is_rejected

    @property
    def is_requestor(self) -> bool:
        """Whether this side requested it."""
        return self.inner.is_requestor

    @property
    def is_acceptor(self) -> bool:
        """Whether the peer requested it."""
        return self.inner.is_acceptor

    @property
    def mode(self) -> str:
        """The role of this side, ``"requestor"`` or ``"acceptor"``."""
        return self.inner.mode

    @property
    def end_reason(self) -> BaseException | None:
        """The error that ended it, ``None`` if it was released or has not ended."""
        return self.inner.end_reason

    @property
    def accepted_contexts(self) -> list[PresentationContext]:
        """The accepted presentation contexts, in the order of their IDs."""
        return self.inner.accepted_contexts

    @property
    def rejected_contexts(self) -> list[PresentationContext]:
        """The presentation contexts that were not accepted, each with its result."""
        return self.inner.rejected_contexts

    @property
    def bytes_sent(self) -> int:
        """The number of bytes that were given to the transport."""
        return self.inner.bytes_sent

    @property
    def bytes_received(self) -> int:
        """The number of bytes that were received."""
        return self.inner.bytes_received

    def get_handlers(self, event: evt.EventType | None = None) -> list[evt.HandlerTuple]:
        """Return the handlers that are bound for this association alone, as (event, handler, arguments)."""
        return self.inner.get_handlers(event)


def check_receives(association: Association) -> None:
    """
    Check that a peer can send the instances of a C-GET.

    :raises NoPresentationContext: this side is SCP in no accepted context. The peer would fail each instance.
    :raises ValueError: no handler takes them.
    """
    if association.is_established and not any(context.as_scp for context in association.accepted_contexts):
        raise NoPresentationContext(
            "the peer cannot send instances on this association, because this side is SCP of no storage SOP Class: name the"
            " SOP Classes to receive, such as connect(..., receive=[CTImageStorage]), and bind a handler to EVT_C_STORE"
        )
    if association.is_established and not association.has_handler(evt.EVT_C_STORE):
        raise ValueError(
            "no handler takes the instances of a C-GET: connect(..., evt_handlers=[(evt.EVT_C_STORE, handler)])"
        )


class ServerFace:
    """
    A listening server.

    :ivar inner: the :class:`dicomtwist.Server`. It belongs to the reactor's thread.
    """

    def __init__(self, inner: Server) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return repr(self.inner)

    @property
    def port(self) -> int:
        """The TCP port that it listens at, the first of several."""
        return self.inner.port

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The addresses that it listens at, as (host, port); (path, 0) for a UNIX socket."""
        return self.inner.addresses

    @property
    def active_associations(self) -> Sequence[Association]:
        """The associations that are established."""
        return self.inner.active_associations
