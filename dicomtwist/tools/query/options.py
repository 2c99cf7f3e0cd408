"""
What a query or retrieval asks for: the options that say it, and the identifier that they make (PS3.4 C.4).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Final

import click
from click.shell_completion import CompletionItem
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from dicomtwist import DataSetError, sop_class
from dicomtwist.datasets.identifier import encode_identifier
from dicomtwist.sop_class import SOPClass
from dicomtwist.tools.options import own_option
from dicomtwist.tools.query.keys import (
    Key,
    KeyMistake,
    Path,
    keys_of,
    keywords_like,
    make_identifier,
    parse_key,
    parse_lines,
)

#: The longest file of keys, in bytes.
MAX_KEYS_FILE: Final = 1024 * 1024

LEVELS: Final = ("PATIENT", "STUDY", "SERIES", "IMAGE")
#: The unique key of each level (PS3.4 C.6).
UNIQUE_KEYS: Final = dict(
    zip(LEVELS, ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"), strict=True)
)
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

#: The information models by what --root says, of FIND, MOVE and GET.
ROOTS: Final = ("study", "patient")
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


class KeyType(click.ParamType[Key]):
    """A key, ``Keyword=value``."""

    name = "key"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Key:
        """Return the key that is meant."""
        if isinstance(value, Key):
            return value
        try:
            return parse_key(value)
        except KeyMistake as mistake:
            self.fail(str(mistake), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the keywords that begin so; of what is in a sequence, behind the way that leads there."""
        way, dot, start = incomplete.rpartition(".")
        # Without a letter they are some thousands.
        return [CompletionItem(f"{way}{dot}{keyword}") for keyword in keywords_like(start)] if start else []


def key_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a subcommand ``-k`` and ``-f``; it is called with *keys* and *key_files*."""
    key = own_option(
        "-k",
        "--key",
        "keys",
        type=KeyType(),
        multiple=True,
        metavar="KEY",
        help="Match or ask for an attribute: Keyword=value, (gggg,eeee)=value, Sequence[0].Keyword=value; without a value"
        " it is only asked for. May be given more than once.",
    )
    file = own_option(
        "-f",
        "--file",
        "key_files",
        type=click.Path(exists=True, dir_okay=False, allow_dash=True),
        multiple=True,
        metavar="FILE",
        help="Take keys from FILE: a DICOM file, or text with a key in each line; - for standard input.",
    )
    return key(file(function))


def level_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a subcommand ``--level`` and ``--root``."""
    level = own_option(
        "--level",
        type=click.Choice(LEVELS, case_sensitive=False),
        help="Query/Retrieve Level.  [default: that of the lowest unique key, PATIENT only to retrieve; STUDY]",
    )
    root = own_option(
        "--root", type=click.Choice(ROOTS), default=ROOTS[0], show_default=True, help="Information model."
    )
    return level(root(function))


def format_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a subcommand ``--csv`` and ``--limit``."""
    as_csv = own_option("--csv", "as_csv", is_flag=True, help="Print comma-separated values in the place of a table.")
    limit = own_option(
        "--limit", type=click.IntRange(1), metavar="N", help="Have the peer stop after N matches (C-CANCEL)."
    )
    return as_csv(limit(function))


# --- what they make


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
            encode_identifier(query.identifier, "1.2.840.10008.1.2.1")
    except DataSetError as error:
        raise click.UsageError(f"the keys cannot be sent: {error}") from None
    return query
