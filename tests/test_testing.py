"""The test kit itself: its transports behave as Twisted's do, and its guide is right."""

from __future__ import annotations

import re
import unittest
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError, ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import AE
from dicomtwist.sop_class import Verification
from dicomtwist.testing import MemoryNetwork, MemoryTransport
from dicomtwist.testing.transport import READ_SIZE, WIRE_SIZE


class Recorder(Protocol):
    def __init__(self) -> None:
        self.received = b""
        self.reads = 0
        self.reason: BaseException | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self.reads += 1

    def connectionLost(self, reason: Any = None) -> None:
        self.reason = reason.value


class Producer:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


class Transports(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.server = Recorder()
        self.network.listenTCP(1, Factory.forProtocol(lambda: self.server))
        self.client = self.network.scripted_client(1)
        self.ours: MemoryTransport = self.network.connections[0].client
        self.theirs: MemoryTransport = self.network.connections[0].server

    def test_bytes_only(self) -> None:
        for data in ("text", bytearray(b"x"), memoryview(b"x")):
            self.assertRaises(TypeError, self.ours.write, data)

    def test_both_ways(self) -> None:
        self.ours.writeSequence([b"a", b"b"])
        self.theirs.write(b"back")
        self.assertEqual(self.server.received, b"", "not before it is told to")
        self.network.flush()
        self.assertEqual((self.server.received, bytes(self.client.received)), (b"ab", b"back"))
        self.assertEqual((self.ours.bytes_written, self.theirs.bytes_read), (2, 2))
        self.assertEqual(self.ours.getPeer(), self.theirs.getHost())
        self.ours.setTcpNoDelay(True)
        self.assertTrue(self.ours.getTcpNoDelay())

    def test_large_reads_are_cut(self) -> None:
        self.client.send(bytes(3 * READ_SIZE))
        self.assertEqual((self.server.reads, len(self.server.received)), (3, 3 * READ_SIZE))

    def test_a_producer(self) -> None:
        producer = Producer()
        self.theirs.pauseProducing()
        self.ours.registerProducer(producer, True)
        self.assertRaises(RuntimeError, self.ours.registerProducer, producer, True)
        self.ours.write(bytes(READ_SIZE))
        self.assertEqual(producer.calls, [])
        self.ours.write(bytes(WIRE_SIZE))
        self.assertEqual(producer.calls, ["pause"])
        self.network.flush()
        self.assertEqual((producer.calls, self.ours.buffered), (["pause"], READ_SIZE))
        self.theirs.resumeProducing()
        self.network.flush()
        self.assertEqual(producer.calls, ["pause", "resume"])
        self.theirs.abortConnection()
        self.network.flush()
        self.assertEqual(producer.calls, ["pause", "resume", "stop"])
        self.ours.registerProducer(producer, True)
        self.assertEqual(producer.calls[-2:], ["stop", "stop"])

    def test_closing_flushes_what_was_written(self) -> None:
        self.theirs.pauseProducing()
        self.ours.write(bytes(300_000))
        self.ours.loseConnection()
        self.network.flush()
        self.assertTrue(self.ours.connected)
        self.theirs.resumeProducing()
        self.network.flush()
        self.assertEqual(len(self.server.received), 300_000)
        self.assertIsInstance(self.server.reason, ConnectionDone)
        self.assertIsInstance(self.client.closed, ConnectionDone)

    def test_closing_reads_no_more(self) -> None:
        self.theirs.frozen = True
        self.ours.write(bytes(300_000))
        self.ours.loseConnection()
        self.theirs.write(b"too late")
        self.theirs.frozen = False
        self.network.flush()
        self.assertEqual(self.client.received, b"")
        self.assertIsInstance(self.client.closed, ConnectionDone)

    def test_aborting_flushes_nothing(self) -> None:
        self.theirs.pauseProducing()
        self.client.send(b"on its way")
        self.ours.write(b"not yet")
        self.ours.abortConnection()
        self.ours.write(b"never")
        self.network.flush()
        self.assertIsInstance(self.client.closed, ConnectionAborted)
        self.assertIsNone(self.server.reason, "who does not read does not notice")
        self.theirs.resumeProducing()
        self.network.flush()
        self.assertIsInstance(self.server.reason, ConnectionLost)
        self.assertEqual(self.server.received, b"")

    def test_writing_to_who_is_gone(self) -> None:
        self.theirs.pauseProducing()
        self.client.close()
        self.theirs.write(b"x")
        self.network.flush()
        self.assertIsInstance(self.server.reason, ConnectionLost)

    def test_a_cut(self) -> None:
        self.network.connections[0].cut()
        self.assertIsInstance(self.server.reason, ConnectionLost)
        self.assertIsInstance(self.client.closed, ConnectionLost)
        self.assertFalse(self.network.connections[0].is_open)

    def test_a_protocol_that_raises(self) -> None:
        self.server.dataReceived = lambda data: 1 // 0  # type: ignore[method-assign,assignment]
        self.client.send(b"x")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIsInstance(self.server.reason, ZeroDivisionError)
        self.assertIsInstance(self.client.closed, ConnectionLost)


class Network(SynchronousTestCase):
    def test_time(self) -> None:
        network = MemoryNetwork()
        seen: list[float] = []

        def tick() -> None:
            seen.append(network.seconds())
            if len(seen) < 5:
                network.callLater(1.5, tick)

        network.callLater(1, tick)
        network.advance(6)
        self.assertEqual(seen, [1, 2.5, 4, 5.5])
        self.assertEqual(network.seconds(), 6)
        network.advance(1)
        self.assertEqual(seen[-1], 7)

    def test_no_result(self) -> None:
        network = MemoryNetwork()
        waiting: Deferred[int] = Deferred()
        self.assertRaises(AssertionError, network.result_of, waiting)

        async def fails() -> int:
            raise KeyError("x")

        self.assertRaises(KeyError, network.result_of, fails())
        waiting.callback(7)
        self.assertEqual(network.result_of(waiting), 7)

    def test_ports(self) -> None:
        network = MemoryNetwork()
        ae = AE(reactor=network)
        ae.add_supported_context(Verification)
        server = network.result_of(ae.start_server(104))
        self.assertEqual(server.port, 104)
        self.assertRaises(CannotListenError, network.result_of, ae.start_server(104))
        other = network.result_of(ae.start_server(("127.0.0.1", 0)))
        self.assertGreater(other.port, 1024)
        network.result_of(server.stop_listening())
        network.result_of(ae.start_server(104))
        self.assertRaises(AssertionError, network.scripted_client, 105)

    def test_work_in_threads(self) -> None:
        network = MemoryNetwork()
        ae = AE(reactor=network)
        network.works = False
        results = [ae.executors.decoding.run(int, "7"), ae.executors.decoding.run(int, "x")]
        network.flush()
        self.assertNoResult(results[0])
        self.assertEqual(len(network.pools), 1)
        network.works = True
        network.flush()
        self.assertEqual(self.successResultOf(results[0]), 7)
        self.failureResultOf(results[1], ValueError)
        self.assertEqual(network.pools, [])


class Guide(SynchronousTestCase):
    """The code of docs/guides/testing.md runs."""

    def setUp(self) -> None:
        guide = (Path(__file__).parent.parent / "docs" / "guides" / "testing.md").read_text()
        self.blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)

    def test_two_aes(self) -> None:
        names: dict[str, Any] = {"__name__": "guide"}
        exec(self.blocks[0], names)
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(names["EchoTest"]).run(result)
        self.assertEqual((result.testsRun, result.errors, result.failures), (2, [], []))

    def test_the_peer(self) -> None:
        network = MemoryNetwork()
        scp = AE("SCP", reactor=network)
        scp.add_supported_context(Verification)
        network.result_of(scp.start_server(11112))
        exec(self.blocks[2], {"network": network})
        network.scripted_client(11112)
        exec(self.blocks[1], {"network": network})
