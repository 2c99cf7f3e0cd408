"""
A server that accepts instances, keeps none, and grants an asynchronous operations window: ``python -m
benchmarks.servers.window PORT OPERATIONS [SECONDS]``. It takes SECONDS for each instance, and works on others meanwhile.
"""

from __future__ import annotations

import sys
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from benchmarks.harness import MAX_PDU
from dicomtwist import AE, evt


def _main(reactor: Any, port: str, operations: str, seconds: str = "0") -> Deferred[None]:
    work = float(seconds)

    def window(event: evt.Event) -> tuple[int, int]:
        return int(operations), 1

    def store(event: evt.StoreEvent) -> int | Deferred[int]:
        return deferLater(reactor, work, int) if work else 0

    ae = AE("BENCHMARK")
    ae.maximum_pdu_size = MAX_PDU
    ae.add_supported_context(MRImageStorage, ExplicitVRLittleEndian)
    started = ae.start_server(
        ("127.0.0.1", int(port)), evt_handlers=[(evt.EVT_ASYNC_OPS, window), (evt.EVT_C_STORE, store)]
    )
    # A Deferred that never fires: the server runs until it is killed.
    return started.addCallback(lambda _: Deferred())


if __name__ == "__main__":
    react(_main, sys.argv[1:])
