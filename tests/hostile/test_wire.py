"""Bytes that are not DICOM, or not in order: rows 1, 2 and 4 to 11."""

from __future__ import annotations

import struct
import tracemalloc

from dicomtwist import evt
from dicomtwist.dimse.messages import CEchoRSP
from dicomtwist.testing import ScriptedPeer
from dicomtwist.ul.framing import MAX_ASSOCIATE_LENGTH
from dicomtwist.ul.items import encode_item
from dicomtwist.ul.pdu import AAbort, AAssociateAC
from tests.hostile.common import ACSE, INVALID, PDU_TIME, UNRECOGNISED, HostileTestCase, pdata, statuses
from tests.memory import CT, VERIFICATION, echo, encoded, store

#: A-ABORT of AA-1, before there is an association.
AA1 = AAbort(0, 0)

RQ_HEAD = struct.pack(">HH16s16s32x", 1, 0, b"ANY-SCP", b"HOSTILE")
APPLICATION = encode_item(0x10, b"1.2.840.10008.3.1.1.1")


def associate_rq(*items: bytes) -> bytes:
    """Return an A-ASSOCIATE-RQ of *items*, unchanged."""
    body = RQ_HEAD + b"".join(items)
    return b"\1\0" + len(body).to_bytes(4, "big") + body


class Silence(HostileTestCase):
    """Rows 1 and 2."""

    def test_connect_and_say_nothing(self) -> None:
        peer = self.connect()
        self.wait(ACSE - 1)
        self.assertIsNone(peer.closed)
        self.wait(1)
        self.assertIsNotNone(peer.closed)
        self.assertEqual(peer.received, b"")
        self.assertEqual(self.lines_with("no association request was received within 30 seconds"), 1)

    def test_a_request_that_comes_byte_by_byte(self) -> None:
        # The timeout is for the complete PDU: a few bytes now and then do not extend it.
        peer = self.connect()
        request = associate_rq(APPLICATION)
        peer.send(request[:6])
        for place in range(6, 6 + ACSE):
            self.assertIsNone(peer.closed)
            peer.send(request[place : place + 1])
            self.network.advance(1)
        self.assertIsNotNone(peer.closed)
        self.assertEqual(self.lines_with("no association request was received within 30 seconds"), 1)

    def test_a_release_that_comes_byte_by_byte(self) -> None:
        peer = self.connect(established=True)
        for byte in b"\5\0\0\0\0":
            peer.send(bytes((byte,)))
            self.wait(6)
        self.wait(1)
        self.assertEqual(peer.take(), [AA1])
        self.assertIsNotNone(peer.closed)
        self.assertEqual(self.lines_with("a PDU did not arrive completely within 30 seconds"), 1)

    def test_data_that_come_byte_by_byte(self) -> None:
        peer = self.connect(established=True)
        peer.send(*ScriptedPeer.encode_message(3, store(), b"")[:2])
        data = pdata((3, 2, encoded(10_000)))
        for place in range(PDU_TIME // 20):
            peer.send(data[place * 10 : place * 10 + 10])
            self.assertIsNone(peer.closed)
            self.wait(20)
        self.assertIsNotNone(peer.closed)
        self.assertEqual(self.lines_with("a PDU did not arrive completely within 120 seconds"), 1)


class NoDICOM(HostileTestCase):
    """Rows 4 and 5."""

    def test_other_protocols(self) -> None:
        def test(data: bytes) -> None:
            self.is_aborted(peer := self.connect_and(data), AA1)
            self.assertEqual(len(peer.received), 10)

        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
        banners = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"SSH-2.0-OpenSSH_9\r\n", bytes(64), b"\xff" * 64, hello]
        self.every(banners, test)
        self.assertEqual(self.lines_with("is unknown"), len(banners))

    def connect_and(self, data: bytes) -> ScriptedPeer:
        peer = self.connect()
        peer.send(data)
        return peer

    def test_4_gigabytes_of_each_type(self) -> None:
        def test(pdu_type: int, established: bool) -> None:
            peer = self.connect(established=established)
            peer.send(bytes((pdu_type, 0)) + b"\xff\xff\xff\xff" + bytes(1000))
            unknown = not 1 <= pdu_type <= 7
            self.is_aborted(peer, AA1 if not established else UNRECOGNISED if unknown else INVALID)

        self.every([(pdu_type, established) for pdu_type in range(9) for established in (False, True)], test)

    def test_nothing_is_reserved_by_declaration(self) -> None:
        peer = self.connect()
        tracemalloc.start()
        try:
            peer.send(b"\1\0" + MAX_ASSOCIATE_LENGTH.to_bytes(4, "big") + RQ_HEAD)
            self.assertLess(tracemalloc.get_traced_memory()[1], 100_000)
        finally:
            tracemalloc.stop()
        self.wait(ACSE)
        self.assertIsNotNone(peer.closed)


