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

__all__ = ["Committing", "left_behind"]

_Uids = tuple[str, str, str]

_LOCKS: Final = "committing.lock"
_NOTES: Final = "committing-"
#: The byte that stands for the index; those of instances are before it.
_TURN: Final = 1 << 40


class Committing:
    """
    What one process commits.

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
    def holding(self, instances: Iterable[_Uids]) -> Iterator[None]:
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
    def turn(self) -> Iterator[None]:
        """
        Wait for the turn to write the index, within :meth:`holding`. SQLite looks again after some milliseconds where another
        process writes; who waits here goes on at once.
        """
        fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, _TURN)
        try:
            yield
        finally:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _TURN)

    def _lock(self, names: Iterable[str]) -> None:
        # Bytes of a file that nobody reads, in one order for all, so that nobody waits in a circle.
        for place in sorted({_place(name) for name in names}):
            fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, place)


def left_behind(folder: Path, name: str) -> tuple[str, list[_Uids]]:
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


def _place(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=5).digest(), "big")
