"""
Values that DICOM JSON refers to by a BulkDataURI (PS3.18 F.2.6): the end of the URI, and the place of the value in the data
set.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from dicomtwist.dicomweb.json_encoder import MAX_DEPTH, JSONEncoder, ReadAt

__all__ = ["BulkValue", "find_value", "long_values", "parse_path", "path_text"]

_TAG: Final = re.compile("[0-9A-Fa-f]{8}", re.ASCII)
_INDEX: Final = re.compile(r"\d{1,9}", re.ASCII)


class BulkValue(NamedTuple):
    """
    The place of a value.

    :ivar vr: its VR.
    :ivar offset: the position of its first byte in the data set (of a deflated one: when it is inflated).
    :ivar length: its length in bytes; ``None`` if it consists of fragments, which begin at the offset (PS3.5 A.4).
    """

    vr: str
    offset: int
    length: int | None


def path_text(path: tuple[int, ...]) -> str:
    """
    Return the path of an element as the end of a URL: tags of eight digits, and indexes of items, divided by slashes.

    :param path: the path, see :class:`~dicomtwist.dicomweb.json_encoder.BulkData`.
    """
    return "/".join([str(one) if at & 1 else f"{one:08X}" for at, one in enumerate(path)])


def parse_path(text: str) -> tuple[int, ...] | None:
    """Return the path that :func:`path_text` has written; ``None`` if *text* is not a path."""
    names = text.split("/")
    if not len(names) & 1 or len(names) > 2 * MAX_DEPTH + 1:
        return None
    if not all((_INDEX if at & 1 else _TAG).fullmatch(name) for at, name in enumerate(names)):
        return None
    return tuple(int(name) if at & 1 else int(name, 16) for at, name in enumerate(names))


class _Found(Exception):
    """The value is found."""

    def __init__(self, value: BulkValue) -> None:
        super().__init__()
        self.value = value


def find_value(source: bytes | ReadAt, transfer_syntax: str, path: tuple[int, ...]) -> BulkValue | None:
    """
    Find a value in a data set.

    :param source: the data set without File Meta Information, or a function that reads from it. Values of VR OB, OW and the
        like are not read.
    :param transfer_syntax: the UID of its transfer syntax.
    :param path: the path of the element.
    :returns: ``None`` if there is no such element, or it is empty or a sequence.
    :raises DataSetError: the bytes before it cannot be a data set.
    """

    def check(found: tuple[int, ...], vr: str, offset: int, length: int | None) -> str | None:
        if found == path:
            raise _Found(BulkValue(vr, offset, length))
        # A long value that is not wanted need not be read.
        return "" if length is None or length > _SHORT else None

    try:
        JSONEncoder(transfer_syntax, check, max_inline=-1, max_inline_text=-1).encode(source)
    except _Found as found:
        return found.value
    return None


def long_values(source: bytes | ReadAt, transfer_syntax: str, longer_than: int) -> list[tuple[int, BulkValue]]:
    """
    Return the long values at the top level of a data set, each with the tag of its element, in their order.

    :param source: the data set without File Meta Information, or a function that reads from it. These values are not read.
    :param transfer_syntax: the UID of its transfer syntax.
    :param longer_than: the values have more bytes than this, or an undefined length.
    :raises DataSetError: the bytes cannot be a data set.
    """
    found: list[tuple[int, BulkValue]] = []

    def check(path: tuple[int, ...], vr: str, offset: int, length: int | None) -> str | None:
        if len(path) == 1 and (length is None or length > longer_than):
            found.append((path[0], BulkValue(vr, offset, length)))
        return "" if length is None or length > _SHORT else None

    JSONEncoder(transfer_syntax, check, max_inline=-1, max_inline_text=-1).encode(source)
    return found


#: The longest value that is read all the same, in bytes: the VR or the text of other elements may depend on it.
_SHORT: Final = 1024
