"""
The journal of storage commitments that were requested and not reported yet: one file each, so that they survive a restart.

All functions block and are meant for worker threads.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from dicomtwist.archive.integrity import Reference
from dicomtwist.archive.storage.interfaces import Storage
from dicomtwist.archive.storage.types import StoreError

__all__ = ["FOLDER", "Transaction", "TransactionUnreadable", "Transactions"]

#: The folder of the files, in that of the archive.
FOLDER: Final = ".commitment"
#: The longest file of a transaction, in bytes.
MAX_FILE_LENGTH: Final = 64 * 1024 * 1024

_NAME: Final = re.compile(r"[0-9a-f]{32}\.json")


class TransactionUnreadable(StoreError):
    """The file of a transaction cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """
    A storage commitment that was requested.

    :ivar uid: its Transaction UID.
    :ivar requestor: the AE title of the requestor.
    :ivar received: the time of the request, in seconds since 1970.
    :ivar references: the instances.
    :ivar reasons: for each instance 0 or a Failure Reason; ``None`` before they are checked.
    :ivar name: the name of its file; empty before it is saved.
    """

    uid: str
    requestor: str
    received: float
    references: tuple[Reference, ...]
    reasons: tuple[int, ...] | None = None
    name: str = ""

    @property
    def digest(self) -> bytes:
        """A digest of requestor and instances, equal for equal requests."""
        content = "\n".join((self.requestor, *(" ".join(reference) for reference in self.references)))
        return hashlib.sha256(content.encode()).digest()

    def checked(self, reasons: Sequence[int]) -> Transaction:
        """Return a copy with the result of the check."""
        return replace(self, reasons=tuple(reasons))


class Transactions:
    """
    The files of the transactions.

    :param store: the storage that holds them, prepared.
    """

    def __init__(self, store: Storage) -> None:
        self._files = store.side_folder(FOLDER)

    def save(self, transaction: Transaction) -> Transaction:
        """
        Write a transaction; with durability full it is on the medium afterwards.

        :returns: the transaction, with the name of its file.
        :raises OSError: as it came, errno intact.
        """
        if not transaction.name:
            transaction = replace(transaction, name=f"{secrets.token_hex(16)}.json")
        content = {
            "version": 1,
            "transaction": transaction.uid,
            "requestor": transaction.requestor,
            "received": transaction.received,
            "references": transaction.references,
            "reasons": transaction.reasons,
        }
        self._files.put([json.dumps(content).encode()], transaction.name)
        return transaction

    def load(self, name: str) -> Transaction:
        """
        Read a transaction.

        :raises TransactionUnreadable: it cannot be read.
        """
        try:
            content = self._files.read(name, MAX_FILE_LENGTH + 1)
            if len(content) > MAX_FILE_LENGTH:
                raise ValueError(f"more than {MAX_FILE_LENGTH} bytes")
            return _transaction(json.loads(content), name)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise TransactionUnreadable(f"{self._files.path(name)}: {error}") from error

    def names(self) -> Iterator[str]:
        """Return the names of all files, sorted."""
        return iter([name for name in self._files.names() if _NAME.fullmatch(name)])

    def remove(self, name: str) -> None:
        """Remove a transaction that was reported."""
        self._files.remove(name)


def _transaction(content: Any, name: str) -> Transaction:
    if content["version"] != 1:
        raise ValueError(f"version {content['version']} is unknown")
    references = tuple(Reference(str(sop_class), str(uid)) for sop_class, uid in content["references"])
    reasons = content["reasons"]
    if reasons is not None:
        reasons = tuple(int(reason) for reason in reasons)
        if len(reasons) != len(references):
            raise ValueError("the number of reasons is not that of the instances")
    return Transaction(
        str(content["transaction"]), str(content["requestor"]), float(content["received"]), references, reasons, name
    )
