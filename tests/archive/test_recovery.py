"""Starts and imports with files and folders that cannot be read, or are something else."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive import folder_import, recovery
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.folder_import import Import, import_folder
from dicomtwist.archive.recovery import Reconciled, reconcile
from dicomtwist.archive.storage import file_store
from dicomtwist.datasets import encode_dataset
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta
from tests.archive.samples import dataset, keep

#: How long a test waits for a thread that should not block, in seconds.
PATIENCE = 60.0


def write(path: Path, number: int, size: int = 0) -> None:
    """Write the instance *number* as a DICOM file."""
    one = dataset()
    one.SOPInstanceUID = f"1.2.3.{number}"
    if size:
        one.add_new(0x7FE00010, "OW", bytes(size))
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMeta(str(one.SOPClassUID), str(one.SOPInstanceUID), str(ExplicitVRLittleEndian), "1.2.3")
    path.write_bytes(encode_preamble_and_meta(meta) + encode_dataset(one, ExplicitVRLittleEndian))


class RecoveryTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.archive = Archive(self.root)
        self.archive.open()
        self.addCleanup(lambda: self.archive.close())

    def reopened(self) -> Reconciled:
        self.archive.close()
        self.archive = Archive(self.root)
        self.archive.open()
        reconciled: Reconciled = self.within(lambda: reconcile(self.archive))
        return reconciled

    def within(self, function: Callable[[], Any]) -> Any:
        """Return the result of *function*, which must not block."""
        results: list[Any] = []
        thread = Thread(target=lambda: results.append(function()), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        self.assertFalse(thread.is_alive(), "it blocks")
        return results[0]

    def unreadable(self, *paths: Path) -> None:
        """Make folders unreadable, also for the superuser."""
        refused = self.refused = {os.fspath(path) for path in paths}
        original = os.scandir

        def scandir(path: Any = ".") -> Any:
            if os.fspath(path) in refused:
                raise PermissionError(13, "Permission denied", path)
            return original(path)

        self.patch(os, "scandir", scandir)
        listed = os.listdir

        def listdir(path: Any = ".") -> Any:
            if os.fspath(path) in refused:
                raise PermissionError(13, "Permission denied", path)
            return listed(path)

        self.patch(os, "listdir", listdir)


class Imports(RecoveryTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def imported(self, **options: Any) -> Import:
        found: Import = self.within(lambda: import_folder(self.archive, self.folder, **options))
        return found

    def test_what_is_no_regular_file(self) -> None:
        write(self.folder / "a.dcm", 1)
        write(self.folder / "z.dcm", 2)
        os.mkfifo(self.folder / "fifo")
        (self.folder / "link to a fifo").symlink_to("fifo")
        (self.folder / "device").symlink_to("/dev/zero")
        (self.folder / "terminal").symlink_to("/dev/tty")
        (self.folder / "nowhere").symlink_to("not there")
        (self.folder / "loop").symlink_to("loop")
        (self.folder / "there").symlink_to("back")
        (self.folder / "back").symlink_to("there")
        (self.folder / "above").symlink_to("..")
        with socket.socket(socket.AF_UNIX) as listening:
            here = os.getcwd()
            os.chdir(self.folder)
            self.addCleanup(os.chdir, here)
            listening.bind("socket")
            os.chdir(here)
            found = self.imported()
        self.assertEqual((found.kept, found.failed, found.skipped), (2, 0, 10))
        reasons = {Path(text.rpartition(": ")[0]).name: text.rpartition(": ")[2] for text in found.reasons}
        for name in ("fifo", "link to a fifo", "device", "socket", "terminal"):
            self.assertEqual(reasons[name], "not a regular file", name)
        for name in ("loop", "there", "back"):
            self.assertEqual(reasons[name], "Too many levels of symbolic links")
        self.assertEqual(reasons["nowhere"], "No such file or directory")
        self.assertEqual(reasons["above"], "a link to a folder")

    def test_folders_that_cannot_be_read(self) -> None:
        for number, name in enumerate(("a", "b/in/it", "c")):
            write(self.folder / name / "one.dcm", number)
        self.unreadable(self.folder / "b")
        found = self.imported()
        self.assertEqual((found.kept, found.skipped, found.failed), (2, 1, 0))
        self.assertEqual(found.reasons, [f"{self.folder / 'b'}: Permission denied"])

    def test_a_path_that_is_too_long(self) -> None:
        write(self.folder / "z.dcm", 1)
        # The cleanup of trial cannot remove paths of this length; this one can.
        self.addCleanup(shutil.rmtree, self.folder / ("d" * 250))
        here = os.open(".", os.O_RDONLY)
        self.addCleanup(os.close, here)
        os.chdir(self.folder)
        try:
            for _ in range(20):
                os.mkdir("d" * 250)
                os.chdir("d" * 250)
        finally:
            os.fchdir(here)
        found = self.imported()
        self.assertEqual((found.kept, found.skipped), (1, 1))
        self.assertIn("File name too long", found.reasons[0])

    def test_folders_and_files_that_vanish(self) -> None:
        for number in range(6):
            write(self.folder / f"{number}" / "a.dcm", 2 * number)
            write(self.folder / f"{number}" / "b.dcm", 2 * number + 1)
        add = folder_import._Importing.add

        def vanishing(importing: Any, path: str) -> None:
            add(importing, path)
            if path.endswith("0/a.dcm"):
                (self.folder / "0" / "b.dcm").unlink()
                for file in (self.folder / "3").iterdir():
                    file.unlink()
                (self.folder / "3").rmdir()

        self.patch(folder_import._Importing, "add", vanishing)
        found = self.imported()
        self.assertEqual(found.kept, 9)
        self.assertEqual(found.skipped + found.failed, 2)

    def test_the_folder_itself(self) -> None:
        self.unreadable(self.folder)
        self.assertRaises(OSError, import_folder, self.archive, self.folder)

    def test_the_archive_is_left_out(self) -> None:
        """Also if it is reached by another name."""
        write(self.folder / "one.dcm", 1)
        self.archive.close()
        self.archive = Archive(self.folder / "archive")
        self.archive.open()
        self.assertEqual(self.imported().kept, 1)
        self.assertEqual(self.imported().seen, 1)

    def test_names_of_any_bytes(self) -> None:
        path = os.fsencode(self.folder) + b"/\xff\n\x1b[31m.dcm"
        with open(path, "wb") as file:
            file.write(b"no DICOM")
        (reason,) = self.imported().reasons
        self.assertTrue(reason.isprintable(), ascii(reason))
        reason.encode()

    def test_whatever_a_file_raises_it_fails_alone(self) -> None:
        for number in range(3):
            write(self.folder / f"{number}.dcm", number)
        original = recovery.read_record

        def read_record(file: Any, *more: str) -> Any:
            if file.name.endswith("1.dcm"):
                raise LookupError("a mistake")
            return original(file, *more)

        self.patch(folder_import, "read_record", read_record)
        found = self.imported()
        self.assertEqual((found.kept, found.failed), (2, 1))

    def test_a_stop_in_folders_without_files(self) -> None:
        for number in range(50):
            (self.folder / f"{number}").mkdir()
        asked: list[None] = []

        def stopped() -> bool:
            asked.append(None)
            return len(asked) > 3

        self.assertEqual(self.imported(stopped=stopped).seen, 0)
        self.assertEqual(len(asked), 4)

    def test_a_stop_in_a_long_file(self) -> None:
        write(self.folder / "long.dcm", 1, size=8 * 1024 * 1024)
        asked: list[None] = []

        def stopped() -> bool:
            asked.append(None)
            return len(asked) > 4

        found = self.imported(stopped=stopped)
        self.assertEqual((found.seen, len(asked)), (0, 5))
        self.assertEqual([path for path in (self.root / ".incoming").iterdir() if path.name != ".lock"], [])

    def test_a_stop_while_commits_hang(self) -> None:
        for number in range(folder_import.MAX_PENDING + 2):
            write(self.folder / f"{number:03}.dcm", number)
        hanging, stopping = Event(), Event()
        self.addCleanup(hanging.set)
        pending: list[Any] = []

        def keep_later(instance: Any, on_result: Any) -> None:
            pending.append(on_result)
            if len(pending) == folder_import.MAX_PENDING:
                stopping.set()

        self.patch(self.archive, "keep", keep_later)
        importing = Thread(
            target=import_folder, args=(self.archive, self.folder), kwargs={"stopped": stopping.is_set}, daemon=True
        )
        importing.start()
        self.assertTrue(stopping.wait(PATIENCE))
        for on_result in pending:
            on_result(None)
        importing.join(PATIENCE)
        self.assertFalse(importing.is_alive())


class Starts(RecoveryTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.studies = ["1.2.1", "1.2.2", "1.2.3"]
        for study in self.studies:
            one = dataset()
            one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID = study, f"{study}.1", f"{study}.1.1"
            keep(self.archive, one)

    def rows(self) -> list[str]:
        return [row[0] for row in self.archive.index.files()]

    def test_lost_and_found(self) -> None:
        for name in ("lost+found", "System Volume Information", "backup"):
            (self.root / name).mkdir()
        self.unreadable(*(self.root / name for name in ("lost+found", "System Volume Information", "backup")))
        found = self.reopened()
        self.assertEqual((found.instances, found.lost, found.unreadable), (3, 0, 0))

    def test_a_study_that_cannot_be_read(self) -> None:
        """Its rows stay: its files may be there."""
        self.unreadable(self.root / "1.2.2")
        found = self.reopened()
        self.assertEqual((found.instances, found.lost, found.unreadable), (3, 0, 1))
        self.assertEqual(found.unreadable_names, ["1.2.2: Permission denied"])
        self.assertEqual(self.rows(), self.studies)

    def test_a_series_that_cannot_be_read(self) -> None:
        self.unreadable()
        for study in self.studies:
            with self.subTest(study=study):
                self.refused.clear()
                self.refused.add(os.fspath(self.root / study / f"{study}.1"))
                found = self.reopened()
                self.assertEqual((found.instances, found.lost), (3, 0))
                self.assertEqual(found.unreadable_names, [f"{study}/{study}.1: Permission denied"])
                self.assertEqual(self.rows(), self.studies)

    def test_a_study_that_is_gone(self) -> None:
        """A folder that vanishes while the start reads is no different from one that was removed before."""
        original = file_store._subfolders
        gone = os.fspath(self.root / "1.2.2")

        def subfolders(path: str) -> list[str]:
            if path == gone:
                shutil.rmtree(path)
            return original(path)

        self.patch(file_store, "_subfolders", subfolders)
        self.assertEqual(self.reopened().lost, 1)

    def test_what_is_no_file(self) -> None:
        series = self.root / "1.2.1" / "1.2.1.1"
        os.mkfifo(series / "1.2.1.1.2.dcm")
        (series / "1.2.1.1.3.dcm").symlink_to("/dev/zero")
        (series / "1.2.1.1.4.dcm").symlink_to("1.2.1.1.4.dcm")
        (series / "1.2.1.1.5.dcm").mkdir()
        (self.root / "9.9").symlink_to("9.9")
        (self.root / "9.8").symlink_to(self.root.resolve())
        found = self.reopened()
        self.assertEqual((found.instances, found.unreadable, found.lost), (3, 4, 0))

    def test_whatever_a_file_raises_it_fails_alone(self) -> None:
        for study in self.studies:
            self.archive.index.remove([(study, f"{study}.1", f"{study}.1.1")])
        original = recovery.read_record

        def read_record(file: Any, *more: str) -> Any:
            if "1.2.2.1.1" in file.name:
                raise LookupError("a mistake")
            return original(file, *more)

        self.patch(recovery, "read_record", read_record)
        found = self.reopened()
        self.assertEqual((found.indexed, found.unreadable), (2, 1))
