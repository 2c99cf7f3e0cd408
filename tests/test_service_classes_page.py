"""docs/service_classes.md agrees with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pydicom
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import evt
from dicomtwist.sop_relations import ANNEXES
from tests.service_classes_page import SERVICES, hooks, page

PAGE = Path(__file__).parent.parent / "docs" / "service_classes.md"

#: A row for a SOP Class. The SOP Classes are pydicom's, and a later release may know more of them.
SOP_CLASS_ROW = re.compile(r"\| `\w+` \| [0-9.]+ \|.*")
WRITTEN_WITH = "3.0."


class PageTests(SynchronousTestCase):
    maxDiff = None

    def test_written_from_the_code(self) -> None:
        """If this fails, ``python -m tests.service_classes_page > docs/service_classes.md`` writes the page again."""
        told, is_so = PAGE.read_text().splitlines(), page().splitlines()
        if not pydicom.__version__.startswith(WRITTEN_WITH):
            told, is_so = ([line for line in lines if not SOP_CLASS_ROW.fullmatch(line)] for lines in (told, is_so))
        self.assertEqual(told, is_so)

    def test_every_service_class_is_there(self) -> None:
        headings = re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE)
        self.assertEqual(set(headings), {name.value for name in ANNEXES} | {"Status codes of all service classes"})

    def test_links_within(self) -> None:
        """Each section that the page links to exists."""
        text = PAGE.read_text()
        anchors = {
            re.sub(r"[^a-z0-9-]", "", heading.lower().replace(" ", "-"))
            for heading in re.findall(r"^## (.+)$", text, re.MULTILINE)
        }
        linked = set(re.findall(r"\]\(#([^)]+)\)", text))
        self.assertEqual(linked - anchors, set())
        self.assertIn("queryretrieve", linked)

    def test_the_hooks_are_there(self) -> None:
        names = re.findall(r"EVT_\w+", hooks(list(SERVICES)))
        self.assertEqual(len(names), 11)
        known = {event.name for event in evt.get_events()}
        self.assertEqual(set(names) - known, set())
        self.assertEqual(set(re.findall(r"EVT_\w+", PAGE.read_text())) - known, set())
