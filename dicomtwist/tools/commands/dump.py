"""
``dicomtwist dump-association``: its options.
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
    "dump-association",
    cls=Command,
    unused=FOR_MANY,
    examples="""\
List what the peer stores:
  dicomtwist dump-association PACS@pacs.example.org:104
List the transfer syntaxes of CT images that it accepts:
  dicomtwist dump-association --propose CTImageStorage --each-syntax PACS@pacs.example.org:104
Check whether it would accept these files:
  dicomtwist dump-association PACS@pacs.example.org:104 study/""",
)
@with_connection
@proposal_options("verification and storage")
def dump_association(
    connection: Connection, output: Output, propose: tuple[str, ...], each_syntax: bool, paths: tuple[str, ...]
) -> None:
    """
    Request an association with PEER, and show each presentation context with the proposal and the answer.

    With PATHS, the presentation contexts that these files and folders require are proposed. If one association has no room
    for all of them, several are requested, one after the other.
    """
    from dicomtwist.tools.interrupts import run_command
    from dicomtwist.tools.runners.dump import DumpAssociation, Proposal

    run_command(DumpAssociation(connection, output, Proposal(propose, paths, each_syntax)).main, output)
