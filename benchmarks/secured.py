"""
Benchmarks over TLS: storing against DCMTK's storescp, and C-GET against Orthanc. DCMTK's dcmqrscp and getscu have no TLS, so
the client for C-GET is :mod:`benchmarks.clients.get`.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from benchmarks import instances
from benchmarks.harness import Bench, BenchmarkError, Row, Seconds, Side, compare, run, run_client, serving
from benchmarks.programs import Program, orthanc, secure_storescp, secure_twist_dicom, storescu, twist_dicom
from tests.peers import Certificates, certificates

_STORESCP = "DCMTK storescp +tls"


def tls_small(bench: Bench) -> list[Row]:
    """Small instances over TLS, in and out."""
    return _secured(bench, bench.scaled(1000, 100), "12 KB", 12_000)


def tls_medium(bench: Bench) -> list[Row]:
    """Images of 512 x 512 over TLS, in and out."""
    return _secured(bench, bench.scaled(300, 30), "525 KB", 530_800)


def tls_large(bench: Bench) -> list[Row]:
    """One large object over TLS, in and out."""
    megabytes = bench.scaled(200, 50)
    return _secured(bench, 1, f"{megabytes} MB", megabytes * 1_000_000)


def _secured(bench: Bench, count: int, words: str, size: int) -> list[Row]:
    paths = instances.make(bench.fresh() / "in", count, size)
    return [
        *_received(bench, paths, f"TLS, receive {count} x {words}"),
        *_retrieved(bench, paths, f"TLS, C-GET {count} x {words}"),
    ]


def _received(bench: Bench, paths: list[Path], work: str) -> list[Row]:
    found = certificates()
    warm = instances.make(bench.fresh() / "warm", 1, 12_000, first=999_999)

    def side(name: str) -> Side:
        def receive() -> Seconds:
            storage = bench.fresh()
            program = secure_storescp(storage, found) if name == "dcmtk" else secure_twist_dicom(storage, found, name)
            with serving(program, bench.fresh() / "log") as server:
                run(storescu(server.port, warm, found=found))
                seconds = run(storescu(server.port, paths, found=found))
            if instances.count_stored(storage) != 1 + len(paths):
                raise BenchmarkError(f"{storage} does not have everything")
            return seconds

        return receive

    times = bench.measure({name: side(name) for name in ("none", "full", "dcmtk")})
    return [
        compare(f"{work}, durability none", times["none"], _STORESCP, times["dcmtk"], 0.8),
        compare(f"{work}, durability full", times["full"], _STORESCP, times["dcmtk"]),
    ]


def _retrieved(bench: Bench, paths: list[Path], work: str) -> list[Row]:
    found = certificates()
    programs: dict[str, tuple[Program, str, Certificates | None]] = {
        "ours": (secure_twist_dicom(bench.fresh(), found), "ANY-SCP", found),
        "plain": (twist_dicom(bench.fresh()), "ANY-SCP", None),
        "orthanc": (orthanc(bench.fresh(), found), "ORTHANC", found),
    }
    with ExitStack() as stack:
        sides = {}
        for name, (program, called, shown) in programs.items():
            server = stack.enter_context(serving(program, bench.fresh() / "log"))
            run(storescu(server.port, paths, called, shown))
            sides[name] = _got(server.port, len(paths), shown)
        times = bench.measure(sides)
    return [
        compare(work, times["ours"], "Orthanc with TLS", times["orthanc"]),
        compare(work, times["ours"], "ours, without TLS", times["plain"]),
    ]


def _got(port: int, count: int, shown: Certificates | None) -> Side:
    tls = ("--tls", shown.ca, shown.client_key, shown.client_cert) if shown else ()
    return lambda: run_client("get", port, count, instances.STUDY, *tls)["total"]
