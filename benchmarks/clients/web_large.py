"""
Store and retrieve a study of large instances by DICOMweb, and echo meanwhile: ``python -m benchmarks.clients.web_large HTTP
DICOM PID COUNT MEGABYTES``.

The body is made while it is sent, and what is received is dropped. A thread of another process sends a C-ECHO each 10 ms on an
association of its own. Prints JSON: ``base``, the resident memory of the server before, in KiB, and ``children``, that of its
children; and for ``store`` and ``get`` the ``seconds``, the ``peak`` of the memory of the server, and of the C-ECHOs the
``echoes``, ``p50``, ``p99`` and ``most`` in seconds.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import instances
from benchmarks.clients.web import BOUNDARY, Connection, WebError, head_of
from benchmarks.clients.wire import Wire, storing
from benchmarks.crowd import quantile
from benchmarks.harness import MemoryWatch, resident
from dicomtwist.dimse.messages import CEchoRQ
from dicomtwist.ul.items import ProposedContext, UserInformation
from dicomtwist.ul.pdu import AAssociateRQ

#: The seconds between two C-ECHOs.
INTERVAL = 0.01
_VERIFICATION = "1.2.840.10008.1.1"


def echoes(port: int, until: Callable[[], bool]) -> list[float]:
    """Send a C-ECHO each :data:`INTERVAL` seconds on an association, and return how long each took."""
    context = ProposedContext(1, _VERIFICATION, ("1.2.840.10008.1.2",))
    wire = Wire(port, AAssociateRQ("ANY", "BENCHMARK", (context,), UserInformation(maximum_length=16384)).encode())
    times = []
    following = time.perf_counter()
    while not until():
        following += INTERVAL
        time.sleep(max(0.0, following - time.perf_counter()))
        began = time.perf_counter()
        wire.send(1, CEchoRQ(message_id=1, affected_sop_class_uid=_VERIFICATION))
        while not wire.receive():
            pass
        times.append(time.perf_counter() - began)
        following = max(following, time.perf_counter() - INTERVAL)
    wire.release()
    return times


class Echoing:
    """Echoes in a process of its own, for ``with``; :attr:`times` has the results afterwards."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.times: list[float] = []

    def __enter__(self) -> Echoing:
        reading, self._stop = os.pipe()
        self._results, writing = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            status = 1
            try:
                os.close(self._stop)
                times = echoes(self._port, lambda: bool(select.select([reading], [], [], 0)[0]))
                with os.fdopen(writing, "w") as file:
                    json.dump(times, file)
                status = 0
            finally:
                os._exit(status)
        os.close(reading)
        os.close(writing)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stop)
        with os.fdopen(self._results) as file:
            text = file.read()
        os.waitpid(self._pid, 0)
        self.times = json.loads(text)


def _children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _watched(port: int, pid: int, work: Callable[[], None]) -> dict[str, float]:
    began = time.perf_counter()
    with MemoryWatch(pid) as watch, Echoing(port) as echoing:
        work()
        seconds = time.perf_counter() - began
    times = echoing.times
    return {
        "seconds": seconds,
        "peak": watch.peak,
        "echoes": len(times),
        "p50": quantile(times, 0.5),
        "p99": quantile(times, 0.99),
        "most": max(times),
    }


def _store(port: int, numbers: range, size: int) -> None:
    content = instances.Content(size, 1)
    opening = f"\r\n--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    closing = f"\r\n--{BOUNDARY}--\r\n".encode()
    length = sum(len(opening) + len(content.head(number)) + len(content.pixels) for number in numbers) + len(closing)
    kind = f'Content-Type: multipart/related; type="application/dicom"; boundary={BOUNDARY}'
    connection = Connection(port)
    connection.send([head_of("POST", "/dicom-web/studies", kind, length=length)])
    for number in numbers:
        connection.send([opening, content.head(number), content.pixels])
    connection.send([closing])
    answer = connection.receive(keep=True)
    if answer.status != 200 or answer.body.count(b'"00081155"') != len(numbers):
        raise WebError(f"{answer.status}: {answer.body[:500]!r}")
    connection.close()


def _get(port: int, least: int) -> None:
    connection = Connection(port)
    accept = 'Accept: multipart/related; type="application/dicom"; transfer-syntax=*'
    connection.send([head_of("GET", f"/dicom-web/studies/{instances.STUDY}", accept)])
    answer = connection.receive()
    if answer.status != 200 or answer.length < least:
        raise WebError(f"{answer.status} with {answer.length} bytes")
    connection.close()


def _main() -> None:
    http, dicom, pid, count, megabytes = map(int, sys.argv[1:])
    size = megabytes * 1_000_000
    # The first of each kind starts threads and fills caches.
    _store(http, range(999_999, 1_000_000), 1_000_000)
    _get(http, 900_000)
    Wire(dicom, storing()).release()
    time.sleep(2)
    found: dict[str, Any] = {"base": resident(pid), "children": sum(map(resident, _children(pid)))}
    found["store"] = _watched(dicom, pid, lambda: _store(http, range(count), size))
    found["get"] = _watched(dicom, pid, lambda: _get(http, int(0.9 * count * size)))
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
