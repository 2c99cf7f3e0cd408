"""
Benchmarks of DICOMweb against Orthanc with its plugin: storing, searching, metadata, frames, instances and rendered images, by
one client and by four at once; and the memory and the delays of a server while a study of 2 GB comes and goes.

The client is :mod:`benchmarks.clients.web`, the same for both servers. Both begin with an empty database, ours with durability
full, and Orthanc with its default, which syncs files, too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks import instances
from benchmarks.harness import (
    Bench,
    BenchmarkError,
    Row,
    Seconds,
    Server,
    Side,
    compare,
    run_client,
    run_module,
    serving,
    spread,
    stop,
)
from benchmarks.programs import Program, orthanc_web, twist_web
from tests.peers import free_port

ORTHANC: Final = "Orthanc"
CLIENTS: Final = (1, 4)

_STUDY: Final = "/dicom-web/studies/{study}"
_SERIES: Final = f"{_STUDY}/series/{{series}}"
_INSTANCE: Final = f"{_SERIES}/instances/{{instance}}"
#: The Accept headers, in forms that both servers take.
_AS_STORED: Final = ("--accept", 'multipart/related; type="application/dicom"; transfer-syntax=*')
_FRAME: Final = ("--accept", "multipart/related; type=application/octet-stream")
_JPEG: Final = ("--accept", "image/jpeg")
#: An attribute that each instance in a response has once.
_MARK: Final = '"00080018"'


def _ours(folder: Path) -> Program:
    return twist_web(folder / "storage", free_port())


_PROGRAMS: Final[dict[str, Callable[[Path], Program]]] = {"ours": _ours, ORTHANC: orthanc_web}


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def _ask(server: Server, clients: int, *arguments: object) -> Seconds:
    return run_client("web", server.port, "--clients", clients, "get", *arguments)["total"]


# --- storing


def stow_small(bench: Bench) -> list[Row]:
    """STOW-RS of small instances, 50 in a request."""
    return _stow(bench, bench.scaled(1000, 100), "12 KB", 12_000, 50)


def stow_medium(bench: Bench) -> list[Row]:
    """STOW-RS of images of 512 x 512, 10 in a request."""
    return _stow(bench, bench.scaled(300, 40), "525 KB", 530_800, 10)


def _stow(bench: Bench, count: int, words: str, size: int, batch: int) -> list[Row]:
    folder = bench.fresh() / "in"
    instances.make(folder, count, size, series=1)
    warm = bench.fresh() / "in"
    instances.make(warm, 1, 12_000, first=999_999, series=1)

    def side(program: Callable[[Path], Program], clients: int) -> Side:
        def store() -> Seconds:
            with serving(program(bench.fresh()), bench.fresh() / "log") as server:
                run_client("web", server.port, "store", warm)
                found = run_client("web", server.port, "--clients", clients, "store", folder, "--batch", batch)
                _ask(server, 1, f"{_STUDY}/instances", "--mark", _MARK, "--marks", count + 1)
                return found["total"]

        return store

    rows = []
    for clients in CLIENTS:
        times = bench.measure({name: side(program, clients) for name, program in _PROGRAMS.items()})
        rates = ", ".join(f"{count / statistics.median(times[name]):.0f}/s" for name in _PROGRAMS)
        work = f"STOW {count} x {words}, {batch} in a request, {_clients(clients)}, durability full"
        rows.append(compare(work, times["ours"], ORTHANC, times[ORTHANC], 2.0, rates))
    return rows


# --- searching and retrieving


@contextmanager
def _filled(
    bench: Bench, count: int, size: int, names: Sequence[str] = tuple(_PROGRAMS)
) -> Iterator[dict[str, Server]]:
    """Run servers that have *count* instances of one series."""
    folder = bench.fresh() / "in"
    instances.make(folder, count, size, series=1)
    with ExitStack() as stack:
        servers = {}
        for name in names:
            server = stack.enter_context(serving(_PROGRAMS[name](bench.fresh()), bench.fresh() / "log"))
            run_client("web", server.port, "store", folder, "--batch", 10)
            servers[name] = server
        time.sleep(_QUIET)
        yield servers


#: The seconds after which our server has put all files in place, and has made the documents of metadata.
_QUIET: Final = 8.0


def _asked(
    bench: Bench,
    servers: dict[str, Server],
    work: str,
    needed: float,
    *arguments: object,
    requests: int = 1,
    note: Callable[[Seconds], str] = lambda _: "",
) -> list[Row]:
    """
    Return rows of *requests* requests, by one client and by four at once; in one row each client makes some of them.

    :param arguments: those of :mod:`benchmarks.clients.web`.
    :param note: makes the note of a row of our time.
    """
    rows = []
    for clients in CLIENTS:
        count = max(requests, clients)
        sides = {
            name: lambda server=server: _ask(server, clients, *arguments, "--count", count)  # noqa: B023
            for name, server in servers.items()
        }
        times = bench.measure(sides)
        words = f"{count} x {work}" if count > 1 else work
        ours = statistics.median(times["ours"])
        rows.append(
            compare(f"{words}, {_clients(clients)}", times["ours"], ORTHANC, times[ORTHANC], needed, note(ours / count))
        )
    return rows


def _milliseconds(seconds: Seconds) -> str:
    return f"{seconds * 1000:.2f} ms each"


def search(bench: Bench) -> list[Row]:
    """QIDO-RS for the instances of a study."""
    count = bench.scaled(1000, 100)
    with _filled(bench, count, 12_000) as servers:
        return _asked(
            bench, servers, f"QIDO, {count} instances", 5.0, f"{_STUDY}/instances", "--mark", _MARK, "--marks", count
        )


def metadata(bench: Bench) -> list[Row]:
    """Metadata of a series: the first request after the series was stored and the server was started again, and later ones."""
    count = bench.scaled(250, 50)
    rows = []
    for words, size in (("12 KB", 12_000), ("525 KB", 530_800)):
        folder = bench.fresh() / "in"
        instances.make(folder, count, size, series=1)
        arguments = (f"{_SERIES}/metadata", "--mark", _MARK, "--marks", count)

        def cold(program: Callable[[Path], Program], folder: Path, arguments: tuple[object, ...]) -> Side:
            def ask() -> Seconds:
                made = program(bench.fresh())
                with serving(made, bench.fresh() / "log") as server:
                    run_client("web", server.port, "store", folder, "--batch", 10)
                    # At once, so that nothing is prepared while the series is quiet.
                    stop(server)
                with serving(made, bench.fresh() / "log") as server:
                    _ask(server, 1, "/dicom-web/studies?limit=1")
                    return _ask(server, 1, *arguments)

            return ask

        times = bench.measure({name: cold(program, folder, arguments) for name, program in _PROGRAMS.items()})
        work = f"metadata of a series of {count} x {words}"
        rows.append(compare(f"{work}, cold", times["ours"], ORTHANC, times[ORTHANC], 1.0, "the first after a start"))
        with _filled(bench, count, size) as servers:
            rows += _asked(bench, servers, f"{work}, warm", 5.0, *arguments)
    return rows


def frame(bench: Bench) -> list[Row]:
    """Frames of images of 512 x 512, one in a request."""
    return _instances(bench, "a frame", "frames/1", _FRAME)


def instance(bench: Bench) -> list[Row]:
    """Instances, one in a request."""
    return _instances(bench, "an instance", "", _AS_STORED)


def _instances(bench: Bench, what: str, path: str, accept: Sequence[str]) -> list[Row]:
    count = bench.scaled(250, 40)
    rows = []
    for words, size in (("12 KB", 12_000), ("525 KB", 530_800)):
        with _filled(bench, count, size) as servers:
            url = f"{_INSTANCE}/{path}".rstrip("/")
            needed = 1.0
            rows += _asked(
                bench, servers, f"{what} of {words}", needed, url, *accept, requests=count, note=_milliseconds
            )
    return rows


def study(bench: Bench) -> list[Row]:
    """A whole study as it is stored."""
    rows = []
    for number, few, words, size in ((1000, 100, "12 KB", 12_000), (300, 40, "525 KB", 530_800)):
        count = bench.scaled(number, few)
        least = int(0.9 * count * size)
        with _filled(bench, count, size) as servers:
            rows += _asked(
                bench,
                servers,
                f"a study of {count} x {words}",
                1.0,
                _STUDY,
                *_AS_STORED,
                *("--least", least),
                note=lambda seconds: f"{least / 0.9 / seconds / 1e6:.0f} MB/s",  # noqa: B023
            )
    return rows


#: The longest time of 250 thumbnails, in seconds.
_MAX_THUMBNAILS: Final = 3.0


def rendered(bench: Bench) -> list[Row]:
    """Rendered images of 512 x 512, each asked for once, since our server keeps those that it has rendered."""
    count, first = bench.scaled(60, 10), 0
    rounds: dict[str, dict[int, list[Seconds]]] = {name: {clients: [] for clients in CLIENTS} for name in _PROGRAMS}
    with _filled(bench, count * len(CLIENTS) * (bench.rounds + 1), 530_800) as servers:
        for number in range(bench.rounds + 1):
            for clients in CLIENTS:
                for name, server in servers.items():
                    arguments = (f"{_INSTANCE}/rendered", *_JPEG, "--first", first, "--count", count)
                    seconds = _ask(server, clients, *arguments)
                    if number:  # the first round starts the processes that render
                        rounds[name][clients].append(seconds)
                first += count
    return [
        compare(
            f"{count} x a rendered image of 525 KB, {_clients(clients)}",
            rounds["ours"][clients],
            ORTHANC,
            rounds[ORTHANC][clients],
            1.0,
            _milliseconds(statistics.median(rounds["ours"][clients]) / count),
        )
        for clients in CLIENTS
    ]


def thumbnails(bench: Bench) -> list[Row]:
    """Thumbnails of all instances of a series, after a start; Orthanc has none."""
    count = bench.scaled(250, 40)
    folder = bench.fresh() / "in"
    instances.make(folder, count, 530_800, series=1)
    made = _ours(bench.fresh())
    with serving(made, bench.fresh() / "log") as server:
        run_client("web", server.port, "store", folder, "--batch", 10)
        time.sleep(_QUIET)

    def side(clients: int) -> Side:
        def ask() -> Seconds:
            with serving(made, bench.fresh() / "log") as server:
                return _ask(server, clients, f"{_INSTANCE}/thumbnail", *_JPEG, "--count", count)

        return ask

    times = bench.measure({str(clients): side(clients) for clients in CLIENTS})
    return [
        Row(
            f"{count} thumbnails of a series of 525 KB, cold, {_clients(clients)}",
            spread(times[str(clients)]),
            *("", "", ""),
            f"< {_MAX_THUMBNAILS:g} s",
            statistics.median(times[str(clients)]) < _MAX_THUMBNAILS,
            "with the start of the processes that render",
        )
        for clients in CLIENTS
    ]


# --- much at once

#: The allowed growth of the memory of the server, in KiB, and the longest p99 of a C-ECHO, in milliseconds.
_MAX_GROWTH: Final = 32 * 1024
_MAX_ECHO: Final = 20.0


def large(bench: Bench) -> list[Row]:
    """A study of 2 GB by STOW-RS and WADO-RS: memory of the server, and C-ECHO meanwhile."""
    count, megabytes = bench.scaled(20, 4), bench.scaled(100, 20)
    dicom = free_port()
    storage = bench.fresh() / "storage"
    with serving(twist_web(storage, dicom), bench.fresh() / "log") as server:
        found: Any
        found, _ = run_module("benchmarks.clients.web_large", server.port, dicom, server.pid, count, megabytes)
    if instances.count_stored(storage) != count + 1:
        raise BenchmarkError("not everything is stored")
    rows = []
    for phase, words in (("store", "STOW"), ("get", "WADO")):
        one = found[phase]
        work = f"{words} of a study of {count} x {megabytes} MB"
        grown = one["peak"] - found["base"]
        note = f"from {found['base'] / 1024:.0f} MiB, {found['children'] / 1024:.0f} MiB of children; {one['seconds']:.1f} s"
        rows.append(
            Row(
                f"{work}: memory",
                f"{grown / 1024:+.1f} MiB",
                *("", "", ""),
                f"< {_MAX_GROWTH // 1024} MiB",
                grown < _MAX_GROWTH,
                note,
            )
        )
        rows.append(
            Row(
                f"{work}: p99 of a C-ECHO each 10 ms",
                f"{one['p99'] * 1000:.1f} ms",
                *("", "", ""),
                f"< {_MAX_ECHO:g} ms",
                one["p99"] * 1000 < _MAX_ECHO,
                f"p50 {one['p50'] * 1000:.2f} ms, at the most {one['most'] * 1000:.0f} ms, of {one['echoes']}",
            )
        )
    return rows


def hostile(bench: Bench) -> list[Row]:
    """C-ECHO beside connections that misuse HTTP: many requests at once, slow headers, floods of what is no request."""
    seconds, count = bench.scaled(10, 2), bench.scaled(1000, 100)
    dicom = free_port()
    folder = bench.fresh() / "in"
    instances.make(folder, count, 12_000, series=1)
    with serving(twist_web(bench.fresh() / "storage", dicom), bench.fresh() / "log") as server:
        run_client("web", server.port, "store", folder, "--batch", 50)
        found: Any
        found, _ = run_module("benchmarks.clients.web_hostile", server.port, dicom, seconds)
    alone, beside = found["alone"], found["beside"]
    return [
        Row(
            "p99 of a C-ECHO beside 40 pipelining, 40 slow and 100 flooding connections of HTTP",
            f"{beside['p99'] * 1000:.1f} ms",
            "ours, alone",
            f"{alone['p99'] * 1000:.1f} ms",
            "",
            f"< {_MAX_ECHO:g} ms",
            beside["p99"] * 1000 < _MAX_ECHO,
            f"p50 {beside['p50'] * 1000:.2f} ms, at the most {beside['most'] * 1000:.0f} ms, of {beside['echoes']}; "
            f"{found['answered'] / seconds:.0f} responses a second",
        )
    ]


#: The most by which open pages may raise the 99th percentile of a C-ECHO or a search.
_MAX_RAISED: Final = 1.2


def page(bench: Bench) -> list[Row]:
    """C-ECHO and searches while the pages of an operator are open and refresh themselves."""
    rounds, seconds, count = bench.scaled(6, 1), bench.scaled(10, 2), bench.scaled(1000, 100)
    dicom = free_port()
    folder = bench.fresh() / "in"
    instances.make(folder, count, 12_000, series=1)
    with serving(twist_web(bench.fresh() / "storage", dicom), bench.fresh() / "log") as server:
        run_client("web", server.port, "store", folder, "--batch", 50)
        found: Any
        found, _ = run_module("benchmarks.clients.web_page", server.port, dicom, rounds, seconds)
    rows = []
    for kind, words in (("echo", "a C-ECHO"), ("search", "a search")):
        alone, beside = found["alone"][kind], found["beside"][kind]
        ratio = beside["p99"] / alone["p99"]
        rows.append(
            Row(
                f"p99 of {words} beside two open pages",
                f"{beside['p99'] * 1000:.2f} ms",
                "ours, without",
                f"{alone['p99'] * 1000:.2f} ms",
                f"{ratio:.2f}",
                f"<= {_MAX_RAISED:g}",
                ratio <= _MAX_RAISED,
                f"p50 {beside['p50'] * 1000:.2f} and {alone['p50'] * 1000:.2f} ms, of {beside['count']:.0f}; "
                f"{found['refreshed']} refreshes",
            )
        )
    return rows
