"""
The command ``python -m benchmarks``. The docstring of the package says how it measures.
"""

from __future__ import annotations

import argparse
import fnmatch
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks import report, sizing
from benchmarks.harness import Bench, BenchmarkError, Row
from benchmarks.rows import BENCHMARKS


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure dicomtwist against DCMTK, Orthanc and pynetdicom."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="the benchmarks to run, or patterns; all by default")
    parser.add_argument("--list", action="store_true", help="print the names and exit")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="number of rounds (default: 5)")
    parser.add_argument("--quick", action="store_true", help="a small part of everything, once")
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="FOLDER",
        help="a new folder for all files, which are left there (default: a temporary folder, removed at the end)",
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="PAGE.md",
        help="keep the results in PAGE.json, replacing earlier rows, and write PAGE.md from all of it",
    )
    parser.add_argument(
        "--measure-nothing", action="store_true", help="with --write: only write PAGE.md from PAGE.json"
    )
    arguments = parser.parse_args()
    unknown = [pattern for pattern in arguments.names if not fnmatch.filter(BENCHMARKS, pattern)]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    arguments.names = chosen(arguments.names)
    if arguments.rounds < 1:
        parser.error("--rounds is 1 or more")
    if arguments.measure_nothing and not arguments.write:
        parser.error("--measure-nothing is for --write")
    if arguments.quick and arguments.write:
        parser.error("--quick measures too little to be kept")
    return arguments


def chosen(patterns: list[str]) -> list[str]:
    """Return the names of the benchmarks that one of *patterns* matches, in the order of the table; all without a pattern."""
    return [name for name in BENCHMARKS if not patterns or any(fnmatch.fnmatchcase(name, one) for one in patterns)]


@contextmanager
def _root(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="dicomtwist-benchmarks-") as temporary:
            yield Path(temporary)
    else:
        folder.mkdir(parents=True)
        yield folder.absolute()


def _measure(name: str, bench: Bench) -> list[Row]:
    """Return the rows of one benchmark, or one row with the reason why it failed."""
    began = time.monotonic()
    try:
        bench.settle()
        rows = BENCHMARKS[name](bench)
        return [replace(row, note="; ".join(filter(None, (row.note, bench.slow)))) for row in rows]
    except BenchmarkError as error:
        return [Row(name, report.FAILED, "", "", "", "", None, " ".join(str(error).split()))]
    finally:
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _write_page(path: Path, results: report.Results) -> None:
    """Write the page at *path*, and the tables of sizes if the guide that has them lies beside it."""
    path.write_text(report.page(results, BENCHMARKS), encoding="utf-8")
    guide = path.parent / "guides" / "operations.md"
    if guide.exists():
        guide.write_text(sizing.page(guide.read_text(encoding="utf-8"), results), encoding="utf-8")


def _main() -> int:
    arguments = _parse()
    if arguments.list:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:15} {benchmark.__doc__}")
        return 0
    if arguments.measure_nothing:
        _write_page(arguments.write, report.load(arguments.write.with_suffix(".json")))
        return 0
    # SIGTERM has to end the servers and remove the files, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    rounds = 1 if arguments.quick else arguments.rounds
    rows: list[Row] = []
    with _root(arguments.folder) as folder:
        bench = Bench(folder, rounds, arguments.quick)
        on = report.setting(bench.root)
        for name in arguments.names:
            measured = _measure(name, bench)
            rows += measured
            if arguments.write:
                # After each benchmark, so that its results are kept even if a later one is interrupted.
                kept = arguments.write.with_suffix(".json")
                _write_page(arguments.write, report.keep(kept, name, measured, rounds, on))
    print(*on, f"medians of {rounds}", "", report.text(rows), sep="\n")
    return 1 if any(row.ours == report.FAILED for row in rows) else 0


if __name__ == "__main__":
    sys.exit(_main())
