"""
``python -m benchmarks.load``: ``twist dicom`` under more load than it should get.

==============  =====================================================================================================
associations    1,000 associations at once, each of which echoes and stores; none fails
connections     5,000 idle connections, as far as the limit of open files allows; a C-ECHO meanwhile; afterwards none is left
senders         64 senders in parallel; none is refused, and every instance is stored
hostile         a C-ECHO while 1,000 connections are half open, in the middle of a TLS handshake, or send a byte a second
idle            the memory of an idle association, with 1, 20 and 120 presentation contexts
idle-growth     the memory of 1 to 1,000 idle associations
cost            the server's CPU time for a C-ECHO and for a C-STORE, on 1 to 1,000 associations
==============  =====================================================================================================

The exit status is 1 if a bound is not met. ``--short`` does a small part of each, to see whether it works.
``python -m benchmarks`` runs some of them with ``--json`` and has their rows in its table.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, react

from benchmarks import instances, report
from benchmarks.crowd import (
    MR,
    REQUEST,
    VERIFICATION,
    Raw,
    all_of,
    client,
    connections,
    echo_times,
    many_files,
    open_files,
    pause,
    quantile,
    server,
    vitals,
)
from benchmarks.harness import BenchmarkError, Row, resident, serving
from dicomtwist import AE, Association
from dicomtwist.dimse.status import Status
from dicomtwist.presentation import AllStoragePresentationContexts, build_context
from tests.peers import certificates, free_port

#: The highest allowed ratio of the p99 of C-ECHOs with misbehaving peers to the p99 without them.
MOST_RATIO: Final = 20.0
#: The most memory of an idle association, in KiB.
MOST_IDLE: Final = 40.0
#: The longest time of a C-ECHO while thousands of connections are made, in seconds.
MOST_ECHO: Final = 2.0


@dataclass
class Load:
    """
    The folders and sizes that a load works with.

    :ivar root: a folder for all files.
    :ivar short: whether to do only a small part.
    """

    root: Path
    short: bool
    _folders: int = 0

    def scaled(self, count: int, short: int) -> int:
        """Return *count*, or *short* if only a small part is done."""
        return short if self.short else count

    def fresh(self) -> Path:
        """Return an empty folder."""
        self._folders += 1
        folder = self.root / str(self._folders)
        folder.mkdir()
        return folder


def _row(work: str, figure: str, needed: str = "", good: bool | None = None, note: str = "") -> Row:
    return Row(work, figure, "", "", "", needed, good, note)


async def associations(load: Load) -> list[Row]:
    """Measure associations that are all open at once, each of which echoes and stores."""
    count = load.scaled(1000, 30)
    folder = load.fresh()
    paths = instances.make(folder / "in", count, 12_000)
    ae, log = client(), folder / "log"
    failed: list[str] = []
    with serving(server(folder / "out", "--network-timeout", 600), log) as running:
        began = time.perf_counter()
        there = await all_of([lambda: ae.associate("127.0.0.1", running.port)] * count)
        opened = time.perf_counter() - began
        times: list[float] = []

        async def work(assoc: Association, path: Path) -> None:
            began = time.perf_counter()
            echoed = await assoc.send_c_echo()
            times.append(time.perf_counter() - began)
            stored = await assoc.send_c_store(path)
            failed.extend(str(status) for status in (echoed, stored) if not status.is_success)

        began = time.perf_counter()
        jobs = [lambda assoc=assoc, path=path: work(assoc, path) for assoc, path in zip(there, paths, strict=True)]
        await all_of(jobs, count)
        worked = time.perf_counter() - began
        established = sum(assoc.is_established for assoc in there)
        line = await vitals(running, log)
        await all_of([assoc.release for assoc in there])
    stored = instances.count_stored(folder / "out")
    good = not failed and established == count and stored == count
    return [
        _row(
            f"{count} associations at once: echo and store on each",
            f"{worked:.2f} s, opened in {opened:.2f} s",
            "none fails",
            good,
            f"{len(failed)} failed, {stored} stored; all asked at once: p50 of the echo {quantile(times, 0.5):.2f} s",
        ),
        _row("... in its own words", line.partition("] ")[2] or line),
    ]


async def idle_connections(load: Load) -> list[Row]:
    """Measure a C-ECHO beside idle connections, and count the connections that are left afterwards."""
    limit = many_files()
    count = min(load.scaled(5000, 100), limit - 500)
    folder = load.fresh()
    ae = client()
    with serving(server(folder / "out", "--acse-timeout", load.scaled(30, 3)), folder / "log") as running:
        await echo_times(ae, running.port, 10)
        before, files = resident(running.pid), open_files(running)
        making = Deferred.fromCoroutine(connections(running.port, count))
        slowest = 0.0
        while not making.called:
            slowest = max(slowest, *await echo_times(ae, running.port, 5))
        silent = await making
        memory = resident(running.pid) - before
        times = await echo_times(ae, running.port, load.scaled(500, 50))
        for one in silent:
            await one.closed
        left = max(0, open_files(running) - files)
        after = await echo_times(ae, running.port, 50)
    return [
        _row(
            f"{count} connections that do nothing: p99 of an echo",
            f"{quantile(times, 0.99) * 1000:.1f} ms; {max(slowest, *times) * 1000:.0f} ms at the most",
            f"{MOST_ECHO:g} s",
            max(slowest, *times) < MOST_ECHO,
            f"{memory / count:.1f} KiB each; afterwards {quantile(after, 0.99) * 1000:.1f} ms",
        ),
        _row("... that are left when their time is over", str(left), "0", left == 0),
    ]


async def senders(load: Load) -> list[Row]:
    """Measure senders in parallel."""
    count, each = load.scaled(64, 16), load.scaled(50, 5)
    folder = load.fresh()
    paths = instances.make(folder / "in", count * each, 12_000)
    ae = client()
    refused = 0
    with serving(server(folder / "out"), folder / "log") as running:

        async def send(some: list[Path]) -> None:
            nonlocal refused
            async with await ae.associate("127.0.0.1", running.port) as assoc:
                for path in some:
                    refused += not (await assoc.send_c_store(path)).is_success

        began = time.perf_counter()
        await all_of([lambda some=paths[start::count]: send(some) for start in range(count)], count)  # type: ignore[misc]
        took = time.perf_counter() - began
    stored = instances.count_stored(folder / "out")
    return [
        _row(
            f"{count} senders in parallel, {each} instances each",
            f"{took:.2f} s, {count * each / took:.0f} instances a second",
            "none refused",
            not refused and stored == count * each,
            f"{refused} refused, {stored} stored, on the disk",
        )
    ]


async def hostile(load: Load) -> list[Row]:
    """Measure a C-ECHO beside connections that are half open, in the middle of a TLS handshake, or slow."""
    many_files()
    count, rounds = load.scaled(1000, 20), load.scaled(1000, 100)
    folder, secure = load.fresh(), free_port()
    ae = client()
    program = server(folder / "out", "--acse-timeout", 600, "--pdu-timeout", 600, secure=(secure, certificates()))
    with serving(program, folder / "log") as running:
        await echo_times(ae, running.port, rounds)
        base = await echo_times(ae, running.port, rounds)
        half = await connections(running.port, count)
        shaking = await connections(secure, count, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40))
        slow = await connections(running.port, count // 2)
        storing = await connections(running.port, count // 2, REQUEST)
        for one in storing:
            await one.answered
        dripping = [_Drip(slow, REQUEST), _Drip(storing, b"\4\0\0\0\x40\0\0\0\x3f\xfc\3\0" + bytes(16380))]
        times = await echo_times(ae, running.port, rounds)
        there = [one for one in (*half, *shaking, *slow, *storing) if not one.closed.called]
        for drip in dripping:
            drip.stop()
        for one in (*half, *shaking, *slow, *storing):
            await one.leave()
        after = await echo_times(ae, running.port, rounds)
    ratio = quantile(times, 0.99) / quantile(base, 0.99)
    return [
        _row(
            f"p99 of an echo among {count} half open, {count} half-handshaken and {count} slow connections",
            f"{quantile(times, 0.99) * 1000:.2f} ms, {ratio:.1f} times {quantile(base, 0.99) * 1000:.2f} ms",
            f"< {MOST_RATIO:g} times",
            ratio < MOST_RATIO and len(there) == 3 * count,
            f"p50 {quantile(times, 0.5) * 1000:.2f} ms, without {quantile(base, 0.5) * 1000:.2f} ms;"
            f" afterwards p99 {quantile(after, 0.99) * 1000:.2f} ms",
        )
    ]


class _Drip:
    """Sends a byte a second on each of many connections, on a tenth of them at a time."""

    def __init__(self, peers: list[Raw], data: bytes) -> None:
        self._peers, self._data, self._turn = peers, data, 0
        self._call = LoopingCall(self._drip)
        self._call.start(0.1)
        self.stop = self._call.stop

    def _drip(self) -> None:
        place = self._turn // 10 % len(self._data)
        for peer in self._peers[self._turn % 10 :: 10]:
            peer.send(self._data[place : place + 1])
        self._turn += 1


async def idle(load: Load) -> list[Row]:
    """Measure the memory of idle associations."""
    count = load.scaled(500, 50)
    rows = []
    for contexts in (1, 20, 120):
        folder = load.fresh()
        ae = AE("CROWD")
        storage = AllStoragePresentationContexts[: contexts - 1]
        ae.requested_contexts = [
            build_context(VERIFICATION),
            *(build_context(one.abstract_syntax or MR) for one in storage),
        ]
        with serving(server(folder / "out", "--network-timeout", 600), folder / "log") as running:
            for _ in range(2):
                warm = await all_of([lambda: ae.associate("127.0.0.1", running.port)] * 20)  # noqa: B023
                await all_of([assoc.release for assoc in warm])
            before = resident(running.pid)
            there = await all_of([lambda: ae.associate("127.0.0.1", running.port)] * count)  # noqa: B023
            await pause(1)
            memory = (resident(running.pid) - before) / count
            await all_of([assoc.release for assoc in there])
        rows.append(
            _row(
                f"memory of an idle association with {contexts} contexts ({count} of them)",
                f"{memory:.1f} KiB",
                f"{MOST_IDLE:g} KiB",
                memory < MOST_IDLE,
            )
        )
    return rows


async def idle_growth(load: Load) -> list[Row]:
    """Measure how memory grows with the number of idle associations."""
    many_files()
    folder, ae = load.fresh(), client()
    there: list[Association] = []
    rows: list[Row] = []
    before, memory = 0, 0.0
    with serving(server(folder / "out", "--network-timeout", 600), folder / "log") as running:
        await echo_times(ae, running.port, 10)
        await pause(1)
        base = resident(running.pid)
        for count in _COUNTS[: load.scaled(4, 3)]:
            there += await all_of([lambda: ae.associate("127.0.0.1", running.port)] * (count - len(there)))
            await pause(1)
            grown = resident(running.pid) - base
            rows.append(
                _row(
                    f"memory of an idle association, {count:,} of them",
                    f"{grown / count:.1f} KiB",
                    f"< {MOST_IDLE:g} KiB",
                    grown / count < MOST_IDLE,
                    f"+{grown} KiB in all, {(grown - memory) / (count - before):.1f} KiB for each that was added",
                )
            )
            before, memory = count, grown
        await all_of([assoc.release for assoc in there])
    return rows


#: The numbers of associations for which growth is measured.
_COUNTS: Final = (1, 10, 100, 1000)
#: How many times the cost of operations is measured, and how many C-ECHOs and C-STOREs there are each time.
_PASSES, _ECHOES, _STORES = 5, 3000, 1000


async def cost(load: Load) -> list[Row]:
    """Measure the server's CPU time for an operation, which should not depend on the number of associations."""
    many_files()
    counts = _COUNTS[: load.scaled(4, 2)]
    passes, echoes, stores = (_PASSES, _ECHOES, _STORES) if not load.short else (2, 200, 20)
    paths = instances.make(load.fresh() / "in", passes * stores, 12_000)
    found = {}
    for count in counts:
        folder, ae = load.fresh(), client()
        with serving(server(folder / "out", "--network-timeout", 600), folder / "log") as running:
            there = await all_of([lambda: ae.associate("127.0.0.1", running.port)] * count)  # noqa: B023
            costs = _Costs(running.pid, there)
            warm = instances.make(load.fresh() / "in", 50, 12_000, first=len(paths))
            await costs.of([_echo] * echoes)
            await costs.of([_store(path) for path in warm])
            found[count] = (
                [await costs.of([_echo] * echoes) for _ in range(passes)],
                [await costs.of([_store(path) for path in paths[turn::passes]]) for turn in range(passes)],
            )
            await all_of([assoc.release for assoc in there])
        if instances.count_stored(folder / "out") != len(paths) + len(warm):
            raise BenchmarkError("not everything was stored")
    return [
        Row(
            f"server's CPU for {what}, {count:,} association{'s' * (count > 1)}",
            _microseconds(found[count][number]),
            "ours, 1 association" if count > 1 else "",
            _microseconds(found[1][number]) if count > 1 else "",
            f"{statistics.median(found[1][number]) / statistics.median(found[count][number]):.2f}" if count > 1 else "",
            "",
            None,
            "of all its threads; durability full" if "STORE" in what else "",
        )
        for number, what in enumerate(("a C-ECHO", "a C-STORE of 12 KB"))
        for count in counts
    ]


