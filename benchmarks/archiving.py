"""
Benchmarks of ``twist dicom`` as an archive, against the archives of DCMTK, Orthanc and pynetdicom: storing instances that are
durable and indexed, and queries and retrievals from the index.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from pydicom import Dataset

from benchmarks import instances
from benchmarks.harness import (
    Bench,
    BenchmarkError,
    Row,
    Seconds,
    Server,
    Side,
    compare,
    run,
    run_client,
    serving,
    spread,
)
from benchmarks.programs import (
    Program,
    dcmqrscp,
    dcmqrscp_configuration,
    dcmtk_storescp,
    echoscu,
    findscu,
    getscu,
    movescu,
    orthanc,
    pynetdicom_qrscp,
    storescu,
    twist_dicom,
)
from benchmarks.retrieval import DCMQRSCP, asked
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.record import IndexRow, make_record, scanner_for
from dicomtwist.archive.query.compiler import Model, compile_find
from dicomtwist.archive.query.search import Search
from dicomtwist.archive.storage.types import Durability
from dicomtwist.datasets import encode_dataset

_EXPLICIT: Final = "1.2.840.10008.1.2.1"
#: The root of the UIDs of synthetic rows.
_ROOT: Final = "1.2.826.0.1"
#: The number of instances for which pynetdicom's time is taken; it is so slow that the time is then scaled.
_FEW: Final = 100


# --- storing


def ingest_small(bench: Bench) -> list[Row]:
    """Small instances into archives, indexed; ours durable."""
    return _ingest(bench, bench.scaled(1000, 100), "12 KB", 12_000, {"dcmqrscp": 2.8, "orthanc": 2.8})


def ingest_medium(bench: Bench) -> list[Row]:
    """Images of 512 x 512 into archives, indexed; ours durable."""
    return _ingest(bench, bench.scaled(300, 30), "525 KB", 530_800, {"dcmqrscp": 2.0, "orthanc": 2.3})


def _ingest(bench: Bench, count: int, words: str, size: int, needed: dict[str, float]) -> list[Row]:
    paths = instances.make(bench.fresh() / "in", count, size)
    few = paths[:_FEW]

    def ours(durability: str) -> Side:
        return lambda: _stored(bench, twist_dicom(bench.fresh(), durability), paths, "ANY-SCP")

    def dcmtk() -> Seconds:
        configuration = dcmqrscp_configuration(bench.fresh(), 1)
        return _stored(bench, dcmqrscp(configuration), paths, "DCMQRSCP")

    def pynetdicom() -> Seconds:
        return _stored(bench, pynetdicom_qrscp(bench.fresh()), few, "QRSCP") * len(paths) / len(few)

    times = bench.measure({"full": ours("full"), "none": ours("none"), "dcmqrscp": dcmtk})
    slow = bench.measure(
        {
            "orthanc": lambda: _stored(bench, orthanc(bench.fresh()), paths, "ORTHANC"),
            "pynetdicom": pynetdicom,
        },
        rounds=min(bench.rounds, 3),
    )
    work = f"archive {count} x {words}"
    return [
        compare(f"{work}, durability full", times["full"], DCMQRSCP, times["dcmqrscp"], needed["dcmqrscp"]),
        compare(f"{work}, durability none", times["none"], DCMQRSCP, times["dcmqrscp"]),
        compare(f"{work}, durability full", times["full"], "Orthanc", slow["orthanc"], needed["orthanc"]),
        compare(
            f"{work}, durability full",
            times["full"],
            "pynetdicom qrscp",
            slow["pynetdicom"],
            15.0,
            f"the peer's time is that of {len(few)}, scaled",
        ),
    ]


def _stored(bench: Bench, program: Program, paths: Sequence[Path], called: str) -> Seconds:
    """Store *paths* in an empty archive, and return how long that took."""
    with serving(program, bench.fresh() / "log") as server:
        run(echoscu(server.port, 1, called))
        return run(storescu(server.port, paths, called))


# --- queries and retrievals


@contextmanager
def _archives(bench: Bench, paths: Sequence[Path]) -> Iterator[tuple[Server, Server]]:
    """Run our archive and DCMTK's, with *paths* in both; C-MOVE sends to a storescp that drops what it receives."""
    with ExitStack() as stack:
        target = stack.enter_context(serving(dcmtk_storescp(bench.fresh(), "--ignore"), bench.fresh() / "log"))
        storage = bench.fresh()
        options = ("--peer", f"DESTINATION=127.0.0.1:{target.port}")
        ours = stack.enter_context(serving(twist_dicom(storage, "none", *options), bench.fresh() / "log"))
        configuration = dcmqrscp_configuration(bench.fresh(), target.port)
        peer = stack.enter_context(serving(dcmqrscp(configuration), bench.fresh() / "log"))
        run(storescu(ours.port, paths))
        run(storescu(peer.port, paths, called="DCMQRSCP"))
        for folder in (storage, configuration.parent / "storage"):
            instances.wait_stored(folder, len(paths))
        yield ours, peer


