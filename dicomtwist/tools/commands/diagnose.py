"""
``dicomtwist diagnose``: its options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dicomtwist.tools.commands.proposal_options import proposal_options
from dicomtwist.tools.options import FOR_MANY, Command, command_option, with_connection

if TYPE_CHECKING:
    from dicomtwist.tools.connection import Connection
    from dicomtwist.tools.display.console import Output


@click.command(
    cls=Command,
    unused=FOR_MANY,
    examples="""\
Find out why the peer cannot be reached:
  dicomtwist diagnose --calling CT1 PACS@pacs.example.org:104
Find out why the peer does not accept an image:
  dicomtwist diagnose PACS@pacs.example.org:104 image.dcm
Send it as well:
  dicomtwist diagnose --store PACS@pacs.example.org:104 image.dcm
Check the certificates:
  dicomtwist diagnose --tls-roots ca.pem --tls-certificate ct1.pem --tls-key ct1-key.pem PACS@pacs.example.org:2762""",
)
@with_connection
@command_option(
    "--store",
    is_flag=True,
    help="Send the first file of each SOP Class and transfer syntax in PATHS, and print the answers. The peer keeps them.",
)
@proposal_options("verification")
def diagnose(
    connection: Connection,
    output: Output,
    propose: tuple[str, ...],
    each_syntax: bool,
    paths: tuple[str, ...],
    store: bool,
) -> None:
    """
    Connect to PEER step by step, and print what is wrong and what to do.

    The steps are the look-up of the host name, the connection, the TLS handshake, the association, C-ECHO and the release.
    Each is printed with its duration. If the protocol of the peer is unclear, a second connection finds it out.

    With PATHS, the presentation contexts that these files and folders require are proposed as well, so that the result says
    whether the peer accepts them. With --store some of the files are sent too.
    """
    from dicomtwist.tools.interrupts import run_command
    from dicomtwist.tools.runners.diagnose import Diagnose
    from dicomtwist.tools.runners.dump import Proposal

    if store and not paths:
        raise click.UsageError("--store needs files or folders to send")
    run_command(Diagnose(connection, output, Proposal(propose, paths, each_syntax), store=store).main, output)
