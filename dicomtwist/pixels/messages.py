"""
The messages between the server and its child processes: a header in JSON, and a payload. Imports no codec.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from struct import Struct
from typing import Any, Final

__all__ = ["MessageReader", "encode_message"]

#: The most bytes of a header, and of a payload: a frame of the largest size, and its head.
MAX_HEADER: Final = 1024 * 1024
MAX_PAYLOAD: Final = 1024 * 1024 * 1024

_LENGTHS: Final = Struct("<IQ")


def encode_message(header: dict[str, Any], payload: bytes = b"") -> list[bytes]:
    """Return the pieces of a message."""
    text = json.dumps(header).encode()
    return [_LENGTHS.pack(len(text), len(payload)) + text, payload] if payload else [_LENGTHS.pack(len(text), 0) + text]


class MessageReader:
    """Reads messages from the bytes of a stream."""

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._size = 0
        self._needed = _LENGTHS.size

    def feed(self, data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
        """
        Take bytes, and yield the messages that are complete: the header and the payload.

        :raises ValueError: they are no messages.
        """
        self._held.append(data)
        self._size += len(data)
        while self._size >= self._needed:
            joined = self._held[0] if len(self._held) == 1 else b"".join(self._held)
            self._held = [joined]
            header_length, payload_length = _LENGTHS.unpack_from(joined)
            if header_length > MAX_HEADER or payload_length > MAX_PAYLOAD:
                raise ValueError("a message that is too long")
            start = _LENGTHS.size
            end = start + header_length + payload_length
            if len(joined) < end:
                self._needed = end
                return
            header: Any = json.loads(joined[start : start + header_length])
            if not isinstance(header, dict):
                raise ValueError("a message without a header")
            payload = joined[start + header_length : end]
            rest = joined[end:]
            self._held = [rest] if rest else []
            self._size = len(rest)
            self._needed = _LENGTHS.size
            yield header, payload
