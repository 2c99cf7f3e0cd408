"""
The asynchronous operations window: places, and who waits for them.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.exchange.operations_window import Window


def _noting(numbers: list[int], number: int) -> Callable[[None], None]:
    def note(_: None) -> None:
        numbers.append(number)

    return note


class WindowTests(SynchronousTestCase):
    """
    Window.
    """

    def test_places(self) -> None:
        """
        As many places as its limit are given at once, the next one waits.
        """
        window = Window(2)
        for used in (1, 2):
            self.successResultOf(window.enter())
            self.assertEqual(window.used, used)
        third = window.enter()
        self.assertNoResult(third)
        self.assertEqual((window.used, window.waiting), (2, 3))
        window.leave()
        self.successResultOf(third)
        self.assertEqual((window.used, window.waiting), (2, 2))

    def test_in_order(self) -> None:
        """
        Places are given in the order of the calls; a later call does not overtake.
        """
        window = Window(1)
        self.successResultOf(window.enter())
        order: list[int] = []
        for number in range(3):
            window.enter().addCallback(_noting(order, number))
        for _ in range(3):
            window.leave()
        self.assertEqual(order, [0, 1, 2])
        window.leave()
        self.assertEqual((window.used, window.waiting), (0, 0))

    def test_cancelled(self) -> None:
        """
        A cancelled wait takes no place, and the next one in the queue moves up.
        """
        window = Window(1)
        self.successResultOf(window.enter())
        first, second = window.enter(), window.enter()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(window.waiting, 2)
        window.leave()
        self.successResultOf(second)
        self.assertEqual(window.used, 1)

    def test_left_inside_of_entering(self) -> None:
        """
        A place that is given back at once goes to the next one, however deep.
        """
        window = Window(1)
        self.successResultOf(window.enter())
        passed: list[int] = []
        for number in range(100):
            window.enter().addCallback(_noting(passed, number)).addCallback(lambda _: window.leave())
        window.leave()
        self.assertEqual((passed, window.used), (list(range(100)), 0))

    def test_fails(self) -> None:
        """
        A failure is for each who waits, and for each who comes; who has a place gives it back as ever.
        """
        window = Window(1)
        self.successResultOf(window.enter())
        waiting = [window.enter(), window.enter()]
        reason = Failure(ConnectionError("lost"))
        window.fail(reason)
        for deferred in (*waiting, window.enter()):
            self.assertIs(self.failureResultOf(deferred).value, reason.value)
        window.leave()
        self.assertEqual((window.used, window.waiting), (0, 0))

    @given(st.integers(1, 5), st.lists(st.sampled_from(["enter", "leave", "cancel"])))
    def test_any_order(self, limit: int, steps: list[str]) -> None:
        """
        In any order of calls, no more places than the limit are taken, and no call waits while a place is free.
        """
        window = Window(limit)
        inside: list[int] = []
        waiting: list[tuple[int, Deferred[None]]] = []
        for number, step in enumerate(steps):
            if step == "enter":
                deferred = window.enter()
                waiting.append((number, deferred))
                deferred.addCallbacks(_noting(inside, number), lambda reason: reason.trap(CancelledError))
            elif step == "leave" and inside:
                inside.pop(0)
                window.leave()
            elif step == "cancel" and waiting:
                waiting[-1][1].cancel()
            waiting = [entry for entry in waiting if not entry[1].called]
            self.assertEqual(window.used, len(inside))
            self.assertLessEqual(window.used, limit)
            self.assertEqual(window.waiting, len(inside) + len(waiting))
            self.assertTrue(window.used == limit or not waiting)
