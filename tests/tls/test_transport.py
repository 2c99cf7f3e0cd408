"""The TLS transport: against a bare connection of OpenSSL in memory, and against Twisted's own TLS layer on the loopback."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any, cast

from OpenSSL import SSL
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, wrapClientTLS, wrapServerTLS
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHandshakeListener, ISSLTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from dicomtwist.endpoints import PeerCertificateError, client_tls_options, server_tls_options
from dicomtwist.tls import server_tls
from dicomtwist.tls.transport import MAX_READ_SIZE, TLSFactory, TLSTransport, wrap_client_tls, wrap_server_tls
from tests.certificates import Authority

reactor = cast(Any, _reactor)

#: ``SSL_OP_ALLOW_CLIENT_RENEGOTIATION`` of OpenSSL's ``ssl.h``, for which pyOpenSSL has no name.
_OP_ALLOW_CLIENT_RENEGOTIATION = 1 << 8


@implementer(IHandshakeListener)
class Recorder(Protocol):
    """Records all that its transport tells it."""

    transport: Any

    def __init__(self, received: Callable[[Recorder], None] | None = None) -> None:
        self.deliveries: list[bytes] = []
        self.on_received = received
        self.handshakes = 0
        self.complete: Deferred[None] = Deferred()
        self.lost: Deferred[None] = Deferred()
        self.reason: BaseException | None = None

    @property
    def received(self) -> bytes:
        return b"".join(self.deliveries)

    def handshakeCompleted(self) -> None:
        self.handshakes += 1
        self.complete.callback(None)

    def dataReceived(self, data: bytes) -> None:
        self.deliveries.append(data)
        if self.on_received is not None:
            self.on_received(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.reason = reason.value
        self.lost.callback(None)


@implementer(IHandshakeListener)
class EarlyWriter(Recorder):
    """Writes before the handshake, and closes if told so."""

    closes = False

    def connectionMade(self) -> None:
        self.transport.write(b"early ")
        self.transport.writeSequence([b"words", b", "])
        if self.closes:
            self.transport.loseConnection()

    def handshakeCompleted(self) -> None:
        super().handshakeCompleted()
        self.transport.write(b"later words")


class OneFactory(Factory):
    noisy = False

    def __init__(self, one: Protocol) -> None:
        self.one = one

    def buildProtocol(self, addr: object) -> Protocol:
        return self.one


class Producer:
    """Counts the calls of its consumer."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


class InMemory(SynchronousTestCase):
    """Our server on a transport in memory; the peer is a connection of OpenSSL without a transport."""

    def setUp(self) -> None:
        folder = self.mktemp()
        os.mkdir(folder)
        authority = Authority(folder, "ours")
        self.pem = authority.issue("server", "localhost")
        self.ca = authority.path
        self.server = server_tls_options(self.pem, self.pem, client_certificate="none")
        self.client = client_tls_options("localhost", self.ca)

    def connect(self, above: Recorder, server: Any = None, peer: SSL.Connection | None = None) -> None:
        """Connect *above* to the peer, without a handshake."""
        self.below = StringTransport()
        self.tls = TLSFactory(server or self.server, False, OneFactory(above)).buildProtocol(cast(Any, None))
        self.tls.makeConnection(self.below)
        self.peer = peer or self.client.clientConnectionForTLS(cast(Any, None))
        self.peer.set_connect_state()

    def from_peer(self) -> bytes:
        """Return the output of the peer."""
        parts = []
        try:
            while True:
                parts.append(self.peer.bio_read(2**16))
        except SSL.WantReadError:
            return b"".join(parts)

    def to_peer(self) -> bytes:
        """Give our output to the peer; return the content."""
        data = self.below.value()
        self.below.clear()
        if data:
            self.peer.bio_write(data)
        parts = []
        try:
            while True:
                parts.append(self.peer.recv(2**16))
        except (SSL.WantReadError, SSL.ZeroReturnError):
            return b"".join(parts)

    def shake_hands(self) -> bytes:
        """Complete the handshake; return the content that arrived with it."""
        content = b""
        for _ in range(4):
            try:
                self.peer.do_handshake()
            except SSL.WantReadError:
                pass
            data = self.from_peer()
            if data:
                self.tls.dataReceived(data)
            content += self.to_peer()
        return content


