"""
De-identification of a header by the Basic Application Level Confidentiality Profile of PS3.15 Annex E and its options.

The pixels are not looked at: text that is burned into them, and faces in volumes, stay. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

from pydicom import DataElement, Dataset
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import dictionary_has_tag, dictionary_VR, repeater_has_tag
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from dicomtwist.forwarding.coercion import patient_of, raw_texts, shift_element, vr_of
from dicomtwist.forwarding.confidentiality import EDITION, METHODS, Option, content_row, row_of, safe_vr, simple_action
from dicomtwist.forwarding.pseudonyms import Pseudonyms

__all__ = ["Deidentification", "may_show_text"]

_PATIENT_NAME: Final = 0x00100010
_PATIENT_ID: Final = 0x00100020
_CONTENT_SEQUENCE: Final = 0x0040A730

#: The values in place of others (action D), by VR. Those of numbers are 0, those of bytes two zeros.
_DUMMIES: Final = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"), "ANONYMIZED"),
    "AS": "000D",
    "DA": "19000101",
    "DT": "19000101000000",
    "TM": "000000",
    "DS": "0",
    "IS": "0",
    "UR": "urn:x",
    **dict.fromkeys(("FD", "FL"), 0.0),
    **dict.fromkeys(("SL", "SS", "SV", "UL", "US", "UV", "AT"), 0),
    **dict.fromkeys(("OB", "OW", "OB or OW", "UN"), b"\0\0"),
    **dict.fromkeys(("OD", "OF", "OL", "OV"), bytes(8)),
}
#: The options that keep some of the words of texts.
_CLEANING: Final = frozenset((Option.CLEAN_DESCRIPTORS, Option.CLEAN_STRUCTURED_CONTENT, Option.CLEAN_GRAPHICS))
_TEXTS: Final = frozenset(["LO", "LT", "PN", "SH", "ST", "UC", "UT"])
_NUMBERS: Final = frozenset(("FD", "FL", "SL", "SS", "UL", "US"))
#: The values of private attributes that are kept: numbers and ratios, and codes.
_NUMBER: Final = re.compile(r" *[-+0-9.:eE]{0,24} *")
_CODE: Final = re.compile(r" *[A-Z0-9_]{0,16} *")
#: The values of attributes that stay, by VR: what is anything else, such as a name in place of a number, does not.
_VALUES: Final = {
    "AS": re.compile(r"[0-9]{0,3}[DWMYdwmy]?"),
    "UI": re.compile(r"[0-9.]{0,64}"),
    **dict.fromkeys(("DA", "DT", "TM"), re.compile(r"[-+0-9.:/ ]{0,32}")),
    **dict.fromkeys(("DS", "IS"), _NUMBER),
}
_BINARY: Final = frozenset(("AT", "FD", "FL", "OB", "OD", "OF", "OL", "OV", "OW", "SL", "SS", "SV", "UL", "US", "UV"))
#: The groups of commands, of the File Meta Information and of directories, whose attributes are not those of an instance.
_NOT_OF_INSTANCES: Final = 0x0007
_NUMBER_WORD: Final = re.compile(r"[A-Za-z]?\d{1,2}(?:[.,]\d{1,2})?[A-Za-z]{0,2}", re.ASCII)
_WORD: Final = re.compile(r"[^\W\d_]+|[\w.]+|[^\w\s]+|\s+")


class Deidentification:
    """
    The profile with some of its options: an :data:`~dicomtwist.forwarding.header.Edit` of a header.

    Patient ID and Patient's Name become a pseudonym, so that two patients do not become one. An option that keeps and one that
    cleans the same attribute clean it. An attribute that Table E.1-1 does not have stays; but it is removed if the data
    dictionary does not have it either, and it is emptied if it is the name of a person or a date.

    :param pseudonyms: the key of UIDs, of the pseudonyms of patients, and of the days by which dates move.
    :param options: the options.
    :raises ValueError: both options for dates are given.
    """

    def __init__(self, pseudonyms: Pseudonyms, options: Iterable[Option] = ()) -> None:
        self.options = frozenset(options)
        if {Option.RETAIN_FULL_DATES, Option.RETAIN_MODIFIED_DATES} <= self.options:
            raise ValueError("retain-full-dates and retain-modified-dates exclude each other")
        self.pseudonyms = pseudonyms

    def __call__(self, dataset: Dataset) -> None:
        """Remove the identity from *dataset* in place."""
        _Run(self.pseudonyms, self.options, dataset).all(dataset)


def may_show_text(dataset: Dataset) -> bool:
    """
    Return whether the pixels of *dataset* may show who the patient is, which de-identification does not change.

    :returns: ``False`` only if Burned In Annotation (0028,0301) is NO.
    """
    return str(dataset.get("BurnedInAnnotation", "")) != "NO"


class _Run:
    """The de-identification of one data set."""

    def __init__(self, pseudonyms: Pseudonyms, options: frozenset[Option], dataset: Dataset) -> None:
        self.pseudonyms = pseudonyms
        self.options = options
        self.patient = patient_of(dataset)
        self.days = pseudonyms.days(self.patient)
        self.sop_class = "\\".join(raw_texts(dataset, 0x00080016))
        self.identifying = _identifying_words(dataset) if options & _CLEANING else frozenset()
        self.is_nested = False

    def all(self, dataset: Dataset) -> None:
        self.level(dataset)
        for tag in (_PATIENT_ID, _PATIENT_NAME):
            # Even if there was none: the attribute is of type 2.
            value = self.pseudonyms.text(self.patient) if self.patient else ""
            dataset[tag] = DataElement(tag, dictionary_VR(tag), value)
        dataset.PatientIdentityRemoved = "YES"
        dataset.DeidentificationMethod = f"DICOM PS3.15 {EDITION} Annex E, header only; pixels unchanged"
        dataset.DeidentificationMethodCodeSequence = Sequence(
            _code(*METHODS[key])
            for key in sorted(METHODS, key=lambda key: METHODS[key][0])
            if not key or key in self.options
        )
        dataset.LongitudinalTemporalInformationModified = (
            "UNMODIFIED"
            if Option.RETAIN_FULL_DATES in self.options
            else "MODIFIED"
            if Option.RETAIN_MODIFIED_DATES in self.options
            else "REMOVED"
        )

    def level(self, dataset: Dataset) -> None:
        """Treat the elements of a data set or an item."""
        creators = _creators(dataset)
        kept = set()
        for tag, element in list(dataset.items()):
            number = int(tag)
            if tag.group & 1:
                block = tag.group << 16 | tag.element >> 8
                expected = safe_vr(tag.group, creators.get(block, ""), tag.element & 0xFF)
                is_kept = Option.RETAIN_SAFE_PRIVATE in self.options and expected
                if is_kept and _is_safe(dataset, number, vr_of(dataset, element), expected):
                    kept.add(block)
                elif not (0x10 <= tag.element <= 0xFF):
                    del dataset[tag]
                continue
            self.element(dataset, number, vr_of(dataset, element))
        for tag in [one for one in dataset.keys() if one.group & 1 and 0x10 <= one.element <= 0xFF]:  # noqa: SIM118
            if tag.group << 16 | tag.element not in kept:
                del dataset[tag]

    def element(self, dataset: Dataset, tag: int, vr: str) -> None:
        row = row_of(tag)
        if row is None:
            self.unlisted(dataset, tag, vr)
            return
        self.apply(dataset, tag, vr, self.simple(row.action(self.options), tag), row.basic)

    def simple(self, action: str, tag: int) -> str:
        return simple_action(action, tag, self.sop_class, is_nested=self.is_nested)

    def unlisted(self, dataset: Dataset, tag: int, vr: str) -> None:
        """Treat an element that Table E.1-1 does not have."""
        known = dictionary_has_tag(tag)
        if (not known and not repeater_has_tag(tag)) or tag >> 16 <= _NOT_OF_INSTANCES:
            del dataset[tag]
            return
        expected = dictionary_VR(tag)
        if vr == "SQ":
            if expected != "SQ":
                del dataset[tag]
            else:
                self.items(dataset, tag)
        elif expected == "SQ" or (vr in ("UN", "OB", "OW") and vr not in expected and expected != "UN"):
            del dataset[tag]  # its content cannot be read
        elif vr == "PN" or expected == "PN":
            dataset[tag] = DataElement(tag, "PN", "")
        elif (vr in ("DA", "DT") or expected in ("DA", "DT")) and Option.RETAIN_FULL_DATES not in self.options:
            if Option.RETAIN_MODIFIED_DATES in self.options:
                self.shift(dataset, tag, expected)
            else:
                dataset[tag] = DataElement(tag, expected, "")
        elif not _may_stay(dataset, tag, vr, expected):
            del dataset[tag]

    def apply(self, dataset: Dataset, tag: int, vr: str, action: str, basic: str) -> None:
        """Apply a simple action to an element."""
        known = dictionary_VR(tag) if dictionary_has_tag(tag) or repeater_has_tag(tag) else vr
        if action == "C":
            action = self.cleaned(dataset, tag, vr, known, basic)
            if not action:
                return
        if action == "K" and known in ("DA", "DT", "TM") and not _may_stay(dataset, tag, vr, known):
            action = self.simple(basic, tag)
        if action == "X":
            del dataset[tag]
        elif action == "Z":
            dataset[tag] = DataElement(tag, known, Sequence() if known == "SQ" else "" if known in _DUMMIES else None)
        elif action == "K":
            if vr == "SQ":
                self.items(dataset, tag)
            elif known == "SQ":
                del dataset[tag]
        elif action == "U":
            if vr == "SQ":
                self.items(dataset, tag)
            elif known == "SQ":
                del dataset[tag]
            else:
                dataset[tag] = DataElement(
                    tag, "UI", _one([self.pseudonyms.uid(one) for one in raw_texts(dataset, tag)])
                )
        elif known == "SQ":
            items = dataset[tag].value if vr == "SQ" else ()
            dataset[tag] = DataElement(tag, "SQ", self.dummy_items(tag, items))
        else:
            dataset[tag] = DataElement(tag, known[:2], self.dummy(dataset, tag, known))

    def items(self, dataset: Dataset, tag: int) -> None:
        for item in dataset[tag].value or ():
            self.item(item)

    def item(self, item: Dataset) -> None:
        outer, self.is_nested = self.is_nested, True
        self.level(item)
        self.is_nested = outer

    def dummy(self, dataset: Dataset, tag: int, vr: str) -> Any:
        if vr == "UI":
            return _one([self.pseudonyms.uid(one) for one in raw_texts(dataset, tag)])
        return _DUMMIES.get(vr, _DUMMIES.get(vr[:2], ""))

    def dummy_items(self, tag: int, items: Iterable[Dataset]) -> Sequence:
        """Return items with dummies in place of all values."""
        if tag == _CONTENT_SEQUENCE:
            return Sequence([_dummy_content()])
        return Sequence(self.dummy_item(item) for item in list(items)[:1])

    def dummy_item(self, item: Dataset) -> Dataset:
        new = Dataset()
        for tag, element in item.items():
            if tag.group & 1 or not tag.element or not dictionary_has_tag(tag):
                continue
            vr, known = vr_of(item, element), dictionary_VR(tag)
            if known == "SQ":
                if vr == "SQ":
                    new[tag] = DataElement(tag, "SQ", Sequence(self.dummy_item(one) for one in item[tag].value or ()))
            elif len(known) == 2:
                new[tag] = DataElement(tag, known, self.dummy(item, int(tag), known))
        return new

    def shift(self, dataset: Dataset, tag: int, vr: str) -> None:
        try:
            shift_element(dataset, tag, vr, self.days)
        except ValueError:
            dataset[tag] = DataElement(tag, vr, _DUMMIES[vr])

    def cleaned(self, dataset: Dataset, tag: int, vr: str, known: str, basic: str) -> str:
        """
        Clean an element (action C).

        :returns: the simple action that applies if it cannot be cleaned; empty if it was.
        """
        dates = {Option.RETAIN_FULL_DATES, Option.RETAIN_MODIFIED_DATES} & self.options
        if known in ("DA", "DT") and dates:
            if Option.RETAIN_MODIFIED_DATES in self.options:
                self.shift(dataset, tag, known)
                return ""
            return "" if _may_stay(dataset, tag, vr, known) else self.simple(basic, tag)
        if known == "TM" and dates and _may_stay(dataset, tag, vr, known):
            return ""  # the date has moved by whole days
        if known == "SQ" and vr == "SQ":
            structured = tag == _CONTENT_SEQUENCE or tag == 0x00400555
            for item in list(dataset[tag].value or ()):
                if structured and self.content(item):
                    dataset[tag].value.remove(item)
                else:
                    self.item(item)
            return ""
        # The bits of overlays and curves cannot be cleaned without a look at them.
        if known in _TEXTS and known != "PN" and tag >> 24 not in (0x50, 0x60):
            self.clean_text(dataset, tag, known)
            return ""
        return self.simple(basic, tag)

    def clean_text(self, dataset: Dataset, tag: int, vr: str) -> None:
        try:
            value = dataset[tag].value
        except Exception:  # bytes that are no text
            value = ""
        if isinstance(value, bytes):
            value = ""
        values = list(value) if isinstance(value, MultiValue | list) else [] if value is None else [value]
        dataset[tag] = DataElement(tag, vr, _one([self.known_words(str(one)) for one in values]))

    def known_words(self, text: str) -> str:
        """Return *text* without the words that are not of the standard's vocabulary, or that name someone in the header."""
        kept = []
        for word in _WORD.findall(text):
            lower = word.lower()
            is_letters = word.isalpha()
            if word.isspace() or not any(map(str.isalnum, word)):
                kept.append(word if word.isascii() and word.isprintable() else " ")
            elif lower not in self.identifying and (
                lower in _vocabulary() if is_letters else _NUMBER_WORD.fullmatch(word) is not None
            ):
                kept.append(word)
        return " ".join("".join(kept).split())

    def content(self, item: Dataset) -> bool:
        """
        Clean a content item by Table E.3.4-1 (Clean Structured Content).

        :returns: whether it has to be removed.
        """
        concepts = item[0x0040A043].value if 0x0040A043 in item and item[0x0040A043].VR == "SQ" else ()
        row = None
        for concept in concepts or ():
            row = content_row(str(concept.get("CodingSchemeDesignator", "")), str(concept.get("CodeValue", "")))
            if row is not None:
                break
        kind = str(item.get("ValueType", ""))
        action = simple_action(row.action(self.options), 0, "") if row is not None else ""
        if action == "X":
            return True
        if action == "K":
            return False
        dates = bool({Option.RETAIN_FULL_DATES, Option.RETAIN_MODIFIED_DATES} & self.options)
        if kind == "PNAME" or (kind in ("DATE", "TIME", "DATETIME") and not dates and not action):
            return True
        if kind == "TEXT" and 0x0040A160 in item:
            if action in ("D", "Z"):
                item[0x0040A160] = DataElement(0x0040A160, "UT", _DUMMIES["UT"])
            else:
                self.clean_text(item, 0x0040A160, "UT")
        return False


