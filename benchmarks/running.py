"""
Benchmarks of ``twist dicom`` as a service that runs for long: a sustained load, and a start with a full archive.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import instances
from benchmarks.archiving import synthetic_row
from benchmarks.harness import (
    Bench,
    BenchmarkError,
    Row,
    Seconds,
    compare,
    resident,
    run,
    run_client,
    serving,
    spread,
    stop,
)
from benchmarks.programs import echoscu, storescu, studyscu, twist_dicom
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.storage.file_store import INCOMING
from dicomtwist.archive.storage.types import Durability

# --- a sustained load

#: The allowed growth of the server's memory from the end of the first quarter to the end of the last, in KiB.
_MAX_GROWTH: Final = 8 * 1024
#: The longest time of a query beside the load, and of a clean stop, in seconds.
_MAX_FIND, _MAX_STOP = 0.050, 2.0


def sustained(bench: Bench) -> list[Row]:
    """Small instances for long, from 1, 8 and 64 senders: rate, memory, a query beside it, a clean stop; durability full."""
    count = bench.scaled(20_000, 1000)
    return [row for senders in (1, 8, 64) for row in load_rows(bench, senders, count)]


def load_rows(bench: Bench, senders: int, count: int) -> list[Row]:
    runs = []
    for _ in range(min(bench.rounds, 3)):
        os.sync()
        runs.append(_one_load(bench, senders, count))
    quarters = [[found["quarters"][quarter] for found in runs] for quarter in range(4)]
    rates = ", ".join(f"{count / 4 / statistics.median(times):.0f}" for times in quarters)
    growth = statistics.median(found["resident"][3] - found["resident"][0] for found in runs)
    at_first = statistics.median(found["resident"][0] for found in runs)
    longest = [max(found["finds"]) for found in runs]
    median = statistics.median(seconds for found in runs for seconds in found["finds"])
    stops = [found["stop"] for found in runs]
    work = f"{count} x 12 KB, {senders} {'sender' if senders == 1 else 'senders'}, durability full"
    return [
        compare(
            f"{work}: the last quarter",
            quarters[3],
            "ours, the first quarter",
            quarters[0],
            0.9,
            f"instances per second in the quarters: {rates}",
        ),
        Row(
            f"{work}: memory after the first quarter",
            f"{growth / 1024:+.1f} MiB",
            "",
            "",
            "",
            f"< {_MAX_GROWTH // 1024} MiB",
            growth < _MAX_GROWTH,
            f"from {at_first / 1024:.0f} MiB",
        ),
        Row(
            f"{work}: the longest C-FIND beside it",
            spread(longest),
            "",
            "",
            "",
            f"< {_MAX_FIND} s",
            statistics.median(longest) < _MAX_FIND,
            f"median {median:.4f}; each finds the instance that was acknowledged last",
        ),
        Row(
            f"{work}: clean stop",
            spread(stops),
            "",
            "",
            "",
            f"<= {_MAX_STOP:g} s",
            statistics.median(stops) <= _MAX_STOP,
            "afterwards the inbox is empty, and all files are in place",
        ),
    ]


def _one_load(bench: Bench, senders: int, count: int) -> dict[str, Any]:
    storage = bench.fresh() / "storage"
    warm = instances.make(bench.fresh() / "warm", 1, 12_000, first=999_999)
    options = ("--max-associations", 200)
    with serving(twist_dicom(storage, "full", *options), bench.fresh() / "log") as server:
        run(storescu(server.port, warm))
        found: dict[str, Any] = run_client("sustain", server.port, server.pid, senders, count, 12_000)
        found["stop"] = stop(server)
    left = [str(path.relative_to(storage)) for path in (storage / INCOMING).rglob("*") if path.stat().st_size]
    if left:
        raise BenchmarkError(f"{len(left)} files are left after the stop: {left[:3]}")
    if (stored := instances.count_stored(storage)) != count + 1:
        raise BenchmarkError(f"{stored} instances are stored, {count + 1} were sent")
    return found


# --- a start

_PER_SERIES: Final = 100
#: How many names one file gets at most: ext4 allows 65,000.
_NAMES: Final = 60_000


def start(bench: Bench) -> list[Row]:
    """A start with 100,000 and with 1,000,000 instances in the archive, until a C-ECHO and the first C-FIND are answered."""
    sizes = (0, 1000, 5000) if bench.quick else (0, 100_000, 1_000_000)
    rounds = min(bench.rounds, 3)
    found: dict[int, list[tuple[Seconds, Seconds, int]]] = {}
    for size in sizes:
        storage = bench.fresh() / "storage"
        fill_archive(storage, size)
        os.sync()
        # The first start is not counted: it may have to do what later ones need not.
        found[size] = [_started(bench, storage, size) for _ in range(rounds + (not bench.quick))][-rounds:]
    empty, *full = ([(echo, find, memory / 1024) for echo, find, memory in found[size]] for size in sizes)
    rows = []
    for size, times in zip(sizes[1:], full, strict=True):
        echoes, finds, memories = zip(*times, strict=True)
        rows.append(
            compare(
                f"start with {size:,} instances, until a C-ECHO is answered",
                list(echoes),
                "ours, empty",
                [echo for echo, _, _ in empty],
                note=f"then the first C-FIND {spread(list(finds))}; {statistics.median(memories):.0f} MiB resident",
            )
        )
    return rows


def _started(bench: Bench, storage: Path, size: int) -> tuple[Seconds, Seconds, int]:
    """Return how long a start takes, and the first query by patient; and the resident memory then in KiB."""
    log = bench.fresh() / "log"
    began = time.perf_counter()
    with serving(twist_dicom(storage, "full"), log) as server:
        run(echoscu(server.port, 1))
        echo = time.perf_counter() - began
        find = run(studyscu(server.port, "P0000000"))
        return echo, find, resident(server.pid)


def fill_archive(storage: Path, size: int) -> None:
    """
    Make an archive of *size* instances in little time: 100 to a series, a series to a study, two studies to a patient.

    The rows of the first instance of each series are added as those of a stored one are, and the others are copied from them by
    SQL. All files are hard links to a few empty ones. A start compares names only, and does not read them.
    """
    archive = Archive(storage, durability=Durability.NONE)
    archive.open()
    try:
        rows = [synthetic_row(series, series, series, series // 2) for series in range(size // _PER_SERIES)]
        for at in range(0, len(rows), 1000):
            archive.index.add(rows[at : at + 1000])
        path = archive.index.engine.url.database
    finally:
        archive.close()
    assert path is not None
    _copy_rows(path)
    linked = _NAMES
    for row in rows:
        study, series, first = row.record.uids
        folder = storage / study / series
        folder.mkdir(parents=True)
        for number in range(_PER_SERIES):
            name = folder / f"{_uid(first, number)}.dcm"
            if linked == _NAMES:
                linked, origin = 0, name
                name.touch()
            else:
                os.link(origin, name)
                linked += 1


def _uid(first: str, number: int) -> str:
    return f"{first}.{number}" if number else first


def _copy_rows(path: str) -> None:
    database = sqlite3.connect(path)
    try:
        columns = [row[1] for row in database.execute("PRAGMA table_info(instance)") if row[1] != "id"]
        values = [f"{one} || '.' || number" if one == "sop_instance_uid" else one for one in columns]
        database.execute(
            f"WITH RECURSIVE numbers(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < ?)"
            f" INSERT INTO instance ({', '.join(columns)}) SELECT {', '.join(values)} FROM instance, numbers"
            " ORDER BY instance.id, number",
            [_PER_SERIES - 1],
        )
        database.commit()
    finally:
        database.close()
