"""
One bounded pool of threads for what blocks: files, fsync, decoding. The reactor's own pool is left to DNS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

P = ParamSpec("P")
T = TypeVar("T")

#: How many threads a pool has at the most, unless told otherwise.
DEFAULT_THREADS = 8


class WorkerThreads:
    """
    A pool of threads that is there while somebody uses it.

    Each user holds it with :meth:`acquire` and lets go with :meth:`release`; with the last one the threads end. So
    nothing is left behind, and nobody has to remember to stop a pool.

    :param reactor: where the results come back. One with ``make_thread_pool(minimum, maximum, name)``, as that of
        :mod:`dicomtwist.testing`, brings a pool of its own.
    :param size: how many threads at the most.
    """

    def __init__(self, reactor: Any, size: int = DEFAULT_THREADS) -> None:
        self._reactor = reactor
        self._size = size
        self._pool: ThreadPool | None = None
        self._users = 0
        self._working = 0

    def acquire(self) -> None:
        """Say that the pool is needed until :meth:`release` is called."""
        self._users += 1

    def release(self) -> None:
        """Say that this user needs it no longer; work under way is finished, its results are still delivered."""
        self._users -= 1
        self._stop_if_unused()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """
        Call *function* in a thread.

        :returns: a Deferred that fires with what it returns, or fails with what it raises. Cancelling it does not stop the
            work, only the waiting for it.
        """
        if self._pool is None:
            make_thread_pool = getattr(self._reactor, "make_thread_pool", ThreadPool)
            self._pool = make_thread_pool(0, self._size, "dicomtwist")
            self._pool.start()
        self._working += 1
        # Two, since the work goes on where the caller's is cancelled, and the pool must not be stopped under it.
        work = cast("Deferred[T]", deferToThreadPool(self._reactor, self._pool, function, *args, **kwargs))
        result: Deferred[T] = Deferred()

        def done(outcome: T | Failure) -> None:
            self._working -= 1
            self._stop_if_unused()
            if isinstance(outcome, Failure):
                result.errback(outcome)
            else:
                result.callback(outcome)

        work.addBoth(done)
        return result

    def _stop_if_unused(self) -> None:
        # Only idle threads are joined, so the reactor does not wait for anything that blocks.
        if self._pool is not None and self._users <= 0 and not self._working:
            pool, self._pool = self._pool, None
            pool.stop()
