"""Instances on disk: complete or absent, the old copy unchanged until the new one is safe, nothing left over."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from dicomtwist.archive.storage import file_store, temporary_files
from dicomtwist.archive.storage.file_store import InstanceStore
from dicomtwist.archive.storage.system_calls import Buffer, FileSystem
from dicomtwist.archive.storage.types import Durability, InvalidUID, StoreClosed, StoreUnusable, Written

UIDS = ("1.2.3", "1.2.3.4", "1.2.3.4.5")
OLD, NEW = b"old" * 1000, b"new!" * 2000


class Recording(FileSystem):
    """The real file system, which records each call."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.paths: dict[int, str] = {}

    def note(self, name: str, what: str) -> None:
        self.calls.append(f"{name} {what}")

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        self.note("open", path)
        fd = super().open(path, flags, mode)
        self.paths[fd] = path
        return fd

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        self.note("writev", self.paths[fd])
        return super().writev(fd, buffers)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self.note("pwritev", self.paths[fd])
        return super().pwritev(fd, buffers, offset)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self.note("pread", self.paths[fd])
        return super().pread(fd, length, offset)

    def fsync(self, fd: int) -> None:
        self.note("fsync", self.paths[fd])
        super().fsync(fd)

    def fdatasync(self, fd: int) -> None:
        self.note("fdatasync", self.paths[fd])
        super().fdatasync(fd)

    def close(self, fd: int) -> None:
        # As on Linux: the descriptor is closed even if close reports an error.
        super().close(fd)
        self.note("close", self.paths.pop(fd))

    def flush(self, fd: int) -> None:
        self.note("flush", self.paths[fd])
        super().flush(fd)

    def rename(self, source: str, target: str) -> None:
        self.note("rename", target)
        super().rename(source, target)

    def name(self, fd: int, target: str) -> None:
        self.note("name", target)
        super().name(fd, target)

    def link(self, source: str, target: str) -> None:
        self.note("link", target)
        super().link(source, target)

    def free(self, path: str) -> int:
        self.note("free", path)
        return super().free(path)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        self.note("mkdir", path)
        super().mkdir(path, mode)

    def unlink(self, path: str) -> None:
        self.note("unlink", path)
        super().unlink(path)

    def rmdir(self, path: str) -> None:
        self.note("rmdir", path)
        super().rmdir(path)


class Failing(Recording):
    """Fails at the n-th call counted from :meth:`arm`, not counting calls that only clean up."""

    def __init__(self) -> None:
        super().__init__()
        self.left = -1
        self.code = 0
        self.failed = ""

    def arm(self, left: int, code: int) -> None:
        self.left, self.code, self.failed = left, code, ""

    def note(self, name: str, what: str) -> None:
        super().note(name, what)
        if self.left >= 0 and name != "unlink":
            self.left -= 1
            if self.left < 0:
                self.failed = f"{name} {what}"
                raise OSError(self.code, os.strerror(self.code))


class Dribbling(FileSystem):
    """Writes only a few bytes at once, as an operating system may."""

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        assert len(buffers) <= temporary_files._IOV_MAX
        joined = b"".join(buffers)
        return os.write(fd, joined[: random.randint(1, 700)])


class StoreTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp()) / "store"
        self.root.parent.mkdir(parents=True)

    #: Whether temporary files may have no name.
    nameless = True

    def make(self, durability: Durability = Durability.FULL, file_system: FileSystem | None = None) -> InstanceStore:
        if not self.nameless:
            self.patch(temporary_files, "_NAMELESS", 0)
        store = InstanceStore(self.root, durability=durability, file_system=file_system)
        store.prepare()
        self.addCleanup(store.close)
        self.store = store
        self.assertEqual(store.temporary_files.can_be_nameless, self.nameless)
        return store

    def assert_no_left_overs(self) -> None:
        self.assertEqual(list(self.root.rglob("*.part")), [])
        self.assertEqual(self.store.temporary_files.unnamed if hasattr(self, "store") else 0, 0)

    def open_files(self) -> int:
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def by_store(store: InstanceStore, data: bytes) -> Path:
    return Path(store.store([data[:132], data[132:]], *UIDS))


def by_writer(store: InstanceStore, data: bytes) -> Path:
    writer = store.create()
    writer.write([data[:132]])
    writer.write([memoryview(data)[132:1000], bytearray(data[1000:])])
    return Path(store.store_temporary(writer.seal(), *UIDS))


