"""
The import of a folder of DICOM files into an archive.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from twisted.logger import Logger

from dicomtwist.access.rules import Requestor
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.completeness import examine_stored
from dicomtwist.archive.index.record import Record
from dicomtwist.archive.instance import ReceivedInstance
from dicomtwist.archive.recovery import MAX_REPORTED, printable, read_record
from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.types import InstanceUIDs, InvalidUID, StoreError, Written, check_uids
from dicomtwist.datasets.header_scanner import HeaderError
from dicomtwist.errors import loggable
from dicomtwist.part10 import FileMeta, NotDicomFile, encode_preamble_and_meta, read_file_meta
from dicomtwist.runtime.regular_files import open_regular
from dicomtwist.settings import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

__all__ = ["Import", "import_folder"]

#: The number of files between two reports of the progress.
_REPORT: Final = 500
#: The number of bytes of a file that are read at once.
_PIECE: Final = 256 * 1024
#: The import reads a file of up to this size, in bytes, in one piece; it copies a longer one piece by piece.
_WHOLE: Final = 1024 * 1024
#: The number of imported instances that may wait for their commit.
MAX_PENDING: Final = 64


@dataclass(slots=True)
class Import:
    """
    The result of an import so far.

    :ivar kept: the number of files whose instances are in the archive.
    :ivar skipped: the number of files that are not DICOM files, or that cannot be archived.
    :ivar failed: the number of files that could not be stored.
    :ivar reasons: some of the files that were not stored, with the reason.
    :ivar damaged: the number of files among the *kept* ones whose data sets are not whole.
    :ivar damage: some of them, with the reason.
    """

    kept: int = 0
    skipped: int = 0
    failed: int = 0
    reasons: list[str] = field(default_factory=list)
    damaged: int = 0
    damage: list[str] = field(default_factory=list)

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
    opened. A file that is cut off, or damaged behind the indexed attributes, is imported if there is no better copy in the
    archive, and reported.

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


def _check_length(missing: int) -> None:
    """
    Check that a file had its length while it was read.

    :param missing: the number of bytes that were not there; negative if there were more.
    :raises OSError: it changed.
    """
    if missing:
        raise OSError("the file changed while it was read")


class _ImportedFile:
    """A file of an import as the sender of an instance."""

    __slots__ = ("_importing", "_path")

    #: The operator of the archive chose the folder.
    may_replace = True
    requestor = Requestor("", "")

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
                record, transfer_syntax, size, damage = read_record(file, self._archive.default_charset)
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
                record.uids,
                transfer_syntax,
                content,
                lambda: record,
                record.length,
                _ImportedFile(self, path),
                is_from_file=True,
            )
            self._archive.keep(instance, lambda error: self._kept(path, error, record.uids if damage else None))

    def _content(self, file: BinaryIO, size: int, record: Record) -> list[Buffer] | Written:
        meta, start = read_file_meta(file)
        front = _own_meta(meta, record)
        file.seek(start)
        left = size - start
        if size <= _WHOLE:
            data = file.read()
            _check_length(left - len(data))
            return [front, data]
        writer = self._archive.store.create()
        try:
            writer.write([front])
            while piece := file.read(_PIECE):
                if self._stopped():
                    raise _Interrupted
                writer.write([piece])
                left -= len(piece)
            _check_length(left)
            return writer.seal()
        except BaseException:
            writer.discard()
            raise

    def _kept(self, path: str, error: BaseException | None, damaged: InstanceUIDs | None) -> None:
        """
        Count a file that the archive has taken or refused.

        :param damaged: the UIDs of the instance if the file is not whole; the copy in the archive may be another one.
        """
        damage = ""
        if damaged is not None and error is None:
            with suppress(OSError):
                damage = examine_stored(self._archive.store, *damaged).reason
        self._done(path, error, damage=damage)

    def _done(self, path: str, error: BaseException | None, *, skipped: bool = False, damage: str = "") -> None:
        with self._lock:
            found = self.found
            if error is None:
                found.kept += 1
                if damage:
                    found.damaged += 1
                    if len(found.damage) < MAX_REPORTED:
                        found.damage.append(printable(f"{path}: {damage}"))
            elif skipped or isinstance(error, StoreError):
                found.skipped += 1
            else:
                found.failed += 1
            if error is not None and len(found.reasons) < MAX_REPORTED:
                reason = error.strerror or str(error) if isinstance(error, OSError) else loggable(error)
                found.reasons.append(printable(f"{path}: {reason}"))
            report = found.seen % _REPORT == 0
        self._places.release()
        if report:
            self._progress(found)

    def wait(self) -> None:
        """Wait for all instances that were begun."""
        for _ in range(MAX_PENDING):
            self._places.acquire()
