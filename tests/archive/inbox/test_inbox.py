"""The inbox: what waits becomes files and rows, leaves the segments, and survives whatever fails."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dicomtwist.access.rules import Requestor
from dicomtwist.archive.archive import Archive, DuplicateInstance, Duplicates
from dicomtwist.archive.inbox import inbox as inbox_module
from dicomtwist.archive.inbox.inbox import MAX_CONTENT
from dicomtwist.archive.index import write_behind
from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.integrity import Reference, verify
from dicomtwist.archive.recovery import reconcile
from dicomtwist.archive.storage.system_calls import FileSystem
from dicomtwist.archive.storage.types import (
    Durability,
    IndexFailed,
    ReplacementRefused,
    RowRefused,
    StoreClosed,
    StoreError,
    StoreUnusable,
)
from tests.archive.inbox.common import Forgetful, InboxTestCase, SmallInbox, die, large
from tests.archive.index.test_postgresql import empty
from tests.archive.samples import SECONDARY_CAPTURE, ask, dataset, handed
from tests.archive.storage.test_file_store import Recording


class Sender:
    """A sender that may replace instances, or may not."""

    requestor = Requestor("", "")

    def __init__(self, *, may_replace: bool = True) -> None:
        self.may_replace = may_replace

    def log_replacement(self, message: str, **fields: object) -> None:
        """Log nothing."""

    def log_conflict(self, message: str, **fields: object) -> None:
        """Log nothing."""


def take(outcomes: list[Any], told: Sequence[Any], more: bool) -> None:
    """Collect outcomes."""
    outcomes += told


class Publishing(InboxTestCase):
    """From the acknowledgement to the file."""

    def test_acknowledged_before_its_file(self) -> None:
        archive = self.open()
        before = time.time_ns()
        self.kept(archive, dataset(1))
        after = time.time_ns()
        self.assertEqual(self.files(), {})
        self.assertEqual((archive.unindexed, archive.unsettled), (1, 0))
        self.assertEqual(len(ask(archive, "STUDY")), 1)
        self.assertEqual((archive.unindexed, archive.unsettled), (0, 1))
        self.check(archive)
        self.assertTrue(
            before <= self.path().stat().st_mtime_ns <= after, "the time of the file is that of its receipt"
        )

    def test_one_write_and_one_sync_for_all(self) -> None:
        disk = Recording()
        archive = self.open(file_system=disk)
        archive.move()
        disk.calls.clear()
        self.kept(archive, *map(dataset, range(20)))
        calls = [call.split()[0] for call in disk.calls]
        sync = ["fdatasync"] if self.durability is Durability.FULL else []
        self.assertEqual(calls, ["free", "pwritev", *sync])
        self.check(archive)

    def test_order_of_times(self) -> None:
        archive = self.open()
        numbers = [5, 3, 9, 1, 7]
        self.kept(archive, *map(dataset, numbers))
        archive.catch_up()
        times = [self.path(number).stat().st_mtime_ns for number in numbers]
        self.assertEqual(times, sorted(set(times)))

    def test_times_that_cannot_be_set(self) -> None:
        class Timeless(FileSystem):
            def set_time(self, fd: int, time: int) -> None:
                raise OSError(errno.EPERM, "this file system has no times")

        archive = self.open(file_system=Timeless())
        self.kept(archive, dataset(1))
        self.check(archive)

    def test_large_ones_are_files_at_once(self) -> None:
        archive = self.open()
        self.kept(archive, large(1, MAX_CONTENT))
        self.assertTrue(self.path(1).exists())
        self.kept(archive, dataset(2))
        self.assertFalse(self.path(2).exists())
        self.check(archive)

    def test_no_more_than_so_many_wait(self) -> None:
        self.patch(inbox_module, "MAX_WAITING", 3)
        archive = self.open()
        self.kept(archive, *map(dataset, range(3)))
        self.assertEqual(len(self.files()), 0)
        self.kept(archive, dataset(3))
        self.assertEqual(len(self.files()), 3)
        self.check(archive)

    def test_segments_are_used_again(self) -> None:
        """All segments together hold far fewer instances than these, and nothing but instances calls the inbox."""
        archive = self.open()
        for start in range(0, 600, 30):
            self.kept(archive, *map(dataset, range(start, start + 30)))
            self.assertLessEqual(len(self.incoming()), SmallInbox.max_segments)
        self.check(archive)

    def test_a_stop_leaves_nothing(self) -> None:
        archive = self.open()
        self.kept(archive, *map(dataset, range(10)))
        archive.close()
        self.assertEqual(self.incoming(), [])
        self.check(self.open())

    def test_closed(self) -> None:
        archive = self.open()
        archive.close()
        (outcome,) = self.store(archive, dataset(1))
        assert isinstance(outcome, StoreError)
        self.assertEqual(self.files(), {})

    def test_the_inbox_is_closed(self) -> None:
        """An instance that comes too late becomes a file at once."""
        archive = self.open()
        assert archive._inbox is not None
        archive._inbox.close()
        archive._inbox.close()
        self.assertRaises(StoreClosed, archive._inbox._segments.append, [])
        self.kept(archive, dataset(1))
        self.assertTrue(self.path(1).exists())

    def test_postgresql(self) -> None:
        archive = self.open(engine=empty())
        self.kept(archive, *map(dataset, range(5)))
        self.check(archive)
        self.kept(archive, *map(dataset, range(5, 9)))
        die(archive)
        archive = self.start_again(engine=empty())
        self.check(archive)

    def test_commitment(self) -> None:
        """An instance in the inbox can be committed to at once: it is flushed to the medium first."""
        archive = self.open()
        self.kept(archive, dataset(1))
        damaged: list[str] = []
        self.assertEqual(verify(archive, [Reference(SECONDARY_CAPTURE, "1.2.1.1.1")], damaged), [0])
        self.assertEqual((damaged, archive.unsettled), ([], 0))


class PublishingUnsynced(Publishing):
    durability = Durability.NONE


class Settling(InboxTestCase):
    """From the file to the end of the segment."""

    def test_files_and_folders_are_flushed_before_a_segment_is_used_again(self) -> None:
        disk = Recording()
        archive = self.open(file_system=disk)
        self.kept(archive, dataset(1), dataset(2), dataset(1, series=2), dataset(1, study=2))
        archive.catch_up()
        self.assertEqual(archive.unsettled, 4)
        disk.calls.clear()
        archive.settle()
        self.assertEqual(archive.unsettled, 0)
        (renamed,) = [number for number, call in enumerate(disk.calls) if call.startswith("rename ")]
        flushed = {call.partition(" ")[2] for call in disk.calls[:renamed] if call.startswith("fsync ")}
        paths = list(self.root.glob("*/*/*.dcm"))
        self.assertEqual(len(paths), 4)
        for path in paths:
            self.assertLessEqual({str(path), *map(str, list(path.parents)[:3])}, flushed)

    def test_nothing_comes_back_that_was_settled(self) -> None:
        archive = self.open()
        self.kept(archive, *map(dataset, range(5)))
        archive.settle()
        self.path(3).unlink()
        self.acknowledged.pop(("1.2.1", "1.2.1.1", "1.2.1.1.3"))
        die(archive)
        self.check(self.start_again())

    def test_a_file_was_removed_from_outside(self) -> None:
        archive = self.open()
        self.kept(archive, dataset(1), dataset(2))
        archive.catch_up()
        self.path(1).unlink()
        archive.settle()
        self.assertEqual((archive.unsettled, self.path(1).exists(), self.path(2).exists()), (0, False, True))

    def test_a_study_was_removed_from_outside(self) -> None:
        """Between file and flush; the next instance of the study makes the folders again, flushed."""
        archive = self.open()
        self.kept(archive, dataset(1), dataset(1, study=2))
        archive.catch_up()
        shutil.rmtree(self.root / "1.2.1")
        archive.settle()
        self.assertEqual(archive.unsettled, 0)
        self.kept(archive, dataset(2))
        archive.settle()
        self.assertTrue(self.path(2).exists())

    def test_it_comes_again_after_its_file_was_removed(self) -> None:
        """Two frames hold copies, and a replacement is the last: neither comes back."""
        archive = self.open()
        self.kept(archive, dataset(1, PatientComments="first"))
        archive.catch_up()
        self.path().unlink()
        self.kept(archive, dataset(1, PatientComments="second"))
        archive.catch_up()
        self.kept(archive, dataset(1, PatientComments="third"))
        die(archive)
        archive = self.start_again()
        self.check(archive)
        self.assertIn(b"third", self.path().read_bytes())

    def test_a_large_one_comes_after_its_file_was_removed(self) -> None:
        """A new instance has no earlier copy, except in a segment."""
        archive = self.open()
        self.kept(archive, dataset(1), dataset(2))
        archive.catch_up()
        self.path(1).unlink()
        self.kept(archive, large(1))
        die(archive)
        self.check(self.start_again())

    def test_it_comes_past_a_full_inbox_after_its_file_was_removed(self) -> None:
        archive = self.open()
        self.kept(archive, dataset(1), dataset(2))
        archive.catch_up()
        self.path(1).unlink()
        assert archive._inbox is not None

        def is_full(frames: object) -> None:
            raise OSError(errno.ENOSPC, "no room for a segment")

        self.patch(archive._inbox._segments, "append", is_full)
        self.kept(archive, dataset(1, PatientComments="new"))
        self.assertIn(b"new", self.path(1).read_bytes())
        die(archive)
        self.check(self.start_again())

    def test_the_earlier_copy_cannot_be_released(self) -> None:
        """It is refused then, since a start might bring back the earlier one."""
        archive = self.open()
        self.kept(archive, dataset(1))
        archive.catch_up()
        self.path(1).unlink()
        assert archive._inbox is not None

        def fails(places: object) -> None:
            raise OSError(errno.EIO, "an error")

        self.patch(archive._inbox._segments, "void", fails)
        (outcome,) = self.store(archive, large(1))
        self.assertIsInstance(outcome, OSError)
        self.assertFalse(self.path(1).exists())
        die(archive)
        self.check(self.start_again())

    def test_a_file_cannot_be_flushed(self) -> None:
        """It is written again from the segment, which stays until that is flushed."""

        class Unflushable(FileSystem):
            failing = False

            def fsync(self, fd: int) -> None:
                if self.failing and os.path.realpath(f"/proc/self/fd/{fd}").endswith(".1.dcm"):
                    raise OSError(errno.EIO, "an error")
                super().fsync(fd)

        disk = Unflushable()
        archive = self.open(file_system=disk)
        self.kept(archive, dataset(1), dataset(2))
        archive.catch_up()
        disk.failing = True
        first = self.path(1).stat().st_ino
        error = self.assertRaises(OSError, archive.settle)
        self.assertEqual((error.errno, archive.unsettled), (errno.EIO, 2))
        self.assertNotEqual(self.path(1).stat().st_ino, first, "it was written again")
        disk.failing = False
        archive.settle()
        self.assertEqual(archive.unsettled, 0)
        self.check(archive)


class Unflushed(InboxTestCase):
    """Files that could not be flushed, of which the system says so once: a power cut takes no acknowledged instance."""

    def setUp(self) -> None:
        super().setUp()
        self.disk = Forgetful()
        self.archive = self.open(file_system=self.disk)
        self.kept(self.archive, dataset(1), dataset(2))
        self.archive.catch_up()
        self.disk.fails = True

    def power_cut(self) -> None:
        self.disk.fails = False
        self.disk.cut_power(self.root)
        self.check(self.start_again(file_system=self.disk))

    def test_again_and_again(self) -> None:
        for _ in range(3):
            self.assertRaises(OSError, self.archive.settle)
        self.disk.fails = False
        self.archive.settle()
        self.assertEqual(self.archive.unsettled, 0)
        die(self.archive)
        self.power_cut()

    def test_before_a_replacement(self) -> None:
        (outcome,) = self.store(self.archive, dataset(1, PatientComments="new"))
        self.assertIsInstance(outcome, OSError)
        self.disk.fails = False
        self.archive.settle()
        self.assertEqual(self.archive.unsettled, 0)
        die(self.archive)
        self.power_cut()

    def test_before_a_replacement_that_succeeds_later(self) -> None:
        self.store(self.archive, dataset(1, PatientComments="new"))
        self.disk.fails = False
        self.kept(self.archive, dataset(1, PatientComments="new"))
        die(self.archive)
        self.power_cut()

    def test_before_a_stop(self) -> None:
        """The segment stays, and the next start does not trust the files."""
        self.archive.close()
        self.assertEqual(len(self.about("stay in the inbox")), 1)
        self.assertEqual(len(self.incoming()), 1)
        self.disk.fails = False
        self.start_again(file_system=self.disk).close()
        self.assertEqual(self.incoming(), [])
        self.power_cut()

    def test_before_a_kill(self) -> None:
        self.assertRaises(OSError, self.archive.settle)
        die(self.archive)
        self.disk.fails = False
        self.start_again(file_system=self.disk).close()
        self.power_cut()

    def test_at_a_start(self) -> None:
        die(self.archive)
        for _ in range(2):
            self.disk.cut_power(self.root)
            self.assertRaises(StoreUnusable, self.start_again, file_system=self.disk)
        self.disk.fails = False
        self.start_again(file_system=self.disk).close()
        self.power_cut()

    def test_a_start_with_durability_none(self) -> None:
        """Its durability is that of the run that acknowledged them."""
        die(self.archive)
        self.disk.fails = False
        for path in self.files():
            self.root.joinpath(*path[:2], f"{path[2]}.dcm").unlink()
        self.start_again(file_system=self.disk, durability=Durability.NONE).close()
        self.power_cut()


class Duplicated(InboxTestCase):
    """An instance that comes again while it waits, or while it has a file that is not flushed."""

    def each(self, *made: Any, **options: Any) -> Any:
        """Yield archives in which the first of *made* waits, has a file, and is settled."""
        for state in ("waits", "published", "settled"):
            self.root = Path(self.mktemp())
            self.acknowledged.clear()
            archive = self.open(**options)
            self.kept(archive, made[0])
            if state != "waits":
                archive.catch_up()
            if state == "settled":
                archive.settle()
            yield archive
            self.check(archive)
            self.kept(archive, dataset(77))
            die(archive)
            self.check(self.start_again(**options))

    def test_the_same_bytes(self) -> None:
        for archive in self.each(dataset(1)):
            self.kept(archive, dataset(1))
            self.assertEqual(len(self.files()), 1)

    def test_other_bytes(self) -> None:
        for archive in self.each(dataset(1, PatientComments="old")):
            self.kept(archive, dataset(1, PatientComments="new"), sender=Sender())
            self.assertIn(b"new", self.path().read_bytes())

    def test_other_bytes_again_and_again(self) -> None:
        for archive in self.each(dataset(1, PatientComments="old")):
            for words in ("one", "two", "three"):
                self.kept(archive, dataset(1, PatientComments=words), dataset(2, PatientComments=words))

    def test_a_large_one(self) -> None:
        for archive in self.each(dataset(1)):
            self.kept(archive, large(1))

    def test_a_small_one_after_a_large_one(self) -> None:
        for archive in self.each(large(1)):
            self.kept(archive, dataset(1))

    def test_a_longer_one_while_it_waits(self) -> None:
        for archive in self.each(dataset(1)):
            self.kept(archive, dataset(1, PatientComments="x" * 5000))

    def test_both_in_one_batch(self) -> None:
        for archive in self.each(dataset(9)):
            first, second = handed(dataset(1)), handed(dataset(1, PatientComments="second"))
            outcomes: list[Any] = []
            archive.keep_all([first, second], partial(take, outcomes))
            self.assertEqual([error for _, error in outcomes], [None, None])
            archive.catch_up()
            self.acknowledged[first.uids] = self.path(1).read_bytes()
            self.assertIn(b"second", self.path(1).read_bytes())

    def test_rejected(self) -> None:
        for archive in self.each(dataset(1), duplicates=Duplicates.REJECT):
            (outcome,) = self.store(archive, dataset(1, PatientComments="new"))
            self.assertIsInstance(outcome, DuplicateInstance)

    def test_the_first_one_stays(self) -> None:
        for archive in self.each(dataset(1), duplicates=Duplicates.KEEP):
            before = dict(self.acknowledged)
            self.kept(archive, dataset(1, PatientComments="new"))
            self.acknowledged = before

    def test_without_permission(self) -> None:
        for archive in self.each(dataset(1)):
            (outcome,) = self.store(archive, dataset(1, PatientComments="new"), sender=Sender(may_replace=False))
            self.assertIsInstance(outcome, ReplacementRefused)

    def test_elsewhere(self) -> None:
        """Below another study, with the same SOP Instance UID."""
        for archive in self.each(dataset(1)):
            one = dataset(1, study=2)
            one.SOPInstanceUID = "1.2.1.1.1"
            (outcome,) = self.store(archive, one, sender=Sender(may_replace=False))
            self.assertIsInstance(outcome, ReplacementRefused)
            self.kept(archive, one, sender=Sender())
            archive.catch_up()
            self.assertEqual(len(self.files()), 2)

    def test_two_threads(self) -> None:
        """Both store the same UIDs with bytes of their own, while a third makes files: at the end all agree."""
        archive = self.open()
        barrier = threading.Barrier(3)
        wrong: list[BaseException] = []
        rounds = 30

        def work(name: str) -> None:
            for number in range(rounds):
                barrier.wait(60)
                archive.keep(
                    handed(dataset(number % 10, PatientComments=f"{name} {number}")),
                    lambda error: wrong.append(error) if error else None,
                )

        def move() -> None:
            for _ in range(rounds):
                barrier.wait(60)
                archive.move()

        threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
        threads.append(threading.Thread(target=move))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        self.assertEqual(wrong, [])
        archive.catch_up()
        self.acknowledged = self.files()
        self.assertEqual(len(self.acknowledged), 10)
        die(archive)
        archive = self.start_again()
        self.check(archive)
        references = [Reference(SECONDARY_CAPTURE, uids[2]) for uids in self.acknowledged]
        damaged: list[str] = []
        self.assertEqual((verify(archive, references, damaged), damaged), ([0] * 10, []))


class DuplicatedUnsynced(Duplicated):
    durability = Durability.NONE


class Unpublishable(FileSystem):
    """A file system on which one study cannot be stored, if it is asked to fail."""

    failing = False
    code = errno.EACCES

    def _check(self, target: str) -> None:
        if self.failing and "/1.2.1/" in target:
            raise OSError(self.code, os.strerror(self.code))

    def name(self, fd: int, target: str) -> None:
        self._check(target)
        super().name(fd, target)

    def rename(self, source: str, target: str) -> None:
        self._check(target)
        super().rename(source, target)


class Refusing(InboxTestCase):
    """Files that cannot be made, rows that cannot be added, disks without room."""

    def test_one_study_cannot_be_stored(self) -> None:
        """Its instances stay in the inbox, and all others go on; when it can be stored, they become files."""
        disk = Unpublishable()
        archive = self.open(file_system=disk)
        disk.failing = True
        self.kept(archive, dataset(1), dataset(1, study=2))
        self.assertRaises(OSError, archive.move)
        self.assertEqual(len(ask(archive, "STUDY")), 2)
        self.assertEqual(len(self.about("1 instances are safe in the inbox, and cannot become files")), 1)
        self.assertEqual(len(ask(archive, "STUDY")), 2)
        self.assertEqual(len(self.about("are safe in the inbox")), 1, "one line in a while")
        for start in range(0, 600, 30):
            self.kept(archive, *(dataset(number, study=2) for number in range(start, start + 30)))
        self.kept(archive, dataset(1, study=2, PatientComments="new"))
        (outcome,) = self.store(archive, dataset(1, PatientComments="new"))
        assert isinstance(outcome, OSError)
        self.assertEqual(outcome.errno, errno.EACCES)
        disk.failing = False
        self.check(archive)

    def test_more_wait_than_may(self) -> None:
        """Instances that cannot become files do not hold up the others, until they alone are too many."""
        self.patch(inbox_module, "MAX_WAITING", 4)
        disk = Unpublishable()
        archive = self.open(file_system=disk)
        disk.failing = True
        self.kept(archive, dataset(1), dataset(2))
        for number in range(9):
            self.kept(archive, dataset(number, study=2))
        self.kept(archive, dataset(3), dataset(4))
        self.assertIsInstance(self.store(archive, dataset(5))[0], OSError)
        self.kept(archive, dataset(20, study=2))
        self.assertIn(("1.2.2", "1.2.2.1", "1.2.2.1.20"), self.files(), "a file at once")
        disk.failing = False
        self.check(archive)

    def test_a_row_that_can_never_be_added(self) -> None:
        archive = self.open()
        add = archive.index.add

        def refusing(rows: Any) -> None:
            if any(row.record.uids[2] == "1.2.1.1.3" for row in rows):
                raise RowRefused("it is bad")
            add(rows)

        archive.index.add = refusing  # type: ignore[method-assign,assignment]
        self.kept(archive, *map(dataset, range(6)))
        archive.move()
        archive.settle()
        self.assertEqual((archive.unindexed, archive.unsettled), (0, 0))
        self.assertEqual(archive.index.counts()[Level.IMAGE], 5)
        self.assertEqual(len(self.files()), 6)
        self.assertEqual(len(self.about("cannot be indexed")), 1)
        archive.close()
        self.check(self.start_again())

    def test_the_index_refuses_for_a_while(self) -> None:
        """Instances are acknowledged until too many rows wait; each has one file and one row at the end."""
        archive = self.open()
        add = archive.index.add

        def refusing(rows: Any) -> None:
            raise IndexFailed("the index is full")

        archive.index.add = refusing  # type: ignore[method-assign,assignment]
        self.patch(inbox_module, "_GROUP", 4)
        behind = archive._write_behind
        assert behind is not None
        self.patch(write_behind, "MAX_BEHIND", 6)
        self.kept(archive, *map(dataset, range(5)))
        self.kept(archive, *map(dataset, range(5, 10)))
        for _ in range(3):
            self.assertRaises(IndexFailed, archive.catch_up)
            self.assertEqual(len(behind), 10)
        for made in (dataset(10), dataset(1, PatientComments="new")):
            self.assertIsInstance(self.store(archive, made)[0], IndexFailed)
        archive.index.add = add  # type: ignore[method-assign]
        self.check(archive)
        self.assertEqual(list(self.root.rglob("*.part")), [])
        self.assertEqual(archive.store.temporary_files.unnamed, 0)

    def test_so_much_room_stays(self) -> None:
        """With less room than ``min_free`` and a file need, instances are refused; with room for files only, they are files."""

        class Sized(FileSystem):
            room = 10**9

            def free(self, path: str) -> int:
                return self.room

        disk = Sized()
        archive = self.open(file_system=disk, min_free=1_000_000)
        disk.room = 1_000_000 + SmallInbox.segment_size // 2
        self.kept(archive, dataset(1))
        if self.durability is Durability.FULL:
            self.assertTrue(self.path(1).exists())
            self.assertEqual(self.incoming(), [])
        disk.room = 999_999
        (outcome,) = self.store(archive, dataset(2))
        assert isinstance(outcome, OSError)
        self.assertEqual(outcome.errno, errno.ENOSPC)
        disk.room = 10**9
        self.kept(archive, dataset(3))
        disk.room = 0  # room for the files of what is in the inbox was kept
        self.check(archive)

    def test_a_segment_that_cannot_be_made(self) -> None:
        class NoSegments(FileSystem):
            def pwritev(self, fd: int, buffers: Any, offset: int) -> int:
                raise OSError(errno.EIO, "an error")

        archive = self.open(file_system=NoSegments())
        archive.move()
        self.kept(archive, *map(dataset, range(3)))
        self.assertEqual(len(self.files()), 3)
        self.check(archive)
        archive.close()
        self.assertEqual(self.incoming(), [])
        self.check(self.start_again())


class RefusingUnsynced(Refusing):
    durability = Durability.NONE


class Workers(InboxTestCase):
    """Several processes have no inbox; the first of them empties one that is left over."""

    def test_a_kill_before(self) -> None:
        archive = self.open()
        self.kept(archive, *map(dataset, range(5)))
        die(archive)
        supervisor = Archive(self.root, durability=self.durability, inbox=True, process="supervisor")
        supervisor.open()
        self.addCleanup(supervisor.close)
        reconcile(supervisor)
        self.assertEqual(self.incoming(), [])
        self.check(supervisor)
        (outcome,) = self.store(supervisor, dataset(9))
        self.assertIsNone(outcome)
        self.assertTrue(self.path(9).exists())
