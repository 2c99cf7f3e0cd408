"""
The C-STORE sub-operations of C-GET and C-MOVE: where they go, how many are under way, and what came of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol, TypeAlias

from pydicom import Dataset
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from dicomtwist.datasets import open_instance
from dicomtwist.dimse.messages import CGetRSP, CMoveRSP
from dicomtwist.dimse.status import (
    CANNOT_PERFORM_SUBOPERATIONS,
    SUBOPERATIONS_FAILED,
    SUCCESS,
    Status,
    StatusCategory,
    category,
)
from dicomtwist.errors import AssociationError, DataSetError, NoPresentationContext, NotEstablished
from dicomtwist.part10 import NotDicomFile, read_file_meta

if TYPE_CHECKING:
    from dicomtwist.association import Association
    from dicomtwist.threads import WorkerThreads

#: What can be sent: the path of a Part 10 file, the bytes of one, an open one, or a Dataset.
Instance: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Dataset"

#: How many SOP Instance UIDs are kept for the Failed SOP Instance UID List. The counts tell of all.
MAX_FAILED_INSTANCES: Final = 10_000

#: The counts of a response have 16 bits (PS3.7 E.1); of more than that they tell the most that they can.
_MOST: Final = 0xFFFF

#: What makes a sub-operation fail, beside what is a mistake in a program.
_FAILURES: Final = (AssociationError, NotEstablished, NoPresentationContext, DataSetError, NotDicomFile, OSError)


class Described:
    """
    What an instance says of itself.

    :ivar sop_class_uid: its SOP Class UID, ``""`` where it is not known, like the others.
    :ivar sop_instance_uid: its SOP Instance UID.
    :ivar transfer_syntax: the UID of the transfer syntax that it is in.
    """

    __slots__ = ("sop_class_uid", "sop_instance_uid", "transfer_syntax")

    def __init__(self, sop_class_uid: str = "", sop_instance_uid: str = "", transfer_syntax: str = "") -> None:
        self.sop_class_uid = sop_class_uid
        self.sop_instance_uid = sop_instance_uid
        self.transfer_syntax = transfer_syntax


async def describe(instance: Instance, threads: WorkerThreads) -> Described:
    """Look what *instance* says of itself; a file is opened for it, so this is for those that could not be sent."""
    if isinstance(instance, Dataset):
        meta: Any = getattr(instance, "file_meta", None)
        syntax = str(meta.get("TransferSyntaxUID", "")) if meta is not None else ""
        return Described(str(instance.get("SOPClassUID", "")), str(instance.get("SOPInstanceUID", "")), syntax)
    try:
        if isinstance(instance, bytes):
            found, _ = read_file_meta(BytesIO(instance))
        elif isinstance(instance, str | os.PathLike):
            opened = await open_instance(instance, threads)
            opened.source.close()
            found = opened.meta
        else:
            return Described()
    except (OSError, NotDicomFile):
        return Described()
    return Described(found.media_storage_sop_class_uid, found.media_storage_sop_instance_uid, found.transfer_syntax_uid)


class Destination(Protocol):
    """Where instances are stored."""

    @property
    def capacity(self) -> int:
        """How many may be under way at once."""

    def store(self, instance: Instance) -> Deferred[Status]:
        """Store one."""

    async def close(self) -> None:
        """Nothing more is to be stored."""


class SubOperations:
    """
    The sub-operations of one C-GET or C-MOVE.

    :param destination: where the instances go.
    :param total: how many there are to be.
    :param threads: where files are looked at.
    :param progressed: called when one is over, while others are to come.

    :ivar failed_instances: the SOP Instance UIDs of those that failed, as far as they are known.
    :ivar last_failure: why the last one failed that was not the peer's to answer, in words.
    """

    log = Logger()

    def __init__(
        self, destination: Destination, total: int, threads: WorkerThreads, progressed: Callable[[], None]
    ) -> None:
        self._destination = destination
        self._total = total
        self._threads = threads
        self._progressed = progressed
        self._under_way = 0
        self._waiting: Deferred[None] | None = None
        self.completed = self.failed = self.warning = 0
        self.failed_instances: list[str] = []
        self.last_failure = ""

    @property
    def done(self) -> int:
        """How many are over."""
        return self.completed + self.failed + self.warning

    @property
    def remaining(self) -> int:
        """How many are to come."""
        return max(self._total - self.done, self._under_way)

    @property
    def status(self) -> int:
        """What came of all of them (PS3.4 C.4.2.1.5, C.4.3.1.4)."""
        if not self.failed and not self.warning:
            return SUCCESS
        return CANNOT_PERFORM_SUBOPERATIONS if self.failed == self.done else SUBOPERATIONS_FAILED

    def tell(self, response: CGetRSP | CMoveRSP, *, remaining: bool) -> None:
        """
        Put the counts into *response*.

        :param remaining: whether the remaining ones are told: of a pending response, or one that was cancelled.
        """
        response.number_of_remaining_suboperations = min(self.remaining, _MOST) if remaining else None
        response.number_of_completed_suboperations = min(self.completed, _MOST)
        response.number_of_failed_suboperations = min(self.failed, _MOST)
        response.number_of_warning_suboperations = min(self.warning, _MOST)

    def start(self, instance: Instance) -> None:
        """Store one more, whoever is under way."""
        self._under_way += 1
        self._total = max(self._total, self.done + self._under_way)
        Deferred.fromCoroutine(self._store(instance)).addErrback(
            lambda reason: self.log.failure("while a sub-operation was performed", reason)
        )

    async def place(self) -> None:
        """Wait until one more may be under way."""
        while self._under_way >= max(self._destination.capacity, 1):
            await self._wait()

    async def settle(self) -> None:
        """Wait until none is under way. Who cancels the waiting is told when it is over."""
        cancelled: CancelledError | None = None
        while self._under_way:
            try:
                await self._wait()
            except CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def _wait(self) -> Deferred[None]:
        waiting = self._waiting = Deferred(lambda _: setattr(self, "_waiting", None))
        return waiting

    async def _store(self, instance: Instance) -> None:
        try:
            status: int = await self._destination.store(instance)
            kind = category(status)
        except (*_FAILURES, CancelledError, TypeError) as error:
            self.log.debug("a sub-operation failed: {error}", error=error)
            self.last_failure = str(error)
            kind = StatusCategory.FAILURE
        except Exception:
            self.log.failure("a sub-operation failed")
            kind = StatusCategory.FAILURE
        failed = kind not in (StatusCategory.SUCCESS, StatusCategory.WARNING)
        if failed and len(self.failed_instances) < MAX_FAILED_INSTANCES:
            uid = (await describe(instance, self._threads)).sop_instance_uid
            if uid:
                self.failed_instances.append(uid)
        self._under_way -= 1
        if failed:
            self.failed += 1
        elif kind is StatusCategory.WARNING:
            self.warning += 1
        else:
            self.completed += 1
        if self.remaining:
            self._progressed()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)


class SameAssociation:
    """The association that a C-GET came on."""

    def __init__(self, assoc: Association, priority: int) -> None:
        self._assoc = assoc
        self._priority = priority

    @property
    def capacity(self) -> int:
        """As many as the asynchronous operations window lets this side invoke."""
        return self._assoc.exchange.invoke_limit

    def store(self, instance: Instance) -> Deferred[Status]:
        """Store one."""
        return self._assoc.send_c_store(instance, priority=self._priority)

    async def close(self) -> None:
        """The association is the requestor's."""
