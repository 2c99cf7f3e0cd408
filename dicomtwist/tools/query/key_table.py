"""
A table of keys: a CSV file with a heading for each key, whose rows say what to retrieve.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any, BinaryIO, Final, cast

from pydicom import Dataset
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import dictionary_VR

from dicomtwist.archive.storage.types import is_uid
from dicomtwist.tools.query.attributes import is_queryable
from dicomtwist.tools.query.keys import InvalidKey, Key, make_identifier, merged, parse_key

__all__ = ["InvalidTable", "KeyTable", "Row"]

#: The most rows of one table. Each takes some 100 bytes of memory, so that rows that are there twice are noticed.
MAX_ROWS: Final = 1_000_000

_DELIMITERS: Final = ",;\t|"
#: Headings that people write, besides the keywords and names of the dictionary.
_ALIASES: Final = {
    "accession": "AccessionNumber",
    "accessionno": "AccessionNumber",
    "mrn": "PatientID",
    "studyuid": "StudyInstanceUID",
    "seriesuid": "SeriesInstanceUID",
    "instanceuid": "SOPInstanceUID",
}
_UIDS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
#: A value as spreadsheets write it so that it stays text.
_TEXT_FORMULA: Final = re.compile(r'="(.*)"', re.DOTALL)
_DATE: Final = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})")
_PLAIN_DATE: Final = re.compile(r"\d{8}(-(\d{8})?)?|-\d{8}")


class InvalidTable(ValueError):
    """A table cannot be used; the text says why and what to do."""


@dataclass(slots=True)
class Row:
    """
    A row.

    :ivar line: the number of its line, the first is 1.
    :ivar values: its keys by keyword, as the file has them.
    :ivar keys: the identifier that they make; ``None`` if they make none.
    :ivar error: why they make none.
    """

    line: int
    values: dict[str, str]
    keys: Dataset | None = None
    error: str = ""

    def __str__(self) -> str:
        return f"line {self.line}: " + (" ".join(f"{name}={value}" for name, value in self.values.items()) or "no keys")


@cache
def _keywords() -> dict[str, str]:
    """Return the keywords by their keywords and names in lower case, without spaces and punctuation."""
    known: dict[str, str] = {}
    for tag, (_, _, name, _, keyword) in DicomDictionary.items():
        if keyword and 0x0008 <= tag >> 16 < 0xFFFC and tag & 0xFFFF:
            known.setdefault(_plain(name), keyword)
    for _, _, _, _, keyword in DicomDictionary.values():
        if keyword:
            known[keyword.lower()] = keyword
    return {**known, **_ALIASES}


def _plain(heading: str) -> str:
    return re.sub(r"[^0-9a-z]", "", heading.lower())


def keyword_of(heading: str) -> str | None:
    """Return the attribute that a heading names, by keyword, name or tag, as :func:`parse_key` reads it; ``None`` for none."""
    text = heading.strip().strip("\ufeff")
    tag = re.fullmatch(r"\(?([0-9A-Fa-f]{4}),?\s*([0-9A-Fa-f]{4})\)?", text)
    name = f"({tag[1]},{tag[2]})" if tag else _keywords().get(_plain(text))
    if name is None:
        return None
    try:
        path = parse_key(name).path
    except InvalidKey:
        return None
    return str(Key(path)) if is_queryable(path[-1][0]) else None


class KeyTable:
    """
    A table of keys. Reading it blocks.

    The columns that are used as keys are those of *columns*; else the UIDs if it has any, and the Accession Number in rows
    without them; else the Accession Number; else the Patient ID, and the Study Date with it. A Patient ID never stands in for
    what is empty unless *columns* says so: it selects all studies of the patient.

    :param path: the file; ``-`` for standard input. It is in UTF-8 or UTF-16, with commas, semicolons, tabs or ``|`` between
        cells.
    :param columns: the headings of the columns to use; ``HEADING=KEYWORD`` for one whose heading names no attribute. A single
        one may be several with ``/`` between them, of which each row uses the first that is not empty.
    :param more: keys for every row. Those of a row replace them.
    :raises InvalidTable: it cannot be used.

    :ivar keywords: the keys, in the order of the columns.
    :ivar duplicates: the number of rows so far that were left out, since their keys were there before.
    """

    def __init__(self, path: str, columns: Sequence[str] = (), more: Sequence[Key] = ()) -> None:
        self._path = path
        self._more = list(more)
        self._columns = columns
        self.duplicates = 0
        self._seen: set[int] = set()
        try:
            self._file: BinaryIO = sys.stdin.buffer if path == "-" else open(path, "rb")
        except OSError as error:
            raise InvalidTable(f"{path}: {error.strerror}") from None
        try:
            self._lines = _Lines(self._file)
            self._alternatives = self._choose(self._lines.next() or [])
        except (OSError, csv.Error, UnicodeError) as error:
            self.close()
            raise InvalidTable(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        except InvalidTable as error:
            self.close()
            raise InvalidTable(f"{path}: {error}") from None
        self.keywords = [keyword for used in self._alternatives for _, keyword in used]

    def close(self) -> None:
        """Close the file."""
        if self._path != "-":
            self._file.close()

    def __str__(self) -> str:
        return ", or else ".join(", ".join(keyword for _, keyword in used) for used in self._alternatives)

    def again(self) -> KeyTable | None:
        """Return the same table from its beginning; ``None`` for standard input, which cannot be read twice."""
        return None if self._path == "-" else KeyTable(self._path, self._columns, self._more)

    def count(self) -> int | None:
        """Return the number of rows, each that is there twice counted twice; ``None`` for standard input."""
        other = self.again()
        if other is None:
            return None
        try:
            return sum(1 for cells in other._cells() if any(map(str.strip, cells)))
        finally:
            other.close()

    def rows(self) -> Iterator[Row]:
        """
        Yield the rows that are not empty, each set of keys once.

        :raises InvalidTable: it has too many rows.
        """
        for cells in self._cells():
            if not any(map(str.strip, cells)):
                continue
            row = self._row(cells)
            # A digest of 61 bits, which Python salts: no two of a million rows have the same.
            known = hash(tuple(row.values.items()))
            if row.keys is not None and known in self._seen:
                self.duplicates += 1
                continue
            if len(self._seen) >= MAX_ROWS:
                raise InvalidTable(f"{self._path}: more than {MAX_ROWS} rows: divide the file")
            self._seen.add(known)
            yield row

    def _cells(self) -> Iterator[list[str]]:
        while True:
            try:
                cells = self._lines.next()
            except csv.Error:
                # A cell of 128 KiB, mostly since a quotation mark is not closed.
                cells = ["\udcff"] * 1000
            except UnicodeError:
                yield ["\udcff"] * 1000
                return
            if cells is None:
                return
            yield cells

    def _choose(self, headings: list[str]) -> list[list[tuple[int, str]]]:
        """Return the columns of keys: of each row the first of the alternatives that has a value."""
        if not any(map(str.strip, headings)):
            raise InvalidTable("it is empty: its first line has to name the columns, as in StudyInstanceUID")
        if any(letter == "\0" or "\udc80" <= letter <= "\udcff" for letter in "".join(headings)):
            raise InvalidTable("it is not a CSV file in UTF-8 or UTF-16")
        known: dict[str, int] = {}
        for number, heading in enumerate(headings):
            keyword = keyword_of(heading)
            if keyword is not None:
                known.setdefault(keyword, number)
        self._patients = known.get("PatientID")
        if len(self._columns) == 1 and "/" in self._columns[0] and not _is_heading(self._columns[0], headings):
            return [[self._named(column, headings, known)] for column in self._columns[0].split("/")]
        if self._columns:
            return [[self._named(column, headings, known) for column in self._columns]]
        uids: list[str] = [name for name in _UIDS if name in known]
        chosen = [uids] if uids else []
        if "AccessionNumber" in known:
            chosen.append(["AccessionNumber"])
        if not chosen and "PatientID" in known:
            chosen = [[name for name in ("PatientID", "StudyDate") if name in known]]
        if not chosen:
            named = ", ".join(repr(heading[:40]) for heading in headings[:20])
            raise InvalidTable(
                "no column is a StudyInstanceUID, AccessionNumber or PatientID. The first line has to name the columns, and has"
                f" {named}: --column says which are keys, as in --column {headings[0].strip()[:40] or 'ID'}=AccessionNumber"
                + (
                    ". If that is a value already, put a line such as AccessionNumber before it"
                    if len(headings) == 1 and any(map(str.isdigit, headings[0]))
                    else ""
                )
            )
        return [[(known[name], name) for name in names] for names in chosen]

    @staticmethod
    def _named(column: str, headings: list[str], known: dict[str, int]) -> tuple[int, str]:
        plain = [_plain(heading) or heading.strip() for heading in headings]
        heading, equals, name = column.rpartition("=")
        if not equals:
            heading, name = column, column
        keyword = keyword_of(name)
        wanted = _plain(heading) or heading.strip()
        if keyword is not None and wanted in plain:
            return plain.index(wanted), keyword
        if keyword is not None and not equals and keyword in known:
            return known[keyword], keyword
        if wanted not in plain:
            raise InvalidTable(f"--column {column}: there is no such column; there are {', '.join(headings)[:400]}")
        raise InvalidTable(
            f"--column {column}: {name!r} is not an attribute: write HEADING=KEYWORD, as in {heading}=AccessionNumber"
        )

    def _used(self, cells: list[str]) -> list[tuple[int, str]]:
        """
        Return the columns that are the keys of a row.

        :raises InvalidKey: all that could be are empty.
        """

        def is_empty(number: int | None) -> bool:
            return number is None or number >= len(cells) or not _bare(cells[number])

        for used in self._alternatives:
            if not all(is_empty(number) for number, _ in used):
                return used
        names = [used[0][1] for used in self._alternatives]
        words = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} empty"
        if not self._columns and "PatientID" not in names and not is_empty(self._patients):
            words += f"; --column {'/'.join(names)}/PatientID takes all studies of the patient then"
        raise InvalidKey(words)

    def _row(self, cells: list[str]) -> Row:
        row = Row(self._lines.line, {})
        try:
            for number, keyword in self._used(cells):
                value = _value(keyword, cells[number] if number < len(cells) else "")
                row.values[keyword] = value
            keys = [parse_key(f"{keyword}={value}") for keyword, value in row.values.items()]
            row.keys = make_identifier(merged(self._more, keys))
        except InvalidKey as error:
            row.error = str(error)
        return row


def _is_heading(column: str, headings: Sequence[str]) -> bool:
    """Return whether *column*, as ``--column`` has it, begins with one of *headings* that has a ``/`` in it."""
    names = [heading.strip() for heading in headings if "/" in heading]
    return any(column.strip() == name or column.startswith(f"{name}=") for name in names)


def _bare(cell: str) -> str:
    """Return the text of a cell without what spreadsheets put around it."""
    value = cell.strip("\ufeff\xa0\u200b \t\r\n\0")
    formula = _TEXT_FORMULA.fullmatch(value)
    if formula:
        return formula[1].strip()
    if value[:1] == "'" and value[1:2] and value[1] in "=+-@":
        return value[1:]  # as find --csv writes it
    return value


def _value(keyword: str, cell: str) -> str:
    """
    Return the value of a cell.

    :raises InvalidKey: it selects nothing, or more than one thing.
    """
    value = _bare(cell)
    if not value:
        raise InvalidKey(f"{keyword} is empty")
    if any(0xD800 <= ord(letter) < 0xE000 for letter in value):
        raise InvalidKey(f"{keyword} is not text in UTF-8, or a quotation mark before it is not closed")
    if any(letter in value for letter in "*?\\"):
        raise InvalidKey(f"{keyword} is {value[:80]!r}: a row names one thing, without wildcards")
    vr = _vr(keyword)
    if vr == "UI" and not is_uid(value):
        raise InvalidKey(f"{keyword} is {value[:80]!r}, which is not a UID. Did a spreadsheet take it for a number?")
    if vr == "DA":
        date = _DATE.fullmatch(value)
        value = f"{date[1]}{int(date[2]):02}{int(date[3]):02}" if date else value
        if not _PLAIN_DATE.fullmatch(value):
            raise InvalidKey(f"{keyword} is {value[:80]!r}: write dates as 20240131 or 2024-01-31")
    return value


def _vr(keyword: str) -> str:
    try:
        return dictionary_VR(keyword)
    except KeyError:
        return "LO"


class _Lines:
    """
    The cells of a file, line by line.

    :ivar skipped: the number of lines before the headings.
    """

    def __init__(self, file: BinaryIO) -> None:
        front = getattr(file, "peek", lambda size: b"")(2)[:2]
        encoding = "utf-16" if front in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        # Bytes that are not UTF-8 spoil their own cell and no other.
        lines = iter(io.TextIOWrapper(cast(Any, file), encoding, "surrogateescape", newline=""))
        self.skipped = 0
        stated = ""
        first = next(lines, "")
        while first and (not first.strip() or (found := re.fullmatch(r'"?sep=(.)"?', first.strip("\r\n")))):
            # Spreadsheets may say what is between the cells, in a line of its own.
            stated = found[1] if first.strip() and found else stated
            first = next(lines, "")
            self.skipped += 1
        delimiter = stated or max(_DELIMITERS, key=lambda each: _likelihood(first, each))
        self._reader = csv.reader(chain([first], lines), delimiter=delimiter)

    @property
    def line(self) -> int:
        """The number of the last line that was read."""
        return self.skipped + self._reader.line_num

    def next(self) -> list[str] | None:
        """Return the next cells, ``None`` at the end."""
        return next(self._reader, None)


def _likelihood(headings: str, delimiter: str) -> tuple[int, int]:
    """Return how many cells a line of headings has with *delimiter*, those that name attributes first."""
    cells = next(csv.reader([headings], delimiter=delimiter), [])
    return sum(keyword_of(cell) is not None for cell in cells[:1000]), len(cells)
