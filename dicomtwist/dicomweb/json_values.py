"""
The values of DICOM JSON (PS3.18 F.2): text from the bytes of each VR.

The text is UTF-8, whatever the character set of the data set. Bytes that have no meaning in it become U+FFFD. The numbers of DS
and IS keep their digits; a value of them that is no number is a string, which the standard allows (PS3.18 Table F.2.3-1).
"""

from __future__ import annotations

import math
import re
from array import array
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from json.encoder import encode_basestring
from struct import Struct
from typing import Any, Final, TypeAlias

from pydicom.datadict import dictionary_VR

from dicomtwist.datasets.character_sets import decode_text, has_undecoded

__all__ = [
    "EMPTY",
    "WrongLength",
    "Write",
    "attribute",
    "encode_attributes",
    "inline",
    "prefix_of",
    "public_vr",
    "swapped",
    "writers",
]


class WrongLength(Exception):
    """The length of a value is not a multiple of that of its VR."""


#: Writes a value: what follows the VR in the JSON object, with its closing brace.
Write: TypeAlias = Callable[[bytes, str], str]

EMPTY: Final = "}"
_NUMBERS: Final = re.compile(
    r"-?(?:0|[1-9]\d{0,30})(?:\.\d{1,30})?(?:[eE][+-]?\d{1,2})?(?:\\-?(?:0|[1-9]\d{0,30})(?:\.\d{1,30})?(?:[eE][+-]?\d{1,2})?)*",
    re.ASCII,
)
_INTEGERS: Final = re.compile(r"-?(?:0|[1-9]\d{0,30})(?:\\-?(?:0|[1-9]\d{0,30}))*", re.ASCII)
_LENIENT: Final = re.compile(r"[+-]?(?:\d{1,60}\.?\d{0,60}|\.\d{1,60})(?:[eE][+-]?\d{1,4})?", re.ASCII)
_KEPT_BYTES: Final = re.compile("[\U0010ff00-\U0010ffff\ud800-\udfff]")


def _values(texts: Iterable[str]) -> str:
    return ',"Value":[' + ",".join([encode_basestring(one) if one else "null" for one in texts]) + "]}"


def _write_string(value: bytes, character_set: str) -> str:
    text = value.decode("latin-1").rstrip(" \0")
    if not text:
        return EMPTY
    if "\\" in text:
        return _values(text.split("\\"))
    return f',"Value":[{encode_basestring(text)}]}}'


def _write_title(value: bytes, character_set: str) -> str:
    text = value.decode("latin-1").strip(" \0")
    return _values(one.strip(" \0") for one in text.split("\\")) if text else EMPTY


def _decoded(value: bytes, character_set: str, vr: str) -> str:
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    text = decode_text(value, character_set, vr)
    return _KEPT_BYTES.sub("\ufffd", text) if has_undecoded(text) else text


def _text_writer(vr: str) -> Write:
    def write(value: bytes, character_set: str) -> str:
        text = _decoded(value, character_set, vr).rstrip(" \0")
        if not text:
            return EMPTY
        if "\\" in text:
            return _values([one.rstrip(" \0") for one in text.split("\\")])
        return f',"Value":[{encode_basestring(text)}]}}'

    return write


def _long_text_writer(vr: str) -> Write:
    def write(value: bytes, character_set: str) -> str:
        text = _decoded(value, character_set, vr).rstrip(" \0")
        return f',"Value":[{encode_basestring(text)}]}}' if text else EMPTY

    return write


def _write_name(value: bytes, character_set: str) -> str:
    text = _decoded(value, character_set, "PN").rstrip(" \0")
    if not text:
        return EMPTY
    if "\\" not in text and "=" not in text:
        return f',"Value":[{{"Alphabetic":{encode_basestring(text)}}}]}}'
    return ',"Value":[' + ",".join(map(_name, text.split("\\"))) + "]}"


def _name(text: str) -> str:
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), text.split("="), strict=False)
    written = ",".join([f'"{group}":{encode_basestring(one)}' for group, one in groups if one])
    return f"{{{written}}}" if written else "null"


def _write_decimals(value: bytes, character_set: str) -> str:
    text = value.decode("latin-1").strip(" \0")
    if not text:
        return EMPTY
    if _NUMBERS.fullmatch(text):
        return f',"Value":[{text.replace(chr(92), ",")}]}}'
    return ',"Value":[' + ",".join([_decimal(one.strip()) for one in text.split("\\")]) + "]}"


def _decimal(text: str) -> str:
    if not text:
        return "null"
    if _NUMBERS.fullmatch(text):
        return text
    if _LENIENT.fullmatch(text):
        number = float(text)
        if math.isfinite(number):
            return repr(number)
    return encode_basestring(text)


def _write_integers(value: bytes, character_set: str) -> str:
    text = value.decode("latin-1").strip(" \0")
    if not text:
        return EMPTY
    if _INTEGERS.fullmatch(text):
        return f',"Value":[{text.replace(chr(92), ",")}]}}'
    return ',"Value":[' + ",".join([_integer(one.strip()) for one in text.split("\\")]) + "]}"


def _integer(text: str) -> str:
    if not text:
        return "null"
    if _LENIENT.fullmatch(text):
        if text.lstrip("+-").isdigit():
            return str(int(text))
        number = float(text)
        if number.is_integer() and abs(number) < 1 << 53:
            return str(int(number))
    return _decimal(text)


def _packed_writer(order: str, code: str) -> Write:
    one = Struct(order + code)
    size, unpack = one.size, one.unpack

    def write(value: bytes, character_set: str) -> str:
        length = len(value)
        if length == size:
            return f',"Value":[{unpack(value)[0]}]}}'
        if length % size:
            raise WrongLength
        if not length:
            return EMPTY
        numbers = Struct(f"{order}{length // size}{code}").unpack(value)
        return f',"Value":[{",".join(map(str, numbers))}]}}'

    return write


