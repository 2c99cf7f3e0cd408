"""
Changes of a file of users: one entry is added, replaced or removed, and the rest of the file stays as it is.

A change is atomic: a server that reads the file meanwhile, and a crash, find the file before the change or after it.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Final

from dicomtwist.access.users import MAX_FILE_LENGTH, MAX_USERS, TokenEntry, UserEntry, check_name, parse_entries
from dicomtwist.runtime.regular_files import open_regular

__all__ = ["Change", "remove_user", "set_user"]

#: The permissions of a new file: it has hashes, from which weak passcodes can be guessed.
NEW_FILE_MODE: Final = 0o600


class Change(Enum):
    """The effect of a change on the file."""

    ADDED = "added"
    REPLACED = "replaced"
    REMOVED = "removed"


def set_user(path: Path, entry: UserEntry | TokenEntry) -> Change:
    """
    Write *entry* to the file of users *path*, in place of an entry of the same name and kind: a user may have a passcode and a
    token. Blocks.

    Other lines and comments stay, as do the owner and the permissions of the file. A symbolic link is followed. A missing
    file is created, readable by its owner alone.

    :raises ValueError: another line of the file is no entry, or the file would become too long.
    :raises OSError: the file cannot be read or written.
    """

    def change(lines: list[str]) -> tuple[list[str], Change]:
        key = _key_of(str(entry))
        found = [number for number, line in enumerate(lines) if _key_of(line) == key]
        if not found:
            return [*lines, str(entry)], Change.ADDED
        # Of several lines the last one counts, so that none of the others may stay.
        kept = [line for number, line in enumerate(lines) if number not in found[1:]]
        kept[found[0]] = str(entry)
        return kept, Change.REPLACED

    return _change(path, change)


def remove_user(path: Path, name: str) -> Change:
    """
    Remove the entries of the user *name* from the file of users *path*. Blocks.

    :raises KeyError: there is no such user.
    :raises ValueError: *name* is no user name, or another line of the file is no entry.
    :raises OSError: the file cannot be read or written.
    """
    check_name(name)

    def change(lines: list[str]) -> tuple[list[str], Change]:
        kept = [line for line in lines if _name_of(line) != name]
        if len(kept) == len(lines):
            raise KeyError(name)
        return kept, Change.REMOVED

    return _change(path, change)


def _name_of(line: str) -> str:
    """Return the name in a line, ``""`` if it has no entry."""
    name, colon, _ = line.strip().partition(":")
    return name if colon and not line.startswith("#") else ""


def _key_of(line: str) -> tuple[str, bool]:
    """Return the name in a line, and whether its entry is a token."""
    return _name_of(line), line.partition(":")[2].startswith("token:")


def _change(path: Path, change: Callable[[list[str]], tuple[list[str], Change]]) -> Change:
    path = Path(os.path.realpath(path))
    with _locked(path.parent):
        try:
            with open_regular(path) as file:
                before: os.stat_result | None = os.fstat(file.fileno())
                content = file.read(MAX_FILE_LENGTH + 1)
        except FileNotFoundError:
            before, content = None, b""
        text = content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
        # Only line feeds count: other separators of str.splitlines() can be inside a comment.
        lines, kind = change(text.removesuffix("\n").split("\n") if text else [])
        new = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        if len(new) > MAX_FILE_LENGTH:
            raise ValueError(f"{str(path)!r} would have more than {MAX_FILE_LENGTH} bytes")
        if len({entry.name for entry in parse_entries(path, new)}) > MAX_USERS:
            raise ValueError(f"{str(path)!r} would have more than {MAX_USERS} users")
        _replace(path, new, before)
    return kind


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock, so that of two changes at once none is lost."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes, before: os.stat_result | None) -> None:
    """Put *content* in the place of the file, with the owner and permissions that it had *before*."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if before is not None:
                owner = os.fstat(file.fileno())
                if (owner.st_uid, owner.st_gid) != (before.st_uid, before.st_gid):
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
            os.fchmod(file.fileno(), NEW_FILE_MODE if before is None else stat.S_IMODE(before.st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
