"""
The benchmarks: functions that each return the rows of the table that they measure.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks import forwarding, instances, web
from benchmarks.archiving import (
    archive_find,
    archive_retrieve,
    archive_studies,
    index_growth,
    ingest_medium,
    ingest_small,
)
from benchmarks.harness import (
    Bench,
    BenchmarkError,
    MemoryWatch,
    Row,
    Seconds,
    Server,
    Side,
    compare,
    resident,
    run,
    run_all,
    run_client,
    run_module,
    serving,
    spread,
)
from benchmarks.programs import (
    Program,
    dcmtk_storescp,
    delaying_proxy,
    echoscu,
    pynetdicom_storescp,
    storescu,
    twist_dicom,
    window_server,
)
from benchmarks.retrieval import find, get_medium, get_small, move_medium, move_small
from benchmarks.running import start, sustained
from benchmarks.secured import tls_large, tls_medium, tls_small

STORESCP: Final = "DCMTK storescp"
STORESCU: Final = "DCMTK storescu"
#: The allowed growth of the memory of a process, in KiB.
MAX_GROWTH: Final = 32 * 1024


# --- C-ECHO


def echo(bench: Bench) -> list[Row]:
    """C-ECHO on one association."""
    count = bench.scaled(20000, 2000)

    with ExitStack() as stack:
        ours = _echo_server(bench, stack, twist_dicom(bench.fresh()))
        peer = _echo_server(bench, stack, dcmtk_storescp(bench.fresh()))

        def side(server: Server, repeat: int) -> Side:
            return lambda: run(echoscu(server.port, repeat))

        times = bench.measure({"ours": side(ours, count), "peer": side(peer, count)})
        alone = bench.measure({"ours": side(ours, 1), "peer": side(peer, 1)})
    rates = [(count - 1) / max(1e-9, statistics.median(times[name]) - statistics.median(alone[name])) for name in times]
    note = f"without the client's start: {rates[0]:.0f}/s, peer {rates[1]:.0f}/s"
    return [compare(f"{count} C-ECHO", times["ours"], STORESCP, times["peer"], 0.9, note)]


def echo_stock(bench: Bench) -> list[Row]:
    """C-ECHO by a client with Nagle's algorithm on."""
    count = 20
    with ExitStack() as stack:
        ours = _echo_server(bench, stack, twist_dicom(bench.fresh()), nodelay=False)
        peer = _echo_server(bench, stack, dcmtk_storescp(bench.fresh()), nodelay=False)
        times = bench.measure(
            {
                "ours": lambda: run(echoscu(ours.port, count), nodelay=False),
                "peer": lambda: run(echoscu(peer.port, count), nodelay=False),
            }
        )
    return [compare(f"{count} C-ECHO, stock", times["ours"], STORESCP, times["peer"], 20)]


def _echo_server(bench: Bench, stack: ExitStack, program: Program, *, nodelay: bool = True) -> Server:
    server = stack.enter_context(serving(program, bench.fresh() / "log", nodelay=nodelay))
    run(echoscu(server.port, 1), nodelay=nodelay)
    return server


# --- receiving


def store_small(bench: Bench) -> list[Row]:
    """Small instances, one after the other."""
    count = bench.scaled(1000, 100)
    sides = _receivers(bench, instances.make(bench.fresh() / "in", count, 12_000), pynetdicom=True)
    times = bench.measure(sides)
    work = f"receive {count} x 12 KB"
    return [
        compare(f"{work}, durability none", times["none"], STORESCP, times["dcmtk"], 0.75),
        compare(f"{work}, durability full", times["full"], STORESCP, times["dcmtk"], 0.42),
        _beside_pynetdicom(work, times),
    ]


def store_medium(bench: Bench) -> list[Row]:
    """Images of 512 x 512, one after the other."""
    count = bench.scaled(300, 30)
    sides = _receivers(bench, instances.make(bench.fresh() / "in", count, 530_800), pynetdicom=True)
    times = bench.measure(sides)
    work = f"receive {count} x 525 KB"
    return [
        compare(f"{work}, durability none", times["none"], STORESCP, times["dcmtk"]),
        compare(f"{work}, durability full", times["full"], STORESCP, times["dcmtk"]),
        _beside_pynetdicom(work, times),
    ]


