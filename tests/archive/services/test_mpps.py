"""Performed procedure steps: storing, refusing, and surviving a restart."""

from __future__ import annotations

import errno
import fcntl
import struct
from pathlib import Path
from typing import Any
from unittest import mock

from pydicom import DataElement, Dataset, dcmread
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomtwist import Association, Status, build_context, evt
from dicomtwist.archive.services import mpps
from dicomtwist.archive.services.mpps import FOLDER, PerformedProcedureSteps
from dicomtwist.archive.storage.file_store import InstanceStore
from dicomtwist.archive.storage.system_calls import FileSystem
from dicomtwist.archive.storage.types import Durability
from dicomtwist.datasets.character_sets import UNICODE, encode_texts
from dicomtwist.datasets.codec import decode_dataset, encode_dataset
from dicomtwist.datasets.identifier import encode_identifier
from dicomtwist.runtime.executors import Executors
from dicomtwist.scp.dispatch import dispatch
from dicomtwist.sop_class import (
    ModalityPerformedProcedureStep,
    ModalityPerformedProcedureStepNotification,
    ModalityPerformedProcedureStepRetrieve,
)
from tests.archive.test_ingest import Failing
from tests.memory import MemoryTestCase

CLASSES = (
    ModalityPerformedProcedureStep,
    ModalityPerformedProcedureStepRetrieve,
    ModalityPerformedProcedureStepNotification,
)
UID = "1.2.3.4.5"
SYNTAX = str(ImplicitVRLittleEndian)


def item(**elements: Any) -> Dataset:
    """A data set; ``None`` leaves an element out."""
    dataset = Dataset()
    for keyword, value in elements.items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


def scheduled(**elements: Any) -> Dataset:
    """An item of the Scheduled Step Attributes Sequence."""
    values: dict[str, Any] = {
        "StudyInstanceUID": "1.2.3",
        "ReferencedStudySequence": [],
        "AccessionNumber": "A1",
        "RequestedProcedureID": "",
        "RequestedProcedureDescription": "",
        "ScheduledProcedureStepID": "S1",
        "ScheduledProcedureStepDescription": "",
        "ScheduledProtocolCodeSequence": [],
    }
    return item(**{**values, **elements})


def step(**elements: Any) -> Dataset:
    """The attributes that a modality sends at the beginning; *elements* replace some, ``None`` removes one."""
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ScheduledStepAttributesSequence": [scheduled()],
        "PatientName": "Müller^Käthe",
        "PatientID": "P1",
        "PatientBirthDate": "19500101",
        "PatientSex": "F",
        "ReferencedPatientSequence": [],
        "PerformedProcedureStepID": "PPS1",
        "PerformedStationAETitle": "MODALITY",
        "PerformedStationName": "",
        "PerformedLocation": "",
        "PerformedProcedureStepStartDate": "20240501",
        "PerformedProcedureStepStartTime": "101500",
        "PerformedProcedureStepStatus": "IN PROGRESS",
        "PerformedProcedureStepDescription": "",
        "PerformedProcedureTypeDescription": "",
        "ProcedureCodeSequence": [],
        "PerformedProcedureStepEndDate": "",
        "PerformedProcedureStepEndTime": "",
        "Modality": "CT",
        "StudyID": "",
        "PerformedProtocolCodeSequence": [],
        "PerformedSeriesSequence": [],
    }
    return item(**{**values, **elements})


def series(**elements: Any) -> Dataset:
    return item(**{"ProtocolName": "Head", "SeriesInstanceUID": "1.2.3.1", **elements})


def end(status: str = "COMPLETED", **elements: Any) -> Dataset:
    """The attributes that a modality sends at the end."""
    values: dict[str, Any] = {
        "PerformedProcedureStepStatus": status,
        "PerformedProcedureStepEndDate": "20240501",
        "PerformedProcedureStepEndTime": "103000",
        "PerformedSeriesSequence": [series()],
    }
    return item(**{**values, **elements})


