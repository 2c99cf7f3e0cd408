"""The scan for instances, the backlog, and the journal."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from dicomtwist.runtime.executors import Executors
from dicomtwist.tools.contexts import contexts_for, requirements_of
from dicomtwist.tools.files import file_scanner
from dicomtwist.tools.files.bulk_sender import Backlog
from dicomtwist.tools.files.file_scanner import (
    ScanBatch,
    ScannedInstance,
    Scanner,
    SizeSurvey,
    Unreadable,
    find_requirements,
    walk,
)
from dicomtwist.tools.files.resume_journal import JournalError, ResumeJournal
from tests import peers

IMPLICIT, EXPLICIT, JPEG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"


def instance(number: int, sop_class: str = "1.2.3", syntax: str = EXPLICIT) -> ScannedInstance:
    """Return an instance without a file."""
    return ScannedInstance(f"/nowhere/{number}", 1000, number, (sop_class, syntax))


class Walk(SynchronousTestCase):
    """Listing folders."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        (self.folder / "a" / "b").mkdir(parents=True)
        for name in ("1", "a/2", "a/b/3"):
            (self.folder / name).touch()

    def names(self, *paths: Path) -> list[str]:
        return sorted(os.path.basename(os.fspath(file)) for file in walk(map(str, paths)))  # type: ignore[arg-type]

    def test_folders_in_folders(self) -> None:
        self.assertEqual(self.names(self.folder), ["1", "2", "3"])
        self.assertEqual(self.names(self.folder / "1", self.folder / "a" / "b"), ["1", "3"])

    def test_links(self) -> None:
        """Links to files are followed. Links to folders are not, since a loop would never end, unless they are named."""
        (self.folder / "a" / "loop").symlink_to(self.folder.absolute())
        (self.folder / "link").symlink_to((self.folder / "1").absolute())
        self.assertEqual(self.names(self.folder), ["1", "2", "3", "link"])
        self.assertEqual(self.names(self.folder / "a" / "loop"), ["1", "2", "3", "link"])

    def test_order(self) -> None:
        """Names are in order, numbers in them by their value; so are subfolders among the files."""
        names = ("10.dcm", "2.dcm", "2a", "02.dcm", "IM10", "IM9", "IM9/x", "b", "B", "ü", "9" * 40, "1.2.10", "1.2.9")
        folder = self.folder / "ordered"
        folder.mkdir()
        for name in names:
            if name == "IM9":
                (folder / name).mkdir()
            else:
                (folder / name).touch()
        found = [os.path.relpath(os.fspath(file), folder) for file in walk([str(folder)])]  # type: ignore[arg-type]
        self.assertEqual(
            found,
            ["1.2.9", "1.2.10", "02.dcm", "2.dcm", "2a", "10.dcm", "9" * 40, "B", "IM9/x", "IM10", "b", "ü"],
        )

    def test_a_folder_with_many_names(self) -> None:
        """It is sorted piece by piece, and no name is lost."""
        self.patch(file_scanner, "MAX_SORTED", 7)
        for number in range(50):
            (self.folder / f"f{number}").touch()
        self.assertEqual(len(self.names(self.folder)), 53)

    def test_it_is_streamed(self) -> None:
        """A folder is opened only when its turn comes."""
        opened: list[str] = []
        scandir = os.scandir

        def watched(path: str) -> Any:
            opened.append(path)
            return scandir(path)

        self.patch(os, "scandir", watched)
        for number in range(50):
            (self.folder / f"f{number}").mkdir()
            (self.folder / f"f{number}" / "x").touch()
        walking = walk([str(self.folder)])
        list(islice(walking, 2))
        self.assertLessEqual(len(opened), 10)
        self.assertEqual(len(list(walking)), 51)

    def test_what_cannot_be_read(self) -> None:
        os.mkfifo(self.folder / "pipe")
        self.assertEqual(
            list(walk([str(self.folder / "pipe")])), [Unreadable(str(self.folder / "pipe"), "not a regular file")]
        )
        self.assertEqual(self.names(self.folder), ["1", "2", "3"])

        def refuse(path: str) -> Any:
            raise PermissionError(13, "Permission denied")

        self.patch(os, "scandir", refuse)
        self.assertEqual(list(walk([str(self.folder)])), [Unreadable(str(self.folder), "Permission denied")])

    def test_survey(self) -> None:
        (self.folder / "1").write_bytes(b"x" * 1000)
        (self.folder / "a" / "2").write_bytes(b"x" * 10)
        survey = SizeSurvey([str(self.folder)])
        self.assertTrue(survey.count_next(2))
        self.assertFalse(survey.count_next(2))
        self.assertEqual(survey.size, 1010)


