"""
Turns: calls that run one at a time, in which the peers take turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, succeed

__all__ = ["Turns"]

P = ParamSpec("P")
T = TypeVar("T")


class Turns:
    """
    A lock whose holders are calls of peers. After the call of one peer the next peer has its turn, however many calls the first
    one has waiting.
    """

    def __init__(self) -> None:
        # The calls that wait, by peer; the peer whose turn is next comes first.
        self._waiting: dict[str, deque[Deferred[None]]] = {}
        self._is_held = False
        self._idle: list[Deferred[None]] = []

    def run(self, peer: str, function: Callable[P, Deferred[T]], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """
        Call *function* when it is the turn of *peer*, and give the turn away when its Deferred has fired.

        :returns: a Deferred with the result of *function*.
        """
        turn: Deferred[None] = Deferred()
        result: Deferred[T] = turn.addCallback(lambda _: function(*args, **kwargs))
        result.addBoth(self._ended)
        if self._is_held:
            self._waiting.setdefault(peer, deque()).append(turn)
        else:
            self._is_held = True
            turn.callback(None)
        return result

    def idle(self) -> Deferred[None]:
        """Return a Deferred that fires when no call runs or waits."""
        if not self._is_held:
            return succeed(None)
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        return idle

    def _ended(self, result: Any) -> Any:
        if self._waiting:
            peer, turns = next(iter(self._waiting.items()))
            del self._waiting[peer]
            turn = turns.popleft()
            if turns:
                self._waiting[peer] = turns  # behind the others
            turn.callback(None)
            return result
        self._is_held = False
        idle, self._idle = self._idle, []
        for waiting in idle:
            waiting.callback(None)
        return result
