"""
The folder that a retrieval stores instances in: Part 10 files, named by a layout.

An instance is written to a temporary file, which gets its name when it is complete, and with durability full on the medium.
So a file with a name is always whole, also after a crash. Temporary files are synced together, and not before each
acknowledgement: the peer keeps the instances that it sends, so what matters is that no result says more than is on the medium.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from dicomtwist.archive.index.record import REQUIRED
from dicomtwist.archive.instance import ReceivedInstance, open_data_set
from dicomtwist.archive.storage.file_store import InstanceStore
from dicomtwist.archive.storage.system_calls import FileSystem
from dicomtwist.archive.storage.types import DuplicateInstance, Durability, InstanceUIDs, Written
from dicomtwist.datasets.header_scanner import HeaderError, HeaderScanner
from dicomtwist.part10 import NotDicomFile, read_file_meta
from dicomtwist.retrieval.layout import UID_LAYOUT, Layout, aside
from dicomtwist.runtime.executors import Executor
from dicomtwist.runtime.regular_files import open_regular

__all__ = ["Receipt", "ReceivingFolder"]

#: The number of complete files, and of their bytes, that wait for their names before a writing thread syncs them itself.
MAX_PENDING: Final = 256
MAX_PENDING_BYTES: Final = 64 * 1024 * 1024
#: The longest time that complete files wait for others, to be synced together, in seconds.
DELAY: Final = 0.5
#: The number of files that are flushed to the medium one by one; if there are more, the whole file system is flushed.
MAX_SYNCED: Final = 12
#: The number of folders that are remembered as on the medium.
MAX_KNOWN_FOLDERS: Final = 4096
#: The longest value of an attribute in a name, in bytes, and the bytes that are read of a file at a time.
_MAX_VALUE: Final = 16 * 1024
_PIECE: Final = 256 * 1024
#: How often a name is chosen again if another instance took it meanwhile.
_ATTEMPTS: Final = 4


@dataclass(slots=True)
class Receipt:
    """
    The instances that have arrived for one request.

    :ivar uids: the SOP Instance UIDs of the instances that were stored or are there already.
    :ivar stored: the number of instances that were stored.
    :ivar existing: the number of instances that were there already.
    :ivar collisions: the number of files that got another name, since another instance has the name of the layout.
    :ivar refused: the number of instances that were refused, by reason.
    :ivar refused_uids: their SOP Instance UIDs.
    """

    uids: set[str] = field(default_factory=set)
    stored: int = 0
    existing: int = 0
    collisions: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    refused_uids: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Pending:
    """A complete temporary file that waits for its name."""

    file: Written
    path: str
    uid: str
    transfer_syntax: str
    receipt: Receipt


class ReceivingFolder:
    """
    A folder of Part 10 files. All methods but :meth:`settle` block and are meant for worker threads.

    :param root: the folder; :meth:`prepare` makes it if it is missing and its parent exists.
    :param layout: the names of the files.
    :param durability: whether a file is on the medium before it gets its name.
    :param min_free: the bytes that stay free on the disk; with less, instances are refused.
    :param overwrite: whether an instance replaces a file of the same instance that differs.

    :ivar store: the temporary files.
    """

    def __init__(
        self,
        root: Path,
        *,
        layout: Layout | None = None,
        durability: Durability = Durability.FULL,
        min_free: int = 0,
        overwrite: bool = False,
        file_system: FileSystem | None = None,
    ) -> None:
        self.root = root
        self.layout = layout or Layout()
        self.overwrite = overwrite
        self._root = os.fspath(root)
        self._syncs = durability is Durability.FULL
        self._fs = file_system or FileSystem()
        # Its files are synced here, many together.
        self.store = InstanceStore(root, durability=Durability.NONE, min_free=min_free, file_system=self._fs)
        self._by_uids = str(self.layout) == UID_LAYOUT
        self._lock = threading.Lock()
        self._naming = threading.Lock()
        self._pending: list[_Pending] = []
        self._pending_bytes = 0
        self._known: dict[str, None] = {}
        self._waiting: list[Deferred[None]] = []
        self._settling = self._hurries = False
        self._timer: IDelayedCall | None = None
        self._whole = -1

    def prepare(self) -> None:
        """
        Make the folder, and remove what an interrupted run left of temporary files.

        :raises StoreUnusable: the folder cannot be used; the text says why and what to do.
        """
        self.store.prepare()
        if self._syncs and self._fs.can_sync_all:
            # Open from the beginning on, since it reports the failures that came since then.
            self._whole = self._fs.open(self._root, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)

    def close(self) -> None:
        """Release the folder."""
        whole, self._whole = self._whole, -1
        if whole >= 0:
            self._fs.close_quietly(whole)
        self.store.close()

    # --- files that are there

    @property
    def knows_names(self) -> bool:
        """Whether the UIDs of an instance alone say the name of its file, so that it is known what is there."""
        return self._by_uids and not self.overwrite

    def missing(self, instances: Iterable[InstanceUIDs]) -> list[InstanceUIDs]:
        """Return the instances without a file. Their names are known (:attr:`knows_names`), and their UIDs are valid."""
        return [uids for uids in instances if not self.store.exists(*uids)]

    def has_study(self, study_uid: str) -> bool:
        """Whether there is a folder of the study, whose UID is valid."""
        return os.path.isdir(os.path.join(self._root, study_uid))

    # --- storing

    def keep(self, instance: ReceivedInstance, receipt: Receipt) -> None:
        """
        Take a complete instance, which gets its name later. If that fails, the caller drops it.

        :raises DuplicateInstance: a file of the instance is there, with another data set.
        :raises OSError: it cannot be written, or the file that is there cannot be read.
        """
        content, uid = instance.content, instance.uids[2]
        again = uid in receipt.uids
        if again:
            self.flush()  # so that it has its name, and can be compared
        path = self._path_of(instance)
        target, is_there = self._resolve(path, uid)
        if is_there and not self.overwrite:
            with open_data_set(self.store, instance) as data_set:
                if not self._holds(target, data_set, instance.transfer_syntax):
                    raise DuplicateInstance("a file of this name is there already, with another data set")
            self.drop(instance)
            with self._lock:
                receipt.existing += not again
                receipt.uids.add(uid)
            return
        file = content if isinstance(content, Written) else self.store.write_temporary(content)
        with self._lock:
            self._pending.append(_Pending(file, path, uid, instance.transfer_syntax, receipt))
            self._pending_bytes += file.size
            receipt.stored += not again
            receipt.uids.add(uid)
            full = len(self._pending) >= MAX_PENDING or self._pending_bytes >= MAX_PENDING_BYTES
        if full:
            self.flush()

    def drop(self, instance: ReceivedInstance) -> None:
        """Remove the temporary file of an instance that is not kept."""
        if isinstance(instance.content, Written):
            self.store.remove(instance.content.path)

    def flush(self) -> None:
        """Sync all files that wait, and give them their names. A file that fails is counted in its receipt as refused."""
        with self._naming:
            with self._lock:
                batch, self._pending = self._pending, []
                self._pending_bytes = 0
            named = [
                (pending, target) for pending in self._synced(batch) if (target := self._name(pending)) is not None
            ]
            self._sync_folders(named)

    def settle(self, executor: Executor, *, soon: bool = True) -> Deferred[None]:
        """
        Have all files named that wait now. Calls that come during a sync share the next one.

        :param executor: runs the sync.
        :param soon: whether somebody waits for it. Otherwise it is done within :data:`DELAY`, since a sync delays those that
            write meanwhile, and takes hardly longer for many files than for a few.
        :returns: a Deferred that fires when that is done.
        """
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        self._hurries = self._hurries or soon
        self._settle(executor)
        return waiting

    def _settle(self, executor: Executor) -> None:
        if self._settling or not self._waiting:
            return
        if not self._hurries:
            if self._timer is None:
                self._timer = executor.call_later(DELAY, self._timed, executor)
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._settling, self._hurries = True, False
        waiting, self._waiting = self._waiting, []

        def done(result: Failure | None) -> None:
            self._settling = False
            self._settle(executor)
            for deferred in waiting:
                if result is None:
                    deferred.callback(None)
                else:
                    deferred.errback(result)

        executor.run_admitted(self.flush).addBoth(done)

    def _timed(self, executor: Executor) -> None:
        self._timer = None
        self._hurries = True
        self._settle(executor)

    # --- names

    def _path_of(self, instance: ReceivedInstance) -> str:
        """Return the path that the layout gives an instance, relative to the root."""
        if self._by_uids:
            return self.store.name(*instance.uids)
        syntax, wanted = instance.transfer_syntax, self.layout.wanted
        scanner = HeaderScanner(syntax, wanted, max_value_length=_MAX_VALUE, required=(REQUIRED & wanted))
        try:
            with open_data_set(self.store, instance) as file:
                while not scanner.done and (piece := file.read(_PIECE)):
                    scanner.feed(piece)
        except HeaderError:
            pass  # the instance was accepted; the values before the error are good
        return self.layout.path(scanner.values, syntax)

    def _resolve(self, path: str, uid: str) -> tuple[str, bool]:
        """
        Return the whole path of the file of an instance, and whether a file of the instance is there.

        :raises DuplicateInstance: other files have both of its names.
        """
        for candidate in (path,) if self.layout.is_unique else (path, aside(path, uid)):
            target = f"{self._root}/{candidate}"
            try:
                found = self._uid_at(target)
            except (FileNotFoundError, NotADirectoryError):
                return target, False
            if found == uid or self.layout.is_unique:
                return target, True
        raise DuplicateInstance("files of other instances have its name already")

    def _uid_at(self, target: str) -> str:
        """Return the SOP Instance UID of a file, empty if it is not DICOM or the layout makes it unnecessary to look."""
        if self.layout.is_unique:
            os.lstat(target)
            return ""
        try:
            with open_regular(target) as file:
                return read_file_meta(file)[0].media_storage_sop_instance_uid
        except (FileNotFoundError, NotADirectoryError):
            raise
        except (OSError, NotDicomFile):
            return ""

    @staticmethod
    def _holds(target: str, data_set: BinaryIO, transfer_syntax: str) -> bool:
        """Whether the file *target* has exactly the data set that follows in *data_set*."""
        try:
            with open_regular(target) as file:
                if read_file_meta(file)[0].transfer_syntax_uid != transfer_syntax:
                    return False
                while True:
                    first, second = file.read(_PIECE), data_set.read(_PIECE)
                    if first != second:
                        return False
                    if not first:
                        return True
        except (OSError, NotDicomFile):
            return False

    def _synced(self, batch: Sequence[_Pending]) -> list[_Pending]:
        """Flush the files of *batch* to the medium; the system begins with all before the first is waited for."""
        if not self._syncs:
            return list(batch)
        if self._sync_all(batch):
            return list(batch)
        good: list[_Pending] = []
        with ExitStack() as stack:
            opened: list[tuple[_Pending, int]] = []
            for pending in batch:
                try:
                    file = stack.enter_context(self.store.open_temporary(pending.file))
                    self._fs.start_writing(file.fileno(), 0, 0)
                    opened.append((pending, file.fileno()))
                except OSError as error:
                    self._failed(pending, error)
            for pending, fd in opened:
                try:
                    self._fs.fsync(fd)
                    good.append(pending)
                except OSError as error:
                    self._failed(pending, error)
        return good

    def _sync_all(self, files: Collection[object]) -> bool:
        """Flush the whole file system if that takes less time than *files* one by one; return whether that was done."""
        if len(files) <= MAX_SYNCED or self._whole < 0:
            return False
        try:
            self._fs.sync_all(self._whole)
        except OSError:
            return False  # each file says for itself
        return True

    def _name(self, pending: _Pending) -> str | None:
        """Give a file its name and return that; ``None`` if that failed, or a file of the instance is there already."""
        try:
            for _ in range(_ATTEMPTS):
                target, is_there = self._resolve(pending.path, pending.uid)
                if is_there and not self.overwrite:
                    with self.store.open_temporary(pending.file) as file:
                        read_file_meta(file)
                        if not self._holds(target, file, pending.transfer_syntax):
                            raise DuplicateInstance("it came twice, with different data sets")
                    self.store.remove(pending.file.path)
                    with self._lock:
                        pending.receipt.stored -= 1
                        pending.receipt.existing += 1
                    return None
                try:
                    self._give_name(pending.file.path, target)
                except FileExistsError:
                    continue
                if not target.endswith(f"/{pending.path}"):
                    with self._lock:
                        pending.receipt.collisions += 1
                return target
            raise DuplicateInstance("files of other instances have its name already")
        except (OSError, DuplicateInstance, NotDicomFile) as error:
            self._failed(pending, error)
            return None

    def _give_name(self, temporary: str, target: str) -> None:
        files, exclusive = self.store.temporary_files, not self.overwrite
        try:
            files.give_name(temporary, target, exclusive=exclusive)
        except FileNotFoundError:
            for folder in reversed(self._folders(target)):
                self._known.pop(folder, None)
                self._fs.make_folder(folder)
            files.give_name(temporary, target, exclusive=exclusive)

    def _folders(self, target: str) -> list[str]:
        """Return the folders of a file below the root, the innermost first."""
        folders = []
        folder = os.path.dirname(target)
        while len(folder) > len(self._root):
            folders.append(folder)
            folder = os.path.dirname(folder)
        return folders

    def _sync_folders(self, named: Sequence[tuple[_Pending, str]]) -> None:
        """Flush the names of files to the medium, and those of folders that were not flushed before."""
        if not self._syncs:
            return
        held: dict[str, list[_Pending]] = {}
        for pending, target in named:
            held.setdefault(os.path.dirname(target), []).append(pending)
            for folder in self._folders(target):
                if folder not in self._known:
                    held.setdefault(os.path.dirname(folder), []).append(pending)
        failed: set[int] = set()
        for folder, files in {}.items() if self._sync_all(held) else held.items():
            try:
                self._fs.sync_folder(folder)
            except OSError as error:
                for pending in files:
                    if id(pending) not in failed:
                        failed.add(id(pending))
                        self._failed(pending, error)
        for pending, target in named:
            if id(pending) not in failed:
                while len(self._known) >= MAX_KNOWN_FOLDERS:
                    del self._known[next(iter(self._known))]
                self._known.update(dict.fromkeys(self._folders(target)))

    def _failed(self, pending: _Pending, error: Exception) -> None:
        self.store.remove(pending.file.path)
        reason = getattr(error, "strerror", None) or str(error)
        with self._lock:
            receipt = pending.receipt
            receipt.stored -= 1
            receipt.refused[reason] += 1
            receipt.uids.discard(pending.uid)
            receipt.refused_uids.add(pending.uid)
