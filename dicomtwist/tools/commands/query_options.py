"""
The options that describe a query, for ``find``, ``worklist``, ``get`` and ``move``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from dicomtwist.tools.options import ValueType, own_option

if TYPE_CHECKING:
    from dicomtwist.tools.query.keys import Key

#: The Query/Retrieve levels.
LEVELS: Final = ("PATIENT", "STUDY", "SERIES", "IMAGE")
#: The information models, as ``--root`` names them.
ROOTS: Final = ("study", "patient")


class KeyType(ValueType["Key"]):
    """A key, ``Keyword=value``."""

    name = "key"

    def parse(self, text: str) -> Key:
        """Return the key that *text* describes."""
        from dicomtwist.tools.query.keys import parse_key

        return parse_key(text)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the keywords that begin so; of what is in a sequence, behind the way that leads there."""
        from dicomtwist.tools.query.attributes import keywords_like

        way, dot, start = incomplete.rpartition(".")
        # Without a letter they are some thousands.
        return [CompletionItem(f"{way}{dot}{keyword}") for keyword in keywords_like(start)] if start else []


def key_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a subcommand ``-k`` and ``-f``; it is called with *keys* and *key_files*."""
    key = own_option(
        "-k",
        "--key",
        "keys",
        type=KeyType(),
        multiple=True,
        metavar="KEY",
        help="Match or ask for an attribute: Keyword=value, (gggg,eeee)=value, Sequence[0].Keyword=value; without a value"
        " it is only asked for. May be given more than once.",
    )
    file = own_option(
        "-f",
        "--file",
        "key_files",
        type=click.Path(exists=True, dir_okay=False, allow_dash=True),
        multiple=True,
        metavar="FILE",
        help="Take keys from FILE: a DICOM file, or text with a key in each line; - for standard input.",
    )
    return key(file(function))


def level_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a subcommand ``--level`` and ``--root``."""
    level = own_option(
        "--level",
        type=click.Choice(LEVELS, case_sensitive=False),
        help="Query/Retrieve Level.  [default: that of the lowest unique key, PATIENT only to retrieve; STUDY]",
    )
    root = own_option(
        "--root", type=click.Choice(ROOTS), default=ROOTS[0], show_default=True, help="Information model."
    )
    return level(root(function))


def format_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a subcommand ``--csv`` and ``--limit``."""
    as_csv = own_option("--csv", "as_csv", is_flag=True, help="Print comma-separated values in the place of a table.")
    limit = own_option(
        "--limit", type=click.IntRange(1), metavar="N", help="Have the peer stop after N matches (C-CANCEL)."
    )
    return as_csv(limit(function))
