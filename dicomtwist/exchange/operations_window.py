"""
The asynchronous operations window (PS3.7 D.3.3.3): how many requests wait for an answer at once.
"""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure


class Window:
    """
    A place for each operation that may be outstanding; who finds none waits for one, in order.

    :ivar limit: how many places there are.
    :ivar used: how many are taken.
    """

    __slots__ = ("_failure", "_waiting", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: deque[Deferred[None]] = deque()
        self._failure: Failure | None = None

    @property
    def waiting(self) -> int:
        """How many operations have or wait for a place."""
        return self.used + len(self._waiting)

    def enter(self) -> Deferred[None]:
        """Return a Deferred that fires when there is a place, which is then taken; cancelling gives it up."""
        if self._failure is not None:
            return fail(self._failure)
        if self.used < self.limit:
            self.used += 1
            return succeed(None)
        waiting: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        return waiting

    def leave(self) -> None:
        """Give a place back."""
        if self._waiting and self.used <= self.limit:
            self._waiting.popleft().callback(None)
        else:
            self.used -= 1

    def keep(self) -> None:
        """Keep a place taken that is about to be given back, until :meth:`leave` is called once more."""
        self.used += 1

    def fail(self, reason: Failure) -> None:
        """Fail whoever waits, and whoever comes."""
        self._failure = reason
        while self._waiting:  # who fails may cancel others that wait
            self._waiting.popleft().errback(reason)
