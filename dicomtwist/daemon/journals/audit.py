"""
``--audit``: the audit trail of a server, to a file or to a syslog server.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred, gatherResults, succeed

from dicomtwist.audit.delivery import Datagrams, Delivery, Stream
from dicomtwist.audit.spool import Spool
from dicomtwist.audit.syslog import syslog_message
from dicomtwist.audit.trail import Trail
from dicomtwist.endpoints import client_endpoint
from dicomtwist.runtime.executors import Executor
from dicomtwist.runtime.lines.line_file import LineFile
from dicomtwist.runtime.lines.line_writer import LineWriter
from dicomtwist.runtime.networks import is_address

__all__ = ["AuditJournal", "check_target", "end_audit", "make_audit"]

#: The folder of the spools in that of the archive.
SPOOLS: Final = ".audit"
#: Matches endpoint strings; anything else is a file.
_ENDPOINT: Final = re.compile(r"(?:dicomtls|tls|tcp|tcp6|unix):")
_DATAGRAMS: Final = re.compile(r"udp:(\[?[0-9A-Fa-f:.]+\]?):([0-9]{1,5})")

#: Makes messages, in a thread.
Job = Callable[[], list[bytes]]


def check_target(reactor: Any, text: str) -> None:
    """
    Check where audit messages are to go.

    :raises ValueError: they cannot go there; the message says why.
    """
    if _ENDPOINT.match(text):
        client_endpoint(reactor, text)
    elif text.startswith("udp:"):
        _address(text)
    elif not Path(text).absolute().parent.is_dir() or Path(text).is_dir():
        raise ValueError(
            f"{text} is neither an endpoint such as dicomtls:HOST:6514:trustRoots=ca.pem nor a file in a folder"
        )


def _address(text: str) -> tuple[str, int]:
    found = _DATAGRAMS.fullmatch(text)
    host = "" if found is None else found[1].strip("[]")
    if found is None or not is_address(host):
        raise ValueError(f"{text!r}: write udp:ADDRESS:PORT, with an address and no host name")
    return host, int(found[2])


class AuditJournal:
    """
    The audit trail with what writes it.

    :param places: makes what messages are written to.
    :param target: the place that they go to.
    :param trail: makes the trail that writes them.
    :param tells_activity: whether this process tells that the application starts and stops: one of several does.

    :ivar trail: the trail.
    """

    name = "audit"

    def __init__(
        self, places: _Places, target: str, trail: Callable[[LineWriter[Job]], Trail], *, tells_activity: bool
    ) -> None:
        self._places = places
        self._target = target
        self._writer = places.writer(target)
        self._deliveries = places.deliveries(target)
        self.trail = trail(self._writer)
        self._tells_activity = tells_activity
        self._dropped = 0
        self._is_stopped = False
        self._changing: Deferred[Any] = succeed(None)

    @property
    def dropped(self) -> int:
        """The number of messages that were dropped."""
        return self._dropped + self._writer.dropped

    @property
    def waiting(self) -> int | None:
        """The bytes that wait on the disk to be delivered; ``None`` for a file."""
        if not self._deliveries:
            return None
        return sum(one.waiting for one in self._deliveries)

    def start(self) -> None:
        """Begin to deliver, and note that the application has started."""
        for delivery in self._deliveries:
            delivery.start()
        if self._tells_activity:
            self.trail.started()

    def change(self, target: str, source: str) -> None:
        """
        Write further messages to another place.

        Messages that wait on the disk for a syslog server are delivered to the new one. If there is none, because messages go
        to a file from now on, they are delivered to the former one, until the server stops. An association that is open has
        its messages at the new place.

        :param target: the place.
        :param source: the name of the source of the trail.
        """
        self.trail.source = source
        if target == self._target:
            return
        former, is_remote = self._target, _is_remote(target)
        self._target = target
        if not (_is_remote(former) and is_remote):
            writer, self._writer = self._writer, self._places.writer(target)
            self._dropped += writer.dropped
            self.trail.writer = self._writer
            writer.stop()
        if is_remote:
            deliveries, self._deliveries = self._deliveries, self._places.deliveries(target)
            self._changing.addCallback(lambda _: gatherResults([one.stop() for one in deliveries]))
            self._changing.addCallback(self._begin, self._deliveries)

    def _begin(self, _: object, deliveries: Iterable[Delivery]) -> None:
        """Begin to deliver: what delivered before has ended, since both would read the same messages."""
        for one in deliveries:
            if not self._is_stopped and one in self._deliveries:
                one.start()

    def reopen(self) -> None:
        """Open the file again."""
        self._writer.reopen()

    def stop(self) -> Deferred[Any]:
        """Write what waits, and send it. The Deferred fires when that is done, or has failed: the rest waits for a start."""
        self._is_stopped = True
        self.trail.flush()
        if self._tells_activity:
            self.trail.stopped()
        written = self._writer.stop()
        written.addCallback(lambda _: self._changing)
        return written.addCallback(lambda _: gatherResults([one.stop() for one in self._deliveries]))


class _Places:
    """
    Makes what messages are written to.

    :param options: the options of the server at its start.
    """

    def __init__(self, options: Any) -> None:
        worker = options.worker
        self._reactor = options.ae.reactor
        self._executor: Executor = options.ae.executors.records
        self._root = options.archive.root / SPOOLS
        process = worker.name if worker else "supervisor" if options["workers"] > 1 else "main"
        self._spool = _WakingSpool(self._root / process)
        self._left_behind = _left_behind(self._root, options) if worker is None else []

    def writer(self, target: str) -> LineWriter[Job]:
        """Return what writes messages that go to *target*."""
        if _is_remote(target):
            return LineWriter(self._executor, self._spool, _syslog_lines, "audit messages")
        return LineWriter(self._executor, LineFile(target), _lines, "audit messages")

    def deliveries(self, target: str) -> list[Delivery]:
        """Return what delivers messages to *target*, not at work; nothing for a file."""
        if not _is_remote(target):
            return []
        delivery = self._delivery(self._spool, target)
        self._spool.wake = lambda: self._executor.call_in_reactor(delivery.wake)
        return [delivery, *(self._delivery(Spool(folder), target) for folder in self._left_behind)]

    def _delivery(self, spool: Spool, target: str) -> Delivery:
        return _delivery(self._reactor, self._executor, spool, target)


def _is_remote(target: str) -> bool:
    return bool(_ENDPOINT.match(target)) or target.startswith("udp:")


class _WakingSpool(Spool):
    """A spool whose messages are delivered as soon as they are in it."""

    wake: Callable[[], Any]

    def append(self, lines: bytes) -> None:
        super().append(lines)
        self.wake()


def make_audit(options: Any, archive_server: Any, target: str, source: str) -> AuditJournal:
    """
    Return the audit trail of a server.

    :param options: the options of the server at its start.
    :param target: where messages go.
    :param source: the name of the source of the trail.
    """
    ae = options.ae

    def trail(writer: LineWriter[Job]) -> Trail:
        return Trail(source, ae.ae_title, options.archive, archive_server.access, writer, ae.reactor)

    journal = AuditJournal(_Places(options), target, trail, tells_activity=options.worker is None)
    for event, handler, *arguments in journal.trail.handlers:
        ae.bind(event, handler, *arguments)
    archive_server.observers.append(journal.trail.identifier_received)
    archive_server.deletion.listeners.append(journal.trail.deleted)
    return journal


def end_audit(journal: AuditJournal, ae: Any, archive_server: Any) -> None:
    """End the audit trail of a server that goes on."""
    for event, handler, *_ in journal.trail.handlers:
        ae.unbind(event, handler)
    archive_server.observers.remove(journal.trail.identifier_received)
    archive_server.deletion.listeners.remove(journal.trail.deleted)
    journal.stop()


def _left_behind(root: Path, options: Any) -> list[Path]:
    """Return the spools of processes that no longer exist, since the server was started with another number of workers."""
    count = options["workers"]
    own = {"supervisor", *(f"worker-{number}" for number in range(1, count + 1))} if count > 1 else {"main"}
    return [folder for folder in sorted(root.glob("*")) if folder.is_dir() and folder.name not in own]


def _delivery(reactor: Any, executor: Executor, spool: Spool, target: str) -> Delivery:
    transport: Stream | Datagrams
    if target.startswith("udp:"):
        transport = Datagrams(reactor, *_address(target))
    else:
        transport = Stream(lambda: client_endpoint(reactor, target), ":".join(target.split(":")[:3]))
    return Delivery(reactor, executor, spool, transport)


def _lines(job: Job) -> bytes:
    return b"".join(one + b"\n" for one in job())


def _syslog_lines(job: Job) -> bytes:
    now, host, process = datetime.now(UTC), socket.gethostname(), str(os.getpid())
    return b"".join(syslog_message(one, now, host, "dicomtwist", process) + b"\n" for one in job())
