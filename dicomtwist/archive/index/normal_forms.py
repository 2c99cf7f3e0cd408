"""
The normal forms in which values are compared: names, dates and times, and wildcards as patterns (PS3.4 C.2.2.2).

The module is independent of any database. The normal form of an invalid date or time is an empty text, which no key matches.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import Final

__all__ = [
    "any_of",
    "check_key",
    "date_range",
    "datetime_key",
    "datetime_range",
    "has_wildcard",
    "like_pattern",
    "name_groups",
    "name_key",
    "normal_date",
    "parse_offset",
    "shift",
    "sounds",
    "time_key",
    "time_range",
    "wildcard_regex",
]

#: The ends of a range that are left open.
LAST_DATE: Final = "99991231"
LAST_TIME: Final = "235959.999999"
FIRST_TIME: Final = "000000.000000"

_DATE = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d)")
_TIME = re.compile(r"(\d\d):?(?:(\d\d):?(?:(\d\d)(?:\.(\d{1,6}))?)?)?")
_DATETIME = re.compile(r"(\d{4}(?:\d\d(?:\d\d(?:\d\d(?:\d\d(?:\d\d(?:\.\d{1,6})?)?)?)?)?)?)([+-]\d{4})?")


#: The maximum length of a value of a key, in characters: far above that of any VR that is matched.
MAX_KEY_LENGTH: Final = 1024
#: The maximum number of values of a key that are compared one after the other: wildcards, names, ranges of dates. Each becomes
#: up to fifteen comparisons, and databases accept a thousand of those.
MAX_ALTERNATIVES: Final = 50


def check_key(vr: str, values: Sequence[str], *, one_by_one: bool = False) -> None:
    """
    Check that a key with *values* can be compared at a bounded cost.

    :param one_by_one: whether the values are compared one after the other, whatever their VR.
    :raises ValueError: the cost has no bound.
    """
    if any(len(value) > MAX_KEY_LENGTH for value in values):
        raise ValueError(f"a value has more than {MAX_KEY_LENGTH} characters")
    if not one_by_one and vr not in ("PN", "DA", "TM", "DT"):
        values = [value for value in values if has_wildcard(value)]
    if len(values) > MAX_ALTERNATIVES:
        raise ValueError(f"more than {MAX_ALTERNATIVES} values to compare with")


# --- wildcards


def has_wildcard(text: str) -> bool:
    """Whether *text* asks for wildcard matching (PS3.4 C.2.2.2.4)."""
    return "*" in text or "?" in text


def like_pattern(text: str) -> str:
    r"""Return *text* as a pattern of SQL's LIKE with ``\`` as its escape character."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return re.sub(r"\*+", "%", escaped).replace("?", "_")


@lru_cache(maxsize=256)
def wildcard_regex(text: str) -> re.Pattern[str]:
    """
    Return *text* as a regular expression to be used with ``fullmatch``.

    Each run of ``*`` takes the shortest text after which the next part matches, and there is no backtracking. This finds
    every match, since the last part is bound to the end, and no key can make a comparison slow.
    """
    parts = [re.escape(part).replace(r"\?", ".") for part in re.split(r"\*+", text)]
    if len(parts) == 1:
        return re.compile(parts[0], re.DOTALL)
    middle = "".join(f"(?>.*?{part})" for part in parts[1:-1])
    return re.compile(f"{parts[0]}{middle}.*{parts[-1]}", re.DOTALL)


def any_of(values: Iterable[str]) -> Callable[[str], bool]:
    """
    Return a function that tests whether a text is one of *values*, or matches one of those that have wildcards.

    All wildcards are one regular expression, which the interpreter enters once for each text.
    """
    values = list(values)
    plain = frozenset(values)
    patterns = [wildcard_regex(value).pattern for value in values if has_wildcard(value)]
    if not patterns:
        return plain.__contains__
    matches = re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.DOTALL).fullmatch
    return lambda text: text in plain or matches(text) is not None


# --- person names


def name_groups(value: str) -> list[str]:
    """
    Return the three component groups of a person name in normal form (PS3.5 6.2.1).

    Case, the width of characters, empty components at the end and spaces around components make no difference
    (PS3.4 C.2.2.2.1: matching of names is not case sensitive).
    """
    groups = unicodedata.normalize("NFKC", value).casefold().split("=")[:3]
    normal = ["^".join(part.strip() for part in group.split("^")).rstrip("^") for group in groups]
    return normal + [""] * (3 - len(normal))


def name_key(value: str) -> str:
    """Return the names in *value*, separated by ``\\`` if there are several, in normal form."""
    return "\\".join("=".join(name_groups(name)).rstrip("=") for name in value.split("\\"))


_SOUNDEX = {letter: digit for digit, letters in enumerate(
    ("bfpv", "cgjkqsxz", "dt", "l", "mn", "r"), 1) for letter in letters}  # fmt: skip


def sounds(value: str) -> str:
    """
    Return the sounds of the words of a name, each between spaces: the American Soundex of a Latin word, any other word
    itself. Accents make no difference.
    """
    folded = unicodedata.normalize("NFKD", value).casefold()
    folded = "".join(char for char in folded if not unicodedata.combining(char))
    words = [word for word in re.split(r"[\s^=\\,.*?-]+", folded) if word]
    return f" {' '.join(dict.fromkeys(_soundex(word) for word in words))} " if words else ""


def _soundex(word: str) -> str:
    if not (word.isascii() and word.isalpha()):
        return word
    code, before = word[0], _SOUNDEX.get(word[0], 0)
    for letter in word[1:]:
        digit = _SOUNDEX.get(letter, 0)
        if digit and digit != before:
            code += str(digit)
        if letter not in "hw":
            before = digit
    return f"{code[:4]:0<4}"


