"""
Compressed instances and frames in other transfer syntaxes, from the processes for images.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import lru_cache

from dicomtwist.archive.reading.conversion import convertible_to
from dicomtwist.archive.reading.stored_file import StoredFile
from dicomtwist.archive.storage.types import InstanceUIDs
from dicomtwist.errors import DataSetError
from dicomtwist.part10 import encode_preamble_and_meta
from dicomtwist.pixels.syntaxes import ENCODABLE, can_transcode
from dicomtwist.web.services import Services
from dicomtwist.web.wado.delivery import problems_of_files

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
    :param pieces: the pieces of the data set.
    :param length: the length of the data set in bytes, ``None`` if it is not known.

    :ivar length: the length of the file in bytes, ``None`` if it is not known.
    """

    def __init__(self, head: bytes, pieces: AsyncIterator[bytes | memoryview], length: int | None) -> None:
        self._head = head
        self._pieces = pieces
        self.length = None if length is None else len(head) + length

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the bytes."""
        yield self._head
        async for piece in self._pieces:
            yield bytes(piece)


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
    return Transcoding(head, aiter(made), made.length)
