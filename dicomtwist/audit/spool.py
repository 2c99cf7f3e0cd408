"""
The spool: messages on the disk until they are delivered.

They are lines in numbered files, the segments. Each append is flushed to the medium, so that a message that is in the spool
survives a crash. A file ``delivered`` has the position up to which all are delivered; it is written some seconds behind, so
that a message may be delivered twice after a crash, and never not at all.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Position", "Spool"]

#: The size from which on a segment is followed by another one, in bytes.
SEGMENT: Final = 1024 * 1024
#: The most bytes of all segments together.
MAX_SPOOL: Final = 256 * 1024 * 1024
#: The most bytes that are read at once, but for a message that is longer.
MAX_READ: Final = 256 * 1024

_DELIVERED: Final = "delivered"
_SUFFIX: Final = ".messages"


class Position(NamedTuple):
    """
    A position in the spool.

    :ivar segment: the number of a segment.
    :ivar offset: the bytes before it in that segment.
    """

    segment: int
    offset: int


class Spool:
    """
    A spool. Its methods block; :meth:`append` and the others may be called in different threads, each by one at a time.

    :param folder: its folder, which is made if it is missing.
    :param maximum: the most bytes that are not delivered. The disk may have a segment more.
    """

    def __init__(self, folder: Path, maximum: int = MAX_SPOOL) -> None:
        self.folder = folder
        self.path = str(folder)
        self._maximum = maximum
        self._file = -1
        self._last = 0
        self._size = 0

    # --- writing, as a LineFile does it

    def append(self, lines: bytes) -> None:
        """
        Append messages, a line each, and flush them to the medium.

        :raises OSError: nothing was appended, because the disk is full, say, or the spool is.
        """
        if self._file < 0:
            self._begin()
        # Not all bytes: a segment whose messages are delivered stays until another one begins.
        if self.waiting(self._delivered()) + len(lines) > self._maximum:
            raise OSError(errno.EDQUOT, f"the spool has {self._maximum} bytes that are not delivered")
        if self._size >= SEGMENT:
            self.close()
            self._begin()
        try:
            if os.write(self._file, lines) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            os.fdatasync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            # The next message begins another segment: a reader may be beyond the end of this one.
            self.close()
            raise
        self._size += len(lines)

    def close(self) -> None:
        """Close the segment that is written to; the next one begins with the next message."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _begin(self) -> None:
        # Always a new segment: the last one of the run before may end in the middle of a line.
        self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._last = max([0, self._delivered().segment, *self.segments()]) + 1
        path = self._segment(self._last)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        self._size = 0
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    # --- reading

    def first(self) -> Position:
        """Return the position of the first message that is not delivered."""
        delivered = self._delivered()
        segments = self.segments()
        if not segments or delivered.segment >= segments[0]:
            return delivered
        return Position(segments[0], 0)

    def read(self, position: Position) -> tuple[list[bytes], Position]:
        """
        Return some messages from *position* on, and the position behind them. There are none if all are read.
        """
        while True:
            data = b""
            with suppress(FileNotFoundError), self._segment(position.segment).open("rb") as file:
                file.seek(position.offset)
                data = file.read(MAX_READ)
                if len(data) == MAX_READ and b"\n" not in data:
                    data += file.readline()
            end = data.rfind(b"\n") + 1
            if end:
                return data[:end].splitlines(), Position(position.segment, position.offset + end)
            # A line without an end is what a crash has left, if another segment follows.
            later = [number for number in self.segments() if number > position.segment]
            if not later:
                return [], position
            position = Position(later[0], 0)

    def delivered(self, position: Position) -> None:
        """Note that everything before *position* is delivered, and remove segments that are not needed any more."""
        self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        # First, since they may be what fills the disk. Without a note the first segment that is left is read from its
        # beginning.
        for number in self.segments():
            if number < position.segment:
                self._segment(number).unlink(missing_ok=True)
        temporary = self.folder / f"{_DELIVERED}.new"
        temporary.write_text(f"{position.segment} {position.offset}\n")
        os.replace(temporary, self.folder / _DELIVERED)

    def waiting(self, position: Position) -> int:
        """Return the bytes behind *position*."""
        return max(0, self.size() - (position.offset if position.segment in self.segments() else 0))

    def size(self) -> int:
        """Return the bytes of all segments."""
        total = 0
        for number in self.segments():
            with suppress(FileNotFoundError):
                total += self._segment(number).stat().st_size
        return total

    def segments(self) -> list[int]:
        """Return the numbers of the segments, in order."""
        try:
            names = [entry.name for entry in os.scandir(self.folder)]
        except FileNotFoundError:
            return []
        return sorted(
            int(name.removesuffix(_SUFFIX))
            for name in names
            if name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX).isdecimal()
        )

    def _segment(self, number: int) -> Path:
        return self.folder / f"{number:08}{_SUFFIX}"

    def _delivered(self) -> Position:
        try:
            segment, offset = (self.folder / _DELIVERED).read_text().split()
            return Position(int(segment), int(offset))
        except (OSError, ValueError):
            return Position(0, 0)
