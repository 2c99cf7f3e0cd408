"""
The interfaces of delivery: the queue of tasks, the source of instances, and what sends instances to one peer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred

from dicomtwist.forwarding.delivery.results import Result
from dicomtwist.forwarding.rules import Destination, ForwardRule
from dicomtwist.forwarding.tasks.types import Definition, Due, Outcome, Task

__all__ = ["Delivery", "Feed", "InstanceSource", "Sender", "SentUIDs", "TaskQueue", "when_fired"]


#: The tries after which an instance is sent alone.
SUSPECT: Final = 3


def _nothing() -> None:
    pass


class InstanceSource(Protocol):
    """Instances by their UIDs, such as an archive."""

    def locate(self, study: str, series: str, instance: str, /) -> str | os.PathLike[str]:
        """
        Return the path of the PS3.10 file of an instance. It is called in a thread, and may block.

        :raises LookupError: the source does not have the instance.
        :raises OSError: it cannot be looked for.
        """


class TaskQueue(Protocol):
    """
    Tasks that are kept: a :class:`~dicomtwist.forwarding.tasks.store.TaskStore`. All methods block; each is called in a thread,
    and several may be called at once. Times are in seconds since 1970.
    """

    def claim(
        self,
        destination: Destination,
        limit: int,
        now: float,
        lease: float,
        owner: str,
        rules: Collection[int] | None = None,
    ) -> list[Task]:
        """
        Return due tasks of *destination*, which are *owner*'s from now on.

        :param limit: the most tasks.
        :param lease: the seconds after which others may claim them, unless :meth:`renew` is called.
        :param rules: the numbers of the rules whose tasks are wanted; ``None`` for all.
        """

    def finish(self, outcomes: Sequence[Outcome], /) -> object:
        """Record the outcomes of claimed tasks, in one transaction."""

    def renew(self, owner: str, now: float, lease: float) -> object:
        """Let the leases of *owner* end *lease* seconds after *now*."""

    def release(self, owner: str, /) -> object:
        """Give back the tasks of *owner* that have no outcome."""

    def due(self) -> Sequence[Due]:
        """Return when tasks can be claimed: of each rule and destination that has waiting ones."""

    def definitions(self) -> Mapping[int, Definition]:
        """Return the rules that tasks were made by, and those that are registered, by their numbers."""


@dataclass(frozen=True, slots=True)
class SentUIDs:
    """The UIDs of an instance as it was sent, which a rule may have changed."""

    study: str
    series: str
    sop_class: str
    instance: str


@dataclass(slots=True, eq=False)
class Delivery:
    """
    A task on its way to a peer.

    :ivar task: the task.
    :ivar rule: its rule.
    :ivar done: called with this object and the result at the current peer.
    :ivar left: the further peers of its failover.
    :ivar said: the words of the peers before.
    :ivar may_retry: whether one of these may take it later.
    :ivar was_sent: whether one of them was sent the instance.
    :ivar after: the longest pause that one of them asked for, in seconds.
    :ivar parcel: the instance, open, as the sender of the peer wants it: an
        :class:`~dicomtwist.datasets.outgoing_instance.OutgoingInstance` or an
        :class:`~dicomtwist.dicomweb.client.storing.Outgoing`; ``None`` before.
    :ivar uids: its UIDs as it is sent.
    :ivar size: the size of its file in bytes.
    :ivar held: the bytes of it that are in memory.
    :ivar close: closes the parcel, if it is not sent.
    """

    task: Task
    rule: ForwardRule
    done: Callable[[Delivery, Result], None]
    left: tuple[str, ...] = ()
    said: str = ""
    may_retry: bool = False
    was_sent: bool = False
    after: float = 0.0
    parcel: Any = None
    uids: SentUIDs | None = None
    size: int = 0
    held: int = 0
    close: Callable[[], None] = field(default=_nothing)

    @property
    def is_suspect(self) -> bool:
        """Whether it failed before, so that it may be what ends connections: nothing else is sent together with it."""
        return self.task.tries >= SUSPECT


class Feed(Protocol):
    """The instances for one peer, from which senders take."""

    def ready(self) -> Sequence[Delivery]:
        """Return the open instances, which the caller does not change."""

    def take(self, wanted: Callable[[Delivery], bool] | None = None) -> Delivery | None:
        """Return the first open instance, of those that are *wanted*; ``None`` if there is none."""

    def more(self) -> Deferred[bool]:
        """Return a Deferred that fires with whether :meth:`take` may have another one, or with ``False`` to end."""

    def put_back(self, delivery: Delivery) -> None:
        """Put back an instance that was taken and not sent."""

    def ended(self, delivery: Delivery, result: Result) -> None:
        """Note the result of an instance."""


class Sender(Protocol):
    """Sends instances to one peer. One feed may be sent several times at once, up to the associations of the peer."""

    def open(self, deliveries: Sequence[Delivery]) -> Sequence[Result | None]:
        """
        Open instances for sending, in a thread. It blocks.

        :returns: for each a failure, or ``None``; fewer if enough bytes are in memory.
        """

    async def send(self, feed: Feed) -> None:
        """
        Send what *feed* has until it has no more for some time.

        :raises Exception: there is no connection. Every instance that was taken has been put back or has ended.
        """

    async def confirm(self, deliveries: Sequence[Delivery], how: str) -> Sequence[Result]:
        """
        Ask the peer whether it has instances.

        :param how: ``"commit"`` or ``"query"``.
        """

    async def close(self, grace: float) -> None:
        """Close all connections within *grace* seconds."""


def when_fired(deferred: Deferred[Any]) -> Deferred[None]:
    """Return a Deferred that fires when *deferred* does, and leaves its result alone."""
    fired: Deferred[None] = Deferred()

    def pass_on(result: Any) -> Any:
        fired.callback(None)
        return result

    deferred.addBoth(pass_on)
    return fired
