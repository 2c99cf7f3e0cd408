"""
The frames of stored instances: where their bytes are in the data set (PS3.5 8, A.4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from struct import unpack
from threading import Lock
from typing import Final

from dicomtwist.archive.reading.content import BitRange, Content, Extent
from dicomtwist.archive.reading.stored_file import Source, StoredFile
from dicomtwist.archive.storage.types import InstanceUIDs
from dicomtwist.datasets.element_headers import (
    EXPLICIT_BIG_ENDIAN,
    UNDEFINED_LENGTH,
)
from dicomtwist.datasets.header_scanner import HeaderError, HeaderScanner, element_header
from dicomtwist.errors import DataSetError
from dicomtwist.part10 import decode_uid
from dicomtwist.pixels.encapsulation import Fragment, frame_fragments, read_encapsulated

__all__ = ["FrameTable", "FrameTables", "NoPixelData", "PixelElement", "find_pixels", "read_frames"]

_SAMPLES: Final = 0x00280002
_PHOTOMETRIC: Final = 0x00280004
_FRAMES: Final = 0x00280008
_ROWS: Final = 0x00280010
_COLUMNS: Final = 0x00280011
_BITS: Final = 0x00280100
_EXTENDED_OFFSETS: Final = 0x7FE00001
_WANTED: Final = frozenset((_SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _BITS, _EXTENDED_OFFSETS))
#: The last tag before those of pixel data.
_BEFORE_PIXELS: Final = 0x7FE00007
_PIXEL_DATA: Final = 0x7FE00010
#: Float Pixel Data and Double Float Pixel Data, with their Bits Allocated (PS3.3 C.7.6.24).
_FLOATS: Final = {0x7FE00008: 32, 0x7FE00009: 64}

#: The bytes that are scanned at a time, and the longest table of offsets, in bytes.
WINDOW: Final = 64 * 1024
MAX_TABLE: Final = 16 * 1024 * 1024
#: The longest frame of single bits that does not end with a byte, in bits: it is shifted in memory.
MAX_BITS: Final = 1 << 26
#: The most fragments of all tables that are remembered; each takes 150 bytes.
MAX_REMEMBERED: Final = 100_000

#: GE's private syntax, whose pixels alone are big endian.
_GE_PRIVATE: Final = "1.2.840.113619.5.2"


class NoPixelData(DataSetError):
    """The instance has no pixel data."""


@dataclass(frozen=True, slots=True)
class PixelElement:
    """
    The element with the pixel data, and what tells its frames apart.

    :ivar tag: its tag.
    :ivar vr: its VR; empty in a data set without VRs.
    :ivar header: the position of its header in the data set.
    :ivar offset: the position of its value.
    :ivar length: the length of the value in bytes; ``None`` if it is encapsulated.
    :ivar frames: Number of Frames, 1 without one.
    :ivar frame_bits: the size of a frame that is not compressed, in bits; 0 if that is not known.
    :ivar bits_allocated: Bits Allocated, 0 without it.
    :ivar offsets: the Extended Offset Table.
    """

    tag: int
    vr: str
    header: int
    offset: int
    length: int | None
    frames: int
    frame_bits: int
    bits_allocated: int
    offsets: tuple[int, ...] = ()

    def unit(self, syntax: str) -> int:
        """Return the length of a word of native pixel data whose bytes are in big endian, in bytes; 1 for little endian."""
        if syntax != EXPLICIT_BIG_ENDIAN and syntax != _GE_PRIVATE:
            return 1
        if self.bits_allocated in (16, 32, 64):
            return self.bits_allocated // 8
        return 2 if self.vr == "OW" else 1


def find_pixels(source: Source, syntax: str) -> PixelElement:
    """
    Find the pixel data in a data set. The elements before it are scanned, and long values are passed over.

    :param source: the data set; it is not deflated.
    :param syntax: the UID of its transfer syntax.
    :raises NoPixelData: it has none.
    :raises DataSetError: the bytes before it cannot be a data set.
    """
    scanner = HeaderScanner(syntax, _WANTED, stop_after=_BEFORE_PIXELS, max_value_length=MAX_TABLE)
    offset = 0
    try:
        while not scanner.done:
            data = source.read(offset, WINDOW)
            if not data:
                break
            offset += len(data)
            scanner.feed(data)
            while passed := scanner.pass_over(1 << 40):
                offset += passed
    except HeaderError as error:
        raise DataSetError(str(error)) from error
    at = scanner.stopped_at
    if at < 0:
        raise NoPixelData("the instance has no pixel data")
    header = element_header(source.read(at, 16), syntax)
    if header is None or (header[0] != _PIXEL_DATA and header[0] not in _FLOATS):
        raise NoPixelData("the instance has no pixel data")
    tag, vr, start, length = header
    values = scanner.values
    order = ">" if syntax == EXPLICIT_BIG_ENDIAN else "<"
    rows, columns, samples, bits = (_number(values, one, order) for one in (_ROWS, _COLUMNS, _SAMPLES, _BITS))
    bits = _FLOATS.get(tag, bits)
    per_pixel = 2 if decode_uid(values.get(_PHOTOMETRIC, b"")) == "YBR_FULL_422" and samples == 3 else samples or 1
    table = values.get(_EXTENDED_OFFSETS, b"")
    return PixelElement(
        tag=tag,
        vr=vr,
        header=at,
        offset=at + start,
        length=None if length == UNDEFINED_LENGTH else length,
        frames=_count(values.get(_FRAMES, b"")),
        frame_bits=rows * columns * per_pixel * bits,
        bits_allocated=bits,
        offsets=unpack(f"<{len(table) // 8}Q", table[: len(table) // 8 * 8]),
    )


def _number(values: Mapping[int, bytes], tag: int, order: str) -> int:
    value = values.get(tag, b"")
    return int(unpack(f"{order}H", value[:2])[0]) if len(value) >= 2 else 0


def _count(value: bytes) -> int:
    """Return Number of Frames; without a valid one there is one frame."""
    text = decode_uid(value)
    return max(1, int(text)) if text.isdecimal() and len(text) <= 12 else 1


class FrameTable:
    """
    The places of the frames of an instance.

    :param syntax: the UID of the transfer syntax of the data set.
    :param pixels: the element with the pixel data.
    :param fragments: the fragments of each frame of encapsulated pixel data; ``None`` if it is native.

    :ivar count: the number of frames that exist.
    :ivar stated: Number of Frames, which may be another one.
    :ivar is_encapsulated: whether the pixel data is encapsulated.
    """

    __slots__ = ("_fragments", "_pixels", "_unit", "count", "is_encapsulated", "stated")

    def __init__(self, syntax: str, pixels: PixelElement, fragments: Sequence[tuple[Fragment, ...]] | None) -> None:
        self._pixels = pixels
        self._fragments = fragments
        self._unit = pixels.unit(syntax)
        if fragments is not None:
            self.count = len(fragments)
        elif pixels.length is not None and pixels.frame_bits:
            self.count = min(pixels.frames, 8 * pixels.length // pixels.frame_bits)
        else:
            self.count = pixels.frames
        self.stated = pixels.frames
        self.is_encapsulated = fragments is not None

    def frame(self, source: Source, number: int) -> Content:
        """
        Return a frame. One of native pixel data is in little endian, whatever its data set is.

        :param source: the data set.
        :param number: the number of the frame, from 1 to :attr:`count`.
        """
        if self._fragments is not None:
            return Content(Extent(source, one.offset, one.length) for one in self._fragments[number - 1])
        pixels = self._pixels
        bits = pixels.frame_bits * (number - 1)
        if pixels.frame_bits % 8:
            return Content([BitRange(source, pixels.offset + bits // 8, bits % 8, pixels.frame_bits)])
        return Content([Extent(source, pixels.offset + bits // 8, pixels.frame_bits // 8, self._unit, pixels.offset)])

    def whole(self, source: Source) -> Content:
        """Return the value of native pixel data, in little endian."""
        pixels = self._pixels
        assert pixels.length is not None, "encapsulated pixel data has no value that makes sense without its frames"
        return Content([Extent(source, pixels.offset, pixels.length, self._unit, pixels.offset)])

    @property
    def cost(self) -> int:
        """The approximate size of the table, in fragments."""
        return 1 + sum(map(len, self._fragments or ()))


class FrameTables:
    """
    Remembers the tables of recent instances: a video of 100,000 fragments has a header before each. Any thread may use it.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple[InstanceUIDs, str], FrameTable] = {}
        self._cost = 0
        self._lock = Lock()

    def of(self, uids: InstanceUIDs, stored: StoredFile) -> FrameTable:
        """
        Return the table of an instance, see :func:`read_frames`.

        :param uids: its UIDs.
        """
        key = (uids, stored.version)
        with self._lock:
            table = self._tables.pop(key, None)
            if table is not None:
                self._tables[key] = table  # the one that was used last is at the end
                return table
        table = read_frames(stored)
        with self._lock:
            if key not in self._tables:
                self._tables[key] = table
                self._cost += table.cost
            while self._cost > MAX_REMEMBERED:
                self._cost -= self._tables.pop(next(iter(self._tables))).cost
        return table


def read_frames(stored: StoredFile) -> FrameTable:
    """
    Find the frames of an instance. It blocks.

    :raises NoPixelData: it has no pixel data.
    :raises DataSetError: its pixel data cannot be divided into frames.
    """
    source, syntax = stored.data, stored.data_syntax
    pixels = find_pixels(source, syntax)
    if pixels.length is None:
        items = read_encapsulated(source.read, pixels.offset)
        return FrameTable(syntax, pixels, frame_fragments(source.read, items, pixels.frames, pixels.offsets))
    if pixels.frame_bits % 8 and pixels.frame_bits > MAX_BITS:
        raise DataSetError(f"a frame of more than {MAX_BITS} bits that does not end with a byte")
    if not pixels.frame_bits and pixels.frames > 1:
        raise DataSetError("the data set does not say how long a frame is")
    if not pixels.frame_bits or (pixels.frames == 1 and pixels.frame_bits > 8 * pixels.length):
        # One frame is the whole value, whatever its attributes say.
        pixels = PixelElement(
            *(pixels.tag, pixels.vr, pixels.header, pixels.offset, pixels.length, 1),
            *(8 * pixels.length, pixels.bits_allocated),
        )
    return FrameTable(syntax, pixels, None)
