"""
Keys of a query in the form of the command line: ``PatientID=A*``, ``(0010,0020)``, ``Sequence[0].Keyword=value``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from pydicom import DataElement, Dataset, Sequence
from pydicom.charset import python_encoding
from pydicom.config import IGNORE
from pydicom.datadict import tag_for_keyword
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

from dicomtwist.datasets.nesting import MAX_NESTED
from dicomtwist.tools.query.attributes import attribute_name, is_queryable, vr_of

#: The number of items of a sequence that keys may address.
MAX_ITEMS: Final = 100
#: The longest value, in characters; any sensible list of UIDs is far shorter.
MAX_VALUE: Final = 64 * 1024

#: One step of a path: a tag, and the number of an item if the path leads into a sequence.
PathStep = tuple[BaseTag, int | None]
#: The path to an attribute, through the items of sequences.
AttributePath = tuple[PathStep, ...]

_TAG = re.compile(r"\(?\s*([0-9A-Fa-f]{4})\s*,\s*([0-9A-Fa-f]{4})\s*\)?")
_KEYWORD = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_PATH_STEP = re.compile(r"(.*?)(?:\[\s*([0-9]{1,9})\s*\])?", re.DOTALL)

_CHARACTER_SET: Final = 0x00080005
_INTEGERS: Final = {
    "US": (0, 2**16 - 1),
    "UL": (0, 2**32 - 1),
    "UV": (0, 2**64 - 1),
    "SS": (-(2**15), 2**15 - 1),
    "SL": (-(2**31), 2**31 - 1),
    "SV": (-(2**63), 2**63 - 1),
}
_REALS: Final = frozenset(("FL", "FD"))
#: The VRs of text with one value, in which a backslash is an ordinary character (PS3.5 6.2).
_ONE_VALUE: Final = frozenset(("LT", "ST", "UT", "UR"))
_BYTES: Final = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))


class InvalidKey(ValueError):
    """A key cannot be used; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Key:
    """
    One key of a query.

    :ivar path: the path to its attribute in the identifier.
    :ivar value: the value to match, empty to only return the attribute.
    """

    path: AttributePath
    value: str = ""

    def __str__(self) -> str:
        return f"{format_path(self.path)}={self.value}" if self.value else format_path(self.path)


def format_path(path: AttributePath) -> str:
    """Return *path* in the form that :func:`parse_key` accepts."""
    return ".".join(attribute_name(tag) + ("" if item is None else f"[{item}]") for tag, item in path)


def parse_key(text: str) -> Key:
    """
    Return the key that *text* describes.

    :param text: ``Keyword`` or ``(gggg,eeee)``, optionally after ``Sequence[0].``, optionally with ``=value``. A sequence
        without an item number means its first item if a step follows, and the whole sequence otherwise.
    :raises InvalidKey: *text* describes no key.
    """
    name, _, value = text.partition("=")
    if len(value) > MAX_VALUE:
        raise InvalidKey(f"the value of {name[:80]!r} has more than {MAX_VALUE} characters")
    if any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        raise InvalidKey(f"{text[:80]!a} is not text in the encoding of this terminal")
    parts = name.strip().split(".")
    if len(parts) > MAX_NESTED:
        raise InvalidKey(f"{name[:80]!r} is nested deeper than {MAX_NESTED} sequences")
    steps: list[PathStep] = []
    for part in parts:
        tag, item = _step(part.strip())
        is_last = len(steps) == len(parts) - 1
        is_sequence = vr_of(tag) == "SQ"
        if not is_sequence and (item is not None or not is_last):
            raise InvalidKey(f"{attribute_name(tag)} is not a sequence, so it has no items")
        if is_last and is_sequence and value:
            raise InvalidKey(
                f"{attribute_name(tag)} is a sequence: name an attribute in it, as in {attribute_name(tag)}[0].Keyword={value}"
            )
        steps.append((tag, item if is_last or item is not None else 0))
    key = Key(tuple(steps), value)
    _element(key)
    return key


def _step(text: str) -> PathStep:
    match = _PATH_STEP.fullmatch(text)
    assert match is not None
    name, item = match[1].strip(), match[2]
    if item is not None and int(item) >= MAX_ITEMS:
        raise InvalidKey(f"{name}[{item}]: the number of an item is from 0 to {MAX_ITEMS - 1}")
    return _tag(name), None if item is None else int(item)


def _tag(name: str) -> BaseTag:
    numbers = _TAG.fullmatch(name)
    if numbers is not None and name.startswith("(") == name.endswith(")"):
        tag = Tag(int(numbers[1], 16), int(numbers[2], 16))
    elif _KEYWORD.fullmatch(name) and (found := tag_for_keyword(name)) is not None:
        tag = Tag(found)
    else:
        raise InvalidKey(
            f"{name[:80]!r} is neither the keyword of an attribute, as PatientID, nor a tag, as (0010,0020)"
        )
    if not is_queryable(tag):
        raise InvalidKey(f"{attribute_name(tag)} is not an attribute that a query may contain")
    return tag


# --- values


def _numbers(value: str, convert: Callable[[str], object]) -> object:
    values = [convert(part) for part in value.split("\\")]
    return values[0] if len(values) == 1 else values


