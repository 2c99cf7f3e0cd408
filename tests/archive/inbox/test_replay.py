"""The next start finds all instances that the end of a program or of a machine has left in the inbox, bit for bit."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from pathlib import Path
from typing import Any

from pydicom import Dataset

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.inbox.segments import NAME
from dicomtwist.archive.recovery import reconcile
from dicomtwist.archive.storage.system_calls import FileSystem
from dicomtwist.archive.storage.types import Durability, IndexFailed, InstanceUIDs, StoreError, StoreUnusable
from tests.archive.inbox.common import InboxTestCase, Killed, Mortal, content_of, die, large
from tests.archive.samples import ask, dataset, handed
from tests.archive.storage.test_file_store import Failing
from tests.archive.test_no_room import disk, fill

#: The distance of the calls that fail with an error, or that are the last ones.
STRIDES = {errno.EIO: 1, errno.ENOSPC: 3, 0: 1}


class Replaying(InboxTestCase):
    """A start after a kill."""

    codes: tuple[int, ...] = (errno.EIO, errno.ENOSPC)

    def left_over(self, *made: Dataset) -> list[Path]:
        """Leave instances in an inbox without files, and return its segments."""
        archive = self.open()
        self.kept(archive, *(made or map(dataset, range(5))))
        die(archive)
        self.assertEqual(self.files(), {})
        return sorted((self.root / ".incoming").glob("inbox-*"))

    def test_files_that_are_missing(self) -> None:
        self.left_over()
        archive = self.start_again()
        self.assertEqual(self.incoming(), [])
        self.check(archive)
        self.assertEqual(len(self.about("the previous run left 5 instances in its inbox; files were made of 5")), 1)

    def test_times_are_those_of_the_receipt(self) -> None:
        archive = self.open()
        self.kept(archive, dataset(1), dataset(2))
        archive.catch_up()
        before = [self.path(number).stat().st_mtime_ns for number in (1, 2)]
        self.path(1).unlink()
        self.path(2).write_bytes(b"torn")
        die(archive)
        self.check(self.start_again())
        self.assertEqual([self.path(number).stat().st_mtime_ns for number in (1, 2)], before)

    def test_whole_files_stay_as_they_are(self) -> None:
        archive = self.open()
        self.kept(archive, *map(dataset, range(5)))
        archive.catch_up()
        before = {path: path.stat().st_ino for path in self.root.glob("*/*/*.dcm")}
        die(archive)
        self.check(self.start_again())
        self.assertEqual({path: path.stat().st_ino for path in before}, before)

    def test_torn_files(self) -> None:
        archive = self.open()
        self.kept(archive, *map(dataset, range(5)))
        archive.catch_up()
        for number, content in enumerate((b"", b"DICM", self.path(2).read_bytes()[:-1], bytes(3000))):
            self.path(number).write_bytes(content)
        die(archive)
        self.check(self.start_again())

    def test_again_after_a_kill_during_the_replay(self) -> None:
        """Every call of the start is the last one of its program; a later start has everything."""
        for step in range(2000):
            self.root = Path(self.mktemp())
            self.acknowledged.clear()
            self.left_over(*map(dataset, range(3)))
            dying = Mortal(Path(self.mktemp()))
            dying.arm(step, 0)
            if self.start_in_a_process(dying):
                break
            if self.durability is Durability.FULL:
                dying.load()
                dying.cut_power(self.root, random.Random(step))
            archive = self.start_again()
            self.check(archive)
            self.assertEqual(self.incoming(), [])
            archive.close()
        self.assertGreater(step, 20)

    def start_in_a_process(self, disk: FileSystem) -> bool:
        """Open the archive in a process of its own; return whether that did not die."""
        process = os.fork()
        if not process:
            try:
                Archive(self.root, durability=self.durability, inbox=True, file_system=disk).open()
            except BaseException:
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        self.assertIn(status, (0, 9))
        return status == 0

    def test_each_call_of_a_start_fails(self) -> None:
        """That start says why it cannot be, or has everything; the next one has everything."""
        failed: set[str] = set()
        for code in self.codes:
            for step in range(0, 2000, STRIDES[code]):
                self.root = Path(self.mktemp())
                self.acknowledged.clear()
                self.left_over(*map(dataset, range(3)))
                failing = Failing()
                failing.arm(step, code)
                broken = ""
                archive = Archive(self.root, durability=self.durability, inbox=True, file_system=failing)
                try:
                    archive.open()
                except StoreUnusable as error:
                    self.assertIn(os.strerror(code), str(error))
                else:
                    broken = failing.failed
                    failing.arm(-1, 0)
                    if archive.lacks_room:
                        self.assertEqual(code, errno.ENOSPC)
                        self.assertTrue(archive.try_again(self.reconciling(archive)))
                    else:
                        reconcile(archive)
                    self.check(archive)
                    self.assertEqual([name for name in self.incoming() if not NAME.fullmatch(name)], [], broken)
                    archive.close()
                    if not broken:
                        break
                failed.add((broken or failing.failed).split()[0])
                archive = self.start_again()
                self.check(archive)
                archive.close()
        self.assertGreaterEqual(failed, {"open", "pread", "writev", "name", "mkdir"})

    def reconciling(self, archive: Archive) -> Any:
        return lambda: reconcile(archive)

    def test_a_study_that_cannot_be_stored(self) -> None:
        """The segment is set aside with a line in the log, all others become files; renamed, it is read at the next start."""

        class Refusing(FileSystem):
            def name(self, fd: int, target: str) -> None:
                if "/1.2.2/" in target:
                    raise OSError(errno.EACCES, os.strerror(errno.EACCES))
                super().name(fd, target)

        self.left_over(dataset(1), dataset(1, study=2), dataset(2))
        archive = self.start_again(file_system=Refusing())
        self.assertEqual(len(self.files()), 2)
        (name,) = self.incoming()
        self.assertTrue(name.startswith("broken-inbox-"))
        self.assertEqual(len(self.about("1.2.2/1.2.2.1/1.2.2.1.1 cannot become a file: Permission denied")), 1)
        self.assertEqual(len(self.about(f"set aside as {name}")), 1)
        archive.close()
        self.start_again().close()
        self.assertEqual(self.incoming(), [name])
        (self.root / ".incoming" / name).rename(self.root / ".incoming" / name.removeprefix("broken-"))
        self.check(self.start_again())
        self.assertEqual(self.incoming(), [])

    def test_damage(self) -> None:
        """The segment is set aside, the log names what is lost, and everything else becomes files."""
        for place in (
            "head of the first",
            "content of the first",
            "content in the middle",
            "head in the middle",
            "last",
        ):
            self.root = Path(self.mktemp())
            self.acknowledged.clear()
            archive = self.open()
            for number in range(5):
                self.kept(archive, dataset(number))  # each with a sync of its own
            die(archive)
            (segment,) = (self.root / ".incoming").glob("inbox-*")
            number = {"first": 0, "middle": 2, "last": 4}[place.split()[-1]]
            data = bytearray(segment.read_bytes())
            content = data.index(b"DICM") - 128
            for _ in range(number):
                content = data.index(b"DICM", content + 132) - 128
            where = content + 200 if "head" not in place else content // 512 * 512 + 20
            data[where] ^= 0x55
            segment.write_bytes(data)
            lost = self.acknowledged.pop(("1.2.1", "1.2.1.1", f"1.2.1.1.{number}"))
            self.assertTrue(lost)
            self.lines.clear()
            archive = self.start_again()
            self.check(archive)
            if place == "last" or self.durability is Durability.NONE:
                # It looks like a write that was under way, or nothing was promised.
                archive.close()
                continue
            (name,) = self.incoming()
            self.assertTrue(name.startswith("broken-inbox-"), place)
            self.assertEqual(len(self.about(f"set aside as {name}")), 1)
            self.assertEqual(len(self.about("were acknowledged and cannot be read")), 1)
            if "head" not in place:
                self.assertEqual(len(self.about(f"1.2.1.1.{number}")), 1)
            self.kept(archive, dataset(number))
            self.check(archive)
            archive.close()
            self.check(self.start_again())

    def test_made_shorter(self) -> None:
        """A segment that ends in an instance: what is left becomes files, and the log names what is lost."""
        archive = self.open()
        for number in range(5):
            self.kept(archive, dataset(number))
        die(archive)
        (segment,) = (self.root / ".incoming").glob("inbox-*")
        os.truncate(segment, segment.read_bytes().rindex(b"DICM") + 200)
        self.acknowledged.pop(("1.2.1", "1.2.1.1", "1.2.1.1.4"))
        archive = self.start_again()
        self.check(archive)
        if self.durability is Durability.FULL:
            (name,) = self.incoming()
            self.assertEqual(len(self.about(f"set aside as {name}")), 1)
            self.assertEqual(len(self.about("1.2.1.1.4")), 1)

    def test_garbage_in_place_of_a_segment(self) -> None:
        self.left_over()
        folder = self.root / ".incoming"
        (folder / f"inbox-77-{'ab' * 8}").write_bytes(random.Random(1).randbytes(10_000))
        (folder / f"inbox-78-{'ab' * 8}").write_bytes(b"")
        (folder / f"inbox-79-{'ab' * 8}").mkdir()
        (folder / f"inbox-80-{'ab' * 8}").symlink_to("/etc/passwd")
        archive = self.start_again()
        self.check(archive)
        self.kept(archive, dataset(9))
        self.check(archive)
        self.assertEqual(Path("/etc/passwd").exists(), True)
        self.assertEqual(len(self.about("this is no segment of the inbox and stays where it is")), 2)

    def test_replaced_copies_stay_away(self) -> None:
        """Kills between the steps of replacements: the last acknowledged copy is there, never an older one."""
        for step in range(2000):
            self.root = Path(self.mktemp())
            self.acknowledged.clear()
            dying = Mortal()
            archive = self.open(file_system=dying)
            self.kept(archive, dataset(1, PatientComments="old"), dataset(2, PatientComments="old"))
            archive.catch_up()
            self.kept(archive, dataset(3, PatientComments="old"))
            dying.arm(step, 0)
            maybe: dict[InstanceUIDs, list[bytes]] = {}
            for made in (
                dataset(1, PatientComments="new"),
                large(2),
                dataset(3, PatientComments="newer"),
                dataset(1, PatientComments="last"),
            ):
                if not dying.is_dead:
                    self.try_to_store(archive, made, maybe)
            die(archive)
            if not dying.failed:
                break
            archive = self.start_again()
            self.check(archive, or_else=maybe)
            archive.close()
        self.assertGreater(step, 30)

    def try_to_store(self, archive: Archive, made: Dataset, maybe: dict[InstanceUIDs, list[bytes]]) -> None:
        """Store an instance; note in *maybe* what may be there if it is not acknowledged."""
        one = handed(made)
        maybe.setdefault(one.uids, []).append(content_of(one))
        try:
            (outcome,) = self.store(archive, made)
        except Killed:
            return
        if outcome is None:
            # From now on no earlier copy may come back.
            maybe[one.uids] = []

    def test_each_call_fails_or_is_the_last(self) -> None:
        """
        Receive, make files, replace, settle, stop: one call fails, or is the last before a power cut. The next start finds
        everything that was acknowledged; what was refused is absent, or at most whole.
        """
        seen: set[str] = set()
        for code in (*self.codes, 0):
            for step in range(0, 2000, STRIDES[code]):
                self.root = Path(self.mktemp())
                self.acknowledged.clear()
                failing = Mortal()
                archive = self.open(file_system=failing)
                failing.arm(step, code)
                maybe = self.work(archive)
                if failing.is_dead:
                    die(archive)
                    if self.durability is Durability.FULL:
                        failing.cut_power(self.root, random.Random(step))
                elif step % 2 or not code:
                    die(archive)
                else:
                    archive.close()
                if not failing.failed:
                    break
                seen.add(failing.failed.split()[0])
                archive = self.start_again()
                self.check(archive, or_else=maybe)
                archive.close()
            self.assertGreater(step, 30)
        self.assertGreaterEqual(seen, {"open", "pwritev", "writev", "name", "link", "mkdir", "free", "pread", "close"})

    def work(self, archive: Archive) -> dict[InstanceUIDs, list[bytes]]:
        """Return what may be there though it was not acknowledged."""
        maybe: dict[InstanceUIDs, list[bytes]] = {}
        for step in (
            dataset(1),
            dataset(2, study=2),
            archive.catch_up,
            dataset(1, PatientComments="new"),
            dataset(3),
            large(4),
            archive.move,
            dataset(3, PatientComments="new"),
            archive.settle,
            dataset(5),
            archive.catch_up,
        ):
            disk = archive._file_system
            if isinstance(disk, Mortal) and disk.is_dead:
                break
            if isinstance(step, Dataset):
                self.try_to_store(archive, step, maybe)
                continue
            try:
                step()
            except (OSError, StoreError, Killed):
                continue
        return maybe


class ReplayingUnsynced(Replaying):
    durability = Durability.NONE
    codes = (errno.EIO,)


class Room(InboxTestCase):
    """Disks that are full at a start."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = disk(self)
        self.root = self.folder / "archive"

    def test_full_and_then_room(self) -> None:
        """The archive can be read; when there is room, what was in the inbox is found."""
        archive = self.open()
        self.kept(archive, *map(dataset, range(3)))
        archive.move()
        archive.settle()
        settled = set(self.files())
        self.kept(archive, *map(dataset, range(3, 20)))
        die(archive)
        filler = fill(self.folder)
        archive = self.open()
        self.assertTrue(archive.lacks_room)
        self.assertEqual(len(ask(archive, "IMAGE", StudyInstanceUID="1.2.1", SeriesInstanceUID="1.2.1.1")), 3)
        self.assertLessEqual(settled, set(self.files()))
        self.assertFalse(archive.try_again(lambda: reconcile_of(archive)))
        (outcome,) = self.store(archive, dataset(99))
        self.assertEqual(getattr(outcome, "errno", None), errno.ENOSPC)
        filler.unlink()
        self.assertTrue(archive.try_again(lambda: reconcile_of(archive)))
        self.check(archive)
        self.kept(archive, dataset(99))
        self.check(archive)
        archive.close()
        self.assertEqual(self.incoming(), [])
        self.check(self.start_again())

    def test_full_while_it_serves(self) -> None:
        """Instances are refused or stored, files follow when there is room, and nothing acknowledged is lost."""
        archive = self.open()
        self.kept(archive, *map(dataset, range(10)))
        filler = fill(self.folder)
        with contextlib.suppress(IndexFailed):
            archive.catch_up()
        for number in range(10, 300):
            self.store(archive, dataset(number))
        filler.unlink()
        self.kept(archive, dataset(500))
        self.check(archive)
        archive.close()
        self.assertEqual(self.incoming(), [])
        self.check(self.start_again())


class RoomUnsynced(Room):
    durability = Durability.NONE


def reconcile_of(archive: Archive) -> None:
    reconcile(archive)