class ReceivingTests(InMemory):
    def test_one_delivery_for_a_read(self) -> None:
        """All records of one read are passed on together."""
        above = Recorder()
        self.connect(above)
        self.shake_hands()
        content = os.urandom(200_000)
        self.peer.sendall(content)
        self.tls.dataReceived(self.from_peer())
        self.assertEqual(above.deliveries, [content])

    def test_any_segmentation(self) -> None:
        """The handshake and the records arrive in segments of any length."""
        for seed, longest in enumerate((1, 2, 5, 17, 300, 20_000)):
            above = Recorder()
            self.connect(above)
            chance = random.Random(seed)

            def feed(data: bytes, chance: random.Random = chance, longest: int = longest) -> None:
                while data:
                    length = chance.randint(1, longest)
                    self.tls.dataReceived(data[:length])
                    data = data[length:]

            for _ in range(4):
                try:
                    self.peer.do_handshake()
                except SSL.WantReadError:
                    pass
                feed(self.from_peer())
                self.to_peer()
            self.assertEqual(above.handshakes, 1)
            content = os.urandom(40_000)
            self.peer.sendall(content)
            feed(self.from_peer())
            self.assertEqual(above.received, content)

    def test_broken_record(self) -> None:
        """The content before a forged record is passed on, nothing of it and after it; the peer gets an alert."""
        above = Recorder()
        self.connect(above)
        self.shake_hands()
        self.peer.send(b"whole")
        whole = self.from_peer()
        self.peer.send(b"forged")
        forged = bytearray(self.from_peer())
        forged[-1] ^= 1
        self.peer.send(b"after it")
        self.tls.dataReceived(whole + bytes(forged) + self.from_peer())
        self.assertEqual(above.received, b"whole")
        self.assertTrue(self.below.disconnecting)
        self.assertRaises(SSL.Error, self.to_peer)
        self.tls.dataReceived(b"more of it")
        self.tls.write(b"nobody reads this")
        self.tls.connectionLost(Failure(ConnectionDone()))
        self.assertIsInstance(above.reason, SSL.Error)
        self.assertEqual(above.received, b"whole")

    def test_close_notify(self) -> None:
        """A close of the peer is answered, and the content before it arrives."""
        above = Recorder()
        self.connect(above)
        self.shake_hands()
        self.peer.send(b"last words")
        self.peer.shutdown()
        self.tls.dataReceived(self.from_peer())
        self.assertEqual((above.received, above.reason), (b"last words", None))
        self.assertTrue(self.below.disconnecting)
        self.to_peer()
        self.assertTrue(self.peer.get_shutdown() & SSL.RECEIVED_SHUTDOWN)
        self.tls.connectionLost(Failure(ConnectionDone()))
        self.assertIsInstance(above.reason, ConnectionDone)

    def test_close_without_close_notify(self) -> None:
        """An end that TLS did not announce is a lost connection, in the middle of a record and between two."""
        for cut in (0, 7):
            above = Recorder()
            self.connect(above)
            self.shake_hands()
            self.peer.send(b"more to come")
            data = self.from_peer()
            self.tls.dataReceived(data[: len(data) - cut])
            self.tls.connectionLost(Failure(ConnectionDone()))
            self.assertEqual(above.received, b"" if cut else b"more to come")
            self.assertIsInstance(above.reason, ConnectionLost)
            self.assertIsNone(self.tls.getPeerCertificate())

    def test_nothing_after_an_abort(self) -> None:
        """A protocol that aborts receives no more, and the transport below is aborted."""
        above = Recorder(lambda one: one.transport.abortConnection())
        self.connect(above)
        self.shake_hands()
        self.peer.send(b"first")
        self.tls.dataReceived(self.from_peer())
        self.peer.send(b"second")
        self.tls.dataReceived(self.from_peer())
        self.assertEqual(above.received, b"first")
        self.assertTrue(self.below.disconnected or self.below.disconnecting)

    def test_renegotiation(self) -> None:
        """A TLS 1.2 context of the user may allow renegotiation: content crosses it in both directions, in order."""
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(_OP_ALLOW_CLIENT_RENEGOTIATION)
        context.use_certificate_chain_file(self.pem)
        context.use_privatekey_file(self.pem)
        mine = SSL.Context(SSL.TLS_METHOD)
        mine.set_max_proto_version(SSL.TLS1_2_VERSION)
        above = Recorder()
        self.connect(above, server_tls(context), SSL.Connection(mine))
        self.shake_hands()
        self.assertEqual(above.handshakes, 1)
        self.peer.renegotiate()
        self.assertRaises(SSL.WantReadError, self.peer.do_handshake)
        self.tls.dataReceived(self.from_peer())
        content = os.urandom(50_000)
        self.tls.write(content)
        self.tls.write(b"the end")
        arrived = self.shake_hands()
        self.assertEqual(arrived, content + b"the end")
        self.peer.send(b"and back")
        self.tls.dataReceived(self.from_peer())
        self.assertEqual((above.received, above.handshakes), (b"and back", 1))


