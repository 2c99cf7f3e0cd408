"""
Rendered images that are kept: viewers ask for the same thumbnails again.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

__all__ = ["ImageCache"]

#: The most bytes of all images that are kept, and of one.
MAX_TOTAL: Final = 64 * 1024 * 1024
MAX_IMAGE: Final = 1024 * 1024


class ImageCache:
    """Images by a key; those that were not asked for longest are dropped."""

    def __init__(self) -> None:
        self._images: OrderedDict[str, bytes] = OrderedDict()
        self._total = 0

    def get(self, key: str) -> bytes | None:
        """Return the image with *key*, ``None`` if it is not kept."""
        image = self._images.get(key)
        if image is not None:
            self._images.move_to_end(key)
        return image

    def put(self, key: str, image: bytes) -> None:
        """Keep *image*, unless it is longer than :data:`MAX_IMAGE`."""
        if len(image) > MAX_IMAGE:
            return
        self._total += len(image) - len(self._images.pop(key, b""))
        self._images[key] = image
        while self._total > MAX_TOTAL:
            _, dropped = self._images.popitem(last=False)
            self._total -= len(dropped)
