"""
The options of the journals of ``twist dicom``, and the journals that are made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.python import usage

from dicomtwist import evt
from dicomtwist.archive.server import ArchiveServer
from dicomtwist.daemon.journals.audit import AuditJournal, check_target, end_audit, make_audit
from dicomtwist.daemon.journals.records import Records
from dicomtwist.daemon.option_values import size
from dicomtwist.runtime.lines.line_file import LineFile

__all__ = ["JOURNAL_PARAMETERS", "Journal", "change_audit", "change_records", "check_journals", "make_journals"]

#: The options with a value, as ``usage.Options`` has them.
JOURNAL_PARAMETERS: Final[list[list[Any]]] = [
    [
        "records",
        None,
        None,
        "File to which a line of JSON is appended for each association and HTTP request that has ended.",
    ],
    [
        "records-size",
        None,
        None,
        "Bytes (100M) beyond which the file of records is rotated, to FILE.1 up to FILE.5; by default it is not.",
        size("--records-size"),
    ],
    [
        "audit",
        None,
        None,
        "Where audit messages (PS3.15 A.5) go: a file, or a syslog server: dicomtls:HOST:6514:trustRoots=ca.pem, tcp:, udp:.",
    ],
    ["audit-source", None, None, "Audit Source ID of the messages. [default: the AE title]"],
]


class Journal(Protocol):
    """
    A journal of a server.

    :ivar name: its name.
    """

    name: str

    @property
    def dropped(self) -> int:
        """The number of entries that were dropped, because too many waited."""

    @property
    def waiting(self) -> int | None:
        """The bytes that wait to be delivered; ``None`` if nothing is delivered."""

    def start(self) -> None:
        """Begin to work; the server listens."""

    def reopen(self) -> None:
        """Open its file again, because another file has its name now."""

    def stop(self) -> Deferred[None]:
        """Write what waits. The Deferred fires when that is done, or has failed."""


def check_journals(options: Any, reactor: Any) -> None:
    """
    Check the options of journals.

    :raises usage.UsageError: the folder of a file does not exist, or an endpoint cannot work.
    """
    if options["audit"] is not None:
        try:
            check_target(reactor, options["audit"])
        except ValueError as error:
            raise usage.UsageError(f"--audit: {error}") from None
    elif options["audit-source"] is not None:
        raise usage.UsageError("--audit-source needs --audit, the file or the syslog server")
    if options["records"] is None:
        if options["records-size"] is not None:
            raise usage.UsageError("--records-size needs --records, the file")
        return
    path = Path(options["records"])
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise usage.UsageError(f"--records: {path} is not a file in a folder that exists")


def make_journals(options: Any, archive_server: ArchiveServer, http: Any) -> list[Journal]:
    """
    Return the journals, at work.

    :param http: the HTTP server, ``None`` without one.
    """
    found: list[Journal] = []
    if options["records"] is not None:
        found.append(_make_records(options, archive_server.ae, http))
    if options["audit"] is not None:
        found.append(_make_audit(options, options, archive_server, http))
    return found


def _make_audit(start: Any, options: Any, archive_server: ArchiveServer, http: Any) -> AuditJournal:
    audit = make_audit(start, archive_server, *_audit_values(start, options))
    if http is not None:
        http.site.listeners.append(audit.trail.request_ended)
    return audit


def _audit_values(start: Any, options: Any) -> tuple[str, str]:
    """Return where messages go, and the name of their source."""
    return str(options["audit"]), options["audit-source"] or start.ae.ae_title


def change_audit(
    start: Any, options: Any, archive_server: ArchiveServer, http: Any, journals: Sequence[Journal]
) -> list[Journal]:
    """
    Write further audit messages as *options* say.

    :param start: the options of the server at its start.
    :param http: the HTTP server, ``None`` without one.
    :param journals: the journals of the server.
    :returns: its journals from now on.
    """
    former = next((one for one in journals if isinstance(one, AuditJournal)), None)
    if former is None:
        if options["audit"] is None:
            return [*journals]
        audit = _make_audit(start, options, archive_server, http)
        audit.start()
        return [*journals, audit]
    if options["audit"] is not None:
        former.change(*_audit_values(start, options))
        return [*journals]
    if http is not None:
        http.site.listeners.remove(former.trail.request_ended)
    end_audit(former, start.ae, archive_server)
    return [one for one in journals if one is not former]


def _make_records(options: Any, ae: Any, http: Any) -> Records:
    records = Records(LineFile(options["records"], options["records-size"]), ae.executors.records)
    ae.bind(evt.EVT_RECORD, records.association_ended)
    if http is not None:
        http.site.listeners.append(records.request_ended)
    return records


def change_records(options: Any, ae: Any, http: Any, journals: Sequence[Journal]) -> list[Journal]:
    """
    Write further records as *options* say. Records that wait go to the former file.

    :param http: the HTTP server, ``None`` without one.
    :param journals: the journals of the server.
    :returns: its journals from now on.
    """
    others = [one for one in journals if not isinstance(one, Records)]
    for former in journals:
        if isinstance(former, Records):
            ae.unbind(evt.EVT_RECORD, former.association_ended)
            if http is not None:
                http.site.listeners.remove(former.request_ended)
            former.stop()
    return others if options["records"] is None else [_make_records(options, ae, http), *others]
