"""
The lane of one destination: what is claimed for it, at which of its peers, and what follows from the results.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from dicomtwist.forwarding.delivery.interfaces import Delivery
from dicomtwist.forwarding.delivery.peer import MAX_IN_HAND, Peer
from dicomtwist.forwarding.delivery.rate import wait_for_hours
from dicomtwist.forwarding.delivery.results import Action, Result
from dicomtwist.forwarding.rules import Destination, ForwardRule
from dicomtwist.forwarding.tasks.types import Outcome, Task, TaskState

__all__ = ["Lane", "LaneHost"]

#: The room at a peer from which on more is claimed, unless it has nothing in hand: a claim of few costs as much as one of many.
ENOUGH_ROOM: Final = MAX_IN_HAND // 2
#: The longest time without a look at hours and breakers, in seconds: the clock may be set.
LONGEST_WAIT: Final = 60.0
#: The delay before a task is claimed again whose instance is being sent in an earlier copy, in seconds.
OVERTAKE_AGAIN: Final = 1.0
#: The delay after a claim that failed, in seconds.
CLAIM_AGAIN: Final = 2.0


class LaneHost(Protocol):
    """The forwarder, as its lanes know it."""

    reactor: Any

    @property
    def may_claim(self) -> bool:
        """Whether tasks may be claimed."""

    @property
    def rules(self) -> Mapping[int, ForwardRule]:
        """The rules by number, as far as they are known."""

    def now(self) -> float:
        """Return the time in seconds since 1970."""

    def peer(self, name: str, /) -> Peer | None:
        """Return a peer, or ``None`` if there is none of that name."""

    def claim(self, destination: Destination, limit: int, rules: Collection[int], /) -> Deferred[list[Task]]:
        """Claim tasks."""

    def look_soon(self) -> None:
        """Ask the queue again when tasks are due."""

    def finished(self, outcome: Outcome, /) -> None:
        """Record an outcome."""

    def delay(self, tries: int, /) -> float:
        """Return the seconds before the next try."""


class Lane:
    """
    The tasks of one destination.

    :param host: the forwarder.
    :param destination: the peers in the order of failover.

    :ivar due: when tasks can be claimed, by rule.
    """

    log = Logger()

    def __init__(self, host: LaneHost, destination: Destination) -> None:
        self.destination = destination
        self.due: dict[int, float] = {}
        self._host = host
        self._claiming: Deferred[None] | None = None
        self._timer: Any = None
        self._not_before = 0.0
        #: The numbers of the tasks that were given to a peer and have not ended.
        self._under_way: set[int] = set()

    def stop(self) -> None:
        """Claim nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def take_due(self, due: Mapping[int, float]) -> None:
        """Take what a look at the queue has found."""
        self.due = dict(due)
        self.advance()

    def advance(self) -> None:
        """Claim tasks if any are due and a peer has room; otherwise wait until that may be so."""
        if self._claiming is not None or not self.due or not self._host.may_claim:
            return
        now = self._host.now()
        waits: list[float] = []
        rules = self._open_rules(now, waits)
        chosen = self._choose(waits) if rules else None
        if chosen is not None:
            peer, room = chosen
            if room < ENOUGH_ROOM and peer.in_hand and not peer.breaker.failures:
                return  # the peer calls when there is more
            wait = self._not_before - self._host.reactor.seconds()
            if wait > 0:
                waits.append(wait)
            elif (some := self._together(peer, rules, room)) is not None:
                self._claiming = Deferred.fromCoroutine(self._claim(peer, *some))
                if self._claiming.called:
                    self._claiming = None
                return
        if waits:
            self._wake_in(min(waits))

    def _open_rules(self, now: float, waits: list[float]) -> dict[int, ForwardRule]:
        """Return the rules that have due tasks and may send now; add when others may to *waits*."""
        found = {}
        for number, at in self.due.items():
            rule = self._host.rules.get(number)
            if rule is None:
                continue
            wait = max(at - now, wait_for_hours(rule.hours, now))
            if wait > 0:
                waits.append(wait)
            else:
                found[number] = rule
        return found

    def _choose(self, waits: list[float]) -> tuple[Peer, int] | None:
        """Return the first peer that can be used, and how many instances it takes."""
        for name in self.destination:
            peer = self._host.peer(name)
            if peer is None:
                continue
            wait = peer.wait()
            if wait is not None:
                waits.append(wait)
                continue
            room = peer.room()
            if room or not peer.breaker.failures:
                return peer, room
            # An attempt is being made; the next peer is used meanwhile.
        return None

    def _together(self, peer: Peer, rules: Mapping[int, ForwardRule], room: int) -> tuple[int, list[int]] | None:
        """Return how many tasks of which rules to claim: of those with a rate few, and of one rule at a time."""
        free = [number for number, rule in rules.items() if not rule.rate]
        if free and room:
            return room, free
        for number, rule in rules.items():
            if rule.rate and (some := min(room, peer.room_for_rule(rule.name))):
                return some, [number]
        return None

    async def _claim(self, peer: Peer, limit: int, rules: list[int]) -> None:
        known = self._host.rules
        for number in rules:
            # A rule that becomes due during the claim is noted again.
            self.due.pop(number, None)
        try:
            tasks = await self._host.claim(self.destination, limit, rules)
        except Exception as error:
            self.log.error("tasks of {peer} cannot be claimed: {why}", peer=peer.name, why=str(error))
            self._not_before = self._host.reactor.seconds() + CLAIM_AGAIN
            self.due.update(dict.fromkeys(rules, 0.0))
            tasks = []
        else:
            if len(tasks) >= limit:
                self.due.update(dict.fromkeys(rules, 0.0))
            else:
                self._host.look_soon()
        self._claiming = None
        if tasks:
            left = self.destination[self.destination.index(peer.name) + 1 :]
            # The forwarder may have connected to its peers again meanwhile; a former one gives them back.
            peer = self._host.peer(peer.name) or peer
            fresh = [task for task in tasks if not self._is_under_way(task)]
            self._under_way.update(task.id for task in fresh)
            peer.put([Delivery(task, known[task.rule], self._done, left) for task in fresh])
        self.advance()

    def _is_under_way(self, task: Task) -> bool:
        """
        Return whether an earlier copy of the instance is being sent; then let the task wait until that has ended.

        The two would overtake each other, and the peer would be left with the earlier one.
        """
        if task.id not in self._under_way:
            return False
        at = self._host.now() + OVERTAKE_AGAIN
        self._host.finished(task.ends(TaskState.WAITING, task.said, tries=task.tries, next_try=at))
        return True

    def _wake_in(self, seconds: float) -> None:
        at = self._host.reactor.seconds() + min(max(seconds, 0.001), LONGEST_WAIT)
        if self._timer is not None:
            if self._timer.getTime() <= at:
                return
            self._timer.cancel()

        def wake() -> None:
            self._timer = None
            self.advance()

        self._timer = self._host.reactor.callLater(at - self._host.reactor.seconds(), wake)

    # --- results

    def _ended(self, outcome: Outcome) -> None:
        self._under_way.discard(outcome.task_id)
        self._host.finished(outcome)

    def _done(self, delivery: Delivery, result: Result) -> None:
        task = delivery.task
        if result.action is Action.DONE:
            self._ended(task.ends(TaskState.DONE, result.said))
            return
        delivery.was_sent = delivery.was_sent or result.is_sent
        result = result.at(task.tries + 1)
        if len(self.destination) > 1 and result.said:
            name = self.destination[len(self.destination) - len(delivery.left) - 1]
            delivery.said = "; ".join(part for part in (delivery.said, f"{name}: {result.said}") if part)
        else:
            delivery.said = result.said or delivery.said
        delivery.may_retry = delivery.may_retry or result.action is Action.RETRY
        delivery.after = max(delivery.after, result.after or 0.0)
        if self._pass_on(delivery):
            return
        if not delivery.may_retry:
            self._ended(task.ends(TaskState.FAILED, delivery.said))
            return
        tries = task.tries + 1 if delivery.was_sent else task.tries
        if delivery.was_sent:
            next_try = self._host.now() + max(self._host.delay(tries), delivery.after)
        else:
            # The breaker waits if the peer is down.
            next_try = 0.0 if result.is_down else self._host.now() + 1.0
        said = delivery.said or task.said
        self._ended(task.ends(TaskState.WAITING, said, tries=tries, next_try=next_try))

    def _pass_on(self, delivery: Delivery) -> bool:
        """Give an instance that a peer did not take to the next one; return whether there is one that can be used."""
        while delivery.left:
            peer = self._host.peer(delivery.left[0])
            delivery.left = delivery.left[1:]
            if peer is not None and peer.is_usable():
                delivery.parcel = None
                peer.put([delivery])
                return True
            delivery.may_retry = delivery.may_retry or peer is not None
        return False
