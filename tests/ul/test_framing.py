"""The byte stream is cut into frames: for all boundaries of reads, with every length checked and nothing joined."""

import tracemalloc
import unittest
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dicomtwist.errors import InvalidPDU
from dicomtwist.ul.framing import (
    DEFAULT_MAX_LENGTH,
    MAX_ASSOCIATE_LENGTH,
    MAX_CONTROL_LENGTH,
    ControlPDU,
    Fragment,
    Frame,
    Framer,
)
from dicomtwist.ul.pdu import PDV, AAbort, AAssociateRJ, AAssociateRQ, AReleaseRQ, PDataTF

# An empty PDV may only be the last one of its message; all have an even length.
pdvs = st.builds(
    PDV,
    st.integers(0, 255),
    st.integers(0, 255),
    st.binary(max_size=40).map(lambda data: data[: len(data) & ~1]),
).filter(lambda pdv: pdv.data or pdv.control & 2)
streams = st.lists(
    st.one_of(
        st.builds(PDataTF, st.lists(pdvs, min_size=1, max_size=5).map(tuple)),
        st.builds(AAbort, st.integers(0, 255), st.integers(0, 255)),
        st.just(AReleaseRQ()),
        st.just(AAssociateRJ(1, 2, 3)),
        st.just(AAssociateRQ("SCP", "SCU")),
    ),
    max_size=8,
)


def fragments(frames: Iterable[Frame]) -> list[Fragment]:
    """Return *frames*; fail if one is not a fragment."""
    result = []
    for frame in frames:
        assert isinstance(frame, Fragment), frame
        result.append(frame)
    return result


def control_pdus(frames: Iterable[Frame]) -> list[ControlPDU]:
    """Return *frames*; fail if one is not a control PDU."""
    result = []
    for frame in frames:
        assert isinstance(frame, ControlPDU), frame
        result.append(frame)
    return result


def cut(data, places):
    """Return *data* cut at *places*."""
    edges = [0, *sorted(places), len(data)]
    return [data[start:stop] for start, stop in pairwise(edges)]


def feed(framer, reads):
    """Feed *reads*; return the frames with the fragments of each PDV joined, and whether the stream ends inside a PDV."""
    result: list[tuple[Any, ...]] = []
    open_pdv = None
    for read in reads:
        for frame in framer.feed(read):
            if isinstance(frame, Fragment):
                if open_pdv is None:
                    open_pdv = ("PDV", frame.context_id, frame.control, b"")
                assert open_pdv[1:3] == (frame.context_id, frame.control)
                open_pdv = (*open_pdv[:3], open_pdv[3] + frame.data)
                if frame.ends:
                    result.append(open_pdv)
                    open_pdv = None
            elif isinstance(frame, ControlPDU):
                result.append(("PDU", frame.pdu_type, bytes(frame.body)))
            else:
                result.append(("invalid", frame.reason, str(frame)))
    return result, open_pdv is not None


def expected(pdus):
    """Return the expected result of :func:`feed` for *pdus*."""
    result: list[tuple[Any, ...]] = []
    for pdu in pdus:
        if isinstance(pdu, PDataTF):
            result += [("PDV", pdv.context_id, pdv.control, pdv.data) for pdv in pdu.pdvs]
        else:
            result.append(("PDU", pdu.pdu_type, pdu.encode()[6:]))
    return result


class CutTests(unittest.TestCase):
    """The result does not depend on the boundaries of reads."""

    @given(streams, st.data())
    def test_any_cuts(self, pdus, data):
        stream = b"".join(pdu.encode() for pdu in pdus)
        whole = expected(pdus)
        places = data.draw(st.lists(st.integers(0, len(stream)), max_size=30))
        one_by_one = [stream[place : place + 1] for place in range(len(stream))]
        for reads in [stream], one_by_one, cut(stream, places):
            framer = Framer()
            self.assertEqual(feed(framer, reads), (whole, False))
            self.assertFalse(framer.mid_pdu)

    @given(st.binary(max_size=200), st.data())
    def test_arbitrary_bytes(self, stream, data):
        whole = feed(Framer(), [stream])
        places = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))
        self.assertEqual(feed(Framer(), cut(stream, places)), whole)

    @given(streams, st.binary(min_size=1, max_size=60), st.data())
    def test_damaged_streams(self, pdus, noise, data):
        damaged = bytearray(b"".join(pdu.encode() for pdu in pdus))
        where = data.draw(st.integers(0, len(damaged)))
        damaged[where : where + len(noise)] = noise
        stream = bytes(damaged)
        whole = feed(Framer(1000), [stream])
        places = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))
        self.assertEqual(feed(Framer(1000), cut(stream, places)), whole)

    def test_mid_pdu(self):
        for pdu in AReleaseRQ(), PDataTF((PDV(1, 0, b"ab"), PDV(1, 2, b"cd"))):
            encoded = pdu.encode()
            framer = Framer()
            self.assertFalse(framer.mid_pdu)
            for place in range(len(encoded)):
                framer.feed(encoded[place : place + 1])
                self.assertEqual(framer.mid_pdu, place < len(encoded) - 1)