def _microseconds(times: list[float]) -> str:
    """Return the median of *times* (in seconds) and, in brackets, the shortest and the longest, as text in us."""
    low, middle, high = (value * 1e6 for value in (min(times), statistics.median(times), max(times)))
    return f"{middle:.0f} us ({low:.0f}-{high:.0f})"


#: An operation on an association.
_Operation = Callable[[Association], Awaitable[Status]]


def _echo(assoc: Association) -> Awaitable[Status]:
    return assoc.send_c_echo()


def _store(path: Path) -> _Operation:
    return lambda assoc: assoc.send_c_store(path)


class _Costs:
    """Measures the CPU time of a process, in all of its threads, while operations run on associations."""

    def __init__(self, pid: int, there: list[Association]) -> None:
        # The CPU clock of another process, see clock_getcpuclockid(3); this is its number on Linux.
        self._clock = ~pid << 3 | 2
        self._there = there

    async def of(self, operations: Sequence[_Operation]) -> float:
        """Run *operations*, dealt out to the associations, one at a time on each; return the CPU seconds for one of them."""

        async def work(assoc: Association, some: Sequence[_Operation]) -> None:
            for operation in some:
                if not (await operation(assoc)).is_success:
                    raise BenchmarkError("an operation failed")

        began = time.clock_gettime(self._clock)
        shares = [operations[start :: len(self._there)] for start in range(len(self._there))]
        jobs = [
            lambda assoc=assoc, some=some: work(assoc, some) for assoc, some in zip(self._there, shares, strict=True)
        ]
        await all_of(jobs, len(jobs))
        return (time.clock_gettime(self._clock) - began) / len(operations)


