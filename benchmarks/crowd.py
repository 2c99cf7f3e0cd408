"""
The parts that ``benchmarks.load`` and ``benchmarks.soak`` share: ``twist dicom`` as users run it, and a crowd of clients.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from pydicom.uid import ExplicitVRLittleEndian
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from benchmarks.harness import BenchmarkError, Server
from benchmarks.programs import Program
from dicomtwist import AE
from dicomtwist.ul.items import ProposedContext, UserInformation
from dicomtwist.ul.pdu import AAssociateRQ
from tests.peers import Certificates

reactor: Any = _reactor

VERIFICATION: Final = "1.2.840.10008.1.1"
MR: Final = "1.2.840.10008.5.1.4.1.1.4"
#: How many connections are made at a time. The kernel retries a connection beyond a socket's backlog only a second later.
AT_A_TIME: Final = 50

T = TypeVar("T")


def many_files() -> int:
    """Raise the limit of open files of this process and its children as far as the system allows, and return it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def server(storage: Path, *options: object, secure: tuple[int, Certificates] | None = None) -> Program:
    """
    Return a ``twist dicom`` whose limits admit the whole crowd.

    :param secure: a second port, with TLS, and its certificates.
    """
    ports: list[object] = []
    if secure is not None:
        port, files = secure
        ports = [
            "--port",
            f"dicomtls:{port}:privateKey={files.server_key}:certKey={files.server_cert}:trustRoots={files.ca}"
            ":interface=127.0.0.1",
        ]
    return lambda port: [
        sys.executable,
        *("-m", "twisted", "--log-format", "text", "dicom", "--storage", storage),
        *("--port", f"tcp:{port}:interface=127.0.0.1", *ports),
        *("--max-associations", 5000, "--max-connections", 20000, "--max-connections-per-peer", 20000),
        *options,
    ]


def client() -> AE:
    """Return an AE that requests contexts for Verification and MR Image Storage."""
    ae = AE("CROWD")
    ae.add_requested_context(VERIFICATION)
    ae.add_requested_context(MR, ExplicitVRLittleEndian)
    return ae


async def all_of(work: Iterable[Callable[[], Awaitable[T]]], at_a_time: int = AT_A_TIME) -> list[T]:
    """Call all of *work*, *at_a_time* of them at once, and return their results."""
    tokens = DeferredSemaphore(at_a_time)

    async def run(one: Callable[[], Awaitable[T]]) -> T:
        await tokens.acquire()
        try:
            return await one()
        finally:
            tokens.release()

    results: list[T] = await gatherResults([Deferred.fromCoroutine(run(one)) for one in work], consumeErrors=True)
    return results


async def echo_times(ae: AE, port: int, count: int) -> list[float]:
    """Return how many seconds each of *count* C-ECHOs took, one after the other on one association."""
    times = []
    async with await ae.associate("127.0.0.1", port) as assoc:
        for _ in range(count):
            began = time.perf_counter()
            if not (await assoc.send_c_echo()).is_success:
                raise BenchmarkError("a C-ECHO failed")
            times.append(time.perf_counter() - began)
    return times


def quantile(times: Sequence[float], part: float) -> float:
    """Return the time that a share *part* (0 to 1) of *times* does not exceed."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def pause(seconds: float) -> Deferred[None]:
    """Return a Deferred that fires after *seconds*."""
    return deferLater(reactor, seconds)


# --- misbehaving peers

REQUEST: Final = AAssociateRQ(
    "ANY",
    "HOSTILE",
    (
        ProposedContext(1, VERIFICATION, ("1.2.840.10008.1.2",)),
        ProposedContext(3, MR, ("1.2.840.10008.1.2.1",)),
    ),
    UserInformation(maximum_length=16384),
).encode()


class Raw(Protocol):
    """
    A connection that sends bytes as they are given.

    :ivar answered: fires when the first bytes are received, or when the connection is lost.
    :ivar closed: fires when the connection is lost.
    """

    transport: Any

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.answered: Deferred[None] = Deferred()
        self.closed: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(self._data)

    def dataReceived(self, data: bytes) -> None:
        if not self.answered.called:
            self.answered.callback(None)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        if not self.answered.called:
            self.answered.callback(None)
        self.closed.callback(None)

    def send(self, data: bytes) -> None:
        """Send *data*; does nothing if the connection is lost."""
        if not self.closed.called:
            self.transport.write(data)

    def leave(self) -> Deferred[None]:
        """Reset the connection, and return a Deferred that fires when it is closed."""
        if not self.closed.called:
            self.transport.abortConnection()
        return self.closed


def connect(port: int, data: bytes = b"") -> Deferred[Raw]:
    """Connect and send *data*."""
    connecting: Deferred[Raw] = connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), Raw(data))
    return connecting


async def connections(port: int, count: int, data: bytes = b"") -> list[Raw]:
    """Make *count* such connections."""
    return await all_of([lambda: connect(port, data)] * count)


# --- the state of the server


def open_files(running: Server) -> int:
    """Return how many files and sockets a server has open, without those of its index, of which threads keep some."""
    count = 0
    for link in Path(f"/proc/{running.pid}/fd").iterdir():
        try:
            count += "/.index/" not in os.readlink(link)
        except FileNotFoundError:
            pass
    return count


async def vitals(running: Server, log: Path) -> str:
    """Return the line that a server writes at SIGUSR1."""
    mark = "associations, "
    count = log.read_text(errors="replace").count(mark)
    os.kill(running.pid, signal.SIGUSR1)
    for _ in range(600):
        lines = [line for line in log.read_text(errors="replace").splitlines() if mark in line]
        if len(lines) > count:
            return lines[-1]
        await pause(0.1)
    raise BenchmarkError("the server does not answer SIGUSR1")
