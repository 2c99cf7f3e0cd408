"""
Values of stored instances that their metadata refer to by a BulkDataURI (PS3.18 10.4.1.1.5).
"""

from __future__ import annotations

import re
from typing import Final

from dicomtwist.archive.reading.content import Content, Extent
from dicomtwist.archive.reading.frames import NoPixelData
from dicomtwist.archive.reading.stored_file import StoredFile
from dicomtwist.datasets.element_headers import EXPLICIT_BIG_ENDIAN
from dicomtwist.datasets.header_scanner import HeaderError, HeaderScanner
from dicomtwist.dicomweb.bulk_data import find_value
from dicomtwist.dicomweb.media_types import frame_media_type
from dicomtwist.errors import DataSetError
from dicomtwist.part10 import decode_uid
from dicomtwist.pixels.encapsulation import read_encapsulated

__all__ = ["NoValue", "PIXEL_DATA", "media_type_of", "read_document", "read_value"]

#: The paths of pixel data, which consists of frames.
PIXEL_DATA: Final = frozenset(((0x7FE00010,), (0x7FE00008,), (0x7FE00009,)))
_PIXELS: Final = (0x7FE00010,)
#: The path of an encapsulated document.
_DOCUMENT: Final = (0x00420011,)
_MIME_TYPE: Final = 0x00420012
_MEDIA_TYPE: Final = re.compile(r"[a-z0-9.+-]{1,64}/[a-z0-9.+-]{1,64}", re.ASCII)

#: The length of a word of the VRs whose values have a byte order, in bytes (PS3.5 7.3).
_WORDS: Final = {
    **dict.fromkeys(("OW", "SS", "US", "AT"), 2),
    **dict.fromkeys(("OF", "OL", "FL", "SL", "UL"), 4),
    **dict.fromkeys(("OD", "OV", "FD", "SV", "UV"), 8),
}


class NoValue(NoPixelData):
    """There is no such element, or it has no value."""


def read_value(stored: StoredFile, path: tuple[int, ...]) -> Content:
    """
    Return the value of an element, in little endian. It blocks.

    :param path: the path of the element, see :func:`dicomtwist.dicomweb.bulk_data.parse_path`. Fragments in an item, such as
        those of an icon, are joined.
    :raises NoValue: there is no such element, or it has no value.
    :raises DataSetError: the bytes before it cannot be a data set.
    """
    source, syntax = stored.data, stored.data_syntax
    value = find_value(source.read, syntax, path)
    if value is None:
        raise NoValue("the instance has no such value")
    if value.length is None:
        items = read_encapsulated(source.read, value.offset)
        return Content(Extent(source, one.offset, one.length) for one in items.fragments)
    unit = _WORDS.get(value.vr, 1) if syntax == EXPLICIT_BIG_ENDIAN else 1
    return Content([Extent(source, value.offset, value.length, unit, value.offset)])


def read_document(stored: StoredFile) -> tuple[Content, str] | None:
    """
    Return the document or the video that an instance is, and its media type; ``None`` if it is neither. It blocks.

    :raises DataSetError: its bytes cannot be a data set.
    """
    of_frames = frame_media_type(stored.meta.transfer_syntax_uid)
    is_video = of_frames.startswith("video/")
    path = _PIXELS if is_video else _DOCUMENT
    try:
        content = read_value(stored, path)
    except NoValue:
        return None
    media_type = of_frames if is_video else media_type_of(stored, path)
    return (content, media_type) if media_type else None


def media_type_of(stored: StoredFile, path: tuple[int, ...]) -> str:
    """Return the media type that the instance states for the value at *path*: that of a document; else an empty string."""
    if path != _DOCUMENT:
        return ""
    scanner = HeaderScanner(stored.data_syntax, (_MIME_TYPE,))
    at = 0
    try:
        while not scanner.done:
            data = stored.data.read(at, 64 * 1024)
            if not data:
                break
            at += len(data)
            scanner.feed(data)
            while passed := scanner.pass_over(1 << 40):
                at += passed
    except HeaderError as error:
        raise DataSetError(str(error)) from error
    text = decode_uid(scanner.values.get(_MIME_TYPE, b"")).lower()
    return text if _MEDIA_TYPE.fullmatch(text) else ""
