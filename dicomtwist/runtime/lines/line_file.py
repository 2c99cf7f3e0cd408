"""
A file to which several processes append lines, and which is rotated by its size or from outside.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from typing import Final

__all__ = ["LineFile"]

#: The number of older files that a rotation keeps: ``FILE.1``, the latest of them, to ``FILE.5``.
KEPT: Final = 5
#: The permissions of a new file: for its owner, and to read for its group.
MODE: Final = 0o640


class LineFile:
    """
    A file of lines. All methods block, and are called in one thread at a time.

    Each call appends whole lines or nothing, also if the disk is full, or another process writes to the same file.

    :param path: the path; the file is made when it is first needed.
    :param maximum: the size in bytes beyond which the file is rotated; ``None`` for a file that is rotated from outside.
    """

    def __init__(self, path: str, maximum: int | None = None) -> None:
        self.path = path
        self._maximum = maximum
        self._file = -1

    def append(self, lines: bytes) -> None:
        """
        Append *lines*.

        :raises OSError: nothing was appended.
        """
        file = self._open()
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if self._maximum is not None:
                file = self._rotated(file, len(lines))
            before = os.fstat(file).st_size
            if _is_torn(file, before):
                lines = b"\n" + lines
            try:
                written = os.write(file, lines)
                if written < len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(file, before)
                raise
        finally:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file; the next call opens it again, or the one that has its name then."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _open(self) -> int:
        if self._file < 0:
            flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
            # A pipe that this process could read as well would never tell that its reader is gone.
            path = self.path
            can_read = os.access(path, os.R_OK) if os.path.isfile(path) else not os.path.lexists(path)
            self._file = os.open(self.path, flags | (os.O_RDWR if can_read else os.O_WRONLY), MODE)
        return self._file

    def _rotated(self, file: int, more: int) -> int:
        """Return the file to write to, locked: a new one if *more* bytes do not fit, or another process has rotated it."""
        while not self._is_current(file):
            self.close()
            file = self._open()
            fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file).st_size
        if not size or self._maximum is None or size + more <= self._maximum:
            return file
        for number in range(KEPT, 1, -1):
            with suppress(FileNotFoundError):
                os.replace(f"{self.path}.{number - 1}", f"{self.path}.{number}")
        os.replace(self.path, f"{self.path}.1")
        self.close()
        file = self._open()
        fcntl.flock(file, fcntl.LOCK_EX)
        return file

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False


def _is_torn(file: int, size: int) -> bool:
    """
    Return whether a file ends in the middle of a line: a power cut or a kill has interrupted a write, or what was written of
    it on a full disk could not be taken back, as in a file that can only grow.
    """
    if not size:
        return False
    try:
        return os.pread(file, 1, size - 1) not in (b"\n", b"")
    except OSError:
        return False  # it is not open for reading, or is no file