class StepsTestCase(MemoryTestCase):
    """A server that stores steps, and a modality that reports them."""

    def setUp(self) -> None:
        super().setUp()
        self.scp.supported_contexts = [build_context(uid) for uid in CLASSES]
        self.scu.requested_contexts = [build_context(uid) for uid in CLASSES]
        self.root = Path(self.mktemp())
        self.begin()

    def begin(self, file_system: FileSystem | None = None) -> None:
        """Start or restart the server with the storage as it is."""
        self.network.result_of(self.scp.shutdown())
        self.store = InstanceStore(self.root, durability=Durability.FULL, file_system=file_system)
        self.store.prepare()
        self.addCleanup(self.store.close)
        self.steps = PerformedProcedureSteps(self.store, Executors(self.network).housekeeping)
        self.assoc, self.accepted = self.both(*dispatch(self.steps.routes))

    def ask(self, result: Any) -> Status:
        status, dataset = self.answer(result)
        self.assertIsNone(dataset)
        return status

    def answer(self, result: Any) -> tuple[Status, Dataset | None]:
        self.network.flush()
        found: tuple[Status, Dataset | None] = self.successResultOf(result)
        return found

    def create(self, dataset: Dataset | None = None, uid: str | None = UID) -> Status:
        return self.ask(self.assoc.send_n_create(dataset or step(), ModalityPerformedProcedureStep, uid))

    def set(self, dataset: Dataset | None = None, uid: str = UID) -> Status:
        return self.ask(self.assoc.send_n_set(dataset or end(), ModalityPerformedProcedureStep, uid))

    def get(self, *tags: str, uid: str = UID) -> tuple[Status, Dataset | None]:
        return self.answer(self.assoc.send_n_get(tags, ModalityPerformedProcedureStepRetrieve, uid))

    def kept(self, uid: str = UID) -> Dataset:
        return dcmread(self.root / FOLDER / f"{uid}.dcm")

    def assert_status(self, status: Status, code: int, *keywords: str) -> None:
        self.assertEqual(f"{status:04X}", f"{code:04X}", status.error_comment)
        self.assertEqual(status.attribute_identifier_list or (), tuple(int(Tag(keyword)) for keyword in keywords))


