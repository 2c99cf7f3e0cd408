"""Agreement of files and index: duplicates, groups, faults at each step, starts, migrations, kills."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from pydicom import dcmread
from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.event import listen
from sqlalchemy.exc import OperationalError
from sqlalchemy.schema import CreateTable
from twisted.internet import reactor
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from dicomtwist.archive.archive import Archive, DuplicateInstance, Duplicates
from dicomtwist.archive.folder_import import import_folder
from dicomtwist.archive.index import index as index_module
from dicomtwist.archive.index import schema
from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.index.index import IndexFailed
from dicomtwist.archive.index.record import IndexRow, make_record, scanner_for
from dicomtwist.archive.instance import ReceivedInstance
from dicomtwist.archive.query import search
from dicomtwist.archive.query.compiler import Model
from dicomtwist.archive.query.search import Finder
from dicomtwist.archive.recovery import Reconciled, reconcile
from dicomtwist.archive.storage.system_calls import FileSystem
from dicomtwist.archive.storage.types import Durability, StoreUnusable
from dicomtwist.runtime.executors import Executors
from tests import peers
from tests.archive.samples import ask, dataset, encoded, files, handed, keep


class ArchiveCase(SynchronousTestCase):
    """An archive of its own for each test."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())

    def open(self, **options: Any) -> Archive:
        archive = Archive(self.root, **options)
        archive.open()
        self.addCleanup(archive.close)
        return archive

    def kept(self, archive: Archive, *instances: Any) -> None:
        for one in instances:
            self.assertIsNone(keep(archive, one))

    def assert_consistent(self, archive: Archive) -> list[Path]:
        """Check that files and rows are of the same instances, and that there are no other files."""
        there = files(self.root)
        indexed = [
            self.root / study / series / f"{uid}.dcm" for study, series, uids in archive.index.files() for uid in uids
        ]
        self.assertEqual(sorted(indexed), there)
        self.assertEqual(archive.index.announced(), [])
        return there


