"""
Sequences in queries: matching of their items (PS3.4 C.2.2.2.6) and what an answer has of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.multival import MultiValue

from dicomtwist.archive.index.normal_forms import (
    check_key,
    datetime_key,
    has_wildcard,
    normal_date,
    time_key,
    wildcard_regex,
)
from dicomtwist.archive.query import person_names
from dicomtwist.archive.query.date_ranges import single_range

#: How deep the sequences of an identifier may be nested.
MAX_NESTING = 8

#: Whether a data set matches.
ItemTest = Callable[[Dataset], bool]


def load(text: str) -> Dataset:
    """Return the data set with the one sequence that is stored as *text* (the DICOM JSON model), or an empty one."""
    return Dataset.from_json(text) if text else Dataset()


def items_of(dataset: Dataset, tag: int) -> list[Dataset]:
    """Return the items of the sequence *tag*; none where it is not there, or is no sequence though it should be one."""
    if tag not in dataset or dataset[tag].VR != "SQ":
        return []
    return list(dataset[tag].value or ())


def sequence_predicate(item: Dataset) -> Callable[[str], bool] | None:
    """
    Return whether any item of a stored sequence matches all keys of *item*; ``None`` where any does.

    :raises ValueError: a key makes no sense.
    """
    test = item_test(item, 1)
    if test is None:
        return None
    matches = test

    def predicate(text: str) -> bool:
        return any(matches(found) for element in load(text) for found in element.value or ())

    return predicate


def item_test(item: Dataset, depth: int = 1) -> ItemTest | None:
    """
    Return whether a data set matches all keys of *item*; ``None`` where any does.

    :param depth: how deep *item* is nested in the identifier.
    :raises ValueError: a key makes no sense.
    """
    if depth > MAX_NESTING:
        raise ValueError(f"sequences are nested more than {MAX_NESTING} deep")
    tests = [test for element in item if (test := _element_test(element, depth)) is not None]
    if not tests:
        return None
    return lambda found: all(test(found) for test in tests)


def _element_test(element: DataElement, depth: int) -> ItemTest | None:
    tag = element.tag
    if element.VR == "SQ":
        inner = item_test(element.value[0], depth + 1) if element.value else None
        if inner is None:
            return None
        test = inner
        return lambda found: any(test(one) for one in items_of(found, tag))
    values = [value for value in texts(element) if value]
    if not values or values == ["*"]:
        return None
    check_key(element.VR, values)
    matches = _value_test(element.VR, values)
    return lambda found: tag in found and matches(found[tag])


def texts(element: DataElement) -> list[str]:
    """Return the values of *element* as texts."""
    value: Any = element.value
    if value is None:
        return []
    values = value if isinstance(value, (list, tuple, MultiValue)) else [value]
    return [str(one).strip() for one in values]


def _value_test(vr: str, values: list[str]) -> Callable[[DataElement], bool]:
    if vr == "PN":
        predicate = person_names.predicate(values, fuzzy=False)
        return lambda found: any(predicate(text) for text in texts(found))
    if vr in ("DA", "TM", "DT"):
        ranges = [single_range(vr, value, None) for value in values]
        key = {"DA": normal_date, "TM": time_key, "DT": datetime_key}[vr]
        return lambda found: any(first <= key(text) <= last for text in texts(found) if text for first, last in ranges)
    plain = set(values)
    patterns = [wildcard_regex(value) for value in values if has_wildcard(value) and vr != "UI"]
    return lambda found: any(
        text in plain or any(pattern.fullmatch(text) for pattern in patterns) for text in texts(found)
    )


def answer_item(stored: Dataset, wanted: Dataset) -> Dataset:
    """
    Return of the item *stored* what the item *wanted* of an identifier asks for: all of it where that has no keys, else its
    keys, empty where they are not stored (PS3.4 C.2.2.2.6).
    """
    if not len(wanted):
        return stored
    answer = Dataset()
    for element in wanted:
        if element.tag not in stored:
            answer.add(DataElement(element.tag, element.VR, [] if element.VR == "SQ" else None))
        elif element.VR == "SQ":
            keys = element.value[0] if element.value else Dataset()
            items = [answer_item(item, keys) for item in items_of(stored, element.tag)]
            answer.add(DataElement(element.tag, "SQ", items))
        else:
            answer.add(stored[element.tag])
    return answer
