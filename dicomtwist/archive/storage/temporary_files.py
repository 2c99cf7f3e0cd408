"""Temporary files: instances that are being written, or are complete and wait for their final name.

If the system supports it (``O_TMPFILE``), a temporary file has no name. It then disappears with the program, and a sync takes
less time, since no folder has an entry for it. The path of such a file is only reserved: the file gets that name for a moment
if it replaces an earlier file.

All functions block and are meant for worker threads.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO, Final

from dicomtwist.archive.storage.process_locks import FileLock
from dicomtwist.archive.storage.system_calls import Buffer, FileSystem
from dicomtwist.archive.storage.types import Durability, Written

__all__ = ["MAX_NAMELESS", "SUFFIX", "OpenFile", "TemporaryFiles"]

SUFFIX: Final = ".part"
#: The end of the name of the file that a start tries to write and to rename.
_PROBE: Final = f"-probe{SUFFIX}"

#: The number of complete files without a name that may wait for their final name, since each takes a file descriptor. Any
#: further file is written with a name.
MAX_NAMELESS = 64

_IOV_MAX = os.sysconf("SC_IOV_MAX")
_PAGE: Final = os.sysconf("SC_PAGESIZE")
_FILE_MODE: Final = 0o640
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
#: The flags that make a file without a name in a folder; 0 if the system does not support it.
_NAMELESS = getattr(os, "O_TMPFILE", 0) and os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC


class OpenFile:
    """
    A temporary file that is being written.

    :ivar path: the path by which :class:`TemporaryFiles` knows it, even if it has no name.
    :ivar fd: its file descriptor; -1 after the file is closed or is complete and waits for a name.
    :ivar nameless: whether it has no name.
    :ivar size: the number of bytes written.
    :ivar started: the number of bytes, from the first on, that the system was asked to flush.
    """

    __slots__ = ("fd", "nameless", "path", "size", "started")

    def __init__(self, path: str, fd: int, nameless: bool) -> None:
        self.path = path
        self.fd = fd
        self.nameless = nameless
        self.size = self.started = 0


class TemporaryFiles:
    """
    The temporary files of one store, in one folder.

    :param folder: the folder of the files, on the same file system as the final names.
    :param file_system: the system calls to use.
    :param durability: whether a complete file is on the medium.
    :param min_free: the number of bytes that must be free on the file system before another file is opened or written; with
        fewer the call fails with ENOSPC. 0 writes as long as there is room.

    :ivar refuses: whether no file is written, as if the file system were full.
    :ivar can_be_nameless: whether files have no name until they are complete; set by :meth:`prepare`.
    """

    def __init__(self, folder: str, file_system: FileSystem, *, durability: Durability, min_free: int = 0) -> None:
        self.folder = folder
        self.min_free = min_free
        self.syncs = durability is Durability.FULL
        self.refuses = False
        self.can_be_nameless = False
        self._fs = file_system
        # Unique names: a random part for this store and a number for each file. itertools.count is atomic.
        self._prefix = os.path.join(folder, secrets.token_hex(8))
        self._numbers = itertools.count()
        self._lock = FileLock(os.path.join(folder, ".lock"))
        # Complete files that wait for a name: the reserved path of each -> its file descriptor.
        self._nameless: dict[str, int] = {}

    def prepare(self, outside: str) -> int:
        """Remove the files that earlier stores left behind, and try to write a file and to rename it.

        :param outside: the folder of the final names.
        :returns: the number of files that were removed.
        :raises OSError: as it came, errno intact.
        """
        removed = self._remove_left_overs(outside)
        fs = self._fs
        probe = f"{self._prefix}{_PROBE}"
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
        """Release the folder; idempotent. Files that are open are not affected."""
        self._lock.close()

    @property
    def beginning(self) -> str:
        """The prefix of the names of these files."""
        return os.path.basename(self._prefix)

    @property
    def unnamed(self) -> int:
        """The number of complete files that have no name yet."""
        return len(self._nameless)

    # --- one file, piece by piece

    def create(self, *, nameless: bool = True) -> OpenFile:
        """Open a file.

        :param nameless: whether the file may have no name.
        :raises OSError: the file cannot be made.
        """
        if self.refuses:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.folder)
        if self.min_free:
            self._check_free()
        return self._create(nameless)

    def _create(self, nameless: bool) -> OpenFile:
        path = self.new_path()
        if nameless and self.can_be_nameless:
            return OpenFile(path, self._fs.open(self.folder, _NAMELESS, _FILE_MODE), True)
        return OpenFile(path, self._fs.open(path, _CREATE, _FILE_MODE), False)

    def append(self, file: OpenFile, buffers: Sequence[Buffer]) -> None:
        """Append buffers, all bytes of them. With durability full the system starts to flush them; nothing waits for that.

        :raises OSError: as it came, errno intact; the file stays open.
        """
        if self.min_free and file.size:  # create() has looked before the first
            self._check_free()
        file.size += self._write_all(file.fd, buffers)
        # A page that is not full would be flushed twice, and the next write might wait for the first time.
        whole = file.size - file.size % _PAGE
        if self.syncs and whole > file.started:
            self._fs.start_writing(file.fd, file.started, whole - file.started)
            file.started = whole

    def seal(self, file: OpenFile, digest: bytes) -> Written:
        """Complete a file; with durability full it is synced.

        :param digest: its SHA-256, empty with durability none.
        :raises OSError: as it came, errno intact; the file has been removed.
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
        """Remove a file that is being written; do nothing if it is closed."""
        if file.fd < 0:
            return
        fd, file.fd = file.fd, -1
        self._fs.close_quietly(fd)  # the content is dropped anyway, so a failing close does not matter
        if not file.nameless:
            self._fs.unlink_quietly(file.path)

    # --- complete files

    def write(self, contents: Sequence[Sequence[Buffer]]) -> list[Written | BaseException]:
        """Write files; with durability full they are on the medium afterwards. The system starts to flush all of them
        before the first is synced, so that one commit of the file system's journal covers many files.

        :param contents: the buffers of each file.
        :returns: for each content the file, or the error (an OSError as it came); then nothing is left of that file.
        """
        several = len(contents) > 1
        files = [self._begin(buffers, several) for buffers in contents]
        return [
            self._finish(file, buffers) if isinstance(file, OpenFile) else file
            for file, buffers in zip(files, contents, strict=True)
        ]

    def write_acknowledged(self, contents: Sequence[tuple[Buffer, int]]) -> list[Written | BaseException]:
        """Write files whose contents are on the medium elsewhere, as the durability asks for. They are not synced, and room
        was kept for them, so that ``min_free`` does not matter.

        :param contents: the content of each file, and the time of its receipt in nanoseconds since 1970, which becomes the time
            of the file.
        :returns: for each content the file, or the error (an OSError as it came); then nothing is left of that file.
        """
        return [self._write_acknowledged(content, time) for content, time in contents]

    def _write_acknowledged(self, content: Buffer, time: int) -> Written | BaseException:
        try:
            file = self._create(len(self._nameless) < MAX_NAMELESS)
        except BaseException as error:
            return error
        try:
            file.size = self._write_all(file.fd, [content])
            with suppress(OSError):  # a file system without times has the files all the same
                self._fs.set_time(file.fd, time)
            self._close(file)
        except BaseException as error:
            self.discard(file)
            return error
        return Written(file.path, file.size, self._digest([content]))

    def write_one(self, buffers: Sequence[Buffer]) -> Written:
        """Write a file; with durability full it is on the medium afterwards.

        :param buffers: its content, each buffer contiguous.
        :raises OSError: as it came, errno intact; nothing is left of the file.
        """
        (result,) = self.write([buffers])
        if isinstance(result, Written):
            return result
        raise result

    def read(self, path: str) -> BinaryIO:
        """Open a complete file for reading.

        :raises OSError: it cannot be read.
        """
        fd = self._nameless.get(path, -1)
        return open(f"/proc/self/fd/{fd}" if fd >= 0 else path, "rb")

    def give_name(self, path: str, target: str, *, exclusive: bool) -> None:
        """Give a complete file the name *target*.

        :param exclusive: whether to fail if a file has that name; otherwise this file replaces it.
        :raises FileExistsError: a file has that name and *exclusive* is true; neither file has changed.
        :raises OSError: as it came, errno intact; neither file has changed.
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
        self._fs.close_quietly(fd)  # a write error would have been reported by the sync or the flush before

    def new_path(self) -> str:
        """Return a path in the folder that nothing else has."""
        return f"{self._prefix}-{next(self._numbers):x}{SUFFIX}"

    def remove(self, path: str) -> None:
        """Remove a complete file; a failure is ignored."""
        fd = self._nameless.pop(path, -1)
        if fd >= 0:
            self._fs.close_quietly(fd)
        else:
            self._fs.unlink_quietly(path)

    def remove_of(self, beginning: str) -> None:
        """Remove the files that another store left behind.

        :param beginning: the prefix of their names; if it is empty, nothing is removed.
        :raises OSError: as it came, errno intact.
        """
        for name in self._fs.listdir(self.folder):
            if beginning and name.startswith(f"{beginning}-") and name.endswith(SUFFIX):
                self._fs.unlink(os.path.join(self.folder, name))

    # --- internals

    def _begin(self, buffers: Sequence[Buffer], several: bool) -> OpenFile | BaseException:
        """Write a file; return it, or the error."""
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
        """Seal a file; return it, or the error."""
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
        """Close a complete file, unless it has no name and would vanish; if the close fails, the file is removed."""
        # A descriptor is never closed twice: after a failing close the number may already belong to another thread's file.
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
                self._fs.flush(fd)  # reports a write error; with durability full the sync has done that already
        except BaseException:
            self._fs.close_quietly(fd)
            raise
        self._nameless[file.path] = fd

    def _write_all(self, fd: int, buffers: Sequence[Buffer]) -> int:
        """Write every byte; return the number of bytes."""
        writev = self._fs.writev
        total = sum(map(len, buffers))
        if len(buffers) <= _IOV_MAX:
            # One call is nearly always enough.
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
            amount = f"{self.min_free >> 20} MiB" if self.min_free >= 1 << 20 else f"{self.min_free} bytes"
            raise OSError(errno.ENOSPC, f"less than --min-free ({amount}) is free")

    def _tried_nameless(self, target: str) -> bool:
        """Whether a file can be made without a name and get one later; some file systems cannot, and it needs /proc."""
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

    def _remove_left_overs(self, outside: str) -> int:
        """Remove the files that earlier stores left behind, unless another store uses the folder."""
        try:
            alone = self._lock.try_exclusive()
        except OSError:
            if self._lock.fileno() < 0:
                raise
            return 0  # this file system has no locks, so we cannot know whether another store uses the folder
        removed = 0  # if another store uses the folder, its files may be in use
        if alone:
            left_over = [
                os.path.join(self.folder, name) for name in self._fs.listdir(self.folder) if name.endswith(SUFFIX)
            ]
            # The probes of starts that were killed.
            left_over += [
                os.path.join(outside, name)
                for name in self._fs.listdir(outside)
                if name.startswith(".") and name.endswith(_PROBE)
            ]
            for path in left_over:
                self._fs.unlink(path)
            removed = len(left_over)
        # The lock is shared from here on: until every holder has released it, no store gets the exclusive lock and removes
        # anything.
        self._lock.share()
        return removed


def _after(buffers: Sequence[Buffer], count: int) -> list[Buffer]:
    """Return the rest of the buffers after their first *count* bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            rest: list[Buffer] = [memoryview(buffer)[count:]] if count else [buffer]
            return [*rest, *buffers[index + 1 :]]
        count -= len(buffer)
    return []
