"""
Sequences in queries: the matching of their items (PS3.4 C.2.2.2.6), and their content in an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.multival import MultiValue

from dicomtwist.archive.index.normal_forms import (
    any_of,
    check_key,
    datetime_key,
    normal_date,
    time_key,
)
from dicomtwist.archive.query import person_names
from dicomtwist.archive.query.compact_item import Element, Item
from dicomtwist.archive.query.date_ranges import single_range

#: The maximum depth of nested sequences in an identifier.
MAX_NESTING = 8

#: A function that decides whether a data set matches.
ItemTest = Callable[[Dataset | Item], bool]


def load(text: str) -> Dataset:
    """Return the data set with the one sequence that is stored as *text* (the DICOM JSON model), or an empty one."""
    return Dataset.from_json(text) if text else Dataset()


def items_of(dataset: Dataset | Item, tag: int) -> list[Any]:
    """Return the items of the sequence *tag*; an empty list if it is missing, or is not a sequence as it should be."""
    if tag not in dataset or dataset[tag].VR != "SQ":
        return []
    return list(dataset[tag].value or ())


def sequence_predicate(item: Dataset) -> Callable[[str], bool] | None:
    """
    Return a function that tests whether any item of a stored sequence matches all keys of *item*.

    :returns: the function, or ``None`` if every item matches.
    :raises ValueError: a key is invalid.
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
    Return a function that tests whether a data set matches all keys of *item*.

    :param depth: the depth at which *item* is nested in the identifier.
    :returns: the function, or ``None`` if every data set matches.
    :raises ValueError: a key is invalid.
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


def texts(element: DataElement | Element) -> list[str]:
    """Return the values of *element* as texts, without padding: spaces, or NULs, which some peers pad every VR with."""
    value: Any = element.value
    if value is None:
        return []
    values = value if isinstance(value, (list, tuple, MultiValue)) else [value]
    return [str(one).strip("\0 ").strip() for one in values]


def _value_test(vr: str, values: list[str]) -> Callable[[DataElement | Element], bool]:
    if vr == "PN":
        predicate = person_names.predicate(values, fuzzy=False)
        return lambda found: any(predicate(text) for text in texts(found))
    if vr in ("DA", "TM", "DT"):
        ranges = [single_range(vr, value, None) for value in values]
        key = {"DA": normal_date, "TM": time_key, "DT": datetime_key}[vr]
        return lambda found: any(first <= key(text) <= last for text in texts(found) if text for first, last in ranges)
    test = frozenset(values).__contains__ if vr == "UI" else any_of(values)
    return lambda found: any(map(test, texts(found)))


def answer_item(stored: Dataset, wanted: Dataset) -> Dataset:
    """
    Return the part of the item *stored* that the item *wanted* of an identifier requests (PS3.4 C.2.2.2.6).

    If *wanted* has no keys, the answer is the whole item. Otherwise it has the keys, empty if they are not stored.
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