class ViewTests(unittest.TestCase):
    """Data is neither joined nor copied."""

    def test_fragments_are_views_on_the_read(self):
        stream = PDataTF((PDV(1, 0, b"x" * 1000), PDV(1, 2, b"y" * 1000))).encode()
        reads = cut(stream, [500, 900, 1500])
        framer = Framer()
        for read in reads:
            for frame in fragments(framer.feed(read)):
                self.assertIsInstance(frame.data, memoryview)
                self.assertIs(frame.data.obj, read)

    def test_a_piece_goes_on_at_once(self):
        framer = Framer()
        framer.feed(b"\4\0\0\0\1\6\0\0\1\2\7\2")
        for _ in range(255):
            (frame,) = fragments(framer.feed(b"z"))
            self.assertEqual((frame.context_id, frame.control, frame.ends), (7, 2, False))
        (frame,) = fragments(framer.feed(b"z"))
        self.assertTrue(frame.ends)

    def test_an_end_without_data(self):
        (frame,) = fragments(Framer().feed(PDataTF((PDV(9, 2, b""),)).encode()))
        self.assertEqual((frame.context_id, frame.control, bytes(frame.data), frame.ends), (9, 2, b"", True))

    def test_repr_holds_no_data(self):
        fragment, control = Framer().feed(PDataTF((PDV(1, 2, b"secret"),)).encode() + AReleaseRQ().encode())
        self.assertEqual(repr(fragment), "Fragment(1, 2, 6 bytes, ends=True)")
        self.assertEqual(repr(control), "ControlPDU(5, 4 bytes)")


