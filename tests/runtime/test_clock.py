"""A step of the wall clock moves no timer."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from twisted.internet.base import ReactorBase
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import AE
from dicomtwist.runtime import clock
from dicomtwist.runtime.clock import use_monotonic_clock

#: An association of two AEs in one process, whose wall clock steps while it lasts; it prints what became of its timeouts.
PROGRAM = """
import json, time

real, offset = time.time, 0.0
time.time = lambda: real() + offset

from twisted.internet.task import deferLater, react
from dicomtwist import AE

async def main(reactor):
    global offset
    found = {}
    server, client = AE("SERVER"), AE("CLIENT")
    server.add_supported_context("1.2.840.10008.1.1")
    client.add_requested_context("1.2.840.10008.1.1")
    listening = await server.start_server(0)
    association = await client.associate("127.0.0.1", listening.port)
    lost = []
    server.network_timeout = client.network_timeout = 60
    for step in (3600.0, -3600.0, -7200.0):
        offset = step
        # Several rounds of the reactor, in which a timer that is due would fire.
        for _ in range(5):
            await deferLater(reactor, 0)
        found[f"alive {step:g}"] = int(await association.send_c_echo())
    await association.release()
    # The wall clock is two hours back: a timeout still fires.
    client.network_timeout = 0.05
    since = time.monotonic()
    idle = await client.associate("127.0.0.1", listening.port)
    await idle.when_ended()
    found["ended by"] = type(idle.end_reason).__name__
    found["in time"] = time.monotonic() - since < 30
    await listening.shutdown()
    print(json.dumps(found))

react(main)
"""


class MonotonicClock(SynchronousTestCase):
    def setUp(self) -> None:
        self.wall, self.elapsed = 1_800_000_000.0, 5_000.0
        self.patch(ReactorBase, "seconds", staticmethod(lambda: self.wall))
        self.patch(clock, "monotonic", lambda: self.elapsed)
        self.reactor: Any = SelectReactor()
        self.addCleanup(self.reactor.removeAll)
        self.fired: list[str] = []

    def pass_time(self, seconds: float, *, step: float = 0.0) -> list[str]:
        """Let time pass, and set the wall clock by *step* besides; return which timers fired."""
        self.wall += seconds + step
        self.elapsed += seconds
        self.fired.clear()
        self.reactor.runUntilCurrent()
        return self.fired.copy()

    def timer(self, name: str, seconds: float) -> Any:
        return self.reactor.callLater(seconds, self.fired.append, name)

    def test_forward_and_back(self) -> None:
        use_monotonic_clock(self.reactor)
        for step in (3600.0, -3600.0, 86400.0, -10 * 86400.0):
            self.timer("ten", 10)
            self.timer("twenty", 20)
            self.assertEqual(self.pass_time(9, step=step), [], step)
            self.assertEqual(self.reactor.timeout(), 1.0, step)
            self.assertEqual(self.pass_time(1), ["ten"], step)
            self.assertEqual(self.pass_time(10), ["twenty"], step)

    def test_timers_of_before(self) -> None:
        """Timers that ran before the correction keep their time, also those that are cancelled, moved and set again."""
        timers = [self.timer(str(seconds), seconds) for seconds in (50, 10, 40, 20, 30)]
        self.pass_time(0)
        timers[2].cancel()
        use_monotonic_clock(self.reactor)
        self.assertEqual(self.pass_time(9, step=-3600), [])
        timers[3].reset(25)
        timers[4].delay(30)
        self.assertEqual(self.pass_time(1), ["10"])
        self.assertEqual(self.pass_time(23, step=7200), [])
        self.assertEqual(self.pass_time(1), ["20"])
        self.assertEqual(self.pass_time(16), ["50"])
        self.assertEqual(self.pass_time(10), ["30"])

    def test_seconds_go_on(self) -> None:
        before = self.reactor.seconds()
        use_monotonic_clock(self.reactor)
        self.assertEqual(self.reactor.seconds(), before)
        self.pass_time(2.5, step=-3600)
        self.assertEqual(self.reactor.seconds(), before + 2.5)

    def test_once(self) -> None:
        use_monotonic_clock(self.reactor)
        seconds = self.reactor.seconds
        self.pass_time(1, step=3600)
        use_monotonic_clock(self.reactor)
        self.assertIs(self.reactor.seconds, seconds)

    def test_a_clock_of_its_own_is_kept(self) -> None:
        fake = Clock()
        use_monotonic_clock(fake)
        self.assertEqual(fake.seconds(), 0.0)
        self.reactor.seconds = fake.seconds
        use_monotonic_clock(self.reactor)
        self.assertEqual(self.reactor.seconds, fake.seconds)

    def test_an_ae_sees_to_it(self) -> None:
        AE(reactor=self.reactor)
        self.assertIsNot(self.reactor.seconds, ReactorBase.seconds)


class Process(SynchronousTestCase):
    def test_associations_and_their_timeouts(self) -> None:
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(
            json.loads(done.stdout),
            {"alive 3600": 0, "alive -3600": 0, "alive -7200": 0, "ended by": "AssociationTimeout", "in time": True},
        )
