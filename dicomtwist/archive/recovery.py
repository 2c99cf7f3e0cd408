"""
Recovery at a start, which makes files and index agree.

The files are authoritative. Names are compared, one series at a time. A file is read only if the index has no row of it, or if
it was being replaced when the program ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import BinaryIO, Final, NamedTuple, TypeAlias, TypeVar

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.completeness import examine
from dicomtwist.archive.index.index import FOLDER
from dicomtwist.archive.index.interfaces import InstanceIndex
from dicomtwist.archive.index.record import WANTED, IndexRow, Record, make_record, scanner_for
from dicomtwist.archive.storage.interfaces import Storage
from dicomtwist.archive.storage.process_locks import uncommitted
from dicomtwist.archive.storage.removed import Removed
from dicomtwist.archive.storage.types import (
    IndexFailed,
    InstanceUIDs,
    RowRefused,
    StoreError,
    check_uids,
)
from dicomtwist.datasets.header_scanner import HeaderError
from dicomtwist.errors import loggable
from dicomtwist.part10 import NO_TRANSFER_SYNTAX, NotDicomFile, read_file_meta

__all__ = ["NotWanted", "Reconciled", "check", "read_record", "reconcile", "remove_missing", "repair"]

#: The number of rows in one transaction.
_ROWS: Final = 500
#: The number of them while instances are stored, which wait meanwhile.
_ROWS_IN_USE: Final = 50
#: The number of bytes of a file that are read at once.
_PIECE: Final = 256 * 1024
#: The number of file names in a report.
MAX_REPORTED: Final = 100


_Folder: TypeAlias = tuple[str, str]
_T = TypeVar("_T")


class NotWanted(StoreError):
    """A comparison of files and index was given up, because the program stops. The next start begins it again."""


def printable(text: str) -> str:
    """Return *text*, a path or an error, as one line for the log: a file name may have any byte in it."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


@dataclass(slots=True)
class Reconciled:
    """
    The result of a recovery.

    :ivar temporary: the number of left-over temporary files that were removed.
    :ivar instances: the number of instances that have both a file and a row.
    :ivar indexed: the number of files that had no row, or an outdated one, and have a row now.
    :ivar lost: the number of rows that had no file and were removed.
    :ivar lost_names: the missing files of some of them.
    :ivar deleted: the number of rows that had no file since a deletion had not ended, and were removed.
    :ivar unreadable: the number of files that cannot be indexed; they stay where they are.
    :ivar unreadable_names: some of them, with the reason.
    :ivar damaged: the number of files that were indexed although their data sets are not whole.
    :ivar damaged_names: some of them, with the reason.
    """

    temporary: int = 0
    instances: int = 0
    indexed: int = 0
    lost: int = 0
    deleted: int = 0
    unreadable: int = 0
    lost_names: list[str] = field(default_factory=list)
    unreadable_names: list[str] = field(default_factory=list)
    damaged: int = 0
    damaged_names: list[str] = field(default_factory=list)

    def note_lost(self, name: str) -> None:
        """Count a row without a file."""
        self.lost += 1
        if len(self.lost_names) < MAX_REPORTED:
            self.lost_names.append(name)

    def note_unreadable(self, name: str, reason: object) -> None:
        """Count a file that cannot be indexed."""
        self.unreadable += 1
        if len(self.unreadable_names) < MAX_REPORTED:
            self.unreadable_names.append(printable(f"{name}: {reason}"))

    def note_damaged(self, name: str, reason: str) -> None:
        """Count a file that is indexed although its data set is not whole."""
        self.damaged += 1
        if len(self.damaged_names) < MAX_REPORTED:
            self.damaged_names.append(printable(f"{name}: {reason}"))


class ReadRecord(NamedTuple):
    """
    The index record of a file.

    :ivar size: the size of the file in bytes.
    :ivar damage: why its data set is not whole, as one line; empty if it is.
    """

    record: Record
    transfer_syntax: str
    size: int
    damage: str


