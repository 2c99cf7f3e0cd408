"""
The texts of elements in DICOM JSON, and the functions that write their values, by the first bytes of the elements' headers.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dicomtwist.datasets.element_headers import BIG_ENDIAN_FORMAT, LITTLE_ENDIAN_FORMAT, LONG_VRS, SHORT_VRS
from dicomtwist.dicomweb.json_values import Write, prefix_of, public_vr, writers

__all__ = [
    "BIG_ENDIAN",
    "BITS_ALLOCATED",
    "CHARACTER_SET",
    "CONTEXT",
    "DESCRIPTORS",
    "EXPLICIT",
    "Entry",
    "LUT_DATA",
    "LUT_DESCRIPTOR",
    "PIXEL_REPRESENTATION",
    "Scope",
    "WAVEFORM_BITS",
    "WITHOUT_VRS",
    "entry_of",
    "number_in",
]

CHARACTER_SET: Final = 0x00080005
BITS_ALLOCATED: Final = 0x00280100
PIXEL_REPRESENTATION: Final = 0x00280103
WAVEFORM_BITS: Final = 0x54001004
LUT_DATA: Final = 0x00283006
LUT_DESCRIPTOR: Final = 0x00283002
#: The LUT descriptors, whose first value is a count and so is not negative (PS3.3 C.11.1.1.1).
DESCRIPTORS: Final = frozenset((0x00281101, 0x00281102, 0x00281103, LUT_DESCRIPTOR))
#: The elements on which the VR or the text of others depends, in a data set without VRs.
CONTEXT: Final = frozenset((BITS_ALLOCATED, PIXEL_REPRESENTATION, WAVEFORM_BITS, LUT_DESCRIPTOR))


class Entry(NamedTuple):
    """
    The text and the writer of a pair of tag and VR, or of a tag of a data set without VRs.

    :ivar prefix: the text up to the VR.
    :ivar write: writes the value; ``None`` if the element needs more than that.
    :ivar vr: the VR; empty if it depends on other elements, or is unknown.
    :ivar is_long: whether the length has four bytes, behind two reserved ones.
    """

    tag: int
    prefix: str
    write: Write | None
    vr: str
    is_long: bool


class Scope:
    """
    An encoding of data sets.

    :ivar entries: texts and writers, by the first bytes of the headers of elements.
    """

    __slots__ = ("big", "entries", "format", "implicit", "writers")

    def __init__(self, implicit: bool = False, big: bool = False) -> None:
        self.implicit = implicit
        self.big = big
        self.format = BIG_ENDIAN_FORMAT if big else LITTLE_ENDIAN_FORMAT
        self.writers = writers(">" if big else "<")
        self.entries: dict[bytes, Entry] = {}


EXPLICIT: Final = Scope()
WITHOUT_VRS: Final = Scope(implicit=True)
BIG_ENDIAN: Final = Scope(big=True)


def entry_of(scope: Scope, key: bytes) -> Entry:
    """Return the entry of the elements whose headers begin with *key*: the tag, and the VR of a data set that has VRs."""
    group, element = scope.format.tag(key)
    tag = group << 16 | element
    if scope.implicit:
        vr = "" if group & 1 else public_vr(tag)
    else:
        vr = key[4:].decode("latin-1")
        if key[4:] not in SHORT_VRS and key[4:] not in LONG_VRS:
            vr = ""
    write = scope.writers.get(vr)
    if tag in CONTEXT or tag in DESCRIPTORS or tag == CHARACTER_SET or (group & 1 and 0x10 <= element <= 0xFF):
        write = None
    return Entry(tag, prefix_of(tag, vr), write, vr, key[4:] in LONG_VRS)


def number_in(buffer: bytes, pos: int, wanted: int, scope: Scope) -> int | None:
    """Return the number in the element *wanted*, of two bytes, if only elements of defined length are before it."""
    while pos + 12 <= len(buffer):
        group, element = scope.format.tag(buffer, pos)
        tag = group << 16 | element
        if tag > wanted:
            return None
        if scope.implicit or buffer[pos + 4 : pos + 6] in LONG_VRS:
            start = pos + 8 if scope.implicit else pos + 12
            length = scope.format.long(buffer, start - 4)[0]
        else:
            start, length = pos + 8, scope.format.short(buffer, pos + 6)[0]
        if tag == wanted:
            return int(scope.format.short(buffer, start)[0]) if length == 2 and start + 2 <= len(buffer) else None
        pos = start + length
    return None
