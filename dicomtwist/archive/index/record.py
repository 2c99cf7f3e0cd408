"""
The index record of an instance: a row for each level, made from the first elements of an encoded data set.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, Protocol, TypeAlias

from pydicom import Dataset
from pydicom.filereader import read_dataset

from dicomtwist.access.rules import Requestor
from dicomtwist.archive.index.attributes import Attribute, Level, at_level
from dicomtwist.archive.index.normal_forms import datetime_key, name_groups, name_key, normal_date, sounds, time_key
from dicomtwist.archive.storage.types import InstanceUIDs
from dicomtwist.datasets.character_sets import canonical, decode_text, decode_texts, decode_values, has_undecoded
from dicomtwist.datasets.element_headers import (
    EXPLICIT_BIG_ENDIAN,
    IMPLICIT,
    SEQUENCE_DELIMITERS,
    UNDEFINED_LENGTH,
)
from dicomtwist.datasets.header_scanner import HeaderScanner
from dicomtwist.datasets.nesting import CountedFile

__all__ = ["Sender", "COLUMNS", "WANTED", "IndexRow", "IndexedInstance", "Record", "make_record", "scanner_for"]

#: The longest value that the index stores, in bytes; a longer one counts as empty. An LT has at most 10240 characters.
MAX_VALUE_LENGTH: Final = 16 * 1024
#: The number of decoded rows of patient, study and series in the cache, and the maximum size of their values in bytes.
MAX_REMEMBERED: Final = 1024
_MAX_REMEMBERED_LENGTH: Final = 8 * 1024

_CHARACTER_SET: Final = 0x00080005

#: The tags without which an instance cannot be filed.
REQUIRED: Final = frozenset((0x00080016, 0x00080018, 0x0020000D, 0x0020000E))

_TAGS: Final = {level: tuple(attribute.tag for attribute in at_level(level)) for level in Level}
_UPPER_TAGS: Final = (*_TAGS[Level.PATIENT], *_TAGS[Level.STUDY], *_TAGS[Level.SERIES])
_IMAGE_TAGS: Final = _TAGS[Level.IMAGE]
#: The tags whose values are extracted from each instance.
WANTED: Final = frozenset((_CHARACTER_SET, *_UPPER_TAGS, *_TAGS[Level.IMAGE]))

#: The columns of Patient's Name: its component groups and its sound.
NAME_COLUMNS: Final = ("name_alphabetic", "name_ideographic", "name_phonetic", "name_sound")


def _columns(level: Level) -> tuple[str, ...]:
    columns = ["character_set"]
    for attribute in at_level(level):
        columns.append(attribute.column)
        if attribute.key_column:
            columns.append(attribute.key_column)
    if level is Level.PATIENT:
        columns += NAME_COLUMNS
    return tuple(columns)


#: The columns that a :class:`Record` has values for, by level.
COLUMNS: Final = {level: _columns(level) for level in Level}
_SOP_CLASS_COLUMN: Final = COLUMNS[Level.IMAGE].index("sop_class_uid")

Row = tuple[str, ...]


@dataclass(slots=True, frozen=True)
class Record:
    """
    The index record of an instance: for each level the values of :data:`COLUMNS`.

    :ivar patient_key: the key that identifies the patient: Patient ID and its issuer. Without a Patient ID it is name and date
        of birth, so that patients without an ID do not all become one.
    """

    patient_key: str
    study_uid: str
    series_uid: str
    sop_instance_uid: str
    patient: Row
    study: Row
    series: Row
    instance: Row

    @property
    def uids(self) -> InstanceUIDs:
        """Study, Series and SOP Instance UID."""
        return self.study_uid, self.series_uid, self.sop_instance_uid

    @property
    def sop_class_uid(self) -> str:
        """The SOP Class UID."""
        return self.instance[_SOP_CLASS_COLUMN]

    @property
    def length(self) -> int:
        """The number of characters in the record."""
        return sum(len(text) for row in (self.patient, self.study, self.series, self.instance) for text in row)


class Sender(Protocol):
    """Where an instance comes from: a peer, or an import. Used in any thread."""

    @property
    def requestor(self) -> Requestor:
        """The facts about it that rules are matched against; asked for in the reactor thread when an instance begins."""

    @property
    def may_replace(self) -> bool:
        """Whether it may replace stored instances, and values that the index has."""

    def log_replacement(self, message: str, /, **fields: object) -> None:
        """Log that its instance replaced another one, behind the name of the sender."""

    def log_conflict(self, message: str, /, **fields: object) -> None:
        """Log that its instance disagrees with the index, unless it has had its share of such lines."""


@dataclass(slots=True)
class IndexRow:
    """
    An instance that is to be added to the index.

    :ivar transfer_syntax: the transfer syntax of its data set.
    :ivar size: the size of its file in bytes.
    :ivar replaces: whether the index may have a row of the same file already, possibly below another patient.
    :ivar digest: the SHA-256 of its file; ``None`` if it is not known.
    :ivar sender: the sender; ``None`` for a file of the archive.
    :ivar stored_at: the time of a file of the archive that is indexed again, in seconds since 1970. Its sender is not known, so
        the values of the file that was stored first apply, whatever the order of the rows.
    """

    record: Record
    transfer_syntax: str
    size: int
    replaces: bool = False
    digest: bytes | None = None
    sender: Sender | None = None
    stored_at: float | None = None


class IndexedInstance(NamedTuple):
    """
    An instance in the index.

    :ivar uids: its Study, Series and SOP Instance UIDs.
    :ivar size: the size of its file in bytes.
    :ivar digest: the SHA-256 of its file as it was received; ``None`` if that is not known.
    """

    uids: InstanceUIDs
    sop_class_uid: str
    transfer_syntax: str
    size: int
    digest: bytes | None


class _Encoding(NamedTuple):
    """
    How the data set is encoded.

    :ivar character_set: its Specific Character Set, with known terms only.
    :ivar default: the one that its text is in if it has none, perhaps.
    """

    character_set: str
    default: str
    implicit: bool
    little: bool


def scanner_for(transfer_syntax_uid: str, wanted: frozenset[int] = WANTED) -> HeaderScanner:
    """Return a scanner for all tags of a record, or for the tags *wanted*."""
    required = REQUIRED if wanted is WANTED else REQUIRED & wanted
    return HeaderScanner(
        transfer_syntax_uid, wanted, max_value_length=MAX_VALUE_LENGTH, sequences=True, required=required
    )


def make_record(values: Mapping[int, bytes], transfer_syntax_uid: str, default_charset: str = "") -> Record:
    """
    Make the record of an instance; it does not fail, whatever *values* contain.

    :param values: tag to raw value, as a :class:`~dicomtwist.datasets.header_scanner.HeaderScanner` found them.
    :param transfer_syntax_uid: the transfer syntax of the data set.
    :param default_charset: the character set of text without one (a defined term of PS3.3 C.12.1.1.2). It is that of a level
        if all text of the level can be decoded in it.
    """
    encoding = _Encoding(
        canonical(values.get(_CHARACTER_SET, b"").decode("latin-1")),
        default_charset,
        transfer_syntax_uid in IMPLICIT,
        transfer_syntax_uid != EXPLICIT_BIG_ENDIAN,
    )
    get = values.get
    upper = tuple([get(tag, b"") for tag in _UPPER_TAGS])
    describe = _described if sum(map(len, upper)) <= _MAX_REMEMBERED_LENGTH else _describe
    patient_key, patient, study, series = describe(upper, encoding)
    instance = _row(Level.IMAGE, [get(tag, b"") for tag in _IMAGE_TAGS], encoding)
    return Record(patient_key, study[1], series[1], instance[1], patient, study, series, instance)


def _describe(upper: tuple[bytes, ...], encoding: _Encoding) -> tuple[str, Row, Row, Row]:
    at_study = len(_TAGS[Level.PATIENT])
    at_series = at_study + len(_TAGS[Level.STUDY])
    patient = _row(Level.PATIENT, upper[:at_study], encoding)
    value = dict(zip(COLUMNS[Level.PATIENT], patient, strict=False))
    groups = name_groups(value["patient_name"])
    patient += (*groups, sounds(value["patient_name"]))
    if value["patient_id"]:
        key = f"{value['patient_id']}\\{value['issuer_of_patient_id']}"
    else:
        key = f"\\\\{value['patient_name_key']}\\{value['patient_birth_date']}"
    study = _row(Level.STUDY, upper[at_study:at_series], encoding)
    return key, patient, study, _row(Level.SERIES, upper[at_series:], encoding)


_described: Callable[[tuple[bytes, ...], _Encoding], tuple[str, Row, Row, Row]] = lru_cache(maxsize=MAX_REMEMBERED)(
    _describe
)


def _row(level: Level, raws: list[bytes] | tuple[bytes, ...], encoding: _Encoding) -> Row:
    if encoding.default and not encoding.character_set:
        guess = _Encoding(encoding.default, "", encoding.implicit, encoding.little)
        row = _decoded_row(level, raws, guess)
        if not all(map(str.isascii, row)) and not any(map(has_undecoded, row)):
            return row
    return _decoded_row(level, raws, encoding)


def _decoded_row(level: Level, raws: list[bytes] | tuple[bytes, ...], encoding: _Encoding) -> Row:
    row = [""] * _WIDTHS[level]
    row[0] = encoding.character_set
    decoders = _DECODERS[level]
    for number, raw in enumerate(raws):
        if raw:
            column, attribute, decode, key = decoders[number]
            row[column] = text = decode(raw, encoding, attribute)
            if key:
                row[column + 1] = key(text)
    return tuple(row)


# --- values


def _uid_text(raw: bytes) -> str:
    """Return the text of a value whose VR does not depend on the character set: UI, CS, AS, DA and the like."""
    text = raw.decode("latin-1").strip(" \0")
    return text.replace("\0", "") if "\0" in text else text


def _plain(raw: bytes, encoding: _Encoding, attribute: Attribute) -> str:
    return _uid_text(raw)


def _integer(raw: bytes, encoding: _Encoding, attribute: Attribute) -> str:
    text = _uid_text(raw)
    return "\\".join(map(integer_text, text.split("\\"))) if "\\" in text else integer_text(text)


def integer_text(text: str) -> str:
    """Return an IS without leading zeros and plus sign; a text that is not a number is returned unchanged."""
    text = text.strip()
    digits = text.lstrip("+-")
    return str(int(text)) if digits.isascii() and digits.isdigit() and len(text) <= 12 else text


def _binary(raw: bytes, encoding: _Encoding, attribute: Attribute) -> str:
    return str(struct.unpack_from("<H" if encoding.little else ">H", raw)[0]) if len(raw) >= 2 else ""


def _date(raw: bytes, encoding: _Encoding, attribute: Attribute) -> str:
    return normal_date(_uid_text(raw))


def _text(raw: bytes, encoding: _Encoding, attribute: Attribute) -> str:
    text = decode_text(raw, encoding.character_set, attribute.vr)
    return text.rstrip() if attribute.vr in ("LT", "ST", "UT") else text.strip()


def _sequence(raw: bytes, encoding: _Encoding, attribute: Attribute) -> str:
    return _sequence_json(raw, encoding, attribute.tag)


@lru_cache(maxsize=256)
def _sequence_json(raw: bytes, encoding: _Encoding, tag: int) -> str:
    """Return a sequence in the DICOM JSON model (PS3.18 F.2); an empty text if it cannot be read."""
    order = "<" if encoding.little else ">"
    length = UNDEFINED_LENGTH if raw.endswith(SEQUENCE_DELIMITERS) else len(raw)
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    head += struct.pack(f"{order}I", length) if encoding.implicit else b"SQ\0\0" + struct.pack(f"{order}I", length)
    try:
        dataset = read_dataset(CountedFile(head + raw), encoding.implicit, encoding.little)
        decode_texts(dataset, encoding.character_set)
        _remove_character_sets(dataset)
        decode_values(dataset)
        return dataset.to_json() if len(dataset) and len(dataset[tag].value) else ""
    except Exception:
        # pydicom may raise anything, depending on the value. The instance itself is stored unchanged in any case.
        return ""


def _remove_character_sets(dataset: Dataset) -> None:
    """Remove what the items of a sequence say of their text, which is decoded."""
    dataset.pop(_CHARACTER_SET, None)
    for element in dataset:
        for item in element.value or () if element.VR == "SQ" else ():
            _remove_character_sets(item)


_BY_VR: Final[dict[str, Callable[[bytes, _Encoding, Attribute], str]]] = {
    **dict.fromkeys(("LO", "SH", "PN", "LT", "ST", "UT", "UC"), _text),
    **dict.fromkeys(("UI", "CS", "AS", "AE", "DS", "TM", "DT"), _plain),
    "IS": _integer,
    "US": _binary,
    "DA": _date,
    "SQ": _sequence,
}
_KEYS: Final[dict[str, Callable[[str], str]]] = {"PN": name_key, "TM": time_key, "DT": datetime_key}

_Decoder: TypeAlias = tuple[int, Attribute, Callable[[bytes, _Encoding, Attribute], str], Callable[[str], str] | None]


def _decoders(level: Level) -> tuple[_Decoder, ...]:
    """Return for each attribute of a level its column in the row, behind which its key is, and what makes both."""
    decoders: list[_Decoder] = []
    column = 1
    for attribute in at_level(level):
        key = _KEYS.get(attribute.vr)
        decoders.append((column, attribute, _BY_VR[attribute.vr], key))
        column += 1 if key is None else 2
    return tuple(decoders)


_DECODERS: Final = {level: _decoders(level) for level in Level}
#: The number of columns of a row: the character set, the attributes and their keys.
_WIDTHS: Final = {level: 1 + sum(1 if key is None else 2 for *_, key in _DECODERS[level]) for level in Level}
