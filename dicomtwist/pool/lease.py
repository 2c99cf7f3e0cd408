"""
The associations of an :class:`~dicomtwist.pool.AssociationPool`: their leases, and the requests of each lease.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Protocol

from dicomtwist import evt
from dicomtwist.dimse.messages import (
    CEchoRQ,
    CFindRQ,
    CGetRQ,
    CMoveRQ,
    CStoreRQ,
    NGetRQ,
    Request,
    Response,
)
from dicomtwist.dimse.status import StatusCategory, category

if TYPE_CHECKING:
    from dicomtwist.association.association import Association

#: The requests that change nothing if they are sent twice. The others of PS3.7 10 create, change, act or report.
REPEATABLE: Final[tuple[type[Request], ...]] = (CEchoRQ, CStoreRQ, CFindRQ, CGetRQ, CMoveRQ, NGetRQ)

#: The lease in which the running code uses an association. A coroutine keeps it across its waits.
current_lease: ContextVar[Lease | None] = ContextVar("dicomtwist_current_lease", default=None)


def present_leases() -> tuple[Lease, ...]:
    """Return the leases that the running code is inside of, the innermost one first; those that have ended do not count."""
    innermost = current_lease.get()
    if innermost is None:
        return ()
    return tuple(lease for lease in (innermost, *innermost.inside) if lease in lease.slot.leases)


class Lease:
    """
    The use of an association by one caller.

    :param inside: the leases that the caller is inside of.

    :ivar slot: the association.
    :ivar waiting: the operations from inside this lease that wait for a place, in any pool.
    :ivar since: when it began, in seconds of the clock.
    :ivar unanswered: the Message IDs of its requests that wait for their final response.
    :ivar is_answered: whether a response to any of its requests arrived, pending ones included.
    :ivar is_repeatable: whether all of its requests may be sent again.
    """

    __slots__ = ("inside", "is_answered", "is_repeatable", "since", "slot", "unanswered", "waiting")

    def __init__(self, slot: Slot, since: float, inside: tuple[Lease, ...]) -> None:
        self.slot = slot
        self.since = since
        self.inside = inside
        self.waiting: list[Waiting] = []
        self.unanswered: set[int] = set()
        self.is_answered = False
        self.is_repeatable = True


class Waiting(Protocol):
    """
    An operation that waits for a place.

    :ivar exclusive: whether it needs an association without other leases.
    :ivar pool: the pool whose place it waits for.
    """

    exclusive: bool
    pool: Places


class Places(Protocol):
    """A pool, as operations know it that wait for a place."""

    @property
    def leases(self) -> Iterable[Lease]:
        """The leases of its associations."""

    def is_blocked(self, waiter: Waiting, is_stuck: Callable[[Lease], bool]) -> bool:
        """Whether no place comes free for *waiter*, if the leases never end for which *is_stuck* is true."""


def would_deadlock(waiter: Waiting) -> bool:
    """
    Whether *waiter* would wait for itself: each place that it could get is held by code that waits for a place as well, and all
    of these wait for each other. They may belong to several pools.
    """
    stuck = {waiter}
    found = [waiter]
    while found:
        for lease in found.pop().pool.leases:
            new = [other for other in lease.waiting if other not in stuck]
            stuck.update(new)
            found += new

    def is_stuck(lease: Lease) -> bool:
        return not stuck.isdisjoint(lease.waiting)  # it ends if none of the operations inside of it is stuck

    while True:
        free = {one for one in stuck if not one.pool.is_blocked(one, is_stuck)}
        if waiter in free:
            return False
        if not free:
            return True
        stuck -= free


class Slot:
    """
    A pooled association.

    :param association: the association, which is established.
    :param now: the time, in seconds of the clock.

    :ivar leases: the current leases.
    :ivar exclusive: whether its only lease excludes other ones.
    :ivar retired: whether it is not lent any more.
    :ivar idle_since: when the last lease ended, in seconds of the clock.
    """

    def __init__(self, association: Association, now: float) -> None:
        self.association = association
        self.leases: set[Lease] = set()
        self.exclusive = False
        self.retired = False
        self.idle_since = now
        self._asked: dict[int, tuple[Lease, ...]] = {}
        most = association.settings.maximum_operations
        # This side may invoke as many operations as the acceptor performs at once; 0 is no limit (PS3.7 D.3.3.3).
        self._capacity = min(association.acceptor.asynchronous_operations[1] or most, most)
        association.bind(evt.EVT_DIMSE_SENT, self._sent)
        association.bind(evt.EVT_DIMSE_RECV, self._received)

    @property
    def is_usable(self) -> bool:
        """Whether requests can be sent: it has not ended, and its release was not requested."""
        return self.association.is_established and self.association.protocol.may_send_data

    @property
    def room(self) -> int:
        """The number of further leases that it has places for."""
        if self.retired or self.exclusive or not self.is_usable:
            return 0
        return self._capacity - len(self.leases)

    @property
    def is_open(self) -> bool:
        """Whether the peer counts the association: it is established, and not being released."""
        association = self.association
        return association.is_established and not (self.retired and not self.leases and not association.exchange.asking)

    def lend(self, now: float, inside: tuple[Lease, ...], *, exclusive: bool) -> Lease:
        """
        Return a new lease; the caller has checked :attr:`room`.

        :param inside: the leases that its holder is inside of.
        """
        lease = Lease(self, now, inside)
        self.leases.add(lease)
        self.exclusive = exclusive
        return lease

    def leave(self, lease: Lease, now: float) -> None:
        """
        End a lease.

        A caller that leaves unanswered requests retires the association.
        """
        self.leases.discard(lease)
        self.exclusive = False
        if lease.unanswered or (not self.leases and self.association.exchange.asking):
            self.retired = True
        if not self.leases:
            self.idle_since = now

    def _sent(self, event: evt.Event) -> None:
        request = event.message
        if not isinstance(request, Request):
            return
        lease = current_lease.get()
        # A request that a callback sends cannot be attributed to a lease, so it counts for all of them: one operation
        # too few is repeated rather than one too many.
        askers = (lease,) if lease in self.leases else tuple(self.leases)
        self._asked[request.message_id] = askers
        for lease in askers:
            lease.unanswered.add(request.message_id)
            if not isinstance(request, REPEATABLE):
                lease.is_repeatable = False

    def _received(self, event: evt.Event) -> None:
        response = event.message
        if not isinstance(response, Response):
            return
        message_id = response.message_id_being_responded_to
        is_final = category(response.status) is not StatusCategory.PENDING
        askers = self._asked.pop(message_id, ()) if is_final else self._asked.get(message_id, ())
        for lease in askers:
            lease.is_answered = True
            if is_final:
                lease.unanswered.discard(message_id)
