"""
Stored instances in another uncompressed transfer syntax (PS3.5 A.1 to A.5).

Most of an instance is pixel data, or another long value such as a document, whose bytes stay as they are, or change their
order. So only the other elements are decoded and encoded, and they are bounded.
"""

from __future__ import annotations

from dataclasses import replace
from struct import pack
from typing import Final

from dicomtwist.archive.reading.content import Content, Extent
from dicomtwist.archive.reading.frames import NoPixelData, PixelElement, find_pixels
from dicomtwist.archive.reading.stored_file import StoredFile
from dicomtwist.datasets.codec import UNCOMPRESSED, DecodingLimits, decode_dataset, encode_dataset
from dicomtwist.datasets.element_headers import DEFLATED, EXPLICIT_BIG_ENDIAN, IMPLICIT
from dicomtwist.dicomweb.bulk_data import BulkValue, find_value, long_values
from dicomtwist.errors import DataSetError, DataSetTooLong
from dicomtwist.part10 import encode_preamble_and_meta

__all__ = ["converted", "convertible_to", "stored_content"]

#: The longest data set that is converted as a whole, in bytes.
WHOLE: Final = 256 * 1024
#: The most bytes before the pixel data, and behind it, without values that are longer than :data:`LONG`.
MAX_ELEMENTS: Final = 64 * 1024 * 1024
#: The most elements and items, and the most further values of text, that are decoded at once: pydicom makes an object of some
#: hundred bytes for each.
MAX_DECODED: Final = 1_000_000
#: The longest value of VR OB, UT and the like that is decoded, in bytes; a longer one is copied from the file.
LONG: Final = 64 * 1024

_LIMITS: Final = DecodingLimits(elements=MAX_DECODED, values=MAX_DECODED)
#: The VRs whose values are copied, each with the length of a word whose bytes have an order.
_WORDS: Final = {"OB": 1, "OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8, "UC": 1, "UN": 1, "UR": 1, "UT": 1}
#: The VRs of Float Pixel Data and Double Float Pixel Data.
_FLOATS: Final = {0x7FE00008: "OF", 0x7FE00009: "OD"}
#: A value in place of one that is copied. It is the same in all byte orders, and of each of these VRs.
_PLACEHOLDER: Final = b"11111111"


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
        return Content([head, *_elements(stored, 0, None, syntax)])
    return Content([head, *_around(stored, pixels, pixels.length, syntax)])


def _around(stored: StoredFile, pixels: PixelElement, length: int, syntax: str) -> list[bytes | Extent]:
    """Return a converted data set: the elements before the pixel data, the pixel data in the file, the elements behind it."""
    own = stored.data_syntax
    vr = pixels.vr or _FLOATS.get(pixels.tag, "OW" if own in IMPLICIT or pixels.bits_allocated > 8 else "OB")
    order = ">" if syntax == EXPLICIT_BIG_ENDIAN else "<"
    header = pack(f"{order}HH", pixels.tag >> 16, pixels.tag & 0xFFFF)
    if syntax not in IMPLICIT:
        header += vr.encode() + bytes(2)
    header += pack(f"{order}I", length)
    return [
        *_elements(stored, 0, pixels.header, syntax),
        header,
        _copied(stored, BulkValue(vr, pixels.offset, length), syntax),
        *_elements(stored, pixels.offset + length, None, syntax),
    ]


def _elements(stored: StoredFile, start: int, stop: int | None, syntax: str) -> list[bytes | Extent]:
    """
    Return converted elements, with long values in the file.

    :param start: the position of the first element in the data set.
    :param stop: the position behind the last one; ``None`` for the end of the data set.
    """
    own = stored.data_syntax
    order = ">" if own == EXPLICIT_BIG_ENDIAN else "<"
    copied = {} if syntax in DEFLATED else _long_values(stored, start, stop)
    # pydicom decodes all other elements together, since the VR or the text of one may depend on another one.
    pieces: list[bytes] = []
    at, left = start, MAX_ELEMENTS
    for value in copied.values():
        pieces.append(_read(stored, at, value.offset - 4 - at, left))
        pieces += [pack(f"{order}I", len(_PLACEHOLDER)), _PLACEHOLDER]
        left -= len(pieces[-3])
        assert value.length is not None, "a value of undefined length is not copied"
        at = value.offset + value.length
    pieces.append(_read(stored, at, MAX_ELEMENTS if stop is None else stop - at, left))
    if not any(pieces):
        return []
    encoded = encode_dataset(decode_dataset(b"".join(pieces), own, _LIMITS), syntax)
    parts: list[bytes | Extent] = []
    order = ">" if syntax == EXPLICIT_BIG_ENDIAN else "<"
    at = 0
    for tag, value in copied.items():
        place = find_value(encoded, syntax, (tag,))
        if place is None or place.length != len(_PLACEHOLDER):
            raise DataSetError("a data set whose elements are not in order cannot be converted")
        parts += [encoded[at : place.offset - 4] + pack(f"{order}I", value.length), _copied(stored, value, syntax)]
        at = place.offset + place.length
    parts.append(encoded[at:])
    return parts


def _long_values(stored: StoredFile, start: int, stop: int | None) -> dict[int, BulkValue]:
    """Return the values that are copied, by their tags, in the order of the data set."""
    source, own = stored.data, stored.data_syntax
    found: dict[int, BulkValue] = {}
    if (len(source.read(start, LONG + 1)) if stop is None else stop - start) <= LONG:
        return found
    order = ">" if own == EXPLICIT_BIG_ENDIAN else "<"
    for tag, value in long_values(lambda offset, length: source.read(start + offset, length), own, LONG):
        if value.length is None or value.vr not in _WORDS:
            continue
        offset = start + value.offset
        if stop is not None and offset + value.length > stop:
            break
        named = b"" if own in IMPLICIT else value.vr.encode() + bytes(2)
        header = pack(f"{order}HH", tag >> 16, tag & 0xFFFF) + named + pack(f"{order}I", value.length)
        is_whole = source.read(offset + value.length - 1, 1) != b""
        if is_whole and source.read(offset - len(header), len(header)) == header:
            found[tag] = BulkValue(value.vr, offset, value.length)
    return found


def _copied(stored: StoredFile, value: BulkValue, syntax: str) -> Extent:
    swaps = (stored.data_syntax == EXPLICIT_BIG_ENDIAN) != (syntax == EXPLICIT_BIG_ENDIAN)
    assert value.length is not None, "a value of undefined length is not copied"
    return Extent(stored.data, value.offset, value.length, _WORDS.get(value.vr, 1) if swaps else 1, value.offset)


def _read(stored: StoredFile, offset: int, length: int, most: int) -> bytes:
    """
    Return *length* bytes of the data set from *offset* on; fewer at its end.

    :raises DataSetTooLong: there are *most* bytes or more.
    """
    data = stored.data.read(offset, min(length, most))
    if len(data) >= most:
        raise DataSetTooLong(f"a data set with elements of more than {MAX_ELEMENTS} bytes cannot be converted")
    return data
