"""
Data sets to send: sources, which are read as the connection takes them.
"""

from __future__ import annotations

from typing import BinaryIO, Protocol, TypeAlias

from twisted.internet.defer import Deferred

from dicomtwist.datasets.stream import CHUNK
from dicomtwist.errors import DataSetError
from dicomtwist.runtime.executors import Executor

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

    __slots__ = ("_ahead", "_closed", "_executor", "_file", "_first", "_left")

    def __init__(self, file: BinaryIO, executor: Executor, first: bytes | memoryview, left: int | None) -> None:
        self._file = file
        self._executor = executor
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
        self._ahead = self._executor.run_admitted(self._file.read, count)

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
