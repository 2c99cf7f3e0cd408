"""
DICOM JSON (PS3.18 Annex F) from the bytes of data sets, without a pydicom Dataset between.

pydicom makes an object of each element and takes 4.2 ms for a CT image of 258 elements. This encoder goes from one element
header to the next and writes text. For each pair of tag and VR it keeps the beginning of the text, and the function that
writes the value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from json.encoder import encode_basestring
from typing import Final, Protocol, TypeAlias

from pydicom.datadict import private_dictionary_VR

from dicomtwist.datasets.character_sets import canonical
from dicomtwist.datasets.codec import DecodingLimits, inflate
from dicomtwist.datasets.element_headers import (
    DEFLATED,
    DELIMITERS,
    EXPLICIT_BIG_ENDIAN,
    IMPLICIT,
    ITEM,
    ITEM_END,
    SEQUENCE_END,
    UNDEFINED_LENGTH,
)
from dicomtwist.datasets.header_scanner import odd_header
from dicomtwist.dicomweb.json_elements import (
    BIG_ENDIAN,
    BITS_ALLOCATED,
    CHARACTER_SET,
    DESCRIPTORS,
    EXPLICIT,
    LUT_DESCRIPTOR,
    PIXEL_REPRESENTATION,
    WAVEFORM_BITS,
    WITHOUT_VRS,
    Entry,
    Scope,
    entry_of,
    number_in,
)
from dicomtwist.dicomweb.json_values import (
    EMPTY,
    Write,
    WrongLength,
    attribute,
    encode_attributes,
    inline,
    prefix_of,
    public_vr,
    swapped,
)
from dicomtwist.errors import DataSetError, DataSetTooLong

__all__ = ["BulkData", "JSONEncoder", "ReadAt", "attribute", "encode_attributes", "encode_json"]

#: The longest value of VR OB, OW and the like, and of UN, that is written inline, in bytes.
MAX_INLINE: Final = 1024
#: The longest value of another VR that is written inline, in bytes: the text of a report stays in its metadata.
MAX_INLINE_TEXT: Final = 64 * 1024
#: How deep sequences may be nested.
MAX_DEPTH: Final = 64
#: The bytes that are read of a file at once, and the longest element that is kept in memory: a sequence.
WINDOW: Final = 64 * 1024
MAX_ELEMENT: Final = 256 * 1024 * 1024
#: The most elements and items of a data set, which take two seconds. An enhanced MR of 10,000 frames has 600,000.
MAX_ELEMENTS: Final = 2_000_000

#: The most elements that an encoder remembers, of each encoding and character set; the longest, in bytes; and the most of these
#: sets.
MAX_KNOWN: Final = 4096
MAX_KNOWN_LENGTH: Final = 64
MAX_KNOWN_SETS: Final = 8

#: The most pairs of tag and VR that are known.
MAX_ENTRIES: Final = 16 * 1024

#: Reads from a data set: the position of the first byte, and the number of bytes. It returns fewer at the end only.
ReadAt: TypeAlias = Callable[[int, int], bytes]


class BulkData(Protocol):
    """Decides which long values are written as a BulkDataURI."""

    def __call__(self, path: tuple[int, ...], vr: str, offset: int, length: int | None, /) -> str | None:
        """
        Return the URI of a value, or ``None`` to write it inline. Pixel data is never written inline.

        :param path: the tag of the element; in an item, the tag of the sequence and the index of the item, from 0, before it.
        :param offset: the position of the value in the data set (of a deflated one: when it is inflated).
        :param length: its length in bytes; ``None`` if it consists of fragments.
        """


class _Short(Exception):
    """
    The element that begins at the last position does not end in the buffer.

    :ivar end: the position where it ends, 0 if that is not known.
    """

    def __init__(self, end: int = 0) -> None:
        super().__init__()
        self.end = end


class _Done(Exception):
    """No further element of the data set is needed."""


_PIXEL_DATA: Final = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_AMBIGUOUS: Final = frozenset(("US or SS", "US or OW", "US or SS or OW", "OB or OW"))


class _Level:
    """
    A data set, or an item of a sequence, that is being encoded.

    :ivar elements: the JSON of its elements by tag; the last one counts if a tag is repeated.
    :ivar at: the position of the last element that was not simple.
    """

    __slots__ = (
        "at",
        "bits",
        "character_set",
        "creators",
        "depth",
        "elements",
        "lut_count",
        "path",
        "signed",
        "waveform",
    )

    def __init__(self, outer: _Level | None = None, path: tuple[int, ...] = ()) -> None:
        self.depth: int = outer.depth + 1 if outer else 0
        self.character_set: str = outer.character_set if outer else ""
        self.signed: int | None = outer.signed if outer else None
        self.bits: int = outer.bits if outer else 0
        self.waveform: int = outer.waveform if outer else 0
        self.lut_count: int | None = None
        self.elements: dict[int, str] = {}
        self.at = 0
        self.creators: dict[int, str] = {}
        self.path = path

    def text(self) -> str:
        """Return the JSON object."""
        elements = self.elements
        return "{" + ",".join([elements[tag] for tag in sorted(elements)]) + "}"


class JSONEncoder:
    """
    Encodes data sets of one transfer syntax as DICOM JSON.

    An encoder is used by one thread at a time. From its second data set on it remembers short elements, most of which the
    instances of a series have in common: they take 40% less time then.

    :param transfer_syntax: the UID of the transfer syntax of the data sets.
    :param bulk_data: decides about long values; ``None`` to write all inline but pixel data, which is left without a value.
    :param max_inline: the longest value of VR OB, OW, UN and the like that is written inline without a question, in bytes.
    :param max_inline_text: the longest value of all other VRs that is, in bytes.
    :param default_charset: the Specific Character Set of data sets without one.
    """

    def __init__(
        self,
        transfer_syntax: str,
        bulk_data: BulkData | None = None,
        *,
        max_inline: int = MAX_INLINE,
        max_inline_text: int = MAX_INLINE_TEXT,
        default_charset: str = "",
    ) -> None:
        self._bulk_data = bulk_data
        self._max_inline = max_inline
        self._max_text = max_inline_text if bulk_data else UNDEFINED_LENGTH - 1
        self._charset = canonical(default_charset)
        self._deflated = transfer_syntax in DEFLATED
        self._implicit = transfer_syntax in IMPLICIT
        self._big = transfer_syntax == EXPLICIT_BIG_ENDIAN
        self._base = 0  # the position of the buffer in the data set
        self._known: dict[tuple[bool, str], dict[bytes, str]] = {}
        self._is_repeated: bool | None = None  # whether this is the second data set, or a later one
        self._left = 0  # the elements and items that may follow
        self._final = False  # whether the data set ends with the buffer, within an element

    def encode(self, source: bytes | ReadAt, added: Mapping[int, str] | None = None) -> bytes:
        """
        Encode a data set. If it is cut off, what is left of it is encoded, to the last value that is whole.

        :param source: the data set without File Meta Information, or a function that reads from it. Values that are written as
            a BulkDataURI are not read.
        :param added: the JSON of further elements by tag, from :func:`attribute`; they replace those of the data set.
        :returns: a JSON object in UTF-8.
        :raises DataSetTooLong: it has more than :data:`MAX_ELEMENTS`, one of more than :data:`MAX_ELEMENT` bytes, or
            sequences that are nested too deep; or it inflates to more than :data:`MAX_ELEMENT`.
        :raises DataSetError: the bytes cannot be a data set.
        """
        if self._deflated:
            whole = source if isinstance(source, bytes) else source(0, MAX_ELEMENT)
            source = inflate(whole, DecodingLimits(MAX_ELEMENT))
        level = _Level()
        level.character_set = self._charset
        try:
            self._encode(source, level)
        except RecursionError:
            raise DataSetTooLong("a data set with sequences that are nested too deep") from None
        if added:
            level.elements.update(added)
        return level.text().encode("utf-8", "replace")

    def _encode(self, source: bytes | ReadAt, level: _Level) -> None:
        read = None if isinstance(source, bytes) else source
        buffer = source if isinstance(source, bytes) else source(0, WINDOW)
        self._base = pos = 0
        self._final = False
        self._left = MAX_ELEMENTS
        self._is_repeated = self._is_repeated is not None
        asked = WINDOW
        scope = BIG_ENDIAN if self._big else WITHOUT_VRS if self._implicit else EXPLICIT
        while True:
            needed = WINDOW
            try:
                pos = self._elements(buffer, pos, len(buffer), level, scope)[0]
            except _Short as short:
                pos = level.at
                needed = max(short.end - pos, WINDOW if pos else 2 * asked)
                if (read is None or len(buffer) < asked) and not self._final:
                    self._final = True
                    continue
            except _Done:
                return
            if read is None or (len(buffer) < asked and pos <= len(buffer)):
                return
            if needed > MAX_ELEMENT:
                raise DataSetTooLong(f"an element of more than {MAX_ELEMENT} bytes")
            self._base += pos
            buffer = read(self._base, needed)
            asked = needed
            pos = 0
            if not buffer:
                return

    def _elements(
        self, buffer: bytes, pos: int, end: int, level: _Level, scope: Scope, is_item: bool = False
    ) -> tuple[int, bool]:
        """
        Encode elements into *level*. This is the hot loop.

        :param is_item: whether an item delimiter ends them.
        :returns: the position behind them, and whether a delimiter has ended them.
        :raises _Short: an element does not end in the buffer.
        """
        entries, implicit = scope.entries, scope.implicit
        short_length, long_length = scope.format.short, scope.format.long
        elements, longest = level.elements, self._max_text
        last = end - 8
        left = self._left
        known = self._known_elements(level, scope)
        while pos <= last:
            left -= 1
            if left < 0:
                raise DataSetTooLong(f"a data set of more than {MAX_ELEMENTS} elements and items")
            key = buffer[pos : pos + 4] if implicit else buffer[pos : pos + 6]
            entry = entries.get(key)
            if entry is None:
                entry = entry_of(scope, key)
                if len(entries) < MAX_ENTRIES:
                    entries[key] = entry
            tag, prefix, write, _, is_long = entry
            if implicit:
                start = pos + 8
                length = long_length(buffer, pos + 4)[0]
            elif is_long:
                start = pos + 12
                if start > end:
                    break
                length = long_length(buffer, pos + 8)[0]
            else:
                start = pos + 8
                length = short_length(buffer, pos + 6)[0]
            stop = start + length
            if write is not None and stop <= end and length <= longest:
                whole = b""
                if known is not None and length <= MAX_KNOWN_LENGTH:
                    whole = buffer[pos:stop]
                    text = known.get(whole)
                    if text is not None:
                        elements[tag] = text
                        pos = stop
                        continue
                try:
                    text = prefix + write(buffer[start:stop], level.character_set)
                except WrongLength:
                    text = inline(tag, "UN", buffer[start:stop])
                elements[tag] = text
                if whole and known is not None and len(known) < MAX_KNOWN:
                    known[whole] = text
                pos = stop
                continue
            if tag >= DELIMITERS:
                self._left = left
                if is_item and tag == ITEM_END:
                    return pos + 8, True
                if is_item and tag == SEQUENCE_END:
                    return pos, True  # the item delimiter is missing
                if tag == ITEM_END:
                    pos += 8
                    continue
                raise DataSetError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) outside any sequence")
            level.at = pos
            self._left = left
            pos = self._special(entry, buffer, pos, start, length, end, level, scope)
            left = self._left
            known = self._known_elements(level, scope)
        self._left = left
        return pos, False

    def _known_elements(self, level: _Level, scope: Scope) -> dict[bytes, str] | None:
        """Return the JSON of earlier elements by their bytes, which mean the same in this encoding and character set."""
        if not self._is_repeated:
            return None
        key = (scope.implicit, level.character_set)
        known = self._known.get(key)
        if known is None and len(self._known) < MAX_KNOWN_SETS:
            known = self._known[key] = {}
        return known

    def _special(
        self, entry: Entry, buffer: bytes, pos: int, start: int, length: int, end: int, level: _Level, scope: Scope
    ) -> int:
        """Encode an element that is no simple value; return the position behind it."""
        tag, vr = entry.tag, entry.vr
        if not vr and not scope.implicit:
            start, length = odd_header(scope.format, buffer, pos, scope.format.short(buffer, pos + 6)[0])
            if start > end:
                raise _Short
            vr = "UN"
        stop = start + length
        undefined = length == UNDEFINED_LENGTH
        if not vr or vr == "UN" or vr in _AMBIGUOUS:
            vr = self._resolved(tag, vr, buffer, start, length, level, scope)
        write = scope.writers.get(vr)
        if vr == "SQ" or (undefined and vr not in ("OB", "OW")):
            if entry.vr and entry.vr != "UN":
                return self._sequence(tag, buffer, start, length, end, level, scope)
            # A sequence of VR UN is in Implicit VR Little Endian (PS3.5 6.2.2).
            try:
                return self._sequence(tag, buffer, start, length, end, level, WITHOUT_VRS if entry.vr else scope)
            except (DataSetError, _Short):
                if undefined or stop > end:
                    raise
            vr, write = "UN", None
        if undefined:
            return self._fragments(tag, vr, buffer, start, level, scope)
        if write is None or length > self._max_text:
            return self._bulk(tag, vr, buffer, start, stop, end, level, scope, write)
        if stop > end:
            return self._cut_off(stop, end)
        self._write(tag, vr, buffer[start:stop], level, scope)
        return stop

    def _write(self, tag: int, vr: str, value: bytes, level: _Level, scope: Scope) -> None:
        """Encode a value, and keep it if other elements depend on it."""
        try:
            level.elements[tag] = prefix_of(tag, vr) + scope.writers[vr](value, level.character_set)
        except WrongLength:
            level.elements[tag] = inline(tag, "UN", value)
        if tag == CHARACTER_SET:
            level.character_set = canonical(value.decode("latin-1"))
        elif tag >> 16 & 1:
            if 0x10 <= tag & 0xFFFF <= 0xFF:
                level.creators[tag] = value.decode("latin-1").strip(" \0")
        elif len(value) >= 2:
            number = scope.format.short(value)[0]
            if tag == PIXEL_REPRESENTATION:
                level.signed = number
            elif tag == BITS_ALLOCATED:
                level.bits = number
            elif tag == WAVEFORM_BITS:
                level.waveform = number
            elif tag in DESCRIPTORS:
                if tag == LUT_DESCRIPTOR:
                    level.lut_count = number
                if vr == "SS" and len(value) > 2 and not len(value) % 2:
                    unsigned = scope.writers["US"](value[:2], "")[10:-2]
                    others = scope.writers["SS"](value[2:], "")[10:]
                    level.elements[tag] = f'{prefix_of(tag, vr)},"Value":[{unsigned},{others}'

    def _resolved(self, tag: int, vr: str, buffer: bytes, start: int, length: int, level: _Level, scope: Scope) -> str:
        """Return the VR of an element whose VR is unknown, or depends on other elements."""
        if not vr or vr == "UN":
            if vr and length >= 0xFFFF and length != UNDEFINED_LENGTH:
                return vr  # a value that is too long for its own VR (PS3.5 6.2.2)
            if tag >> 16 & 1:
                return self._private(tag, level) or "UN"
            vr = public_vr(tag) or "UN"
        if vr == "US or SS":
            signed = level.signed
            if signed is None or tag < PIXEL_REPRESENTATION:
                found = number_in(buffer, start + length, PIXEL_REPRESENTATION, scope)
                signed = found if found is not None else signed
            return "SS" if signed else "US"
        if vr == "US or OW":
            return "US" if level.lut_count == 1 else "OW"
        if vr == "US or SS or OW":
            return "OW"
        if vr == "OB or OW":
            if tag in _PIXEL_DATA and length == UNDEFINED_LENGTH:
                return "OB"
            bits = level.waveform if tag >> 16 == 0x5400 else level.bits
            return "OW" if scope.implicit or bits > 8 else "OB"
        return vr

    def _private(self, tag: int, level: _Level) -> str:
        element = tag & 0xFFFF
        if 0x10 <= element <= 0xFF:
            return "LO"
        creator = level.creators.get(tag & 0xFFFF0000 | element >> 8) if element & 0xFF00 else None
        if not creator:
            return ""
        try:
            return str(private_dictionary_VR(tag, creator))
        except KeyError:
            return ""

    def _bulk(
        self,
        tag: int,
        vr: str,
        buffer: bytes,
        start: int,
        stop: int,
        end: int,
        level: _Level,
        scope: Scope,
        write: Write | None,
    ) -> int:
        """Encode a long or a binary value."""
        length = stop - start
        prefix = prefix_of(tag, vr)
        is_pixels = tag in _PIXEL_DATA and not level.path
        if length > (self._max_text if write else self._max_inline) or is_pixels:
            if self._bulk_data is None:
                if is_pixels:
                    level.elements[tag] = prefix + EMPTY
                    return stop
            elif length:
                uri = self._bulk_data((*level.path, tag), vr, self._base + start, length)
                if uri is not None or is_pixels:
                    level.elements[tag] = prefix + (
                        f',"BulkDataURI":{encode_basestring(uri)}}}' if uri is not None else EMPTY
                    )
                    return self._cut_off(stop, end) if stop > end and level.depth else stop
        if stop > end:
            return self._cut_off(stop, end)
        value = buffer[start:stop]
        if write:
            self._write(tag, vr, value, level, scope)
        else:
            level.elements[tag] = inline(tag, vr, swapped(vr, value) if scope.big else value)
        return stop

    def _cut_off(self, stop: int, end: int) -> int:
        """
        End the data set, or the item, at *end*, if the rest is missing.

        :raises _Short: the rest has to be read.
        """
        if self._final:
            return end
        raise _Short(stop)

    def _fragments(self, tag: int, vr: str, buffer: bytes, start: int, level: _Level, scope: Scope) -> int:
        """Pass over pixel data in fragments (PS3.5 A.4)."""
        uri = self._bulk_data((*level.path, tag), vr, self._base + start, None) if self._bulk_data else None
        text = prefix_of(tag, vr) + (f',"BulkDataURI":{encode_basestring(uri)}}}' if uri is not None else EMPTY)
        pos = start
        while pos + 8 <= len(buffer):
            raw, length = scope.format.implicit(buffer, pos)
            item = scope.format.swap(raw)
            pos += 8
            if item == SEQUENCE_END:
                level.elements[tag] = text
                return pos
            if item != ITEM or length == UNDEFINED_LENGTH:
                raise DataSetError("pixel data in fragments that are no items")
            pos += length
        if level.depth:
            level.elements[tag] = text
            return self._cut_off(0, len(buffer))
        # The rest of the fragments is not in the buffer, and they are not read: what follows them is padding, as a rule.
        level.elements[tag] = text
        raise _Done

    def _sequence(self, tag: int, buffer: bytes, start: int, length: int, end: int, level: _Level, scope: Scope) -> int:
        if level.depth >= MAX_DEPTH:
            raise DataSetTooLong(f"a data set with sequences that are nested more than {MAX_DEPTH} deep")
        undefined = length == UNDEFINED_LENGTH
        stop = end if undefined else start + length
        if stop > end:
            stop = self._cut_off(stop, end)
        header, swap = scope.format.implicit, scope.format.swap
        items: list[str] = []
        pos = start
        closed = not undefined
        while pos + 8 <= stop:
            raw, size = header(buffer, pos)
            what = swap(raw)
            pos += 8
            if what == SEQUENCE_END:
                closed = True
                break
            if what == ITEM_END:
                continue  # superfluous, behind an item of defined length
            if what != ITEM:
                raise DataSetError(f"({what >> 16:04X},{what & 0xFFFF:04X}) where an item of a sequence was due")
            self._left -= 1
            if self._left < 0:
                raise DataSetTooLong(f"a data set of more than {MAX_ELEMENTS} elements and items")
            inner = _Level(level, (*level.path, tag, len(items)))
            if size == UNDEFINED_LENGTH:
                pos, ended = self._elements(buffer, pos, stop, inner, scope, True)
                if not ended and undefined and not self._final:
                    raise _Short
            else:
                if pos + size > stop:
                    size = self._cut_off(pos + size if undefined else 0, stop) - pos
                self._elements(buffer, pos, pos + size, inner, scope)
                pos += size
            items.append(inner.text())
        if not closed and not self._final:
            raise _Short
        level.elements[tag] = prefix_of(tag, "SQ") + (f',"Value":[{",".join(items)}]}}' if items else EMPTY)
        return pos if undefined else stop


def encode_json(
    source: bytes | ReadAt,
    transfer_syntax: str,
    bulk_data: BulkData | None = None,
    *,
    added: Mapping[int, str] | None = None,
    default_charset: str = "",
) -> bytes:
    """
    Encode a data set as DICOM JSON; see :class:`JSONEncoder`.

    :raises DataSetError: the bytes cannot be a data set, or exceed a limit.
    """
    return JSONEncoder(transfer_syntax, bulk_data, default_charset=default_charset).encode(source, added)
