"""
Requests for an association in coroutines of asyncio.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterable
from types import TracebackType
from typing import Any

from twisted.internet.interfaces import IStreamClientEndpoint

from dicomtwist import evt
from dicomtwist.ae.ae import AE, BindAddress
from dicomtwist.association.association import Association as InnerAssociation
from dicomtwist.asyncio.association import CLOSE_SECONDS, Association
from dicomtwist.asyncio.unawaited import Unawaited
from dicomtwist.eventloop.coroutines import from_deferred
from dicomtwist.eventloop.loop_reactor import LoopReactor, reactor_of_running_loop
from dicomtwist.faces.arguments import ContextLike, advise, ae_of, proposal

__all__ = ["Connecting", "connect"]


class Connecting(Unawaited):
    """The result of :func:`connect`: ``async with connect(...) as assoc``, or ``assoc = await connect(...)``."""

    call, gives = "connect", "assoc"

    def __init__(self, start: Callable[[], Coroutine[Any, Any, Association]]) -> None:
        self._start = start
        self._association: Association | None = None

    def __await__(self) -> Generator[Any, Any, Association]:
        return self._start().__await__()

    async def __aenter__(self) -> Association:
        self._association = await self._start()
        return self._association

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        association, self._association = self._association, None
        assert association is not None
        await association.__aexit__(kind, value, traceback)


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
) -> Connecting:
    """
    Request an association. The parameters are those of :meth:`dicomtwist.AE.associate`, and a few more.

    .. code-block:: python

        async with dicomtwist.asyncio.connect("pacs.example.org", 104, ae_title="PACS") as assoc:
            async for status, identifier in assoc.find(keys, StudyRootQueryRetrieveInformationModelFind):
                ...

    A cancellation, at any stage, closes the connection.

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
    :param evt_handlers: handlers for this association; they may be coroutine functions of asyncio.
    :param ae: the AE that requests, with its settings such as timeouts; or the AE title of this side.
    :returns: an asynchronous context manager and awaitable with the established :class:`Association`. It raises
        :class:`AssociationRejected`, :class:`AssociationAborted`, :class:`AssociationTimeout`, :class:`NoAcceptedContexts`,
        :class:`AssociationLost`, or the error of the connection or of the TLS handshake as it is; :class:`ReactorConflict` if
        the process has another reactor.
    """

    def discard(inner: InnerAssociation | None) -> None:
        if inner is not None:
            inner.abort("the caller cancelled the request", within=CLOSE_SECONDS)

    async def start() -> Association:
        reactor = reactor_of_running_loop()
        requestor = ae_of(ae)
        requestor.use_reactor(reactor)
        proposed, items = proposal(requestor, contexts, ext_neg, receive)
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
            evt_handlers=evt_handlers,
        )
        try:
            association = Association(await from_deferred(associating))
            advise(association.inner, requestor, contexts)
        except BaseException:
            # If the task was cancelled in the moment in which the peer had accepted, nobody has the association.
            associating.addCallbacks(discard, lambda reason: None)
            raise
        if isinstance(reactor, LoopReactor):
            reactor.endings.add(association)
        return association

    return Connecting(start)
