"""Delivery to a receiver that is down, that goes away, that does not read, with a clock and a network in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, deferLater
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from dicomtwist.audit.delivery import COMPLAIN_AFTER, HANDSHAKE, SETTLE, SOON, STOP, Delivery, Stream
from dicomtwist.audit.spool import Spool
from dicomtwist.endpoints import client_endpoint
from tests import peers

reactor: Any = _reactor


class Executor(Clock):
    """An executor whose calls are done at once."""

    def run_admitted(self, function: Any, *arguments: Any) -> Deferred[Any]:
        return maybeDeferred(function, *arguments)


class Receiver:
    """A syslog server, and the way to it."""

    place = "tls:receiver"
    settle = SETTLE

    def __init__(self) -> None:
        self.is_up = True
        self.attempts = 0
        self.received: list[bytes] = []
        self.line: Line | None = None

    def connect(self, delivery: Delivery) -> Deferred[Any]:
        self.attempts += 1
        if not self.is_up:
            return fail(ConnectionRefusedError())
        self.line = Line(self, delivery)
        delivery.connected(self.line)
        return succeed(None)

    def lose(self, *, keeps: int | None = None) -> None:
        """Lose the connection; of all that was sent only the first *keeps* messages have arrived."""
        line, self.line = self.line, None
        assert line is not None
        if keeps is not None:
            del self.received[keeps:]
        line.delivery.lost(Failure(ConnectionLost()))


class Line:
    """A connection."""

    def __init__(self, receiver: Receiver, delivery: Delivery) -> None:
        self.receiver, self.delivery = receiver, delivery
        self.is_paused = self.is_closed = False
        self.is_flushed = True

    def send(self, message: bytes) -> None:
        self.receiver.received.append(message)

    def close(self) -> None:
        self.is_closed = True
        self.receiver.line = None
        self.delivery.lost(Failure(ConnectionDone()))

    def abort(self) -> None:
        self.is_closed = True


class Deliveries(SynchronousTestCase):
    def setUp(self) -> None:
        self.spool = Spool(Path(self.mktemp()))
        self.addCleanup(self.spool.close)
        self.receiver, self.clock = Receiver(), Executor()
        self.delivery = self.make()
        self.complaints: list[Any] = []

        def observe(event: Any) -> None:
            if "not delivered" in event.get("log_format", ""):
                self.complaints.append(event)

        observer: Any = observe
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def make(self) -> Delivery:
        executor, receiver = (self.clock, self.receiver)
        any_executor: Any = executor
        any_receiver: Any = receiver
        return Delivery(self.clock, any_executor, self.spool, any_receiver)

    def put(self, *messages: bytes) -> None:
        self.spool.append(b"".join(one + b"\n" for one in messages))
        self.delivery.wake()

    def connected(self) -> Line:
        """Start the delivery, and return the connection that it has made."""
        self.delivery.start()
        line = self.receiver.line
        assert line is not None
        return line

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([0.5] * int(seconds * 2))

    def test_at_once(self) -> None:
        self.delivery.start()
        self.put(b"one")
        self.put(b"two", b"three")
        self.assertEqual(self.receiver.received, [b"one", b"two", b"three"])

    def test_what_the_run_before_has_left(self) -> None:
        self.spool.append(b"one\n")
        self.delivery.start()
        self.assertEqual(self.receiver.received, [b"one"])

    def test_a_receiver_that_is_down(self) -> None:
        """It is said once a minute, and everything arrives when it is up again."""
        self.receiver.is_up = False
        self.delivery.start()
        for number in range(60):
            self.put(b"%d" % number)
            self.pass_time(2)
        self.assertIn(len(self.complaints), (2, 3))
        self.assertLess(self.receiver.attempts, 15)
        self.receiver.is_up = True
        self.pass_time(COMPLAIN_AFTER)
        self.assertEqual(self.receiver.received, [b"%d" % number for number in range(60)])

    def test_a_connection_that_is_lost(self) -> None:
        """Messages that the receiver may not have got are sent again, and those that are settled are not."""
        self.delivery.start()
        self.put(b"old")
        self.pass_time(SETTLE + 2)
        self.put(b"one")
        self.put(b"two")
        self.receiver.lose(keeps=1)
        self.put(b"three")
        self.pass_time(5)
        self.assertEqual(self.receiver.received, [b"old", b"one", b"two", b"three"])

    def test_a_receiver_that_closes_at_once(self) -> None:
        """A connection that does not last is no success: the receiver is asked less often, and the log has few lines."""
        self.put(b"one")
        self.delivery.start()
        for _ in range(120):
            if self.receiver.line is not None:
                self.receiver.lose(keeps=0)
            self.pass_time(1)
        self.assertIn(len(self.complaints), (2, 3))
        self.assertLess(self.receiver.attempts, 15)

    def test_a_connection_without_messages_is_closed(self) -> None:
        """Nothing waits, so there is nothing to complain of."""
        self.delivery.start()
        for _ in range(3):
            self.put(b"one")
            self.pass_time(SETTLE + 2)
            self.receiver.lose()
            self.pass_time(2)
        self.assertEqual((self.complaints, self.receiver.attempts), ([], 4))

    def test_not_acknowledged(self) -> None:
        """A message counts when the receiver's system has acknowledged it, however long the connection lives."""
        line = self.connected()
        line.is_flushed = False
        self.put(b"one")
        self.pass_time(10 * SETTLE)
        self.assertEqual(self.spool.read(self.spool.first())[0], [b"one"])
        self.receiver.lose(keeps=0)
        self.pass_time(2)
        self.assertEqual(self.receiver.received, [b"one"])
        self.pass_time(SETTLE + 2)
        self.assertEqual(self.spool.read(self.spool.first())[0], [])

    def test_a_slow_receiver(self) -> None:
        """Not much is written before it is acknowledged, so that a receiver gets on even if no connection lasts."""
        messages = [b"%04d" % number + b"x" * 10_000 for number in range(100)]
        self.put(*messages)
        self.delivery.start()
        for _ in messages:
            line = self.receiver.line
            if line is None:
                break
            line.is_flushed = False
            begun = len(self.receiver.received)
            self.pass_time(60)
            self.assertLess(len(self.receiver.received) - begun, 80)
            line.is_flushed = True
            self.clock.advance(SOON)
            line.is_flushed = False
            self.pass_time(SETTLE + 2)
            self.receiver.lose()
            self.pass_time(40)
        self.assertEqual(list(dict.fromkeys(self.receiver.received)), messages)

    def test_a_restart(self) -> None:
        """A process that is killed sends again what it was not sure of."""
        self.delivery.start()
        self.put(b"old")
        self.pass_time(SETTLE + 2)
        self.put(b"one")
        self.receiver.received.clear()
        self.spool = Spool(self.spool.folder)
        self.delivery = self.make()
        self.delivery.start()
        self.assertEqual(self.receiver.received, [b"one"])

    def test_a_receiver_that_does_not_read(self) -> None:
        line = self.connected()
        line.is_paused = True
        self.put(b"one")
        self.assertEqual(self.receiver.received, [])
        line.is_paused = False
        self.delivery.resumed()
        self.assertEqual(self.receiver.received, [b"one"])

    def test_segments_are_removed(self) -> None:
        self.delivery.start()
        self.put(b"x" * 1000)
        self.pass_time(SETTLE + 2)
        self.assertEqual(self.spool.read(self.spool.first())[0], [])

    def test_stop(self) -> None:
        """After a stop in order nothing is sent again."""
        self.delivery.start()
        self.put(b"one")
        self.successResultOf(self.delivery.stop())
        self.assertEqual(self.receiver.received, [b"one"])
        self.assertEqual(Spool(self.spool.folder).read(self.spool.first())[0], [])
        self.assertFalse(self.clock.getDelayedCalls())

    def test_stop_while_it_is_down(self) -> None:
        self.receiver.is_up = False
        self.delivery.start()
        self.put(b"one")
        self.successResultOf(self.delivery.stop())
        self.assertEqual(self.spool.read(self.spool.first())[0], [b"one"])
        self.assertFalse(self.clock.getDelayedCalls())

    def test_stop_with_a_receiver_that_does_not_read(self) -> None:
        line = self.connected()
        line.is_paused = True
        self.put(b"one")
        stopping = self.delivery.stop()
        self.assertNoResult(stopping)
        self.clock.advance(STOP)
        self.successResultOf(stopping)
        self.assertEqual(self.spool.read(self.spool.first())[0], [b"one"])