class LengthTests(unittest.TestCase):
    """Each length is checked before anything else is done with it."""

    def assert_refused(self, stream, framer=None, reason=6):
        for reads in [stream], [stream[place : place + 1] for place in range(len(stream))]:
            target = framer() if framer else Framer()
            frames = [frame for read in reads for frame in target.feed(read)]
            self.assertEqual(len(frames), 1, frames)
            (frame,) = frames
            assert isinstance(frame, InvalidPDU), frame
            self.assertEqual(frame.reason, reason)

    def test_4_gigabytes_of_each_type(self):
        for pdu_type in range(1, 8):
            with self.subTest(pdu_type):
                self.assert_refused(bytes((pdu_type, 0)) + b"\xff\xff\xff\xff")

    def test_unknown_types(self):
        for pdu_type in {*range(256)} - set(range(1, 8)):
            for length in b"\0\0\0\0", b"\0\0\0\4", b"\xff\xff\xff\xff":
                self.assert_refused(bytes((pdu_type, 0)) + length, reason=1)
        for text in (
            b"GET / HTTP/1.1\r\n",
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"\x16\x03\x01\x02\x00\x01",
            bytes(100),
        ):
            self.assert_refused(text, reason=1)

    def test_control_pdus_one_byte_too_long(self):
        for pdu_type, limit in MAX_CONTROL_LENGTH.items():
            self.assert_refused(bytes((pdu_type, 0)) + (limit + 1).to_bytes(4, "big"))

    def test_the_longest_association_request(self):
        body = bytes(MAX_ASSOCIATE_LENGTH)
        frames = control_pdus(Framer().feed(b"\1\0" + MAX_ASSOCIATE_LENGTH.to_bytes(4, "big") + body))
        self.assertEqual([(frame.pdu_type, len(frame.body)) for frame in frames], [(1, MAX_ASSOCIATE_LENGTH)])

    def test_short_control_pdus_are_for_the_decoder_to_refuse(self):
        (frame,) = control_pdus(Framer().feed(b"\5\0\0\0\0\0"))
        self.assertEqual((frame.pdu_type, bytes(frame.body)), (5, b""))

    def test_maximum_length(self):
        def pdata(length):
            return b"\4\0" + length.to_bytes(4, "big") + (length - 4).to_bytes(4, "big") + b"\1\0"

        for limit in 6, 16384, DEFAULT_MAX_LENGTH:
            self.assert_refused(pdata(limit + 2)[:6], lambda limit=limit: Framer(limit))
            framer = Framer(limit)
            self.assertEqual(framer.feed(pdata(limit)[:6]), [])
            self.assertTrue(framer.mid_pdu)

    def test_no_maximum_length(self):
        framer = Framer(0)
        header = b"\4\0\xff\xff\xff\xfe\xff\xff\xff\xfa\1\0"
        self.assertEqual(framer.feed(header), [])
        (frame,) = fragments(framer.feed(b"ab"))
        self.assertFalse(frame.ends)

    def test_pdata_without_room_for_a_pdv(self):
        for length in range(6):
            self.assert_refused(b"\4\0" + length.to_bytes(4, "big"))

    def test_pdv_lengths(self):
        for length in 0, 1, 3, 5, 7, 10, 12, 0x7FFFFFFE, 0xFFFFFFFE, 0xFFFFFFFF:
            with self.subTest(length):
                self.assert_refused(b"\4\0\0\0\0\x0c" + length.to_bytes(4, "big") + b"\1\2")

    def test_bytes_behind_the_last_pdv(self):
        for rest in 1, 2, 3, 4, 5:
            pdv = PDV(1, 2, b"abcd").encode() + bytes(rest)
            # Refused at the header of the PDV, before its data.
            self.assert_refused(b"\4\0" + len(pdv).to_bytes(4, "big") + pdv[:6])

    def test_the_second_pdv_too(self):
        first = PDV(1, 0, b"ab").encode()
        second = b"\0\0\0\x04\1\2"
        stream = b"\4\0\0\0\0" + bytes((len(first) + 6,)) + first + second
        result, _ = feed(Framer(), [stream])
        self.assertEqual([what for what, *_ in result], ["PDV", "invalid"])

    def test_empty_pdvs_that_end_nothing(self):
        self.assert_refused(PDataTF((PDV(1, 0, b""),)).encode())
        self.assert_refused(PDataTF((PDV(1, 1, b""),)).encode())

    def test_nothing_comes_after_a_violation(self):
        framer = Framer()
        good = AReleaseRQ().encode()
        frames = framer.feed(good + b"\x77\0\0\0\0\0" + good)
        self.assertEqual([type(frame) for frame in frames], [ControlPDU, InvalidPDU])
        self.assertEqual(framer.feed(good), [])
        self.assertFalse(framer.mid_pdu)

    def test_nothing_is_awaited_after_a_violation(self):
        framer = Framer()
        framer.feed(b"\4\0\0\0\0\x20")
        self.assertTrue(framer.mid_pdu)
        framer.feed(b"\0\0\0\0\1\2")
        self.assertFalse(framer.mid_pdu)


class MemoryTests(unittest.TestCase):
    """Only an incomplete header, or an incomplete control PDU of an allowed length, is buffered."""

    def growth(self, framer, reads):
        tracemalloc.start()
        try:
            for read in reads:
                framer.feed(read)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def test_data(self):
        block = bytes(65536)
        framer = Framer(0)
        framer.feed(b"\4\0\x7f\xff\xff\xfe\x7f\xff\xff\xfa\1\0")
        self.assertLess(self.growth(framer, [block] * 100), 4096)

    def test_after_a_violation(self):
        block = bytes(65536)
        framer = Framer()
        framer.feed(b"\1\0\xff\xff\xff\xff")
        self.assertLess(self.growth(framer, [block] * 100), 4096)

    def test_an_association_request_is_not_reserved_by_declaration(self):
        framer = Framer()
        header = b"\1\0" + MAX_ASSOCIATE_LENGTH.to_bytes(4, "big")
        self.assertLess(self.growth(framer, [header, b"x", b"y"]), 4096)

    def test_an_association_request_byte_by_byte(self):
        framer = Framer()
        framer.feed(b"\1\0" + MAX_ASSOCIATE_LENGTH.to_bytes(4, "big"))
        reads = [b"x"] * (MAX_ASSOCIATE_LENGTH // 8)
        self.assertLess(self.growth(framer, reads), MAX_ASSOCIATE_LENGTH // 2)
