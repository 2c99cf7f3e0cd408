"""
The recent events of a process: the last associations, requests of HTTP and refusals; and the associations that are open.

All of it is bounded, and in the form of JSON, so that the processes of a server can tell it to each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from dicomtwist import evt
from dicomtwist.access.refusals import Refusal
from dicomtwist.ae.ae import AE
from dicomtwist.association.record import OTHER_STATUS, AssociationRecord, OperationCount, counting
from dicomtwist.dimse.status import StatusCategory, category
from dicomtwist.sop_class import uid_to_sop_class
from dicomtwist.web.http.records import RequestRecord

__all__ = ["KINDS", "Entry", "Recent", "merged"]

#: The entries of each kind that a process keeps.
MAX_KEPT: Final = 200
#: The most open associations that are told, the latest first.
MAX_OPEN: Final = 200
#: The most refused presentation contexts, and different operations, that an entry names.
MAX_NAMED: Final = 12
#: The longest text in an entry, in characters.
MAX_WORDS: Final = 500
#: Routes whose requests are left out: those by which this is looked at, and those that monitoring systems ask every second.
QUIET: Final = ("/api/", "/metrics", "/health", "/static", "/activity", "/server")

#: An object of JSON.
Entry: TypeAlias = dict[str, Any]
#: The kinds of entries.
KINDS: Final = ("open", "associations", "requests", "refusals")


class Recent:
    """
    The recent events of a process.

    :param ae: its AE.
    """

    def __init__(self, ae: AE) -> None:
        self._ae = ae
        self._associations: deque[Entry] = deque(maxlen=MAX_KEPT)
        self._requests: deque[Entry] = deque(maxlen=MAX_KEPT)
        self._refusals: deque[Entry] = deque(maxlen=MAX_KEPT)

    # --- listeners

    @counting
    def association_ended(self, event: evt.Event) -> None:
        """Add an association: a handler of ``EVT_RECORD``."""
        record: AssociationRecord = event.record
        if record.ending.kind == "not asked for":
            return  # a connection of a load balancer that looks whether the port is open
        self._associations.append(_ended(record))

    def request_ended(self, record: RequestRecord) -> None:
        """Add a request of HTTP."""
        if not record.route.startswith(QUIET):
            self._requests.append(_requested(record))

    def refused(self, refusal: Refusal) -> None:
        """Add a refusal; one like the last is counted there."""
        entry = _refused(refusal)
        last = self._refusals[-1] if self._refusals else {}
        if all(entry[key] == last.get(key) for key in entry.keys() - {"at", "count"}):
            self._refusals[-1] = {**entry, "count": last["count"] + 1}
        else:
            self._refusals.append(entry)

    # --- what there is

    def snapshot(self) -> dict[str, list[Entry]]:
        """Return the entries of each of :data:`KINDS`, the latest first."""
        now = self._ae.reactor.seconds()
        connections = sorted(self._ae.connections, key=lambda one: one.opened_at, reverse=True)
        return {
            "open": [_open(one, now) for one in connections[:MAX_OPEN]],
            "associations": [*reversed(self._associations)],
            "requests": [*reversed(self._requests)],
            "refusals": [*reversed(self._refusals)],
        }


def merged(
    snapshots: Mapping[str, Mapping[str, Iterable[Entry]] | None], limit: int = MAX_KEPT
) -> dict[str, list[Entry]]:
    """
    Return the entries of several processes together, the latest first.

    :param snapshots: the snapshots by the names of the processes; ``None`` for a process that did not answer.
    :param limit: the most entries of each kind.
    """
    found: dict[str, list[Entry]] = {}
    for kind in KINDS:
        entries = [
            {**entry, "process": process}
            for process, snapshot in snapshots.items()
            for entry in (snapshot or {}).get(kind, ())
        ]
        entries.sort(key=lambda entry: str(entry["at"]), reverse=True)
        found[kind] = entries[:limit]
    return found


def _open(association: Any, now: float) -> Entry:
    progress = association.progress
    seconds = max(0.0, now - association.opened_at)
    return {
        **_peers(association.mode, association.requestor, association.remote, association.protocol.secure),
        "at": _iso(datetime.now(UTC).timestamp() - seconds),
        "number": association.number,
        "state": "established"
        if association.is_established
        else "negotiating"
        if not association.was_established
        else "ending",
        "seconds": round(seconds, 3),
        "bytes_received": association.bytes_received,
        "bytes_sent": association.bytes_sent,
        "operations": [] if progress is None else _operations(progress.counts),
        "under_way": []
        if progress is None
        else [
            {"direction": direction, "service": service, "seconds": round(since, 3)}
            for direction, service, since in progress.under_way[:MAX_NAMED]
        ],
    }


def _peers(mode: str, requestor: Any, remote: Any, secure: bool) -> Entry:
    return {
        "role": mode,
        "calling": requestor.ae_title,
        "called": requestor.called_ae_title,
        "address": remote.address,
        "port": remote.port,
        "secure": secure,
    }


def _ended(record: AssociationRecord) -> Entry:
    refused = [one for one in record.contexts if one.result]
    failed = sum(one.count for one in record.counts if _is_failure(one))
    return {
        "role": record.mode,
        "calling": record.calling_ae_title,
        "called": record.called_ae_title,
        "address": record.remote[0],
        "port": record.remote[1],
        "secure": record.secure,
        "implementation": record.implementation_version_name or record.implementation_class_uid,
        "at": record.ended.isoformat(timespec="milliseconds"),
        "started": record.started.isoformat(timespec="milliseconds"),
        "seconds": round(record.seconds, 3),
        "bytes_received": record.bytes_received,
        "bytes_sent": record.bytes_sent,
        "operations": _operations(record.counts),
        "failed": failed,
        "contexts": len(record.contexts),
        "contexts_refused": [
            str(uid_to_sop_class(one.abstract_syntax).name)[:MAX_WORDS] for one in refused[:MAX_NAMED]
        ],
        "contexts_refused_count": len(refused),
        "ending": record.ending.kind,
        "by": record.ending.by or "",
        "why": record.ending.why[:MAX_WORDS],
    }


def _operations(counts: Iterable[OperationCount]) -> list[Entry]:
    return [
        {
            "direction": one.direction,
            "service": one.service,
            "status": None if one.status is None else "other" if one.status == OTHER_STATUS else f"0x{one.status:04X}",
            "category": _category(one),
            "count": one.count,
        }
        for one in sorted(counts, key=lambda one: -one.count)[:MAX_NAMED]
    ]


def _category(one: OperationCount) -> str:
    if one.status is None:
        return "none"
    return "other" if one.status == OTHER_STATUS else category(one.status).name.lower()


def _is_failure(one: OperationCount) -> bool:
    return one.status is None or (one.status >= 0 and category(one.status) is StatusCategory.FAILURE)


def _requested(record: RequestRecord) -> Entry:
    return {
        "method": record.method,
        "path": record.path[:MAX_WORDS],
        "route": record.route,
        "status": record.status,
        "address": record.address,
        "user": record.user,
        "secure": record.secure,
        "at": record.started.isoformat(timespec="milliseconds"),
        "seconds": round(record.seconds, 4),
        "bytes_received": record.bytes_received,
        "bytes_sent": record.bytes_sent,
        "ending": record.ending,
    }


def _refused(refusal: Refusal) -> Entry:
    return {
        "protocol": refusal.protocol,
        "what": refusal.what,
        "peer": refusal.peer,
        "address": refusal.address,
        "request": refusal.request,
        "words": refusal.words[: 2 * MAX_WORDS],
        "at": _iso(refusal.at),
        "count": 1,
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
