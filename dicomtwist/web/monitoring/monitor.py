"""
The collection of the metrics of a process, and its health.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, succeed

from dicomtwist import __version__
from dicomtwist.ae.monitor import ReactorLag, resident_memory
from dicomtwist.ae.server import Server
from dicomtwist.archive.server import ArchiveServer
from dicomtwist.runtime.figures.counts import Counts, Durations
from dicomtwist.runtime.figures.network import OperationFigures
from dicomtwist.web.http.site import Site
from dicomtwist.web.monitoring.definitions import Sample, Snapshot

__all__ = ["Monitor", "Monitored"]

#: The time that the file system of the archive has to answer, in seconds; then the metrics go without it.
PATIENCE: Final = 2.0
#: The time for which an answer of the file system is used again, in seconds.
FRESH: Final = 1.0


class MonitoredJournal(Protocol):
    """
    A journal of a server.

    :ivar name: its name.
    """

    name: str

    @property
    def dropped(self) -> int:
        """The number of entries that were dropped."""

    @property
    def waiting(self) -> int | None:
        """The bytes that wait to be delivered; ``None`` if nothing is delivered."""


class Monitored(Protocol):
    """
    The service of a server.

    :ivar lag: the lag of its reactor.
    :ivar server: the server of DIMSE, ``None`` while nothing listens.
    """

    lag: ReactorLag
    server: Server | None

    @property
    def journals(self) -> Sequence[MonitoredJournal]:
        """Its journals."""


@dataclass(frozen=True, slots=True)
class _Disk:
    """Sizes of a file system in bytes; ``None`` if it did not answer."""

    at: float
    free: int | None = None
    size: int = 0


@dataclass
class Monitor:
    """
    The metrics and the health of one process.

    :ivar archive_server: the archive with its services.
    :ivar service: the service, which is set when it is made.
    :ivar site: the site of HTTP, which is set when it is made.
    :ivar forwarding: returns the metrics of forwarding, ``None`` in a process that does not deliver.
    :ivar ask_others: asks the other processes that share the archive for what is named, such as ``"metrics"``: a Deferred with
        an answer by the name of each process, ``None`` for one that did not answer in time.
    :ivar name: the name of this process among them.
    """

    archive_server: ArchiveServer
    service: Monitored | None = None
    site: Site | None = None
    forwarding: Callable[[], Awaitable[Snapshot]] | None = None
    ask_others: Callable[[str], Deferred[Mapping[str, Any]]] = lambda what: succeed({})
    name: str = "main"
    _started: float = field(default_factory=time, init=False)
    _disk: _Disk = field(default=_Disk(-1e9), init=False)
    _measuring: Deferred[_Disk] | None = field(default=None, init=False)

    # --- health

    async def problems(self) -> list[str]:
        """Return why the process should get no work now, in words; empty if it is ready."""
        await self._measure()
        return self._problems()

    def _problems(self) -> list[str]:
        archive, found = self.archive_server.archive, []
        if self.site is not None and self.site.unavailable:
            found.append(self.site.unavailable)
        elif self.service is None or self.service.server is None:
            found.append("the server is starting or stopping")
        if archive.lacks_room:
            found.append("there is no room to store instances")
        disk = self._disk
        if disk.free is None:
            found.append("the file system of the archive does not answer")
        elif disk.free < archive.store.min_free:
            found.append("the disk is full")
        return found

    def _measure(self) -> Deferred[Any]:
        """Measure the disk, unless it was measured just now. The Deferred fires after :data:`PATIENCE` at the latest."""
        executor = self.archive_server.ae.executors.monitoring
        now = executor.seconds()
        if now - self._disk.at < FRESH:
            return succeed(None)
        if self._measuring is None:
            measuring = self._measuring = executor.run(self._ask_disk, now)
            measuring.addBoth(self._measured)
        done: Deferred[Any] = Deferred()
        late = executor.call_later(PATIENCE, self._late, done, now)
        self._measuring.addCallback(_pass_on, done, late)
        return done

    def _ask_disk(self, now: float) -> _Disk:
        try:
            usage = shutil.disk_usage(self.archive_server.archive.root)
        except OSError:
            return _Disk(now)
        return _Disk(now, usage.free, usage.total)

    def _measured(self, found: Any) -> None:
        self._measuring = None
        if isinstance(found, _Disk):
            self._disk = found

    def _late(self, done: Deferred[Any], now: float) -> None:
        if not done.called:
            self._disk = _Disk(now, None, self._disk.size)
            done.callback(None)

    # --- metrics

    async def collect(self) -> Snapshot:
        """Return the metrics of this process."""
        await self._measure()
        found: Snapshot = {
            "dicomtwist_build_info": [[__version__, 1]],
            "dicomtwist_process_up": [[1]],
            "dicomtwist_ready": [[int(not self._problems())]],
        }
        for part in (self._process(), self._network(), self._http(), self._archive(), self._executors()):
            found.update(part)
        if self.forwarding is not None:
            found.update(await self.forwarding())
        return found

    async def collect_all(self) -> dict[str, Snapshot]:
        """Return the metrics of all processes by their names; one that has not answered has only ``dicomtwist_process_up``."""
        asking = self.ask_others("metrics")
        found = {self.name: await self.collect()}
        for name, snapshot in (await asking).items():
            found[name] = {"dicomtwist_process_up": [[0]]} if snapshot is None else snapshot
        return found

    def _process(self) -> Snapshot:
        times = os.times()
        return {
            "dicomtwist_process_start_time_seconds": [[self._started]],
            "dicomtwist_process_resident_memory_bytes": [[resident_memory()]],
            "dicomtwist_process_cpu_seconds_total": [[sum(times[:4])]],
            "dicomtwist_process_open_fds": [[_open_files()]],
            "dicomtwist_process_max_fds": [[resource.getrlimit(resource.RLIMIT_NOFILE)[0]]],
        }

    def _network(self) -> Snapshot:
        ae = self.archive_server.ae
        figures, open_ones = ae.figures, ae.connections
        established = [one for one in open_ones if one.is_established]
        found: Snapshot = {
            "dicomtwist_associations_total": _counts(figures.associations),
            "dicomtwist_associations_open": [
                [role, sum(one.mode == role for one in established)] for role in ("acceptor", "requestor")
            ],
            "dicomtwist_association_seconds": _durations(figures.lifetimes),
            "dicomtwist_connections_open": [["dimse", len(open_ones)]],
            "dicomtwist_received_bytes_total": [
                ["dimse", figures.bytes_received + sum(one.bytes_received for one in open_ones)]
            ],
            "dicomtwist_sent_bytes_total": [["dimse", figures.bytes_sent + sum(one.bytes_sent for one in open_ones)]],
            **_operations("dicomtwist_dimse_operations_total", "dicomtwist_dimse_seconds", figures.performed),
            **_operations("dicomtwist_dimse_invoked_total", "dicomtwist_dimse_invoked_seconds", figures.invoked),
        }
        if self.service is not None:
            lag = self.service.lag
            found["dicomtwist_reactor_lag_seconds"] = [sample[1:] for sample in _durations(lag.distribution)]
            found["dicomtwist_reactor_lag_maximum_seconds"] = [[lag.maximum]]
        access = self.archive_server.access
        if access is not None:
            found["dicomtwist_refused_total"] = _counts(access.refusals)
        if self.site is not None:
            http = self.site.figures
            found["dicomtwist_connections_open"].append(["http", len(self.site.connections)])
            found["dicomtwist_received_bytes_total"].append(["http", http.bytes_received])
            found["dicomtwist_sent_bytes_total"].append(["http", http.bytes_sent])
        return found

    def _http(self) -> Snapshot:
        if self.site is None:
            return {}
        figures = self.site.figures
        return {
            "dicomtwist_http_requests_total": _counts(figures.counts),
            "dicomtwist_http_seconds": _durations(figures.durations),
        }

    def _archive(self) -> Snapshot:
        server, disk = self.archive_server, self._disk
        archive = server.archive
        found: Snapshot = {
            "dicomtwist_instances_total": _counts(server.ingest.outcomes),
            "dicomtwist_inbox_instances": [[archive.unindexed]],
            "dicomtwist_inbox_unsettled_instances": [[archive.unsettled]],
            "dicomtwist_deleted_instances_total": [[server.deletion.instances]],
            "dicomtwist_deleted_bytes_total": [[server.deletion.freed]],
            "dicomtwist_deletions_unfinished": [[server.deletion.unpurged]],
            "dicomtwist_retention_deleted_studies_total": [[server.retention.deleted]],
            "dicomtwist_retention_kept_studies": [[server.retention.kept]],
            "dicomtwist_disk_reserved_bytes": [[archive.store.min_free]],
            "dicomtwist_disk_answers": [[int(disk.free is not None)]],
        }
        if disk.free is not None:
            found["dicomtwist_disk_free_bytes"] = [[disk.free]]
            found["dicomtwist_disk_size_bytes"] = [[disk.size]]
        service = self.service
        for journal in () if service is None else service.journals:
            found.setdefault("dicomtwist_journal_dropped_total", []).append([journal.name, journal.dropped])
            if journal.waiting is not None:
                found["dicomtwist_audit_waiting_bytes"] = [[journal.waiting]]
        if server.worklist is not None:
            found["dicomtwist_worklist_files"] = [[server.worklist.files]]
        if server.pixels is not None:
            found["dicomtwist_image_processes"] = [[len(server.pixels.pids)]]
            found["dicomtwist_image_jobs_queued"] = [[server.pixels.queued]]
        return found

    def _executors(self) -> Snapshot:
        vitals = self.archive_server.ae.executors.vitals()
        return {
            "dicomtwist_executor_threads": [[one.name, one.threads] for one in vitals],
            "dicomtwist_executor_busy_threads": [[one.name, one.busy] for one in vitals],
            "dicomtwist_executor_queued_calls": [[one.name, one.queued] for one in vitals],
            "dicomtwist_executor_refused_total": [[one.name, one.refused] for one in vitals],
            "dicomtwist_executor_longest_call_seconds": [[one.name, one.longest] for one in vitals],
            "dicomtwist_executor_blocked_seconds": [[one.name, one.blocked] for one in vitals],
        }


def _pass_on(result: Any, done: Deferred[Any], late: Any) -> Any:
    if late.active():
        late.cancel()
    if not done.called:
        done.callback(None)
    return result


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        return 0


def _counts(counts: Counts) -> list[Sample]:
    return [[*map(str, labels), count] for labels, count in counts.items()]


def _durations(durations: Durations[str]) -> list[Sample]:
    return [[label, classes, total] for label, classes, total in durations.items()]


def _operations(total: str, seconds: str, figures: OperationFigures) -> Snapshot:
    counts: Sequence[tuple[tuple[Any, ...], int]] = figures.counts.items()
    return {
        total: [
            [service, f"0x{status:04X}" if isinstance(status, int) else status, count]
            for (service, status), count in counts
        ],
        seconds: _durations(figures.durations),
    }