def _integer(vr: str) -> Callable[[str], int]:
    low, high = _INTEGERS[vr]

    def convert(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise ValueError(f"it is not from {low} to {high}")
        return number

    return convert


def _element(key: Key) -> DataElement:
    """Return the data element of the last step of *key*."""
    tag = key.path[-1][0]
    vr = vr_of(tag)
    value = key.value
    try:
        if vr == "SQ":
            return DataElement(tag, vr, Sequence())
        if not value:
            return DataElement(tag, vr, None)
        if vr in _INTEGERS:
            return DataElement(tag, vr, _numbers(value, _integer(vr)))
        if vr in _REALS:
            return DataElement(tag, vr, _numbers(value, float))
        if vr == "AT":
            return DataElement(tag, vr, _numbers(value, lambda part: _tag(part.strip())))
        if vr in _BYTES:
            return DataElement(tag, vr, value.encode("latin-1"))
        if tag == _CHARACTER_SET and not all(part.strip() in python_encoding for part in value.split("\\")):
            raise ValueError("it is not a DICOM character set; ISO_IR 192 is UTF-8")
        # Queries have wildcards and ranges, which pydicom would reject in dates and UIDs.
        return DataElement(tag, vr, value if vr in _ONE_VALUE else _several(value), validation_mode=IGNORE)
    except (ValueError, TypeError, OverflowError, ArithmeticError) as error:
        raise InvalidKey(
            f"{attribute_name(tag)} cannot be {value[:80]!r}, its value representation is {vr}: {error}"
        ) from None


def _several(value: str) -> str | list[str]:
    return value.split("\\") if "\\" in value else value


# --- identifiers


def merged(*sources: Iterable[Key]) -> list[Key]:
    """
    Return the keys of *sources* with one key for each path.

    Values of one path in one source become a list, each value once, so that a file may name 200 studies in 200 lines. A value
    of a later source replaces those of earlier ones: the command line overrides a file.

    :raises InvalidKey: the attribute takes one value only, or the list is longer than :data:`MAX_VALUE`.
    """
    values: dict[AttributePath, dict[str, None]] = {}
    for source in sources:
        own: dict[AttributePath, dict[str, None]] = {}
        for key in source:
            texts = own.setdefault(key.path, {})
            if key.value:
                texts[key.value] = None
        for path, texts in own.items():
            if texts or path not in values:
                values[path] = texts
    return [Key(path, _listed(path, list(texts))) for path, texts in values.items()]


def _listed(path: AttributePath, texts: list[str]) -> str:
    """Return several values as DICOM writes them, with backslashes between."""
    vr = vr_of(path[-1][0])
    if len(texts) > 1 and (vr in _ONE_VALUE or vr in _BYTES or path[-1][0] == _CHARACTER_SET):
        raise InvalidKey(f"{format_path(path)} is given {len(texts)} times, and takes one value only")
    value = "\\".join(texts)
    if len(value) > MAX_VALUE:
        raise InvalidKey(f"the values of {format_path(path)} have more than {MAX_VALUE} characters together")
    return value


def add_key(dataset: Dataset, key: Key) -> None:
    """Put *key* into *dataset*. It replaces an element with the same path, unless *key* has no value."""
    for tag, item in key.path[:-1]:
        assert item is not None
        dataset = _item(dataset, tag, item)
    tag, item = key.path[-1]
    if item is not None:
        _item(dataset, tag, item)
    elif key.value or tag not in dataset:
        dataset[tag] = _element(key)


def _item(dataset: Dataset, tag: BaseTag, number: int) -> Dataset:
    if tag not in dataset or not isinstance(dataset[tag].value, Sequence):
        dataset[tag] = DataElement(tag, "SQ", Sequence())
    items = dataset[tag].value
    while len(items) <= number:
        items.append(Dataset())
    item: Dataset = items[number]
    return item


def make_identifier(keys: Iterable[Key], dataset: Dataset | None = None) -> Dataset:
    """
    Return the identifier that consists of *keys*.

    :param dataset: a data set to extend in place, instead of an empty one.
    :raises InvalidKey: see :func:`merged`.
    """
    identifier = Dataset() if dataset is None else dataset
    for key in merged(keys):
        add_key(identifier, key)
    if "SpecificCharacterSet" not in identifier and any(not key.value.isascii() for key in keys_of(identifier)):
        identifier.SpecificCharacterSet = "ISO_IR 192"
    return identifier


def keys_of(dataset: Dataset, before: AttributePath = ()) -> list[Key]:
    """Return the keys of *dataset* in its order; an empty sequence is a key too."""
    keys: list[Key] = []
    for element in dataset:
        if element.tag.element == 0:
            continue  # the length of a group
        if element.VR != "SQ":
            keys.append(Key((*before, (element.tag, None)), _text(element.value)))
        elif not element.value:
            keys.append(Key((*before, (element.tag, None))))
        for number, item in enumerate(element.value if element.VR == "SQ" else ()):
            keys += keys_of(item, (*before, (element.tag, number)))
    return keys


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, MultiValue | list):
        return "\\".join(map(str, value))
    return "" if value is None else str(value)


def parse_lines(lines: Iterable[str]) -> list[Key]:
    """
    Return the keys of a text with one key on each line; empty lines and lines that begin with ``#`` are ignored.

    :raises InvalidKey: a line is not a key.
    """
    keys = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            try:
                keys.append(parse_key(text))
            except InvalidKey as error:
                raise InvalidKey(f"line {number}: {error}") from None
    return keys
