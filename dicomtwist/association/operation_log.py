"""
The list of the operations of an association that have ended, in little memory: an association may stay open for days.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

__all__ = ["LoggedOperation", "OperationLog"]

#: The numbers of an entry, before its UID: start and duration in seconds, Message ID, status (-1 without one), the number of
#: pending responses, the number of its kind, the length of the UID in bytes.
_ENTRY: Final = struct.Struct("<ddHiIHI")


class LoggedOperation(NamedTuple):
    """
    An operation that has ended; its fields are those of an :class:`~dicomtwist.association.record.OperationRecord`.
    """

    direction: str
    service: str
    sop_class_uid: str
    sop_instance_uid: str
    message_id: int
    status: int | None
    pending: int
    started: float
    seconds: float


class OperationLog:
    """
    A list of operations, with some 90 bytes for each instead of 300.

    :param maximum: the most operations that it takes, up to 65,535.
    """

    __slots__ = ("_count", "_data", "_kinds", "_maximum")

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._count = 0
        self._data = bytearray()
        # Operations of the same direction, service and SOP Class share these texts.
        self._kinds: dict[tuple[str, str, str], int] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, operation: LoggedOperation) -> bool:
        """Add an operation, and return whether there was room for it."""
        if self._count >= self._maximum:
            return False
        kind = self._kinds.setdefault(operation[:3], len(self._kinds))
        # A peer may send any text as a UID.
        uid = operation.sop_instance_uid.encode("utf-8", "surrogatepass")
        self._data += _ENTRY.pack(
            operation.started,
            operation.seconds,
            operation.message_id,
            -1 if operation.status is None else operation.status,
            min(operation.pending, 2**32 - 1),
            kind,
            len(uid),
        )
        self._data += uid
        self._count += 1
        return True

    def operations(self) -> list[LoggedOperation]:
        """Return the operations in the order in which they were added."""
        kinds: list[tuple[str, str, str]] = [*self._kinds]
        found, place, data = [], 0, bytes(self._data)
        while place < len(data):
            started, seconds, message_id, status, pending, kind, length = _ENTRY.unpack_from(data, place)
            place += _ENTRY.size
            uid = data[place : place + length].decode("utf-8", "surrogatepass")
            place += length
            direction, service, sop_class = kinds[kind]
            found.append(
                LoggedOperation(
                    direction=direction,
                    service=service,
                    sop_class_uid=sop_class,
                    sop_instance_uid=uid,
                    message_id=message_id,
                    status=None if status < 0 else status,
                    pending=pending,
                    started=started,
                    seconds=seconds,
                )
            )
        return found
