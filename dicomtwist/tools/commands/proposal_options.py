"""
The options that say which presentation contexts to propose, for ``dump-association`` and ``diagnose``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dicomtwist.tools.options import SOPClassType, own_option


def proposes(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a subcommand the options that say what to propose, and files whose needs are proposed."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        each = own_option("--each-syntax", is_flag=True, help="One context for each transfer syntax that there is.")
        propose = own_option(
            "--propose",
            type=SOPClassType(),
            multiple=True,
            metavar="WHAT",
            help=f"A SOP Class (CTImageStorage, or a UID) or a group (storage, query, worklist, verification ...); may be"
            f" given more than once.  [default: {default}]",
        )
        paths = click.argument("paths", nargs=-1, type=click.Path(exists=True))
        return paths(propose(each(function)))

    return decorate