def _is_safe(dataset: Dataset, tag: int, vr: str, expected: str) -> bool:
    """Return whether the value of a safe private attribute is of the kind that it is known for: a number, or a code."""
    if vr in _NUMBERS:
        return expected in _NUMBERS or expected in ("DS", "IS")
    pattern = _CODE if expected == "CS" else _NUMBER
    return vr in ("CS", "DS", "IS", "LO", "SH") and all(pattern.fullmatch(one) for one in raw_texts(dataset, tag))


def _may_stay(dataset: Dataset, tag: int, vr: str, expected: str) -> bool:
    """Return whether the value of an attribute is of the kind that its VR in the data dictionary, *expected*, says."""
    if expected[:2] in _BINARY:
        # Some write numbers as text.
        return vr in _BINARY or vr == "UN" or all(_NUMBER.fullmatch(one) for one in raw_texts(dataset, tag))
    if vr in _BINARY:
        return False
    pattern = _VALUES.get(expected)
    return pattern is None or all(pattern.fullmatch(one) for one in raw_texts(dataset, tag))


def _one(values: list[str]) -> Any:
    return values if len(values) > 1 else values[0] if values else ""


def _code(value: str, meaning: str, scheme: str = "DCM") -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _dummy_content() -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", _DUMMIES["UT"]
    item.ConceptNameCodeSequence = Sequence([_code("121106", "Comment")])
    return item


