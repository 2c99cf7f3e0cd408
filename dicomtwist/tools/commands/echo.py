"""
``dicomtwist echo``: the options of C-ECHO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from dicomtwist.tools.options import Command, command_option, with_connection

if TYPE_CHECKING:
    from dicomtwist.tools.connection import Connection
    from dicomtwist.tools.display.console import Output

#: The most C-ECHOs on one association.
MAX_ECHOES: Final = 1_000_000


@click.command(
    cls=Command,
    unused=("async_ops",),
    examples="""\
Test whether the peer answers:
  dicomtwist echo PACS@pacs.example.org:104
Measure a hundred round trips over TLS:
  dicomtwist echo --tls-roots ca.pem --count 100 PACS@pacs.example.org:2762""",
)
@with_connection
@command_option(
    "--count",
    type=click.IntRange(1, MAX_ECHOES),
    default=1,
    show_default=True,
    metavar="N",
    help="Send N C-ECHOs on each association, and print the response times.",
)
def echo(connection: Connection, output: Output, count: int) -> None:
    """
    Test with C-ECHO whether PEER answers, and print the response time.
    """
    from dicomtwist.tools.interrupts import run_command
    from dicomtwist.tools.runners.echo import Echo

    run_command(Echo(connection, output, count).main, output)
