"""Figures: counts and durations, whose series are bounded."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.runtime.figures.counts import BOUNDS, Counts, Durations
from dicomtwist.runtime.figures.network import OperationFigures


class CountsTests(SynchronousTestCase):
    def test_counts(self) -> None:
        counts = Counts()
        counts.add(("C-ECHO", 0))
        counts.add(("C-ECHO", 0), 2)
        counts.add(("C-STORE", 0xA700))
        self.assertEqual(counts.items(), [(("C-ECHO", 0), 3), (("C-STORE", 0xA700), 1)])
        self.assertEqual((counts["C-ECHO", 0], counts["C-FIND", 0]), (3, 0))

    def test_a_peer_that_invents_statuses(self) -> None:
        counts = Counts(10)
        for status in range(0xFFFF):
            counts.add(("C-STORE", status))
            counts.add(("C-FIND", status))
        self.assertEqual(len(counts.items()), 12)
        self.assertEqual(sum(count for _, count in counts.items()), 2 * 0xFFFF)
        self.assertEqual(counts["C-FIND", "other"], 0xFFFF - 5)


class DurationsTests(SynchronousTestCase):
    def test_classes(self) -> None:
        durations: Durations[str] = Durations((0.1, 1.0))
        for seconds in (0.0, 0.1, 0.2, 1.0, 1.5, 100.0):
            durations.add("a", seconds)
        ((label, classes, total),) = durations.items()
        self.assertEqual((label, classes), ("a", [2, 2, 2]))
        self.assertAlmostEqual(total, 102.8)

    def test_bounded(self) -> None:
        durations: Durations[int] = Durations(maximum=3)
        for label in range(100):
            durations.add(label, 1.0)
        self.assertEqual([label for label, _, _ in durations.items()], [0, 1, 2])

    def test_bounds_ascend(self) -> None:
        self.assertEqual(sorted(set(BOUNDS)), list(BOUNDS))


class OperationTests(SynchronousTestCase):
    def test_done(self) -> None:
        figures = OperationFigures()
        figures.done("C-STORE", 0, 0.002)
        figures.done("C-STORE", 0xA700, 0.2)
        self.assertEqual(dict(figures.counts.items()), {("C-STORE", 0): 1, ("C-STORE", 0xA700): 1})
        ((_, classes, _),) = figures.durations.items()
        self.assertEqual(sum(classes), 2)
