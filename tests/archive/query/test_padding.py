"""
Keys and stored values that are padded with NULs or spaces, whatever their VR: padding never decides whether they match.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.query.compiler import BASELINE, Model, compile_find, compile_retrieve
from dicomtwist.archive.query.search import Search
from dicomtwist.archive.services.worklist import compile_query
from dicomtwist.archive.storage.types import Durability
from dicomtwist.datasets import decode_dataset, encode_dataset
from tests.archive.samples import dataset, keep
from tests.archive.services.worklists import items, query

PADDING = ("", " ", "\0", "\0\0", " \0", "\0 ", "\0\0\0\0\0\0")


def on_the_wire(identifier: Dataset, syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """Return an identifier as it is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decoded = decode_dataset(encode_dataset(identifier, syntax), syntax)
        decoded.decode()
    return decoded


class PaddingTests(SynchronousTestCase):
    def test_worklist(self) -> None:
        """Keys of the worklist and of its steps, single and in lists, in both encodings."""
        for keyword, value, expected in (
            ("ScheduledStationAETitle", "AA32", "13"),
            ("ScheduledStationAETitle", "AA3?", "13"),
            ("Modality", "CT", "246"),
            ("ScheduledProcedureStepStartDate", "20240107", "34"),
            ("ScheduledProcedureStepStartDate", "20240106-20240107", "234"),
            ("PatientName", "VIVALDI^ANTONIO", "12"),
            ("PatientName", "VIVALDI*", "12"),
            ("AccessionNumber", "1003", "3"),
            ("PatientSex", "F", "45"),
            ("StudyInstanceUID", "1.2.7.1", "1"),
        ):
            for padding in PADDING:
                for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        test = compile_query(on_the_wire(query(**{keyword: value + padding}), syntax))
                    found = "".join(one.AccessionNumber[-1] for one in items() if test(one))
                    self.assertEqual(found, expected, (keyword, padding))

    def test_worklist_items(self) -> None:
        """Values of the worklist files."""
        for padding in PADDING:
            item = items()[0]
            item.ScheduledProcedureStepSequence[0].ScheduledStationAETitle = ["AA32" + padding, "AA33" + padding]
            item.ScheduledProcedureStepSequence[0].Modality += padding
            stored = on_the_wire(item)
            for keyword, value in (("ScheduledStationAETitle", "AA33"), ("Modality", "MR")):
                self.assertTrue(compile_query(query(**{keyword: value}))(stored), (keyword, padding))

    def test_archive(self) -> None:
        """Keys and stored values of Query/Retrieve."""
        archive = Archive(Path(self.mktemp()), durability=Durability.NONE)
        archive.open()
        self.addCleanup(archive.close)
        for number, padding in enumerate(PADDING):
            made = dataset(number, PatientID=f"P{padding}", StationName=f"ST{padding}", AccessionNumber=f"7{padding}")
            made.PerformedStationAETitle = f"AE{padding}"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.assertIsNone(keep(archive, made))
        archive.catch_up()
        for padding in PADDING:
            for keys in (
                {"PatientID": "P", "StudyInstanceUID": "1.2.1"},
                {"StudyInstanceUID": "1.2.1", "AccessionNumber": "7"},
                {"StudyInstanceUID": "1.2.1", "PatientName": "doe^john"},
            ):
                identifier = Dataset()
                identifier.QueryRetrieveLevel = "STUDY" + padding
                for keyword, value in keys.items():
                    setattr(identifier, keyword, value + padding)
                decoded = on_the_wire(identifier)
                found = Search(archive.index.engine, compile_find(decoded, Model.STUDY_ROOT, BASELINE))
                self.assertEqual(len(found.numbers()), 1, (keys, padding))
                retrieved = Search(archive.index.engine, compile_retrieve(decoded, Model.STUDY_ROOT, BASELINE))
                self.assertEqual(len(retrieved.numbers()), len(PADDING), (keys, padding))
