"""
``dicomtwist get`` and ``dicomtwist move``: the options of C-GET and C-MOVE.
"""

from __future__ import annotations

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
    from dicomtwist.tools.connection import Connection
    from dicomtwist.tools.display.console import Output
    from dicomtwist.tools.query.keys import Key

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
    examples="""\
Fetch a study:
  dicomtwist get -k StudyInstanceUID=1.2.3 PACS@pacs.example.org:104 study/
Fetch the CT and MR images of a series, in any transfer syntax:
  dicomtwist get --sop-class CTImageStorage --sop-class MRImageStorage \\
    -k StudyInstanceUID=1.2.3 -k SeriesInstanceUID=1.2.3.4 PACS@pacs.example.org:104 series/""",
)
@with_connection
@click.argument("folder", type=click.Path(file_okay=False))
@key_options
@level_options
@command_option(
    "--sop-class",
    "sop_classes",
    type=SOPClassType(),
    multiple=True,
    metavar="WHAT",
    help="Receive a SOP Class (CTImageStorage, or a UID) or a group; may be repeated. The fewer SOP Classes, the more"
    " transfer syntaxes are proposed for each.  [default: the common ones]",
)
@folder_options
def get(
    connection: Connection,
    output: Output,
    folder: str,
    keys: tuple[Key, ...],
    key_files: tuple[str, ...],
    level: str | None,
    root: str | None,
    sop_classes: tuple[str, ...],
    durability: str,
    min_free: int,
    overwrite: bool,
) -> None:
    """
    Fetch the instances that match the keys from PEER, and store them in FOLDER.

    PEER sends them on the same association. Each becomes FOLDER/STUDY/SERIES/INSTANCE.dcm, named by the three UIDs. Instances
    that do not match the unique keys are refused; so are those that differ from a file that is there, without --overwrite.

    Ctrl-C stops the peer (C-CANCEL) and releases the association; a second Ctrl-C aborts it.
    """
    from dicomtwist.tools.contexts import storage_classes
    from dicomtwist.tools.files.receiving_folder import open_folder
    from dicomtwist.tools.interrupts import run_command
    from dicomtwist.tools.query.query import make_query
    from dicomtwist.tools.runners.retrieve import Get, require_key

    query = require_key(make_query(keys, key_files, level, root, "Get", add_defaults=False))
    try:
        classes = storage_classes(sop_classes)
    except ValueError as error:
        raise click.UsageError(f"--sop-class: {error}") from None
    store = open_folder(folder, durability, min_free)
    run_command(Get(connection, output, query, store, classes, overwrite=overwrite).main, output)


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
    from dicomtwist.tools.runners.retrieve import Move, require_key

    if to is None and receive is None:
        raise click.UsageError("the destination is missing: give --to or --receive")
    query = require_key(make_query(keys, key_files, level, root, "Move", add_defaults=False))
    store = None if receive is None else open_folder(receive, durability, min_free)
    moving = Move(connection, output, query, to or connection.calling, store, listen, overwrite=overwrite)
    run_command(moving.main, output)