class Keeping(ArchiveCase):
    """New instances and duplicates."""

    def test_duplicates(self) -> None:
        for duplicates in Duplicates:
            for size in (0, 5000):
                self.root = Path(self.mktemp())
                archive = self.open(duplicates=duplicates)
                first = dataset(PatientComments="one" + "." * size)
                second = dataset(PatientComments="two" + "." * size)
                self.kept(archive, first)
                (path,) = files(self.root)
                before = (path.stat().st_ino, path.read_bytes())
                again = keep(archive, first)
                self.assertEqual((path.stat().st_ino, path.read_bytes()), before)
                other = keep(archive, second)
                rejected = duplicates is Duplicates.REJECT
                for outcome in (again, other):
                    self.assertIsInstance(outcome, DuplicateInstance if rejected else type(None))
                expected = "two" if duplicates is Duplicates.REPLACE else "one"
                self.assertEqual(dcmread(path).PatientComments[:3], expected)
                (answer,) = ask(archive, "STUDY", PatientComments=None)
                self.assertEqual(answer.PatientComments[:3], expected)
                self.assert_consistent(archive)

    def test_large_duplicates(self) -> None:
        """Instances in temporary files are compared as well."""
        archive = self.open()
        for comment, inode_stays in (("a", False), ("a", True), ("b", False)):
            one = handed(dataset(PatientComments=comment))
            writer = archive.store.create()
            assert isinstance(one.content, list)
            writer.write(one.content)
            before = [path.stat().st_ino for path in files(self.root) if path.suffix == ".dcm"]
            outcomes: list[BaseException | None] = []
            one.content = writer.seal()
            archive.keep(one, outcomes.append)
            self.assertEqual(outcomes, [None])
            (path,) = self.assert_consistent(archive)
            self.assertEqual([path.stat().st_ino] == before, inode_stays)
            self.assertEqual(dcmread(path).PatientComments, comment)

    def test_same_bytes_in_another_transfer_syntax(self) -> None:
        archive = self.open()
        made = dataset()
        self.kept(archive, made)
        self.assertIsNone(keep(archive, made, "1.2.840.10008.1.2.1.99"))
        (path,) = self.assert_consistent(archive)
        self.assertEqual(dcmread(path).file_meta.TransferSyntaxUID, "1.2.840.10008.1.2.1.99")

    def test_another_patient(self) -> None:
        """A file has one row even if the patient of its study changes; a patient without instances is removed."""
        archive = self.open()
        self.kept(archive, dataset(PatientID="A"), dataset(PatientID="B"))
        self.assertEqual([answer.PatientID for answer in ask(archive, "STUDY", PatientID=None)], ["B"])
        self.assertEqual(archive.index.counts(), dict.fromkeys(Level, 1))
        self.kept(archive, dataset(2, PatientID="A"))
        self.assertEqual([answer.PatientID for answer in ask(archive, "STUDY", PatientID=None)], ["B", "A"])
        self.assert_consistent(archive)

    def test_who_came_last_describes(self) -> None:
        archive = self.open()
        self.kept(archive, dataset(1, StudyDescription="one"), dataset(2, series=2, StudyDescription="two"))
        (answer,) = ask(archive, "STUDY", StudyDescription=None)
        self.assertEqual(answer.StudyDescription, "two")

    def test_patients_without_id(self) -> None:
        archive = self.open()
        self.kept(
            archive,
            dataset(study=1, PatientID="", PatientName="A"),
            dataset(study=2, PatientID="", PatientName="B"),
            dataset(study=3, PatientID="", PatientName="a"),
            dataset(study=4, PatientID="X", IssuerOfPatientID="1"),
            dataset(study=5, PatientID="X", IssuerOfPatientID="2"),
        )
        self.assertEqual(archive.index.counts()[Level.PATIENT], 4)

    def test_many_at_once(self) -> None:
        """Threads store equal and different instances: all are stored, in fewer commits than instances."""
        archive = self.open()
        commits: list[int] = []
        add = archive.index.add

        def counted(rows: Any) -> None:
            commits.append(len(rows))
            add(rows)

        archive.index.add = counted  # type: ignore[method-assign,assignment]
        outcomes: list[BaseException | None] = []
        all_done = threading.Event()

        def done(outcome: BaseException | None) -> None:
            outcomes.append(outcome)
            if len(outcomes) == 8 * 40:
                all_done.set()

        def work(thread: int) -> None:
            for number in range(40):
                series = thread if number % 4 else 99
                archive.keep(handed(dataset(number, series, PatientComments=str(thread))), done)

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertTrue(all_done.wait(60))
        self.assertEqual(outcomes, [None] * 320)
        there = self.assert_consistent(archive)
        self.assertEqual(len(there), 8 * 30 + 10)
        with archive.index.engine.connect() as connection:
            rows = connection.execute(text("SELECT sop_instance_uid, size FROM instance")).all()
        sizes = {path.stem: path.stat().st_size for path in there}
        self.assertEqual({row[0]: row[1] for row in rows}, sizes)
        self.assertLess(len(commits), 320)

    def test_a_closed_archive(self) -> None:
        archive = self.open()
        archive.close()
        archive.close()
        self.assertIsNotNone(keep(archive, dataset()))
        self.assertEqual(files(self.root), [])

    def test_one_program_at_a_time(self) -> None:
        self.open()
        error = self.assertRaises(StoreUnusable, Archive(self.root).open)
        self.assertIn("another program", str(error))

    def test_values_that_are_odd(self) -> None:
        """An instance is stored and can be queried, whatever bytes its values have."""
        archive = self.open()
        syntax = "1.2.840.10008.1.2.1"
        for number, name in enumerate((b"\xff\xfe\0\0", b"\x1b$B\xff", b"\0", b"\\", b"=", b"^", b"\xed\xa0\x80")):
            record, (head, data) = encoded(dataset(study=number, PatientName="12345678"))
            data = data.replace(b"12345678", (name * 8)[:8])
            scanner = scanner_for(syntax)
            if not scanner.feed(data):
                scanner.finish()
            odd = make_record(scanner.values, syntax)
            outcomes: list[BaseException | None] = []
            archive.keep(
                ReceivedInstance(record.uids, syntax, [head, data], partial(lambda odd: odd, odd), 0), outcomes.append
            )
            self.assertEqual(outcomes, [None], name)
            (answer,) = ask(archive, "STUDY", StudyInstanceUID=f"1.2.{number}", PatientName=None)
            self.assertIn("PatientName", answer)


