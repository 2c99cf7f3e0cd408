"""
The parts that all benchmarks share: processes, folders, rounds, and the rows of the table.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest import SkipTest

from tests import peers

#: The folder in which ``python -m`` finds this package and the plugin, whether they are installed or not.
ROOT = Path(__file__).resolve().parent.parent
#: The maximum length of a P-DATA-TF, in bytes, for both sides.
MAX_PDU = 131072
#: The timeout of any process, in seconds.
TIMEOUT = 600.0
#: The most seconds that creating a file takes if no files were deleted; and how many seconds to wait for that state.
PROMPT_FILE, MOST_SETTLING = 100e-6, 300.0

Seconds = float
#: A function that does the work once and returns how long it took.
Side = Callable[[], Seconds]


class BenchmarkError(Exception):
    """A measurement failed, or the measured program did not do its work."""


def dcmtk(name: str) -> str:
    """
    Return the path of one of DCMTK's tools.

    :raises BenchmarkError: it is not installed.
    """
    try:
        return peers.dcmtk(name)
    except (SkipTest, peers.PeerError) as error:
        raise BenchmarkError(str(error)) from None


def installed(name: str) -> str:
    """
    Return the path of another program.

    :raises BenchmarkError: it is not installed.
    """
    try:
        return peers.tool(name)
    except (SkipTest, peers.PeerError) as error:
        raise BenchmarkError(str(error)) from None


# --- processes


def _environment(nodelay: bool) -> dict[str, str]:
    environment = {**os.environ, "TCP_NODELAY": "1"}
    if not nodelay:
        del environment["TCP_NODELAY"]
    return environment


def run(command: Sequence[object], *, nodelay: bool = True) -> Seconds:
    """
    Run a program to its end.

    :returns: how long it took.
    :raises BenchmarkError: it failed.
    """
    return run_all([command], nodelay=nodelay)


def run_all(commands: Sequence[Sequence[object]], *, nodelay: bool = True) -> Seconds:
    """Run several programs at once to their ends; otherwise like :func:`run`."""
    environment = _environment(nodelay)
    began = time.perf_counter()
    processes = [
        subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
        )
        for command in commands
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=TIMEOUT)
            if process.returncode:
                text = errors.decode("utf-8", "replace")[-2000:]
                raise BenchmarkError(f"{process.args[0]!r} ended with {process.returncode}: {text}")  # type: ignore[index]
        return time.perf_counter() - began
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def run_client(module: str, *arguments: object, memory: bool = False) -> dict[str, float]:
    """
    Run a client of :mod:`benchmarks.clients`.

    :param memory: whether to watch its resident memory.
    :returns: its measurements, see :mod:`benchmarks.clients.send`; with *memory* also ``peak``, the most memory in KiB.
    :raises BenchmarkError: it failed.
    """
    result, peak = run_module(f"benchmarks.clients.{module}", *arguments, memory=memory)
    return {**result, "peak": peak} if memory else result


def run_module(module: str, *arguments: object, memory: bool = False) -> tuple[Any, int]:
    """
    Run a module that prints JSON.

    :param memory: whether to watch its resident memory.
    :returns: the decoded JSON; and its most resident memory in KiB, 0 without *memory*.
    :raises BenchmarkError: it failed.
    """
    command = [sys.executable, "-m", module, *(str(argument) for argument in arguments)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(True),
        cwd=ROOT,
    )
    try:
        with MemoryWatch(process.pid if memory else None) as watch:
            output, errors = process.communicate(timeout=TIMEOUT)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        raise BenchmarkError(f"{module} ended with {process.returncode}: {errors.decode('utf-8', 'replace')[-2000:]}")
    return json.loads(output), watch.peak


@dataclass(frozen=True)
class Server:
    """
    A running server.

    :ivar port: the port on which it listens, on 127.0.0.1.
    :ivar pid: its process ID.
    """

    port: int
    pid: int


#: The endpoint string of a port that a server listens at.
_LISTENING: Final = re.compile(r"(?:tcp|dicomtls):([0-9]+):")


@contextmanager
def serving(command: Callable[[int], Sequence[object]], log: Path, *, nodelay: bool = True) -> Iterator[Server]:
    """
    Run a server for ``with``, and at the end stop it and the processes that it forked.

    :param command: returns the command line for a port.
    :param log: the file for its output.
    """
    port = peers.free_port()
    words = [str(word) for word in command(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(nodelay),
            cwd=ROOT,
            start_new_session=True,
        )
    try:
        # A port for HTTP is open before that for DIMSE, and answers 503 until then.
        for each in [port, *(int(found[1]) for word in words if (found := _LISTENING.match(word)))]:
            _wait_listening(each, process, log)
        yield Server(port, process.pid)
    finally:
        _end(process)


def _wait_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while not _listens(port):
        if process.poll() is not None:
            raise BenchmarkError(f"{process.args!r} ended at once: {log.read_text(errors='replace')[-2000:]}")
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{process.args!r} did not listen within 30 s")
        time.sleep(0.02)


def _listens(port: int) -> bool:
    # On Linux /proc lists the listening sockets, so there is no need to connect.
    try:
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:] + Path("/proc/net/tcp6").read_text().splitlines()[1:]
    except OSError:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True
    return any(fields[1].endswith(f":{port:04X}") and fields[3] == "0A" for fields in map(str.split, lines))


def stop(server: Server) -> Seconds:
    """
    End a server with SIGTERM, inside ``with`` of :func:`serving`.

    :returns: how long that took.
    :raises BenchmarkError: the server does not end within a minute.
    """
    began = time.perf_counter()
    os.kill(server.pid, signal.SIGTERM)
    # WNOWAIT leaves the process to the Popen object of serving().
    while os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.perf_counter() - began > 60:
            raise BenchmarkError("the server does not end")
        time.sleep(0.005)
    return time.perf_counter() - began


def _end(process: subprocess.Popen[bytes]) -> None:
    # The server leads its own session, so its process group is the server and the children that serve associations.
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signal_number)
        except ProcessLookupError:
            pass
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def resident(pid: int | str = "self") -> int:
    """Return the resident memory of a process in KiB, 0 if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS:")), 0)


