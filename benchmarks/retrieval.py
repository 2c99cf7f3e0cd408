"""
Benchmarks of C-FIND, C-GET and C-MOVE against dcmqrscp, with DCMTK's clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from benchmarks import instances
from benchmarks.harness import Bench, BenchmarkError, Row, Server, compare, run, run_client, serving
from benchmarks.programs import (
    archive_server,
    dcmqrscp,
    dcmqrscp_configuration,
    dcmtk_storescp,
    findscu,
    getscu,
    movescu,
    storescu,
)

DCMQRSCP: Final = "dcmqrscp"

#: A function that returns the command line of a client for a port.
Client = Callable[[int], Sequence[object]]


@contextmanager
def _archives(bench: Bench, paths: Sequence[Path]) -> Iterator[tuple[Server, Server]]:
    """Run our archive and DCMTK's, with *paths* in both; C-MOVE sends to a storescp that drops what it receives."""
    with ExitStack() as stack:
        target = stack.enter_context(serving(dcmtk_storescp(bench.fresh(), "--ignore"), bench.fresh() / "log"))
        ours = stack.enter_context(serving(archive_server(paths[0].parent, target.port), bench.fresh() / "log"))
        configuration = dcmqrscp_configuration(bench.fresh(), target.port)
        peer = stack.enter_context(serving(dcmqrscp(configuration), bench.fresh() / "log"))
        run(storescu(peer.port, paths, called="DCMQRSCP"))
        if instances.count_stored(configuration.parent / "storage") < len(paths):
            raise BenchmarkError("dcmqrscp did not store everything")
        yield ours, peer


def find(bench: Bench) -> list[Row]:
    """C-FIND with many responses, by findscu and by our own client."""
    count = bench.scaled(1300, 100)
    paths = instances.make(bench.fresh() / "in", count, 1)
    with _archives(bench, paths) as (ours, peer):

        def client(server: Server) -> float:
            return run_client("find", server.port, count)["total"]

        times = bench.measure(
            {
                "ours": lambda: run(findscu(ours.port)),
                "peer": lambda: run(findscu(peer.port)),
                "asking ours": lambda: client(ours),
                "asking peer": lambda: client(peer),
            }
        )
    work = f"C-FIND, {count} answers"
    return [
        compare(f"{work}, to findscu", times["ours"], DCMQRSCP, times["peer"], 1.0),
        compare(f"{work}, to our client", times["asking ours"], DCMQRSCP, times["asking peer"]),
        compare(f"{work}, decoded by our client", times["asking peer"], "findscu", times["peer"]),
    ]


def get_small(bench: Bench) -> list[Row]:
    """C-GET of small instances by getscu."""
    return _retrieved(bench, "C-GET", getscu, bench.scaled(1000, 100), "12 KB", 12_000)


def get_medium(bench: Bench) -> list[Row]:
    """C-GET of images of 512 x 512 by getscu."""
    return _retrieved(bench, "C-GET", getscu, bench.scaled(300, 30), "525 KB", 530_800)


def move_small(bench: Bench) -> list[Row]:
    """C-MOVE of small instances to storescp."""
    return _retrieved(bench, "C-MOVE", movescu, bench.scaled(1000, 100), "12 KB", 12_000)


def move_medium(bench: Bench) -> list[Row]:
    """C-MOVE of images of 512 x 512 to storescp."""
    return _retrieved(bench, "C-MOVE", movescu, bench.scaled(300, 30), "525 KB", 530_800)


def _retrieved(bench: Bench, name: str, command: Client, count: int, words: str, size: int) -> list[Row]:
    with _archives(bench, instances.make(bench.fresh() / "in", count, size)) as (ours, peer):
        return [asked(bench, f"{name} {count} x {words}", command, ours, peer)]


def asked(bench: Bench, work: str, command: Client, ours: Server, peer: Server) -> Row:
    """Run *command* against both archives in turn, and return the row that compares them."""
    times = bench.measure({"ours": lambda: run(command(ours.port)), "peer": lambda: run(command(peer.port))})
    return compare(work, times["ours"], DCMQRSCP, times["peer"], 1.0)
