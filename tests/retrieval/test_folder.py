"""The folder of retrieved files on disks that fail."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.storage.system_calls import FileSystem
from dicomtwist.archive.storage.types import DuplicateInstance, Durability
from dicomtwist.retrieval.folder import MAX_SYNCED, Receipt, ReceivingFolder
from dicomtwist.retrieval.layout import Layout
from tests.archive.samples import dataset, handed


class Failing(FileSystem):
    """A disk on which some calls fail, and that notes the order of the calls."""

    def __init__(self, *failing: str) -> None:
        self.failing = set(failing)
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def fsync(self, fd: int) -> None:
        """Flush a file."""
        self._call("fsync")

    def sync_all(self, fd: int) -> None:
        """Flush everything."""
        self._call("sync_all")

    def sync_folder(self, path: str) -> None:
        """Flush a folder."""
        self._call("sync_folder")

    def name(self, fd: int, target: str) -> None:
        """Give a file its name."""
        self._call("name")
        super().name(fd, target)


class Folder(SynchronousTestCase):
    def folder(self, *failing: str, layout: str = "", **options: Any) -> ReceivingFolder:
        self.fs = Failing()
        self.root = Path(self.mktemp()).absolute()
        names = Layout(layout) if layout else None
        folder = ReceivingFolder(self.root, layout=names, file_system=self.fs, **options)
        folder.prepare()
        self.addCleanup(folder.close)
        self.fs.failing, self.fs.calls = set(failing), []
        return folder

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*.dcm"))

    def keep(self, folder: ReceivingFolder, count: int, **elements: Any) -> Receipt:
        receipt = Receipt()
        for number in range(1, count + 1):
            folder.keep(handed(dataset(number, 2, 3, **elements)), receipt)
        folder.flush()
        return receipt

    def test_the_order(self) -> None:
        """A file is on the medium before it has a name, and its name is before it counts; many are flushed at once."""
        folder = self.folder()
        receipt = self.keep(folder, 2)
        order = [call for number, call in enumerate(self.fs.calls) if call != self.fs.calls[number - 1] or not number]
        self.assertEqual(order, ["fsync", "name", "sync_folder"])
        self.assertEqual((receipt.stored, len(self.files())), (2, 2))
        folder = self.folder()
        receipt = self.keep(folder, MAX_SYNCED + 1)
        self.assertEqual(self.fs.calls[0], "sync_all")
        self.assertNotIn("fsync", self.fs.calls)
        folder = self.folder(durability=Durability.NONE)
        self.keep(folder, 2)
        self.assertEqual(set(self.fs.calls), {"name"})

    def test_no_sync(self) -> None:
        """A file that cannot be flushed gets no name, and counts as refused."""
        receipt = self.keep(self.folder("fsync"), 2)
        self.assertEqual((receipt.stored, dict(receipt.refused)), (0, {"Input/output error": 2}))
        self.assertEqual((self.files(), receipt.uids), ([], set()))
        receipt = self.keep(self.folder("fsync", "sync_all"), MAX_SYNCED + 1)
        self.assertEqual((receipt.stored, self.files()), (0, []))
        receipt = self.keep(self.folder("sync_all"), MAX_SYNCED + 1)
        self.assertEqual((receipt.stored, len(self.files())), (MAX_SYNCED + 1, MAX_SYNCED + 1))

    def test_no_name(self) -> None:
        """A name that cannot be given or flushed is a failure of its own files only."""
        receipt = self.keep(self.folder("name"), 2)
        self.assertEqual((receipt.stored, sum(receipt.refused.values()), self.files()), (0, 2, []))
        receipt = self.keep(self.folder("sync_folder"), 2)
        self.assertEqual((receipt.stored, sum(receipt.refused.values())), (0, 2))

    def test_alien_files(self) -> None:
        """A file, folder or FIFO in the place of an instance stays."""
        folder = self.folder(layout="{SeriesNumber}.dcm")
        (self.root / "unknown.dcm").write_text("mine")
        receipt = self.keep(folder, 2)
        self.assertEqual((receipt.stored, receipt.collisions), (2, 2))
        self.assertEqual((self.root / "unknown.dcm").read_text(), "mine")
        folder = self.folder(layout="x.dcm")
        os.mkfifo(self.root / "x.dcm")
        self.assertEqual(self.keep(folder, 1).collisions, 1)
        folder = self.folder()
        uids = handed(dataset(1, 2, 3)).uids
        target = self.root.joinpath(*uids[:2], f"{uids[2]}.dcm")
        target.mkdir(parents=True)
        self.assertRaises(DuplicateInstance, self.keep, folder, 1)
        folder = self.folder(layout="{Modality}/{InstanceNumber}/x.dcm")
        (self.root / "OT").write_text("a file where a folder has to be")
        receipt = self.keep(folder, 1)
        self.assertEqual((receipt.stored, sum(receipt.refused.values())), (0, 1))

    def test_twice(self) -> None:
        """An instance that comes twice for one request counts once; with another data set it is refused."""
        folder, receipt = self.folder(layout="x.dcm"), Receipt()
        folder.keep(handed(dataset(1, 2, 3)), receipt)
        folder.keep(handed(dataset(1, 2, 3)), receipt)
        self.assertRaises(DuplicateInstance, folder.keep, handed(dataset(1, 2, 3, PatientID="other")), receipt)
        folder.flush()
        self.assertEqual((receipt.stored, receipt.existing, len(self.files())), (1, 0, 1))
