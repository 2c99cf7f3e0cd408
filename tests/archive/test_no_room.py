"""Starts on a disk that is full or read-only: the archive can be read, and stores again when there is room."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.index import IndexFailed
from dicomtwist.archive.recovery import reconcile
from dicomtwist.archive.storage.types import NO_ROOM, Durability, StoreUnusable
from tests.archive.samples import ask, dataset, keep
from tests.archive.storage.test_file_store import Failing


def disk(test: SynchronousTestCase, size: str = "8m") -> Path:
    """Return the folder of a small file system of its own."""
    folder = Path(test.mktemp())
    folder.mkdir(parents=True)
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    except OSError as error:
        raise SkipTest("there is no mount command") from error
    if mounted.returncode:
        raise SkipTest("a tmpfs cannot be mounted here")
    test.addCleanup(subprocess.run, ["umount", "-l", str(folder)], check=True)
    return folder


def fill(folder: Path) -> Path:
    """Fill the file system of *folder* to its last byte; return the file that does it."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return path


class NoRoomTestCase(SynchronousTestCase):
    durability = Durability.FULL

    def opened(self, root: Path) -> Archive:
        archive = Archive(root, durability=self.durability)
        archive.open()
        self.addCleanup(archive.close)
        return archive

    def filled(self, root: Path, count: int = 5) -> Archive:
        archive = self.opened(root)
        for number in range(count):
            self.assertIsNone(keep(archive, dataset(number)))
        archive.catch_up()
        return archive

    def check_reading(self, archive: Archive, count: int = 5) -> None:
        """Check that queries and retrieval work, and that an instance is refused for lack of room."""
        self.assertTrue(archive.lacks_room)
        self.assertEqual(
            self.found(archive, None),
            count,
        )
        self.assertEqual(len(archive.index.find_instances({"1.2.1.1.0", "1.2.1.1.1"})), 2)
        with archive.store.open("1.2.1", "1.2.1.1", "1.2.1.1.0") as file:
            self.assertEqual(file.read()[128:132], b"DICM")
        for refused in (keep(archive, dataset(99)), self.failure(archive.store.create)):
            assert isinstance(refused, OSError), refused
            self.assertEqual(refused.errno, errno.ENOSPC)

    def found(self, archive: Archive, uid: str | None) -> int:
        """Return the number of instances that a query finds."""
        found = ask(archive, "IMAGE", StudyInstanceUID="1.2.1", SeriesInstanceUID="1.2.1.1", SOPInstanceUID=uid)
        return len(found)

    def failure(self, function: Callable[[], object]) -> BaseException | None:
        try:
            function()
        except Exception as error:
            return error
        return None

    def check_storing(self, archive: Archive) -> None:
        self.assertTrue(archive.try_again(lambda: self.recover(archive)))
        self.assertEqual(archive.lacks_room, "")
        self.assertIsNone(keep(archive, dataset(99)))
        archive.catch_up()
        self.assertEqual(
            self.found(archive, "1.2.1.1.99"),
            1,
        )

    def recover(self, archive: Archive) -> None:
        reconcile(archive)


class FullDisk(NoRoomTestCase):
    def test_after_a_clean_stop(self) -> None:
        folder = disk(self)
        self.filled(folder / "archive").close()
        filler = fill(folder)
        archive = self.opened(folder / "archive")
        self.check_reading(archive)
        self.assertFalse(archive.try_again(lambda: self.recover(archive)))
        self.check_reading(archive)
        filler.unlink()
        self.check_storing(archive)
        archive.close()
        self.assertEqual(reconcile(self.opened(folder / "archive")).instances, 6)

    def test_after_a_crash(self) -> None:
        """The log of the database has rows that are not in it yet."""
        folder = disk(self)
        archive = self.filled(folder / "first")
        shutil.copytree(folder / "first", folder / "archive", ignore=shutil.ignore_patterns("*-shm"))
        archive.close()
        shutil.rmtree(folder / "first")
        filler = fill(folder)
        archive = self.opened(folder / "archive")
        self.check_reading(archive)
        filler.unlink()
        self.check_storing(archive)

    def test_leaks_nothing(self) -> None:
        folder = disk(self)
        self.filled(folder / "archive").close()
        before = len(os.listdir("/proc/self/fd"))
        filler = fill(folder)
        for _ in range(3):
            archive = Archive(folder / "archive")
            archive.open()
            for _ in range(3):
                self.assertFalse(archive.try_again(lambda: None))
            archive.close()
        filler.unlink()
        archive = Archive(folder / "archive")
        archive.open()
        archive.close()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_another_program_is_still_kept_out(self) -> None:
        folder = disk(self)
        self.filled(folder / "archive").close()
        filler = fill(folder)
        archive = self.opened(folder / "archive")
        self.assertRaises(StoreUnusable, Archive(folder / "archive").open)
        filler.unlink()
        self.check_storing(archive)
        self.assertRaises(StoreUnusable, Archive(folder / "archive").open)

    def test_a_new_archive_needs_room(self) -> None:
        folder = disk(self)
        fill(folder)
        error = self.assertRaises(StoreUnusable, Archive(folder / "archive").open)
        self.assertIn("No space left", str(error))

    def test_no_room_for_the_rows_of_the_start(self) -> None:
        """There is room to open everything, and none for the rows of files that the index lacks."""
        folder = disk(self)
        archive = self.filled(folder / "archive")
        archive.close()
        archive = self.opened(folder / "archive")

        def fails() -> None:
            raise IndexFailed("no room")

        archive.refuse("no room")
        self.check_reading(archive)
        self.assertFalse(archive.try_again(fails))
        self.check_reading(archive)
        self.check_storing(archive)

    def test_a_recovery_that_fails_when_there_is_room(self) -> None:
        folder = disk(self)
        self.filled(folder / "archive").close()
        filler = fill(folder)
        archive = self.opened(folder / "archive")
        filler.unlink()

        def fails() -> None:
            raise OSError(errno.EIO, "Input/output error")

        self.assertFalse(archive.try_again(fails))
        self.check_reading(archive)
        self.check_storing(archive)


class FullDiskWithoutDurability(FullDisk):
    durability = Durability.NONE


class ReadOnlyDisk(NoRoomTestCase):
    def test_a_disk_that_is_mounted_read_only(self) -> None:
        folder = disk(self)
        self.filled(folder / "archive").close()
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        archive = self.opened(folder / "archive")
        self.check_reading(archive)
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        self.check_storing(archive)


class EachStep(NoRoomTestCase):
    def test_of_a_start(self) -> None:
        """Any call of the storage that fails for lack of room: the archive is read."""
        root = Path(self.mktemp())
        self.filled(root).close()
        for code in sorted(NO_ROOM):
            failed = set()
            for step in range(60):
                fault = Failing()
                archive = Archive(root, file_system=fault)
                fault.arm(step, code)
                archive.open()
                try:
                    if not fault.failed:
                        break
                    failed.add(fault.failed.split()[0])
                    if archive.lacks_room:
                        self.check_reading(archive)
                        self.assertTrue(archive.try_again(partial(self.recover, archive)))
                    self.assertIsNone(keep(archive, dataset(0)))
                finally:
                    archive.close()
            self.assertGreaterEqual(failed, {"mkdir", "open", "writev", "rename"}, errno.errorcode[code])
