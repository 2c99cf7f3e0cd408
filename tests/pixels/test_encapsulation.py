"""Encapsulated pixel data: fragments, and their division into frames."""

from __future__ import annotations

import unittest
from struct import pack

from hypothesis import given
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames

from dicomtwist.errors import DataSetError
from dicomtwist.pixels.encapsulation import Fragment, frame_fragments, read_encapsulated


def reader(data: bytes):
    return lambda offset, length: data[offset : offset + length]


def item(value: bytes) -> bytes:
    return pack("<HHI", 0xFFFE, 0xE000, len(value)) + value


END = pack("<HHI", 0xFFFE, 0xE0DD, 0)


def frames_of(data: bytes, frames: int, extended=()) -> list[bytes]:
    read = reader(data)
    found = frame_fragments(read, read_encapsulated(read, 0), frames, extended)
    return [b"".join(read(*fragment) for fragment in one) for one in found]


class Reading(unittest.TestCase):
    def test_items(self) -> None:
        data = b"??" + item(b"") + item(b"ab") + item(b"cdef") + END + b"more"
        found = read_encapsulated(reader(data), 2)
        self.assertEqual(found.fragments, (Fragment(18, 2), Fragment(28, 4)))
        self.assertEqual(data[found.end :], b"more")
        self.assertEqual(found.table, ())

    def test_invalid(self) -> None:
        for data in (
            b"",
            item(b""),
            item(b"") + b"\0" * 8,
            pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF),
            pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFF0) + END,
            pack("<HHI", 0xFFFE, 0xE000, 8) + b"1234",
        ):
            self.assertRaises(DataSetError, read_encapsulated, reader(data), 0)

    @given(st.binary(max_size=200))
    def test_any_bytes(self, data: bytes) -> None:
        try:
            found = read_encapsulated(reader(data), 0)
            frame_fragments(reader(data), found, 2)
        except DataSetError:
            pass


class Frames(unittest.TestCase):
    def test_one_frame_of_several_fragments(self) -> None:
        self.assertEqual(frames_of(item(b"") + item(b"ab") + item(b"cd") + END, 1), [b"abcd"])

    def test_a_fragment_each(self) -> None:
        """Without a table, or with a wrong one."""
        for table in (b"", pack("<2I", 7, 9), pack("<I", 0)):
            self.assertEqual(frames_of(item(table) + item(b"ab") + item(b"cd") + END, 2), [b"ab", b"cd"])

    def test_basic_offset_table(self) -> None:
        data = item(pack("<2I", 0, 20)) + item(b"ab") + item(b"cd") + item(b"ef") + END
        self.assertEqual(frames_of(data, 2), [b"abcd", b"ef"])

    def test_codestreams(self) -> None:
        """The fragments that start a codestream divide where no table does."""
        start = b"\xff\xd8\xff\xe0"
        for table in (b"", pack("<2I", 0, 3)):
            data = item(table) + item(start + b"1") + item(b"22") + item(start + b"3") + END
            self.assertEqual(frames_of(data, 2), [start + b"122", start + b"3"])

    def test_a_wrong_number_of_frames(self) -> None:
        """The frames are those of the table, as in pydicom; one offset is that of a video."""
        table = item(pack("<2I", 0, 20)) + item(b"ab") + item(b"cd") + item(b"ef") + END
        for frames in (1, 4, 100):
            self.assertEqual(frames_of(table, frames), [b"abcd", b"ef"])
        video = item(pack("<I", 0)) + item(b"ab") + END
        self.assertRaises(DataSetError, frames_of, video, 100)

    def test_a_wrong_number_of_codestreams(self) -> None:
        """Without a table, the frames are those that exist."""
        start = b"\xff\xd8\xff\xe0"
        data = item(b"") + item(start + b"11") + item(start + b"22") + item(b"22") + END
        for frames in (4, 5, 1_000_000):
            self.assertEqual(frames_of(data, frames), [start + b"11", start + b"2222"])
        data = item(b"") + item(start + b"11") * 3 + END
        self.assertEqual(frames_of(data, 2), [start + b"11"] * 3)
        self.assertRaises(DataSetError, frames_of, item(b"") + item(b"11") + item(start + b"22") * 2 + END, 2)

    def test_no_division(self) -> None:
        for frames, count in ((2, 3), (3, 2), (1, 0)):
            self.assertRaises(DataSetError, frames_of, item(b"") + item(b"ab") * count + END, frames)

    @given(
        st.lists(st.binary(min_size=2, max_size=60).filter(lambda one: len(one) % 2 == 0), min_size=1, max_size=6),
        st.integers(1, 3),
    )
    def test_as_pydicom(self, frames: list[bytes], fragments: int) -> None:
        fragments = min(fragments, *(len(one) // 2 for one in frames))
        data = encapsulate(frames, fragments_per_frame=fragments)
        expected = list(generate_frames(data, number_of_frames=len(frames)))
        self.assertEqual(frames_of(data + END, len(frames)), expected)

    def test_extended_offset_table(self) -> None:
        data, offsets, _ = encapsulate_extended([b"ab", b"cdef"])
        table = [int.from_bytes(offsets[at : at + 8], "little") for at in range(0, len(offsets), 8)]
        self.assertEqual(frames_of(data + END, 2, table), [b"ab", b"cdef"])
