"""
Servers in coroutines of asyncio.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from twisted.internet.defer import Deferred

from dicomtwist import evt
from dicomtwist.ae.ae import AE
from dicomtwist.ae.server import Server as InnerServer
from dicomtwist.asyncio.unawaited import Unawaited
from dicomtwist.eventloop.coroutines import from_deferred
from dicomtwist.eventloop.loop_reactor import LoopReactor, reactor_of_running_loop
from dicomtwist.faces.arguments import Address, check_served
from dicomtwist.faces.association import ServerFace
from dicomtwist.presentation import PresentationContext

__all__ = ["Server", "Serving", "serve"]


class Server(ServerFace):
    """
    A listening server, for coroutines of asyncio. ``async with`` stops it at the end of the block.

    :param grace: the time that associations have to end at the end of the block, in seconds.
    """

    def __init__(self, inner: InnerServer, grace: float | None = 0.0) -> None:
        super().__init__(inner)
        self._grace = grace

    def bind(self, event: evt.EventType, handler: evt.Handler, args: Sequence[Any] | None = None) -> None:
        """Bind *handler* to *event* for the associations of this server, existing ones included."""
        self.inner.bind(event, handler, args)

    def unbind(self, event: evt.EventType, handler: evt.Handler) -> None:
        """Unbind *handler* from *event* if it was bound for this server."""
        self.inner.unbind(event, handler)

    async def shutdown(self, grace: float | None = 0.0) -> None:
        """
        Stop: accept no more connections, wait for the associations to end, then abort the remaining ones.

        :param grace: the time to wait for the associations to end, in seconds; ``None`` for no limit.
        """
        await from_deferred(self.inner.shutdown(grace))

    async def end(self, seconds: float) -> None:
        """Stop it because its event loop ends."""
        await self.shutdown()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.shutdown(self._grace)
        except BaseException:
            # Cancelled while it waited for associations.
            self.inner.shutdown()
            raise


class Serving(Unawaited):
    """The result of :func:`serve`: ``async with serve(...) as server``, or ``server = await serve(...)``."""

    call, gives = "serve", "server"

    def __init__(self, start: Callable[[], Coroutine[Any, Any, Server]]) -> None:
        self._start = start
        self._server: Server | None = None

    def __await__(self) -> Generator[Any, Any, Server]:
        return self._start().__await__()

    async def __aenter__(self) -> Server:
        self._server = await self._start()
        return self._server

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        server, self._server = self._server, None
        assert server is not None
        await server.__aexit__(kind, value, traceback)


def serve(
    ae: AE,
    address: Address,
    *,
    ssl_context: object = None,
    ae_title: str | bytes | None = None,
    contexts: Iterable[PresentationContext] | None = None,
    evt_handlers: Iterable[evt.HandlerTuple] | None = None,
    others: Iterable[AE] = (),
    grace: float | None = 0.0,
) -> Serving:
    """
    Listen for association requests. The parameters are those of :meth:`dicomtwist.AE.start_server`, and a few more.

    .. code-block:: python

        async with dicomtwist.asyncio.serve(ae, 11112, evt_handlers=[(evt.EVT_C_STORE, handle_store)]) as server:
            await asyncio.Event().wait()  # until Ctrl-C

    Handlers are functions, generators, coroutine functions or asynchronous generators. Those may await what asyncio awaits, and
    the Deferreds of ``event.assoc`` and ``event.stream`` as well. They see the context variables of the call of ``serve()``.

    :param ae: the AE, with the contexts that it supports and its settings.
    :param address: a port, on all IPv4 addresses; (host, port); an endpoint string; or an endpoint. Port 0 takes a free one.
    :param ssl_context: TLS for every connection, see :func:`dicomtwist.tls.server_tls`.
    :param ae_title: the AE title of this server, by default that of the AE.
    :param contexts: the presentation contexts that this server accepts, by default those of the AE.
    :param evt_handlers: handlers for the associations of this server.
    :param others: further AEs that answer on the same port, each to its own title.
    :param grace: the time that associations have to end when the block ends, in seconds; ``None`` for no limit.
    :returns: an asynchronous context manager and awaitable with the :class:`Server`. It raises ``CannotListenError`` if the
        port is not available, :class:`ReactorConflict` if the process has another reactor.
    """

    others = list(others)

    def discard(inner: InnerServer | None) -> None:
        if inner is not None:
            inner.shutdown()

    async def start() -> Server:
        check_served(ae, others)
        reactor = reactor_of_running_loop()
        for one in (ae, *others):
            one.use_reactor(reactor)
        starting: Deferred[InnerServer] = ae.start_server(
            address,
            ssl_context=ssl_context,
            ae_title=ae_title,
            contexts=contexts,
            evt_handlers=evt_handlers,
            others=others,
        )
        try:
            server = Server(await from_deferred(starting), grace)
        except BaseException:
            starting.addCallbacks(discard, lambda reason: None)
            raise
        if isinstance(reactor, LoopReactor):
            reactor.endings.add(server)
        return server

    return Serving(start)
