"""Every system call of the archive that changes a disk goes through FileSystem; if one fails, nothing is left of it."""

from __future__ import annotations

import ast
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import dicomtwist.archive
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.integrity import Reference, verify
from dicomtwist.archive.storage.file_store import InstanceStore
from dicomtwist.archive.storage.types import Durability, StoreUnusable
from dicomtwist.dimse.status import PROCESSING_FAILURE
from tests.archive.samples import SECONDARY_CAPTURE, dataset, files, handed, keep
from tests.archive.storage.test_file_store import NEW, OLD, UIDS, WAYS, Failing, StoreTestCase

#: The functions of :mod:`os` that change a disk, or wait for it.
CHANGES = frozenset(
    (
        *("fsync", "fdatasync", "sync", "rename", "renames", "replace", "link", "symlink", "mkdir", "makedirs"),
        *(
            "unlink",
            "remove",
            "removedirs",
            "rmdir",
            "statvfs",
            "fstatvfs",
            "posix_fadvise",
            "truncate",
            "utime",
            "writev",
            "pwritev",
        ),
    )
)
#: These functions as methods of a path; names with other meanings, such as str.replace, are covered by the check of imports.
OF_PATHS = frozenset(("mkdir", "rmdir", "touch", "hardlink_to", "symlink_to", "write_bytes", "write_text"))
ROOT = Path(dicomtwist.archive.__file__).parent
ALLOWED = {"storage/system_calls.py"}
#: Locks between processes are separate from the stored files, and need not be on the medium.
LOCKS = {"storage/process_locks.py"}


