"""
The scan of folders for instances. It lists folders as it goes, and reads headers in worker threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock
from typing import Protocol

from dicomtwist.datasets.identity import read_identity
from dicomtwist.part10 import NO_TRANSFER_SYNTAX, NotDicomFile
from dicomtwist.runtime.regular_files import open_regular
from dicomtwist.tools.contexts import Requirement, requirements_of

#: The number of files that a thread scans at a time.
BATCH = 128

#: Media Storage Directory Storage (PS3.4 I.4): the index of a disc, which is never sent.
DICOMDIR = "1.2.840.10008.1.3.10"


@dataclass(slots=True)
class ScannedInstance:
    """
    An instance to send.

    :ivar path: its file.
    :ivar size: the size of the file, in bytes.
    :ivar changed: the modification time of the file, in nanoseconds.
    :ivar requirement: its SOP Class UID and its Transfer Syntax UID.
    :ivar attempts: how often its association broke while it was being sent.
    """

    path: str
    size: int
    changed: int
    requirement: Requirement
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Unreadable:
    """
    A file or folder that cannot be sent.

    :ivar path: the file or folder.
    :ivar reason: why it cannot be sent, in words.
    :ivar size: the size of the file, in bytes.
    """

    path: str
    reason: str
    size: int = 0


@dataclass(slots=True)
class ScanBatch:
    """
    The result of scanning some files.

    :ivar instances: the instances to send.
    :ivar unreadable: the files and folders that should be sent and cannot.
    :ivar skipped: the number of files that are not DICOM.
    :ivar stored_before: the number of instances that the peer has stored in an earlier run.
    :ivar skipped_bytes: the size of the files that are skipped or were stored before, in bytes.
    """

    instances: list[ScannedInstance] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    skipped: int = 0
    stored_before: int = 0
    skipped_bytes: int = 0


class DirectoryEntries(Protocol):
    """The iterator that ``os.scandir`` returns."""

    def __next__(self) -> os.DirEntry[str]:
        """Return the next entry."""

    def close(self) -> None:
        """Close the folder."""


def walk(paths: Iterable[str]) -> Iterator[os.DirEntry[str] | str | Unreadable]:
    """
    Yield the files in *paths* and in the folders below them, without holding the whole list in memory.

    Links to files are followed; links to folders only if they are in *paths*.
    """
    for path in paths:
        if not os.path.isdir(path):
            # Opening a pipe or a device could block.
            yield path if os.path.isfile(path) or not os.path.exists(path) else Unreadable(path, "not a regular file")
            continue
        open_folders: list[DirectoryEntries] = []
        try:
            yield from _enter(path, open_folders)
            while open_folders:
                try:
                    entry = next(open_folders[-1])
                except StopIteration:
                    open_folders.pop().close()
                    continue
                except OSError as error:
                    open_folders.pop().close()
                    yield Unreadable(path, error.strerror or str(error))
                    continue
                try:
                    is_folder, is_file = entry.is_dir(follow_symlinks=False), entry.is_file()
                except OSError as error:
                    yield Unreadable(entry.path, error.strerror or str(error))  # a link in a loop
                    continue
                if is_folder:
                    yield from _enter(entry.path, open_folders)
                elif is_file:
                    yield entry
        finally:
            for folder in open_folders:
                folder.close()


def _enter(path: str, open_folders: list[DirectoryEntries]) -> Iterator[Unreadable]:
    try:
        open_folders.append(os.scandir(path))
    except OSError as error:
        yield Unreadable(path, error.strerror or str(error))


class Scanner:
    """
    Scans files batch by batch, from any number of threads.

    :param paths: files and folders.
    :param is_known: returns whether an instance was stored before.
    """

    def __init__(self, paths: Iterable[str], is_known: Callable[[ScannedInstance], bool]) -> None:
        self._files = walk(paths)
        self._is_known = is_known
        self._lock = Lock()

    def next_batch(self) -> ScanBatch | None:
        """Scan the next files; return ``None`` if there are no more. Blocks, so it belongs into a worker thread."""
        with self._lock:
            files = list(islice(self._files, BATCH))
        if not files:
            return None
        batch = ScanBatch()
        for file in files:
            self._look_at(file, batch)
        return batch

    def _look_at(self, file: os.DirEntry[str] | str | Unreadable, batch: ScanBatch) -> None:
        if isinstance(file, Unreadable):
            batch.unreadable.append(file)
            return
        path = os.fspath(file)
        try:
            instance = _read_header(path)
        except OSError as error:
            batch.unreadable.append(Unreadable(path, error.strerror or str(error)))
            return
        if isinstance(instance, Unreadable):
            batch.unreadable.append(instance)
        elif isinstance(instance, int):
            batch.skipped += 1
            batch.skipped_bytes += instance
        elif self._is_known(instance):
            batch.stored_before += 1
            batch.skipped_bytes += instance.size
        else:
            batch.instances.append(instance)


def _read_header(path: str) -> ScannedInstance | Unreadable | int:
    """Return the instance in a file, the reason why it cannot be sent, or the size of a file that is not DICOM."""
    # Unbuffered: one read returns all of the File Meta Information, another one the UIDs of the data set.
    with open_regular(path, buffering=0) as file:
        status = os.fstat(file.fileno())
        try:
            meta = read_identity(file)
        except NotDicomFile as error:
            file.seek(128)
            if file.read(4) == b"DICM":
                return Unreadable(path, str(error), status.st_size)
            return status.st_size
    requirement = (meta.media_storage_sop_class_uid, meta.transfer_syntax_uid)
    if requirement[0] == DICOMDIR:
        return status.st_size
    if not meta.transfer_syntax_uid:
        return Unreadable(path, NO_TRANSFER_SYNTAX, status.st_size)
    if not meta.media_storage_sop_class_uid or not meta.media_storage_sop_instance_uid:
        return Unreadable(path, "it has no SOP Class or SOP Instance UID", status.st_size)
    return ScannedInstance(path, status.st_size, status.st_mtime_ns, requirement)


def find_requirements(paths: Sequence[str], most: int) -> list[Requirement]:
    """
    Return the requirements of the instances in *paths*. Blocks, so it belongs into a worker thread.

    :param most: the largest number of requirements; further ones are left out.
    """
    scanner = Scanner(paths, lambda instance: False)
    found: dict[str, dict[str, None]] = {}
    while True:
        batch = scanner.next_batch()
        if batch is None or sum(map(len, found.values())) >= most:
            break
        for instance in batch.instances:
            found.setdefault(instance.requirement[0], {})[instance.requirement[1]] = None
    return [
        requirement for sop_class, syntaxes in found.items() for requirement in requirements_of(sop_class, syntaxes)
    ][:most]


class SizeSurvey:
    """
    Adds up the sizes of all files, from which the progress bar estimates the remaining time.

    :ivar size: the size of the files so far, in bytes.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._files = walk(paths)
        self.size = 0

    def count_next(self, count: int) -> bool:
        """Add the next *count* files; return whether there are more. Blocks, so it belongs into a worker thread."""
        for file in islice(self._files, count):
            count -= 1
            try:
                self.size += os.stat(file).st_size if not isinstance(file, Unreadable) else 0
            except OSError:
                pass  # the scanner reports it
        return not count
