"""
The pool of threads for what blocks: there while it is used, gone with its last user.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Generator
from queue import SimpleQueue
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import TestCase

from dicomtwist.errors import ExecutorFull
from dicomtwist.runtime.executors import (
    DEFAULT_BOUNDS,
    TURN,
    Bounds,
    Executor,
    Executors,
    is_turn_over,
    run_in_turns,
)
from dicomtwist.runtime.work import check_wanted, is_wanted
from dicomtwist.testing import MemoryNetwork


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "dicomtwist" in thread.name]


class ExecutorTests(TestCase):
    """
    Executor, with real threads.
    """

    def setUp(self) -> None:
        self.assertEqual(workers(), [])
        self.executor = Executor(reactor, "testing", Bounds(threads=3, max_queued=100))

    def tearDown(self) -> None:
        self.assertEqual(workers(), [], "a thread is left")

    async def test_runs_in_a_thread(self) -> None:
        """
        A call runs outside of the reactor thread, with its arguments, and its result is delivered.
        """

        def work(first: int, *, second: int) -> tuple[int, bool]:
            return first + second, threading.current_thread() is threading.main_thread()

        self.assertEqual(await self.executor.run(work, 1, second=2), (3, False))

    async def test_failure(self) -> None:
        """
        An exception of the call fails the Deferred, and the threads end.
        """
        await self.assertFailure(self.executor.run(int, "x"), ValueError)

    async def test_call(self) -> None:
        """
        A call without a Deferred passes its result, or its exception, to a function in the reactor thread.
        """
        for function, expected in ((lambda: threading.current_thread().name, "dicomtwist-testing-0"), (dict, {})):
            outcome: Deferred[Any] = Deferred()
            self.executor.call(function, outcome.callback, outcome.errback)
            self.assertEqual(await outcome, expected)
            self.assertIs(threading.current_thread(), threading.main_thread())
        failing: Deferred[Any] = Deferred()
        self.executor.call(lambda: int("x"), failing.callback, failing.errback)
        await self.assertFailure(failing, ValueError)

    async def test_call_is_admitted(self) -> None:
        """
        Such a call is taken even if the queue is full.
        """
        executor = Executor(reactor, "testing", Bounds(threads=1, max_queued=0))
        gate = threading.Event()
        first, second = executor.run(gate.wait), Deferred[Any]()
        self.assertTrue(executor.is_full)
        executor.call(int, second.callback, second.errback)
        gate.set()
        self.assertEqual((await first, await second), (True, 0))

    async def test_call_whose_result_is_not_handled(self) -> None:
        """
        An exception of the function that takes the result is logged; other results are delivered all the same.
        """
        following: Deferred[int] = Deferred()
        self.executor.acquire()
        self.executor.call(int, lambda result: 1 / result, following.errback)
        self.executor.call(int, following.callback, following.errback)
        self.assertEqual(await following, 0)
        self.executor.release()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_stays_while_it_is_used(self) -> None:
        """
        A thread stays alive between two calls, and ends with the last user.
        """
        self.executor.acquire()
        self.executor.acquire()
        await self.executor.run(int)
        kept = workers()
        self.assertEqual(len(kept), 1)
        self.executor.release()
        self.assertEqual(workers(), kept)
        self.executor.release()
        self.assertEqual(workers(), [])

    async def test_comes_again(self) -> None:
        """
        An executor works again for a new user after the last one has left.
        """
        for _ in range(3):
            self.executor.acquire()
            self.assertEqual(await self.executor.run(int, "7"), 7)
            self.executor.release()
            self.assertEqual(workers(), [])

    async def test_results_after_the_last_release(self) -> None:
        """
        Work under way is finished and its results are delivered, then the threads end; nothing waits for them.
        """
        gate = threading.Event()
        self.executor.acquire()
        results = gatherResults([self.executor.run(gate.wait, 10) for _ in range(5)])
        self.executor.release()
        self.assertNotEqual(workers(), [])
        gate.set()
        self.assertEqual(await results, [True] * 5)

    async def test_work_from_a_result(self) -> None:
        """
        Work that is asked for when a result comes, after the last release, is done as well.
        """
        self.executor.acquire()
        first = self.executor.run(int, "1")
        second = first.addCallback(lambda value: self.executor.run(int, "2"))
        self.executor.release()
        self.assertEqual(await second, 2)

    async def test_bounded(self) -> None:
        """
        However much is asked for, no more threads than that work at once.
        """
        gate, most = threading.Event(), []

        def work() -> None:
            most.append(len(workers()))
            gate.wait(10)

        done = gatherResults([self.executor.run(work) for _ in range(10)])
        while len(most) < 3:
            await self.pause()
        self.assertEqual(len(workers()), 3)
        gate.set()
        await done
        self.assertEqual(max(most), 3)

    async def test_shares(self) -> None:
        """
        The calls of one peer never run in all threads, and each of them runs in the end.
        """
        gate = threading.Event()
        self.executor.bounds = Bounds(threads=3, max_queued=8, max_share=2)
        crowd = [self.executor.share("crowd").run(gate.wait, 30) for _ in range(8)]
        while self.executor.vitals.busy < 2:
            await self.pause()
        self.assertEqual(await self.executor.share("other").run(int, "7"), 7)
        self.assertEqual(await self.executor.run(int, "8"), 8)
        self.assertEqual((self.executor.vitals.busy, self.executor.vitals.queued), (2, 6))
        more = [self.executor.share("crowd").run(int, "9") for _ in range(4)]
        self.failureResultOf(more.pop(), ExecutorFull)
        self.failureResultOf(self.executor.run(int), ExecutorFull)
        admitted = self.executor.share("crowd").run_admitted(int, "10")
        gate.set()
        self.assertEqual(await gatherResults([*crowd, *more, admitted]), [True] * 8 + [9] * 3 + [10])

    async def test_cancelled_in_a_share(self) -> None:
        """
        A cancelled call gives its turn to the next one of its peer, when its thread is free if it has begun.
        """
        gates = [threading.Event() for _ in range(3)]
        self.executor.bounds = Bounds(threads=1, max_queued=8)
        share = self.executor.share("crowd")
        running = share.run(gates[0].wait, 30)
        while not self.executor.vitals.busy:
            await self.pause()
        waiting = [share.run(self.fail) for _ in range(3)]
        last = share.run(int, "7")
        for one in (waiting[1], running, waiting[0], waiting[2]):
            one.cancel()
            self.failureResultOf(one, CancelledError)
        self.assertEqual((self.executor.vitals.busy, self.executor.vitals.queued), (1, 1))
        gates[0].set()
        self.assertEqual(await last, 7)
        # One that is in the queue of the executor, because other work has its thread.
        other = self.executor.run(gates[1].wait, 30)
        queued = share.run(self.fail)
        last = share.run(int, "8")
        queued.cancel()
        self.failureResultOf(queued, CancelledError)
        gates[1].set()
        self.assertEqual((await other, await last), (True, 8))

    def test_half_of_the_threads(self) -> None:
        """
        A share is half of the threads, unless there is only one.
        """
        shares = [Bounds(threads=threads, max_queued=0).max_share for threads in (1, 2, 3, 4, 9)]
        self.assertEqual(shares, [1, 1, 1, 2, 4])
        self.assertEqual(Bounds(threads=4, max_queued=0, max_share=4).max_share, 4)
        with self.assertRaises(ValueError):
            Bounds(threads=4, max_queued=0, max_share=-1)

    async def pause(self) -> None:
        await deferLater(reactor, 0.001)

    async def test_cancelled(self) -> None:
        """
        A result that nobody waits for any more is not waited for by the reactor either; the work goes on, and then the
        threads end.
        """
        gate = threading.Event()
        ended: list[bool] = []
        work = self.executor.run(lambda: ended.append(gate.wait(10)))
        before = time.monotonic()
        work.cancel()
        await self.assertFailure(work, CancelledError)
        self.assertLess(time.monotonic() - before, 5)
        self.assertEqual((len(workers()), ended), (1, []))
        gate.set()
        while workers():
            await self.pause()
        self.assertEqual(ended, [True])


class Gate:
    """Work that waits in its thread until the test lets it go on."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.open = threading.Event()

    def work(self) -> bool:
        """Wait for the gate: the call that the executor runs."""
        self.begun.release()
        return self.open.wait(30)

    def wait(self, count: int = 1) -> None:
        """Block the test until *count* more threads are at work."""
        for _ in range(count):
            if not self.begun.acquire(timeout=30):
                raise AssertionError("no thread began")


