"""A cache of the layouts of data sets: the positions of their elements, learned from one data set for the next ones.

The instances of a series nearly always have the same elements with values of the same lengths. If all element headers are
where they were in an earlier data set, byte for byte, the wanted values are there as well. A comparison in C then replaces the
scan, in a tenth of its time. A scan of such a data set would give the same result, since it reads nothing but these headers.
Every other data set is left to the :class:`~dicomtwist.datasets.header_scanner.HeaderScanner`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from dicomtwist.datasets.element_headers import (
    BIG_ENDIAN_FORMAT,
    DEFLATED,
    DELIMITERS,
    EXPLICIT_BIG_ENDIAN,
    IMPLICIT,
    ITEM,
    ITEM_END,
    LITTLE_ENDIAN_FORMAT,
    LONG_VRS,
    SEQUENCE_END,
    SHORT_VRS,
    UNDEFINED_LENGTH,
)
from dicomtwist.datasets.header_scanner import MAX_VALUE_LENGTH, Buffer

__all__ = ["Layouts"]

#: The most layouts in the cache, and the most headers of one.
MAX_LAYOUTS: Final = 32
MAX_HEADERS: Final = 1024
#: The most levels of nested sequences of undefined length in a layout.
MAX_DEPTH: Final = 8
#: Learning a layout takes as long as ``COST`` scans, and each later hit saves one scan. Saved scans pay for learning; at most
#: ``SAVINGS`` are saved up, which is also the credit at the start. Without credit only one of ``ONE_OF`` data sets is learned,
#: since there are senders whose data sets are all different.
COST: Final = 4
SAVINGS: Final = 128
ONE_OF: Final = 32


class _Unusual(Exception):
    """The data set has an element that is better left to the scanner."""


class _Layout(NamedTuple):
    """
    The layout of the front of a data set.

    :ivar transfer_syntax: the transfer syntax of the data set.
    :ivar last: the last header,
    :ivar at: and its position. Other layouts nearly never have the same bytes there, so it is compared first.
    :ivar end: the length of the front, in bytes.
    :ivar whole: whether the front is the whole data set.
    :ivar cut: extracts the headers from a data set of this layout.
    :ivar headers: the headers that it has to extract.
    :ivar take: extracts the wanted values.
    :ivar tags: the tags of these values.
    """

    transfer_syntax: str
    last: bytes
    at: int
    end: int
    whole: bool
    cut: struct.Struct
    headers: tuple[bytes, ...]
    take: struct.Struct
    tags: tuple[int, ...]


class Layouts:
    """
    The layouts of recent data sets. It may be used from any thread.

    :param wanted: the tags of the wanted values.
    :param max_value_length: the longest value, in bytes.
    """

    def __init__(self, wanted: frozenset[int], max_value_length: int = MAX_VALUE_LENGTH) -> None:
        self._wanted = wanted
        self._max_value_length = max_value_length
        self._layouts: tuple[_Layout, ...] = ()
        self._saved = SAVINGS
        self._passed_over = 0

    def values(self, data: Buffer, transfer_syntax_uid: str, *, whole: bool = True) -> dict[int, bytes] | None:
        """
        Return the values that a scan for the wanted tags, with sequences, would find.

        :param data: the encoded data set, or its beginning.
        :param whole: whether *data* is the whole data set.
        :returns: tag to raw value; ``None`` if the layout is not in the cache.
        """
        layouts = self._layouts
        for layout in layouts:
            at, last = layout.at, layout.last
            if (
                data[at : at + len(last)] == last
                and layout.transfer_syntax == transfer_syntax_uid
                and (len(data) >= layout.end if not layout.whole else whole and len(data) == layout.end)
                and layout.cut.unpack_from(data) == layout.headers
            ):
                self._saved = min(self._saved + 1, SAVINGS)
                if layout is not layouts[0]:
                    self._layouts = (layout, *(other for other in layouts if other is not layout))
                return dict(zip(layout.tags, layout.take.unpack_from(data), strict=True))
        return None

    def learn(self, data: Buffer, transfer_syntax_uid: str, found: Mapping[int, bytes]) -> None:
        """
        Add the layout of a data set that was scanned, if it is a simple one.

        :param data: the data set, or as much of it as the scanner needed.
        :param found: the values that the scanner found.
        """
        if self._saved >= COST:
            self._saved -= COST
        else:
            self._passed_over += 1
            if self._passed_over < ONE_OF:
                return
            self._passed_over = 0
        if transfer_syntax_uid in DEFLATED:
            return
        try:
            layout = _Walk(data, transfer_syntax_uid, self._wanted).layout()
        except (_Unusual, struct.error):
            return
        values = dict(zip(layout.tags, layout.take.unpack_from(data), strict=True))
        if values != found or any(len(value) > self._max_value_length for value in values.values()):
            return
        self._layouts = (layout, *self._layouts[: MAX_LAYOUTS - 1])


class _Walk:
    """One walk through a data set, from header to header."""

    def __init__(self, data: Buffer, transfer_syntax: str, wanted: frozenset[int]) -> None:
        self._data = data
        self._transfer_syntax = transfer_syntax
        self._explicit = transfer_syntax not in IMPLICIT
        self._wanted = wanted
        self._stop = max(wanted)
        header = BIG_ENDIAN_FORMAT if transfer_syntax == EXPLICIT_BIG_ENDIAN else LITTLE_ENDIAN_FORMAT
        self._tag, self._short, self._long = header.tag, header.short, header.long
        self._headers: list[tuple[int, int]] = []
        self._values: list[tuple[int, int, int]] = []

    def layout(self) -> _Layout:
        pos, size, before, whole = 0, len(self._data), -1, False
        while True:
            if pos == size:
                whole = True
                break
            tag, start, length = self._header(pos)
            if tag <= before or tag >= DELIMITERS:
                raise _Unusual
            if tag > self._stop:
                # Its length does not matter; it may be that of the pixels.
                self._headers[-1] = (pos, pos + 6 if start == pos + 12 else start)
                pos = start
                break
            end = self._sequence_end(start, 1) if length == UNDEFINED_LENGTH else start + length
            if end > size:
                raise _Unusual
            if tag in self._wanted:
                self._values.append((tag, start, end))
            before, pos = tag, end
        data, headers = self._data, self._headers
        if not headers:
            raise _Unusual
        at, end = headers[-1]
        cut = _struct(headers)
        return _Layout(
            self._transfer_syntax,
            bytes(data[at:end]),
            at,
            pos,
            whole,
            cut,
            cut.unpack_from(data),
            _struct([(start, end) for _, start, end in self._values]),
            tuple(tag for tag, _, _ in self._values),
        )

    def _header(self, pos: int) -> tuple[int, int, int]:
        """Record the header of an element; return its tag, the start of its value, and its length."""
        data = self._data
        group, element = self._tag(data, pos)
        tag = group << 16 | element
        start = pos + 8
        vr = bytes(data[pos + 4 : pos + 6])
        if not self._explicit or tag >= DELIMITERS:
            (length,) = self._long(data, pos + 4)
        elif vr in SHORT_VRS:
            (length,) = self._short(data, pos + 6)
        elif vr in LONG_VRS:
            (length,) = self._long(data, pos + 8)
            start = pos + 12
            if length == UNDEFINED_LENGTH and vr != b"SQ":
                raise _Unusual
        else:
            raise _Unusual
        if len(self._headers) >= MAX_HEADERS:
            raise _Unusual
        self._headers.append((pos, start))
        return tag, start, length

    def _sequence_end(self, pos: int, depth: int) -> int:
        """Record the headers in a sequence of undefined length, whose items begin at *pos*; return its end."""
        if depth > MAX_DEPTH:
            raise _Unusual
        while True:
            tag, start, length = self._header(pos)
            if tag == SEQUENCE_END:
                return start
            if tag != ITEM:
                raise _Unusual
            pos = self._item_end(start, depth) if length == UNDEFINED_LENGTH else start + length

    def _item_end(self, pos: int, depth: int) -> int:
        while True:
            tag, start, length = self._header(pos)
            if tag == ITEM_END:
                return start
            if tag >= DELIMITERS:
                raise _Unusual
            pos = self._sequence_end(start, depth + 1) if length == UNDEFINED_LENGTH else start + length


def _struct(spans: list[tuple[int, int]]) -> struct.Struct:
    """Return a struct that extracts *spans*, each (start, end), from a buffer."""
    parts, pos = ["<"], 0
    for start, end in spans:
        if start > pos:
            parts.append(f"{start - pos}x")
        parts.append(f"{end - start}s")
        pos = end
    return struct.Struct("".join(parts))
