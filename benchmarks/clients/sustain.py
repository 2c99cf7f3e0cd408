"""
Store many instances from several senders, and query meanwhile:
``python -m benchmarks.clients.sustain PORT PID SENDERS COUNT SIZE``.

It sends COUNT instances of SIZE bytes in all, 100 to a study, on SENDERS associations at once. Each of them waits for a
response before it sends the next. Five times a second another association queries for the instance that was acknowledged
last, which has to be found. PID is the server's, whose memory is watched.

Prints JSON: ``quarters``, how long each quarter of the instances took, in seconds; ``resident``, the server's resident memory
at the end of each, in KiB; ``finds``, the time of each C-FIND, in seconds.
"""

from __future__ import annotations

import argparse
import io
import json
import selectors
import time
from typing import Final

from benchmarks import instances
from benchmarks.clients.wire import Wire, WireError, storing
from benchmarks.harness import resident
from dicomtwist.dimse.messages import CFindRSP, CStoreRSP, Message
from dicomtwist.part10 import read_file_meta

PER_STUDY: Final = 100
#: The time from the answer of a query to the next query, in seconds.
_PAUSE: Final = 0.2


class _Load:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self._pid, self._count = arguments.pid, arguments.count
        self._content = instances.Content(arguments.size, per_study=PER_STUDY)
        _, self._start = read_file_meta(io.BytesIO(self._content.head(0)))
        each = self._count // arguments.senders
        # Each sender has its own numbers; the last one has the rest, too.
        ends = [each * (sender + 1) for sender in range(arguments.senders - 1)] + [self._count]
        self._unsent = [iter(range(each * sender, end)) for sender, end in enumerate(ends)]
        self._sent: list[int] = [0] * arguments.senders
        self._senders = [Wire(arguments.port, storing()) for _ in self._unsent]
        self._asker = Wire(arguments.port, storing())
        self._stored, self._last = 0, 0
        self._asked: float | None = None
        self.quarters: list[float] = []
        self.resident: list[int] = []
        self.finds: list[float] = []

    def run(self) -> None:
        """Send everything."""
        with selectors.DefaultSelector() as selector:
            for number, wire in enumerate(self._senders):
                selector.register(wire.socket, selectors.EVENT_READ, number)
            selector.register(self._asker.socket, selectors.EVENT_READ)
            self._began = time.perf_counter()
            ask_at = self._began + _PAUSE
            for number in range(len(self._senders)):
                self._send(number)
            while self._stored < self._count or self._asked is not None:
                for key, _ in selector.select(_PAUSE):
                    if key.data is None:
                        self._answered()
                        ask_at = time.perf_counter() + _PAUSE
                    else:
                        self._acknowledged(key.data)
                if self._asked is None and self._stored < self._count and time.perf_counter() > ask_at:
                    self._asked = time.perf_counter()
                    self._asker.find(self._last, self._last // PER_STUDY)
        for wire in (*self._senders, self._asker):
            wire.release()

    def _send(self, sender: int) -> None:
        number = next(self._unsent[sender], None)
        if number is not None:
            self._sent[sender] = number
            self._senders[sender].store(number, self._content.head(number)[self._start :] + self._content.pixels)

    def _acknowledged(self, sender: int) -> None:
        for _, message in self._senders[sender].receive():
            _check(message, CStoreRSP)
            self._stored, self._last = self._stored + 1, self._sent[sender]
            if self._stored * 4 >= self._count * (len(self.quarters) + 1):
                self.quarters.append(time.perf_counter() - self._began - sum(self.quarters))
                self.resident.append(resident(self._pid))
            self._send(sender)

    def _answered(self) -> None:
        for _, message in self._asker.receive():
            if message.has_dataset:
                continue
            _check(message, CFindRSP)
            if self._asker.data_sets != len(self.finds) + 1:
                raise WireError(f"{self._asker.data_sets - len(self.finds)} matches for an acknowledged instance")
            assert self._asked is not None
            self.finds.append(time.perf_counter() - self._asked)
            self._asked = None


def _check(message: Message, kind: type[CStoreRSP | CFindRSP]) -> None:
    if not isinstance(message, kind) or message.status:
        raise WireError(f"the server answered {message}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("port", "pid", "senders", "count", "size"):
        parser.add_argument(name, type=int)
    load = _Load(parser.parse_args())
    load.run()
    print(json.dumps({"quarters": load.quarters, "resident": load.resident, "finds": load.finds}))