class Failing(FileSystem):
    """Fails at the n-th call; on request calls that clean up count as well."""

    def __init__(self) -> None:
        self.left = -1
        self.code = 0
        self.failed = ""

    def arm(self, left: int, code: int = errno.EIO) -> None:
        self.left, self.code, self.failed = left, code, ""

    def _count(self, name: str) -> None:
        if self.left >= 0:
            self.left -= 1
            if self.left < 0:
                self.failed = name
                raise OSError(self.code, os.strerror(self.code))

    def open(self, path, flags, mode=0o777):
        self._count("open")
        return super().open(path, flags, mode)

    def writev(self, fd, buffers):
        self._count("writev")
        return super().writev(fd, buffers)

    def fsync(self, fd):
        self._count("fsync")
        super().fsync(fd)

    def rename(self, source, target):
        self._count("rename")
        super().rename(source, target)

    def name(self, fd, target):
        self._count("name")
        super().name(fd, target)

    def link(self, source, target):
        self._count("link")
        super().link(source, target)

    def mkdir(self, path, mode=0o777):
        self._count("mkdir")
        super().mkdir(path, mode)


class Faults(ArchiveCase):
    """Each step fails once: nothing is left of the new instance, the old copy has not changed, and the next one is stored."""

    def test_each_system_call(self) -> None:
        for earlier in (False, True):
            for code in (errno.ENOSPC, errno.EIO, errno.EROFS):
                self.root = Path(self.mktemp())
                disk = Failing()
                archive = self.open(file_system=disk)
                steps = []
                for step in range(50):
                    number = step if not earlier else 0
                    if earlier:
                        self.kept(archive, dataset(number, PatientComments="old"))
                    before = {path: path.read_bytes() for path in files(self.root)}
                    disk.arm(step, code)
                    outcome = keep(
                        archive, dataset(number, series=step + 1 if not earlier else 1, PatientComments="new")
                    )
                    failed = disk.failed
                    disk.arm(-1)
                    if not failed:
                        self.assertIsNone(outcome)
                        break
                    steps.append(failed)
                    assert isinstance(outcome, OSError)
                    self.assertEqual(outcome.errno, code)
                    self.assertEqual({path: path.read_bytes() for path in files(self.root)}, before, failed)
                    if not earlier:
                        self.assert_consistent(archive)
                    else:
                        (answer,) = ask(archive, "STUDY", PatientComments=None)
                        self.assertEqual(answer.PatientComments, "old")
                self.assertIn("link" if earlier else "mkdir", steps)
                self.assertGreaterEqual(steps.count("fsync"), 2)

    def test_the_database(self) -> None:
        """The database refuses each statement in turn."""
        for earlier in (False, True):
            self.root = Path(self.mktemp())
            archive = self.open()
            for step in range(30):
                self.kept(archive, dataset(100))
                if earlier:
                    self.kept(archive, dataset(1, PatientComments="old"))
                before = {path: path.read_bytes() for path in files(self.root)}
                left = [step]

                def refuse(*_: object, left: list[int] = left) -> int:
                    left[0] -= 1
                    return sqlite3.SQLITE_DENY if left[0] < 0 else sqlite3.SQLITE_OK

                connection: Any = archive.index._connection.connection.dbapi_connection
                connection.set_authorizer(refuse)
                outcome = keep(
                    archive,
                    dataset(1 if earlier else 2 + step, series=step + 1 if not earlier else 1, PatientComments="new"),
                )
                if left[0] >= 0:
                    self.assertIsNone(outcome)
                    break
                self.assertIsInstance(outcome, IndexFailed)
                self.assertEqual({path: path.read_bytes() for path in files(self.root)}, before)
            self.assertGreater(step, 3)
            archive.close()

    def test_a_mistake_with_the_names(self) -> None:
        """Both errors are reported, and the next instance is stored."""
        archive = self.open()
        rename = archive.store.rename
        outcomes: list[BaseException | None] = []

        def wrong(*_: object, **__: object) -> str:
            raise RuntimeError("a mistake")

        archive.store.rename = wrong  # type: ignore[method-assign]
        for number in (1, 2):
            outcomes.append(keep(archive, dataset(number)))
        self.assertEqual([type(outcome) for outcome in outcomes], [RuntimeError] * 2)
        archive.store.rename = rename  # type: ignore[method-assign]
        self.kept(archive, dataset(3))
        self.assertEqual(len(self.assert_consistent(archive)), 1)
        self.assertEqual(archive.store.temporary_files.unnamed, 0)

    def test_nobody_waits_for_what_others_bring(self) -> None:
        """A thread reports its own results before it commits for other threads."""
        archive = self.open()
        order: list[object] = []
        add = archive.index.add

        def another(rows: list[IndexRow]) -> None:
            if not order:
                other = threading.Thread(target=archive.keep, args=(handed(dataset(2)), order.append))
                other.start()
                other.join()
            order.append("commit")
            add(rows)

        archive.index.add = another  # type: ignore[method-assign,assignment]
        archive.keep(handed(dataset(1)), order.append)
        self.assertEqual(order, ["commit", None, "commit", None])

    def test_one_row_of_a_group(self) -> None:
        """The other instances of the commit are stored."""
        archive = self.open()
        add = archive.index.add

        def refuse(rows: list[IndexRow]) -> None:
            if any(row.record.sop_instance_uid.endswith(".3") for row in rows):
                raise IndexFailed("index: no 3")
            add(rows)

        archive.index.add = refuse  # type: ignore[method-assign,assignment]
        outcomes: dict[int, BaseException | None] = {}
        commits = archive._commits
        assert commits is not None
        commits._busy = True  # as if another thread were committing
        for number in (1, 2, 3, 4):
            archive.keep(handed(dataset(number)), partial(outcomes.__setitem__, number))
        self.assertEqual(outcomes, {})
        commits._busy = False
        self.kept(archive, dataset(5))
        self.assertEqual({number: type(outcome) for number, outcome in outcomes.items()},
                         {1: type(None), 2: type(None), 3: IndexFailed, 4: type(None)})  # fmt: skip
        self.assertEqual(len(self.assert_consistent(archive)), 4)

    def test_little_is_free(self) -> None:
        class Small(FileSystem):
            left = 1000

            def free(self, path: str) -> int:
                return self.left

        disk = Small()
        archive = self.open(file_system=disk, min_free=1000)
        self.kept(archive, dataset(1))
        disk.left = 999
        outcome = keep(archive, dataset(2))
        assert isinstance(outcome, OSError)
        self.assertEqual(outcome.errno, errno.ENOSPC)
        disk.left = 1000
        self.kept(archive, dataset(3))
        self.assertEqual(len(self.assert_consistent(archive)), 2)

    def test_a_full_disk(self) -> None:
        """A real disk, without room for the index either: acknowledged instances are there, and storing resumes later."""
        mount_point = Path(self.mktemp())
        mount_point.mkdir(parents=True)
        try:
            mounted = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount_point)], capture_output=True
            )
        except OSError as error:
            raise SkipTest("there is no mount command") from error
        if mounted.returncode:
            raise SkipTest("a tmpfs cannot be mounted here")
        self.addCleanup(subprocess.run, ["umount", str(mount_point)], check=True)
        self.root = mount_point / "archive"
        archive = Archive(self.root)
        archive.open()
        try:
            acknowledged = []
            failures = 0
            for number in range(1000):
                outcome = keep(archive, dataset(number, PatientComments="x" * 8000))
                if outcome is None:
                    acknowledged.append(f"1.2.1.1.{number}")
                else:
                    self.assertIsInstance(outcome, (OSError, IndexFailed))
                    failures += 1
                if failures > 20:
                    break
            self.assertGreater(failures, 20)
            there = [path.stem for path in self.assert_consistent(archive)]
            self.assertEqual(sorted(there), sorted(acknowledged))
            shutil.rmtree(self.root / "1.2.1")
            reconcile(archive)
            self.assertIsNone(keep(archive, dataset(5000)))
        finally:
            archive.close()


