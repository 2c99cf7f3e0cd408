"""
Counts and durations by labels, which cost almost nothing to keep.

They are plain numbers in dicts. An export reads a snapshot; nothing is kept for each export. A peer can choose the text of some
labels, so the number of series is bounded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterator, Sequence
from typing import Final, Generic, TypeAlias, TypeVar

__all__ = ["BOUNDS", "OTHER", "Counts", "Durations"]

#: The most series of one figure. The services of DIMSE with their usual statuses are about 60.
MAX_SERIES: Final = 250
#: The last label of what is counted beyond the bound.
OTHER: Final = "other"
#: The upper bounds of the classes of durations, in seconds.
BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

#: The labels of a series.
Labels: TypeAlias = tuple[Hashable, ...]
_Label = TypeVar("_Label", bound=Hashable)


class Counts:
    """
    Counts by labels.

    :param maximum: the most series; further ones are counted together, with :data:`OTHER` as their last label.
    """

    __slots__ = ("_counts", "_maximum")

    def __init__(self, maximum: int = MAX_SERIES) -> None:
        self._counts: dict[Labels, int] = {}
        self._maximum = maximum

    def add(self, labels: Labels, by: int = 1) -> None:
        """Count *by* more."""
        counts = self._counts
        if labels in counts:
            counts[labels] += by
        elif len(counts) < self._maximum:
            counts[labels] = by
        else:
            rest = (*labels[:-1], OTHER)
            counts[rest] = counts.get(rest, 0) + by

    def __getitem__(self, labels: Labels) -> int:
        return self._counts.get(labels, 0)

    def items(self) -> list[tuple[Labels, int]]:
        """Return the labels and the count of each series."""
        return list(self._counts.items())


class Durations(Generic[_Label]):
    """
    The distribution of durations, by one label.

    :param bounds: the upper bounds of the classes, in seconds, in ascending order; a further class has no bound.
    :param maximum: the most series; further ones are not kept.
    """

    __slots__ = ("_maximum", "_series", "bounds")

    def __init__(self, bounds: Sequence[float] = BOUNDS, maximum: int = MAX_SERIES) -> None:
        self.bounds = tuple(bounds)
        self._maximum = maximum
        self._series: dict[_Label, tuple[list[int], list[float]]] = {}

    def add(self, label: _Label, seconds: float) -> None:
        """Add a duration."""
        series = self._series.get(label)
        if series is None:
            if len(self._series) >= self._maximum:
                return
            series = self._series[label] = ([0] * (len(self.bounds) + 1), [0.0])
        series[0][bisect_left(self.bounds, seconds)] += 1
        series[1][0] += seconds

    def items(self) -> Iterator[tuple[_Label, list[int], float]]:
        """Yield of each series the label, the number of durations in each class, and their sum in seconds."""
        for label, (classes, total) in list(self._series.items()):
            yield label, list(classes), total[0]
