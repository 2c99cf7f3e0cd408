"""
Files of an archive that are no instances, such as performed procedure steps.
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
    A folder in the root of a store, made when the first file is put there.

    :param root: the root.
    :param name: of the folder. No UID begins with a dot, nor contains other letters than digits and dots, so it cannot be
        that of a study.
    :param files: writes the files.
    :param file_system: the system calls to use.
    """

    def __init__(self, root: str, name: str, files: TemporaryFiles, file_system: FileSystem) -> None:
        self._root = root
        self._path = os.path.join(root, name)
        self._files = files
        self._fs = file_system

    def path(self, name: str) -> str:
        """Return where the file *name* is or would be."""
        return os.path.join(self._path, name)

    def put(self, buffers: Sequence[Buffer], name: str) -> None:
        """
        Write a file, in place of an earlier one; with durability full onto the medium.

        :param buffers: its content. Contiguous bytes each.
        :raises OSError: as it came, errno intact; an earlier one is as it was, unless the very last step failed
            (the fsync of the folder: then the new one is in its place).
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
        Return the content of a file, up to *limit* bytes of it.

        :raises OSError: as it came, errno intact.
        """
        with open(self.path(name), "rb") as file:
            return file.read(limit)

    def __contains__(self, name: str) -> bool:
        return os.path.lexists(self.path(name))

    def names(self) -> list[str]:
        """
        Return the names of all files, sorted; none if there is no folder yet.

        :raises OSError: as it came, errno intact.
        """
        try:
            return sorted(self._fs.listdir(self._path))
        except FileNotFoundError:
            return []

    def remove(self, name: str) -> None:
        """Remove a file, quietly if that cannot be done."""
        self._fs.unlink_quietly(self.path(name))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        Wait until no other process that shares the folder is within this; for so long the thread waits.

        :raises OSError: as it came, errno intact.
        """
        self._make()
        lock = FileLock(self.path(".lock"))
        try:
            lock.exclusive()
            yield
        finally:
            lock.close()

    def _make(self) -> None:
        if self._fs.make_folder(self._path) and self._files.syncs:
            self._fs.sync_folder(self._root)
