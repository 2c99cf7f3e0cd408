"""
The child processes, as the server sees them: one process does one job at a time.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.pixels.errors import PixelsCrashed, PixelsFailed, PixelsTimeout, error_named
from dicomtwist.pixels.messages import MessageReader, encode_message

__all__ = ["Answer", "Child", "Job"]

#: The time that a process may take to start, in seconds: it imports NumPy and pydicom, on a machine that may be busy.
START_TIMEOUT: Final = 60.0
#: The bytes of what a process writes to its standard error that are kept, to say why it has ended.
_KEPT: Final = 2000

#: The variables of the environment that a child process gets. All others may hold secrets.
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "HOME")

#: The header and the payload of an answer.
Answer = tuple[dict[str, Any], bytes]


class Job:
    """
    A job for a child process.

    :param header: the header of the message.
    :param payload: its payload.
    :param cancel: called with the job when its Deferred is cancelled.
    :param peer: the name of the host that it is for.

    :ivar done: fires with the answer.
    """

    __slots__ = ("done", "header", "payload", "peer")

    def __init__(self, header: dict[str, Any], payload: bytes, cancel: Callable[[Job], None], peer: str = "") -> None:
        self.header, self.payload, self.peer = header, payload, peer
        self.done: Deferred[Answer] = Deferred(lambda _: cancel(self))

    def succeed(self, answer: Answer) -> None:
        """Fire the Deferred, unless it was cancelled."""
        if not self.done.called:
            header, payload = answer
            if "error" in header:
                self.done.errback(error_named(str(header["error"]), str(header.get("words", ""))))
            elif "errno" in header:
                self.done.errback(OSError(header["errno"], header.get("words", "")))
            else:
                self.done.callback((header, payload))

    def fail(self, error: Exception) -> None:
        """Fail the Deferred, unless it was cancelled."""
        if not self.done.called:
            self.done.errback(error)


class _Connection(Protocol):
    """The server's end of the socket."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._reader = MessageReader()

    def dataReceived(self, data: bytes) -> None:
        try:
            for header, payload in self._reader.feed(data):
                self._child.answered(header, payload)
        except ValueError:
            self._child.kill(PixelsCrashed("the process sent something else than an answer"))


class _ConnectionFactory(Factory):
    noisy = False

    def __init__(self, child: Child) -> None:
        self._child = child

    def buildProtocol(self, addr: IAddress | None) -> _Connection:
        return _Connection(self._child)


class Child(ProcessProtocol):
    """
    One child process.

    :param reactor: the reactor.
    :param memory: the bytes of address space that it may have.
    :param timeout: the time for one job, in seconds.
    :param on_idle: called with the child and a job when it has done that.
    :param on_end: called with the child when it has ended, and with the job that it has not done.

    :ivar job: its job, ``None`` if it is idle.
    :ivar jobs: the number of jobs that it was given.
    :ivar pid: its process ID.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        memory: int,
        timeout: float,
        on_idle: Callable[[Child, Job], None],
        on_end: Callable[[Child, Job | None], None],
    ) -> None:
        self._reactor, self._timeout = reactor, timeout
        self._on_idle, self._on_end = on_idle, on_end
        self._is_ready = self._is_closed = False
        self._timer: Any = None
        self._why: PixelsFailed | None = None
        self._said = b""
        self.job: Job | None = None
        self.jobs = 0
        self.idle_timer: Any = None
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            command = [
                sys.executable,
                "-P",
                "-m",
                "dicomtwist.pixels.child.worker",
                str(memory),
                str(max(1, round(timeout))),
            ]
            environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
            # One thread each: several processes share the processors, and threads take address space.
            environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            process = reactor.spawnProcess(
                self, sys.executable, command, environment, childFDs={0: theirs.fileno(), 1: "r", 2: "r"}
            )
            self.pid: int = process.pid
            self._process = process
            # The reactor's connection has a copy of the descriptor.
            self._connection = reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, _ConnectionFactory(self))

    def give(self, job: Job) -> None:
        """Give the child its next job; it has none now."""
        self.job = job
        self.jobs += 1
        self._set_timer(self._timeout if self._is_ready else START_TIMEOUT + self._timeout)
        self._connection.writeSequence(encode_message(job.header, job.payload))

    def answered(self, header: dict[str, Any], payload: bytes) -> None:
        """Take an answer of the process."""
        if "ready" in header:
            self._is_ready = True
            if self.job is not None:
                self._set_timer(self._timeout)
            return
        job, self.job = self.job, None
        self._set_timer(None)
        if job is None:
            self.kill(PixelsCrashed("the process sent an answer to no job"))
            return
        job.succeed((header, payload))
        self._on_idle(self, job)

    def _set_timer(self, seconds: float | None) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if seconds is not None:
            self._timer = self._reactor.callLater(seconds, self._expired)

    def _expired(self) -> None:
        self._timer = None
        self.kill(PixelsTimeout(f"the work took more than {self._timeout:g} s"))

    def close(self) -> None:
        """Let the process end, which it does when it has done its job."""
        if not self._is_closed:
            self._is_closed = True
            self._connection.loseConnection()

    def kill(self, why: PixelsFailed) -> None:
        """
        Kill the process.

        :param why: the failure of its job.
        """
        if self._why is None:
            self._why = why
        try:
            self._process.signalProcess("KILL")
        except Exception:
            pass  # it has ended by itself

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._said = (self._said + data)[-_KEPT:]

    def processEnded(self, reason: Failure) -> None:
        self._set_timer(None)
        if self.idle_timer is not None and self.idle_timer.active():
            self.idle_timer.cancel()
        self._connection.abortConnection()
        error = self._why or self._describe(reason.value)
        job, self.job = self.job, None
        if not self._is_closed or job is not None:
            self.log.error(
                "a process that decodes images has ended: {error} {said}",
                error=error,
                said=self._said.decode("ascii", "replace").strip().rpartition("\n")[2][:300],
            )
        self._on_end(self, job)
        if job is not None:
            job.fail(error)

    def _describe(self, ended: Any) -> PixelsFailed:
        number = getattr(ended, "signal", None)
        if number == signal.SIGXCPU:
            return PixelsTimeout(f"the work took more than {self._timeout:g} s of the processor")
        if number is not None:
            return PixelsCrashed(f"the process was ended by the signal {number}")
        return PixelsCrashed(f"the process ended with the exit status {getattr(ended, 'exitCode', None)}")
