"""
``python -m benchmarks.soak --seconds 600``: ``twist dicom`` among all kinds of peers, to see whether its memory stays flat.

The peers echo, store small and large instances, query and retrieve, cancel, abort in the middle of a message, stop reading,
send bytes that are not DICOM, and connect without sending anything, each again and again. They store the same instances each
time, so that the archive does not grow. Meanwhile the C-ECHOs of a well-behaved neighbour are timed.

The soak passes if all of these hold:

* The first fifth of the time is for warming up. Of the rest, the median of the resident memory in the last third exceeds that
  in the first third by at most 8 MiB or 5 %, whichever is more.
* Afterwards the server has no more files open than at first, and no association.
* Every operation that has to succeed succeeds, and each C-ECHO of the neighbour takes less than 5 seconds.
* The log has no traceback, and the storage no temporary file.
* The metrics agree: no counter falls, the number of series stays below a thousand, and at the end nothing is open or queued.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react
from twisted.internet.threads import deferToThread

from benchmarks import instances
from benchmarks.crowd import (
    MR,
    REQUEST,
    VERIFICATION,
    client,
    connect,
    many_files,
    open_files,
    pause,
    quantile,
    server,
    vitals,
)
from benchmarks.harness import Server, resident, serving
from dicomtwist import AE, AssociationError, build_role, evt
from dicomtwist.archive.storage.temporary_files import SUFFIX as TEMPORARY_SUFFIX
from dicomtwist.datasets.identifier import encode_identifier
from dicomtwist.dimse.messages import CFindRQ, CStoreRQ
from dicomtwist.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)
from dicomtwist.testing import ScriptedPeer
from dicomtwist.ul.items import ProposedContext, UserInformation
from dicomtwist.ul.pdu import AAssociateRQ
from tests.peers import free_port

#: The share of the time that is for warming up.
WARM_UP: Final = 0.2
#: The allowed growth of memory after the warm-up: the larger one of a number of KiB and a share.
MOST_GROWTH: Final = 8 * 1024
MOST_PART: Final = 0.05
#: The longest time of a C-ECHO of the neighbour, in seconds.
MOST_ECHO: Final = 5.0
#: The most series of metrics.
MOST_SERIES: Final = 1000
#: The numbers of small and of large instances.
SMALL, LARGE = 200, 5

_FIND, _GET = StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelGet


def keys(level: str, **values: str) -> Dataset:
    """Return an identifier for *level* with the keys *values*."""
    made = Dataset()
    made.QueryRetrieveLevel = level
    made.StudyInstanceUID = instances.STUDY
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


class Soak:
    """
    The peers of a server.

    :param running: the server.
    :param small: files of small instances.
    :param large: files of large ones.

    :ivar counts: the number of runs of each job, by its name.
    :ivar wrong: descriptions of the first failures.
    :ivar echoes: the time of each C-ECHO of the neighbour, in seconds.
    """

    def __init__(self, running: Server, small: Sequence[Path], large: Sequence[Path], until: float) -> None:
        self._port = running.port
        self._small, self._large = small, large
        self._until = until
        self._random = random.Random(1)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.echoes: list[float] = []

    async def run(self) -> None:
        """Run all jobs until the time is over."""
        jobs: list[Callable[[], Awaitable[None]]] = [
            self.echo,
            *[self.store_small] * 3,
            self.store_large,
            self.find,
            self.get,
            self.cancel,
            self.abort,
            self.leave_in_a_message,
            self.stop_reading,
            self.garbage,
            self.half_open,
        ]
        await gatherResults([Deferred.fromCoroutine(self._again_and_again(job)) for job in jobs])

    async def _again_and_again(self, job: Callable[[], Awaitable[None]]) -> None:
        name = getattr(job, "__name__", "")
        while time.monotonic() < self._until:
            try:
                await job()
            except AssociationError as error:
                self._is_wrong(f"{name}: {error}")
            self.counts[name] += 1
            await pause(self._random.uniform(0.01, 0.1))

    def _is_wrong(self, words: str) -> None:
        self.counts["wrong"] += 1
        if len(self.wrong) < 20:
            self.wrong.append(words)

    # --- well-behaved peers

    async def echo(self) -> None:
        """Echo, as the neighbour does."""
        async with await client().associate("127.0.0.1", self._port) as assoc:
            for _ in range(10):
                began = time.perf_counter()
                status = await assoc.send_c_echo()
                self.echoes.append(time.perf_counter() - began)
                if not status.is_success:
                    self._is_wrong(f"echo: {status}")
                await pause(0.02)

    async def _store(self, paths: Sequence[Path]) -> None:
        async with await client().associate("127.0.0.1", self._port) as assoc:
            for path in paths:
                status = await assoc.send_c_store(path)
                if not status.is_success:
                    self._is_wrong(f"store: {status}")

    async def store_small(self) -> None:
        """Store some of the small instances again."""
        await self._store(self._random.sample(self._small, 20))

    async def store_large(self) -> None:
        """Store one of the large instances again."""
        await self._store([self._random.choice(self._large)])

    def _asking(self) -> AE:
        ae = AE("ASKING")
        for uid in (VERIFICATION, _FIND, _GET):
            ae.add_requested_context(uid)
        ae.add_requested_context(MR, ExplicitVRLittleEndian)
        return ae

    async def find(self) -> None:
        """Query all series, and the instances of one."""
        async with await self._asking().associate("127.0.0.1", self._port) as assoc:
            for series, uid in (("", ""), (instances.SERIES, "")):
                level = "IMAGE" if series else "SERIES"
                wanted = keys(
                    level, SeriesInstanceUID=series, Modality="MR", **({"SOPInstanceUID": uid} if series else {})
                )
                found = await assoc.send_c_find(wanted, _FIND).collect()
                if not found:
                    self._is_wrong("find: nothing was found")

    async def get(self) -> None:
        """Retrieve a series."""
        came = 0

        def store(event: evt.StoreEvent) -> int:
            nonlocal came
            came += len(event.encoded_dataset()) > 0
            return 0x0000

        roles = [build_role(MR, scp_role=True)]
        handlers: list[evt.HandlerTuple] = [(evt.EVT_C_STORE, store)]
        asking = self._asking().associate("127.0.0.1", self._port, ext_neg=roles, evt_handlers=handlers)
        async with await asking as assoc:
            result = await assoc.send_c_get(keys("SERIES", SeriesInstanceUID=instances.SERIES), _GET).when_done()
            if not result.status.is_success or not came:
                self._is_wrong(f"get: {result}, {came} came")

    # --- misbehaving peers

    async def cancel(self) -> None:
        """Leave a query after its first response, which cancels it."""
        async with await self._asking().associate("127.0.0.1", self._port) as assoc:
            wanted = keys("IMAGE", SeriesInstanceUID=instances.SERIES, SOPInstanceUID="")
            async for _ in assoc.send_c_find(wanted, _FIND):
                break
            if not (await assoc.send_c_echo()).is_success:
                self._is_wrong("an echo after a cancel failed")

    async def abort(self) -> None:
        """Abort an association while an instance is being sent."""
        assoc = await client().associate("127.0.0.1", self._port)
        storing = assoc.send_c_store(self._random.choice(self._large))
        storing.addErrback(lambda reason: reason.trap(AssociationError))
        await pause(self._random.uniform(0, 0.02))
        assoc.abort()
        await assoc.when_ended()

    async def leave_in_a_message(self) -> None:
        """Reset a connection in the middle of an instance."""
        peer = await connect(self._port, REQUEST)
        await peer.answered
        request = CStoreRQ(message_id=1, affected_sop_class_uid=MR, affected_sop_instance_uid="1.2.3.4")
        whole = b"".join(ScriptedPeer.encode_message(3, request, self._random.choice(self._small).read_bytes()[400:]))
        peer.send(whole[: self._random.randrange(1, len(whole))])
        await pause(self._random.uniform(0, 0.05))
        await peer.leave()

    async def stop_reading(self) -> None:
        """Send queries, and do not read the responses."""
        ask = AAssociateRQ("ANY", "HOSTILE", (ProposedContext(1, _FIND, (ExplicitVRLittleEndian,)),), UserInformation())
        peer = await connect(self._port, ask.encode())
        await peer.answered
        if not peer.closed.called:
            peer.transport.pauseProducing()
        wanted = keys("IMAGE", SeriesInstanceUID=instances.SERIES, SOPInstanceUID="", ImageComments="")
        request = CFindRQ(message_id=1, affected_sop_class_uid=_FIND)
        message = ScriptedPeer.encode_message(1, request, encode_identifier(wanted, ExplicitVRLittleEndian))
        for _ in range(20):
            peer.send(b"".join(message))
        await pause(self._random.uniform(0.1, 1))
        await peer.leave()

    async def garbage(self) -> None:
        """Send bytes that are not DICOM, or DICOM with false lengths."""
        data = self._random.choice(
            [
                b"GET / HTTP/1.1\r\n\r\n",
                b"\x16\x03\x01\x02\0" + bytes(500),
                b"\1\0\xff\xff\xff\xff" + bytes(100),
                REQUEST + b"\4\0\xff\xff\xff\xff" + bytes(100),
                REQUEST + b"\4\0\0\0\0\6\0\0\0\2\3\2" * 100,
                REQUEST[:50] + self._random.randbytes(200),
                self._random.randbytes(5000),
            ]
        )
        peer = await connect(self._port, data)
        await pause(0.05)
        await peer.leave()

    async def half_open(self) -> None:
        """Send part of a request, then nothing until the server closes the connection."""
        peer = await connect(self._port, REQUEST[: self._random.randrange(len(REQUEST))])
        await peer.closed


async def watch(running: Server, until: float, samples: list[tuple[float, int]]) -> None:
    """Append the time and the resident memory of a server, in KiB, to *samples* every second until *until*."""
    while time.monotonic() < until:
        samples.append((time.monotonic(), resident(running.pid)))
        await pause(1)


def growth(samples: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """
    Return how memory grew after the warm-up, from the median of the first third to the median of the last third.

    :param samples: pairs of time and KiB, in order.
    :returns: the growth in KiB, and the median of the first third.
    """
    began, ended = samples[0][0], samples[-1][0]
    rest = [size for at, size in samples if at >= began + WARM_UP * (ended - began)]
    third = max(1, len(rest) // 3)
    first = statistics.median(rest[:third])
    return statistics.median(rest[-third:]) - first, first


def is_flat(samples: Sequence[tuple[float, int]]) -> bool:
    """Return whether memory stayed flat, by the rule in the docstring of the module."""
    grown, first = growth(samples)
    return grown <= max(MOST_GROWTH, MOST_PART * first)


class Metrics:
    """
    The metrics of a server, asked for again and again.

    :param port: the port of HTTP.

    :ivar wrong: counters that fell.
    :ivar last: the last values, by name and labels.
    """

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"
        self.wrong: list[str] = []
        self.last: dict[tuple[str, ...], float] = {}

    async def watch(self, until: float) -> None:
        """Ask every two seconds until *until*, and once afterwards."""
        while True:
            self._compare(await deferToThread(self._ask))
            if time.monotonic() >= until:
                return
            await pause(2)

    def _ask(self) -> str:
        with urlopen(self._url, timeout=30) as response:
            return str(response.read().decode())

    def _compare(self, text: str) -> None:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items())))
                if family.type != "gauge" and sample.value < self.last.get(key, 0):
                    self.wrong.append(" ".join(key))
                self.last[key] = sample.value

    def total(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        return sum(value for key, value in self.last.items() if key[0] == name)


async def soak(root: Path, seconds: float) -> bool:
    """Run the soak for *seconds*, print the results, and return whether it passes."""
    many_files()
    small = instances.make(root / "small", SMALL, 12_000)
    large = instances.make(root / "large", LARGE, 5_000_000, first=SMALL)
    storage, log = root / "storage", root / "log"
    samples: list[tuple[float, int]] = []
    http = free_port()
    timeouts = ("--acse-timeout", 5, "--network-timeout", 20, "--write-timeout", 20)
    web = ("--http", f"tcp:{http}:interface=127.0.0.1")
    metrics = Metrics(http)
    with serving(server(storage, *timeouts, *web), log) as running:
        # First store everything that will be queried, which also fills caches and starts threads.
        async with await client().associate("127.0.0.1", running.port) as assoc:
            for path in (*small, *large):
                await assoc.send_c_store(path)
        await pause(0.5)
        await metrics.watch(0)
        await pause(1)
        files = open_files(running)
        until = time.monotonic() + seconds
        peers = Soak(running, small, large, until)
        work = (peers.run(), watch(running, until, samples), metrics.watch(until))
        await gatherResults([Deferred.fromCoroutine(one) for one in work])
        for _ in range(60):
            line = await vitals(running, log)
            if " 0 associations, 0 connections" in line:
                break
            await pause(1)
        left = max(0, open_files(running) - files)
        await metrics.watch(0)
    text = log.read_text(errors="replace")
    stored = instances.count_stored(storage)
    temporary = [path.name for path in storage.rglob("*") if path.is_file() and path.suffix == TEMPORARY_SUFFIX]
    grown, first = growth(samples)
    checks = {
        "memory is flat": is_flat(samples),
        "no file is left open": not left,
        "no association is left": " 0 associations, 0 connections" in line,
        "nothing is wrong": not peers.wrong,
        f"each echo within {MOST_ECHO:g} s": bool(peers.echoes) and max(peers.echoes) < MOST_ECHO,
        "no traceback": "Traceback" not in text,
        "the metrics agree": _agree(metrics, peers),
        "the stored instances are those that were sent": stored == SMALL + LARGE and not temporary,
    }
    print(f"{seconds:g} s: " + ", ".join(f"{count} {name}" for name, count in sorted(peers.counts.items())))
    print(
        f"memory: {samples[0][1]} KiB at first, {first:.0f} KiB in the first third after the warm-up,"
        f" {grown:+.0f} KiB in the last, {max(size for _, size in samples)} KiB at the most"
    )
    if peers.echoes:
        print(
            f"echo: p50 {quantile(peers.echoes, 0.5) * 1000:.1f} ms, p99 {quantile(peers.echoes, 0.99) * 1000:.1f} ms,"
            f" {max(peers.echoes) * 1000:.0f} ms at the most, of {len(peers.echoes)}"
        )
    print(line)
    for words in peers.wrong:
        print(f"wrong: {words}")
    for words, good in checks.items():
        print(f"{'OK   ' if good else 'WRONG'} {words}")
    return all(checks.values())


def _agree(metrics: Metrics, peers: Soak) -> bool:
    busy = ("associations_open", "executor_queued_calls", "inbox_instances", "image_jobs_queued")
    echoes = sum(
        value
        for (name, *labels), value in metrics.last.items()
        if name == "dicomtwist_dimse_operations_total" and "service=C-ECHO" in labels
    )
    return (
        not metrics.wrong
        and len(metrics.last) < MOST_SERIES
        and not any(metrics.total(f"dicomtwist_{name}") for name in busy)
        and echoes >= len(peers.echoes) > 0
    )


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description="twist dicom among all kinds of peers."
    )
    parser.add_argument("--seconds", type=float, default=600, metavar="S", help="for how long (default: 600)")
    arguments = parser.parse_args()

    async def main(reactor: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="dicomtwist-soak-") as root:
            if not await soak(Path(root), arguments.seconds):
                raise SystemExit(1)

    react(lambda reactor: Deferred.fromCoroutine(main(reactor)))


if __name__ == "__main__":
    _main()
