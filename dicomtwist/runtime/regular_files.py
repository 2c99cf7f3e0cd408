"""Opening regular files, and nothing else: a FIFO or a device could block a thread for ever."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

__all__ = ["check_regular", "open_descriptor", "open_regular", "read_short"]


def open_regular(path: str | os.PathLike[str], buffering: int = -1) -> BinaryIO:
    """
    Open a regular file for reading. Nothing else is opened, so this never waits, as for the writer of a FIFO.

    :param buffering: as that of the function ``open``.
    :raises OSError: it cannot be read, or it is not a regular file.
    """
    file = open(path, "rb", buffering, opener=open_descriptor)
    try:
        check_regular(os.fstat(file.fileno()), path)
    except OSError:
        file.close()
        raise
    return file


def read_short(path: str | os.PathLike[str], most: int) -> tuple[os.stat_result, bytes] | None:
    """
    Read a regular file of up to *most* bytes. A file object of Python takes four times as long.

    :returns: its state and its content; ``None`` if it is longer.
    :raises OSError: it cannot be read, or it is not a regular file.
    """
    descriptor = open_descriptor(path)
    try:
        status = os.fstat(descriptor)
        check_regular(status, path)
        return None if status.st_size > most else (status, os.read(descriptor, status.st_size))
    finally:
        os.close(descriptor)


def check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    """
    Check what was opened.

    :param status: that of the open file.
    :param path: its path, for the error.
    :raises OSError: it is not a regular file.
    """
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)


def open_descriptor(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """
    Return a descriptor of the file at *path*, which may be anything: see :func:`check_regular`. This never waits.

    :raises OSError: it cannot be opened.
    """
    # O_NONBLOCK has no effect on a regular file.
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
