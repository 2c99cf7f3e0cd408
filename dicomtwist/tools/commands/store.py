"""
``dicomtwist store``: the options of C-STORE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dicomtwist.tools.options import Command, command_option, with_connection

if TYPE_CHECKING:
    from dicomtwist.tools.connection import Connection
    from dicomtwist.tools.display.console import Output


@click.command(
    cls=Command,
    takes_url=True,
    examples="""\
Send a folder with all its subfolders:
  dicomtwist store PACS@pacs.example.org:104 study/
Send a large folder over four associations, and continue after an interruption:
  dicomtwist store --associations 4 --resume sent.journal PACS@pacs.example.org:104 archive/
Send a folder to a server of DICOMweb, which knows us by a token:
  dicomtwist store --jwt-file token https://pacs.example.org/dicom-web study/
Send from a script:
  dicomtwist store --json PACS@pacs.example.org:104 study/ >result.json""",
)
@with_connection
@command_option(
    "--resume",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Record in FILE which files the peer has stored, and skip the files that are recorded there. A file that has"
    " changed since is sent again.",
)
@command_option(
    "--retries",
    type=click.IntRange(0, 10),
    default=1,
    show_default=True,
    metavar="N",
    help="How often to send an instance again after its association broke.",
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True))
def store(connection: Connection, output: Output, paths: tuple[str, ...], resume: str | None, retries: int) -> None:
    """
    Send the DICOM files in PATHS to PEER.

    Folders include all their subfolders. Files that are not DICOM are skipped and counted. Only the presentation contexts
    that the files require are proposed, over several associations if one has no room for them. Each file is sent in its own
    transfer syntax if the peer accepts it; an uncompressed file is converted if the peer accepts another uncompressed one.

    Ctrl-C waits for the responses to instances under way and releases the associations; a second Ctrl-C aborts them.
    """
    from dicomtwist.tools.files.resume_journal import JournalError, ResumeJournal
    from dicomtwist.tools.interrupts import run_command
    from dicomtwist.tools.runners.store import Store

    journal = None
    if resume is not None:
        try:
            journal = ResumeJournal(resume, str(connection.peer))
        except JournalError as error:
            raise click.UsageError(f"--resume: {error}") from None
    if not hasattr(connection, "make_ae"):
        from dicomtwist.tools.runners.web_store import WebStore

        run_command(WebStore(connection, output, paths, journal, retries).main, output)
    run_command(Store(connection, output, paths, journal, retries).main, output)
