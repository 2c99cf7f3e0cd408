"""The breaker of a destination: one attempt at a time while it is down."""

from __future__ import annotations

import unittest

from hypothesis import given
from hypothesis import strategies as st

from dicomtwist.forwarding.delivery.breaker import LONGEST_ASKED, LONGEST_PAUSE, MAX_LOST, Breaker, BreakerState


def breaker() -> Breaker:
    return Breaker(lambda: 0.0)


class Breakers(unittest.TestCase):
    def test_closed(self) -> None:
        one = breaker()
        self.assertIs(one.state(0), BreakerState.CLOSED)
        self.assertIsNone(one.room(0))
        one.begin()
        self.assertIsNone(one.room(0))
        self.assertFalse(one.succeeded())

    def test_open_after_a_failure(self) -> None:
        one = breaker()
        self.assertTrue(one.failed(100, "refused"))
        self.assertEqual(
            (one.state(100.5), one.room(100.5), one.said, one.since), (BreakerState.OPEN, 0, "refused", 100)
        )
        self.assertEqual((one.state(101), one.room(101)), (BreakerState.PROBING, 1))

    def test_one_attempt_at_a_time(self) -> None:
        one = breaker()
        one.failed(100, "refused")
        one.begin()
        self.assertEqual((one.state(500), one.room(500)), (BreakerState.PROBING, 0))
        self.assertFalse(one.failed(500, "refused again"))
        self.assertEqual((one.state(501.9), one.state(502)), (BreakerState.OPEN, BreakerState.PROBING))
        self.assertEqual(one.since, 100)

    def test_success_closes(self) -> None:
        one = breaker()
        one.failed(100, "refused")
        one.begin()
        self.assertTrue(one.succeeded())
        self.assertEqual((one.state(101), one.said), (BreakerState.CLOSED, ""))

    def test_an_attempt_that_says_nothing(self) -> None:
        one = breaker()
        one.failed(100, "refused")
        one.begin()
        one.give_up()
        self.assertEqual(one.room(102), 1)

    def test_pauses_grow(self) -> None:
        one, now, pauses = breaker(), 0.0, []
        for _ in range(9):
            one.begin()
            one.failed(now, "refused")
            pauses.append(one.until - now)
            now = one.until
        self.assertEqual(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60])

    def test_failures_of_attempts_before_count_once(self) -> None:
        """Eight associations that end together are one failure, not pauses of eight."""
        one = breaker()
        for _ in range(8):
            one.failed(100, "lost")
        self.assertEqual((one.failures, one.until), (1, 101))

    def test_the_pause_that_the_destination_asks_for(self) -> None:
        one = breaker()
        one.failed(0, "busy", 300)
        self.assertEqual(one.until, 300)
        one.begin()
        one.failed(300, "busy", 10**9)
        self.assertEqual(one.until, 300 + LONGEST_ASKED)

    def test_lost_connections(self) -> None:
        one = breaker()
        for _ in range(MAX_LOST - 1):
            self.assertFalse(one.lost(0, "aborts"))
        self.assertIs(one.state(0), BreakerState.CLOSED)
        self.assertTrue(one.lost(0, "aborts"))
        self.assertIs(one.state(0), BreakerState.OPEN)

    def test_an_answer_between_lost_connections(self) -> None:
        one = breaker()
        for _ in range(10):
            one.lost(0, "aborts")
            one.succeeded()
        self.assertIs(one.state(0), BreakerState.CLOSED)

    def test_a_lost_attempt_of_one_that_is_down(self) -> None:
        one = breaker()
        one.failed(0, "refused")
        one.begin()
        one.lost(1, "aborts")
        self.assertEqual((one.state(1), one.failures), (BreakerState.OPEN, 2))

    @given(st.lists(st.tuples(st.sampled_from(["begin", "failed", "lost", "ok", "give_up"]), st.floats(0, 100))))
    def test_any_order(self, steps: list[tuple[str, float]]) -> None:
        one, now = breaker(), 0.0
        for what, seconds in steps:
            now += seconds
            if what == "begin":
                if one.room(now) != 0:
                    one.begin()
            elif what == "failed":
                one.failed(now, "x")
            elif what == "lost":
                one.lost(now, "x")
            elif what == "ok":
                one.succeeded()
            else:
                one.give_up()
            self.assertIn(one.room(now), (None, 0, 1))
            self.assertLessEqual(one.until, now + LONGEST_PAUSE)
            self.assertEqual(one.room(now) is None, one.state(now) is BreakerState.CLOSED)
