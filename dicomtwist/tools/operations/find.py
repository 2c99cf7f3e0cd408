"""
``dicomtwist find`` and ``dicomtwist worklist``: ask what there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click
from twisted.internet.defer import DeferredLock

from dicomtwist import Association, AssociationError, NotEstablished, Status, build_context
from dicomtwist.errors import DataSetError, NoPresentationContext
from dicomtwist.sop_class import ModalityWorklistInformationFind
from dicomtwist.tools.client import Asking
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.display.console import Output, plural
from dicomtwist.tools.display.result_table import CSV, PAGE_SECONDS, JSONItems, Rows, Table
from dicomtwist.tools.interrupts import Interrupts
from dicomtwist.tools.query.keys import Key, KeyMistake, parse_key
from dicomtwist.tools.query.query import (
    Query,
    checked,
    columns_of,
    identifier_of,
    read_keys,
)

_STEP: Final = "ScheduledProcedureStepSequence[0]"
#: What is asked of a worklist, in the order of the table (PS3.4 Table K.6-1).
WORKLIST: Final = (
    f"{_STEP}.ScheduledProcedureStepStartDate",
    f"{_STEP}.ScheduledProcedureStepStartTime",
    f"{_STEP}.Modality",
    f"{_STEP}.ScheduledStationAETitle",
    "PatientID",
    "PatientName",
    "AccessionNumber",
    "RequestedProcedureID",
    f"{_STEP}.ScheduledProcedureStepID",
    f"{_STEP}.ScheduledProcedureStepDescription",
    "StudyInstanceUID",
)


class Find:
    """
    One run of either subcommand.

    :param command: which it is.
    :param limit: after how many matches to stop, ``None`` for never.
    """

    def __init__(
        self,
        command: str,
        connection: Connection,
        output: Output,
        query: Query,
        *,
        as_csv: bool = False,
        limit: int | None = None,
    ) -> None:
        self._command = command
        self._connection = connection
        self._output = output
        self._query = query
        self._as_csv = as_csv
        self._limit = limit
        self._printing = DeferredLock()
        self.matches = 0

    async def main(self, reactor: Any, interrupts: Interrupts) -> int:
        """Run it; return the exit status."""
        output, query = self._output, self._query
        rows: Rows
        if output.as_json:
            head = {"command": self._command, "peer": str(self._connection.peer)}
            rows = document = JSONItems(output, head, "matches")
        else:
            document = None
            rows = CSV(output, query.columns) if self._as_csv else Table(output, query.columns)
        asking = Asking(self._connection, reactor, output, interrupts)
        asking.ae.executors.acquire()
        status: Status | None = None
        try:
            association = await asking.associate([build_context(query.model)])
            if association is not None:
                status = await self._ask(asking, association, rows, reactor)
                await asking.release()
        finally:
            asking.ae.executors.release()
            await asking.ae.shutdown()
        if status is not None and not (status.is_success or status.is_warning):
            asking.error = f"{self._connection.peer} answered: {status}"
        enough = self._limit is not None and self.matches >= self._limit
        exit_status = asking.exit_status(status is not None or enough or output.unread)
        asking.tell()
        if asking.association is not None and not output.as_json:
            output.note(plural(self.matches, "match").replace("matchs", "matches"))
        if document is not None:
            code = None if status is None else f"0x{int(status):04X}"
            document.end({"count": self.matches, "status": code, "exit_status": exit_status, **asking.document()})
        return exit_status

    async def _ask(self, asking: Asking, association: Association, rows: Rows, reactor: Any) -> Status | None:
        """Ask and print; return the final status, ``None`` where it did not come to that."""
        first: Any = None
        status: Status | None = None
        try:
            async with association.send_c_find(self._query.identifier, self._query.model) as answers:
                asking.stops_with(answers.cancel)
                async for status, identifier in answers:
                    if not status.is_pending or identifier is None or asking.interrupted:
                        continue
                    if first is None:
                        first = reactor.callLater(PAGE_SECONDS, lambda: self._print(asking, rows.flush))
                    self.matches += 1
                    # In a thread: who pages through the answers does not read them for a while.
                    await self._print(asking, rows.add, identifier)
                    if self.matches == self._limit or self._output.unread:
                        return None
        except (AssociationError, NotEstablished, NoPresentationContext, DataSetError) as error:
            asking.error = str(error)
            return None
        finally:
            if first is not None and first.active():
                first.cancel()
            await self._print(asking, rows.flush)
        return status

    def _print(self, asking: Asking, function: Any, *args: Any) -> Any:
        return self._printing.run(asking.ae.executors.decoding.run, function, *args)


def worklist_query(
    keys: Sequence[Key],
    key_files: Sequence[str],
    *,
    date: str | None,
    modality: str | None,
    station: str | None,
    patient: str | None,
) -> Query:
    """
    Return the query of ``dicomtwist worklist``: everything in :data:`WORKLIST`, and what the options add.

    :raises click.UsageError: a key or a value cannot be sent.
    """
    own = {
        f"{_STEP}.ScheduledProcedureStepStartDate": date,
        f"{_STEP}.Modality": modality,
        f"{_STEP}.ScheduledStationAETitle": station,
        "PatientName": patient,
    }
    asked = [*map(parse_key, WORKLIST), *read_keys(key_files), *keys]
    try:
        asked += [parse_key(f"{name}={value}") for name, value in own.items() if value]
    except KeyMistake as mistake:
        raise click.UsageError(str(mistake)) from None
    return checked(Query(identifier_of(asked), ModalityWorklistInformationFind, columns_of(asked)))
