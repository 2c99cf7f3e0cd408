"""
Values as people read them: names, dates, times, sizes, durations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

__all__ = [
    "birth",
    "clock_time",
    "count",
    "date",
    "duration",
    "first",
    "items",
    "number",
    "person",
    "short_path",
    "size",
    "time_of_day",
    "value",
    "whole",
]

#: Stands for a value that is not known.
NOTHING: Final = "\N{EN DASH}"

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def short_path(path: str) -> str:
    """Return the path of a URL with its UIDs shortened to their last characters: ``/studies/…7819.2``."""
    return re.sub(r"(?<=/)[0-9.]{16,}(?=/|$)", lambda found: "\N{HORIZONTAL ELLIPSIS}" + found[0][-8:], path)


def value(answer: Mapping[str, Any], tag: str, separator: str = ", ") -> str:
    """
    Return the values of an element as text, ``""`` if there is none.

    :param answer: an object of DICOM JSON.
    :param tag: the tag, eight hexadecimal digits.
    """
    values = answer.get(tag, {}).get("Value", ())
    return separator.join(
        person(one) if isinstance(one, Mapping) else "" if one is None else str(one) for one in values
    )


def first(answer: Mapping[str, Any], tag: str) -> Any:
    """Return the first value of an element, ``None`` if there is none."""
    values = answer.get(tag, {}).get("Value", ())
    return values[0] if values else None


def number(answer: Mapping[str, Any], tag: str) -> float | None:
    """
    Return the first value of an element as a number; ``None`` if it is text, infinite, or missing.

    The VR of an element is what a peer has sent, so that a number may be any text, or an item.
    """
    found = first(answer, tag)
    try:
        value = float(found) if isinstance(found, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def whole(answer: Mapping[str, Any], tag: str, highest: int) -> int | None:
    """Return the first value of an element as a whole number from 0 to *highest*; ``None`` if it is another one, or missing."""
    found = number(answer, tag)
    return int(found) if found is not None and 0 <= found <= highest else None


def items(answer: Mapping[str, Any], tag: str) -> list[Mapping[str, Any]]:
    """Return the items of an element; none if it has other values, or is not there."""
    values = answer.get(tag, {}).get("Value", ())
    return [one for one in values if isinstance(one, Mapping)]


def person(name: Mapping[str, Any]) -> str:
    """
    Return a person's name (PS3.5 6.2.1) as it is written: ``Doe, Jane Q. (Dr)``, with the other writings after it.

    :param name: the writings of the name, as DICOM JSON has them.
    """
    written = []
    for writing in ("Alphabetic", "Ideographic", "Phonetic"):
        text = str(name.get(writing) or "")
        family, given, middle, prefix, suffix = [*(part.strip() for part in text.split("^")), *[""] * 5][:5]
        rest = " ".join(part for part in (given, middle) if part)
        one = ", ".join(part for part in (family, rest) if part)
        titles = ", ".join(part for part in (prefix, suffix) if part)
        if titles:
            one = f"{one} ({titles})" if one else titles
        if one:
            written.append(one)
    return " · ".join(written)


def date(text: str) -> str:
    """Return a date (VR DA) as ``2024-12-31``; any other text as it is."""
    text = text.strip()
    if len(text) == 8 and text.isascii() and text.isdigit():
        return f"{text[:4]}-{text[4:6]}-{text[6:]}"
    return text


def time_of_day(text: str) -> str:
    """Return a time (VR TM) as ``08:30``; any other text as it is."""
    text = text.strip()
    digits = text.partition(".")[0].replace(":", "")
    if digits.isascii() and digits.isdigit() and len(digits) in (2, 4, 6):
        return f"{digits[:2]}:{digits[2:4] or '00'}"
    return text


def birth(answer: Mapping[str, Any]) -> str:
    """Return the date of birth and the sex of a patient, as far as they are known."""
    return " · ".join(one for one in (date(value(answer, "00100030")), value(answer, "00100040")) if one)


def size(number: float | None) -> str:
    """Return a number of bytes in units of 1000: ``1.2 MB``."""
    if number is None:
        return NOTHING
    amount, unit = float(number), 0
    while amount >= 999.5 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.0f} {_UNITS[unit]}" if unit == 0 or amount >= 99.5 else f"{amount:.1f} {_UNITS[unit]}"


def count(number: float | None) -> str:
    """Return a number with separators, and with decimals if it is small: ``12,345``, ``0.4``."""
    if number is None:
        return NOTHING
    if number and number < 10 and number != int(number):
        return f"{number:.1f}" if number >= 0.095 else "<0.1"
    return f"{number:,.0f}"


def duration(seconds: float | None) -> str:
    """Return a time as ``0.4 ms``, ``35 ms``, ``1.2 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds is None:
        return NOTHING
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.00995 or not seconds else f"{seconds * 1000:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for upper, unit, lower, lower_unit in (
        (3600, 60, 1, "min s"),
        (86400, 3600, 60, "h min"),
        (10**12, 86400, 3600, "d h"),
    ):
        if whole < upper:
            large, small = lower_unit.split()
            rest = whole % unit // lower
            return f"{whole // unit} {large} {rest} {small}" if rest else f"{whole // unit} {large}"
    return NOTHING


def clock_time(text: str) -> str:
    """Return a time in ISO 8601 as the time of day on this machine; with the date if it is not today."""
    then = datetime.fromisoformat(text).astimezone()
    today = datetime.now().astimezone().date()
    return then.strftime("%H:%M:%S" if then.date() == today else "%Y-%m-%d %H:%M:%S")
