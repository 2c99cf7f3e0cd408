"""
Writers that print query responses as they arrive: as a table, as CSV, or as items of a JSON document.

Their memory does not grow with the number of responses. The first page of responses sets the widths of a table's columns.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

from pydicom import Dataset
from pydicom.multival import MultiValue

from dicomtwist.retrieval.keyword_json import to_json, value_of
from dicomtwist.tools.display.console import Output, printable
from dicomtwist.tools.display.text_table import GAP, column_widths, display_width, fitted, row_lines, terminal_width
from dicomtwist.tools.query.attributes import attribute_name
from dicomtwist.tools.query.keys import AttributePath, format_path

#: How many rows, and for how many seconds, a table collects to set the widths of its columns before it prints the first.
PAGE: Final = 40
PAGE_SECONDS: Final = 1.0
#: The largest initial width of a column.
MAX_WIDTH: Final = 64
#: The first characters of formulas in spreadsheets, and control characters that have the same effect in some.
_FORMULA_STARTS: Final = frozenset("=+-@")
_CONTROL_STARTS: Final = frozenset("\t\r\n")


class ResultWriter(Protocol):
    """Prints query responses."""

    def add(self, dataset: Dataset) -> None:
        """Print a response; blocks while the reader of standard output does not read."""

    def flush(self) -> None:
        """Print the responses that are held back."""


# --- values


def text_of(dataset: Dataset, path: AttributePath) -> str:
    """Return the value at *path* in *dataset* as the text of a cell, not escaped; empty if there is no value."""
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


# --- writers


class TableWriter:
    """
    Prints responses as a table that fits the terminal of standard output, if it is one.

    A value that is wider than its column continues on the next line. Columns that are too many for the terminal become
    lines: each response is a block of them. Without a terminal each response is one line.

    :param columns: the attributes to show.
    """

    def __init__(self, output: Output, columns: Sequence[AttributePath]) -> None:
        self._output = output
        self._columns = columns
        self._headings = list(headings(columns))
        self._widths: list[int] | None = None
        self._limit: int | None = None
        self._is_upright = False
        self._page: list[list[str]] = [self._headings]

    def add(self, dataset: Dataset) -> None:
        """Print a response, or hold it back until the widths of the columns are set."""
        row = [printable(text_of(dataset, path)) for path in self._columns]
        if self._widths is not None:
            self._output.data(*self._lines(row))
            return
        self._page.append(row)
        if len(self._page) > PAGE:
            self.flush()

    def flush(self) -> None:
        """Print the first page, which sets the widths of the columns."""
        if self._widths is None and len(self._page) > 1:
            self._limit = terminal_width(sys.stdout)
            natural = [min(MAX_WIDTH, width) for width in column_widths(self._page)]
            widths = fitted(natural, self._limit)
            page, self._page = self._page, []
            if widths is None:
                self._is_upright = True
                widths, page = [max(map(display_width, self._headings))], page[1:]
            self._widths = widths
            self._output.data(*(line for row in page for line in self._lines(row)))

    def _lines(self, row: list[str]) -> Iterator[str]:
        assert self._widths is not None
        if not self._is_upright:
            yield from row_lines(row, self._widths, wraps=self._limit is not None)
            return
        assert self._limit is not None
        width = min(self._widths[0], self._limit // 2)
        for name, value in zip(self._headings, row, strict=True):
            yield from row_lines([name, value], [width, self._limit - width - len(GAP)])
        yield ""


def headings(columns: Sequence[AttributePath]) -> list[str]:
    """Return the headings of *columns*: the attribute alone if no other column has the same, else the whole path."""
    short = [attribute_name(path[-1][0]) for path in columns]
    return [name if short.count(name) == 1 else format_path(path) for name, path in zip(short, columns, strict=True)]


class CSVWriter:
    """
    Prints responses as comma-separated values (RFC 4180) with a line of headings.

    Control characters are escaped as in a table. A value that a spreadsheet would take for a formula gets an apostrophe in
    front, since quotation marks alone do not keep a spreadsheet from running it.

    :param columns: the attributes to show.
    """

    def __init__(self, output: Output, columns: Sequence[AttributePath]) -> None:
        self._output = output
        self._columns = columns
        self._begun = False

    def add(self, dataset: Dataset) -> None:
        """Print a response."""
        self.flush()
        self._output.data(self._line([_plain_cell(text_of(dataset, path)) for path in self._columns]))

    def flush(self) -> None:
        """Print the headings if they are not printed yet."""
        if not self._begun:
            self._begun = True
            self._output.data(self._line([format_path(path) for path in self._columns]))

    @staticmethod
    def _line(cells: Sequence[str]) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(cells)
        return line.getvalue()


def _plain_cell(value: str) -> str:
    """Return *value* as a cell that no spreadsheet takes for a formula."""
    # Blanks and invisible characters in front do not keep a spreadsheet from reading a formula behind them.
    first = next((letter for letter in value if letter.isprintable() and not letter.isspace()), "")
    # Programs for East Asian languages take the full-width and small forms for the plain ones.
    is_formula = unicodedata.normalize("NFKC", first) in _FORMULA_STARTS or value[:1] in _CONTROL_STARTS
    return f"'{printable(value)}" if is_formula else printable(value)


class JSONWriter:
    """
    Prints one JSON document with a list whose items are printed as they arrive.

    :param head: the members of the document before the list.
    :param name: the name of the list.
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
        """Print a response as an item of the list."""
        self.item(to_json(dataset))

    def flush(self) -> None:
        """Do nothing: no item is held back."""

    def end(self, tail: dict[str, Any]) -> None:
        """Print the members after the list, which ends the document."""
        self._output.piece(f"{self._before}], {json.dumps(tail)[1:]}\n")
        self._before = ""
