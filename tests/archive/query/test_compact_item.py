"""Items of a worklist as they are kept in memory: nothing is lost, and the garbage collection hardly sees them."""

from __future__ import annotations

import gc
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.uid import ExplicitVRLittleEndian
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.query.compact_item import Item
from dicomtwist.archive.services.worklist_folder import decode_item
from dicomtwist.datasets import encode_dataset
from tests.archive.services.worklists import item, items

VALUES: dict[str, list[Any]] = {
    "CS": ["CT", ["A", "B"], "", None],
    "PN": ["Doe^John", "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce=", ["A^B", "C"], ""],
    "DS": ["1.50", ["1", "2.0", "3e1"], ""],
    "IS": ["007", ["+1", "2"], ""],
    "DA": ["20240105", ""],
    "UI": ["1.2.3", ["1.2", "1.3"]],
    "LT": ["a\\b  c", ""],
    "US": [7, [1, 2, 3]],
    "SL": [-7],
    "FD": [0.1, [1.5, -2.5]],
    "AT": [0x00100010, [0x00100010, 0x00080005]],
    "OB": [b"\0\1", b""],
    "UN": [b"ab"],
}


@st.composite
def datasets(draw: st.DrawFn, depth: int = 2) -> Dataset:
    made = Dataset()
    for at, vr in enumerate(draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=6))):
        made.add(DataElement(0x00091000 + at, vr, draw(st.sampled_from(VALUES[vr])), validation_mode=IGNORE))
    if depth and draw(st.booleans()):
        made.add(DataElement(0x00400100, "SQ", draw(st.lists(datasets(depth - 1), max_size=3))))
    return made


class Items(SynchronousTestCase):
    @given(datasets())
    def test_nothing_is_lost(self, dataset: Dataset) -> None:
        again = Item(dataset).dataset()
        self.assertEqual(str(again), str(dataset))
        self.assertEqual(encode_dataset(again, ExplicitVRLittleEndian), encode_dataset(dataset, ExplicitVRLittleEndian))

    def test_items_of_files(self) -> None:
        for one in items():
            decoded = decode_item(encode_dataset(one, ExplicitVRLittleEndian))
            self.assertEqual(Item(decoded).dataset(), decoded)

    def test_some_elements(self) -> None:
        one = Item(item(1, PatientID="A", SpecificCharacterSet="ISO_IR 192"))
        self.assertEqual({each.keyword for each in one.dataset([0x00100020])}, {"PatientID", "SpecificCharacterSet"})
        self.assertEqual((0x00100020 in one, 0x00100021 in one), (True, False))
        self.assertRaises(KeyError, one.__getitem__, 0x00100021)

    def test_garbage_collection(self) -> None:
        """A thousand items have a twentieth of the objects that as many Datasets have."""
        gc.collect()
        before = len(gc.get_objects())
        kept = [Item(item(number, PatientID=f"P{number}")) for number in range(1000)]
        # Tuples are found to need no collection one level at a time.
        for _ in range(3):
            gc.collect()
        self.assertLess(len(gc.get_objects()) - before, 8 * len(kept))
