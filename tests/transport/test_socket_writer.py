"""Writing directly to the socket: whatever part the kernel accepts, no byte is lost, repeated or out of order."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import TestCase

from dicomtwist.transport.socket_writer import SocketOutput, TransportOutput, make_output

LARGE = random.Random(1).randbytes(20_000_000)


class Writing(Protocol):
    """The writing end."""

    def __init__(self) -> None:
        self.full = 0
        self.free = 0
        self.progress = 0
        self.made: Deferred[None] = Deferred()
        self.resumed: Deferred[None] = Deferred()
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.output = make_output(self.transport, self)
        self.made.callback(None)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(None)

    def pauseProducing(self) -> None:
        self.full += 1

    def resumeProducing(self) -> None:
        self.free += 1
        self.resumed.callback(None)
        self.resumed = Deferred()

    def stopProducing(self) -> None:
        pass

    def write_progressed(self) -> None:
        self.progress += 1


class Reading(Protocol):
    """The reading end, which reads only on demand."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.made: Deferred[None] = Deferred()
        self.ended: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.pauseProducing()  # type: ignore[attr-defined]
        self.made.callback(None)

    def read(self) -> None:
        """Start to read."""
        assert self.transport is not None
        self.transport.resumeProducing()  # type: ignore[attr-defined]

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Any = None) -> None:
        self.ended.callback(bytes(self.data))


class OverSockets(TestCase):
    """A pair of connected ends over loopback."""

    timeout = 30

    async def connect(self, unix: bool = False) -> None:
        """Connect the pair."""
        self.writing, self.reading = Writing(), Reading()
        path = self.mktemp()
        listening: Any = (
            UNIXServerEndpoint(reactor, path) if unix else TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        )
        port = await listening.listen(Factory.forProtocol(lambda: self.writing))
        self.addCleanup(port.stopListening)
        where: Any = (
            UNIXClientEndpoint(reactor, path) if unix else TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        )
        await where.connect(Factory.forProtocol(lambda: self.reading))
        await self.writing.made
        self.assertIsInstance(self.writing.output, SocketOutput)

        writing, reading = self.writing, self.reading

        def close() -> Deferred[None]:
            for end in (writing, reading):
                if end.transport is not None and end.transport.connected:  # type: ignore[attr-defined]
                    end.transport.abortConnection()  # type: ignore[attr-defined]
            return writing.lost

        self.addCleanup(close)

    def close(self) -> None:
        """Close as the upper layer does."""
        self.writing.output.hand_over()
        assert self.writing.transport is not None
        self.writing.transport.unregisterProducer()  # type: ignore[attr-defined]
        self.writing.transport.loseConnection()

    async def test_small(self) -> None:
        """Bytes that the kernel accepts are sent at once."""
        await self.connect()
        self.reading.read()
        for number in range(100):
            self.writing.output.write([b"%03d" % number])
            self.writing.output.write([b"-", memoryview(b"x"), b"-"])
        self.assertEqual(self.writing.full, 0)
        self.close()
        self.assertEqual(await self.reading.ended, b"".join(b"%03d-x-" % number for number in range(100)))

    async def test_more_than_the_kernel_takes(self) -> None:
        """The writer is notified when the socket is full, when it accepts more, and when all bytes are sent."""
        for unix in (False, True):
            await self.connect(unix)
            view = memoryview(LARGE)
            pieces = [view[start : start + 99_999] for start in range(0, len(view), 99_999)]
            self.writing.output.write(pieces)
            self.assertEqual((self.writing.full, self.writing.free), (1, 0))
            self.writing.output.write([b"behind"])
            resumed = self.writing.resumed
            self.reading.read()
            await resumed
            self.assertEqual((self.writing.full, self.writing.free), (1, 1))
            self.assertGreater(self.writing.progress, 0)
            self.writing.output.write([b" and ", b"again"])
            self.close()
            self.assertEqual(await self.reading.ended, LARGE + b"behind and again")

    async def test_thousands_of_buffers(self) -> None:
        """More buffers than the kernel accepts in one call."""
        await self.connect()
        self.reading.read()
        resumed = self.writing.resumed
        self.writing.output.write([b"%06d" % number for number in range(5000)])
        await resumed
        self.close()
        self.assertEqual(await self.reading.ended, b"".join(b"%06d" % number for number in range(5000)))

    async def test_close_with_something_waiting(self) -> None:
        """Waiting bytes are written before the connection closes."""
        await self.connect()
        self.writing.output.write([LARGE])
        self.close()
        self.reading.read()
        self.assertEqual(await self.reading.ended, LARGE)

    async def test_what_was_handed_over_goes_first(self) -> None:
        """After them the writer uses the socket again."""
        await self.connect()
        self.writing.output.write([LARGE])
        self.writing.output.hand_over()
        self.writing.output.write([b"behind"])
        resumed = self.writing.resumed
        self.reading.read()
        await resumed
        self.writing.output.write([b" at once"])
        self.close()
        self.assertEqual(await self.reading.ended, LARGE + b"behind at once")

    async def test_a_peer_that_is_gone(self) -> None:
        """The transport notices and reports it."""
        await self.connect()
        self.writing.output.write([LARGE])
        self.reading.transport.abortConnection()  # type: ignore[union-attr]
        await self.writing.lost


class OtherTransports(TestCase):
    """A transport other than a plain socket is written to as usual in Twisted."""

    def test_in_memory(self) -> None:
        """A transport without a socket."""
        transport, writing = StringTransport(), Writing()
        output = make_output(transport, writing)
        self.assertIsInstance(output, TransportOutput)
        output.write([b"a", memoryview(b"b")])
        output.hand_over()
        self.assertEqual(transport.value(), b"ab")
        self.assertIs(transport.producer, writing)
