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

from twisted.internet.defer import Deferred, gatherResults

from dicomtwist.audit.delivery import Datagrams, Delivery, Stream
from dicomtwist.audit.spool import Spool
from dicomtwist.audit.syslog import syslog_message
from dicomtwist.audit.trail import Trail
from dicomtwist.endpoints import client_endpoint
from dicomtwist.runtime.executors import Executor
from dicomtwist.runtime.lines.line_file import LineFile
from dicomtwist.runtime.lines.line_writer import LineWriter
from dicomtwist.runtime.networks import is_address

__all__ = ["AuditJournal", "check_target", "make_audit"]

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

    :param writer: writes the messages.
    :param deliveries: deliver them from the disk; none if they go to a file.
    :param trail: the trail.
    :param tells_activity: whether this process tells that the application starts and stops: one of several does.

    :ivar trail: the trail.
    """

    name = "audit"

    def __init__(
        self, writer: LineWriter[Job], deliveries: Iterable[Delivery], trail: Trail, *, tells_activity: bool
    ) -> None:
        self.trail = trail
        self._writer = writer
        self._deliveries = list(deliveries)
        self._tells_activity = tells_activity

    @property
    def dropped(self) -> int:
        """The number of messages that were dropped."""
        return self._writer.dropped

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

    def reopen(self) -> None:
        """Open the file again."""
        self._writer.reopen()

    def stop(self) -> Deferred[Any]:
        """Write what waits, and send it. The Deferred fires when that is done, or has failed: the rest waits for a start."""
        if self._tells_activity:
            self.trail.stopped()
        written = self._writer.stop()
        return written.addCallback(lambda _: gatherResults([one.stop() for one in self._deliveries]))


class _WakingSpool(Spool):
    """A spool whose messages are delivered as soon as they are in it."""

    wake: Callable[[], Any]

    def append(self, lines: bytes) -> None:
        super().append(lines)
        self.wake()


def make_audit(options: Any, archive_server: Any) -> AuditJournal:
    """Return the audit trail of a server, as its options say."""
    ae, target = options.ae, str(options["audit"])
    executor: Executor = ae.executors.records
    worker = options.worker
    is_first = worker is None
    process = worker.name if worker else "supervisor" if options["workers"] > 1 else "main"
    deliveries: list[Delivery] = []
    if _ENDPOINT.match(target) or target.startswith("udp:"):
        root = options.archive.root / SPOOLS
        spool = _WakingSpool(root / process)
        delivery = _delivery(ae.reactor, executor, spool, target)
        deliveries.append(delivery)
        spool.wake = lambda: executor.call_in_reactor(delivery.wake)
        if is_first:
            deliveries += [
                _delivery(ae.reactor, executor, Spool(folder), target) for folder in _left_behind(root, options)
            ]
        writer: LineWriter[Job] = LineWriter(executor, spool, _syslog_lines, "audit messages")
    else:
        writer = LineWriter(executor, LineFile(target), _lines, "audit messages")
    source = options["audit-source"] or options["ae-title"]
    trail = Trail(source, options["ae-title"], options.archive, archive_server.access, writer)
    for event, handler, *arguments in trail.handlers:
        ae.bind(event, handler, *arguments)
    archive_server.observers.append(trail.identifier_received)
    archive_server.deletion.listeners.append(trail.deleted)
    return AuditJournal(writer, deliveries, trail, tells_activity=is_first)


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
