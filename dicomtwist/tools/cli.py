"""
The ``dicomtwist`` command and its subcommands.
"""

from __future__ import annotations

import click

import dicomtwist as package
from dicomtwist.tools.commands.commit import commit
from dicomtwist.tools.commands.diagnose import diagnose
from dicomtwist.tools.commands.dump import dump_association
from dicomtwist.tools.commands.echo import echo
from dicomtwist.tools.commands.find import find, worklist
from dicomtwist.tools.commands.retrieve import get, move
from dicomtwist.tools.commands.store import store

COMMANDS: tuple[click.Command, ...] = (echo, store, find, get, move, worklist, commit, dump_association, diagnose)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package.__version__, prog_name="dicomtwist")
def dicomtwist() -> None:
    """
    Ask DICOM peers for services.

    A peer is written [TITLE@]host:port, as in PACS@pacs.example.org:104 or [::1]:11112, or with an endpoint string in
    the place of host and port, as in PACS@unix:/run/dicom.sock. Without a title ANY-SCP is called.

    Shell completion: eval "$(_DICOMTWIST_COMPLETE=bash_source dicomtwist)", or zsh_source, or fish_source.
    """


for _command in COMMANDS:
    dicomtwist.add_command(_command)
