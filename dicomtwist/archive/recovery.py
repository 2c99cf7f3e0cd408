"""
Files and index brought together: at each start, and where a folder of DICOM files is taken over.

The files are the truth. Names are compared, a series at a time; a file is read only where the index does not know it, or
where it was being replaced when the program ended.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.index import FOLDER
from dicomtwist.archive.index.interfaces import InstanceIndex
from dicomtwist.archive.index.record import WANTED, IndexRow, Record, make_record, scanner_for
from dicomtwist.archive.instance import ReceivedInstance
from dicomtwist.archive.storage.interfaces import Storage
from dicomtwist.archive.storage.process_locks import uncommitted
from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.types import InstanceUIDs, InvalidUID, StoreError, Written, check_uids
from dicomtwist.datasets.header_scanner import HeaderError
from dicomtwist.part10 import NotDicomFile, read_file_meta

__all__ = ["Import", "Reconciled", "import_folder", "read_record", "reconcile", "repair"]

#: How many rows go into one transaction.
_ROWS: Final = 500
#: How much of a file is read at once, in bytes.
_PIECE: Final = 256 * 1024
#: A file up to this size is read whole where it is imported, in bytes; a longer one is copied in pieces.
_WHOLE: Final = 1024 * 1024
#: How many instances that are imported wait for their commit.
MAX_PENDING: Final = 64
#: How many names of files are kept for the report.
MAX_REPORTED: Final = 100


@dataclass(slots=True)
class Reconciled:
    """
    What a start found.

    :ivar temporary: how many left-over temporary files were removed.
    :ivar instances: how many instances have both a file and a row.
    :ivar indexed: how many files had no row, or another one, and have it now.
    :ivar lost: how many rows had no file, and were removed.
    :ivar lost_names: some of their files.
    :ivar unreadable: how many files cannot be indexed; they stay where they are.
    :ivar unreadable_names: some of them, with the reason.
    """

    temporary: int = 0
    instances: int = 0
    indexed: int = 0
    lost: int = 0
    unreadable: int = 0
    lost_names: list[str] = field(default_factory=list)
    unreadable_names: list[str] = field(default_factory=list)

    def note_lost(self, name: str) -> None:
        """Count a row without a file."""
        self.lost += 1
        if len(self.lost_names) < MAX_REPORTED:
            self.lost_names.append(name)

    def note_unreadable(self, name: str, reason: object) -> None:
        """Count a file that cannot be indexed."""
        self.unreadable += 1
        if len(self.unreadable_names) < MAX_REPORTED:
            self.unreadable_names.append(f"{name}: {reason}")


def read_record(file: BinaryIO) -> tuple[Record, str, int]:
    """
    Read from a file, which is open at its beginning, what the index has to know.

    :returns: the record, the transfer syntax and the size of the file in bytes.
    :raises NotDicomFile: it is no DICOM file.
    :raises HeaderError: its data set cannot be read up to the UIDs.
    :raises InvalidUID: a UID is missing or none.
    :raises OSError: it cannot be read.
    """
    meta, _ = read_file_meta(file)
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
    record = make_record(scanner.values, meta.transfer_syntax_uid)
    check_uids(*record.uids)
    return record, meta.transfer_syntax_uid, file.seek(0, os.SEEK_END)


_UIDS: Final = WANTED & {0x00080016, 0x00080018, 0x0020000D, 0x0020000E}


def reconcile(archive: Archive, progress: Callable[[Reconciled], None] = lambda _: None) -> Reconciled:
    """
    Bring files and index together.

    :param archive: open, and not in use yet.
    :param progress: called after each few hundred files that had to be indexed.
    :raises OSError: the folder cannot be read.
    :raises IndexFailed: the database refused.
    """
    found = Reconciled()
    store: Storage = archive.store
    index: InstanceIndex = archive.index
    adding = _Adding(archive, found, progress)
    announced = index.announced()
    for uids in announced:
        if store.exists(*uids):
            adding.add(uids)
    on_disk = store.series()
    in_index = index.files()
    lost: list[InstanceUIDs] = []
    for folder, files, rows in _merged(on_disk, in_index):
        missing = files - rows
        found.instances += len(files) - len(missing)
        for uid in sorted(missing):
            adding.add((*folder, uid))
        for uid in sorted(rows - files):
            lost.append((*folder, uid))
            found.note_lost(store.name(*folder, uid))
    adding.flush()
    for start in range(0, len(lost), _ROWS):
        index.remove(lost[start : start + _ROWS])
    if announced:
        index.forget_announced()
    return found


def repair(archive: Archive, process: str) -> int:
    """
    See to what another process that shared the archive left behind when it died.

    What it was about to commit is in the index then if its file is there, and is not if there is none; its temporary files
    are removed.

    :param archive: open, and in use.
    :param process: the name of the process that is gone.
    :returns: how many instances it was at.
    :raises OSError: a file could not be looked at.
    :raises IndexFailed: the database refused.
    """
    assert archive.journal is not None
    beginning, instances = uncommitted(archive.root / FOLDER, process)
    for uids in instances:
        with archive.journal.locked([uids]):
            if not archive.store.exists(*uids):
                archive.index.remove([uids])
                continue
            try:
                record, transfer_syntax, size = _stored_record(archive, uids)
            except (NotDicomFile, HeaderError, InvalidUID):
                continue  # it was there before, and could not be indexed then either
            archive.index.add([IndexRow(record, transfer_syntax, size, replaces=True)])
    archive.store.temporary_files.remove_of(beginning)
    return len(instances)


def _stored_record(archive: Archive, uids: InstanceUIDs) -> tuple[Record, str, int]:
    with archive.store.open(*uids) as file:
        return read_record(file)


_Folder = tuple[str, str]


def _merged(
    on_disk: Iterator[tuple[_Folder, set[str]]], in_index: Iterator[tuple[str, str, list[str]]]
) -> Iterator[tuple[_Folder, set[str], set[str]]]:
    """Both in the order of their folders: what is on the disk, and what is in the index."""
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
    """Indexes files, some hundred in one transaction."""

    def __init__(self, archive: Archive, found: Reconciled, progress: Callable[[Reconciled], None]) -> None:
        self._archive = archive
        self._found = found
        self._progress = progress
        self._rows: list[IndexRow] = []

    def add(self, uids: InstanceUIDs) -> None:
        path = self._archive.store.locate(*uids)
        try:
            record, transfer_syntax, size = _stored_record(self._archive, uids)
        except (NotDicomFile, HeaderError, InvalidUID, OSError) as error:
            self._found.note_unreadable(path, error)
            return
        if record.uids != uids:
            self._found.note_unreadable(path, "its name is not that of the instance in it")
            return
        self._rows.append(IndexRow(record, transfer_syntax, size, replaces=True))
        if len(self._rows) >= _ROWS:
            self.flush()

    def flush(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._archive.index.add(rows)
            self._found.indexed += len(rows)
            self._progress(self._found)


# --- taking over a folder


@dataclass(slots=True)
class Import:
    """
    What came of an import so far.

    :ivar kept: how many instances are in the archive.
    :ivar skipped: how many files are no DICOM files, or none that could be archived.
    :ivar failed: how many could not be stored.
    :ivar reasons: some of the files that were not kept, with the reason.
    """

    kept: int = 0
    skipped: int = 0
    failed: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def seen(self) -> int:
        """How many files were looked at."""
        return self.kept + self.skipped + self.failed


def import_folder(
    archive: Archive,
    folder: Path,
    *,
    progress: Callable[[Import], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Import:
    """
    Copy all DICOM files below *folder* into the archive, as if a peer had sent them. Nothing in *folder* is changed.

    :param progress: called after each few hundred files, in any thread.
    :param stopped: asked before each file; the import ends where it says so.
    :returns: what came of it, when all that was begun is committed.
    :raises OSError: *folder* cannot be read.
    :raises IndexFailed: some of what was kept is not in the index, which refuses; the next start tries again.
    """
    importing = _Importing(archive, progress)
    root = os.fspath(archive.root)
    for path in _files(os.fspath(folder), os.path.realpath(root)):
        if stopped():
            break
        importing.add(path)
    importing.wait()
    archive.catch_up()
    return importing.found


def _files(folder: str, archive: str) -> Iterator[str]:
    for path, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if os.path.realpath(os.path.join(path, name)) != archive)
        yield from (os.path.join(path, name) for name in sorted(names))


def _raise(error: OSError) -> None:
    raise error


class _Importing:
    def __init__(self, archive: Archive, progress: Callable[[Import], None]) -> None:
        self.found = Import()
        self._archive = archive
        self._progress = progress
        self._places = threading.Semaphore(MAX_PENDING)
        self._lock = threading.Lock()

    def add(self, path: str) -> None:
        self._places.acquire()
        try:
            with open(path, "rb") as file:
                record, transfer_syntax, size = read_record(file)
                file.seek(0)
                content = self._content(file, size)
        except (NotDicomFile, HeaderError, InvalidUID) as error:
            self._done(path, error, skipped=True)
        except OSError as error:
            self._done(path, error)
        else:
            instance = ReceivedInstance(record.uids, transfer_syntax, content, lambda: record, record.length)
            self._archive.keep(instance, lambda error: self._done(path, error))

    def _content(self, file: BinaryIO, size: int) -> list[Buffer] | Written:
        if size <= _WHOLE:
            _, start = read_file_meta(file)
            file.seek(0)
            return [file.read(start), file.read()]
        writer = self._archive.store.create()
        try:
            while piece := file.read(_PIECE):
                writer.write([piece])
            return writer.seal()
        except BaseException:
            writer.discard()
            raise

    def _done(self, path: str, error: BaseException | None, *, skipped: bool = False) -> None:
        with self._lock:
            found = self.found
            if error is None:
                found.kept += 1
            elif skipped or isinstance(error, StoreError):
                found.skipped += 1
            else:
                found.failed += 1
            if error is not None and len(found.reasons) < MAX_REPORTED:
                found.reasons.append(f"{path}: {error}")
            report = found.seen % _ROWS == 0
        self._places.release()
        if report:
            self._progress(found)

    def wait(self) -> None:
        """Wait for what was begun."""
        for _ in range(MAX_PENDING):
            self._places.acquire()
