"""
Small charts as SVG. They have neither scripts nor styles of their own; the style sheet of the pages colours them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["area", "latest", "peak"]

#: The size of the drawing; the style sheet scales it to the width of its place.
WIDTH: Final = 300
HEIGHT: Final = 60
#: The space above the highest value.
_TOP: Final = 4


def area(values: Sequence[float | None], at_least: float = 0.0) -> str:
    """
    Return a chart of values over time as the content of an ``svg`` element with ``viewBox="0 0 300 60"``.

    :param values: the values, the earliest first; a gap for ``None``.
    :param at_least: the value that the height stands for at least, so that small values look small.
    """
    top = max([at_least, *(one for one in values if one is not None)])
    step = WIDTH / max(1, len(values) - 1)
    top = top if top > 0 else 1.0
    lines, fills = [], []
    for begin, run in _runs(values):
        points = [
            f"{_short((begin + i) * step)},{_short(HEIGHT - value / top * (HEIGHT - _TOP))}"
            for i, value in enumerate(run)
        ]
        if len(points) == 1:
            points.append(f"{_short(min(WIDTH, (begin + 1) * step))},{points[0].partition(',')[2]}")
        left, right = points[0].partition(",")[0], points[-1].partition(",")[0]
        lines.append("M" + " ".join(points))
        fills.append(f"M{left},{HEIGHT} L{' '.join(points)} L{right},{HEIGHT}Z")
    return (
        f'<path class="grid" d="M0,{_TOP}H{WIDTH}M0,{(HEIGHT + _TOP) // 2}H{WIDTH}M0,{HEIGHT - 0.5}H{WIDTH}"/>'
        f'<path class="fill" d="{"".join(fills)}"/><path class="line" d="{"".join(lines)}"/>'
    )


def latest(values: Sequence[float | None]) -> float | None:
    """Return the last value that is there, among the last three."""
    return next((one for one in reversed(values[-3:]) if one is not None), None)


def peak(values: Sequence[float | None]) -> float | None:
    """Return the largest value."""
    return max((one for one in values if one is not None), default=None)


def _runs(values: Sequence[float | None]) -> list[tuple[int, list[float]]]:
    """Return the runs of values without a gap, each with its beginning."""
    runs: list[tuple[int, list[float]]] = []
    is_gap = True
    for i, value in enumerate(values):
        if value is None:
            is_gap = True
            continue
        if is_gap:
            runs.append((i, []))
        is_gap = False
        runs[-1][1].append(value)
    return runs


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
