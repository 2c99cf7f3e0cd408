"""
The wait for the associations of a server that stops.

A handler may stop the server of its own association, for example one of N-ACTION, and wait for that. Its association does not
end before the handler has, so the stop does not wait for it. The handlers of several associations may do this at once, and stop
several servers.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import Any
from weakref import WeakSet

from twisted.internet.defer import Deferred, DeferredList

from dicomtwist.association.association import Association
from dicomtwist.exchange import nesting
from dicomtwist.scp.performed import Performance


class Stop:
    """
    A call that waits until associations have ended.

    :param associations: the associations.
    :param inside: the operations that the caller is inside of.
    :param clock: the reactor.

    :ivar number: the position of the call in the order of all calls.
    :ivar ended: fires when all of *associations* have ended.
    """

    _numbers = count()

    def __init__(self, associations: Iterable[Association], inside: nesting.Frames, clock: Any) -> None:
        self.number = next(self._numbers)
        self._associations = set(associations)
        self._inside = inside
        self._clock = clock
        self._done: Deferred[None] = Deferred()
        self.ended = DeferredList(
            [association.when_ended().addCallback(self._association_ended) for association in self._associations.copy()]
        )

    def wait(self) -> Deferred[None]:
        """Return a Deferred that fires when no association is left that does not wait for the caller; call it once."""
        _stops.add(self)
        if self._callers():
            # A handler that does not wait for this call has returned by then.
            self._clock.callLater(0, _look)
        elif not self._associations:
            self._fire()
        return self._done

    def _callers(self) -> set[Any]:
        """Return the associations whose handlers, which have not ended, the caller is inside of."""
        performances = [one() for one in self._inside]
        return {one.assoc for one in performances if isinstance(one, Performance) and not one.is_done}

    def _association_ended(self, association: Association) -> None:
        for stop in (self, *_stops):  # the others are about to be called
            stop._associations.discard(association)
        if self in _stops:
            _look()

    def _is_awaited_by(self, association: Association) -> bool:
        """Whether *association* ends behind this call, because its handler waits for it, directly or through other calls."""
        seen: set[Stop] = set()
        found: list[Association] = [association]
        while found:
            one = found.pop()
            for stop in [stop for stop in _stops if stop not in seen and one in stop._callers()]:
                if stop is self:
                    return True
                seen.add(stop)
                found += stop._associations
        return False

    @property
    def is_over(self) -> bool:
        """Whether no association is left."""
        return not self._associations

    @property
    def is_free(self) -> bool:
        """Whether only associations are left that wait for this call."""
        return all(self._is_awaited_by(association) for association in self._associations)

    def _fire(self) -> None:
        if self in _stops:
            _stops.discard(self)
            self._done.callback(None)


#: The calls that wait.
_stops: WeakSet[Stop] = WeakSet()


def _look() -> None:
    """
    Fire the calls that need not wait any more.

    Calls that wait for each other fire together. If one fired before the others were looked at, these would wait until its
    peer ends the association, and the order in the set would decide which one that is.
    """
    free = [stop for stop in _stops if stop.is_free]
    for stop in sorted(free, key=lambda one: one.number):
        stop._fire()
