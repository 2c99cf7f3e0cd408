"""
Paths to attributes: ``PatientID``, ``00100020``, ``RequestAttributesSequence.ScheduledProcedureStepID``, ``0029[CREATOR]10``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_keyword, dictionary_VR, keyword_dict, tag_for_keyword

__all__ = ["Path", "Step", "parse_path", "tag_name", "text_values"]

_PRIVATE: Final = re.compile(r"\(?([0-9A-F]{4}),?\[([^\[\]\\]{1,64})\](?:xx)?([0-9A-F]{2})\)?", re.IGNORECASE)
_TAG: Final = re.compile(r"\(?([0-9A-F]{4}),?([0-9A-F]{4})\)?", re.IGNORECASE)
#: A dot that divides steps: not one in the name of a private creator.
_DOT: Final = re.compile(r"\.(?![^\[\]]*\])")


@dataclass(frozen=True, slots=True)
class Step:
    """
    One attribute of a path.

    :ivar tag: its tag; of a private one with a creator the group and the last two digits of the element.
    :ivar creator: the private creator, or an empty text.
    """

    tag: int
    creator: str = ""

    def __str__(self) -> str:
        if self.creator:
            return f"{self.tag >> 16:04X}[{self.creator}]{self.tag & 0xFF:02X}"
        return tag_name(self.tag)

    def tag_in(self, dataset: Dataset) -> int | None:
        """Return its tag in *dataset*; ``None`` if *dataset* has no block of its private creator."""
        if not self.creator:
            return self.tag
        try:
            return int(dataset.private_block(self.tag >> 16, self.creator).get_tag(self.tag & 0xFF))
        except KeyError:
            return None


@dataclass(frozen=True, slots=True)
class Path:
    """
    A path to an attribute.

    :ivar sequences: the sequences that lead to it; all their items count.
    :ivar last: the attribute itself.
    """

    sequences: tuple[Step, ...]
    last: Step

    def __str__(self) -> str:
        return ".".join(map(str, (*self.sequences, self.last)))

    @property
    def tag(self) -> int:
        """The tag of the attribute."""
        return self.last.tag

    @property
    def vr(self) -> str:
        """Its Value Representation in the data dictionary; empty if the dictionary does not know it."""
        known = not self.last.creator and dictionary_has_tag(self.tag)
        return dictionary_VR(self.tag) if known else ""

    def holders(self, dataset: Dataset) -> Iterator[Dataset]:
        """Yield *dataset*, or the items of its sequences in which the attribute can be."""
        level = [dataset]
        for step in self.sequences:
            level = [item for outer in level for item in _items(outer, step)]
        yield from level


def _items(dataset: Dataset, step: Step) -> list[Dataset]:
    tag = step.tag_in(dataset)
    if tag is None or tag not in dataset:
        return []
    element = dataset[tag]
    return list(element.value or ()) if element.VR == "SQ" else []


def parse_path(text: str) -> Path:
    """
    Return the path that *text* describes.

    :raises ValueError: a step of it is no keyword and no tag.
    """
    steps = [_parse_step(one) for one in _DOT.split(text)]
    path = Path(tuple(steps[:-1]), steps[-1])
    for step in path.sequences:
        if not step.creator and dictionary_has_tag(step.tag) and dictionary_VR(step.tag) != "SQ":
            raise ValueError(f"{step} is no sequence")
    return path


def _parse_step(text: str) -> Step:
    if found := _PRIVATE.fullmatch(text):
        group = int(found[1], 16)
        if not group & 1:
            raise ValueError(f"{text!r} has an even group, so it is not private")
        return Step(group << 16 | int(found[3], 16), found[2])
    if found := _TAG.fullmatch(text):
        return Step(int(found[1] + found[2], 16))
    tag = tag_for_keyword(text)
    if tag is None:
        near = get_close_matches(text, keyword_dict, 1)
        raise ValueError(f"{text[:64]!r} is no keyword and no tag" + (f": did you mean {near[0]}?" if near else ""))
    return Step(int(tag))


def tag_name(tag: int) -> str:
    """Return the keyword of *tag*, or ``(gggg,eeee)``."""
    if dictionary_has_tag(tag):
        keyword = dictionary_keyword(tag)
        if keyword:
            return keyword
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def text_values(dataset: Dataset, path: Path) -> list[str]:
    """Return the values of an attribute as texts, in all items; values that cannot be decoded are left out."""
    found: list[str] = []
    for holder in path.holders(dataset):
        tag = path.last.tag_in(holder)
        if tag is None or tag not in holder:
            continue
        try:
            value = holder[tag].value
        except Exception:  # a value that a peer sent damaged matches nothing
            continue
        if value is None or isinstance(value, bytes):
            continue
        values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
        found += [str(one) for one in values if not isinstance(one, Dataset)]
    return found
