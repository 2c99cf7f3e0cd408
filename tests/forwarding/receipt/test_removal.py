"""The archive removes instances that are forwarded and not kept, and nothing else."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from pydicom import Dataset
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from dicomtwist.access.rules import Requestor
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.inbox.notes import FOLDER
from dicomtwist.archive.removal.holds import Hold
from dicomtwist.archive.services.deletion import Deletion
from dicomtwist.forwarding.parsing import parse_forward
from dicomtwist.forwarding.receipt.maker import Receipt
from dicomtwist.forwarding.receipt.removal import STAYS, UnkeptRemoval
from dicomtwist.forwarding.tasks.store import TaskStore
from dicomtwist.forwarding.tasks.types import Task, TaskState
from dicomtwist.runtime.executors import Executors
from tests.archive.samples import dataset, handed

SYNTAX: Final = "1.2.840.10008.1.2.1"
TABLES: Final[list[dict[str, Any]]] = [
    {"name": "gone", "to": ["A"], "calling": ["CT*"], "keep": False},
    {"name": "kept", "to": ["B"], "calling": ["CTKEPT"]},
]


class Removal(TestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.receipt = Receipt(TaskStore(self.root / FOLDER), parse_forward(TABLES), TABLES)
        self.archive = Archive(self.root, inbox=True, tasks=self.receipt)
        self.archive.open()
        self.addCleanup(self.archive.close)
        executors = Executors(reactor)
        executors.acquire()
        self.addCleanup(executors.release)
        self.deletion = Deletion(self.archive, executors.deletion)
        self.deletion.start()
        self.addCleanup(self.deletion.stop)
        self.now = time.time()
        self.store = self.receipt.store
        self.removal = UnkeptRemoval(
            self.store, self.archive, self.deletion, executors.housekeeping, lambda: self.now + STAYS + 1
        )

    def keep(self, *made: Dataset, calling: str = "CT1") -> None:
        for one in made:
            instance = handed(one)
            instance.note = self.receipt.notes.note({}, SYNTAX, Requestor("X", calling))
            outcomes: list[Any] = []
            self.archive.keep(instance, outcomes.append)
            self.assertEqual(outcomes, [None])

    def claim(self, *peer: str) -> list[Task]:
        self.archive.settle()
        return self.store.claim(peer, 100, time.time(), 60.0, "me")

    def deliver(self, *peers: str) -> None:
        for peer in peers or ("A", "B"):
            self.store.finish([one.ends(TaskState.DONE) for one in self.claim(peer)], self.now)

    def files(self) -> set[str]:
        return {path.stem for path in self.root.glob("1.*/*/*.dcm")}

    async def test_study(self) -> None:
        self.keep(dataset(1), dataset(2, series=2))
        await self.removal.look()
        self.archive.settle()
        self.assertEqual(len(self.files()), 2, "they are not delivered")
        self.deliver()
        await self.removal.look()
        self.assertEqual(self.files(), set())
        self.assertEqual(self.deletion.instances, 2)
        # An instance that arrives once more is forwarded once more: the archive has no copy to compare it with.
        self.keep(dataset(1))
        self.deliver()
        await self.removal.look()
        self.assertEqual((self.files(), self.removal.removed), (set(), 3))

    async def test_what_stays(self) -> None:
        """An instance that is not delivered, that another rule keeps, or that no rule matches."""
        self.keep(dataset(1), dataset(2))
        self.keep(dataset(3), calling="CTKEPT")
        self.keep(dataset(4), calling="MR")
        first, *_ = tasks = self.claim("A")
        self.store.finish(
            [one.ends(TaskState.DONE if one is not first else TaskState.FAILED) for one in tasks], self.now
        )
        self.deliver("B")
        await self.removal.look()
        self.assertEqual(self.files(), {"1.2.1.1.1", "1.2.1.1.3", "1.2.1.1.4"})

    async def test_another_copy(self) -> None:
        """A copy that arrives after the look at the tasks stays until it is delivered."""
        self.keep(dataset(1))
        self.deliver()
        look = self.removal._look_at

        def look_at(study: str) -> Any:
            found = look(study)
            self.keep(dataset(1, PatientComments="new"), dataset(2))
            return found

        self.removal._look_at = look_at  # type: ignore[method-assign]
        await self.removal.look()
        self.removal._look_at = look  # type: ignore[method-assign]
        self.archive.settle()
        self.assertEqual(self.files(), {"1.2.1.1.1", "1.2.1.1.2"})
        self.deliver()
        self.now += 3600
        await self.removal.look()
        self.assertEqual(self.files(), set())

    async def test_locked(self) -> None:
        self.keep(dataset(1))
        self.deliver()
        self.archive.holds.put("1.2.1", Hold("a question", "me", self.now))
        await self.removal.look()
        self.assertEqual(self.files(), {"1.2.1.1.1"})
        self.archive.holds.remove("1.2.1")
        self.now += 3600
        await self.removal.look()
        self.assertEqual(self.files(), set())
