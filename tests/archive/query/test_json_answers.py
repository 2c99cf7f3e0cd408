"""dicomtwist.archive.query.json_answers: answers as DICOM JSON, beside the answers to a C-FIND and pydicom's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.attributes import ATTRIBUTES, BY_TAG, Level
from dicomtwist.archive.query import answer_reader, json_answers
from dicomtwist.archive.query.answer_reader import AnswerReader
from dicomtwist.archive.query.compiler import Model, Negotiated, compile_find
from dicomtwist.archive.query.response_encoder import Field
from dicomtwist.archive.query.search import Search
from dicomtwist.archive.storage.types import Durability
from tests.archive.samples import ask, dataset, keep
from tests.peers import dicom_files

EVERYTHING: dict[str, Any] = {one.keyword: None for one in ATTRIBUTES}


def answers(archive: Archive, level: str, **keys: Any) -> list[dict[str, Any]]:
    """Query the index, and return the answers as JSON."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    archive.catch_up()
    search = Search(archive.index.engine, compile_find(identifier, Model.STUDY_ROOT, Negotiated(relational=True)))
    reader = AnswerReader(search, json_answers.json_answers("/dicom-web", "ARCHIVE"))
    return [json.loads(one) for one in reader.read(search.numbers())]


def normal(value: Any) -> Any:
    """Return a part of JSON without its differences of no meaning: the kind of numbers, and empty lists of items."""
    if isinstance(value, dict):
        return {name: normal(one) for name, one in value.items() if one not in ([], [{}])}
    if isinstance(value, list):
        return [normal(one) for one in value]
    if isinstance(value, str):
        return value.strip() or None
    return float(value) if isinstance(value, int) else value


def one_field(keyword: str, text: str, keys: Dataset | None = None) -> Any:
    """Return an attribute as an answer has it."""
    attribute = next(one for one in ATTRIBUTES if one.keyword == keyword)
    fields = [Field(BY_TAG[0x0020000D], 1), Field(attribute, 2, keys)]
    encoder = json_answers.JSONAnswerEncoder(fields, Level.STUDY, "/dicom-web")
    return json.loads(encoder.encode((7, "1.2.3", text)))[f"{attribute.tag:08X}"]


class Encoder(SynchronousTestCase):
    def test_values(self) -> None:
        """The values of each VR, and texts that are not what they should be."""
        for keyword, text, expected in (
            ("Modality", "CT", ["CT"]),
            ("ImageType", "ORIGINAL\\PRIMARY\\", ["ORIGINAL", "PRIMARY", None]),
            ("Modality", 'a"b', ['a"b']),
            ("PatientID", "back\\slash", ["back", "slash"]),
            ("PatientComments", "one\\text\r\nof two lines", ["one\\text\r\nof two lines"]),
            ("Rows", "512", [512]),
            ("InstanceNumber", "7", [7]),
            ("InstanceNumber", "seven", ["seven"]),
            ("ImagePositionPatient", "1\\-2.50\\1e3", [1, -2.5, 1000]),
            ("PatientWeight", "heavy", ["heavy"]),
            ("PatientWeight", "nan", ["nan"]),
            ("PatientName", "A^B=C=D", [{"Alphabetic": "A^B", "Ideographic": "C", "Phonetic": "D"}]),
            ("PatientName", "=C", [{"Ideographic": "C"}]),
            ("OtherPatientNames", "A\\B", [{"Alphabetic": "A"}, {"Alphabetic": "B"}]),
            ("StudyDate", "20200101", ["20200101"]),
            ("StudyDescription", "\U0010ffe9t\U0010ffe9", ["\ufffdt\ufffd"]),
            ("StudyDescription", "\u0001\x7f\u2028", ["\u0001\x7f\u2028"]),
        ):
            found = one_field(keyword, text)
            self.assertEqual(found.get("Value"), expected, (keyword, text))
            self.assertEqual(found["vr"], next(one.vr for one in ATTRIBUTES if one.keyword == keyword))
            self.assertNotIn("Value", one_field(keyword, ""))

    def test_sequences(self) -> None:
        text = json.dumps(
            {
                "00400275": {
                    "vr": "SQ",
                    "Value": [
                        {"00400009": {"vr": "SH", "Value": ["\U0010ffe91"]}, "00400008": {"vr": "SQ", "Value": [{}]}}
                    ],
                }
            }
        )
        whole = one_field("RequestAttributesSequence", text)
        self.assertEqual(whole["Value"][0]["00400009"]["Value"], ["\ufffd1"])
        item, inner, keys = Dataset(), Dataset(), Dataset()
        inner.CodeValue = ""
        item.ScheduledProtocolCodeSequence = [inner]
        item.RequestedProcedureID = ""
        self.assertEqual(
            one_field("RequestAttributesSequence", text, item)["Value"],
            [{"00400008": {"vr": "SQ", "Value": [{"00080100": {"vr": "SH"}}]}, "00401001": {"vr": "SH"}}],
        )
        self.assertEqual(one_field("RequestAttributesSequence", text, keys), whole)
        for wrong in ("", "{", "[]", "{}", '{"00400275":1}', '{"00400275":{"Value":[1]}}', "[" * 100_000):
            self.assertEqual(one_field("RequestAttributesSequence", wrong, item), {"vr": "SQ"}, wrong[:30])

    @given(st.sampled_from([one for one in ATTRIBUTES if one.vr != "US"]), st.text())
    def test_any_text(self, attribute: Any, text: str) -> None:
        """Every text of the index makes JSON in UTF-8."""
        found = one_field(attribute.keyword, text) if attribute.keyword != "StudyInstanceUID" else {"vr": "UI"}
        self.assertEqual(found["vr"], attribute.vr)

    def test_caches_are_bounded(self) -> None:
        fields = [Field(BY_TAG[0x0020000D], 1), Field(BY_TAG[0x00081030], 2)]
        encoder = json_answers.JSONAnswerEncoder(fields, Level.STUDY, "")
        for number in range(3 * json_answers.MAX_MADE):
            encoder.encode((1, f"1.2.{number}", f"{number}"))
            encoder.encode((1, f"1.2.{number}", "x" * (json_answers.MAX_TEXT + number)))
            for _, _, known in encoder._parts:
                self.assertLessEqual(len(known), json_answers.MAX_MADE)
                self.assertTrue(all(len(text) <= json_answers.MAX_TEXT for text in known))


