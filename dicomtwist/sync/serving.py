"""
Servers in code that blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Event
from types import TracebackType
from typing import Any, Self

from twisted.internet.defer import Deferred

from dicomtwist import evt
from dicomtwist.ae.ae import AE
from dicomtwist.ae.server import Server as InnerServer
from dicomtwist.eventloop.coroutines import from_deferred
from dicomtwist.eventloop.loop_reactor import LoopReactor
from dicomtwist.eventloop.reactor_thread import Beginning, call, reactor_of_thread, wait_for
from dicomtwist.faces.arguments import Address, check_served
from dicomtwist.faces.association import ServerFace
from dicomtwist.presentation import PresentationContext
from dicomtwist.sync.association import LentAssociation
from dicomtwist.sync.connecting import own_reactor
from dicomtwist.sync.handlers import handlers_in_threads, in_thread

__all__ = ["Server", "serve"]


class Server(ServerFace):
    """
    A listening server, for code that blocks. ``with`` stops it at the end of the block.

    :param grace: the time that associations have to end at the end of the block, in seconds.
    """

    def __init__(self, reactor: Any, inner: InnerServer, grace: float | None) -> None:
        super().__init__(inner)
        self._reactor = reactor
        self._grace = grace
        self._stopped = Event()

    @property
    def needs_reactor(self) -> bool:
        """Whether it has not stopped."""
        return not self._stopped.is_set()

    def bind(self, event: evt.EventType, handler: evt.Handler, args: Sequence[Any] | None = None) -> None:
        """Bind *handler* to *event* for the associations of this server. A plain function is called in a worker thread."""
        call(
            self._reactor,
            lambda: self.inner.bind(event, in_thread(self._reactor, event, handler, LentAssociation), args),
        )

    def unbind(self, event: evt.EventType, handler: evt.Handler) -> None:
        """Unbind *handler* from *event* if it was bound for this server."""
        call(self._reactor, lambda: self.inner.unbind(event, in_thread(self._reactor, event, handler, LentAssociation)))

    def wait(self, timeout: float | None = None) -> bool:
        """
        Wait until another thread stops the server, or for Ctrl-C.

        Ctrl-C stops the server as the end of its block does, and then this returns, as pynetdicom's
        ``start_server(block=True)`` does. A second Ctrl-C, while associations still have time to end, aborts them and raises
        ``KeyboardInterrupt``.

        :param timeout: the most seconds to wait, ``None`` for no limit.
        :returns: whether the server was stopped.
        """
        try:
            return self._stopped.wait(timeout)
        except KeyboardInterrupt:
            self.shutdown(self._grace)
            return True

    def shutdown(self, grace: float | None = 0.0) -> None:
        """
        Stop: accept no more connections, wait for the associations to end, then abort the remaining ones.

        :param grace: the time to wait for the associations to end, in seconds; ``None`` for no limit.
        """
        try:
            wait_for(self._reactor, lambda: self.inner.shutdown(grace))
        except BaseException:
            # Ctrl-C while it waited for associations.
            self._reactor.callFromThread(self.inner.shutdown)
            raise
        finally:
            self._stopped.set()

    async def end(self, seconds: float) -> None:
        """Stop it because the reactor's thread ends, in that thread."""
        await from_deferred(self.inner.shutdown())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown(self._grace)


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
) -> Server:
    """
    Listen for association requests. The parameters are those of :meth:`dicomtwist.AE.start_server`, and a few more.

    .. code-block:: python

        with dicomtwist.sync.serve(ae, 11112, evt_handlers=[(evt.EVT_C_STORE, handle_store)]) as server:
            server.wait()  # until Ctrl-C

    :param ae: the AE, with the contexts that it supports and its settings.
    :param address: a port, on all IPv4 addresses; (host, port); an endpoint string; or an endpoint. Port 0 takes a free one.
    :param ssl_context: TLS for every connection, see :func:`dicomtwist.tls.server_tls`.
    :param ae_title: the AE title of this server, by default that of the AE.
    :param contexts: the presentation contexts that this server accepts, by default those of the AE.
    :param evt_handlers: handlers for the associations of this server. Plain functions and generators run in worker threads, so
        they may block; several may run at once.
    :param others: further AEs that answer on the same port, each to its own title.
    :param grace: the time that associations have to end when the block ends, in seconds; ``None`` for no limit.
    :returns: the :class:`Server`, a context manager.
    :raises twisted.internet.error.CannotListenError: the port is not available.
    :raises ReactorConflict: the call would block the reactor, or the reactor cannot be used.
    """
    others = list(others)
    check_served(ae, others)
    beginning = Beginning()
    reactor = own_reactor(ae, beginning)
    for one in others:
        one.use_reactor(reactor)
    handlers = handlers_in_threads(reactor, evt_handlers, LentAssociation)

    def listen() -> Deferred[Server]:
        starting = ae.start_server(
            address, ssl_context=ssl_context, ae_title=ae_title, contexts=contexts, evt_handlers=handlers, others=others
        )
        return starting.addCallback(started)

    def started(inner: InnerServer) -> Server:
        server = Server(reactor, inner, grace)
        if isinstance(reactor, LoopReactor):
            reactor.endings.add(server)
        return server

    server = wait_for(reactor, listen, lambda server: server.inner.shutdown())
    reactor_of_thread(server)
    beginning.needs_reactor = False
    return server