#: The time that a server gets after its start, in seconds, before the first query is timed.
_STARTED: Final = 1.0


def archive_find(bench: Bench) -> list[Row]:
    """C-FIND with many responses from the index: the first one after a start, and later ones."""
    count = bench.scaled(1000, 100)
    paths = instances.make(bench.fresh() / "in", count, 1, series=1)
    storage, configuration = bench.fresh(), dcmqrscp_configuration(bench.fresh(), 1)
    programs = {"ours": (twist_dicom(storage), "ANY-SCP"), "peer": (dcmqrscp(configuration), "DCMQRSCP")}
    for program, called in programs.values():
        _stored(bench, program, paths, called)
    for folder in (storage, configuration.parent / "storage"):
        instances.wait_stored(folder, count)

    def first(name: str) -> Side:
        def side() -> Seconds:
            program, called = programs[name]
            with serving(program, bench.fresh() / "log") as server:
                run(echoscu(server.port, 1, called))
                time.sleep(_STARTED)
                return run(findscu(server.port, instances.SERIES))

        return side

    firsts = bench.measure({name: first(name) for name in programs})
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(program, bench.fresh() / "log"))
            for name, (program, _) in programs.items()
        }

        def later(name: str) -> Side:
            return lambda: run(findscu(servers[name].port, instances.SERIES))

        for name in programs:
            later(name)()
        laters = bench.measure({name: later(name) for name in programs})
    work = f"archive, C-FIND, {count} answers"
    return [
        compare(f"{work}, the first after a start", firsts["ours"], DCMQRSCP, firsts["peer"], 1.2),
        compare(f"{work}, later", laters["ours"], DCMQRSCP, laters["peer"], 1.2),
    ]


def archive_studies(bench: Bench) -> list[Row]:
    """C-GET of many small studies, on one association each and on one for all."""
    studies, each = bench.scaled(200, 10), 3
    paths = instances.make(bench.fresh() / "in", studies * each, 12_000, per_study=each)
    wanted = [instances.study_uid(number) for number in range(studies)]
    storage, configuration = bench.fresh(), dcmqrscp_configuration(bench.fresh(), 1, studies + 10)
    programs = {
        "ours": (twist_dicom(storage), "ANY-SCP"),
        DCMQRSCP: (dcmqrscp(configuration), "DCMQRSCP"),
        "Orthanc": (orthanc(bench.fresh()), "ORTHANC"),
    }
    rows = []
    with ExitStack() as stack:
        servers = {}
        for name, (program, called) in programs.items():
            servers[name] = stack.enter_context(serving(program, bench.fresh() / "log"))
            run(storescu(servers[name].port, paths, called))
        instances.wait_stored(storage, len(paths))

        def side(name: str, *flags: str) -> Side:
            return lambda: run_client("get", servers[name].port, each, *wanted, *flags)["total"]

        for words, flags in (("one association each", ["--each"]), ("one association for all", [])):
            times = bench.measure({name: side(name, *flags) for name in programs})
            milliseconds = statistics.median(times["ours"]) / studies * 1000
            note = f"{milliseconds:.1f} ms for each study"
            work = f"C-GET of {studies} studies of {each} x 12 KB, {words}"
            rows += [
                compare(work, times["ours"], "Orthanc", times["Orthanc"], 1.0, note),
                compare(work, times["ours"], DCMQRSCP, times[DCMQRSCP]),
            ]
    return rows


