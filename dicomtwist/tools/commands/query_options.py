"""
The options that describe a query, for ``find``, ``worklist``, ``get`` and ``move``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from dicomtwist.tools.options import ValueType, command_option

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
        """Return the keywords that begin with the last step of *incomplete*, each after the steps before it."""
        from dicomtwist.tools.query.attributes import complete_keyword

        way, dot, start = incomplete.rpartition(".")
        # Without a letter there would be thousands.
        return [CompletionItem(f"{way}{dot}{keyword}") for keyword in complete_keyword(start)] if start else []


def key_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``-k`` and ``-f`` to a subcommand, which is called with *keys* and *key_files*."""
    key = command_option(
        "-k",
        "--key",
        "keys",
        type=KeyType(),
        multiple=True,
        metavar="KEY",
        help="Match an attribute: Keyword=value, (gggg,eeee)=value, Sequence[0].Keyword=value; without a value, only return"
        " it. May be repeated.",
    )
    file = command_option(
        "-f",
        "--file",
        "key_files",
        type=click.Path(exists=True, dir_okay=False, allow_dash=True),
        multiple=True,
        metavar="FILE",
        help="Read keys from FILE: a DICOM file, or text with one key on each line; - for standard input.",
    )
    return key(file(function))


def level_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--level`` and ``--root`` to a subcommand."""
    level = command_option(
        "--level",
        type=click.Choice(LEVELS, case_sensitive=False),
        help="Query/Retrieve Level.  [default: the level of the lowest unique key, PATIENT only to retrieve; else STUDY]",
    )
    root = command_option(
        "--root",
        type=click.Choice(ROOTS),
        help="Information model.  [default: patient for the level PATIENT, else study]",
    )
    return level(root(function))


def format_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--csv`` and ``--limit`` to a subcommand."""
    as_csv = command_option("--csv", "as_csv", is_flag=True, help="Print comma-separated values instead of a table.")
    limit = command_option(
        "--limit", type=click.IntRange(1), metavar="N", help="Stop the peer after N matches (C-CANCEL)."
    )
    return as_csv(limit(function))
