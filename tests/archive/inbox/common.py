"""Archives with an inbox for the tests, and ends of their programs and machines."""

from __future__ import annotations

import errno
import os
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom import Dataset
from twisted.logger import ILogObserver, LogEvent, eventAsText, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.inbox.segments import Segments
from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.instance import ReceivedInstance
from dicomtwist.archive.recovery import reconcile
from dicomtwist.archive.storage.system_calls import Buffer, FileSystem
from dicomtwist.archive.storage.types import Durability, InstanceUIDs, Written
from tests.archive.samples import dataset, handed
from tests.archive.storage.test_file_store import Failing

SIZE = 64 * 1024


def large(number: int, size: int = 200_000) -> Dataset:
    """Return an instance that does not fit into the inbox."""
    made = dataset(number)
    made.add_new(0x7FE00010, "OB", bytes([number]) * size)
    return made


class SmallInbox(Archive):
    """An archive whose segments are small."""

    segment_size = SIZE
    max_segments = 3

    def _segments(self) -> Segments:
        store = self.store
        return Segments(
            store.temporary_files.folder,
            self._file_system or FileSystem(),
            durability=store.durability,
            min_free=store.min_free,
            segment_size=self.segment_size,
            max_segments=self.max_segments,
        )


def die(archive: Archive) -> None:
    """End an archive as a kill does: nothing is settled or flushed, and its descriptors and locks are gone."""
    inbox, archive._inbox, archive._write_behind = archive._inbox, None, None
    if inbox is not None:
        segments = inbox._segments
        for segment in (*segments._used.values(), *segments._ready):
            os.close(segment.fd)
        segments._used.clear()
        segments._ready.clear()
    if isinstance(archive._file_system, Mortal):
        archive._file_system.is_dead, archive._file_system.left = False, -1  # so that its last descriptors are closed
    archive.close()


class InboxTestCase(SynchronousTestCase):
    """An archive with an inbox of its own for each test."""

    durability = Durability.FULL

    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.root.parent.mkdir(parents=True, exist_ok=True)
        self.acknowledged: dict[InstanceUIDs, bytes] = {}
        self.lines: list[str] = []
        look: Any = self.look
        observer: ILogObserver = look
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def look(self, event: LogEvent) -> None:
        self.lines.append(eventAsText(event, includeTimestamp=False, includeSystem=False))

    def about(self, words: str) -> list[str]:
        return [line for line in self.lines if words in line]

    def open(self, kind: type[Archive] = SmallInbox, **options: Any) -> Archive:
        every: dict[str, Any] = {"durability": self.durability, "inbox": True} | options
        archive = kind(self.root, **every)
        archive.open()
        self.addCleanup(archive.close)
        return archive

    def store(self, archive: Archive, *made: Dataset, sender: Any = None) -> list[BaseException | None]:
        """Store instances together, note what is acknowledged, and return the outcomes in the order of the instances."""
        instances = [handed(one) for one in made]
        contents = {one: content_of(one) for one in instances}
        outcomes: dict[Any, BaseException | None] = {}
        for one in instances:
            one.sender = sender
        archive.keep_all(instances, lambda told, more: outcomes.update(told))
        self.assertEqual(len(outcomes), len(instances))
        for one, outcome in outcomes.items():
            if outcome is None:
                self.acknowledged[one.uids] = contents[one]
        return [outcomes[one] for one in instances]

    def kept(self, archive: Archive, *made: Dataset, sender: Any = None) -> None:
        self.assertEqual(self.store(archive, *made, sender=sender), [None] * len(made))

    def start_again(self, **options: Any) -> Archive:
        """Start as the server does."""
        archive = self.open(**options)
        reconcile(archive)
        return archive

    def check(self, archive: Archive, *, or_else: dict[InstanceUIDs, list[bytes]] | None = None) -> None:
        """
        Check that exactly the acknowledged instances are found, bit for bit.

        :param or_else: instances that were refused, but may be whole: they may be there as well, or instead.
        """
        archive.catch_up()
        maybe = or_else or {}
        found = self.files()
        for uids, content in self.acknowledged.items():
            self.assertIn(uids, found)
            self.assertIn(found[uids], [content, *maybe.get(uids, ())], uids)
        for uids in found.keys() - self.acknowledged.keys():
            self.assertIn(found[uids], maybe.get(uids, ()), uids)
        indexed = {row.uids for row in archive.index.find_instances({uids[2] for uids in found})}
        self.assertEqual(indexed, set(found))
        self.assertEqual(archive.index.counts()[Level.IMAGE], len(found))

    def files(self) -> dict[InstanceUIDs, bytes]:
        """Return the instances that have files, with their contents."""
        paths = self.root.glob("*/*/*.dcm")
        return {(path.parent.parent.name, path.parent.name, path.stem): path.read_bytes() for path in paths}

    def path(self, number: int = 1) -> Path:
        return self.root / "1.2.1" / "1.2.1.1" / f"1.2.1.1.{number}.dcm"

    def incoming(self) -> list[str]:
        """Return the names in the folder of the inbox, except the lock."""
        return sorted(path.name for path in (self.root / ".incoming").iterdir() if path.name != ".lock")


