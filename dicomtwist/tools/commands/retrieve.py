"""
``dicomtwist get`` and ``dicomtwist move``: the options of C-GET and C-MOVE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from dicomtwist.tools.commands.query_options import key_options, level_options
from dicomtwist.tools.options import Command, ListenType, SOPClassType, TitleType, connects, own_option

if TYPE_CHECKING:
    from dicomtwist.tools.connection import Connection
    from dicomtwist.tools.display.console import Output
    from dicomtwist.tools.query.keys import Key

#: Where ``move --receive`` listens by default.
LISTEN: Final = "11112"
#: The values of :class:`dicomtwist.archive.storage.types.Durability`, the default first.
DURABILITIES: Final = ("full", "none")


def durability_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a subcommand ``--durability``."""
    return own_option(
        "--durability",
        type=click.Choice(DURABILITIES),
        default=DURABILITIES[0],
        show_default=True,
        help="Whether what is told to be stored survives a power cut; none is faster.",
    )(function)


@click.command(
    cls=Command,
    examples="""\
Fetch a study:
  dicomtwist get -k StudyInstanceUID=1.2.3 PACS@pacs.example.org:104 study/
CT and MR images of a series, in any transfer syntax that there is:
  dicomtwist get --sop-class CTImageStorage --sop-class MRImageStorage \\
    -k StudyInstanceUID=1.2.3 -k SeriesInstanceUID=1.2.3.4 PACS@pacs.example.org:104 series/""",
)
@connects
@click.argument("folder", type=click.Path(file_okay=False))
@key_options
@level_options
@own_option(
    "--sop-class",
    "sop_classes",
    type=SOPClassType(),
    multiple=True,
    metavar="WHAT",
    help="Take a SOP Class (CTImageStorage, or a UID) or a group of them; may be given more than once. The fewer there are,"
    " the more transfer syntaxes are proposed for each.  [default: the common ones]",
)
@durability_option
def get(
    connection: Connection,
    output: Output,
    folder: str,
    keys: tuple[Key, ...],
    key_files: tuple[str, ...],
    level: str | None,
    root: str,
    sop_classes: tuple[str, ...],
    durability: str,
) -> None:
    """
    Have PEER send what the keys name, on the same association, and keep it in FOLDER.

    Each instance becomes FOLDER/STUDY/SERIES/INSTANCE.dcm, all three by their UIDs.

    Ctrl-C has the peer stop (C-CANCEL) and releases the association; once more aborts it.
    """
    from dicomtwist.tools.contexts import storage_classes
    from dicomtwist.tools.files.receiving_folder import open_folder
    from dicomtwist.tools.interrupts import run
    from dicomtwist.tools.operations.retrieve import Get, require_key
    from dicomtwist.tools.query.query import make_query

    query = require_key(make_query(keys, key_files, level, root, "Get", usual=False))
    try:
        classes = storage_classes(sop_classes)
    except ValueError as error:
        raise click.UsageError(f"--sop-class: {error}") from None
    run(Get(connection, output, query, open_folder(folder, durability), classes).main, output)


@click.command(
    cls=Command,
    examples="""\
Have a study sent to a workstation that the archive knows:
  dicomtwist move --to WORKSTATION -k StudyInstanceUID=1.2.3 PACS@pacs.example.org:104
Receive it here, where the archive knows us as CT1 at port 11112:
  dicomtwist move --calling CT1 --receive study/ --listen 11112 -k StudyInstanceUID=1.2.3 \\
    PACS@pacs.example.org:104""",
)
@connects
@own_option("--to", type=TitleType(), metavar="TITLE", help="The AE to send to, as PEER knows it.")
@own_option(
    "--receive",
    type=click.Path(file_okay=False),
    metavar="FOLDER",
    help="Listen while it lasts, and keep what comes in FOLDER. It is sent to --to, or else to our own AE title.",
)
@own_option(
    "--listen",
    type=ListenType(),
    default=LISTEN,
    show_default=True,
    metavar="WHERE",
    help="Where --receive listens: a port, or an endpoint string.",
)
@durability_option
@key_options
@level_options
def move(
    connection: Connection,
    output: Output,
    to: str | None,
    receive: str | None,
    listen: str,
    durability: str,
    keys: tuple[Key, ...],
    key_files: tuple[str, ...],
    level: str | None,
    root: str,
) -> None:
    """
    Have PEER send what the keys name to another AE, or to us.

    Ctrl-C has the peer stop (C-CANCEL) and releases the association; once more aborts it.
    """
    from dicomtwist.tools.files.receiving_folder import open_folder
    from dicomtwist.tools.interrupts import run
    from dicomtwist.tools.operations.retrieve import Move, require_key
    from dicomtwist.tools.query.query import make_query

    if to is None and receive is None:
        raise click.UsageError("it is not said where to send it: give --to, or --receive")
    query = require_key(make_query(keys, key_files, level, root, "Move", usual=False))
    store = None if receive is None else open_folder(receive, durability)
    run(Move(connection, output, query, to or connection.calling, store, listen).main, output)
