"""
Data sets to send: sources, which are read as the connection takes them.
"""

from __future__ import annotations

import os
from io import BytesIO
from typing import BinaryIO, Protocol, TypeAlias, cast

from pydicom import dcmread
from twisted.internet.defer import Deferred

from dicomtwist.datasets.codec import encode_dataset
from dicomtwist.datasets.stream import CHUNK
from dicomtwist.errors import DataSetError
from dicomtwist.part10 import FileMeta, read_file_meta
from dicomtwist.runtime.threads import WorkerThreads

#: A piece of a data set, and whether it is the last.
Chunk: TypeAlias = tuple[bytes | memoryview, bool]


class DataSetSource(Protocol):
    """
    A data set to send, in the transfer syntax of the presentation context that it is sent in.

    Whoever writes one of their own gives pieces of even length, except that the last may be of any.
    """

    def read(self) -> Chunk | Deferred[Chunk]:
        """Return the next piece and whether it is the last; called again only when the one before has come."""

    def close(self) -> None:
        """Called once, when everything was read or nothing more is wanted."""


class BytesSource:
    """
    A data set that is in memory.

    :ivar data: it.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data

    def read(self) -> Chunk:
        """Return all of it."""
        return self.data, True

    def close(self) -> None:
        """Nothing to close."""


class FileSource:
    """
    A data set that is read from an open file in a thread, one chunk ahead of what is sent.

    :param file: positioned behind *first*; it is closed with the source.
    :param first: what was read already.
    :param left: how many bytes are behind it, ``None`` where that is not known.
    """

    __slots__ = ("_ahead", "_closed", "_file", "_first", "_left", "_threads")

    def __init__(self, file: BinaryIO, threads: WorkerThreads, first: bytes | memoryview, left: int | None) -> None:
        self._file = file
        self._threads = threads
        self._first: bytes | memoryview | None = first
        self._left = left
        self._ahead: Deferred[bytes] | None = None
        self._closed = False

    def read(self) -> Chunk | Deferred[Chunk]:
        """Return the next chunk; the one behind it is being read meanwhile."""
        if self._first is not None:
            first, self._first = self._first, None
            last = self._left == 0
            if not last:
                self._read_ahead()
            return first, last
        assert self._ahead is not None
        return self._ahead.addCallback(self._have)

    def _read_ahead(self) -> None:
        # Not more than there was when it was opened: a file may be growing.
        count = CHUNK if self._left is None else min(CHUNK, self._left)
        self._ahead = self._threads.run(self._file.read, count)

    def _have(self, data: bytes) -> Chunk:
        self._ahead = None
        if self._left is None:
            last = len(data) < CHUNK
        else:
            self._left -= len(data)
            last = self._left == 0
            if not data and not last:
                raise DataSetError(f"the file ended {self._left} bytes before its size said")
        if not last and not self._closed:
            self._read_ahead()
        return data, last

    def close(self) -> None:
        """Close the file, after a read that is under way."""
        if self._closed:
            return
        self._closed = True
        if self._ahead is None:
            self._file.close()
        else:
            self._ahead.addBoth(self._close_late)

    def _close_late(self, result: object) -> None:
        # A failure of a read that nobody wants any more is nobody's.
        self._file.close()


class OpenedInstance:
    """
    A Part 10 file ready to be sent.

    :ivar meta: its File Meta Information.
    :ivar source: its data set.
    :ivar held: how much of it is in memory, in bytes.
    """

    __slots__ = ("held", "meta", "source")

    def __init__(self, meta: FileMeta, source: DataSetSource, held: int) -> None:
        self.meta = meta
        self.source = source
        self.held = held


def open_instance(path: str | os.PathLike[str], threads: WorkerThreads) -> Deferred[OpenedInstance]:
    """
    Open a Part 10 file for sending, in a thread; a small one is read whole, of a larger one the first chunk.

    :returns: a Deferred with the :class:`OpenedInstance`; it fails with ``OSError`` or
        :class:`~dicomtwist.part10.NotDicomFile`.
    """
    return threads.run(open_path, path, threads)


def open_path(path: str | os.PathLike[str], threads: WorkerThreads) -> OpenedInstance:
    """
    The same in the thread that calls. Blocks.

    :param threads: where the rest of a large file is read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        # No more is asked for than there is: the memory of the rest would be taken and given back each time.
        head = os.read(descriptor, min(CHUNK, size))
        meta, offset = read_file_meta(BytesIO(head))
        first = memoryview(head)[offset:]
        if size > len(head):
            # Unbuffered: what is read of it is large.
            file = open(descriptor, "rb", buffering=0)
            descriptor = -1
            return _in_pieces(file, threads, meta, first, size - offset)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return OpenedInstance(meta, BytesSource(first), len(head))


def _in_pieces(
    file: BinaryIO, threads: WorkerThreads, meta: FileMeta, first: memoryview, length: int | None
) -> OpenedInstance:
    """
    Return an instance that is read as it is sent.

    :param first: what was read of its data set.
    :param length: of the data set, ``None`` where that is not known.
    """
    try:
        if len(first) & 1:
            first = memoryview(bytes(first) + file.read(1))
    except BaseException:
        file.close()
        raise
    left = None if length is None else length - len(first)
    return OpenedInstance(meta, FileSource(file, threads, first, left), len(first))


class _Unclosed:
    """A file-like object that the caller opened, and closes."""

    __slots__ = ("_file",)

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, count: int) -> bytes:
        # A raw file may give less than was asked for. Here that means the end: it is how the last piece is known,
        # the only one that may be odd.
        parts: list[bytes] = []
        while count:
            part = self._file.read(count)
            if not part:
                break
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        pass


def open_file_like(file: BinaryIO, threads: WorkerThreads) -> Deferred[OpenedInstance]:
    """
    The same for an object with ``read(count)`` that gives a Part 10 file from where it stands; it is left open.
    """

    def start() -> OpenedInstance:
        unclosed = _Unclosed(file)
        head = unclosed.read(CHUNK)
        meta, offset = read_file_meta(BytesIO(head))
        first = memoryview(head)[offset:]
        if len(head) < CHUNK:
            return OpenedInstance(meta, BytesSource(first), len(head))
        return _in_pieces(cast("BinaryIO", unclosed), threads, meta, first, None)

    return threads.run(start)


def convert_file(path: str | os.PathLike[str], transfer_syntax: str) -> bytes:
    """Return the data set of the Part 10 file at *path* encoded in another uncompressed syntax. Blocks."""
    return encode_dataset(dcmread(path), transfer_syntax)
