"""
Requests for an association in code that blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint

from dicomtwist import evt
from dicomtwist.ae.ae import AE, BindAddress
from dicomtwist.association.association import Association as InnerAssociation
from dicomtwist.errors import ReactorConflict
from dicomtwist.eventloop.loop_reactor import LoopReactor, installed_reactor
from dicomtwist.eventloop.reactor_thread import Beginning, User, reactor_of_thread, wait_for
from dicomtwist.faces.arguments import ContextLike, advise, ae_of, proposal
from dicomtwist.sync.association import CLOSE_SECONDS, Association, LentAssociation
from dicomtwist.sync.handlers import handlers_in_threads

__all__ = ["connect", "own_reactor"]


def own_reactor(ae: AE, user: User) -> Any:
    """
    Return the reactor for *ae*, which runs in another thread.

    :param user: see :func:`reactor_of_thread`.
    :raises ReactorConflict: the reactor runs in this thread, or *ae* uses one that does not run.
    """
    reactor = reactor_of_thread(user)
    ae.use_reactor(reactor)
    return reactor


def connect(
    address: str | IStreamClientEndpoint | None = None,
    port: int | None = None,
    *,
    addr: str | None = None,
    ae_title: str | bytes = "ANY-SCP",
    contexts: Iterable[ContextLike] | None = None,
    receive: Iterable[ContextLike] = (),
    ext_neg: Iterable[object] | None = None,
    max_pdu: int | None = None,
    bind_address: BindAddress | None = None,
    tls_args: object = None,
    evt_handlers: Iterable[evt.HandlerTuple] | None = None,
    ae: AE | str | None = None,
) -> Association:
    """
    Request an association, and wait until it is established. The parameters are those of :meth:`dicomtwist.AE.associate`, and a
    few more.

    .. code-block:: python

        with dicomtwist.sync.connect("pacs.example.org", 104, ae_title="PACS") as assoc:
            for status, identifier in assoc.find(keys, StudyRootQueryRetrieveInformationModelFind):
                ...

    :param address: a host name or IP address together with *port*; or an endpoint string such as ``"dicomtls:host:2762"``; or
        an endpoint.
    :param port: the peer's port.
    :param addr: another name for *address*, as pynetdicom has it.
    :param ae_title: the peer's AE title.
    :param contexts: the presentation contexts to propose, or SOP Class UIDs, for which the four uncompressed transfer syntaxes
        are proposed. By default those of *ae*; if it has none, verification, query and retrieve, worklists, and the storage of
        120 common SOP Classes.
    :param receive: the storage SOP Classes to receive by C-GET, each as a UID or as a presentation context: a context and the
        roles for it are proposed.
    :param ext_neg: extended negotiation items.
    :param max_pdu: the longest P-DATA-TF that this side receives, in bytes, 0 for no limit.
    :param bind_address: (host, port) to connect from.
    :param tls_args: TLS for the connection, see :func:`dicomtwist.tls.client_tls`.
    :param evt_handlers: handlers for this association. Plain functions and generators run in worker threads, so they may block.
    :param ae: the AE that requests, with its settings such as timeouts; or the AE title of this side.
    :returns: the established :class:`Association`, a context manager.
    :raises AssociationError: it was rejected, aborted or lost, nothing was accepted, or a timeout expired.
    :raises twisted.internet.error.ConnectError: no connection was made; another error of the connection or of the TLS
        handshake is raised as it is.
    :raises ReactorConflict: the call would block the reactor, or the reactor cannot be used.
    """
    requestor = ae_of(ae)
    beginning = Beginning()
    reactor = own_reactor(requestor, beginning)
    if (
        reactor is not installed_reactor()
        and isinstance(address, str)
        and address.lstrip().startswith(("tls:", "ssl:"))
    ):
        raise ReactorConflict(
            f"Twisted's own TLS needs the reactor of the process, which does not run: write dicomtls: in place of {address[:4]}"
        )
    proposed, items = proposal(requestor, contexts, ext_neg, receive)
    handlers = handlers_in_threads(reactor, evt_handlers, LentAssociation)

    def associate() -> Deferred[Association]:
        associating = requestor.associate(
            address,
            port,
            addr=addr,
            ae_title=ae_title,
            contexts=proposed,
            ext_neg=items,
            max_pdu=max_pdu,
            bind_address=bind_address,
            tls_args=tls_args,
            evt_handlers=handlers,
        )
        return associating.addCallback(established)

    def established(inner: InnerAssociation) -> Association:
        advise(inner, requestor, contexts)
        association = Association(reactor, inner)
        if isinstance(reactor, LoopReactor):
            reactor.endings.add(association)
        return association

    def discard(association: Association) -> None:
        association.inner.abort("the request was interrupted", within=CLOSE_SECONDS)

    association = wait_for(reactor, associate, discard)
    reactor_of_thread(association)
    beginning.needs_reactor = False
    return association
