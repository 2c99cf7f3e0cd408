"""
``--records FILE``: a line of JSON for each association and each request of HTTP that has ended.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from dicomtwist import evt
from dicomtwist.association.record import AssociationRecord
from dicomtwist.runtime.executors import Executor
from dicomtwist.runtime.lines.line_file import LineFile
from dicomtwist.runtime.lines.line_writer import LineWriter

if TYPE_CHECKING:
    from dicomtwist.web.http.records import RequestRecord

__all__ = ["Records"]


class Records:
    """
    The file of records.

    :param file: the file.
    :param executor: the threads that write it.
    """

    name = "records"

    def __init__(self, file: LineFile, executor: Executor) -> None:
        self._writer: LineWriter[AssociationRecord | RequestRecord] = LineWriter(executor, file, record_line, "records")

    def association_ended(self, event: evt.Event) -> None:
        """Write a record: a handler of ``EVT_RECORD``."""
        record: AssociationRecord = event.record
        self._writer.put(record, 1 + len(record.operations) + len(record.contexts))

    def request_ended(self, record: RequestRecord) -> None:
        """Write the record of a request of HTTP."""
        self._writer.put(record, 1 + len(record.query) // 1000)  # it is kept with the query

    @property
    def dropped(self) -> int:
        """The number of records that were dropped."""
        return self._writer.dropped

    waiting = None

    def start(self) -> None:
        """Do nothing."""

    def reopen(self) -> None:
        """Open the file again."""
        self._writer.reopen()

    def stop(self) -> Deferred[None]:
        """Write what waits. The Deferred fires when that is done, or has failed."""
        return self._writer.stop()


def record_line(record: AssociationRecord | RequestRecord) -> bytes:
    """Return the line of a record: its fields, ``type``, and ``process``, the process ID."""
    kind = "association" if isinstance(record, AssociationRecord) else "request"
    found: dict[str, Any] = {"type": kind, "process": os.getpid(), **record.as_dict()}
    return json.dumps(found).encode() + b"\n"
