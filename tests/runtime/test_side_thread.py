"""A thread that works beside another."""

from __future__ import annotations

import threading

from twisted.trial.unittest import TestCase

from dicomtwist.runtime.side_thread import SideThread
from tests.runtime.test_executors import Gate, workers


class SideThreadTests(TestCase):
    """
    A thread that works beside another.
    """

    def tearDown(self) -> None:
        self.assertEqual(workers(), [], "a thread is left")

    def test_works_beside(self) -> None:
        beside = SideThread("sync")
        self.addCleanup(beside.stop)
        gate, seen = Gate(), []

        def work(number: int) -> None:
            gate.work()
            seen.append((number, threading.current_thread().name))

        wait = beside.begin(work, 7)
        gate.wait()
        self.assertEqual(seen, [])
        gate.open.set()
        wait()
        self.assertEqual(seen, [(7, "dicomtwist-sync")])
        beside.stop()
        beside.stop()

    def test_raises(self) -> None:
        beside = SideThread("sync")
        wait = beside.begin(int, "x")
        self.assertRaises(ValueError, wait)
        beside.begin(int, "1")()
        beside.stop()
