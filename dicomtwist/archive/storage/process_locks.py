"""
Locks between several processes that store instances in one archive.

Each process locks the instances that it is about to commit, so that no two commit the same one. It also notes them, so that
another process can complete or undo the commit if it dies before the index has the rows. Locks and notes take a few
microseconds. Nothing is synced: after a crash of the machine they are useless, and the next start compares everything anyway.
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
#: The byte of the lock file that stands for the index; the bytes of instances lie below it.
_INDEX_LOCK: Final = 1 << 40
#: The byte from which on the bytes of studies lie.
_STUDY_LOCKS: Final = 1 << 41


class FileLock:
    """
    A lock between the processes of one machine, held on a file; the file stays after the lock is released.

    :param path: the file, made if it is missing.
    :param fd: its file descriptor, if another process of this program holds the lock and hands it over.
    """

    def __init__(self, path: str, fd: int = -1) -> None:
        self._path = path
        self._fd = fd

    def fileno(self) -> int:
        """Return the file descriptor, -1 if the file is not open."""
        return self._fd

    def exclusive(self) -> None:
        """
        Take the lock for this holder alone; wait until all others have released it.

        :raises OSError: the file cannot be opened, or there are no locks on its file system.
        """
        self._open()
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def try_exclusive(self) -> bool:
        """
        Take the lock if no other holder has it, without waiting.

        :returns: whether this holder has the lock.
        :raises OSError: the file cannot be opened, or its file system has no locks; in the second case it stays open.
        """
        self._open()
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def share(self) -> None:
        """
        Take the lock together with other holders. An exclusive lock becomes a shared one without being released between.

        :raises OSError: the file cannot be opened, or its file system has no locks.
        """
        self._open()
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    def close(self) -> None:
        """Release the lock and close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)


class CommitJournal:
    """
    Locks the instances that one process commits and notes them, so that another process can repair them if this one dies.

    :param folder: the folder of the index.
    :param name: the name of the process among the processes that share the archive.
    :param temporary: the prefix of the names of its temporary files.
    """

    def __init__(self, folder: Path, name: str, temporary: str) -> None:
        self._locks = os.open(folder / _LOCKS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._notes = os.open(folder / f"{_NOTES}{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._mutex = threading.Lock()  # a file lock belongs to the process: it does not exclude another thread
        self._head = f"{temporary}\n".encode()
        os.ftruncate(self._notes, 0)
        os.pwrite(self._notes, self._head, 0)

    def close(self) -> None:
        """Close the files; idempotent."""
        for name in ("_locks", "_notes"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)

    @contextmanager
    def locked(self, instances: Iterable[InstanceUIDs]) -> Iterator[None]:
        """
        Lock *instances* against the other processes and note them. One thread at a time holds a group.

        :param instances: their Study, Series and SOP Instance UIDs.
        :raises OSError: the file system has no locks, or no room for a note.
        """
        uids = list(instances)
        names = ["/".join(one) for one in uids]
        with self._mutex:
            try:
                self._lock(names)
                # Together with others that store instances of the study, but not with one that removes it.
                for position in sorted({_STUDY_LOCKS + _position(one[0]) for one in uids}):
                    fcntl.lockf(self._locks, fcntl.LOCK_SH, 1, position)
                os.pwrite(self._notes, "".join(f"{name}\n" for name in names).encode(), len(self._head))
                yield
            finally:
                os.ftruncate(self._notes, len(self._head))
                fcntl.lockf(self._locks, fcntl.LOCK_UN, 0, 0)

    @contextmanager
    def study_locked(self, study_uid: str) -> Iterator[None]:
        """
        Lock a study against the other processes: none stores an instance of it meanwhile. One thread at a time holds it.

        :raises OSError: the file system has no locks.
        """
        with self._mutex:
            position = _STUDY_LOCKS + _position(study_uid)
            fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, position)
            try:
                yield
            finally:
                fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, position)

    @contextmanager
    def index_lock(self) -> Iterator[None]:
        """
        Lock the index against the other processes, inside :meth:`locked` or :meth:`study_locked`. SQLite alone polls every few
        milliseconds while another process writes; a process that waits for this lock goes on at once.
        """
        fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, _INDEX_LOCK)
        try:
            yield
        finally:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _INDEX_LOCK)

    def _lock(self, names: Iterable[str]) -> None:
        # By the SOP Instance UID alone: no other process stores it below another study or series at that time.
        # The locked bytes are never read. Every process locks them in ascending order, so there is no deadlock.
        for position in sorted({_position(name.rpartition("/")[2]) for name in names}):
            fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, position)


def uncommitted(folder: Path, name: str) -> tuple[str, list[InstanceUIDs]]:
    """
    Return what a process that has ended was about to commit.

    :param folder: the folder of the index.
    :param name: the name of the process.
    :returns: the prefix of the names of its temporary files, ``""`` if it ended before it noted the prefix; and the UIDs of
        the instances.
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
