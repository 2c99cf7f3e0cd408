"""Explanations of the rules of forwarding say what happens at the receipt of an instance."""

from __future__ import annotations

import unittest
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom.data
from pydicom import Dataset

from dicomtwist.access.rules import Requestor
from dicomtwist.archive.index.record import WANTED, scanner_for
from dicomtwist.datasets.codec import encode_dataset
from dicomtwist.errors import DataSetError
from dicomtwist.forwarding.operators.explanations import explanations
from dicomtwist.forwarding.parsing import parse_forward
from dicomtwist.forwarding.receipt.attributes import ScannedAttributes, items_of, tags_for
from dicomtwist.part10 import FileMeta, NotDicomFile, encode_preamble_and_meta, read_file_meta

EXPLICIT = "1.2.840.10008.1.2.1"
FILES = sorted(Path(pydicom.data.__file__).parent.joinpath("test_files").glob("*.dcm"))
SENDER = Requestor("DICOMTWIST", "CT1", "127.0.0.1")

#: Conditions on texts, numbers, items, long sequences, and private attributes of VRs that only the file knows.
CONDITIONS: dict[str, str | list[str]] = {
    "PatientID": "*",
    "Rows": "128",
    "PixelSpacing": "0.*",
    "PixelPaddingValue": "-*",
    "ImageType": "DERIVED",
    "WaveformSequence.WaveformOriginality": "ORIGINAL",
    "ReferencedImageSequence.ReferencedSOPInstanceUID": "1.*",
    "0009[GEMS_GENIE_1]40": "BERRA*",
    "0013[GEMS_GENIE_1]1D": "0.0",
    "StationName": ["", "CT*"],
}


class Explanations(unittest.TestCase):
    def test_they_agree_with_the_receipt_of_all_test_files(self) -> None:
        rules = parse_forward(
            [{"name": key, "to": "A", "where": {key: value}} for key, value in CONDITIONS.items()], peers=["A"]
        )
        sent: set[str] = set()
        for path in FILES:
            data = path.read_bytes()
            try:
                found = explanations(rules, data, SENDER)
                meta, offset = read_file_meta(BytesIO(data))
            except (NotDicomFile, DataSetError):
                continue
            tags = tags_for(rules.paths)
            scanner = scanner_for(meta.transfer_syntax_uid, WANTED | tags)
            try:
                scanner.feed(data[offset:])
            except ValueError:
                continue
            attributes = ScannedAttributes(items_of(scanner.values, sorted(tags)), meta.transfer_syntax_uid)
            with self.subTest(path.name):
                matching = [rule.name for rule, _ in rules.matches(attributes, SENDER)]
                self.assertEqual([one["rule"] for one in found if one["sends"]], matching)
                sent.update(matching)
        self.assertLessEqual({"PatientID", "Rows", "PixelSpacing", "ImageType", "StationName"}, sent)

    def test_a_value_that_is_too_long_counts_as_empty(self) -> None:
        for length, sends in ((100, True), (20_000, False)):
            self.assertEqual(self.explained(PatientComments="x" * length)["sends"], sends)

    def test_a_damaged_header_is_an_error(self) -> None:
        with self.assertRaises(DataSetError):
            self.explained(cut=3, PatientComments="x")
        # Also behind all that the rules ask for.
        with self.assertRaises(DataSetError):
            self.explained(cut=3, PatientComments="x", StudyID="12345678")

    def explained(self, cut: int = 0, **attributes: Any) -> dict[str, Any]:
        dataset = Dataset()
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        rules = parse_forward([{"to": "A", "where": {"PatientComments": "x*"}}], peers=["A"])
        data = encode_preamble_and_meta(FileMeta("1.2", "1.3", EXPLICIT, "1.4")) + encode_dataset(dataset, EXPLICIT)
        return explanations(rules, data[: len(data) - cut], SENDER)[0]