WAYS: tuple[Callable[[InstanceStore, bytes], Path], ...] = (by_store, by_writer)


class Storing(StoreTestCase):
    def test_where_and_what(self) -> None:
        for durability in Durability:
            store = self.make(durability)
            for way in WAYS:
                for data in (OLD, NEW):
                    path = way(store, data)
                    self.assertEqual(path, self.root / "1.2.3" / "1.2.3.4" / "1.2.3.4.5.dcm")
                    self.assertEqual(path, store.path(*UIDS))
                    self.assertEqual(path.read_bytes(), data)
                    self.assert_no_left_overs()

    def test_nobody_else_can_read_it(self) -> None:
        path = by_store(self.make(), NEW)
        self.assertEqual(path.stat().st_mode & 0o137, 0)
        self.assertEqual(path.parent.stat().st_mode & 0o027, 0)

    def test_order_of_full(self) -> None:
        recording = Recording()
        store = self.make(file_system=recording)
        root, study, series = (str(self.root / sub) for sub in ("", "1.2.3", "1.2.3/1.2.3.4"))
        expected = ["writev", "fsync", "close"]
        folders = [f"mkdir {study}", f"fsync {root}", f"mkdir {series}", f"fsync {study}"]
        for way in WAYS:
            for known in (False, True):
                if not known:
                    store._known.clear()
                recording.calls.clear()
                path = way(store, NEW)
                calls = recording.calls
                temporary = calls[0].split()[1]
                mine = [call.split()[0] for call in calls[1:] if call.endswith(temporary)]
                self.assertEqual(mine, expected if way is by_store else ["writev", *expected])
                rest = [
                    call for call in calls if not call.endswith(temporary) and call.split()[0] not in ("open", "close")
                ]
                final = [f"{'name' if self.nameless else 'rename'} {series}/1.2.3.4.5.dcm", f"fsync {series}"]
                self.assertEqual(rest, final if known else folders + final)
                self.assertLess(calls.index(f"fsync {temporary}"), calls.index(final[0]))
                path.unlink()

    def test_the_place_of_an_earlier_one(self) -> None:
        recording = Recording()
        store = self.make(file_system=recording)
        for way in WAYS:
            path = way(store, OLD)
            recording.calls.clear()
            way(store, NEW)
            self.assertEqual(path.read_bytes(), NEW)
            # This file always has a name.
            self.assertNotIn(f"unlink {path}", recording.calls)
            self.assertIn(f"rename {path}", recording.calls)
            self.assertEqual(recording.calls[-2:], [f"fsync {path.parent}", f"close {path.parent}"])

    def test_only_where_there_is_none(self) -> None:
        store = self.make()
        first, second = (store.write_temporary([data]) for data in (OLD, NEW))
        path = Path(store.rename(first.path, *UIDS, exclusive=True))
        self.assertRaises(FileExistsError, store.rename, second.path, *UIDS, exclusive=True)
        self.assertEqual(path.read_bytes(), OLD)
        self.assertEqual(store.open_temporary(second).read(), NEW)
        store.rename(second.path, *UIDS)
        self.assertEqual(path.read_bytes(), NEW)
        self.assert_no_left_overs()

    def test_many_that_wait_for_their_name(self) -> None:
        """Files without a name do not use up the file descriptors."""
        store = self.make(Durability.NONE)
        before = self.open_files()
        written = [store.write_temporary([b"%d" % number]) for number in range(temporary_files.MAX_NAMELESS + 10)]
        self.assertEqual(self.open_files() - before, temporary_files.MAX_NAMELESS if self.nameless else 0)
        for number, one in enumerate(written):
            self.assertEqual(Path(store.rename(one.path, "1.2", "1.3", f"1.4.{number}")).read_bytes(), b"%d" % number)
        self.assertEqual(self.open_files(), before)
        self.assert_no_left_overs()

    def test_system_calls_of_none(self) -> None:
        recording = Recording()
        store = self.make(Durability.NONE, recording)
        by_store(store, OLD).unlink()
        recording.calls.clear()
        by_store(store, NEW)
        expected = (
            ["open", "writev", "flush", "name", "close"] if self.nameless else ["open", "writev", "close", "rename"]
        )
        self.assertEqual([call.split()[0] for call in recording.calls], expected)

    def test_a_large_one_is_on_its_way_to_the_medium_while_it_comes(self) -> None:
        class Watching(FileSystem):
            started: list[tuple[int, int]] = []

            def start_writing(self, fd: int, offset: int, length: int) -> None:
                self.started.append((offset, length))
                super().start_writing(fd, offset, length)
                super().start_writing(-1, offset, length)  # what fails is no matter

        page = os.sysconf("SC_PAGESIZE")
        pieces = [b"a" * (page + 1000), b"b" * 100, b"c" * (2 * page - 1100), b"d" * 100]
        watching = Watching()
        for durability, started in ((Durability.NONE, []), (Durability.FULL, [(0, page), (page, 2 * page)])):
            store = self.make(durability, watching)
            writer = store.create()
            for piece in pieces:
                writer.write([piece[:10], piece[10:]])
            self.assertEqual(Path(store.store_temporary(writer.seal(), *UIDS)).read_bytes(), b"".join(pieces))
            self.assertEqual(watching.started, started, "each page once, when it is full")

    def test_uids_that_are_none(self) -> None:
        store = self.make()
        for wrong in (
            "", ".", "..", "../../x", "/etc/x", "1.", ".1", "1..2", "1/2", "1.2\n", "1.2\0", "1.2 ", "1.a",
            "\u0661", "1.-2", "1" * 65, "1." * 150 + "1", "$(id)", "`id`", ".incoming",
        ):  # fmt: skip
            for place in range(3):
                uids = [*UIDS]
                uids[place] = wrong
                self.assertRaises(InvalidUID, store.store, [NEW], *uids)
                writer = store.create()
                writer.write([NEW])
                self.assertRaises(InvalidUID, store.store_temporary, writer.seal(), *uids)
                self.assertRaises(InvalidUID, store.path, *uids)
        self.assertEqual([entry.name for entry in self.root.iterdir()], [".incoming"])
        self.assert_no_left_overs()
        self.assertTrue(Path(store.store([NEW], "0", "1" * 64, "1.02")).exists())

    def test_many_and_empty_buffers(self) -> None:
        for file_system in (FileSystem(), Dribbling()):
            store = self.make(Durability.NONE, file_system)
            buffers: list[Buffer] = [b"", *(bytes([n % 256]) * (n % 7) for n in range(5000)), b""]
            whole = b"".join(buffers)
            self.assertEqual(Path(store.store(buffers, *UIDS)).read_bytes(), whole)
            writer = store.create()
            writer.write(buffers)
            writer.write([])
            writer.write([b""])
            writer.write([memoryview(whole)])
            self.assertEqual(writer.size, 2 * len(whole))
            self.assertEqual(Path(store.store_temporary(writer.seal(), *UIDS)).read_bytes(), whole * 2)

    def test_a_write_that_makes_no_progress(self) -> None:
        class Stuck(FileSystem):
            def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
                return 0 if len(b"".join(buffers)) > 1 else super().writev(fd, buffers)

        store = self.make(file_system=Stuck())
        self.assertEqual(self.assertRaises(OSError, by_store, store, NEW).errno, errno.EIO)
        self.assert_no_left_overs()

    def test_after_the_end(self) -> None:
        store = self.make()
        before = self.open_files()
        writer = store.create()
        writer.write([OLD])
        writer.discard()
        writer.discard()
        self.assert_no_left_overs()
        self.assertRaises(StoreClosed, writer.write, [OLD])
        self.assertRaises(StoreClosed, writer.seal)
        writer = store.create()
        path = Path(store.store_temporary(writer.seal(), *UIDS))
        writer.discard()
        self.assertTrue(path.exists())
        self.assertEqual(self.open_files(), before)

    def test_discard_leaves_the_earlier_copy(self) -> None:
        store = self.make()
        path = by_store(store, OLD)
        writer = store.create()
        writer.write([NEW])
        self.assertEqual(path.read_bytes(), OLD)
        writer.discard()
        self.assertEqual(path.read_bytes(), OLD)

    def test_folders_that_someone_removed(self) -> None:
        store = self.make()
        for way in WAYS:
            path = way(store, OLD)
            path.unlink()
            path.parent.rmdir()
            path.parent.parent.rmdir()
            self.assertEqual(way(store, NEW).read_bytes(), NEW)

    def test_a_file_where_a_folder_should_be(self) -> None:
        store = self.make()
        (self.root / "1.2.3").write_bytes(b"")
        for way in WAYS:
            self.assertEqual(self.assertRaises(OSError, way, store, NEW).errno, errno.ENOTDIR)
        self.assert_no_left_overs()

    def test_known_folders_are_bounded(self) -> None:
        self.patch(file_store, "MAX_KNOWN_FOLDERS", 10)
        store = self.make(Durability.NONE)
        for number in range(50):
            store.store([OLD], f"1.{number}", "1.2", "1.3")
        self.assertLessEqual(len(store._known), 12)
        self.assertEqual(len(list(self.root.rglob("*.dcm"))), 50)

    def test_threads(self) -> None:
        store = self.make(Durability.NONE)
        wrong: list[object] = []

        def work(number: int) -> None:
            try:
                for turn in range(60):
                    data = bytes([number]) * (5000 + number)
                    WAYS[turn % 2](store, data)
                    path = Path(store.store([data], "1.9", f"1.9.{turn % 7}", f"1.9.{number}.{turn}"))
                    seen = store.path(*UIDS).read_bytes()
                    if path.read_bytes() != data or len(set(seen)) != 1 or len(seen) != 5000 + seen[0]:
                        wrong.append(path)
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])
        self.assertEqual(len(list((self.root / "1.9").rglob("*.dcm"))), 8 * 60)
        self.assert_no_left_overs()


