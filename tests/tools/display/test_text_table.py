"""Tables that fit a terminal, in any width and any script."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.tools.display.console import table
from dicomtwist.tools.display.text_table import (
    LEAST_WIDTH,
    column_widths,
    display_width,
    fitted,
    row_lines,
    terminal_width,
    word_lines,
    wrapped,
)

TEXT = st.text(st.sampled_from("ab .\\^山e\u0301ü"), max_size=60)


class Widths(SynchronousTestCase):
    """The width of the terminal, of texts and of columns."""

    def test_terminal(self) -> None:
        environment: Any = os.environ
        for columns, width in (
            ("80", 80), ("5", LEAST_WIDTH), ("0", None), ("", None), ("x", None), ("²", None), ("-1", None),
        ):  # fmt: skip
            self.patch(os, "environ", {**environment, "COLUMNS": columns})
            self.assertEqual(terminal_width(io.StringIO()), width, columns)

    def test_a_terminal_without_the_variable(self) -> None:
        self.patch(os, "environ", {})
        ours, theirs = os.openpty()
        with os.fdopen(ours, "rb"), os.fdopen(theirs, "w") as stream:
            self.assertIsNone(terminal_width(stream), "a terminal of unknown size")

    def test_texts(self) -> None:
        for text, width in (("CT1", 3), ("山田", 4), ("e\u0301", 1), ("a\u200db", 2), ("", 0)):
            self.assertEqual(display_width(text), width, text)

    def test_fitted(self) -> None:
        self.assertEqual(fitted([5, 100], None), [5, 100])
        self.assertEqual(fitted([5, 20], 27), [5, 20])
        self.assertEqual(fitted([5, 100], 27), [5, 20])
        self.assertEqual(fitted([50, 5, 60], 49), [20, 5, 20])
        self.assertIsNone(fitted([50] * 20, 80))
        self.assertEqual(fitted([], 80), [])

    @given(st.lists(st.integers(0, 100), min_size=1, max_size=8), st.integers(LEAST_WIDTH, 200))
    def test_any_fits(self, widths: list[int], limit: int) -> None:
        found = fitted(widths, limit)
        if found is not None:
            self.assertLessEqual(sum(found) + 2 * (len(found) - 1), limit)
            self.assertTrue(all(one <= other for one, other in zip(found, widths, strict=True)))


class Wrapping(SynchronousTestCase):
    """Long texts become lines, and lose nothing but spaces."""

    def test_places(self) -> None:
        self.assertEqual(wrapped("one two three", 8), ["one two", "three"])
        self.assertEqual(wrapped("1.2.840.10008.5.1.4", 10), ["1.2.840.", "10008.5.1.", "4"])
        self.assertEqual(wrapped("see the /var/spool", 16), ["see the", "/var/spool"])
        self.assertEqual(wrapped("a" * 10, 4), ["aaaa", "aaaa", "aa"])
        self.assertEqual(wrapped("山田太郎", 5), ["山田", "太郎"])
        self.assertEqual(wrapped("", 4), [""])

    def test_sentences(self) -> None:
        """No word of a sentence is cut, and without a terminal it is one line."""
        text = "To do: check /etc/dicomtwist/archive.toml, then start it again"
        self.assertEqual(word_lines(text, None), [text])
        self.assertEqual(word_lines(text, 80), [text])
        lines = word_lines(text, 20)
        self.assertEqual(lines[:3], ["To do: check", "  /etc/dicomtwist/archive.toml,", "  then start it"])
        self.assertEqual(" ".join(line.strip() for line in lines), text)

    @given(TEXT, st.integers(2, 30))
    def test_any(self, text: str, width: int) -> None:
        lines = wrapped(text, width)
        self.assertEqual("".join(lines).replace(" ", ""), text.replace(" ", ""))
        self.assertTrue(all(display_width(line) <= width for line in lines), lines)

    @given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4), st.integers(LEAST_WIDTH, 100))
    def test_rows(self, rows: list[tuple[str, str, str]], limit: int) -> None:
        widths = fitted(column_widths(rows), limit)
        assert widths is not None
        for row in rows:
            for line in row_lines(row, widths):
                self.assertLessEqual(display_width(line), limit)


class Tables(SynchronousTestCase):
    """The tables of the commands."""

    ROWS = (("failed", 3, "0xC000 " + "words " * 30), ("stored", 1, ""))

    def test_at_a_terminal(self) -> None:
        self.patch(os, "environ", {**os.environ, "COLUMNS": "60"})
        lines = table(self.ROWS, "  ")
        self.assertTrue(all(len(line) <= 60 for line in lines), lines)
        self.assertEqual(lines[0][:20], "  failed  3  0xC000 ")
        self.assertEqual(" ".join(lines).split().count("words"), 30)

    def test_without_one(self) -> None:
        self.patch(os, "environ", {key: value for key, value in os.environ.items() if key != "COLUMNS"})
        self.patch(sys, "stdout", io.StringIO())
        self.assertEqual(len(table(self.ROWS)), 2)
        self.assertEqual(table([]), [])
