"""
The figures of the last minutes: a few numbers of a process every five seconds, for charts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from time import time
from typing import Any, Final, TypeAlias

__all__ = ["STEP", "Figures", "History", "merged"]

#: The time between two samples, in seconds.
STEP: Final = 5
#: The samples that are kept: a quarter of an hour.
MAX_SAMPLES: Final = 180

#: Numbers by their names.
Figures: TypeAlias = Mapping[str, float]
#: A sample: its number, which is the time in seconds since 1970 divided by :data:`STEP`, and its figures.
Sample: TypeAlias = tuple[int, dict[str, float]]


class History:
    """
    The samples of one process.

    :param clock: the reactor.
    :param gauges: returns the figures that are taken as they are.
    :param totals: returns the figures that grow; their growth in a second is kept.
    :param now: returns the time in seconds since 1970, by which the samples of several processes are put together.
    """

    def __init__(
        self,
        clock: Any,
        gauges: Callable[[], Figures],
        totals: Callable[[], Figures],
        now: Callable[[], float] = time,
    ) -> None:
        self._clock = clock
        self._gauges = gauges
        self._totals = totals
        self._now = now
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._before: tuple[float, Figures] | None = None
        self._call: Any = None

    def start(self) -> None:
        """Take samples from now on."""
        if self._call is None:
            self._before = (self._clock.seconds(), self._totals())
            self._next()

    def stop(self) -> None:
        """Take no more samples."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def snapshot(self) -> list[Sample]:
        """Return the samples, the earliest first."""
        return [*self._samples]

    def _next(self) -> None:
        # At the next multiple of the step, so that the samples of all processes are of the same times.
        self._call = self._clock.callLater(STEP - self._now() % STEP, self._take)

    def _take(self) -> None:
        self._next()
        now, totals = self._clock.seconds(), self._totals()
        before, self._before = self._before, (now, totals)
        figures = dict(self._gauges())
        if before is not None and now > before[0]:
            for name, value in totals.items():
                figures[name] = max(0.0, (value - before[1].get(name, 0.0)) / (now - before[0]))
        self._samples.append((round(self._now() / STEP), {name: round(value, 6) for name, value in figures.items()}))


def merged(
    histories: Iterable[Iterable[Sample]], now: float, maxima: frozenset[str], count: int = MAX_SAMPLES
) -> dict[str, list[float | None]]:
    """
    Return the figures of several processes together, as a list by the name of each, the earliest first.

    ``None`` stands for a time without a sample.

    :param histories: the samples of each process.
    :param now: the time of the last sample, in seconds since 1970.
    :param maxima: the names of the figures of which the largest counts; others are added up.
    :param count: the number of samples.
    """
    last = int(now // STEP)
    slots: list[dict[str, float]] = [{} for _ in range(count)]
    for samples in histories:
        for number, figures in samples:
            at = number - last + count - 1
            if 0 <= at < count:
                slot = slots[at]
                for name, value in figures.items():
                    slot[name] = max(slot.get(name, 0.0), value) if name in maxima else slot.get(name, 0.0) + value
    names = sorted({name for slot in slots for name in slot})
    return {name: [slot.get(name) for slot in slots] for name in names}
