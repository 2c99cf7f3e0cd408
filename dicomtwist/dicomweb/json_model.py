"""
DICOM JSON (PS3.18 Annex F) as pydicom Datasets, and Datasets as DICOM JSON.

The decoder checks a document fully, as it comes from a peer: the only exception is :class:`JSONModelError`. Numbers may
be strings and texts numbers, as some servers write them; those of VR DS and IS may be any text, as in files. The encoder of
bytes is in :mod:`dicomtwist.dicomweb.json_encoder`.
"""

from __future__ import annotations

import json
import math
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from struct import error as StructError
from struct import pack
from typing import Any, Final, TypeAlias

from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.valuerep import format_number_as_ds

from dicomtwist.datasets.codec import DecodingLimits, encode_dataset
from dicomtwist.datasets.element_headers import EXPLICIT_LITTLE_ENDIAN
from dicomtwist.dicomweb.json_encoder import MAX_DEPTH, encode_json
from dicomtwist.errors import DataSetError

__all__ = ["LIMITS", "ArrayCutter", "BulkDataURIs", "JSONModelError", "dataset_json", "decode_json"]

#: The default limits on a document: its length in bytes, its elements and items, and their values. The metadata of 1000 CT
#: images have 11 MB and 270,000 elements.
MAX_LENGTH: Final = 64 * 1024 * 1024
MAX_ELEMENTS: Final = 1_000_000
MAX_VALUES: Final = 4_000_000
LIMITS: Final = DecodingLimits(MAX_LENGTH, MAX_ELEMENTS, MAX_VALUES)
#: The longest JSON object of an array that is cut, in bytes.
MAX_OBJECT: Final = 16 * 1024 * 1024

#: Receives the path of an element (see :class:`~dicomtwist.dicomweb.json_encoder.BulkData`), its VR and its BulkDataURI, and
#: returns the value, or ``None`` to leave it empty.
BulkDataURIs: TypeAlias = Callable[[tuple[int, ...], str, str], bytes | None]

_TAG: Final = re.compile("[0-9A-Fa-f]{8}", re.ASCII)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_BINARY: Final = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
_TEXTS: Final = frozenset(
    ("AE", "AS", "CS", "DA", "DT", "LO", "LT", "SH", "ST", "TM", "UC", "UI", "UR", "UT"),
)
_RANGES: Final = {
    "US": (0, 0xFFFF),
    "SS": (-0x8000, 0x7FFF),
    "UL": (0, 0xFFFFFFFF),
    "SL": (-0x80000000, 0x7FFFFFFF),
    "UV": (0, (1 << 64) - 1),
    "SV": (-1 << 63, (1 << 63) - 1),
}
#: The VRs whose values are numbers in bytes: the VR of such numbers, and their format.
_NUMBERS: Final = {"OD": ("FD", "d"), "OF": ("FL", "f"), "OL": ("UL", "I"), "OV": ("UV", "Q")}
_NO_NUMBERS: Final = {
    "NaN": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
}


class JSONModelError(DataSetError):
    """A document is not DICOM JSON, or exceeds a limit; the text says where, without any value."""


def decode_json(
    data: bytes | str, *, limits: DecodingLimits = LIMITS, bulk_data: BulkDataURIs | None = None
) -> list[Dataset]:
    """
    Decode DICOM JSON: an array of data sets, or one data set.

    Elements of the groups 0000 and 0002 are left out. A data set with other text than ASCII, without a Specific Character Set,
    gets that of UTF-8.

    :param data: the document, in UTF-8.
    :param limits: the limits on it.
    :param bulk_data: returns the values of elements with a BulkDataURI; by default they are empty.
    :raises JSONModelError: it is not DICOM JSON, or exceeds a limit.
    """
    if limits.length is not None and len(data) > limits.length:
        raise JSONModelError(f"a document of more than {limits.length} bytes")
    _check_size(data, limits)
    try:
        document = json.loads(data)
    except RecursionError:
        raise JSONModelError("a document with values that are nested too deep") from None
    except ValueError as error:
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise JSONModelError(f"a document that is not JSON{where}") from None
    decoder = _Decoder(limits, bulk_data)
    try:
        return [decoder.dataset(one, ()) for one in (document if isinstance(document, list) else [document])]
    except JSONModelError:
        raise
    except Exception as error:
        # pydicom raises whatever a value makes it raise.
        raise JSONModelError("a document with a value that its VR does not allow") from error


