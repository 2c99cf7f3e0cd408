"""
The query of a C-FIND, C-GET or C-MOVE: its identifier (PS3.4 C.4) as the options describe it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Final

import click
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from dicomtwist import DataSetError, sop_class
from dicomtwist.datasets.element_headers import EXPLICIT_LITTLE_ENDIAN
from dicomtwist.datasets.identifier import encode_identifier
from dicomtwist.sop_class import SOPClass
from dicomtwist.tools.query.keys import (
    AttributePath,
    InvalidKey,
    Key,
    keys_of,
    make_identifier,
    merged,
    parse_key,
    parse_lines,
)

#: The longest file of keys, in bytes.
MAX_KEYS_FILE: Final = 1024 * 1024

#: The unique key of each level (PS3.4 C.6).
UNIQUE_KEYS: Final = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}
#: The attributes that are requested at each level by default.
DEFAULT_KEYS: Final = {
    "PATIENT": ("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    "STUDY": (
        *("PatientID", "PatientName", "StudyDate", "AccessionNumber", "ModalitiesInStudy", "StudyDescription"),
        "StudyInstanceUID",
    ),
    "SERIES": ("Modality", "SeriesNumber", "SeriesDescription", "SeriesInstanceUID"),
    "IMAGE": ("InstanceNumber", "SOPClassUID", "SOPInstanceUID"),
}

#: Attributes that only say how to read a response, and are not shown.
_HIDDEN_COLUMNS: Final = [parse_key(name).path for name in ("QueryRetrieveLevel", "SpecificCharacterSet")]


def information_model(root: str, service: str) -> SOPClass:
    """Return the information model of *root* for *service*: ``Find``, ``Move`` or ``Get``."""
    uid: SOPClass = getattr(sop_class, f"{root.capitalize()}RootQueryRetrieveInformationModel{service}")
    return uid


@dataclass(frozen=True, slots=True)
class Query:
    """
    A query.

    :ivar identifier: the identifier with the keys.
    :ivar model: the information model.
    :ivar columns: the attributes of a response to show.
    """

    identifier: Dataset
    model: SOPClass
    columns: Sequence[AttributePath]


def read_keys(files: Sequence[str]) -> list[Key]:
    """
    Return the keys in *files*.

    :raises click.UsageError: a file cannot be read, or has no or invalid keys.
    """
    keys: list[Key] = []
    for file in files:
        try:
            found = _keys_in(file)
            if not found:
                raise InvalidKey("the file has no key")
            keys += found
        except (InvalidKey, OSError, InvalidDicomError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if isinstance(error, UnicodeDecodeError):
                reason = "the file is neither DICOM nor text in UTF-8"
            raise click.UsageError(f"-f: {file}: {reason}") from None
        except Exception as error:
            # pydicom raises various exceptions for damaged files.
            raise click.UsageError(f"-f: {file}: the file cannot be read: {error}") from None
    return keys


def _keys_in(file: str) -> list[Key]:
    with sys.stdin.buffer if file == "-" else open(file, "rb") as opened:
        content = opened.read(MAX_KEYS_FILE + 1)
    if len(content) > MAX_KEYS_FILE:
        raise InvalidKey(f"the file has more than {MAX_KEYS_FILE} bytes")
    if content[128:132] == b"DICM" and file != "-":
        return keys_of(dcmread(FilePath(file)))
    return parse_lines(content.decode("utf-8-sig").splitlines())


def make_query(
    keys: Sequence[Key], files: Sequence[str], level: str | None, root: str | None, service: str, *, add_defaults: bool
) -> Query:
    """
    Return the query that the options describe.

    :param root: the information model; ``None`` for the one that the level needs: Patient Root for the level PATIENT, which is
        that of a retrieval with a Patient ID and no other unique key, and Study Root otherwise.
    :param add_defaults: if every key has a value, request the default attributes of the level as well.
    :raises click.UsageError: the options contradict each other, or the query cannot be encoded.
    """
    keys = merged_keys(read_keys(files), keys)
    identifier = build_identifier(keys)
    # With only a patient given, find lists the studies of the patient, and get and move fetch everything.
    highest = "PATIENT" if root != "study" and service != "Find" else "STUDY"
    level = (level or str(identifier.get("QueryRetrieveLevel") or "") or _lowest(identifier, highest)).upper()
    if root is None:
        root = "patient" if level == "PATIENT" else "study"
    if level == "PATIENT" and root == "study":
        raise click.UsageError(
            "--level PATIENT and --root study contradict each other: the Study Root model has no patient level"
        )
    if add_defaults and all(key.value for key in keys):
        keys += map(parse_key, DEFAULT_KEYS.get(level, ()))
        make_identifier(keys, identifier)
    identifier.QueryRetrieveLevel = level
    return check_encodable(Query(identifier, information_model(root, service), columns_of(keys)))


def merged_keys(*sources: Iterable[Key]) -> list[Key]:
    """
    Return the keys of *sources*, see :func:`dicomtwist.tools.query.keys.merged`.

    :raises click.UsageError: an attribute takes one value only, or its values are too long.
    """
    try:
        return merged(*sources)
    except InvalidKey as error:
        raise click.UsageError(str(error)) from None


def build_identifier(keys: Iterable[Key]) -> Dataset:
    """
    Return the identifier that consists of *keys*.

    :raises click.UsageError: a value is not valid for its attribute.
    """
    try:
        return make_identifier(keys)
    except InvalidKey as error:
        raise click.UsageError(str(error)) from None


def _lowest(identifier: Dataset, highest: str) -> str:
    """Return the lowest level whose unique key has a value: *highest* if that is PATIENT, STUDY if there is none."""
    found = [level for level, keyword in UNIQUE_KEYS.items() if identifier.get(keyword)]
    return found[-1] if found and found[-1] != "PATIENT" else highest if found else "STUDY"


def columns_of(keys: Iterable[Key]) -> list[AttributePath]:
    """Return the columns for *keys*: their attributes, each once, in the same order."""
    return [path for path in dict.fromkeys(key.path for key in keys) if path not in _HIDDEN_COLUMNS]


def check_encodable(query: Query) -> Query:
    """
    Return *query* after a check that its identifier can be encoded.

    :raises click.UsageError: the identifier cannot be encoded.
    """
    try:
        with warnings.catch_warnings():
            # pydicom would replace letters that the character set lacks by question marks.
            warnings.filterwarnings("error", "Failed to encode")
            encode_identifier(query.identifier, EXPLICIT_LITTLE_ENDIAN)
    except DataSetError as error:
        raise click.UsageError(f"the keys cannot be sent: {error}") from None
    return query