def read_record(file: BinaryIO, default_charset: str = "") -> ReadRecord:
    """
    Read the index record from a file that is open at its beginning.

    :raises NotDicomFile: it is not a DICOM file.
    :raises HeaderError: its data set cannot be read up to the UIDs.
    :raises InvalidUID: a UID is missing or invalid.
    :raises OSError: it cannot be read.
    """
    meta, start = read_file_meta(file)
    if not meta.transfer_syntax_uid:
        raise NotDicomFile(NO_TRANSFER_SYNTAX)
    scanner = scanner_for(meta.transfer_syntax_uid)
    try:
        while piece := file.read(_PIECE):
            if scanner.feed(piece):
                break
        else:
            scanner.finish()
    except HeaderError:
        if not scanner.values.keys() >= _UIDS:
            raise
    record = make_record(scanner.values, meta.transfer_syntax_uid, default_charset)
    check_uids(*record.uids)
    _, damage = examine(file, start, meta.transfer_syntax_uid)
    return ReadRecord(record, meta.transfer_syntax_uid, file.seek(0, os.SEEK_END), damage)


_UIDS: Final = WANTED & {0x00080016, 0x00080018, 0x0020000D, 0x0020000E}


def reconcile(
    archive: Archive,
    progress: Callable[[Reconciled], None] = lambda _: None,
    *,
    in_use: bool = False,
    all_files: bool = False,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Reconciled:
    """
    Compare files and index, then add and remove rows until both agree.

    Other processes that share the archive may store instances meanwhile, as workers do whose supervisor has found room on the
    disk again: each instance that seems to lack a file or a row is locked, and looked at again.

    :param archive: the archive, open.
    :param in_use: whether this process stores instances meanwhile.
    :param all_files: whether files that have a row are read again as well.
    :param progress: called after every few hundred files that had to be indexed.
    :param is_wanted: asked between series, and between files that are read, whether to go on.
    :raises OSError: the folder cannot be read.
    :raises IndexFailed: the database refused.
    :raises NotWanted: *is_wanted* has returned false. Files and rows that were compared agree; the others are as before.
    """
    found = Reconciled()

    def check_wanted() -> None:
        if not is_wanted():
            raise NotWanted("the comparison of files and index was given up")

    store: Storage = archive.store
    index: InstanceIndex = archive.index
    adding = _Adding(archive, found, progress, check_wanted, in_use=in_use, all_files=all_files)
    announced = [] if in_use else index.announced()  # those of replacements under way
    for uids in announced:
        if store.exists(*uids):
            adding.add(uids, replaced=True)
    adding.flush()
    hidden = _Hidden(found)
    deleted = {removed.uids for removed in archive.unpurged()}
    lost: list[InstanceUIDs] = []
    # If the comparison ends early, the traceback keeps generators alive, and that of the rows holds the lock of the index.
    with _closing(store.series(hidden.add)) as on_disk, _closing(index.files()) as in_index:
        for folder, files, rows in _merged(on_disk, in_index):
            check_wanted()
            missing = files - rows
            found.instances += 0 if all_files else len(files) - len(missing)
            for uid in sorted(files if all_files else missing):
                adding.add((*folder, uid))
            if hidden.contains(folder):
                # Nobody knows whether its files are there: queries still find them.
                found.instances += len(rows)
                continue
            for uid in sorted(rows - files):
                lost.append((*folder, uid))
    adding.flush()
    for start in range(0, len(lost), _ROWS):
        check_wanted()
        _remove(archive, lost[start : start + _ROWS], found, deleted, in_use=in_use)
    if announced and not hidden:
        with _locked(archive, announced):
            index.forget_announced(announced)
    return found


def check(
    archive: Archive, progress: Callable[[Reconciled], None] = lambda _: None, *, all_files: bool = False
) -> Reconciled:
    """
    Compare files and index as :func:`reconcile` does, while the archive is in use.

    :param all_files: whether each file is read and its row made again.
    :raises OSError: the folder cannot be read.
    :raises IndexFailed: the database refused.
    :raises StoreError: the archive is closed, or has no room.
    """
    archive.catch_up()
    return reconcile(archive, progress, in_use=True, all_files=all_files)


def remove_missing(archive: Archive, instances: Collection[InstanceUIDs]) -> list[InstanceUIDs]:
    """
    Remove the rows of instances whose files are missing, unless they cannot be seen for now.

    :returns: the instances that had a row.
    :raises IndexFailed: the database refused.
    :raises StoreError: the archive is closed, or has no room.
    """
    archive.add_rows()
    wanted = set(instances)
    rows = {row.uids for row in archive.index.find_instances({uids[2] for uids in wanted})} & wanted
    if not rows:
        return []

    def remove() -> list[InstanceUIDs]:
        with _locked(archive, sorted(rows)):
            lost = [uids for uids in sorted(rows) if archive.store.is_gone(*uids)]
            archive.index.remove(lost)
        return lost

    return archive.alone(remove)


def _locked(archive: Archive, instances: Sequence[InstanceUIDs]) -> AbstractContextManager[None]:
    """Lock *instances* against the other processes that share the archive, if there are any."""
    return nullcontext() if archive.journal is None else archive.journal.locked(instances)


def _remove(
    archive: Archive,
    instances: Sequence[InstanceUIDs],
    found: Reconciled,
    deleted: Set[tuple[str, ...]],
    *,
    in_use: bool,
) -> None:
    """Remove the rows of instances that have no file."""

    def remove() -> list[InstanceUIDs]:
        with _locked(archive, instances):
            lost = [uids for uids in instances if not archive.store.exists(*uids)]
            archive.index.remove(lost)
        return lost

    lost = archive.alone(remove) if in_use else remove()
    found.instances += len(instances) - len(lost)
    for uids in lost:
        if deleted and not deleted.isdisjoint((uids[:1], uids[:2], uids)):
            found.deleted += 1
            continue
        found.note_lost(archive.store.name(*uids))


@contextmanager
def _closing(iterator: Iterator[_T]) -> Iterator[Iterator[_T]]:
    """Close *iterator* at the end, if it is a generator."""
    try:
        yield iterator
    finally:
        if isinstance(iterator, Generator):
            iterator.close()


class _Hidden:
    """The studies and series whose folders cannot be read. Their rows stay in the index."""

    def __init__(self, found: Reconciled) -> None:
        self._found = found
        self._folders: set[_Folder] = set()

    def add(self, study_uid: str, series_uid: str, reason: OSError) -> None:
        self._folders.add((study_uid, series_uid))
        self._found.note_unreadable(f"{study_uid}/{series_uid}".rstrip("/"), reason.strerror or str(reason))

    def contains(self, folder: _Folder) -> bool:
        return folder in self._folders or (folder[0], "") in self._folders

    def __bool__(self) -> bool:
        return bool(self._folders)


def repair(archive: Archive, process: str) -> int:
    """
    Repair what another process of the archive left behind when it died.

    An instance that it was about to commit is added to the index if the file exists, and removed from the index if not. Its
    temporary files are removed.

    :param archive: the archive, open and in use.
    :param process: the name of the process that died.
    :returns: the number of instances that it was about to commit.
    :raises OSError: a file could not be read.
    :raises IndexFailed: the database refused.
    """
    assert archive.journal is not None
    beginning, instances = uncommitted(archive.root / FOLDER, process)
    failure: OSError | IndexFailed | None = None
    for uids in instances:
        try:
            with archive.journal.locked([uids]):
                _repair(archive, uids)
        except RowRefused:
            continue  # the next start says so
        except (OSError, IndexFailed) as error:
            failure = error
    archive.store.temporary_files.remove_of(beginning)
    if beginning:
        for removed in archive.store.removed.left(beginning):
            _complete(archive, removed)
    if failure is not None:
        raise failure
    return len(instances)


def _complete(archive: Archive, removed: Removed) -> None:
    """Remove the rows and the files of a study, a series or an instance that a process has taken away."""
    assert archive.journal is not None
    study_uid = removed.uids[0]
    with archive.journal.study_locked(study_uid):
        # Another process may have stored some of its instances again.
        rows = [
            (study_uid, series_uid, uid)
            for series_uid, uid in archive.index.instances_below(removed.uids)
            if not archive.store.exists(study_uid, series_uid, uid)
        ]
        archive.index.remove(rows)
    for _ in archive.purge(removed):
        pass


def _repair(archive: Archive, uids: InstanceUIDs) -> None:
    if not archive.store.exists(*uids):
        archive.index.remove([uids])
        return
    try:
        row, _ = _stored_row(archive, uids, replaced=uids in archive.index.announced())
    except (OSError, IndexFailed):
        raise
    except Exception:
        return  # the file was there before that process, and could not be indexed then either
    archive.index.add([row])


def _stored_row(archive: Archive, uids: InstanceUIDs, *, replaced: bool) -> tuple[IndexRow, str]:
    """
    Read the row of a file of the archive, and why its data set is not whole.

    :param replaced: whether the file replaces another one, so that its sender was allowed to change what the index has. The
        sender of any other file is unknown, and the file changes nothing that is in the index already.
    """
    with archive.store.open(*uids) as file:
        record, transfer_syntax, size, damage = read_record(file, archive.default_charset)
        stored_at = None if replaced else os.fstat(file.fileno()).st_mtime
    return IndexRow(record, transfer_syntax, size, replaces=True, stored_at=stored_at), damage


def _merged(
    on_disk: Iterator[tuple[_Folder, set[str]]], in_index: Iterator[tuple[str, str, list[str]]]
) -> Iterator[tuple[_Folder, set[str], set[str]]]:
    """Merge the files on the disk and the rows of the index, both sorted by folder: yield folder, files and rows."""
    disk = next(on_disk, None)
    rows = next(in_index, None)
    while disk is not None or rows is not None:
        row_folder = rows[:2] if rows is not None else None
        if disk is not None and (row_folder is None or disk[0] <= row_folder):
            same = disk[0] == row_folder
            yield disk[0], disk[1], set(rows[2]) if same and rows is not None else set()
            disk = next(on_disk, None)
            if not same:
                continue
        elif row_folder is not None and rows is not None:
            yield row_folder, set(), set(rows[2])
        rows = next(in_index, None)


class _Adding:
    """Adds files to the index, a few hundred in one transaction."""

    def __init__(
        self,
        archive: Archive,
        found: Reconciled,
        progress: Callable[[Reconciled], None],
        check_wanted: Callable[[], None],
        *,
        in_use: bool,
        all_files: bool,
    ) -> None:
        self._check_wanted = check_wanted
        self._in_use = in_use
        self._all_files = all_files
        self._archive = archive
        self._found = found
        self._progress = progress
        self._waiting: dict[InstanceUIDs, bool] = {}

    def add(self, uids: InstanceUIDs, *, replaced: bool = False) -> None:
        """Add an instance, with some hundreds of others."""
        self._waiting[uids] = replaced
        if len(self._waiting) >= (_ROWS_IN_USE if self._in_use else _ROWS):
            self.flush()

    def flush(self) -> None:
        """Add all instances that wait."""
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        if self._in_use:
            self._archive.alone(lambda: self._flush(waiting))
        else:
            self._flush(waiting)
        self._progress(self._found)

    def _flush(self, waiting: dict[InstanceUIDs, bool]) -> None:
        with _locked(self._archive, list(waiting)):
            if self._archive.journal is not None or self._in_use:
                self._leave_out_stored(waiting)
            rows = [row for uids, replaced in waiting.items() if (row := self._read(uids, replaced)) is not None]
            if rows:
                self._add(rows)

    def _leave_out_stored(self, waiting: dict[InstanceUIDs, bool]) -> None:
        """Leave out what another process has stored, or removed, since the folders were read."""
        rows = set()
        if not self._all_files:
            rows = {row.uids for row in self._archive.index.find_instances({uids[2] for uids in waiting})}
        for uids, replaced in list(waiting.items()):
            if not replaced and uids in rows:
                self._found.instances += 1
            elif self._archive.store.exists(*uids):
                continue
            del waiting[uids]

    def _read(self, uids: InstanceUIDs, replaced: bool) -> IndexRow | None:
        self._check_wanted()
        path = self._archive.store.locate(*uids)
        try:
            row, damage = _stored_row(self._archive, uids, replaced=replaced)
        except Exception as error:
            # A file with any content fails alone.
            self._found.note_unreadable(path, loggable(error))
            return None
        if row.record.uids != uids:
            self._found.note_unreadable(path, "its name is not the name of the instance in it")
            return None
        if damage:
            # It is all that is left of the instance, or a peer has sent it so: queries find it.
            self._found.note_damaged(path, damage)
        return row

    def _add(self, rows: list[IndexRow]) -> None:
        try:
            self._archive.index.add(rows)
        except (RowRefused, ValueError, TypeError, OverflowError) as error:
            if len(rows) > 1:
                # One of them is the cause.
                for row in rows:
                    self._add([row])
                return
            self._found.note_unreadable(self._archive.store.locate(*rows[0].record.uids), error)
        else:
            self._found.indexed += len(rows)