class Subject:
    """Something that a weak reference can be made of."""


class BoundsTests(TestCase):
    def test_mistakes(self) -> None:
        self.assertRaises(ValueError, Bounds, 0, 1)
        self.assertRaises(ValueError, Bounds, 1, -1)
        self.assertEqual(Bounds(1, 0).max_queued, 0)


class QueueTests(TestCase):
    """
    The queue of an executor of one thread, which is at work.
    """

    def setUp(self) -> None:
        self.gate = Gate()
        self.executor = Executor(reactor, "testing", Bounds(threads=1, max_queued=2))
        self.executor.acquire()
        self.first = self.executor.run(self.gate.work)
        self.gate.wait()

    def tearDown(self) -> None:
        self.gate.open.set()
        self.executor.release()

    async def test_full(self) -> None:
        """
        One call more than the queue holds fails at once, with what is full; when there is room again the next is taken.
        """
        queued: list[Deferred[Any]] = [self.executor.run(int, number) for number in "12"]
        error = self.failureResultOf(self.executor.run(int, "3"), ExecutorFull).value
        self.assertEqual((error.name, error.max_queued), ("testing", 2))
        self.assertEqual(self.executor.vitals.queued, 2)
        self.gate.open.set()
        self.assertEqual([await one for one in (self.first, *queued)], [True, 1, 2])
        self.assertEqual(await self.executor.run(int, "3"), 3)

    async def test_admitted(self) -> None:
        """
        The next step of what was admitted is taken however long the queue is, in its turn; new work is not.
        """
        done: list[int] = []
        queued = [self.executor.run(done.append, number) for number in (1, 2)]
        queued += [self.executor.run_admitted(done.append, number) for number in (3, 4)]
        self.failureResultOf(self.executor.run(int), ExecutorFull)
        self.gate.open.set()
        await gatherResults(queued)
        self.assertEqual(done, [1, 2, 3, 4])

    async def test_cancelled_before_it_begins(self) -> None:
        """
        Cancelled work leaves the queue, and its place to another; what it holds is let go, though the thread is busy.
        """
        subject = Subject()
        held = weakref.ref(subject)
        cancelled = self.executor.run(self.fail, subject)
        other = self.executor.run(int, "7")
        del subject
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        self.assertEqual(self.executor.vitals.queued, 1)
        self.assertIsNone(held())
        last = self.executor.run(int, "8")
        self.failureResultOf(self.executor.run(int), ExecutorFull)
        self.gate.open.set()
        self.assertEqual((await other, await last), (7, 8))

    async def test_many_that_are_cancelled(self) -> None:
        """
        A crowd that gives up leaves nothing in the queue, and the thread does what comes then.
        """
        for _ in range(1000):
            crowd = [self.executor.run(self.fail) for _ in range(2)]
            for one in crowd:
                one.cancel()
                self.failureResultOf(one, CancelledError)
        self.assertEqual(self.executor.vitals.queued, 0)
        result = self.executor.run(int, "7")
        self.gate.open.set()
        self.assertEqual(await result, 7)

    async def test_the_last_one_is_cancelled(self) -> None:
        """
        If no user is left and the remaining calls are cancelled, the threads end.
        """
        queued = self.executor.run(self.fail)
        self.gate.open.set()
        self.executor.release()
        queued.cancel()
        self.failureResultOf(queued, CancelledError)
        await self.first
        self.assertEqual(workers(), [])
        self.executor.acquire()

    async def test_held_no_longer_than_the_call(self) -> None:
        """
        An argument is released before the result is delivered.
        """
        subject = Subject()
        held = weakref.ref(subject)
        result = self.executor.run(lambda one: None, subject)
        result.addCallback(lambda _: self.assertIsNone(held()))
        del subject
        self.gate.open.set()
        await result


