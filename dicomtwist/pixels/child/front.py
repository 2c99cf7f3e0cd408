"""
The front of an image's data set, up to its pixels: the few attributes that say how it is displayed. Runs in child processes.

pydicom takes 0.9 ms of CPU time to read the data set of an image with 70 elements and to decode what displays it, as long as
the rest of the work but for JPEG. The elements are walked through here instead, and the decoded attributes of the last images
are kept, since those of a series are mostly equal. All that is unusual is left to pydicom.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

from dicomtwist.datasets.element_headers import (
    DELIMITERS,
    ITEM,
    ITEM_END,
    LONG_VRS,
    SEQUENCE_END,
    SHORT_VRS,
    UNDEFINED_LENGTH,
)

__all__ = ["FRONT", "PIXELS", "Front", "read_front"]

#: The bytes of a data set that are looked at; the pixels of most images begin in the first 8 KiB.
FRONT: Final = 64 * 1024
#: Float Pixel Data, Double Float Pixel Data, and Pixel Data.
PIXELS: Final = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
#: The most levels of sequences of undefined length.
MAX_DEPTH: Final = 8
#: The data sets whose decoded attributes are kept.
MAX_KEPT: Final = 16

#: The attributes that are looked at when a frame is decoded and displayed, but for those of palettes.
_KEYWORDS: Final = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ExtendedOffsetTable"),
    *("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("FrameTime", "RecommendedDisplayFrameRate", "CineRate"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_WANTED: Final = {tag for keyword in _KEYWORDS if (tag := tag_for_keyword(keyword)) is not None}

_EXPLICIT: Final = Struct("<HH2sH").unpack_from
_IMPLICIT: Final = Struct("<HHI").unpack_from
_LONG: Final = Struct("<I").unpack_from

#: A wanted element: its tag, its VR (``None`` in implicit VR), and its value.
_Element = tuple[int, "str | None", bytes]


class Front(NamedTuple):
    """
    The front of a data set.

    :ivar attributes: the attributes that are looked at when a frame is displayed. Images share it, so it is not changed.
    :ivar tag: the tag of the element with the pixels.
    :ivar vr: its VR, ``None`` in implicit VR.
    :ivar offset: the offset of its value.
    :ivar length: the length of its value, which may be undefined.
    """

    attributes: Dataset
    tag: int
    vr: str | None
    offset: int
    length: int


class _Unusual(Exception):
    """The data set has an element that is better left to pydicom."""


def read_front(data: bytes, *, is_implicit: bool) -> Front | None:
    """
    Read the front of a data set in little endian.

    :param data: its first bytes.
    :param is_implicit: whether it has no VRs.
    :returns: ``None`` if there are no pixels in these bytes, or if anything in front of them is unusual.
    """
    if is_implicit and data[4:6].isalpha() and data[4:6].isupper():
        return None  # it has VRs although its transfer syntax says that it has not
    try:
        return _walk(data, is_implicit)
    except (_Unusual, StructError):
        return None


def _walk(data: bytes, is_implicit: bool) -> Front:
    found: list[_Element] = []
    size, pos, before = len(data), 0, -1
    while True:
        tag, vr, start, length = _header(data, pos, is_implicit)
        if tag <= before or tag >= DELIMITERS:
            raise _Unusual
        if tag in PIXELS:
            return Front(_attributes(tuple(found), is_implicit), tag, vr, start, length)
        before = tag
        if length == UNDEFINED_LENGTH:
            if tag in _WANTED or vr not in (None, "SQ"):
                raise _Unusual
            pos = _sequence_end(data, start, is_implicit, 1)
        else:
            pos = start + length
            if pos > size:
                raise _Unusual
            if tag in _WANTED:
                found.append((tag, vr, data[start:pos]))


def _header(data: bytes, pos: int, is_implicit: bool) -> tuple[int, str | None, int, int]:
    """Return the tag and the VR of an element, and the place and the length of its value."""
    if is_implicit:
        group, element, length = _IMPLICIT(data, pos)
        return group << 16 | element, None, pos + 8, length
    group, element, vr, length = _EXPLICIT(data, pos)
    tag = group << 16 | element
    if vr in SHORT_VRS:
        return tag, vr.decode(), pos + 8, length
    if vr in LONG_VRS:
        return tag, vr.decode(), pos + 12, _LONG(data, pos + 8)[0]
    raise _Unusual


def _sequence_end(data: bytes, pos: int, is_implicit: bool, depth: int) -> int:
    """Return the end of a sequence of undefined length, whose items begin at *pos*."""
    if depth > MAX_DEPTH:
        raise _Unusual
    while True:
        tag, _, start, length = _header(data, pos, True)
        if tag == SEQUENCE_END:
            return start
        if tag != ITEM:
            raise _Unusual
        pos = _item_end(data, start, is_implicit, depth) if length == UNDEFINED_LENGTH else start + length


def _item_end(data: bytes, pos: int, is_implicit: bool, depth: int) -> int:
    while True:
        if _header(data, pos, True)[0] == ITEM_END:
            return pos + 8
        _, vr, start, length = _header(data, pos, is_implicit)
        if length != UNDEFINED_LENGTH:
            pos = start + length
        elif vr in (None, "SQ"):
            pos = _sequence_end(data, start, is_implicit, depth + 1)
        else:
            raise _Unusual


def _attributes(found: tuple[_Element, ...], is_implicit: bool) -> Dataset:
    # Sequences hold tables, and groups of each frame: they are long, and no two images have equal ones.
    is_plain = all(len(value) <= 256 for _, _, value in found)
    return (_kept if is_plain else _decoded)(found, is_implicit)


def _decoded(found: tuple[_Element, ...], is_implicit: bool) -> Dataset:
    """Return a data set of elements, which decodes their values when they are asked for."""
    dataset = Dataset(
        {
            BaseTag(tag): RawDataElement(BaseTag(tag), vr, len(value), value, 0, is_implicit, True)
            for tag, vr, value in found
        }
    )
    dataset.set_original_encoding(is_implicit, True)
    return dataset


_kept = lru_cache(maxsize=MAX_KEPT)(_decoded)
