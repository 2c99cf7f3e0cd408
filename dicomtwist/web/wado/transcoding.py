"""
Compressed instances and frames in other transfer syntaxes, from the processes for images.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from functools import lru_cache

from dicomtwist.archive.reading.content import Content, Extent
from dicomtwist.archive.reading.conversion import convertible_to
from dicomtwist.archive.reading.stored_file import Source, StoredFile
from dicomtwist.archive.storage.types import InstanceUIDs
from dicomtwist.datasets.sources import spool
from dicomtwist.errors import DataSetError
from dicomtwist.part10 import encode_preamble_and_meta
from dicomtwist.pixels.pool import Transcoded
from dicomtwist.pixels.syntaxes import ENCODABLE, can_transcode
from dicomtwist.runtime.executors import Runner
from dicomtwist.web.request import Piece
from dicomtwist.web.services import Services
from dicomtwist.web.wado.delivery import problems_of_files
from dicomtwist.web.wado.pieces import ThreadPieces

__all__ = ["Transcoding", "convertible", "is_transcoded", "transcode"]


def convertible(services: Services, stored: str) -> tuple[str, ...]:
    """Return the UIDs of the transfer syntaxes that an instance in *stored* can be given in besides, the preferred first."""
    return _convertible(stored, services.pixels is not None)


@lru_cache(maxsize=128)
def _convertible(stored: str, has_pixels: bool) -> tuple[str, ...]:
    found = convertible_to(stored)
    if has_pixels:
        found += tuple(one for one in ENCODABLE if one not in found and can_transcode(stored, one))
    return found


def is_transcoded(stored: str, syntax: str | None) -> bool:
    """Return whether pixel data has to be decoded or encoded for the transfer syntax *syntax*; ``None`` is that of the file."""
    return syntax is not None and syntax != stored and syntax not in convertible_to(stored)


class Transcoding:
    """
    The Part 10 file of an instance in another transfer syntax, whose pieces are made as they are taken.

    :param head: the bytes before the data set.
    :param made: the data set.

    :ivar length: the length of the file in bytes, ``None`` if it is not known.
    """

    def __init__(self, head: bytes, made: Transcoded) -> None:
        self._head = head
        self._made = made
        self.length = None if made.length is None else len(head) + made.length

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the bytes."""
        yield self._head
        async for piece in self._made:
            yield bytes(piece)

    async def complete(self, executor: Runner) -> AsyncGenerator[Piece, None] | ThreadPieces:
        """
        Return the pieces of the whole file, which is made before: a body with several instances cannot go on behind one that
        fails in its middle.

        :param executor: the threads that write and read a temporary file, if the data set has several pieces.
        :raises PixelsFailed: a piece cannot be made.
        """
        if self.length is not None:
            return self._at_once()
        file, size = await spool(self._made, executor)
        content = Content([self._head, Extent(Source(file), 0, size)])
        return ThreadPieces(executor, content.pieces(), file.close)

    async def _at_once(self) -> AsyncGenerator[Piece, None]:
        async for piece in self.pieces():
            yield piece


async def transcode(
    services: Services, uids: InstanceUIDs, stored: StoredFile, syntax: str, *, peer: str
) -> Transcoding:
    """
    Convert an instance to another transfer syntax.

    :param stored: the instance, of which the File Meta Information is used.
    :param peer: the name of the client's host.
    :raises PixelsFailed: its pixel data cannot be converted.
    :raises DataSetError: its File Meta Information is damaged.
    :raises Problem: its file was removed meanwhile (404), or is damaged (500).
    """
    pixels = services.pixels
    assert pixels is not None, "nothing is negotiated that these processes would have to do"
    try:
        head = encode_preamble_and_meta(replace(stored.meta, transfer_syntax_uid=syntax))
    except ValueError as error:
        raise DataSetError("the File Meta Information has a value that is not valid") from error
    with problems_of_files():
        made = await pixels.transcode(services.files.path(uids), syntax, peer=peer)
    return Transcoding(head, made)
