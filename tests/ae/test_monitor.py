"""How a server that runs is doing: the lag of its reactor, its line of status, and who asks for it."""

from __future__ import annotations

import mmap
import os
import signal
import sys
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from dicomtwist import AE, build_context, evt
from dicomtwist.ae import ReactorLag, Vitals, resident_memory
from dicomtwist.ae.monitor import INTERVAL, WINDOW, BlockedExecutors
from dicomtwist.runtime.executors import Bounds, Executors
from dicomtwist.runtime.work import Work
from dicomtwist.service import DICOMService
from dicomtwist.testing import MemoryNetwork
from tests import peers
from tests.memory import CT, VERIFICATION, MemoryTestCase


class Lag(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.lines: list[str] = []
        observer: Any = self.observe
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def observe(self, event: LogEvent) -> None:
        if event.get("log_namespace") == "dicomtwist.ae.monitor.ReactorLag":
            self.assertEqual(event["log_level"].name, "info")
            self.lines.append(formatEvent(event))

    def lag(self, warning: float | None = 1.0) -> ReactorLag:
        lag = ReactorLag(self.clock, warning)
        lag.start()
        self.addCleanup(lag.stop)
        return lag

    def hold_up(self, seconds: float) -> None:
        """The timer that is next fires so late."""
        self.clock.advance(INTERVAL + seconds)

    def test_on_time(self) -> None:
        lag = self.lag()
        self.assertEqual((lag.maximum, lag.mean), (0.0, 0.0))
        self.clock.pump([INTERVAL] * 10)
        self.assertEqual((lag.maximum, lag.mean), (0.0, 0.0))
        self.assertEqual(self.lines, [])

    def test_late(self) -> None:
        lag = self.lag()
        for seconds in (0.25, 0.0, 0.5, 0.25):
            self.hold_up(seconds)
        self.assertEqual((lag.maximum, lag.mean), (0.5, 0.25))
        self.assertEqual(self.lines, [])

    def test_of_the_last_minute(self) -> None:
        """Older measurements do not count, and are dropped."""
        lag = self.lag()
        self.hold_up(0.75)
        self.clock.pump([INTERVAL] * int(WINDOW / INTERVAL - 1))
        self.assertEqual(lag.maximum, 0.75)
        self.clock.pump([INTERVAL] * 1000)
        self.assertEqual((lag.maximum, lag.mean), (0.0, 0.0))
        self.assertLessEqual(len(lag._samples), WINDOW / INTERVAL)

    def test_one_that_has_not_fired(self) -> None:
        """A timer that is due and has not fired counts as well."""
        lag = self.lag()
        self.clock.rightNow += INTERVAL + 3
        self.assertEqual((lag.maximum, lag.mean), (3.0, 3.0))

    def test_told_once_a_minute(self) -> None:
        self.lag()
        self.hold_up(1.0)
        self.assertEqual(self.lines, [])
        self.hold_up(2.0)
        self.hold_up(5.0)
        self.assertEqual(len(self.lines), 1)
        self.assertIn("held up for 2.000 s", self.lines[0])
        self.assertIn("late by 1.500 s on average", self.lines[0])
        self.clock.pump([INTERVAL] * int(WINDOW / INTERVAL))
        self.assertEqual(len(self.lines), 1)
        self.hold_up(1.5)
        self.assertEqual(len(self.lines), 2)

    def test_never_told(self) -> None:
        lag = self.lag(None)
        self.hold_up(100)
        self.assertEqual((self.lines, lag.maximum), ([], 100.0))

    def test_start_and_stop(self) -> None:
        """Twice is as once; after a stop nothing is left to fire, and what was seen can be asked for."""
        lag = self.lag()
        lag.start()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.hold_up(0.5)
        lag.stop()
        lag.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(lag.maximum, 0.5)
        self.clock.advance(WINDOW)
        lag.start()
        self.assertEqual(lag.maximum, 0.0)


class OfAService(MemoryTestCase):
    def setUp(self) -> None:
        super().setUp()
        ae = AE("SCP", reactor=self.network)
        ae.supported_contexts = [build_context(VERIFICATION), build_context(CT)]
        handlers: list[evt.HandlerTuple] = [(evt.EVT_C_STORE, lambda event: 0xA700)]
        self.service = DICOMService(ae, ["tcp:105:interface=127.0.0.1"], evt_handlers=handlers, lag_warning=0.5)

    def vitals(self) -> Vitals:
        return self.service.vitals()

    def test_counts(self) -> None:
        """Operations of associations that are there and of those that are over; each kind of connection."""
        self.assertEqual(self.vitals().connections, 0)
        self.service.startService()
        scu = AE("SCU", reactor=self.network)
        scu.requested_contexts = [build_context(VERIFICATION)]
        first, second = (self.network.result_of(scu.associate("127.0.0.1", 105)) for _ in range(2))
        silent = self.network.scripted_client(105)
        for assoc in (first, second, second):
            self.assertEqual(self.network.result_of(assoc.send_c_echo()), 0)
        found = self.vitals()
        self.assertEqual((found.associations, found.connections, found.operations), (2, 3, {"C-ECHO": 3}))
        self.network.result_of(second.release())
        silent.close()
        found = self.vitals()
        self.assertEqual((found.associations, found.connections, found.operations), (1, 1, {"C-ECHO": 3}))
        self.assertIn("1 associations, 1 connections; since the start 3 C-ECHO; ", str(found))
        self.network.result_of(first.release())
        self.network.result_of(self.service.stopService())
        self.assertEqual(self.vitals().associations, 0)

    def test_lag(self) -> None:
        """It is measured while the service runs."""
        self.service.startService()
        self.network.advance(3)
        self.assertEqual(self.vitals().lag_maximum, self.service.lag.maximum)
        self.network.result_of(self.service.stopService())
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_a_line(self) -> None:
        lines: list[str] = []

        def observe(event: LogEvent) -> None:
            if event.get("log_namespace", "").startswith("dicomtwist"):
                lines.append(formatEvent(event))

        observer: Any = observe
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.service.log_vitals()
        self.assertEqual(len(lines), 1)
        self.assertRegex(lines[0], r"^0 associations, 0 connections; since the start no operations; .* MiB of memory$")


class AtSIGUSR1(TestCase):
    """``twist dicom --workers 2``: each of the processes that serve says how it is doing."""

    timeout = 180

    async def test_workers(self) -> None:
        port = peers.free_port()
        server = await peers.start(
            self,
            sys.executable,
            *("-m", "twisted", "--log-format", "text", "dicom", "--storage", self.mktemp(), "--workers", "2"),
            *("--port", f"tcp:{port}:interface=127.0.0.1", "--lag-warning", "60"),
            ready=port,
            timeout=90,
        )
        await server.until(lambda: "all 2 workers are ready" in server.text, 90, "its workers")
        os.kill(server.pid, signal.SIGUSR1)
        mark = "0 associations, 0 connections; since the start no operations"
        await server.until(lambda: server.text.count(mark) >= 3, 60, "a line of each process")
        self.assertTrue(server.running)


class Memory(SynchronousTestCase):
    def test_it_grows(self) -> None:
        before = resident_memory()
        if not before:
            raise SkipTest("this system does not tell in /proc")
        # Not what Python allocates, for which there may be memory that tests before this one let go of.
        with mmap.mmap(-1, 50_000_000) as kept:
            kept.write(b"x" * 50_000_000)
            self.assertGreater(resident_memory() - before, 40_000_000)


class Blocked(SynchronousTestCase):
    """Executors whose threads are all busy are logged once for each time, with what they do."""

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.network.works = False
        self.executors = Executors(self.network, {"worklist": Bounds(threads=2, max_queued=10)})
        self.lines: list[str] = []
        observer: Any = lambda event: self.lines.append(formatEvent(event))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.blocked = BlockedExecutors(self.network, self.executors, 5.0)
        self.blocked.start()
        self.addCleanup(self.blocked.stop)

    def running(self, number: int) -> None:
        """Let so many threads of the executor for worklists be at a call from now on."""
        executor = self.executors.worklist
        executor._running.clear()
        for _ in range(number):
            work = Work(executor, int, (), {})
            work.name, work.started = "WorklistFolder.read", self.network.seconds()
            executor._running.add(work)

    def advance(self, seconds: float) -> list[str]:
        self.lines.clear()
        for _ in range(int(seconds / INTERVAL)):
            self.network.advance(INTERVAL)
        return self.lines

    def test_once_for_each_time(self) -> None:
        self.running(2)
        self.assertEqual(self.advance(4.5), [])
        (line,) = self.advance(60)
        self.assertIn("all 2 threads of the executor worklist have been busy for 5.0 s, with WorklistFolder.read", line)
        self.running(1)
        (line,) = self.advance(60)
        self.assertIn("worklist has a free thread again", line)
        self.running(2)
        self.assertEqual(len(self.advance(60)), 1)

    def test_busy_with_others(self) -> None:
        """Threads that are busy all the time, with one call after the other, are not logged."""
        for _ in range(10):
            self.running(2)
            self.assertEqual(self.advance(4), [])

    def test_never(self) -> None:
        self.blocked.stop()
        never = BlockedExecutors(self.network, self.executors, None)
        never.start()
        self.assertEqual(self.network.getDelayedCalls(), [])
        never.stop()

    def test_vitals(self) -> None:
        self.running(1)
        self.advance(2)
        vitals = Vitals.of(None, ReactorLag(self.network), self.executors)
        self.assertIn("; worklist 1 of 2 threads busy, the longest call for 2.0 s, 0 calls queued", str(vitals))
        self.assertEqual(vitals.executors[0].work, ("WorklistFolder.read",))
        self.running(0)
        self.assertNotIn("worklist", str(Vitals.of(None, ReactorLag(self.network), self.executors)))
