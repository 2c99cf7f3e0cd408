"""
The bytes of a response: in memory, or in ranges of open files that are read in pieces.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, TypeAlias

from dicomtwist.archive.reading.stored_file import Source
from dicomtwist.errors import DataSetError

__all__ = ["BitRange", "Block", "Content", "Extent", "Part", "READERS"]

#: The most bytes that are read at a time, and the fewest if there are many readers.
PIECE: Final = 512 * 1024
MIN_PIECE: Final = 16 * 1024
#: The bytes of one piece of each reader together, from which on pieces are shorter.
MAX_PIECES: Final = 4 * 1024 * 1024

_CODES: Final = {2: "H", 4: "I", 8: "Q"}


class Readers:
    """
    The number of contents that are being read. The more there are, the shorter are their pieces: clients that take nothing
    leave pieces in memory.

    :ivar count: their number. One thread changes it.
    """

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    @property
    def piece(self) -> int:
        """The bytes to read at a time."""
        return min(PIECE, max(MIN_PIECE, MAX_PIECES // (self.count or 1)))


#: The readers of this process.
READERS: Final = Readers()


class Extent(NamedTuple):
    """
    A range of a file.

    :ivar source: the file.
    :ivar offset: the position of the first byte.
    :ivar length: its length in bytes.
    :ivar unit: the length of a word, whose bytes are put in reverse order: of values in big endian; 1 to leave them.
    :ivar words: the position of the first word, from which on words are counted, if the unit is above 1.
    """

    source: Source
    offset: int
    length: int
    unit: int = 1
    words: int = 0

    def behind(self, size: int) -> Extent | None:
        """Return what is behind the first *size* bytes, if there is more; of words of one byte."""
        return Extent(self.source, self.offset + size, self.length - size) if size < self.length else None

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from *start* up to *stop*."""
        unit = self.unit
        at, end = self.offset + start, self.offset + stop
        while at < end:
            # A range may begin and end within a word.
            before = (at - self.words) % unit if unit > 1 else 0
            length = min(READERS.piece, end - at)
            wanted = before + length
            piece = self.source.read(at - before, -(-wanted // unit) * unit)
            if len(piece) < wanted:
                raise DataSetError("the stored data set is cut off")
            if unit > 1:
                piece = _reversed(piece, unit)[before:wanted]
            yield piece
            at += length

    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """Yield the bytes from *start* up to *stop*: as an extent, which need not be read, or in pieces."""
        if self.unit > 1 or self.source.descriptor is None:
            yield from self.pieces(start, stop)
        else:
            yield Extent(self.source, self.offset + start, stop - start)

    def buffers(self, start: int, stop: int) -> list[memoryview] | None:
        """Return the bytes from *start* up to *stop*, if they are in memory."""
        view = self.source.view(self.offset + start, stop - start)
        return None if view is None or len(view) < stop - start or self.unit > 1 else [view]


def _reversed(data: bytes, unit: int) -> bytes:
    """Return *data* with the bytes of each word in reverse order."""
    whole = len(data) - len(data) % unit
    words = array(_CODES[unit], data[:whole])
    words.byteswap()
    return words.tobytes() + data[whole:]


class BitRange(NamedTuple):
    """
    A frame of single bits, which may begin within a byte; its first bit becomes the lowest of the first byte.

    :ivar source: the file.
    :ivar offset: the position of the byte that has the first bit.
    :ivar shift: the number of the first bit in it, from 0 for the lowest.
    :ivar bits: the number of bits.
    """

    source: Source
    offset: int
    shift: int
    bits: int

    @property
    def length(self) -> int:
        """The length in bytes."""
        return -(-self.bits // 8)

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from *start* up to *stop*."""
        length = -(-(self.shift + self.bits) // 8)
        data = self.source.read(self.offset, length)
        if len(data) < length:
            raise DataSetError("the stored data set is cut off")
        number = int.from_bytes(data, "little") >> self.shift & ((1 << self.bits) - 1)
        yield number.to_bytes(self.length, "little")[start:stop]

    def blocks(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from *start* up to *stop*."""
        return self.pieces(start, stop)

    def buffers(self, start: int, stop: int) -> None:
        """Return ``None``: the bits are not in memory as they are sent."""


#: A part of a content.
Part: TypeAlias = bytes | Extent | BitRange
#: Bytes, or a range of an open file whose bytes are sent as they are.
Block: TypeAlias = bytes | Extent


class Content:
    """
    The bytes of an instance, a frame, or a value.

    :param parts: the parts, in order.

    :ivar parts: see above.
    :ivar length: the length of all of them together, in bytes.
    """

    __slots__ = ("length", "parts")

    def __init__(self, parts: Iterable[Part]) -> None:
        self.parts = tuple(parts)
        self.length = sum(_length(part) for part in self.parts)

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """
        Yield the bytes from *start* up to *stop*, in pieces of at most :data:`PIECE` if they are in a file. It blocks.

        :raises DataSetError: the file is shorter than it says.
        :raises OSError: it cannot be read.
        """
        for part, first, last in self._within(start, stop):
            if isinstance(part, bytes):
                yield part[first:last]
            else:
                yield from part.pieces(first, last)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """
        Yield the bytes from *start* up to *stop*. Ranges of files are not read, unless their bytes are put in another order.

        :raises DataSetError: the file is shorter than it says.
        :raises OSError: it cannot be read.
        """
        for part, first, last in self._within(start, stop):
            if isinstance(part, bytes):
                yield part[first:last]
            else:
                yield from part.blocks(first, last)

    def buffers(self, start: int = 0, stop: int | None = None) -> list[bytes | memoryview] | None:
        """Return the bytes from *start* up to *stop*, if all of them are in memory. It does not block."""
        found: list[bytes | memoryview] = []
        for part, first, last in self._within(start, stop):
            if isinstance(part, bytes):
                found.append(part[first:last])
                continue
            buffers = part.buffers(first, last)
            if buffers is None:
                return None
            found += buffers
        return found

    def _within(self, start: int, stop: int | None) -> Iterator[tuple[Part, int, int]]:
        """Yield the parts from *start* up to *stop*, each with the range in it."""
        stop = self.length if stop is None else min(stop, self.length)
        at = 0
        for part in self.parts:
            length = _length(part)
            first, last = max(start - at, 0), min(stop - at, length)
            at += length
            if first < last:
                yield part, first, last


def _length(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else part.length
