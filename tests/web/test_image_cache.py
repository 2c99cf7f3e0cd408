"""dicomtwist.web.image_cache: rendered images that are kept."""

from __future__ import annotations

import unittest

from dicomtwist.web import image_cache
from dicomtwist.web.image_cache import ImageCache


class Bounds(unittest.TestCase):
    def setUp(self) -> None:
        for name, value in (("MAX_TOTAL", 10), ("MAX_IMAGE", 6)):
            self.addCleanup(setattr, image_cache, name, getattr(image_cache, name))
            setattr(image_cache, name, value)

    def test_the_oldest_is_dropped(self) -> None:
        cache = ImageCache()
        cache.put("a", b"1234")
        cache.put("b", b"5678")
        self.assertEqual(cache.get("a"), b"1234")
        cache.put("c", b"90")
        cache.put("d", b"1")
        self.assertEqual([cache.get(key) for key in "abcd"], [b"1234", None, b"90", b"1"])

    def test_long_and_again(self) -> None:
        cache = ImageCache()
        cache.put("a", b"1234567")
        self.assertIsNone(cache.get("a"))
        for _ in range(5):
            cache.put("b", b"123456")
        cache.put("c", b"1234")
        self.assertEqual(cache.get("b"), b"123456")