class FlushingMany(StoreTestCase):
    """Files that were published before they are on the medium, many at once."""

    class Counting(FileSystem):
        def __init__(self) -> None:
            self.whole = self.single = 0
            self.fails = False

        def sync_all(self, fd: int) -> None:
            self.whole += 1
            if self.fails:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            super().sync_all(fd)

        def fsync(self, fd: int) -> None:
            self.single += 1
            super().fsync(fd)

    def published(self, disk: FileSystem, number: int, durability: Durability) -> tuple[InstanceStore, list[Any]]:
        store = self.make(durability, disk)
        instances = [("1.2", "1.2.3", f"1.2.3.{one}") for one in range(number)]
        for uids in instances:
            (file,) = store.write_acknowledged([(NEW, 0)])
            assert isinstance(file, Written)
            store.publish(file.path, *uids)
        return store, instances

    def test_with_one_call(self) -> None:
        disk = self.Counting()
        if not disk.can_sync_all:
            raise SkipTest("this system does not report what it cannot flush")
        store, instances = self.published(disk, file_store.MAX_SYNCED + 1, Durability.FULL)
        disk.single = 0
        self.assertEqual(store.sync_files(instances), {})
        self.assertEqual((disk.whole, disk.single), (1, 0))
        disk.fails = True
        self.assertEqual({uids: error.errno for uids, error in store.sync_files(instances).items()},
                         dict.fromkeys(instances, errno.EIO))  # fmt: skip

    def test_one_by_one(self) -> None:
        """If there are few, or if the system cannot be trusted."""
        for number, can in ((3, True), (file_store.MAX_SYNCED + 1, False)):
            disk = self.Counting()
            with mock.patch.object(FileSystem, "can_sync_all", can):
                store, instances = self.published(disk, number, Durability.FULL)
                disk.single = 0
                self.assertEqual(store.sync_files(instances), {})
                self.assertEqual((disk.whole, disk.single), (0, number + 3), "files and three folders")
                store.close()
            shutil.rmtree(self.root)

    def test_without_syncs(self) -> None:
        disk = self.Counting()
        store, instances = self.published(disk, file_store.MAX_SYNCED + 1, Durability.NONE)
        self.assertEqual((store.sync_files(instances), disk.whole, disk.single), ({}, 0, 0))


