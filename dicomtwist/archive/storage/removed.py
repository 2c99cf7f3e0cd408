"""
Removed studies, series and instances: a rename takes them away at once, and their files are removed afterwards.

A study that is removed becomes a hidden folder of the root. A rename is atomic: if the program or the machine ends, a study is
there as a whole, or it is gone, and the next start removes the files that are left. The hidden folder has the depth of a study,
so that symbolic links in it still lead to the same places.

All functions block and are meant for worker threads.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, TypeAlias

from dicomtwist.archive.storage.system_calls import FileSystem
from dicomtwist.archive.storage.types import is_uid

__all__ = ["Removed", "RemovedFiles", "Target"]

#: The Study Instance UID, or that and the Series Instance UID, or these and the SOP Instance UID.
Target: TypeAlias = Sequence[str]

#: The beginning of the names of hidden folders. The prefix of the store, a number, and the UIDs follow.
BEGINNING: Final = ".removed-"
#: The deepest folder in a study whose files are removed.
MAX_DEPTH: Final = 32


class Removed(NamedTuple):
    """
    A study, a series or an instance that was taken away.

    :ivar path: the hidden folder.
    :ivar uids: the UIDs that name it.
    """

    path: str
    uids: tuple[str, ...]


class RemovedFiles:
    """
    Takes studies, series and instances away, and removes their files.

    :param root: the folder of the studies.
    :param suffix: the end of the name of an instance.
    :param prefix: the beginning of the names of the files that this store makes, which no other store has.
    :param file_system: the system calls to use.
    :param syncs: whether names are flushed to the medium.
    """

    def __init__(self, root: str, suffix: str, prefix: str, file_system: FileSystem, *, syncs: bool) -> None:
        self._root = root
        self._suffix = suffix
        self._beginning = f"{BEGINNING}{prefix}-"
        self._fs = file_system
        self._syncs = syncs
        self._numbers = itertools.count()

    def take(self, uids: Target) -> Removed | None:
        """
        Take a study, a series or an instance away; with durability full that is on the medium afterwards.

        :param uids: its UIDs, which are valid.
        :returns: ``None`` if the storage does not have it.
        :raises OSError: as it came, errno intact; it is there as before, unless that failed too.
        """
        source = self._place(uids)
        if not os.path.lexists(source):
            return None
        fs = self._fs
        removed = Removed(f"{self._root}/{self._beginning}{next(self._numbers):x}-{'_'.join(uids)}", tuple(uids))
        if len(uids) > 1:
            fs.mkdir(removed.path, 0o750)
        try:
            fs.rename(source, self._inside(removed))
        except BaseException as error:
            if len(uids) > 1:
                with suppress(OSError):
                    fs.rmdir(removed.path)
            if isinstance(error, FileNotFoundError):
                return None
            raise
        try:
            self._sync(source)
        except OSError:
            self.put_back(removed)
            raise
        return removed

    def put_back(self, removed: Removed) -> None:
        """
        Undo :meth:`take`.

        :raises OSError: as it came, errno intact; the next start removes the files.
        """
        fs = self._fs
        target = self._place(removed.uids)
        for depth in range(1, len(removed.uids)):
            fs.make_folder("/".join((self._root, *removed.uids[:depth])))
        fs.rename(self._inside(removed), target)
        if len(removed.uids) > 1:
            with suppress(OSError):
                fs.rmdir(removed.path)
        self._sync(target)

    def remove_empty(self, uids: Target) -> None:
        """Remove the folders above a series or an instance that are empty; a failure is ignored."""
        for depth in range(len(uids) - 1, 0, -1):
            try:
                self._fs.rmdir("/".join((self._root, *uids[:depth])))
            except OSError:
                return

    def left(self, prefix: str = "") -> list[Removed]:
        """
        Return what was taken away and whose files are not all removed yet.

        :param prefix: the beginning of the names of the files of the store that has taken it away; of any store by default.
        :raises OSError: the root cannot be read.
        """
        found = []
        beginning = f"{BEGINNING}{prefix}-" if prefix else BEGINNING
        for name in sorted(self._fs.listdir(self._root)):
            uids = tuple(name.rpartition("-")[2].split("_"))
            if name.startswith(beginning) and len(uids) <= 3 and all(map(is_uid, uids)):
                found.append(Removed(f"{self._root}/{name}", uids))
        return found

    def names(self, removed: Removed) -> list[str]:
        """Return the names of the folders and files in what was taken away; none if it cannot be read."""
        try:
            return sorted(self._fs.listdir(removed.path))
        except OSError:
            return []

    def purge(self, removed: Removed) -> Generator[None, None, int]:
        """
        Remove the files of what was taken away; yield after each.

        A symbolic link to a folder is followed at the depth of a study or series, since instances are read there too; below it
        only files of instances are removed.

        :returns: the number of bytes that were freed.
        :raises OSError: a file or a folder cannot be removed; a later call tries again.
        """
        freed = yield from self._purge(removed.path, 0, is_linked=False)
        return freed

    # --- internals

    def _place(self, uids: Target) -> str:
        path = "/".join((self._root, *uids))
        return path + self._suffix if len(uids) == 3 else path

    def _inside(self, removed: Removed) -> str:
        """Return the path of a study, series or instance that was taken away."""
        name = removed.uids[-1]
        return (
            removed.path
            if len(removed.uids) == 1
            else f"{removed.path}/{name}{self._suffix * (len(removed.uids) == 3)}"
        )

    def _sync(self, place: str) -> None:
        if self._syncs:
            folder = os.path.dirname(place)
            self._fs.sync_folder(folder)
            if folder != self._root:
                self._fs.sync_folder(self._root)

    def _purge(self, path: str, depth: int, *, is_linked: bool) -> Generator[None, None, int]:
        """
        Remove a file, or a folder and what is in it.

        :param depth: 0 for a study, 1 for a series.
        :param is_linked: whether a symbolic link led here.
        """
        fs = self._fs
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return 0
        freed = 0
        is_link = stat.S_ISLNK(status.st_mode) and depth <= 1 and os.path.isdir(path)
        if is_link or stat.S_ISDIR(status.st_mode):
            if depth > MAX_DEPTH:
                raise OSError(errno.ELOOP, "the folders of a removed study are too deep", path)
            for entry in _entries(path):
                if not (is_linked or is_link) or entry.is_dir() or entry.name.endswith(self._suffix):
                    freed += yield from self._purge(entry.path, depth + 1, is_linked=is_linked or is_link)
            if is_link:
                with suppress(OSError):
                    fs.rmdir(os.path.realpath(path))
            elif is_linked:
                with suppress(OSError):  # files of others are in it
                    fs.rmdir(path)
            else:
                with suppress(FileNotFoundError):
                    fs.rmdir(path)
        if is_link or not stat.S_ISDIR(status.st_mode):
            with suppress(FileNotFoundError):
                fs.unlink(path)
            if status.st_nlink == 1 and not is_link:
                freed += status.st_size
        yield
        return freed


def _entries(path: str) -> list[os.DirEntry[str]]:
    with suppress(FileNotFoundError), os.scandir(path) as entries:
        return list(entries)
    return []
