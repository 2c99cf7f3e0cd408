"""docs/rooms.svg shows the rooms and imports of the code."""

from __future__ import annotations

import unittest
from xml.etree import ElementTree

from tests.rooms_picture import PICTURE, imports, picture, reduced
from tests.test_layers import ROOMS


class Picture(unittest.TestCase):
    def test_the_file_is_up_to_date(self) -> None:
        self.assertTrue(PICTURE.read_text() == picture(), "docs/rooms.svg differs from the code: run `make picture`")

    def test_each_room_and_each_arc_is_drawn(self) -> None:
        root = ElementTree.fromstring(picture())
        drawn = [element.get("class", "").split()[:1] for element in root.iter()]
        self.assertEqual(drawn.count(["box"]), len(ROOMS))
        self.assertEqual(drawn.count(["arc"]), sum(map(len, reduced(imports()).values())))

    def test_reduced(self) -> None:
        """An edge that follows from others is left out, and every room stays reachable."""
        self.assertEqual(
            reduced({0: set(), 1: {0}, 2: {0, 1}, 3: {0}, 4: {0, 2, 3}}), {0: set(), 1: {0}, 2: {1}, 3: {0}, 4: {2, 3}}
        )

    def test_imports_lead_down(self) -> None:
        for row, others in imports().items():
            self.assertTrue(all(other < row for other in others), ROOMS[row])
