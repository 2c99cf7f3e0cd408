"""
Limits on what a data set may make of its bytes when it is decoded: nested sequences, and the numbers of elements and values.

pydicom makes an object of each element and each item, at about 10 microseconds and half a kilobyte each. An item takes eight
bytes, so 16 MiB of items took 36 seconds and 1.4 GiB. Every element and item costs pydicom a read of its header, so the file
that it reads from counts these, and ends the decoding at the limit. A scan before the decoding would have to repeat all that
pydicom takes leniently, to count the same elements.

A value is decoded when it is first used, and pydicom makes an object of each part between two backslashes: 16 MiB of integer
strings took 81 seconds and 2.2 GiB. So values are counted while they are still bytes. Each escape sequence in a text counts as
one: pydicom takes 50 microseconds for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any, Final, Literal

from pydicom import DataElement, Dataset
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_sequence
from pydicom.hooks import raw_element_vr
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from dicomtwist.datasets.character_sets import TEXT_VRS, pydicom_terms
from dicomtwist.datasets.element_headers import ITEM_TAGS, LONG_VRS, UNDEFINED_LENGTH
from dicomtwist.errors import DataSetError, DataSetTooLong

#: The most levels of nested sequences. Real data sets have about ten: structured reports.
MAX_NESTED: Final = 64

#: The VRs of text that a backslash divides into values (PS3.5 6.2).
_DIVIDED: Final = frozenset(("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "PN", "SH", "TM", "UC", "UI"))
#: The length of one value of VR AT. pydicom makes an object of each; other numbers are unpacked at once.
_TAG_LENGTH: Final = 4

#: The first bytes of a Specific Character Set (0008,0005), and the byte order that they tell.
_CHARACTER_SET: Final[dict[bytes, Literal["little", "big"]]] = {b"\x08\0\x05\0": "little", b"\0\x08\0\x05": "big"}
_HEADER_LENGTH: Final = 8
#: The length of a length that follows the header of a long VR.
_LONG_LENGTH: Final = 4
#: The most that the reads of eight bytes may count for one element or item. A header counts one, a value of this length one
#: more, what begins with the tag of an item two: a sequence with an empty item, so long, counts five for both.
_READS: Final = 2.5


class ElementCount:
    """
    Counts the elements, items and values of a data set while pydicom decodes it.

    :param limit: the most elements and items together, ``None`` for any number.
    :param most_values: the most further values of elements together, ``None`` for any number.

    :ivar reads: the count that the reads of headers may still add; negative for any number.
    """

    __slots__ = ("limit", "most_values", "reads", "seen", "values")

    def __init__(self, limit: int | None = None, most_values: int | None = None) -> None:
        self.limit = limit
        self.most_values = most_values
        self.values = 0
        self.reads = -1 if limit is None else int(_READS * (limit + 2))
        self.seen = 0

    def add(self, number: int) -> None:
        """
        Count *number* elements and items that were decoded.

        :raises DataSetTooLong: they are more than the limit.
        """
        self.seen += number
        if self.limit is not None and self.seen > self.limit:
            raise self._exceeded()

    def add_values(self, number: int) -> None:
        """
        Count *number* values of an element besides its first.

        :raises DataSetTooLong: they are more than the limit.
        """
        self.values += number
        if self.most_values is not None and self.values > self.most_values:
            raise DataSetTooLong(f"a data set of more than {self.most_values} values")

    def check(self) -> None:
        """
        Check that the limit is not exceeded. The exception of pydicom may otherwise hide that of the file.

        :raises DataSetTooLong: the limit is exceeded, so pydicom must not read on.
        """
        if not self.reads:
            raise self._exceeded()

    def _exceeded(self) -> DataSetTooLong:
        return DataSetTooLong(f"a data set of more than {self.limit} elements and items")


class CountedFile(BytesIO):
    """
    A file from which pydicom reads a data set that a peer has sent.

    It counts the reads of headers, and records whether a read passed its end: pydicom takes half a value, or half a sequence,
    for the whole.

    Each Specific Character Set is read with its known terms only. pydicom looks up all others among the codecs of Python:
    there it finds such as ``hex``, which raise when a text is used, a NUL raises at once, and Python keeps each name that it
    has not found, up to 64 KiB, for ever.

    :param count: where the reads are counted; ``None`` to count none.

    :ivar cut_off: whether the last read gave less than was asked for, and no seek went back since.
    :ivar tail: the bytes that this read gave.
    """

    cut_off = False
    tail = b""

    def __init__(self, data: bytes, count: ElementCount | None = None) -> None:
        super().__init__(data)
        self._count = ElementCount() if count is None else count
        self._character_set = b""  # the header of one whose value was not read yet

    def read(self, size: int | None = -1, /) -> bytes:
        """
        Read as a file does.

        :raises DataSetTooLong: the reads are more than the elements and items of the limit take.
        :raises DataSetError: a Specific Character Set has an undefined length.
        """
        data = super().read(size)
        self.cut_off = size is not None and len(data) < size
        if self.cut_off:
            self.tail = data
        if self._character_set and self._is_character_set(size, data):
            return pydicom_terms(data)
        if size == _HEADER_LENGTH:
            if data[:4] in _CHARACTER_SET:
                self._character_set = data
            count = self._count
            if count.limit is not None:
                count.check()
                # Items cost most: a data set for each.
                count.reads = max(0, count.reads - (2 if data[:4] in ITEM_TAGS else 1))
        return data

    def _is_character_set(self, size: int | None, data: bytes) -> bool:
        """
        Return whether *data*, read behind the header of a Specific Character Set, is its value.

        :raises DataSetError: its length is undefined.
        """
        header, self._character_set = self._character_set, b""
        order = _CHARACTER_SET[header[:4]]
        lengths = int.from_bytes(header[6:], order), int.from_bytes(header[4:], order)
        if size == _LONG_LENGTH and header[4:6] in LONG_VRS:
            # The length follows, as in the header of implicit VR.
            self._character_set = header[:4] + data
            lengths = 0, int.from_bytes(data, order)
            size = None
        if UNDEFINED_LENGTH in lengths:
            raise DataSetError("the Specific Character Set has an undefined length")
        return size in lengths

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move as a file does."""
        self.cut_off = False
        return super().seek(offset, whence)


