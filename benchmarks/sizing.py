"""
The tables of sizes in docs/guides/operations.md, made of the results that ``make bench`` keeps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from benchmarks.harness import Row
from benchmarks.report import FAILED, Results

__all__ = ["page"]

#: Rates: what is done, the benchmark, and the work of the row that has it, with count and size.
_RATES: Final = (
    ("receive, 1 sender", "sustained", r"(\d+) x (\d+ KB), 1 sender, durability full: the last quarter", 4),
    ("receive, 8 senders", "sustained", r"(\d+) x (\d+ KB), 8 senders, durability full: the last quarter", 4),
    ("receive, 64 senders", "sustained", r"(\d+) x (\d+ KB), 64 senders, durability full: the last quarter", 4),
    ("receive, 1 sender", "archive-medium", r"archive (\d+) x (\d+ KB), durability full", 1),
    ("C-GET, 1 association", "archive-retrieve", r"archive, C-GET (\d+) x (12 KB)", 1),
    ("C-GET, 1 association", "archive-retrieve", r"archive, C-GET (\d+) x (525 KB)", 1),
    ("C-MOVE, 1 association", "archive-retrieve", r"archive, C-MOVE (\d+) x (525 KB)", 1),
)

#: Single figures: what they are, the benchmark, the work, the part of the row that has the figure, and its unit.
_FIGURES: Final = (
    ("memory of the server under load, 1 sender", "sustained", "1 sender.*memory", "note", r"from (\d+ MiB)", ""),
    ("memory of the server under load, 64 senders", "sustained", "64 senders.*memory", "note", r"from (\d+ MiB)", ""),
    ("memory of an idle association, of 1,000", "idle-growth", "1,000 of them", "ours", "(.*)", ""),
    (
        "CPU time of one core for a C-STORE of 12 KB, 1 association",
        "cost",
        "STORE.* 1 association$",
        "ours",
        "(.*)",
        "",
    ),
    ("CPU time for it, 100 associations", "cost", "STORE.* 100 associations$", "ours", "(.*)", ""),
    ("C-FIND with 1,000 answers", "archive-find", "1000 answers, later", "ours", r"(\S+)", " s"),
    ("query for a patient's studies, 1,000,000 instances", "index-growth", "query.*1,000,000", "ours", r"(\S+)", " s"),
    ("200 instances added to an index of 1,000,000", "index-growth", "200 new rows, 1,000,000", "ours", r"(\S+)", " s"),
)

_UNITS: Final = {"KB": 1e3, "MB": 1e6}

#: A table of the page between its marks, as in docs/conformance.md.
_MARKED: Final = re.compile(r"<!-- begin: (.*?) -->\n.*?<!-- end -->", re.DOTALL)


def page(text: str, results: Results) -> str:
    """
    Return the page *text* with its tables up to date.

    A row whose benchmark is not kept, or could not be run, is left out.
    """
    tables: dict[str, Callable[[Results], str]] = {"rates": _rates, "figures": _figures}
    return _MARKED.sub(lambda found: f"<!-- begin: {found[1]} -->\n\n{tables[found[1]](results)}\n\n<!-- end -->", text)


def _rates(results: Results) -> str:
    lines = ["| Work | Size of each | Each second | Measured for | Measured on |", "|---|---|---|---|---|"]
    for what, name, work, parts in _RATES:
        for row, found, on in _rows(results, name, work):
            seconds = float(row.ours.split()[0])
            rate = int(found[1]) / parts / seconds
            number, unit = found[2].split()
            size = float(number) * _UNITS[unit]
            lines.append(
                f"| {what} | {found[2]} | {_rounded(rate)}, {_rounded(rate * size / 1e6)} MB | {seconds:.1f} s | {on} |"
            )
    return "\n".join(lines)


def _figures(results: Results) -> str:
    lines = ["| Figure | Measured | Measured on |", "|---|---|---|"]
    for what, name, work, part, pattern, unit in _FIGURES:
        for row, _, on in _rows(results, name, f".*{work}.*"):
            found = re.match(pattern, getattr(row, part))
            if found:
                lines.append(f"| {what} | {found[1]}{unit} | {on} |")
    return "\n".join(lines)


def _rows(results: Results, name: str, work: str) -> Iterator[tuple[Row, re.Match[str], str]]:
    """Yield the first row whose work matches, with the match, and the machine and date; nothing without one."""
    kept = results.get(name)
    for fields in kept["rows"] if kept else ():
        row = Row(**fields)
        found = re.fullmatch(work, row.work)
        if kept and found and row.ours != FAILED:
            yield row, found, f"{kept['on'][0]}, {kept['date']}"
            return


def _rounded(value: float) -> str:
    """Return a number with two significant digits, because another machine differs by more than the third."""
    return f"{int(float(f'{value:.2g}')):,}"
