"""tests/prose.py finds the sentences that it is meant to find, with their lines, and no others."""

from __future__ import annotations

import unittest
from collections.abc import Iterable
from textwrap import dedent

from tests.prose import PROJECT, Text, allowed, check, folder, hits, markdown_texts, python_texts

#: Sentences that break a rule, and its name.
BAD = (
    ("Who commits for others tells first how it went.", "subject"),
    ("Whoever comes while a commit is under way goes into the next.", "subject"),
    ("What follows is used by the writer as well.", "subject"),
    ("The same for the same request: another file.", "subject"),
    ("Those that wait are released.", "subject"),
    ("It is kept for whoever asks later.", "whoever"),
    ("A pool for who talks to one peer all day.", "free-who"),
    ("Only the one who asked gets the rest.", "one-who"),
    ("The file is removed, where there is one.", "where-if"),
    ("Where nothing is bound the request is refused.", "where-if"),
    ("The index is made anew at the next start.", "anew"),
    ("The owner is told of each failure.", "tell-of"),
    ("The peer is told success at once.", "told-success"),
    ("An option goes before the file.", "goes-before"),
    ("A UID that is none is refused.", "as-none"),
    ("The destination takes it not at all.", "takes-not"),
)

#: Sentences that resemble those and break no rule.
GOOD = (
    "Who calls the handler?",
    "The peer, which knows what follows, waits.",
    "The folder where it lies is synced.",
    "The same.",
    'A page says "kept for whoever asks" in quotation marks.',
    "A call of ``anew`` in backticks is code.",
    "Commit the rows before that, if they are new.",
    "The response has not arrived yet.",
)


def found(texts: Iterable[Text]) -> list[tuple[int, str]]:
    return [(line, rule.name) for text in texts for line, rule, _ in check(text)]


class Rules(unittest.TestCase):
    def test_bad(self) -> None:
        for sentence, name in BAD:
            with self.subTest(sentence):
                self.assertIn((1, name), found([Text([(1, sentence)])]))

    def test_good(self) -> None:
        for sentence in GOOD:
            with self.subTest(sentence):
                self.assertEqual(found([Text([(1, sentence)])]), [])

    def test_sentences(self) -> None:
        """A sentence may begin within a line and reach over several; a rule is searched in one sentence."""
        text = Text(
            [(4, "The peer waits, e.g. For PS3.8. Whoever"), (5, "asks (twice) gets it."), (6, "The end is near.")]
        )
        self.assertEqual(
            list(text.sentences()),
            [
                (4, "The peer waits, e.g. For PS3.8."),
                (4, "Whoever asks (twice) gets it."),
                (6, "The end is near."),
            ],
        )


class Python(unittest.TestCase):
    SOURCE = dedent('''\
        """A module.

        Whoever reads this is right.
        """

        # Who writes a comment
        # over two lines.
        x = 1  # kept for whoever asks
        #: The first.
        y = "Who wrote this string?"


        def f(a):
            """
            Return it.

            :param a: who asks for it.
            * what is in a list

            ::

                whoever is in a literal block

            The paragraph behind it is read anew.
            """
            raise ValueError(f"{a} was told of it")
        ''')

    def test_all(self) -> None:
        self.assertEqual(
            sorted(found(python_texts(self.SOURCE))),
            [
                (3, "subject"),
                (6, "subject"),
                (8, "whoever"),
                (17, "subject"),
                (18, "subject"),
                (24, "anew"),
                (26, "tell-of"),
            ],
        )

    def test_docstrings_only(self) -> None:
        lines = [line for line, _ in found(python_texts(self.SOURCE, docstrings_only=True))]
        self.assertEqual(lines, [3, 17, 18, 24])


class Markdown(unittest.TestCase):
    def test_page(self) -> None:
        page = dedent("""\
            # What is where

            Whoever reads a paragraph
            is told of it.

            ```python
            # made anew
            ```

            | What it does | Where |
            |---|---|
            | the same as above | What follows is a sentence. |

            - an item
              that is read anew
            - what completes a sentence

            <!-- whoever reads comments -->
            """)
        self.assertEqual(
            sorted(found(markdown_texts(page))), [(3, "subject"), (3, "tell-of"), (12, "subject"), (14, "anew")]
        )


class Exceptions(unittest.TestCase):
    def test_each_says_why(self) -> None:
        for exception in allowed():
            self.assertTrue((PROJECT / exception.file).is_file(), exception)
            self.assertGreater(len(exception.reason), 10, exception)

    def test_each_is_needed(self) -> None:
        for exception in allowed():
            self.assertTrue(any(exception.covers(hit) for hit in hits([exception.file])), exception)


class Folders(unittest.TestCase):
    def test_folders(self) -> None:
        names = (
            "README.md",
            "dicomtwist/evt.py",
            "dicomtwist/archive/index/index.py",
            "docs/limits.md",
            "fuzz/seeds.py",
        )
        self.assertEqual(
            [folder(name) for name in names], ["README.md", "dicomtwist", "dicomtwist/archive", "docs", "fuzz"]
        )
