"""
Pieces of a data set, kept in memory until the rest has come.
"""

from __future__ import annotations

from collections import deque

#: Pieces shorter than this are copied together, in bytes. A view takes some 200 bytes itself and keeps all of the read
#: alive that it came in: kept as they come, pieces of two bytes would take a hundred times what they hold.
SHORT = 4096


class Pieces:
    """
    A queue of pieces that takes little more memory than they hold.

    :ivar length: how many bytes are in it.
    """

    __slots__ = ("_pieces", "length")

    def __init__(self) -> None:
        self._pieces: deque[memoryview | bytearray] = deque()
        self.length = 0

    def append(self, data: memoryview) -> None:
        """Put *data* at the end; it may be kept as it is."""
        length = len(data)
        self.length += length
        if length >= SHORT:
            self._pieces.append(data)
            return
        last = self._pieces[-1] if self._pieces else None
        if type(last) is bytearray:
            last += data
        else:
            self._pieces.append(bytearray(data))

    def pop(self) -> memoryview:
        """Take a piece from the front."""
        piece = memoryview(self._pieces.popleft())
        self.length -= len(piece)
        return piece

    def take_pieces(self) -> list[memoryview | bytearray]:
        """Take all, as the pieces that it is in."""
        pieces = list(self._pieces)
        self.clear()
        return pieces

    def take(self) -> bytes:
        """Take all, in one."""
        data = b"".join(self._pieces)
        self.clear()
        return data

    def clear(self) -> None:
        """Forget all."""
        self._pieces.clear()
        self.length = 0