class WantedTests(TestCase):
    """
    Long work asks whether it is still wanted.
    """

    def setUp(self) -> None:
        self.executor = Executor(reactor, "testing", Bounds(threads=2, max_queued=2))

    def test_elsewhere(self) -> None:
        """
        Outside of executors there is nobody to cancel it.
        """
        self.assertTrue(is_wanted())
        check_wanted()

    async def test_asked(self) -> None:
        """
        The work of one that was cancelled learns of it, that beside it does not; the cancelled one's outcome is nobody's.
        """
        gate, told = Gate(), {}

        def work(name: str) -> str:
            before = is_wanted()
            gate.work()
            told[name] = before, is_wanted()
            check_wanted()
            return name

        unwanted, wanted = self.executor.run(work, "unwanted"), self.executor.run(work, "wanted")
        gate.wait(2)
        unwanted.cancel()
        self.failureResultOf(unwanted, CancelledError)
        gate.open.set()
        self.assertEqual(await wanted, "wanted")
        while workers():
            await deferLater(reactor, 0.001)
        self.assertEqual(told, {"unwanted": (True, False), "wanted": (True, True)})

    async def test_the_next_call_of_the_thread(self) -> None:
        """
        That the call before was cancelled is nothing to the next one.
        """
        executor = Executor(reactor, "testing", Bounds(threads=1, max_queued=2))
        gate = Gate()
        first, second = executor.run(gate.work), executor.run(is_wanted)
        gate.wait()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        gate.open.set()
        self.assertTrue(await second)


