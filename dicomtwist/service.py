"""
DICOMService: a listening AE as a Twisted service, to be composed with others in a MultiService.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.ae.ae import AE
from dicomtwist.ae.monitor import ReactorLag, Vitals
from dicomtwist.ae.server import Server
from dicomtwist.endpoints import server_endpoint


class DICOMService(Service):
    """
    Listens while it runs. When stopped it takes no more connections, lets associations finish, and aborts those that are
    left after a while, in that order.

    :param ae: who listens.
    :param endpoints: where: endpoint strings, ports or endpoints.
    :param evt_handlers: handlers for its associations.
    :param grace: how long associations may go on when it is stopped, in seconds; ``None`` for ever.
    :param lag_warning: how late the reactor may be before that is logged, in seconds; ``None`` for not at all.

    :ivar server: what listens, while it runs.
    :ivar lag: how late the reactor is while it runs, a :class:`~dicomtwist.ae.ReactorLag`.
    """

    log = Logger()

    def __init__(
        self,
        ae: AE,
        endpoints: Sequence[str | int | IStreamServerEndpoint],
        *,
        evt_handlers: Iterable[evt.HandlerTuple] | None = None,
        grace: float | None = 10.0,
        lag_warning: float | None = 1.0,
    ) -> None:
        self.ae = ae
        self.grace = grace
        self.lag = ReactorLag(ae.reactor, lag_warning)
        self.server: Server | None = None
        self._endpoints = [server_endpoint(ae.reactor, endpoint) for endpoint in endpoints]
        self._handlers = list(evt_handlers or ())
        self._ports: dict[int, IListeningPort] = {}

    def startService(self) -> None:
        """
        Listen.

        :raises CannotListenError: a port is not to be had; the others are closed again.
        """
        super().startService()  # type: ignore[no-untyped-call]
        factory = self.ae.acceptor_factory(evt_handlers=self._handlers)
        self.server = Server(factory, self.ae.reactor)
        failures: list[Failure] = []
        for index, endpoint in enumerate(self._endpoints):
            listening: Deferred[Any] = endpoint.listen(factory)
            listening.addCallbacks(self._listening, failures.append, callbackArgs=(index,))
            if failures:
                self.server.stop_listening()
                super().stopService()  # type: ignore[no-untyped-call]
                failures[0].raiseException()
        self.lag.start()

    def vitals(self) -> Vitals:
        """Return how it is doing: associations, operations, the lag of the reactor, memory."""
        return Vitals.of(self.server, self.lag)

    def log_vitals(self) -> None:
        """Write them into the log, as one line."""
        self.log.info("{vitals}", vitals=str(self.vitals()))

    def relisten(self, endpoints: Mapping[int, IStreamServerEndpoint]) -> Deferred[None]:
        """
        Listen at other endpoints that have the same sockets, such as those of
        :class:`~dicomtwist.transport.listening_sockets.Sockets`, in place of those that were given first. Associations go on,
        and no connection is refused.

        :param endpoints: by their places among those that were given first.
        :returns: a Deferred that fires with ``None``, or fails as :meth:`startService` does; then the others listen.
        """
        return Deferred.fromCoroutine(self._relisten(endpoints))

    async def _relisten(self, endpoints: Mapping[int, IStreamServerEndpoint]) -> None:
        for index, endpoint in endpoints.items():
            if self.server is None:
                return
            port: Any = await endpoint.listen(self.server.factory)
            before, self._ports[index] = self._ports[index], port
            if port is not before:
                await self.server.exchange(before, port)

    def _listening(self, port: Any, index: int) -> None:
        if self.server is None:
            port.stopListening()
            return
        self._ports[index] = port
        self.server.listening(port)
        address, number = self.server.addresses[-1]
        self.log.info("{title} listens at {address}", title=self.ae.ae_title, address=f"{address} port {number}")

    def stopService(self) -> Deferred[None]:
        """
        Stop listening, drain, abort what is left.

        :returns: a Deferred that fires with ``None`` when every connection is closed.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self.lag.stop()
        server, self.server = self.server, None
        return succeed(None) if server is None else server.shutdown(self.grace)
