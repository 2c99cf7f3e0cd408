"""
Executors: a few threads and a bounded queue for each purpose, for everything that blocks.

An executor is a bulkhead. A worklist on a network drive that hangs, or a crowd of users whose passcodes are checked, keeps the
threads of its own executor busy and no others. The reactor's own pool is left to DNS.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import Lock, Thread
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from dicomtwist.errors import ExecutorFull
from dicomtwist.runtime.work import Call, Owner, Work, current, order_of

__all__ = ["Bounds", "Executor", "ExecutorVitals", "Executors", "Share", "is_turn_over", "run_in_turns"]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bounds:
    """
    The bounds of one executor.

    :ivar threads: the maximum number of threads.
    :ivar max_queued: the maximum number of calls that wait for a thread; one more fails with :class:`ExecutorFull`.
    :ivar max_share: the maximum number of threads for calls of one peer, see :meth:`Executor.share`; 0 for half of the
        threads, but one at least.
    :raises ValueError: there would be no thread, or the queue or the share is below 0.
    """

    threads: int
    max_queued: int
    max_share: int = 0

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads = {self.threads}: an executor has one thread at least")
        if self.max_queued < 0:
            raise ValueError(f"max_queued = {self.max_queued}: a queue holds 0 calls at least")
        if self.max_share < 0:
            raise ValueError(f"max_share = {self.max_share}: a peer has one thread at least")
        if not self.max_share:
            object.__setattr__(self, "max_share", max(1, self.threads // 2))


#: The time after which a long search gives its thread to the next call in the queue, in seconds. A turn costs 0.1 milliseconds.
TURN: Final = 0.1

#: Instances that peers send are written and committed. Nothing else uses this executor. Each of 1,000 associations may have
#: some pieces of work in the queue.
RECEIVING: Final = Bounds(threads=8, max_queued=4096)
#: The index is searched for C-FIND, C-GET and C-MOVE. A search of 100,000 sequences takes a minute, so one peer never has all
#: threads.
QUERYING: Final = Bounds(threads=4, max_queued=1024, max_share=2)
#: Files are opened and read that are sent.
RETRIEVAL: Final = Bounds(threads=8, max_queued=4096)
#: Long data sets are decoded, or converted to another transfer syntax. pydicom holds the interpreter meanwhile, so that more
#: threads would be no faster.
DECODING: Final = Bounds(threads=2, max_queued=1024)
#: Passcodes of users are checked. Each check takes up to ``access.users.MAX_SCRYPT_MEMORY``.
PASSCODES: Final = Bounds(threads=2, max_queued=256)
#: Files of a worklist are read, and answers made of them.
WORKLIST: Final = Bounds(threads=2, max_queued=1024, max_share=1)
#: Studies are deleted and their files removed. A folder of 100,000 files takes seconds, and one on a network drive may hang.
DELETION: Final = Bounds(threads=2, max_queued=1024, max_share=1)
#: Everything else that an archive does with files: storage commitment, performed procedure steps, an import, a reload.
HOUSEKEEPING: Final = Bounds(threads=4, max_queued=1024)

#: Metrics are put into text, and the free space of the disk is measured, which may hang.
MONITORING: Final = Bounds(threads=2, max_queued=64)
#: Records and audit messages are written. Each of the two writes one batch at a time.
RECORDS: Final = Bounds(threads=2, max_queued=64)
#: Tasks of forwarding are claimed, their outcomes recorded, and new ones made. SQLite has one writer at a time.
FORWARDING: Final = Bounds(threads=4, max_queued=1024)

DEFAULT_BOUNDS: Final[Mapping[str, Bounds]] = {
    "receiving": RECEIVING,
    "querying": QUERYING,
    "retrieval": RETRIEVAL,
    "decoding": DECODING,
    "passcodes": PASSCODES,
    "worklist": WORKLIST,
    "deletion": DELETION,
    "housekeeping": HOUSEKEEPING,
    "monitoring": MONITORING,
    "records": RECORDS,
    "forwarding": FORWARDING,
}


@dataclass(frozen=True, slots=True)
class ExecutorVitals:
    """
    The state of an executor.

    :ivar name: its name, which is its purpose.
    :ivar threads: the maximum number of threads.
    :ivar busy: the threads that are at work.
    :ivar queued: the calls that wait for a thread.
    :ivar longest: the time for which the longest current call has been running, in seconds; 0 if no thread is busy.
    :ivar blocked: the time for which all threads have been busy with their current calls, in seconds; 0 if a thread is idle.
    :ivar work: the names of the functions that the threads are at.
    :ivar refused: the calls that were refused since the start, because the queue was full.
    """

    name: str
    threads: int
    busy: int
    queued: int
    longest: float
    blocked: float
    work: tuple[str, ...] = ()
    refused: int = 0

    def __str__(self) -> str:
        longest = f", the longest call for {self.longest:.1f} s" if self.busy else ""
        return f"{self.name} {self.busy} of {self.threads} threads busy{longest}, {self.queued} calls queued"


def is_turn_over() -> bool:
    """
    Return whether this thread has been at its call for :data:`TURN` seconds; ``False`` outside of executors.

    Work that :func:`run_in_turns` runs asks this between its steps.
    """
    work = current.work
    return work is not None and work.executor.seconds() - work.started >= TURN


class Runner(Protocol):
    """An executor, or the share of a peer in one."""

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call *function* in a thread, see :meth:`Executor.run`."""

    def run_admitted(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call *function* in a thread, see :meth:`Executor.run_admitted`."""


async def run_in_turns(executor: Runner, work: Generator[None, None, T], *, is_admitted: bool = False) -> T:
    """
    Run *work* in threads until it returns. At each ``yield`` it leaves its thread and goes to the end of the queue.

    So long searches, however many, delay a short one by a turn or two. Between two turns *work* must hold nothing that is
    scarce, such as a connection to a database, and it may go on in another thread.

    :param work: a generator that yields when :func:`is_turn_over`.
    :param is_admitted: whether *work* is a further step of work that the executor has admitted.
    :returns: the result of *work*.
    :raises ExecutorFull: the queue is full before the first turn; later turns are admitted.
    """
    found: list[T] = []
    await (executor.run_admitted if is_admitted else executor.run)(_take_turn, work, found)
    while not found:
        await executor.run_admitted(_take_turn, work, found)
    return found[0]


def _take_turn(work: Generator[None, None, T], found: list[T]) -> None:
    try:
        next(work)
    except StopIteration as end:
        found.append(end.value)


class Executor:
    """
    A few threads with a bounded queue, for one purpose. The threads exist while the executor has users.

    Each user calls :meth:`acquire` first and :meth:`release` at the end; after the last release the threads end. So no thread
    is left behind, and no user has to stop the executor.

    The executor does not use Twisted's ThreadPool, because every stored instance takes a round trip to a thread, and a thread
    of that pool wakes for each call although another one has just become free.

    :param reactor: delivers the results. If it has ``make_thread_pool(minimum, maximum, name)``, as the reactor of
        :mod:`dicomtwist.testing` has, the threads come from there.
    :param name: its purpose, which is part of the names of its threads.
    :param bounds: the number of threads and the length of the queue.
    """

    def __init__(self, reactor: Any, name: str, bounds: Bounds) -> None:
        self.name = name
        self.bounds = bounds
        self._reactor = reactor
        self._pool: Any = None
        self._threads: list[Thread] = []
        self._users = 0
        # The number of calls that wait or run; only the reactor thread changes it.
        self._outstanding = 0
        self._refused = 0
        self._queue: deque[Work] = deque()
        # For the attributes below, and to take a call from the queue; nothing blocks while it is held.
        self._lock = Lock()
        # The threads that wait, each at a gate of its own. The one that has waited for the shortest time goes on first: its
        # data is still in the processor's cache.
        self._idle: list[Any] = []
        # The threads that are on their way to the queue. A call that one of them takes wakes no other thread, which would
        # contend with it for the interpreter: storing instances of 12 KB one by one takes 400 instead of 600 us of CPU time.
        self._coming = 0
        self._is_stopping = False
        self._running: set[Work] = set()
        # The peers that have calls; only the reactor thread changes them.
        self._owners: dict[str | None, Owner] = {}
        # The calls that have finished since the reactor thread was last woken. It is woken once for all of them.
        self._finished: deque[Work] = deque()
        self._is_delivering = False

    def acquire(self) -> None:
        """Register a user, who needs the executor until :meth:`release`."""
        self._users += 1

    def release(self) -> None:
        """Unregister a user. Calls that were begun or queued are completed, and their results are delivered."""
        self._users -= 1
        self._stop_if_unused()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Use the threads within a ``with`` block."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """
        Call *function* in a thread.

        :returns: a Deferred that fires with the result of *function* or fails with its exception; if the queue is full, it
            fails at once with :class:`ExecutorFull`. Cancelling the Deferred removes a call that has not begun from the
            queue. A call that has begun can ask
            :func:`~dicomtwist.runtime.work.is_wanted`; the Deferred does not wait for it.
        """
        if self.is_full:
            return self.refuse()
        return self.run_admitted(function, *args, **kwargs)

    def refuse(self) -> Deferred[Any]:
        """Count a call that is refused; its Deferred fails with :class:`ExecutorFull`."""
        self._refused += 1
        return fail(ExecutorFull(self.name, self.bounds.max_queued))

    def run_admitted(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """
        Call *function* in a thread as :meth:`run` does, even if the queue is full.

        It is for further steps of work that :meth:`run` has admitted, and for cleaning up after such work. The caller bounds
        their number, for example to one at a time for each association.
        """
        work = Work(self, function, args, kwargs)
        result = work.promise()
        self._outstanding += 1
        self._enqueue(work)
        return result

    def call(self, function: Callable[[], T], then: Callable[[T], object], failed: Callable[[Failure], object]) -> None:
        """
        Call *function* in a thread as :meth:`run_admitted` does, for work that is done for each instance that is received: a
        Deferred with two callbacks takes as long as the rest of the call.

        :param then: called in the reactor thread with the result.
        :param failed: called in the reactor thread with the Failure.
        """
        work = Call(self, function, (), {})
        work.then, work.failed = then, failed
        self._outstanding += 1
        self._enqueue(work)

    def share(self, peer: str) -> Share:
        """
        Return the executor as *peer* may use it: at most ``Bounds.max_share`` threads are at its calls, further ones wait.

        :param peer: the name of the peer, such as its address.
        """
        return Share(self, peer)

    def run_shared(
        self, peer: str, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Deferred[T]:
        """Call *function* for *peer* as :meth:`run_admitted` does, when fewer than ``Bounds.max_share`` of its calls run."""
        return self._run_owned(peer, self.bounds.max_share, Work(self, function, args, kwargs))

    def run_ordered(
        self, order: tuple[int, ...], function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        """
        Call *function* in a thread as :meth:`run_admitted` does, before the calls with a higher *order* that have not begun.

        :param order: numbers; calls with an equal order keep their sequence.
        """
        work = Work(self, function, args, kwargs)
        work.order = order
        return self._run_owned(None, self.bounds.threads, work)

    def _run_owned(self, key: str | None, limit: int, work: Work) -> Deferred[Any]:
        self._outstanding += 1
        owner = self._owners.get(key)
        if owner is None:
            owner = self._owners[key] = Owner(key, limit)
        work.owner = owner
        result = work.promise()
        if owner.active < owner.limit:
            owner.active += 1
            self._enqueue(work)
        else:
            insort(owner.waiting, work, key=order_of)
        return result

    @property
    def is_full(self) -> bool:
        """Whether :meth:`run` refuses a call."""
        return self._outstanding >= self.bounds.threads + self.bounds.max_queued

    def _enqueue(self, work: Work) -> None:
        self._queue.append(work)
        if self._pool is None and not self._threads:
            make_thread_pool = getattr(self._reactor, "make_thread_pool", None)
            if make_thread_pool is not None:
                self._pool = make_thread_pool(0, self.bounds.threads, f"dicomtwist-{self.name}")
                self._pool.start()
        if self._pool is not None:
            self._pool.callInThread(self._perform_next)
        else:
            self._wake_thread()

    def _wake_thread(self) -> None:
        """Wake a thread for the last call in the queue, unless one that has just finished another call takes it."""
        with self._lock:
            if len(self._queue) <= self._coming:
                return
            if self._idle:
                self._coming += 1
                self._idle.pop().release()
                return
            if len(self._threads) >= self.bounds.threads:
                return
            self._coming += 1
        thread = Thread(target=self._run, name=f"dicomtwist-{self.name}-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def call_in_reactor(self, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call *function* in the reactor thread. Any thread may call this, such as one that has done another thread's work."""
        self._reactor.callFromThread(function, *args, **kwargs)

    def call_later(self, seconds: float, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> IDelayedCall:
        """Call *function* in the reactor thread after *seconds*; the caller cancels the call if it is not needed any more."""
        call: IDelayedCall = self._reactor.callLater(seconds, function, *args, **kwargs)
        return call

    def seconds(self) -> float:
        """Return the time of :meth:`call_later`, in seconds."""
        return float(self._reactor.seconds())

    @property
    def vitals(self) -> ExecutorVitals:
        """The state of the executor."""
        now = self._reactor.seconds()
        running = list(self._running)
        seconds = [now - work.started for work in running]
        threads = self.bounds.threads
        blocked = max(0.0, min(seconds)) if len(seconds) >= threads else 0.0
        longest = max(seconds, default=0.0)
        names = tuple(sorted({work.name for work in running if work.name}))
        queued = len(self._queue) + sum(len(owner.waiting) for owner in self._owners.values())
        return ExecutorVitals(
            self.name, threads, len(seconds), queued, max(0.0, longest), blocked, names, self._refused
        )

    # --- in the reactor thread

    def remove(self, work: Work) -> None:
        """Remove *work*, whose Deferred was cancelled, from the queue if no thread has begun with it."""
        if work.owner is not None and work in work.owner.waiting:
            work.owner.waiting.remove(work)
            self._outstanding -= 1
            self._stop_if_unused()
            return
        try:
            self._queue.remove(work)
        except ValueError:
            return
        self._outstanding -= 1
        self._ended(work)
        self._stop_if_unused()

    def _ended(self, work: Work) -> None:
        """Begin the next call of the peer whose call *work* has ended."""
        owner, work.owner = work.owner, None
        if owner is None:
            return
        owner.active -= 1
        if owner.waiting:
            owner.active += 1
            self._enqueue(owner.waiting.pop(0))
        elif not owner.active:
            del self._owners[owner.key]

    def _deliver(self) -> None:
        self._is_delivering = False
        while self._finished:
            work = self._finished.popleft()
            self._outstanding -= 1
            if work.owner is not None:
                self._ended(work)
            if self._users <= 0:
                self._stop_if_unused()
            work.deliver()

    def _stop_if_unused(self) -> None:
        # Only idle threads are joined, so the reactor does not wait for anything that blocks.
        if self._users > 0 or self._outstanding:
            return
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.stop()
        with self._lock:
            self._is_stopping = True
            self._coming += len(self._idle)
            while self._idle:
                self._idle.pop().release()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._is_stopping = False

    # --- in worker threads

    def _run(self) -> None:
        gate = Lock()
        gate.acquire()
        while True:
            with self._lock:
                self._coming -= 1
                work = self._queue.popleft() if self._queue else None
                if work is None:
                    if self._is_stopping:
                        return
                    self._idle.append(gate)
            if work is None:
                gate.acquire()
            else:
                self._perform(work)
                del work

    def _perform_next(self) -> None:
        try:
            work = self._queue.popleft()
        except IndexError:
            return  # the call was cancelled
        self._perform(work)

    def _perform(self, work: Work) -> None:
        work.started = self._reactor.seconds()
        self._running.add(work)
        current.work = work
        work.perform()
        current.work = None
        self._running.discard(work)
        with self._lock:
            self._coming += 1  # before the reactor thread learns of the result: the next call may follow at once
        self._finished.append(work)
        if not self._is_delivering:
            self._is_delivering = True
            self._reactor.callFromThread(self._deliver)


class Share:
    """
    An executor as one peer may use it, see :meth:`Executor.share`. Its calls are bounded together, on all its associations.

    :param executor: the executor.
    :param peer: the name of the peer.
    """

    __slots__ = ("_executor", "_peer")

    def __init__(self, executor: Executor, peer: str) -> None:
        self._executor = executor
        self._peer = peer

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call *function* in a thread when it is the turn of the peer, see :meth:`Executor.run`."""
        executor = self._executor
        if executor.is_full:
            return executor.refuse()
        return executor.run_shared(self._peer, function, args, kwargs)

    def run_admitted(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call *function* in a thread when it is the turn of the peer, see :meth:`Executor.run_admitted`."""
        return self._executor.run_shared(self._peer, function, args, kwargs)


class Executors:
    """
    The executors of a server: one for each purpose, made when it is first used, and released together.

    :param reactor: as for :class:`Executor`.
    :param bounds: bounds that replace the defaults, by the name of the executor.
    :raises ValueError: there is no executor with such a name.
    """

    def __init__(self, reactor: Any, bounds: Mapping[str, Bounds] | None = None) -> None:
        self._reactor = reactor
        self._bounds = {**DEFAULT_BOUNDS, **(bounds or {})}
        unknown = self._bounds.keys() - DEFAULT_BOUNDS.keys()
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))}: executors are {', '.join(DEFAULT_BOUNDS)}")
        self._made: dict[str, Executor] = {}
        self._users = 0

    @cached_property
    def receiving(self) -> Executor:
        """The threads that write and commit the instances that peers send; no other work runs there."""
        return self._make("receiving")

    @cached_property
    def querying(self) -> Executor:
        """The threads that search the index."""
        return self._make("querying")

    @cached_property
    def retrieval(self) -> Executor:
        """The threads that open and read files to be sent."""
        return self._make("retrieval")

    @cached_property
    def decoding(self) -> Executor:
        """The threads that decode long data sets or convert them to another transfer syntax."""
        return self._make("decoding")

    @cached_property
    def passcodes(self) -> Executor:
        """The threads that check passcodes of users."""
        return self._make("passcodes")

    @cached_property
    def worklist(self) -> Executor:
        """The threads that read the files of a worklist."""
        return self._make("worklist")

    @cached_property
    def deletion(self) -> Executor:
        """The threads that delete studies and remove their files."""
        return self._make("deletion")

    @cached_property
    def housekeeping(self) -> Executor:
        """The threads for all other work of an archive with files."""
        return self._make("housekeeping")

    @cached_property
    def monitoring(self) -> Executor:
        """The threads that make metrics."""
        return self._make("monitoring")

    @cached_property
    def records(self) -> Executor:
        """The threads that write records and audit messages."""
        return self._make("records")

    @cached_property
    def forwarding(self) -> Executor:
        """The threads that keep the tasks of forwarding."""
        return self._make("forwarding")

    def _make(self, name: str) -> Executor:
        executor = self._made[name] = Executor(self._reactor, name, self._bounds[name])
        if self._users > 0:
            executor.acquire()
        return executor

    def acquire(self) -> None:
        """Register a user, who needs all executors until :meth:`release`."""
        self._users += 1
        if self._users == 1:
            for executor in self._made.values():
                executor.acquire()

    def release(self) -> None:
        """Unregister a user. Calls that were begun or queued are completed, and their results are delivered."""
        self._users -= 1
        if self._users == 0:
            for executor in self._made.values():
                executor.release()

    def vitals(self) -> list[ExecutorVitals]:
        """Return the state of each executor that was used."""
        return [executor.vitals for executor in self._made.values()]
