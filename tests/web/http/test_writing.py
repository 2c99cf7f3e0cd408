"""dicomtwist.web.http.channel over real sockets: what is written directly to them arrives, in order."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from dicomtwist.web.http.site import Site
from dicomtwist.web.request import DICOMwebRequest, Piece

reactor: Any = _reactor

PIECE = bytes(range(256)) * 4096
#: More than the kernel keeps for a connection.
COUNT = 40


class Large(Resource):
    """Answers with much, in pieces: a length is stated for the path ``/known``."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        self.cancelled: Deferred[None] = Deferred()

    def render_GET(self, http: Any) -> int:
        absent: Any = None
        request = DICOMwebRequest(http, absent, absent, absent)
        length = COUNT * len(PIECE) if http.uri == b"/known" else None
        running = Deferred.fromCoroutine(request.stream(self.pieces(), "application/octet-stream", length=length))
        running.addErrback(self.failed)
        http.notifyFinish().addErrback(lambda _: running.cancel())
        return NOT_DONE_YET

    def failed(self, reason: Failure) -> None:
        reason.trap(CancelledError)
        self.cancelled.callback(None)

    async def pieces(self) -> AsyncIterator[Piece]:
        for number in range(COUNT):
            self.sent += 1
            yield PIECE if number % 2 else [PIECE[:100], memoryview(PIECE)[100:]]


class Narrow(Site):
    """A site whose connections take little at a time, so that each piece is written in several parts."""

    def connected(self, channel: Any) -> None:
        channel.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1024)
        super().connected(channel)


class Reader(Protocol):
    """Sends requests, and collects what arrives until there is enough."""

    transport: Any

    def __init__(self, data: bytes, is_enough: Callable[[bytearray], bool]) -> None:
        self._data, self._is_enough = data, is_enough
        self.received = bytearray()
        self.done: Deferred[None] = Deferred()
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(self._data)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if not self.done.called and self._is_enough(self.received):
            self.done.callback(None)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(None)


class Writing(TestCase):
    async def setUp(self) -> None:  # type: ignore[override]
        self.resource = Large()
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Narrow(self.resource, reactor))
        self.addCleanup(port.stopListening)
        self.endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)

    async def read(self, path: str, is_enough: Callable[[bytearray], bool], *fields: str) -> Reader:
        request = "\r\n".join((f"GET {path} HTTP/1.1", "Host: x", *fields, "", ""))
        reader: Reader = await connectProtocol(self.endpoint, Reader(request.encode(), is_enough))
        return reader

    async def test_whole(self) -> None:
        """A response that the kernel does not take at once is complete, also if the connection is closed after it."""
        length = COUNT * len(PIECE)
        reader = await self.read("/known", lambda _: False, "Connection: close")
        await reader.lost
        head, _, body = bytes(reader.received).partition(b"\r\n\r\n")
        self.assertIn(b"Content-Length: %d" % length, head)
        self.assertEqual(len(body), length)
        self.assertTrue(body == COUNT * PIECE)

    async def test_chunks(self) -> None:
        """Without a length each piece is a chunk, in one buffer or in several."""
        chunk = b"%x\r\n%b\r\n" % (len(PIECE), PIECE)
        expected = COUNT * chunk + b"0\r\n\r\n"
        reader = await self.read("/", lambda received: received.endswith(b"\r\n0\r\n\r\n"))
        await reader.done
        self.assertTrue(bytes(reader.received).partition(b"\r\n\r\n")[2] == expected)
        reader.transport.loseConnection()
        await reader.lost

    async def test_client_leaves(self) -> None:
        """A client that leaves in the middle ends the work."""
        reader = await self.read("/known", lambda received: len(received) >= 1000)
        await reader.done
        reader.transport.abortConnection()
        await reader.lost
        await self.resource.cancelled
        self.assertLess(self.resource.sent, COUNT)
