"""
Coercion: attributes of a header that are set, removed, replaced by pattern, mapped, hashed, or moved in time.

Each new value is computed from the value that was received, before anything is changed; de-identification comes next, and the
new values last. So a Patient ID can be mapped to a name of a trial in an instance that is de-identified otherwise. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from pydicom import DataElement, Dataset
from pydicom.charset import convert_encodings, default_encoding
from pydicom.config import RAISE
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.hooks import raw_element_vr
from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR, STR_VR, validate_value
from pydicom.values import convert_value

from dicomtwist.forwarding.errors import CoercionError
from dicomtwist.forwarding.header import PIXEL_GROUP, Edit, Splice
from dicomtwist.forwarding.paths import Path, Step, tag_name, text_values
from dicomtwist.forwarding.pseudonyms import Pseudonyms, shifted

__all__ = ["BY_PATIENT", "Coercion", "Mapped", "Replacement", "check_target"]

#: In place of a number of days: a number that the key and the Patient ID give.
BY_PATIENT: Final = "patient"

#: The VRs whose texts can be replaced, mapped and hashed.
TEXT_VRS: Final = frozenset(["AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UI", "UR", "UT"])
#: The VRs whose values a backslash does not divide.
_UNDIVIDED: Final = frozenset(("LT", "ST", "UR", "UT"))
#: The VRs whose values may have lines.
_LONG_TEXTS: Final = frozenset(("LT", "ST", "UT"))
_CONTROLS: Final = frozenset(map(chr, [*range(32), 127]))
_RANGE: Final = re.compile(r"-.*|.*-|[^-]{5,}-[^-]{5,}")
#: The lengths of a hash in VRs that allow fewer than 64 characters.
_HASH_LENGTHS: Final = {"AE": 16, "CS": 16, "SH": 16}

#: Attributes that identify an instance, or say how to read it: a constant would make one instance of all, or all unreadable.
_FIXED: Final = frozenset((0x00080005, 0x00080016, 0x00080018, 0x0020000D, 0x0020000E))
_PATIENT_ID: Final = Step(0x00100020)
_STUDY_UID: Final = Step(0x0020000D)


@dataclass(frozen=True, slots=True)
class Replacement:
    """
    A pattern that is searched for in each value of an attribute, and the text in place of each match.

    :ivar pattern: a regular expression, which is searched for.
    :ivar text: the text; ``\\1`` is the first group of the pattern.
    """

    pattern: re.Pattern[str]
    text: str


@dataclass(frozen=True, slots=True)
class Mapped:
    """
    A table of values.

    :ivar table: from the value that is received to the one that is sent.
    :ivar missing: the action for a value without an entry: ``"fail"``, so that it does not leave, ``"keep"`` or ``"remove"``.
    """

    table: Mapping[str, str]
    missing: str = "fail"


@dataclass(frozen=True, slots=True)
class Coercion:
    """
    The changes of one rule to a header. An attribute is in one of the fields at most.

    :ivar set: attributes and their new values; an attribute that is missing is added, if its sequences are there.
    :ivar remove: attributes to remove.
    :ivar replace: attributes and replacements of their texts, one after the other.
    :ivar map: attributes and tables of their values.
    :ivar hash: attributes whose texts become pseudonyms.
    :ivar shift_dates: by how many days all dates move, or :data:`BY_PATIENT`.
    :ivar pseudonyms: the key of *hash* and :data:`BY_PATIENT`.
    :ivar deidentify: changes the header before the new values are written.
    """

    set: Mapping[Path, tuple[str | int | float, ...]] = field(default_factory=dict)
    remove: tuple[Path, ...] = ()
    replace: Mapping[Path, tuple[Replacement, ...]] = field(default_factory=dict)
    map: Mapping[Path, Mapped] = field(default_factory=dict)
    hash: tuple[Path, ...] = ()
    shift_dates: int | str = 0
    pseudonyms: Pseudonyms | None = None
    deidentify: Edit | None = None

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        fields = (self.set, self.remove, self.replace, self.map, self.hash, self.shift_dates)
        return any(map(bool, fields)) or self.deidentify is not None

    def splice(self, transfer_syntax: str) -> Splice:
        """
        Return what changes one data set in *transfer_syntax* on its way.

        De-identification drops what follows the pixel data: signatures name the signer, and padding may hold anything.
        """
        return Splice(transfer_syntax, self, drop_tail=self.deidentify is not None)

    def __call__(self, dataset: Dataset) -> None:
        """
        Change *dataset* in place.

        :raises CoercionError: a value has no entry in its table, or cannot be changed as a rule says.
        """
        new = list(self._computed(dataset))
        if self.shift_dates:
            _shift_all(dataset, self._days(dataset))
        if self.deidentify is not None:
            self.deidentify(dataset)
        for path in self.remove:
            for holder in path.holders(dataset):
                tag = path.last.tag_in(holder)
                if tag is not None and tag in holder:
                    del holder[tag]
        for holder, tag, vr, values, rule in new:
            _write(dataset, holder, tag, vr, values, rule)
        for path, constants in self.set.items():
            for holder in path.holders(dataset):
                _write(dataset, holder, path.tag, path.vr, list(constants), "set")

    def _computed(self, dataset: Dataset) -> Iterator[tuple[Dataset, int, str, list[Any], str]]:
        """Yield the new values that depend on received ones: holder, tag, VR, values, rule."""
        for path, replacements in self.replace.items():
            yield from _changed(dataset, path, "replace", _replacing(replacements))
        for path, mapped in self.map.items():
            yield from _changed(dataset, path, "map", _mapping(mapped))
        if self.hash:
            pseudonyms = self._key("hash")
            for path in self.hash:
                yield from _changed(dataset, path, "hash", _hashing(pseudonyms))

    def _days(self, dataset: Dataset) -> int:
        if isinstance(self.shift_dates, int):
            return self.shift_dates
        return self._key("shift-dates").days(patient_of(dataset))

    def _key(self, rule: str) -> Pseudonyms:
        if self.pseudonyms is None:
            raise CoercionError("", rule, "there is no key")
        return self.pseudonyms


def patient_of(dataset: Dataset) -> str:
    """Return the text that stands for the patient of *dataset*: the Patient ID, or the Study Instance UID if there is none."""
    for kind, step in (("patient", _PATIENT_ID), ("study", _STUDY_UID)):
        value = "\\".join(text_values(dataset, Path((), step))).strip()
        if value:
            return value if kind == "patient" else f"study {value}"
    return ""


def check_target(path: Path, rule: str) -> None:
    """
    Check that *rule* can be applied to the attribute of *path*.

    :param rule: ``"set"``, ``"remove"``, ``"replace"``, ``"map"`` or ``"hash"``.
    :raises ValueError: it cannot.
    """
    group = path.tag >> 16
    first = (path.sequences[0] if path.sequences else path.last).tag >> 16
    if first >= PIXEL_GROUP or first <= 2:
        raise ValueError(f"{path} is not in the header of the data set, the part between groups 0004 and 7FE0")
    if not path.tag & 0xFFFF and not path.last.creator:
        raise ValueError(f"{path} is a group length, which is removed in any case")
    if not path.sequences and path.tag in _FIXED and (rule != "hash" or path.vr != "UI" or path.tag == 0x00080016):
        raise ValueError(f"{path} is needed as it is, so {rule} cannot change it")
    if rule == "remove":
        return
    if group & 1 or not path.vr:
        raise ValueError(f"{path} is not in the data dictionary, so it can only be removed")
    if rule == "set":
        if path.vr == "SQ" or len(path.vr) > 2 or path.vr in ("OB", "OD", "OF", "OL", "OV", "OW", "UN", "AT"):
            raise ValueError(f"{path} has VR {path.vr}, which cannot be set")
    elif path.vr not in TEXT_VRS:
        raise ValueError(f"{path} has VR {path.vr}, which is no text")


def check_values(path: Path, values: tuple[str | int | float, ...]) -> None:
    """
    Check the values that an attribute is set to.

    :raises ValueError: one of them is not valid in its VR.
    """
    vr = path.vr
    for value in values:
        is_number = vr in ("FD", "FL", "SL", "SS", "SV", "UL", "US", "UV")
        if isinstance(value, bool) or (isinstance(value, str) and is_number):
            raise ValueError(f"{value!r} is not valid in VR {vr}")
        if isinstance(value, str) and vr not in _UNDIVIDED and "\\" in value:
            raise ValueError("a backslash divides values: write a list")
        if isinstance(value, str) and not _CONTROLS.isdisjoint(value) and (vr not in _LONG_TEXTS or "\0" in value):
            raise ValueError(f"control characters are not valid in VR {vr}")
        if isinstance(value, str) and vr in ("DA", "DT", "TM") and _RANGE.fullmatch(value):
            raise ValueError("a range of dates or times is for queries only")
        try:
            validate_value(vr, value if is_number else str(value), RAISE)
            Dataset().add_new(path.tag, vr, value if is_number else str(value))
        except Exception as error:
            raise ValueError(str(error)) from None


def _changed(
    dataset: Dataset, path: Path, rule: str, change: Callable[[str, str], str | None]
) -> Iterator[tuple[Dataset, int, str, list[Any], str]]:
    for holder in path.holders(dataset):
        if path.tag not in holder:
            continue
        try:
            element = holder[path.tag]
            value = element.value
        except Exception:
            raise CoercionError(str(path), rule, "its value cannot be decoded") from None
        if element.VR not in TEXT_VRS or isinstance(value, bytes):
            raise CoercionError(str(path), rule, f"it has VR {element.VR}, which is no text")
        values = [] if value is None else [value] if isinstance(value, str) or not _is_list(value) else list(value)
        try:
            new = [change(str(one), element.VR) if str(one) else "" for one in values]
        except CoercionError as error:
            raise CoercionError(str(path), rule, error.words) from None
        if [str(one) for one in values] != new:
            yield holder, path.tag, element.VR, [one for one in new if one is not None], rule


def _is_list(value: object) -> bool:
    return hasattr(value, "__iter__") and not hasattr(value, "family_name")


def _replacing(replacements: tuple[Replacement, ...]) -> Callable[[str, str], str]:
    def change(value: str, vr: str) -> str:
        for one in replacements:
            value = one.pattern.sub(one.text, value)
        return value

    return change


def _mapping(mapped: Mapped) -> Callable[[str, str], str | None]:
    def change(value: str, vr: str) -> str | None:
        found = mapped.table.get(value)
        if found is None and mapped.missing == "fail":
            raise CoercionError("", "map", "its value has no entry in the table")
        return value if found is None and mapped.missing == "keep" else found

    return change


def _hashing(pseudonyms: Pseudonyms) -> Callable[[str, str], str]:
    def change(value: str, vr: str) -> str:
        return pseudonyms.uid(value) if vr == "UI" else pseudonyms.text(value, _HASH_LENGTHS.get(vr, 32))

    return change


def _write(root: Dataset, holder: Dataset, tag: int, vr: str, values: list[Any], rule: str) -> None:
    encodings = encodings_of(holder, encodings_of(root, [default_encoding]))
    texts = [one for one in values if isinstance(one, str)]
    if vr in TEXT_VRS:
        for text in texts:
            if not all(any(_encodes(character, one) for one in encodings) for character in text):
                words = "the new value has characters that the Specific Character Set of the data set has not"
                raise CoercionError(tag_name(tag), rule, words)
            if vr not in _UNDIVIDED and "\\" in text:
                raise CoercionError(tag_name(tag), rule, "the new value has a backslash, which divides values")
    try:
        if rule != "set":
            for text in texts:
                validate_value(vr, text, RAISE)
        new = [str(one) if vr in STR_VR else one for one in values]
        value: Any = new if len(new) > 1 else new[0] if new else ""
        element = DataElement(tag, vr, value)
        is_encoded = vr not in CUSTOMIZABLE_CHARSET_VR or _reads_back(element, texts, encodings)
    except Exception:
        # The texts of pydicom quote the value.
        raise CoercionError(tag_name(tag), rule, f"the new value is not valid in VR {vr}") from None
    if not is_encoded:
        raise CoercionError(tag_name(tag), rule, "the new value cannot be encoded in the Specific Character Set")
    holder[tag] = element


def _reads_back(element: DataElement, texts: list[str], encodings: list[str]) -> bool:
    """Return whether texts are what a reader finds: pydicom does not write some escape sequences."""
    if all(map(str.isascii, texts)):
        return True
    encoded = DicomBytesIO()
    encoded.is_little_endian, encoded.is_implicit_VR = True, True
    write_data_element(encoded, element, encodings)
    raw = encoded.getvalue()[8:]
    read = convert_value(element.VR, RawDataElement(element.tag, element.VR, len(raw), raw, 0, True, True), encodings)
    return (list(map(str, read)) if _is_list(read) and not isinstance(read, str) else [str(read)]) == texts


def encodings_of(dataset: Dataset, inherited: list[str]) -> list[str]:
    """Return the encodings of Python for the texts of *dataset*."""
    if "SpecificCharacterSet" in dataset:
        return list(convert_encodings(dataset.SpecificCharacterSet))
    return inherited


def _encodes(character: str, encoding: str) -> bool:
    try:
        character.encode("ascii" if encoding == default_encoding else encoding)
    except (UnicodeError, LookupError):
        return False
    return True


def _shift_all(dataset: Dataset, days: int) -> None:
    """Move all dates of *dataset* and its items by *days*."""
    try:
        timedelta(days)
    except OverflowError:
        raise CoercionError("", "shift-dates", "too many days") from None
    for tag, element in list(dataset.items()):
        vr = vr_of(dataset, element)
        if vr == "SQ":
            for item in dataset[tag].value or ():
                _shift_all(item, days)
        elif vr in ("DA", "DT"):
            try:
                shift_element(dataset, int(tag), vr, days)
            except ValueError as error:
                raise CoercionError(tag_name(int(tag)), "shift-dates", str(error)) from None


def shift_element(dataset: Dataset, tag: int, vr: str, days: int) -> None:
    """
    Move one date of *dataset*.

    :raises ValueError: a value of it is no date.
    """
    values = [shifted(one, days) for one in raw_texts(dataset, tag)]
    dataset[tag] = DataElement(tag, vr, values if len(values) > 1 else values[0] if values else "")


def vr_of(dataset: Dataset, element: DataElement | RawDataElement) -> str:
    """Return the VR of *element*, from the data dictionary if it came without one, or as UN."""
    if isinstance(element, RawDataElement) and element.VR in (None, "UN"):
        found: dict[str, Any] = {}
        raw_element_vr(element, found, ds=dataset)
        return str(found["VR"])
    return str(element.VR)


def raw_texts(dataset: Dataset, tag: int) -> list[str]:
    """Return the values of an element of ASCII text, without a check of what they are."""
    element = dataset.get_item(tag)
    value = element.value if element is not None else None
    if isinstance(value, bytes):
        return [one.strip(" \0") for one in value.decode("latin-1").split("\\")]
    if value is None:
        return []
    values = [value] if isinstance(value, str) or not _is_list(value) else list(value)
    return [getattr(one, "original_string", None) or str(one) for one in values]
