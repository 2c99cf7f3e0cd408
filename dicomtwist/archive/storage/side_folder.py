"""
Files of an archive beside its instances, such as performed procedure steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dicomtwist.archive.storage.process_locks import FileLock
from dicomtwist.archive.storage.system_calls import Buffer, FileSystem
from dicomtwist.archive.storage.temporary_files import TemporaryFiles

__all__ = ["SideFolder"]


class SideFolder:
    """
    A folder in the root of a store, made when the first file is written into it.

    :param root: the root.
    :param name: the name of the folder. No UID begins with a dot, so no study can have
        the same name. Other letters than digits and dots do not occur in a UID either.
    :param files: writes the files.
    :param file_system: the system calls to use.
    """

    def __init__(self, root: str, name: str, files: TemporaryFiles, file_system: FileSystem) -> None:
        self._root = root
        self._path = os.path.join(root, name)
        self._files = files
        self._fs = file_system

    def path(self, name: str) -> str:
        """Return the path of the file *name*, whether or not it exists."""
        return os.path.join(self._path, name)

    def put(self, buffers: Sequence[Buffer], name: str) -> None:
        """
        Write a file and replace an earlier one; with durability full the file is on the medium afterwards.

        :param buffers: its content, each buffer contiguous.
        :raises OSError: as it came, errno intact. An earlier file has not changed, unless the very last step failed
            (the fsync of the folder: then the new file has replaced it).
        """
        self._make()
        temporary = self._files.write_one(buffers).path
        try:
            self._files.give_name(temporary, self.path(name), exclusive=False)
        except BaseException:
            self._files.remove(temporary)
            raise
        if self._files.syncs:
            self._fs.sync_folder(self._path)

    def read(self, name: str, limit: int) -> bytes:
        """
        Return the content of a file, at most *limit* bytes of it.

        :raises OSError: as it came, errno intact.
        """
        with open(self.path(name), "rb") as file:
            return file.read(limit)

    def __contains__(self, name: str) -> bool:
        return os.path.lexists(self.path(name))

    def names(self) -> list[str]:
        """
        Return the names of all files, sorted; an empty list if the folder does not exist yet.

        :raises OSError: as it came, errno intact.
        """
        try:
            return sorted(self._fs.listdir(self._path))
        except FileNotFoundError:
            return []

    def remove(self, name: str) -> None:
        """Remove a file; a failure is ignored."""
        self._fs.unlink_quietly(self.path(name))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        Hold the lock of the folder, which excludes the other processes that share it. The thread blocks until it has the lock.

        :raises OSError: as it came, errno intact.
        """
        self._make()
        lock = FileLock(self.path(".lock"))
        try:
            lock.exclusive()
            yield
        finally:
            lock.close()

    @contextmanager
    def try_locked(self) -> Iterator[bool]:
        """
        Hold the lock of the folder if no other holder has it, without waiting; yield whether it is held.

        :raises OSError: as it came, errno intact.
        """
        self._make()
        lock = FileLock(self.path(".lock"))
        try:
            yield lock.try_exclusive()
        finally:
            lock.close()

    def _make(self) -> None:
        if self._fs.make_folder(self._path) and self._files.syncs:
            self._fs.sync_folder(self._root)
