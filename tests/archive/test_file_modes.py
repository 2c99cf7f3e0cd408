"""The modes of all files and folders that an archive makes: nothing is for others, whatever the umask."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.index import FOLDER
from dicomtwist.archive.services.commitment_journal import Transaction, Transactions
from dicomtwist.archive.services.mpps import FOLDER as STEPS
from dicomtwist.archive.storage.types import Durability
from tests.archive.samples import ask, dataset, keep


def modes(root: Path) -> dict[str, int]:
    """Return the modes of all files and folders below *root*, and of itself."""
    found = {}
    for path in (root, *sorted(root.rglob("*"))):
        found[str(path.relative_to(root))] = stat.S_IMODE(path.lstat().st_mode)
    return found


class Modes(SynchronousTestCase):
    def with_umask(self, mask: int) -> None:
        before = os.umask(mask)
        self.addCleanup(os.umask, before)

    def use(self, archive: Archive) -> None:
        """Have the archive make all its files: of instances, the index, its log, locks, steps and commitments."""
        for number in range(3):
            self.assertIsNone(keep(archive, dataset(number)))
        self.assertIsNone(keep(archive, dataset(1, PatientName="Other")))
        archive.catch_up()
        self.assertEqual(len(ask(archive, "IMAGE", StudyInstanceUID="1.2.1", SeriesInstanceUID="1.2.1.1")), 3)
        Transactions(archive.store).save(Transaction("1.2", "PEER", 0.0, ()))
        steps = archive.store.side_folder(STEPS)
        with steps.locked():
            steps.put([b"x"], "step.dcm")

    def check(self, root: Path, mask: int) -> None:
        found = modes(root)
        names = set(found)
        self.assertTrue({f"{FOLDER}/index.sqlite", f"{FOLDER}/index.sqlite-wal", f"{FOLDER}/lock"} <= names, names)
        for name, mode in found.items():
            wanted = 0o750 if (root / name).is_dir() else 0o640
            self.assertEqual(mode, wanted & ~mask, f"{name}: {mode:o}")

    def test_each_umask(self) -> None:
        for durability in Durability:
            for process in ("", "supervisor"):
                for mask in (0o000, 0o022, 0o027, 0o002, 0o077):
                    self.with_umask(mask)
                    root = Path(self.mktemp())
                    archive = Archive(root, durability=durability, process=process)
                    archive.open()
                    self.use(archive)
                    self.check(root, mask)
                    archive.close()

    def test_an_archive_of_an_earlier_version(self) -> None:
        """The files of its index lose what others could do with them; one that is stricter stays so."""
        for before, after in ((0o644, 0o640), (0o664, 0o640), (0o666, 0o640), (0o600, 0o600), (0o640, 0o640)):
            root = Path(self.mktemp())
            archive = Archive(root)
            archive.open()
            self.use(archive)
            # As they stay behind when the program is killed.
            left = [root / FOLDER / f"index.sqlite{suffix}" for suffix in ("", "-wal", "-shm")]
            contents = [path.read_bytes() for path in left]
            archive.close()
            for path, content in zip(left, contents, strict=True):
                path.write_bytes(content)
                path.chmod(before)
            archive = Archive(root)
            archive.open()
            self.use(archive)
            for path in left:
                self.assertEqual(stat.S_IMODE(path.stat().st_mode), after, path)
            archive.close()