class Faults(StoreTestCase):
    def test_each_step_can_fail(self) -> None:
        """Each system call fails once, with and without an earlier copy, with known and unknown folders."""
        failing = Failing()
        for durability in Durability:
            store = self.make(durability, failing)
            for way in WAYS:
                for code in (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT):
                    for earlier in (True, False):
                        self.sweep(store, failing, way, code, earlier)

    def sweep(
        self,
        store: InstanceStore,
        failing: Failing,
        way: Callable[[InstanceStore, bytes], Path],
        code: int,
        earlier: bool,
    ) -> None:
        path = store.path(*UIDS)
        for known in (True, False):
            for step in range(100):
                by_store(store, OLD)
                if not earlier:
                    path.unlink()
                if not known:
                    store._known.clear()
                    if not earlier:
                        path.parent.rmdir()
                        path.parent.parent.rmdir()
                before = self.open_files()
                failing.calls.clear()
                failing.arm(step, code)
                try:
                    way(store, NEW)
                except OSError as error:
                    self.assertEqual(error.errno, code)
                    self.assertNotEqual(failing.failed, "")
                else:
                    # The last close of a file without a name: its errors have been reported before.
                    self.assertIn(failing.failed, ("", f"close {self.root / '.incoming'}") if self.nameless else ("",))
                failed = failing.failed
                failing.arm(-1, 0)
                self.assert_no_left_overs()
                self.assertEqual(self.open_files(), before, failed)
                last = f"rename {path}" if earlier or not self.nameless else f"name {path}"
                if last in failing.calls and failed != last:
                    self.assertEqual(path.read_bytes(), NEW, failed)
                elif earlier:
                    self.assertEqual(path.read_bytes(), OLD, failed)
                else:
                    self.assertFalse(path.exists(), failed)
                self.assertEqual(by_writer(store, OLD).read_bytes(), OLD)
                if not failed:
                    break
            # at least open, writev, close or name, rename, and two calls to make the folders
            self.assertGreaterEqual(step, 4 if known else 6)

    def test_a_file_system_that_is_read_only_now(self) -> None:
        """If even the temporary file cannot be removed, the first error is raised."""

        class ReadOnly(Failing):
            def unlink(self, path: str) -> None:
                if self.failed:
                    raise OSError(errno.EROFS, "read-only")
                super().unlink(path)

        failing = ReadOnly()
        store = self.make(file_system=failing)
        for way in WAYS:
            failing.arm(1, errno.EIO)
            self.assertEqual(self.assertRaises(OSError, way, store, NEW).errno, errno.EIO)
        store.close()
        again = InstanceStore(self.root)
        self.assertEqual(again.prepare(), 0 if self.nameless else 2)
        again.close()

    def test_a_full_file_system(self) -> None:
        mount_point = Path(self.mktemp())
        mount_point.mkdir(parents=True)
        try:
            mounted = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount_point)], capture_output=True
            )
        except OSError as error:
            raise SkipTest("there is no mount command") from error
        if mounted.returncode:
            raise SkipTest("a tmpfs cannot be mounted here")
        self.addCleanup(subprocess.run, ["umount", str(mount_point)], check=True)
        self.root = mount_point / "store"
        store = self.make()
        self.addCleanup(store.close)
        path = by_store(store, OLD)
        huge = random.randbytes(300_000)
        for way in WAYS:
            self.assertEqual(self.assertRaises(OSError, way, store, huge).errno, errno.ENOSPC)
            self.assert_no_left_overs()
            self.assertEqual(path.read_bytes(), OLD)
        writer = store.create()
        self.assertRaises(OSError, writer.write, [huge[:50_000]] * 10)
        self.assertRaises(StoreClosed, writer.write, [b"x"])
        self.assertEqual(by_writer(store, NEW).read_bytes(), NEW)