class WritingTests(InMemory):
    def test_interfaces(self) -> None:
        self.connect(Recorder())
        self.assertTrue(ISSLTransport.providedBy(self.tls))
        self.assertIsInstance(self.tls.getHandle(), SSL.Connection)

    def test_written_at_once(self) -> None:
        """Content is with the transport below when write returns, whole and for any length."""
        self.connect(Recorder())
        self.shake_hands()
        for length in (1, 100, 2**14 - 1, 2**14, 2**14 + 1, 262_143, 262_144, 262_145, 1_000_000):
            content = os.urandom(length)
            self.tls.write(content)
            self.assertEqual(self.to_peer(), content)
        self.tls.write(b"")
        self.assertEqual(self.below.value(), b"")
        self.assertRaises(TypeError, self.tls.write, "text")

    def test_written_before_the_handshake(self) -> None:
        """The content that was written before the handshake arrives first."""
        self.connect(EarlyWriter())
        self.assertEqual(self.shake_hands(), b"early words, later words")

    def test_closed_before_the_handshake(self) -> None:
        """A protocol that writes and closes before the handshake: what it wrote arrives, then the close."""
        above = EarlyWriter()
        above.closes = True
        self.connect(above)
        self.assertEqual(self.shake_hands(), b"early words, ")
        self.assertTrue(self.peer.get_shutdown() & SSL.RECEIVED_SHUTDOWN)

    def test_close_during_the_handshake(self) -> None:
        """Nothing can be closed in order during a handshake: the transport below is aborted."""
        self.connect(Recorder())
        aborted: list[None] = []
        self.patch(self.below, "abortConnection", lambda: aborted.append(None))
        self.tls.loseConnection()
        self.assertEqual(aborted, [None])

    def test_close(self) -> None:
        """A close sends a close_notify and waits for the peer's; nothing is written after it."""
        self.connect(Recorder())
        self.shake_hands()
        self.tls.write(b"words")
        self.tls.loseConnection()
        self.tls.loseConnection()
        self.tls.write(b"too late")
        self.assertEqual(self.to_peer(), b"words")
        self.assertFalse(self.below.disconnecting)
        self.peer.shutdown()
        self.tls.dataReceived(self.from_peer())
        self.assertTrue(self.below.disconnecting)

    def test_close_waits_for_the_producer(self) -> None:
        """A close waits until the producer is unregistered; it writes until then."""
        self.connect(Recorder())
        self.shake_hands()
        self.tls.registerProducer(Producer(), True)
        self.tls.loseConnection()
        self.tls.write(b"the rest")
        self.assertFalse(self.peer.get_shutdown() & SSL.RECEIVED_SHUTDOWN)
        self.tls.unregisterProducer()
        self.assertEqual(self.to_peer(), b"the rest")
        self.assertTrue(self.peer.get_shutdown() & SSL.RECEIVED_SHUTDOWN)

    def test_producers(self) -> None:
        """A producer pauses with the transport below and while content waits for the handshake; one at a time."""
        self.connect(Recorder())
        producer = Producer()
        self.tls.registerProducer(producer, True)
        self.assertRaises(RuntimeError, self.tls.registerProducer, Producer(), True)
        self.tls.write(b"before the handshake")
        self.assertEqual(producer.calls, ["pause"])
        self.shake_hands()
        self.assertEqual(producer.calls, ["pause", "resume"])
        below = cast(Any, self.below.producer)
        below.pauseProducing()
        below.pauseProducing()
        self.assertEqual(producer.calls, ["pause", "resume", "pause"])
        self.tls.unregisterProducer()
        late = Producer()
        self.tls.registerProducer(late, True)
        self.assertEqual(late.calls, ["pause"])
        below.resumeProducing()
        self.assertEqual(late.calls, ["pause", "resume"])
        self.tls.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(late.calls, ["pause", "resume", "stop"])
        gone = Producer()
        self.tls.registerProducer(gone, True)
        self.assertEqual(gone.calls, ["stop"])