class Creating(StepsTestCase):
    def test_kept_as_a_file(self) -> None:
        self.assert_status(self.create(), 0)
        kept = self.kept()
        self.assertEqual(str(kept.PatientName), "Müller^Käthe")
        self.assertEqual(kept.ScheduledStepAttributesSequence[0].AccessionNumber, "A1")
        self.assertEqual((kept.SOPClassUID, kept.SOPInstanceUID), (ModalityPerformedProcedureStep, UID))
        self.assertEqual(kept.file_meta.MediaStorageSOPInstanceUID, UID)
        self.assertEqual(kept.file_meta.TransferSyntaxUID, ExplicitVRLittleEndian)
        self.assertEqual(kept.file_meta.SourceApplicationEntityTitle, "SCU")
        self.assertEqual(list((self.root / ".incoming").glob("*.part")), [])

    def test_a_uid_is_made_where_the_modality_gives_none(self) -> None:
        status = self.create(uid=None)
        assert status.affected_sop_instance_uid
        self.assertEqual(self.kept(status.affected_sop_instance_uid).PatientID, "P1")

    def test_twice(self) -> None:
        self.create()
        self.assert_status(self.create(step(PatientID="P2")), 0x0111)
        self.assertEqual(self.kept().PatientID, "P1")

    def test_two_at_once(self) -> None:
        """The second request is checked after the first is stored."""
        second = self.scu.associate("127.0.0.1", 104)
        self.network.flush()
        other: Association = self.successResultOf(second)
        asked = [each.send_n_create(step(), ModalityPerformedProcedureStep, UID) for each in (self.assoc, other)]
        self.network.flush()
        self.assertEqual(sorted(int(self.successResultOf(one)[0]) for one in asked), [0, 0x0111])

    def test_two_processes_at_once(self) -> None:
        """The second process of a storage waits for the first."""
        self.create(uid="9.9")
        path = self.root / FOLDER / ".lock"
        locks: list[int] = []
        flock = fcntl.flock

        def noting(fd: int, operation: int) -> None:
            locks.append(operation)
            self.assertTrue(path.samefile(f"/proc/self/fd/{fd}"))
            flock(fd, operation)
            with open(path) as other:
                self.assertRaises(BlockingIOError, flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)

        with mock.patch.object(fcntl, "flock", noting):
            self.assert_status(self.create(), 0)
            self.assert_status(self.set(), 0)
        self.assertEqual(locks, [fcntl.LOCK_EX] * 2)

    def test_what_is_required_is_missing(self) -> None:
        for keyword in (
            "ScheduledStepAttributesSequence",
            "PerformedProcedureStepID",
            "Modality",
            "PatientName",
            "StudyID",
        ):
            self.assert_status(self.create(step(**{keyword: None})), 0x0120, keyword)
        for keyword in ("StudyInstanceUID", "AccessionNumber", "ScheduledProtocolCodeSequence"):
            dataset = step(ScheduledStepAttributesSequence=[scheduled(), scheduled(**{keyword: None})])
            self.assert_status(self.create(dataset), 0x0120, keyword)
        self.assertEqual(list((self.root / FOLDER).glob("*.dcm")), [])

    def test_what_is_required_is_empty(self) -> None:
        empty = {
            "ScheduledStepAttributesSequence": [],
            "PerformedProcedureStepID": "",
            "PerformedProcedureStepStatus": "",
        }
        for keyword, value in empty.items():
            self.assert_status(self.create(step(**{keyword: value})), 0x0121, keyword)
        dataset = step(ScheduledStepAttributesSequence=[scheduled(StudyInstanceUID="")])
        self.assert_status(self.create(dataset), 0x0121, "StudyInstanceUID")

    def test_values_that_are_none(self) -> None:
        wrong = {
            "PerformedProcedureStepStatus": "COMPLETED",
            "PerformedProcedureStepStartDate": "yesterday",
            "PerformedProcedureStepStartTime": "noon",
        }
        for keyword, value in wrong.items():
            dataset = step()
            dataset[keyword] = dataset[keyword].__class__(Tag(keyword), "CS", value)
            self.assert_status(self.create(dataset), 0x0106, keyword)
        dataset = step(ScheduledStepAttributesSequence=[scheduled(StudyInstanceUID="1.2.x")])
        self.assert_status(self.create(dataset), 0x0106, "StudyInstanceUID")

    def test_a_uid_that_is_a_path(self) -> None:
        """Our own SCU cannot send such a UID, so the test calls the function that reads a step."""
        self.assertRaises(ValueError, self.steps._read, "../../etc/passwd")

    def test_no_room(self) -> None:
        self.begin(Failing("writev", errno.ENOSPC, 1))
        self.assert_status(self.create(), 0x0213)
        self.begin(Failing("name", errno.EIO, 1))
        self.assert_status(self.create(), 0x0110)
        self.begin()
        self.assert_status(self.create(), 0)

    def test_bounded(self) -> None:
        with mock.patch.object(mpps, "MAX_STEP_LENGTH", 100):
            self.assert_status(self.create(), 0x0213)

    def test_other_services_are_refused(self) -> None:
        status = self.ask(self.assoc.send_n_create(step(), ModalityPerformedProcedureStepNotification, UID))
        self.assert_status(status, 0x0122)
        status, _ = self.answer(self.assoc.send_n_get([], ModalityPerformedProcedureStep, UID))
        self.assert_status(status, 0x0122)


