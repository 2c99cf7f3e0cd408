"""
The ``dicomtwist`` command and the table of its subcommands.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import click

from dicomtwist import __version__

#: The exit status of a command that SIGINT ended, as a shell counts.
INTERRUPTED: Final = 130

#: The subcommands: their names, their modules in :mod:`dicomtwist.tools.commands`, and a line of help for each.
COMMANDS: Final = {
    "archive": ("archive", "Look after the archive of 'twist dicom': delete, list, lock, check."),
    "commit": ("commit", "Ask a peer to commit to storing instances (storage commitment)."),
    "diagnose": ("diagnose", "Find out why a connection to a peer fails."),
    "dump-association": ("dump", "Show which presentation contexts a peer accepts."),
    "echo": ("echo", "Test whether a peer answers (C-ECHO)."),
    "find": ("find", "Query a peer (C-FIND)."),
    "get": ("retrieve", "Fetch instances from a peer (C-GET)."),
    "move": ("retrieve", "Have a peer send instances to an AE (C-MOVE)."),
    "passwd": ("passwd", "Set the passcode of a user of 'twist dicom'."),
    "queue": ("queue", "Look after the queue of forwarding of 'twist dicom'."),
    "store": ("store", "Send files and folders (C-STORE)."),
    "worklist": ("find", "Query a worklist for scheduled procedures (C-FIND)."),
}


def load_command(name: str) -> click.Command:
    """Import the subcommand *name* and return it."""
    module = import_module(f"dicomtwist.tools.commands.{COMMANDS[name][0]}")
    command: click.Command = getattr(module, name.replace("-", "_"))
    return command


class LazyGroup(click.Group):
    """
    A group that imports a subcommand when it is invoked or its options are completed.

    The names and the lines of help come from :data:`COMMANDS`, so that the help of the group and the completion of a
    subcommand's name import none of them.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the subcommand that *args* name, imported."""
        name, placeholder, rest = super().resolve_command(ctx, args)
        if name is None or placeholder is None:
            return name, placeholder, rest
        return name, load_command(name), rest

    def invoke(self, ctx: click.Context) -> Any:
        """
        Invoke the subcommand that *ctx* names.

        :raises SystemExit: it was interrupted at a prompt, with the status :data:`INTERRUPTED`.
        """
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort) as error:
            if isinstance(error, click.Abort) and not isinstance(error.__context__, KeyboardInterrupt):
                raise
            # click itself would print "Aborted!", with the status of any failure.
            raise SystemExit(INTERRUPTED) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dicomtwist")
def dicomtwist() -> None:
    """
    Ask DICOM peers for services.

    A peer is written [TITLE@]host:port, as in PACS@pacs.example.org:104 or [::1]:11112. An endpoint string may replace
    host and port, as in PACS@unix:/run/dicom.sock. The default title is ANY-SCP.

    Shell completion: eval "$(_DICOMTWIST_COMPLETE=bash_source dicomtwist)", or zsh_source, or fish_source.
    """


for _name, (_module, _help) in COMMANDS.items():
    dicomtwist.add_command(click.Command(_name, short_help=_help))
