"""Rates and hours."""

from __future__ import annotations

import os
import time
import unittest
from datetime import datetime

from hypothesis import given
from hypothesis import strategies as st

from dicomtwist.forwarding.delivery.rate import Rate, wait_for_hours
from dicomtwist.forwarding.values import parse_hours


class Rates(unittest.TestCase):
    def test_burst_and_debt(self) -> None:
        rate = Rate(1000)
        self.assertEqual(rate.wait(0), 0)
        rate.take(3000, 0)  # larger than what a second allows: sent whole, and paid for afterwards
        self.assertEqual(rate.wait(0), 2)
        self.assertEqual(rate.wait(1.5), 0.5)
        self.assertEqual(rate.wait(2.5), 0)

    def test_no_more_than_a_second_is_saved(self) -> None:
        rate = Rate(1000)
        rate.wait(0)
        rate.wait(3600)
        rate.take(2000, 3600)
        self.assertEqual(rate.wait(3600), 1)

    def test_a_clock_that_goes_back(self) -> None:
        rate = Rate(1000)
        rate.take(1500, 100)
        self.assertEqual(rate.wait(50), 0.5)
        self.assertEqual(rate.wait(50.6), 0)

    @given(st.lists(st.integers(1, 5000), min_size=1, max_size=200), st.integers(1, 3000))
    def test_the_mean_is_kept(self, sizes: list[int], bytes_a_second: int) -> None:
        rate, now = Rate(bytes_a_second), 0.0
        for size in sizes:
            while (wait := rate.wait(now)) > 0:
                now += wait
            rate.take(size, now)
        allowed = bytes_a_second * (now + 1) + max(sizes)
        self.assertLessEqual(sum(sizes), allowed + 1)


class WaitForHours(unittest.TestCase):
    def setUp(self) -> None:
        before = os.environ.get("TZ")

        def restore() -> None:
            if before is None:
                os.environ.pop("TZ", None)
            else:
                os.environ["TZ"] = before
            time.tzset()

        self.addCleanup(restore)
        os.environ["TZ"] = "Europe/Berlin"
        time.tzset()

    def test_none(self) -> None:
        self.assertEqual(wait_for_hours(None, 12345.0), 0)

    def test_local_time(self) -> None:
        hours = parse_hours(["22:00-06:00"])
        at = datetime(2026, 1, 15, 21, 58, 30).timestamp()
        self.assertAlmostEqual(wait_for_hours(hours, at), 90)
        self.assertEqual(wait_for_hours(hours, at + 90), 0)
        self.assertEqual(wait_for_hours(hours, datetime(2026, 1, 15, 5, 59, 59).timestamp()), 0)
        self.assertGreater(wait_for_hours(hours, datetime(2026, 1, 15, 6, 0, 0).timestamp()), 15 * 3600)

    @given(st.floats(1.7e9, 1.9e9))
    def test_it_ends_in_the_hours(self, at: float) -> None:
        hours = parse_hours(["12:00-13:00", "22:00-06:00"])
        wait = wait_for_hours(hours, at)
        self.assertLessEqual(wait, 24 * 3600)
        if wait and not 2 <= datetime.fromtimestamp(at).hour <= 3:  # an hour in which the clock changes
            self.assertEqual(wait_for_hours(hours, at + wait + 1e-3), 0)