class Data(HostileTestCase):
    """Rows 6 to 10: P-DATA-TF PDUs that are too long, badly cut, or never end."""

    def refused(self, data: bytes, answer: AAbort = INVALID) -> None:
        peer = self.connect(established=True)
        peer.send(data)
        self.is_aborted(peer, answer)

    def test_above_the_maximum_length(self) -> None:
        self.scp.maximum_pdu_size = 16384
        self.every([pdata((1, 1, bytes(16379))), pdata((1, 1, bytes(100_000)))], self.refused)
        peer = self.connect(established=True)
        peer.send(pdata((1, 1, bytes(16378))))  # the maximum length
        self.assertEqual(peer.take(), [])

    def test_pdv_lengths(self) -> None:
        def pdu(length: int, present: int) -> bytes:
            body = length.to_bytes(4, "big") + b"\1\3" + bytes(present)
            return b"\4\0" + len(body).to_bytes(4, "big") + body

        lengths = [(0, 10), (1, 10), (2, 0), (3, 0), (14, 10), (0xFFFFFFFF, 10), (0xFFFFFFFB, 10), (0x80000000, 10)]
        self.every([pdu(*case) for case in lengths], self.refused)
        self.every([b"\4\0\0\0\0" + bytes((length,)) + bytes(length) for length in range(6)], self.refused)

    def test_an_odd_length_is_taken(self) -> None:
        peer = self.connect(established=True)
        command = echo().encode()
        peer.send(pdata((1, 1, command[:7])), pdata((1, 3, command[7:])))
        self.assertEqual(statuses(peer), [0])

    def test_contexts(self) -> None:
        command, data = store().encode(), encoded()
        store_command = ScriptedPeer.encode_message(3, store(), data)[1]
        cases = [
            pdata((9, 3, command)),  # never proposed
            pdata((5, 3, command)),  # rejected
            pdata((2, 3, command)),  # even
            pdata((0, 3, command)),
            pdata((1, 1, command[:20]), (3, 3, command[20:])),  # another context inside a command set
            pdata((3, 3, store_command), (1, 2, data)),  # another context inside a message
            pdata((3, 2, data)),  # a data set without a command set
            pdata((3, 0, data)),
            pdata((3, 3, store_command), (3, 3, store_command)),  # a command set inside a data set
        ]
        self.every(cases, lambda data: self.refused(data, self.answer_to(data)))

    def answer_to(self, data: bytes) -> AAbort:
        """Return the expected abort of the provider: the data is an invalid parameter value, or an unexpected PDU."""
        peer = self.connect(established=True)
        peer.send(data)
        (answer,) = peer.take()
        assert isinstance(answer, AAbort)
        self.assertEqual(answer.source, 2)
        self.assertIn(answer.reason, (2, 5, 6))
        peer.close()
        return answer

    def test_a_command_set_that_never_ends(self) -> None:
        peer = self.connect(established=True)
        sent = 0
        while peer.pdus[-1:] != [INVALID]:
            peer.send(pdata((1, 1, bytes(8000))))
            sent += 8000
            self.assertLess(sent, 80_000)
        self.assertGreater(sent, 65536)
        peer.take()
        self.is_aborted(peer)

    def test_a_data_set_that_never_ends(self) -> None:
        self.scp.maximum_object_size = 100_000
        ended: list[str] = []

        @evt.streaming
        async def take(event: evt.StoreEvent) -> int:
            try:
                async for _ in event.stream:
                    pass
            finally:
                ended.append("told")
            return 0

        self.serve((evt.EVT_C_STORE, take))
        peer = self.connect(established=True)
        peer.send(*ScriptedPeer.encode_message(3, store(), b"")[:2])
        for _ in range(10):
            peer.send(pdata((3, 0, bytes(10_000))))
        self.assertEqual((peer.take(), ended), ([], []))
        peer.send(pdata((3, 0, bytes(2))))
        self.is_aborted(peer, INVALID)
        self.assertEqual(ended, ["told"])

    def test_empty_pdvs(self) -> None:
        empty = pdata(*[(3, 0, b"")] * 1000)
        self.every([pdata((1, 1, b"")), empty, pdata((3, 2, b""))], self.aborted)
        peer = self.connect(established=True)
        peer.send(*ScriptedPeer.encode_message(3, store(), b"")[:2], empty * 100)
        self.is_aborted(peer, INVALID)

    def aborted(self, data: bytes) -> None:
        self.refused(data, self.answer_to(data))

    def test_many_pdvs_of_one_byte(self) -> None:
        # They cost memory for their content, not for an object each.
        got: list[int] = []

        def keep(event: evt.StoreEvent) -> int:
            got.append(len(event.encoded_dataset(False)))
            return 0

        self.serve((evt.EVT_C_STORE, keep))
        peer = self.connect(established=True)
        peer.send(*ScriptedPeer.encode_message(3, store(), b"")[:2])
        some = pdata(*[(3, 0, b"x")] * 9000)
        tracemalloc.start()
        try:
            for _ in range(8):
                peer.send(some)
                self.echo_is_answered()
            kept = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        self.assertLess(kept, 10 * 8 * 9000)
        peer.send(pdata((3, 2, b"")))
        self.assertEqual((got, statuses(peer)), ([8 * 9000], [0]))

    def test_a_storm_that_stops(self) -> None:
        peer = self.connect(established=True)
        peer.send(*ScriptedPeer.encode_message(3, store(), b"")[:2], pdata(*[(3, 0, b"x")] * 100))
        self.wait(30)
        self.assertEqual(peer.take(), [AA1])
        self.assertIsNotNone(peer.closed)


