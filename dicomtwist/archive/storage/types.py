"""
What is said of instances on disk: how safe they are, what a whole file is, and why one cannot be kept.
"""

from __future__ import annotations

import enum
import re
from typing import NamedTuple, TypeAlias

__all__ = [
    "DuplicateInstance",
    "Durability",
    "IndexFailed",
    "InstanceUIDs",
    "InvalidUID",
    "StoreClosed",
    "StoreError",
    "StoreUnusable",
    "Written",
    "check_uids",
]

_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")


#: Study, Series and SOP Instance UID.
InstanceUIDs: TypeAlias = tuple[str, str, str]


class StoreError(Exception):
    """The base of the exceptions of this module. What the operating system refuses is an OSError as it
    came."""


class StoreUnusable(StoreError):
    """The folder cannot be used as a store; the text says why and what to do."""


class StoreClosed(StoreError):
    """A writer was used after its commit, its discard or its failure."""


class InvalidUID(StoreError, ValueError):
    """A text from a peer is no UID (PS3.5 section 9.1) and so cannot become part of a path."""


class DuplicateInstance(StoreError):
    """The instance is there already, and duplicates are rejected."""


class IndexFailed(StoreError):
    """The database of an archive refused; nothing of what was asked for is in it. The text says what it said."""


class Durability(enum.Enum):
    """What has happened to an instance when the call that stores it returns."""

    FULL = "full"
    """File and folders are on the medium: it survives a power cut."""
    NONE = "none"
    """The operating system has it: it survives a crash of this program, not one of the machine."""

    def __str__(self) -> str:
        return str(self.value)


class Written(NamedTuple):
    """A temporary file that is whole; with durability full on the medium.

    :ivar path: what its store knows it by, see :meth:`InstanceStore.readable`.
    :ivar size: of the file, in bytes.
    :ivar digest: the SHA-256 of the file; empty with durability none, which promises nothing of the medium.
    """

    path: str
    size: int
    digest: bytes


def check_uids(*uids: str) -> None:
    """Refuse what is no UID: 1 to 64 characters, numbers with dots between (leading zeros are tolerated)."""
    for uid in uids:
        if len(uid) > 64 or not _UID.fullmatch(uid):
            # Not what it is: that may be a name, and is told in logs.
            raise InvalidUID(
                f"{len(uid)} characters that are no UID, which is 1 to 64 of digits with single dots between"
            )
