"""
Recovery at a start, which makes files and index agree, and the import of a folder of DICOM files.

The files are authoritative. Names are compared, one series at a time. A file is read only if the index has no row of it, or if
it was being replaced when the program ended.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from twisted.logger import Logger

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.index import FOLDER
from dicomtwist.archive.index.interfaces import InstanceIndex
from dicomtwist.archive.index.record import WANTED, IndexRow, Record, make_record, scanner_for
from dicomtwist.archive.instance import ReceivedInstance
from dicomtwist.archive.storage.interfaces import Storage
from dicomtwist.archive.storage.process_locks import uncommitted
from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.types import (
    IndexFailed,
    InstanceUIDs,
    InvalidUID,
    RowRefused,
    StoreError,
    Written,
    check_uids,
)
from dicomtwist.datasets.header_scanner import HeaderError
from dicomtwist.errors import loggable
from dicomtwist.part10 import NO_TRANSFER_SYNTAX, FileMeta, NotDicomFile, encode_preamble_and_meta, read_file_meta
from dicomtwist.runtime.regular_files import open_regular
from dicomtwist.settings import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

__all__ = ["Import", "Reconciled", "import_folder", "read_record", "reconcile", "repair"]

#: The number of rows in one transaction.
_ROWS: Final = 500
#: The number of bytes of a file that are read at once.
_PIECE: Final = 256 * 1024
#: The import reads a file of up to this size, in bytes, in one piece; it copies a longer one piece by piece.
_WHOLE: Final = 1024 * 1024
#: The number of imported instances that may wait for their commit.
MAX_PENDING: Final = 64
#: The number of file names in a report.
MAX_REPORTED: Final = 100


_Folder: TypeAlias = tuple[str, str]


def _printable(text: str) -> str:
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
    :ivar unreadable: the number of files that cannot be indexed; they stay where they are.
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
            self.unreadable_names.append(_printable(f"{name}: {reason}"))


def read_record(file: BinaryIO, default_charset: str = "") -> tuple[Record, str, int]:
    """
    Read the index record from a file that is open at its beginning.

    :returns: the record, the transfer syntax and the size of the file in bytes.
    :raises NotDicomFile: it is not a DICOM file.
    :raises HeaderError: its data set cannot be read up to the UIDs.
    :raises InvalidUID: a UID is missing or invalid.
    :raises OSError: it cannot be read.
    """
    meta, _ = read_file_meta(file)
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
    return record, meta.transfer_syntax_uid, file.seek(0, os.SEEK_END)


_UIDS: Final = WANTED & {0x00080016, 0x00080018, 0x0020000D, 0x0020000E}


def reconcile(archive: Archive, progress: Callable[[Reconciled], None] = lambda _: None) -> Reconciled:
    """
    Compare files and index, then add and remove rows until both agree.

    :param archive: the archive, open and not in use yet.
    :param progress: called after every few hundred files that had to be indexed.
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
            adding.add(uids, replaced=True)
    adding.flush()
    hidden = _Hidden(found)
    on_disk = store.series(hidden.add)
    in_index = index.files()
    lost: list[InstanceUIDs] = []
    for folder, files, rows in _merged(on_disk, in_index):
        missing = files - rows
        found.instances += len(files) - len(missing)
        for uid in sorted(missing):
            adding.add((*folder, uid))
        if hidden.contains(folder):
            # Nobody knows whether its files are there: queries still find them.
            found.instances += len(rows)
            continue
        for uid in sorted(rows - files):
            lost.append((*folder, uid))
            found.note_lost(store.name(*folder, uid))
    adding.flush()
    for start in range(0, len(lost), _ROWS):
        index.remove(lost[start : start + _ROWS])
    if announced and not hidden:
        index.forget_announced()
    return found


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
    if failure is not None:
        raise failure
    return len(instances)


def _repair(archive: Archive, uids: InstanceUIDs) -> None:
    if not archive.store.exists(*uids):
        archive.index.remove([uids])
        return
    try:
        row = _stored_row(archive, uids, replaced=uids in archive.index.announced())
    except (OSError, IndexFailed):
        raise
    except Exception:
        return  # the file was there before that process, and could not be indexed then either
    archive.index.add([row])


