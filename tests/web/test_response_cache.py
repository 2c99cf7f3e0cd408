"""dicomtwist.web.response_cache: recent responses, within bounds."""

from __future__ import annotations

import unittest

from dicomtwist.web.response_cache import MAX_CACHED, MAX_RESPONSE, ResponseCache


class Cache(unittest.TestCase):
    def test_bounds(self) -> None:
        cache = ResponseCache()
        for length, is_kept in ((0, True), (10, True), (MAX_RESPONSE, True), (MAX_RESPONSE + 1, False)):
            pieces = [bytes(length // 2), bytes(length - length // 2)]
            self.assertEqual(list(cache.kept(f"{length}", iter(pieces))), pieces)
            self.assertEqual(cache.get(f"{length}"), b"".join(pieces) if is_kept else None)

    def test_least_recently_used(self) -> None:
        cache = ResponseCache()
        count = MAX_CACHED // MAX_RESPONSE
        for number in range(count):
            list(cache.kept(f"{number}", iter([bytes(MAX_RESPONSE)])))
        self.assertIsNotNone(cache.get("0"))
        list(cache.kept("more", iter([b"x"])))
        self.assertIsNone(cache.get("1"))
        self.assertIsNotNone(cache.get("0"))

    def test_not_complete(self) -> None:
        """A response that a client has left is not kept."""
        cache = ResponseCache()
        pieces = cache.kept("a", iter([b"1", b"2"]))
        next(pieces)
        del pieces
        self.assertIsNone(cache.get("a"))