class Starts(ArchiveCase):
    """Recovery at a start."""

    def fill(self, count: int = 6) -> Archive:
        archive = self.open()
        for number in range(count):
            self.kept(archive, dataset(number, series=number % 3, study=1 + number % 2))
        return archive

    def again(self) -> tuple[Archive, Reconciled]:
        archive = self.open()
        return archive, reconcile(archive)

    def test_all_is_well(self) -> None:
        self.fill().close()
        _, found = self.again()
        self.assertEqual(found, Reconciled(instances=6))

    def test_no_index(self) -> None:
        self.fill().close()
        shutil.rmtree(self.root / ".index")
        archive, found = self.again()
        self.assertEqual((found.indexed, found.instances, found.lost), (6, 0, 0))
        self.assert_consistent(archive)
        self.assertEqual(archive.index.counts()[Level.IMAGE], 6)

    def test_both_ways(self) -> None:
        archive = self.fill()
        paths = files(self.root)
        archive.close()
        paths[0].unlink()
        shutil.rmtree(paths[-1].parent)
        left_over = self.root / ".incoming" / "0123-1.part"
        left_over.write_bytes(b"x")
        foreign = self.root / "1.2.1" / "1.2.1.0" / "1.9.dcm"
        shutil.copy(paths[1], foreign)
        text_file = self.root / "1.2.1" / "1.2.1.0" / "1.8.dcm"
        text_file.write_text("no DICOM file")
        new_series = self.root / "1.2.0" / "1.2.0.1"
        new_series.mkdir(parents=True)
        record, content = encoded(dataset(1, 1, 0))
        (new_series / "1.2.0.1.1.dcm").write_bytes(b"".join(content))
        self.assertEqual(record.uids, ("1.2.0", "1.2.0.1", "1.2.0.1.1"))
        archive, found = self.again()
        self.assertEqual((found.indexed, found.lost, found.unreadable), (1, 2, 2))
        self.assertEqual(len(found.lost_names), 2)
        self.assertFalse(left_over.exists())
        self.assertTrue(foreign.exists() and text_file.exists())
        self.assertEqual(archive.index.counts()[Level.IMAGE], 5)
        foreign.unlink()
        text_file.unlink()
        self.assert_consistent(archive)

    def test_a_replacement_that_was_cut_off(self) -> None:
        """The file is the new one, the index still has the old one."""
        archive = self.fill(2)
        record, content = encoded(dataset(0, 0, 1, StudyDescription="new"))
        archive.index.announce_replacing([record.uids])
        archive.store.path(*record.uids).write_bytes(b"".join(content))
        archive.close()
        archive, found = self.again()
        self.assertEqual(found.indexed, 1)
        (answer,) = ask(archive, "STUDY", StudyInstanceUID="1.2.1", StudyDescription=None)
        self.assertEqual(answer.StudyDescription, "new")
        self.assert_consistent(archive)

    def test_entities_are_remembered_up_to_a_bound(self) -> None:
        self.patch(index_module, "MAX_KNOWN_ENTITIES", 3)
        archive = self.open()
        for number in range(20):
            self.kept(archive, dataset(number, series=number, study=number % 5))
        self.assertEqual(archive.index.counts()[Level.STUDY], 5)
        self.assertEqual(archive.index.counts()[Level.SERIES], 20)

    def test_import(self) -> None:
        source = Path(self.mktemp())
        (source / "a" / "b").mkdir(parents=True)
        for number in range(5):
            (source / "a" / f"file{number}").write_bytes(b"".join(encoded(dataset(number))[1]))
        large = dataset(9)
        large.add_new(0x7FE00010, "OB", os.urandom(3 << 20))
        (source / "a" / "b" / "large.dcm").write_bytes(b"".join(encoded(large)[1]))
        (source / "readme.txt").write_text("nothing")
        (source / "a" / "no-study").write_bytes(b"".join(encoded(dataset(8, StudyInstanceUID=""))[1]))
        archive = self.open()
        found = import_folder(archive, source)
        self.assertEqual((found.kept, found.skipped, found.failed), (6, 2, 0))
        self.assertEqual(len(self.assert_consistent(archive)), 6)
        self.assertEqual(import_folder(archive, source).kept, 6)
        self.assertEqual(len(self.assert_consistent(archive)), 6)
        self.assertEqual(import_folder(archive, source, stopped=lambda: True).seen, 0)