def archive_retrieve(bench: Bench) -> list[Row]:
    """C-GET and C-MOVE of both sizes from the archive."""
    rows = []
    for count, few, words, size in ((1000, 100, "12 KB", 12_000), (300, 30, "525 KB", 530_800)):
        number = bench.scaled(count, few)
        with _archives(bench, instances.make(bench.fresh() / "in", number, size)) as (ours, peer):
            for name, command in (("C-GET", getscu), ("C-MOVE", movescu)):
                rows.append(asked(bench, f"archive, {name} {number} x {words}", command, ours, peer))
    return rows


# --- growth


def index_growth(bench: Bench) -> list[Row]:
    """A query, and the rate of new rows, with a thousand rows in the index and with a million (synthetic rows)."""
    sizes = (1000, 5000) if bench.quick else (1000, 100_000, 1_000_000)
    found: dict[int, tuple[list[Seconds], list[Seconds]]] = {}
    archive = Archive(bench.fresh() / "archive", durability=Durability.NONE)
    archive.open()
    try:
        rows = _synthetic()
        total = 0
        for size in sizes:
            while total < size:
                step = min(1000, size - total)
                archive.index.add([next(rows) for _ in range(step)])
                total += step
            found[size] = _queries(archive, bench.rounds), _additions(archive, rows, bench.rounds)
            total += bench.rounds * 200
    finally:
        archive.close()
    first = found[sizes[0]]
    table = []
    for size in sizes[1:]:
        asked, added = found[size]
        slower = (statistics.median(asked) - statistics.median(first[0])) * 1000
        work = f"study-level query by patient, {size:,} instances"
        less, bound = f"ours, {sizes[0]:,}", "< +20 ms"
        table.append(Row(work, spread(asked), less, spread(first[0]), f"{slower:+.1f} ms", bound, slower < 20))
        table.append(compare(f"200 new rows, {size:,} instances", added, less, first[1], 0.8))
    return table


def _queries(archive: Archive, rounds: int) -> list[Seconds]:
    times = []
    for number in range(rounds * 4):
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "STUDY"
        identifier.PatientID = f"P{number:07}"
        identifier.StudyInstanceUID = ""
        began = time.perf_counter()
        matches = Search(archive.index.engine, compile_find(identifier, Model.STUDY_ROOT)).numbers()
        times.append(time.perf_counter() - began)
        if not len(matches):
            raise BenchmarkError(f"nothing was found for {identifier.PatientID}")
    return times


def _additions(archive: Archive, rows: Iterator[IndexRow], rounds: int) -> list[Seconds]:
    """Return how long 200 rows take if each is committed alone, as a C-STORE would."""
    times = []
    for _ in range(rounds):
        batch = [next(rows) for _ in range(200)]
        began = time.perf_counter()
        for row in batch:
            archive.index.add([row])
        times.append(time.perf_counter() - began)
    return times


def _synthetic() -> Iterator[IndexRow]:
    """Yield rows of instances: ten to a series, two series to a study, two studies to a patient."""
    number = 0
    row: IndexRow | None = None
    while True:
        if number % 10 == 0 or row is None:
            row = synthetic_row(number, number // 10, number // 20, number // 40)
        uid = f"{_ROOT}.9.{number}"
        first = row.record
        record = replace(first, sop_instance_uid=uid, instance=(first.instance[0], uid, *first.instance[2:]))
        yield replace(row, record=record)
        number += 1


def synthetic_row(number: int, series: int, study: int, patient: int) -> IndexRow:
    """Return the row of an instance that is not there."""
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    dataset.SOPInstanceUID = f"{_ROOT}.9.{number}"
    dataset.StudyDate = f"20{10 + study % 15:02}{study % 12 + 1:02}{study % 28 + 1:02}"
    dataset.Modality = "MR"
    dataset.PatientName = f"Name{patient % 5000}^First{patient % 77}"
    dataset.PatientID = f"P{patient:07}"
    dataset.StudyInstanceUID = f"{_ROOT}.7.{study}"
    dataset.SeriesInstanceUID = f"{_ROOT}.8.{series}"
    dataset.InstanceNumber = "1"
    scanner = scanner_for(_EXPLICIT)
    if not scanner.feed(encode_dataset(dataset, _EXPLICIT)):
        scanner.finish()
    return IndexRow(make_record(scanner.values, _EXPLICIT), _EXPLICIT, 12_000)