def content_of(instance: ReceivedInstance) -> bytes:
    """Return the file of an instance that is in memory."""
    assert not isinstance(instance.content, Written)
    return b"".join(instance.content)


class Killed(BaseException):
    """The program is dead."""


class Mortal(Failing):
    """
    A file system that fails at a call, or whose program dies at it; it knows what a power cut may take away.

    Files whose content was not flushed may be torn, and names whose folder was not flushed may vanish.

    :param state: a file for the state if the program is a process of its own, which really ends.
    """

    def __init__(self, state: Path | None = None) -> None:
        super().__init__()
        self.state = state
        self.is_dead = False
        self._flushed: set[int] = set()
        self._names: dict[str, set[str]] = {}

    def note(self, name: str, what: str) -> None:
        if self.is_dead:
            raise Killed
        try:
            super().note(name, what)
        except OSError:
            if self.code == 0:
                self.is_dead = True
                if self.state is not None:
                    self.state.write_bytes(pickle.dumps((self._flushed, self._names)))
                    os._exit(9)
                raise Killed from None
            raise

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        self._flushed.discard(os.fstat(fd).st_ino)
        return super().writev(fd, buffers)

    def fsync(self, fd: int) -> None:
        super().fsync(fd)
        self._flushed.add(os.fstat(fd).st_ino)
        self._names.pop(os.path.realpath(f"/proc/self/fd/{fd}"), None)

    def name(self, fd: int, target: str) -> None:
        super().name(fd, target)
        self._names.setdefault(os.path.realpath(os.path.dirname(target)), set()).add(target)

    def unlink(self, path: str) -> None:
        if self.is_dead:
            raise Killed
        super().unlink(path)

    def load(self) -> None:
        """Take over the state of the process that has ended."""
        assert self.state is not None
        self._flushed, self._names = pickle.loads(self.state.read_bytes())

    def cut_power(self, root: Path, chance: random.Random) -> None:
        """Take from the files below *root* what was not flushed."""
        for names in self._names.values():
            for path in map(Path, names):
                if path.exists() and chance.random() < 0.5:
                    path.unlink()
        for path in root.glob("*/*/*.dcm"):
            status = path.stat()
            if status.st_ino not in self._flushed:
                kind = chance.randrange(4)
                if kind == 0:
                    path.write_bytes(path.read_bytes()[: chance.randrange(status.st_size)])
                elif kind == 1:
                    path.write_bytes(b"")
                elif kind == 2:
                    path.write_bytes(bytes(status.st_size))


class Forgetful(FileSystem):
    """
    A file system that treats a failing sync of a file as Linux does: it tells it once, then it counts the pages as clean.

    :ivar fails: whether syncs of files with their final names fail.
    """

    def __init__(self) -> None:
        self.fails = False
        self._dirty: set[int] = set()
        self._lost: set[int] = set()

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        number = os.fstat(fd).st_ino
        self._dirty.add(number)
        self._lost.discard(number)
        return super().writev(fd, buffers)

    def fsync(self, fd: int) -> None:
        number = os.fstat(fd).st_ino
        if self.fails and number in self._dirty and os.path.realpath(f"/proc/self/fd/{fd}").endswith(".dcm"):
            self._dirty.discard(number)
            self._lost.add(number)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fsync(fd)
        self._dirty.discard(number)

    def drop_cache(self, fd: int) -> None:
        """Show what is on the medium, unless it is still to be written."""
        if os.fstat(fd).st_ino in self._lost:
            _clear(Path(os.path.realpath(f"/proc/self/fd/{fd}")))

    def cut_power(self, root: Path) -> None:
        """Leave of each instance below *root* what is on the medium."""
        for path in root.glob("*/*/*.dcm"):
            if path.stat().st_ino in self._dirty | self._lost:
                _clear(path)


def _clear(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
