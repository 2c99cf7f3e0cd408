"""
The vocabulary of the storage: durability, complete temporary files, UIDs, and the reasons why an instance cannot be stored.
"""

from __future__ import annotations

import enum
import errno
import re
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

__all__ = [
    "NO_ROOM",
    "DuplicateInstance",
    "Durability",
    "IncompleteInstance",
    "IndexFailed",
    "InstanceUIDs",
    "InvalidUID",
    "ReplacementRefused",
    "StoreClosed",
    "StoreError",
    "StoreUnusable",
    "Written",
    "check_uids",
    "is_uid",
    "lacks_room",
]

#: The number of UIDs that were checked and are remembered.
MAX_REMEMBERED: Final = 1024

_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")


#: Study, Series and SOP Instance UID.
InstanceUIDs: TypeAlias = tuple[str, str, str]


class StoreError(Exception):
    """The base of the exceptions of this module. An OSError of the operating system is passed on unchanged."""


class StoreUnusable(StoreError):
    """The folder cannot be used as a store; the text says why and what to do."""


#: The error numbers of a file system that can be read and not written: full, over quota, mounted read-only.
NO_ROOM: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS))

#: The errors of SQLite that a full file system causes; the last one is that a file beside the database cannot be made.
_NO_ROOM_OF_SQLITE: Final = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_WRITE", "SQLITE_CANTOPEN")


class StoreClosed(StoreError):
    """A writer was used after its commit, its discard or its failure."""


class InvalidUID(StoreError, ValueError):
    """A text from a peer is not a UID (PS3.5 section 9.1) and so cannot become part of a path."""


class DuplicateInstance(StoreError):
    """The archive holds the instance already, and duplicates are rejected."""


class ReplacementRefused(StoreError):
    """The archive holds another copy of the instance, and the sender may not replace it."""


class IncompleteInstance(StoreError):
    """The data set of an instance is cut off or damaged, and the archive holds a better copy."""


class Unrequested(StoreError):
    """An instance is not one of those that were asked for."""


class IndexFailed(StoreError):
    """The database of an archive refused a request and has changed nothing. The text is the database's own."""


class RowRefused(IndexFailed):
    """The database refused the values of a row, and would refuse them again."""


class Durability(enum.Enum):
    """The state of an instance when the call that stores it returns."""

    FULL = "full"
    """File and folders are on the medium: the instance survives a power cut."""
    NONE = "none"
    """The operating system has the file: the instance survives a crash of this program, not one of the machine."""

    def __str__(self) -> str:
        return str(self.value)


class Written(NamedTuple):
    """A complete temporary file; with durability full it is on the medium.

    :ivar path: the name by which its store knows it, see
        :class:`~dicomtwist.archive.storage.temporary_files.TemporaryFiles`. A file may have no such name on the disk.
    :ivar size: of the file, in bytes.
    :ivar digest: the SHA-256 of the file; empty with durability none, which promises nothing about the medium.
    """

    path: str
    size: int
    digest: bytes


def lacks_room(error: BaseException | None) -> bool:
    """
    Return whether the cause of *error* is that the file system is full or read-only.

    SQLAlchemy's exceptions are known by their attributes: a folder without an index needs no SQLAlchemy.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return True
        name = str(getattr(getattr(error, "orig", None), "sqlite_errorname", ""))
        if name in _NO_ROOM_OF_SQLITE or name.startswith("SQLITE_READONLY"):
            return True
        error = error.__cause__
    return False


def is_uid(text: str) -> bool:
    """Return whether *text* is a UID: 1 to 64 characters, numbers with dots between (leading zeros are tolerated)."""
    return len(text) <= 64 and _is_uid(text)


@lru_cache(maxsize=MAX_REMEMBERED)
def _is_uid(text: str) -> bool:
    # The instances of a series have two UIDs in common.
    return _UID.fullmatch(text) is not None


def check_uids(*uids: str) -> None:
    """
    Check that each text is a UID: 1 to 64 characters, numbers with dots between (leading zeros are tolerated).

    :raises InvalidUID: one of them is not.
    """
    for uid in uids:
        if len(uid) > 64 or not _is_uid(uid):  # as is_uid() says
            # The text is not quoted: it may be a patient's name, and errors go into logs.
            raise InvalidUID(
                f"an invalid UID of {len(uid)} characters; a UID has 1 to 64, digits with single dots between"
            )
