"""
ZIP archives of files that are not compressed, written as they are read. The length is known in advance.

Each header has the length and the CRC-32 of its file, which programs need that read an archive while it arrives. So a file is
read twice, the second time from the system's cache.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from struct import pack
from typing import Final

__all__ = ["ArchiveWriter", "archive_length"]

_LIMIT: Final = 0xFFFFFFFF
_MOST_MEMBERS: Final = 0xFFFF
#: 1 January 1980, the earliest date that there is: when an instance was stored says nothing about it.
_DATE: Final = 0x21


class ArchiveWriter:
    """
    Writes an archive, one file after the other.

    :ivar left_out: the number of instances that are left out of it, which its comment tells: its header was sent long before.
    """

    def __init__(self) -> None:
        self.left_out = 0
        self._directory: list[bytes] = []
        self._offset = 0

    def member(self, name: str, length: int, read: Callable[[], Iterator[bytes]]) -> Iterator[bytes]:
        """
        Yield the bytes of a file and its header.

        :param name: its name, in ASCII, with slashes.
        :param length: its length in bytes.
        :param read: yields its bytes; it is called twice, unless it yields a single piece.
        :raises ValueError: the file has another length.
        """
        checksum = size = 0
        single: bytes | None = None
        for piece in read():
            single = piece if not size else None
            checksum = zlib.crc32(piece, checksum)
            size += len(piece)
        if size != length:
            raise ValueError(f"a file of {size} bytes that was announced with {length}")
        header = _local(name, length, checksum)
        self._directory.append(_central(name, length, checksum, self._offset))
        self._offset += len(header) + length
        yield header
        if single is not None:
            yield single
        else:
            yield from read()

    def end(self) -> bytes:
        """Return what is behind the last file."""
        directory = b"".join(self._directory)
        end = _end(len(self._directory), len(directory), self._offset)
        comment = f"{self.left_out} instances are left out".encode() if self.left_out else b""
        return directory + end[:-2] + pack("<H", len(comment)) + comment


def archive_length(members: Iterable[tuple[str, int]]) -> int:
    """Return the length of an archive in bytes; of *members* it needs the names and the lengths."""
    offset = directory = count = 0
    for name, length in members:
        directory += len(_central(name, length, 0, offset))
        offset += len(_local(name, length, 0)) + length
        count += 1
    return offset + directory + len(_end(count, directory, offset))


def _local(name: str, length: int, checksum: int) -> bytes:
    """Return the header before a file (APPNOTE 4.3.7)."""
    is_long = length >= _LIMIT
    extra = pack("<HHQQ", 1, 16, length, length) if is_long else b""
    stated = _LIMIT if is_long else length
    return (
        pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, _DATE, checksum, stated, stated, len(name), len(extra))
        + name.encode("ascii")
        + extra
    )


def _central(name: str, length: int, checksum: int, offset: int) -> bytes:
    """Return the header of a file in the central directory (APPNOTE 4.3.12)."""
    values = [length, length] if length >= _LIMIT else []
    values += [offset] if offset >= _LIMIT else []
    extra = pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""
    stated = min(length, _LIMIT)
    return (
        pack(
            "<4s6H3I5H2I",
            *(b"PK\1\2", 45, 45, 0, 0, 0, _DATE, checksum, stated, stated, len(name), len(extra)),
            *(0, 0, 0, 0, min(offset, _LIMIT)),
        )
        + name.encode("ascii")
        + extra
    )


def _end(count: int, size: int, offset: int) -> bytes:
    """Return the end of an archive (APPNOTE 4.3.14 to 4.3.16)."""
    long = b""
    if count >= _MOST_MEMBERS or size >= _LIMIT or offset >= _LIMIT:
        long = pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
        long += pack("<4sIQI", b"PK\6\7", 0, offset + size, 1)
    some = min(count, _MOST_MEMBERS)
    return long + pack("<4s4H2IH", b"PK\5\6", 0, 0, some, some, min(size, _LIMIT), min(offset, _LIMIT), 0)
