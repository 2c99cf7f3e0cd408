"""
``dicomtwist get`` and ``dicomtwist move``: the options of C-GET and C-MOVE.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from dicomtwist.tools.commands.query_options import key_options, level_options
from dicomtwist.tools.options import (
    FOR_MANY,
    Command,
    ListenType,
    SizeType,
    SOPClassType,
    TitleType,
    command_option,
    with_connection,
)

if TYPE_CHECKING:
    from dicomtwist.retrieval.journal import RetrievalJournal
    from dicomtwist.tools.connection import Connection
    from dicomtwist.tools.display.console import Output
    from dicomtwist.tools.query.key_table import KeyTable
    from dicomtwist.tools.query.keys import Key

#: The default of ``--layout``, :data:`dicomtwist.retrieval.UID_LAYOUT`.
UID_LAYOUT: Final = "{StudyInstanceUID}/{SeriesInstanceUID}/{SOPInstanceUID}.dcm"
#: Where ``move --receive`` listens by default.
LISTEN: Final = "11112"
#: The values of :class:`dicomtwist.archive.storage.types.Durability`, the default first.
DURABILITIES: Final = ("full", "none")


def durability_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--durability`` to a subcommand."""
    return command_option(
        "--durability",
        type=click.Choice(DURABILITIES),
        default=DURABILITIES[0],
        show_default=True,
        help="Whether an instance that is acknowledged survives a power cut; none is faster.",
    )(function)


def folder_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a folder that instances are received into to a subcommand."""
    overwrite = command_option(
        "--overwrite",
        is_flag=True,
        help="Replace files that are there already. Without it they stay, and exit status is 1.",
    )
    min_free = command_option(
        "--min-free",
        type=SizeType(),
        default="128M",
        show_default=True,
        metavar="BYTES",
        help="Refuse instances while less than this is free on the disk (500M, 10G).",
    )
    return overwrite(min_free(durability_option(function)))


@click.command(
    cls=Command,
    unused=("async_ops",),
    takes_url=True,
    examples="""\
Fetch a study:
  dicomtwist get -k StudyInstanceUID=1.2.3 PACS@pacs.example.org:104 study/
Fetch a study from a server of DICOMweb:
  dicomtwist get -k StudyInstanceUID=1.2.3 https://pacs.example.org/dicom-web study/
Fetch the studies of a table with a column AccessionNumber, and continue after an interruption:
  dicomtwist get --from studies.csv --resume got.journal --associations 2 PACS@pacs.example.org:104 studies/
Fetch the CT series of the studies of a table, with names of your own:
  dicomtwist get --from studies.csv --level SERIES -k Modality=CT \\
    --layout '{PatientID}/{StudyDate}/{SeriesNumber}/{InstanceNumber}.dcm' PACS@pacs.example.org:104 ct/
