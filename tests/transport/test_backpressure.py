"""Nothing grows without a bound: peers that do not read, handlers that are slow, data sets that are too long."""

from __future__ import annotations

import builtins
import tracemalloc
from pathlib import Path
from typing import Any, BinaryIO

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from dicomtwist import AssociationAborted, AssociationLost, DataSetError, build_role, evt
from dicomtwist.datasets import CHUNK, Chunk, DataSetStream, outgoing_instance
from dicomtwist.dimse.messages import CEchoRSP
from dicomtwist.exchange.send_queue import MAX_PDUS
from dicomtwist.testing import ScriptedPeer
from dicomtwist.testing.transport import READ_SIZE, WIRE_SIZE
from dicomtwist.transport.socket_writer import WRITE_SIZE
from dicomtwist.transport.upper_layer import MAX_BACKLOG
from dicomtwist.ul.items import RoleSelection, UserInformation
from dicomtwist.ul.pdu import PDV, AAbort, PDataTF
from tests.memory import VERIFICATION, FailingFile, MemoryTestCase, echo, encoded, instance, part10, store


class PeerDoesNotRead(MemoryTestCase):
    def test_while_we_send_a_data_set(self) -> None:
        association, accepted = self.both((evt.EVT_C_STORE, lambda event: 0))
        ours, theirs = association.protocol.transport, accepted.protocol.transport
        theirs.frozen = True
        path = Path(self.mktemp())
        path.write_bytes(part10(50_000_000))
        storing = association.send_c_store(path)
        self.network.flush()
        self.assertLess(association.bytes_sent, 2 * WRITE_SIZE + WIRE_SIZE)
        self.assertIsNotNone(association.protocol.write_paused_since)
        theirs.frozen = False
        self.network.flush()
        self.assertEqual(self.successResultOf(storing), 0)
        self.assertLess(ours.most_buffered, 2 * WRITE_SIZE)
        self.assertGreater(theirs.bytes_read, 50_000_000)

    def test_what_it_asked_for(self) -> None:
        count = 20_000
        association, peer = self.scripted_scu()
        ours = association.protocol.transport
        request = b"".join(ScriptedPeer.encode_message(1, echo()))
        peer.transport.pauseProducing()
        peer.send(request * count)
        self.assertLess(ours.most_buffered, MAX_BACKLOG + 3 * READ_SIZE)
        self.assertFalse(ours.reading)
        self.assertIsNotNone(association.protocol.read_paused_since)
        self.assertGreater(peer.transport.buffered, len(request) * count // 2)
        peer.transport.resumeProducing()
        self.assertEqual(len(peer.messages()), count, "nothing is lost")
        self.assertLess(ours.most_buffered, MAX_BACKLOG + 3 * READ_SIZE)
        self.assertTrue(association.is_established)
        self.assertTrue(ours.reading)

    def test_many_small_data_sets(self) -> None:
        association, accepted = self.windowed((evt.EVT_C_STORE, lambda event: 0), size=50)
        accepted.protocol.transport.frozen = True
        stores = [association.send_c_store(instance(200_000)) for _ in range(50)]
        self.network.flush()
        ours = association.protocol.transport
        self.assertLess(ours.most_buffered, 2 * WRITE_SIZE)
        accepted.protocol.transport.frozen = False
        self.network.flush()
        self.assertEqual([self.successResultOf(one) for one in stores], [0] * 50)
        self.assertLess(ours.most_buffered, 2 * WRITE_SIZE)

    def test_what_it_asked_for_while_we_send_a_data_set(self) -> None:
        count = 20_000
        peer = self.network.scripted_server(105)
        asking = self.asking(105, ext_neg=[build_role(VERIFICATION, scu_role=True, scp_role=True)])
        peer.accept(information=UserInformation(roles=(RoleSelection(VERIFICATION, True, True),)))
        association = self.successResultOf(asking)
        peer.transport.pauseProducing()
        storing = association.send_c_store(instance(3_000_000))
        request = b"".join(ScriptedPeer.encode_message(1, echo()))
        peer.send(request * count)
        self.assertGreater(peer.transport.buffered, len(request) * count // 2)
        peer.transport.resumeProducing()
        self.assertEqual(len(peer.messages()), count + 1)
        self.assertNoResult(storing)
        storing.addErrback(lambda _: None)
        self.assertTrue(association.is_established)
        self.assertTrue(association.protocol.transport.reading)

    def test_its_abort_is_noticed_while_we_send_a_data_set(self) -> None:
        association, peer = self.scripted_scp()
        peer.transport.pauseProducing()
        storing = association.send_c_store(instance(50_000_000))
        self.network.flush()
        peer.send(AAbort(2, 0))
        self.assertTrue(self.failureResultOf(storing, AssociationAborted).value.by_peer)
        self.assertTrue(association.protocol.closed)
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_its_answers_are_read_while_we_send_a_data_set(self) -> None:
        association, accepted = self.windowed((evt.EVT_C_STORE, lambda event: 0), size=2)
        echoing = association.send_c_echo()
        storing = association.send_c_store(instance(50_000_000))
        echoing.addCallback(lambda status: accepted.bytes_received)
        self.network.flush()
        self.assertLess(self.successResultOf(echoing), 1_000_000)
        self.assertEqual(self.successResultOf(storing), 0)

    def test_an_echo_on_another_association_is_answered_meanwhile(self) -> None:
        _, peer = self.scripted_scu()
        peer.transport.pauseProducing()
        peer.send(b"".join(ScriptedPeer.encode_message(1, echo())) * 20_000)
        association = self.associate()
        self.assertEqual(self.network.result_of(association.send_c_echo()), 0)

    def test_many_stores_wait_with_their_files_closed(self) -> None:
        association, accepted = self.windowed((evt.EVT_C_STORE, lambda event: 0), size=4)
        accepted.protocol.transport.frozen = True
        opened: list[BinaryIO] = []
        self.record_opened(opened)
        path = Path(self.mktemp())
        path.write_bytes(part10(3_000_000))
        stores = [association.send_c_store(path) for _ in range(50)]
        self.network.flush()
        self.assertEqual(len(opened), 4)
        accepted.protocol.transport.frozen = False
        self.network.flush()
        self.assertEqual([self.successResultOf(one) for one in stores], [0] * 50)
        self.assertTrue(all(file.closed for file in opened))

    def record_opened(self, opened: list[BinaryIO]) -> None:
        def recording(*args: Any, **kwargs: Any) -> Any:
            opened.append(builtins.open(*args, **kwargs))
            return opened[-1]

        outgoing_instance.open = recording  # type: ignore[attr-defined]
        self.addCleanup(delattr, outgoing_instance, "open")


class Writes(MemoryTestCase):
    def written(self, length: int, maximum: int) -> tuple[list[int], list[int]]:
        """Send *length* bytes of pixels; return the lengths of its PDUs, and the number of buffers in each write."""
        peer = self.network.scripted_server(105)
        asking = self.asking(105)
        peer.accept(information=UserInformation(maximum_length=maximum))
        association = self.successResultOf(asking)
        writes: list[int] = []
        send = association.protocol.send

        def counted(buffers: Any) -> None:
            writes.append(len(buffers))
            send(buffers)

        self.patch(association.protocol, "send", counted)
        storing = association.send_c_store(instance(length))
        storing.addErrback(lambda _: None)
        ((_, dataset),) = peer.messages()
        self.assertEqual(dataset, encoded(length))
        pdvs = [pdv for pdu in peer.pdus if isinstance(pdu, PDataTF) for pdv in pdu.pdvs]
        association.abort()
        peer.close()
        return [len(pdv.data) for pdv in pdvs if not pdv.control & 1], writes

    def test_all_pdus_but_the_last_are_full(self) -> None:
        lengths, writes = self.written(1_000_000, 16384)
        self.assertEqual(set(lengths[:-1]), {16384 - 6})
        self.assertLess(len(writes), 8)

    def test_short_pdus_are_not_made_too_many_at_once(self) -> None:
        lengths, writes = self.written(20_000, 16)
        self.assertEqual(set(lengths[:-1]), {10})
        self.assertLessEqual(max(writes[1:]), 2 * MAX_PDUS)


class SlowHandlers(MemoryTestCase):
    def test_a_streaming_handler(self) -> None:
        taking: list[Deferred[None]] = []
        taken = 0

        @evt.streaming
        async def slow(event: evt.StoreEvent) -> int:
            nonlocal taken
            async for data in event.stream:
                taken += len(data)
                if taken > 1_000_000 * (len(taking) + 1):
                    taking.append(Deferred())
                    await taking[-1]
            return 0

        association, accepted = self.both((evt.EVT_C_STORE, slow))
        theirs = accepted.protocol.transport
        storing = association.send_c_store(instance(19_900_000))
        for count in range(1, 20):
            self.network.flush()
            self.assertNoResult(storing)
            self.assertEqual(len(taking), count)
            self.assertLess(theirs.bytes_read - taken, CHUNK + 2 * READ_SIZE + 10_000)
            if count < 19:
                self.assertFalse(theirs.reading)
            self.network.advance(20)  # slow, but it makes progress
            taking[-1].callback(None)
        self.network.flush()
        self.assertEqual(self.successResultOf(storing), 0)
        self.assertEqual(taken, len(encoded(19_900_000)))

    def test_a_sink(self) -> None:
        test = self

        class Sink:
            held = 0
            most = 0
            taken = 0
            ending = ""

            def __init__(self, stream: DataSetStream) -> None:
                self.stream = stream
                self.done: Deferred[int] = Deferred()

            def write(self, data: memoryview) -> None:
                self.held += len(data)
                self.most = max(self.held, self.most)
                if self.held > 100_000:
                    self.stream.pause()
                    test.network.callLater(1, self.take)

            def take(self) -> None:
                self.taken += self.held
                self.held = 0
                self.stream.resume()

            def finish(self) -> None:
                self.take()
                self.ending = "finished"
                self.done.callback(0)

            def fail(self, reason: Failure) -> None:
                self.ending = str(reason.value)
                self.done.callback(0xA700)

        sinks: list[Sink] = []

        @evt.streaming
        def into_sink(event: evt.StoreEvent) -> Deferred[int]:
            sinks.append(Sink(event.stream))
            event.stream.deliver_to(sinks[-1])
            return sinks[-1].done

        association, _ = self.both((evt.EVT_C_STORE, into_sink))
        storing = association.send_c_store(instance(3_000_000))
        self.network.flush()
        self.assertNoResult(storing)
        self.network.advance(60)
        self.assertEqual(self.successResultOf(storing), 0)
        (sink,) = sinks
        self.assertLess(sink.most, 100_000 + 2 * READ_SIZE)
        self.assertEqual((sink.taken, sink.ending), (len(encoded(3_000_000)), "finished"))
        storing = association.send_c_store(instance(3_000_000))
        self.network.flush()
        association.abort()
        self.network.advance(10)
        self.failureResultOf(storing, AssociationAborted)
        self.assertIn("aborted by the peer", sinks[1].ending)

    def test_a_handler_that_answers_before_it_has_read(self) -> None:
        @evt.streaming
        def no(event: evt.StoreEvent) -> int:
            return 0xA700

        @evt.streaming
        async def one(event: evt.StoreEvent) -> int:
            async for _ in event.stream:
                return 0xB000
            return 0

        @evt.streaming
        async def bad(event: evt.StoreEvent) -> int:
            async for _ in event.stream:
                raise KeyError("x")
            return 0

        for handler, status in ((no, 0xA700), (one, 0xB000), (bad, 0xC211)):
            self.setUp()
            association, _ = self.both((evt.EVT_C_STORE, handler))
            self.assertEqual(self.network.result_of(association.send_c_store(instance(5_000_000))), status)
            self.assertEqual(self.network.result_of(association.send_c_echo()), 0)
            self.assertEqual(len(self.flushLoggedErrors(KeyError)), int(handler is bad))
            self.tearDown()

    def test_a_sink_that_raises(self) -> None:
        # The peer gets an A-ABORT; the traceback is in the log.
        class Broken:
            def write(self, data: memoryview) -> None:
                raise KeyError("x")

            def finish(self) -> None:
                pass

            def fail(self, reason: Failure) -> None:
                pass

        @evt.streaming
        def into_it(event: evt.StoreEvent) -> Deferred[int]:
            event.stream.deliver_to(Broken())
            return Deferred()

        association, accepted = self.both((evt.EVT_C_STORE, into_it))
        storing = association.send_c_store(instance(1000))
        self.network.flush()
        error = self.failureResultOf(storing, AssociationAborted).value
        self.assertTrue(error.by_peer)
        self.assertIn("could not be processed", str(accepted.end_reason))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_a_handler_learns_that_the_peer_is_gone(self) -> None:
        ends: list[BaseException] = []

        @evt.streaming
        async def read(event: evt.StoreEvent) -> int:
            try:
                await event.stream.read()
            except AssociationLost as error:
                ends.append(error)
                raise
            return 0

        association, peer = self.scripted_scu((evt.EVT_C_STORE, read))
        peer.send(*ScriptedPeer.encode_message(3, store(), encoded(100_000))[:6])
        peer.reset()
        self.assertEqual(ends, [association.end_reason])


class Limits(MemoryTestCase):
    def keep(self, event: evt.StoreEvent) -> int:
        self.got = event.encoded_dataset(False)
        return 0

    def test_more_than_is_buffered(self) -> None:
        self.scp.settings.maximum_buffered_size = 1_000_000
        association, accepted = self.both((evt.EVT_C_STORE, self.keep))
        answer = self.network.result_of(association.send_c_store(instance(2_000_000)))
        self.assertEqual(answer, 0xA700)
        self.assertIn("1000000", answer.error_comment or "")
        self.assertEqual(self.network.result_of(association.send_c_store(instance(900_000))), 0)
        self.assertEqual(accepted.exchange.failures, {"C-STORE": 1})

    def test_exactly_what_is_buffered(self) -> None:
        self.scp.settings.maximum_buffered_size = len(encoded(1000))
        association, _ = self.both((evt.EVT_C_STORE, self.keep))
        self.assertEqual(self.network.result_of(association.send_c_store(instance(1000))), 0)
        self.assertEqual(self.network.result_of(association.send_c_store(instance(1002))), 0xA700)

    def test_longer_than_any_object(self) -> None:
        self.scp.settings.maximum_object_size = 1_000_000
        association, accepted = self.both((evt.EVT_C_STORE, self.keep))
        storing = association.send_c_store(instance(50_000_000))
        self.network.flush()
        error = self.failureResultOf(storing, AssociationAborted).value
        self.assertEqual((error.by_peer, error.source), (True, 2))
        self.assertIn("more than 1000000 bytes", str(accepted.end_reason))
        self.assertLess(accepted.bytes_received, 3_000_000)

    def test_a_response_with_a_long_data_set(self) -> None:
        self.scu.settings.maximum_buffered_size = 100_000
        association, peer = self.scripted_scp()
        echoing = association.send_c_echo()
        self.network.flush()
        peer.send_message(1, CEchoRSP(message_id_being_responded_to=1), encoded(200_000))
        self.failureResultOf(echoing, AssociationAborted)
        self.assertIsInstance(peer.take()[-1], AAbort)

    def test_many_tiny_fragments(self) -> None:
        """The memory for a data set is not many times its size, even if it arrives in tiny fragments."""

        @evt.streaming
        async def late(event: evt.StoreEvent) -> int:
            await self.waiting
            return len(await event.stream.read()) % 0x100

        @evt.streaming
        async def read(event: evt.StoreEvent) -> int:
            return len(await event.stream.read()) % 0x100

        count = 20_000
        for handler in (self.keep, read, late):
            self.setUp()
            self.waiting: Deferred[None] = Deferred()
            association, peer = self.scripted_scu((evt.EVT_C_STORE, handler))
            command = ScriptedPeer.encode_message(3, store(), b"")[:2]
            tiny = PDataTF((PDV(3, 0, b"ab"),) * 10).encode()
            peer.send(*command)
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(20):
                peer.send(tiny * (count // 200))
            kept = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            self.assertLess(kept, 10 * 2 * count)
            peer.send(PDataTF((PDV(3, 2, b"cd"),)).encode())
            self.waiting.callback(None)
            self.assertEqual(len(peer.messages()), 1)
            self.assertTrue(association.is_established)
            self.tearDown()
        self.assertEqual(self.got, b"ab" * count + b"cd")


class Sources(MemoryTestCase):
    """A source cannot be read to its end: a data set that has begun cannot be taken back."""

    def failed(self, association: Any, accepted: Any, storing: Deferred[Any], error: type[Exception]) -> None:
        self.network.flush()
        self.failureResultOf(storing, error)
        self.assertTrue(association.is_aborted)
        self.assertIn("the data set of C-STORE-RQ could not be read", str(association.end_reason))
        self.assertTrue(accepted.is_aborted)
        self.assertTrue(accepted.end_reason.by_peer)
        self.assertEqual(self.got, [])
        self.assert_clean()

    def setUp(self) -> None:
        super().setUp()
        self.got: list[Any] = []

    def stores(self) -> tuple[Any, Any]:
        return self.both((evt.EVT_C_STORE, lambda event: self.got.append(event)))

    def test_a_file_like_object(self) -> None:
        association, accepted = self.stores()
        file = FailingFile(part10(10_000_000), 5_000_000)
        others = [association.send_c_echo()]
        storing = association.send_c_store(file)
        others.append(association.send_c_echo())
        self.failed(association, accepted, storing, OSError)
        self.assertEqual(self.successResultOf(others[0]), 0)
        self.failureResultOf(others[1], AssociationAborted)
        self.assertFalse(file.closed, "who opened it closes it")

    def test_a_file_that_cannot_be_opened_harms_nothing(self) -> None:
        association, _ = self.stores()
        storing = association.send_c_store(FailingFile(part10(10_000_000), 0))
        self.network.flush()
        self.failureResultOf(storing, OSError)
        self.assertTrue(association.is_established)

    def test_a_file_that_is_cut_short(self) -> None:
        association, accepted = self.stores()
        opened: list[BinaryIO] = []
        PeerDoesNotRead.record_opened(self, opened)  # type: ignore[arg-type]
        path = Path(self.mktemp())
        path.write_bytes(part10(20_000_000))
        accepted.protocol.transport.frozen = True
        storing = association.send_c_store(path)
        self.network.flush()
        with builtins.open(path, "r+b") as file:
            file.truncate(5_000_000)
        accepted.protocol.transport.frozen = False
        self.failed(association, accepted, storing, DataSetError)
        self.assertTrue(opened[0].closed)

    def test_the_file_is_closed_however_it_ends(self) -> None:
        for end in ("done", "abort", "cut", "cut while it is read"):
            self.setUp()
            association, accepted = self.both((evt.EVT_C_STORE, lambda event: 0))
            opened: list[BinaryIO] = []
            PeerDoesNotRead.record_opened(self, opened)  # type: ignore[arg-type]
            path = Path(self.mktemp())
            path.write_bytes(part10(20_000_000))
            accepted.protocol.transport.frozen = True
            storing = association.send_c_store(path)
            self.network.flush()
            (file,) = opened
            self.assertFalse(file.closed)
            if end == "cut while it is read":
                self.network.works = False
                accepted.protocol.transport.frozen = False
                self.network.flush()
            if end == "abort":
                association.abort()
            elif end != "done":
                self.network.connections[-1].cut()
            self.network.works = True
            accepted.protocol.transport.frozen = False
            self.network.flush()
            self.assertTrue(file.closed, end)
            if end == "done":
                self.assertEqual(self.successResultOf(storing), 0)
            else:
                self.failureResultOf(storing)
            self.doCleanups()
            self.tearDown()

    def test_a_source_of_odd_pieces(self) -> None:
        class Odd:
            closed = False

            def read(self) -> Chunk:
                return b"abc", False

            def close(self) -> None:
                self.closed = True

        association, _ = self.stores()
        source = Odd()
        sending = association.exchange.start(3, store(), source)
        self.network.flush()
        self.failureResultOf(sending, DataSetError)
        self.assertTrue(source.closed)
        self.assertTrue(association.is_aborted)
