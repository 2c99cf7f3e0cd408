"""
A buffer for the chunks of a data set, kept in memory until the rest has arrived.
"""

from __future__ import annotations

from collections import deque

#: Chunks shorter than this are copied together, in bytes. A view takes some 200 bytes itself and keeps alive all of the
#: read that it came in: if they were kept as they arrive, chunks of two bytes would take a hundred times what they hold.
SHORT = 4096


class ChunkBuffer:
    """
    A queue of chunks that takes little more memory than their bytes.

    :ivar length: the number of bytes in the buffer.
    """

    __slots__ = ("_chunks", "length")

    def __init__(self) -> None:
        self._chunks: deque[memoryview | bytearray] = deque()
        self.length = 0

    def append(self, data: memoryview) -> None:
        """Add *data* at the end. A chunk of at least :data:`SHORT` bytes is kept without a copy."""
        length = len(data)
        self.length += length
        if length >= SHORT:
            self._chunks.append(data)
            return
        last = self._chunks[-1] if self._chunks else None
        if type(last) is bytearray:
            last += data
        else:
            self._chunks.append(bytearray(data))

    def pop(self) -> memoryview:
        """Remove the first chunk and return it."""
        chunk = memoryview(self._chunks.popleft())
        self.length -= len(chunk)
        return chunk

    def take_chunks(self) -> list[memoryview | bytearray]:
        """Empty the buffer and return its chunks."""
        chunks = list(self._chunks)
        self.clear()
        return chunks

    def take(self) -> bytes:
        """Empty the buffer and return its bytes, joined."""
        data = b"".join(self._chunks)
        self.clear()
        return data

    def clear(self) -> None:
        """Empty the buffer."""
        self._chunks.clear()
        self.length = 0
