"""
``dicomtwist store``: the options of C-STORE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dicomtwist.tools.options import Command, connects, own_option

if TYPE_CHECKING:
    from dicomtwist.tools.connection import Connection
    from dicomtwist.tools.display.console import Output


@click.command(
    cls=Command,
    examples="""\
Send a folder, with all folders in it:
  dicomtwist store PACS@pacs.example.org:104 study/
A large one, over four associations, so that it can be interrupted and gone on with:
  dicomtwist store --associations 4 --resume sent.journal PACS@pacs.example.org:104 archive/
In a script:
  dicomtwist store --json PACS@pacs.example.org:104 study/ >result.json""",
)
@connects
@own_option(
    "--resume",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Note in FILE what the peer has stored, and do not send again what is noted there. A file that has changed"
    " since is sent again.",
)
@own_option(
    "--retries",
    type=click.IntRange(0, 10),
    default=1,
    show_default=True,
    metavar="N",
    help="How often to send an instance again whose association broke.",
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True))
def store(connection: Connection, output: Output, paths: tuple[str, ...], resume: str | None, retries: int) -> None:
    """
    Send the DICOM files in PATHS to PEER.

    Folders are walked through. What is not DICOM is skipped and counted. Just what the files need is proposed, over several
    associations where one has no place for it; each file goes in its own transfer syntax where the peer accepts that, and
    converted where it accepts another uncompressed one.

    Ctrl-C lets what is on its way be answered, and releases the associations; once more aborts them.
    """
    from dicomtwist.tools.files.resume_journal import Journal, JournalError
    from dicomtwist.tools.interrupts import run
    from dicomtwist.tools.operations.store import Store

    journal = None
    if resume is not None:
        try:
            journal = Journal(resume, str(connection.peer))
        except JournalError as error:
            raise click.UsageError(f"--resume: {error}") from None
    run(Store(connection, output, paths, journal, retries).main, output)
