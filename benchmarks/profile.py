"""
``python -m benchmarks.profile echo``: the functions in which ``twist dicom`` spends its time for one kind of work.

The command runs the server under cProfile with DCMTK's client. It prints the functions that take the most time for one
operation, by their own time without callees; functions that only wait are left out. All threads count. A call costs more under
cProfile, so small functions seem more expensive than they are.
"""

from __future__ import annotations

import argparse
import os
import pstats
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import instances
from benchmarks.harness import ROOT, BenchmarkError, Server, run, serving
from benchmarks.programs import echoscu, storescu, twist_dicom

#: The kinds of work: how many operations, and the size of each instance in bytes.
WORK: Final = {"echo": (20_000, 0), "store-small": (1000, 12_000), "store-large": (1, 200_000_000)}
#: Functions that only wait.
WAITING: Final = (
    "<method 'poll' of 'select.epoll' objects>",
    "<method 'acquire' of '_thread.lock' objects>",
    "<method 'get' of '_queue.SimpleQueue' objects>",
)


def profiled(root: Path, name: str, durability: str, part: float = 1) -> tuple[int, dict[Any, Any]]:
    """
    Run the work *name* in the folder *root*.

    :param part: the share of it to run, 0 to 1.
    :returns: the number of operations, and the result of cProfile: see ``stats`` of :class:`pstats.Stats`.
    """
    count, size = WORK[name]
    count = max(1, int(count * part))
    paths = instances.make(root / "in", count if size else 1, size or 1)
    warm = instances.make(root / "warm", 1, 12_000, first=len(paths))
    found = root / "profile"
    program = twist_dicom(root / "storage", durability)

    def under_profile(port: int) -> Sequence[object]:
        _, _, _, *arguments = program(port)  # python -m twisted
        return [sys.executable, "-m", "benchmarks.servers.profiled", found, *arguments]

    with serving(under_profile, root / "log") as server:
        run(echoscu(server.port, 1))
        run(storescu(server.port, warm))
        os.kill(server.pid, signal.SIGURG)
        run(storescu(server.port, paths) if size else echoscu(server.port, count))
        _wait_for(found, server)
    return count, pstats.Stats(str(found)).stats  # type: ignore[attr-defined]


def _wait_for(found: Path, server: Server) -> None:
    os.kill(server.pid, signal.SIGURG)
    deadline = time.monotonic() + 30
    while not found.exists() or not found.stat().st_size:
        if time.monotonic() > deadline:
            raise BenchmarkError("the server does not write its profile")
        time.sleep(0.1)


def table(count: int, stats: dict[Any, Any], lines: int) -> str:
    """Return the *lines* functions that take the most time, as text."""
    working = {function: figures for function, figures in stats.items() if function[2] not in WAITING}
    everything = sum(own for _, _, own, *_ in working.values())
    rows = [f"{everything / count * 1e6:.1f} us of each", "", "   own us      %    calls  function"]
    for function, (_, calls, own, *_) in sorted(working.items(), key=lambda item: -item[1][2])[:lines]:
        name = pstats.func_std_string(function).removeprefix(f"{ROOT}/")  # type: ignore[attr-defined]
        rows.append(f"{own / count * 1e6:9.1f}  {own / everything:5.1%}  {calls / count:7.2f}  {name}")
    return "\n".join(rows)


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile", description="Profile twist dicom for one kind of work."
    )
    parser.add_argument("work", choices=WORK)
    parser.add_argument("--durability", choices=("full", "none"), default="full", help="default: full")
    parser.add_argument("--lines", type=int, default=25, metavar="N", help="number of functions (default: 25)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dicomtwist-profile-") as root:
        print(table(*profiled(Path(root), arguments.work, arguments.durability), arguments.lines))


if __name__ == "__main__":
    _main()
