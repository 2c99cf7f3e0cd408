"""
The scan of folders for instances. It lists folders as it goes, and reads headers in worker threads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock
from typing import Final

from dicomtwist.datasets.identity import read_identity
from dicomtwist.part10 import NO_TRANSFER_SYNTAX, NotDicomFile
from dicomtwist.runtime.regular_files import open_regular
from dicomtwist.tools.contexts import Requirement, requirements_of

#: The number of files that a thread scans at a time.
BATCH = 128
#: The number of names of one folder that are sorted at a time, so that the memory for them has a limit.
MAX_SORTED: Final = 100_000
#: Matches a number in a name; longer ones are two numbers.
_NUMBERS: Final = re.compile(r"([0-9]{1,18})")

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
    :ivar order: its place in the order in which the instances were found.
    """

    path: str
    size: int
    changed: int
    requirement: Requirement
    attempts: int = 0
    order: int = 0


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

    :ivar number: its place in the order in which batches of files were found.
    :ivar instances: the instances to send.
    :ivar unreadable: the files and folders that should be sent and cannot.
    :ivar skipped: the number of files that are not DICOM.
    :ivar stored_before: the number of instances that the peer has stored in an earlier run.
    :ivar skipped_bytes: the size of the files that are skipped or were stored before, in bytes.
    """

    number: int = 0
    instances: list[ScannedInstance] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    skipped: int = 0
    stored_before: int = 0
    skipped_bytes: int = 0


def walk(paths: Iterable[str]) -> Iterator[os.DirEntry[str] | str | Unreadable]:
    """
    Yield the files in *paths* and in the folders below them, each folder in the order of the names in it.

    Numbers in names count as numbers: ``2.dcm`` comes before ``10.dcm``. Only the names of the open folders are in memory; a
    folder with more than :data:`MAX_SORTED` of them is sorted piece by piece. Links to files are followed; links to folders
    only if they are in *paths*.
    """
    for path in paths:
        if not os.path.isdir(path):
            # Opening a pipe or a device could block.
            yield path if os.path.isfile(path) or not os.path.exists(path) else Unreadable(path, "not a regular file")
            continue
        open_folders = [_list_folder(path)]
        try:
            while open_folders:
                entry = next(open_folders[-1], None)
                if entry is None:
                    open_folders.pop()
                    continue
                if isinstance(entry, Unreadable):
                    yield entry
                    continue
                try:
                    is_folder, is_file = entry.is_dir(follow_symlinks=False), entry.is_file()
                except OSError as error:
                    yield Unreadable(entry.path, error.strerror or str(error))  # a link in a loop
                    continue
                if is_folder:
                    open_folders.append(_list_folder(entry.path))
                elif is_file:
                    yield entry
        finally:
            for folder in open_folders:
                folder.close()


def _list_folder(path: str) -> Generator[os.DirEntry[str] | Unreadable, None, None]:
    """Yield the entries of a folder in order, and why they cannot be listed if that is so."""
    try:
        with os.scandir(path) as entries:
            while True:
                some = list(islice(entries, MAX_SORTED))
                if not some:
                    return
                some.sort(key=_natural_key, reverse=True)
                while some:
                    yield some.pop()
    except OSError as error:
        yield Unreadable(path, error.strerror or str(error))


def _natural_key(entry: os.DirEntry[str]) -> tuple[list[tuple[int, int, str]], str]:
    """Return a key that sorts names as people do: numbers by their value, before letters; equal keys by the plain name."""
    pieces = _NUMBERS.split(entry.name)
    return [
        (0, int(piece), "") if number % 2 else (1, 0, piece) for number, piece in enumerate(pieces) if piece
    ], entry.name


class Scanner:
    """
    Scans files batch by batch, from any number of threads.

    :param paths: files and folders.
    :param is_known: returns whether an instance was stored before.
    """

    def __init__(self, paths: Iterable[str], is_known: Callable[[ScannedInstance], bool]) -> None:
        self._files = walk(paths)
        self._batches = 0
        self._is_known = is_known
        self._lock = Lock()

    def next_batch(self) -> ScanBatch | None:
        """Scan the next files; return ``None`` if there are no more. Blocks, so it belongs into a worker thread."""
        with self._lock:
            files = list(islice(self._files, BATCH))
            batch = ScanBatch(self._batches)
            self._batches += 1
        if not files:
            return None
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
    found: dict[str, dict[str, None]] = {}
    for instance in find_examples(paths, most).instances:
        found.setdefault(instance.requirement[0], {})[instance.requirement[1]] = None
    return [
        requirement for sop_class, syntaxes in found.items() for requirement in requirements_of(sop_class, syntaxes)
    ][:most]


def find_examples(paths: Sequence[str], most: int) -> ScanBatch:
    """
    Return the first instance in *paths* of each SOP Class in each transfer syntax, and the files that cannot be read. Blocks,
    so it belongs into a worker thread.

    :param most: the largest number of instances, and of files that cannot be read; further ones are left out.
    """
    scanner = Scanner(paths, lambda instance: False)
    examples: dict[Requirement, ScannedInstance] = {}
    found = ScanBatch()
    while len(examples) < most:
        batch = scanner.next_batch()
        if batch is None:
            break
        found.skipped += batch.skipped
        found.unreadable += batch.unreadable[: most - len(found.unreadable)]
        for instance in batch.instances:
            examples.setdefault(instance.requirement, instance)
    found.instances = list(examples.values())[:most]
    return found


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
