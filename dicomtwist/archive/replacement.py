"""The replacement of a stored instance: who may do it, and the line of the log about it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO, Final

from dicomtwist.archive.index.record import Sender
from dicomtwist.archive.instance import ReceivedInstance
from dicomtwist.archive.storage.interfaces import Storage
from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.types import ReplacementRefused, Written

__all__ = ["Replacement"]

_UNKNOWN: Final = "unknown"
#: The number of bytes that are read at once.
_PIECE: Final = 1024 * 1024


class Replacement:
    """
    The replacement of a stored instance by one that differs. It blocks, to read the stored copy.

    :param store: the storage.
    :param instance: the instance that replaces the stored one; it has a sender.
    :raises ReplacementRefused: the sender may not replace instances.
    """

    def __init__(self, store: Storage, instance: ReceivedInstance) -> None:
        assert instance.sender is not None
        self._sender: Sender = instance.sender
        if not self._sender.may_replace:
            raise ReplacementRefused("the instance is here with other bytes")
        self._name = "/".join(instance.uids)
        self._file: tuple[int, ...] = ()
        self._old = self._new = _UNKNOWN
        # Before the commit, because other instances wait while one is under way.
        with suppress(OSError), store.open(*instance.uids) as stored:
            self.read_replaced(stored)
        content = instance.content
        if not isinstance(content, Written):
            self._new = _digest_of_buffers(content)
        elif content.digest:
            self._new = content.digest.hex()
        else:
            with suppress(OSError), store.open_temporary(content) as file:
                self._new = _digest_of_file(file)

    def read_replaced(self, stored: BinaryIO) -> None:
        """Learn which file is replaced: another one than before if a third copy came in between."""
        status = os.fstat(stored.fileno())
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if identity != self._file:
            self._old = _UNKNOWN
            self._old = _digest_of_file(stored)
            self._file = identity

    def log(self) -> None:
        """Log that the instance was replaced."""
        self._sender.log_replacement(
            "replaced the instance {instance}: SHA-256 {old} by {new}",
            instance=self._name,
            old=self._old,
            new=self._new,
        )


def _digest_of_buffers(content: Sequence[Buffer]) -> str:
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
    return digest.hexdigest()


def _digest_of_file(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()
