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
    Key,
    KeyMistake,
    Path,
    keys_of,
    make_identifier,
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
#: What is asked for at each level where nothing else is.
USUAL: Final = {
    "PATIENT": ("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    "STUDY": (
        *("PatientID", "PatientName", "StudyDate", "AccessionNumber", "ModalitiesInStudy", "StudyDescription"),
        "StudyInstanceUID",
    ),
    "SERIES": ("Modality", "SeriesNumber", "SeriesDescription", "SeriesInstanceUID"),
    "IMAGE": ("InstanceNumber", "SOPClassUID", "SOPInstanceUID"),
}

#: What says how to read an answer, and is not shown of it.
_NO_COLUMNS: Final = [parse_key(name).path for name in ("QueryRetrieveLevel", "SpecificCharacterSet")]


def model(root: str, service: str) -> SOPClass:
    """Return the information model of *root* for *service*: ``Find``, ``Move`` or ``Get``."""
    uid: SOPClass = getattr(sop_class, f"{root.capitalize()}RootQueryRetrieveInformationModel{service}")
    return uid


@dataclass(frozen=True, slots=True)
class Query:
    """
    What is asked for.

    :ivar identifier: the keys.
    :ivar model: the information model.
    :ivar columns: what to show of an answer.
    """

    identifier: Dataset
    model: SOPClass
    columns: Sequence[Path]


def read_keys(files: Sequence[str]) -> list[Key]:
    """
    Return the keys in *files*.

    :raises click.UsageError: a file cannot be used.
    """
    keys: list[Key] = []
    for file in files:
        try:
            found = _keys_in(file)
            if not found:
                raise KeyMistake("there is no key in it")
            keys += found
        except (KeyMistake, OSError, InvalidDicomError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if isinstance(error, UnicodeDecodeError):
                reason = "it is neither a DICOM file nor text in UTF-8"
            raise click.UsageError(f"-f: {file}: {reason}") from None
        except Exception as error:
            # Whatever pydicom raises for a file that is damaged.
            raise click.UsageError(f"-f: {file}: it cannot be read: {error}") from None
    return keys


def _keys_in(file: str) -> list[Key]:
    with sys.stdin.buffer if file == "-" else open(file, "rb") as opened:
        content = opened.read(MAX_KEYS_FILE + 1)
    if len(content) > MAX_KEYS_FILE:
        raise KeyMistake(f"it has more than {MAX_KEYS_FILE} bytes")
    if content[128:132] == b"DICM" and file != "-":
        return keys_of(dcmread(FilePath(file)))
    return parse_lines(content.decode("utf-8-sig").splitlines())


def make_query(
    keys: Sequence[Key], files: Sequence[str], level: str | None, root: str, service: str, *, usual: bool
) -> Query:
    """
    Return what the options say.

    :param usual: ask for what is usual at the level, where every key has a value.
    :raises click.UsageError: it cannot be asked for.
    """
    keys = [*read_keys(files), *keys]
    identifier = identifier_of(keys)
    # Who knows a patient wants to see the studies, but to have all that there is.
    highest = "PATIENT" if root == "patient" and service != "Find" else "STUDY"
    level = (level or str(identifier.get("QueryRetrieveLevel") or "") or _lowest(identifier, highest)).upper()
    if level == "PATIENT" and root == "study":
        raise click.UsageError("--level PATIENT needs --root patient: the Study Root model has no such level")
    if usual and all(key.value for key in keys):
        keys += map(parse_key, USUAL.get(level, ()))
        make_identifier(keys, identifier)
    identifier.QueryRetrieveLevel = level
    return checked(Query(identifier, model(root, service), columns_of(keys)))


def identifier_of(keys: Iterable[Key]) -> Dataset:
    """
    Return an identifier of *keys*.

    :raises click.UsageError: a value cannot be one.
    """
    try:
        return make_identifier(keys)
    except KeyMistake as mistake:
        raise click.UsageError(str(mistake)) from None


def _lowest(identifier: Dataset, highest: str) -> str:
    """Return the lowest level whose unique key has a value; *highest*, or STUDY where there is none, is where it ends."""
    found = [level for level, keyword in UNIQUE_KEYS.items() if identifier.get(keyword)]
    return found[-1] if found and found[-1] != "PATIENT" else highest if found else "STUDY"


def columns_of(keys: Iterable[Key]) -> list[Path]:
    """Return what to show of the answers: the attributes that *keys* name, each once, in their order."""
    return [path for path in dict.fromkeys(key.path for key in keys) if path not in _NO_COLUMNS]


def checked(query: Query) -> Query:
    """
    Return *query*, which can be encoded.

    :raises click.UsageError: it cannot.
    """
    try:
        with warnings.catch_warnings():
            # pydicom would send question marks for letters that the character set does not have.
            warnings.filterwarnings("error", "Failed to encode")
            encode_identifier(query.identifier, EXPLICIT_LITTLE_ENDIAN)
    except DataSetError as error:
        raise click.UsageError(f"the keys cannot be sent: {error}") from None
    return query
