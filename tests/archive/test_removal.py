"""Deletion in the archive: each level, the inbox, kills and failures at each step, deletions beside stores and processes."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from unittest import mock

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.index.index import FOLDER, Index, IndexFailed
from dicomtwist.archive.integrity import Reference, verify
from dicomtwist.archive.query.compiler import Negotiated
from dicomtwist.archive.recovery import reconcile, repair
from dicomtwist.archive.removal.holds import Hold, StudyLocked
from dicomtwist.archive.removal.remover import NotInArchive
from dicomtwist.archive.storage.process_locks import CommitJournal
from dicomtwist.archive.storage.removed import RemovedFiles
from dicomtwist.archive.storage.types import Durability, InvalidUID
from dicomtwist.dimse.status import NO_SUCH_SOP_INSTANCE
from tests.archive.inbox.common import InboxTestCase, Killed, Mortal, SmallInbox, die, large
from tests.archive.samples import SECONDARY_CAPTURE, ask, dataset, handed

STUDY = ("1.2.1",)
KEPT = dataset(1, study=2, PatientID="Q")


def _arm(step: int, system: Mortal) -> None:
    system.arm(step, 0)


class RemovalTestCase(InboxTestCase):
    def forget(self, *uids: str) -> None:
        """Expect that the archive does not have a study, a series or an instance any more."""
        for one in [one for one in self.acknowledged if one[: len(uids)] == uids]:
            del self.acknowledged[one]

    def files(self) -> dict[Any, bytes]:
        return {uids: content for uids, content in super().files().items() if not uids[0].startswith(".")}

    def hidden(self) -> list[str]:
        return sorted(path.name for path in self.root.glob(".removed-*"))

    def purge(self, archive: Archive) -> None:
        for removed in archive.unpurged():
            for _ in archive.purge(removed):
                pass


class Levels(RemovalTestCase):
    """Studies, series and instances, with an inbox and without."""

    def test_each_level(self) -> None:
        for inbox in (True, False):
            self.root, self.acknowledged = Path(self.mktemp()), {}
            archive = self.open(inbox=inbox)
            self.kept(archive, KEPT, *(dataset(number, series) for series in (1, 2, 3) for number in (1, 2)), large(7))
            for uids, instances, left, entities in (
                (("1.2.1", "1.2.1.1", "1.2.1.1.2"), 1, 7, (2, 2, 4)),
                (("1.2.1", "1.2.1.2", "1.2.1.2.2"), 1, 6, (2, 2, 4)),
                (("1.2.1", "1.2.1.2", "1.2.1.2.1"), 1, 5, (2, 2, 3)),
                (("1.2.1", "1.2.1.3"), 2, 3, (2, 2, 2)),
                (("1.2.1",), 2, 1, (1, 1, 1)),
            ):
                deleted = archive.delete(uids)
                self.assertEqual(deleted.instances, instances, uids)
                self.assertEqual(set(deleted.series) - {uids[1] if len(uids) > 1 else "1.2.1.1"}, set())
                self.forget(*uids)
                self.check(archive)
                counts = archive.index.counts()
                levels = (Level.PATIENT, Level.STUDY, Level.SERIES)
                self.assertEqual(tuple(counts[level] for level in levels), entities)
                self.assertEqual(counts[Level.IMAGE], left)
                answers = ask(archive, "IMAGE", negotiated=Negotiated(relational=True), StudyInstanceUID=uids[0])
                self.assertEqual(len(answers), left - 1)
                with self.assertRaises(NotInArchive):
                    archive.delete(uids)
            self.assertEqual(sorted(path.name for path in self.root.glob("1*")), ["1.2.2"])
            self.assertEqual(verify(archive, [Reference(SECONDARY_CAPTURE, "1.2.1.1.1")], []), [NO_SUCH_SOP_INSTANCE])
            self.purge(archive)
            self.assertEqual(self.hidden(), [])
            self.kept(archive, dataset(1), large(7))
            self.check(archive)

    def test_a_study_of_two_patients(self) -> None:
        archive = self.open()
        self.kept(archive, dataset(1), dataset(2, series=2, PatientID="Q"))
        self.assertEqual(archive.delete(STUDY).instances, 2)
        self.forget(*STUDY)
        self.check(archive)

    def test_what_was_removed_by_hand(self) -> None:
        """A study without files still has rows, and a study without rows has files."""
        archive = self.open(inbox=False)
        self.kept(archive, dataset(1), dataset(2))
        self.path(1).unlink()
        self.path(2).unlink()
        self.assertEqual(archive.delete(("1.2.1", "1.2.1.1", "1.2.1.1.1")).instances, 1)
        self.assertEqual(list(self.root.glob("1*")), [])
        self.assertEqual(archive.delete(STUDY).instances, 1)
        self.assertEqual(archive.index.counts()[Level.PATIENT], 0)
        self.kept(archive, dataset(1))
        archive.index.remove([("1.2.1", "1.2.1.1", "1.2.1.1.1")])
        self.assertEqual(archive.delete(STUDY).instances, 0)
        self.assertEqual(self.files(), {})

    def test_links(self) -> None:
        """Series and studies on another disk are deleted there; what is no instance stays there."""
        archive = self.open(inbox=False)
        self.kept(archive, dataset(1), dataset(1, series=2))
        disk = self.root.parent / f"{self.root.name}-disk"
        disk.mkdir()
        series = self.root / "1.2.1" / "1.2.1.2"
        series.rename(disk / "1.2.1.2")
        series.symlink_to(os.path.relpath(disk / "1.2.1.2", series.parent))
        (disk / "1.2.1.2" / "notes").write_text("of others")
        archive.delete(STUDY)
        self.purge(archive)
        self.assertEqual([path.name for path in disk.rglob("*")], ["1.2.1.2", "notes"])
        self.kept(archive, dataset(1))
        study = self.root / "1.2.1"
        study.rename(disk / "1.2.1")
        study.symlink_to(os.path.relpath(disk / "1.2.1", self.root))
        archive.delete(STUDY)
        self.purge(archive)
        self.assertEqual(sorted(path.name for path in disk.rglob("*")), ["1.2.1.2", "notes"])
        self.assertEqual(self.hidden(), [])

    def test_uids(self) -> None:
        archive = self.open()
        for uids in (("..",), ("1.2", "."), ("1.2", "1.3", "a"), ("",)):
            with self.assertRaises(InvalidUID):
                archive.delete(uids)

    def test_a_reader_under_way(self) -> None:
        archive = self.open(inbox=False)
        self.kept(archive, large(1))
        with archive.store.open("1.2.1", "1.2.1.1", "1.2.1.1.1") as file:
            archive.delete(STUDY)
            self.purge(archive)
            self.assertEqual(len(file.read()), len(self.acknowledged["1.2.1", "1.2.1.1", "1.2.1.1.1"]))


class Starts(RemovalTestCase):
    """Starts after a deletion, and after a kill during one."""

    def test_the_inbox_does_not_bring_it_back(self) -> None:
        for publishes in (False, True):
            self.root, self.acknowledged = Path(self.mktemp()), {}
            archive = self.open()
            self.kept(archive, dataset(1), dataset(2), KEPT)
            if publishes:
                archive.make_files()
            archive.delete(STUDY)
            self.forget(*STUDY)
            die(archive)
            self.check(self.start_again())

    def test_the_inbox_keeps_what_came_later(self) -> None:
        archive = self.open()
        self.kept(archive, dataset(1), dataset(2))
        archive.delete(STUDY)
        self.forget(*STUDY)
        self.kept(archive, dataset(2, PatientComments="later"))
        die(archive)
        self.check(self.start_again())

    def test_killed_at_each_step(self) -> None:
        """The study is there as a whole, or gone, whatever a power cut takes as well."""
        chance = random.Random(16)
        outcomes: set[str] = set()
        for inbox in (True, False):
            for uids in (STUDY, ("1.2.1", "1.2.1.1", "1.2.1.1.1")) if inbox else (("1.2.1", "1.2.1.1"),):
                step = 0
                while self._is_killed(inbox, uids, chance, outcomes, partial(_arm, step)):
                    step += 1
                self.assertGreater(step, 3)
        self.assertEqual(outcomes, {"whole", "gone"})

    def test_killed_beside_the_index(self) -> None:
        outcomes: set[str] = set()
        original = Index.remove_below

        def before(index: Index, uids: Any) -> int:
            raise Killed

        def after(index: Index, uids: Any) -> int:
            original(index, uids)
            raise Killed

        for inbox in (True, False):
            for kill in (before, after):
                with (
                    mock.patch.object(Index, "remove_below", kill),
                    mock.patch.object(RemovedFiles, "put_back", side_effect=Killed),
                ):
                    self.assertTrue(self._is_killed(inbox, STUDY, random.Random(1), outcomes, lambda system: None))
        self.assertEqual(outcomes, {"gone"})

    def _is_killed(
        self,
        inbox: bool,
        uids: tuple[str, ...],
        chance: random.Random,
        outcomes: set[str],
        arm: Callable[[Mortal], object],
    ) -> bool:
        """Delete, and start again; return whether the program died before."""
        self.root, self.acknowledged = Path(self.mktemp()), {}
        system = Mortal()
        archive = self.open(inbox=inbox, file_system=system)
        self.kept(archive, dataset(1), dataset(2), dataset(1, series=2), KEPT)
        if chance.random() < 0.5:
            archive.make_files()
        arm(system)
        killed = False
        try:
            archive.delete(uids)
        except Killed:
            killed = True
        system.arm(-1, 0)
        die(archive)
        if killed and chance.random() < 0.5:
            system.cut_power(self.root, chance)
        before = dict(self.acknowledged)
        self.forget(*uids)
        archive = self.open(inbox=inbox)
        found = reconcile(archive)
        self.assertEqual(found.lost, 0, found.lost_names)
        if killed and self.files().keys() & (before.keys() - self.acknowledged.keys()):
            self.acknowledged = before
            outcomes.add("whole")
        else:
            outcomes.add("gone")
        self.check(archive)
        self.purge(archive)
        self.assertEqual(self.hidden(), [])
        archive.close()
        return killed

    def test_killed_while_files_are_removed(self) -> None:
        archive = self.open()
        self.kept(archive, *(dataset(number) for number in range(1, 6)), KEPT)
        deleted = archive.delete(STUDY)
        self.forget(*STUDY)
        assert deleted.files is not None
        steps = archive.purge(deleted.files)
        next(steps)
        die(archive)
        archive = self.start_again()
        self.kept(archive, dataset(3))
        self.purge(archive)
        self.assertEqual(self.hidden(), [])
        self.check(archive)


class Failures(RemovalTestCase):
    """Failures at each step: the study is there as before."""

    def test_each_step(self) -> None:
        for inbox in (True, False):
            system = Mortal()
            self.root, self.acknowledged = Path(self.mktemp()), {}
            archive = self.open(inbox=inbox, file_system=system)
            self.kept(archive, KEPT)
            step, failed = 0, True
            while failed:
                self.kept(archive, dataset(1), dataset(2))
                system.arm(step, errno.EIO)
                try:
                    archive.delete(STUDY)
                except OSError:
                    failed = bool(system.failed)
                    system.arm(-1, 0)
                else:
                    failed = bool(system.failed)
                    system.arm(-1, 0)
                    self.forget(*STUDY)
                self.check(archive)
                step += 1
            self.assertGreater(step, 3)

    def test_the_index_refuses(self) -> None:
        for inbox in (True, False):
            self.root, self.acknowledged = Path(self.mktemp()), {}
            archive = self.open(inbox=inbox)
            self.kept(archive, dataset(1), dataset(1, series=2), KEPT)
            for uids in (STUDY, ("1.2.1", "1.2.1.1"), ("1.2.1", "1.2.1.1", "1.2.1.1.1")):
                with (
                    mock.patch.object(Index, "remove_below", side_effect=IndexFailed("index: no")),
                    self.assertRaises(IndexFailed),
                ):
                    archive.delete(uids)
                self.check(archive)
                self.assertEqual(self.hidden(), [])

    def test_locked_meanwhile(self) -> None:
        """A study stays that is locked at any time before it is gone."""
        archive = self.open()
        self.kept(archive, dataset(1), dataset(1, series=2), KEPT)
        lock = Hold("case 17", "anna", 1.0)

        def wanted() -> str:
            archive.holds.put("1.2.1", lock)
            return ""

        with self.assertRaises(StudyLocked):
            archive.delete(STUDY, wanted)
        self.check(archive)
        take = RemovedFiles.take

        def locked(removed: RemovedFiles, uids: Any) -> Any:
            archive.holds.put("1.2.1", lock)
            return take(removed, uids)

        for uids in (STUDY, ("1.2.1", "1.2.1.1"), ("1.2.1", "1.2.1.1", "1.2.1.1.1")):
            archive.holds.remove("1.2.1")
            with mock.patch.object(RemovedFiles, "take", locked), self.assertRaises(StudyLocked):
                archive.delete(uids)
            self.check(archive)
            self.assertEqual(self.hidden(), [])

    def test_without_room(self) -> None:
        """A full archive deletes; what is left in its inbox might come back, so that it does not then."""
        archive = self.open()
        self.kept(archive, dataset(1), KEPT)
        archive.refuse("full")
        archive.delete(STUDY)
        self.forget(*STUDY)
        self.check(archive)


class BesideStores(RemovalTestCase):
    """Deletions while instances are stored."""

    def test_stores_and_deletions(self) -> None:
        """Each instance is stored before a deletion or after it; files and rows are the same in the end."""
        archive = self.open(kind=SmallInbox)
        failures: list[BaseException] = []

        def store(series: int) -> None:
            for number in range(40):
                for made in (dataset(number % 4, series, PatientComments=str(number)), large(50 + series)):
                    outcome: SimpleQueue[BaseException | None] = SimpleQueue()
                    archive.keep(handed(made), outcome.put)
                    error = outcome.get(timeout=60)
                    if error is not None:
                        failures.append(error)

        def delete() -> None:
            for number in range(40):
                try:
                    archive.delete((STUDY, ("1.2.1", "1.2.1.2"), ("1.2.1", "1.2.1.1", "1.2.1.1.3"))[number % 3])
                except NotInArchive:
                    pass
                except BaseException as error:
                    failures.append(error)

        threads = [threading.Thread(target=store, args=(series,)) for series in (1, 2, 3)]
        threads += [threading.Thread(target=delete) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        self.assertEqual(failures, [])
        archive.catch_up()
        found = self.files()
        self.assertEqual({one.uids for one in archive.index.find_instances({uids[2] for uids in found})}, set(found))
        self.assertEqual(archive.index.counts()[Level.IMAGE], len(found))
        die(archive)
        self.start_again()
        self.assertEqual(self.files(), found)

    def test_turns(self) -> None:
        """A deletion waits for the commit under way, and the instances behind it are committed when it has ended."""
        archive = self.open(inbox=False)
        self.kept(archive, dataset(1))
        begun, goes_on = threading.Event(), threading.Event()
        original = Index.remove_below

        def held(index: Index, uids: Any) -> int:
            begun.set()
            goes_on.wait(60)
            return original(index, uids)

        with mock.patch.object(Index, "remove_below", held):
            deleting = threading.Thread(target=archive.delete, args=(STUDY,))
            deleting.start()
            self.assertTrue(begun.wait(60))
            stored = threading.Event()
            self.acknowledged.clear()
            archive.keep_all([handed(dataset(1))], lambda told, more: stored.set() if told[0][1] is None else None)
            self.assertFalse(stored.is_set())
            goes_on.set()
            deleting.join(60)
            self.assertTrue(stored.wait(60))
        self.assertEqual(list(self.files()), [("1.2.1", "1.2.1.1", "1.2.1.1.1")])


class Repeated(RemovalTestCase):
    """An instance that is sent again while its stored copy is deleted."""

    def test_the_copy_is_deleted_before_the_commit(self) -> None:
        """It is stored, although the first copy was to stay."""
        for inbox in (True, False):
            self.root, self.acknowledged = Path(self.mktemp()), {}
            archive = self.open(inbox=inbox)
            self.kept(archive, large(1))
            commits: Any = archive._commits
            original = commits.submit

            def submit(pending: Any, archive: Archive = archive, original: Any = original) -> None:
                if len(self.files()) == 1:
                    archive.delete(STUDY)
                original(pending)

            instance = handed(large(1))
            writer = archive.store.create()
            assert isinstance(instance.content, list)
            writer.write(instance.content)
            instance.content = writer.seal()
            outcomes: list[BaseException | None] = []
            with mock.patch.object(commits, "submit", submit):
                archive.keep(instance, outcomes.append)
            self.assertEqual(outcomes, [None])
            self.check(archive)
            again = handed(large(1))
            writer = archive.store.create()
            assert isinstance(again.content, list)
            writer.write(again.content)
            again.content = writer.seal()
            archive.keep(again, outcomes.append)
            self.assertEqual(outcomes, [None, None])
            self.check(archive)
            self.assertEqual(archive.store.temporary_files.unnamed, 0)
            self.assertEqual([name for name in self.incoming() if name.endswith(".part")], [])


class Processes(RemovalTestCase):
    """Several processes that share an archive."""

    durability = Durability.NONE

    def test_the_lock_of_a_study(self) -> None:
        """No process stores instances of a study while another one deletes it."""
        folder = self.root
        folder.mkdir()
        journal = CommitJournal(folder, "1", "one")
        self.addCleanup(journal.close)
        told, tells = os.pipe()
        with journal.study_locked("1.2.1"):
            process = os.fork()
            if not process:
                try:
                    other = CommitJournal(folder, "2", "two")
                    with other.locked([("1.2.2", "1.2.2.1", "1.2.2.1.1")]):
                        os.write(tells, b"other ")
                    with other.locked([("1.2.1", "1.2.1.1", "1.2.1.1.1")]):
                        os.write(tells, b"same ")
                finally:
                    os._exit(0)
            self.assertEqual(os.read(told, 100), b"other ")
            os.write(tells, b"deleted ")
        os.waitpid(process, 0)
        os.close(tells)
        self.assertEqual(os.read(told, 100), b"deleted same ")
        os.close(told)

    def test_a_process_that_died(self) -> None:
        """Its deletion is completed; what another process has stored meanwhile stays."""
        first = self.open(inbox=False, process="0")
        second = self.open(inbox=False, process="1", lock=os.dup(first.index.lock))
        self.kept(second, dataset(1), dataset(2), KEPT)
        with (
            mock.patch.object(Index, "remove_below", side_effect=Killed),
            mock.patch.object(RemovedFiles, "put_back", side_effect=Killed),
            self.assertRaises(Killed),
        ):
            second.delete(STUDY)
        self.forget(*STUDY)
        # The note of the process that died begins with the names of its temporary files.
        self.assertIn(
            second.store.temporary_files.beginning, (self.root / FOLDER / "committing-1").read_text(encoding="utf-8")
        )
        self.assertEqual(len(self.hidden()), 1)
        self.kept(first, dataset(2))
        repair(first, "1")
        self.check(first)
        self.assertEqual(self.hidden(), [])
