"""
A Storage SCP as a destination of forwarding, in a process of its own: it keeps each data set under its SOP Instance UID, and
may be slow or misbehave.

    python -m tests.forwarding.destination PORT FOLDER --delay 0.02
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from dicomtwist import AE, STORAGE_TRANSFER_SYNTAXES, AllStoragePresentationContexts, build_contexts, evt
from dicomtwist.part10 import encode_preamble_and_meta
from dicomtwist.sop_class import Verification


class Destination:
    """
    The services.

    :param reactor: for delays.
    :param folder: the folder of the files.
    :param behaviour: ``"store"``; ``"drop"`` ends each association at its first instance; ``"silent"`` does not answer.
    :param delay: the time before each answer, in seconds.
    """

    def __init__(self, reactor: Any, folder: Path, behaviour: str, delay: float) -> None:
        self._reactor = reactor
        self._folder = folder
        self._behaviour = behaviour
        self._delay = delay
        self._count = 0

    @evt.streaming
    async def store(self, event: Any) -> int:
        """Store an instance."""
        self._count += 1
        partial = self._folder / f"{os.getpid()}-{self._count}.part"
        with partial.open("wb") as file:
            file.write(encode_preamble_and_meta(event.meta))
            async for chunk in event.stream:
                file.write(chunk)
        if self._behaviour == "drop":
            partial.unlink()
            event.assoc.abort()
            return 0x0110
        if self._behaviour == "silent":
            partial.unlink()
            await Deferred()
        if self._delay:
            await deferLater(self._reactor, self._delay)
        partial.replace(self._folder / f"{event.request.affected_sop_instance_uid}.dcm")
        with (self._folder / "arrivals").open("a") as log:
            log.write(f"{event.request.affected_sop_instance_uid} {time.time()}\n")
        return 0x0000


async def _main(reactor: Any, port: int, folder: Path, behaviour: str, delay: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ae = AE("DESTINATION")
    ae.add_supported_context(Verification)
    if behaviour != "refuse":
        ae.supported_contexts = build_contexts(AllStoragePresentationContexts, STORAGE_TRANSFER_SYNTAXES)
    handlers = [(evt.EVT_C_STORE, Destination(reactor, folder, behaviour, delay).store)]
    await ae.start_server(f"tcp:{port}:interface=127.0.0.1", evt_handlers=cast(Any, handlers))
    await Deferred()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--behaviour", choices=("store", "drop", "silent", "refuse"), default="store")
    parser.add_argument("--delay", type=float, default=0.0)
    arguments = parser.parse_args()
    react(
        lambda reactor: Deferred.fromCoroutine(
            _main(reactor, arguments.port, arguments.folder, arguments.behaviour, arguments.delay)
        )
    )
