"""
Sources: data sets to send, read as the connection takes them.
"""

from __future__ import annotations

from tempfile import TemporaryFile
from typing import BinaryIO, Protocol, TypeAlias

from twisted.internet.defer import Deferred

from dicomtwist.datasets.stream import CHUNK
from dicomtwist.errors import DataSetError
from dicomtwist.runtime.executors import Executor, Runner

#: A chunk of a data set, and whether it is the last.
Chunk: TypeAlias = tuple[bytes | memoryview, bool]


class DataSetSource(Protocol):
    """
    A data set to send, in the transfer syntax of the presentation context that it is sent in.

    A source of your own has to give chunks of even length; only the last may be odd.
    """

    def read(self) -> Chunk | Deferred[Chunk]:
        """Return the next chunk and whether it is the last. It is called again only after the chunk before has arrived."""

    def close(self) -> None:
        """Release the resources. Called once, after the last chunk or when no more is wanted."""


class BytesSource:
    """
    A data set that is in memory.

    :ivar data: the data set.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data

    def read(self) -> Chunk:
        """Return all of it."""
        return self.data, True

    def close(self) -> None:
        """Do nothing."""


class FileSource:
    """
    A data set that is read from an open file in a thread, one chunk ahead of what is sent.

    :param file: the file, positioned after *first*; it is closed with the source.
    :param first: the chunk that was read already.
    :param left: the number of bytes after it, ``None`` if that is not known.
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
        """Return the next chunk; a thread reads the one after it meanwhile."""
        if self._first is not None:
            first, self._first = self._first, None
            last = self._left == 0
            if not last:
                self._read_ahead()
            return first, last
        assert self._ahead is not None
        return self._ahead.addCallback(self._have)

    def _read_ahead(self) -> None:
        # No more than the file had when it was opened, since it may be growing.
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
        """Close the file, after a read that is in progress."""
        if self._closed:
            return
        self._closed = True
        if self._ahead is None:
            self._file.close()
        else:
            self._ahead.addBoth(self._close_late)

    def _close_late(self, result: object) -> None:
        # The failure of a read whose result is not wanted any more is dropped.
        self._file.close()


async def spool(source: DataSetSource, executor: Runner) -> tuple[BinaryIO, int]:
    """
    Write all of a data set into a temporary file, which has no name. The source is closed.

    A data set that is made while it is sent may fail in its middle, when nothing but the end of the association or connection
    can tell the peer so, which ends all that is behind it as well. One that is in a file is complete.

    :param source: the data set.
    :param executor: the threads that write.
    :returns: the file at its start, and its length in bytes; the caller closes it.
    :raises Exception: that of the source; nothing is left then.
    """
    file: BinaryIO = await executor.run_admitted(TemporaryFile)
    try:
        size = 0
        is_last = False
        while not is_last:
            chunk = source.read()
            data, is_last = chunk if isinstance(chunk, tuple) else await chunk
            await executor.run_admitted(file.write, data)
            size += len(data)
        await executor.run_admitted(file.seek, 0)
    except BaseException:
        file.close()
        raise
    finally:
        source.close()
    return file, size
