"""
``dicomtwist dump-association``: its options.
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
    "dump-association",
    cls=Command,
    examples="""\
What does it store?
  dicomtwist dump-association PACS@pacs.example.org:104
Which transfer syntaxes of CT images does it take?
  dicomtwist dump-association --propose CTImageStorage --each-syntax PACS@pacs.example.org:104
Would it take these files?
  dicomtwist dump-association PACS@pacs.example.org:104 study/""",
)
@connects
@proposes("verification and storage")
def dump_association(
    connection: Connection, output: Output, propose: tuple[str, ...], each_syntax: bool, paths: tuple[str, ...]
) -> None:
    """
    Ask PEER for an association, and show what was proposed beside what it answered.

    With PATHS, what these files and folders need is proposed. Where an association has no place for all presentation
    contexts, several are asked for, one after the other.
    """
    from dicomtwist.tools.interrupts import run
    from dicomtwist.tools.operations.dump import DumpAssociation, Proposal

    run(DumpAssociation(connection, output, Proposal(propose, paths, each_syntax)).main, output)