Fetch the CT and MR images of a series, in any transfer syntax:
  dicomtwist get --sop-class CTImageStorage --sop-class MRImageStorage \\
    -k StudyInstanceUID=1.2.3 -k SeriesInstanceUID=1.2.3.4 PACS@pacs.example.org:104 series/""",
)
@with_connection
@click.argument("folder", type=click.Path(file_okay=False))
@command_option(
    "--from",
    "table",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Fetch what each row of a CSV file selects; - for standard input. Its first line names the columns:"
    " StudyInstanceUID (and SeriesInstanceUID, SOPInstanceUID), AccessionNumber, or PatientID (and StudyDate) are keys.",
)
@command_option(
    "--column",
    "columns",
    multiple=True,
    metavar="NAME",
    help="Use this column of the table as a key instead; NAME=KEYWORD if its name is not that of an attribute;"
    " A/B for column B in rows without A. May be repeated.",
)
@command_option(
    "--resume",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Record in FILE which rows of the table are complete, and skip the rows that are recorded there.",
)
@key_options
@level_options
@command_option(
    "--sop-class",
    "sop_classes",
    type=SOPClassType(),
    multiple=True,
    metavar="WHAT",
    help="Receive a SOP Class (CTImageStorage, or a UID) or a group only; may be repeated. The fewer SOP Classes, the more"
    " transfer syntaxes are proposed for each at first.  [default: all, the common ones first]",
)
@command_option(
    "--layout",
    default=UID_LAYOUT,
    show_default=True,
    metavar="LAYOUT",
    help="The names of the files in FOLDER, with attributes in braces, as {PatientID}/{StudyDate}/{InstanceNumber:05}.dcm.",
)
@folder_options
def get(
    connection: Connection,
    output: Output,
    folder: str,
    table: str | None,
    columns: tuple[str, ...],
    resume: str | None,
    keys: tuple[Key, ...],
    key_files: tuple[str, ...],
    level: str | None,
    root: str | None,
    sop_classes: tuple[str, ...],
    layout: str,
    durability: str,
    min_free: int,
    overwrite: bool,
) -> None:
    """
    Fetch the instances that match the keys from PEER, and store them in FOLDER.

    PEER sends them on the same association. Studies that no UIDs name, such as those of an accession number, are found first
    (C-FIND). Each instance becomes FOLDER/STUDY/SERIES/INSTANCE.dcm, named by the three UIDs, or has the name of --layout.
    Instances that are in FOLDER are not fetched again; one that differs from its file there is refused, without --overwrite.

    Ctrl-C stops the peer (C-CANCEL) and releases the associations; a second Ctrl-C aborts them.
    """
    from dicomtwist.tools.contexts import sop_classes_named
    from dicomtwist.tools.files.receiving_folder import open_folder
    from dicomtwist.tools.interrupts import run_command
    from dicomtwist.tools.query.query import make_query, merged_keys, read_keys
    from dicomtwist.tools.runners.get import Get
    from dicomtwist.tools.runners.move import require_key

    command = Get
    if not hasattr(connection, "make_ae"):
        from dicomtwist.tools.runners.web_get import WebGet

        command = WebGet
    classes = list(dict.fromkeys(uid for name in sop_classes for uid in sop_classes_named(name)))
    if table is None:
        for name, value in (("--column", columns), ("--resume", resume)):
            if value:
                raise click.UsageError(f"{name} belongs to the rows of a table: give --from as well")
        identifier = make_query(keys, key_files, level, root, "Get", add_defaults=False).identifier
        require_key(identifier, ", or a table with --from")
        store = open_folder(folder, durability, min_free, layout=layout, overwrite=overwrite)
        run_command(command(connection, output, store, classes, identifier=identifier, root=root).main, output)
    rows = _open_table(table, columns, merged_keys(read_keys(key_files), keys))
    store = open_folder(folder, durability, min_free, layout=layout, overwrite=overwrite)
    journal = _open_journal(resume, str(connection.peer), folder, layout) if resume is not None else None
    output.note(f"keys: {rows}")
    getting = command(
        connection, output, store, classes, rows=rows, root=root, level=(level or "").upper(), journal=journal
    )
    run_command(getting.main, output)


def _open_table(path: str, columns: tuple[str, ...], keys: list[Key]) -> KeyTable:
    from dicomtwist.tools.query.key_table import InvalidTable, KeyTable

    try:
        return KeyTable(path, columns, keys)
    except InvalidTable as error:
        raise click.UsageError(f"--from: {error}") from None


def _open_journal(path: str, peer: str, folder: str, layout: str) -> RetrievalJournal:
    from dicomtwist.retrieval.journal import JournalError, RetrievalJournal

    try:
        return RetrievalJournal(path, peer, folder=os.path.abspath(folder), layout=layout)
    except JournalError as error:
        raise click.UsageError(f"--resume: {error}") from None


@click.command(
    cls=Command,
    unused=FOR_MANY,
    examples="""\
Send a study to a workstation that the archive knows:
  dicomtwist move --to WORKSTATION -k StudyInstanceUID=1.2.3 PACS@pacs.example.org:104
Receive a study here; the archive knows us as CT1 at port 11112:
  dicomtwist move --calling CT1 --receive study/ --listen 11112 -k StudyInstanceUID=1.2.3 \\
    PACS@pacs.example.org:104""",
)
@with_connection
@command_option("--to", type=TitleType(), metavar="TITLE", help="The AE to send to, as PEER knows it.")
@command_option(
    "--receive",
    type=click.Path(file_okay=False),
    metavar="FOLDER",
    help="Listen during the move, and store the instances in FOLDER. They are sent to --to, by default our own AE title.",
)
@command_option(
    "--listen",
    type=ListenType(),
    default=LISTEN,
    show_default=True,
    metavar="WHERE",
    help="Where --receive listens: a port, or an endpoint string.",
)
@folder_options
@key_options
@level_options
def move(
    connection: Connection,
    output: Output,
    to: str | None,
    receive: str | None,
    listen: str,
    durability: str,
    min_free: int,
    overwrite: bool,
    keys: tuple[Key, ...],
    key_files: tuple[str, ...],
    level: str | None,
    root: str | None,
) -> None:
    """
    Have PEER send the instances that match the keys to another AE, or to us.

    Ctrl-C stops the peer (C-CANCEL) and releases the association; a second Ctrl-C aborts it.
    """
    from dicomtwist.tools.files.receiving_folder import open_folder
    from dicomtwist.tools.interrupts import run_command
    from dicomtwist.tools.query.query import make_query
    from dicomtwist.tools.runners.move import Move, require_key

    if to is None and receive is None:
        raise click.UsageError("the destination is missing: give --to or --receive")
    query = make_query(keys, key_files, level, root, "Move", add_defaults=False)
    require_key(query.identifier)
    store = None if receive is None else open_folder(receive, durability, min_free, overwrite=overwrite)
    moving = Move(connection, output, query, to or connection.calling, store, listen)
    run_command(moving.main, output)
