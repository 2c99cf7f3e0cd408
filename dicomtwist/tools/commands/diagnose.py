"""
``dicomtwist diagnose``: its options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dicomtwist.tools.commands.proposal_options import proposes
from dicomtwist.tools.options import Command, connects

if TYPE_CHECKING:
    from dicomtwist.tools.connection import Connection
    from dicomtwist.tools.display.console import Output


@click.command(
    cls=Command,
    examples="""\
Why can I not reach it?
  dicomtwist diagnose --calling CT1 PACS@pacs.example.org:104
Why does it not take this image?
  dicomtwist diagnose PACS@pacs.example.org:104 image.dcm
Is it the certificates?
  dicomtwist diagnose --tls-roots ca.pem --tls-certificate ct1.pem --tls-key ct1-key.pem PACS@pacs.example.org:2762""",
)
@connects
@proposes("verification")
def diagnose(
    connection: Connection, output: Output, propose: tuple[str, ...], each_syntax: bool, paths: tuple[str, ...]
) -> None:
    """
    Go the way to PEER step by step, and say what is wrong and what to do.

    The steps are: look up its name, connect, the TLS handshake, the association, C-ECHO, the release. Each is told with its
    time. Where it is not clear what the peer speaks, a second connection finds out.

    With PATHS, what these files and folders need is proposed as well.
    """
    from dicomtwist.tools.interrupts import run
    from dicomtwist.tools.operations.diagnose import Diagnose
    from dicomtwist.tools.operations.dump import Proposal

    run(Diagnose(connection, output, Proposal(propose, paths, each_syntax)).main, output)