def store_parallel(bench: Bench) -> list[Row]:
    """Many clients at once."""
    clients, each = (8, 20) if bench.quick else (64, 100)
    paths = instances.make(bench.fresh() / "in", clients * each, 12_000)
    shares = [paths[start : start + each] for start in range(0, len(paths), each)]
    sides = _receivers(bench, *shares)
    times = bench.measure(sides)
    work = f"receive {clients} clients x {each} x 12 KB"
    return [
        compare(f"{work}, durability none", times["none"], STORESCP, times["dcmtk"], 0.85),
        compare(f"{work}, durability full", times["full"], STORESCP, times["dcmtk"], 0.7),
    ]


def store_large(bench: Bench) -> list[Row]:
    """One large object."""
    megabytes = bench.scaled(200, 50)
    sides = _receivers(bench, instances.make(bench.fresh() / "in", 1, megabytes * 1_000_000))
    times = bench.measure(sides)
    work = f"receive one of {megabytes} MB"
    return [
        compare(f"{work}, durability none", times["none"], STORESCP, times["dcmtk"], 0.7),
        compare(f"{work}, durability full", times["full"], STORESCP, times["dcmtk"]),
    ]


#: pynetdicom is slower by far, so it gets one of this many instances, and its time is multiplied.
_PYNETDICOM_SHARE: Final = 10


def _beside_pynetdicom(work: str, times: dict[str, list[Seconds]]) -> Row:
    scaled = [seconds * _PYNETDICOM_SHARE for seconds in times["pynetdicom"]]
    note = f"the peer's time is that of every {_PYNETDICOM_SHARE}th, scaled"
    return compare(f"{work}, durability none", times["none"], "pynetdicom storescp", scaled, note=note)


def _receivers(bench: Bench, *shares: Sequence[Path], pynetdicom: bool = False) -> dict[str, Side]:
    """Return the sides that receive *shares*, each share from its own client."""
    warm = instances.make(bench.fresh() / "warm", 1, 12_000, first=999_999)
    programs: dict[str, Callable[[Path], Program]] = {
        "none": lambda folder: twist_dicom(folder, "none"),
        "full": lambda folder: twist_dicom(folder, "full"),
        "dcmtk": dcmtk_storescp,
    }

    def side(program: Callable[[Path], Program], shares: Sequence[Sequence[Path]]) -> Side:
        def receive() -> Seconds:
            folder = bench.fresh()
            storage = folder / "storage"
            storage.mkdir()
            with serving(program(storage), folder / "log") as server:
                run(storescu(server.port, warm))
                seconds = run_all([storescu(server.port, share) for share in shares])
            expected = 1 + sum(map(len, shares))
            stored = instances.count_stored(storage)
            if stored != expected:
                raise BenchmarkError(f"{stored} instances were stored, {expected} were sent")
            return seconds

        return receive

    sides = {name: side(program, shares) for name, program in programs.items()}
    if pynetdicom:
        sides["pynetdicom"] = side(pynetdicom_storescp, [share[::_PYNETDICOM_SHARE] for share in shares])
    return sides


# --- sending


def send_small(bench: Bench) -> list[Row]:
    """Small instances, one after the other."""
    return _send(bench, bench.scaled(1000, 100), "12 KB", 12_000, 0.5, bench.scaled(50, 10))


def send_medium(bench: Bench) -> list[Row]:
    """Images of 512 x 512, one after the other."""
    return _send(bench, bench.scaled(300, 30), "525 KB", 530_800, 0.8, bench.scaled(50, 10))


