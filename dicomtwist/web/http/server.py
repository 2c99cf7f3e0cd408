"""
A listening HTTP server: a site at one endpoint or more, and its stop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.transport.upper_layer import address_of
from dicomtwist.web.http.site import Site

__all__ = ["HTTPServer"]


class Startable(Protocol):
    """The services of a site."""

    def start(self) -> None:
        """Start to work."""

    def stop(self) -> None:
        """Stop; idempotent."""


class HTTPServer:
    """
    A site that listens.

    :param site: the site.
    :param endpoints: the endpoints.
    :param clock: the reactor.
    :param services: the services of the site; they are started and stopped with this server.
    :param entrances: further endpoints, each with the factory of its connections, see
        :meth:`~dicomtwist.web.http.site.Site.entrance`.

    :ivar site: the site.
    :ivar services: its services.
    """

    log = Logger()

    def __init__(
        self,
        site: Site,
        endpoints: Sequence[IStreamServerEndpoint],
        clock: Any,
        services: Startable | None = None,
        entrances: Sequence[tuple[IStreamServerEndpoint, Any]] = (),
    ) -> None:
        self.site = site
        self.services = services
        self._endpoints = [*endpoints, *(endpoint for endpoint, _ in entrances)]
        self._factories = [*(site for _ in endpoints), *(factory for _, factory in entrances)]
        self._clock = clock
        self._ports: dict[int, Any] = {}
        self._is_running = False

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The addresses that it listens at, as (host, port); (path, 0) for a UNIX socket."""
        return [address_of(port.getHost()) for port in self.ports]

    @property
    def ports(self) -> list[Any]:
        """The ports of Twisted that it listens at."""
        return [port for _, port in sorted(self._ports.items())]

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self.site.connections)

    def start(self, *, is_starting: bool = False) -> None:
        """
        Listen. It raises the error of an endpoint that cannot listen at once, such as ``CannotListenError``.

        :param is_starting: whether only the health of the server and its metrics are told, until :meth:`started`; other
            requests are answered with 503.
        """
        self._is_running = True
        self.site.is_starting = is_starting
        failures: list[Failure] = []
        for index, endpoint in enumerate(self._endpoints):
            listening: Deferred[Any] = endpoint.listen(self._factories[index])
            listening.addCallbacks(self._listening, failures.append, callbackArgs=(index,))
            if failures:
                self.stop_listening()
                failures[0].raiseException()
        if self.services is not None:
            self.services.start()

    def started(self) -> None:
        """Answer all requests: the start has ended."""
        self.site.is_starting = False
        for port in self.ports:
            self._log(port)

    def accept(self) -> None:
        """Accept connections at ports that this process only holds for others, until :meth:`leave`."""
        for port in self.ports:
            self._clock.addReader(port)

    def leave(self) -> None:
        """Leave further connections to the other processes, and close those that are open after their responses."""
        for port in self.ports:
            self._clock.removeReader(port)
        self.site.close_idle()

    def _listening(self, port: Any, index: int) -> None:
        if not self._is_running:
            port.stopListening()
            return
        self._ports[index] = port
        if not self.site.is_starting:
            self._log(port)

    def _log(self, port: Any) -> None:
        address, number = address_of(port.getHost())
        self.log.info("HTTP listens at {place}", place=f"{address} port {number}")

    def relisten(self, endpoints: Mapping[int, IStreamServerEndpoint]) -> Deferred[None]:
        """
        Replace endpoints by others on the same sockets. Connections go on.

        :param endpoints: the new endpoints, by their index among the original ones.
        """
        return Deferred.fromCoroutine(self._relisten(endpoints))

    async def _relisten(self, endpoints: Mapping[int, IStreamServerEndpoint]) -> None:
        for index, endpoint in endpoints.items():
            if not self._is_running:
                return
            port: Any = await endpoint.listen(self._factories[index])
            before, self._ports[index] = self._ports[index], port
            if port is not before:
                await maybeDeferred(before.stopListening)

    def stop_listening(self) -> Deferred[None]:
        """Accept no more connections; those that are open go on. The Deferred fires when the ports are closed."""
        self._is_running = False
        ports, self._ports = list(self._ports.values()), {}
        return Deferred.fromCoroutine(_stop(ports))

    def shutdown(self, grace: float | None, others: Deferred[Any] | None = None) -> Deferred[None]:
        """
        Stop: accept no more connections, close those without a request, wait for the others to be answered, and close those
        that are left.

        :param grace: the time to wait, in seconds; ``None`` for no limit.
        :param others: fires when the associations of the server have ended. Until then connections are accepted, and the
            health of the server is told; other requests are answered with 503.
        """
        return Deferred.fromCoroutine(self._shutdown(grace, others))

    async def _shutdown(self, grace: float | None, others: Deferred[Any] | None) -> None:
        self.site.is_draining = True
        if others is not None:
            begun = self._clock.seconds()
            await others
            grace = None if grace is None else max(0.0, grace - (self._clock.seconds() - begun))
        await self.stop_listening()
        if self.services is not None:
            self.services.stop()
        ended = self.site.drain()
        late = None if grace is None else self._clock.callLater(grace, self.site.abort)
        await ended
        if late is not None and late.active():
            late.cancel()


async def _stop(ports: Sequence[Any]) -> None:
    for port in ports:
        await maybeDeferred(port.stopListening)
