"""
A TCP proxy with a delay: ``python -m benchmarks.proxy LISTEN_PORT TARGET_PORT SECONDS``.

Every byte arrives SECONDS later, in either direction, as over a line with this latency and unlimited bandwidth.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

from twisted.internet import protocol
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.task import react
from twisted.python.failure import Failure


class _End(protocol.Protocol):
    """One end of a connection; the other end writes later what this end reads."""

    transport: Any

    def __init__(self, reactor: Any, delay: float) -> None:
        self._reactor = reactor
        self._delay = delay
        self._other: _End | None = None
        # Timers that expire at the same time may fire in any order; this queue keeps the order of the data.
        self._delayed: deque[bytes | None] = deque()
        self._early: list[bytes | None] = []

    def join(self, other: _End) -> None:
        """Write to *other* the data that this end reads, and the data that it has already read."""
        self._other = other
        early, self._early = self._early, []
        for data in early:
            self._later(data)

    def _later(self, data: bytes | None) -> None:
        if self._other is None:
            self._early.append(data)
            return
        self._delayed.append(data)
        self._reactor.callLater(self._delay, self._deliver)

    def _deliver(self) -> None:
        data = self._delayed.popleft()
        assert self._other is not None
        if data is None:
            self._other.transport.loseConnection()
        else:
            self._other.transport.write(data)

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        self._later(data)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        self._later(None)


class _Factory(protocol.Factory):
    def __init__(self, reactor: Any, target: int, delay: float) -> None:
        self._reactor = reactor
        self._target = target
        self._delay = delay

    def buildProtocol(self, addr: object) -> _End:
        near = _End(self._reactor, self._delay)

        def connected(far: _End) -> None:
            far.join(near)
            near.join(far)

        def failed(reason: Failure) -> None:
            near.transport.abortConnection()

        target = TCP4ClientEndpoint(self._reactor, "127.0.0.1", self._target)
        connectProtocol(target, _End(self._reactor, self._delay)).addCallbacks(connected, failed)
        return near


def _main(reactor: Any, listen: str, target: str, delay: str) -> Deferred[None]:
    endpoint = TCP4ServerEndpoint(reactor, int(listen), interface="127.0.0.1")
    listening: Deferred[Any] = endpoint.listen(_Factory(reactor, int(target), float(delay)))
    # A Deferred that never fires: the proxy runs until it is killed.
    return listening.addCallback(lambda _: Deferred())


if __name__ == "__main__":
    react(_main, sys.argv[1:])
