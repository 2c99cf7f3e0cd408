"""
Senders that tell which studies they begin to send, and which instances a peer has taken, for the audit trail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from twisted.internet.defer import Deferred

from dicomtwist.forwarding.delivery.interfaces import Delivery, Feed, Sender
from dicomtwist.forwarding.delivery.results import Action, Result

__all__ = ["ForwardingTrail", "ObservedSender"]

#: The most studies of one use of a connection that have messages.
MAX_STUDIES: Final = 1000


class ForwardingTrail(Protocol):
    """The audit trail, see :class:`~dicomtwist.audit.trail.Trail`."""

    def forwarding_begins(self, peer: str, study: str, /) -> None:
        """Note that a study is going to be sent to a peer."""

    def forwarded(self, peer: str, studies: Mapping[str, Counter[str]], /) -> None:
        """Note the numbers of instances that a peer has taken, by study and SOP Class UID."""


class ObservedSender:
    """
    A :class:`~dicomtwist.forwarding.delivery.interfaces.Sender` whose work the audit trail knows.

    Instances that are sent over associations as they are stored are noted when their association ends, as those of C-MOVE. This
    object notes the others: those of STOW-RS, and changed ones, whose UIDs the index does not have.

    :param name: the name of the peer.
    :param sender: sends the instances.
    :param trail: returns the trail, ``None`` without one.
    :param is_web: whether the peer speaks DICOMweb.
    """

    def __init__(self, name: str, sender: Sender, trail: Callable[[], ForwardingTrail | None], *, is_web: bool) -> None:
        self.name = name
        self.trail = trail
        self.is_web = is_web
        self._sender = sender
        self.open = sender.open
        self.confirm = sender.confirm
        self.close = sender.close

    async def send(self, feed: Feed) -> None:
        """Send what *feed* has, see :class:`~dicomtwist.forwarding.delivery.interfaces.Sender`."""
        trail = self.trail()
        if trail is None:
            await self._sender.send(feed)
            return
        observed = _ObservedFeed(self.name, feed, trail, is_web=self.is_web)
        try:
            await self._sender.send(observed)
        finally:
            if observed.taken:
                trail.forwarded(self.name, observed.taken)


class _ObservedFeed:
    """
    A feed whose instances are counted.

    :ivar taken: the numbers of instances that the peer has taken, by study and SOP Class UID.
    """

    def __init__(self, name: str, feed: Feed, trail: ForwardingTrail, *, is_web: bool) -> None:
        self.taken: dict[str, Counter[str]] = {}
        self._name = name
        self._feed = feed
        self._trail = trail
        self._is_web = is_web
        self._begun: set[str] = set()

    def ready(self) -> Sequence[Delivery]:
        return self._feed.ready()

    def take(self, wanted: Callable[[Delivery], bool] | None = None) -> Delivery | None:
        delivery = self._feed.take(wanted)
        if delivery is not None and delivery.task.study not in self._begun and len(self._begun) < MAX_STUDIES:
            self._begun.add(delivery.task.study)
            self._trail.forwarding_begins(self._name, delivery.task.study)
        return delivery

    def more(self) -> Deferred[bool]:
        return self._feed.more()

    def put_back(self, delivery: Delivery) -> None:
        self._feed.put_back(delivery)

    def ended(self, delivery: Delivery, result: Result) -> None:
        uids = delivery.uids
        if result.action is Action.DONE and uids is not None:
            if (self._is_web or uids.instance != delivery.task.instance) and delivery.task.study in self._begun:
                self.taken.setdefault(delivery.task.study, Counter())[uids.sop_class] += 1
        self._feed.ended(delivery, result)
