"""
``dicomtwist find`` and ``dicomtwist worklist``: the options of C-FIND.
"""

from __future__ import annotations

import re
from datetime import date as Date
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from dicomtwist.tools.commands.query_options import format_options, key_options, level_options
from dicomtwist.tools.options import FOR_MANY, Command, ValueType, command_option, with_connection

if TYPE_CHECKING:
    from dicomtwist.tools.connection import Connection
    from dicomtwist.tools.display.console import Output
    from dicomtwist.tools.query.keys import Key


@click.command(
    cls=Command,
    unused=FOR_MANY,
    takes_url=True,
    examples="""\
List the studies of a patient:
  dicomtwist find -k PatientID=123456 PACS@pacs.example.org:104
List the series of a study as CSV:
  dicomtwist find --csv --level SERIES -k StudyInstanceUID=1.2.3 -k Modality -k SeriesInstanceUID \
PACS@pacs.example.org:104
List the studies of a patient at a server of DICOMweb:
  dicomtwist find -k PatientID=123456 https://pacs.example.org/dicom-web
List the CT studies of January for a script:
  dicomtwist find --json -k StudyDate=20240101-20240131 -k ModalitiesInStudy=CT PACS@pacs.example.org:104""",
)
@with_connection
@key_options
@level_options
@format_options
def find(
    connection: Connection,
    output: Output,
    keys: tuple[Key, ...],
    key_files: tuple[str, ...],
    level: str | None,
    root: str | None,
    as_csv: bool,
    limit: int | None,
) -> None:
    """
    Query PEER, and print the matches as a table with one column for each key.

    If every key has a value, the default attributes of the level are requested as well. A value may contain the wildcards *
    and ?, a date may be a range as 20240101-20240131, and several UIDs are separated by backslashes.

    Ctrl-C stops the peer (C-CANCEL) and releases the association; a second Ctrl-C aborts it.
    """
    from dicomtwist.tools.interrupts import run_command
    from dicomtwist.tools.query.query import make_query
    from dicomtwist.tools.runners.find import Find

    _check_format(output, as_csv)
    query = make_query(keys, key_files, level, root, "Find", add_defaults=True)
    if not hasattr(connection, "make_ae"):
        from dicomtwist.tools.runners.web_find import WebFind, check_searchable

        check_searchable(query)
        run_command(WebFind("find", connection, output, query, as_csv=as_csv, limit=limit).main, output)
    run_command(Find("find", connection, output, query, as_csv=as_csv, limit=limit).main, output)


def _check_format(output: Output, as_csv: bool) -> None:
    if as_csv and output.as_json:
        raise click.UsageError("--csv and --json contradict each other: give one of them")


# --- the worklist


class DateType(ValueType[str]):
    """A date or a range of dates, in the format of DICOM or with hyphens, or ``today`` and its neighbours."""

    name = "date"

    def parse(self, text: str) -> str:
        """Return the date or range as DICOM writes it."""
        days = {"yesterday": -1, "today": 0, "tomorrow": 1}
        if text in days:
            return f"{Date.today() + timedelta(days[text]):%Y%m%d}"
        dates = re.sub(r"(\d{4})-(\d\d)-(\d\d)", r"\1\2\3", text)
        match = re.fullmatch(r"(\d{8})?(-)?(\d{8})?", dates)
        try:
            if match is None or dates in ("", "-") or (match[3] and not match[2]):
                raise ValueError
            for day in (match[1], match[3]):
                if day:
                    Date(int(day[:4]), int(day[4:6]), int(day[6:]))
        except ValueError:
            raise ValueError(
                f"{text!r} is neither a date, as 20240131, nor a range, as 20240101-20240131, nor yesterday, today or tomorrow"
            ) from None
        return dates


@click.command(
    cls=Command,
    unused=FOR_MANY,
    examples="""\
List today's work of a scanner:
  dicomtwist worklist --date today --modality CT --station CT1 RIS@ris.example.org:104
List it as JSON, for a script:
  dicomtwist worklist --json --date today RIS@ris.example.org:104""",
)
@with_connection
@command_option(
    "--date",
    type=DateType(),
    metavar="DATE",
    help="Scheduled for a day or a range of days; also yesterday, today or tomorrow.",
)
@command_option("--modality", metavar="CODE", help="Scheduled for a modality, as CT.")
@command_option("--station", metavar="TITLE", help="Scheduled for the station with this AE title.")
@command_option("--patient", metavar="NAME", help="For patients whose name matches, as DOE^*.")
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
    Query the worklist PEER, and print the scheduled procedure steps.

    The options -k and -f add keys to match and attributes to return.

    Ctrl-C stops the peer (C-CANCEL) and releases the association; a second Ctrl-C aborts it.
    """
    from dicomtwist.tools.interrupts import run_command
    from dicomtwist.tools.runners.find import Find, worklist_query

    _check_format(output, as_csv)
    query = worklist_query(keys, key_files, date=date, modality=modality, station=station, patient=patient)
    run_command(Find("worklist", connection, output, query, as_csv=as_csv, limit=limit).main, output)