class Pull:
    """A pull producer that writes its parts, one for each call."""

    def __init__(self, transport: Any, parts: list[bytes]) -> None:
        self.transport = transport
        self.parts = parts

    def resumeProducing(self) -> None:
        self.transport.write(self.parts.pop(0))
        if not self.parts:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def stopProducing(self) -> None:
        pass


class LoopbackTests(TestCase):
    """Our transport on sockets. The other side is Twisted's own."""

    timeout = 30.0

    def setUp(self) -> None:
        folder = self.mktemp()
        os.mkdir(folder)
        self.authority = Authority(folder, "ours")
        self.pem = self.authority.issue("server", "localhost", "127.0.0.1")
        self.server = server_tls_options(self.pem, self.pem, client_certificate="none")
        self.client = client_tls_options("localhost", self.authority.path)

    async def connected(self, we_serve: bool, ours: Recorder, theirs: Recorder, client: Any = None) -> None:
        """Connect both sides. Our side is the server or the client."""
        plain = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        above = (ours, theirs) if we_serve else (theirs, ours)
        listening = (wrap_server_tls if we_serve else wrapServerTLS)(self.server, plain).listen(OneFactory(above[0]))
        port = await listening
        self.addCleanup(port.stopListening)
        target = TCP4ClientEndpoint(reactor, "127.0.0.1", cast(Any, port.getHost()).port)
        connecting = (wrapClientTLS if we_serve else wrap_client_tls)(client or self.client, target)
        one = await connecting.connect(OneFactory(above[1]))
        self.assertIs(one, above[1])
        self.assertIsInstance(ours.transport, TLSTransport)

    async def exchange(self, we_serve: bool) -> None:
        content = os.urandom(5_000_000)

        def close_after_all(one: Recorder) -> None:
            if sum(map(len, one.deliveries)) == len(content):
                one.transport.loseConnection()

        ours, theirs = Recorder(), Recorder(close_after_all)
        await self.connected(we_serve, ours, theirs)
        await ours.complete
        await theirs.complete
        ours.transport.write(content)
        theirs.transport.write(content)
        await ours.lost
        await theirs.lost
        self.assertTrue(ours.received == content, "our side received the content")
        self.assertTrue(theirs.received == content, "the other side received the content")
        self.assertIsInstance(ours.reason, ConnectionDone)
        self.assertIsInstance(theirs.reason, ConnectionDone)
        self.assertGreater(max(map(len, ours.deliveries)), 2**14)
        self.assertLessEqual(max(map(len, ours.deliveries)), MAX_READ_SIZE)

    def test_much_in_both_directions_as_server(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.exchange(True))

    def test_much_in_both_directions_as_client(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.exchange(False))

    def test_peer_that_does_not_read(self) -> Deferred[None]:
        """The producer pauses while the peer does not read, and everything arrives after it does."""

        async def run() -> None:
            ours, theirs = Recorder(), Recorder()
            await self.connected(True, ours, theirs)
            await ours.complete
            await theirs.complete
            theirs.transport.pauseProducing()
            paused: Deferred[None] = Deferred()
            resumed: Deferred[None] = Deferred()

            class Pushing(Producer):
                def pauseProducing(self) -> None:
                    paused.callback(None)

                def resumeProducing(self) -> None:
                    resumed.callback(None)

            ours.transport.registerProducer(Pushing(), True)
            written = 0
            while not paused.called:
                self.assertLess(written, 100_000_000, "the buffers of the kernel are limited")
                ours.transport.write(bytes(2**18))
                written += 2**18
            theirs.transport.resumeProducing()
            await resumed
            ours.transport.unregisterProducer()
            ours.transport.loseConnection()
            await theirs.lost
            await ours.lost
            self.assertEqual(len(theirs.received), written)

        return Deferred.fromCoroutine(run())

    def test_pull_producer(self) -> Deferred[None]:
        async def run() -> None:
            ours, theirs = Recorder(), Recorder()
            await self.connected(True, ours, theirs)
            await ours.complete
            parts = [os.urandom(100_000) for _ in range(20)]
            content = b"".join(parts)
            ours.transport.registerProducer(Pull(ours.transport, parts), False)
            await theirs.lost
            await ours.lost
            self.assertTrue(theirs.received == content)

        return Deferred.fromCoroutine(run())

    def test_pull_producer_that_fails(self) -> Deferred[None]:
        """An error of a pull producer is logged and ends the connection."""

        async def run() -> None:
            ours, theirs = Recorder(), Recorder()
            await self.connected(True, ours, theirs)
            await ours.complete
            ours.transport.registerProducer(Pull(ours.transport, []), False)
            await ours.lost
            await theirs.lost
            self.assertEqual(len(self.flushLoggedErrors(IndexError)), 1)

        return Deferred.fromCoroutine(run())

    def test_creator_of_twisted(self) -> Deferred[None]:
        """Twisted's own client options refuse a wrong host name through failVerification: no handshake is reported."""

        async def run() -> None:
            ca = Certificate.loadPEM(open(self.authority.path, "rb").read())
            for name, good in (("localhost", True), ("other.example", False)):
                creator = optionsForClientTLS(name, trustRootFromCertificates([ca]))
                ours, theirs = Recorder(), Recorder(lambda one: one.transport.loseConnection())
                await self.connected(False, ours, theirs, creator)
                if good:
                    await ours.complete
                    ours.transport.write(b"words")
                await ours.lost
                await theirs.lost
                self.assertEqual((ours.handshakes, theirs.received), (good, b"words" if good else b""))
                self.assertEqual(isinstance(ours.reason, ConnectionDone), good)

        return Deferred.fromCoroutine(run())

    def test_refused_certificate(self) -> Deferred[None]:
        async def run() -> None:
            ours, theirs = Recorder(), Recorder()
            await self.connected(False, ours, theirs, client_tls_options("other.example", self.authority.path))
            await ours.lost
            await theirs.lost
            self.assertIsInstance(ours.reason, PeerCertificateError)
            self.assertEqual(ours.handshakes, 0)
            self.assertIsInstance(theirs.reason, SSL.Error)

        return Deferred.fromCoroutine(run())
