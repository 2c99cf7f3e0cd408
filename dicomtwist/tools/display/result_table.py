"""
Answers as rows: a table, CSV, or items of a JSON document, printed as they come.

None of it grows with the number of answers. The columns of a table are as wide as the answers of its first page need; a
longer value behind that moves its own line only.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import unicodedata
from collections.abc import Sequence
from typing import Any, Final, Protocol

from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import DSfloat, PersonName

from dicomtwist.tools.display.console import Output, printable
from dicomtwist.tools.query.attributes import name_of
from dicomtwist.tools.query.keys import Path, written

#: How many rows are looked at before the first is printed, for the widths of the columns; and for how long, in seconds.
PAGE: Final = 40
PAGE_SECONDS: Final = 1.0
#: The widest that a column begins with.
MAX_WIDTH: Final = 64


class Rows(Protocol):
    """Takes answers and prints them."""

    def add(self, dataset: Dataset) -> None:
        """Take an answer; it blocks where nobody reads what is printed."""

    def flush(self) -> None:
        """Print what is held back."""


# --- values


def value_of(dataset: Dataset, tag: Any) -> Any:
    """Return the value of an attribute; as bytes where the peer sent what cannot be read as its VR."""
    try:
        return dataset[tag].value if tag in dataset else None
    except Exception:
        # Whatever pydicom raises for a value that is none.
        value = dataset.get_item(tag, keep_deferred=True)
        return getattr(value, "value", None)


def text_of(dataset: Dataset, path: Path) -> str:
    """Return what is at *path* of *dataset* as one cell, empty where nothing is; it may have any characters in it."""
    for tag, item in path[:-1]:
        items = value_of(dataset, tag)
        if (
            not isinstance(items, Sequence)
            or item is None
            or item >= len(items)
            or not isinstance(items[item], Dataset)
        ):
            return ""
        dataset = items[item]
    value = value_of(dataset, path[-1][0])
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("latin-1").rstrip("\0 ")
    if isinstance(value, Sequence) and not isinstance(value, str | MultiValue):
        if any(isinstance(item, Dataset) for item in value) or not value:
            return f"{len(value)} items" if len(value) != 1 else "1 item"
    if isinstance(value, MultiValue | list):
        return "\\".join(map(str, value))
    return str(value)


def plain(dataset: Dataset) -> dict[str, Any]:
    """Return *dataset* for JSON: values by keywords, sequences as lists of the same, bytes in base 64."""
    return {name_of(tag): _plain(value_of(dataset, tag)) for tag in sorted(dataset.keys())}


def _plain(value: Any) -> Any:
    if isinstance(value, Dataset):
        return plain(value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, PersonName):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float | DSfloat):
        # JSON has no other numbers.
        return float(value) if abs(value) < float("inf") else str(value)
    if isinstance(value, Sequence):
        return [_plain(each) for each in value]
    return str(value)


# --- kinds of rows


def width_of(text: str) -> int:
    """Return how many columns of a terminal *text* takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


class Table:
    """
    Rows below each other.

    :param columns: what is in them.
    """

    def __init__(self, output: Output, columns: Sequence[Path]) -> None:
        self._output = output
        self._columns = columns
        self._widths: list[int] | None = None
        self._page: list[list[str]] = [list(headings(columns))]

    def add(self, dataset: Dataset) -> None:
        """Take an answer."""
        row = [printable(text_of(dataset, path)) for path in self._columns]
        if self._widths is not None:
            self._output.result(self._line(row))
            return
        self._page.append(row)
        if len(self._page) > PAGE:
            self.flush()

    def flush(self) -> None:
        """Print the first page; what comes behind it is as wide."""
        if self._widths is None and len(self._page) > 1:
            self._widths = [min(MAX_WIDTH, max(map(width_of, cells))) for cells in zip(*self._page, strict=True)]
            page, self._page = self._page, []
            self._output.result(*map(self._line, page))

    def _line(self, row: list[str]) -> str:
        assert self._widths is not None
        cells = (cell + " " * (width - width_of(cell)) for cell, width in zip(row, self._widths, strict=True))
        return "  ".join(cells).rstrip()


def headings(columns: Sequence[Path]) -> list[str]:
    """Return what to call *columns*: by the attribute alone, where no other column has the same."""
    short = [name_of(path[-1][0]) for path in columns]
    return [name if short.count(name) == 1 else written(path) for name, path in zip(short, columns, strict=True)]


class CSV:
    """
    Comma-separated values (RFC 4180) with a line of headings; control characters are escaped as in a table.

    :param columns: what is in them.
    """

    def __init__(self, output: Output, columns: Sequence[Path]) -> None:
        self._output = output
        self._columns = columns
        self._begun = False

    def add(self, dataset: Dataset) -> None:
        """Take an answer."""
        self.flush()
        self._output.result(self._line([printable(text_of(dataset, path)) for path in self._columns]))

    def flush(self) -> None:
        """Print the headings."""
        if not self._begun:
            self._begun = True
            self._output.result(self._line([written(path) for path in self._columns]))

    @staticmethod
    def _line(cells: Sequence[str]) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(cells)
        return line.getvalue()


class JSONItems:
    """
    One JSON document with a list in it that is printed as it comes.

    :param head: what is in it before the list.
    :param name: what the list is called.
    """

    def __init__(self, output: Output, head: dict[str, Any], name: str) -> None:
        self._output = output
        self._before = f"{json.dumps(head)[:-1]}, {json.dumps(name)}: ["
        self._between = ""

    def item(self, document: dict[str, Any]) -> None:
        """Print an item of the list."""
        self._output.piece(f"{self._before}{self._between}{json.dumps(document)}")
        self._before, self._between = "", ", "

    def add(self, dataset: Dataset) -> None:
        """Take an answer."""
        self.item(plain(dataset))

    def flush(self) -> None:
        """Nothing is held back."""

    def end(self, tail: dict[str, Any]) -> None:
        """Print what is behind the list, which ends the document."""
        self._output.piece(f"{self._before}], {json.dumps(tail)[1:]}\n")
        self._before = ""