class Headers(SynchronousTestCase):
    """Scanning files."""

    def scan(self, *paths: Any, known: Any = lambda instance: False) -> ScanBatch:
        scanner = Scanner([str(path) for path in paths], known)
        batch = scanner.next_batch()
        assert batch is not None
        self.assertIsNone(scanner.next_batch())
        return batch

    def test_instances(self) -> None:
        files = peers.dicom_files()
        batches = []
        scanner = Scanner([file.path for file in files], lambda instance: False)
        while (batch := scanner.next_batch()) is not None:
            batches.append(batch)
        found = [instance for batch in batches for instance in batch.instances]
        self.assertEqual(
            [each.requirement for each in found], [(file.sop_class, file.transfer_syntax) for file in files]
        )
        self.assertEqual([each.size for each in found], [os.path.getsize(file.path) for file in files])

    def test_what_is_none(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "text").write_text("not DICOM")
        (folder / "cut").write_bytes(bytes(128) + b"DICM\x02\x00")
        (folder / "DICOMDIR").write_bytes(
            Path(peers._DATA_ROOT / "test_files" / "dicomdirtests" / "DICOMDIR").read_bytes()
        )
        batch = self.scan(folder)
        self.assertEqual((batch.skipped, batch.instances), (2, []))
        self.assertEqual([each.path for each in batch.unreadable], [str(folder / "cut")])
        self.assertEqual(batch.skipped_bytes, sum((folder / name).stat().st_size for name in ("text", "DICOMDIR")))

    def test_a_file_that_goes_away(self) -> None:
        batch = self.scan("/nowhere/at/all")
        self.assertEqual(batch.unreadable, [Unreadable("/nowhere/at/all", "No such file or directory")])

    def test_known_ones(self) -> None:
        file = peers.dicom_files()[0]
        batch = self.scan(file.path, known=lambda instance: instance.path == file.path)
        self.assertEqual(
            (batch.stored_before, batch.instances, batch.skipped_bytes), (1, [], os.path.getsize(file.path))
        )

    def test_needs(self) -> None:
        file = peers.one_per_transfer_syntax()[EXPLICIT]
        self.assertEqual(
            find_requirements([file.path, file.path], 100), [(file.sop_class, EXPLICIT), (file.sop_class, IMPLICIT)]
        )


class Groups(SynchronousTestCase):
    """The grouping of instances by association."""

    def test_needs(self) -> None:
        for syntaxes, needed in (
            ([EXPLICIT], [EXPLICIT, IMPLICIT]),
            ([IMPLICIT], [IMPLICIT]),
            ([JPEG], [JPEG]),
            ([JPEG, EXPLICIT, JPEG], [JPEG, EXPLICIT, IMPLICIT]),
        ):
            self.assertEqual(requirements_of("1.2.3", syntaxes), [("1.2.3", syntax) for syntax in needed])

    def test_contexts_of_any_class(self) -> None:
        (context,) = contexts_for([("1.2.3", JPEG)])
        self.assertEqual((str(context.abstract_syntax), context.transfer_syntax), ("1.2.3", [JPEG]))

    def test_no_group_is_too_large(self) -> None:
        backlog = Backlog()
        for number in range(300):
            backlog.add(instance(number, f"1.2.{number}", EXPLICIT if number % 2 else JPEG))
        self.assertEqual(backlog.count, 300)
        seen = 0
        while (group := backlog.largest()) is not None:
            self.assertLessEqual(len(group.requirements), 128)
            while (taken := backlog.take(group)) is not None:
                self.assertIn(taken.requirement, group.requirements)
                seen += 1
        self.assertEqual((seen, backlog.count), (300, 0))

    def test_only_what_was_proposed_is_taken(self) -> None:
        backlog = Backlog()
        backlog.add(instance(1, "1.2.1"))
        backlog.add(instance(2, "1.2.2"))
        group = backlog.largest()
        assert group is not None
        proposed = {("1.2.2", EXPLICIT)}
        taken = backlog.take(group, proposed)
        assert taken is not None
        self.assertEqual(taken.path, "/nowhere/2")
        self.assertIsNone(backlog.take(group, proposed))
        self.assertEqual([each.path for each in backlog.discard()], ["/nowhere/1"])


