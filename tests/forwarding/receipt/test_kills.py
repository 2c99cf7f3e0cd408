"""
No acknowledged instance is without its tasks: the program dies at each of its steps, and at any moment, and the next start
still delivers the copy of each instance that was acknowledged last.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from pydicom import Dataset

from dicomtwist.access.rules import Requestor
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.inbox.notes import FOLDER, Noted
from dicomtwist.archive.recovery import reconcile
from dicomtwist.archive.storage.types import InstanceUIDs, StoreError
from dicomtwist.forwarding.parsing import parse_forward
from dicomtwist.forwarding.receipt.maker import Receipt
from dicomtwist.forwarding.tasks.store import TaskStore
from dicomtwist.forwarding.tasks.types import Selection, TaskState
from tests.archive.inbox.common import InboxTestCase, Killed, Mortal, SmallInbox, content_of, die, large
from tests.archive.samples import dataset, handed

TABLES: Final = ({"name": "all", "to": ["A"], "calling": ["CT*"]},)
CT: Final = Requestor("ARCHIVE", "CT1")
SYNTAX: Final = "1.2.840.10008.1.2.1"


class DyingReceipt(Receipt):
    """The receipt, each of whose transactions is one more step at which the program dies, or the disk fails."""

    disk: Mortal | None = None

    def make(self, noted: Sequence[Noted]) -> None:
        if self.disk is not None:
            self.disk.note("tasks", "before")
        super().make(noted)
        if self.disk is not None:
            self.disk.note("tasks", "after")


def receipt_in(root: Path, tables: Sequence[Any] = TABLES) -> DyingReceipt:
    return DyingReceipt(TaskStore(root / FOLDER), parse_forward(list(tables)), tables)


class EachStep(InboxTestCase):
    """Every call of the file system, and each side of a transaction of tasks, is the last one of the program."""

    inbox = True
    #: Of so many steps one is tried: that with a kill, and that with a full disk.
    strides: Mapping[int, int] = {0: 2, errno.ENOSPC: 9}

    def setUp(self) -> None:
        super().setUp()
        self.delivered: dict[InstanceUIDs, bytes] = {}
        self.tried: dict[bytes, Dataset] = {}

    def begin(self, disk: Mortal | None = None) -> Archive:
        receipt = receipt_in(self.root)
        receipt.disk = disk
        archive = SmallInbox(self.root, durability=self.durability, inbox=self.inbox, tasks=receipt, file_system=disk)
        archive.open()
        self.addCleanup(archive.close)
        return archive

    def store(self, archive: Archive, *made: Dataset, sender: Any = None) -> list[BaseException | None]:
        instances = [handed(one) for one in made]
        contents = [content_of(one) for one in instances]
        self.tried.update(zip(contents, made, strict=True))
        outcomes: dict[Any, BaseException | None] = {}
        assert archive.tasks is not None
        for one in instances:
            one.note = archive.tasks.notes.note({}, SYNTAX, CT)
        archive.keep_all(instances, lambda told, more: outcomes.update(told))
        for one, content in zip(instances, contents, strict=True):
            if outcomes[one] is None:
                self.acknowledged[one.uids] = content
        return [outcomes[one] for one in instances]

    def deliver(self, archive: Archive) -> None:
        """Send what is to be sent, as a forwarder does, and note what arrives."""
        assert isinstance(archive.tasks, Receipt)
        store = archive.tasks.store
        for task in store.claim(("A",), 100, time.time(), 60.0, "me"):
            uids = task.study, task.series, task.instance
            try:
                with archive.store.open(*uids) as file:
                    self.delivered[uids] = file.read()
            except FileNotFoundError:
                store.finish([task.ends(TaskState.FAILED, "it is not in the archive")])
            else:
                store.finish([task.ends(TaskState.DONE)])

    def work(self, archive: Archive) -> None:
        steps: tuple[tuple[Dataset, ...] | Callable[[], object], ...] = (
            (dataset(1), dataset(2)),
            archive.move,
            partial(self.deliver, archive),
            (dataset(2), dataset(3)),
            (large(4),),
            partial(self.deliver, archive),
            (dataset(1, PatientComments="new"), large(4, 150_000)),
            archive.make_files,
            partial(self.deliver, archive),
            (dataset(3, PatientComments="new"),),
            partial(self.delete, archive),
            (dataset(2, PatientComments="came again"),),
            archive.settle,
            (dataset(5),),
        )
        for step in steps:
            if isinstance(step, tuple):
                self.store(archive, *step)
            else:
                with contextlib.suppress(OSError):
                    step()

    def delete(self, archive: Archive) -> None:
        uids = ("1.2.1", "1.2.1.1", "1.2.1.1.2")
        self.acknowledged.pop(uids, None)
        with contextlib.suppress(StoreError):
            archive.delete(uids)

    def check_delivered(self, archive: Archive, why: object) -> None:
        """Check that the copy which was acknowledged last is the one that was delivered last."""
        for uids, acknowledged in list(self.acknowledged.items()):
            with archive.store.open(*uids) as file:
                stored = file.read()
            if stored != acknowledged:
                # A replacement that was not acknowledged is there all the same, and its sender tries again.
                self.assertEqual(self.store(archive, self.tried[stored]), [None], why)
                archive.settle()
                self.deliver(archive)
            self.assertEqual(self.delivered.get(uids), stored, (why, uids))

    def test_all_steps(self) -> None:
        for code, stride in self.strides.items():
            for step in range(0, 2000, stride):
                self.root = Path(self.mktemp())
                self.acknowledged.clear()
                self.delivered.clear()
                disk = Mortal()
                archive = self.begin(disk)
                disk.arm(step, code)
                with contextlib.suppress(Killed):
                    self.work(archive)
                die(archive)
                if not disk.failed:
                    break
                archive = self.begin()
                reconcile(archive)
                archive.settle()
                self.deliver(archive)
                self.check_delivered(archive, (step, code, disk.failed))
                archive.close()
            self.assertGreater(step, 30)


class EachStepWithoutInbox(EachStep):
    """Tasks are made before success is told."""

    inbox = False
    strides: Mapping[int, int] = {0: 3, errno.ENOSPC: 11}


class AnyMoment(InboxTestCase):
    """The process is killed while threads store, move and deliver."""

    rounds = 6
    #: The instances that each thread stores again and again.
    numbers = 30

    def test_kills(self) -> None:
        chance = random.Random(20)
        self.root.mkdir()
        acknowledged: dict[int, int] = {}
        delivered: dict[int, set[int]] = {}
        first = 1
        for _ in range(self.rounds):
            for word, number, version in self.life(first, chance.randrange(5, 120)):
                if word == "stored":
                    acknowledged[number] = max(version, acknowledged.get(number, 0))
                else:
                    delivered.setdefault(number, set()).add(version)
            first += 100_000
            self.check_round(acknowledged, delivered)
        self.assertGreater(len(acknowledged), 10)

    def check_round(self, acknowledged: dict[int, int], delivered: dict[int, set[int]]) -> None:
        archive, store = _begin(self.root)
        reconcile(archive)
        archive.settle()
        while tasks := store.claim(("A",), 100, time.time(), 60.0, "parent"):
            _deliver(archive, store, tasks, lambda number, version: delivered.setdefault(number, set()).add(version))
        for number, version in acknowledged.items():
            (task,) = store.find(Selection(instance=f"1.2.1.1.{number}"), 2)
            self.assertEqual(task.state, TaskState.DONE)
            stored = _version(archive, ("1.2.1", "1.2.1.1", task.instance))
            self.assertGreaterEqual(stored, version)
            # A later one is there if the kill came before its tasks and so before its answer: its sender tries again.
            self.assertTrue({stored, version} & delivered[number] if stored > version else stored in delivered[number])
        archive.close()

    def life(self, first: int, lines: int) -> list[tuple[str, int, int]]:
        """Run a process that stores and delivers, kill it after some lines, and return what it has told."""
        reading, writing = os.pipe()
        process = os.fork()
        if not process:
            try:
                os.close(reading)
                _live(self.root, writing, first, self.numbers)
            finally:
                os._exit(1)
        os.close(writing)
        told = []
        with os.fdopen(reading) as pipe:
            for line in pipe:
                told.append(line)
                if len(told) == lines:
                    os.kill(process, signal.SIGKILL)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), -signal.SIGKILL)
        return [(word, int(number), int(version)) for word, number, version in map(str.split, told)]


def _begin(root: Path) -> tuple[Archive, TaskStore]:
    receipt = receipt_in(root)
    archive = Archive(root, inbox=True, tasks=receipt)
    archive.open()
    return archive, receipt.store


def _version(archive: Archive, uids: InstanceUIDs) -> int:
    with archive.store.open(*uids) as file:
        return int(file.read().partition(b"version ")[2][:8])


def _deliver(archive: Archive, store: TaskStore, tasks: Sequence[Any], told: Any) -> None:
    for task in tasks:
        try:
            version = _version(archive, (task.study, task.series, task.instance))
        except FileNotFoundError:
            store.finish([task.ends(TaskState.WAITING, next_try=time.time() + 0.05)])
        else:
            told(int(task.instance.rpartition(".")[2]), version)
            store.finish([task.ends(TaskState.DONE)])


def _live(root: Path, writing: int, first: int, numbers: int) -> None:
    """Store and deliver until the process is killed."""
    archive, store = _begin(root)

    def tell(word: str, number: int, version: int) -> None:
        os.write(writing, f"{word} {number} {version}\n".encode())

    def work(offset: int) -> None:
        version = first
        answers: SimpleQueue[None] = SimpleQueue()
        while True:
            version += 1
            for number in range(offset, offset + numbers):
                made = dataset(number, PatientComments=f"version {version:08d}")
                if number % 7 == 0:
                    made.add_new(0x7FE00010, "OB", bytes(150_000))
                one = handed(made)
                assert archive.tasks is not None
                one.note = archive.tasks.notes.note({}, SYNTAX, CT)

                def kept(error: BaseException | None, number: int = number, version: int = version) -> None:
                    if error is None:
                        tell("stored", number, version)
                    answers.put(None)

                archive.keep(one, kept)
            for _ in range(numbers):
                answers.get()  # a sender waits for the answer before it sends another version of an instance

    def move() -> None:
        while True:
            archive.move()

    def forward() -> None:
        while True:
            tasks = store.claim(("A",), 10, time.time(), 60.0, f"child {first}")
            _deliver(archive, store, tasks, lambda number, version: tell("sent", number, version))

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (1000, 2000)]
    threads += [threading.Thread(target=move), threading.Thread(target=forward)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
