"""
The C-STORE sub-operations of C-GET and C-MOVE: where they go, how many are under way, and what came of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from dicomtwist.dimse.messages import CGetRSP, CMoveRSP
from dicomtwist.dimse.status import (
    CANNOT_PERFORM_SUBOPERATIONS,
    SUBOPERATIONS_FAILED,
    SUCCESS,
    StatusCategory,
    category,
)
from dicomtwist.errors import AssociationError, DataSetError, NoPresentationContext, NotEstablished
from dicomtwist.part10 import NotDicomFile
from dicomtwist.services.answering import Refused
from dicomtwist.storescu import Instance, OutgoingInstance, PreparedStore, open_outgoing, prepare

if TYPE_CHECKING:
    from dicomtwist.association import Association
    from dicomtwist.outgoing import Outgoing
    from dicomtwist.threads import WorkerThreads

#: How many instances are opened, and wait in memory, while as many as may be under way are.
AHEAD: Final = 1

#: How many SOP Instance UIDs are kept for the Failed SOP Instance UID List. The counts tell of all.
MAX_FAILED_INSTANCES: Final = 10_000

#: The counts of a response have 16 bits (PS3.7 E.1); of more than that they tell the most that they can.
_MOST: Final = 0xFFFF

#: What makes a sub-operation fail, beside what is a mistake in a program.
_FAILURES: Final = (AssociationError, NotEstablished, NoPresentationContext, DataSetError, NotDicomFile, OSError)


class Destination(Protocol):
    """Where instances are stored."""

    @property
    def capacity(self) -> int:
        """How many may be under way at once."""

    async def prepare(self, instance: OutgoingInstance) -> PreparedStore:
        """
        Make the request for one, which is closed where that fails. Called for one at a time.

        :raises Refused: there is no such destination, nothing can be stored.
        """

    def done(self, prepared: PreparedStore) -> None:
        """A request was answered, or given up."""

    async def close(self) -> None:
        """Nothing more is to be stored."""


class SubOperations:
    """
    The sub-operations of one C-GET or C-MOVE.

    :param destination: where the instances go.
    :param total: how many there are to be.
    :param threads: where files are looked at.
    :param outgoing: how the requestor is told.
    :param progressed: called when one is over, while others are to come.

    :ivar failed_instances: the SOP Instance UIDs of those that failed, as far as they are known.
    :ivar last_failure: why the last one failed that was not the peer's to answer, in words.
    """

    log = Logger()

    def __init__(
        self,
        destination: Destination,
        total: int,
        threads: WorkerThreads,
        outgoing: Outgoing,
        progressed: Callable[[], None],
    ) -> None:
        self._destination = destination
        self._outgoing = outgoing
        self._total = total
        self._threads = threads
        self._progressed = progressed
        self._under_way = 0
        self._waiting: Deferred[None] | None = None
        self._is_opening = self._is_stopped = False
        self._preparing: Deferred[PreparedStore] | None = None
        self._refused: Refused | None = None
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
        """Store one more. :meth:`place` tells when it is open, so that the next can be asked for."""
        self._under_way += 1
        self._total = max(self._total, self.done + self._under_way)
        self._is_opening = True
        Deferred.fromCoroutine(self._store(instance)).addErrback(
            lambda reason: self.log.failure("while a sub-operation was performed", reason)
        )

    async def place(self) -> None:
        """
        Wait until one more may be opened.

        One is opened after the other, and they are sent in that order. :data:`AHEAD` wait, open, for others that are
        under way, so that no time is lost between an answer and the next request.

        :raises Refused: there is no such destination.
        """
        while self._is_opening or self._under_way >= max(self._destination.capacity, 1) + AHEAD:
            await self._wait()
        if self._refused is not None:
            raise self._refused

    async def settle(self) -> None:
        """Wait until none is under way. Who cancels the waiting is told when it is over."""
        cancelled: CancelledError | None = None
        while self._under_way:
            try:
                await self._wait()
            except CancelledError as error:
                cancelled = error
                self.stop()
        if cancelled is not None:
            raise cancelled

    def stop(self) -> None:
        """Do not send those that wait."""
        self._is_stopped = True
        if self._preparing is not None:
            self._preparing.cancel()

    def _wait(self) -> Deferred[None]:
        waiting = self._waiting = Deferred(lambda _: setattr(self, "_waiting", None))
        return waiting

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    async def _store(self, instance: Instance) -> None:
        # Of a path that cannot be read nothing is known but what it tells itself.
        uid = str(getattr(instance, "sop_instance_uid", ""))
        try:
            opened = await open_outgoing(instance, self._threads)
            uid = opened.sop_instance_uid
            self._preparing = Deferred.fromCoroutine(self._destination.prepare(opened))
            prepared = await self._preparing
        except Refused as error:
            self._is_opening = False
            self._refused = error
            self._over(None, uid)
        except Exception as error:
            self._is_opening = False
            self._over(None if self._is_stopped else self._why(error), uid)
        else:
            # It takes its turn before the next one is asked for.
            sending = Deferred.fromCoroutine(self._send(prepared))
            self._is_opening = False
            self._preparing = None
            if not sending.called:
                self._wake()
            await sending
        self._wake()

    async def _send(self, prepared: PreparedStore) -> None:
        exchange = prepared.assoc.exchange
        uid = prepared.request.affected_sop_instance_uid
        try:
            await exchange.enter_window()
        except Exception as error:
            prepared.close()
            self._destination.done(prepared)
            self._over(self._why(error), uid)
            return
        kind: StatusCategory | None = None
        try:
            if self._is_stopped:
                prepared.close()
            else:
                kind = category(await prepared.send())
        except Exception as error:
            kind = self._why(error)
        self._destination.done(prepared)
        # The next one goes out before what is told of this one, or together with it where both go the same way.
        self._outgoing.cork()
        self._over(kind, uid)
        exchange.leave_window()
        self._outgoing.uncork()

    def _why(self, error: Exception) -> StatusCategory:
        """Note why one failed that the peer did not answer."""
        if isinstance(error, (*_FAILURES, CancelledError, TypeError)):
            self.log.debug("a sub-operation failed: {error}", error=error)
            self.last_failure = str(error)
        else:
            self.log.failure("a sub-operation failed")
        return StatusCategory.FAILURE

    def _over(self, kind: StatusCategory | None, uid: str) -> None:
        """Count one; ``None`` for one that was not tried."""
        self._under_way -= 1
        if kind is None:
            return
        if kind is StatusCategory.SUCCESS:
            self.completed += 1
        elif kind is StatusCategory.WARNING:
            self.warning += 1
        else:
            self.failed += 1
            if uid and len(self.failed_instances) < MAX_FAILED_INSTANCES:
                self.failed_instances.append(uid)
        if self.remaining:
            self._progressed()


class SameAssociation:
    """The association that a C-GET came on."""

    def __init__(self, assoc: Association, priority: int) -> None:
        self._assoc = assoc
        self._priority = priority

    @property
    def capacity(self) -> int:
        """As many as the asynchronous operations window lets this side invoke."""
        return self._assoc.exchange.invoke_limit

    async def prepare(self, instance: OutgoingInstance) -> PreparedStore:
        """Make the request for one."""
        return await prepare(self._assoc, instance, self._priority)

    def done(self, prepared: PreparedStore) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """The association is the requestor's."""
