"""
Send files with our client and print how long it took: ``python -m benchmarks.clients.send PORT FOLDER``.

Prints JSON: ``total``, from the association request to the release; ``stores``, from the first C-STORE to the last response; in
seconds; and ``base``, the resident memory before the first C-STORE, in KiB.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react

from benchmarks.harness import MAX_PDU, resident
from dicomtwist import AE, AsyncOperationsWindow


async def _send(arguments: argparse.Namespace) -> None:
    paths = sorted(arguments.folder.glob("*.dcm"))
    ae = AE("BENCHMARK")
    ae.maximum_pdu_size = MAX_PDU
    ae.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    base = resident()
    began = time.perf_counter()
    window = [AsyncOperationsWindow(arguments.window, 1)] if arguments.window > 1 else []
    association = await ae.associate("127.0.0.1", arguments.port, ext_neg=window)
    first = time.perf_counter()
    if window or arguments.at_once:
        statuses = await gatherResults([association.send_c_store(path) for path in paths], consumeErrors=True)
    else:
        statuses = [await association.send_c_store(path) for path in paths]
    last = time.perf_counter()
    await association.release()
    ended = time.perf_counter()
    failed = [status for status in statuses if not status.is_success]
    if failed:
        raise SystemExit(f"{len(failed)} were not stored: {failed[:3]}")
    print(json.dumps({"total": ended - began, "stores": last - first, "base": base}))


def _main(reactor: object, arguments: argparse.Namespace) -> Deferred[None]:
    sending: Coroutine[Deferred[Any], Any, None] = _send(arguments)
    return Deferred.fromCoroutine(sending)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--window", type=int, default=1, help="operations to have outstanding")
    parser.add_argument("--at-once", action="store_true", help="ask for all at once, whatever the window")
    react(_main, (parser.parse_args(),))
