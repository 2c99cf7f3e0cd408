"""
The state of a server as JSON: its processes, disk, index and executors, from the metrics of all processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from time import time
from typing import Any

from dicomtwist import __version__
from dicomtwist.web.monitoring.definitions import Sample, Snapshot

__all__ = ["state_of"]


def state_of(
    snapshots: Mapping[str, Snapshot], numbers: Mapping[str, int] | None, ae_title: str, problems: Sequence[str]
) -> dict[str, Any]:
    """
    Return the state of a server.

    :param snapshots: the metrics by the names of the processes, see :class:`~dicomtwist.web.monitoring.monitor.Monitor`.
    :param numbers: the numbers of patients, studies, series and instances in the index; ``None`` if it cannot be read.
    :param ae_title: the AE title.
    :param problems: the reasons for which the process that was asked is not ready.
    """
    return {
        "ae_title": ae_title,
        "version": __version__,
        "ready": not problems,
        "problems": list(problems),
        "index": None if numbers is None else dict(numbers),
        "disk": _disk(snapshots),
        "processes": [_process(name, snapshot) for name, snapshot in snapshots.items()],
        "executors": _executors(snapshots),
        "images": {
            "processes": _sum(snapshots, "dicomtwist_image_processes"),
            "queued": _sum(snapshots, "dicomtwist_image_jobs_queued"),
        },
        "inbox": _sum(snapshots, "dicomtwist_inbox_instances"),
        "totals": {
            "associations": _by(snapshots, "dicomtwist_associations_total", 1),
            "operations": _by(snapshots, "dicomtwist_dimse_operations_total", 0),
            "requests": _by(snapshots, "dicomtwist_http_requests_total", 2),
            "instances": _by(snapshots, "dicomtwist_instances_total", 0),
            "refusals": _by(snapshots, "dicomtwist_refused_total", 1),
            "received_bytes": _sum(snapshots, "dicomtwist_received_bytes_total"),
            "sent_bytes": _sum(snapshots, "dicomtwist_sent_bytes_total"),
        },
    }


def _disk(snapshots: Mapping[str, Snapshot]) -> dict[str, Any]:
    """Return the disk, which is the same one for all processes: what the first one says that knows it."""
    for snapshot in snapshots.values():
        if "dicomtwist_disk_free_bytes" in snapshot:
            return {
                "answers": True,
                "free_bytes": _number(snapshot, "dicomtwist_disk_free_bytes"),
                "size_bytes": _number(snapshot, "dicomtwist_disk_size_bytes"),
                "reserved_bytes": _number(snapshot, "dicomtwist_disk_reserved_bytes"),
            }
    return {"answers": False, "free_bytes": None, "size_bytes": None, "reserved_bytes": None}


def _process(name: str, snapshot: Snapshot) -> dict[str, Any]:
    if not _number(snapshot, "dicomtwist_process_up"):
        return {"name": name, "answers": False}
    connections = {str(kind): count for kind, count in snapshot.get("dicomtwist_connections_open", ())}
    return {
        "name": name,
        "answers": True,
        "ready": bool(_number(snapshot, "dicomtwist_ready")),
        "seconds": round(time() - _number(snapshot, "dicomtwist_process_start_time_seconds"), 1),
        "memory_bytes": _number(snapshot, "dicomtwist_process_resident_memory_bytes"),
        "cpu_seconds": round(_number(snapshot, "dicomtwist_process_cpu_seconds_total"), 2),
        "files": _number(snapshot, "dicomtwist_process_open_fds"),
        "maximum_files": _number(snapshot, "dicomtwist_process_max_fds"),
        "associations": sum(_values(snapshot, "dicomtwist_associations_open")),
        "connections": connections,
        "lag_seconds": round(_number(snapshot, "dicomtwist_reactor_lag_maximum_seconds"), 4),
    }


def _executors(snapshots: Mapping[str, Snapshot]) -> list[dict[str, Any]]:
    """Return the executors, those of the same name together: threads added up, times the largest."""
    found: dict[str, dict[str, Any]] = {}
    for snapshot in snapshots.values():
        for key in ("threads", "busy_threads", "queued_calls", "refused_total"):
            for name, number in snapshot.get(f"dicomtwist_executor_{key}", ()):
                one = found.setdefault(str(name), {"name": name})
                short = key.partition("_")[0]
                one[short] = one.get(short, 0) + number
        for key in ("longest_call", "blocked"):
            for name, number in snapshot.get(f"dicomtwist_executor_{key}_seconds", ()):
                one, short = found[str(name)], f"{key.partition('_')[0]}_seconds"
                one[short] = round(max(one.get(short, 0.0), _float(number)), 3)
    return list(found.values())


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _values(snapshot: Snapshot, name: str) -> Iterator[float]:
    samples: Sequence[Sample] = snapshot.get(name, ())
    for *_, value in samples:
        yield _float(value)


def _number(snapshot: Snapshot, name: str) -> float:
    return next(_values(snapshot, name), 0.0)


def _sum(snapshots: Mapping[str, Snapshot], name: str) -> float:
    return sum(sum(_values(snapshot, name)) for snapshot in snapshots.values())


def _by(snapshots: Mapping[str, Snapshot], name: str, label: int) -> dict[str, float]:
    """Return a counter by the value of its label at a position; the other labels are added up."""
    found: dict[str, float] = {}
    for snapshot in snapshots.values():
        for sample in snapshot.get(name, ()):
            value = str(sample[label])
            found[value] = found.get(value, 0.0) + _float(sample[-1])
    return dict(sorted(found.items()))
