"""
The asynchronous operations window (PS3.7 D.3.3.3): the number of requests that may wait for a response at once.
"""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure


class Window:
    """
    The places for outstanding operations; calls wait in order if all are taken.

    :ivar limit: the number of places.
    :ivar used: the number of places that are taken.
    """

    __slots__ = ("_failure", "_queue", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._queue: deque[Deferred[None]] | None = None  # an idle association does not pay for it
        self._failure: Failure | None = None

    @property
    def _waiting(self) -> deque[Deferred[None]]:
        if self._queue is None:
            self._queue = deque()
        return self._queue

    @property
    def waiting(self) -> int:
        """The number of operations that have a place or wait for one."""
        return self.used + len(self._queue or ())

    def enter(self) -> Deferred[None]:
        """Return a Deferred that fires when the caller has a place; cancelling it gives up the wait."""
        if self._failure is not None:
            return fail(self._failure)
        if self.used < self.limit:
            self.used += 1
            return succeed(None)
        waiting: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        return waiting

    @property
    def is_waited_for(self) -> bool:
        """Whether a call waits for a place."""
        return bool(self._queue)

    @property
    def is_taken(self) -> bool:
        """Whether the next call would have to wait."""
        return self.used >= self.limit

    def refuse(self, waiting: Deferred[None], reason: Failure) -> None:
        """Fail a call that waits."""
        self._waiting.remove(waiting)
        waiting.errback(reason)

    def refuse_all(self, reason: Failure) -> None:
        """Fail all calls that wait; later ones may wait again."""
        for waiting in list(self._queue or ()):
            if not waiting.called:
                self.refuse(waiting, reason)

    def leave(self) -> None:
        """Give back a place."""
        if self._queue and self.used <= self.limit:
            self._queue.popleft().callback(None)
        else:
            self.used -= 1

    def keep(self) -> None:
        """Keep a place that is about to be given back, until :meth:`leave` is called once more."""
        self.used += 1

    def fail(self, reason: Failure) -> None:
        """Fail all calls that wait, and all later ones."""
        self._failure = reason
        while self._queue:  # an errback may cancel others that wait
            self._queue.popleft().errback(reason)
