"""
Tables of text that fit the terminal: long cells continue on further lines of their column. No I/O but the terminal's size.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

__all__ = [
    "LEAST_WIDTH",
    "column_widths",
    "display_width",
    "fitted",
    "row_lines",
    "terminal_width",
    "word_lines",
    "wrapped",
]

#: The least width of a terminal that tables are made for, in columns.
LEAST_WIDTH: Final = 30
#: The least width to which a column is narrowed.
NARROWEST: Final = 6
#: The space between two columns.
GAP: Final = "  "
#: The characters behind which a text without spaces is broken, if there is one.
_BREAKS: Final = frozenset(" ,;:/\\.-_^=")


def terminal_width(stream: Any) -> int | None:
    """
    Return the width of the terminal of *stream* in columns; ``None`` if it is no terminal, so that nothing limits a line.

    The variable COLUMNS takes precedence, as for other programs.
    """
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return max(LEAST_WIDTH, int(columns))
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return None
    return max(LEAST_WIDTH, width) if width else None


def display_width(text: str) -> int:
    """Return the width of *text* on a terminal, in columns."""
    if text.isascii():
        return len(text)
    return sum(map(_width, text))


def _width(letter: str) -> int:
    if letter.isascii():
        return 1
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def fitted(widths: Sequence[int], limit: int | None) -> list[int] | None:
    """
    Return *widths* of columns, the widest ones narrowed so that a row fits *limit*; ``None`` if the columns are too many.

    :param limit: the width of a whole row, ``None`` for no limit.
    """
    found = list(widths)
    if limit is None:
        return found
    space = limit - len(GAP) * (len(found) - 1)
    if sum(found) <= space:
        return found
    # All columns that are wider than their fair share get the same width.
    left, share = len(found), space
    for width in sorted(found):
        if width * left > share:
            cap = share // left
            if cap < NARROWEST:
                return None
            return [min(width, cap) for width in found]
        share -= width
        left -= 1
    return found


def wrapped(text: str, width: int) -> list[str]:
    """
    Return *text* as lines of at most *width* columns.

    It is broken at a space if possible, else behind a punctuation mark, and only else within a word.
    """
    if display_width(text) <= width:
        return [text]
    lines = []
    while text:
        end = _end(text, width)
        if end < len(text):
            at = next((at for at in range(end, end // 3, -1) if text[at - 1] == " "), 0)
            at = at or next((at for at in range(end, end // 3, -1) if text[at - 1] in _BREAKS), end)
            end = end if text[end] == " " else at
        lines.append(text[:end].rstrip(" "))
        text = text[end:].lstrip(" ")
    return lines


def word_lines(text: str, limit: int | None) -> list[str]:
    """
    Return a sentence as lines, broken at spaces alone: a word that is wider than the terminal stays whole, to be copied.

    :param limit: the width of a line, ``None`` for a single line.
    """
    if limit is None or display_width(text) <= limit:
        return [text]
    lines: list[str] = []
    for word in text.split(" "):
        if lines and display_width(lines[-1]) + 1 + display_width(word) <= limit:
            lines[-1] += f" {word}"
        else:
            lines.append(word if not lines else f"  {word}")
    return lines


def _end(text: str, width: int) -> int:
    """Return how many characters of *text* fit *width* columns: one at the least, with what combines with it."""
    used = 0
    for at, letter in enumerate(text):
        used += _width(letter)
        if used > width and at:
            return at
    return len(text)


def row_lines(cells: Sequence[str], widths: Sequence[int], *, wraps: bool = True) -> Iterator[str]:
    """
    Yield the lines of a row.

    :param wraps: whether a cell that is wider than its column continues on the next line, instead of shifting the rest.
    """
    columns = [wrapped(cell, width) if wraps else [cell] for cell, width in zip(cells, widths, strict=True)]
    for number in range(max(map(len, columns), default=0)):
        pieces = [column[number] if number < len(column) else "" for column in columns]
        padded = (piece + " " * (width - display_width(piece)) for piece, width in zip(pieces, widths, strict=True))
        yield GAP.join(padded).rstrip()


def column_widths(rows: Iterable[Sequence[str]]) -> list[int]:
    """Return the widths of the columns of *rows*."""
    return [max(map(display_width, column)) for column in zip(*rows, strict=True)]
