"""Batches: one instance, row or file that cannot be handled fails alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive import integrity, recovery
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.folder_import import import_folder
from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.index.record import IndexRow, Record, make_record
from dicomtwist.archive.instance import ReceivedInstance
from dicomtwist.archive.integrity import Reference, verify
from dicomtwist.archive.query.compiler import Model, Negotiated, compile_find
from dicomtwist.archive.query.search import Search
from dicomtwist.archive.recovery import reconcile
from dicomtwist.archive.storage.types import Durability, IndexFailed
from dicomtwist.datasets import decode_dataset, encode_dataset
from tests.archive.samples import SECONDARY_CAPTURE, ask, dataset, encoded, files, keep


def _raises() -> Record:
    raise LookupError("a mistake in a codec")


def _surrogate(record: Record) -> Record:
    return _changed(record, "\udc80")


def _changed(record: Record, text: str) -> Record:
    patient = tuple(text if value == "Doe^John" else value for value in record.patient)
    uids = (record.study_uid, record.series_uid, record.sop_instance_uid)
    return Record(record.patient_key + "x", *uids, patient, record.study, record.series, record.instance)


#: What is wrong with a row -> what makes it.
BAD: dict[str, Callable[[Record], Record]] = {
    "its record cannot be made": lambda record: _raises(),
    "text that no database takes": _surrogate,
    "a value of another type": lambda record: _changed(record, object()),  # type: ignore[arg-type]
    "a number beyond all integers": lambda record: _changed(record, 2**70),  # type: ignore[arg-type]
}


def _note(
    outcomes: dict[int, BaseException | None],
    numbers: dict[ReceivedInstance, int],
    delivered: Sequence[tuple[ReceivedInstance, BaseException | None]],
    more: bool,
) -> None:
    outcomes.update((numbers[instance], error) for instance, error in delivered)


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp())

    def open(self, durability: Durability) -> Archive:
        archive = Archive(self.root, durability=durability)
        archive.open()
        self.addCleanup(archive.close)
        return archive

    def instance(self, number: int, bad: str = "") -> ReceivedInstance:
        record, content = encoded(dataset(number))
        describe = (lambda: BAD[bad](record)) if bad else (lambda: record)
        return ReceivedInstance(record.uids, "1.2.840.10008.1.2.1", content, describe, record.length)

    def indexed(self, archive: Archive) -> int:
        return archive.index.counts()[Level.IMAGE]


class Committing(Case):
    """A commit group with durability full."""

    def test_a_bad_row_fails_alone(self) -> None:
        archive = self.open(Durability.FULL)
        for place, bad in enumerate(BAD):
            outcomes: dict[int, BaseException | None] = {}
            numbers = range(10 * place + 1, 10 * place + 6)
            given = {self.instance(number, bad if number == numbers[place] else ""): number for number in numbers}
            archive.keep_all(list(given), partial(_note, outcomes, given))
            failed = [number for number, error in outcomes.items() if error is not None]
            self.assertEqual((sorted(outcomes), failed), (list(numbers), [numbers[place]]), bad)
        self.assertEqual((len(files(self.root)), self.indexed(archive)), (16, 16))
        self.assertIsNone(keep(archive, dataset(99)))


class CatchingUp(Case):
    """Rows behind the files, with durability none."""

    def test_a_bad_row_fails_alone(self) -> None:
        archive = self.open(Durability.NONE)
        for number, bad in enumerate(BAD, 1):
            outcomes: list[BaseException | None] = []
            for instance in (self.instance(10 * number), self.instance(10 * number + 1, bad)):
                archive.keep(instance, outcomes.append)
            archive.catch_up()
            self.assertEqual((outcomes, archive.unindexed, self.indexed(archive)), ([None, None], 0, number), bad)
        self.assertEqual(len(self.flushLoggedErrors()), 0)
        self.assertEqual(len(ask(archive, "STUDY")), 1)
        archive.close()
        again = self.open(Durability.NONE)
        found = reconcile(again)  # the files are sound here, so that the next start reads them
        self.assertEqual((found.indexed, found.unreadable, self.indexed(again)), (4, 0, 8))

    def test_alone(self) -> None:
        """A bad row that no other row comes with does not stay in the way either."""
        archive = self.open(Durability.NONE)
        for number, bad in enumerate(BAD, 1):
            archive.keep(self.instance(number, bad), lambda error: None)
            archive.catch_up()
            self.assertEqual(archive.unindexed, 0, bad)
        archive.close()

    def test_more_than_may_wait(self) -> None:
        archive = self.open(Durability.NONE)
        outcomes: list[BaseException | None] = []
        for number in range(600):
            archive.keep(self.instance(number + 1, list(BAD)[number % 5] if number % 5 < 4 else ""), outcomes.append)
        archive.catch_up()
        self.assertEqual((outcomes, self.indexed(archive)), ([None] * 600, 120))

    def test_the_database_is_away(self) -> None:
        """A failure that is not the fault of a row removes no row."""
        archive = self.open(Durability.NONE)
        add = archive.index.add

        def away(rows: object) -> None:
            raise IndexFailed("index: database is locked")

        archive.index.add = away  # type: ignore[method-assign,assignment]
        archive.keep(self.instance(1), lambda error: None)
        self.assertRaises(IndexFailed, archive.catch_up)
        self.assertEqual(archive.unindexed, 1)
        archive.index.add = add  # type: ignore[method-assign]
        archive.catch_up()
        self.assertEqual(self.indexed(archive), 1)

    def test_a_stop(self) -> None:
        """Nothing that waits makes the end fail."""
        archive = self.open(Durability.NONE)
        archive.keep(self.instance(1), lambda error: None)
        archive.index.add = lambda rows: 1 // 0  # type: ignore[method-assign,assignment]
        archive.close()
        self.assertEqual(reconcile(self.open(Durability.NONE)).indexed, 1)


class Starting(Case):
    """Files that are indexed by a start, by an import and by a commitment."""

    def damaged(self, archive: Archive, uid: str) -> Callable[[list[IndexRow]], None]:
        add = archive.index.add

        def maybe(rows: list[IndexRow]) -> None:
            if any(row.record.sop_instance_uid == uid for row in rows):
                raise UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates not allowed")
            add(rows)

        return maybe

    def test_a_row_that_the_database_does_not_take(self) -> None:
        archive = self.open(Durability.NONE)
        for number in range(1, 6):
            archive.keep(self.instance(number, "its record cannot be made"), lambda error: None)
        archive.close()
        again = self.open(Durability.NONE)
        again.index.add = self.damaged(again, "1.2.1.1.3")  # type: ignore[method-assign,assignment]
        found = reconcile(again)
        self.assertEqual((found.indexed, found.unreadable), (4, 1))
        self.assertIn("1.2.1.1.3", found.unreadable_names[0])

    def test_a_file_that_breaks_its_reader(self) -> None:
        archive = self.open(Durability.NONE)
        source = Path(self.mktemp())
        source.mkdir()
        for number in range(1, 6):
            _, content = encoded(dataset(number))
            (source / f"{number}").write_bytes(b"".join(content))
        read = make_record

        def broken(values: dict[int, bytes], *more: str) -> Record:
            record = read(values, *more)
            return _raises() if record.sop_instance_uid == "1.2.1.1.2" else record

        self.patch(recovery, "make_record", broken)
        found = import_folder(archive, source)
        self.assertEqual((found.kept, found.failed), (4, 1))
        archive.close()
        again = self.open(Durability.NONE)
        again.index.remove([("1.2.1", "1.2.1.1", f"1.2.1.1.{number}") for number in (1, 3)])
        self.assertEqual(reconcile(again).indexed, 2)

    def test_a_commitment(self) -> None:
        archive = self.open(Durability.NONE)
        for number in (1, 2, 3):
            self.assertIsNone(keep(archive, dataset(number)))
        read = integrity._read

        def broken(store: object, indexed: object) -> None:
            if indexed.uids[2].endswith(".2"):  # type: ignore[attr-defined]
                raise MemoryError
            read(store, indexed)  # type: ignore[arg-type]

        self.patch(integrity, "_read", broken)
        damaged: list[str] = []
        wanted = [Reference(SECONDARY_CAPTURE, f"1.2.1.1.{number}") for number in (1, 2, 3)]
        self.assertEqual(verify(archive, wanted, damaged), [0, 0x0110, 0])


class CharacterSets(Case):
    """Instances whose Specific Character Set is a codec of Python, or nothing at all, in each way into the index."""

    VALUES = (
        b"undefined",
        b"idna",
        b"punycode",
        b"hex",
        b"rot13",
        b"base64",
        b"zip",
        b"bz2",
        b"utf_7",
        b"unicode_escape",
    )
    MORE = (b"\\\\\\", b"", b"ISO_IR 100\\hex", b"\\idna", b"a\0b", b"\xff\xfe", b"\x1b$B", b"x" * 65534)

    def folder(self) -> Path:
        folder = Path(self.mktemp())
        folder.mkdir()
        for number, value in enumerate((*self.VALUES, *self.MORE), 1):
            made = dataset(number, study=number, PatientID=str(number), PatientName="Name")
            sequence = Dataset()
            sequence.CodeMeaning = "Name"
            made.ProcedureCodeSequence = [sequence]
            _, (meta, data) = encoded(made)
            value += b" " * (len(value) & 1)
            charset = b"\x08\x00\x05\x00CS" + len(value).to_bytes(2, "little") + value
            (folder / f"{number:02}").write_bytes(meta + charset + data.replace(b"Name", b"N\xfc\xc3e"))
        return folder

    def test_import_query_and_start(self) -> None:
        count = len(self.VALUES) + len(self.MORE)
        for durability in Durability:
            self.root = Path(self.mktemp())
            archive = self.open(durability)
            found = import_folder(archive, self.folder())
            self.assertEqual((found.kept, found.skipped, found.failed), (count, 0, 0), found.reasons)
            for level in ("STUDY", "SERIES", "IMAGE"):
                answers = ask(
                    archive, level, negotiated=Negotiated(relational=True), PatientName="N*", ProcedureCodeSequence=[]
                )
                self.assertEqual(len(answers), count, level)
                for answer in answers:
                    self.assertEqual(str(answer.PatientName).encode("latin-1"), b"N\xfc\xc3e")
                    self.assertIn(answer.get("SpecificCharacterSet"), (None, "ISO_IR 100"))
            archive.index.remove([(one, two, uid) for one, two, uids in archive.index.files() for uid in uids])
            archive.close()
            again = self.open(durability)
            self.assertEqual(reconcile(again).indexed, count)
            again.close()

    def test_identifiers(self) -> None:
        archive = self.open(Durability.NONE)
        import_folder(archive, self.folder())
        for value in (*self.VALUES, *self.MORE[:-1]):
            identifier = Dataset()
            identifier.QueryRetrieveLevel, identifier.PatientName = "STUDY", "Name"
            data = encode_dataset(identifier, ExplicitVRLittleEndian).replace(b"Name", b"N\xfc\xc3e")
            value += b" " * (len(value) & 1)
            charset = b"\x08\x00\x05\x00CS" + len(value).to_bytes(2, "little") + value
            query = compile_find(decode_dataset(charset + data, ExplicitVRLittleEndian), Model.STUDY_ROOT)
            self.assertGreater(len(Search(archive.index.engine, query).numbers()), 10, value)
