"""
The system calls of the storage, in one class, so that a test can make any of them fail.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

__all__ = ["Buffer", "FileSystem"]

Buffer: TypeAlias = bytes | bytearray | memoryview

_SYNC_FILE_RANGE_WRITE: Final = 2
#: The first version of Linux whose syncfs reports what could not be written.
_TRUSTED_SYNCFS: Final = (5, 8)


def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Return Linux's sync_file_range, which Python does not offer; ``None`` on other systems."""
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function


_START_WRITING: Final = _sync_file_range()


def _syncfs() -> Callable[[int], int] | None:
    """Return Linux's syncfs, which Python does not offer; ``None`` on other systems, and if it does not report failures."""
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if sys.platform != "linux" or version is None or (int(version[1]), int(version[2])) < _TRUSTED_SYNCFS:
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int]
    return function


_SYNC_FILE_SYSTEM: Final = _syncfs()


#: macOS has no fdatasync.
_FDATASYNC: Final[Callable[[int], None]] = getattr(os, "fdatasync", os.fsync)


class FileSystem:
    """The system calls of the storage. A test replaces any one of them to make it fail.

    Each method is the function of :mod:`os` with the same name and raises OSError as that function does.
    """

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        return os.open(path, flags, mode)

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        return os.writev(fd, buffers)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        """Flush the content of a file to the medium, and of its metadata only what reading the content needs."""
        _FDATASYNC(fd)

    def start_writing(self, fd: int, offset: int, length: int) -> None:
        """
        Start to flush *length* bytes from *offset* on to the medium, those up to the end if *length* is 0, and do not wait. A
        later sync then finds less to do.
        This is a hint: the sync reports what fails.
        """
        if _START_WRITING is not None:
            _START_WRITING(fd, offset, length, _SYNC_FILE_RANGE_WRITE)

    @property
    def can_sync_all(self) -> bool:
        """Whether :meth:`sync_all` works."""
        return _SYNC_FILE_SYSTEM is not None

    def sync_all(self, fd: int) -> None:
        """
        Flush all files and folders of a file system to the medium, if :attr:`can_sync_all`.

        :param fd: a file or folder of it. A failure is reported that came after this descriptor was opened.
        """
        assert _SYNC_FILE_SYSTEM is not None
        if _SYNC_FILE_SYSTEM(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def close(self, fd: int) -> None:
        os.close(fd)

    def flush(self, fd: int) -> None:
        """Close a duplicate of the descriptor: some file systems report only at a close what could not be written."""
        os.close(os.dup(fd))

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        os.mkdir(path, mode)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def name(self, fd: int, target: str) -> None:
        """
        Give an open file that has no name (``O_TMPFILE``) the name *target*.

        :raises FileExistsError: a file has that name already.
        """
        # Only linkat follows the link in /proc, and Python calls linkat only if it gets the descriptor of a folder; any does.
        os.link(f"/proc/self/fd/{fd}", target, src_dir_fd=fd, follow_symlinks=True)

    def set_time(self, fd: int, time: int) -> None:
        """Set the times of a file, in nanoseconds since 1970; :func:`os.utime`."""
        os.utime(fd, ns=(time, time))

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def free(self, path: str) -> int:
        """How many bytes programs may still write on the file system of *path*; :func:`os.statvfs`."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def drop_cache(self, fd: int) -> None:
        """
        Drop the pages of a file from the system's cache, so that it is read from the medium; :func:`os.posix_fadvise`. This is
        a hint: a failure is ignored.
        """
        with suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    # --- composed of the calls above

    def make_folder(self, path: str, mode: int = 0o750) -> bool:
        """
        Make a folder if it is missing.

        :returns: whether it was missing.
        :raises OSError: as it came, errno intact.
        """
        try:
            self.mkdir(path, mode)
        except FileExistsError:
            return False
        return True

    def sync(self, path: str, flags: int = 0) -> None:
        """
        Flush a file, or the names in a folder, to the medium.

        :param flags: flags for :meth:`open`, in addition to those for reading.
        :raises OSError: as it came, errno intact.
        """
        fd = self.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        try:
            self.fsync(fd)
        finally:
            self.close(fd)

    def sync_folder(self, path: str) -> None:
        """
        Flush the names in the folder *path* to the medium.

        :raises OSError: as it came, errno intact.
        """
        self.sync(path, os.O_DIRECTORY)

    def close_quietly(self, fd: int) -> None:
        """Close a file; a failure is ignored, since its content no longer matters."""
        try:
            self.close(fd)
        except OSError:
            pass

    def unlink_quietly(self, path: str) -> None:
        """Remove a file; a failure is ignored."""
        try:
            self.unlink(path)
        except OSError:
            # The file was renamed already, or the file system cannot do it (EROFS, EIO). The error that led here
            # says more, and the next start removes the file.
            pass
