"""
``dicomtwist echo``: the options of C-ECHO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from dicomtwist.tools.options import Command, connects, own_option

if TYPE_CHECKING:
    from dicomtwist.tools.connection import Connection
    from dicomtwist.tools.display.console import Output

#: The most C-ECHOs on one association.
MAX_ECHOES: Final = 1_000_000


@click.command(
    cls=Command,
    examples="""\
Is it there?
  dicomtwist echo PACS@pacs.example.org:104
How fast are a hundred round trips, over TLS?
  dicomtwist echo --tls-roots ca.pem --count 100 PACS@pacs.example.org:2762""",
)
@connects
@own_option(
    "--count",
    type=click.IntRange(1, MAX_ECHOES),
    default=1,
    show_default=True,
    metavar="N",
    help="Ask N times on each association, and tell how long it took.",
)
def echo(connection: Connection, output: Output, count: int) -> None:
    """
    Ask PEER whether it is there, with C-ECHO, and tell how long the answer took.
    """
    from dicomtwist.tools.interrupts import run
    from dicomtwist.tools.operations.echo import Echo

    run(Echo(connection, output, count).main, output)
