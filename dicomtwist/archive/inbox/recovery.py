"""
The recovery of the inbox at a start: it reads the segments that a store left behind when its program or machine ended.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from dicomtwist.archive.inbox.frames import Found, scan
from dicomtwist.archive.inbox.segments import NAME
from dicomtwist.archive.storage.process_locks import FileLock
from dicomtwist.archive.storage.system_calls import FileSystem
from dicomtwist.runtime.regular_files import check_regular

__all__ = ["BROKEN", "Recovery"]

#: The beginning of the names of segments that were set aside.
BROKEN: Final = "broken-"
#: The number of UIDs and names in a report.
MAX_REPORTED: Final = 100
#: The bytes that are read at once behind a failure; those that cannot be read count as zeros.
_BLOCK: Final = 4096
#: The failures to open what is no segment: a link, a folder, a device.
_NO_FILE: Final = frozenset((errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.EINVAL))
#: A file of more bytes than this is no segment: searching it for frames might keep the start waiting for hours.
MAX_SIZE: Final = 1024 * 1024 * 1024
#: The number of failing reads of a segment after which the rest of it is not tried.
_MAX_FAILURES: Final = 64

_READ: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(slots=True, eq=False)
class _LeftOver:
    """
    A segment that an earlier store left behind.

    :ivar broken: whether it is set aside instead of removed.
    """

    name: str
    fd: int
    broken: bool = False


@dataclass(eq=False)
class Recovery:
    """
    Reads the segments that earlier stores left behind; those of living stores are not touched.

    Iterate over it, make a file of each frame, sync files and folders, then call :meth:`finish`. This is idempotent: if the
    program ends before :meth:`finish` has, the next start finds the same frames.

    :param folder: the folder of the segments.
    :param file_system: the system calls to use.

    :ivar found: the number of frames that are whole.
    :ivar torn: the number of bad frames, or groups of them, whose instances were most likely not acknowledged.
    :ivar damaged: the number of bad frames, or groups of them, in which at least one instance was acknowledged.
    :ivar damaged_uids: the UIDs of some of the damaged instances, as far as they are known.
    :ivar unreadable: some of the names of segments that no files have, with the reason; they stay where they are.
    :ivar set_aside: the new names of segments with damage, or for which :meth:`keep` was called; set by :meth:`finish`.
    """

    folder: str
    file_system: FileSystem
    found: int = 0
    torn: int = 0
    damaged: int = 0
    damaged_uids: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    _segments: list[_LeftOver] = field(default_factory=list)

    def __iter__(self) -> Iterator[Found]:
        """
        Yield the frames in the order of receipt.

        :raises OSError: the folder cannot be read, or a segment cannot be opened.
        """
        names = filter(NAME.fullmatch, self.file_system.listdir(self.folder))
        for name in sorted(names, key=_order):
            segment = self._opened(name)
            if segment is not None:
                self._segments.append(segment)
                yield from self._frames(segment)

    def keep(self) -> None:
        """Set the segment of the last frame aside instead of removing it, because no file could be made of the frame."""
        self._segments[-1].broken = True

    def finish(self) -> None:
        """
        Remove the segments, or set them aside; the files of all frames are on the medium as durability asks for.

        :raises OSError: as it came, errno intact. It may be called again.
        """
        fs = self.file_system
        touched = bool(self._segments)
        while self._segments:
            segment = self._segments[0]
            path = os.path.join(self.folder, segment.name)
            if segment.broken:
                fs.rename(path, os.path.join(self.folder, BROKEN + segment.name))
                self.set_aside.append(BROKEN + segment.name)
            else:
                fs.unlink(path)
            fs.close_quietly(self._segments.pop(0).fd)
        if touched:
            fs.sync_folder(self.folder)

    def close(self) -> None:
        """Release the segments for the next start; idempotent, and does nothing after :meth:`finish`."""
        while self._segments:
            self.file_system.close_quietly(self._segments.pop().fd)

    def _opened(self, name: str) -> _LeftOver | None:
        """Open and lock a segment; ``None`` if a living store has it, or if it cannot be opened."""
        path = os.path.join(self.folder, name)
        try:
            fd = self.file_system.open(path, _READ)
        except FileNotFoundError:
            return None  # a living store has renamed or removed it
        except OSError as error:
            if error.errno not in _NO_FILE:
                # Its instances may be sent again meanwhile: a later start must not bring back older copies.
                raise
            self._note_unreadable(name, error)
            return None
        alone = True
        try:
            status = os.fstat(fd)
            check_regular(status, path)
            if status.st_size > MAX_SIZE:
                raise OSError(errno.EFBIG, f"{status.st_size} bytes are too many for a segment", path)
            alone = _is_alone(path, fd)
        except OSError as error:
            self._note_unreadable(name, error)
            alone = False
        if not alone:
            self.file_system.close_quietly(fd)
            return None
        return _LeftOver(name, fd)

    def _note_unreadable(self, name: str, error: OSError) -> None:
        if len(self.unreadable) < MAX_REPORTED:
            self.unreadable.append(f"{name}: {error.strerror or error}")

    def _frames(self, segment: _LeftOver) -> Iterator[Found]:
        reader = _Reader(self.file_system, segment.fd)
        generation = bytes.fromhex(segment.name.rpartition("-")[2])
        for part in scan(reader.read, os.fstat(segment.fd).st_size, generation):
            if isinstance(part, Found):
                self.found += 1
                yield part
            elif part.acknowledged:
                self.damaged += 1
                segment.broken = True
                if part.uids is not None and len(self.damaged_uids) < MAX_REPORTED:
                    self.damaged_uids.append("/".join(part.uids))
            else:
                self.torn += 1
        if reader.failures:
            segment.broken = True


class _Reader:
    """Reads a segment; bytes that cannot be read count as zeros."""

    def __init__(self, file_system: FileSystem, fd: int) -> None:
        self._fs = file_system
        self._fd = fd
        self.failures = 0

    def read(self, offset: int, length: int) -> bytes:
        try:
            return self._read(offset, length)
        except OSError:
            end = offset + length
            begins = [offset, *range(offset - offset % _BLOCK + _BLOCK, end, _BLOCK)]
            return b"".join(
                self._block(begin, until - begin) for begin, until in zip(begins, [*begins[1:], end], strict=True)
            )

    def _read(self, offset: int, length: int) -> bytes:
        pieces = []
        while length and (piece := self._fs.pread(self._fd, length, offset)):
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)

    def _block(self, offset: int, length: int) -> bytes:
        if self.failures < _MAX_FAILURES:
            try:
                return self._read(offset, length)
            except OSError:
                self.failures += 1
        return bytes(length)


def _order(name: str) -> tuple[int, str]:
    return int(name.split("-")[1]), name


def _is_alone(path: str, fd: int) -> bool:
    try:
        return FileLock(path, fd).try_exclusive()
    except OSError:
        return True  # a file system without locks has no segments of living stores: they could not lock them
