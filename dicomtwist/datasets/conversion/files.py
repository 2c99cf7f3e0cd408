"""
Files that are sent in another uncompressed transfer syntax than their own (PS3.5 A.1 to A.5).

Most of a large file is pixel data, whose bytes stay as they are, or change their order. So only the elements around it are
decoded and encoded, which is bounded; the pixel data is read while it is sent.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from struct import pack, unpack
from typing import BinaryIO, Final, NamedTuple

from twisted.internet.defer import Deferred

from dicomtwist.datasets.codec import decode_dataset, encode_dataset
from dicomtwist.datasets.element_headers import DEFLATED, EXPLICIT_BIG_ENDIAN, IMPLICIT, UNDEFINED_LENGTH
from dicomtwist.datasets.header_scanner import HeaderError, HeaderScanner, element_header
from dicomtwist.datasets.sources import BytesSource, Chunk, DataSetSource
from dicomtwist.datasets.stream import CHUNK
from dicomtwist.errors import DataSetError, DataSetTooLong
from dicomtwist.part10 import read_file_meta
from dicomtwist.runtime.executors import Executor
from dicomtwist.runtime.regular_files import open_regular

__all__ = ["convert_file", "open_converted"]

#: The longest data set that is decoded as a whole, in bytes, if its pixel data can be read apart.
WHOLE: Final = 4 * 1024 * 1024
#: The most bytes that are decoded at once: before the pixel data, behind it, or of a data set without any. To decode and encode
#: them takes three times as much memory.
MAX_DECODED: Final = 128 * 1024 * 1024
_WINDOW: Final = 64 * 1024

_BITS_ALLOCATED: Final = 0x00280100
_BEFORE_PIXELS: Final = 0x7FE00007
_PIXEL_DATA: Final = 0x7FE00010
#: The VRs of Float Pixel Data and Double Float Pixel Data.
_FLOATS: Final = {0x7FE00008: "OF", 0x7FE00009: "OD"}
#: The length of a word of these VRs, in bytes, and the codes of words in an array.
_WORDS: Final = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
_CODES: Final = {2: "H", 4: "I", 8: "Q"}


def convert_file(path: str | os.PathLike[str], transfer_syntax: str) -> bytes:
    """Return the data set of the Part 10 file at *path*, encoded in another uncompressed syntax. Blocks."""
    with open(path, "rb") as file:
        meta, offset = read_file_meta(file)
        file.seek(offset)
        dataset = decode_dataset(file.read(), meta.transfer_syntax_uid)
    return encode_dataset(dataset, transfer_syntax)


def open_converted(path: str | os.PathLike[str], transfer_syntax: str, executor: Executor) -> DataSetSource:
    """
    Open the data set of the Part 10 file at *path*, encoded in another uncompressed syntax. Blocks.

    :param executor: the executor to read the pixel data of a large file in.
    :raises OSError: the file cannot be read.
    :raises NotDicomFile: it is not a Part 10 file.
    :raises DataSetTooLong: the elements besides pixel data are longer than :data:`MAX_DECODED`.
    :raises DataSetError: the data set cannot be decoded or encoded.
    """
    file = open_regular(path)
    try:
        meta, start = read_file_meta(file)
        size = os.fstat(file.fileno()).st_size
        own = meta.transfer_syntax_uid
        pixels = None
        if size - start > WHOLE and not DEFLATED & {own, transfer_syntax}:
            pixels = _find_pixels(file, start, own)
        if pixels is None:
            data = encode_dataset(decode_dataset(_read(file, start, size), own), transfer_syntax)
            file.close()
            return BytesSource(data)
        if pixels.stop > size:
            raise DataSetError("the data set is cut off within its pixel data")
        swaps = (own == EXPLICIT_BIG_ENDIAN) != (transfer_syntax == EXPLICIT_BIG_ENDIAN)
        unit = _WORDS.get(pixels.vr, 1) if swaps else 1
        before = _converted(_read(file, start, pixels.header), own, transfer_syntax)
        behind = _converted(_read(file, pixels.stop, size), own, transfer_syntax)
        return _ConvertedFile(file, executor, before + pixels.encoded_header(transfer_syntax), pixels, unit, behind)
    except BaseException:
        file.close()
        raise


def _read(file: BinaryIO, start: int, stop: int) -> bytes:
    """
    Return the bytes from *start* up to *stop*.

    :raises DataSetTooLong: there are more than :data:`MAX_DECODED`.
    """
    if stop - start > MAX_DECODED:
        raise DataSetTooLong(f"a data set with elements of more than {MAX_DECODED} bytes cannot be converted")
    file.seek(start)
    return file.read(stop - start)


def _converted(data: bytes, own: str, transfer_syntax: str) -> bytes:
    return encode_dataset(decode_dataset(data, own), transfer_syntax) if data else b""


class _Pixels(NamedTuple):
    """
    Native pixel data.

    :ivar header: the position of its element in the file.
    :ivar start: the position of its value.
    :ivar stop: the position behind it.
    """

    tag: int
    vr: str
    header: int
    start: int
    stop: int

    def encoded_header(self, transfer_syntax: str) -> bytes:
        """Return the header of the element in *transfer_syntax*."""
        order = ">" if transfer_syntax == EXPLICIT_BIG_ENDIAN else "<"
        vr = b"" if transfer_syntax in IMPLICIT else self.vr.encode() + bytes(2)
        return pack(f"{order}HH", self.tag >> 16, self.tag & 0xFFFF) + vr + pack(f"{order}I", self.stop - self.start)


def _find_pixels(file: BinaryIO, start: int, syntax: str) -> _Pixels | None:
    """
    Return the pixel data of a data set; ``None`` if it has none, or only pydicom can say where it is.

    :param start: the position of the data set in the file.
    """
    scanner = HeaderScanner(syntax, frozenset((_BITS_ALLOCATED,)), stop_after=_BEFORE_PIXELS)
    at = start
    try:
        while not scanner.done:
            file.seek(at)
            data = file.read(_WINDOW)
            if not data:
                return None
            at += len(data)
            scanner.feed(data)
            while passed := scanner.pass_over(1 << 40):
                at += passed
    except HeaderError:
        return None
    if scanner.stopped_at < 0:
        return None
    header = start + scanner.stopped_at
    file.seek(header)
    found = element_header(file.read(16), syntax)
    if found is None:
        return None
    tag, vr, behind, length = found
    if (tag != _PIXEL_DATA and tag not in _FLOATS) or length == UNDEFINED_LENGTH or (not vr and syntax not in IMPLICIT):
        return None
    value = scanner.values.get(_BITS_ALLOCATED, b"")
    bits = unpack(">H" if syntax == EXPLICIT_BIG_ENDIAN else "<H", value[:2].ljust(2, b"\0"))[0]
    vr = vr or _FLOATS.get(tag, "OW" if syntax in IMPLICIT or bits > 8 else "OB")
    return _Pixels(tag, vr, header, header + behind, header + behind + length)


class _ConvertedFile:
    """
    A converted data set, whose pixel data is read from its file in a thread: a
    :class:`~dicomtwist.datasets.sources.DataSetSource`.

    :param file: the file; it is closed with the source.
    :param head: the bytes before the pixel data.
    :param unit: the length of a word whose bytes change their order; 1 to leave them.
    :param tail: the bytes behind it.
    """

    __slots__ = ("_executor", "_file", "_is_closed", "_left", "_pieces", "_reading")

    def __init__(
        self, file: BinaryIO, executor: Executor, head: bytes, pixels: _Pixels, unit: int, tail: bytes
    ) -> None:
        self._file = file
        self._executor = executor
        self._left = len(head) + pixels.stop - pixels.start + len(tail)
        self._pieces = _pieces(file, head, pixels, unit, tail)
        self._reading: Deferred[bytes] | None = None
        self._is_closed = False

    def read(self) -> Deferred[Chunk]:
        """Return the next chunk and whether it is the last."""
        self._reading = self._executor.run_admitted(next, self._pieces)
        return self._reading.addCallback(self._have)

    def _have(self, data: bytes) -> Chunk:
        self._reading = None
        self._left -= len(data)
        return data, not self._left

    def close(self) -> None:
        """Close the file, after a read that is in progress."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._reading is None:
            self._file.close()
        else:
            self._reading.addBoth(lambda _: self._file.close())


def _pieces(file: BinaryIO, head: bytes, pixels: _Pixels, unit: int, tail: bytes) -> Iterator[bytes]:
    """Yield a converted data set, in pieces of at most :data:`~dicomtwist.datasets.stream.CHUNK` bytes of pixel data."""
    if head:
        yield head
    at = pixels.start
    while at < pixels.stop:
        file.seek(at)
        piece = file.read(min(CHUNK, pixels.stop - at))
        if not piece:
            raise DataSetError(f"the file ended {pixels.stop - at} bytes before its size said")
        at += len(piece)
        yield _swapped(piece, unit) if unit > 1 else piece
    if tail:
        yield tail


def _swapped(data: bytes, unit: int) -> bytes:
    """Return *data* with the bytes of each word in reverse order; an incomplete word at its end stays."""
    whole = len(data) - len(data) % unit
    words = array(_CODES[unit], data[:whole])
    words.byteswap()
    return words.tobytes() + data[whole:]
