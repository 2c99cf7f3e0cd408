"""
Kill ``twist dicom`` at random moments while it receives and forwards: each acknowledged instance has to arrive at every
destination, byte for byte.

Run it for longer than the test does with::

    python -m tests.forwarding.kill_rounds --rounds 50 --web

The rounds are those of :mod:`tests.archive.kill_rounds`, deletions of studies included. One destination, ``storescp`` of
DCMTK, is killed and started again all the time; the other one is slow. With ``--web`` a third one is another ``twist dicom``,
which gets instances by STOW-RS. Each start of the server has other options: workers or none, with and without an inbox and
syncs, now and then without its index. After the last round the destinations stay up. Each of them then has the last version
that was acknowledged of every instance, unless its study was deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests import peers
from tests.archive.kill_rounds import Lost, Rounds

_CONFIGURATION = """
[peers]
FLAPPING = "127.0.0.1:{flapping}"
SLOW = "127.0.0.1:{slow}"
WEB = "http://127.0.0.1:{web}/dicom-web"
[[forward]]
name = "flapping"
to = "FLAPPING"
[[forward]]
name = "slow {generation}"
to = "SLOW"
[[forward]]
name = "web"
modality = "{modality}"
to = "WEB"
[[access.rule]]
from = "loopback"
allow = "all"
"""
#: The options of a start, of which one set is chosen at random.
_STARTS: tuple[list[str], ...] = (
    [],
    [],
    [],
    ["--workers", "2"],
    ["--durability", "none"],
    ["--inbox", "off"],
)
#: The time in which everything arrives after the last round, in seconds.
_MOST_WAIT = 240.0


class ForwardRounds(Rounds):
    """
    Rounds with destinations.

    :param web: whether the third destination is there.
    """

    #: A server with workers deletes when all of them are ready.
    busy = (503,)

    def __init__(self, folder: Path, rng: random.Random, *, web: bool = False, varied: bool = True) -> None:
        super().__init__(folder, rng)
        self._web = web
        self._varied = varied
        self._generation = 0
        self._ports = {name: peers.free_port() for name in ("flapping", "slow", "web", "web_port")}
        self._over = threading.Event()
        self._flapping: subprocess.Popen[bytes] | None = None
        self._others: list[subprocess.Popen[bytes]] = []
        self._thread = threading.Thread(target=self._flap)
        #: SOP Instance UID -> the last version that was acknowledged, and those that were sent after it.
        self._wanted: dict[str, list[bytes]] = {}
        self.starts = 0

    # --- destinations

    def open(self) -> None:
        """Start the destinations."""
        for name in ("flapping", "slow"):
            (self.folder / name).mkdir()
        slow = ["tests.forwarding.destination", str(self._ports["slow"]), str(self.folder / "slow"), "--delay", "0.01"]
        self._others.append(self._begin("slow", sys.executable, "-m", *slow))
        if self._web:
            command = ["twisted", "dicom", "--storage", str(self.folder / "web"), "--min-free", "0"]
            command += ["--port", f"tcp:{self._ports['web_port']}:interface=127.0.0.1"]
            command += ["--http", f"tcp:{self._ports['web']}:interface=127.0.0.1"]
            self._others.append(self._begin("web", sys.executable, "-m", *command))
        self._thread.start()

    def _begin(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def _flap(self) -> None:
        """Let the first destination go up and down until the rounds are over."""
        rng = random.Random(self.rng.random())
        while True:
            command = ["-od", str(self.folder / "flapping"), "+xa", "+B", str(self._ports["flapping"])]
            self._flapping = self._begin("flapping", peers.dcmtk("storescp"), *command)
            if self._over.wait(rng.uniform(0.1, 2.0)):
                return
            self._flapping.kill()
            self._flapping.wait()
            if self._over.wait(rng.uniform(0.1, 1.0)):
                continue

    def close(self) -> None:
        """End the destinations."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        for process in (self._flapping, *self._others):
            if process is not None:
                process.kill()
                process.wait()

    # --- the server

    def options(self) -> list[str]:
        """Change the configuration, and return the options of a start."""
        if self._varied and self.rng.random() < 0.3:
            self._generation += 1
        path = self.folder / "server.toml"
        modality = "OT" if self._web else "NONE"
        path.write_text(_CONFIGURATION.format(generation=self._generation, modality=modality, **self._ports))
        chosen = self.rng.choice(_STARTS) if self._varied else []
        if self._varied and self.rng.random() < 0.1:
            shutil.rmtree(self.storage / ".index", ignore_errors=True)
        self.starts += 1
        return ["--config", str(path), *chosen]

    def kill(self, server: subprocess.Popen[bytes]) -> None:
        """Kill all processes of the server, or the first one alone; its workers end then."""
        if self.rng.random() < 0.5:
            os.killpg(server.pid, signal.SIGKILL)
        super().kill(server)
        deadline = time.monotonic() + 30
        while _exists(server.pid):
            if time.monotonic() > deadline:
                raise Lost("workers are left after their supervisor has ended")
            time.sleep(0.05)

    def note(self, sent: dict[str, tuple[str, bytes]], output: str) -> None:
        """Note what was acknowledged, and what was sent after that."""
        super().note(sent, output)
        for uid, content in sent.values():
            versions = self.possible.get(uid, [])
            if versions == [content] and uid in self.promised:
                self._wanted[uid] = [content]
            elif content in versions and uid in self._wanted:
                self._wanted[uid].append(content)

    def check_deletions(self, found: set[str]) -> None:
        """Check the studies that were deleted: their instances need not arrive any more."""
        before = set(self.promised)
        super().check_deletions(found)
        for uid in before - self.promised:
            self._wanted.pop(uid, None)

    # --- the end

    def settle(self) -> float:
        """
        Let everything arrive, and check it.

        :returns: the seconds that it took.
        :raises Lost: something does not arrive, or is wrong.
        """
        self._over.set()
        self._thread.join()
        self._varied = False
        server = self.start()
        began = time.monotonic()
        try:
            while True:
                self._post("retry", {"all": True, "states": ["waiting", "failed"]})
                missing = self._missing()
                if not missing:
                    break
                if time.monotonic() - began > _MOST_WAIT:
                    raise Lost(f"{len(missing)} did not arrive: {self._explain(missing)}")
                time.sleep(0.5)
            took = time.monotonic() - began
            self._queue_is_empty()
            return took
        finally:
            self.stop(server)

    def _missing(self) -> list[tuple[str, str]]:
        found: dict[str, dict[str, Path]] = {}
        for name, pattern in (("flapping", "*"), ("slow", "*.dcm"), ("web", "[0-9]*/*/*.dcm")):
            paths = (self.folder / name).glob(pattern)
            found[name] = {_uid_of(path): path for path in paths}
        if not self._web:
            del found["web"]
        return [
            (name, uid)
            for name, paths in found.items()
            for uid, contents in self._wanted.items()
            if uid not in paths or not _is_one_of(paths[uid], contents)
        ]

    def _explain(self, missing: list[tuple[str, str]]) -> str:
        lines = []
        for name, uid in missing[:5]:
            tasks = self._get(f"?instance={uid}&limit=10")
            lines.append(f"{name} {uid}: {len(self._wanted[uid])} versions, tasks {tasks}")
        return "\n".join(lines)

    def _queue_is_empty(self) -> None:
        """
        Check that no task is left but those of instances that were deleted.

        :raises Lost: there is one.
        """
        deadline = time.monotonic() + 60
        while True:
            left = [
                one
                for state in ("waiting", "sending", "failed", "held")
                for one in self._get(f"?state={state}&limit=1000")
                if one["instance"] in self._wanted
            ]
            if not left:
                return
            if time.monotonic() > deadline:
                raise Lost(f"{len(left)} tasks are left: {left[:3]}")
            time.sleep(0.5)

    def _get(self, query: str) -> list[dict[str, Any]]:
        with urlopen(f"http://127.0.0.1:{self.http_port}/api/queue{query}", timeout=60) as answer:
            found = json.load(answer)
        return found if isinstance(found, list) else found["tasks"]

    def _post(self, what: str, body: dict[str, Any]) -> None:
        url = f"http://127.0.0.1:{self.http_port}/api/queue/{what}"
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=60) as answer:
            answer.read()


