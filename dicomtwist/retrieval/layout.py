"""
The names of the files that a retrieval stores: a layout of folders and names with attributes in braces.
"""

from __future__ import annotations

import re
import struct
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from string import Formatter
from typing import Final, NamedTuple

from pydicom.datadict import dictionary_VR, tag_for_keyword

from dicomtwist.datasets.character_sets import canonical, decode_text
from dicomtwist.datasets.element_headers import EXPLICIT_BIG_ENDIAN

__all__ = ["UID_LAYOUT", "InvalidLayout", "Layout"]

#: The default layout: the three UIDs that identify an instance.
UID_LAYOUT: Final = "{StudyInstanceUID}/{SeriesInstanceUID}/{SOPInstanceUID}.dcm"

#: The longest name of a file or folder, in bytes of UTF-8. File systems allow 255; the rest is for the digest of a collision.
MAX_COMPONENT: Final = 200
#: The most folders and names in a layout.
MAX_COMPONENTS: Final = 16
#: The largest width of a number, as in ``{InstanceNumber:05}``.
MAX_WIDTH: Final = 20
#: The name of a value that is missing or empty.
UNKNOWN: Final = "unknown"

_CHARACTER_SET: Final = 0x00080005
_SOP_INSTANCE_UID: Final = 0x00080018
#: Characters that a file system or a shell of some platform takes for something else than a part of a name.
_UNSAFE: Final = frozenset('/\\:*?"<>|')
#: Names that Windows takes for devices, whatever follows behind a dot.
_RESERVED: Final = frozenset(
    ("con", "prn", "aux", "nul", *(f"{name}{number}" for name in ("com", "lpt") for number in "0123456789¹²³"))
)
_NUMBERS: Final = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}
_TEXT: Final = frozenset(
    ["AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"]
)
_TAG: Final = re.compile(r"\(?([0-9A-Fa-f]{4}),?([0-9A-Fa-f]{4})\)?")
_WIDTH: Final = re.compile(r"0?([0-9]{1,2})d?")


class InvalidLayout(ValueError):
    """A layout cannot be used; the text says why."""


class _Field(NamedTuple):
    """An attribute in a layout."""

    tag: int
    vr: str
    width: int


#: A folder or name of a layout: literal text and attributes in turn.
_Component = tuple[str | _Field, ...]


class Layout:
    """
    A layout of files, such as ``{PatientID}/{StudyDate}/{SeriesNumber}/{InstanceNumber:05}.dcm``.

    An attribute is written with its keyword or tag (``{0010,0020}``) in braces; a width with a colon fills numbers with zeros;
    ``{{`` and ``}}`` are braces. A value becomes a safe part of a name: nothing in it leads to another folder, is a device on
    Windows or a hidden file, controls a terminal, or is too long. If that changes the value, a digest of it follows behind
    ``~``, so that two values do not become one name. An empty or missing value becomes ``unknown``.

    :param text: the layout.
    :raises InvalidLayout: it cannot be used; the text says why.

    :ivar wanted: the tags of the attributes.
    :ivar is_unique: whether the name contains the SOP Instance UID, so that two instances never have the same path.
    """

    def __init__(self, text: str = UID_LAYOUT) -> None:
        self._text = text
        self._components = _parse(text)
        fields = [part for component in self._components for part in component if isinstance(part, _Field)]
        self.wanted = frozenset((_CHARACTER_SET, *(field.tag for field in fields)))
        self.is_unique = any(field.tag == _SOP_INSTANCE_UID for field in fields)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Layout({self._text!r})"

    def path(self, values: Mapping[int, bytes], transfer_syntax_uid: str) -> str:
        """
        Return the path of an instance, relative to the root, with ``/`` between folders. No values make it fail.

        :param values: tag to raw value, as a :class:`~dicomtwist.datasets.header_scanner.HeaderScanner` found them.
        :param transfer_syntax_uid: the transfer syntax of the data set.
        """
        charset = canonical(values.get(_CHARACTER_SET, b"").decode("latin-1"))
        order = ">" if transfer_syntax_uid == EXPLICIT_BIG_ENDIAN else "<"
        return "/".join(
            _component(
                "".join(
                    part if isinstance(part, str) else _value(part, values.get(part.tag, b""), charset, order)
                    for part in component
                )
            )
            for component in self._components
        )


def _parse(text: str) -> tuple[_Component, ...]:
    components: list[list[str | _Field]] = [[]]
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise InvalidLayout(f"{text!r}: {error}") from None
    for literal, name, width, conversion in parts:
        first, *others = literal.split("/")
        components[-1].append(first)
        components += [[other] for other in others]
        if name is not None:
            components[-1].append(_field(name, width or "", conversion))
    if len(components) > MAX_COMPONENTS:
        raise InvalidLayout(f"{text!r} has more than {MAX_COMPONENTS} folders")
    for component in components:
        _check(text, "".join(part if isinstance(part, str) else "x" for part in component))
    return tuple(map(tuple, components))


