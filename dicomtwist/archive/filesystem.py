"""
The system calls that storing is made of.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["Buffer", "FileSystem"]

Buffer: TypeAlias = bytes | bytearray | memoryview


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

    def close(self, fd: int) -> None:
        os.close(fd)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        os.mkdir(path, mode)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def free(self, path: str) -> int:
        """How many bytes programs may still write where *path* is; :func:`os.statvfs`."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)
