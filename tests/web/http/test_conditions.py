"""dicomtwist.web.http.conditions: Range, If-None-Match, Accept-Encoding."""

from __future__ import annotations

import unittest

from dicomtwist.web.http.conditions import UnsatisfiableRange, accepts_gzip, matches_etag, parse_range


class Conditions(unittest.TestCase):
    def test_ranges(self) -> None:
        for text, expected in (
            ("bytes=0-0", (0, 1)),
            ("bytes=2-5", (2, 6)),
            ("bytes=2-", (2, 10)),
            ("bytes=2-99", (2, 10)),
            ("bytes=-3", (7, 10)),
            ("bytes=-99", (0, 10)),
            ("Bytes = 1 - 2", (1, 3)),
            ("", None),
            ("bytes=-", None),
            ("bytes=5-2", None),
            ("bytes=0-1,4-5", None),
            ("items=0-1", None),
            ("bytes=a-b", None),
            ("bytes=1" + "0" * 30 + "-", None),
            ("bytes=٣-", None),
        ):
            self.assertEqual(parse_range(text, 10), expected, text)
        for text, length in (("bytes=10-", 10), ("bytes=-0", 10), ("bytes=-5", 0), ("bytes=0-", 0)):
            with self.assertRaises(UnsatisfiableRange):
                parse_range(text, length)

    def test_entity_tags(self) -> None:
        for text, expected in (
            ('"a"', True),
            ("*", True),
            ('W/"a"', True),
            ('"b", "a"', True),
            ('"b"', False),
            ("a", False),
            ('"ab"', False),
            ("", False),
        ):
            self.assertEqual(matches_etag(text, '"a"'), expected, text)

    def test_encodings(self) -> None:
        for text, expected in (
            ("", False),
            ("gzip", True),
            ("GZIP;q=0.5, br", True),
            ("gzip;q=0", False),
            ("*", True),
            ("*;q=0", False),
            ("identity", False),
            ("identity, gzip;q=0.5", False),
            ("br, deflate", False),
            ("x-gzip", True),
            ("gzip;q=1.2.3", False),
            ("*;q=0, gzip", True),
        ):
            self.assertEqual(accepts_gzip(text), expected, text)