class Answers(SynchronousTestCase):
    """Answers of an archive."""

    def setUp(self) -> None:
        self.archive = Archive(Path(self.mktemp()), durability=Durability.NONE)
        self.archive.open()
        self.addCleanup(self.archive.close)

    def test_as_to_c_find(self) -> None:
        """All attributes of all files of pydicom, in every character set, are those of the answers to a C-FIND."""
        for file in dicom_files():
            whole = dcmread(file.path, stop_before_pixels=True)
            keep(self.archive, Dataset(whole), ExplicitVRLittleEndian)
        keys = {**EVERYTHING, "NumberOfStudyRelatedInstances": None, "ModalitiesInStudy": None}
        found = {one["00080018"]["Value"][0]: one for one in answers(self.archive, "IMAGE", **keys)}
        options = Negotiated(relational=True)
        expected = ask(self.archive, "IMAGE", negotiated=options, transfer_syntax=ExplicitVRLittleEndian, **keys)
        self.assertGreater(len(expected), 50)
        self.assertEqual(set(found), {str(one.SOPInstanceUID) for one in expected})
        for one in expected:
            answer = found[str(one.SOPInstanceUID)]
            for element in one:
                name = f"{int(element.tag):08X}"
                if name in ("00080005", "00080052"):
                    continue
                expected_values = element.to_json_dict(None, 1 << 30)
                self.assertEqual(normal(answer[name]), normal(expected_values), (one.SOPInstanceUID, name))

    def test_counts_of_later_pages(self) -> None:
        """Computed values of a level above are not computed again for each page."""
        for number in range(6):
            keep(self.archive, dataset(number, number % 2))
        self.archive.catch_up()
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "IMAGE"
        identifier.NumberOfStudyRelatedInstances = None
        identifier.NumberOfSeriesRelatedInstances = None
        search = Search(
            self.archive.index.engine, compile_find(identifier, Model.STUDY_ROOT, Negotiated(relational=True))
        )
        for most, computed in ((1024, 3), (1, 7)):
            reader = AnswerReader(search, json_answers.json_answers(""))
            with (
                mock.patch.object(answer_reader, "MAX_KNOWN", most),
                mock.patch.object(reader, "_compute", wraps=reader._compute) as compute,
            ):
                pages = [reader.read([number]) for number in search.numbers()]
            self.assertEqual({json.loads(one)["00201209"]["Value"][0] for (one,) in pages}, {3})
            self.assertEqual({json.loads(one)["00201208"]["Value"][0] for (one,) in pages}, {6})
            self.assertEqual(compute.call_count, computed)
