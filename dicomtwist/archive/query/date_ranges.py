"""
Matching of dates, of times, and of both combined, with time zones (PS3.4 C.2.2.2.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final

from dicomtwist.archive.index.attributes import BY_TAG
from dicomtwist.archive.index.normal_forms import (
    FIRST_TIME,
    LAST_DATE,
    LAST_TIME,
    date_range,
    datetime_range,
    parse_offset,
    shift,
    time_range,
)

_BY_KEYWORD: Final = {attribute.keyword: attribute.tag for attribute in BY_TAG.values()}
#: The tag of a date -> that of its time.
_PAIRS: Final = {
    tag: _BY_KEYWORD[keyword[:-4] + "Time"]
    for keyword, tag in _BY_KEYWORD.items()
    if keyword.endswith("Date") and keyword[:-4] + "Time" in _BY_KEYWORD
}


def paired_time(tag: int) -> int | None:
    """Return the tag of the time that belongs to a date."""
    return _PAIRS.get(tag)


def single_range(vr: str, value: str, zone: tzinfo | None) -> tuple[str, str]:
    """
    Return the first and last value, in normal form, that a key of VR DA, TM or DT matches.

    :raises ValueError: *value* is not valid for that VR.
    """
    if vr == "DT":
        return datetime_range(value, zone)
    return date_range(value) if vr == "DA" else time_range(value)


@dataclass(frozen=True, slots=True)
class Moments:
    """
    A range of moments.

    :ivar first: its first date and time, in normal form.
    :ivar last: its last date and time.
    :ivar is_shifted: whether both are in the time zone *source*, so that data has to be converted to it.
    :ivar source: the time zone of *first* and *last*, if *is_shifted*.
    :ivar zone: the time zone of data without a Timezone Offset From UTC; ``None`` is that of this machine.
    """

    first: tuple[str, str]
    last: tuple[str, str]
    is_shifted: bool = False
    source: tzinfo | None = None
    zone: tzinfo | None = None

    @property
    def days(self) -> tuple[str, str]:
        """The dates that the range may touch in any time zone."""
        return _days_later(self.first[0], -1), _days_later(self.last[0], 1)

    def contains(self, row: Sequence[Any]) -> bool:
        """Whether the moment of a row is in the range. The row has a date, a time and a Timezone Offset From UTC."""
        date, time, offset = row
        if not date:
            return False
        moment = shift(date, time or FIRST_TIME, parse_offset(offset) or self.zone, self.source)
        return self.first <= moment <= self.last


def _days_later(date: str, days: int) -> str:
    try:
        return (datetime.strptime(date, "%Y%m%d") + timedelta(days=days)).strftime("%Y%m%d").rjust(8, "0")
    except (ValueError, OverflowError):
        return date  # an open end


def moments(date: str, time: str, offset: str, zone: tzinfo | None) -> Moments:
    """
    Return the moments from the first date and time of two keys to the last.

    :param time: empty for whole days.
    :param offset: Timezone Offset From UTC of the keys; if it is empty, that of the data.
    :raises ValueError: a key is invalid.
    """
    first_date, last_date = date_range(date)
    first_time, last_time = time_range(time) if time else (FIRST_TIME, LAST_TIME)
    # If an end of the date is open, the time does not limit it either.
    first = (first_date, first_time if first_date != "0" else FIRST_TIME)
    last = (last_date, last_time if last_date != LAST_DATE else LAST_TIME)
    source = parse_offset(offset) if offset else None
    if offset and source is None:
        raise ValueError(f"{offset[:16]!r} is no offset from UTC")
    return Moments(first, last, source is not None, source, zone)
