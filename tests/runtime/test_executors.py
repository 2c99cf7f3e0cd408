"""
The pool of threads for what blocks: there while it is used, gone with its last user.
"""

from __future__ import annotations

import threading
import time

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from dicomtwist.runtime.executors import Bounds, Executor


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
        What is run is not run by the reactor; arguments go in, the result comes out.
        """

        def work(first: int, *, second: int) -> tuple[int, bool]:
            return first + second, threading.current_thread() is threading.main_thread()

        self.assertEqual(await self.executor.run(work, 1, second=2), (3, False))

    async def test_failure(self) -> None:
        """
        What is raised fails the Deferred, and the pool goes as well.
        """
        await self.assertFailure(self.executor.run(int, "x"), ValueError)

    async def test_stays_while_it_is_used(self) -> None:
        """
        Between two pieces of work the thread is kept for its users, and goes with the last of them.
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
        Who uses it after the last one has left finds it working.
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
