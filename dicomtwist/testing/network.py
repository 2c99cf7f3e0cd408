"""
The reactor of a test: a clock that the test moves, with ports and connections in memory.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.address import IPv4Address
from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError, ConnectionDone, ConnectionRefusedError, UserError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import (
    IConnector,
    IDelayedCall,
    IHostnameResolver,
    IHostResolution,
    IListeningPort,
    IReactorPluggableNameResolver,
)
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from dicomtwist.testing.peer import ScriptedPeer, ScriptedPeerFactory
from dicomtwist.testing.transport import MemoryConnection, MemoryTransport

T = TypeVar("T")

#: After this many rounds without rest, :meth:`MemoryNetwork.flush` reports an endless loop.
MAX_ROUNDS = 1_000_000


@implementer(IListeningPort)
class MemoryPort:
    """The port that ``listenTCP`` returns."""

    def __init__(self, network: MemoryNetwork, factory: Factory, address: IPv4Address) -> None:
        self._network = network
        self._address = address
        self.factory = factory

    def startListening(self) -> None:
        """Start to listen."""
        if self._address.port in self._network.ports:
            raise CannotListenError(self._address.host, self._address.port, OSError("the address is in use"))
        self._network.ports[self._address.port] = self
        self.factory.doStart()

    def stopListening(self) -> Deferred[None]:
        """Stop listening; connections stay open."""
        if self._network.ports.pop(self._address.port, None) is not None:
            self.factory.doStop()
        return succeed(None)

    def getHost(self) -> IPv4Address:
        """Return the address that it listens at."""
        return self._address


@implementer(IConnector)
class MemoryConnector:
    """The connector that ``connectTCP`` returns."""

    def __init__(
        self, network: MemoryNetwork, factory: Any, client: IPv4Address, server: IPv4Address, timeout: float | None
    ) -> None:
        self._network = network
        self._factory = factory
        self._client = client
        self._server = server
        self._transport: MemoryTransport | None = None
        self._late: IDelayedCall | None = None
        self.connecting = True
        factory.doStart()
        factory.startedConnecting(self)
        if self.connecting and timeout is not None:
            self._late = network.callLater(timeout, self._failed, ConnectTimeout())

    def getDestination(self) -> IPv4Address:
        """Return the address that it connects to."""
        return self._server

    def stopConnecting(self) -> None:
        """Cancel the attempt."""
        self._failed(UserError())

    def disconnect(self) -> None:
        """Cancel the attempt, or close the connection."""
        if self.connecting:
            self.stopConnecting()
        elif self._transport is not None:
            self._transport.loseConnection()

    def connect(self) -> None:
        """Fail: a connection in memory is made only once."""
        raise NotImplementedError("a connection in memory is made only once")

    def attempt(self) -> None:
        """Connect, or report the failure."""
        port = self._network.ports.get(self._server.port)
        if port is None:
            self._failed(ConnectionRefusedError())
            return
        self._finish()
        protocol = self._factory.buildProtocol(self._server)
        accepted = port.factory.buildProtocol(self._client)
        connection = MemoryConnection(self._client, self._server)
        if accepted is None or protocol is None:
            self._factory.clientConnectionLost(self, Failure(ConnectionDone()))
            self._factory.doStop()
            return
        self._network.connections.append(connection)
        self._transport = connection.client
        connection.server.start(accepted)
        connection.client.start(protocol, self._lost)

    def _lost(self, reason: Failure) -> None:
        self._factory.clientConnectionLost(self, reason)
        self._factory.doStop()

    def _failed(self, reason: Exception) -> None:
        if self.connecting:
            self._finish()
            self._factory.clientConnectionFailed(self, Failure(reason))
            self._factory.doStop()

    def _finish(self) -> None:
        self.connecting = False
        if self._late is not None and self._late.active():
            self._late.cancel()


class MemoryThreadPool:
    """A thread pool without threads: :meth:`MemoryNetwork.flush` runs its work, one call after the other."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network

    def start(self) -> None:
        """Do nothing."""
        self._network.pools.append(self)

    def stop(self) -> None:
        """Remove it from the network."""
        self._network.pools.remove(self)

    def callInThread(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call *function* in the next flush."""
        self.callInThreadWithCallback(None, function, *args, **kwargs)

    def callInThreadWithCallback(
        self, done: Callable[[bool, Any], None] | None, function: Callable[..., object], *args: Any, **kwargs: Any
    ) -> None:
        """Call *function* in the next flush, then *done* with its outcome."""

        def work() -> None:
            try:
                result: tuple[bool, object] = True, function(*args, **kwargs)
            except Exception:
                result = False, Failure()
            if done is not None:
                done(*result)

        self._network.work.append(work)


@implementer(IHostResolution)
class _Resolution:
    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        pass


@implementer(IHostnameResolver)
class _Resolver:
    """Resolves every name to this host."""

    def resolveHostName(
        self,
        resolutionReceiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Any = None,
        transportSemantics: str = "TCP",
    ) -> Any:
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        resolutionReceiver.addressResolved(IPv4Address("TCP", "127.0.0.1", portNumber))
        resolutionReceiver.resolutionComplete()
        return resolution


@implementer(IReactorPluggableNameResolver)
class MemoryNetwork(Clock):
    """
    The reactor of a test: a :class:`~twisted.internet.task.Clock` with ports and connections in memory.

    All host names and addresses lead to the same simulated host. TLS is not supported, because its timers are those of the
    global reactor.

    :ivar answers: whether attempts to connect get an answer. If ``False``, they wait for one.
    :ivar works: whether the work of threads is done. If ``False``, it waits, as for a slow disk.
    :ivar connections: all connections that were made, the latest one last.
    :ivar ports: the listening ports by number.
    :ivar pools: the thread pools that exist.
    :ivar work: the calls that wait for a thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers = True
        self.works = True
        self.connections: list[MemoryConnection] = []
        self.ports: dict[int, MemoryPort] = {}
        self.pools: list[MemoryThreadPool] = []
        self.work: deque[Callable[[], None]] = deque()
        self.nameResolver = _Resolver()
        self._connecting: list[MemoryConnector] = []
        self._soon: deque[Callable[[], object]] = deque()
        self._flushing = False
        self._last_port = 49151

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> IDelayedCall:
        """Call *callable* in *delay* seconds of this clock."""
        # Clock.callLater sorts all calls each time, which is slow with thousands of connections.
        call = DelayedCall(self.seconds() + delay, callable, args, kw, self.calls.remove, lambda _: None, self.seconds)
        insort(self.calls, call, key=DelayedCall.getTime)
        return call

    # --- for tests

    def flush(self) -> None:
        """Run everything that is due now, until nothing more happens."""
        if self._flushing:
            return
        self._flushing = True
        try:
            for _ in range(MAX_ROUNDS):
                if not self._round():
                    return
            raise AssertionError(f"the network is still active after {MAX_ROUNDS} rounds")
        finally:
            self._flushing = False

    def _round(self) -> bool:
        moved = any(call.getTime() <= self.seconds() for call in self.getDelayedCalls())
        super().advance(0)
        if self.answers:
            connecting, self._connecting = self._connecting, []
            for connector in connecting:
                if connector.connecting:
                    moved = True
                    connector.attempt()
        for connection in [connection for connection in self.connections if connection.is_open]:
            for end in (connection.client, connection.server):
                moved = end.step() or moved
        if self.works and self.work:
            moved = True
            self.work.popleft()()
        while self._soon:
            moved = True
            self._soon.popleft()()
        return moved

    def advance(self, amount: float) -> None:
        """Let *amount* seconds pass. Each call runs at its time, in order, with everything that follows from it."""
        end = self.seconds() + amount
        self.flush()
        while True:
            due = [call.getTime() for call in self.getDelayedCalls() if call.getTime() <= end]
            if not due:
                break
            self.rightNow = max(self.rightNow, min(due))
            self.flush()
        self.rightNow = end

    def result_of(self, awaitable: Deferred[T] | Coroutine[Any, Any, T]) -> T:
        """
        Flush, and return the result of *awaitable*.

        :raises Exception: the exception that it fails with.
        :raises AssertionError: it has no result yet: it waits for time to pass, or for a peer to answer.
        """
        deferred = awaitable if isinstance(awaitable, Deferred) else Deferred.fromCoroutine(awaitable)
        results: list[T | Failure] = []
        asking = True

        def record(result: T | Failure) -> T | Failure | None:
            if not asking:
                return result
            results.append(result)
            return None if isinstance(result, Failure) else result

        deferred.addBoth(record)
        self.flush()
        asking = False
        if not results:
            raise AssertionError(f"there is no result yet: {awaitable!r}")
        result = results[0]
        if isinstance(result, Failure):
            result.raiseException()
        return result

    def scripted_client(self, port: int) -> ScriptedPeer:
        """Return a peer that is connected to the server at *port*."""
        peer = ScriptedPeer(self)
        factory = ScriptedPeerFactory(peer)
        self._connecting.append(
            MemoryConnector(self, factory, self._free_address(), IPv4Address("TCP", "127.0.0.1", port), None)
        )
        self.flush()
        if peer.transport is None:
            raise AssertionError(f"nothing listens at {port}")
        return peer

    def scripted_server(self, port: int) -> ScriptedPeer:
        """Return a peer that listens at *port* for one connection."""
        peer = ScriptedPeer(self)
        self.listenTCP(port, ScriptedPeerFactory(peer))
        return peer

    # --- the reactor, for AEs

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> MemoryPort:
        """Listen at *port*, 0 for any free one."""
        address = IPv4Address("TCP", interface or "0.0.0.0", port) if port else self._free_address()
        listening = MemoryPort(self, factory, address)
        listening.startListening()
        return listening

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: Any,
        timeout: float | None = 30,
        bindAddress: tuple[str, int] | None = None,
    ) -> MemoryConnector:
        """Connect to *port* in the next :meth:`flush`."""
        client = self._free_address()
        if bindAddress is not None:
            client = IPv4Address("TCP", bindAddress[0], bindAddress[1] or client.port)
        connector = MemoryConnector(self, factory, client, IPv4Address("TCP", host, port), timeout)
        self._connecting.append(connector)
        return connector

    def _free_address(self) -> IPv4Address:
        self._last_port += 1
        return IPv4Address("TCP", "127.0.0.1", self._last_port)

    def installNameResolver(self, resolver: Any) -> Any:
        """Resolve names with *resolver*; return the previous resolver."""
        before, self.nameResolver = self.nameResolver, resolver
        return before

    def make_thread_pool(self, minimum: int, maximum: int, name: str) -> MemoryThreadPool:
        """Create a pool for :class:`dicomtwist.runtime.executors.Executor`."""
        return MemoryThreadPool(self)

    def callFromThread(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call *function* in the next flush."""
        self._soon.append(lambda: function(*args, **kwargs))
