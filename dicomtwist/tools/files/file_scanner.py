"""
Finding instances in folders: the walk is streamed and the headers are read in worker threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock
from typing import Protocol

from dicomtwist.part10 import NotDicomFile, read_file_meta
from dicomtwist.tools.contexts import Need, needed_by

#: How many files are looked at in one go of a thread.
BATCH = 128

#: Media Storage Directory Storage (PS3.4 I.4): the index of a disc, which is not stored.
DICOMDIR = "1.2.840.10008.1.3.10"


@dataclass(slots=True)
class Instance:
    """
    An instance to store.

    :ivar path: its file.
    :ivar size: of the file, in bytes.
    :ivar changed: when the file was changed, in nanoseconds.
    :ivar need: the SOP Class and Transfer Syntax that its File Meta Information names.
    :ivar attempts: how often its association broke while it was on its way.
    """

    path: str
    size: int
    changed: int
    need: Need
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Unreadable:
    """
    What cannot be sent.

    :ivar path: the file or folder.
    :ivar reason: why, in words.
    """

    path: str
    reason: str
    size: int = 0


@dataclass(slots=True)
class Batch:
    """
    What came of looking at some files.

    :ivar instances: what can be sent.
    :ivar unreadable: what cannot, and should.
    :ivar skipped: how many are not DICOM.
    :ivar known: how many were sent before.
    :ivar passed_over: the size of those that are skipped or known, in bytes.
    """

    instances: list[Instance] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    skipped: int = 0
    known: int = 0
    passed_over: int = 0


class Folder(Protocol):
    """What ``os.scandir`` gives."""

    def __next__(self) -> os.DirEntry[str]:
        """Return the next entry."""

    def close(self) -> None:
        """Let go of the folder."""


def walk(paths: Iterable[str]) -> Iterator[os.DirEntry[str] | str | Unreadable]:
    """
    Yield the files in *paths* and in the folders in them, without ever holding the whole list.

    A link to a file is followed, one to a folder only where it is one of *paths*.
    """
    for path in paths:
        if not os.path.isdir(path):
            # A pipe or the like would keep its reader waiting.
            yield path if os.path.isfile(path) or not os.path.exists(path) else Unreadable(path, "not a regular file")
            continue
        open_folders: list[Folder] = []
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
                if entry.is_dir(follow_symlinks=False):
                    yield from _enter(entry.path, open_folders)
                elif entry.is_file():
                    yield entry
        finally:
            for folder in open_folders:
                folder.close()


def _enter(path: str, open_folders: list[Folder]) -> Iterator[Unreadable]:
    try:
        open_folders.append(os.scandir(path))
    except OSError as error:
        yield Unreadable(path, error.strerror or str(error))


class Scanner:
    """
    Looks at files, batch by batch, from any number of threads.

    :param paths: files and folders.
    :param is_known: whether an instance was sent before.
    """

    def __init__(self, paths: Iterable[str], is_known: Callable[[Instance], bool]) -> None:
        self._files = walk(paths)
        self._is_known = is_known
        self._lock = Lock()

    def next_batch(self) -> Batch | None:
        """Look at the next files, ``None`` where there are no more; blocks, and is for a worker thread."""
        with self._lock:
            files = list(islice(self._files, BATCH))
        if not files:
            return None
        batch = Batch()
        for file in files:
            self._look_at(file, batch)
        return batch

    def _look_at(self, file: os.DirEntry[str] | str | Unreadable, batch: Batch) -> None:
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
            batch.passed_over += instance
        elif self._is_known(instance):
            batch.known += 1
            batch.passed_over += instance.size
        else:
            batch.instances.append(instance)


def _read_header(path: str) -> Instance | Unreadable | int:
    """Return the instance in a file; why it cannot be sent; or the size of a file that is none."""
    # Unbuffered: one read gives all of the File Meta Information, and no more is wanted.
    with open(path, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        try:
            meta, _ = read_file_meta(file)
        except NotDicomFile as error:
            file.seek(128)
            if file.read(4) == b"DICM":
                return Unreadable(path, str(error), status.st_size)
            return status.st_size
    need = (meta.media_storage_sop_class_uid, meta.transfer_syntax_uid)
    if need[0] == DICOMDIR:
        return status.st_size
    if not all(need) or not meta.media_storage_sop_instance_uid:
        return Unreadable(path, "its File Meta Information lacks a UID that is needed", status.st_size)
    return Instance(path, status.st_size, status.st_mtime_ns, need)


def needs_of(paths: Sequence[str], most: int) -> list[Need]:
    """
    Return what the instances in *paths* need to have proposed; blocks, and is for a worker thread.

    :param most: how many presentation contexts at the most; more of them are left out.
    """
    scanner = Scanner(paths, lambda instance: False)
    found: dict[str, dict[str, None]] = {}
    while True:
        batch = scanner.next_batch()
        if batch is None or sum(map(len, found.values())) >= most:
            break
        for instance in batch.instances:
            found.setdefault(instance.need[0], {})[instance.need[1]] = None
    return [need for sop_class, syntaxes in found.items() for need in needed_by(sop_class, syntaxes)][:most]


class Survey:
    """
    Counts what there is to look at, so that the time that is left can be told; for a worker thread.

    :ivar size: how many bytes so far.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._files = walk(paths)
        self.size = 0

    def go_on(self, count: int) -> bool:
        """Count *count* more files; return whether there are more."""
        for file in islice(self._files, count):
            count -= 1
            try:
                self.size += os.stat(file).st_size if not isinstance(file, Unreadable) else 0
            except OSError:
                pass  # the scanner tells of it
        return not count