def check_nesting(dataset: Dataset, count: ElementCount | None = None) -> None:
    """
    Decode all sequences of *dataset* and check them, which takes about the time of decoding them.

    pydicom decodes a sequence of defined length when it is first used, and then walks it by recursion: the ``repr`` of ten
    thousand levels takes all memory.

    :param count: where elements, items and values are counted.
    :raises DataSetTooLong: there are more of them than *count* allows.
    :raises DataSetError: sequences are nested deeper than :data:`MAX_NESTED`, or one of them cannot be decoded.
    """
    counted = ElementCount() if count is None else count
    counted.add(len(dataset))
    level = [dataset]
    for _ in range(MAX_NESTED + 1):
        try:
            level = [item for outer in level for item in _items(outer, counted)]
        except DataSetTooLong:
            raise
        except Exception as error:
            counted.check()
            raise DataSetError(f"a sequence of the data set cannot be decoded: {error}") from error
        if not level:
            return
    raise DataSetError(f"the data set has sequences that are nested deeper than {MAX_NESTED}")


def check_depth(dataset: Dataset) -> None:
    """
    Check how deep the sequences of *dataset* are nested that a program made, before pydicom encodes them.

    pydicom walks them by recursion. The error of a data set that is nested too deep, or contains itself, quotes at each level
    the text of the level below twice, so it takes all time and memory.

    :raises DataSetError: sequences are nested deeper than :data:`MAX_NESTED`.
    """
    level = [dataset]
    for _ in range(MAX_NESTED + 1):
        # Each data set once, since one may be an item of itself in several places.
        items = {
            id(item): item
            for outer in level
            for element in outer.values()
            if type(element) is not RawDataElement and isinstance(element.value, Sequence)
            for item in element.value
        }
        if not items:
            return
        level = list(items.values())
    raise DataSetError(f"the data set has sequences that are nested deeper than {MAX_NESTED}")


def _items(dataset: Dataset, count: ElementCount) -> Iterator[Dataset]:
    """Yield the items of all sequences in *dataset*, including sequences that the data dictionary alone knows as such."""
    for tag, element in list(dataset.items()):
        if isinstance(element, RawDataElement):
            vr = _vr(dataset, element)
            if vr != "SQ":
                value = element.value
                if value and vr in _DIVIDED:
                    count.add_values(value.count(b"\\"))
                if value and vr in TEXT_VRS and b"\x1b" in value:
                    count.add_values(value.count(b"\x1b"))
                elif value and vr == "AT":
                    count.add_values(max(0, len(value) // _TAG_LENGTH - 1))
                continue
            dataset[tag] = decoded = _decoded(dataset, element, count)
        elif element.VR == "SQ":
            decoded = element
        else:
            if isinstance(element.value, MultiValue | list):
                count.add_values(max(0, len(element.value) - 1))
            continue
        for item in decoded.value:
            count.add(1 + len(item))
            yield item


def _vr(dataset: Dataset, element: RawDataElement) -> str:
    """Return the VR that pydicom would decode *element* as; empty if its value is too short to matter."""
    if element.VR in (None, "UN"):
        value = element.value
        if not value or (len(value) < _HEADER_LENGTH and b"\\" not in value):
            return ""
        found: dict[str, Any] = {}
        raw_element_vr(element, found, ds=dataset)
        vr = found["VR"]
        return "" if vr == "SQ" and len(value) < _HEADER_LENGTH else str(vr)
    return element.VR


def _decoded(dataset: Dataset, element: RawDataElement, count: ElementCount) -> DataElement:
    """Decode a sequence as pydicom does, from a file that counts."""
    value = element.value or b""
    items = read_sequence(
        CountedFile(value, count),
        *(element.is_implicit_VR, element.is_little_endian, len(value)),
        dataset.original_character_set or "iso8859",
    )
    return DataElement(element.tag, "SQ", items, element.value_tell, already_converted=True)
