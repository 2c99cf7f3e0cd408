"""
``dicomtwist commit``: the options of storage commitment (PS3.4 Annex J).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from dicomtwist.tools.options import Command, ListenType, SecondsType, connects, own_option

if TYPE_CHECKING:
    from dicomtwist.tools.connection import Connection
    from dicomtwist.tools.display.console import Output

#: How long to wait for a report by default, in seconds.
WAIT: Final = 60.0


@click.command(
    cls=Command,
    examples="""\
May these files be deleted here?
  dicomtwist commit PACS@pacs.example.org:104 study/
The archive reports on an association of its own, to the port that it knows for us:
  dicomtwist commit --calling CT1 --listen 11112 PACS@pacs.example.org:104 study/
What an archive has, by its UIDs:
  dicomtwist find --csv --level IMAGE -k SOPClassUID -k SOPInstanceUID -k StudyInstanceUID=1.2.3 \\
    -k SeriesInstanceUID=1.2.3.4 PACS@pacs.example.org:104 | cut -d, -f 1,2 |
    dicomtwist commit --uids - PACS@pacs.example.org:104""",
)
@connects
@own_option(
    "--uids",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Ask about the instances in FILE, each a line with SOP Class UID and SOP Instance UID; - for standard input.",
)
@own_option(
    "--listen",
    type=ListenType(),
    metavar="WHERE",
    help="Where PEER reports: a port that it knows for us, or an endpoint string.  [default: on the same association]",
)
@own_option(
    "--wait",
    type=SecondsType(),
    default=f"{WAIT:g}",
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a report; or none.",
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
    Ask PEER to answer for the instances in PATHS, wait for its report, and tell which it answers for and which not.

    Folders are walked through; - reads the names of files from standard input.

    Ctrl-C does not wait any longer and releases the association; once more aborts it.
    """
    from dicomtwist.tools.interrupts import run
    from dicomtwist.tools.operations.commit import Commit, References

    if bool(paths) == (uids is not None):
        raise click.UsageError("give either PATHS, or --uids")
    run(Commit(connection, output, References(paths, uids), listen, wait).main, output)
