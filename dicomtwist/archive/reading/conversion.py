"""
Stored instances in another uncompressed transfer syntax (PS3.5 A.1 to A.5).

Most of an instance is pixel data, whose bytes stay as they are, or change their order. So only what is before it is decoded and
encoded, and the memory for an instance of 2 GB is that of its other elements.
"""

from __future__ import annotations

from dataclasses import replace
from struct import pack
from typing import Final

from dicomtwist.archive.reading.content import Content, Extent
from dicomtwist.archive.reading.frames import NoPixelData, PixelElement, find_pixels
from dicomtwist.archive.reading.stored_file import StoredFile
from dicomtwist.datasets.codec import UNCOMPRESSED, decode_dataset, encode_dataset
from dicomtwist.datasets.element_headers import DEFLATED, EXPLICIT_BIG_ENDIAN, IMPLICIT
from dicomtwist.errors import DataSetError
from dicomtwist.part10 import encode_preamble_and_meta

__all__ = ["converted", "convertible_to", "stored_content"]

#: The longest data set that is converted as a whole, in bytes.
WHOLE: Final = 256 * 1024
#: The most bytes before the pixel data, and behind it.
MAX_ELEMENTS: Final = 256 * 1024 * 1024

_WORDS: Final = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}


def convertible_to(syntax: str) -> tuple[str, ...]:
    """Return the UIDs of the transfer syntaxes that :func:`converted` converts *syntax* to."""
    if syntax not in UNCOMPRESSED:
        return ()
    return tuple(sorted(str(one) for one in UNCOMPRESSED if one != syntax))


def stored_content(stored: StoredFile) -> Content:
    """Return the file of an instance as it is stored."""
    return Content([Extent(stored.raw, 0, stored.size)])


def converted(stored: StoredFile, syntax: str) -> Content:
    """
    Return a Part 10 file of an instance in the transfer syntax *syntax*, one of :func:`convertible_to`. It blocks.

    :raises DataSetError: the data set cannot be decoded or encoded.
    """
    meta = replace(stored.meta, transfer_syntax_uid=syntax)
    try:
        head = encode_preamble_and_meta(meta)
    except ValueError as error:
        raise DataSetError("the File Meta Information has a value that is not valid") from error
    pixels = None
    if stored.size > WHOLE and syntax not in DEFLATED:
        try:
            pixels = find_pixels(stored.data, stored.data_syntax)
        except NoPixelData:
            pass
    if pixels is None or pixels.length is None:
        data = _read(stored, 0, MAX_ELEMENTS)
        return Content([head, encode_dataset(decode_dataset(data, stored.data_syntax), syntax)])
    return Content([head, *_around(stored, pixels, pixels.length, syntax)])


def _around(stored: StoredFile, pixels: PixelElement, length: int, syntax: str) -> list[bytes | Extent]:
    """Return a converted data set: the elements before the pixel data, the pixel data in the file, the elements behind it."""
    own = stored.data_syntax
    before = _read(stored, 0, pixels.header)
    behind = _read(stored, pixels.offset + length, MAX_ELEMENTS)
    vr = pixels.vr or ("OW" if own in IMPLICIT or pixels.bits_allocated > 8 else "OB")
    swaps = (own == EXPLICIT_BIG_ENDIAN) != (syntax == EXPLICIT_BIG_ENDIAN)
    order = ">" if syntax == EXPLICIT_BIG_ENDIAN else "<"
    tag = pack(f"{order}HH", pixels.tag >> 16, pixels.tag & 0xFFFF)
    if syntax in IMPLICIT:
        header = tag + pack(f"{order}I", length)
    else:
        header = tag + vr.encode() + pack(f"{order}HI", 0, length)
    parts: list[bytes | Extent] = [encode_dataset(decode_dataset(before, own), syntax), header]
    parts.append(Extent(stored.data, pixels.offset, length, _WORDS.get(vr, 1) if swaps else 1, pixels.offset))
    if behind:
        parts.append(encode_dataset(decode_dataset(behind, own), syntax))
    return parts


def _read(stored: StoredFile, offset: int, length: int) -> bytes:
    if length > MAX_ELEMENTS:
        raise DataSetError(f"a data set with elements of more than {MAX_ELEMENTS} bytes before its pixel data")
    data = stored.data.read(offset, length)
    if len(data) == MAX_ELEMENTS:
        raise DataSetError(f"a data set of more than {MAX_ELEMENTS} bytes that cannot be converted in pieces")
    return data