def _send(bench: Bench, count: int, words: str, size: int, needed: float, few: int) -> list[Row]:
    paths = instances.make(bench.fresh() / "in", count, size)
    few_paths = instances.make(bench.fresh() / "in", few, size)
    folder, few_folder = paths[0].parent, few_paths[0].parent

    def ours(server: Server) -> Seconds:
        return run_client("send", server.port, folder)["total"]

    def dcmtk(server: Server) -> Seconds:
        # Minus the cost of the process itself: its start, its end, one association.
        alone = run(storescu(server.port, paths[:1]))
        return run(storescu(server.port, paths)) - alone

    def pynetdicom(server: Server) -> Seconds:
        return run_client("pynetdicom_send", server.port, few_folder)["total"]

    def kept(send: Callable[[Server], Seconds]) -> Side:
        def side() -> Seconds:
            storage = bench.fresh()
            with serving(dcmtk_storescp(storage), bench.fresh() / "log") as server:
                run(echoscu(server.port, 1))
                seconds = send(server)
            if instances.count_stored(storage) != count:
                raise BenchmarkError("the peer did not store everything")
            return seconds

        return side

    work = f"send {count} x {words}"
    with serving(dcmtk_storescp(bench.fresh(), "--ignore"), bench.fresh() / "log") as server:
        ignored = bench.measure({"ours": lambda: ours(server), "dcmtk": lambda: dcmtk(server)})
        slow = bench.measure({"pynetdicom": lambda: pynetdicom(server)}, rounds=min(bench.rounds, 3))["pynetdicom"]
    stored = bench.measure({"ours": kept(ours), "dcmtk": kept(dcmtk)})
    scaled = [seconds * count / few for seconds in slow]
    return [
        compare(f"{work} to storescp --ignore", ignored["ours"], STORESCU, ignored["dcmtk"], needed),
        compare(f"{work} to storescp", stored["ours"], STORESCU, stored["dcmtk"], needed),
        compare(
            f"{work} to storescp --ignore",
            ignored["ours"],
            "pynetdicom",
            scaled,
            note=f"the peer's time is that of {few}, scaled",
        ),
    ]


# --- memory


def memory(bench: Bench) -> list[Row]:
    """Resident memory while one object of 2 GB is received or sent."""
    # Two bytes a pixel, and as many columns as rows.
    rows = bench.scaled(32768, 8192)
    words = "128 MiB" if bench.quick else "2 GiB"
    folder = bench.fresh() / "in"
    folder.mkdir()
    instances.make_sparse(folder / "large.dcm", rows)
    warm = instances.make(bench.fresh() / "warm", 1, 12_000, first=999_999)[0].parent

    storage = bench.fresh()
    with serving(twist_dicom(storage), bench.fresh() / "log") as server:
        run_client("send", server.port, warm)
        base = resident(server.pid)
        with MemoryWatch(server.pid) as watch:
            receiving = run_client("send", server.port, folder)["total"]
        received = watch.peak - base
    if instances.count_stored(storage) != 2:
        raise BenchmarkError("the object was not stored")

    with serving(dcmtk_storescp(bench.fresh(), "--ignore"), bench.fresh() / "log") as server:
        result = run_client("send", server.port, folder, memory=True)
    sent = int(result["peak"] - result["base"])
    return [
        _memory_row(f"memory while receiving {words}", base, received, receiving),
        _memory_row(f"memory while sending {words}", int(result["base"]), sent, result["total"]),
    ]


def _memory_row(work: str, base: int, growth: int, seconds: Seconds) -> Row:
    return Row(
        work,
        f"+{growth / 1024:.1f} MiB",
        "",
        "",
        "",
        f"< {MAX_GROWTH // 1024} MiB",
        growth < MAX_GROWTH,
        f"from {base / 1024:.0f} MiB; took {seconds:.1f} s",
    )


# --- many associations at once, see benchmarks.load


def idle_growth(bench: Bench) -> list[Row]:
    """The memory of 1 to 1,000 idle associations."""
    return _loaded(bench, "idle-growth")


def cost(bench: Bench) -> list[Row]:
    """The server's CPU time for a C-ECHO and for a C-STORE, on 1 to 1,000 associations."""
    return _loaded(bench, "cost")


