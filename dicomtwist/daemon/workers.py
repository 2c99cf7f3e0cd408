"""
Worker processes behind the ports of one server: starting, watching and stopping them.

The supervisor opens the sockets, reconciles files and index, and does not accept connections. Its workers inherit the
sockets, and any free worker accepts a connection. A worker that ends is replaced. If the supervisor ends, for whatever reason,
its workers shut down in order.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from signal import SIGTERM, SIGUSR1, SIGUSR2
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.error import ProcessExitedAlready, ReactorNotRunning
from twisted.internet.protocol import ProcessProtocol, Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.daemon.processes.siblings import Hub, Lines, Spoke, encode
from dicomtwist.runtime.backoff import Backoff

__all__ = ["WorkerSpec", "Workers", "worker_command"]

#: The largest number of workers.
MAX_WORKERS: Final = 64
#: The delay before a worker that ended is replaced, in seconds: the first and the longest; it doubles each time.
FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 60.0
_BACKOFF: Final = Backoff(FIRST_DELAY, LONGEST_DELAY)
#: If a worker has accepted connections for this time, in seconds, the delay starts again at the first one.
STEADY_AFTER: Final = 60.0
#: The time, in seconds, that a worker has to end after the grace of its associations, before it is killed.
KILL_DELAY: Final = 6.0

#: The environment variable with the specification of a worker.
WORKER_VARIABLE: Final = "DICOMTWIST_WORKER"
#: File descriptors of a worker: a pipe to the supervisor, a pipe from it, which is closed when the supervisor ends, the lock of
#: the archive, and from there on the sockets. Each process asks the others through the pipes, see
#: :mod:`dicomtwist.daemon.processes.siblings`.
_TELLS, _LIVES, _LOCK, _SOCKETS = 3, 4, 5, 6

#: For type checkers it is that of Windows, which has other arguments.
_StandardIO: Any = StandardIO


@dataclass(frozen=True)
class WorkerSpec:
    """
    The specification of a worker, which the supervisor passes to it.

    :ivar number: the number of the worker, from 1 on.
    :ivar ports: the endpoint strings.
    :ivar ahead: the number of its first arguments that are the options of the configuration file which are in force. The file
        may have changed since it was read; a worker that starts uses it only for peers, rules and users.
    """

    number: int
    ports: tuple[str, ...]
    ahead: int = 0

    @property
    def name(self) -> str:
        """The name of the worker among the processes that share the archive."""
        return f"worker-{self.number}"

    @property
    def lock(self) -> int:
        """The file descriptor of the lock of the archive."""
        return _LOCK

    @property
    def sockets(self) -> list[int]:
        """The file descriptors of the sockets, one for each of the endpoint strings."""
        return [_SOCKETS + index for index in range(len(self.ports))]

    def environment(self) -> dict[str, str]:
        """Return the environment variables that :meth:`taken` reads."""
        return {WORKER_VARIABLE: json.dumps({"number": self.number, "ports": self.ports, "ahead": self.ahead})}

    @classmethod
    def taken(cls, environment: MutableMapping[str, str]) -> WorkerSpec | None:
        """Remove the specification of this process from its environment and return it; ``None`` if it is not a worker."""
        text = environment.pop(WORKER_VARIABLE, None)
        if text is None:
            return None
        told = json.loads(text)
        return cls(int(told["number"]), tuple(told["ports"]), int(told["ahead"]))

    def begin(self, reactor: Any, link: WorkerLink) -> None:
        """
        Report to the supervisor that connections are accepted, and stop when the supervisor ends.

        :param link: the connection to the supervisor, which begins here.
        """
        _StandardIO(link, stdin=_LIVES, stdout=_TELLS, reactor=reactor)


class WorkerLink(Protocol):
    """
    The pipes of a worker to and from the supervisor. When they are closed, the supervisor has ended.

    :param reactor: the reactor; it is stopped then.

    :ivar siblings: the other processes.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.siblings = Spoke(reactor, self._write)

    def connectionMade(self) -> None:
        self._write(encode("ready"))

    def _write(self, data: bytes) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.write(data)

    def dataReceived(self, data: bytes) -> None:
        self.siblings.feed(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Stop the reactor, because the supervisor has ended; the reactor calls this also when it stops itself."""
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            pass


def worker_command(options: Mapping[str, Any] | None, arguments: Sequence[str]) -> list[str]:
    """
    Return the command that runs a worker.

    :param options: the options of ``twist`` itself, for the log.
    :param arguments: the arguments of ``twist dicom``.
    """
    # A worker must not import from the working directory if this process does not.
    command = [sys.executable, *([] if {"", os.getcwd()} & set(sys.path) else ["-P"]), "-m", "twisted"]
    if options is not None:
        file = getattr(options["logFile"], "name", "<stdout>")
        command += [
            f"--reactor={options['reactorName']}",
            f"--log-level={options['logLevel'].name}",
            f"--log-format={options['logFormat']}",
            f"--log-file={ {'<stdout>': '-', '<stderr>': '+'}.get(file, file) }",
        ]
    return [*command, "dicom", *arguments]


class _Worker(ProcessProtocol):
    """
    One worker process.

    :ivar pid: its process ID.
    :ivar ready_since: the time from which it accepts connections, ``None`` before.
    :ivar late: the signals that it gets when it is ready: before, it may not handle them yet.
    :ivar ended: fires when the process has ended.
    """

    def __init__(self, workers: Workers, number: int) -> None:
        self._workers = workers
        self.number = number
        self.ready_since: float | None = None
        self.late: list[str | int] = []
        self.ended: Deferred[None] = Deferred()
        self.pid = 0
        self._lines = Lines(self._received)

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self.pid = transport.pid

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        try:
            self._lines.feed(data)
        except (ValueError, KeyError):
            self._workers.log.failure("worker {number} sends what is no message", number=self.number)
            self.signal("TERM")

    def _received(self, message: Any) -> None:
        if message == "ready":
            self._ready()
        else:
            self._workers.siblings.received(self, message)

    def write(self, data: bytes) -> None:
        """Write bytes to the process."""
        transport: Any = self.transport
        transport.writeToChild(_LIVES, data)

    def _ready(self) -> None:
        self.ready_since = self._workers.reactor.seconds()
        self._workers.log.info("worker {number} is ready: process {pid}", number=self.number, pid=self.pid)
        late, self.late = self.late, []
        for name in late:
            self.signal(name)
        self._workers.is_ready()

    def signal(self, name: str | int) -> None:
        """
        Send the process a signal; nothing happens if it has ended.

        :param name: ``"HUP"``, ``"TERM"`` or ``"KILL"``, or the number of another signal: Twisted knows no other names.
        """
        transport: Any = self.transport
        try:
            transport.signalProcess(name)
        except ProcessExitedAlready:
            pass

    def processEnded(self, reason: Failure) -> None:
        self._workers.worker_ended(self, reason)
        self.ended.callback(None)


class Workers:
    """
    The worker processes of a server.

    :param reactor: the reactor that spawns them.
    :param count: the number of workers.
    :param command: returns the command that runs a worker, and how many of its arguments are ``ahead``, see
        :class:`WorkerSpec`.
    :param ports: the endpoint strings.
    :param sockets: returns the file descriptor of the lock of the archive, followed by those of the sockets.
    :param grace: the time for their associations to finish at a stop, in seconds; ``None`` for no limit.
    :param clean_up: called with the name of a worker that ended; it is replaced when the returned Deferred has fired.
    :param on_ready: called when the first worker is ready.

    :ivar grace: that time, which may change.
    :ivar siblings: the workers, as the supervisor asks them.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        count: int,
        command: Callable[[], tuple[Sequence[str], int]],
        ports: Sequence[str],
        sockets: Callable[[], Sequence[int]],
        *,
        grace: float | None,
        clean_up: Callable[[str], Deferred[Any]],
        on_ready: Callable[[], object] = lambda: None,
    ) -> None:
        self._on_ready = on_ready
        self._has_ready = False
        self.reactor = reactor
        self._command = command
        self._specs = {number: WorkerSpec(number, tuple(ports)) for number in range(1, count + 1)}
        self._sockets = sockets
        self.grace = grace
        self._clean_up = clean_up
        self._workers: dict[int, _Worker] = {}
        # How often in a row each worker has ended before STEADY_AFTER seconds had passed.
        self._failures = dict.fromkeys(self._specs, 0)
        self._waiting: dict[int, Any] = {}
        self._cleaning: dict[int, Deferred[Any]] = {}
        self._running = False
        self._told = False
        self.siblings = Hub(reactor, "supervisor", self._members)

    def _members(self) -> dict[str, _Worker | None]:
        """Return the workers by their names, ``None`` for one that is not ready."""
        ready = {number: one for number, one in self._workers.items() if one.ready_since is not None}
        return {spec.name: ready.get(number) for number, spec in self._specs.items()}

    @property
    def pids(self) -> list[int]:
        """The process IDs of the running workers."""
        return [worker.pid for worker in self._workers.values()]

    def start(self) -> None:
        """Start all workers."""
        self._running = True
        for number in self._specs:
            self._start(number)

    def reload(self) -> None:
        """Make all workers reload; one that is not ready yet has perhaps read the files already, so it reloads when it is."""
        self._signal("HUP")

    def log_vitals(self) -> None:
        """Make each worker log its vital signs."""
        self._signal(SIGUSR1)

    def reopen_logs(self) -> None:
        """Make each worker open its log file again."""
        self._signal(SIGUSR2)

    def _signal(self, name: str | int) -> None:
        for worker in self._workers.values():
            if worker.ready_since is not None:
                worker.signal(name)
            elif name not in worker.late:
                worker.late.append(name)

    def stop(self) -> Deferred[None]:
        """
        Stop all workers: associations finish, those that are left are aborted, and a worker that does not end then is killed.

        :returns: a Deferred that fires with ``None`` when all have ended.
        """
        self._running = False
        for call in self._waiting.values():
            call.cancel()
        self._waiting.clear()
        workers = list(self._workers.values())
        late = [
            self.reactor.callLater(self.grace + KILL_DELAY, self._kill, worker)
            for worker in workers
            if self.grace is not None
        ]
        for worker in workers:
            worker.signal("TERM")

        def ended(_: Any) -> Deferred[Any]:
            for call in late:
                if call.active():
                    call.cancel()
            return DeferredList(list(self._cleaning.values()))

        return DeferredList([worker.ended for worker in workers]).addCallback(ended).addCallback(lambda _: None)

    # --- for the workers

    def is_ready(self) -> None:
        """Take note that one more worker accepts connections."""
        if not self._has_ready:
            self._has_ready = True
            self._on_ready()
        ready = sum(worker.ready_since is not None for worker in self._workers.values())
        if ready == len(self._specs) and not self._told:
            self._told = True
            self.log.info("all {count} workers are ready", count=ready)

    def worker_ended(self, worker: _Worker, reason: Failure) -> None:
        """Replace *worker*, which has ended, unless all workers stop."""
        number = worker.number
        del self._workers[number]
        ended: Any = reason.value
        how = f"by signal {ended.signal}" if ended.signal else f"with status {ended.exitCode}"
        clean = ended.exitCode == 0 and not ended.signal
        if self._running or not (clean or ended.signal == SIGTERM):
            log = self.log.info if clean else self.log.error
            log("worker {number}, process {pid}, ended {how}", number=number, pid=worker.pid, how=how)
        if worker.ready_since is not None and self.reactor.seconds() - worker.ready_since >= STEADY_AFTER:
            self._failures[number] = 0
        cleaning = succeed(None) if clean else self._clean_up(self._specs[number].name)
        cleaning.addErrback(
            lambda why: self.log.failure("the clean-up after worker {number} failed", why, number=number)
        )
        self._cleaning[number] = cleaning.addCallback(lambda _: self._replace(number))

    def _replace(self, number: int) -> None:
        self._cleaning.pop(number, None)
        if self._running:
            self._failures[number] += 1
            delay = _BACKOFF(self._failures[number])
            self._waiting[number] = self.reactor.callLater(delay, self._start, number)

    def _start(self, number: int) -> None:
        self._waiting.pop(number, None)
        command, ahead = self._command()
        spec = replace(self._specs[number], ahead=ahead)
        worker = self._workers[number] = _Worker(self, number)
        lock, *sockets = self._sockets()
        with open(os.devnull, "rb") as nothing:
            descriptors: dict[int, Any] = {0: nothing.fileno(), 1: 1, 2: 2, _TELLS: "r", _LIVES: "w", _LOCK: lock}
            descriptors.update(zip(spec.sockets, sockets, strict=True))
            environment = {**os.environ, **spec.environment()}
            self.reactor.spawnProcess(worker, sys.executable, list(command), environment, childFDs=descriptors)

    def _kill(self, worker: _Worker) -> None:
        self.log.error(
            "worker {number}, process {pid}, did not stop in time: killed", number=worker.number, pid=worker.pid
        )
        worker.signal("KILL")
