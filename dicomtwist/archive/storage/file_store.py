"""Where received instances live on disk: ``root/<study>/<series>/<instance>.dcm``.

An instance is written to a temporary file on the same file system that gets its final name once it is
whole, so what is visible under a final name is always a whole file, the old one or the new one, whatever
happens and whenever. With durability ``full`` it is also on the medium, and so is every directory that leads
to it, before a call returns.

Where the system can (``O_TMPFILE``), a temporary file has no name: it is gone with the program, and to sync it
is less work, since no folder has to know of it. What this module calls the path of a temporary file is then
a name that it could have, and gets where it takes the place of an earlier one.

Everything here blocks and is meant for worker threads. One :class:`InstanceStore` serves all of them; two of
them may store the same instance at once (the last rename wins); one :class:`InstanceWriter` belongs to one
thread at a time.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path

from dicomtwist.archive.storage.file_writer import InstanceWriter
from dicomtwist.archive.storage.system_calls import Buffer, FileSystem
from dicomtwist.archive.storage.types import Durability, StoreUnusable, Written, check_uids

__all__ = ["InstanceStore", "InstanceWriter"]

#: The folder of temporary files, in the root. No UID begins with a dot, so no study can have this name.
INCOMING = ".incoming"
TEMPORARY_SUFFIX = ".part"
INSTANCE_SUFFIX = ".dcm"

#: How many folders of series and studies are remembered as made (and, with durability full, as being on the
#: medium).
MAX_KNOWN_FOLDERS = 4096

#: How many whole files without a name may wait for it, since each takes a file descriptor; the next have names.
MAX_NAMELESS = 64

_IOV_MAX = os.sysconf("SC_IOV_MAX")
_FILE_MODE = 0o640
_FOLDER_MODE = 0o750
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
#: What makes a file without a name in a folder; 0 where the system cannot.
_NAMELESS = getattr(os, "O_TMPFILE", 0) and os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class _Begun:
    """A temporary file that is written and not closed yet."""

    __slots__ = ("buffers", "fd", "nameless", "size", "temporary")

    def __init__(self, temporary: str, fd: int, nameless: bool, buffers: Sequence[Buffer]) -> None:
        self.temporary = temporary
        self.fd = fd
        self.nameless = nameless
        self.buffers = buffers
        self.size = 0


class InstanceStore:
    """The instances under one folder.

    Several stores, in one process or in many, may share a root: the temporary files that a dead one left
    behind are removed only by one that has the root for itself.

    :param root: the folder; made by :meth:`prepare` when it is missing, if its parent is there.
    :param durability: what a successful commit promises.
    :param min_free: how many bytes have to be free on the file system for another instance to be written; with
        less there is ENOSPC. 0: as long as there is room.
    :param file_system: the system calls to use.
    """

    def __init__(
        self,
        root: Path,
        *,
        durability: Durability = Durability.FULL,
        min_free: int = 0,
        file_system: FileSystem | None = None,
    ) -> None:
        self.root = root
        self.durability = durability
        self.min_free = min_free
        self._fs = file_system or FileSystem()
        self._full = durability is Durability.FULL
        self._root = os.fspath(root)
        self._incoming = os.path.join(self._root, INCOMING)
        # Names that no one else has: a random part for this store, a number for each file. Counting is
        # atomic.
        self._prefix = os.path.join(self._incoming, secrets.token_hex(8))
        self._numbers = itertools.count()
        # (study, series) or (study, "") -> folder, for those that this store knows to exist. With durability
        # full, a folder is known only when it and those above it have been synced, even if another thread or
        # process had made it: whoever made it may not have come to its fsync yet. Names and not open file
        # descriptors: these would follow a folder that someone moves away, and gain nothing (measured).
        self._known: dict[tuple[str, str], str] = {}
        self._known_lock = threading.Lock()
        self._lock_fd = -1
        self._can_be_nameless = False
        # Whole files that wait for a name: the path that stands for each -> its file descriptor.
        self._nameless: dict[str, int] = {}

    def prepare(self) -> int:
        """Make the root and its folder for temporary files, remove left-over ones, and try whether all works.

        :returns: how many left-over temporary files were removed.
        :raises StoreUnusable: the folder cannot be made or written, temporary files would be on another file
            system, or a folder cannot be synced although durability full asks for it.
        """
        fs = self._fs
        try:
            is_new = self._make_folder(self._root)
            self._make_folder(self._incoming)
            removed = self._remove_left_overs()
            probe = f"{self._prefix}-probe{TEMPORARY_SUFFIX}"
            target = os.path.join(self._root, f".{os.path.basename(probe)}")
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
            self._can_be_nameless = self._tried_nameless(target)
            if self._full:
                self._sync_folder(self._root)
                try:
                    self._sync_folder(os.path.dirname(os.path.abspath(self._root)))
                except PermissionError:
                    # Not readable for us. If we could make the root there, it has to be; if not, whoever
                    # made it did so long ago.
                    if is_new:
                        raise
        except OSError as error:
            self.close()
            raise StoreUnusable(self._why_unusable(error)) from error
        return removed

    @property
    def temporary_names(self) -> str:
        """What the names of this store's temporary files begin with."""
        return os.path.basename(self._prefix)

    def remove_temporaries(self, beginning: str) -> None:
        """Remove the temporary files of a store that is gone, by what their names begin with.

        :raises OSError: as it came, errno intact.
        """
        for name in self._fs.listdir(self._incoming):
            if beginning and name.startswith(f"{beginning}-") and name.endswith(TEMPORARY_SUFFIX):
                self._fs.unlink(os.path.join(self._incoming, name))

    def close(self) -> None:
        """Let go of the root; idempotent. Writers that are still open are not affected."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def path(self, study_uid: str, series_uid: str, instance_uid: str) -> Path:
        """Where an instance is or would be.

        :raises InvalidUID: one of the three is no UID.
        """
        check_uids(study_uid, series_uid, instance_uid)
        return self.root / study_uid / series_uid / f"{instance_uid}{INSTANCE_SUFFIX}"

    def create(self) -> InstanceWriter:
        """Open a temporary file for one instance, which comes piece by piece.

        :raises OSError: it cannot be made.
        """
        return InstanceWriter(self, *self._open_temporary())

    def readable(self, temporary: str) -> str:
        """Where a whole temporary file can be opened."""
        fd = self._nameless.get(temporary, -1)
        return f"/proc/self/fd/{fd}" if fd >= 0 else temporary

    def store(self, buffers: Sequence[Buffer], study_uid: str, series_uid: str, instance_uid: str) -> str:
        """Store an instance that is in memory, whole; what create, write and commit do, with less around it.

        :param buffers: the file, preamble first. Contiguous bytes each.
        :returns: where it is.
        :raises InvalidUID: one of the three is no UID; nothing was written.
        :raises OSError: as it came, errno intact; the temporary file is gone, and an earlier copy of the
            instance is as it was, unless the very last step failed (the fsync of the folder: then the new one
            is in its place).
        """
        check_uids(study_uid, series_uid, instance_uid)
        temporary = self.write_temporary(buffers).path
        try:
            return self._place(temporary, study_uid, series_uid, instance_uid)
        except BaseException:
            self._remove(temporary)
            raise

    # The steps of storing, for one who has more to do between them, such as keeping an index.

    def write_temporary(self, buffers: Sequence[Buffer]) -> Written:
        """Write a temporary file, with durability full onto the medium.

        :param buffers: the file, preamble first. Contiguous bytes each.
        :raises OSError: as it came, errno intact; nothing is left of it.
        """
        (result,) = self.write_temporaries([buffers])
        if isinstance(result, Written):
            return result
        raise result

    def write_temporaries(self, contents: Sequence[Sequence[Buffer]]) -> list[Written | BaseException]:
        """Write temporary files, with durability full onto the medium: all of them are on their way there before the
        first is waited for, so that one commit of the file system's journal does for many.

        :param contents: the buffers of each file.
        :returns: for each, the file; or why there is none, an OSError as it came, and then nothing is left of it.
        """
        files = [self._begun(buffers, several=len(contents) > 1) for buffers in contents]
        return [self._finished(file) if isinstance(file, _Begun) else file for file in files]

    def _begun(self, buffers: Sequence[Buffer], several: bool) -> _Begun | BaseException:
        """Write a file; returns it, or why that failed."""
        try:
            temporary, fd, nameless = self._open_temporary(len(self._nameless) < MAX_NAMELESS)
        except BaseException as error:
            return error
        file = _Begun(temporary, fd, nameless, buffers)
        try:
            file.size = self._write_all(fd, buffers)
            if self._full and several:
                self._fs.start_writing(fd, 0, file.size)
        except BaseException as error:
            self._abandon(file)
            return error
        return file

    def _finished(self, file: _Begun) -> Written | BaseException:
        """Sync a file, and close it; returns it, or why that failed."""
        try:
            digest = self._digest(file.buffers)
            if self._full:
                self._fs.fsync(file.fd)
        except BaseException as error:
            self._abandon(file)
            return error
        try:
            self._written(file.temporary, file.fd, file.nameless)
        except BaseException as error:
            if not file.nameless:
                self._remove(file.temporary)
            return error
        return Written(file.temporary, file.size, digest)

    def _abandon(self, file: _Begun) -> None:
        self._close_quietly(file.fd)
        if not file.nameless:
            self._remove(file.temporary)

    def _written(self, temporary: str, fd: int, nameless: bool) -> None:
        """A temporary file is whole: close it, unless that would be its end."""
        if not nameless:
            self._fs.close(fd)
            return
        try:
            if not self._full:
                self._fs.flush(fd)  # a sync would have told it already
        except BaseException:
            self._close_quietly(fd)
            raise
        self._nameless[temporary] = fd

    def folder(self, study_uid: str, series_uid: str) -> str:
        """The folder of a series; it is made, and on the medium with durability full.

        :raises OSError: as it came, errno intact.
        """
        return self._known.get((study_uid, series_uid)) or self._make_folders(study_uid, series_uid)

    def rename(
        self, source: str, study_uid: str, series_uid: str, instance_uid: str, *, exclusive: bool = False
    ) -> str:
        """Give a temporary file its final name. Its folder has to be synced behind it.

        :param exclusive: whether there has to be no earlier one; otherwise it takes its place.
        :returns: the final name.
        :raises FileExistsError: there is an earlier one, though *exclusive*; both are as they were.
        :raises OSError: as it came, errno intact; both are as they were.
        """
        target = f"{self.folder(study_uid, series_uid)}/{instance_uid}{INSTANCE_SUFFIX}"
        try:
            self._give_name(source, target, exclusive)
        except FileNotFoundError:
            # Someone has removed the folder since it became known (a clean-up of old studies, say).
            with self._known_lock:
                self._known.pop((study_uid, ""), None)
            self._make_folders(study_uid, series_uid)
            self._give_name(source, target, exclusive)
        return target

    def _give_name(self, source: str, target: str, exclusive: bool) -> None:
        fd = self._nameless.get(source, -1)
        if fd < 0:
            if exclusive and os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
            self._fs.rename(source, target)
            return
        try:
            self._fs.name(fd, target)
        except FileExistsError:
            if exclusive:
                raise
            self._fs.name(fd, source)
            try:
                self._fs.rename(source, target)
            except BaseException:
                self._unlink_quietly(source)
                raise
        del self._nameless[source]
        self._close_quietly(fd)  # what it could tell has been heard

    def set_aside(self, path: str) -> str:
        """Give the file *path* a second name among the temporary files, from where :meth:`put_back` takes it.

        :returns: the second name.
        :raises OSError: as it came, errno intact.
        """
        temporary = f"{self._prefix}-{next(self._numbers):x}{TEMPORARY_SUFFIX}"
        self._fs.link(path, temporary)
        return temporary

    def put_back(self, temporary: str, path: str) -> None:
        """Undo a replacement: what was set aside gets its name back.

        :raises OSError: as it came, errno intact.
        """
        self._fs.rename(temporary, path)

    def sync_folder(self, path: str) -> None:
        """Have the names in the folder *path* on the medium; nothing with durability none.

        :raises OSError: as it came, errno intact.
        """
        if self._full:
            self._sync_folder(path)

    def make_folder(self, name: str) -> str:
        """Make a folder in the root where it is missing, with durability full onto the medium.

        :returns: where it is.
        :raises OSError: as it came, errno intact.
        """
        path = os.path.join(self._root, name)
        if self._make_folder(path):
            self.sync_folder(self._root)
        return path

    def put_file(self, buffers: Sequence[Buffer], folder: str, name: str) -> str:
        """Write a file that is no instance, in place of an earlier one; with durability full onto the medium.

        :param buffers: its content. Contiguous bytes each.
        :param folder: a folder in the root, made when it is missing. No UID begins with a dot, nor contains
            other letters than digits and dots, so it cannot be that of a study.
        :param name: the name of the file.
        :returns: where it is.
        :raises OSError: as it came, errno intact; an earlier one is as it was, unless the very last step failed
            (the fsync of the folder: then the new one is in its place).
        """
        path = self.make_folder(folder)
        temporary = self.write_temporary(buffers).path
        target = os.path.join(path, name)
        try:
            self._give_name(temporary, target, False)
        except BaseException:
            self._remove(temporary)
            raise
        self.sync_folder(path)
        return target

    def remove(self, path: str) -> None:
        """Remove a file, quietly where that cannot be done."""
        self._remove(path)

    # What follows is used by the writer as well.

    def _open_temporary(self, nameless: bool = True) -> tuple[str, int, bool]:
        """Open a temporary file; returns its path, its descriptor, and whether it is without a name."""
        if self.min_free:
            self._check_free()
        path = f"{self._prefix}-{next(self._numbers):x}{TEMPORARY_SUFFIX}"
        if nameless and self._can_be_nameless:
            return path, self._fs.open(self._incoming, _NAMELESS, _FILE_MODE), True
        return path, self._fs.open(path, _CREATE, _FILE_MODE), False

    def _tried_nameless(self, target: str) -> bool:
        """Whether files can be without a name, and get one; not on every file system, nor without /proc."""
        if not _NAMELESS:
            return False
        try:
            fd = self._fs.open(self._incoming, _NAMELESS, _FILE_MODE)
        except OSError:
            return False
        try:
            self._fs.name(fd, target)
            self._fs.unlink(target)
        except OSError:
            return False
        finally:
            self._close_quietly(fd)
        return True

    def _close_quietly(self, fd: int) -> None:
        try:
            self._fs.close(fd)
        except OSError:
            pass

    def _check_free(self) -> None:
        if self._fs.free(self._incoming) < self.min_free:
            raise OSError(errno.ENOSPC, f"less than {self.min_free} bytes are free, which are to stay so")

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

    def _digest(self, buffers: Sequence[Buffer]) -> bytes:
        if not self._full:
            return b""
        digest = hashlib.sha256()
        for buffer in buffers:
            digest.update(buffer)
        return digest.digest()

    def _place(self, temporary: str, study_uid: str, series_uid: str, instance_uid: str) -> str:
        """Give a temporary file, whole and closed, its final name."""
        target = self.rename(temporary, study_uid, series_uid, instance_uid)
        self.sync_folder(os.path.dirname(target))
        return target

    def _make_folders(self, study_uid: str, series_uid: str) -> str:
        study = f"{self._root}/{study_uid}"
        series = f"{study}/{series_uid}"
        is_new = self._make_folder(study)
        if self._full and (is_new or (study_uid, "") not in self._known):
            self._sync_folder(self._root)
        self._make_folder(series)
        if self._full:
            self._sync_folder(study)
        with self._known_lock:
            while len(self._known) >= MAX_KNOWN_FOLDERS:
                del self._known[next(iter(self._known))]
            self._known[(study_uid, "")] = study
            self._known[(study_uid, series_uid)] = series
        return series

    def _make_folder(self, path: str) -> bool:
        """Make a folder if it is not there; returns whether it was not."""
        try:
            self._fs.mkdir(path, _FOLDER_MODE)
        except FileExistsError:
            return False
        return True

    def _sync_folder(self, path: str) -> None:
        fd = self._fs.open(path, _FOLDER)
        try:
            self._fs.fsync(fd)
        finally:
            self._fs.close(fd)

    def _remove(self, temporary: str) -> None:
        fd = self._nameless.pop(temporary, -1)
        if fd >= 0:
            self._close_quietly(fd)
        else:
            self._unlink_quietly(temporary)

    def _unlink_quietly(self, path: str) -> None:
        try:
            self._fs.unlink(path)
        except OSError:
            # It was renamed already, or the file system is beyond it (EROFS, EIO). The error that led here
            # says more, and the next start removes the file.
            pass

    def _remove_left_overs(self) -> int:
        """Remove the temporary files of stores that are gone, unless another store lives in the same root."""
        if self._lock_fd < 0:
            self._lock_fd = os.open(os.path.join(self._incoming, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            removed = 0  # the other one's files may be in use
        except OSError:
            return 0  # no locks on this file system, so no way to know whether there is another one
        else:
            left_over = [name for name in self._fs.listdir(self._incoming) if name.endswith(TEMPORARY_SUFFIX)]
            for name in left_over:
                self._fs.unlink(os.path.join(self._incoming, name))
            removed = len(left_over)
        # Shared from here on: until every holder is gone, nobody can have the lock exclusively and remove
        # anything.
        fcntl.flock(self._lock_fd, fcntl.LOCK_SH)
        return removed

    def _why_unusable(self, error: OSError) -> str:
        reason = error.strerror or str(error)
        if error.errno == errno.EXDEV:
            advice = f"{self._incoming} must be on the same file system as the folder it is in"
        elif error.errno in (errno.EINVAL, errno.ENOTSUP) and self._full:
            advice = "if its file system cannot sync folders, use durability none"
        elif error.errno == errno.ENOENT:
            advice = "make the folder above it first"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            advice = "there is a file in its place"
        elif error.errno in (errno.EACCES, errno.EPERM):
            advice = "let the user that runs the server write there"
        else:
            advice = "choose another folder or repair this one"
        return f"cannot store instances in {self._root}: {reason}; {advice}"


def _after(buffers: Sequence[Buffer], count: int) -> list[Buffer]:
    """What is left of the buffers behind the first ``count`` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            rest: list[Buffer] = [memoryview(buffer)[count:]] if count else [buffer]
            return [*rest, *buffers[index + 1 :]]
        count -= len(buffer)
    return []