def hostile(bench: Bench) -> list[Row]:
    """C-ECHO while connections are half open, in the middle of a TLS handshake, or slow."""
    return _loaded(bench, "hostile")


def _loaded(bench: Bench, name: str) -> list[Row]:
    short = ["--short"] if bench.quick else []
    rows, _ = run_module("benchmarks.load", name, "--json", "--folder", bench.fresh(), *short)
    return [Row(**fields) for fields in rows]


# --- the asynchronous operations window


def window(bench: Bench) -> list[Row]:
    """C-STORE over a line with a long delay, with a window and without; both sides are ours."""
    count, operations, delay = bench.scaled(200, 32), 64, 0.025
    folder = instances.make(bench.fresh() / "in", count, 12_000)[0].parent
    with ExitStack() as stack:
        server = stack.enter_context(serving(window_server(operations), bench.fresh() / "log"))
        proxy = stack.enter_context(serving(delaying_proxy(server.port, delay), bench.fresh() / "log"))
        times = bench.measure(
            {
                "many": lambda: run_client("send", proxy.port, folder, "--window", operations)["stores"],
                "one": lambda: run_client("send", proxy.port, folder)["stores"],
            }
        )
    return [
        compare(
            f"{count} C-STORE, {2 * delay * 1000:.0f} ms round trip, window of {operations}",
            times["many"],
            "ours, one at a time",
            times["one"],
            20,
        )
    ]


def window_proof(bench: Bench) -> list[Row]:
    """C-STORE to a slow handler, with a window and without, to prove that operations really overlap."""
    count, operations, work = 160, 16, 0.02
    # The least possible time one at a time, and the most allowed time with a window: 0.2 s of work, and some time to send.
    least, most = count * work, 0.35
    folder = instances.make(bench.fresh() / "in", count, 12_000)[0].parent
    with serving(window_server(operations, work), bench.fresh() / "log") as server:
        times = bench.measure(
            {
                "many": lambda: run_client("send", server.port, folder, "--window", operations)["stores"],
                "one": lambda: run_client("send", server.port, folder, "--at-once")["stores"],
            }
        )
    words = f"{count} C-STORE at once, {work * 1000:.0f} ms of work each"
    many, one = times["many"], times["one"]
    return [
        Row(
            f"{words}, window of {operations}",
            spread(many),
            "",
            "",
            "",
            f"<= {most} s",
            statistics.median(many) <= most,
        ),
        Row(f"{words}, no window", spread(one), "", "", "", f">= {least:g} s", min(one) >= least),
    ]


BENCHMARKS: Final[dict[str, Callable[[Bench], list[Row]]]] = {
    "echo": echo,
    "echo-stock": echo_stock,
    "store-small": store_small,
    "store-medium": store_medium,
    "store-parallel": store_parallel,
    "store-large": store_large,
    "send-small": send_small,
    "send-medium": send_medium,
    "find": find,
    "get-small": get_small,
    "get-medium": get_medium,
    "move-small": move_small,
    "move-medium": move_medium,
    "archive-small": ingest_small,
    "archive-medium": ingest_medium,
    "archive-find": archive_find,
    "archive-retrieve": archive_retrieve,
    "archive-studies": archive_studies,
    "sustained": sustained,
    "start": start,
    "tls-small": tls_small,
    "tls-medium": tls_medium,
    "tls-large": tls_large,
    "index-growth": index_growth,
    "memory": memory,
    "idle-growth": idle_growth,
    "cost": cost,
    "hostile": hostile,
    "web-stow-small": web.stow_small,
    "web-stow-medium": web.stow_medium,
    "web-search": web.search,
    "web-metadata": web.metadata,
    "web-frame": web.frame,
    "web-instance": web.instance,
    "web-study": web.study,
    "web-rendered": web.rendered,
    "web-thumbnails": web.thumbnails,
    "web-large": web.large,
    "web-hostile": web.hostile,
    "web-page": web.page,
    "forward-small": forwarding.forward_small,
    "forward-medium": forwarding.forward_medium,
    "forward-claim": forwarding.forward_claim,
    "window": window,
    "window-proof": window_proof,
}
