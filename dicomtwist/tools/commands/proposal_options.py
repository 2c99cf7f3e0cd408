"""
The options that say which presentation contexts to propose, for ``dump-association`` and ``diagnose``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dicomtwist.tools.options import SOPClassType, command_option


def proposal_options(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the options for what to propose, and files whose requirements are proposed."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        each = command_option(
            "--each-syntax", is_flag=True, help="Propose each known transfer syntax in a context of its own."
        )
        propose = command_option(
            "--propose",
            type=SOPClassType(),
            multiple=True,
            metavar="WHAT",
            help=f"A SOP Class (CTImageStorage, or a UID) or a group (storage, query, worklist, verification ...); may be"
            f" repeated.  [default: {default}]",
        )
        paths = click.argument("paths", nargs=-1, type=click.Path(exists=True))
        return paths(propose(each(function)))

    return decorate
