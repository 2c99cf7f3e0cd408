"""
Kill ``twist dicom`` at random moments while clients of DCMTK send and a client of DICOMweb deletes: no acknowledged instance
may be lost, and no deleted one come back.

Run it for longer than the test does with::

    python -m tests.archive.kill_rounds --rounds 50

Each round starts the server on the same storage, lets several ``storescu`` send new instances and other versions of old
ones, and kills it with SIGKILL after a random time; some of the starts that follow are killed too. After the last start
every acknowledged instance must be there: its file with the bytes that were sent, and its row. Any other instance is there
completely, in a version that was sent, or not at all. A study whose deletion was answered is gone, and one whose deletion was
not answered is there as a whole, or gone.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection, HTTPException
from io import BytesIO
from pathlib import Path

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from tests import peers

_ROOT = "1.2.826.0.1.3680043.8.498.77"
_PIXELS = 12_000
_MEDIUM = 525_000
_LARGE = 3_000_000


def write_instance(path: Path, number: int, version: int) -> str:
    """Write a file and return its SOP Instance UID, which depends on *number*; its content depends on *version* too."""
    rng = random.Random((number, version).__repr__())
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = f"{_ROOT}.{number}"
    dataset.Modality = "OT"
    dataset.PatientName = f"Patient^{number // 40}"
    dataset.PatientID = f"P{number // 40}"
    dataset.StudyInstanceUID = f"{_ROOT}.1.{number // 40}"
    dataset.SeriesInstanceUID = f"{_ROOT}.2.{number // 20}"
    dataset.InstanceNumber = version
    dataset.Rows = dataset.Columns = 1
    dataset.BitsAllocated = 8
    dataset.add_new(
        0x7FE00010, "OB", rng.randbytes(_LARGE if number % 37 == 0 else _MEDIUM if number % 5 == 0 else _PIXELS)
    )
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    path.write_bytes(buffer.getvalue())
    return str(dataset.SOPInstanceUID)


class Lost(AssertionError):
    """An acknowledged instance is missing or wrong; the text says how."""


class Rounds:
    """
    One storage, and the instances that its server has acknowledged.

    :param folder: an empty folder for the storage, the log and the files to send.
    :param rng: makes the random choices.
    """

    #: The statuses with which a deletion may be refused.
    busy: tuple[int, ...] = ()

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder = folder
        self.rng = rng
        self.storage = folder / "storage"
        self.numbers = 0
        self.old = 0
        self.version = 0
        #: SOP Instance UID -> the last version that was acknowledged, and each version that was sent after it.
        self.possible: dict[str, list[bytes]] = {}
        #: The UIDs of the instances that must be there, in one of their possible versions.
        self.promised: set[str] = set()
        self.acknowledged = 0
        #: The studies that are being deleted, by their numbers, and whether that was answered.
        self.deletions: dict[int, bool] = {}
        self.deleted = self.interrupted = 0
        self.refused: list[int] = []
        self.started = 0.0

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server and wait until it listens."""
        began = time.monotonic()
        server = self.begin()
        while peers._listens(self.port) is False and server.poll() is None:
            time.sleep(0.02)
        if server.poll() is not None:
            raise Lost(f"the server does not start: {(self.folder / 'server.log').read_text()[-2000:]}")
        self.started = max(self.started, time.monotonic() - began)
        return server

    def begin(self) -> subprocess.Popen[bytes]:
        """Start the server."""
        self.port = peers.free_port()
        self.log = open(self.folder / "server.log", "ab")
        self.http_port = peers.free_port()
        command = ["-m", "twisted", "--log-format", "text", "dicom", "--storage", str(self.storage), "--min-free", "0"]
        command += ["--http", f"tcp:{self.http_port}:interface=127.0.0.1"]
        command += ["--port", f"tcp:{self.port}:interface=127.0.0.1", *self.options()]
        return subprocess.Popen([sys.executable, *command], stdout=self.log, stderr=self.log, start_new_session=True)

    def options(self) -> list[str]:
        """Return further options of the server that starts."""
        return []

    def die_early(self) -> None:
        """Kill servers that start: while they import, make files of the inbox, or settle."""
        for _ in range(self.rng.randrange(3)):
            server = self.begin()
            # Listening or not: the time of a start is spread over the random choices.
            time.sleep(self.rng.uniform(0.3, 1.2) * max(self.started, 0.5))
            self.kill(server)
            self.log.close()

    def round(self, clients: int, count: int) -> None:
        """Send instances, kill the server, start it again and check the storage."""
        server = self.start()
        self.old = self.numbers
        self.deletions = dict.fromkeys(self.choose_studies(), False)
        life = self.rng.uniform(0.02, 0.9)
        # The last deletion often begins just before the end of the server.
        delays = sorted(life - self.rng.choice((0.01, 0.03, 0.1, life)) for _ in self.deletions)
        deleting = threading.Thread(target=self.delete, args=(delays,))
        try:
            sending = [self.send(client, count) for client in range(clients)]
            deleting.start()
            time.sleep(life)
        finally:
            self.kill(server)
            if deleting.ident is not None:
                deleting.join()
        outputs = [process.communicate(timeout=60)[0].decode("utf-8", "replace") for process, _ in sending]
        for (_, sent), output in zip(sending, outputs, strict=True):
            self.note(sent, output)
        self.deleted += sum(self.deletions.values())
        self.interrupted += len(self.deletions) - sum(self.deletions.values())
        self.die_early()
        server = self.start()
        try:
            self.check()
        finally:
            self.stop(server)

    def kill(self, server: subprocess.Popen[bytes]) -> None:
        """Kill the server."""
        server.send_signal(signal.SIGKILL)
        server.wait()

    def stop(self, server: subprocess.Popen[bytes]) -> None:
        """End the server as a supervisor does."""
        server.terminate()
        server.wait(timeout=60)
        self.log.close()

    def choose_studies(self) -> list[int]:
        """Return the numbers of studies to delete; nothing of them is sent in this round."""
        whole = {(number // 40) for number in range(self.old - self.old % 40) if f"{_ROOT}.{number}" in self.promised}
        return self.rng.sample(sorted(whole), min(len(whole), 2))

    def delete(self, delays: list[float]) -> None:
        """Delete the studies *delays* seconds after the beginning, and note what is answered."""
        began = time.monotonic()
        for number, delay in zip(self.deletions, delays, strict=True):
            time.sleep(max(0.0, began + delay - time.monotonic()))
            connection = HTTPConnection("127.0.0.1", self.http_port, timeout=60)
            try:
                connection.request("DELETE", f"/dicom-web/studies/{_ROOT}.1.{number}")
                status = connection.getresponse().status
            except (OSError, HTTPException):
                return  # the server is dead
            finally:
                connection.close()
            self.deletions[number] = status == 204
            self.refused += [status] * (status not in (204, *self.busy))

    def check_deletions(self, found: set[str]) -> None:
        """
        Check the studies that were deleted, and forget those that are gone.

        :raises Lost: one is there although its deletion was answered, or only a part of it is there.
        """
        if self.refused:
            raise Lost(f"DELETE is answered with {self.refused}")
        for study, is_answered in self.deletions.items():
            instances = {f"{_ROOT}.{number}" for number in range(40 * study, 40 * study + 40)} & self.promised
            there = instances & found
            if there and (is_answered or there != instances):
                raise Lost(
                    f"study {study} was deleted, answered {is_answered}: {len(there)} of {len(instances)} are there"
                )
            if not there:
                self.promised -= instances
                for uid in instances:
                    del self.possible[uid]
        if self.deletions and list(self.storage.glob(".removed-*")):
            time.sleep(1)
            left = [path.name for path in self.storage.glob(".removed-*")]
            if left:
                raise Lost(f"files of deletions are left: {left}")

    def send(self, client: int, count: int) -> tuple[subprocess.Popen[bytes], dict[str, tuple[str, bytes]]]:
        """Begin to send: three of four instances are new, the others are stored already in another version."""
        outgoing = self.folder / "outgoing" / str(client)
        shutil.rmtree(outgoing, ignore_errors=True)
        outgoing.mkdir(parents=True)
        sent: dict[str, tuple[str, bytes]] = {}
        # No two clients send the same instance in one round, so that the order of its versions is known.
        old = [number for number in range(self.old) if number % 8 == client and number // 40 not in self.deletions]
        chosen = self.rng.sample(old, min(len(old), count // 4))
        chosen += range(self.numbers, self.numbers + count - len(chosen))
        self.numbers += count
        self.rng.shuffle(chosen)
        for number in chosen:
            self.version += 1
            path = outgoing / f"{len(sent):04}.dcm"
            uid = write_instance(path, number, self.version)
            sent[str(path)] = (uid, peers.dataset_bytes(path))
        command = [peers.dcmtk("storescu"), "-v", "127.0.0.1", str(self.port), *sent]
        environment = {**os.environ, "TCP_NODELAY": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment), sent

    def note(self, sent: dict[str, tuple[str, bytes]], output: str) -> None:
        """Note the instances that the output of a client reports as acknowledged."""
        tried = re.findall(r"Sending file: (\S+)(.*?)(?=Sending file|\Z)", output, re.DOTALL)
        for path, rest in tried:
            uid, content = sent[path]
            if "Received Store Response (Success)" in rest:
                self.possible[uid] = [content]
                self.promised.add(uid)
                self.acknowledged += 1
            else:
                self.possible.setdefault(uid, []).append(content)

    def check(self) -> None:
        """
        Compare files and index with the acknowledged instances.

        :raises Lost: they differ.
        """
        files = {path.stem: path for path in self.storage.glob("[0-9]*/*/*.dcm")}
        self.check_deletions({*files})
        for uid in self.promised - files.keys():
            raise Lost(f"{uid} was acknowledged and is gone")
        for uid, path in files.items():
            content = peers.dataset_bytes(path)
            if content not in self.possible.get(uid, []):
                raise Lost(f"{path} is no version that can be there")
            if uid not in self.promised:
                # An instance that recovery has found must stay, as if it had been acknowledged.
                self.promised.add(uid)
            self.possible[uid] = [content]
        left = [path for path in self.storage.rglob("*") if path.is_file() and path.suffix == ".part"]
        if left:
            raise Lost(f"left over: {left}")
        self.check_index(files)

    def check_index(self, files: dict[str, Path]) -> None:
        """Check that the index has the instances of *files*, in the same versions."""
        with sqlite3.connect(f"file:{self.storage / '.index' / 'index.sqlite'}?mode=ro", uri=True) as database:
            rows = database.execute(
                "SELECT sop_instance_uid, instance_number, size, study_instance_uid FROM instance"
                " JOIN series ON in_series = series.id JOIN study ON in_study = study.id"
            ).fetchall()
        database.close()
        if sorted(row[0] for row in rows) != sorted(files):
            raise Lost(f"index and files differ: {sorted({row[0] for row in rows} ^ files.keys())}")
        for uid, number, size, study in rows:
            path = files[uid]
            element = b"\x20\x00\x13\x00IS" + len(_even(number)).to_bytes(2, "little") + _even(number)
            if element not in path.read_bytes():
                raise Lost(f"the index has another version of {path}")
            if size != path.stat().st_size or study != path.parent.parent.name:
                raise Lost(f"the row of {path} is not that of the file")


def _even(text: str) -> bytes:
    return text.encode() + b" " * (len(text) % 2)


def main() -> None:
    """Run the rounds; the exit status is 0 if no acknowledged instance was lost."""
    parser = argparse.ArgumentParser(description="Kill twist dicom at random moments and check the archive afterwards.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--count", type=int, default=60, help="instances of each client and round")
    parser.add_argument("--seed", type=int, default=None, help="repeat the random choices of a run, not its times")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", flush=True)
    # SIGTERM must stop the server as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    folder = Path(tempfile.mkdtemp(prefix="dicomtwist-kill-"))
    rounds = Rounds(folder, random.Random(seed))
    try:
        for number in range(options.rounds):
            rounds.round(options.clients, options.count)
            print(
                f"round {number + 1}: {rounds.acknowledged} acknowledged and {rounds.deleted} studies deleted so far, "
                f"{rounds.interrupted} deletions without an answer, "
                f"{len(rounds.promised)} instances there",
                flush=True,
            )
    except Lost as error:
        raise SystemExit(f"LOST, see {folder}: {error}") from None
    print(f"nothing lost in {options.rounds} rounds; the slowest start took {rounds.started:.1f} s")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
