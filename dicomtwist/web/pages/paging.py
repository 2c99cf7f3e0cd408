"""
Long lists that are shown a page at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from dicomtwist.archive.query.search import Found, Part

__all__ = ["Paging", "offset_of", "paging_of", "part_of"]

#: The most entries beyond a page that are counted.
MAX_COUNTED: Final = 1000


def offset_of(query: Mapping[str, str]) -> int:
    """Return the number of entries before a page, as its URL has it; 0 if that is no number."""
    text = query.get("offset", "")
    return int(text) if re.fullmatch(r"[0-9]{1,8}", text) else 0


def part_of(offset: int, length: int, *, newest_first: bool = False) -> Part:
    """
    Return the part of the matches of a search that a page shows.

    :param offset: the number of entries before the page.
    :param length: the most entries of a page.
    """
    return Part(length, offset, newest_first=newest_first, counted=MAX_COUNTED)


@dataclass(frozen=True, slots=True)
class Paging:
    """
    The place of a page in its list.

    :ivar begin: the number of its first entry, from 1; 0 if it has none.
    :ivar end: the number of its last entry.
    :ivar total: the number of entries of the list, as far as they are counted.
    :ivar is_uncounted: whether there are others.
    :ivar wanted: the number of the first entry that is asked for, from 1.
    :ivar before: the path of the page before; empty if there is none.
    :ivar after: the path of the page behind.
    :ivar first: the path of the first page; empty on that one.
    """

    begin: int
    end: int
    total: int
    is_uncounted: bool
    wanted: int
    before: str
    after: str
    first: str


def paging_of(
    found: Found[Any] | None, offset: int, length: int, path: str, parameters: Mapping[str, str] | None = None
) -> Paging:
    """
    Return the place of a page.

    :param found: the result of a search for the part of :func:`part_of`; ``None`` if nothing can match.
    :param offset: the number of entries before the page.
    :param length: the most entries of a page.
    :param path: the path of the pages.
    :param parameters: further parameters of their URLs.
    """

    def url(begin: int) -> str:
        query = urlencode({**(parameters or {}), **({"offset": begin} if begin else {})})
        return f"{path}?{query}" if query else path

    total = 0 if found is None else found.total
    more = 0 if found is None else found.more
    is_uncounted = found is not None and found.has_uncounted
    return Paging(
        begin=offset + 1 if total else 0,
        end=offset + total,
        total=offset + total + more,
        is_uncounted=is_uncounted,
        wanted=offset + 1,
        before=url(max(0, offset - length)) if offset else "",
        after=url(offset + length) if more or is_uncounted else "",
        first=url(0) if offset else "",
    )
