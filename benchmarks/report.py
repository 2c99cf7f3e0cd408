"""
The table of results: printed on a terminal, kept as JSON, and written as the page ``docs/benchmarks.md`` from the kept results.
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

#: Stands in place of our time if a benchmark could not be run.
FAILED = "failed"

_HEADERS = ("Work", "Ours", "Peer", "Theirs", "Ratio", "Needed", "Verdict", "Note")

#: The kept results of each benchmark, by its name: ``date``, ``rounds``, ``on`` (see :func:`setting`) and ``rows``.
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


# --- kept results


def load(path: Path) -> Results:
    """Return the results that are kept at *path*; none if there is no such file."""
    found: Results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def keep(path: Path, name: str, rows: Sequence[Row], rounds: int, on: Sequence[str]) -> Results:
    """Keep the rows of one benchmark at *path*, replacing its earlier rows, and return all kept results."""
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

<!-- `make bench` writes this page from benchmarks.json: your changes to it will be lost. -->

The time and memory that dicomtwist needs, beside DCMTK, Orthanc and pynetdicom. Both sides of a row were measured on one
machine, in one run, in turn. `benchmarks/__init__.py` says how the work is done.

## How to read it

- **Ours** and **theirs** are seconds unless the row says otherwise: the median of the rounds, and in brackets the fastest and
  the slowest. A wide range in brackets means that the machine was busy, and that the row says little.
- **Ratio** is the peer's time divided by ours: above 1 dicomtwist is faster. For another machine, ratios say more than seconds.
- **Needed** is the least ratio that the project asks of itself, or another bound if one is written; the verdict is then OK or
  SHORT. It is not a promise, and OK does not mean "as fast": a ratio of 0.4 is met by a program that takes two and a half
  times as long. Rows without a needed ratio are for information.
- If the note says *scaled*, the peer got a part of the work, because all of it takes minutes, and its time was multiplied.
- Rows about memory say by how much the server's resident memory grew. A single association disappears in the memory that Python
  holds in reserve; a thousand do not. Rows about CPU say how much CPU time the server uses, in all of its threads.
- Rows whose peer is *ours* compare dicomtwist with itself, with more work or in another way.
- A run of a few benchmarks replaces only their rows, so each row has its own date.

Some things do not show in such figures, and have misled us:

- **Nagle's algorithm.** Debian's DCMTK leaves it on, and its clients write a header and a body in two pieces. With delayed
  acknowledgements a round trip then costs 44 ms against most servers. Both sides run with `TCP_NODELAY=1`, so that the row
  measures the code and not that delay. The row called *stock* runs without it, as most users do.
- **Durability.** By default `twist dicom` syncs each instance before it acknowledges it (`full`). DCMTK and pynetdicom do
  not. So rows with `none` compare like with like, and rows with `full` show the default.
- **Work after the acknowledgement.** A small instance is acknowledged when it is on the medium in the inbox, and its file
  follows within a second. The client's time for a short load does not contain all of that. The rows with 20,000 instances show
  whether the server keeps up, and how long it takes to put the last files in place when it is stopped.
- **Deleted files.** For some minutes after thousands of files were deleted, ext4 is slow to create files: 250 us each
  instead of 10. So nothing is deleted during a run, each run of a server has its own folder, and a benchmark waits up to five
  minutes until files are created quickly. If they are not, the note of the row says how long creating a file took.
- **The page cache.** Files that a benchmark reads were written just before, so no row waits for a disk to read. Files that one
  run wrote are on the disk before the next begins.
- **One machine.** Client and server share its cores and its loopback interface. No network is as fast as this, and on a network
  each round trip contains a delay that no server can shorten.
"""

_EMPTY: Final = """
## Figures

None are kept yet: `make bench` measures them, which takes more than an hour, and writes them here.
"""


def page(results: Results, order: Iterable[str]) -> str:
    """Return the page, with the benchmarks in *order*; benchmarks that are not in *order* are left out."""
    known = {name: results[name] for name in order if name in results}
    # One table for each machine with its versions, because rows from different machines cannot be compared.
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


# --- machine and versions


def setting(folder: Path) -> list[str]:
    """
    Return a description of the machine and the versions, in lines: the machine first.

    :param folder: the folder of the files, whose file system is named.
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
    """Return the words that a program prints for ``--version``, none if it is not installed."""
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
    """Return the type of the file system that holds *folder*."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "an unknown file system"
    found = {Path(mount[1]): mount[2] for mount in mounts}
    return next((found[place] for place in (folder, *folder.parents) if place in found), "an unknown file system")


def _values(path: str, key: str) -> list[str]:
    """Return the values of *key* in a table below ``/proc``."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]
