"""Calls that run one at a time, in which the peers take turns."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.services.turns import Turns


class TurnsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.turns = Turns()
        self.begun: list[str] = []
        self.running: list[Deferred[str]] = []

    def run_one(self, peer: str, name: str) -> Deferred[str]:
        def function(name: str) -> Deferred[str]:
            self.begun.append(name)
            result: Deferred[str] = Deferred()
            self.running.append(result)
            return result

        return self.turns.run(peer, function, name)

    def test_peers_take_turns(self) -> None:
        results = [self.run_one(name[0], name) for name in ("a1", "a2", "a3", "b1", "a4", "c1", "b2")]
        for count in range(1, 8):
            self.assertEqual((len(self.begun), len(self.running)), (count, 1))
            self.running.pop().callback(self.begun[-1])
        self.assertEqual(self.begun, ["a1", "a2", "b1", "c1", "a3", "b2", "a4"])
        self.assertEqual(
            [self.successResultOf(result) for result in results], ["a1", "a2", "a3", "b1", "a4", "c1", "b2"]
        )

    def test_failures_give_the_turn_away(self) -> None:
        def fail() -> Deferred[None]:
            raise ValueError("no")

        first = self.run_one("a", "a1")
        failing, last = self.turns.run("a", fail), self.run_one("a", "a2")
        self.running.pop().errback(OSError("full"))
        self.failureResultOf(first, OSError)
        self.failureResultOf(failing, ValueError)
        self.assertEqual(self.begun, ["a1", "a2"])
        self.running.pop().callback("done")
        self.assertEqual(self.successResultOf(last), "done")

    def test_idle(self) -> None:
        self.successResultOf(self.turns.idle())
        results = [self.run_one("a", "a1"), self.run_one("b", "b1")]
        idle = self.turns.idle()
        self.running.pop().callback("")
        self.assertNoResult(idle)
        self.running.pop().callback("")
        self.successResultOf(idle)
        self.assertEqual([self.successResultOf(result) for result in results], ["", ""])
        self.assertEqual(self.successResultOf(self.turns.run("a", lambda: succeed("at once"))), "at once")
