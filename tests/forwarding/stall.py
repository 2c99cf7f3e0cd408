"""
Measure how long instances take to a destination while other destinations are in trouble.

    python -m tests.forwarding.stall --seconds 30

An instance arrives every 50 ms, and goes to all of the destinations: one that is well, one that is slow, one that accepts
associations and drops them at the first instance, one that never answers, one that accepts no presentation context, one that is
down, and one that is at an address nothing answers at. The times are those from the acknowledgement to the arrival at the
destination that is well; first without the others, then beside them.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from dicomtwist import AE
from tests import peers
from tests.archive.kill_rounds import write_instance

_TROUBLE = {
    "SLOW": ("--delay", "0.5"),
    "DROP": ("--behaviour", "drop"),
    "SILENT": ("--behaviour", "silent"),
    "REFUSE": ("--behaviour", "refuse"),
}
_PAUSE = 0.05


async def measure(reactor: Any, folder: Path, seconds: float, others: list[str]) -> list[float]:
    """Return the times of the instances in seconds, sorted."""
    names = ["WELL", *(name for name in others if name in _TROUBLE)]
    ports = {name: peers.free_port() for name in (*names, "DOWN", "server")}
    processes = []
    try:
        for name in names:
            command = ["tests.forwarding.destination", str(ports[name]), str(folder / name), *_TROUBLE.get(name, ())]
            processes.append(_begin(folder / f"{name}.log", *command))
        addresses = {name: f"127.0.0.1:{ports[name]}" for name in (*names, "DOWN")} | {"NOWHERE": "203.0.113.1:104"}
        text = "[peers]\n" + "".join(f'{name} = "{address}"\n' for name, address in addresses.items())
        text += "[[forward]]\nto = " + repr(["WELL", *others]).replace("'", '"') + "\n"
        (folder / "server.toml").write_text(text)
        command = ["twisted", "--log-format", "text", "dicom", "--storage", str(folder / "storage"), "--min-free", "0"]
        command += ["--port", f"tcp:{ports['server']}:interface=127.0.0.1", "--config", str(folder / "server.toml")]
        processes.append(_begin(folder / "server.log", *command))
        for name in (*names, "server"):
            while not peers._listens(ports[name]):
                await deferLater(reactor, 0.05)
        acknowledged = await _send(reactor, folder, ports["server"], seconds)
        await deferLater(reactor, 3.0)
        lines = (folder / "WELL" / "arrivals").read_text().splitlines()
        arrived = {uid: float(at) for uid, at in map(str.split, lines)}
        missing = acknowledged.keys() - arrived.keys()
        if missing:
            raise SystemExit(f"{len(missing)} of {len(acknowledged)} have not arrived, see {folder}")
        return sorted(max(0.0, arrived[uid] - at) for uid, at in acknowledged.items())
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def _begin(log: Path, *command: str) -> subprocess.Popen[bytes]:
    with open(log, "ab") as file:
        return subprocess.Popen([sys.executable, "-m", *command], stdout=file, stderr=file)


async def _send(reactor: Any, folder: Path, port: int, seconds: float) -> dict[str, float]:
    """Send instances of 12 KB and of 525 KB; return when each was acknowledged."""
    ae = AE("SCU")
    ae.add_requested_context(SecondaryCaptureImageStorage, ExplicitVRLittleEndian)
    assoc = await ae.associate("127.0.0.1", port)
    acknowledged = {}
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        number += 1 + (number % 37 == 36)  # without the largest ones
        uid = write_instance(folder / "one.dcm", number, 1)
        status = await assoc.send_c_store(dcmread(folder / "one.dcm"))
        if status.is_success:
            acknowledged[uid] = time.time()
        await deferLater(reactor, _PAUSE)
    await assoc.release()
    await ae.shutdown()
    return acknowledged


async def _main(reactor: Any, seconds: float) -> None:
    random.seed(1)
    with tempfile.TemporaryDirectory(prefix="dicomtwist-stall-") as name:
        for title, others in (("alone", []), ("beside the others", [*_TROUBLE, "DOWN", "NOWHERE"])):
            folder = Path(name, title.split()[0])
            folder.mkdir()
            times = await measure(reactor, folder, seconds, others)
            print(
                f"{title}: {len(times)} instances, median {statistics.median(times):.3f} s, longest {times[-1]:.3f} s",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure how long a destination waits because of others.")
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    react(lambda reactor: Deferred.fromCoroutine(_main(reactor, arguments.seconds)))