class Journals(TestCase):
    """The journal."""

    def setUp(self) -> None:
        self.path = self.mktemp()
        self.executor = Executors(reactor).housekeeping
        self.executor.acquire()
        self.addCleanup(self.executor.release)

    def open(self, peer: str = "A@b:1") -> ResumeJournal:
        return ResumeJournal(self.path, peer)

    async def write(self, *instances: ScannedInstance) -> None:
        journal = self.open()
        for each in instances:
            journal.add(each, self.executor)
        await journal.close()

    async def test_what_was_acknowledged_is_known(self) -> None:
        await self.write(*map(instance, range(1000)))
        await self.write(instance(1000))
        journal = self.open()
        self.assertEqual(journal.known, 1001)
        self.assertTrue(all(journal.contains(instance(number)) for number in range(1001)))
        self.assertFalse(journal.contains(instance(1001)))
        changed = instance(1)
        changed.size += 1
        self.assertFalse(journal.contains(changed))
        await journal.close()

    async def test_it_only_grows(self) -> None:
        await self.write(instance(1))
        before = Path(self.path).read_bytes()
        await self.write(instance(2))
        self.assertTrue(Path(self.path).read_bytes().startswith(before))
        self.assertEqual(
            [json.loads(line).get("path") for line in Path(self.path).read_text().splitlines()][1:],
            ["/nowhere/1", "/nowhere/2"],
        )

    async def test_cut_short_at_every_byte(self) -> None:
        """An incomplete line, left by a crash, is skipped, and the next record begins on a new line."""
        await self.write(instance(1), instance(2))
        whole = Path(self.path).read_bytes()
        first = whole.index(b"\n") + 1
        for length in range(first, len(whole)):
            Path(self.path).write_bytes(whole[:length])
            await self.write(instance(3))
            journal = self.open()
            self.assertTrue(journal.contains(instance(3)), length)
            self.assertEqual(journal.contains(instance(1)), whole[:length].split(b"\n")[1].endswith(b"}"), length)
            await journal.close()

    async def test_what_is_none(self) -> None:
        for content in (
            b"text\n",
            b"{}\n",
            b"[]\n",
            b'{"journal": "dicomtwist store", "version": 2}\n',
            b"\xff\x00" * 100000,
        ):
            Path(self.path).write_bytes(content)
            self.assertRaises(JournalError, self.open)
            self.assertEqual(Path(self.path).read_bytes(), content)
        self.path = "/nowhere/at/all"
        self.assertIn("No such file", str(self.assertRaises(JournalError, self.open)))

    async def test_one_at_a_time_and_one_peer(self) -> None:
        journal = self.open()
        self.assertIn("in use", str(self.assertRaises(JournalError, self.open)))
        await journal.close()
        self.assertIn("is about A@b:1, not about C@d:1", str(self.assertRaises(JournalError, self.open, "C@d:1")))

    async def test_a_disk_that_fills_up(self) -> None:
        if not os.path.exists("/dev/full"):
            raise SkipTest("no /dev/full")
        journal = self.open()
        with open("/dev/full", "ab") as full:
            os.dup2(full.fileno(), journal._file.fileno())
        journal.add(instance(1), self.executor)
        journal.add(instance(2), self.executor)
        await journal.close()
        assert journal.error is not None
        self.assertEqual(journal.error.strerror, "No space left on device")