class Preparing(StoreTestCase):
    def refuse(self, root: Path, reason: str, file_system: FileSystem | None = None) -> None:
        before = self.open_files()
        store = InstanceStore(root, file_system=file_system)
        self.assertIn(reason, str(self.assertRaises(StoreUnusable, store.prepare)))
        self.assertEqual(self.open_files(), before)

    def test_makes_the_folders_and_nothing_else(self) -> None:
        self.make()
        self.assertEqual([entry.name for entry in self.root.iterdir()], [".incoming"])
        self.assertEqual([entry.name for entry in (self.root / ".incoming").iterdir()], [".lock"])

    def test_what_cannot_be_a_store(self) -> None:
        self.refuse(self.root / "a" / "b", "folder above it")
        a_file = self.root.parent / "file"
        a_file.write_bytes(b"")
        self.refuse(a_file, "a file in its place")
        self.refuse(a_file / "x", "a file in its place")

    def test_each_step_can_fail(self) -> None:
        for code, advice in (
            (errno.ENOSPC, "choose another folder"),
            (errno.EACCES, "let the user that runs the server"),
            (errno.EXDEV, "same file system"),
            (errno.EINVAL, "durability none"),
        ):
            for step in range(30):
                failing = Failing()
                failing.arm(step, code)
                try:
                    InstanceStore(self.root, file_system=failing).prepare()
                except StoreUnusable as error:
                    self.assertIn(advice, str(error))
                    self.assert_no_left_overs()
                    continue
                if not failing.failed:
                    break
            self.assertGreater(step, 8)

    def test_a_root_that_was_there_in_a_folder_that_cannot_be_read(self) -> None:
        class Unreadable(FileSystem):
            def open(inner, path: str, flags: int, mode: int = 0o777) -> int:
                if path == str(self.root.parent.resolve()):
                    raise OSError(errno.EACCES, "permission denied")
                return super().open(path, flags, mode)

        self.refuse(self.root, "let the user", Unreadable())
        InstanceStore(self.root, file_system=Unreadable()).prepare()

    def test_the_probes_of_starts_that_were_killed_are_removed(self) -> None:
        """Killed before they removed the file that they had written to try it."""

        class Kept(FileSystem):
            def unlink(self, path: str) -> None:
                pass

        killed = InstanceStore(self.root, file_system=Kept())
        killed.prepare()
        killed.close()
        # Nobody else's files.
        others = [self.root / ".x-probe.part.bak", self.root / "x-probe.part"]
        for path in others:
            path.touch()
        self.assertEqual(len(list(self.root.iterdir())), 4)
        self.make(file_system=FileSystem())
        self.assertEqual({path for path in self.root.iterdir() if path.is_file()}, set(others))

    def test_left_overs_are_removed_when_nobody_else_is_there(self) -> None:
        first = self.make()
        writer = first.create()
        writer.write([NEW])
        second = InstanceStore(self.root)
        self.addCleanup(second.close)
        self.assertEqual(second.prepare(), 0)
        self.assertEqual(Path(first.store_temporary(writer.seal(), *UIDS)).read_bytes(), NEW)
        first.create().write([NEW])
        first.close()
        second.close()
        self.assertEqual(second.prepare(), 0 if self.nameless else 1)
        self.assert_no_left_overs()


