"""
Header fields that make a response partial, shorter, or needless: Range, If-None-Match, Accept-Encoding (RFC 9110).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["ByteRange", "UnsatisfiableRange", "accepts_gzip", "matches_etag", "parse_range"]

#: The longest field that is parsed, in characters.
MAX_LENGTH: Final = 8 * 1024

_RANGE: Final = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})", re.ASCII | re.IGNORECASE)
_ETAG: Final = re.compile(r'(?:W/)?"([^"]*)"')
_CODING: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:\s*;\s*q\s*=\s*([0-9.]+))?", re.ASCII)


class UnsatisfiableRange(ValueError):
    """No byte of a representation is in the range that is asked for (416)."""


class ByteRange(NamedTuple):
    """
    A range of bytes.

    :ivar start: the first byte.
    :ivar stop: the byte behind the last.
    """

    start: int
    stop: int

    def content_range(self, length: int) -> str:
        """Return the field ``Content-Range`` of the range in a representation of *length* bytes."""
        return f"bytes {self.start}-{self.stop - 1}/{length}"


def parse_range(text: str, length: int) -> ByteRange | None:
    """
    Parse a field ``Range``.

    :param length: the length of the representation in bytes.
    :returns: the range; ``None`` for the whole: there is no field, or it is invalid, or has several ranges (RFC 9110 14.2).
    :raises UnsatisfiableRange: it is behind the end.
    """
    found = _RANGE.fullmatch(text.strip()) if len(text) <= MAX_LENGTH else None
    if found is None:
        return None
    first, last = found.groups()
    if not first:
        if not last:
            return None
        count = int(last)
        if not count or not length:
            raise UnsatisfiableRange("the range has no bytes")
        return ByteRange(max(0, length - count), length)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= length:
        raise UnsatisfiableRange("the range is behind the end")
    return ByteRange(start, min(int(last) + 1, length) if last else length)


def matches_etag(text: str, etag: str) -> bool:
    """
    Return whether a field ``If-None-Match`` names the entity tag *etag*, or any; by the weak comparison (RFC 9110 8.8.3.2).

    :param etag: the entity tag with its quotation marks.
    """
    if text.strip() == "*":
        return True
    opaque = etag.removeprefix("W/").strip('"')
    return opaque in _ETAG.findall(text[:MAX_LENGTH])


def accepts_gzip(text: str) -> bool:
    """Return whether a field ``Accept-Encoding`` prefers gzip to no encoding, or names it (RFC 9110 12.5.3)."""
    qualities: dict[str, float] = {}
    for one in text[:MAX_LENGTH].split(","):
        found = _CODING.fullmatch(one.strip())
        if found is not None:
            try:
                qualities.setdefault(found[1].lower(), float(found[2] or 1))
            except ValueError:
                continue
    gzip = qualities.get("gzip", qualities.get("x-gzip", qualities.get("*", 0.0)))
    return gzip > 0 and gzip >= qualities.get("identity", 0.0)
