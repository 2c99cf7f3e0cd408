"""
``dicomtwist commit``: the options of storage commitment (PS3.4 Annex J).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from dicomtwist.tools.options import FOR_MANY, Command, ListenType, SecondsType, command_option, with_connection

if TYPE_CHECKING:
    from dicomtwist.tools.connection import Connection
    from dicomtwist.tools.display.console import Output

#: How long to wait for a report by default, in seconds.
WAIT: Final = 60.0


@click.command(
    cls=Command,
    unused=FOR_MANY,
    examples="""\
Ask whether these files may be deleted here:
  dicomtwist commit PACS@pacs.example.org:104 study/
Receive the report on another association, at the port that the archive knows for us:
  dicomtwist commit --calling CT1 --listen 11112 PACS@pacs.example.org:104 study/
Ask about the instances of a series by their UIDs:
  dicomtwist find --csv --level IMAGE -k SOPClassUID -k SOPInstanceUID -k StudyInstanceUID=1.2.3 \\
    -k SeriesInstanceUID=1.2.3.4 PACS@pacs.example.org:104 | cut -d, -f 1,2 |
    dicomtwist commit --uids - PACS@pacs.example.org:104""",
)
@with_connection
@command_option(
    "--uids",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Read the instances from FILE, - for standard input: a SOP Class UID and a SOP Instance UID on each line.",
)
@command_option(
    "--listen",
    type=ListenType(),
    metavar="WHERE",
    help="Where PEER sends its report: a port that it knows for us, or an endpoint string.  [default: the same association]",
)
@command_option(
    "--wait",
    type=SecondsType(),
    default=f"{WAIT:g}",
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a report, or none for no limit.",
)
@click.argument("paths", nargs=-1, type=click.Path(exists=True, allow_dash=True))
def commit(
    connection: Connection,
    output: Output,
    paths: tuple[str, ...],
    uids: str | None,
    listen: str | None,
    wait: float | None,
) -> None:
    """
    Ask PEER to commit to storing the instances in PATHS, wait for its report, and print the result for each instance.

    Folders include all their subfolders; - reads the names of files from standard input.

    Ctrl-C stops waiting and releases the association; a second Ctrl-C aborts it.
    """
    from dicomtwist.tools.interrupts import run_command
    from dicomtwist.tools.runners.commit import Commit, References

    if bool(paths) == (uids is not None):
        raise click.UsageError("give either PATHS or --uids")
    run_command(Commit(connection, output, References(paths, uids), listen, wait).main, output)
