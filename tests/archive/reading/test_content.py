"""dicomtwist.archive.reading.content and .frames: ranges of files, and frames of encapsulated pixel data."""

from __future__ import annotations

import unittest
from io import BytesIO
from struct import pack

from hypothesis import given
from hypothesis import strategies as st

from dicomtwist.archive.reading import content
from dicomtwist.archive.reading.content import BitRange, Content, Extent
from dicomtwist.archive.reading.frames import FrameTables, NoPixelData, find_pixels, read_frames
from dicomtwist.archive.reading.stored_file import Source, StoredFile
from dicomtwist.errors import DataSetError
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta

JPEG = "1.2.840.10008.1.2.4.50"
EXPLICIT = "1.2.840.10008.1.2.1"


def element(tag: int, vr: str, value: bytes) -> bytes:
    return pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(value)) + value


def item(value: bytes, element: int = 0xE000) -> bytes:
    return pack("<HHI", 0xFFFE, element, len(value)) + value


def stored(frames: int, pixels: bytes, *, syntax: str = JPEG, extended: bytes = b"", size: int = 2) -> StoredFile:
    """Return an instance with the element *pixels*."""
    meta = encode_preamble_and_meta(FileMeta("1.2", "1.3", syntax, "1.4"))
    data = element(0x00280002, "US", pack("<H", 1)) + element(0x00280008, "IS", f"{frames:<4}".encode())
    data += element(0x00280010, "US", pack("<H", size)) + element(0x00280011, "US", pack("<H", size))
    data += element(0x00280100, "US", pack("<H", 8))
    if extended:
        data += pack("<HH2sHI", 0x7FE0, 1, b"OV", 0, len(extended)) + extended
    file = meta + data + pixels
    return StoredFile(BytesIO(file), len(file), "a")


def encapsulated(table: bytes, *fragments: bytes) -> bytes:
    head = pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + item(table)
    return head + b"".join(map(item, fragments)) + item(b"", 0xE0DD)


