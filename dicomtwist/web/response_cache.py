"""
A cache of recent responses that took time to make.
"""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock
from typing import Final

__all__ = ["ResponseCache"]

#: The longest response that is kept, and all of them together, in bytes: the metadata of 250 CT images take 170 KB.
MAX_RESPONSE: Final = 1024 * 1024
MAX_CACHED: Final = 8 * 1024 * 1024


class ResponseCache:
    """The bodies of recent responses by their entity tags, which tell their whole content. Any thread may use it."""

    def __init__(self) -> None:
        self._bodies: dict[str, bytes] = {}
        self._size = 0
        self._lock = Lock()

    def get(self, etag: str) -> bytes | None:
        """Return the body with an entity tag, ``None`` if it is not there."""
        with self._lock:
            body = self._bodies.pop(etag, None)
            if body is not None:
                self._bodies[etag] = body  # the one that was used last is at the end
            return body

    def kept(self, etag: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield *pieces*, and keep them as the body with an entity tag when they are complete, and short enough."""
        kept: list[bytes] = []
        size = 0
        for piece in pieces:
            size += len(piece)
            if size <= MAX_RESPONSE:
                kept.append(piece)
            else:
                kept.clear()
            yield piece
        if size <= MAX_RESPONSE:
            self._keep(etag, b"".join(kept))

    def _keep(self, etag: str, body: bytes) -> None:
        with self._lock:
            self._size += len(body) - len(self._bodies.pop(etag, b""))
            self._bodies[etag] = body
            while self._size > MAX_CACHED:
                self._size -= len(self._bodies.pop(next(iter(self._bodies))))