def _check_size(data: bytes | str, limits: DecodingLimits) -> None:
    """
    Check the limits before Python makes objects of the document: 64 MiB of ``[],`` would take 1.8 GB.

    :raises JSONModelError: it has more brackets or commas than the elements and values of the limits need.
    """
    if isinstance(data, str):
        brackets, braces, commas = (data.count(mark) for mark in "[{,")
    else:
        brackets, braces, commas = (data.count(mark) for mark in (b"[", b"{", b","))
    if limits.elements is not None:
        if brackets + braces > 4 * limits.elements + 64:
            raise JSONModelError(f"a document of more than {limits.elements} elements and items")
        if limits.values is not None and commas > limits.values + 4 * limits.elements + 64:
            raise JSONModelError(f"a document of more than {limits.values} values")


class _Decoder:
    """Decodes data sets, and counts their elements."""

    def __init__(self, limits: DecodingLimits, bulk_data: BulkDataURIs | None) -> None:
        self._limits = limits
        self._bulk_data = bulk_data
        self._elements = 0
        self._values = 0
        self._is_ascii = True

    def dataset(self, model: Any, path: tuple[int, ...]) -> Dataset:
        """
        Decode a JSON object.

        :param path: that of the item; empty for a data set.
        :raises JSONModelError: it is not one of the model.
        """
        if not isinstance(model, dict):
            raise JSONModelError(f"{_at(path)} is not a JSON object")
        if len(path) > 2 * MAX_DEPTH:
            raise JSONModelError(f"sequences are nested more than {MAX_DEPTH} deep")
        if not path:
            self._is_ascii = True
        self._count(1 + len(model))
        dataset = Dataset()
        for key, member in model.items():
            if not _TAG.fullmatch(key):
                raise JSONModelError(f"{_at(path)} has a member whose name is not a tag")
            tag = int(key, 16)
            if tag >> 16 > 2:
                dataset[tag] = self._element(tag, member, (*path, tag))
        if not path and not self._is_ascii and "SpecificCharacterSet" not in dataset:
            dataset.SpecificCharacterSet = "ISO_IR 192"
        return dataset

    def _count(self, number: int, values: int = 0) -> None:
        self._elements += number
        self._values += values
        limits = self._limits
        if limits.elements is not None and self._elements > limits.elements:
            raise JSONModelError(f"a document of more than {limits.elements} elements and items")
        if limits.values is not None and self._values > limits.values:
            raise JSONModelError(f"a document of more than {limits.values} values")

    def _element(self, tag: int, member: Any, path: tuple[int, ...]) -> DataElement:
        if not isinstance(member, dict):
            raise JSONModelError(f"{_at(path)} is not a JSON object")
        vr = member.get("vr") or _dictionary_vr(tag)
        if not isinstance(vr, str) or not (vr in _TEXTS or vr in _RANGES or vr in _BINARY or vr in _OTHERS):
            raise JSONModelError(f"{_at(path)} has an unknown VR")
        value: Any
        if "InlineBinary" in member:
            value = self._inline(_single(member["InlineBinary"]), path)
        elif "BulkDataURI" in member:
            uri = _single(member["BulkDataURI"])
            if not isinstance(uri, str):
                raise JSONModelError(f"{_at(path)} has a BulkDataURI that is not a string")
            value = self._bulk_data(path, vr, uri) if self._bulk_data is not None else None
            if value is not None and vr not in _BINARY:
                raw = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)
                return convert_raw_data_element(raw, encoding="utf_8")
        else:
            values = member.get("Value")
            if values is not None and not isinstance(values, list):
                raise JSONModelError(f"{_at(path)} has a Value that is not an array")
            if vr in ("DS", "IS") and any(isinstance(one, str | float) for one in values or ()):
                return self._number_texts(tag, vr, values or [], path)
            value = self._value(vr, values or [], path)
        if value is None and vr == "SQ":
            value = Sequence()
        return DataElement(tag, vr, value, validation_mode=IGNORE)

    def _number_texts(self, tag: int, vr: str, values: list[Any], path: tuple[int, ...]) -> DataElement:
        """
        Return an element of numbers that are texts, as it would be read from a file.

        A text that is no number stays one: files have such texts, and their metadata then has them in place of numbers.
        """
        try:
            texts = [self._number_text(vr, one) for one in values]
        except (TypeError, ValueError, OverflowError):
            raise JSONModelError(f"{_at(path)} has a value that its VR does not allow") from None
        data = "\\".join(texts).encode()
        self._count(0, data.count(b"\\"))
        return convert_raw_data_element(RawDataElement(Tag(tag), vr, len(data), data, 0, False, True), encoding="utf_8")

    def _number_text(self, vr: str, value: Any) -> str:
        if isinstance(value, str):
            return self._text(value)
        if vr == "IS" and isinstance(value, float) and math.isfinite(value):
            return str(int(value)) if value.is_integer() and abs(value) < 1 << 63 else repr(value)
        return str(self._single_value(vr, value))

    def _inline(self, text: Any, path: tuple[int, ...]) -> bytes:
        if not isinstance(text, str):
            raise JSONModelError(f"{_at(path)} has an InlineBinary that is not a string")
        try:
            return b64decode("".join(text.split()).encode("ascii"), validate=True)
        except ValueError:
            raise JSONModelError(f"{_at(path)} has an InlineBinary that is not in base64") from None

    def _value(self, vr: str, values: list[Any], path: tuple[int, ...]) -> Any:
        self._count(0, max(0, len(values) - 1))
        if vr == "SQ":
            return Sequence([self.dataset({} if one is None else one, (*path, at)) for at, one in enumerate(values)])
        try:
            if vr in _NUMBERS:
                # Orthanc writes these as numbers, in place of InlineBinary.
                number_vr, code = _NUMBERS[vr]
                numbers = [self._single_value(number_vr, one) for one in values if one is not None]
                return pack(f"<{len(numbers)}{code}", *numbers) or None
            if vr in _BINARY:
                if any(values):
                    raise JSONModelError(f"{_at(path)} has a Value, which its VR does not have")
                return None
            found = [self._single_value(vr, one) for one in values]
        except (TypeError, ValueError, OverflowError, StructError):
            raise JSONModelError(f"{_at(path)} has a value that its VR does not allow") from None
        if len(found) > 1 and None in found:
            # Numbers that are left out have no binary form.
            found = [one for one in found if one is not None]
        return (found[0] if len(found) == 1 else found) if found else None

    def _single_value(self, vr: str, value: Any) -> Any:
        if value is None:
            return None if vr in _RANGES or vr in ("FL", "FD", "AT") else ""
        if vr == "PN":
            if isinstance(value, dict):
                groups = [value.get(group) or "" for group in ("Alphabetic", "Ideographic", "Phonetic")]
                if not all(isinstance(group, str) for group in groups):
                    raise TypeError
                value = "=".join(groups).rstrip("=")
            return self._text(value)
        if vr in _TEXTS:
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise TypeError
            return self._text(str(value))
        if vr == "AT":
            return int(value, 16) if _TAG.fullmatch(value) else int("invalid")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TypeError
        if vr in ("FL", "FD"):
            return _NO_NUMBERS[value] if value in _NO_NUMBERS else float(value)
        if vr == "DS":
            if isinstance(value, str):
                return value
            text = repr(value)
            if math.isfinite(value) and len(text) <= 16:
                return text
            return format_number_as_ds(float(value))  # raises ValueError if it is not finite
        number = int(value)
        if isinstance(value, float) and number != value:
            raise ValueError
        low, high = _RANGES.get(vr, (-(1 << 63), 1 << 63))
        if not low <= number <= high:
            raise ValueError
        return number

    def _text(self, text: Any) -> str:
        if not isinstance(text, str):
            raise TypeError
        if text.isascii():
            return text
        self._is_ascii = False
        return _SURROGATE.sub("\ufffd", text)


