"""
AssociationPool: a few associations with one peer, kept open and shared by all callers.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from random import random
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.ae.server import CLOSE_SECONDS
from dicomtwist.association.association import Association
from dicomtwist.dimse.status import Status
from dicomtwist.endpoints import client_endpoint
from dicomtwist.errors import AssociationTimeout, PoolFull, PoolStopped, PoolTimeout, RetriesExhausted, WouldDeadlock
from dicomtwist.pool.lease import Lease, Slot, Waiting, current_lease, present_leases, would_deadlock
from dicomtwist.pool.retry import Call, Connecting, RereadableFile, Waiter, is_transient, may_repeat
from dicomtwist.presentation import PresentationContext
from dicomtwist.runtime.backoff import Backoff
from dicomtwist.ul.ae_title import check_ae_title

if TYPE_CHECKING:
    from pydicom import Dataset

    from dicomtwist.ae.ae import AE, BindAddress

T = TypeVar("T")

#: The default limit of operations that wait for an association.
MAX_WAITING: Final = 1000

#: How long to wait after the first, second, ... failure in a row: about 1, 2, 4, 8, 16 and then 30 seconds, and up to one
#: more at random, so that the clients of a peer do not reconnect all at once when it is back.
DEFAULT_RETRY_POLICY: Final[Callable[[int], float]] = Backoff(first=1.0, longest=30.0, jitter=random)


class AssociationPool(Service):
    """
    Up to *size* associations with one peer. They are established when they are needed, reused, and released when they
    have been idle for a while. Each has as many places as its asynchronous operations window (PS3.7 D.3.3.3), or one
    without a negotiated window. Operations that find no place wait in order.

    It can be used at once, and as a Twisted service in a ``MultiService``; ``async with AssociationPool(...) as pool`` stops
    it at the end. All times are in seconds of the AE's reactor.

    :param ae: the AE that requests the associations.
    :param address: the peer, together with *port*, as in :meth:`dicomtwist.AE.associate`.
    :param port: the peer's port, ``None`` if *address* is an endpoint or its string.
    :param ae_title: the peer's AE title. The parameters up to *evt_handlers* are those of :meth:`~dicomtwist.AE.associate`.
    :param size: the most associations at once.
    :param idle_timeout: the time without use after which an association is released, in seconds; ``None`` for never. It
        has to be below the AE's ``network_timeout``, which aborts an association on which nothing happens.
    :param max_waiting: the most operations that wait; one more fails with :class:`PoolFull`.
    :param attempts: the number of attempts of an operation, those to establish an association included.
    :param timeout: the time in which an operation may wait and be retried, in seconds; ``None`` for no limit. It does not
        end an operation that is being performed, which has the timeouts of the AE.
    :param retry_policy: a function that returns the delay in seconds for a number of failures in a row, such as
        :class:`dicomtwist.runtime.backoff.Backoff` or ``twisted.application.internet.backoffPolicy(...)``.
    :param grace: the time in which operations may finish when the pool is stopped, in seconds; ``None`` for no limit.
    :raises ValueError: an argument is wrong.
    :raises TypeError: an argument is of a wrong type.

    :ivar established: the number of associations that were established.
    :ivar failed: the number of attempts to establish one that failed.
    :ivar retried: the number of retries of operations after their association was lost.
    """

    log = Logger()

    def __init__(
        self,
        ae: AE,
        address: str | IStreamClientEndpoint,
        port: int | None = None,
        *,
        ae_title: str | bytes = "ANY-SCP",
        contexts: Iterable[PresentationContext] | None = None,
        ext_neg: Iterable[object] | None = None,
        max_pdu: int | None = None,
        bind_address: BindAddress | None = None,
        tls_args: object = None,
        evt_handlers: Iterable[evt.HandlerTuple] | None = None,
        size: int = 4,
        idle_timeout: float | None = 30.0,
        max_waiting: int = MAX_WAITING,
        attempts: int = 6,
        timeout: float | None = 60.0,
        retry_policy: Callable[[int], float] = DEFAULT_RETRY_POLICY,
        grace: float | None = 10.0,
    ) -> None:
        for name, number in (("size", size), ("max_waiting", max_waiting), ("attempts", attempts)):
            if number < 1:
                raise ValueError(f"{name} is at least 1, not {number}")
        for name, seconds in (("idle_timeout", idle_timeout), ("timeout", timeout)):
            if seconds is not None and not seconds > 0:
                raise ValueError(f"{name} is a number of seconds above 0, or None for no limit, not {seconds}")
        network = ae.settings.network_timeout
        if network is not None and (idle_timeout is None or idle_timeout >= network):
            raise ValueError(
                f"idle_timeout={idle_timeout} is not below the AE's network_timeout, which aborts an association after"
                f" {network:g} idle seconds: set ae.network_timeout higher, or to None"
            )
        self.ae = ae
        self.ae_title = check_ae_title(ae_title, "the called AE title")
        self.size = size
        self.max_waiting = max_waiting
        self.established = self.failed = self.retried = 0
        self._handlers = list(evt_handlers or ())
        self._associate = partial(
            ae.associate,
            client_endpoint(ae.reactor, address) if port is None else address,
            port,
            ae_title=self.ae_title,
            contexts=None if contexts is None else list(contexts),
            ext_neg=list(ext_neg or ()),
            max_pdu=max_pdu,
            bind_address=bind_address,
            tls_args=tls_args,
        )
        self._idle_timeout = idle_timeout
        self._attempts = attempts
        self._timeout = timeout
        self._policy = retry_policy
        self._grace = grace
        self._slots: list[Slot] = []
        self._connecting: set[Connecting] = set()
        self._waiters: deque[Waiter] = deque()
        self._pausing: set[Deferred[None]] = set()
        self._failures = 0  # in a row, to establish an association
        self._next_attempt: IDelayedCall | None = None
        self._next_look: IDelayedCall | None = None
        self._serving = False
        self._stopped = False

    def __repr__(self) -> str:
        return (
            f"<AssociationPool with {self.ae_title!r}: {self.open} of {self.size} open, {self.busy} busy,"
            f" {self.waiting} waiting>"
        )

    # --- state

    @property
    def open(self) -> int:
        """The number of associations that are established."""
        return sum(slot.is_open for slot in self._slots)

    @property
    def busy(self) -> int:
        """The number of associations that are in use."""
        return sum(bool(slot.leases) for slot in self._slots)

    @property
    def in_use(self) -> int:
        """The number of places that are in use: more than :attr:`busy` if a window was negotiated."""
        return sum(len(slot.leases) for slot in self._slots)

    @property
    def connecting(self) -> int:
        """The number of associations that are being established."""
        return len(self._connecting)

    @property
    def waiting(self) -> int:
        """The number of operations that wait for a place or a retry."""
        return len(self._waiters) + len(self._pausing)

    # --- for users

    def association(self, *, exclusive: bool = False) -> AbstractAsyncContextManager[Association]:
        """
        Return an asynchronous context manager that lends an association to its block.

        The pool retries nothing in the block. If the block leaves requests unanswered, because it was cancelled or did not
        wait, the association is not lent again, and released when they are answered.

        :param exclusive: whether the block has the association alone, whatever its window is.
        :raises PoolError: no association was available: :class:`PoolFull`, :class:`PoolTimeout`,
            :class:`RetriesExhausted` or :class:`PoolStopped`, with the last failure as its cause.
        :raises AssociationRejected: the peer rejected permanently, and the pool had no other association.
            :class:`NoAcceptedContexts` and TLS errors are raised in this case as well.
        """
        return _LeaseContext(self, exclusive)

    def run(self, operation: Callable[[Association], Awaitable[T]], *, retry: bool | None = None) -> Deferred[T]:
        """
        Run *operation* on an association, and again on another one if the association ended before a response arrived.

        An operation that got a response, with any status, is never repeated, and neither is a function that sent several
        requests of which one got a response. An error other than the end of the association is not retried.

        :param operation: called with an association, such as ``lambda assoc: assoc.send_c_store(path)``; it returns a
            Deferred or a coroutine.
        :param retry: whether to retry; by default if nothing was sent but C-ECHO, C-STORE, C-FIND, C-GET, C-MOVE and
            N-GET, which change nothing if they are done twice.
        :returns: a Deferred with the result of *operation*. It fails with the error of *operation*, or with one of
            :meth:`association`. Cancelling it cancels the step that it waits for.
        """
        return Deferred.fromCoroutine(self._run(operation, retry))

    def send_c_echo(self) -> Deferred[Status]:
        """Send C-ECHO: :meth:`run` with :meth:`dicomtwist.Association.send_c_echo`."""
        return self.run(Association.send_c_echo)

    def send_c_store(
        self,
        dataset: str | os.PathLike[str] | Dataset | BinaryIO | bytes,
        *,
        priority: int = 2,
        originator_aet: str | bytes | None = None,
        originator_id: int | None = None,
    ) -> Deferred[Status]:
        """
        Send C-STORE: :meth:`run` with :meth:`dicomtwist.Association.send_c_store`, whose parameters and result it has.

        :param dataset: as there. An open file that is not seekable is not retried, because it cannot be read again.
        """
        retry: bool | None = None
        get: Callable[[], Any] = lambda: dataset  # noqa: E731
        if hasattr(dataset, "read"):
            if RereadableFile.is_possible(dataset):
                get = RereadableFile(cast("BinaryIO", dataset)).reopen
            else:
                retry = False
        return self.run(
            lambda assoc: assoc.send_c_store(
                get(), priority=priority, originator_aet=originator_aet, originator_id=originator_id
            ),
            retry=retry,
        )

    # --- IService

    def startService(self) -> None:
        """Start the pool, also after a stop. Associations are established when they are needed."""
        super().startService()  # type: ignore[no-untyped-call]
        self._stopped = False

    def stopService(self) -> Deferred[None]:
        """
        Stop: operations that wait fail with :class:`PoolStopped`, running ones may finish in the grace time, then the
        associations are released. After the grace time the remaining ones are aborted.

        An association that only the caller itself uses, because it stops the pool from inside its block or operation, is
        released at once: its block would not end before the stop has.

        :returns: a Deferred that fires with ``None`` when every connection is closed.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self._stopped = True
        self._forget_failures()
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        slots = list(self._slots)
        ended: list[Deferred[Any]] = [slot.association.when_ended() for slot in slots]
        connecting, self._connecting = self._connecting, set()
        for attempt in connecting:
            attempt.give_up()
            if attempt.association is not None:
                attempt.association.abort("the pool is being stopped", within=CLOSE_SECONDS)
                ended.append(attempt.association.when_ended())
        own = frozenset(present_leases())
        for slot in slots:
            self._retire(slot, own)
        for paused in list(self._pausing):
            paused.errback(self._stop_error(None))
        self._fail_waiters(lambda waiter: self._stop_error(waiter.call))
        return Deferred.fromCoroutine(self._drain(slots, ended))

    async def _drain(self, slots: list[Slot], ended: list[Deferred[Any]]) -> None:
        def abort() -> None:
            for slot in slots:
                slot.association.abort("the pool is being stopped", within=CLOSE_SECONDS)

        late = None
        if slots and self._grace is not None:
            if self._grace > 0:
                late = self.ae.reactor.callLater(self._grace, abort)
            else:
                abort()
        await DeferredList(ended)
        if late is not None and late.active():
            late.cancel()

    async def __aenter__(self) -> AssociationPool:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stopService()

    # --- an operation

    async def _run(self, operation: Callable[[Association], Awaitable[T]], retry: bool | None) -> T:
        call = self.begin()
        while True:
            lease = await self.enter(call)
            current_lease.set(lease)
            error: BaseException | None = None
            try:
                return await operation(lease.slot.association)
            except BaseException as raised:
                error = raised
                if not may_repeat(lease, raised, retry):
                    raise
            finally:
                self.leave(lease, error)
            call.failed(error)
            await self._pause(call)
            self.retried += 1

    def begin(self) -> Call:
        """Return the counts of a new operation."""
        seconds = self._timeout
        return Call(seconds, None if seconds is None else self.ae.reactor.seconds() + seconds)

    def enter(self, call: Call, *, exclusive: bool = False) -> Deferred[Lease]:
        """Return a Deferred with a lease of an association; cancelling it gives up the wait."""
        if self._stopped:
            return fail(self._stop_error(call))
        inside = present_leases()
        # Code that has a place already goes first: those that wait may wait for it to end.
        if not self._waiters or any(lease.slot in self._slots for lease in inside):
            slot = self._find(exclusive)
            if slot is not None:
                return succeed(slot.lend(self.ae.reactor.seconds(), inside, exclusive=exclusive))
        # The limit does not apply to retries: they were admitted before, and there are no more of them than places.
        if not call.failures and self.waiting >= self.max_waiting:
            return fail(PoolFull(f"{self.waiting} operations wait already for an association with {self.ae_title}"))
        waiter = Waiter(call, inside, self, self._gave_up, exclusive=exclusive)
        if inside and would_deadlock(waiter):
            waiter.fail(self._deadlock_error())
            return waiter.place
        if call.deadline is not None:
            left = max(call.deadline - self.ae.reactor.seconds(), 0)
            waiter.late = self.ae.reactor.callLater(left, self._timed_out, waiter)
        self._waiters.append(waiter)
        self._connect_more()
        return waiter.place

    def leave(self, lease: Lease, error: BaseException | None) -> None:
        """Give back a place, with the error that ended its use."""
        now = self.ae.reactor.seconds()
        slot = lease.slot
        slot.leave(lease, now)
        if isinstance(error, AssociationTimeout):
            # The peer may be gone without having closed: idle associations on which nothing was received since are suspect too.
            for other in self._slots:
                if not other.leases and other.idle_since <= lease.since:
                    self._retire(other)
        if slot.retired:
            self._retire(slot)
        elif not slot.leases:
            self._release_idle_later(self._idle_timeout)
        self._serve()

    async def _pause(self, call: Call) -> None:
        """Wait until an operation may be retried."""
        if self._stopped:
            raise self._stop_error(call)
        if call.failures >= self._attempts:
            raise self._exhausted(call)
        delay = self._policy(call.failures)
        if call.deadline is not None and self.ae.reactor.seconds() + delay >= call.deadline:
            raise self._late_error(call)
        paused: Deferred[None] = Deferred()
        self._pausing.add(paused)
        timer = self.ae.reactor.callLater(delay, paused.callback, None)
        try:
            await paused
        except PoolStopped:
            raise self._stop_error(call) from call.last
        finally:
            self._pausing.discard(paused)
            if timer.active():
                timer.cancel()

    # --- operations that wait

    def _serve(self) -> None:
        """Give places to the operations that wait, in order; establish more associations if there are not enough."""
        if self._serving:
            return  # an operation gave its place back at once: the loop below continues
        self._serving = True
        try:
            while self._waiters:
                waiter = self._waiters[0]
                slot = self._find(waiter.exclusive)
                if slot is None:
                    break
                self._waiters.popleft()
                waiter.give(slot.lend(self.ae.reactor.seconds(), waiter.inside, exclusive=waiter.exclusive))
        finally:
            self._serving = False
        self._connect_more()

    def _find(self, exclusive: bool) -> Slot | None:
        """Return the association with the fewest leases, of idle ones the most recently used; ``None`` if all are full."""
        best: Slot | None = None
        for slot in self._slots:
            if not slot.room or (exclusive and slot.leases):
                continue
            if not slot.leases and self._is_stale(slot):
                self._retire(slot)
            elif best is None or (len(slot.leases), -slot.idle_since) < (len(best.leases), -best.idle_since):
                best = slot
        return best

    @property
    def leases(self) -> Iterable[Lease]:
        """The leases of its associations."""
        return (lease for slot in self._slots for lease in slot.leases)

    def is_blocked(self, waiter: Waiting, is_stuck: Callable[[Lease], bool]) -> bool:
        """Whether no place comes free for *waiter*, if the leases never end for which *is_stuck* is true."""
        if self._stopped or self._connecting or self.open < self.size:
            return False

        def is_kept(slot: Slot) -> bool:
            stuck = map(is_stuck, slot.leases)
            # An association that is retired makes room for a new one when all of its leases have ended.
            whole = waiter.exclusive or slot.exclusive or slot.retired
            return bool(slot.leases) and (any(stuck) if whole else all(stuck))

        return all(is_kept(slot) for slot in self._slots if slot.is_open)

    def _gave_up(self, waiter: Waiter) -> None:
        self._waiters.remove(waiter)
        self._serve()  # it may have been the first of the queue

    def _timed_out(self, waiter: Waiter) -> None:
        self._waiters.remove(waiter)
        waiter.fail(self._late_error(waiter.call))
        self._serve()

    def _fail_waiters(self, reason: Callable[[Waiter], BaseException | None]) -> None:
        """Fail each waiting operation for which *reason* returns an error."""
        failing = [(waiter, error) for waiter in self._waiters if (error := reason(waiter)) is not None]
        gone = {waiter for waiter, _ in failing}
        self._waiters = deque(waiter for waiter in self._waiters if waiter not in gone)
        for waiter, error in failing:
            if not waiter.place.called:  # the errback of another one may have cancelled it
                waiter.fail(error)

    def _late_error(self, call: Call) -> PoolTimeout:
        seconds = call.seconds or 0
        words = f"no association with {self.ae_title} was available within {seconds:g} seconds"
        return PoolTimeout(words, seconds, call.failures, call.last)

    def _deadlock_error(self) -> WouldDeadlock:
        return WouldDeadlock(
            f"every place of the pool of associations with {self.ae_title} is in use by code that waits for a further one: use"
            " the association of the block, ask when the block has ended, or make the pool larger"
        )

    def _exhausted(self, call: Call) -> RetriesExhausted:
        return RetriesExhausted(f"{self.ae_title} gave no answer", call.failures, call.last)

    def _stop_error(self, call: Call | None) -> PoolStopped:
        words = f"the pool of associations with {self.ae_title} is stopped"
        return PoolStopped(words) if call is None else PoolStopped(words, call.failures, call.last)

    # --- associations

    def _connect_more(self) -> None:
        """Establish associations while more operations wait than associations are being established."""
        while (
            len(self._waiters) > len(self._connecting)
            and self.open + len(self._connecting) < self.size
            and self._next_attempt is None
            # After a failure, one association is tried first.
            and not (self._failures and self._connecting)
            and not self._stopped
        ):
            self._connect()

    def _connect(self) -> None:
        attempt = Connecting(self._failures)
        self._connecting.add(attempt)
        handlers: list[evt.HandlerTuple] = [*self._handlers, (evt.EVT_CONN_OPEN, attempt.opened)]
        attempt.association_asked = maybeDeferred(self._associate, evt_handlers=handlers)
        attempt.association_asked.addCallbacks(
            self._connected, self._connect_failed, callbackArgs=(attempt,), errbackArgs=(attempt,)
        ).addErrback(lambda reason: self.log.failure("the pool failed", reason))

    def _connected(self, association: Association, attempt: Connecting) -> None:
        self._connecting.discard(attempt)
        self.established += 1
        self._forget_failures()
        slot = Slot(association, self.ae.reactor.seconds())
        self._slots.append(slot)
        association.when_ended().addCallback(self._ended, slot)
        self._release_idle_later(self._idle_timeout)
        self._serve()

    def _connect_failed(self, reason: Failure, attempt: Connecting) -> None:
        if attempt.given_up:
            return
        self._connecting.discard(attempt)
        self.failed += 1
        error = reason.value
        assert error is not None
        # If other associations are open, the peer is reachable but seems to accept no further one: operations wait for those.
        alone = not self.open and not self._connecting
        if alone and not is_transient(error):
            self._forget_failures()
            self._fail_waiters(lambda waiter: error)
            return
        if attempt.failures_before != self._failures or self._next_attempt is not None:
            return  # simultaneous failures count as one
        self._failures += 1
        delay = self._policy(self._failures)
        self._next_attempt = self.ae.reactor.callLater(delay, self._try_again)
        if not self.open:
            self._fail_waiters(lambda waiter: self._one_more_failure(waiter.call, error))
        self.log.info(
            "no association with {title}: {reason}; {next}",
            title=self.ae_title,
            reason=str(error) or type(error).__name__,
            delay=delay,
            next=f"the next attempt in {delay:.1f} s" if self.waiting else "nothing waits for another attempt",
        )

    def _one_more_failure(self, call: Call, error: BaseException) -> RetriesExhausted | None:
        call.failed(error)
        return self._exhausted(call) if call.failures >= self._attempts else None

    def _try_again(self) -> None:
        self._next_attempt = None
        self._connect_more()

    def _forget_failures(self) -> None:
        """Forget failures to establish an association."""
        self._failures = 0
        if self._next_attempt is not None:
            self._next_attempt.cancel()
            self._next_attempt = None

    def _ended(self, association: Association, slot: Slot) -> None:
        self._slots.remove(slot)
        self._serve()

    def _retire(self, slot: Slot, ending: frozenset[Lease] = frozenset()) -> None:
        """
        Stop lending an association, and release it when its last lease has ended.

        :param ending: leases that are not waited for.
        """
        slot.retired = True
        if slot.leases <= ending:
            # It ends in any case: by its release, or by the timeouts of the AE.
            slot.association.release().addErrback(lambda _: None)

    # --- idle associations

    def _is_stale(self, slot: Slot) -> bool:
        return self._idle_timeout is not None and slot.idle_since + self._idle_timeout <= self.ae.reactor.seconds()

    def _release_idle_later(self, seconds: float | None) -> None:
        if seconds is not None and self._next_look is None and not self._stopped:
            self._next_look = self.ae.reactor.callLater(seconds, self._release_idle)

    def _release_idle(self) -> None:
        """Release the associations that have been idle for the idle timeout."""
        self._next_look = None
        idle = [slot for slot in self._slots if not slot.leases and not slot.retired]
        for slot in idle:
            if self._is_stale(slot):
                self._retire(slot)
        left = [slot.idle_since for slot in idle if not slot.retired]
        if left and self._idle_timeout is not None:
            self._release_idle_later(max(min(left) + self._idle_timeout - self.ae.reactor.seconds(), 0.001))


class _LeaseContext:
    """The context manager of :meth:`AssociationPool.association`."""

    def __init__(self, pool: AssociationPool, exclusive: bool) -> None:
        self._pool = pool
        self._exclusive = exclusive
        self._lease: Lease | None = None
        self._before: Lease | None = None

    async def __aenter__(self) -> Association:
        if self._lease is not None:
            raise RuntimeError("this context manager was used already: call pool.association() for another one")
        self._lease = await self._pool.enter(self._pool.begin(), exclusive=self._exclusive)
        self._before = current_lease.get()
        current_lease.set(self._lease)
        return self._lease.slot.association

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._lease is not None
        lease, self._lease = self._lease, None
        current_lease.set(self._before)
        self._pool.leave(lease, value)
