"""
The facts of PS3.15 Annex E (edition 2026d) as data: Table E.1-1, Table E.3.4-1, and some of the safe private attributes.

``attributes.csv`` has a row for each attribute of Table E.1-1, ``content_items.csv`` one for each concept of Table E.3.4-1, and
``safe_private.csv`` the private attributes of E.3.10 that the option Retain Safe Private keeps: those that PixelMed, GDCM and
the private dictionary of pydicom agree on. The codes are those of the standard: D, Z, X, K, C, U, and compounds of them.

``compound_types.csv`` says where the type of an attribute in an IOD of PS3.3 demands another action than the first one of a
compound: Z for types 2 and 2C, D for types 1 and 1C. It is computed from the tables of modules that highdicom 0.28 has, on its
own for data sets and for items of sequences. A module that is optional counts if no other one has the attribute.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from importlib.resources import files
from typing import Final

__all__ = ["EDITION", "METHODS", "Option", "content_row", "safe_vr", "row_of", "simple_action"]

#: The edition of the standard that the data is from.
EDITION: Final = "2026d"


class Option(StrEnum):
    """The options of the Basic Application Level Confidentiality Profile (PS3.15 E.3), but those that change pixels."""

    RETAIN_UIDS = "retain-uids"
    RETAIN_DEVICE_IDENTITY = "retain-device-identity"
    RETAIN_INSTITUTION_IDENTITY = "retain-institution-identity"
    RETAIN_PATIENT_CHARACTERISTICS = "retain-patient-characteristics"
    RETAIN_FULL_DATES = "retain-full-dates"
    RETAIN_MODIFIED_DATES = "retain-modified-dates"
    CLEAN_DESCRIPTORS = "clean-descriptors"
    CLEAN_STRUCTURED_CONTENT = "clean-structured-content"
    CLEAN_GRAPHICS = "clean-graphics"
    RETAIN_SAFE_PRIVATE = "retain-safe-private"


#: The De-identification Method codes of the profile (key ``""``) and its options: code of scheme DCM, and meaning (CID 7050).
METHODS: Final[dict[str, tuple[str, str]]] = {
    "": ("113100", "Basic Application Confidentiality Profile"),
    Option.CLEAN_GRAPHICS: ("113103", "Clean Graphics Option"),
    Option.CLEAN_STRUCTURED_CONTENT: ("113104", "Clean Structured Content Option"),
    Option.CLEAN_DESCRIPTORS: ("113105", "Clean Descriptors Option"),
    Option.RETAIN_FULL_DATES: ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    Option.RETAIN_MODIFIED_DATES: ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    Option.RETAIN_PATIENT_CHARACTERISTICS: ("113108", "Retain Patient Characteristics Option"),
    Option.RETAIN_DEVICE_IDENTITY: ("113109", "Retain Device Identity Option"),
    Option.RETAIN_UIDS: ("113110", "Retain UIDs Option"),
    Option.RETAIN_SAFE_PRIVATE: ("113111", "Retain Safe Private Option"),
    Option.RETAIN_INSTITUTION_IDENTITY: ("113112", "Retain Institution Identity Option"),
}

#: The SOP Classes in ``compound_types.csv`` are below this UID.
_CLASSES: Final = "1.2.840.10008.5.1.4."


@dataclass(frozen=True, slots=True)
class Row:
    """
    A row of Table E.1-1 or Table E.3.4-1.

    :ivar basic: the action of the Basic Profile, such as ``"X/Z/D"``.
    :ivar options: the actions of options that differ from it.
    """

    basic: str
    options: dict[Option, str]

    def action(self, options: Iterable[Option]) -> str:
        """
        Return the action under *options*, which may be a compound.

        An option takes precedence over the Basic Profile. If one option keeps what another one cleans, it is cleaned.
        """
        found = {self.options[one] for one in options if one in self.options}
        return "C" if "C" in found else "K" if found else self.basic


def row_of(tag: int) -> Row | None:
    """Return the row of an attribute in Table E.1-1, if there is one. Groups 50xx and 60xx are rows as a whole."""
    group = tag >> 16
    if group & 0xFF00 == 0x5000 and not group & 1:
        return _attributes()["50xxxxxx"]
    # Without its bits or its comments the rest of an overlay plane says nothing, so the planes go as a whole.
    if group & 0xFF00 == 0x6000 and not group & 1:
        return _attributes()["60xx3000"]
    return _attributes().get(f"{tag:08X}")


def content_row(scheme: str, code: str) -> Row | None:
    """
    Return the row of a content item in Table E.3.4-1, if there is one.

    Some concepts have a row for each value type; what removes most of them counts.
    """
    return _content_items().get((scheme, code))


def safe_vr(group: int, creator: str, element: int) -> str:
    """
    Return the VR of a private attribute that is known to identify nobody (PS3.15 E.3.10), an empty text for any other one.

    :param element: the last two digits of its element number.
    """
    return _safe_private().get((group, creator, element), "")


def simple_action(action: str, tag: int, sop_class: str, *, is_nested: bool = False) -> str:
    """
    Return the simple action of a compound: D, Z, X, K, C or U (PS3.15 Table E.1-1a).

    :param sop_class: the SOP Class UID, which says of which type the attribute is in the IOD. In an IOD that is not known, or
        that does not have the attribute, the first code of the compound applies.
    :param is_nested: whether the attribute is in an item of a sequence; there it can be of another type.
    """
    if "/" not in action:
        return action
    if action.endswith("U*"):
        return "U"  # the items stay, for what refers to them, with the UIDs in them replaced
    required = _compound_types().get((tag, is_nested), {}).get(sop_class, "")
    allowed = action.split("/")
    return required if required in allowed else allowed[0]


def _read(name: str) -> Iterable[dict[str, str]]:
    return csv.DictReader(files(__package__).joinpath(name).read_text("utf-8").splitlines())


def _row(line: dict[str, str]) -> Row:
    return Row(line["basic"], {one: line[one] for one in Option if line.get(one)})


@lru_cache(maxsize=1)
def _attributes() -> dict[str, Row]:
    return {line["tag"]: _row(line) for line in _read("attributes.csv")}


@lru_cache(maxsize=1)
def _content_items() -> dict[tuple[str, str], Row]:
    strictness = ("X", "X/D", "D", "Z", "U")
    found: dict[tuple[str, str], Row] = {}
    for line in _read("content_items.csv"):
        row, key = _row(line), (line["scheme"], line["code"])
        other = found.get(key)
        if other is None or strictness.index(row.basic) < strictness.index(other.basic):
            found[key] = row
    return found


@lru_cache(maxsize=1)
def _compound_types() -> dict[tuple[int, bool], dict[str, str]]:
    found: dict[tuple[int, bool], dict[str, str]] = {}
    for line in _read("compound_types.csv"):
        classes = found.setdefault((int(line["tag"], 16), line["level"] == "items"), {})
        classes.update((f"{_CLASSES}{one}", line["action"]) for one in line["sop_classes"].split())
    return found


@lru_cache(maxsize=1)
def _safe_private() -> dict[tuple[int, str, int], str]:
    return {
        (int(line["group"], 16), line["creator"], int(line["element"], 16)): line["vr"]
        for line in _read("safe_private.csv")
    }
