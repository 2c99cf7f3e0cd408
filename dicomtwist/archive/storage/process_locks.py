"""
Several processes that keep instances in one archive.

Each locks the files that it is about to put in place, so that no two are at the same one; and notes them, so that somebody
can see to them where it dies before it has told the index. Both cost some microseconds, and nothing is synced: they are of
no use after the machine has crashed, when everything is looked at anyway.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Final

from dicomtwist.archive.storage.types import InstanceUIDs

__all__ = ["CommitJournal", "FileLock", "uncommitted"]

_LOCKS: Final = "committing.lock"
_NOTES: Final = "committing-"
#: The byte that stands for the index; those of instances are before it.
_INDEX_LOCK: Final = 1 << 40


class FileLock:
    """
    A lock of the processes of one machine; it is a file, which stays when the lock is let go of.

    :param path: the file, made when it is missing.
    :param fd: its file descriptor, if the lock is that of another process of this program; it is taken over.
    """

    def __init__(self, path: str, fd: int = -1) -> None:
        self._path = path
        self._fd = fd

    def fileno(self) -> int:
        """Return the file descriptor, -1 if the file is not open."""
        return self._fd

    def exclusive(self) -> None:
        """
        Wait until nobody else has the lock.

        :raises OSError: the file cannot be opened, or there are no locks on its file system.
        """
        self._open()
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def try_exclusive(self) -> bool:
        """
        Take the lock if nobody else has it; return whether nobody does.

        :raises OSError: the file cannot be opened, or there are no locks on its file system, and then it stays open.
        """
        self._open()
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def share(self) -> None:
        """
        Have the lock together with others; from the exclusive lock on, without letting go of it.

        :raises OSError: the file cannot be opened, or there are no locks on its file system.
        """
        self._open()
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    def close(self) -> None:
        """Let go of the lock; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)


class CommitJournal:
    """
    The instances that one process commits, for another one to see to if this one dies; and the locks that they are committed
    under.

    :param folder: the folder of the index.
    :param name: of the process among those that share the archive.
    :param temporary: what the names of its temporary files begin with.
    """

    def __init__(self, folder: Path, name: str, temporary: str) -> None:
        self._locks = os.open(folder / _LOCKS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._notes = os.open(folder / f"{_NOTES}{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._mutex = threading.Lock()  # locks of files are those of a process, not of a thread
        self._head = f"{temporary}\n".encode()
        os.ftruncate(self._notes, 0)
        os.pwrite(self._notes, self._head, 0)

    def close(self) -> None:
        """Let go of the files; idempotent."""
        for name in ("_locks", "_notes"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)

    @contextmanager
    def locked(self, instances: Iterable[InstanceUIDs]) -> Iterator[None]:
        """
        Keep others from *instances*, given by their Study, Series and SOP Instance UIDs; one group at a time.

        :raises OSError: there are no locks, or no room for a note.
        """
        names = ["/".join(uids) for uids in instances]
        with self._mutex:
            try:
                self._lock(names)
                os.pwrite(self._notes, "".join(f"{name}\n" for name in names).encode(), len(self._head))
                yield
            finally:
                os.ftruncate(self._notes, len(self._head))
                fcntl.lockf(self._locks, fcntl.LOCK_UN, 0, 0)

    @contextmanager
    def index_lock(self) -> Iterator[None]:
        """
        Have the index for this process alone, within :meth:`locked`. SQLite looks again after some milliseconds if another
        process writes; a process that waits here goes on at once.
        """
        fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, _INDEX_LOCK)
        try:
            yield
        finally:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _INDEX_LOCK)

    def _lock(self, names: Iterable[str]) -> None:
        # Bytes of a file that nobody reads, in one order for all, so that nobody waits in a circle.
        for position in sorted({_position(name) for name in names}):
            fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, position)


def uncommitted(folder: Path, name: str) -> tuple[str, list[InstanceUIDs]]:
    """
    Return what a process that is gone was about to commit, and what the names of its temporary files begin with.

    :returns: the beginning, ``""`` where it never came so far; and instances by their UIDs.
    """
    try:
        head, *lines = (folder / f"{_NOTES}{name}").read_text().split("\n")
    except FileNotFoundError:
        return "", []
    found = []
    for line in lines[:-1]:
        study_uid, series_uid, uid = line.split("/")
        found.append((study_uid, series_uid, uid))
    return head, found


def _position(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=5).digest(), "big")