class TurnsTests(TestCase):
    """
    Long work takes turns with the other calls of an executor of one thread.
    """

    def setUp(self) -> None:
        self.executor = Executor(reactor, "testing", Bounds(threads=1, max_queued=2))
        self.done: list[str] = []

    def tearDown(self) -> None:
        self.assertEqual(workers(), [], "a thread is left")

    def work(self, name: str, turns: int) -> Generator[None, None, str]:
        for _ in range(turns):
            self.done.append(name)
            yield
        return name

    def begin(self, name: str, turns: int) -> Deferred[str]:
        return Deferred.fromCoroutine(run_in_turns(self.executor, self.work(name, turns)))

    async def test_turns(self) -> None:
        """
        At each yield the other calls come first; the result, or the exception, is that of the work.
        """
        first, second = self.begin("a", 3), self.begin("b", 2)
        last = self.executor.run(self.done.append, "c")
        self.assertEqual(await gatherResults([first, second, last]), ["a", "b", None])
        self.assertEqual("".join(self.done), "abcaba")

        def failing() -> Generator[None, None, None]:
            yield
            raise ZeroDivisionError

        await self.assertFailure(Deferred.fromCoroutine(run_in_turns(self.executor, failing())), ZeroDivisionError)

    async def test_shares(self) -> None:
        """
        The turns are fair by peer, also if one has much more work than another.
        """
        self.executor.bounds = Bounds(threads=1, max_queued=100)
        gate = Gate()
        waiting: list[Deferred[Any]] = [self.executor.run(gate.work)]
        gate.wait()
        for name in ("a1", "a2", "a3", "b"):
            share = self.executor.share(name[0])
            waiting.append(Deferred.fromCoroutine(run_in_turns(share, self.work(name, 4))))
        gate.open.set()
        await gatherResults(waiting)
        self.assertEqual(self.done[:8], ["a1", "b", "a2", "b", "a3", "b", "a1", "b"])

    async def test_full(self) -> None:
        """
        Work is refused before its first turn only.
        """
        gate = Gate()
        running = self.executor.run(gate.work)
        gate.wait()
        admitted = self.begin("a", 9)
        other = self.executor.run(int, "7")
        self.failureResultOf(self.begin("b", 1), ExecutorFull)
        gate.open.set()
        self.assertEqual(await gatherResults([running, admitted, other]), [True, "a", 7])

    async def test_cancelled(self) -> None:
        """
        Cancelled work has no further turn.
        """
        gate = Gate()
        first = self.begin("a", 5)
        running = self.executor.run(gate.work)
        await deferLater(reactor, 0)
        gate.wait()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        gate.open.set()
        await running
        self.assertEqual(self.done, ["a"])

    def test_when_it_is_over(self) -> None:
        """
        A turn ends by the clock; outside of executors it never does.
        """
        clock = ClockWithThreads()
        executor = Executor(clock, "testing", Bounds(threads=1, max_queued=5))
        gate = Gate()

        def work() -> tuple[bool, bool]:
            before = is_turn_over()
            gate.work()
            return before, is_turn_over()

        result = executor.run(work)
        gate.wait()
        clock.advance(TURN)
        gate.open.set()
        while not result.called:
            clock.listen()
        self.assertEqual(self.successResultOf(result), (False, True))
        self.assertFalse(is_turn_over())


class OrderTests(TestCase):
    """
    Calls with an order, in an executor of two threads.
    """

    async def test_order(self) -> None:
        """
        The lowest order comes first among the calls that have not begun; equal ones keep their sequence.
        """
        executor = Executor(reactor, "testing", Bounds(threads=2, max_queued=6))
        gate, done = Gate(), list[int]()
        running: list[Deferred[Any]] = [executor.run_ordered((9,), gate.work) for _ in range(2)]
        gate.wait(2)
        for number, order in enumerate([(3, 0), (1, 5), (2, 0), (1, 5), (1, 2), (0, 9)]):
            running.append(executor.run_ordered(order, done.append, number))
        self.assertEqual(executor.vitals.queued, 6)
        self.failureResultOf(executor.run(int), ExecutorFull)
        cancelled = running.pop(4)
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        gate.open.set()
        await gatherResults(running)
        # Two threads may append in another sequence than they began.
        self.assertEqual([{*done[:2]}, {*done[2:4]}, {*done[4:]}], [{5, 4}, {1, 3}, {0}])