_OTHERS: Final = frozenset(("AT", "DS", "FD", "FL", "IS", "PN", "SQ"))


def _dictionary_vr(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def _single(value: Any) -> Any:
    """Return a value, which some servers write as an array of one, as an example of the standard does (PS3.18 F.4)."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _at(path: tuple[int, ...]) -> str:
    if not path:
        return "the document"
    names = [f"{one:08X}" if at % 2 == 0 else str(one) for at, one in enumerate(path)]
    return "/".join(names)


def dataset_json(dataset: Dataset, added: Mapping[int, str] | None = None) -> bytes:
    """
    Return *dataset* as a JSON object, with all values inline; those of pixel data are left out.

    :param added: the JSON of further elements, see :class:`~dicomtwist.dicomweb.json_encoder.JSONEncoder`.
    :raises DataSetError: an element cannot be encoded.
    """
    return encode_json(encode_dataset(dataset, EXPLICIT_LITTLE_ENDIAN), EXPLICIT_LITTLE_ENDIAN, added=added)


class ArrayCutter:
    """
    Cuts an array of JSON objects into these while it arrives, so that a long one need not be in memory.

    :param max_object: the longest object, in bytes.

    :ivar closed: whether the array has ended.
    """

    _OUTSIDE: Final = re.compile(rb'["{}\[\]]')
    _INSIDE: Final = re.compile(rb'["\\]')

    __slots__ = ("_buffer", "_depth", "_in_string", "_max", "_scanned", "closed")

    def __init__(self, *, max_object: int = MAX_OBJECT) -> None:
        self._max = max_object
        self._buffer = bytearray()  # the object that has begun, or what is before the next one
        self._scanned = 0
        self._depth = 0  # 1 in the array, 2 in an object
        self._in_string = False
        self.closed = False

    def feed(self, data: bytes) -> list[bytes]:
        """
        Cut the next piece of the document.

        :returns: the objects that it completes.
        :raises JSONModelError: the document is not an array of objects, or one of them is too long.
        """
        self._buffer += data
        buffer, pos = self._buffer, self._scanned
        size, begin = len(buffer), 0
        found: list[bytes] = []
        while pos < size:
            match = (self._INSIDE if self._in_string else self._OUTSIDE).search(buffer, pos)
            if match is None:
                pos = size
                break
            mark, pos = match[0], match.end()
            if self._in_string:
                if mark == b'"':
                    self._in_string = False
                elif pos == size:
                    pos -= 1  # the escaped character is in the next piece
                    break
                else:
                    pos += 1
            elif self._depth < 2:
                if buffer[begin : pos - 1].strip(b", \r\n\t") or self.closed:
                    raise JSONModelError("a document that is not an array of objects")
                if mark == (b"{" if self._depth else b"["):
                    begin = pos - self._depth
                    self._depth += 1
                elif self._depth and mark == b"]":
                    begin = pos
                    self.closed = True
                else:
                    raise JSONModelError("a document that is not an array of objects")
            elif mark == b'"':
                self._in_string = True
            elif mark in b"{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 1:
                    found.append(bytes(buffer[begin:pos]))
                    begin = pos
        del buffer[:begin]
        self._scanned = pos - begin
        if len(buffer) > self._max:
            raise JSONModelError(f"an object of more than {self._max} bytes")
        return found

    def finish(self) -> None:
        """
        End the document. One without any bytes is an empty array, as a response 204 has it.

        :raises JSONModelError: its end is missing, or something is behind that.
        """
        rest = self._buffer.strip()
        if rest and (self.closed or not self._depth):
            raise JSONModelError("a document that is not an array of objects")
        if self._depth and not self.closed:
            raise JSONModelError("a document that is cut off")
