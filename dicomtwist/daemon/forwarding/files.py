"""
The files that rules of forwarding name: tables of values in CSV, and the key of pseudonyms.
"""

from __future__ import annotations

import csv
import os
import secrets
from io import StringIO
from pathlib import Path
from typing import Final

from dicomtwist.forwarding.pseudonyms import KEY_LENGTH, Pseudonyms

__all__ = ["KeyFileError", "is_open_to_others", "make_key", "read_key", "read_table"]

#: The longest table of values, in bytes, and its most rows.
MAX_TABLE_LENGTH: Final = 64 * 1024 * 1024
MAX_TABLE_ROWS: Final = 1_000_000
#: The longest file of a key, in bytes.
MAX_KEY_FILE: Final = 4096

#: The bytes of a new key; its file has two hexadecimal digits for each.
_NEW_KEY: Final = 32
#: The mode of a new file: only its owner reads it.
_KEY_MODE: Final = 0o600
_SEPARATORS: Final = ",;\t"


class KeyFileError(ValueError):
    """The file of the key of pseudonyms cannot be used; the text says why, and has nothing of the key."""


def read_table(name: str) -> dict[str, str]:
    """
    Return the table of values in a CSV file (RFC 4180) in UTF-8: each row has a value and the one in its place. It blocks.

    The separator is a comma, a semicolon or a tab: the one that the first row has. Empty rows are ignored, and the heading of a
    table is a row like any other.

    :param name: the path of the file.
    :raises ValueError: it cannot be read, is too long, is not in UTF-8, or a row does not have two values. The text names the
        line, and not the values in it.
    """
    path = Path(name)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TABLE_LENGTH + 1)
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror}") from None
    if len(data) > MAX_TABLE_LENGTH:
        raise ValueError(f"{name} has more than {MAX_TABLE_LENGTH} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{name}, line {line}: it is not in UTF-8") from None
    first = text.split("\n", 1)[0]
    reader = csv.reader(
        StringIO(text, newline=""), delimiter=next((one for one in _SEPARATORS if one in first), ","), strict=True
    )
    found: dict[str, str] = {}
    try:
        for row in reader:
            if not row or row == [""]:
                continue
            if len(row) != 2:
                raise ValueError(f"a row has two values, and this one has {len(row)}")
            value, new = (one.strip(" ") for one in row)
            if found.setdefault(value, new) != new:
                raise ValueError("the value is there twice, with different ones in its place")
            if len(found) > MAX_TABLE_ROWS:
                raise ValueError(f"there are more than {MAX_TABLE_ROWS} rows")
    except csv.Error as error:
        raise ValueError(f"{name}, line {reader.line_num}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{name}, line {reader.line_num}: {error}") from None
    if not found:
        raise ValueError(f"{name} has no rows")
    return found


def read_key(path: Path) -> Pseudonyms:
    """
    Return the pseudonyms under the key in a file, which :func:`make_key` has made. White space around the key is ignored. It
    blocks.

    :raises KeyFileError: the file cannot be read, is too long, or has no key.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_FILE + 1)
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {error.strerror}") from None
    key = data.strip()
    if len(data) > MAX_KEY_FILE or len(key) < KEY_LENGTH:
        raise KeyFileError(
            f"{path} has no key: a key has {KEY_LENGTH} to {MAX_KEY_FILE} bytes; dicomtwist queue key makes one"
        )
    return Pseudonyms(key)


def is_open_to_others(path: Path) -> bool:
    """Return whether users other than the owner and the group may read or write a file. It blocks."""
    try:
        return bool(path.stat().st_mode & 0o007)
    except OSError:
        return False


def make_key(path: Path) -> None:
    """
    Make the file of a new key, which only its owner can read. It blocks.

    :raises FileExistsError: there is a file; a new key would give all patients other pseudonyms.
    :raises OSError: it cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _KEY_MODE)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(descriptor, _KEY_MODE)  # the umask may have removed more
        file.write(f"{secrets.token_hex(_NEW_KEY)}\n")
        file.flush()
        os.fsync(descriptor)