def past_file_system(source: str) -> Iterator[str]:
    """Yield the calls in *source* that change a disk past FileSystem."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil", "fcntl"):
            yield from (
                f"{node.module}.{alias.name}" for alias in node.names if alias.name in CHANGES | {"flock", "lockf"}
            )
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in ("fcntl", "shutil"))
        elif isinstance(node, ast.Attribute):
            of_os = isinstance(node.value, ast.Name) and node.value.id == "os"
            of_file_system = isinstance(node.value, ast.Name | ast.Attribute) and ast.unparse(node.value).endswith("fs")
            if (of_os and node.attr in CHANGES) or (node.attr in OF_PATHS and not of_file_system):
                yield ast.unparse(node)


class ThroughFileSystem(StoreTestCase):
    def test_nothing_goes_past_it(self) -> None:
        wrong = {
            path.relative_to(ROOT).as_posix(): found
            for path in ROOT.rglob("*.py")
            if path.relative_to(ROOT).as_posix() not in ALLOWED | LOCKS
            and (found := list(past_file_system(path.read_text())))
        }
        self.assertEqual(wrong, {})

    def test_locks_change_nothing_else(self) -> None:
        for name in LOCKS:
            self.assertEqual(list(past_file_system((ROOT / name).read_text())), ["fcntl"])

    def test_what_would_be_found(self) -> None:
        for source in (
            "import os\nos.fsync(1)",
            "from os import rename\n",
            "from pathlib import Path\nPath('x').mkdir()",
            "import fcntl",
            "import os\nos.statvfs('x')",
        ):
            self.assertEqual(len(list(past_file_system(source))), 1, source)
        self.assertEqual(list(past_file_system("self._fs.mkdir('x')\n'x'.replace('x', 'y')\nfs.unlink('x')")), [])


class Starts(StoreTestCase):
    def test_each_call_of_a_start(self) -> None:
        """The start fails with the reason, and no descriptor stays open; the next start succeeds."""
        seen = set()
        for step in range(60):
            disk = Failing()
            archive = Archive(self.root, file_system=disk)
            before = self.open_files()
            disk.arm(step, errno.EIO)
            try:
                archive.open()
            except StoreUnusable as error:
                self.assertIn(os.strerror(errno.EIO), str(error))
                self.assertEqual(self.open_files(), before, disk.failed)
                seen.add(disk.failed.split()[0])
            else:
                archive.close()
                if not disk.failed:
                    break
        self.assertGreaterEqual(seen, {"mkdir", "open", "fsync", "rename", "free"})


class FreeSpace(StoreTestCase):
    def test_it_cannot_be_asked_for(self) -> None:
        """statvfs fails: the instance is refused, and nothing is left of it."""
        for earlier in (True, False):
            for way in WAYS:
                self.root = Path(self.mktemp())
                disk = Failing()
                store = self.store = InstanceStore(self.root, min_free=1, file_system=disk)
                store.prepare()
                self.addCleanup(store.close)
                if earlier:
                    way(store, OLD)
                asked = 0
                for step in range(60):
                    if not earlier and store.exists(*UIDS):
                        store.remove_instance(*UIDS)
                    disk.arm(step, errno.EIO)
                    try:
                        way(store, NEW)
                    except OSError as error:
                        self.assertEqual(error.errno, errno.EIO)
                    failed = disk.failed
                    disk.arm(-1, 0)
                    self.assert_no_left_overs()
                    if failed.startswith("free"):
                        asked += 1
                        self.assertEqual(store.exists(*UIDS), earlier)
                    elif not failed:
                        break
                    if earlier:
                        way(store, OLD)
                self.assertGreaterEqual(asked, 1)


class Replacing(StoreTestCase):
    def test_what_was_replaced_cannot_be_removed(self) -> None:
        """The new copy counts; the old one is among the temporary files, which the next start removes."""

        class Undeletable(Failing):
            def unlink(self, path: str) -> None:
                raise OSError(errno.EIO, "an error")

        for durability in Durability:
            self.root = Path(self.mktemp())
            archive = Archive(self.root, durability=durability)
            archive.open()
            self.assertIsNone(keep(archive, dataset(PatientComments="old")))
            archive.close()
            disk = Failing()
            archive = Archive(self.root, durability=durability, file_system=disk)
            archive.open()
            disk.unlink = Undeletable().unlink  # type: ignore[method-assign]
            self.assertIsNone(keep(archive, dataset(PatientComments="new")))
            archive.close()
            self.assertEqual(len([path for path in files(self.root) if path.suffix == ".part"]), 1)
            archive = Archive(self.root, durability=durability)
            self.assertEqual(archive.open(), 1)
            archive.close()
            (path,) = files(self.root)
            self.assertIn(b"new", path.read_bytes())

    def test_each_call_of_a_large_one(self) -> None:
        """An instance that arrives in pieces replaces another one completely, or nothing has changed."""
        disk = Failing()
        archive = Archive(self.root, file_system=disk)
        archive.open()
        self.addCleanup(archive.close)
        steps = set()
        for step in range(60):
            self.assertIsNone(keep(archive, dataset(PatientComments="old")))
            before = {path: path.read_bytes() for path in files(self.root)}
            one = handed(dataset(PatientComments="new"))
            assert isinstance(one.content, list)
            disk.arm(step, errno.ENOSPC)
            outcomes: list[BaseException | None] = []
            try:
                writer = archive.store.create()
                writer.write(one.content)
                one.content = writer.seal()
                archive.keep(one, outcomes.append)
            except OSError as error:
                outcomes.append(error)
            failed = disk.failed
            disk.arm(-1, 0)
            (outcome,) = outcomes
            if outcome is None:
                if not failed:
                    break
                # A descriptor whose content is on the medium, or whose errors have been reported already.
                self.assertEqual(failed.split()[0], "close")
                continue
            assert isinstance(outcome, OSError)
            self.assertEqual(outcome.errno, errno.ENOSPC)
            self.assertEqual({path: path.read_bytes() for path in files(self.root)}, before, failed)
            steps.add(failed.split()[0])
        self.assertGreaterEqual(steps, {"open", "writev", "fsync", "link", "name", "rename"})


class SideFolders(StoreTestCase):
    def test_each_call(self) -> None:
        """A file beside the instances is the new one or the old one, or does not exist."""
        for durability in Durability:
            for earlier in (True, False):
                self.root = Path(self.mktemp())
                disk = Failing()
                folder = self.make(durability, disk).side_folder(".notes")
                for step in range(60):
                    if earlier:
                        folder.put([OLD], "a")
                    elif "a" in folder:
                        folder.remove("a")
                        os.rmdir(self.root / ".notes")
                    disk.calls.clear()
                    disk.arm(step, errno.EIO)
                    try:
                        folder.put([NEW], "a")
                    except OSError as error:
                        self.assertEqual(error.errno, errno.EIO)
                    failed = disk.failed
                    last = f"{'rename' if earlier or not self.nameless else 'name'} {folder.path('a')}"
                    named = last in disk.calls and failed != last
                    disk.arm(-1, 0)
                    self.assert_no_left_overs()
                    if named:
                        self.assertEqual(folder.read("a", 10_000), NEW, failed)
                    elif earlier:
                        self.assertEqual(folder.read("a", 10_000), OLD, failed)
                    else:
                        self.assertEqual([name for name in folder.names() if name == "a"], [], failed)
                        if (self.root / ".notes").exists():
                            os.rmdir(self.root / ".notes")
                    if not failed:
                        break
                self.assertGreater(step, 4)


class Verifying(StoreTestCase):
    def test_what_cannot_be_synced_is_not_committed_to(self) -> None:
        """With durability none an instance is flushed to the medium first: its file, and the folders that lead to it."""
        disk = Failing()
        archive = Archive(self.root, durability=Durability.NONE, file_system=disk)
        archive.open()
        self.addCleanup(archive.close)
        self.assertIsNone(keep(archive, dataset()))
        reference = Reference(SECONDARY_CAPTURE, "1.2.1.1.1")
        failed = []
        for step in range(30):
            disk.arm(step, errno.EIO)
            damaged: list[str] = []
            (reason,) = verify(archive, [reference], damaged)
            if not disk.failed:
                self.assertEqual((reason, damaged), (0, []))
                break
            failed.append(disk.failed)
            self.assertEqual(reason, PROCESSING_FAILURE)
            self.assertIn(os.strerror(errno.EIO), damaged[0])
            disk.arm(-1, 0)
        folders = [self.root / "1.2.1" / "1.2.1.1", self.root / "1.2.1", self.root]
        self.assertEqual([call for call in failed if call.startswith("fsync")],
                         [f"fsync {path}" for path in (folders[0] / "1.2.1.1.1.dcm", *folders)])  # fmt: skip