def _float_writer(order: str, code: str) -> Write:
    size = Struct(order + code).size

    def write(value: bytes, character_set: str) -> str:
        length = len(value)
        if length % size:
            raise WrongLength
        if not length:
            return EMPTY
        numbers = Struct(f"{order}{length // size}{code}").unpack(value)
        text = ",".join(map(repr, numbers))
        if "n" in text:  # nan and inf, which are no numbers of JSON, are strings (PS3.18 Table F.2.3-1)
            text = text.replace("nan", '"NaN"').replace("-inf", '"-"').replace("inf", '"inf"').replace('"-"', '"-inf"')
        return f',"Value":[{text}]}}'

    return write


def _tag_writer(order: str) -> Write:
    def write(value: bytes, character_set: str) -> str:
        length = len(value)
        if length % 4:
            raise WrongLength
        if not length:
            return EMPTY
        halves = Struct(f"{order}{length // 2}H").unpack(value)
        tags = [f'"{halves[at]:04X}{halves[at + 1]:04X}"' for at in range(0, length // 2, 2)]
        return f',"Value":[{",".join(tags)}]}}'

    return write


def writers(order: str) -> dict[str, Write]:
    return {
        **dict.fromkeys(("AS", "CS", "DA", "DT", "TM", "UI"), _write_string),
        "AE": _write_title,
        "DS": _write_decimals,
        "IS": _write_integers,
        "PN": _write_name,
        **{vr: _text_writer(vr) for vr in ("LO", "SH", "UC")},
        **{vr: _long_text_writer(vr) for vr in ("LT", "ST", "UT")},
        "UR": _long_text_writer("UR"),
        **{
            vr: _packed_writer(order, code)
            for vr, code in {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q"}.items()
        },
        "FL": _float_writer(order, "f"),
        "FD": _float_writer(order, "d"),
        "AT": _tag_writer(order),
    }


#: The VRs whose values are written in base64, and the array type codes of their units, which are little endian in JSON.
_BINARY: Final = {"OB": "", "UN": "", "OW": "H", "OF": "I", "OL": "I", "OD": "Q", "OV": "Q"}


@lru_cache(maxsize=16 * 1024)
def public_vr(tag: int) -> str:
    """Return the VR in the data dictionary; empty if there is none."""
    try:
        vr = dictionary_VR(tag)
    except KeyError:
        return "" if tag & 0xFFFF else "UL"  # a group length
    return "" if vr == "NONE" else vr


def prefix_of(tag: int, vr: str) -> str:
    return f'"{tag:08X}":{{"vr":"{vr}"'


def inline(tag: int, vr: str, value: bytes) -> str:
    if not value:
        return prefix_of(tag, vr) + EMPTY
    return f'{prefix_of(tag, vr)},"InlineBinary":"{b64encode(value).decode("ascii")}"}}'


def swapped(vr: str, value: bytes) -> bytes:
    """Return a value of big endian in little endian, as bulk data is (PS3.18 8.7.3.3.1)."""
    code = _BINARY.get(vr)
    if not code or len(value) % array(code).itemsize:
        return value
    units = array(code, value)
    units.byteswap()
    return units.tobytes()


def attribute(tag: int, values: Any, vr: str = "") -> str:
    """
    Return an attribute as a member of a JSON object, such as those of a row of the index.

    :param values: its values: texts, in which a backslash divides values if the VR has several; numbers; for a sequence,
        JSON objects as :class:`bytes`.
    :param vr: its VR; by default that of the data dictionary.
    """
    vr = vr or public_vr(tag) or "UN"
    if vr == "SQ":
        items = [item.decode("utf-8") for item in values or () if item]
        return prefix_of(tag, vr) + (f',"Value":[{",".join(items)}]}}' if items else EMPTY)
    if values is None or values == "":
        return prefix_of(tag, vr) + EMPTY
    if vr in _NUMERIC:
        numbers = [values] if isinstance(values, int | float) else values
        texts = ["null" if one is None or one == "" else _decimal(str(one)) for one in numbers]
        return f'{prefix_of(tag, vr)},"Value":[{",".join(texts)}]}}' if texts else prefix_of(tag, vr) + EMPTY
    text = (
        values if isinstance(values, str) else "\\".join(map(str, values if isinstance(values, Sequence) else [values]))
    )
    return prefix_of(tag, vr) + _IN_TEXT[vr](text.encode("utf-8", "replace"), "ISO_IR 192")


def encode_attributes(row: Mapping[int, Any]) -> bytes:
    """
    Return a JSON object of attributes by tag, as an answer to a search has them.

    :param row: the values of each attribute, as :func:`attribute` takes them.
    """
    return ("{" + ",".join([attribute(tag, row[tag]) for tag in sorted(row)]) + "}").encode("utf-8", "replace")


_NUMERIC: Final = frozenset(("FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"))


class _TextWriters(dict[str, Write]):
    """The writers of texts in UTF-8; those whose VR has no character set of its own get one."""

    def __missing__(self, vr: str) -> Write:
        return _text_writer("UC")


_IN_TEXT: Final = _TextWriters(
    {
        **{vr: _text_writer(vr) for vr in ("LO", "SH", "UC", "AE", "AS", "CS", "DA", "DT", "TM", "UI")},
        **{vr: _long_text_writer(vr) for vr in ("LT", "ST", "UT", "UR")},
        "PN": _write_name,
        "DS": _write_decimals,
        "IS": _write_integers,
    }
)