class Items(HostileTestCase):
    """Row 11: an A-ASSOCIATE-RQ with wrong lengths, or with as many items as possible."""

    def test_lengths_that_lie(self) -> None:
        def test(*items: bytes) -> None:
            peer = self.connect()
            peer.send(associate_rq(*items))
            self.is_aborted(peer, AA1)

        abstract = encode_item(0x30, VERIFICATION.encode())
        cases = [
            (b"\x10\0\xff\xff" + b"1.2",),
            (APPLICATION, b"\x20\0\xff\xff"),
            (APPLICATION, b"\x20\0"),
            (APPLICATION, encode_item(0x20, b"\1\0\0\0" + b"\x30\0\xff\xff" + b"1.2")),
            (APPLICATION, encode_item(0x20, b"\1\0")),
            (APPLICATION, encode_item(0x20, b"\1\0\0\0")),
            (APPLICATION, encode_item(0x20, b"\1\0\0\0" + abstract), b"\x50\0\0\x10\x51\0\0\4"),
            (APPLICATION, encode_item(0x50, encode_item(0x51, b"\0\0\1"))),
            (APPLICATION, encode_item(0x50, encode_item(0x54, b"\xff\xff1.2"))),
            (APPLICATION, encode_item(0x50, encode_item(0x58, b"\1\0\xff\xff"))),
            (APPLICATION, encode_item(0x50, encode_item(0x57, b"\0\1a\0\1b\0\xff"))),
        ]
        self.every(cases, test)
        body = RQ_HEAD[:50]
        peer = self.connect()
        peer.send(b"\1\0" + len(body).to_bytes(4, "big") + body)  # not even the fixed fields
        self.is_aborted(peer, AA1)

    def test_16000_empty_transfer_syntaxes(self) -> None:
        context = encode_item(0x20, b"\1\0\0\0" + encode_item(0x30, CT.encode()) + b"\x40\0\0\0" * 16_000)
        self.memory_for(associate_rq(APPLICATION, context))

    def test_as_many_short_items_as_fit(self) -> None:
        roles = encode_item(0x54, b"\0\1a\1\1") * 7000
        extended = encode_item(0x56, b"\0\1a") * 9000
        self.memory_for(associate_rq(APPLICATION, encode_item(0x50, roles)))
        self.memory_for(associate_rq(APPLICATION, encode_item(0x50, extended)))
        contexts = [
            encode_item(
                0x20, bytes((number, 0, 0, 0)) + encode_item(0x30, b"1.2.3") + encode_item(0x40, b"1.2.3") * 400
            )
            for number in range(1, 256, 2)
        ]
        self.memory_for(associate_rq(APPLICATION, *contexts))

    def memory_for(self, request: bytes) -> None:
        peer = self.connect()
        tracemalloc.start()
        try:
            peer.send(request)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        self.assertLess(peak, 20 * len(request))
        (answer,) = peer.take()
        self.assertIsInstance(answer, AAssociateAC)
        self.echo_is_answered()
        peer.close()


class Responses(HostileTestCase):
    """A server gets a response without a request."""

    def test_a_response_to_nothing(self) -> None:
        peer = self.connect(established=True)
        peer.send_message(1, CEchoRSP(message_id_being_responded_to=1, status=0))
        (answer,) = peer.take()
        assert isinstance(answer, AAbort)
        self.assertEqual(answer.source, 2)
        self.is_aborted(peer)