def _exists(group: int) -> bool:
    """Return whether a group of processes is there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _uid_of(path: Path) -> str:
    """Return the SOP Instance UID in the name of a file: ``storescp`` writes ``OT.1.2.3``."""
    return path.name.removesuffix(".dcm").lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz.")


def _is_one_of(path: Path, contents: list[bytes]) -> bool:
    try:
        return peers.dataset_bytes(path) in contents
    except (OSError, peers.PeerError):
        return False  # it is being written


def main() -> None:
    """Run the rounds; the exit status is 0 if everything has arrived."""
    parser = argparse.ArgumentParser(description="Kill twist dicom while it forwards, and check the destinations.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--count", type=int, default=40, help="instances of each client and round")
    parser.add_argument("--seed", type=int, default=None, help="repeat the random choices of a run, not its times")
    parser.add_argument("--web", action="store_true", help="a third destination gets instances by STOW-RS")
    parser.add_argument("--plain", action="store_true", help="start the server with the same options each time")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    folder = Path(tempfile.mkdtemp(prefix="dicomtwist-forward-kill-"))
    rounds = ForwardRounds(folder, random.Random(seed), web=options.web, varied=not options.plain)
    try:
        rounds.open()
        for number in range(options.rounds):
            rounds.round(options.clients, options.count)
            print(f"round {number + 1}: {rounds.acknowledged} acknowledged, {rounds.deleted} deleted", flush=True)
        took = rounds.settle()
    except Lost as error:
        raise SystemExit(f"LOST, see {folder}: {error}") from None
    finally:
        rounds.close()
    print(
        f"nothing lost in {options.rounds} rounds with {rounds.starts} starts: {rounds.acknowledged} acknowledged, "
        f"{len(rounds._wanted)} arrived at each destination, the last ones {took:.1f} s after the last start"
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
