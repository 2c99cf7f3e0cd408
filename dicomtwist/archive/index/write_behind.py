"""
Write-behind: rows that are added to the index after the instance was acknowledged.

With durability none an instance is acknowledged when its file has its name. Its row follows, together with the rows of other
instances, in one transaction. Every query lets the index catch up first, so that it finds all acknowledged instances. If the
program is killed in between, its next start adds the rows from the files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from dicomtwist.archive.index.interfaces import RowSink
from dicomtwist.archive.index.record import IndexRow
from dicomtwist.archive.storage.types import IndexFailed

__all__ = ["WriteBehind"]

#: The number of rows that may wait, and the bytes that they may keep in memory; a caller with one more waits for the index.
MAX_BEHIND: Final = 512
MAX_BEHIND_BYTES: Final = 16 * 1024 * 1024

_Make = Callable[[], IndexRow]


class WriteBehind:
    """
    A queue of rows for the index, for use from any thread.

    :param index: the index.
    """

    def __init__(self, index: RowSink) -> None:
        self._index = index
        self._waiting: list[_Make] = []
        self._size = 0
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, row: _Make, size: int) -> None:
        """
        Queue a row.

        :param row: a function that makes the row.
        :param size: the approximate number of bytes that *row* keeps in memory until then.
        :raises IndexFailed: the queue was full, and the database refused its rows. The new row was not queued.
        """
        if len(self._waiting) >= MAX_BEHIND or self._size >= MAX_BEHIND_BYTES:
            self.catch_up()
        with self._lock:
            self._waiting.append(row)
            self._size += size

    def catch_up(self) -> None:
        """
        Add all rows that were queued before the call to the index.

        :raises IndexFailed: the database refused; rows that could not be added stay queued for the next call.
        """
        with self._turn:
            with self._lock:
                waiting, self._waiting = self._waiting, []
                size, self._size = self._size, 0
            if not waiting:
                return
            try:
                self._index.add([make() for make in waiting])
            except IndexFailed:
                # The database may refuse only one of the rows.
                refused = [make for make in waiting if not self._added(make)]
                with self._lock:
                    self._waiting[:0] = refused
                    self._size += size * len(refused) // len(waiting)
                if refused:
                    raise
            except BaseException:
                # A defect of this program: the rows stay queued, so that none is lost in silence and the next call fails too.
                with self._lock:
                    self._waiting[:0] = waiting
                    self._size += size
                raise

    def _added(self, make: _Make) -> bool:
        try:
            self._index.add([make()])
        except IndexFailed:
            return False
        return True
