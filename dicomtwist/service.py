"""
DICOMService: a listening AE as a Twisted service, which can be combined with others in a MultiService.
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
from dicomtwist.ae.monitor import BlockedExecutors, ReactorLag, Vitals
from dicomtwist.ae.server import Server
from dicomtwist.endpoints import server_endpoint


class DICOMService(Service):
    """
    A service that listens while it runs. When it is stopped it accepts no more connections, then lets associations finish,
    and then aborts those that are left after *grace*.

    :param ae: the AE that listens.
    :param endpoints: the endpoints to listen at: endpoint strings, ports or endpoints.
    :param evt_handlers: handlers for its associations.
    :param grace: the time for associations to finish at a stop, in seconds; ``None`` for no limit.
    :param lag_warning: the lag of the reactor, in seconds, above which it is logged; ``None`` for never.
    :param executor_warning: the time for which all threads of an executor may be busy with the same calls, in seconds, before
        that is logged; ``None`` for any time.

    :ivar server: the server, while the service runs.
    :ivar lag: the lag of the reactor while the service runs, a :class:`~dicomtwist.ae.ReactorLag`.
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
        executor_warning: float | None = 5.0,
    ) -> None:
        self.ae = ae
        self.grace = grace
        self.lag = ReactorLag(ae.reactor, lag_warning)
        self._blocked = BlockedExecutors(ae.reactor, ae.executors, executor_warning)
        self.server: Server | None = None
        self._endpoints = [server_endpoint(ae.reactor, endpoint) for endpoint in endpoints]
        self._handlers = list(evt_handlers or ())
        self._ports: dict[int, IListeningPort] = {}

    def startService(self) -> None:
        """
        Start to listen.

        :raises twisted.internet.error.CannotListenError: a port cannot be opened; the others are closed again.
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
        self._blocked.start()

    def vitals(self) -> Vitals:
        """Return the vital signs: associations, operations, the lag of the reactor, memory, executors."""
        return Vitals.of(self.server, self.lag, self.ae.executors)

    def change_warnings(self, lag: float | None, executor: float | None) -> None:
        """
        Change what is logged, while the service runs.

        :param lag: as *lag_warning*, and *executor* as *executor_warning*.
        """
        self.lag.warning = lag
        self._blocked.change(executor)

    def log_vitals(self) -> None:
        """Log the vital signs as one line."""
        self.log.info("{vitals}", vitals=str(self.vitals()))

    def relisten(self, endpoints: Mapping[int, IStreamServerEndpoint]) -> Deferred[None]:
        """
        Replace endpoints by others on the same sockets, such as those of
        :class:`~dicomtwist.transport.listening_sockets.Sockets`. Associations go on, and no connection is refused.

        :param endpoints: the new endpoints, by their index among the original ones.
        :returns: a Deferred that fires with ``None``, or fails as :meth:`startService` does; in that case the endpoints before
            the one that failed are replaced.
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
        self.log.info("{title} listens at {place}", title=self.ae.ae_title, place=f"{address} port {number}")

    def stopService(self) -> Deferred[None]:
        """
        Stop to listen, wait for associations to finish, and abort those that are left.

        :returns: a Deferred that fires with ``None`` when every connection is closed.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self.lag.stop()
        self._blocked.stop()
        server, self.server = self.server, None
        return succeed(None) if server is None else server.shutdown(self.grace)