# --- dates and times


def normal_date(value: str) -> str:
    """Return a DA, also in the form of ACR-NEMA, as ``YYYYMMDD``; an empty text if it is invalid."""
    found = _DATE.fullmatch(value.strip())
    return "".join(found.groups()) if found else ""


def time_key(value: str) -> str:
    """Return a TM as ``HHMMSS.FFFFFF``; parts that are left out are zero."""
    return _filled_time(value, "000000", "0")


def _filled_time(value: str, rest: str, fraction: str) -> str:
    found = _TIME.fullmatch(value.strip())
    if not found:
        return ""
    digits = "".join(part or "" for part in found.groups()[:3])
    return f"{digits}{rest[len(digits) :]}.{(found[4] or ''):{fraction}<6}"


def _range_ends(value: str) -> tuple[str, str]:
    """
    Return the two ends of a range of dates or times; a single value is both ends (PS3.4 C.2.2.2.5).

    :raises ValueError: both ends are missing.
    """
    low, hyphen, high = (part.strip() for part in value.partition("-"))
    if not (low or high):
        raise ValueError(f"{value[:64]!r} is no range")
    return low, high if hyphen else low


def _datetime_range_ends(value: str) -> tuple[str, str]:
    """Return the two ends of a range of DT, in which a hyphen may also begin an offset from UTC."""
    value = value.strip()
    if "-" not in value:
        return value, value
    for at in (at for at, char in enumerate(value) if char == "-"):
        low, high = value[:at].strip(), value[at + 1 :].strip()
        if (low or high) and all(not end or _DATETIME.fullmatch(end) for end in (low, high)):
            if not _is_offset(value, at):
                return low, high
    return value, value


def _is_offset(value: str, at: int) -> bool:
    """Whether the hyphen follows a DT without offset and is followed by four digits from 0000 to 1200."""
    behind = re.match(r"(\d{4})(?!\d)", value[at + 1 :])
    return bool(behind and int(behind[1]) <= 1200 and at >= 4 and value[:at].replace(".", "").isdigit())


def date_range(value: str) -> tuple[str, str]:
    """
    Return the first and last date that a key of VR DA matches.

    :raises ValueError: *value* is neither a date nor a range of dates.
    """
    low, high = _range_ends(value)
    first = normal_date(low) if low else "0"
    last = normal_date(high) if high else LAST_DATE
    if not (first and last):
        raise ValueError(f"{value[:64]!r} is no date and no range of dates")
    return first, last


def time_range(value: str) -> tuple[str, str]:
    """
    Return the first and last time that a key of VR TM matches; 1015 matches the whole minute.

    :raises ValueError: *value* is neither a time nor a range of times.
    """
    low, high = _range_ends(value)
    first = _filled_time(low, "000000", "0") if low else FIRST_TIME
    last = _filled_time(high, "__5959", "9") if high else LAST_TIME
    if not (first and last):
        raise ValueError(f"{value[:64]!r} is no time and no range of times")
    return first, last


def datetime_key(value: str, zone: tzinfo | None = None, *, last: bool = False) -> str:
    """
    Return a DT as ``YYYYMMDDHHMMSS.FFFFFF`` in the time zone *zone*, by default that of this machine.

    :param last: whether parts that are left out get their greatest value, not their least.
    """
    found = _DATETIME.fullmatch(value.strip())
    if not found:
        return ""
    digits, _, fraction = found[1].partition(".")
    rest, fill = ("00001231235959", "9") if last else ("00000101000000", "0")
    whole = f"{digits}{rest[len(digits) :]}.{fraction:{fill}<6}"
    if last and len(digits) == 6:
        whole = f"{digits}{_last_day(digits)}{whole[8:]}"
    if not found[2]:
        return whole
    shifted = shift(whole[:8], whole[8:], parse_offset(found[2]), zone)
    return "".join(shifted)


def _last_day(month: str) -> str:
    try:
        following = datetime(int(month[:4]), int(month[4:]), 28) + timedelta(days=4)
    except (ValueError, OverflowError):
        return "31"
    return f"{(following - timedelta(days=following.day)).day:02}"


def datetime_range(value: str, zone: tzinfo | None = None) -> tuple[str, str]:
    """
    Return the first and last moment that a key of VR DT matches, in the time zone *zone*.

    :raises ValueError: *value* is neither a date and time nor a range of them.
    """
    low, high = _datetime_range_ends(value)
    first = datetime_key(low, zone) if low else "0"
    last = datetime_key(high, zone, last=True) if high else LAST_DATE + LAST_TIME
    if not (first and last):
        raise ValueError(f"{value[:64]!r} is no date and time and no range of them")
    return first, last


def parse_offset(value: str) -> timezone | None:
    """Return a Timezone Offset From UTC (0008,0201) as a time zone, or ``None`` if it is invalid."""
    found = re.fullmatch(r"([+-])(\d\d)(\d\d)", value.strip())
    if not found or int(found[2]) > 14 or int(found[3]) > 59:
        return None
    offset = timedelta(hours=int(found[2]), minutes=int(found[3]))
    return timezone(-offset if found[1] == "-" else offset)


def shift(date: str, time: str, source: tzinfo | None, target: tzinfo | None) -> tuple[str, str]:
    """
    Convert a date and a time, both in normal form, from one time zone to another; ``None`` is the zone of this machine.

    Values that are not a date and time of the calendar are returned unchanged.
    """
    try:
        moment = datetime.strptime(date + time, "%Y%m%d%H%M%S.%f").replace(tzinfo=source).astimezone(target)
    except (ValueError, OverflowError):
        return date, time
    return f"{moment.year:04}{moment:%m%d}", f"{moment:%H%M%S.%f}"