def _check(text: str, name: str) -> None:
    """Check the literal text of a folder or name; attributes in it are replaced by letters."""
    if not name:
        raise InvalidLayout(f"{text!r} has an empty name: it is a path below the folder, with one / between names")
    if name.startswith("."):
        raise InvalidLayout(f"{text!r}: a name does not begin with a dot")
    wrong = sorted({letter for letter in name if letter in _UNSAFE or not letter.isprintable()})
    if wrong:
        raise InvalidLayout(f"{text!r}: a name does not contain {''.join(wrong)!r}")
    if name != _component(name):
        raise InvalidLayout(f"{text!r}: {name!r} is no name on some platforms")


def _field(name: str, width: str, conversion: str | None) -> _Field:
    tag = tag_for_keyword(name) if name else None
    numbers = _TAG.fullmatch(name)
    if tag is None and numbers is not None:
        tag = int(numbers[1] + numbers[2], 16)
    if tag is None:
        raise InvalidLayout(f"{{{name}}} is neither the keyword of an attribute, as {{PatientID}}, nor a tag")
    if tag < 0x00080000:
        raise InvalidLayout(f"{{{name}}} is not an attribute of a data set")
    try:
        vr = dictionary_VR(tag).split(" or ")[0]
    except KeyError:
        raise InvalidLayout(f"{{{name}}} is an attribute whose value representation is not known") from None
    if vr not in _TEXT and vr not in _NUMBERS:
        raise InvalidLayout(f"{{{name}}} has the value representation {vr}, which does not fit into a name")
    match = _WIDTH.fullmatch(width)
    if conversion or (width and (match is None or int(match[1]) > MAX_WIDTH)):
        raise InvalidLayout(
            f"{{{name}}} may have a width of at most {MAX_WIDTH}, as in {{InstanceNumber:05}}, and nothing else"
        )
    return _Field(tag, vr, int(match[1]) if match else 0)


# --- values


def _value(field: _Field, raw: bytes, charset: str, order: str) -> str:
    """Return a value as a part of a name."""
    text = _text(field.vr, raw, charset, order).strip(" \0")
    if field.width and text.isascii() and text.lstrip("+-").isdigit():
        text = text.zfill(field.width)
    return safe(text)


def _text(vr: str, raw: bytes, charset: str, order: str) -> str:
    if vr in _NUMBERS:
        code = struct.Struct(order + _NUMBERS[vr])
        return (
            f"{code.unpack_from(raw)[0]:g}"
            if vr in ("FL", "FD") and len(raw) >= code.size
            else (str(code.unpack_from(raw)[0]) if len(raw) >= code.size else "")
        )
    if vr in ("LO", "SH", "PN", "LT", "ST", "UT", "UC"):
        return decode_text(raw, charset, vr)
    return raw.decode("latin-1")


@lru_cache(maxsize=1024)
def safe(text: str) -> str:
    """Return *text* as a part of a name, with a digest behind it if it cannot be one as it is."""
    if not text:
        return UNKNOWN
    plain = unicodedata.normalize("NFC", text)
    name = "".join("_" if letter in _UNSAFE or not letter.isprintable() else letter for letter in plain)
    if name.startswith("."):
        name = "_" + name[1:]
    if name.endswith("."):
        name = name[:-1] + "_"
    cut = _cut(name, MAX_COMPONENT // 2)
    return name if name == cut == plain else f"{cut}~{digest(text)}"


def _component(name: str) -> str:
    """Return a folder or name that is made of safe parts, and fits on all platforms as a whole."""
    original = name
    stem, dot, ending = name.partition(".")
    if stem.strip().lower() in _RESERVED:
        name = f"{stem}_{dot}{ending}"
    if name[-1:] in (" ", "."):
        name = name.rstrip(" .") + "_"
    if name.startswith((" ", ".")):
        name = "_" + name.lstrip(" .")
    if len(name.encode("utf-8", "replace")) > MAX_COMPONENT:
        stem, ending = split_ending(name)
        name = f"{_cut(stem, MAX_COMPONENT - 16 - len(ending.encode()))}~{digest(original)}{ending}"
    return name


def split_ending(name: str) -> tuple[str, str]:
    """Return the name without its ending, and the ending with its dot; a long ending counts as a part of the name."""
    stem, dot, ending = name.rpartition(".")
    return (stem, dot + ending) if stem and len(ending) <= 8 and ending.isascii() else (name, "")


def _cut(text: str, size: int) -> str:
    """Return the beginning of *text* that has at most *size* bytes of UTF-8."""
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")


def digest(text: str, length: int = 4) -> str:
    """Return a digest of *text* in hexadecimal digits, two for each byte of *length*."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=length).hexdigest()


def aside(path: str, uid: str) -> str:
    """Return the path of an instance whose *path* another instance has already: with a digest of its SOP Instance UID."""
    folder, slash, name = path.rpartition("/")
    stem, ending = split_ending(name)
    return f"{folder}{slash}{stem}~{digest(uid, 6)}{ending}"
