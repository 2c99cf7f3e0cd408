"""A forwarder of TCP connections that cuts some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from twisted.internet import reactor as _reactor
from twisted.protocols.portforward import ProxyClient, ProxyFactory, ProxyServer
from twisted.trial.unittest import TestCase

reactor = cast(Any, _reactor)


async def serve(testcase: TestCase, port: int, limits: Sequence[int]) -> int:
    """
    Forward connections to *port* on this machine until the end of the test.

    :param limits: the bytes from the server after which the first connections are cut; later ones are not.
    :returns: the port to connect to.
    """
    left = list(limits)
    open_ones: list[Any] = []

    class Client(ProxyClient):
        """The connection to the server."""

        def connectionMade(self) -> None:
            """Take the next limit."""
            super().connectionMade()
            self.left = left.pop(0) if left else 1 << 60
            open_ones.append(self)

        def dataReceived(self, data: bytes) -> None:
            """Forward bytes as long as the limit allows."""
            self.left -= len(data)
            if self.left < 0:
                for side in (self.peer, self):
                    cast(Any, side).transport.abortConnection()
            else:
                super().dataReceived(data)

    class Clients(ProxyFactory.protocol.clientProtocolFactory):  # type: ignore[name-defined, misc]
        """Makes the connections to the server."""

        noisy = False
        protocol = Client

    class Server(ProxyServer):
        """The connection of the client."""

        clientProtocolFactory = Clients

    factory: Any = ProxyFactory("127.0.0.1", port)
    factory.noisy = False
    factory.protocol = Server
    listening = reactor.listenTCP(0, factory, interface="127.0.0.1")

    async def stop() -> None:
        for client in open_ones:
            client.transport.abortConnection()
        await listening.stopListening()

    testcase.addCleanup(stop)
    number: int = listening.getHost().port
    return number
