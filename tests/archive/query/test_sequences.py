"""Sequences of stored data sets and of identifiers, also elements that should be sequences and are not."""

from __future__ import annotations

import unittest

from pydicom import DataElement, Dataset

from dicomtwist.archive.query.sequences import answer_item, item_test, items_of
from dicomtwist.archive.services.worklist import compile_query

_CODES, _MEANING = 0x00081032, 0x00080104
_STEPS = 0x00400100


def with_element(tag: int, vr: str, value: object) -> Dataset:
    """A data set with one element."""
    made = Dataset()
    made.add(DataElement(tag, vr, value))
    return made


def sequence(tag: int, *items: Dataset) -> Dataset:
    """A data set with a sequence."""
    return with_element(tag, "SQ", list(items))


def text(tag: int) -> Dataset:
    """A data set with a text."""
    return with_element(tag, "LO", "X")


class NoSequence(unittest.TestCase):
    """An explicit VR data set states the VR of each element, and it may state any."""

    def test_items_of(self) -> None:
        inner = text(_MEANING)
        self.assertEqual(items_of(sequence(_CODES, inner), _CODES), [inner])
        for dataset in (sequence(_CODES), text(_CODES), with_element(_CODES, "OB", b"ab"), Dataset()):
            self.assertEqual(items_of(dataset, _CODES), [])

    def test_a_text_where_a_sequence_is_asked_for(self) -> None:
        keys = sequence(_CODES, text(_MEANING))
        test = item_test(keys)
        assert test is not None
        self.assertTrue(test(sequence(_CODES, text(_MEANING))))
        self.assertFalse(test(text(_CODES)))
        self.assertEqual(answer_item(text(_CODES), keys), sequence(_CODES))

    def test_a_sequence_where_a_text_is_asked_for(self) -> None:
        test = item_test(text(_CODES))
        assert test is not None
        self.assertFalse(test(sequence(_CODES, text(_MEANING))))

    def test_steps_of_a_worklist(self) -> None:
        self.assertEqual(compile_query(sequence(_STEPS))(text(_STEPS)), [])
        with self.assertRaisesRegex(ValueError, "is no sequence"):
            compile_query(text(_STEPS))
