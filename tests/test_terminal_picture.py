"""docs/terminal.svg shows what the commands print."""

from __future__ import annotations

from xml.etree import ElementTree

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.terminal_picture import COMMANDS, PICTURE, comparable, session


class Picture(TestCase):
    timeout = 300

    def lines(self) -> list[str]:
        """Return the lines of the terminal in the picture."""
        texts = ElementTree.parse(PICTURE).iter("{http://www.w3.org/2000/svg}text")
        return [text.text or "" for text in texts if "line" in text.get("class", "").split()]

    async def test_it_shows_what_is_printed(self) -> None:
        """The commands are run again; times may differ."""
        printed = await deferToThread(session)
        self.assertEqual(
            comparable(self.lines()), comparable(printed), "docs/terminal.svg is out of date: run `make picture`"
        )

    def test_commands(self) -> None:
        """All commands are in the picture, and no line is wider than it."""
        lines = self.lines()
        self.assertEqual([line.removeprefix("$ ") for line in lines if line.startswith("$ ")], list(COMMANDS))
        self.assertLessEqual(max(map(len, lines)), 84)
