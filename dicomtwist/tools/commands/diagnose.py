"""
``dicomtwist diagnose``: its options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dicomtwist.tools.commands.proposal_options import proposal_options
from dicomtwist.tools.options import FOR_MANY, Command, with_connection

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
Check the certificates:
  dicomtwist diagnose --tls-roots ca.pem --tls-certificate ct1.pem --tls-key ct1-key.pem PACS@pacs.example.org:2762""",
)
@with_connection
@proposal_options("verification")
def diagnose(
    connection: Connection, output: Output, propose: tuple[str, ...], each_syntax: bool, paths: tuple[str, ...]
) -> None:
    """
    Connect to PEER step by step, and print what is wrong and what to do.

    The steps are the look-up of the host name, the connection, the TLS handshake, the association, C-ECHO and the release.
    Each is printed with its duration. If the protocol of the peer is unclear, a second connection finds it out.

    With PATHS, the presentation contexts that these files and folders require are proposed as well.
    """
    from dicomtwist.tools.interrupts import run_command
    from dicomtwist.tools.runners.diagnose import Diagnose
    from dicomtwist.tools.runners.dump import Proposal

    run_command(Diagnose(connection, output, Proposal(propose, paths, each_syntax)).main, output)
