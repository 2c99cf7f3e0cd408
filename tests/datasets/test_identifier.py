"""
The fast encoder of identifiers gives the bytes that pydicom gives (PS3.5 7.1).
"""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, Sequence
from pydicom.filereader import read_dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import DataSetError
from dicomtwist.datasets import encode_dataset
from dicomtwist.datasets.identifier import _encode, encode_identifier

SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)

text = st.text("ABCxyz019 ^=*?äß山", max_size=12)
several = st.one_of(st.none(), text, st.lists(text, max_size=3))
numbers = st.one_of(st.none(), st.integers(0, 0xFFFF), st.lists(st.integers(0, 0xFFFF), max_size=3))
ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    "SpecificCharacterSet": st.sampled_from(["ISO_IR 192", None]),
    "StudyDate": st.sampled_from(["", "20260101", "20260101-20261231", "20260101-", None]),
    "StudyTime": st.sampled_from(["", "1200", "120000.123456", "1200-"]),
    "AccessionNumber": several,
    "QueryRetrieveLevel": st.sampled_from(["STUDY", "IMAGE"]),
    "ModalitiesInStudy": st.sampled_from([None, "CT", ["CT", "MR"], []]),
    "PatientName": several,
    "PatientID": several,
    "StudyInstanceUID": st.sampled_from([None, "1.2.3", ["1.2.3", "1.2.34"], ""]),
    "InstanceNumber": st.sampled_from([None, "7", 7, ["1", "2"], ""]),
    "SliceThickness": st.sampled_from([None, "1.50", 1.5, ["1.0", "2.25"]]),
    "Rows": numbers,
    "ImageComments": text,
    "EncapsulatedDocument": st.sampled_from([None, b"\0\1"]),
    "RequestAttributesSequence": st.sampled_from([None, Sequence([]), Sequence([Dataset()])]),
}


def made(values: dict[str, Any]) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def decoded(dataset: Dataset) -> Dataset:
    """Decode all elements, which removes padding, and return the data set."""
    for _ in dataset.iterall():
        pass
    return dataset


class EncodingTests(SynchronousTestCase):
    def setUp(self) -> None:
        caught = warnings.catch_warnings()
        caught.__enter__()
        self.addCleanup(caught.__exit__, None, None, None)
        warnings.simplefilter("ignore")

    @settings(deadline=None, max_examples=200)
    @given(st.fixed_dictionaries({}, optional=ELEMENTS), st.sampled_from(SYNTAXES))
    def test_same_as_pydicom(self, values: dict[str, Any], syntax: str) -> None:
        values.setdefault("SpecificCharacterSet", "ISO_IR 192")
        dataset = made(values)
        try:
            expected = encode_dataset(made(values), syntax)
        except DataSetError:
            with self.assertRaises(DataSetError):
                encode_identifier(dataset, syntax)
            return
        self.assertEqual(encode_identifier(dataset, syntax), expected)

    @settings(deadline=None, max_examples=100)
    @given(st.fixed_dictionaries({}, optional=ELEMENTS), st.sampled_from(SYNTAXES[:2]), st.sampled_from(SYNTAXES[:2]))
    def test_what_was_read(self, values: dict[str, Any], source: str, target: str) -> None:
        """Elements that were read and not decoded are encoded unchanged."""
        values.setdefault("SpecificCharacterSet", "ISO_IR 192")
        try:
            data = encode_dataset(made(values), source)
        except DataSetError:
            return

        def read() -> Dataset:
            return read_dataset(BytesIO(data), source == ImplicitVRLittleEndian, True)

        found = encode_identifier(read(), target)
        if source == target:
            self.assertEqual(found, data)
        else:
            # Padding may be kept or removed; the values that pydicom decodes are the same.
            again = read_dataset(BytesIO(found), target == ImplicitVRLittleEndian, True)
            self.assertEqual(decoded(again), decoded(read()))

    def test_the_usual_is_encoded_in_a_hurry(self) -> None:
        dataset = made({"QueryRetrieveLevel": "STUDY", "PatientName": "Doe^John", "StudyInstanceUID": "1.2.3",
                        "ModalitiesInStudy": ["CT", "MR"], "NumberOfStudyRelatedInstances": 7, "Rows": 512})  # fmt: skip
        for implicit, syntax in ((True, ImplicitVRLittleEndian), (False, ExplicitVRLittleEndian)):
            self.assertEqual(_encode(dataset, implicit), encode_dataset(dataset, syntax))

    def test_bytes(self) -> None:
        self.assertEqual(encode_identifier(b"\x08\x00", ImplicitVRLittleEndian), b"\x08\x00")

    def test_neither(self) -> None:
        with self.assertRaises(TypeError):
            encode_identifier({"PatientID": "1"}, ImplicitVRLittleEndian)  # type: ignore[arg-type]

    def test_a_number_that_does_not_fit(self) -> None:
        with self.assertRaises(DataSetError):
            encode_identifier(made({"Rows": 70_000}), ExplicitVRLittleEndian)

    def test_the_command_and_the_meta_information_stay_behind(self) -> None:
        dataset = made({"PatientID": "1"})
        dataset.add_new(0x00000900, "US", 0)
        dataset.add_new(0x00020010, "UI", "1.2")
        for syntax in SYNTAXES:
            self.assertEqual(encode_identifier(dataset, syntax), encode_dataset(made({"PatientID": "1"}), syntax))
