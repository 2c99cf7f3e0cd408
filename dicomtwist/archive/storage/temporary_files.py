"""Temporary files: instances that are being written, or are whole and wait for their final name.

Where the system can (``O_TMPFILE``), a temporary file has no name: it is gone with the program, and to sync it
is less work, since no folder has to know of it. What this module calls the path of a temporary file is then
a name that it could have, and gets where it takes the place of an earlier one.

Everything here blocks and is meant for worker threads.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import secrets
from collections.abc import Sequence
from typing import BinaryIO, Final

from dicomtwist.archive.storage.process_locks import FileLock
from dicomtwist.archive.storage.system_calls import Buffer, FileSystem
from dicomtwist.archive.storage.types import Durability, Written

__all__ = ["MAX_NAMELESS", "SUFFIX", "OpenFile", "TemporaryFiles"]

SUFFIX: Final = ".part"

#: How many whole files without a name may wait for it, since each takes a file descriptor; the next have names.
MAX_NAMELESS = 64

_IOV_MAX = os.sysconf("SC_IOV_MAX")
_FILE_MODE: Final = 0o640
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
#: The flags that make a file without a name in a folder; 0 if the system cannot.
_NAMELESS = getattr(os, "O_TMPFILE", 0) and os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC


class OpenFile:
    """
    A temporary file that is being written.

    :ivar path: what :class:`TemporaryFiles` knows it by.
    :ivar fd: its file descriptor, -1 when it is closed or a whole file without a name.
    :ivar nameless: whether it has no name.
    :ivar size: how many bytes have been written.
    """

    __slots__ = ("fd", "nameless", "path", "size")

    def __init__(self, path: str, fd: int, nameless: bool) -> None:
        self.path = path
        self.fd = fd
        self.nameless = nameless
        self.size = 0


class TemporaryFiles:
    """
    The temporary files of one store, in one folder.

    :param folder: where they are; its file system is that of the final names.
    :param file_system: the system calls to use.
    :param durability: whether a whole file is on the medium.
    :param min_free: how many bytes have to be free on the file system for another file to be opened or written; with less
        there is ENOSPC. 0: as long as there is room.

    :ivar can_be_nameless: whether files have no name until they are whole; set by :meth:`prepare`.
    """

    def __init__(self, folder: str, file_system: FileSystem, *, durability: Durability, min_free: int = 0) -> None:
        self.folder = folder
        self.min_free = min_free
        self.syncs = durability is Durability.FULL
        self.can_be_nameless = False
        self._fs = file_system
        # Names that no one else has: a random part for this store, a number for each file. Counting is
        # atomic.
        self._prefix = os.path.join(folder, secrets.token_hex(8))
        self._numbers = itertools.count()
        self._lock = FileLock(os.path.join(folder, ".lock"))
        # Whole files that wait for a name: the path that stands for each -> its file descriptor.
        self._nameless: dict[str, int] = {}

    def prepare(self, outside: str) -> int:
        """Remove the files of stores that are gone, and try whether files can be written and get a name.

        :param outside: the folder of the final names.
        :returns: how many files were removed.
        :raises OSError: as it came, errno intact.
        """
        removed = self._remove_left_overs()
        fs = self._fs
        probe = f"{self._prefix}-probe{SUFFIX}"
        target = os.path.join(outside, f".{os.path.basename(probe)}")
        placed = probe
        fd = fs.open(probe, _CREATE, _FILE_MODE)
        try:
            try:
                self._write_all(fd, [b"\0"])
            finally:
                fs.close(fd)
            fs.rename(probe, target)
            placed = target
        finally:
            fs.unlink(placed)
        self.can_be_nameless = self._tried_nameless(target)
        return removed

    def close(self) -> None:
        """Let go of the folder; idempotent. Files that are open are not affected."""
        self._lock.close()

    @property
    def beginning(self) -> str:
        """What the names of these files begin with."""
        return os.path.basename(self._prefix)

    @property
    def unnamed(self) -> int:
        """How many whole files have no name yet."""
        return len(self._nameless)

    # --- one file, piece by piece

    def create(self, *, nameless: bool = True) -> OpenFile:
        """Open a file.

        :param nameless: whether it may be without a name.
        :raises OSError: it cannot be made.
        """
        if self.min_free:
            self._check_free()
        path = self.new_path()
        if nameless and self.can_be_nameless:
            return OpenFile(path, self._fs.open(self.folder, _NAMELESS, _FILE_MODE), True)
        return OpenFile(path, self._fs.open(path, _CREATE, _FILE_MODE), False)

    def append(self, file: OpenFile, buffers: Sequence[Buffer]) -> None:
        """Append buffers, all bytes of them, and with durability full have them go to the medium without a wait for it.

        :raises OSError: as it came, errno intact; the file stays open.
        """
        if self.min_free:
            self._check_free()
        offset = file.size
        file.size += self._write_all(file.fd, buffers)
        if self.syncs:
            self._fs.start_writing(file.fd, offset, file.size - offset)

    def seal(self, file: OpenFile, digest: bytes) -> Written:
        """The file is whole: with durability full it is synced.

        :param digest: its SHA-256, empty with durability none.
        :raises OSError: as it came, errno intact; the file is gone.
        """
        try:
            if self.syncs:
                self._fs.fsync(file.fd)
        except BaseException:
            self.discard(file)
            raise
        self._close(file)
        return Written(file.path, file.size, digest)

    def discard(self, file: OpenFile) -> None:
        """Remove a file that is being written; nothing happens if it is closed."""
        if file.fd < 0:
            return
        fd, file.fd = file.fd, -1
        self._fs.close_quietly(fd)  # what was written is not wanted any more, so it does not matter that it is lost
        if not file.nameless:
            self._fs.unlink_quietly(file.path)

    # --- whole files

    def write(self, contents: Sequence[Sequence[Buffer]]) -> list[Written | BaseException]:
        """Write files, with durability full onto the medium: all of them are on their way there before the
        first is waited for, so that one commit of the file system's journal does for many.

        :param contents: the buffers of each file.
        :returns: for each, the file; or why there is none, an OSError as it came, and then nothing is left of it.
        """
        several = len(contents) > 1
        files = [self._begin(buffers, several) for buffers in contents]
        return [
            self._finish(file, buffers) if isinstance(file, OpenFile) else file
            for file, buffers in zip(files, contents, strict=True)
        ]

    def write_one(self, buffers: Sequence[Buffer]) -> Written:
        """Write a file, with durability full onto the medium.

        :param buffers: its content. Contiguous bytes each.
        :raises OSError: as it came, errno intact; nothing is left of it.
        """
        (result,) = self.write([buffers])
        if isinstance(result, Written):
            return result
        raise result

    def read(self, path: str) -> BinaryIO:
        """Open a whole file for reading.

        :raises OSError: it cannot be read.
        """
        fd = self._nameless.get(path, -1)
        return open(f"/proc/self/fd/{fd}" if fd >= 0 else path, "rb")

    def give_name(self, path: str, target: str, *, exclusive: bool) -> None:
        """Give a whole file the name *target*.

        :param exclusive: whether there has to be no file of that name; otherwise this one takes its place.
        :raises FileExistsError: there is one, though *exclusive*; both are as they were.
        :raises OSError: as it came, errno intact; both are as they were.
        """
        fs = self._fs
        fd = self._nameless.get(path, -1)
        if fd < 0:
            if exclusive and os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
            fs.rename(path, target)
            return
        try:
            fs.name(fd, target)
        except FileExistsError:
            if exclusive:
                raise
            fs.name(fd, path)
            try:
                fs.rename(path, target)
            except BaseException:
                fs.unlink_quietly(path)
                raise
        del self._nameless[path]
        self._fs.close_quietly(fd)  # what it could tell has been heard

    def new_path(self) -> str:
        """Return a path in the folder that nothing else has."""
        return f"{self._prefix}-{next(self._numbers):x}{SUFFIX}"

    def remove(self, path: str) -> None:
        """Remove a whole file; quietly if that cannot be done."""
        fd = self._nameless.pop(path, -1)
        if fd >= 0:
            self._fs.close_quietly(fd)
        else:
            self._fs.unlink_quietly(path)

    def remove_of(self, beginning: str) -> None:
        """Remove the files of a store that is gone, by what their names begin with; none if that is empty.

        :raises OSError: as it came, errno intact.
        """
        for name in self._fs.listdir(self.folder):
            if beginning and name.startswith(f"{beginning}-") and name.endswith(SUFFIX):
                self._fs.unlink(os.path.join(self.folder, name))

    # --- within

    def _begin(self, buffers: Sequence[Buffer], several: bool) -> OpenFile | BaseException:
        """Write a file; returns it, or why that failed."""
        try:
            file = self.create(nameless=len(self._nameless) < MAX_NAMELESS)
        except BaseException as error:
            return error
        try:
            file.size = self._write_all(file.fd, buffers)
            if self.syncs and several:
                self._fs.start_writing(file.fd, 0, file.size)
        except BaseException as error:
            self.discard(file)
            return error
        return file

    def _finish(self, file: OpenFile, buffers: Sequence[Buffer]) -> Written | BaseException:
        """Seal a file; returns it, or why that failed."""
        try:
            return self.seal(file, self._digest(buffers))
        except BaseException as error:
            self.discard(file)
            return error

    def _digest(self, buffers: Sequence[Buffer]) -> bytes:
        if not self.syncs:
            return b""
        digest = hashlib.sha256()
        for buffer in buffers:
            digest.update(buffer)
        return digest.digest()

    def _close(self, file: OpenFile) -> None:
        """Close a whole file, unless that would be its end; if it fails, the file is gone."""
        # Never closed twice: after a failing close the number may already belong to another thread's file.
        fd, file.fd = file.fd, -1
        if not file.nameless:
            try:
                self._fs.close(fd)
            except BaseException:
                self._fs.unlink_quietly(file.path)
                raise
            return
        try:
            if not self.syncs:
                self._fs.flush(fd)  # a sync would have told it already
        except BaseException:
            self._fs.close_quietly(fd)
            raise
        self._nameless[file.path] = fd

    def _write_all(self, fd: int, buffers: Sequence[Buffer]) -> int:
        """Write every byte; returns how many."""
        writev = self._fs.writev
        total = sum(map(len, buffers))
        if len(buffers) <= _IOV_MAX:
            # Nearly always all there is to do.
            written = writev(fd, buffers) if total else 0
            if written == total:
                return total
        else:
            written = 0
        left = _after(buffers, written)
        done = written
        while done < total:
            written = writev(fd, left[:_IOV_MAX])
            if not written:
                raise OSError(errno.EIO, "writing an instance makes no progress")
            done += written
            left = _after(left, written)
        return total

    def _check_free(self) -> None:
        if self._fs.free(self.folder) < self.min_free:
            raise OSError(errno.ENOSPC, f"less than {self.min_free} bytes are free, which are to stay so")

    def _tried_nameless(self, target: str) -> bool:
        """Whether files can be without a name, and get one; not on every file system, nor without /proc."""
        if not _NAMELESS:
            return False
        try:
            fd = self._fs.open(self.folder, _NAMELESS, _FILE_MODE)
        except OSError:
            return False
        try:
            self._fs.name(fd, target)
            self._fs.unlink(target)
        except OSError:
            return False
        finally:
            self._fs.close_quietly(fd)
        return True

    def _remove_left_overs(self) -> int:
        """Remove the files of stores that are gone, unless another store lives in the same folder."""
        try:
            alone = self._lock.try_exclusive()
        except OSError:
            if self._lock.fileno() < 0:
                raise
            return 0  # no locks on this file system, so no way to know whether there is another one
        removed = 0  # the other one's files may be in use
        if alone:
            left_over = [name for name in self._fs.listdir(self.folder) if name.endswith(SUFFIX)]
            for name in left_over:
                self._fs.unlink(os.path.join(self.folder, name))
            removed = len(left_over)
        # Shared from here on: until every holder is gone, nobody can have the lock exclusively and remove
        # anything.
        self._lock.share()
        return removed


def _after(buffers: Sequence[Buffer], count: int) -> list[Buffer]:
    """What is left of the buffers behind the first ``count`` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            rest: list[Buffer] = [memoryview(buffer)[count:]] if count else [buffer]
            return [*rest, *buffers[index + 1 :]]
        count -= len(buffer)
    return []