def _creators(dataset: Dataset) -> dict[int, str]:
    """Return the private creators of *dataset* by group and block, ``group << 16 | block``."""
    return {
        tag.group << 16 | tag.element: "\\".join(raw_texts(dataset, int(tag))).strip()
        for tag in dataset.keys()  # noqa: SIM118, a Dataset iterates over its elements
        if tag.group & 1 and 0x10 <= tag.element <= 0xFF
    }


@lru_cache(maxsize=1)
def _vocabulary() -> frozenset[str]:
    """The words of the data dictionary and of the codes of PS3.16, in lower case."""
    from pydicom.sr.codedict import codes  # only this option needs its tables, which are large

    names = [entry[2] for entry in DicomDictionary.values()]
    for scheme in ("DCM", "SCT"):
        names += [code.meaning for code in getattr(codes, scheme).concepts.values()]
    return frozenset(word.lower() for name in names for word in re.findall(r"[A-Za-z]{2,}", name))


def _identifying_words(dataset: Dataset) -> frozenset[str]:
    """Return the words of names and identifiers in *dataset* and its items, in lower case."""
    found: set[str] = set()
    level = [dataset]
    while level:
        items: list[Dataset] = []
        for outer in level:
            for tag, element in list(outer.items()):
                vr = vr_of(outer, element)
                if vr == "SQ":
                    items += outer[tag].value or ()
                    continue
                row = row_of(int(tag))
                is_name = vr == "PN" or tag.group == 0x0010
                if not is_name and (
                    row is None or Option.CLEAN_DESCRIPTORS in row.options or vr not in ("LO", "SH", "AE")
                ):
                    continue
                try:
                    text = str(outer[tag].value)
                except Exception:
                    text = " ".join(raw_texts(outer, int(tag)))
                found.update(word.lower() for word in re.findall(r"\w+", text))
        level = items
    return frozenset(found)
