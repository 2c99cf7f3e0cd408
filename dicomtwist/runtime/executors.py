"""
Executors: a few threads and a bounded queue for each purpose, for everything that blocks.

An executor is a bulkhead. A worklist on a network drive that hangs, or a crowd of users whose passcodes are checked, keeps the
threads of its own executor busy and no others. The reactor's own pool is left to DNS.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from queue import Empty, SimpleQueue
from threading import Thread, local
from typing import Any, Final, ParamSpec, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from dicomtwist.errors import ExecutorFull

__all__ = ["Bounds", "Executor", "ExecutorVitals", "Executors", "SideThread", "check_wanted", "is_wanted"]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bounds:
    """
    The bounds of one executor.

    :ivar threads: the most threads that it has.
    :ivar max_queued: the most calls that wait for one of them; one more fails with :class:`ExecutorFull`.
    :raises ValueError: there would be no thread, or the queue is below 0.
    """

    threads: int
    max_queued: int

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads = {self.threads}: an executor has one thread at least")
        if self.max_queued < 0:
            raise ValueError(f"max_queued = {self.max_queued}: a queue holds 0 calls at least")


#: Instances that peers send are written and committed. Nothing else uses this executor. Each of 1,000 associations may have
#: some pieces of work in the queue.
RECEIVING: Final = Bounds(threads=8, max_queued=4096)
#: The index is searched for C-FIND, C-GET and C-MOVE.
QUERYING: Final = Bounds(threads=4, max_queued=1024)
#: Files are opened and read that are sent.
RETRIEVAL: Final = Bounds(threads=8, max_queued=4096)
#: Long data sets are decoded, or converted to another transfer syntax. pydicom holds the interpreter meanwhile, so that more
#: threads would be no faster.
DECODING: Final = Bounds(threads=2, max_queued=1024)
#: Passcodes of users are checked. Each check takes up to ``access.users.MAX_SCRYPT_MEMORY``.
PASSCODES: Final = Bounds(threads=4, max_queued=256)
#: Files of a worklist are read, and answers made of them.
WORKLIST: Final = Bounds(threads=2, max_queued=1024)
#: Everything else that an archive does with files: storage commitment, performed procedure steps, an import, a reload.
HOUSEKEEPING: Final = Bounds(threads=4, max_queued=1024)

DEFAULT_BOUNDS: Final[Mapping[str, Bounds]] = {
    "receiving": RECEIVING,
    "querying": QUERYING,
    "retrieval": RETRIEVAL,
    "decoding": DECODING,
    "passcodes": PASSCODES,
    "worklist": WORKLIST,
    "housekeeping": HOUSEKEEPING,
}


@dataclass(frozen=True, slots=True)
class ExecutorVitals:
    """
    How an executor is doing.

    :ivar name: its name, which is its purpose.
    :ivar threads: the most threads that it has.
    :ivar busy: the threads that are at work.
    :ivar queued: the calls that wait for a thread.
    :ivar longest: how long the longest call under way has been running, in seconds; 0 if there is none.
    :ivar blocked: for how many seconds all threads have been busy with the calls that they have now; 0 if one of them is idle.
    """

    name: str
    threads: int
    busy: int
    queued: int
    longest: float
    blocked: float


class _Current(local):
    work: _Work | None = None


_current = _Current()


def is_wanted() -> bool:
    """
    Return whether somebody still waits for the call that this thread is at; ``True`` outside of executors.

    Long work asks between its steps, and stops if the peer that it was for has cancelled or is gone.
    """
    work = _current.work
    return work is None or not work.is_cancelled


def check_wanted() -> None:
    """
    Do nothing if the call that this thread is at is still wanted, see :func:`is_wanted`.

    :raises CancelledError: it is not.
    """
    if not is_wanted():
        raise CancelledError


class _Work:
    """
    One call.

    :ivar started: when a thread began with it, in seconds of the reactor.
    :ivar is_cancelled: whether its result is not wanted any more.
    """

    __slots__ = (
        *("arguments", "executor", "function", "is_cancelled", "keywords"),
        *("outcome", "result", "started", "succeeded"),
    )

    def __init__(
        self, executor: Executor, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        self.executor = executor
        self.function: Callable[..., Any] | None = function
        self.arguments = arguments
        self.keywords = keywords
        self.is_cancelled = self.succeeded = False
        self.started = 0.0
        self.outcome: Any = None
        self.result: Deferred[Any] = Deferred(self._cancel)

    def _cancel(self, _: Deferred[Any]) -> None:
        self.is_cancelled = True
        self.executor.remove(self)

    def perform(self) -> None:
        """Make the call, in a worker thread."""
        function, arguments, keywords = self.function, self.arguments, self.keywords
        assert function is not None
        # The arguments, such as a megabyte of pixels, are not kept until the result is delivered.
        self.function, self.arguments, self.keywords = None, (), {}
        try:
            self.outcome = function(*arguments, **keywords)
            self.succeeded = True
        except BaseException:
            self.outcome = Failure()

    def deliver(self) -> None:
        """Fire the Deferred, in the reactor thread."""
        if self.is_cancelled:
            return
        if self.succeeded:
            self.result.callback(self.outcome)
        else:
            self.result.errback(self.outcome)


class Executor:
    """
    A few threads with a bounded queue, for one purpose. The threads are there while somebody uses it.

    Each user calls :meth:`acquire`, and :meth:`release` when it is done; after the last release the threads end. So no thread
    is left behind, and nobody has to remember to stop the executor.

    It does not use Twisted's ThreadPool, because every instance that is stored takes a round trip to a thread: 50 microseconds
    with the queue that C has for it, 80 with the ThreadPool.

    :param reactor: where the results come back. One with ``make_thread_pool(minimum, maximum, name)``, as that of
        :mod:`dicomtwist.testing`, brings threads of its own.
    :param name: its purpose, after which its threads are named.
    :param bounds: how many threads, and how long the queue.
    """

    def __init__(self, reactor: Any, name: str, bounds: Bounds) -> None:
        self.name = name
        self.bounds = bounds
        self._reactor = reactor
        self._pool: Any = None
        self._threads: list[Thread] = []
        self._users = 0
        # Counted in the reactor thread: calls that wait or are under way.
        self._outstanding = 0
        # For each call in the deque there is one wake-up in the SimpleQueue, which wakes one thread and takes no lock of
        # Python's own. A call that is cancelled can be taken out of the deque.
        self._queue: deque[_Work] = deque()
        self._wake_ups: SimpleQueue[bool] = SimpleQueue()
        self._running: set[_Work] = set()
        # Calls that have finished since the reactor thread looked. It is woken once for all of them.
        self._finished: deque[_Work] = deque()
        self._is_delivering = False

    def acquire(self) -> None:
        """Say that the executor is needed until :meth:`release` is called."""
        self._users += 1

    def release(self) -> None:
        """Say that this user needs it no longer; work under way is finished, its results are still delivered."""
        self._users -= 1
        self._stop_if_unused()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """
        Call *function* in a thread.

        :returns: a Deferred that fires with what it returns, or fails with what it raises, or at once with
            :class:`ExecutorFull`. Cancelling it takes a call that has not begun out of the queue; one that has begun learns of
            it from :func:`is_wanted`, and is not waited for.
        """
        if self._outstanding >= self.bounds.threads + self.bounds.max_queued:
            return fail(ExecutorFull(self.name, self.bounds.max_queued))
        return self.run_admitted(function, *args, **kwargs)

    def run_admitted(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """
        Call *function* in a thread as :meth:`run` does, however much waits already.

        It is for the further steps of what was admitted by :meth:`run`, and for cleaning up after it. The caller bounds their
        number, as by having one at a time for each association.
        """
        self._outstanding += 1
        work = _Work(self, function, args, kwargs)
        self._queue.append(work)
        if self._pool is not None:
            self._pool.callInThread(self._perform_next)
        elif self._threads:
            self._wake_ups.put(True)
            if len(self._threads) < self._outstanding and len(self._threads) < self.bounds.threads:
                self._add_thread()
        else:
            self._start()
        return work.result

    def call_in_reactor(self, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call *function* in the reactor thread; from any thread, for what another than the one that took it has finished."""
        self._reactor.callFromThread(function, *args, **kwargs)

    def call_later(self, seconds: float, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> IDelayedCall:
        """Call *function* in the reactor thread after so many seconds; the caller sees to it that the call is cancelled."""
        call: IDelayedCall = self._reactor.callLater(seconds, function, *args, **kwargs)
        return call

    @property
    def vitals(self) -> ExecutorVitals:
        """How it is doing."""
        now = self._reactor.seconds()
        seconds = [now - work.started for work in list(self._running)]
        threads = self.bounds.threads
        blocked = max(0.0, min(seconds)) if len(seconds) >= threads else 0.0
        longest = max(seconds, default=0.0)
        return ExecutorVitals(self.name, threads, len(seconds), len(self._queue), max(0.0, longest), blocked)

    # --- in the reactor thread

    def remove(self, work: _Work) -> None:
        """Take *work*, whose Deferred was cancelled, out of the queue if no thread has begun with it."""
        try:
            self._queue.remove(work)
        except ValueError:
            return
        try:
            self._wake_ups.get_nowait()
        except Empty:
            pass  # a thread is awake already and will find nothing to do
        self._outstanding -= 1
        self._stop_if_unused()

    def _start(self) -> None:
        make_thread_pool = getattr(self._reactor, "make_thread_pool", None)
        if make_thread_pool is not None:
            self._pool = make_thread_pool(0, self.bounds.threads, f"dicomtwist-{self.name}")
            self._pool.start()
            self._pool.callInThread(self._perform_next)
        else:
            self._wake_ups.put(True)
            self._add_thread()

    def _add_thread(self) -> None:
        thread = Thread(target=self._run, name=f"dicomtwist-{self.name}-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _deliver(self) -> None:
        self._is_delivering = False
        while self._finished:
            work = self._finished.popleft()
            self._outstanding -= 1
            self._stop_if_unused()
            work.deliver()

    def _stop_if_unused(self) -> None:
        # Only idle threads are joined, so the reactor does not wait for anything that blocks.
        if self._users > 0 or self._outstanding:
            return
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.stop()
        for _ in self._threads:
            self._wake_ups.put(False)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    # --- in worker threads

    def _run(self) -> None:
        wait = self._wake_ups.get
        while wait():
            self._perform_next()

    def _perform_next(self) -> None:
        try:
            work = self._queue.popleft()
        except IndexError:
            return  # it was cancelled just now
        work.started = self._reactor.seconds()
        self._running.add(work)
        _current.work = work
        work.perform()
        _current.work = None
        self._running.discard(work)
        self._finished.append(work)
        if not self._is_delivering:
            self._is_delivering = True
            self._reactor.callFromThread(self._deliver)


class SideThread:
    """
    One thread that works beside a worker thread, which then waits for it: two syncs at once take as long as the longer one.

    :param name: for the thread's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: Thread | None = None

    def begin(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Callable[[], None]:
        """
        Have the thread call *function*.

        :returns: waits until that is done, and raises what it raised.
        """
        done: SimpleQueue[BaseException | None] = SimpleQueue()

        def call() -> None:
            try:
                function(*args, **kwargs)
            except BaseException as error:
                done.put(error)
            else:
                done.put(None)

        def wait() -> None:
            error = done.get()
            if error is not None:
                raise error

        self._calls.put(call)
        if self._thread is None:
            self._thread = Thread(target=self._run, name=f"dicomtwist-{self._name}", daemon=True)
            self._thread.start()
        return wait

    def stop(self) -> None:
        """End the thread, after what it has begun; idempotent."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        get = self._calls.get
        while (call := get()) is not None:
            call()
            del call


class Executors:
    """
    The executors of a server: one for each purpose, made when it is first used, and released together.

    :param reactor: as of :class:`Executor`.
    :param bounds: the bounds of those that are not to have the default ones, by their names.
    :raises ValueError: there is no executor of such a name.
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
        """Where instances that peers send are written and committed; nothing else uses it."""
        return self._make("receiving")

    @cached_property
    def querying(self) -> Executor:
        """Where the index is searched."""
        return self._make("querying")

    @cached_property
    def retrieval(self) -> Executor:
        """Where files are opened and read that are sent."""
        return self._make("retrieval")

    @cached_property
    def decoding(self) -> Executor:
        """Where long data sets are decoded, or converted to another transfer syntax."""
        return self._make("decoding")

    @cached_property
    def passcodes(self) -> Executor:
        """Where passcodes of users are checked."""
        return self._make("passcodes")

    @cached_property
    def worklist(self) -> Executor:
        """Where the files of a worklist are read."""
        return self._make("worklist")

    @cached_property
    def housekeeping(self) -> Executor:
        """Where an archive does everything else with files."""
        return self._make("housekeeping")

    def _make(self, name: str) -> Executor:
        executor = self._made[name] = Executor(self._reactor, name, self._bounds[name])
        if self._users > 0:
            executor.acquire()
        return executor

    def acquire(self) -> None:
        """Say that all of them are needed until :meth:`release` is called."""
        self._users += 1
        if self._users == 1:
            for executor in self._made.values():
                executor.acquire()

    def release(self) -> None:
        """Say that this user needs them no longer; work under way is finished, its results are still delivered."""
        self._users -= 1
        if self._users == 0:
            for executor in self._made.values():
                executor.release()

    def vitals(self) -> list[ExecutorVitals]:
        """Return how each of those that were used is doing."""
        return [executor.vitals for executor in self._made.values()]
