"""When files and rows follow the acknowledgements, with a clock of the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.ingest import IncomingInstance, Ingest
from dicomtwist.archive.instance import Deliver, ReceivedInstance
from dicomtwist.archive.move_schedule import BURST, EAGER_TURNS, LONGEST_TURNS, PAUSE, TRY_AGAIN
from dicomtwist.archive.storage.types import Durability
from dicomtwist.runtime.executors import Executor


class Threads:
    """An executor that calls at once, or holds calls until the test lets them end."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.held: list[Deferred[None]] | None = None

    def run_admitted(self, function: Callable[[], None]) -> Deferred[Any]:
        if self.held is None:
            return maybeDeferred(function)
        held: Deferred[None] = Deferred()
        self.held.append(held)
        return held.addCallback(lambda _: function())

    def call_in_reactor(self, function: Callable[[], None]) -> None:
        function()

    def call_later(self, seconds: float, function: Callable[..., None], *arguments: Any) -> Any:
        return self.clock.callLater(seconds, function, *arguments)

    def seconds(self) -> float:
        return self.clock.seconds()


class Archive:
    """An archive that counts what waits, and notes when it was asked to move."""

    def __init__(self, clock: Clock) -> None:
        self.store = self
        self.durability = Durability.FULL
        self.clock = clock
        self.unindexed = self.unsettled = self.asked = 0
        self.moves: list[float] = []
        self.settled: list[float] = []
        self.failure: Exception | None = None

    def keep_all(self, instances: Sequence[ReceivedInstance], deliver: Deliver) -> None:
        self.unindexed += len(instances)
        deliver([(instance, None) for instance in instances], True)

    def move(self) -> None:
        self.moves.append(self.clock.seconds())
        if self.failure is not None:
            raise self.failure
        self.unsettled += self.unindexed
        self.unindexed = 0

    def settle(self) -> None:
        self.settled.append(self.clock.seconds())
        self.unsettled = 0


class Acknowledged:
    """An instance that is received."""

    def kept(self, error: BaseException | None) -> None:
        assert error is None


class Scheduling(SynchronousTestCase):
    def setUp(self) -> None:
        self.threads = Threads()
        self.clock = self.threads.clock
        self.archive = Archive(self.clock)
        self.ingest = Ingest(cast(Any, self.archive), cast(Executor, self.threads))

    def came(self, count: int = 1) -> None:
        one = {cast(ReceivedInstance, object()): cast(IncomingInstance, Acknowledged()) for _ in range(count)}
        self.ingest.keep(one)

    def wait(self, turns: float) -> None:
        """Let time pass, in steps that are shorter than a pause."""
        for _ in range(round(turns * 10)):
            self.clock.advance(PAUSE / 10)

    def test_after_a_pause(self) -> None:
        self.came()
        self.wait(0.8)
        self.came()
        self.wait(1)
        self.assertEqual(self.archive.moves, [], "something has come meanwhile")
        self.wait(1)
        self.assertEqual(len(self.archive.moves), 1)

    def test_settled_after_a_second(self) -> None:
        """Then nothing is left to do, and no call is pending."""
        self.came()
        self.wait(LONGEST_TURNS - 1)
        self.assertEqual((len(self.archive.moves), self.archive.settled), (1, []))
        self.wait(4)
        self.assertEqual((len(self.archive.moves), len(self.archive.settled)), (1, 1))
        self.wait(2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_long_stream(self) -> None:
        """Instances without a pause: after a second at the latest, and from then on at each turn."""
        for _ in range(3 * LONGEST_TURNS):
            self.came()
            self.wait(0.5)
            self.came()
            self.wait(0.5)
        self.assertLess(abs(self.archive.moves[0] - LONGEST_TURNS * PAUSE), 1.5 * PAUSE)
        gaps = [after - before for before, after in zip(self.archive.moves, self.archive.moves[1:], strict=False)]
        self.assertGreater(len(gaps), LONGEST_TURNS)
        self.assertLess(max(gaps), 2.5 * PAUSE)
        self.assertEqual(self.archive.settled, [], "a segment that is full is retired by a move")

    def test_a_burst(self) -> None:
        """Many at once do not wait for a pause."""
        self.came(BURST)
        self.wait(0.5)
        self.came()
        self.wait(0.6)
        self.assertEqual(len(self.archive.moves), 1)

    def test_after_a_query(self) -> None:
        """The next queries have little to wait for."""
        self.archive.asked += 1
        for _ in range(3):
            self.came()
            self.wait(0.5)
        self.assertEqual(len(self.archive.moves), 1)
        for _ in range(EAGER_TURNS + 20):
            self.came()
            self.wait(1)
        self.assertLess(len(self.archive.moves), EAGER_TURNS + 20)

    def test_one_at_a_time(self) -> None:
        self.threads.held = []
        self.came()
        self.wait(10)
        self.came()
        self.wait(10)
        (held,) = self.threads.held
        held.callback(None)
        self.assertEqual(len(self.archive.moves), 1)
        self.came()
        self.wait(3)
        self.assertEqual(len(self.threads.held), 2)

    def test_again_later_after_a_failure(self) -> None:
        self.archive.failure = OSError(28, "no room")
        self.came()
        self.wait(TRY_AGAIN / PAUSE)
        self.assertEqual(len(self.archive.moves), 1)
        self.wait(3)
        self.assertEqual(len(self.archive.moves), 2)
        self.archive.failure = None
        self.wait(TRY_AGAIN / PAUSE + 3)
        self.assertEqual((len(self.archive.moves), self.archive.unindexed), (3, 0))

    def test_stopped(self) -> None:
        """While it waits, while it moves, and for instances that come later: no call is left."""
        self.came()
        self.ingest.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.came()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.ingest.stop()

    def test_stopped_while_it_moves(self) -> None:
        self.threads.held = []
        self.came()
        self.wait(2)
        self.ingest.stop()
        self.threads.held[0].callback(None)
        self.assertEqual(self.clock.getDelayedCalls(), [])
