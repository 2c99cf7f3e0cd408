"""
The C-STORE sub-operations of C-GET and C-MOVE: their destination, their queues, and their results.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.datasets.outgoing_instance import InstanceLike, OutgoingInstance, open_instance, open_paths
from dicomtwist.dimse.messages import CGetRSP, CMoveRSP, Response
from dicomtwist.dimse.status import (
    CANNOT_PERFORM_SUBOPERATIONS,
    SUBOPERATIONS_FAILED,
    SUCCESS,
    StatusCategory,
    category,
    meaning,
)
from dicomtwist.errors import (
    AssociationError,
    DataSetError,
    ExecutorFull,
    NoPresentationContext,
    NotEstablished,
    Refused,
    loggable,
)
from dicomtwist.exchange.exchange import Exchange
from dicomtwist.exchange.store_request import prepare, prepare_at_once, send
from dicomtwist.part10 import NotDicomFile

if TYPE_CHECKING:
    from dicomtwist.scp.performed import PerformingAssociation

#: The number of requests that are prepared beyond the capacity of the destination. If the last instance is in memory, also the
#: number of instances that the handler is asked for beyond it.
AHEAD: Final = 1

#: The paths that a handler is asked for beyond the capacity of the destination. Several are opened at a time, since a trip to a
#: thread and back costs as much as reading some small files.
PATHS_AHEAD: Final = 32

#: The limit of the bytes that are read ahead from files. The file that reaches the limit is read completely.
READ_AHEAD: Final = 1024 * 1024

#: The most SOP Instance UIDs in the Failed SOP Instance UID List. The counts include all failures.
MAX_FAILED_INSTANCES: Final = 10_000

#: The largest count in a response, which has 16 bits for it (PS3.7 E.1). Larger counts are sent as this one.
_MOST: Final = 0xFFFF

#: The number of waiting paths that makes a trip to a thread worth it while others are open.
_BATCH: Final = PATHS_AHEAD // 2

#: The number of paths in a list that are opened together at once. Of more, the first one is on its way while others are opened.
_FEW: Final = 4

#: The errors that make a sub-operation fail without a mistake in a program.
_FAILURES: Final = (
    *(AssociationError, NotEstablished, NoPresentationContext, DataSetError, NotDicomFile, OSError),
    ExecutorFull,
)

#: The Error Comments about failures, by exception; 64 characters each at most.
_COMMENTS: Final[tuple[tuple[tuple[type[BaseException], ...], str], ...]] = (
    ((NoPresentationContext,), "no presentation context for an instance was accepted"),
    ((NotEstablished,), "no association with the move destination"),
    ((AssociationError,), "the association with the move destination has ended"),
    ((ExecutorFull,), "too many requests wait"),
    ((DataSetError, NotDicomFile, OSError), "an instance cannot be read or converted"),
)

_Path: TypeAlias = "str | os.PathLike[str]"


class Destination(Protocol):
    """The peer that instances are sent to, over one association or several."""

    @property
    def capacity(self) -> int:
        """The number of instances that may be in progress at once."""

    def prepare_at_once(self, instance: OutgoingInstance) -> Exchange | None:
        """Prepare *instance* if nothing has to be awaited for it; return the exchange to send it on, else ``None``."""

    async def prepare(self, instance: OutgoingInstance) -> Exchange:
        """
        Prepare *instance* and return the exchange to send it on; close it if that fails. Called for one instance at a time.

        :raises Refused: there is no such destination, so that nothing can be stored.
        """

    def done(self, exchange: Exchange) -> None:
        """Note that an instance prepared for *exchange* was answered or given up."""

    async def close(self) -> None:
        """Release the associations that were made; no instance follows."""


class SubOperationQueue:
    """
    The sub-operations of one C-GET or C-MOVE, each in one of four queues.

    An instance passes four queues, in the order in which they were started: it waits to be opened, together with other paths
    in one trip to a thread; to be prepared; for a place in the window; and for its response.

    :param destination: the destination of the instances.
    :param total: the number of sub-operations that the handler announced.
    :param assoc: the association with the requestor, which carries the pending responses.
    :param progressed: called when a sub-operation has ended and others remain.

    :ivar completed: the number of sub-operations that succeeded.
    :ivar failed: the number that failed.
    :ivar warning: the number that ended with a warning.
    :ivar failed_instances: the known SOP Instance UIDs of those that failed.
    :ivar last_failure: why the last sub-operation failed, in words for the log.
    :ivar error_comment: that reason for the requestor, without paths and without the words of the destination or an exception.
    """

    log = Logger()

    def __init__(
        self,
        destination: Destination,
        total: int,
        assoc: PerformingAssociation,
        progressed: Callable[[], None],
    ) -> None:
        self._destination = destination
        self._assoc = assoc
        self._outgoing = assoc.exchange.outgoing
        self._total = total
        self._executor = assoc.ae.executors.retrieval
        self._progressed = progressed
        self._under_way = 0
        self._requested = 0  # the instances that are prepared or being prepared
        self._closed: deque[InstanceLike] = deque()
        self._open: deque[OutgoingInstance] = deque()
        self._held = 0  # the bytes of the open instances that are in memory
        self._is_opening = self._is_advancing = self._is_stopped = False
        self._is_last_in_memory = self._is_more_coming = self._has_logged_failure = False
        self._preparing: Deferred[Exchange] | None = None
        self._waiting: tuple[Callable[[], bool], Deferred[None]] | None = None
        self._refused: Refused | None = None
        self.completed = self.failed = self.warning = 0
        self.failed_instances: list[str] = []
        self.last_failure = self.error_comment = ""

    @property
    def done(self) -> int:
        """The number of sub-operations that have ended."""
        return self.completed + self.failed + self.warning

    @property
    def remaining(self) -> int:
        """The number of sub-operations that remain."""
        return max(self._total - self.done, self._under_way)

    @property
    def status(self) -> int:
        """The status of the final response (PS3.4 C.4.2.1.5, C.4.3.1.4)."""
        if not self.failed and not self.warning:
            return SUCCESS
        return CANNOT_PERFORM_SUBOPERATIONS if self.failed == self.done else SUBOPERATIONS_FAILED

    def fill_counts(self, response: CGetRSP | CMoveRSP, *, remaining: bool) -> None:
        """
        Put the counts into *response*.

        :param remaining: whether to include the remaining ones, as a pending response does, and one to a C-CANCEL.
        """
        response.number_of_remaining_suboperations = min(self.remaining, _MOST) if remaining else None
        response.number_of_completed_suboperations = min(self.completed, _MOST)
        response.number_of_failed_suboperations = min(self.failed, _MOST)
        response.number_of_warning_suboperations = min(self.warning, _MOST)

    # --- for the service

    def start(self, instance: InstanceLike, *, more: bool = False) -> None:
        """
        Queue one more instance. Await :meth:`wait_for_room` before.

        :param more: whether others follow at once, so that it may wait to be opened together with them.
        """
        self._is_more_coming = more
        self._under_way += 1
        self._total = max(self._total, self.done + self._under_way)
        self._is_last_in_memory = not _is_path(instance)
        self._closed.append(instance)
        self._advance()

    def start_together(self, instances: list[Any]) -> bool:
        """
        Queue a list of a few paths, which are opened in one trip to a thread. Await :meth:`wait_for_room` before.

        :returns: whether that was done; other lists are left to :meth:`start`.
        """
        if not 0 < len(instances) <= _FEW or not all(map(_is_path, instances)):
            return False
        self._is_more_coming = self._is_last_in_memory = False
        self._under_way += len(instances)
        self._total = max(self._total, self.done + self._under_way)
        self._closed.extend(instances)
        self._advance()
        return True

    async def wait_for_room(self, *, together: bool = False) -> None:
        """
        Wait until there is room for one more instance.

        The room exceeds the destination's capacity, so that no time is lost between a response and the next request: by several
        paths, or by one instance if it is in memory.

        :param together: whether the instance is in the same list as the one before. If not, that one has to be open first:
            after the handler continues, a file that it has yielded may be gone.
        :raises Refused: there is no such destination.
        """
        if not together and not self._is_read:
            await self._wait(lambda: self._is_read)
        if not self._has_room(PATHS_AHEAD):
            # Wait until there is room for several, which are then opened together.
            await self._wait(lambda: self._has_room(PATHS_AHEAD - _BATCH + 1))
        self.check_destination()

    def check_destination(self) -> None:
        """
        Check that there was a destination.

        :raises Refused: there was none.
        """
        if self._refused is not None:
            raise self._refused

    async def wait_until_done(self) -> None:
        """
        Wait until no sub-operation is in progress.

        :raises CancelledError: the wait was cancelled, which drops the instances that are not sent yet. It is raised once
            those on their way have ended.
        """
        cancelled: CancelledError | None = None
        while self._under_way:
            try:
                await self._wait(lambda: not self._under_way)
            except CancelledError as error:
                cancelled = error
                self.stop()
        if cancelled is not None:
            raise cancelled

    def stop(self) -> None:
        """Drop the instances that are not sent yet."""
        self._is_stopped = True
        self._drop()
        if self._preparing is not None:
            self._preparing.cancel()

    # --- waiting for room

    @property
    def _is_read(self) -> bool:
        """Whether the last instance is open; if it is in memory, whether it is prepared."""
        if self._closed or self._is_opening:
            return False
        return not self._is_last_in_memory or not (self._open or self._preparing is not None)

    def _has_room(self, ahead: int) -> bool:
        """Return whether there is room for one more, if up to *ahead* paths may wait."""
        if self._is_last_in_memory:
            ahead = AHEAD
        return self._under_way < max(self._destination.capacity, 1) + ahead

    def _wait(self, ready: Callable[[], bool]) -> Deferred[None]:
        waiting: Deferred[None] = Deferred(lambda _: setattr(self, "_waiting", None))
        self._waiting = ready, waiting
        return waiting

    def _wake(self) -> None:
        if self._waiting is not None:
            ready, waiting = self._waiting
            if self._refused is not None or ready():
                self._waiting = None
                waiting.callback(None)

    # --- from an instance to a request

    def _advance(self) -> None:
        """Prepare open instances and open more, as far as there is room."""
        if self._is_advancing:
            return  # an outer call of this method, further up the stack, continues the work
        self._is_advancing = True
        try:
            while self._prepare_next() or self._open_next():
                pass
        finally:
            self._is_advancing = False
        self._wake()

    def _open_next(self) -> bool:
        """Open the next instances, paths together, if it is time to; return whether any was opened."""
        closed = self._closed
        if not closed or self._is_opening:
            return False
        if self._open and self._held > READ_AHEAD // 2:
            return False
        if self._is_more_coming and len(closed) < _BATCH < 2 * len(self._open):
            return False
        self._is_opening = True
        opening: Deferred[Any]
        if _is_path(closed[0]):
            instances = list(islice(takewhile(_is_path, closed), PATHS_AHEAD))
            opening = self._executor.run(self._open_some, cast("list[_Path]", instances))
        else:
            instances = [closed[0]]
            opening = open_instance(instances[0], self._executor).addCallback(lambda one: [one])
        for _ in instances:
            closed.popleft()
        opening.addErrback(lambda reason: [reason.value] * len(instances))
        opening.addCallback(self._opened, instances).addErrback(self._log_failure)
        return True

    def _open_some(self, paths: list[_Path]) -> list[OutgoingInstance | Exception]:
        """Open *paths*, in a worker thread. Open none if the sub-operations were stopped before the thread was free."""
        return [] if self._is_stopped else open_paths(paths, self._executor, READ_AHEAD)

    def _opened(self, results: Sequence[OutgoingInstance | BaseException], instances: list[InstanceLike]) -> None:
        self._is_opening = False
        self._closed.extendleft(reversed(instances[len(results) :]))
        for instance, result in zip(instances, results, strict=False):
            if isinstance(result, OutgoingInstance):
                self._open.append(result)
                self._held += result.held
            else:
                # If a path cannot be read, its UID is known only from an attribute of the path object itself.
                self._count_ended(self._record_failure(Failure(result)), str(getattr(instance, "sop_instance_uid", "")))
        if self._is_stopped or self._refused is not None:
            self._drop()
        self._advance()

    def _drop(self) -> None:
        """Drop the instances that are not prepared yet, without counting them."""
        self._under_way -= len(self._closed) + len(self._open)
        self._closed.clear()
        while self._open:
            self._open.popleft().close()
        self._held = 0

    def _prepare_next(self) -> bool:
        """Prepare the next open instance if there is room; return whether there was."""
        if not self._open or self._preparing is not None:
            return False
        if self._requested >= max(self._destination.capacity, 1) + AHEAD:
            return False
        instance = self._open.popleft()
        self._held -= instance.held
        self._requested += 1
        exchange = self._destination.prepare_at_once(instance)
        if exchange is not None:
            self._send(instance, exchange)
            return True
        self._preparing = Deferred.fromCoroutine(self._destination.prepare(instance))
        self._preparing.addCallbacks(
            self._prepared, self._not_prepared, callbackArgs=(instance,), errbackArgs=(instance.sop_instance_uid,)
        ).addErrback(self._log_failure)
        return True

    def _prepared(self, exchange: Exchange, instance: OutgoingInstance) -> None:
        self._preparing = None
        self._send(instance, exchange)
        self._advance()

    def _not_prepared(self, reason: Failure, uid: str) -> None:
        self._preparing = None
        self._requested -= 1
        if isinstance(reason.value, Refused):
            self._refused = reason.value
            self._count_ended(None, uid)
            self._drop()
        else:
            self._count_ended(None if self._is_stopped else self._record_failure(reason), uid)
        self._advance()

    # --- from a request to its answer

    def _send(self, instance: OutgoingInstance, exchange: Exchange) -> None:
        both = instance, exchange
        exchange.enter_window().addCallbacks(
            self._place_taken, self._place_failed, callbackArgs=both, errbackArgs=both
        ).addErrback(self._log_failure)

    def _place_failed(self, reason: Failure, instance: OutgoingInstance, exchange: Exchange) -> None:
        instance.close()
        self._destination.done(exchange)
        self._requested -= 1
        self._count_ended(self._record_failure(reason), instance.sop_instance_uid)
        self._advance()

    def _place_taken(self, _: object, instance: OutgoingInstance, exchange: Exchange) -> None:
        if self._is_stopped:
            instance.close()
            self._end(instance, exchange, None)
            return
        both = instance, exchange
        try:
            answer = send(exchange, instance)
        except Exception:
            self._failed(Failure(), *both)
        else:
            answer.addCallbacks(self._answered, self._failed, callbackArgs=both, errbackArgs=both).addErrback(
                self._log_failure
            )

    def _answered(self, answer: tuple[Response, bytes | None], instance: OutgoingInstance, exchange: Exchange) -> None:
        response = answer[0]
        kind = category(response.status)
        if kind not in (StatusCategory.SUCCESS, StatusCategory.WARNING):
            self.error_comment = f"an instance was answered with 0x{response.status:04X}"
            words = response.error_comment or meaning(response.status, response.SERVICE)
            self.last_failure = f"{self.error_comment}: {words}"
        self._end(instance, exchange, kind)

    def _failed(self, reason: Failure, instance: OutgoingInstance, exchange: Exchange) -> None:
        self._end(instance, exchange, self._record_failure(reason))

    def _end(self, instance: OutgoingInstance, exchange: Exchange, kind: StatusCategory | None) -> None:
        """Count an instance that had a place in the window, and pass the place on."""
        self._destination.done(exchange)
        self._requested -= 1
        uid = instance.sop_instance_uid
        if exchange.outgoing is not self._outgoing:
            # The next request goes to the destination first; the requestor can wait for its pending response.
            exchange.leave_window()
            self._count_ended(kind, uid)
        else:
            # The pending response for this instance and the next request go out in one write.
            self._outgoing.cork()
            try:
                self._count_ended(kind, uid)
                exchange.leave_window()
            finally:
                self._outgoing.uncork()
        self._advance()

    def _log_failure(self, reason: Failure) -> None:
        self.log.failure("while a sub-operation was performed", reason, association=self._assoc)

    def _record_failure(self, reason: Failure) -> StatusCategory:
        """Record why an instance failed that the destination did not answer."""
        error = reason.value
        if isinstance(error, (*_FAILURES, CancelledError, TypeError)):
            self.log.debug("a sub-operation failed: {error}", error=error, association=self._assoc)
        elif not self._has_logged_failure:  # the next instances probably fail for the same reason
            self._has_logged_failure = True
            self.log.failure("a sub-operation failed", reason, association=self._assoc)
        self.last_failure = loggable(error)
        self.error_comment = next(
            (words for kinds, words in _COMMENTS if isinstance(error, kinds)), "an instance cannot be sent"
        )
        return StatusCategory.FAILURE

    def _count_ended(self, kind: StatusCategory | None, uid: str) -> None:
        """Count an instance that has ended; *kind* is ``None`` if it was not tried."""
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


def _is_path(instance: InstanceLike) -> bool:
    return isinstance(instance, str | os.PathLike)


class SameAssociation:
    """The association that a C-GET came on."""

    def __init__(self, assoc: PerformingAssociation, priority: int) -> None:
        self._assoc = assoc
        self._priority = priority

    @property
    def capacity(self) -> int:
        """The operations that the asynchronous operations window lets this side invoke."""
        return self._assoc.exchange.invoke_limit

    def prepare_at_once(self, instance: OutgoingInstance) -> Exchange | None:
        """Prepare *instance* if nothing has to be awaited for it."""
        return self._assoc.exchange if prepare_at_once(self._assoc, instance, self._priority) else None

    async def prepare(self, instance: OutgoingInstance) -> Exchange:
        """Prepare an instance that has to be encoded, or raise why it cannot be sent."""
        await prepare(self._assoc, instance, self._priority)
        return self._assoc.exchange

    def done(self, exchange: Exchange) -> None:
        """Do nothing: the window alone counts what is in progress."""

    async def close(self) -> None:
        """Do nothing: the requestor releases its association."""
