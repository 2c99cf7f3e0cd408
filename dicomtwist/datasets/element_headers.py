"""
How transfer syntaxes encode the headers of data elements (PS3.5 section 7 and Annex A).

The constants that File Meta Information needs as well are in :mod:`dicomtwist.part10`, and handed on here.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from dicomtwist.part10 import DEFLATED, LONG_VRS, UNDEFINED_LENGTH

__all__ = [
    "BIG_ENDIAN_FORMAT",
    "DEFLATED",
    "DEFLATED_LITTLE_ENDIAN",
    "DELIMITERS",
    "EXPLICIT_BIG_ENDIAN",
    "EXPLICIT_LITTLE_ENDIAN",
    "IMPLICIT",
    "IMPLICIT_LITTLE_ENDIAN",
    "ITEM",
    "ITEM_END",
    "ITEM_TAGS",
    "LITTLE_ENDIAN_FORMAT",
    "LONG_VRS",
    "SEQUENCE_DELIMITERS",
    "SEQUENCE_END",
    "SHORT_VRS",
    "UNDEFINED_LENGTH",
    "HeaderFormat",
]

IMPLICIT_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
DEFLATED_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"

#: The transfer syntaxes without VRs: Implicit VR Little Endian, Papyrus 3 Implicit VR (retired), and GE's private syntax,
#: whose pixels alone are big endian.
IMPLICIT: Final = frozenset((IMPLICIT_LITTLE_ENDIAN, "1.2.840.10008.1.20", "1.2.840.113619.5.2"))

#: The VRs with a length of two bytes (PS3.5 table 7.1-2). Those of :data:`LONG_VRS` have two reserved bytes, then a length of
#: four (table 7.1-1).
SHORT_VRS: Final = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())

#: The tags of an item and of the two delimiters (PS3.5 7.5). No data set has a tag of :data:`DELIMITERS` or above at its top
#: level.
ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
DELIMITERS: Final = 0xFFFE0000

#: The tag of an item as it is encoded, in little endian and in big endian.
ITEM_TAGS: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
#: The Sequence Delimitation Item as it is encoded, in little endian and in big endian.
SEQUENCE_DELIMITERS: Final = (b"\xfe\xff\xdd\xe0\0\0\0\0", b"\xff\xfe\xe0\xdd\0\0\0\0")


class HeaderFormat:
    """
    The layout of element headers in one byte order.

    For speed, ``explicit`` and ``implicit`` unpack a tag as one number and not as two, which saves a third of the time of a
    scan. In little endian the halves of this *raw* tag are swapped; :meth:`swap` puts them right.

    :param order: the byte order, as :mod:`struct` has it.

    :ivar explicit: unpacks a raw tag, the VR as a number, and the length of two bytes, or the reserved bytes.
    :ivar implicit: unpacks a raw tag and the length.
    :ivar tag: unpacks the group and the element number.
    :ivar short: unpacks a length of two bytes.
    :ivar long: unpacks a length of four bytes.
    :ivar group_mask: the bits of a raw tag that are its group.
    :ivar short_vrs: :data:`SHORT_VRS` as numbers.
    :ivar long_vrs: :data:`LONG_VRS` as numbers.
    """

    __slots__ = ("explicit", "group_mask", "implicit", "long", "long_vrs", "short", "short_vrs", "tag")

    def __init__(self, order: str) -> None:
        self.explicit = Struct(order + "IHH").unpack_from
        self.implicit = Struct(order + "II").unpack_from
        self.tag = Struct(order + "HH").unpack_from
        self.short = Struct(order + "H").unpack_from
        self.long = Struct(order + "I").unpack_from
        self.group_mask = 0xFFFF0000 if order == ">" else 0x0000FFFF
        self.short_vrs = frozenset(self.short(name)[0] for name in SHORT_VRS)
        self.long_vrs = frozenset(self.short(name)[0] for name in LONG_VRS)

    def swap(self, tag: int) -> int:
        """Return the tag of a raw tag, or the raw tag of a tag."""
        return tag if self.group_mask > 0xFFFF else (tag & 0xFFFF) << 16 | tag >> 16


LITTLE_ENDIAN_FORMAT: Final = HeaderFormat("<")
BIG_ENDIAN_FORMAT: Final = HeaderFormat(">")