class MemoryWatch:
    """
    Watches the resident memory of a process, for ``with``.

    :ivar peak: its highest value, in KiB.
    """

    def __init__(self, pid: int | None) -> None:
        self.peak = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        assert self._pid is not None
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, resident(self._pid))

    def __enter__(self) -> MemoryWatch:
        if self._pid is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        if self._pid is not None:
            self._thread.join()


# --- rounds


@dataclass(frozen=True)
class Row:
    """
    A row of the table.

    :ivar work: the work that was done.
    :ivar ours: its cost for dicomtwist, as text.
    :ivar peer_name: the program that dicomtwist is measured against.
    :ivar peer: the cost for this peer, as text.
    :ivar ratio: the peer's cost divided by ours, as text.
    :ivar needed: the least ratio, or for memory the most, as text; empty if the project sets no bound.
    :ivar good: whether the bound is met, ``None`` if there is none.
    :ivar note: a remark.
    """

    work: str
    ours: str
    peer_name: str
    peer: str
    ratio: str
    needed: str
    good: bool | None
    note: str = ""


class Bench:
    """
    The folders, rounds and sizes that a benchmark works with.

    :param root: a folder for all files; the caller removes it at the very end. No benchmark deletes a file.
    :param rounds: how many times each side is measured.
    :param quick: whether to do only a small part of the work.

    :ivar slow: a remark for the rows of this benchmark if files were created slowly before it began, else empty.
    """

    def __init__(self, root: Path, rounds: int, quick: bool) -> None:
        self.root = root
        self.rounds = rounds
        self.quick = quick
        self._folders = 0
        self._patience = MOST_SETTLING
        self.slow = ""

    def settle(self) -> None:
        """
        Wait until files are created quickly; after :data:`MOST_SETTLING` seconds give up, and set :attr:`slow`.

        For minutes after thousands of files were deleted, by an earlier run or by another process, ext4 passes over their
        inodes one by one, so that creating a file costs 250 us instead of 10. Once given up, later benchmarks do not wait.
        """
        self.slow = ""
        if self.quick:
            return
        deadline = time.monotonic() + self._patience
        while (found := self._seconds_for_a_file()) > PROMPT_FILE:
            if time.monotonic() > deadline:
                self._patience = 0
                self.slow = f"creating a file took {found * 1e6:.0f} us before"
                print(f"{self.slow}, and it stays so", file=sys.stderr, flush=True)
                return
            time.sleep(5)

    def _seconds_for_a_file(self) -> Seconds:
        folder, times = self.fresh(), []
        for number in range(200):
            began = time.perf_counter()
            (folder / str(number)).touch()
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def scaled(self, count: int, quick: int) -> int:
        """Return *count*, or *quick* if only a small part of the work is done."""
        return quick if self.quick else count

    def fresh(self) -> Path:
        """Return a new, empty folder."""
        self._folders += 1
        folder = self.root / f"run-{self._folders}"
        folder.mkdir()
        return folder

    def measure(self, sides: Mapping[str, Side], *, rounds: int | None = None) -> dict[str, list[Seconds]]:
        """Measure all *sides* in turn, after one round that does not count (``--quick`` leaves that round out)."""
        for side in () if self.quick else sides.values():
            side()
        found: dict[str, list[Seconds]] = {name: [] for name in sides}
        for _ in range(rounds or self.rounds):
            for name, side in sides.items():
                os.sync()
                found[name].append(side())
        return found


def compare(
    work: str, ours: list[Seconds], peer_name: str, peer: list[Seconds], needed: float | None = None, note: str = ""
) -> Row:
    """Return the row that compares the times of both sides."""
    ratio = statistics.median(peer) / statistics.median(ours)
    return Row(
        work,
        spread(ours),
        peer_name,
        spread(peer),
        f"{ratio:.2f}",
        "" if needed is None else f"{needed:g}",
        None if needed is None else ratio >= needed,
        note,
    )


def spread(times: list[Seconds]) -> str:
    """Return the median of *times* and, in brackets, the shortest and the longest, as text."""
    median = statistics.median(times)
    digits = 4 if median < 0.1 else 3 if median < 1 else 2
    return f"{median:.{digits}f} ({min(times):.{digits}f}-{max(times):.{digits}f})"
