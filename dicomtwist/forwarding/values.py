"""
Values in the tables of forwarding: durations, hours of the day, rates. No I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["Hours", "parse_duration", "parse_hours", "parse_rate"]

_MINUTES: Final = 24 * 60
_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES: Final = {
    "": 1,
    "B": 1,
    "kB": 1000,
    "MB": 1000_000,
    "GB": 1000_000_000,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}
_HOURS: Final = re.compile(r"([01]\d|2[0-4]):([0-5]\d)\s*-\s*([01]\d|2[0-4]):([0-5]\d)")


@dataclass(frozen=True, slots=True)
class Hours:
    """
    Parts of the day.

    :ivar parts: each part from a minute of the day up to another one, which is not in it; one that ends before it
        begins goes on past midnight.
    """

    parts: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        times = ((f"{minute // 60:02}:{minute % 60:02}" for minute in part) for part in self.parts)
        return ", ".join("-".join(one) for one in times)

    def has(self, minute: int) -> bool:
        """Return whether *minute* of the day, 0 to 1439, is in one of the parts."""
        return any(
            begin <= minute < end if begin < end else minute >= begin or minute < end for begin, end in self.parts
        )

    def wait(self, minute: int) -> int:
        """Return how many minutes it is from *minute* of the day to the next minute in one of the parts; 0 if it is in one."""
        return 0 if self.has(minute) else min((begin - minute) % _MINUTES for begin, _ in self.parts)


def parse_hours(texts: list[str]) -> Hours:
    """
    Return the parts of the day that *texts* name, each such as ``"22:00-06:00"``.

    :raises ValueError: one is wrong, or there is none.
    """
    parts = []
    for text in texts:
        found = _HOURS.fullmatch(text.strip())
        begin, end = (int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])) if found else (0, 0)
        if begin == end or begin >= _MINUTES or end > _MINUTES:
            raise ValueError(f"{text!r} is no part of a day: write it as 22:00-06:00")
        parts.append((begin, end))
    if not parts:
        raise ValueError("it is empty: leave it out for the whole day")
    return Hours(tuple(parts))


def parse_duration(value: object) -> float:
    """
    Return a duration in seconds.

    :param value: a number of seconds, or a text with a unit, such as ``"60s"``, ``"5m"``, ``"2h"``.
    :raises ValueError: it is neither, or below 0.
    """
    return _number(value, _UNITS, "a duration", "60s, 5m or 2h")


def parse_rate(value: object) -> float:
    """
    Return a rate in bytes a second.

    :param value: a number, or a text with a unit, such as ``"2MB"``; ``/s`` may follow.
    :raises ValueError: it is neither, or not above 0.
    """
    rate = _number(value.strip().removesuffix("/s") if isinstance(value, str) else value, _SIZES, "a rate", "2MB/s")
    if not rate:
        raise ValueError("a rate is above 0")
    return rate


def _number(value: object, units: dict[str, float] | dict[str, int], what: str, example: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    if isinstance(value, str) and (found := re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([A-Za-z]*)\s*", value)):
        if found[2] in units:
            return float(found[1]) * units[found[2]]
    raise ValueError(f"{value!r} is not {what}: write it as {example}")