class Schema(ArchiveCase):
    """Versions of the tables."""

    def test_migration(self) -> None:
        self.open().close()
        engine = schema.sqlite_engine(self.root / ".index" / "index.sqlite", full=True)
        self.addCleanup(engine.dispose)
        here = schema.SCHEMA_VERSION
        self.assertEqual(schema.migrate(engine), here)

        def to_next(connection: Connection) -> None:
            connection.execute(text("ALTER TABLE study ADD COLUMN colour TEXT"))

        def to_the_one_after(connection: Connection) -> None:
            connection.execute(text("UPDATE study SET colour = 'green'"))
            if fails:
                connection.execute(text("SELECT nothing FROM nowhere"))

        fails = [True]
        steps = {here: to_next, here + 1: to_the_one_after}
        self.assertRaises(OperationalError, schema.migrate, engine, version=here + 2, migrations=steps)
        self.assertEqual(schema.migrate(engine), here, "all or nothing")
        fails.clear()
        self.assertEqual(schema.migrate(engine, version=here + 2, migrations=steps), here)
        self.assertEqual(schema.migrate(engine, version=here + 2, migrations=steps), here + 2)
        error = self.assertRaises(StoreUnusable, self.open)
        self.assertIn(f"version {here + 2}", str(error))

    def test_from_version_1(self) -> None:
        """Version 1 had no digests: its rows stay, and new rows have one."""
        archive = self.open()
        self.kept(archive, dataset(1))
        with archive.index.engine.begin() as connection:
            connection.execute(text("ALTER TABLE instance DROP COLUMN digest"))
            connection.execute(text("UPDATE about SET value = '1' WHERE name = 'version'"))
        archive.close()
        archive = self.open()
        self.assertEqual(archive.index.found_version, 1)
        self.kept(archive, dataset(2))
        self.assertEqual(len(ask(archive, "IMAGE", StudyInstanceUID="1.2.1", SeriesInstanceUID="1.2.1.1")), 2)
        with archive.index.engine.connect() as connection:
            digests = connection.execute(text("SELECT digest FROM instance ORDER BY sop_instance_uid")).scalars().all()
        content = (self.root / "1.2.1" / "1.2.1.1" / "1.2.1.1.2.dcm").read_bytes()
        self.assertEqual(digests, [None, hashlib.sha256(content).digest()])

    def test_every_version_has_a_way_here(self) -> None:
        self.assertEqual(sorted(schema.MIGRATIONS), list(range(1, schema.SCHEMA_VERSION)))

    def test_a_damaged_database(self) -> None:
        self.open().close()
        (self.root / ".index" / "index.sqlite").write_bytes(b"not a database" * 1000)
        error = self.assertRaises(StoreUnusable, self.open)
        self.assertIn("move it away", str(error))

    def test_durability(self) -> None:
        for durability, level in ((Durability.FULL, 2), (Durability.NONE, 1)):
            archive = self.open(durability=durability)
            with archive.index.engine.connect() as connection:
                self.assertEqual(connection.exec_driver_sql("PRAGMA synchronous").scalar_one(), level)
                self.assertEqual(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one(), "wal")
            archive.close()

    def test_postgresql(self) -> None:
        """The statements can be compiled for PostgreSQL."""
        dialect = postgresql.dialect()
        for table in schema.TABLES.values():
            self.assertIn('COLLATE "C"', str(CreateTable(table).compile(dialect=dialect)))


