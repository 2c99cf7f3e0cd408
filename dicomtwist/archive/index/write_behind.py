"""
The index behind the files: rows that are added after a peer was told of success.

With durability none an instance counts as kept when its file has its name, and its row follows with those of others, in one
transaction. Whoever asks the index has it catch up first, so that what was acknowledged is found. A program that is killed
in between finds the files at its next start.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from dicomtwist.archive.index.interfaces import RowSink
from dicomtwist.archive.index.record import IndexRow
from dicomtwist.archive.storage.types import IndexFailed

__all__ = ["WriteBehind"]

#: How many rows may wait, and how many bytes may be kept for them; who brings one more waits for the index.
MAX_BEHIND: Final = 512
MAX_BEHIND_BYTES: Final = 16 * 1024 * 1024

_Make = Callable[[], IndexRow]


class WriteBehind:
    """
    Rows that wait for the index; from any thread.

    :param index: where they go.
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
        Take a row.

        :param row: makes it.
        :param size: how many bytes are kept for it until then, about.
        :raises IndexFailed: so much waits already that it had to be added, and the database refused. The row was not taken.
        """
        if len(self._waiting) >= MAX_BEHIND or self._size >= MAX_BEHIND_BYTES:
            self.catch_up()
        with self._lock:
            self._waiting.append(row)
            self._size += size

    def catch_up(self) -> None:
        """
        Add what waits; all that was taken before the call is in the index then.

        :raises IndexFailed: the database refused; what could not be added waits for the next call.
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
                # It may be one of them that the database does not like.
                refused = [make for make in waiting if not self._added(make)]
                with self._lock:
                    self._waiting[:0] = refused
                    self._size += size * len(refused) // len(waiting)
                if refused:
                    raise
            except BaseException:
                # A mistake of ours: it is seen with the next call as well, and no row is dropped in silence.
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
