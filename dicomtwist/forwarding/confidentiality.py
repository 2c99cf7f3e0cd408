"""
The facts of PS3.15 Annex E (edition 2026d) as data: Table E.1-1, Table E.3.4-1, and some of the safe private attributes.

``attributes.csv`` has a row for each attribute of Table E.1-1, ``content_items.csv`` one for each concept of Table E.3.4-1, and
``safe_private.csv`` the private attributes of E.3.10 that the option Retain Safe Private keeps. The codes are those of the
standard: D, Z, X, K, C, U, and compounds of them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from importlib.resources import files
from typing import Final

__all__ = ["EDITION", "METHODS", "Option", "content_row", "is_safe", "row_of", "simple_action"]

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

_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
_PET: Final = f"{_STORAGE}128"
_RT: Final = f"{_STORAGE}481."
#: The IODs with the module Enhanced General Equipment and with functional groups, by the SOP Class.
_ENHANCED: Final = tuple(
    f"{_STORAGE}{one}"
    for one in (
        "2.1",
        "2.2",
        "4.1",
        "4.2",
        "4.3",
        "4.4",
        "6.2",
        "12.1.1",
        "12.2.1",
        "13.1.",
        "30",
        "66.",
        "128.1",
        "130",
    )
)
_DX: Final = f"{_STORAGE}1.1"
_MG: Final = f"{_STORAGE}1.2"
_SR: Final = f"{_STORAGE}88."
_RECORDS: Final = tuple(f"{_RT}{one}" for one in ("4", "6", "7", "9"))
#: The RT IODs of the second generation.
_RT2: Final = f"{_RT}1"
_PLANS: Final = (f"{_RT}5", f"{_RT}8")

#: The attributes with a compound action whose type in some IODs demands more than removal: the simple action, and the prefixes
#: of the SOP Class UIDs of these IODs (an empty one: of all). In all other IODs the first code of the compound applies.
_REQUIRED: Final[dict[int, tuple[tuple[str, tuple[str, ...]], ...]]] = {
    0x00080012: (("D", (_RT2,)),),
    0x00080013: (("D", (_RT2,)),),
    0x00080021: (("D", (_PET,)),),
    0x00080031: (("D", (_PET,)),),
    0x00080022: (("Z", (_PET,)),),
    0x00080032: (("Z", (_PET,)),),
    # Content Date and Time are of type 1 wherever they are not of type 2C, the General Image module.
    0x00080023: (("D", (*_ENHANCED, _SR, _RT2, f"{_STORAGE}77.", f"{_STORAGE}9.", f"{_STORAGE}11.")),),
    0x00080033: (("D", (*_ENHANCED, _SR, _RT2, f"{_STORAGE}77.", f"{_STORAGE}9.", f"{_STORAGE}11.")),),
    0x0008002A: (("D", (*_ENHANCED, f"{_STORAGE}9.", f"{_STORAGE}77.1.6")),),
    0x00081070: (("Z", (_RT,)),),
    0x00081111: (("D", (*_ENHANCED, _DX, _MG)),),
    0x00102203: (("Z", ("",)),),
    0x00181000: (("D", (*_ENHANCED, _RT2, f"{_STORAGE}77.1.6", f"{_STORAGE}88.7")),),
    0x0018700A: (("D", (_MG,)),),
    0x00189516: (("D", _ENHANCED),),
    0x00189517: (("D", _ENHANCED),),
    0x00400555: (("Z", ("",)),),
    0x0040A032: (("D", (_SR,)),),
    0x300A0006: (("D", _PLANS),),
    0x300A0007: (("D", _PLANS),),
    0x300A00B2: (("Z", (_RT,)),),
    0x300E0008: (("Z", ("",)),),
    0x30080054: (("D", _RECORDS),),
    0x30080056: (("D", _RECORDS),),
    0x30080250: (("D", _RECORDS),),
    0x30080251: (("D", _RECORDS),),
    0x30100056: (("D", (_RT2,)),),
    0x30100077: (("D", (_RT2,)),),
    0x3010004C: (("D", (_RT2,)),),
    0x3010004D: (("D", (_RT2,)),),
}


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


def is_safe(group: int, creator: str, element: int) -> bool:
    """
    Return whether a private attribute is known to identify nobody (PS3.15 E.3.10).

    :param element: the last two digits of its element number.
    """
    return (group, creator, element) in _safe_private()


def simple_action(action: str, tag: int, sop_class: str) -> str:
    """
    Return the simple action of a compound: D, Z, X, K, C or U (PS3.15 Table E.1-1a).

    :param sop_class: the SOP Class UID, which says of which type the attribute is in the IOD.
    """
    if "/" not in action:
        return action
    if action.endswith("U*"):
        return "U"  # the items stay, for what refers to them, with the UIDs in them replaced
    allowed = action.split("/")
    for required, prefixes in _REQUIRED.get(tag, ()):
        if required in allowed and sop_class.startswith(prefixes):
            return required
    return allowed[0]


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
def _safe_private() -> frozenset[tuple[int, str, int]]:
    return frozenset(
        (int(line["group"], 16), line["creator"], int(line["element"], 16)) for line in _read("safe_private.csv")
    )
