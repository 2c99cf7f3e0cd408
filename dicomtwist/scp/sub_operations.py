"""
The C-STORE sub-operations of C-GET and C-MOVE: where they go, how many are under way, and what came of them.
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
    from dicomtwist.exchange.send_queue import Outgoing
    from dicomtwist.runtime.executors import Executor
    from dicomtwist.scp.performed import PerformingAssociation

#: How many requests are made, and wait, while as many as may be under way are; and how many instances are asked for beside
#: those that are under way, where one of them is in memory.
AHEAD: Final = 1

#: How many paths are asked for beside the sub-operations that are under way. They are opened several at a time: a trip to a
#: thread and back costs as much as to read some small files.
PATHS_AHEAD: Final = 32

#: How many bytes of files are read ahead, beside the one that passes it.
READ_AHEAD: Final = 1024 * 1024

#: How many SOP Instance UIDs are kept for the Failed SOP Instance UID List. The counts tell of all.
MAX_FAILED_INSTANCES: Final = 10_000

#: The counts of a response have 16 bits (PS3.7 E.1); of more than that they tell the most that they can.
_MOST: Final = 0xFFFF

#: Of how many paths that wait some are worth a trip to a thread, while others are open.
_BATCH: Final = PATHS_AHEAD // 2

#: What makes a sub-operation fail, beside what is a mistake in a program.
_FAILURES: Final = (
    *(AssociationError, NotEstablished, NoPresentationContext, DataSetError, NotDicomFile, OSError),
    ExecutorFull,
)

_Path: TypeAlias = "str | os.PathLike[str]"


class Destination(Protocol):
    """Where instances are stored."""

    @property
    def capacity(self) -> int:
        """How many may be under way at once."""

    def prepare_at_once(self, instance: OutgoingInstance) -> Exchange | None:
        """Prepare *instance* if nothing has to be awaited for it; return where to send it, else ``None``."""

    async def prepare(self, instance: OutgoingInstance) -> Exchange:
        """
        Prepare *instance* and return where to send it; close it if that fails. Called for one instance at a time.

        :raises Refused: there is no such destination, nothing can be stored.
        """

    def done(self, exchange: Exchange) -> None:
        """An instance that was to be sent over *exchange* was answered, or given up."""

    async def close(self) -> None:
        """Nothing more is to be stored."""


class SubOperations:
    """
    The sub-operations of one C-GET or C-MOVE.

    Each goes through four queues, in the order in which they were started: to be opened, which several paths are in one trip
    to a thread; to have a request made; to have a place in the window; to be answered.

    :param destination: where the instances go.
    :param total: how many there are to be.
    :param executor: where files are looked at.
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
        executor: Executor,
        outgoing: Outgoing,
        progressed: Callable[[], None],
    ) -> None:
        self._destination = destination
        self._outgoing = outgoing
        self._total = total
        self._executor = executor
        self._progressed = progressed
        self._under_way = 0
        self._requested = 0  # for how many there is a request
        self._closed: deque[InstanceLike] = deque()
        self._open: deque[OutgoingInstance] = deque()
        self._held = 0  # how many bytes the open ones have in memory
        self._is_opening = self._is_advancing = self._is_stopped = False
        self._is_last_in_memory = self._is_more_coming = False
        self._preparing: Deferred[Exchange] | None = None
        self._waiting: tuple[Callable[[], bool], Deferred[None]] | None = None
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

    # --- for the service

    def start(self, instance: InstanceLike, *, more: bool = False) -> None:
        """
        Store one more, when its turn comes. :meth:`place` tells when there may be another.

        :param more: whether others come with it, so that it may wait to be opened together with them.
        """
        self._is_more_coming = more
        self._under_way += 1
        self._total = max(self._total, self.done + self._under_way)
        self._is_last_in_memory = not _is_path(instance)
        self._closed.append(instance)
        self._advance()

    async def place(self, *, together: bool = False) -> None:
        """
        Wait until there may be one more.

        So much is asked for ahead that no time is lost between an answer and the next request: paths, and of what takes memory
        one.

        :param together: whether it comes with the one before. If not, that has to be open first: where a handler goes on, what
            it has yielded may be gone.
        :raises Refused: there is no such destination.
        """
        if not together and not self._is_read:
            await self._wait(lambda: self._is_read)
        if not self._has_room(PATHS_AHEAD):
            # Then for several at once.
            await self._wait(lambda: self._has_room(PATHS_AHEAD - _BATCH + 1))
        self.check()

    def check(self) -> None:
        """
        Say whether there was a destination for those that are over.

        :raises Refused: there was not.
        """
        if self._refused is not None:
            raise self._refused

    async def settle(self) -> None:
        """Wait until none is under way. Who cancels the waiting is told when it is over."""
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
        """Do not send those that wait."""
        self._is_stopped = True
        self._drop()
        if self._preparing is not None:
            self._preparing.cancel()

    # --- who waits

    @property
    def _is_read(self) -> bool:
        """Whether the last one is open; of what is in memory, whether its request is made."""
        if self._closed or self._is_opening:
            return False
        return not self._is_last_in_memory or not (self._open or self._preparing is not None)

    def _has_room(self, ahead: int) -> bool:
        """Whether there may be one more, where up to *ahead* paths are asked for ahead."""
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
        """Do what can be done: make requests of what is open, and open more."""
        if self._is_advancing:
            return  # who does so already, further up, goes on with it
        self._is_advancing = True
        try:
            while self._prepare_next() or self._open_next():
                pass
        finally:
            self._is_advancing = False
        self._wake()

    def _open_next(self) -> bool:
        """Open what waits for it where it is time to, paths together; return whether there was something to do."""
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
        opening.addCallback(self._opened, instances).addErrback(self._broken)
        return True

    def _open_some(self, paths: list[_Path]) -> list[OutgoingInstance | Exception]:
        """Open *paths* in a worker thread, unless nothing more is to be sent by the time that it comes to them."""
        return [] if self._is_stopped else open_paths(paths, self._executor, READ_AHEAD)

    def _opened(self, results: Sequence[OutgoingInstance | BaseException], instances: list[InstanceLike]) -> None:
        self._is_opening = False
        self._closed.extendleft(reversed(instances[len(results) :]))
        for instance, result in zip(instances, results, strict=False):
            if isinstance(result, OutgoingInstance):
                self._open.append(result)
                self._held += result.held
            else:
                # Of a path that cannot be read nothing is known but what it tells itself.
                self._over(self._why(Failure(result)), str(getattr(instance, "sop_instance_uid", "")))
        if self._is_stopped or self._refused is not None:
            self._drop()
        self._advance()

    def _drop(self) -> None:
        """Forget those that have no request yet, which are not counted."""
        self._under_way -= len(self._closed) + len(self._open)
        self._closed.clear()
        while self._open:
            self._open.popleft().close()
        self._held = 0

    def _prepare_next(self) -> bool:
        """Make the next request, where it may be made; return whether it was."""
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
        ).addErrback(self._broken)
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
            self._over(None, uid)
            self._drop()
        else:
            self._over(None if self._is_stopped else self._why(reason), uid)
        self._advance()

    # --- from a request to its answer

    def _send(self, instance: OutgoingInstance, exchange: Exchange) -> None:
        both = instance, exchange
        exchange.enter_window().addCallbacks(
            self._entered, self._kept_out, callbackArgs=both, errbackArgs=both
        ).addErrback(self._broken)

    def _kept_out(self, reason: Failure, instance: OutgoingInstance, exchange: Exchange) -> None:
        instance.close()
        self._destination.done(exchange)
        self._requested -= 1
        self._over(self._why(reason), instance.sop_instance_uid)
        self._advance()

    def _entered(self, _: object, instance: OutgoingInstance, exchange: Exchange) -> None:
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
                self._broken
            )

    def _answered(self, answer: tuple[Response, bytes | None], instance: OutgoingInstance, exchange: Exchange) -> None:
        self._end(instance, exchange, category(answer[0].status))

    def _failed(self, reason: Failure, instance: OutgoingInstance, exchange: Exchange) -> None:
        self._end(instance, exchange, self._why(reason))

    def _end(self, instance: OutgoingInstance, exchange: Exchange, kind: StatusCategory | None) -> None:
        """Count one that had a place in the window, and give that to the next."""
        self._destination.done(exchange)
        self._requested -= 1
        uid = instance.sop_instance_uid
        if exchange.outgoing is not self._outgoing:
            # Who asked can wait, the destination is not to.
            exchange.leave_window()
            self._over(kind, uid)
        else:
            # What is told of this one goes out together with the next one.
            self._outgoing.cork()
            try:
                self._over(kind, uid)
                exchange.leave_window()
            finally:
                self._outgoing.uncork()
        self._advance()

    def _broken(self, reason: Failure) -> None:
        self.log.failure("while a sub-operation was performed", reason)

    def _why(self, reason: Failure) -> StatusCategory:
        """Note why one failed that the peer did not answer."""
        error = reason.value
        if isinstance(error, (*_FAILURES, CancelledError, TypeError)):
            self.log.debug("a sub-operation failed: {error}", error=error)
            self.last_failure = loggable(error)
        else:
            self.log.failure("a sub-operation failed", reason)
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


def _is_path(instance: InstanceLike) -> bool:
    return isinstance(instance, str | os.PathLike)


class SameAssociation:
    """The association that a C-GET came on."""

    def __init__(self, assoc: PerformingAssociation, priority: int) -> None:
        self._assoc = assoc
        self._priority = priority

    @property
    def capacity(self) -> int:
        """As many as the asynchronous operations window lets this side invoke."""
        return self._assoc.exchange.invoke_limit

    def prepare_at_once(self, instance: OutgoingInstance) -> Exchange | None:
        """Prepare *instance* if nothing has to be awaited for it."""
        return self._assoc.exchange if prepare_at_once(self._assoc, instance, self._priority) else None

    async def prepare(self, instance: OutgoingInstance) -> Exchange:
        """Prepare an instance that has to be converted, or fails."""
        await prepare(self._assoc, instance, self._priority)
        return self._assoc.exchange

    def done(self, exchange: Exchange) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """The association is the requestor's."""