class _Peer(Protocol):
    """A receiver on a socket, which closes after the last byte, as syslog servers do."""

    def __init__(self, *, reads: bool) -> None:
        self.reads = reads
        self.data = b""
        self.made: Deferred[None] = Deferred()
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        wire: Any = self.transport
        if not self.reads:
            wire.pauseProducing()
        self.made.callback(None)

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(None)


class Sockets(TestCase):
    """A stop, with a receiver that reads and with one that hangs, on a connection without TLS."""

    timeout = 15

    async def stop(self, peer: _Peer) -> Spool:
        """Send a message to a receiver, and stop; return the spool."""
        spool, clock = Spool(Path(self.mktemp())), Executor()
        self.addCleanup(spool.close)
        any_executor: Any = clock
        any_factory: Any = Factory.forProtocol(lambda: peer)
        any_factory.noisy = False
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(any_factory)
        self.addCleanup(port.stopListening)
        stream = Stream(lambda: TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port), "tcp:receiver")
        delivery = Delivery(clock, any_executor, spool, stream)
        spool.append(b"one\n")
        made: Deferred[None] = Deferred()
        connected = delivery.connected

        def note(line: Any) -> None:
            connected(line)
            made.callback(None)

        self.patch(delivery, "connected", note)
        delivery.start()
        await made
        await peer.made
        stopping = delivery.stop()
        if not peer.reads:
            clock.advance(STOP)
            wire: Any = peer.transport
            wire.abortConnection()
        await stopping
        await peer.lost
        self.assertFalse(clock.getDelayedCalls())
        return spool

    async def test_it_reads(self) -> None:
        peer = _Peer(reads=True)
        spool = await self.stop(peer)
        self.assertEqual(peer.data, b"3 one")
        self.assertEqual(spool.read(spool.first())[0], [])

    async def test_it_hangs(self) -> None:
        """Messages that the receiver has not read are sent again after the next start."""
        spool = await self.stop(_Peer(reads=False))
        self.assertEqual(spool.read(spool.first())[0], [b"one"])

    async def test_a_handshake_that_hangs(self) -> None:
        """The receiver's system accepts connections, and the receiver does not: nothing is lost, and the log says so."""
        spool, clock, peer = Spool(Path(self.mktemp())), Executor(), _Peer(reads=False)
        self.addCleanup(spool.close)
        any_executor: Any = clock
        any_factory: Any = Factory.forProtocol(lambda: peer)
        any_factory.noisy = False
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(any_factory)
        self.addCleanup(port.stopListening)
        target = f"dicomtls:127.0.0.1:{port.getHost().port}:trustRoots={peers.certificates().ca}"
        delivery = Delivery(
            clock, any_executor, spool, Stream(lambda: client_endpoint(reactor, target), "tls:receiver")
        )
        lost: Deferred[Exception] = Deferred()
        self.patch(delivery, "_failed", lambda reason: lost.callback(reason.value))
        spool.append(b"one\n")
        delivery.start()
        await peer.made
        while not any("_hangs" in str(call) for call in clock.getDelayedCalls()):
            await deferLater(reactor, 0)
        clock.pump([1.0] * (int(HANDSHAKE) - 1))
        self.assertEqual(spool.read(spool.first())[0], [b"one"])
        clock.pump([1.0] * 2)
        self.assertIn("has not completed the handshake of TLS in 30 s", str(await lost))
        await delivery.stop()
        wire: Any = peer.transport
        wire.abortConnection()
        await peer.lost
