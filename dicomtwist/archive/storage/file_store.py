"""The storage of instances as files: ``root/<study>/<series>/<instance>.dcm``.

An instance is written to a temporary file on the same file system, which gets its final name when it is complete. A file
with a final name is therefore always complete, either the old one or the new one, even after a crash. With durability
``full`` the file and every directory that leads to it are also on the medium before a call returns.

All functions block and are meant for worker threads. One :class:`InstanceStore` serves all threads; two threads may store the
same instance at once (the last rename wins); an :class:`InstanceWriter` belongs to one thread at a time.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from dicomtwist.archive.storage.file_writer import InstanceWriter
from dicomtwist.archive.storage.removed import Removed, RemovedFiles, Target
from dicomtwist.archive.storage.side_folder import SideFolder
from dicomtwist.archive.storage.system_calls import Buffer, FileSystem
from dicomtwist.archive.storage.temporary_files import TemporaryFiles
from dicomtwist.archive.storage.types import Durability, InstanceUIDs, StoreUnusable, Written, check_uids, is_uid
from dicomtwist.runtime.regular_files import check_regular, open_descriptor, open_regular, read_short

__all__ = ["LAYOUT", "InstanceStore", "InstanceWriter", "file_name"]

#: The folder of temporary files, in the root. No UID begins with a dot, so no study can have this name.
INCOMING: Final = ".incoming"
_SUFFIX: Final = ".dcm"
#: The version of a file about which the system says nothing, such as a symbolic link to itself.
UNKNOWN_VERSION: Final = "unknown"
#: The path of an instance in the root, for messages.
LAYOUT: Final = f"STUDY/SERIES/INSTANCE{_SUFFIX}"

#: The number of study and series folders that a store remembers as made (and, with durability full, as flushed to the medium).
MAX_KNOWN_FOLDERS = 4096
#: The number of files that are flushed to the medium one by one; if there are more, the whole file system is flushed.
MAX_SYNCED: Final = 64


def file_name(uid: str) -> str:
    """Return the name of the DICOM file of an object.

    :raises InvalidUID: *uid* is not a UID.
    """
    check_uids(uid)
    return uid + _SUFFIX


class InstanceStore:
    """The instances below one folder, a :class:`~dicomtwist.archive.storage.interfaces.Storage`.

    Several stores, in one process or in several, may share a root. The temporary files of a process that died are removed
    only by a store that has the root to itself.

    :param root: the folder; :meth:`prepare` makes it if it is missing and its parent exists.
    :param durability: the state of an instance after a successful commit.
    :param min_free: the number of bytes that must be free on the file system before another instance is written; with
        fewer the write fails with ENOSPC. 0 writes as long as there is room.
    :param file_system: the system calls to use.

    :ivar temporary_files: the instances that have no final name yet.
    :ivar removed: the studies, series and instances that were taken away, until their files are removed.
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
        self._fs = file_system or FileSystem()
        self._full = durability is Durability.FULL
        self._root = os.fspath(root)
        # The root, open, to flush its file system: failures since it was opened are reported.
        self._whole = -1
        self.temporary_files = TemporaryFiles(
            os.path.join(self._root, INCOMING), self._fs, durability=durability, min_free=min_free
        )
        self.removed = RemovedFiles(self._root, _SUFFIX, self.temporary_files.beginning, self._fs, syncs=self._full)
        # (study, series) or (study, ""), for the folders that this store knows to exist. With durability full, a folder
        # is known only after it and the folders above it have been synced, even if another thread or process made it,
        # since that one may not have reached its fsync yet. The store keeps names, not open file descriptors: a
        # descriptor would follow a folder that is moved away, and is no faster (measured).
        self._known: dict[tuple[str, str], None] = {}
        self._known_lock = threading.Lock()

    @property
    def min_free(self) -> int:
        """The number of bytes that must be free on the file system before another instance is written; it may be changed."""
        return self.temporary_files.min_free

    @min_free.setter
    def min_free(self, count: int) -> None:
        self.temporary_files.min_free = count

    def prepare(self) -> int:
        """Make the root and its folder for temporary files, remove left-over ones, and try to write a file.

        :returns: the number of left-over temporary files that were removed.
        :raises StoreUnusable: the folder cannot be made or written, temporary files would be on another file
            system, or a folder cannot be synced although durability full asks for it.
        """
        fs = self._fs
        try:
            is_new = fs.make_folder(self._root)
            fs.make_folder(self.temporary_files.folder)
            removed = self.temporary_files.prepare(self._root)
            if self._full:
                if fs.can_sync_all:
                    self._whole = fs.open(self._root, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
                fs.sync_folder(self._root)
                try:
                    fs.sync_folder(os.path.dirname(os.path.abspath(self._root)))
                except PermissionError:
                    # This user cannot read the parent. If we have just made the root in it, its name must be synced,
                    # so this is an error; an older root was synced long ago.
                    if is_new:
                        raise
        except OSError as error:
            self.close()
            raise StoreUnusable(self._why_unusable(error)) from error
        return removed

    def close(self) -> None:
        """Release the root; idempotent. Writers that are still open are not affected."""
        whole, self._whole = self._whole, -1
        if whole >= 0:
            self._fs.close_quietly(whole)
        self.temporary_files.close()

    # --- where instances are

    def name(self, study_uid: str, series_uid: str, instance_uid: str) -> str:
        """
        Return the path of an instance relative to the root, whether or not it exists. The UIDs are valid.

        This is the only place that knows where an instance lies.
        """
        return f"{study_uid}/{series_uid}/{instance_uid}{_SUFFIX}"

    def locate(self, study_uid: str, series_uid: str, instance_uid: str) -> str:
        """Return the path of an instance, whether or not it exists. The UIDs are valid."""
        return f"{self._root}/{self.name(study_uid, series_uid, instance_uid)}"

    def path(self, study_uid: str, series_uid: str, instance_uid: str) -> Path:
        """Return the path of an instance, whether or not it exists.

        :raises InvalidUID: one of the three is not a UID.
        """
        check_uids(study_uid, series_uid, instance_uid)
        return Path(self.locate(study_uid, series_uid, instance_uid))

    def exists(self, study_uid: str, series_uid: str, instance_uid: str) -> bool:
        """Whether the store holds an instance. The UIDs are valid."""
        # As os.path.lexists() does, which costs one more call for each instance that is received.
        try:
            os.lstat(self.locate(study_uid, series_uid, instance_uid))
        except (OSError, ValueError):
            return False
        return True

    def is_gone(self, study_uid: str, series_uid: str, instance_uid: str) -> bool:
        """Whether the file of an instance was removed, and not only its disk. The UIDs are valid."""
        study = f"{self._root}/{study_uid}"
        try:
            os.lstat(self.locate(study_uid, series_uid, instance_uid))
        except (FileNotFoundError, NotADirectoryError):
            # A link that leads nowhere: the file system behind it is not mounted.
            return not any(os.path.islink(one) and not os.path.exists(one) for one in (study, f"{study}/{series_uid}"))
        except OSError:
            return False
        return False

    def series(self, unreadable: Callable[[str, str, OSError], None]) -> Iterator[tuple[tuple[str, str], set[str]]]:
        """Yield each series, in the order of the Study and Series Instance UIDs, with the SOP Instance UIDs of its files.

        A folder that is not named by a UID, such as ``lost+found`` of a file system, is left out if it cannot be read.

        :param unreadable: called for each other folder that cannot be read, see
            :meth:`dicomtwist.archive.storage.interfaces.Storage.series`.
        :raises OSError: the root cannot be read.
        """
        for study_uid in _subfolders(self._root):
            try:
                series = _subfolders(f"{self._root}/{study_uid}")
            except OSError as error:
                if error.errno != errno.ENOENT and is_uid(study_uid):
                    unreadable(study_uid, "", error)
                continue
            for series_uid in series:
                try:
                    names = self._fs.listdir(f"{self._root}/{study_uid}/{series_uid}")
                except OSError as error:
                    if error.errno != errno.ENOENT and is_uid(study_uid) and is_uid(series_uid):
                        unreadable(study_uid, series_uid, error)
                    continue
                yield (study_uid, series_uid), {name[: -len(_SUFFIX)] for name in names if name.endswith(_SUFFIX)}

    # --- reading

    def open(self, study_uid: str, series_uid: str, instance_uid: str) -> BinaryIO:
        """Open the file of an instance. The UIDs are valid.

        :raises OSError: it cannot be read.
        """
        return open_regular(self.locate(study_uid, series_uid, instance_uid))

    def describe(self, file: BinaryIO) -> tuple[int, str]:
        """Return the size of an open instance in bytes, and its version, see
        :meth:`dicomtwist.archive.storage.interfaces.Storage.describe`."""
        status = os.fstat(file.fileno())
        return status.st_size, _version(status)

    def head(self, study_uid: str, series_uid: str, instance_uid: str, length: int) -> tuple[int, str, bytes]:
        """Return the size of an instance in bytes, its version, and its first *length* bytes; fewer if it is shorter. The UIDs
        are valid.

        :raises OSError: it cannot be read.
        """
        path = self.locate(study_uid, series_uid, instance_uid)
        # A file object of Python takes as long as the rest of this.
        descriptor = open_descriptor(path)
        try:
            status = os.fstat(descriptor)
            check_regular(status, path)
            return status.st_size, _version(status), os.pread(descriptor, length, 0)
        finally:
            os.close(descriptor)

    def read_short(self, study_uid: str, series_uid: str, instance_uid: str, most: int) -> tuple[str, bytes] | None:
        """Return the version and the content of an instance of up to *most* bytes, ``None`` for a longer one. The UIDs are
        valid.

        :raises OSError: it cannot be read.
        """
        found = read_short(self.locate(study_uid, series_uid, instance_uid), most)
        return None if found is None else (_version(found[0]), found[1])

    def versions(self, study_uid: str, series_uid: str) -> dict[str, str]:
        """Return the SOP Instance UIDs of a series, each with the version of the instance. The UIDs are valid.

        :raises OSError: the folder cannot be read.
        """
        found: dict[str, str] = {}
        try:
            with os.scandir(os.path.dirname(self.locate(study_uid, series_uid, ""))) as entries:
                for entry in entries:
                    uid, suffix = os.path.splitext(entry.name)
                    if suffix == _SUFFIX and is_uid(uid):
                        try:
                            found[uid] = _version(entry.stat())
                        except FileNotFoundError:
                            continue  # removed meanwhile
                        except OSError:
                            found[uid] = UNKNOWN_VERSION  # to open it fails too, and says why
        except (FileNotFoundError, NotADirectoryError):
            pass
        return found

    def series_of(self, study_uid: str) -> list[str]:
        """Return the Series Instance UIDs of a study, sorted. The UID is valid.

        :raises OSError: the folder cannot be read.
        """
        try:
            return [name for name in _subfolders(f"{self._root}/{study_uid}") if is_uid(name)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def open_on_medium(self, study_uid: str, series_uid: str, instance_uid: str) -> BinaryIO:
        """Open the file of an instance so that it is read from the medium, not from the system's cache. With durability
        none the file is flushed to the medium first. The UIDs are valid.

        :raises OSError: it cannot be read or synced.
        """
        path = self.locate(study_uid, series_uid, instance_uid)
        if not self._full:
            self._fs.sync(path)
        file = open(path, "rb", buffering=0)
        self._fs.drop_cache(file.fileno())
        return file

    def sync_path(self, study_uid: str, series_uid: str, instance_uid: str) -> None:
        """With durability none, flush the names that lead to an instance to the medium; with durability full they are
        there already. The UIDs are valid.

        :raises OSError: as it came, errno intact.
        """
        if not self._full:
            folder = self.locate(study_uid, series_uid, instance_uid)
            for _ in range(3):
                folder = os.path.dirname(folder)
                self._fs.sync_folder(folder)

    # --- storing in one step

    def store(self, buffers: Sequence[Buffer], study_uid: str, series_uid: str, instance_uid: str) -> str:
        """Store a complete instance that is in memory.

        :param buffers: the file, preamble first; each buffer contiguous.
        :returns: the path of the instance.
        :raises InvalidUID: one of the three is not a UID; nothing was written.
        :raises OSError: as it came, errno intact. The temporary file has been removed, and an earlier copy of the
            instance has not changed, unless the very last step failed (the fsync of the folder: then the new copy has
            replaced it).
        """
        check_uids(study_uid, series_uid, instance_uid)
        return self.store_temporary(self.write_temporary(buffers), study_uid, series_uid, instance_uid)

    def store_temporary(self, temporary: Written, study_uid: str, series_uid: str, instance_uid: str) -> str:
        """Store an instance that is in a temporary file; it replaces an earlier copy.

        :returns: the path of the instance.
        :raises InvalidUID: one of the three is not a UID; the temporary file has been removed.
        :raises OSError: as :meth:`store`.
        """
        uids = study_uid, series_uid, instance_uid
        try:
            check_uids(*uids)
            target = self.rename(temporary.path, *uids)
            if self._full:
                self._fs.sync_folder(os.path.dirname(target))
        except BaseException:
            self.remove(temporary.path)
            raise
        return target

    # --- the single steps of storing, for a caller with work between them, such as updating an index

    def room(self) -> tuple[str, int]:
        """
        Return the folder of the storage, and the number of bytes that are free on its file system.

        :raises OSError: the file system does not say.
        """
        return self._root, self._fs.free(self._root)

    def create(self) -> InstanceWriter:
        """Open a temporary file for one instance that is written piece by piece.

        :raises OSError: the file cannot be made.
        """
        return InstanceWriter(self.temporary_files)

    def write_temporary(self, buffers: Sequence[Buffer]) -> Written:
        """Write a temporary file; with durability full it is on the medium afterwards.

        :param buffers: the file, preamble first; each buffer contiguous.
        :raises OSError: as it came, errno intact; nothing is left of the file.
        """
        return self.temporary_files.write_one(buffers)

    def write_temporaries(self, contents: Sequence[Sequence[Buffer]]) -> list[Written | BaseException]:
        """Write temporary files, see :meth:`~dicomtwist.archive.storage.temporary_files.TemporaryFiles.write`."""
        return self.temporary_files.write(contents)

    def write_acknowledged(self, contents: Sequence[tuple[Buffer, int]]) -> list[Written | BaseException]:
        """Write temporary files whose contents are safe elsewhere, see
        :meth:`~dicomtwist.archive.storage.temporary_files.TemporaryFiles.write_acknowledged`."""
        return self.temporary_files.write_acknowledged(contents)

    def open_temporary(self, temporary: Written) -> BinaryIO:
        """Open a complete temporary file for reading.

        :raises OSError: it cannot be read.
        """
        return self.temporary_files.read(temporary.path)

    def rename(
        self, source: str, study_uid: str, series_uid: str, instance_uid: str, *, exclusive: bool = False
    ) -> str:
        """Give a temporary file its final name. The caller then has to sync the name, see :meth:`sync_names`.

        :param exclusive: whether to fail if there is an earlier copy; otherwise the file replaces it.
        :returns: the path of the instance.
        :raises FileExistsError: there is an earlier copy and *exclusive* is true; neither file has changed.
        :raises OSError: as it came, errno intact; neither file has changed.
        """
        if (study_uid, series_uid) not in self._known:
            self._make_folders(study_uid, series_uid)
        target = self.locate(study_uid, series_uid, instance_uid)
        try:
            self.temporary_files.give_name(source, target, exclusive=exclusive)
        except FileNotFoundError:
            # The folder was removed after the store had noted it (by a clean-up of old studies, say).
            with self._known_lock:
                self._known.pop((study_uid, ""), None)
            self._make_folders(study_uid, series_uid)
            self.temporary_files.give_name(source, target, exclusive=exclusive)
        return target

    def set_aside(self, study_uid: str, series_uid: str, instance_uid: str) -> str:
        """Give an instance a second name among the temporary files, for :meth:`put_back`.

        :returns: the second name.
        :raises OSError: as it came, errno intact.
        """
        temporary = self.temporary_files.new_path()
        self._fs.link(self.locate(study_uid, series_uid, instance_uid), temporary)
        return temporary

    def put_back(self, temporary: str, study_uid: str, series_uid: str, instance_uid: str) -> None:
        """Undo a replacement: the copy that was set aside gets its name back.

        :raises OSError: as it came, errno intact.
        """
        self._fs.rename(temporary, self.locate(study_uid, series_uid, instance_uid))

    def sync_names(self, instances: Iterable[InstanceUIDs]) -> dict[InstanceUIDs, OSError]:
        """Flush the names of instances to the medium; with durability none do nothing.

        :returns: the instances whose names could not be flushed, each with the error.
        """
        failed: dict[InstanceUIDs, OSError] = {}
        if not self._full:
            return failed
        folders: dict[str, list[InstanceUIDs]] = {}
        for uids in instances:
            folders.setdefault(os.path.dirname(self.locate(*uids)), []).append(uids)
        for folder, held in folders.items():
            try:
                self._fs.sync_folder(folder)
            except OSError as error:
                failed.update(dict.fromkeys(held, error))
        return failed

    # --- the same in two steps, for an instance that is safe elsewhere meanwhile

    def publish(self, source: str, study_uid: str, series_uid: str, instance_uid: str) -> None:
        """Give a temporary file its final name; it replaces an earlier copy. Nothing is flushed to the medium before
        :meth:`sync_files`.

        :raises OSError: as it came, errno intact; neither file has changed.
        """
        target = self.locate(study_uid, series_uid, instance_uid)
        try:
            self.temporary_files.give_name(source, target, exclusive=False)
        except FileNotFoundError:
            with self._known_lock:
                self._known.pop((study_uid, ""), None)
                self._known.pop((study_uid, series_uid), None)
            series = os.path.dirname(target)
            self._fs.make_folder(os.path.dirname(series))
            self._fs.make_folder(series)
            self.temporary_files.give_name(source, target, exclusive=False)

    def sync_files(self, instances: Iterable[InstanceUIDs], *, always: bool = False) -> dict[InstanceUIDs, OSError]:
        """Flush instances, their names and the folders above them to the medium; with durability none do nothing. An instance
        without a file, which was removed since, is left out.

        :param always: whether to flush them with durability none as well.
        :returns: the instances that could not be flushed, each with the error.
        """
        failed: dict[InstanceUIDs, OSError] = {}
        if not self._full and not always:
            return failed
        waiting = list(instances)
        if len(waiting) > MAX_SYNCED and self._whole >= 0:
            # One call, and one flush of the medium's cache, instead of one for each file.
            try:
                self._fs.sync_all(self._whole)
            except OSError as error:
                return dict.fromkeys(waiting, error)
            for uids in waiting:
                self._know(*uids[:2])
            return failed
        self._sync_some(waiting, failed)
        folders: dict[str, list[InstanceUIDs]] = {}
        for uids in waiting:
            folder = self.locate(*uids)
            for _ in range(3 if uids[:2] not in self._known else 1):
                folder = os.path.dirname(folder)
                folders.setdefault(folder, []).append(uids)
        for folder, held in folders.items():
            try:
                self._fs.sync_folder(folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                failed.update(dict.fromkeys(held, error))
        for uids in waiting:
            if uids not in failed:
                self._know(*uids[:2])
        return failed

    def _sync_some(self, instances: Sequence[InstanceUIDs], failed: dict[InstanceUIDs, OSError]) -> None:
        """Flush files; the system begins with some of them before the first is waited for."""
        for start in range(0, len(instances), MAX_SYNCED):
            self._sync_opened(instances[start : start + MAX_SYNCED], failed)

    def _sync_opened(self, instances: Sequence[InstanceUIDs], failed: dict[InstanceUIDs, OSError]) -> None:
        fs = self._fs
        opened: list[tuple[InstanceUIDs, int]] = []
        for uids in instances:
            try:
                fd = fs.open(self.locate(*uids), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            except OSError as error:
                failed[uids] = error
                continue
            fs.start_writing(fd, 0, 0)
            opened.append((uids, fd))
        for uids, fd in opened:
            try:
                fs.fsync(fd)
            except OSError as error:
                failed[uids] = error
            fs.close_quietly(fd)

    def remove(self, temporary: str) -> None:
        """Remove a temporary file or a copy that was set aside; a failure is ignored."""
        self.temporary_files.remove(temporary)

    def remove_instance(self, study_uid: str, series_uid: str, instance_uid: str) -> None:
        """Remove an instance; a failure is ignored."""
        self._fs.unlink_quietly(self.locate(study_uid, series_uid, instance_uid))

    def received(self, study_uid: str) -> float:
        """Return the time at which the last instance of a study was received, in seconds since 1970; 0 if it has none.

        :raises OSError: a folder cannot be read.
        """
        latest = 0.0
        for series_uid in self.series_of(study_uid):
            with suppress(FileNotFoundError), os.scandir(f"{self._root}/{study_uid}/{series_uid}") as entries:
                for entry in entries:
                    if entry.name.endswith(_SUFFIX):
                        with suppress(FileNotFoundError):
                            latest = max(latest, entry.stat().st_mtime)
        return latest

    def copy_received(self, study_uid: str, series_uid: str, instance_uid: str) -> tuple[int, int]:
        """Return the time of the file of an instance, in nanoseconds since 1970, and its size in bytes. The UIDs are valid.

        :raises OSError: it is not there, or cannot be read.
        """
        status = os.stat(self.locate(study_uid, series_uid, instance_uid))
        return status.st_mtime_ns, status.st_size

    # --- removing

    def take_away(self, uids: Target) -> Removed | None:
        """Take a study, a series or an instance away, see :meth:`~dicomtwist.archive.storage.removed.RemovedFiles.take`. The
        UIDs are valid."""
        with self._known_lock:
            for known in [one for one in self._known if one[0] == uids[0]]:
                del self._known[known]
        return self.removed.take(uids)

    # --- files beside the instances

    def side_folder(self, name: str) -> SideFolder:
        """Return the folder *name* in the root, for files beside the instances."""
        return SideFolder(self._root, name, self.temporary_files, self._fs)

    # --- internals

    def _make_folders(self, study_uid: str, series_uid: str) -> None:
        fs = self._fs
        series = os.path.dirname(self.locate(study_uid, series_uid, ""))
        study = os.path.dirname(series)
        is_new = fs.make_folder(study)
        if self._full and (is_new or (study_uid, "") not in self._known):
            fs.sync_folder(self._root)
        fs.make_folder(series)
        if self._full:
            fs.sync_folder(study)
        self._know(study_uid, series_uid)

    def _know(self, study_uid: str, series_uid: str) -> None:
        with self._known_lock:
            while len(self._known) >= MAX_KNOWN_FOLDERS:
                del self._known[next(iter(self._known))]
            self._known[(study_uid, "")] = None
            self._known[(study_uid, series_uid)] = None

    def _why_unusable(self, error: OSError) -> str:
        reason = error.strerror or str(error)
        if error.errno == errno.EXDEV:
            advice = f"{self.temporary_files.folder} must be on the same file system as the folder it is in"
        elif error.errno in (errno.EINVAL, errno.ENOTSUP) and self._full:
            advice = "if its file system cannot sync folders, use durability none"
        elif error.errno == errno.ENOENT:
            advice = "make the folder above it first"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            advice = "there is a file in its place: move it away, or choose another folder"
        elif error.errno in (errno.EACCES, errno.EPERM):
            advice = "let the user that runs the server write there"
        else:
            advice = "choose another folder or repair this one"
        return f"cannot store instances in {self._root}: {reason}; {advice}"


def _version(status: os.stat_result) -> str:
    """Return the version of a file. Each copy of an instance is a file of its own, and is not written again."""
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _subfolders(path: str) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link in a loop
