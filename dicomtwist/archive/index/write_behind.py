"""
Write-behind: rows that are added to the index after the instance was acknowledged.

With durability none an instance is acknowledged when its file has its name. Its row follows, together with the rows of other
instances, in one transaction. Every query lets the index catch up first, so that it finds all acknowledged instances. If the
program is killed in between, its next start adds the rows from the files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

from dicomtwist.archive.index.interfaces import RowSink
from dicomtwist.archive.index.record import IndexRow
from dicomtwist.archive.storage.types import InstanceUIDs, RowRefused

__all__ = ["WriteBehind"]

#: The number of rows that may wait, and the bytes that they may keep in memory; a caller with one more waits for the index.
MAX_BEHIND: Final = 2048
MAX_BEHIND_BYTES: Final = 16 * 1024 * 1024

#: The failures that are about the values of a row: the database refuses them, or its driver cannot take them.
_HOPELESS: Final = (RowRefused, ValueError, TypeError, OverflowError)

_Make = Callable[[], IndexRow]
#: A row that waits: a function that makes it, and the UIDs of its instance.
_Waiting: TypeAlias = tuple[_Make, InstanceUIDs]


class WriteBehind:
    """
    A queue of rows for the index, for use from any thread.

    :param index: the index.
    :param on_set_aside: called in any thread with the reason for which a row is set aside.

    :ivar set_aside: the number of rows that could not be added and never will be.
    """

    def __init__(self, index: RowSink, on_set_aside: Callable[[Exception], object] = lambda error: None) -> None:
        self._index = index
        self._on_set_aside = on_set_aside
        self.set_aside = 0
        self._waiting: list[_Waiting] = []
        self._places: dict[str, InstanceUIDs] = {}
        self._size = 0
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, row: _Make, uids: InstanceUIDs, size: int) -> None:
        """
        Queue a row.

        :param row: a function that makes the row.
        :param uids: the Study, Series and SOP Instance UIDs of the instance.
        :param size: the approximate number of bytes that *row* keeps in memory until then.
        :raises IndexFailed: the queue was full, and the database refused its rows. The new row was not queued.
        """
        self.make_room()
        self.put([(row, uids)], size)

    def make_room(self) -> None:
        """
        If the queue is full, add its rows to the index.

        :raises IndexFailed: the database refused them.
        """
        if len(self._waiting) >= MAX_BEHIND or self._size >= MAX_BEHIND_BYTES:
            self.catch_up()

    def put(self, rows: Sequence[_Waiting], size: int) -> None:
        """
        Queue rows as :meth:`add` does, however many wait; the caller has called :meth:`make_room`.

        :param size: the approximate number of bytes that *rows* keep in memory together.
        """
        with self._lock:
            self._waiting += rows
            for _, uids in rows:
                self._places[uids[2]] = uids
            self._size += size

    def elsewhere(self, instances: Iterable[InstanceUIDs]) -> dict[InstanceUIDs, InstanceUIDs]:
        """
        Return the instances whose SOP Instance UID a row that waits has below another study or series, each with the UIDs of
        that row. A row that has left the queue is in the index.
        """
        found: dict[InstanceUIDs, InstanceUIDs] = {}
        with self._lock:
            places = self._places
            for uids in instances:
                place = places.get(uids[2])
                if place is not None and place != uids:
                    found[uids] = place
        return found

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
            left, failure = self._add_each(waiting) if not self._added(waiting) else ([], None)
            with self._lock:
                self._waiting[:0] = left
                self._places = {uids[2]: uids for _, uids in self._waiting}
                self._size += size * len(left) // len(waiting)
            if failure is not None:
                raise failure

    def _added(self, rows: list[_Waiting]) -> bool:
        try:
            self._index.add([make() for make, _ in rows])
        except Exception:
            return False
        return True

    def _add_each(self, waiting: list[_Waiting]) -> tuple[list[_Waiting], Exception | None]:
        """
        Add rows one by one, since one of them may be the cause of the failure of all.

        A row that can never be added is set aside: its file stays, and the next start tries it again. All others wait.

        :returns: the rows that wait for the next call, and the reason.
        """
        left: list[_Waiting] = []
        failure: Exception | None = None
        for one in waiting:
            try:
                row = one[0]()
            except Exception as error:
                self._set_aside(error)
                continue
            try:
                self._index.add([row])
            except _HOPELESS as error:
                self._set_aside(error)
            except Exception as error:
                left.append(one)
                failure = error
        return left, failure

    def _set_aside(self, error: Exception) -> None:
        self.set_aside += 1
        self._on_set_aside(error)
