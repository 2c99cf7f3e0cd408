"""
``python -m benchmarks``; see the package for how to read what it prints.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report
from benchmarks.harness import Bench, BenchmarkError, Row
from benchmarks.rows import BENCHMARKS


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure beside DCMTK and pynetdicom.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure; everything by default")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often (default: 5)")
    parser.add_argument("--quick", action="store_true", help="a small part of everything, once")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table to FILE as Markdown")
    arguments = parser.parse_args()
    if arguments.list:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:15} {benchmark.__doc__}")
        return 0
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if arguments.rounds < 1:
        parser.error("--rounds is 1 or more")
    # So that servers are ended and files removed when this is.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    rounds = 1 if arguments.quick else arguments.rounds
    rows: list[Row] = []
    failed = 0
    with tempfile.TemporaryDirectory(prefix="dicomtwist-benchmarks-") as folder:
        bench = Bench(Path(folder), rounds, arguments.quick)
        for name in arguments.names or BENCHMARKS:
            began = time.monotonic()
            try:
                measured = BENCHMARKS[name](bench)
            except BenchmarkError as error:
                failed += 1
                measured = [Row(name, report.FAILED, "", "", "", "", None, " ".join(str(error).split()))]
            rows += measured
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    for line in report.setting(rounds):
        print(line)
    print()
    print(report.text(rows))
    if arguments.write:
        arguments.write.write_text(report.markdown(rows, rounds), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(_main())
