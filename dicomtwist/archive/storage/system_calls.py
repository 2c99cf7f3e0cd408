"""
The system calls that storing is made of.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

__all__ = ["Buffer", "FileSystem"]

Buffer: TypeAlias = bytes | bytearray | memoryview

_SYNC_FILE_RANGE_WRITE: Final = 2


def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Return Linux's sync_file_range, which Python does not have; ``None`` where it is not."""
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function


_START_WRITING: Final = _sync_file_range()


class FileSystem:
    """The system calls that storing is made of, so that a test can make any one of them fail.

    Each is the function of :mod:`os` with the same name and raises OSError as that does.
    """

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        return os.open(path, flags, mode)

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        return os.writev(fd, buffers)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def start_writing(self, fd: int, offset: int, length: int) -> None:
        """
        Have what was written from *offset* on go to the medium from here on, without a wait for it, so that a sync finds less
        to do. A hint: what fails is told by the sync.
        """
        if _START_WRITING is not None:
            _START_WRITING(fd, offset, length, _SYNC_FILE_RANGE_WRITE)

    def close(self, fd: int) -> None:
        os.close(fd)

    def flush(self, fd: int) -> None:
        """Close the file without closing it: there are file systems that tell only then of what could not be written."""
        os.close(os.dup(fd))

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        os.mkdir(path, mode)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def name(self, fd: int, target: str) -> None:
        """Give an open file that has no name (``O_TMPFILE``) the name *target*; FileExistsError where there is one."""
        # With a descriptor of a folder, whichever it is, Python calls linkat, which alone follows the link in /proc.
        os.link(f"/proc/self/fd/{fd}", target, src_dir_fd=fd, follow_symlinks=True)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def free(self, path: str) -> int:
        """How many bytes programs may still write where *path* is; :func:`os.statvfs`."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def drop_cache(self, fd: int) -> None:
        """
        Have the system forget what it remembers of a file, so that it is read from the medium; :func:`os.posix_fadvise`. A
        hint: nothing is told where that cannot be done.
        """
        with suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    # --- made of these

    def make_folder(self, path: str, mode: int = 0o750) -> bool:
        """
        Make a folder if it is not there; returns whether it was not.

        :raises OSError: as it came, errno intact.
        """
        try:
            self.mkdir(path, mode)
        except FileExistsError:
            return False
        return True

    def sync(self, path: str, flags: int = 0) -> None:
        """
        Have a file on the medium, or the names in a folder.

        :param flags: for :meth:`open`, besides those for reading.
        :raises OSError: as it came, errno intact.
        """
        fd = self.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        try:
            self.fsync(fd)
        finally:
            self.close(fd)

    def sync_folder(self, path: str) -> None:
        """
        Have the names in the folder *path* on the medium.

        :raises OSError: as it came, errno intact.
        """
        self.sync(path, os.O_DIRECTORY)

    def close_quietly(self, fd: int) -> None:
        """Close a file of which nobody needs to know whether all of it was written."""
        try:
            self.close(fd)
        except OSError:
            pass

    def unlink_quietly(self, path: str) -> None:
        """Remove a file if that can be done."""
        try:
            self.unlink(path)
        except OSError:
            # It was renamed already, or the file system is beyond it (EROFS, EIO). The error that led here
            # says more, and the next start removes the file.
            pass