def _stored_row(archive: Archive, uids: InstanceUIDs, *, replaced: bool) -> IndexRow:
    """
    Read the row of a file of the archive.

    :param replaced: whether the file replaces another one, so that its sender was allowed to change what the index has. The
        sender of any other file is unknown, and the file changes nothing that is in the index already.
    """
    with archive.store.open(*uids) as file:
        record, transfer_syntax, size = read_record(file, archive.default_charset)
        stored_at = None if replaced else os.fstat(file.fileno()).st_mtime
    return IndexRow(record, transfer_syntax, size, replaces=True, stored_at=stored_at)


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

    def __init__(self, archive: Archive, found: Reconciled, progress: Callable[[Reconciled], None]) -> None:
        self._archive = archive
        self._found = found
        self._progress = progress
        self._rows: list[IndexRow] = []

    def add(self, uids: InstanceUIDs, *, replaced: bool = False) -> None:
        path = self._archive.store.locate(*uids)
        try:
            row = _stored_row(self._archive, uids, replaced=replaced)
        except Exception as error:
            # A file with any content fails alone.
            self._found.note_unreadable(path, loggable(error))
            return
        if row.record.uids != uids:
            self._found.note_unreadable(path, "its name is not the name of the instance in it")
            return
        self._rows.append(row)
        if len(self._rows) >= _ROWS:
            self.flush()

    def flush(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._add(rows)
            self._progress(self._found)

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


# --- the import of a folder


@dataclass(slots=True)
class Import:
    """
    The result of an import so far.

    :ivar kept: the number of instances that are in the archive.
    :ivar skipped: the number of files that are not DICOM files, or that cannot be archived.
    :ivar failed: the number of files that could not be stored.
    :ivar reasons: some of the files that were not stored, with the reason.
    """

    kept: int = 0
    skipped: int = 0
    failed: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def seen(self) -> int:
        """The number of files that were examined."""
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

    Folders, files and links that cannot be read are skipped, with a reason. FIFOs, sockets and devices are not
    opened.

    :param progress: called after every few hundred files, in any thread.
    :param stopped: called before each file, and between the pieces of a long one; the import ends if it returns ``True``.
    :returns: the result, after all instances that were begun are committed.
    :raises OSError: *folder* cannot be read.
    :raises IndexFailed: the index refused some of the stored instances; the next start tries again.
    """
    importing = _Importing(archive, progress, stopped)
    for path in _files(os.fspath(folder), os.stat(archive.root), importing.skip):
        if stopped():
            break
        if path is not None:
            importing.add(path)
    importing.wait()
    archive.catch_up()
    return importing.found


def _files(folder: str, archive: os.stat_result, skip: Callable[[str, str], None]) -> Iterator[str | None]:
    """
    Yield the paths of the regular files below *folder*, and ``None`` now and then, so that the caller can end the scan.

    Links to files are followed, links to folders are not.

    :param archive: the folder of the archive, which is left out.
    :param skip: called with the path of whatever else is left out, and the reason.
    :raises OSError: *folder* cannot be read.
    """
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        yield None
        folders: list[str] = []
        try:
            if os.path.samestat(os.stat(path), archive):
                continue
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if path == folder:
                raise
            skip(path, error.strerror or str(error))
            continue
        for entry in found:
            try:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                mode = entry.stat().st_mode
            except OSError as error:
                skip(entry.path, error.strerror or str(error))
                continue
            if stat.S_ISREG(mode):
                yield entry.path
            else:
                skip(entry.path, "a link to a folder" if stat.S_ISDIR(mode) else "not a regular file")
                yield None
        waiting += reversed(folders)


class _Interrupted(Exception):
    """The import is to end in the middle of a file."""


def check_sendable(record: Record, transfer_syntax: str) -> None:
    """
    Check that an instance can be sent to a peer, so that an archive that keeps it can give it back.

    :raises InvalidUID: its SOP Class or Transfer Syntax UID is missing or not a UID.
    """
    check_uids(record.sop_class_uid, transfer_syntax)


def _own_meta(meta: FileMeta, record: Record) -> bytes:
    """
    Return new File Meta Information with the UIDs of the data set: that of the file may have others, or lack them.

    The AE titles of *meta* are kept if they can be written; all else of it, as private information, is dropped.
    """
    own = FileMeta(
        record.sop_class_uid,
        record.uids[2],
        meta.transfer_syntax_uid,
        IMPLEMENTATION_CLASS_UID,
        IMPLEMENTATION_VERSION_NAME,
        *(meta.source_ae_title, meta.sending_ae_title, meta.receiving_ae_title),
    )
    try:
        return encode_preamble_and_meta(own)
    except ValueError:
        own.source_ae_title = own.sending_ae_title = own.receiving_ae_title = ""
        return encode_preamble_and_meta(own)


class _ImportedFile:
    """A file of an import as the sender of an instance."""

    __slots__ = ("_importing", "_path")

    #: The operator of the archive chose the folder.
    may_replace = True

    def __init__(self, importing: _Importing, path: str) -> None:
        self._importing = importing
        self._path = path

    def log_replacement(self, message: str, /, **fields: object) -> None:
        """Log that the file replaced an instance."""
        self._importing.log.warn(f"the import of {{path}}: {message}", path=self._path, **fields)

    def log_conflict(self, message: str, /, **fields: object) -> None:
        """Log that the file disagrees with the index, for the first ones of the import."""
        self._importing.conflicts += 1
        if self._importing.conflicts <= MAX_REPORTED:
            self._importing.log.warn(f"the import of {{path}}: {message}", path=self._path, **fields)


class _Importing:
    log = Logger()

    def __init__(self, archive: Archive, progress: Callable[[Import], None], stopped: Callable[[], bool]) -> None:
        self.found = Import()
        self.conflicts = 0
        self._archive = archive
        self._progress = progress
        self._stopped = stopped
        self._places = threading.Semaphore(MAX_PENDING)
        self._lock = threading.Lock()

    def skip(self, path: str, reason: str) -> None:
        """Count something that is not a file of an instance, or cannot be read."""
        self._places.acquire()
        self._done(path, StoreError(reason))

    def add(self, path: str) -> None:
        """Begin to store a file, when not too many others wait for their commit."""
        while not self._places.acquire(timeout=1.0):
            if self._stopped():
                return
        try:
            with open_regular(path) as file:
                record, transfer_syntax, size = read_record(file, self._archive.default_charset)
                check_sendable(record, transfer_syntax)
                file.seek(0)
                content = self._content(file, size, record)
        except _Interrupted:
            self._places.release()
        except (NotDicomFile, HeaderError, InvalidUID) as error:
            self._done(path, error, skipped=True)
        except Exception as error:
            # A file with any content fails alone.
            self._done(path, error)
        else:
            instance = ReceivedInstance(
                record.uids, transfer_syntax, content, lambda: record, record.length, _ImportedFile(self, path)
            )
            self._archive.keep(instance, lambda error: self._done(path, error))

    def _content(self, file: BinaryIO, size: int, record: Record) -> list[Buffer] | Written:
        meta, start = read_file_meta(file)
        front = _own_meta(meta, record)
        file.seek(start)
        if size <= _WHOLE:
            return [front, file.read()]
        writer = self._archive.store.create()
        try:
            writer.write([front])
            while piece := file.read(_PIECE):
                if self._stopped():
                    raise _Interrupted
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
                reason = error.strerror or str(error) if isinstance(error, OSError) else loggable(error)
                found.reasons.append(_printable(f"{path}: {reason}"))
            report = found.seen % _ROWS == 0
        self._places.release()
        if report:
            self._progress(found)

    def wait(self) -> None:
        """Wait for all instances that were begun."""
        for _ in range(MAX_PENDING):
            self._places.acquire()