class InThreads(TestCase):
    """The finder as handlers call it, and the server killed."""

    timeout = 240

    async def test_pages(self) -> None:
        archive = Archive(Path(self.mktemp()))
        archive.open()
        self.addCleanup(archive.close)
        for number in range(25):
            keep(archive, dataset(number))
        executor = Executors(reactor).querying
        executor.acquire()
        self.addCleanup(executor.release)
        finder = Finder(archive, executor, "ME")
        identifier = dataset()
        identifier.clear()
        identifier.QueryRetrieveLevel = "IMAGE"
        identifier.StudyInstanceUID = "1.2.1"
        identifier.SeriesInstanceUID = "1.2.1.1"
        found = await finder.find(identifier, Model.STUDY_ROOT, "1.2.840.10008.1.2")
        self.assertEqual((found.total, found.unsupported), (25, ()))
        pages = [page async for page in found.pages(10)]
        self.assertEqual([len(page) for page in pages], [10, 10, 5])
        self.assertEqual(len({answer for page in pages for answer in page}), 25)
        instances = [one for page in [page async for page in (await finder.retrieve(
            _study("1.2.1"), Model.STUDY_ROOT)).pages(7)] for one in page]  # fmt: skip
        self.assertEqual([one.sop_instance_uid for one in instances], [f"1.2.1.1.{number}" for number in range(25)])
        archive.index.remove([("1.2.1", "1.2.1.1", "1.2.1.1.3")])
        again = [answer for page in [page async for page in found.pages()] for answer in page]
        self.assertEqual(len(again), 24, "what was removed meanwhile is left out")

    async def test_warm_up(self) -> None:
        """The statements of a query and a retrieval are executed before the first peer asks; a failure is told."""
        archive = Archive(Path(self.mktemp()))
        archive.open()
        self.addCleanup(archive.close)
        keep(archive, dataset(1))
        executor = Executors(reactor).querying
        executor.acquire()
        self.addCleanup(executor.release)
        finder = Finder(archive, executor, "ME")
        statements: list[str] = []

        def executed(statement: str) -> None:
            if statement.startswith("SELECT"):
                statements.append(statement)

        # Of the driver, since some statements pass SQLAlchemy over.
        listen(archive.index.engine, "checkout", lambda driver, *_: driver.set_trace_callback(executed))
        await finder.warm_up()
        self.assertEqual(["study" in statement for statement in statements], [True] * 5)
        archive.index.engine.dispose()
        with (
            mock.patch.object(archive.index.engine, "connect", side_effect=OperationalError("", None, sqlite3.Error())),
            self.assertRaises(IndexFailed),
        ):
            await finder.warm_up()

    async def test_few_trips_to_threads(self) -> None:
        """The first page comes with the search; the pages of a C-FIND grow, so that the peer has work early."""
        archive = Archive(Path(self.mktemp()))
        archive.open()
        self.addCleanup(archive.close)
        for number in range(25):
            keep(archive, dataset(number))
        executor = Executors(reactor).querying
        executor.acquire()
        self.addCleanup(executor.release)
        finder = Finder(archive, executor, "ME")
        identifier = _study("1.2.1")
        identifier.QueryRetrieveLevel = "IMAGE"
        identifier.SeriesInstanceUID = "1.2.1.1"
        with mock.patch.object(executor, "_enqueue", side_effect=executor._enqueue) as trips:
            for first, longest, expected, taken in (
                (4, 500, [4, 8, 13], 3),
                (4, 10, [4, 8, 10, 3], 4),
                (25, 500, [25], 1),
                (24, 24, [24, 1], 2),
            ):
                with (
                    mock.patch.object(search, "FIRST_PAGE_SIZE", first),
                    mock.patch.object(search, "PAGE_SIZE", longest),
                ):
                    trips.reset_mock()
                    found = await finder.find(identifier, Model.STUDY_ROOT, "1.2.840.10008.1.2")
                    pages = [page async for page in found.pages(longest)]
                self.assertEqual([len(page) for page in pages], expected)
                self.assertEqual(len({answer for page in pages for answer in page}), 25)
                self.assertEqual(trips.call_count, taken)
            for longest, expected, taken in ((25, [25], 1), (24, [24, 1], 3), (10, [10, 10, 5], 4)):
                with mock.patch.object(search, "RETRIEVAL_PAGE_SIZE", longest):
                    trips.reset_mock()
                    instances = await finder.retrieve(_study("1.2.1"), Model.STUDY_ROOT)
                    found_in = [page async for page in instances.pages(longest)]
                self.assertEqual([len(page) for page in found_in], expected)
                self.assertEqual(
                    [one.sop_instance_uid for page in found_in for one in page],
                    [f"1.2.1.1.{number}" for number in range(25)],
                )
                self.assertEqual(trips.call_count, taken)

    async def test_kill_rounds(self) -> None:
        """Three rounds of tests.archive.kill_rounds, which can run for any time."""
        peers.require("storescu")
        result = await peers.run(sys.executable, "-m", "tests.archive.kill_rounds", "--rounds", "3", timeout=200)
        self.assertEqual(result.code, 0, result.text)
        self.assertIn("nothing lost in 3 rounds", result.text)


def _study(uid: str) -> Any:
    identifier = dataset()
    identifier.clear()
    identifier.QueryRetrieveLevel = "STUDY"
    identifier.StudyInstanceUID = uid
    return identifier
