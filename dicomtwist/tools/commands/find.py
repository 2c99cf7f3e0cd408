"""
``dicomtwist find`` and ``dicomtwist worklist``: ask what there is.
"""

from __future__ import annotations

import re
from datetime import date as Date
from datetime import timedelta
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
from dicomtwist.tools.interrupts import Interrupts, run
from dicomtwist.tools.options import Command, connects, own_option
from dicomtwist.tools.query.keys import Key, KeyMistake, parse_key
from dicomtwist.tools.query.options import (
    Query,
    checked,
    columns_of,
    format_options,
    identifier_of,
    key_options,
    level_options,
    make_query,
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


@click.command(
    cls=Command,
    short_help="Ask what there is (C-FIND).",
    examples="""\
The studies of a patient:
  dicomtwist find -k PatientID=123456 PACS@pacs.example.org:104
The series of a study, as CSV:
  dicomtwist find --csv --level SERIES -k StudyInstanceUID=1.2.3 -k Modality -k SeriesInstanceUID \
PACS@pacs.example.org:104
CT studies of January, in a script:
  dicomtwist find --json -k StudyDate=20240101-20240131 -k ModalitiesInStudy=CT PACS@pacs.example.org:104""",
)
@connects
@key_options
@level_options
@format_options
def find(
    connection: Connection,
    output: Output,
    keys: tuple[Key, ...],
    key_files: tuple[str, ...],
    level: str | None,
    root: str,
    as_csv: bool,
    limit: int | None,
) -> None:
    """
    Ask PEER what matches, and print a table of the keys that were given.

    Where every key has a value, what is usual at the level is asked for as well. A value may have the wildcards * and ?, a
    date may be a range as 20240101-20240131, and several UIDs are written with a backslash between.

    Ctrl-C has the peer stop (C-CANCEL) and releases the association; once more aborts it.
    """
    _check_format(output, as_csv)
    query = make_query(keys, key_files, level, root, "Find", usual=True)
    run(Find("find", connection, output, query, as_csv=as_csv, limit=limit).main, output)


def _check_format(output: Output, as_csv: bool) -> None:
    if as_csv and output.as_json:
        raise click.UsageError("--csv and --json contradict each other")


# --- the worklist


class DateType(click.ParamType[str]):
    """A date or a range of dates, in DICOM's way of writing or with hyphens, or ``today``."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it as DICOM writes it."""
        days = {"yesterday": -1, "today": 0, "tomorrow": 1}
        if value in days:
            return f"{Date.today() + timedelta(days[value]):%Y%m%d}"
        text = re.sub(r"(\d{4})-(\d\d)-(\d\d)", r"\1\2\3", str(value))
        match = re.fullmatch(r"(\d{8})?(-)?(\d{8})?", text)
        try:
            if match is None or text in ("", "-") or (match[3] and not match[2]):
                raise ValueError
            for day in (match[1], match[3]):
                if day:
                    Date(int(day[:4]), int(day[4:6]), int(day[6:]))
        except ValueError:
            self.fail(
                f"{value!r} is neither a date, as 20240131, nor a range, as 20240101-20240131, nor today", param, ctx
            )
        return text


@click.command(
    cls=Command,
    short_help="Ask what is scheduled (C-FIND on a Modality Worklist).",
    examples="""\
What is today's work of a scanner?
  dicomtwist worklist --date today --modality CT --station CT1 RIS@ris.example.org:104
In a script:
  dicomtwist worklist --json --date today RIS@ris.example.org:104""",
)
@connects
@own_option(
    "--date", type=DateType(), metavar="DATE", help="Scheduled for a day or a range of days; or today, or tomorrow."
)
@own_option("--modality", metavar="CODE", help="Scheduled for a modality, as CT.")
@own_option("--station", metavar="TITLE", help="Scheduled for the station with this AE title.")
@own_option("--patient", metavar="NAME", help="Of patients whose name matches, as DOE^*.")
@key_options
@format_options
def worklist(
    connection: Connection,
    output: Output,
    date: str | None,
    modality: str | None,
    station: str | None,
    patient: str | None,
    keys: tuple[Key, ...],
    key_files: tuple[str, ...],
    as_csv: bool,
    limit: int | None,
) -> None:
    """
    Ask PEER, a worklist, what is scheduled, and print it.

    With -k and -f more is matched and asked for.

    Ctrl-C has the peer stop (C-CANCEL) and releases the association; once more aborts it.
    """
    _check_format(output, as_csv)
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
    query = checked(Query(identifier_of(asked), ModalityWorklistInformationFind, columns_of(asked)))
    run(Find("worklist", connection, output, query, as_csv=as_csv, limit=limit).main, output)
