"""
Echo and search while the pages of an operator are open: ``python -m benchmarks.clients.web_page HTTP DICOM ROUNDS SECONDS``.

As their script does, a page of the activity asks for its part every two seconds, and one of the state every five. A process of
its own sends a C-ECHO each 10 ms, and this one searches each 20 ms. In each round they work for some seconds without the pages,
and then beside them, so that a machine that becomes slower does so for both. Prints JSON: ``alone`` and ``beside``, each with
``echo`` and ``search``: ``p50``, ``p99``, ``most`` in seconds, and their number ``count``; and ``refreshed``, the number of
refreshes.
"""

from __future__ import annotations

import json
import sys
import threading
import time

from benchmarks.clients.web import Connection, WebError, head_of
from benchmarks.clients.web_large import Echoing
from benchmarks.crowd import quantile

#: The pages and the seconds between two refreshes, as in their templates.
PAGES = (("/activity", 2.0), ("/server", 5.0))
INTERVAL = 0.02


class Pages:
    """
    The open pages, for ``with``.

    :ivar refreshed: the number of refreshes.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self.refreshed = 0
        self._threads = [threading.Thread(target=self._open, args=page, daemon=True) for page in PAGES]

    def __enter__(self) -> Pages:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _open(self, path: str, seconds: float) -> None:
        connection = Connection(self._port)
        while True:
            get(connection, path, "Accept: text/html", "HX-Request: true", "Accept-Encoding: gzip")
            self.refreshed += 1
            if self._stop.wait(seconds):
                break
        connection.close()


def get(connection: Connection, path: str, *fields: str) -> None:
    """Ask for *path*."""
    connection.send([head_of("GET", path, *fields)])
    answer = connection.receive(keep=True)
    if answer.status != 200:
        raise WebError(f"{path}: {answer.status}")


def searches(port: int, seconds: float) -> list[float]:
    """Search each :data:`INTERVAL` seconds, and return how long each search took."""
    connection = Connection(port)
    times = []
    ends = following = time.perf_counter()
    ends += seconds
    while following < ends:
        following = max(following + INTERVAL, time.perf_counter() - INTERVAL)
        time.sleep(max(0.0, following - time.perf_counter()))
        began = time.perf_counter()
        get(connection, "/dicom-web/studies?limit=20", "Accept: application/dicom+json")
        times.append(time.perf_counter() - began)
    connection.close()
    return times


def described(times: list[float]) -> dict[str, float]:
    p50, p99 = (quantile(times, part) for part in (0.5, 0.99))
    return {"p50": p50, "p99": p99, "most": max(times), "count": len(times)}


def _main() -> None:
    http, dicom, rounds = map(int, sys.argv[1:4])
    seconds = float(sys.argv[4])
    # The first of each takes a tenth of a second to load what it needs.
    with Pages(http), Echoing(dicom):
        searches(http, 0.5)
    found: dict[str, dict[str, list[float]]] = {kind: {"echo": [], "search": []} for kind in ("alone", "beside")}
    refreshed = 0
    for _ in range(rounds):
        with Echoing(dicom) as echoing:
            found["alone"]["search"] += searches(http, seconds)
        found["alone"]["echo"] += echoing.times
        with Pages(http) as pages, Echoing(dicom) as echoing:
            found["beside"]["search"] += searches(http, seconds)
        found["beside"]["echo"] += echoing.times
        refreshed += pages.refreshed
    print(
        json.dumps(
            {
                **{kind: {what: described(times) for what, times in both.items()} for kind, both in found.items()},
                "refreshed": refreshed,
            }
        )
    )


if __name__ == "__main__":
    _main()
