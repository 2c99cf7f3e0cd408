"""
The elements of a data set as the rows of a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydicom.datadict import dictionary_description, keyword_for_tag, private_dictionary_description

from dicomtwist.web.pages.words import person

__all__ = ["MAX_ROWS", "TagRow", "rows_of"]

#: The most elements that are shown.
MAX_ROWS: Final = 5000
#: The longest value that is shown, in characters.
MAX_VALUE: Final = 400
#: The most values of an element that are shown.
MAX_VALUES: Final = 64
#: How deep items may be nested to be shown.
MAX_DEPTH: Final = 16


@dataclass(frozen=True, slots=True)
class TagRow:
    """
    A row: an element, or the beginning of an item.

    :ivar depth: how deep it is nested.
    :ivar tag: the tag as ``0010,0010``; ``""`` for an item.
    :ivar name: the name of the attribute, or of the item.
    :ivar keyword: its keyword, ``""`` without one.
    :ivar vr: its VR.
    :ivar value: its value as text.
    :ivar is_cut: whether the value is longer than what is shown.
    :ivar url: the URL of its value, ``""`` if it is shown.
    """

    depth: int
    tag: str
    name: str
    keyword: str = ""
    vr: str = ""
    value: str = ""
    is_cut: bool = False
    url: str = ""


def rows_of(dataset: Mapping[str, Any]) -> tuple[list[TagRow], bool]:
    """
    Return the rows of a data set, and whether there are more than :data:`MAX_ROWS`.

    :param dataset: the data set as DICOM JSON.
    """
    rows: list[TagRow] = []
    for row in _rows(dataset, 0):
        if len(rows) == MAX_ROWS:
            return rows, True
        rows.append(row)
    return rows, False


def _rows(dataset: Mapping[str, Any], depth: int) -> Iterator[TagRow]:
    creators: dict[tuple[int, int], str] = {}
    for name in sorted(dataset):
        element = dataset[name]
        if not isinstance(element, Mapping) or len(name) != 8:
            continue
        tag = int(name, 16)
        group, number = divmod(tag, 0x10000)
        if group % 2 and 0x10 <= number <= 0xFF:
            creators[group, number] = str((element.get("Value") or [""])[0])
        vr = str(element.get("vr", ""))
        items = element.get("Value", ()) if vr == "SQ" else ()
        text, is_cut = (f"{len(items)} items" if len(items) != 1 else "1 item", False) if vr == "SQ" else _text(element)
        yield TagRow(
            depth,
            f"{name[:4]},{name[4:]}",
            _description(tag, creators.get((group, number >> 8), "")),
            keyword_for_tag(tag),
            vr,
            text,
            is_cut,
            str(element.get("BulkDataURI", "")),
        )
        for at, item in enumerate(items, 1):
            if isinstance(item, Mapping) and depth < MAX_DEPTH:
                yield TagRow(depth + 1, "", f"Item {at}")
                yield from _rows(item, depth + 2)


def _description(tag: int, creator: str) -> str:
    try:
        if tag >> 16 & 1:
            if 0x10 <= tag & 0xFFFF <= 0xFF:
                return "Private Creator"
            return private_dictionary_description(tag, creator) if creator else "Private"
        return dictionary_description(tag)
    except KeyError:
        return "Private" if tag >> 16 & 1 else "Unknown"


def _text(element: Mapping[str, Any]) -> tuple[str, bool]:
    if "InlineBinary" in element:
        return str(element["InlineBinary"])[:MAX_VALUE], len(element["InlineBinary"]) > MAX_VALUE
    values = element.get("Value", ())
    text = " \\ ".join(
        person(one) if isinstance(one, Mapping) else "" if one is None else str(one) for one in values[:MAX_VALUES]
    )
    return text[:MAX_VALUE], len(text) > MAX_VALUE or len(values) > MAX_VALUES
