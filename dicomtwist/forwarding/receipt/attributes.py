"""
The attributes of an instance that is being received, as rules of forwarding see them: decoded from the values of a scan.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from pydicom.datadict import private_dictionary_VR
from pydicom.filereader import read_dataset

from dicomtwist.datasets.element_headers import (
    EXPLICIT_BIG_ENDIAN,
    IMPLICIT,
    LONG_VRS,
    SEQUENCE_DELIMITERS,
    UNDEFINED_LENGTH,
)
from dicomtwist.datasets.nesting import CountedFile
from dicomtwist.forwarding.paths import Path, Step, text_values

__all__ = ["Items", "ScannedAttributes", "tags_for"]

#: Tags and raw values, in the order of the tags.
Items = tuple[tuple[int, bytes], ...]

_CHARACTER_SET: Final = 0x00080005
_BLOCKS: Final = range(0x10, 0x100)
#: The tags of the first item of a sequence.
_ITEMS: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
#: The bytes that no text of DICOM has (PS3.5 6.1.3).
_BINARY: Final = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")


def tags_for(paths: Iterable[Path]) -> frozenset[int]:
    """Return the tags whose values :class:`ScannedAttributes` needs for *paths*."""
    found = {_CHARACTER_SET}
    for path in paths:
        found.update(_tags(_first(path)))
    return frozenset(found)


def _first(path: Path) -> Step:
    return (*path.sequences, path.last)[0]


@lru_cache(maxsize=1024)
def _tags(step: Step) -> frozenset[int]:
    """Return the tags that an attribute can have; a private creator may have reserved any block."""
    if not step.creator:
        return frozenset((step.tag,))
    group = step.tag & 0xFFFF0000
    blocks = (group | block << 8 | step.tag & 0xFF for block in _BLOCKS)
    return frozenset((*blocks, *(group | block for block in _BLOCKS)))


class ScannedAttributes:
    """
    The attributes of an instance; an :class:`~dicomtwist.forwarding.rules.Attributes`.

    A value that is longer than the scanner keeps counts as empty, as it does in the index.

    :param items: the values of :func:`tags_for`, as far as the instance has them.
    :param transfer_syntax: the transfer syntax of the data set.
    """

    def __init__(self, items: Items, transfer_syntax: str) -> None:
        self._items = items
        self._implicit = transfer_syntax in IMPLICIT
        self._little = transfer_syntax != EXPLICIT_BIG_ENDIAN

    def values(self, path: Path, /) -> Sequence[str]:
        """Return the values of an attribute as texts."""
        tags = _tags(_first(path))
        items = tuple(item for item in self._items if item[0] == _CHARACTER_SET or item[0] in tags)
        return _texts(path, items, self._implicit, self._little)


def items_of(values: Mapping[int, bytes], tags: Iterable[int]) -> Items:
    """Return those of *values* whose tags are in *tags*, which are sorted."""
    return tuple([(tag, bytes(values[tag])) for tag in tags if tag in values])


@lru_cache(maxsize=4096)
def _texts(path: Path, items: Items, implicit: bool, little: bool) -> tuple[str, ...]:
    content = b"".join(_element(tag, raw, _vr(path, tag, raw), implicit, little) for tag, raw in items)
    try:
        return tuple(text_values(read_dataset(CountedFile(content), implicit, little), path))
    except Exception:
        # pydicom may raise anything, depending on the value. A damaged value matches nothing.
        return ()


def _vr(path: Path, tag: int, raw: bytes) -> str:
    """Return the Value Representation of an element; the scan does not keep the one that the data set states."""
    if tag == _CHARACTER_SET:
        return "CS"
    first = _first(path)
    if first.creator and tag & 0xFFFF < 0x100:
        return "LO"  # a private creator
    if path.sequences:
        return "SQ"
    if not first.creator:
        return path.vr.partition(" ")[0] or _guessed(raw)
    try:
        return private_dictionary_VR(tag, first.creator)
    except KeyError:
        return _guessed(raw)


def _guessed(raw: bytes) -> str:
    """Return a Value Representation for a value that the dictionaries do not know: most of these are texts."""
    return "UN" if raw.startswith(_ITEMS) or _BINARY.search(raw.rstrip(b"\0")) else "LO"


def _element(tag: int, raw: bytes, vr: str, implicit: bool, little: bool) -> bytes:
    order = "<" if little else ">"
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    length = UNDEFINED_LENGTH if vr == "SQ" and raw.endswith(SEQUENCE_DELIMITERS) else len(raw)
    if implicit:
        return head + struct.pack(f"{order}I", length) + raw
    if vr.encode() in LONG_VRS:
        return head + vr.encode() + struct.pack(f"{order}HI", 0, length) + raw
    return head + vr.encode() + struct.pack(f"{order}H", length) + raw
