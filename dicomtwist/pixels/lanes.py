"""
The jobs that wait for a process, in one lane for each peer: a peer that asks for a thousand images makes no other one wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["Lanes"]

T = TypeVar("T")


class _Lane(Generic[T]):
    """
    The jobs of one peer.

    :ivar waiting: the jobs that wait, in their order.
    :ivar active: the number of jobs that are being done.
    """

    __slots__ = ("active", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[T] = deque()
        self.active = 0


class Lanes(Generic[T]):
    """
    Jobs by their peers.

    The next job is of the peer that has the fewest jobs being done, among equals of the one whose turn is longest ago. A peer
    alone has all *places*; there is one more place for a peer that has no job being done.

    :param places: the number of jobs that are done at once.
    :param maximum: the most jobs that wait.
    """

    def __init__(self, places: int, maximum: int) -> None:
        self._places, self._maximum = places, maximum
        self._lanes: dict[str, _Lane[T]] = {}
        self._active = 0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, peer: str, job: T) -> T | None:
        """
        Let *job* wait.

        :returns: the job that has no room: none, *job* itself, or the last one of the peer with the most jobs that wait.
        """
        dropped: T | None = None
        own = self._lanes.get(peer)
        if self._waiting >= self._maximum:
            longest = max(self._lanes.values(), key=lambda lane: len(lane.waiting), default=None)
            if longest is None or len(longest.waiting) <= (len(own.waiting) if own is not None else 0) + 1:
                return job
            dropped = longest.waiting.pop()
            self._waiting -= 1
        if own is None:
            own = self._lanes[peer] = _Lane()
        own.waiting.append(job)
        self._waiting += 1
        return dropped

    def remove(self, peer: str, job: T) -> bool:
        """Return whether *job* waited; then it does not wait any more."""
        lane = self._lanes.get(peer)
        if lane is None or job not in lane.waiting:
            return False
        lane.waiting.remove(job)
        self._waiting -= 1
        self._forget(peer, lane)
        return True

    def next(self) -> T | None:
        """Return the job that is to be done next; ``None`` if none waits, or there is no place. :meth:`done` ends it."""
        peer = min(
            (name for name, lane in self._lanes.items() if lane.waiting),
            key=lambda name: self._lanes[name].active,
            default=None,
        )
        if peer is None:
            return None
        lane = self._lanes[peer]
        if self._active >= self._places + (not lane.active):
            return None
        # Behind the others, whose turn is before its next one.
        del self._lanes[peer]
        self._lanes[peer] = lane
        lane.active += 1
        self._active += 1
        self._waiting -= 1
        return lane.waiting.popleft()

    def done(self, peer: str) -> None:
        """Note that a job of *peer* has been done."""
        lane = self._lanes[peer]
        lane.active -= 1
        self._active -= 1
        self._forget(peer, lane)

    def clear(self) -> Iterator[T]:
        """Remove and yield all jobs that wait."""
        for peer, lane in list(self._lanes.items()):
            while lane.waiting:
                self._waiting -= 1
                yield lane.waiting.popleft()
            self._forget(peer, lane)

    def _forget(self, peer: str, lane: _Lane[T]) -> None:
        if not lane.waiting and not lane.active:
            del self._lanes[peer]
