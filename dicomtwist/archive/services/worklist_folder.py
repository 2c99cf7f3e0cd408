"""
The folder of a worklist: its files, a cache of them, and the thread that reads them.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from dicomtwist.archive.query.compact_item import Item
from dicomtwist.archive.query.sequences import items_of
from dicomtwist.datasets.character_sets import decode_texts, decode_values
from dicomtwist.datasets.codec import DecodingLimits, decode_dataset
from dicomtwist.errors import DataSetError, loggable
from dicomtwist.part10 import NotDicomFile, read_file_meta
from dicomtwist.runtime.executors import Executor

__all__ = ["WorklistFolder", "WorklistReader", "WorklistTooSlow"]

#: The maximum number of files in a folder; more files are ignored.
MAX_FILES: Final = 100_000
#: The maximum length of a file, in bytes, also after it is inflated; a longer one is ignored.
MAX_FILE_LENGTH: Final = 1024 * 1024
#: The maximum number of elements and items in a file; a file with more is ignored.
MAX_FILE_ELEMENTS: Final = 4096
#: The maximum memory of the cache, in bytes; files beyond it are ignored.
MAX_REMEMBERED: Final = 512 * 1024 * 1024
#: The memory of an element besides its value, in bytes: 60 were measured for an item of 27 elements, and 150 if no other item
#: has elements of the same tags.
ELEMENT_SIZE: Final = 200
#: The number of ignored files that are logged each time that the folder is read.
MAX_TOLD: Final = 20
SUFFIX: Final = ".wl"

STEPS: Final = 0x00400100

_LIMITS: Final = DecodingLimits(MAX_FILE_LENGTH, MAX_FILE_ELEMENTS, MAX_FILE_ELEMENTS)

#: The state of a file: when it was changed, its length, its inode.
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Known:
    """A file in the cache: its state when it was read, its data set if it has one, and the bytes that it counts for."""

    stamp: _Stamp
    item: Item | None
    size: int


class WorklistTooSlow(OSError):
    """
    The folder was not read, or not searched, in time.

    :ivar is_working: whether it is still being read or searched, which only takes longer.
    """

    is_working = False


class WorklistFolder:
    """
    The files of a worklist. All methods block and are meant for worker threads.

    Only regular files are opened, so that no FIFO or device holds up the thread. The memory of the cache is bounded.

    :param root: the folder.
    :param unreadable: called with a message for each file that is ignored, when the file is read.
    :param default_charset: the character set of text without one, see :class:`dicomtwist.archive.archive.Archive`.

    :ivar is_stopped: whether reading shall end at the next file.
    :ivar progress: the number of files so far that were looked at or read.
    """

    def __init__(
        self, root: Path, unreadable: Callable[[str], object] = lambda why: None, *, default_charset: str = ""
    ) -> None:
        self._default_charset = default_charset
        self.root = root
        self.is_stopped = False
        self.progress = 0
        self._unreadable = unreadable
        self._untold = 0
        self._is_full = False
        #: The cached files of each folder, by path.
        self._known: dict[str, dict[str, _Known]] = {}
        self._remembered = 0
        self._lock = threading.Lock()

    def items(self, title: str) -> list[Item]:
        """
        Return the content of the files for peers that call *title*, sorted by file name.

        :raises OSError: the folder cannot be read.
        """
        return self.read([title])[title]

    def read(self, titles: Iterable[str]) -> dict[str, list[Item]]:
        """
        Read the files that are new or have changed.

        :param titles: the AE titles whose folders are read as well.
        :returns: for each title what :meth:`items` returns.
        :raises OSError: the folder cannot be read.
        """
        root = os.fspath(self.root)
        with self._lock:
            self._untold, self._is_full = 0, False
            common = self._folder(root)
            found = {title: common + self._own(title) for title in titles}
            if self._untold > MAX_TOLD:
                self._unreadable(f"{self._untold - MAX_TOLD} more files of the worklist are ignored")
        return found

    def _own(self, title: str) -> list[Item]:
        if title in ("", ".", "..") or {"/", "\0"} & set(title):
            return []
        folder = os.path.join(self.root, title)
        if os.path.isdir(folder):
            return self._folder(folder)
        self._keep(folder, {})
        return []

    def _folder(self, folder: str) -> list[Item]:
        known = self._known.get(folder, {})
        stamps = self._stamps(folder)
        self._keep(folder, {path: one for path, one in known.items() if stamps.get(path) == one.stamp})
        known = self._known.setdefault(folder, {})
        for path in sorted(stamps.keys() - known.keys()):
            if self.is_stopped:
                break
            self._load(known, path, stamps[path])
            self.progress += 1
        return [item for _, item in sorted((path, one.item) for path, one in known.items() if one.item is not None)]

    def _keep(self, folder: str, those: dict[str, _Known]) -> None:
        """Drop all files of *folder* but *those* from the cache."""
        before = self._known.pop(folder, {})
        self._remembered -= sum(one.size for one in before.values()) - sum(one.size for one in those.values())
        if those:
            self._known[folder] = those

    @property
    def files(self) -> int:
        """The number of files that are in memory, with those that are ignored."""
        return sum(len(known) for known in list(self._known.values()))

    def _stamps(self, folder: str) -> dict[str, _Stamp]:
        """Return the state of each file of *folder*."""
        found: dict[str, _Stamp] = {}
        with os.scandir(folder) as scan:
            for entry in scan:
                if self.is_stopped:
                    break
                self.progress += 1
                if not entry.name.endswith(SUFFIX) or entry.name.startswith("."):
                    continue
                if len(found) >= MAX_FILES:
                    self._tell(f"{folder} has more than {MAX_FILES} files")
                    break
                try:
                    found[entry.path] = _stamp(entry.stat())
                except FileNotFoundError:
                    continue  # the file was removed at this moment
                except OSError:
                    found[entry.path] = (0, 0, 0)  # such as a loop of symbolic links, which is told when it is opened
        return found

    def _load(self, known: dict[str, _Known], path: str, stamp: _Stamp) -> None:
        item = None
        size = ELEMENT_SIZE
        try:
            content, stamp = read_file(path)
            if self._remembered + len(content) > MAX_REMEMBERED:
                self._full()
                return
            decoded = decode_item(content, self._default_charset)
            item = Item(decoded)
            size += len(content) + ELEMENT_SIZE * _count(decoded)
        except FileNotFoundError:
            return
        except Exception as error:
            self._tell(f"{path} is ignored: {loggable(error)}")
        if self._remembered + size > MAX_REMEMBERED:
            self._full()
            return
        known[path] = _Known(stamp, item, size)
        self._remembered += size

    def _full(self) -> None:
        if not self._is_full:
            self._is_full = True
            self._unreadable(
                f"the worklist needs more than {MAX_REMEMBERED} bytes of memory, the rest of it is ignored"
            )

    def _tell(self, why: str) -> None:
        self._untold += 1
        if self._untold <= MAX_TOLD:
            self._unreadable(why)


class NotRegular(ValueError):
    """A name leads to something else than a regular file."""

    def __init__(self) -> None:
        super().__init__("it is not a regular file")


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _count(item: Dataset) -> int:
    return sum(1 for _ in item.iterall())


def read_file(path: str) -> tuple[bytes, _Stamp]:
    """
    Read a file without waiting for anybody to write it.

    :returns: its content, and its state before it was read, so that a file that grows is read again.
    :raises NotRegular: it is a FIFO, a socket, a device or a folder.
    :raises ValueError: it is longer than :data:`MAX_FILE_LENGTH`.
    :raises OSError: it cannot be read.
    """
    # A device is not even opened, which rewinds a tape; a file that has become another one meanwhile is looked at again.
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise NotRegular
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegular
        content = b""
        while len(content) <= MAX_FILE_LENGTH and (piece := file.read(MAX_FILE_LENGTH + 1 - len(content))):
            content += piece
    if len(content) > MAX_FILE_LENGTH:
        raise ValueError(f"it has more than {MAX_FILE_LENGTH} bytes")
    return content, _stamp(status)


def read_item(path: str) -> Dataset:
    """
    Read a file of a worklist, see :func:`decode_item`.

    :raises ValueError: its content is invalid; the text says why.
    :raises OSError: it cannot be read.
    """
    return decode_item(read_file(path)[0])


def decode_item(content: bytes, default_charset: str = "") -> Dataset:
    """
    Decode a file of a worklist: a file of PS3.10, or a bare data set in Implicit or Explicit VR Little Endian.

    :returns: its data set, decoded to the last element.
    :raises ValueError: its content is invalid; the text says why.
    """
    try:
        meta, start = read_file_meta(BytesIO(content))
        syntax = meta.transfer_syntax_uid
    except NotDicomFile:
        if content[128:132] == b"DICM" or len(content) < 8:
            raise
        start, syntax = 0, ExplicitVRLittleEndian if content[4:6].isalpha() else ImplicitVRLittleEndian
    item = decode_dataset(content[start:], syntax, _LIMITS)
    try:
        decode_texts(item, default_charset)
        decode_values(item)
        has_steps = bool(items_of(item, STEPS))
    except Exception as error:
        # pydicom may raise anything, depending on the value.
        raise DataSetError(f"a value cannot be decoded: {error}") from error
    if not has_steps:
        raise ValueError("it has no Scheduled Procedure Step Sequence (0040,0100)")
    return item


class WorklistReader:
    """
    Reads the folder in one thread, for all queries that wait. Each query gets the files as they are after it was asked.

    So a folder that hangs keeps one thread, and many queries at once cost one look at the folder.

    :param folder: the folder.
    :param executor: the threads that read it.
    """

    def __init__(self, folder: WorklistFolder, executor: Executor) -> None:
        self._folder = folder
        self._executor = executor
        self._waiting: dict[str, list[Deferred[list[Item]]]] = {}
        self._is_reading = False

    @property
    def is_reading(self) -> bool:
        """Whether the folder is being read, or queries wait for it."""
        return self._is_reading

    def items(self, title: str) -> Deferred[list[Item]]:
        """
        Return a Deferred with what :meth:`WorklistFolder.items` returns.

        It fails as that does, or with :class:`~dicomtwist.errors.ExecutorFull`. Cancelling it does not end the reading.
        """
        waiting: Deferred[list[Item]] = Deferred(lambda one: others.remove(one))
        others = self._waiting.setdefault(title, [])
        others.append(waiting)
        if not self._is_reading:
            self.read()
        return waiting

    def read(self) -> None:
        """Read the folder, if it is not being read."""
        if self._is_reading:
            return
        self._is_reading = True
        asked, self._waiting = self._waiting, {}
        self._executor.run(self._folder.read, list(asked)).addBoth(self._done, asked)

    @property
    def progress(self) -> int:
        """The number of files so far that were looked at or read."""
        return self._folder.progress

    @property
    def files(self) -> int:
        """The number of files that are in memory."""
        return self._folder.files

    def stop(self) -> None:
        """End the reading at the next file."""
        self._folder.is_stopped = True

    def _done(self, outcome: dict[str, list[Item]] | Failure, asked: dict[str, list[Deferred[Any]]]) -> None:
        self._is_reading = False
        if self._waiting:
            self.read()
        for title, waiting in asked.items():
            for one in [*waiting]:
                waiting.remove(one)
                if isinstance(outcome, Failure):
                    one.errback(outcome)
                else:
                    one.callback(outcome[title])