#: The loads by name.
LOADS: Final[dict[str, Callable[[Load], Awaitable[list[Row]]]]] = {
    "associations": associations,
    "connections": idle_connections,
    "senders": senders,
    "hostile": hostile,
    "idle": idle,
    "idle-growth": idle_growth,
    "cost": cost,
}


async def run(names: list[str], root: Path, *, short: bool) -> list[Row]:
    """Run the named loads one after the other; a load that fails gives a row that is not good."""
    load = Load(root, short)
    many_files()
    rows: list[Row] = []
    for name in names:
        began = time.monotonic()
        try:
            rows += await LOADS[name](load)
        except BenchmarkError as error:
            rows.append(_row(name, report.FAILED, good=False, note=" ".join(str(error).split())))
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return rows


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description="twist dicom under load.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(LOADS)}; all by default")
    parser.add_argument("--short", action="store_true", help="run a small part of each load")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument(
        "--folder", type=Path, help="a folder for files that are kept; by default they are removed at the end"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in LOADS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(LOADS)}")

    async def main(reactor: Any) -> None:
        names = arguments.names or list(LOADS)
        with (
            nullcontext(arguments.folder) if arguments.folder else TemporaryDirectory(prefix="dicomtwist-load-") as root
        ):
            rows = await run(names, Path(root), short=arguments.short)
        if arguments.json:
            print(json.dumps([asdict(row) for row in rows]))
            return
        print(report.text(rows))
        print(f"limit of open files: {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}")
        if any(row.good is False for row in rows):
            raise SystemExit(1)

    react(lambda reactor: Deferred.fromCoroutine(main(reactor)))


if __name__ == "__main__":
    _main()
