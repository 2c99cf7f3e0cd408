"""
The table: for a terminal, kept as JSON, and as the page ``docs/benchmarks.md`` that is made of what is kept.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import BenchmarkError, Row, dcmtk, installed

#: In the place of our time where a benchmark could not be run.
FAILED = "failed"

_HEADERS = ("Work", "Ours", "Peer", "Theirs", "Ratio", "Needed", "Verdict", "Note")

#: What was kept of each benchmark, by its name: ``date``, ``rounds``, ``on`` (see :func:`setting`) and ``rows``.
Results = dict[str, dict[str, Any]]


def _cells(row: Row) -> tuple[str, ...]:
    verdict = "" if row.good is None else "OK" if row.good else "SHORT"
    return row.work, row.ours, row.peer_name, row.peer, row.ratio, row.needed, verdict, row.note


def text(rows: Sequence[Row]) -> str:
    """Return the table for a terminal."""
    lines = [_HEADERS, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADERS))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


# --- what is kept


def load(path: Path) -> Results:
    """Return what is kept at *path*; nothing where there is no such file."""
    found: Results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def keep(path: Path, name: str, rows: Sequence[Row], rounds: int, on: Sequence[str]) -> Results:
    """Keep the rows of one benchmark at *path*, in the place of those that it had; return all that is kept."""
    results = load(path)
    results[name] = {
        "date": date.today().isoformat(),
        "rounds": rounds,
        "on": list(on),
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


# --- the page

_INTRODUCTION: Final = """\
# Benchmarks

<!-- Written by `make bench`, from benchmarks.json: changes to this page are lost. -->

What dicomtwist costs beside DCMTK, Orthanc and pynetdicom. Both sides of a row were measured on one machine, in one run, in
turn. How the work is done is told in `benchmarks/__init__.py`.

## How to read it

- **Ours** and **theirs** are seconds where nothing else is said: the median of the rounds, and in brackets the fastest and
  the slowest. Wide brackets say that the machine was busy, and that the row means little.
- **Ratio** is the peer's time divided by ours: above 1 we are faster. Ratios say more about another machine than seconds do.
- **Needed** is the least ratio that the project asks of itself, or another bound where one is written; the verdict is then OK
  or SHORT. It is no promise, and OK is not "as fast as": 0.4 is met by who takes two and a half times as long. Rows without
  are there to know.
- Where the note says *scaled* the peer got a part of the work, since all of it takes minutes, and its time was multiplied.
- Rows about memory say by how much the server's resident memory grew. One association more or less is lost in what Python
  has in stock; a thousand are not. Rows about CPU say what the server computes, in all of its threads.
- Rows whose peer is *ours* compare dicomtwist with itself: with more work, or done another way.
- A run of a few benchmarks replaces the rows of these, so each has its date.

What such figures do not say, and what has misled us:

- **Nagle's algorithm.** Debian's DCMTK leaves it on, and its clients write a header and a body in two pieces: with delayed
  acknowledgements a round trip costs 44 ms against most servers. Both sides run with `TCP_NODELAY=1`, so that the code is
  measured and not that stall; the row called *stock* is without, as most users run it.
- **Durability.** By default `twist dicom` syncs each instance before it answers (`full`). DCMTK and pynetdicom do not, so rows
  with `none` compare like with like, those with `full` what one gets by default.
- **Deleted files.** ext4 is slow to create files in the minute or so after thousands were deleted: 250 us each instead of 10.
  Nothing is deleted during a run, each run of a server has a folder of its own, and a benchmark waits until files are made
  quickly.
- **The page cache.** What is read was written just before, so that no row waits for a disk to read. What was written by one
  run is on the disk before the next begins.
- **One machine.** Client and server share its cores and its loopback interface: no network is this fast, and on one there is
  a wait in each round trip that no server can help.
"""

_EMPTY: Final = """
## Figures

None are kept yet: `make bench` measures, which takes an hour or so, and writes them here.
"""


def page(results: Results, order: Iterable[str]) -> str:
    """Return the page, with the benchmarks in *order*; what is not in it is left out."""
    known = {name: results[name] for name in order if name in results}
    # One table for each machine with its versions: what was measured on another is no row beside it.
    settings = list(dict.fromkeys(tuple(kept["on"]) for kept in known.values()))
    return _INTRODUCTION + ("".join(_section(known, on) for on in settings) or _EMPTY)


def _section(results: Results, on: tuple[str, ...]) -> str:
    headers = (*_HEADERS, "Date (rounds)")
    lines = ["", f"## Figures: {on[0]}", "", *(f"- {words}" for words in on[1:]), ""]
    lines += [_line(headers), _line(["---"] * len(headers))]
    short, failed = [], []
    for kept in (kept for kept in results.values() if tuple(kept["on"]) == on):
        when = f"{kept['date']} ({kept['rounds']})"
        for row in (Row(**fields) for fields in kept["rows"]):
            lines.append(_line((*_cells(row), when)))
            if row.ours == FAILED:
                failed.append(row.work)
            elif row.good is False:
                short.append(row.work)
    lines += ["", f"Short of what is needed: {'; '.join(short) or 'nothing that was measured'}."]
    if failed:
        lines.append(f"Could not be measured: {'; '.join(failed)}.")
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/').replace('<', '&lt;') for cell in cells)} |"


# --- what it was measured on


def setting(folder: Path) -> list[str]:
    """
    Return what is measured on and with, in lines: the machine first.

    :param folder: where the files are.
    """
    return [
        f"{_processor()}, {os.cpu_count()} cores",
        f"{platform.system()} {platform.release()}, {_memory()}files on {_file_system(folder)}",
        f"{platform.python_implementation()} {platform.python_version()}, Twisted {_version('Twisted')},"
        f" pydicom {_version('pydicom')}, SQLAlchemy {_version('SQLAlchemy')}, dicomtwist {_version('dicomtwist')}",
        f"peers: {_dcmtk_version()}, {_orthanc_version()}, pynetdicom {_version('pynetdicom')}",
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _dcmtk_version() -> str:
    # $dcmtk: storescp v3.6.7 2022-04-22 $
    words = _printed(lambda: dcmtk("storescp"))
    return f"DCMTK {words[2].removeprefix('v')}" if len(words) > 2 else "DCMTK not installed"


def _orthanc_version() -> str:
    # Orthanc 1.10.1
    words = _printed(lambda: installed("Orthanc"))
    return f"Orthanc {words[1]}" if len(words) > 1 else "Orthanc not installed"


def _printed(find: Callable[[], str]) -> list[str]:
    """Return the words that a program prints at ``--version``, none where it is not there."""
    try:
        return subprocess.run([find(), "--version"], capture_output=True, text=True, check=True).stdout.split()
    except (BenchmarkError, subprocess.CalledProcessError):
        return []


def _processor() -> str:
    names = _values("/proc/cpuinfo", "model name")
    return names[0] if names else platform.machine()


def _memory() -> str:
    sizes = _values("/proc/meminfo", "MemTotal")
    return f"{int(sizes[0].split()[0]) / 1024**2:.0f} GiB of memory, " if sizes else ""


def _file_system(folder: Path) -> str:
    """Return the kind of file system that *folder* is on."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "an unknown file system"
    found = {Path(mount[1]): mount[2] for mount in mounts}
    return next((found[place] for place in (folder, *folder.parents) if place in found), "an unknown file system")


def _values(path: str, key: str) -> list[str]:
    """Return the values of *key* in one of the system's tables."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]
