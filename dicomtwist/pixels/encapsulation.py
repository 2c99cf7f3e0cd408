"""
Encapsulated pixel data: its fragments, and the fragments of each frame (PS3.5 A.4).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from struct import Struct, unpack
from typing import Final, NamedTuple, TypeAlias

from dicomtwist.datasets.element_headers import ITEM, SEQUENCE_END, UNDEFINED_LENGTH
from dicomtwist.errors import DataSetError

__all__ = ["Encapsulated", "Fragment", "frame_fragments", "read_encapsulated"]

#: The most fragments of one element: an hour of video has 200,000 frames.
MAX_FRAGMENTS: Final = 1_000_000

#: Reads bytes: the offset of the first one, and how many. The result is shorter at the end.
ReadAt: TypeAlias = Callable[[int, int], bytes]

_HEADER: Final = Struct("<HHI")
#: The codestreams that begin a frame: SOI of JPEG and JPEG-LS, SOC of JPEG 2000, the signature of JP2, and that of JPEG XL.
_STARTS: Final = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP", b"\xff\x0a", b"\0\0\0\x0cJXL")


class Fragment(NamedTuple):
    """
    The place of one fragment.

    :ivar offset: the offset of its first byte.
    :ivar length: its length in bytes.
    """

    offset: int
    length: int


class Encapsulated(NamedTuple):
    """
    Encapsulated pixel data.

    :ivar table: the Basic Offset Table: the offset of each frame's first item, from the first byte behind the table's own item.
    :ivar fragments: the fragments in order.
    :ivar end: the offset behind the Sequence Delimitation Item.
    """

    table: tuple[int, ...]
    fragments: tuple[Fragment, ...]
    end: int


def read_encapsulated(read: ReadAt, offset: int) -> Encapsulated:
    """
    Read the items of encapsulated pixel data. Of the fragments only the headers are read.

    :param read: reads bytes.
    :param offset: the offset of the first item, which is behind the header of the element.
    :raises DataSetError: they are no items, end too early, or are more than :data:`MAX_FRAGMENTS`.
    """
    table: tuple[int, ...] | None = None
    fragments: list[Fragment] = []
    while True:
        header = read(offset, 8)
        if len(header) < 8:
            raise DataSetError("the encapsulated pixel data ends without a delimiter")
        group, element, length = _HEADER.unpack(header)
        tag = group << 16 | element
        offset += 8
        if tag == SEQUENCE_END:
            return Encapsulated(table or (), tuple(fragments), offset)
        if tag != ITEM or length == UNDEFINED_LENGTH:
            raise DataSetError(f"the encapsulated pixel data has ({group:04X},{element:04X}) where an item belongs")
        if table is None:
            if length > 4 * MAX_FRAGMENTS:
                raise DataSetError("the Basic Offset Table is too long")
            value = read(offset, length)
            if len(value) < length:
                raise DataSetError("the Basic Offset Table ends too early")
            table = unpack(f"<{length // 4}I", value[: length // 4 * 4])
        else:
            if len(fragments) >= MAX_FRAGMENTS:
                raise DataSetError(f"the pixel data has more than {MAX_FRAGMENTS} fragments")
            fragments.append(Fragment(offset, length))
        offset += length


def frame_fragments(
    read: ReadAt, pixels: Encapsulated, frames: int, extended_table: Sequence[int] = ()
) -> list[tuple[Fragment, ...]]:
    """
    Return the fragments of each frame.

    A table that is there decides, unless its offsets are not those of items. Without one, a frame has one fragment, or begins
    with the fragment that starts a codestream. If a table or the codestreams contradict Number of Frames, the frames are
    theirs, as of an acquisition that was cut off; except a table of one offset, which the single fragment of a video has,
    however many frames that is.

    :param read: reads bytes.
    :param pixels: the items.
    :param frames: Number of Frames.
    :param extended_table: the Extended Offset Table (PS3.3 C.7.6.3.1.8).
    :returns: the fragments of each frame; another number than *frames* if a table or the codestreams say so.
    :raises DataSetError: the fragments cannot be divided into frames.
    """
    fragments = pixels.fragments
    if frames == 1 and fragments and len(pixels.table) < 2 and len(extended_table) < 2:
        return [fragments]
    if len(fragments) == frames:
        return [(fragment,) for fragment in fragments]
    tables = [table for table in (extended_table, pixels.table) if len(table) == frames or len(table) > 1]
    for table in sorted(tables, key=lambda table: len(table) != frames):
        found = _by_offsets(fragments, table)
        if found is not None:
            return found
    if frames == 1 and fragments:
        return [fragments]
    starts = [at for at, one in enumerate(fragments) if read(one.offset, 12).startswith(_STARTS)]
    if not starts or starts[0]:
        raise DataSetError(
            f"the pixel data has {len(fragments)} fragments, which cannot be divided into {frames} frames"
        )
    return _divided(fragments, starts)


def _by_offsets(fragments: Sequence[Fragment], table: Sequence[int]) -> list[tuple[Fragment, ...]] | None:
    places = [fragment.offset for fragment in fragments]
    if not places:
        return None
    starts: list[int] = []
    for offset in table:
        place = places[0] + offset
        at = bisect_left(places, place)
        if at == len(places) or places[at] != place or (starts and at <= starts[-1]):
            return None
        starts.append(at)
    return None if starts[:1] != [0] else _divided(fragments, starts)


def _divided(fragments: Sequence[Fragment], starts: list[int]) -> list[tuple[Fragment, ...]]:
    ends = [*starts[1:], len(fragments)]
    return [tuple(fragments[start:end]) for start, end in zip(starts, ends, strict=True)]
