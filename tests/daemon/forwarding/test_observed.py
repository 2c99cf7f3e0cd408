"""Senders that the audit trail knows."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.daemon.forwarding.observed import ObservedSender
from dicomtwist.forwarding.delivery.interfaces import Delivery, Feed, SentUIDs
from dicomtwist.forwarding.delivery.results import DONE, Action, Result
from dicomtwist.forwarding.rules import ForwardRule
from dicomtwist.forwarding.tasks.types import Task, TaskState


class Instances:
    """A feed."""

    def __init__(self, *deliveries: Delivery) -> None:
        self.left = deque(deliveries)
        self.results: list[Result] = []

    def ready(self) -> Any:
        return self.left

    def take(self, wanted: Any = None) -> Delivery | None:
        return self.left.popleft() if self.left else None

    def more(self) -> Deferred[bool]:
        return succeed(False)

    def put_back(self, delivery: Delivery) -> None:
        self.left.append(delivery)

    def ended(self, delivery: Delivery, result: Result) -> None:
        self.results.append(result)


class Peer:
    """A sender; *results* are those of the instances."""

    open = confirm = close = None

    def __init__(self, *results: Result, fails: bool = False) -> None:
        self.results = results
        self.fails = fails

    async def send(self, feed: Feed) -> None:
        for result in self.results:
            delivery = feed.take()
            assert delivery is not None
            feed.ended(delivery, result)
        if self.fails:
            raise ConnectionError


class Trail:
    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []
        self.taken: list[Any] = []

    def forwarding_begins(self, peer: str, study: str) -> None:
        self.begun.append((peer, study))

    def forwarded(self, peer: str, studies: Any) -> None:
        self.taken.append((peer, studies))


def delivery(number: int, *, study: str = "1.2", sent: str = "") -> Delivery:
    task = Task(number, study, f"{study}.1", f"{study}.1.{number}", 1, ("A",), TaskState.SENDING)
    uids = SentUIDs(study, f"{study}.1", "1.9", sent or task.instance)
    return Delivery(task, ForwardRule("r", (("A",),)), lambda one, result: None, uids=uids)


class Observed(SynchronousTestCase):
    def observed(self, peer: Peer, feed: Instances, *, is_web: bool, fails: bool = False) -> Trail:
        trail = Trail()
        sender: Any = peer
        sending = Deferred.fromCoroutine(ObservedSender("A", sender, lambda: trail, is_web=is_web).send(feed))
        if fails:
            self.failureResultOf(sending, ConnectionError)
        else:
            self.successResultOf(sending)
        return trail

    def test_web(self) -> None:
        """Each study is begun once; refused instances are not counted, and those before a lost connection are."""
        refused = Result(Action.FAIL, "no")
        feed = Instances(delivery(1), delivery(2), delivery(3, study="1.3"), delivery(4))
        trail = self.observed(Peer(DONE, DONE, DONE, refused, fails=True), feed, is_web=True, fails=True)
        self.assertEqual(trail.begun, [("A", "1.2"), ("A", "1.3")])
        self.assertEqual(trail.taken, [("A", {"1.2": Counter({"1.9": 2}), "1.3": Counter({"1.9": 1})})])
        self.assertEqual(feed.results, [DONE, DONE, DONE, refused])

    def test_associations(self) -> None:
        """Their ends have messages of their own, but for instances with other UIDs."""
        trail = self.observed(Peer(DONE, DONE), Instances(delivery(1), delivery(2, sent="2.25.1")), is_web=False)
        self.assertEqual(trail.taken, [("A", {"1.2": Counter({"1.9": 1})})])
        trail = self.observed(Peer(DONE), Instances(delivery(1)), is_web=False)
        self.assertEqual((trail.begun, trail.taken), ([("A", "1.2")], []))

    def test_without_a_trail(self) -> None:
        sender: Any = Peer(DONE)
        feed = Instances(delivery(1))
        self.successResultOf(Deferred.fromCoroutine(ObservedSender("A", sender, lambda: None, is_web=True).send(feed)))
        self.assertEqual(feed.results, [DONE])
