"""
Items of a worklist as they are kept in memory: compact, and nearly invisible to Python's garbage collection.

A pydicom Dataset of an item consists of a hundred objects that the garbage collection visits: with 20,000 items a full
collection takes a second, during which no peer gets an answer. An :class:`Item` has a few such objects, and a sixth of the
memory; a Dataset is made again of the elements that an answer has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

__all__ = ["Element", "Item"]

#: The types of values that stay as they are; the values of the others are kept as text.
_PLAIN: Final = (bytes, int, float)


class Element(NamedTuple):
    """An element of an item, with the attributes of pydicom's DataElement that matching needs."""

    VR: str
    value: Any


class _Shape:
    """The tags and VRs of a data set; items of one source mostly share one."""

    __slots__ = ("__weakref__", "positions", "tags", "vrs")

    def __init__(self, tags: tuple[int, ...], vrs: tuple[str, ...]) -> None:
        self.tags = tags
        self.vrs = vrs
        self.positions = {tag: at for at, tag in enumerate(tags)}


_shapes: WeakValueDictionary[tuple[tuple[int, ...], tuple[str, ...]], _Shape] = WeakValueDictionary()


class Item:
    """
    A data set with all its items, which does not change.

    :param dataset: the data set, decoded to its last value.
    """

    __slots__ = ("_shape", "_values")

    def __init__(self, dataset: Dataset) -> None:
        elements = [dataset[tag] for tag in sorted(dataset.keys())]
        key = tuple(int(one.tag) for one in elements), tuple(str(one.VR) for one in elements)
        shape = _shapes.get(key)
        if shape is None:
            shape = _Shape(*key)
            _shapes[key] = shape
        self._shape = shape
        self._values = tuple([_compact(one) for one in elements])

    def __contains__(self, tag: object) -> bool:
        return tag in self._shape.positions

    def __getitem__(self, tag: int) -> Element:
        at = self._shape.positions[tag]
        return Element(self._shape.vrs[at], self._values[at])

    def __iter__(self) -> Iterator[tuple[int, Element]]:
        for tag, vr, value in zip(self._shape.tags, self._shape.vrs, self._values, strict=True):
            yield tag, Element(vr, value)

    def dataset(self, tags: Iterable[int] | None = None) -> Dataset:
        """
        Return the data set again.

        :param tags: the elements that are needed, besides the Specific Character Set; by default all.
        """
        wanted = None if tags is None else {*map(int, tags), 0x00080005}
        made = Dataset()
        for tag, element in self:
            if wanted is None or tag in wanted:
                value: Any = element.value
                if element.VR == "SQ":
                    value = [one.dataset() for one in value]
                elif isinstance(value, tuple):
                    value = list(value)
                made[tag] = DataElement(tag, element.VR, value, validation_mode=IGNORE)
        return made


def _compact(element: DataElement) -> Any:
    value: Any = element.value
    if element.VR == "SQ":
        return tuple([Item(one) for one in value or ()])
    if isinstance(value, (list, tuple, MultiValue)):
        return tuple(map(_plain, value))
    return _plain(value)


def _plain(value: Any) -> Any:
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, PersonName) or not isinstance(value, int):
        return str(value)
    # A number of type IS keeps its spelling; a tag, of type AT, is a plain number.
    spelling = getattr(value, "original_string", None)
    return int(value) if spelling is None else str(spelling)
