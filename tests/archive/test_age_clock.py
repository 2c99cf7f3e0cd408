"""
The clock that ages are measured with.
"""

from __future__ import annotations

from typing import cast

from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.removal.age_clock import AgeClock

DAY = 86400.0


class Steps(SynchronousTestCase):
    def setUp(self) -> None:
        self.wall = 1e9
        self.steady = 50.0
        self.clock = AgeClock(lambda: self.wall, lambda: self.steady)
        self.warnings: list[float] = []
        look = cast(ILogObserver, self.look)
        globalLogPublisher.addObserver(look)
        self.addCleanup(globalLogPublisher.removeObserver, look)

    def look(self, event: LogEvent) -> None:
        if "system clock" in str(event.get("log_format")):
            self.warnings.append(event["seconds"])

    def go(self, wall: float, steady: float) -> float:
        """Let the two clocks go on, and return the time, in seconds since the start."""
        self.wall += wall
        self.steady += steady
        return self.clock() - 1e9

    def test_no_step(self) -> None:
        self.assertEqual(self.go(10 * DAY, 10 * DAY), 10 * DAY)
        self.assertEqual(self.warnings, [])

    def test_a_correction(self) -> None:
        """The seconds by which a time service corrects the clock are followed."""
        self.assertEqual(self.go(60, 50), 60)
        self.assertEqual(self.go(40, 50), 100)
        self.assertEqual(self.warnings, [])

    def test_forward(self) -> None:
        self.assertEqual(self.go(400 * DAY, 10), 10)
        self.assertEqual(self.go(10, 10), 20)
        self.assertEqual(self.warnings, [400 * DAY - 10])
        self.assertEqual(self.go(-400 * DAY, 10), 10)
        self.go(400 * DAY, 0)
        self.assertEqual(len(self.warnings), 2)

    def test_back(self) -> None:
        """It is followed, and a step forward behind it is left out, whichever of the two was right."""
        self.assertEqual(self.go(-DAY, 10), -DAY)
        self.assertEqual(self.go(DAY, 0), -DAY)
        self.assertEqual(len(self.warnings), 1)