class ClockWithThreads(Clock):
    """A clock that stands still, while threads are real ones; what they tell is heard when the test listens."""

    def __init__(self) -> None:
        super().__init__()
        self.told: SimpleQueue[Any] = SimpleQueue()

    def callFromThread(self, function: Any, *args: Any) -> None:
        self.told.put((function, args))

    def listen(self) -> None:
        """Wait for the next call from a thread, and make it."""
        function, args = self.told.get(timeout=30)
        function(*args)


class VitalsTests(TestCase):
    """
    How an executor is doing.
    """

    def test_blocked(self) -> None:
        """
        How long a call has been running is told, and how long all threads have been busy, once they are.
        """
        clock = ClockWithThreads()
        executor = Executor(clock, "testing", Bounds(threads=2, max_queued=5))
        gates = Gate(), Gate()
        results: list[Deferred[Any]] = [executor.run(gates[0].work)]
        gates[0].wait()
        clock.advance(3)
        vitals = executor.vitals
        self.assertEqual((vitals.name, vitals.threads, vitals.busy, vitals.queued), ("testing", 2, 1, 0))
        self.assertEqual((vitals.longest, vitals.blocked), (3, 0))
        results += [executor.run(gates[1].work), executor.run(int)]
        gates[1].wait()
        clock.advance(4)
        vitals = executor.vitals
        self.assertEqual((vitals.busy, vitals.queued, vitals.longest, vitals.blocked), (2, 1, 7, 4))
        for gate in gates:
            gate.open.set()
        while not all(result.called for result in results):
            clock.listen()
        vitals = executor.vitals
        self.assertEqual((vitals.busy, vitals.queued, vitals.longest, vitals.blocked), (0, 0, 0, 0))
        self.assertEqual([self.successResultOf(result) for result in results], [True, True, 0])


class ExecutorsTests(TestCase):
    """
    The executors of a server.
    """

    def tearDown(self) -> None:
        self.assertEqual(workers(), [], "a thread is left")

    def test_each_has_bounds(self) -> None:
        executors = Executors(reactor, {"worklist": Bounds(1, 3)})
        for name, bounds in DEFAULT_BOUNDS.items():
            executor: Executor = getattr(executors, name)
            self.assertEqual(executor.bounds, Bounds(1, 3) if name == "worklist" else bounds)
            self.assertIs(getattr(executors, name), executor)
        self.assertEqual([vitals.name for vitals in executors.vitals()], list(DEFAULT_BOUNDS))

    def test_unknown_name(self) -> None:
        self.assertRaises(ValueError, Executors, reactor, {"printing": Bounds(1, 1)})

    async def test_none_delays_another(self) -> None:
        """
        While one is blocked and full, all others work.
        """
        executors = Executors(reactor, {name: Bounds(1, 0) for name in DEFAULT_BOUNDS})
        executors.acquire()
        for blocked in DEFAULT_BOUNDS:
            gate = Gate()
            waiting = getattr(executors, blocked).run(gate.work)
            gate.wait()
            for name in DEFAULT_BOUNDS:
                result = getattr(executors, name).run(int, "7")
                if name == blocked:
                    self.failureResultOf(result, ExecutorFull)
                else:
                    self.assertEqual(await result, 7)
            gate.open.set()
            await waiting
        executors.release()

    async def test_used_together(self) -> None:
        """
        A user holds all executors, later ones included; with the last user all threads end.
        """
        executors = Executors(reactor)
        await executors.receiving.run(int)
        self.assertEqual(workers(), [])
        executors.acquire()
        executors.acquire()
        await executors.receiving.run(int)
        await executors.querying.run(int)
        names = {thread.name for thread in workers()}
        self.assertEqual(names, {"dicomtwist-receiving-0", "dicomtwist-querying-0"})
        executors.release()
        self.assertEqual(len(workers()), 2)
        executors.release()
        self.assertEqual(workers(), [])


class InMemoryTests(TestCase):
    """
    The network of dicomtwist.testing brings threads of its own, under the same bounds.
    """

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.network.works = False
        self.executor = Executor(self.network, "testing", Bounds(threads=1, max_queued=1))

    def test_bounds_and_cancelling(self) -> None:
        first, cancelled = self.executor.run(int, "1"), self.executor.run(self.fail)
        self.failureResultOf(self.executor.run(int), ExecutorFull)
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        second = self.executor.run(int, "2")
        self.assertEqual(self.executor.vitals.queued, 2)
        self.network.works = True
        self.network.flush()
        self.assertEqual((self.successResultOf(first), self.successResultOf(second)), (1, 2))
        self.assertEqual(self.network.pools, [])