class Setting(StepsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.create()

    def test_to_the_end(self) -> None:
        self.assert_status(self.set(item(PerformedProcedureStepDescription="Kopf")), 0)
        self.assertEqual(self.kept().PerformedProcedureStepStatus, "IN PROGRESS")
        self.assert_status(self.set(), 0)
        kept = self.kept()
        self.assertEqual(kept.PerformedProcedureStepStatus, "COMPLETED")
        self.assertEqual(kept.PerformedSeriesSequence[0].SeriesInstanceUID, "1.2.3.1")
        self.assertEqual(kept.PerformedProcedureStepDescription, "Kopf")
        self.assertEqual(kept.PatientName, "Müller^Käthe")

    def test_nothing_after_the_end(self) -> None:
        for status, uid in (("COMPLETED", UID), ("DISCONTINUED", "1.2.3.4.6")):
            self.create(uid=uid) if uid != UID else None
            self.assert_status(self.set(end(status), uid), 0)
            for change in (end("COMPLETED"), end("DISCONTINUED"), item(PerformedProcedureStepStatus="IN PROGRESS")):
                refused = self.set(change, uid)
                self.assert_status(refused, 0x0110)
                self.assertEqual(refused.error_id, 0xA710)
                self.assertIn("no longer be updated", refused.error_comment or "")
            self.assertEqual(self.kept(uid).PerformedProcedureStepStatus, status)

    def test_unknown(self) -> None:
        self.assert_status(self.set(uid="9.9"), 0x0112)

    def test_it_survives_a_restart(self) -> None:
        self.begin()
        self.assert_status(self.set(), 0)
        self.begin()
        self.assert_status(self.set(), 0x0110)

    def test_what_may_not_change(self) -> None:
        self.assert_status(self.set(end(PatientID="P2")), 0x0106, "PatientID")
        self.assert_status(
            self.set(end(ScheduledStepAttributesSequence=[scheduled(AccessionNumber="A2")])),
            0x0106,
            "ScheduledStepAttributesSequence",
        )
        self.assertEqual(self.kept().PerformedProcedureStepStatus, "IN PROGRESS")

    def test_what_may_not_change_may_be_repeated(self) -> None:
        again = step(PerformedProcedureStepStatus="COMPLETED", **{
            keyword: end().get(keyword)
            for keyword in ("PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime", "PerformedSeriesSequence")
        })  # fmt: skip
        self.assert_status(self.set(again), 0)
        self.assertEqual(self.kept().PerformedProcedureStepStatus, "COMPLETED")

    def test_what_the_end_needs(self) -> None:
        self.assert_status(self.set(end(PerformedProcedureStepEndDate="")), 0x0121, "PerformedProcedureStepEndDate")
        self.assert_status(self.set(end(PerformedSeriesSequence=[])), 0x0121, "PerformedSeriesSequence")
        self.assert_status(self.set(end(PerformedSeriesSequence=[series(ProtocolName=None)])), 0x0120, "ProtocolName")
        self.assert_status(self.set(end("ABANDONED")), 0x0106, "PerformedProcedureStepStatus")
        self.assertEqual(self.kept().PerformedProcedureStepStatus, "IN PROGRESS")

    def test_discontinued_before_there_was_a_series(self) -> None:
        self.assert_status(self.set(end("DISCONTINUED", PerformedSeriesSequence=[])), 0)

    def test_character_sets_are_kept_together(self) -> None:
        change = item(SpecificCharacterSet="ISO_IR 144", PerformedProcedureStepDescription="Голова")
        self.assert_status(self.set(change), 0)
        kept = self.kept()
        self.assertEqual(kept.PerformedProcedureStepDescription, "Голова")
        self.assertEqual(kept.PatientName, "Müller^Käthe")
        self.assertEqual(kept.SpecificCharacterSet, "ISO_IR 192")

    def test_a_failure_leaves_what_was(self) -> None:
        for call, after in (("writev", 1), ("fsync", 2), ("rename", 1)):
            self.begin(Failing(call, errno.EIO, after))
            self.assert_status(self.set(), 0x0110)
            self.assertEqual(self.kept().PerformedProcedureStepStatus, "IN PROGRESS", call)

    def test_a_damaged_file(self) -> None:
        path = self.root / FOLDER / f"{UID}.dcm"
        path.write_bytes(path.read_bytes()[:-3])
        self.assert_status(self.set(), 0x0110)
        path.write_bytes(b"nothing")
        self.assert_status(self.set(), 0x0110)
        with mock.patch.object(mpps, "MAX_STEP_LENGTH", 5):
            self.assert_status(self.set(item(StudyID="")), 0x0213)


class CharacterSets(StepsTestCase):
    """One character set holds for a step that several requests have made; it is claimed only if it is known."""

    NAME, TEXT = "PatientName", "PerformedProcedureStepDescription"

    def made(self, own: str | None, name: bytes, theirs: str | None, text: bytes) -> tuple[Dataset, Dataset]:
        """Create a step with a name, set a description; return the file, and the answer to N-GET."""
        uid = f"1.2.3.{len(list((self.root / FOLDER).glob('*.dcm')))}"
        new = encode_texts(step(SpecificCharacterSet=None), lambda text, vr: text.encode())
        assert new is not None
        front = item() if own is None else item(SpecificCharacterSet=own)
        new[self.NAME] = DataElement(0x00100010, "PN", name.decode("latin-1"))
        encoded = encode_identifier(front, SYNTAX) + encode_dataset(new, SYNTAX)
        self.assert_status(self.ask(self.assoc.send_n_create(encoded, ModalityPerformedProcedureStep, uid)), 0)
        front = item() if theirs is None else item(SpecificCharacterSet=theirs)
        changes = encode_identifier(front, SYNTAX) + struct.pack("<HHI", 0x0040, 0x0254, len(text)) + text
        self.assert_status(self.ask(self.assoc.send_n_set(changes, ModalityPerformedProcedureStep, uid)), 0)
        status, got = self.get(uid=uid)
        self.assert_status(status, 0)
        assert got is not None
        return self.kept(uid), got

    def test_mixed(self) -> None:
        umlaut, cyrillic = "M\xfcller", "\u0413\u043e\u043b\u043e\u0432\u0430 "
        utf, latin, iso = umlaut.encode() + b" ", umlaut.encode("latin-1"), cyrillic.encode("iso8859_5")
        for own, name, theirs, text, claimed in (
            ("ISO_IR 100", latin, "ISO_IR 144", iso, (UNICODE, utf, cyrillic.encode())),
            ("ISO_IR 100", latin, UNICODE, utf, (UNICODE, utf, utf)),
            (None, latin, UNICODE, utf, (None, latin, utf)),
            ("hex", latin, UNICODE, utf, (None, latin, utf)),
            ("undefined", latin, "ISO_IR 144", iso, (None, latin, iso)),
            (UNICODE, utf, None, latin, (None, utf, latin)),
            (UNICODE, utf, "rot13", latin, (None, utf, latin)),
            ("ISO 2022 IR 58", "\u5f20".encode("gb2312") + b"  ", "punycode", latin, None),
            ("hex", b"Plain ", UNICODE, utf, (UNICODE, b"Plain ", utf)),
            (UNICODE, utf, "hex", b"Plain ", (UNICODE, utf, b"Plain ")),
            ("hex", latin, "idna", latin, (None, latin, latin)),
            (UNICODE, latin, UNICODE, utf, (None, latin, utf)),
        ):
            with self.subTest(own=own, theirs=theirs, name=name, text=text):
                for found in self.made(own, name, theirs, text):
                    if claimed is None:
                        self.assertNotIn("SpecificCharacterSet", found)
                        continue
                    self.assertEqual(found.get("SpecificCharacterSet"), claimed[0])
                    raw = [found.get_item(keyword).value for keyword in (self.NAME, self.TEXT)]
                    self.assertEqual([value.rstrip() for value in raw], [value.rstrip() for value in claimed[1:]])

    def test_items(self) -> None:
        """An unknown character set of an item is not claimed to be that of the step."""
        new = step(SpecificCharacterSet="ISO_IR 100", PatientName="Name")
        inner = new.ScheduledStepAttributesSequence[0]
        inner.SpecificCharacterSet, inner.RequestedProcedureDescription = "hex ", "pat\xe9"
        encoded = _with_item(new, inner)
        self.assert_status(self.ask(self.assoc.send_n_create(encoded, ModalityPerformedProcedureStep, UID)), 0)
        status, got = self.get()
        self.assert_status(status, 0)
        assert got is not None
        self.assertNotIn("SpecificCharacterSet", got)
        found = got.ScheduledStepAttributesSequence[0].get_item("RequestedProcedureDescription").value
        self.assertEqual(found, b"pat\xe9")

    def test_default(self) -> None:
        """Text without a character set is in the default one."""
        self.steps._default_charset = "ISO_IR 100"
        for found in self.made(None, b"M\xfcller", UNICODE, "\xfc".encode()):
            self.assertEqual((found.SpecificCharacterSet, found.PatientName), (UNICODE, "M\xfcller"))


class Bounds(StepsTestCase):
    def test_a_step_that_grows(self) -> None:
        """Many N-SETs make no step that has more elements or values than one request may bring."""
        self.scp.maximum_attributes = self.scp.maximum_attribute_values = 300
        self.assert_status(self.create(), 0)
        for _ in range(3):
            last = [
                self.set(item(ReferencedImageSequence=[item()] * 200)),
                self.set(_private(0x11)),
                self.set(_private(0x13)),
            ]
        self.assertEqual([f"{status:04X}" for status in last], ["0000", "0213", "0213"])
        values = item(ConvolutionKernel=["A"] * 250)
        self.begin()
        self.assert_status(self.create(uid="1.2.3.9"), 0)
        self.assert_status(self.set(values, "1.2.3.9"), 0)
        status = self.set(item(ImageType=["A"] * 250), "1.2.3.9")
        self.assert_status(status, 0x0213)
        self.assertIn("values", status.error_comment or "")
        self.assertEqual(self.kept("1.2.3.9").get("ImageType"), None)

    def test_decoded_one_at_a_time(self) -> None:
        """Requests that wait for others are not decoded yet, and not at all if their peers have gone."""
        others = [self.associate() for _ in range(5)]
        executors = (self.steps._executor, self.scp.executors.decoding)
        long = item(ReferencedImageSequence=[item()] * 300)
        self.network.works = False
        with mock.patch.object(evt, "decode_dataset", side_effect=decode_dataset) as decode:
            for number, assoc in enumerate(others):
                assoc.send_n_create(long, ModalityPerformedProcedureStep, f"1.2.{number}").addErrback(lambda _: None)
            self.network.flush()
            self.assertEqual([executor.vitals.queued for executor in executors], [1, 0])
            for assoc in others[1:-1]:
                assoc.abort()
            self.network.flush()
            self.network.works = True
            self.network.flush()
        self.assertEqual(decode.call_count, 2)


def _private(group: int) -> Dataset:
    found = Dataset()
    for number in range(0x10, 0xA0):
        found.add_new((group << 16) + number, "LO", "X")
    return found


def _with_item(dataset: Dataset, inner: Dataset) -> bytes:
    """Encode *dataset* in whose first item the texts of *inner* are bytes."""
    character_set = inner.SpecificCharacterSet
    del inner.SpecificCharacterSet
    encoded = encode_dataset(dataset, SYNTAX)
    front = encode_identifier(item(SpecificCharacterSet=character_set), SYNTAX)
    at = encoded.index(struct.pack("<HH", 0xFFFE, 0xE000))
    sequence, length = struct.unpack("<I", encoded[at - 4 : at])[0], struct.unpack("<I", encoded[at + 4 : at + 8])[0]
    return b"".join(
        (
            encoded[: at - 4] + struct.pack("<I", sequence + len(front)) + encoded[at : at + 4],
            struct.pack("<I", length + len(front)) + front + encoded[at + 8 :],
        )
    )


class Getting(StepsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.create()

    def test_all(self) -> None:
        status, dataset = self.get()
        self.assert_status(status, 0)
        assert dataset is not None
        self.assertEqual(dataset.PatientName, "Müller^Käthe")
        self.assertEqual(dataset, Dataset(self.kept()))

    def test_some(self) -> None:
        status, dataset = self.get("PatientID", "PerformedProcedureStepStatus")
        self.assert_status(status, 0)
        assert dataset is not None
        self.assertEqual(
            [element.keyword for element in dataset],
            ["SpecificCharacterSet", "PatientID", "PerformedProcedureStepStatus"],
        )

    def test_some_are_not_there(self) -> None:
        status, dataset = self.get("PatientID", "PatientComments")
        self.assert_status(status, 0x0001, "PatientComments")
        assert dataset is not None
        self.assertEqual(dataset.PatientID, "P1")

    def test_unknown(self) -> None:
        status, dataset = self.get(uid="9.9")
        self.assert_status(status, 0x0112)
        self.assertIsNone(dataset)
