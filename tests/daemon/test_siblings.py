"""Questions among the processes of a server, with pipes in memory."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.daemon.processes.siblings import (
    MAX_MESSAGE,
    MAX_QUESTIONS,
    PATIENCE,
    WORKER_PATIENCE,
    Alone,
    Hub,
    Lines,
    Member,
    Spoke,
)


class Worker:
    """A worker with a hub; its pipes can be cut."""

    def __init__(self, clock: Clock, hub: Hub, name: str) -> None:
        self.hub = hub
        self.is_cut = False
        self.lines = Lines(lambda message: hub.received(self, message))
        self.spoke = Spoke(clock, self.to_hub)
        self.spoke.answers["name"] = lambda: name

    def to_hub(self, data: bytes) -> None:
        self.lines.feed(data)

    def write(self, data: bytes) -> None:
        if not self.is_cut:
            for cut in range(0, len(data), 7):  # pipes deliver any pieces
                self.spoke.feed(data[cut : cut + 7])


class Siblings(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.workers: dict[str, Worker | None] = {}
        self.hub = Hub(self.clock, "supervisor", self.members)
        self.hub.answers["name"] = lambda: "boss"
        for name in ("worker-1", "worker-2", "worker-3"):
            self.workers[name] = Worker(self.clock, self.hub, name)

    def members(self) -> dict[str, Member | None]:
        return dict(self.workers)

    def worker(self, number: int) -> Worker:
        found = self.workers[f"worker-{number}"]
        assert found is not None
        return found

    def ask(self, what: str = "name") -> Deferred[Any]:
        return self.worker(1).spoke.ask(what)

    def test_a_worker_asks_all_others(self) -> None:
        self.assertEqual(
            self.successResultOf(self.ask()),
            {"worker-2": "worker-2", "worker-3": "worker-3", "supervisor": "boss"},
        )
        self.assertFalse(self.clock.getDelayedCalls())

    def test_the_supervisor_asks(self) -> None:
        names = [f"worker-{number}" for number in (1, 2, 3)]
        self.assertEqual(self.successResultOf(self.hub.ask("name")), dict(zip(names, names, strict=True)))

    def test_a_worker_that_does_not_answer(self) -> None:
        self.worker(2).is_cut = True
        asking = self.ask()
        self.assertNoResult(asking)
        self.clock.advance(WORKER_PATIENCE)
        self.assertEqual(self.successResultOf(asking), {"worker-2": None, "worker-3": "worker-3", "supervisor": "boss"})
        self.clock.advance(PATIENCE)
        self.assertFalse(self.clock.getDelayedCalls())

    def test_a_worker_that_is_not_ready(self) -> None:
        self.workers["worker-3"] = None
        self.assertEqual(self.successResultOf(self.ask())["worker-3"], None)

    def test_an_answer_that_fails(self) -> None:
        self.worker(2).spoke.answers["name"] = lambda: 1 / 0
        self.assertEqual(self.successResultOf(self.ask())["worker-2"], None)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_an_unknown_question(self) -> None:
        self.assertEqual(set(self.successResultOf(self.ask("else")).values()), {None})

    def test_a_supervisor_that_does_not_answer(self) -> None:
        self.worker(1).is_cut = True
        asking = [self.ask() for _ in range(MAX_QUESTIONS)]
        self.assertEqual(self.successResultOf(self.ask()), {})
        self.clock.advance(PATIENCE)
        self.assertEqual([self.successResultOf(one) for one in asking], [{"supervisor": None}] * MAX_QUESTIONS)
        self.worker(1).is_cut = False
        self.assertEqual(len(self.successResultOf(self.ask())), 3)

    def test_answers_that_come_late(self) -> None:
        late: Deferred[str] = Deferred()
        self.worker(2).spoke.answers["name"] = lambda: late
        asking = self.ask()
        self.clock.advance(WORKER_PATIENCE)
        self.assertEqual(self.successResultOf(asking)["worker-2"], None)
        late.callback("late")
        self.worker(2).spoke.answers["name"] = lambda: "later"
        self.assertEqual(self.successResultOf(self.ask())["worker-2"], "later")

    def test_alone(self) -> None:
        self.assertEqual(self.successResultOf(Alone().ask("name")), {})

    def test_notes_reach_the_supervisor_alone(self) -> None:
        """A kind that nobody takes changes nothing."""
        taken: list[str] = []
        self.hub.notes["tasks"] = lambda: taken.append("hub")
        for number in (1, 2):
            self.worker(number).spoke.notes["tasks"] = lambda: taken.append("worker")
        self.worker(1).spoke.note("tasks")
        self.worker(2).spoke.note("nothing")
        self.hub.note("tasks")
        Alone().note("tasks")
        self.assertEqual(taken, ["hub"])


class LinesTests(SynchronousTestCase):
    def test_pieces(self) -> None:
        found: list[Any] = []
        lines = Lines(found.append)
        for byte in b'"ready"\n{"ask": 1}\n':
            lines.feed(bytes([byte]))
        self.assertEqual(found, ["ready", {"ask": 1}])

    def test_no_message(self) -> None:
        self.assertRaises(json.JSONDecodeError, Lines(print).feed, b"ready\n")
        self.assertRaises(ValueError, Lines(print).feed, b" " * (MAX_MESSAGE + 1))
