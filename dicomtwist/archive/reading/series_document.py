"""
The document of a series: the metadata of its instances, compressed, in one file.

The metadata are in chunks that are compressed one by one, so that the memory for a series of 10,000 instances is that of a
chunk, and a document that is extended is not compressed again as a whole. Instances of a series have most of their metadata in
common: 250 CT images of 11 KB each take 145 KB together.

The file is a magic number, the length of the table, the table, and the chunks. Table and chunks are streams of zlib, with
checksums that tell a file that a power cut has damaged.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final, NamedTuple

__all__ = ["Entry", "InvalidDocument", "SeriesDocument", "SeriesDocumentWriter"]

#: The bytes of metadata in a chunk, before they are compressed. A longer one has a single instance.
CHUNK: Final = 256 * 1024
#: The longest table of a document, in bytes: that of 200,000 instances.
MAX_TABLE: Final = 64 * 1024 * 1024

#: The last character is a version: a change of the JSON that is made of data sets raises it, so that all documents are made
#: again.
_MAGIC: Final = b"DTWMETA1"
_LENGTH: Final = Struct("<I")


class InvalidDocument(ValueError):
    """The bytes are no document, or are damaged."""


class Entry(NamedTuple):
    """
    An instance in a document.

    :ivar uid: its SOP Instance UID.
    :ivar version: the version of its file that the metadata are of.
    :ivar length: the length of its metadata in bytes; 0 if they could not be read.
    """

    uid: str
    version: str
    length: int


@dataclass(frozen=True, slots=True)
class _Chunk:
    """
    A chunk.

    :ivar entries: its instances.
    :ivar data: their metadata, with commas between them, compressed.
    """

    entries: tuple[Entry, ...]
    data: bytes

    @property
    def length(self) -> int:
        return sum(entry.length for entry in self.entries)

    def plain(self) -> bytes:
        """
        Return the metadata.

        :raises InvalidDocument: the chunk is damaged.
        """
        inflater = zlib.decompressobj()
        expected = self.length + max(0, sum(entry.length > 0 for entry in self.entries) - 1)
        try:
            plain = inflater.decompress(self.data, expected + 1)
        except zlib.error as error:
            raise InvalidDocument(str(error)) from error
        if len(plain) != expected or not inflater.eof:
            raise InvalidDocument("a chunk has another length than its table says")
        return plain

    def texts(self) -> Iterator[tuple[Entry, bytes]]:
        """Yield each instance with its metadata."""
        plain = self.plain()
        at = 0
        for entry in self.entries:
            yield entry, plain[at : at + entry.length]
            at += entry.length + (entry.length > 0)


class SeriesDocument:
    """
    The metadata of a series.

    :param chunks: the chunks.

    :ivar versions: the versions of the instances by their SOP Instance UIDs.
    :ivar unread: the number of instances whose metadata could not be read.
    """

    __slots__ = ("chunks", "unread", "versions")

    def __init__(self, chunks: Iterable[_Chunk]) -> None:
        self.chunks = tuple(chunks)
        self.versions = {entry.uid: entry.version for chunk in self.chunks for entry in chunk.entries}
        self.unread = sum(not entry.length for chunk in self.chunks for entry in chunk.entries)

    @classmethod
    def decode(cls, data: bytes) -> SeriesDocument:
        """
        Return the document in a file.

        :raises InvalidDocument: the file is damaged, or has another format.
        """
        start = len(_MAGIC) + _LENGTH.size
        if data[: len(_MAGIC)] != _MAGIC or len(data) < start:
            raise InvalidDocument("no document of metadata")
        (length,) = _LENGTH.unpack_from(data, len(_MAGIC))
        at = start + length
        chunks = []
        try:
            inflater = zlib.decompressobj()
            table: Any = json.loads(inflater.decompress(data[start:at], MAX_TABLE))
            if not inflater.eof:
                raise InvalidDocument("the table is cut off")
            for size, checksum, entries in table:
                held = tuple(Entry(str(uid), str(version), int(long)) for uid, version, long in entries)
                chunk = _Chunk(held, data[at : at + size])
                if zlib.crc32(chunk.data) != checksum:
                    raise InvalidDocument("a chunk is damaged")
                chunks.append(chunk)
                at += size
        except InvalidDocument:
            raise
        except (zlib.error, ValueError, TypeError) as error:
            raise InvalidDocument("the table is damaged") from error
        if at != len(data):
            raise InvalidDocument("the document is cut off")
        return cls(chunks)

    def encode(self) -> list[bytes]:
        """Return the content of its file, in pieces."""
        table = json.dumps([[len(one.data), zlib.crc32(one.data), one.entries] for one in self.chunks])
        packed = zlib.compress(table.encode(), 1)
        return [_MAGIC + _LENGTH.pack(len(packed)), packed, *(chunk.data for chunk in self.chunks)]

    def pieces(self) -> Iterator[bytes]:
        """
        Yield the JSON objects of the instances with commas between them, in pieces of whole objects.

        :raises InvalidDocument: a chunk is damaged.
        """
        comma = b""
        for chunk in self.chunks:
            plain = chunk.plain()
            if plain:
                yield comma + plain
                comma = b","


class SeriesDocumentWriter:
    """
    Writes a document, from what an earlier one has and from the metadata of further instances.

    :param versions: the versions of the instances of the series by their SOP Instance UIDs.
    :param earlier: the earlier document, if there is one. Of its instances those are kept that have the same version.

    :ivar missing: the SOP Instance UIDs whose metadata are missing, in the order of their numbers: devices count up.
    """

    def __init__(self, versions: Mapping[str, str], earlier: SeriesDocument | None = None) -> None:
        self._chunks: list[_Chunk] = []
        self._open: list[tuple[Entry, bytes]] = []
        self._size = 0
        kept: set[str] = set()
        chunks = earlier.chunks if earlier is not None else ()
        for number, chunk in enumerate(chunks):
            held = {entry.uid for entry in chunk.entries if versions.get(entry.uid) == entry.version}
            is_full = chunk.length >= CHUNK // 2 or number < len(chunks) - 1
            if len(held) == len(chunk.entries) and is_full and not self._open:
                self._chunks.append(chunk)
                kept |= held
                continue
            try:
                for entry, text in chunk.texts():
                    if entry.uid in held:
                        self._add(entry, text)
                        kept.add(entry.uid)
            except InvalidDocument:
                continue  # its instances are read again
        self.missing = sorted(versions.keys() - kept, key=_natural)

    def add(self, uid: str, version: str, metadata: bytes) -> None:
        """
        Add the metadata of an instance.

        :param version: the version that they are of.
        :param metadata: empty if they cannot be read.
        """
        self._add(Entry(uid, version, len(metadata)), metadata)

    def _add(self, entry: Entry, metadata: bytes) -> None:
        if self._open and self._size + len(metadata) > CHUNK:
            self._close()
        self._open.append((entry, metadata))
        self._size += len(metadata)

    def _close(self) -> None:
        if self._open:
            plain = b",".join([text for _, text in self._open if text])
            self._chunks.append(_Chunk(tuple(entry for entry, _ in self._open), zlib.compress(plain, 3)))
        self._open, self._size = [], 0

    def finish(self) -> SeriesDocument:
        """Return the document."""
        self._close()
        return SeriesDocument(self._chunks)


def _natural(uid: str) -> tuple[int, ...]:
    return tuple(map(int, uid.split(".")))
