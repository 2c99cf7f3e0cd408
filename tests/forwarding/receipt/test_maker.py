"""The rules at the receipt of an instance: what they see of it, the note that travels with it, and the tasks of the note."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from pydicom import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

from dicomtwist.access.rules import Requestor
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.inbox.frames import MAX_NOTE
from dicomtwist.archive.inbox.notes import FOLDER, Noted
from dicomtwist.archive.index.record import WANTED, scanner_for
from dicomtwist.archive.ingest import Ingest
from dicomtwist.archive.storage.types import StoreUnusable
from dicomtwist.datasets import encode_dataset
from dicomtwist.forwarding.parsing import parse_forward
from dicomtwist.forwarding.paths import parse_path
from dicomtwist.forwarding.receipt.attributes import ScannedAttributes, items_of, tags_for
from dicomtwist.forwarding.receipt.maker import Receipt
from dicomtwist.forwarding.rules import DataSetAttributes
from dicomtwist.forwarding.tasks.store import TaskStore
from dicomtwist.forwarding.tasks.types import Selection, TasksFailed
from dicomtwist.part10 import FileMeta
from dicomtwist.runtime.executors import Executors
from tests.archive.inbox.common import die
from tests.archive.samples import dataset, handed

SYNTAX: Final = str(ExplicitVRLittleEndian)
CT: Final = Requestor("X", "CT1")


def receipt_of(root: Path, *tables: dict[str, Any]) -> Receipt:
    return Receipt(TaskStore(root / FOLDER), parse_forward(list(tables)), tables)


class Attributes(SynchronousTestCase):
    PATHS = (
        *("Modality", "PatientName", "PatientID", "StationName", "ImageType", "SeriesNumber", "SliceThickness"),
        *("Rows", "StudyDate", "PatientComments", "OperatorsName", "0029[ACME]10", "0029[ACME]11", "0029[OTHER]10"),
        *("RequestAttributesSequence.ScheduledProcedureStepID", "RequestAttributesSequence", "EchoTime", "UID"),
        "ProcedureCodeSequence.CodeMeaning",
    )

    def sample(self) -> Dataset:
        made = dataset(1, SpecificCharacterSet="ISO_IR 192", PatientName="Müller^Jörg=山田", StationName="CT 1")
        made.ImageType = ["ORIGINAL", "PRIMARY", ""]
        made.SeriesNumber, made.SliceThickness, made.Rows, made.StudyDate = "07", ["1.0", "2.50"], 512, "20260102"
        made.PatientComments, made.OperatorsName = "  two\r\nlines ", ["A^B", "C^D"]
        block = made.private_block(0x0029, "ACME", create=True)
        block.add_new(0x10, "LO", "private value")
        block.add_new(0x11, "SQ", [Dataset()])
        made.RequestAttributesSequence = [Dataset(), Dataset()]
        for number, item in enumerate(made.RequestAttributesSequence):
            item.ScheduledProcedureStepID = f"STEP{number}"
        code = Dataset()
        code.CodeMeaning = "Schädel"
        made.ProcedureCodeSequence = [code]
        return made

    def test_as_a_decoded_header(self) -> None:
        """The rules see the same values as in a decoded header, which ``explain`` shows them."""
        paths = [parse_path(one) for one in self.PATHS if one != "UID"]
        tags = tags_for(paths)
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
            data = encode_dataset(self.sample(), syntax)
            scanner = scanner_for(str(syntax), WANTED | tags)
            if not scanner.feed(data):
                scanner.finish()
            seen = ScannedAttributes(items_of(scanner.values, sorted(tags)), str(syntax))
            decoded = DataSetAttributes(
                read_dataset(BytesIO(data), syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian)
            )
            for path in paths:
                if syntax == ImplicitVRLittleEndian and path.last.creator:
                    continue  # a decoded header knows no VR of it
                self.assertEqual(list(seen.values(path)), list(decoded.values(path)), (syntax.name, str(path)))

    def test_damaged(self) -> None:
        for raw in (b"\xff\xfe\xfd", b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b""):
            for path in map(
                parse_path, ("RequestAttributesSequence.ScheduledProcedureStepID", "Rows", "SliceThickness")
            ):
                tags = sorted(tags_for([path]))
                items = items_of(dict.fromkeys(tags, raw), tags)
                ScannedAttributes(items, SYNTAX).values(path)


class Notes(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.root.mkdir(parents=True)

    def opened(self, *tables: dict[str, Any]) -> Receipt:
        receipt = receipt_of(self.root, *tables)
        receipt.open(alone=True)
        self.addCleanup(receipt.close)
        return receipt

    def noted(self, note: bytes, number: int = 1, received: int = 1) -> Noted:
        return Noted(("1.2", "1.2.3", f"1.2.3.{number}"), note, received, 10)

    def test_rules_that_match(self) -> None:
        receipt = self.opened(
            {"to": ["A"], "calling": ["CT*"]},
            {"to": ["B"], "where": {"StationName": "S?"}},
            {"to": ["C"], "modality": ["MR"]},
        )
        note = receipt.notes.note({0x00081010: b"S1", 0x00080060: b"CT"}, SYNTAX, CT)
        self.assertEqual(note, f"{receipt.store.identity}:1,2".encode())
        self.assertEqual(receipt.notes.note({0x00081010: b"T1 "}, SYNTAX, Requestor("X", "Y")), b"")
        told: list[int] = []
        receipt.notify = lambda: told.append(1)
        receipt.make([self.noted(note), self.noted(b"", 2)])
        self.assertEqual((len(told), len(receipt.store.find(Selection(), 9))), (1, 2))
        receipt.make([self.noted(note)])
        self.assertEqual(len(told), 1, "nothing is new")

    def test_quiet_studies_hear_of_everything(self) -> None:
        receipt = self.opened({"to": ["A"], "calling": ["CT*"], "study-quiet": "60s"})
        note = receipt.notes.note({}, SYNTAX, Requestor("X", "MR"))
        self.assertEqual(note, f"{receipt.store.identity}:".encode())
        receipt.make([self.noted(note)])
        self.assertEqual(receipt.store.find(Selection(), 9), [])

    def test_reload(self) -> None:
        """An instance that began before the reload is subject to the rules of then; its note is understood later."""
        receipt = self.opened({"name": "a", "to": ["A"]})
        before = receipt.notes
        receipt.reload(parse_forward([{"name": "b", "to": ["B"]}]), [{"name": "b", "to": ["B"]}])
        for number, notes in enumerate((before, receipt.notes)):
            receipt.make([self.noted(notes.note({}, SYNTAX, CT), number)])
        self.assertEqual([one.destination for one in receipt.store.find(Selection(), 9)], [("A",), ("B",)])

    def test_of_another_database(self) -> None:
        """A note never names a rule of a later database, which may have its number."""
        receipt = self.opened({"to": ["A"]})
        note = receipt.notes.note({}, SYNTAX, CT)
        receipt.close()
        shutil.rmtree(self.root / FOLDER)
        later = self.opened({"to": ["ELSEWHERE"]})
        later.make([self.noted(note), self.noted(b"garbage \xff", 2)])
        self.assertEqual(later.store.find(Selection(), 9), [])

    def test_not_open(self) -> None:
        receipt = receipt_of(self.root, {"to": ["A"]})
        self.assertRaises(TasksFailed, receipt.notes.note, {}, SYNTAX, CT)
        self.assertIn("nobody knows", receipt.wants("1.2"))

    def test_what_the_retention_wants(self) -> None:
        receipt = self.opened({"to": ["A"]})
        self.assertEqual(receipt.wants("1.2"), "")
        receipt.make([self.noted(receipt.notes.note({}, SYNTAX, CT))])
        self.assertIn("not forwarded", receipt.wants("1.2"))

    def archive(self, receipt: Receipt | None) -> Archive:
        archive = Archive(self.root, inbox=True, tasks=receipt)
        archive.open()
        self.addCleanup(archive.close)
        return archive

    def keep(self, archive: Archive, note: bytes, number: int = 1) -> BaseException | None:
        one = handed(dataset(number))
        one.note = note
        outcomes: list[BaseException | None] = []
        archive.keep(one, outcomes.append)
        return outcomes.pop()

    def test_start_without_forwarding(self) -> None:
        """A start without rules keeps the notes of the inbox for one with them."""
        receipt = receipt_of(self.root, {"to": ["A"]})
        archive = self.archive(receipt)
        self.assertIsNone(self.keep(archive, receipt.notes.note({}, SYNTAX, CT)))
        die(archive)
        plain = self.archive(None)
        self.assertEqual(plain.store.series_of("1.2.1"), ["1.2.1.1"])
        plain.close()
        receipt = receipt_of(self.root, {"to": ["A"]})
        archive = self.archive(receipt)
        (task,) = receipt.store.find(Selection(), 9)
        self.assertEqual(task.instance, "1.2.1.1.1")
        self.assertEqual([path.name for path in (self.root / FOLDER).glob("notes-*")], [])
        archive.close()
        (self.root / FOLDER / "notes-0123456789abcdef.json").write_text("[[1]]")
        self.assertRaises(
            StoreUnusable, Archive(self.root, inbox=True, tasks=receipt_of(self.root, {"to": ["A"]})).open
        )

    def test_long_note(self) -> None:
        """A note that fits into no frame: the instance becomes a file at once, with its tasks."""
        receipt = receipt_of(self.root, *({"name": str(number), "to": ["A"]} for number in range(200)))
        archive = self.archive(receipt)
        note = receipt.notes.note({}, SYNTAX, CT)
        self.assertGreater(len(note), MAX_NOTE)
        self.assertIsNone(self.keep(archive, note))
        self.assertEqual(len(receipt.store.find(Selection(), 999)), 200)

    def test_no_task_can_be_made(self) -> None:
        """An instance beside the inbox is refused, and nothing is left of it; one in the inbox waits for its tasks."""
        receipt = receipt_of(self.root, {"to": ["A"]})
        archive = self.archive(receipt)
        note = receipt.notes.note({}, SYNTAX, CT)
        make, receipt.store.make = receipt.store.make, self.refuse  # type: ignore[method-assign]
        long = f"{note.decode()}{',1' * MAX_NOTE}".encode()
        self.assertIsInstance(self.keep(archive, long), TasksFailed)
        self.assertEqual(list(self.root.glob("1.*/*/*.dcm")), [])
        self.assertIsNone(self.keep(archive, note, 2))
        self.assertRaises(OSError, archive.settle)
        self.assertRaises(OSError, archive.settle)
        receipt.store.make = make  # type: ignore[method-assign]
        archive.settle()
        self.assertEqual([one.instance for one in receipt.store.find(Selection(), 9)], ["1.2.1.1.2"])

    def refuse(self, arrivals: Any, now: Any = None) -> Any:
        raise TasksFailed("the disk is full")


class Received(TestCase):
    """Instances that arrive, small and large, and an attribute that is not in the index."""

    async def test_received(self) -> None:
        root = Path(self.mktemp())
        receipt = receipt_of(root, {"to": ["A"], "calling": "CT*", "where": {"DetectorID": "D*"}})
        archive = Archive(root, inbox=True, tasks=receipt)
        archive.open()
        self.addCleanup(archive.close)
        executors = Executors(reactor)
        executors.acquire()
        self.addCleanup(executors.release)
        ingest = Ingest(archive, executors.receiving)
        self.addCleanup(ingest.stop)
        for number in range(1, 9):
            made = dataset(number, DetectorID="D1" if number % 2 else "E1")
            made.add_new(0x7FE00010, "OB", bytes(300_000 if number in (3, 4) else 100))
            meta = FileMeta(str(made.SOPClassUID), str(made.SOPInstanceUID), SYNTAX, "1.2.3")
            data = memoryview(encode_dataset(made, SYNTAX))
            incoming = ingest.begin(meta, self, Sender())
            for start in range(0, len(data), 100_000):
                incoming.write(data[start : start + 100_000])
            incoming.finish()
            self.assertIsNone(await incoming.result)
        await executors.receiving.run(archive.settle)
        found = receipt.store.find(Selection(), 99)
        self.assertEqual({one.instance for one in found}, {f"1.2.1.1.{number}" for number in (1, 3, 5, 7)})

    def pause(self) -> None:
        """Do nothing."""

    def resume(self) -> None:
        """Do nothing."""


class Sender:
    """A peer."""

    may_replace = True
    requestor = CT
    titles = ("CT1", "X")

    def log_replacement(self, message: str, /, **fields: object) -> None:
        """Log nothing."""

    def log_conflict(self, message: str, /, **fields: object) -> None:
        """Log nothing."""
