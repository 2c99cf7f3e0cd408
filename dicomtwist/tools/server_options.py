"""
The options of subcommands that ask a running server by its API.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from dicomtwist.tools.options import command_option

__all__ = ["AS_JSON", "DEFAULT_URL", "TLS_ROOTS", "TOKEN_FILE", "URL", "with_options"]

#: The server that is asked without ``--url``.
DEFAULT_URL: Final = "http://127.0.0.1:8042"

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)

URL: Final = command_option("--url", metavar="URL", help=f"The server, as in {DEFAULT_URL}, which is the default.")
TOKEN_FILE: Final = command_option(
    "--token-file",
    type=_FILE,
    metavar="FILE",
    help="The file of a token, made with 'dicomtwist passwd --token', for the server.",
)
TLS_ROOTS: Final = command_option(
    "--tls-roots", type=_FILE, metavar="FILE", help="Certificates of authorities to trust, for a URL with https."
)
AS_JSON: Final = command_option("--json", "as_json", is_flag=True, help="Print JSON: an object, or one object a line.")


def with_options(*options: _Decorator) -> _Decorator:
    """Return a decorator that adds *options* to a subcommand, which shows them in this order."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return add