class NamedStoring(Storing):
    """With temporary files that have names."""

    nameless = False


class NamedFaults(Faults):
    """With temporary files that have names."""

    nameless = False


class NamedPreparing(Preparing):
    """With temporary files that have names."""

    nameless = False


VICTIM = """
import sys
from pathlib import Path
from dicomtwist.archive.storage.file_store import InstanceStore
from dicomtwist.archive.storage.types import Durability

store = InstanceStore(Path(sys.argv[1]), durability=Durability(sys.argv[2]))
store.prepare()
number = 0
while True:
    number += 1
    data = number.to_bytes(4, "big") * 50_000
    if number % 2:
        store.store([data], "1.2", "1.3", f"1.{number % 5}")
    else:
        writer = store.create()
        for begin in range(0, len(data), 10_000):
            writer.write([data[begin : begin + 10_000]])
        store.store_temporary(writer.seal(), "1.2", "1.3", f"1.{number % 5}")
    print(number, flush=True)
"""


class Killed(StoreTestCase):
    def test_kill_at_any_moment(self) -> None:
        """An acknowledged instance is there and complete; any other is the old copy, the new one, or absent."""
        for durability in ("none", "full"):
            for _ in range(3):
                victim = subprocess.Popen(
                    [sys.executable, "-c", VICTIM, str(self.root), durability],
                    stdout=subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
                assert victim.stdout is not None
                victim.stdout.readline()
                time.sleep(random.uniform(0.02, 0.2))
                victim.send_signal(signal.SIGKILL)
                answered = [1, *map(int, victim.stdout.read().split())]
                victim.stdout.close()
                victim.wait()
                store = self.make()
                self.assert_no_left_overs()
                store.close()
                for place in range(5):
                    last = max((number for number in answered if number % 5 == place), default=None)
                    if last is None:
                        continue
                    data = store.path("1.2", "1.3", f"1.{place}").read_bytes()
                    self.assertEqual(data, data[:4] * 50_000)
                    self.assertIn(int.from_bytes(data[:4], "big"), (last, answered[-1] + 1))
