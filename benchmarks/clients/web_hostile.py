"""
Misuse a server of DICOMweb and echo meanwhile: ``python -m benchmarks.clients.web_hostile HTTP DICOM SECONDS``.

40 connections send 50 requests at once, again and again; 40 send a byte of a header every 0.1 s; and 100 connections at a time
are opened, send bytes that are no request, and are reset. A process of its own sends a C-ECHO each 10 ms. Prints JSON:
``alone`` and ``beside``, each with ``p50``, ``p99`` and ``most`` of the C-ECHOs in seconds and their number ``echoes``; and
``answered``, the number of requests that were answered.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time

from benchmarks.clients.web import head_of
from benchmarks.clients.web_large import Echoing
from benchmarks.crowd import quantile

PIPELINING, AT_ONCE, SLOW, FLOOD = 40, 50, 40, 100
#: A request of each kind: one that the reactor thread answers, and searches in the index.
_PATHS = ("/dicom-web/studies?limit=1", "/dicom-web/nothing", "/dicom-web/instances?limit=10", "/")


class Crowd:
    """
    The misbehaving clients.

    :ivar answered: the number of responses.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self.answered = 0
        works = [self._pipeline] * PIPELINING + [self._drip, self._flood]
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port), 5)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return connection

    def _pipeline(self) -> None:
        requests = b"".join(head_of("GET", _PATHS[number % len(_PATHS)]) for number in range(AT_ONCE))
        while not self._stop.is_set():
            try:
                with self._connect() as connection:
                    while not self._stop.is_set():
                        connection.sendall(requests)
                        found, tail = 0, b""
                        while found < AT_ONCE and not self._stop.is_set():
                            data = connection.recv(1 << 16)
                            if not data:
                                raise ConnectionError
                            found += (tail + data).count(b"HTTP/1.1 ")
                            tail = data[-8:]
                        self.answered += found
            except OSError:
                pass

    def _drip(self) -> None:
        text = head_of("GET", "/dicom-web/studies", f"X-Slow: {'x' * 2000}")
        slow = [self._connect() for _ in range(SLOW)]
        at = 0
        while not self._stop.wait(0.1):
            for number, connection in enumerate(slow):
                try:
                    connection.sendall(text[at : at + 1])
                except OSError:
                    slow[number] = self._connect()
            at += 1
        for connection in slow:
            connection.close()

    def _flood(self) -> None:
        while not self._stop.is_set():
            opened = []
            try:
                for _ in range(FLOOD):
                    connection = self._connect()
                    opened.append(connection)
                    connection.sendall(os.urandom(200) + b"\r\n\r\n")
            except OSError:
                pass
            for connection in opened:
                connection.close()


def _echoed(port: int, seconds: float) -> dict[str, float]:
    with Echoing(port) as echoing:
        time.sleep(seconds)
    times = echoing.times
    p50, p99 = (quantile(times, part) for part in (0.5, 0.99))
    return {"p50": p50, "p99": p99, "most": max(times), "echoes": len(times)}


def _main() -> None:
    http, dicom, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    found: dict[str, object] = {"alone": _echoed(dicom, seconds)}
    with Crowd(http) as crowd:
        time.sleep(0.5)
        found["beside"] = _echoed(dicom, seconds)
    print(json.dumps({**found, "answered": crowd.answered}))


if __name__ == "__main__":
    _main()
