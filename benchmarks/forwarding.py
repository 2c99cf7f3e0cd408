"""
Benchmarks of store and forward: instances that arrive at ``twist dicom`` and go on to another server while more arrive,
against our own client, and against Orthanc with a script in Lua that sends what comes.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import instances
from benchmarks.harness import (
    TIMEOUT,
    Bench,
    BenchmarkError,
    Row,
    Seconds,
    Server,
    compare,
    run,
    run_client,
    serving,
    spread,
)
from benchmarks.programs import dcmtk_storescp, echoscu, orthanc_forwarder, storescu, twist_dicom
from dicomtwist.forwarding.tasks.store import TaskStore
from dicomtwist.forwarding.tasks.types import Arrival, Definition

#: The time between two looks at what has arrived at the destination, in seconds.
_LOOK: Final = 0.01
#: The number of tasks that one claim takes, and how often one is claimed.
_CLAIM: Final = 64
_CLAIMS: Final = 50
#: The number of instances that tasks are made of in one transaction.
_MADE: Final = 1000


class _Passed(NamedTuple):
    """
    The times of one run, in seconds.

    :ivar received: from the first byte to the last acknowledgement.
    :ivar forwarded: from the first instance at the destination to the last one.
    :ivar total: from the first byte to the last instance at the destination.
    """

    received: Seconds
    forwarded: Seconds
    total: Seconds


def forward_small(bench: Bench) -> list[Row]:
    """Small instances through store and forward, while they arrive."""
    return _forward(bench, bench.scaled(1000, 100), "12 KB", 12_000)


def forward_medium(bench: Bench) -> list[Row]:
    """Images of 512 x 512 through store and forward, while they arrive."""
    return _forward(bench, bench.scaled(300, 30), "525 KB", 530_800)


def _forward(bench: Bench, count: int, words: str, size: int) -> list[Row]:
    paths = instances.make(bench.fresh() / "in", count, size)
    passed: dict[str, list[_Passed]] = {"ours": [], "orthanc": []}

    def sent() -> Seconds:
        with serving(dcmtk_storescp(bench.fresh()), bench.fresh() / "log") as server:
            run(echoscu(server.port, 1))
            return run_client("send", server.port, paths[0].parent)["stores"]

    def received() -> Seconds:
        with serving(twist_dicom(bench.fresh(), "full"), bench.fresh() / "log") as server:
            run(echoscu(server.port, 1))
            return run(storescu(server.port, paths))

    def through(name: str) -> Seconds:
        one = _through(bench, name, paths)
        passed[name].append(one)
        return one.total

    bench.measure({"ours": lambda: through("ours"), "orthanc": lambda: through("orthanc")})
    alone = bench.measure({"sent": sent, "received": received})
    ours, orthanc = (passed[name][0 if bench.quick else 1 :] for name in ("ours", "orthanc"))
    work = f"forward {count} x {words}"
    return [
        compare(f"{work}, first to last", [one.forwarded for one in ours], "our client", alone["sent"], 0.8),
        compare(
            f"receive {count} x {words} while they are forwarded",
            [one.received for one in ours],
            "ours, not forwarding",
            alone["received"],
            0.7,
        ),
        compare(
            f"{work}, received and sent",
            [one.total for one in ours],
            "Orthanc with Lua",
            [one.total for one in orthanc],
            3,
        ),
    ]


def _through(bench: Bench, name: str, paths: Sequence[Path]) -> _Passed:
    """Send *paths* to a server that forwards them, and wait until all have arrived."""
    arrived = bench.fresh()
    with ExitStack() as stack:
        destination = stack.enter_context(serving(dcmtk_storescp(arrived), bench.fresh() / "log"))
        server = stack.enter_context(_forwarder(bench, name, destination))
        called = "ORTHANC" if name == "orthanc" else "ANY-SCP"
        run(echoscu(server.port, 1, called))
        watch = _Watch(arrived, len(paths))
        watch.start()
        began = time.perf_counter()
        received = run(storescu(server.port, paths, called))
        watch.join()
    if not watch.last:
        raise BenchmarkError(f"{instances.count_stored(arrived)} of {len(paths)} have arrived")
    return _Passed(received, watch.last - watch.first, watch.last - began)


def _forwarder(bench: Bench, name: str, destination: Server) -> AbstractContextManager[Server]:
    if name == "orthanc":
        return serving(orthanc_forwarder(bench.fresh(), destination.port), bench.fresh() / "log")
    configuration = bench.fresh() / "forward.toml"
    configuration.write_text(
        f'[peers]\nDESTINATION = "127.0.0.1:{destination.port}"\n\n[[forward]]\nname = "all"\nto = ["DESTINATION"]\n'
    )
    return serving(twist_dicom(bench.fresh(), "full", "--config", configuration), bench.fresh() / "log")


class _Watch(threading.Thread):
    """
    Watches a folder until it has so many files.

    :ivar first: when the first one was seen; 0 before.
    :ivar last: when all were seen; 0 before, and if they do not come.
    """

    def __init__(self, folder: Path, count: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.count = folder, count
        self.first = self.last = 0.0

    def run(self) -> None:
        """Look until all are there, or until :data:`~benchmarks.harness.TIMEOUT`."""
        deadline = time.perf_counter() + TIMEOUT
        while time.perf_counter() < deadline:
            found, now = len(os.listdir(self.folder)), time.perf_counter()
            if found and not self.first:
                self.first = now
            if found >= self.count:
                self.last = now
                return
            time.sleep(_LOOK)


def forward_claim(bench: Bench) -> list[Row]:
    """Claims of tasks while a million others wait."""
    count = bench.scaled(1_000_000, 10_000)
    store = TaskStore(bench.fresh())
    store.open()
    try:
        [number] = store.register([Definition("all", {"to": ["A"]}, (("A",),))])
        for first in range(0, count, _MADE):
            store.make(
                [
                    Arrival(f"1.2.{one // 500}", f"1.2.{one // 500}.{one // 100}", f"1.2.9.{one}", (number,), 1, 12_000)
                    for one in range(first, first + _MADE)
                ]
            )
        times = []
        for _ in range(_CLAIMS):
            began = time.perf_counter()
            claimed = store.claim(("A",), _CLAIM, time.time(), 60.0, "benchmark")
            times.append(time.perf_counter() - began)
            if len(claimed) != _CLAIM:
                raise BenchmarkError(f"{len(claimed)} tasks were claimed")
    finally:
        store.close()
    good = statistics.median(times) <= 0.002
    return [Row(f"claim {_CLAIM} of {count:,} waiting tasks", spread(times), "", "", "", "<= 0.002 s", good)]
