"""
``dicomtwist find`` and ``dicomtwist worklist``: send C-FIND and print the matches as they arrive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click
from pydicom import Dataset
from twisted.internet.defer import DeferredLock

from dicomtwist import Association, AssociationError, NotEstablished, Status, build_context
from dicomtwist.errors import DataSetError, NoPresentationContext, loggable
from dicomtwist.runtime.executors import Executor
from dicomtwist.sop_class import ModalityWorklistInformationFind
from dicomtwist.tools.client import ClientAssociation, ClientOperation
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.display.console import Output, plural
from dicomtwist.tools.display.result_table import PAGE_SECONDS, CSVWriter, JSONWriter, ResultWriter, TableWriter
from dicomtwist.tools.interrupts import Interrupts
from dicomtwist.tools.query.keys import InvalidKey, Key, parse_key
from dicomtwist.tools.query.query import (
    Query,
    build_identifier,
    check_encodable,
    columns_of,
    merged_keys,
    read_keys,
)
from dicomtwist.tools.web_connection import WebConnection

_STEP: Final = "ScheduledProcedureStepSequence[0]"
#: The attributes that are requested of a worklist, in the order of the printed table (PS3.4 Table K.6-1).
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

    :param command: the name of the subcommand.
    :param query: the query to send.
    :param as_csv: print CSV instead of a table.
    :param limit: the number of matches after which to stop, ``None`` for no limit.
    """

    def __init__(
        self,
        command: str,
        connection: Connection | WebConnection,
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
        self._executor: Executor
        self.matches = 0
        self.lost = 0

    async def main(self, reactor: Any, interrupts: Interrupts) -> int:
        """Run it and return the exit status."""
        connection = self._connection
        assert isinstance(connection, Connection)
        rows = self._writer()
        client = ClientAssociation(connection, reactor, self._output, interrupts)
        client.ae.executors.acquire()
        self._executor = client.ae.executors.decoding
        status: Status | None = None
        try:
            association = await client.associate([build_context(self._query.model)])
            if association is not None:
                status = await self._receive_matches(client, association, rows, reactor)
                await client.release()
        finally:
            client.ae.executors.release()
            await client.ae.shutdown()
        return self._print_result(client, rows, status)

    def _writer(self) -> ResultWriter:
        output, query = self._output, self._query
        if output.as_json:
            return JSONWriter(output, {"command": self._command, "peer": str(self._connection.peer)}, "matches")
        return CSVWriter(output, query.columns) if self._as_csv else TableWriter(output, query.columns)

    def _print_result(self, client: ClientOperation, rows: ResultWriter, status: Status | None) -> int:
        """Print the end of the output, and return the exit status."""
        output = self._output
        if status is not None and not (status.is_success or status.is_warning):
            client.error = f"{self._connection.peer} answered: {status}"
        enough = self._limit is not None and self.matches >= self._limit
        exit_status = client.exit_status(status is not None or enough or output.reader_gone)
        client.print_errors()
        if client.is_connected and not output.as_json:
            output.note(plural(self.matches, "match").replace("matchs", "matches"))
        if isinstance(rows, JSONWriter):
            code = None if status is None else f"0x{int(status):04X}"
            rows.end(
                {
                    "count": self.matches,
                    "lost": self.lost,
                    "status": code,
                    "exit_status": exit_status,
                    **client.document(),
                }
            )
        return exit_status

    async def _receive_matches(
        self, client: ClientAssociation, association: Association, rows: ResultWriter, reactor: Any
    ) -> Status | None:
        """Send the query and print its matches; return the final status, ``None`` if it did not arrive."""
        first: Any = None
        status: Status | None = None
        try:
            async with association.send_c_find(self._query.identifier, self._query.model) as answers:
                client.cancel_on_interrupt(answers.cancel)
                async for status, identifier in answers:
                    if not status.is_pending or identifier is None or client.interrupted:
                        continue
                    if first is None:
                        first = reactor.callLater(PAGE_SECONDS, lambda: self._print(rows.flush))
                    await self._show(client, rows, identifier)
                    if self.matches == self._limit or self._output.reader_gone:
                        return None
                if answers.lost:
                    self.lost += answers.lost.count
                    client.error = client.error or str(answers.lost)
        except (AssociationError, NotEstablished, NoPresentationContext, DataSetError) as error:
            client.error = str(error)
            return None
        finally:
            if first is not None and first.active():
                first.cancel()
            await self._print(rows.flush)
        return status

    async def _show(self, client: ClientOperation, rows: ResultWriter, match: Dataset) -> None:
        """Print a match, in a thread, since a pager may not read its input for a long time."""
        self.matches += 1
        try:
            await self._print(rows.add, match)
        except OSError:
            raise
        except Exception as error:
            # pydicom raises whatever a value makes it raise. Such a match fails alone.
            self.matches -= 1
            self.lost += 1
            client.error = client.error or f"a match cannot be shown: {loggable(error)}"

    def _print(self, function: Any, *args: Any) -> Any:
        return self._printing.run(self._executor.run, function, *args)


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
    Return the query of ``dicomtwist worklist``: the attributes of :data:`WORKLIST` and the keys of the options.

    :raises click.UsageError: a key or a value cannot be sent.
    """
    own = {
        f"{_STEP}.ScheduledProcedureStepStartDate": date,
        f"{_STEP}.Modality": modality,
        f"{_STEP}.ScheduledStationAETitle": station,
        "PatientName": patient,
    }
    try:
        options = [parse_key(f"{name}={value}") for name, value in own.items() if value]
    except InvalidKey as error:
        raise click.UsageError(str(error)) from None
    asked = merged_keys(map(parse_key, WORKLIST), read_keys(key_files), keys, options)
    return check_encodable(Query(build_identifier(asked), ModalityWorklistInformationFind, columns_of(asked)))