class Contents(unittest.TestCase):
    @given(
        st.binary(min_size=1, max_size=300),
        st.integers(0, 300),
        st.integers(0, 300),
        st.sampled_from((1, 2, 4, 8)),
        st.data(),
    )
    def test_ranges(self, data: bytes, start: int, stop: int, unit: int, draw: st.DataObject) -> None:
        """A range of a content is that of its bytes, whatever the length of its pieces and words."""
        data += bytes(-len(data) % unit)
        words = b"".join(data[at : at + unit][::-1] for at in range(0, len(data), unit))
        offset = draw.draw(st.integers(0, len(data)))
        length = draw.draw(st.integers(0, len(data) - offset))
        before, content.PIECE = content.PIECE, draw.draw(st.integers(1, 20))  # type: ignore[misc]
        try:
            source = Source(BytesIO(b"before" + data), 6)
            found = Content([b"head", Extent(source, offset, length, unit, 0), b"tail"])
            expected = b"head" + words[offset : offset + length] + b"tail"
            self.assertEqual(found.length, len(expected))
            self.assertEqual(b"".join(found.pieces()), expected)
            self.assertEqual(b"".join(found.pieces(start, stop)), expected[start:stop])
        finally:
            content.PIECE = before  # type: ignore[misc]

    @given(st.binary(min_size=8, max_size=40), st.integers(0, 40), st.integers(1, 24))
    def test_bits(self, data: bytes, first: int, count: int) -> None:
        bits = [byte >> number & 1 for byte in data for number in range(8)]
        part = BitRange(Source(BytesIO(data)), first // 8, first % 8, count)
        found = b"".join(Content([part]).pieces())
        self.assertEqual(len(found), part.length)
        unpacked = [byte >> number & 1 for byte in found for number in range(8)]
        self.assertEqual(unpacked[:count], bits[first : first + count])
        self.assertFalse(any(unpacked[count:]))

    def test_cut_off(self) -> None:
        with self.assertRaises(DataSetError):
            list(Content([Extent(Source(BytesIO(b"abc")), 1, 3)]).pieces())

    def test_in_memory(self) -> None:
        """The content of a file that is loaded is there without reading; that of an open file, or in another order, is not."""
        one = stored(1, b"some pixels!")
        whole = b"".join(Content([Extent(one.raw, 0, one.size)]).pieces())
        self.assertIsNone(Content([Extent(one.raw, 0, one.size)]).buffers())
        one.load()
        self.assertFalse(one.is_closed)
        found = Content([b"head", Extent(one.raw, 0, one.size), b"tail"])
        self.assertEqual(b"".join(found.buffers(2, 30) or ()), (b"head" + whole)[2:30])
        self.assertEqual(b"".join(found.pieces()), b"head" + whole + b"tail")
        self.assertEqual(one.data.read(0, 1 << 20), whole[one.start :])
        for part in (Extent(one.data, 0, 8, 2), Extent(one.data, 0, one.size + 1), BitRange(one.data, 0, 1, 7)):
            self.assertIsNone(Content([part]).buffers())
        one.close()
        self.assertTrue(one.is_closed)


class Frames(unittest.TestCase):
    def frames(self, one: StoredFile) -> list[bytes]:
        table = read_frames(one)
        return [b"".join(table.frame(one.data, number + 1).pieces()) for number in range(table.count)]

    def test_encapsulated(self) -> None:
        start = b"\xff\xd8\xff\xe0"
        a, b, c, d = start + b"a---", b"b---", start + b"c---", b"d---"
        offsets = pack("<2I", 0, 8 + len(a) + 8 + len(b))
        expected = [a + b, c + d]
        for table, extended in (
            (offsets, b""),
            (b"", b""),
            (b"", pack("<2Q", 0, 8 + len(a) + 8 + len(b))),
            (pack("<2I", 0, 9), b""),  # no item begins there, so the codestreams decide
        ):
            one = stored(2, encapsulated(table, a, b, c, d), extended=extended)
            self.assertEqual(self.frames(one), expected)
        self.assertEqual(self.frames(stored(4, encapsulated(b"", a, b, c, d))), [a, b, c, d])
        self.assertEqual(self.frames(stored(1, encapsulated(b"", a, b, c, d))), [a + b + c + d])
        one = stored(3, encapsulated(b"", a, b, c, d))
        self.assertEqual((self.frames(one), read_frames(one).stated), (expected, 3))
        with self.assertRaises(DataSetError):
            read_frames(stored(3, encapsulated(b"", b, a, c, d)))
        with self.assertRaises(DataSetError):
            read_frames(stored(2, encapsulated(b"", a)[:-8]))

    def test_native(self) -> None:
        value = bytes(range(8))
        pixels = pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 8) + value
        self.assertEqual(self.frames(stored(2, pixels, syntax=EXPLICIT)), [value[:4], value[4:]])
        # One frame is the whole value if its attributes want more.
        self.assertEqual(self.frames(stored(1, pixels, syntax=EXPLICIT, size=9)), [value])
        # If the value is too short for all frames, the whole ones are given.
        self.assertEqual(self.frames(stored(3, pixels, syntax=EXPLICIT)), [value[:4], value[4:]])
        self.assertEqual(self.frames(stored(3, pixels, syntax=EXPLICIT, size=9)), [])
        with self.assertRaises(DataSetError):
            read_frames(stored(2, pixels, syntax=EXPLICIT, size=0))

    def test_none(self) -> None:
        for pixels in (b"", element(0x7FE10010, "LO", b"MAKER ")):
            with self.assertRaises(NoPixelData):
                one = stored(1, pixels)
                find_pixels(one.data, one.data_syntax)

    def test_remembered(self) -> None:
        tables = FrameTables()
        for number in range(3):
            one = stored(2, encapsulated(b"", b"a1", b"b2"))
            uids = ("1", "2", str(number))
            self.assertIs(tables.of(uids, one), tables.of(uids, one))
