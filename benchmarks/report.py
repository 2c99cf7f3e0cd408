"""
The table, as text and as Markdown.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.harness import BenchmarkError, Row, dcmtk

#: In the place of our time where a benchmark could not be run.
FAILED = "failed"

_HEADERS = ("Work", "Ours", "Peer", "", "Ratio", "Needed", "Verdict", "")


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


def markdown(rows: Sequence[Row], rounds: int) -> str:
    """Return the table as Markdown, with what it was measured on."""
    lines = ["# Benchmarks", "", *(f"- {words}" for words in setting(rounds)), ""]
    lines += [_line(_HEADERS), _line(["---"] * len(_HEADERS))]
    lines += [_line(_cells(row)) for row in rows]
    short = [row.work for row in rows if row.good is False]
    failed = [row.work for row in rows if row.ours == FAILED]
    lines += ["", f"Short of what is needed: {'; '.join(short) or 'nothing that was measured'}."]
    if failed:
        lines.append(f"Could not be measured: {', '.join(failed)}.")
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def setting(rounds: int) -> list[str]:
    """Return what the measurements were made on and with, in lines."""
    return [
        f"{date.today().isoformat()}, medians of {rounds}; `make bench` measures again",
        f"{_processor()}, {os.cpu_count()} cores; {platform.system()} {platform.release()}",
        f"{platform.python_implementation()} {platform.python_version()}, Twisted {_version('Twisted')},"
        f" pydicom {_version('pydicom')}",
        f"peers: {_dcmtk_version()}, pynetdicom {_version('pynetdicom')}",
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _dcmtk_version() -> str:
    try:
        output = subprocess.run([dcmtk("storescp"), "--version"], capture_output=True, text=True, check=True).stdout
    except (BenchmarkError, subprocess.CalledProcessError):
        return "DCMTK not installed"
    # $dcmtk: storescp v3.6.7 2022-04-22 $
    words = output.split()
    return f"DCMTK {words[2].removeprefix('v')}" if len(words) > 2 else "DCMTK"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
