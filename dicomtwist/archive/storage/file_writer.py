"""
One instance that is written to disk piece by piece.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.types import InvalidUID, StoreClosed, Written, check_uids

if TYPE_CHECKING:
    from dicomtwist.archive.storage.file_store import InstanceStore

__all__ = ["InstanceWriter"]


class InstanceWriter:
    """One instance that is being written; made by :meth:`~dicomtwist.archive.storage.file_store.InstanceStore.create`.

    Any failure removes the temporary file and closes the writer; so do :meth:`commit` and :meth:`discard`.
    """

    __slots__ = ("_fd", "_hash", "_nameless", "_store", "_temporary", "size")

    def __init__(self, store: InstanceStore, temporary: str, fd: int, nameless: bool) -> None:
        self._store = store
        self._temporary = temporary
        self._nameless = nameless
        self._fd = fd
        self._hash = hashlib.sha256() if store._full else None
        #: How many bytes have been written.
        self.size = 0

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append buffers, all bytes of them.

        :param buffers: contiguous bytes each; any number.
        :raises OSError: as it came, errno intact; the temporary file is gone.
        :raises StoreClosed: the writer has ended.
        """
        if self._fd < 0:
            raise StoreClosed("this instance has been committed or discarded")
        try:
            if self._store.min_free:
                self._store._check_free()
            offset = self.size
            self.size += self._store._write_all(self._fd, buffers)
            if self._hash is not None:
                # While the rest is still to come, and while this is being digested.
                self._store._fs.start_writing(self._fd, offset, self.size - offset)
                for buffer in buffers:
                    self._hash.update(buffer)
        except BaseException:
            self.discard()
            raise

    def commit(self, study_uid: str, series_uid: str, instance_uid: str) -> str:
        """Make the instance visible under its final name, in place of an earlier copy if there is one.

        :returns: where it is.
        :raises InvalidUID: one of the three is no UID; the temporary file is gone.
        :raises OSError: as it came, errno intact; the temporary file is gone, and an earlier copy of the
            instance is as it was, unless the very last step failed (the fsync of the folder: then the new one
            is in its place).
        :raises StoreClosed: the writer has ended.
        """
        try:
            check_uids(study_uid, series_uid, instance_uid)
        except InvalidUID:
            self.discard()
            raise
        temporary = self.seal().path
        try:
            return self._store._place(temporary, study_uid, series_uid, instance_uid)
        except BaseException:
            self._store._remove(temporary)
            raise

    def seal(self) -> Written:
        """The instance is whole: its temporary file is, with durability full on the medium.

        :returns: the file, which belongs to the caller.
        :raises OSError: as it came, errno intact; the temporary file is gone.
        :raises StoreClosed: the writer has ended.
        """
        if self._fd < 0:
            raise StoreClosed("this instance has been committed or discarded")
        store = self._store
        try:
            if store._full:
                store._fs.fsync(self._fd)
            # Never closed twice: after a failing close the number may already belong to another thread's
            # file.
            fd, self._fd = self._fd, -1
            store._written(self._temporary, fd, self._nameless)
        except BaseException:
            if self._fd >= 0:
                self.discard()
            else:
                store._remove(self._temporary)
            raise
        return Written(self._temporary, self.size, b"" if self._hash is None else self._hash.digest())

    def discard(self) -> None:
        """Remove the temporary file; idempotent, and without effect after a commit."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        self._store._close_quietly(fd)  # what was written is not wanted any more, so it does not matter that it is lost
        if not self._nameless:
            self._store._remove(self._temporary)
