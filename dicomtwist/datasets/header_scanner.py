"""A scanner that takes a few attributes from the front of an encoded data set as its bytes arrive.

The attributes that a server needs before it can file an image are in the first few kilobytes. The scanner takes
their raw values from fragments of any size, and skips all other elements by their lengths, without keeping them. It is safe for
bytes from any peer: it believes no length before the bytes are there, nesting costs one number, and the only exception
that bytes can cause is :class:`HeaderError`.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Collection
from typing import NoReturn, TypeAlias

from dicomtwist.datasets.element_headers import (
    BIG_ENDIAN_FORMAT,
    DEFLATED,
    DELIMITERS,
    EXPLICIT_BIG_ENDIAN,
    IMPLICIT,
    ITEM,
    ITEM_END,
    LITTLE_ENDIAN_FORMAT,
    LONG_VRS,
    SEQUENCE_END,
    UNDEFINED_LENGTH,
    HeaderFormat,
)
from dicomtwist.part10 import decode_uid

__all__ = ["HeaderError", "HeaderScanner", "decode_uid", "element_header", "odd_header", "scan"]

Buffer: TypeAlias = bytes | bytearray | memoryview

#: Default limits; each is an argument of :class:`HeaderScanner`. The limit on inflated bytes limits the time as
#: well: 4 MiB of the smallest elements take about 0.2 s.
MAX_VALUE_LENGTH = 64 * 1024
MAX_DEPTH = 64
MAX_INFLATED = 4 * 1024 * 1024
MAX_INFLATE_RATIO = 100


@functools.lru_cache(maxsize=32)
def _plan(wanted: frozenset[int], encoding: HeaderFormat) -> tuple[frozenset[int], int]:
    """Return the raw tags of *wanted*, and the highest tag (-1: none). Cached, since a program wants few different sets."""
    return frozenset(map(encoding.swap, wanted)), max(wanted, default=-1)


_HIGHEST_TAG = DELIMITERS - 1
#: Group 0002 as it is encoded, in little endian and in big endian.
_META_GROUP = (b"\x02\x00", b"\x00\x02")
_MAX_ELEMENT_HEADER = 16  # with the beginning of the next, which an odd VR needs
_MAX_PIECE = 1 << 30  # the most bytes scanned at once: fewer than an undefined length, taken as a number
_INFLATE_IN = 16 * 1024
_INFLATE_OUT = 64 * 1024
_RATIO_SLACK = 1024 * 1024


class HeaderError(ValueError):
    """The bytes are not a data set in the given transfer syntax, or exceed a limit; the text says where."""


class HeaderScanner:
    """Takes the wanted top-level elements from the front of a data set, which is fed in fragments of any size.

    It needs at most ``len(wanted) * max_value_length`` bytes of memory, whatever is fed.

    Some deviations of real senders are tolerated: elements with a Value Representation that no standard
    knows, implicitly encoded elements in an explicit data set, a sequence without its last Item Delimitation
    Item.

    :param transfer_syntax_uid: the transfer syntax of the data set. An unknown one is taken as Explicit VR
        Little Endian, as all encapsulated ones are (PS3.5 A.4).
    :param wanted: tags, each ``group << 16 | element``; a frozenset saves some time.
    :param stop_after: the last tag of interest, by default the highest wanted one. Elements are in ascending
        order (PS3.5 section 7.1), so the first greater tag ends the scan.
    :param max_value_length: the longest wanted value, in bytes. A longer one is skipped and recorded in
        ``skipped``.
    :param sequences: whether wanted sequences of undefined length are taken as well, with the delimiter at
        their end; otherwise they are recorded in ``skipped``. (Sequences of defined length are values as any other.)
    :param required: the wanted tags that a data set must have. If one of them is missing where the scan would end, the
        elements are not in order, and the scan goes on to the end of the data set. If another wanted element is there twice,
        the first counts; without *required* it is an error.
    :param max_depth: the most levels of nested sequences of undefined length.
    :param max_inflated: the most bytes that a deflated data set may inflate to before the scan has ended.
    :param max_inflate_ratio: the most times its size that a deflated data set may inflate to (the first MiB
        is free).
    """

    __slots__ = (
        "_at",
        "_capture",
        "_captured",
        "_deflated_in",
        "_depth",
        "_encoding",
        "_error",
        "_first",
        "_fragments",
        "_implicit",
        "_inflated_out",
        "_inflater",
        "_max_depth",
        "_max_inflated",
        "_max_ratio",
        "_max_value",
        "_need",
        "_offset",
        "_pending",
        "_repeated",
        "_required",
        "_skip",
        "_stop",
        "_stopped_at",
        "_tag",
        "_un_depth",
        "_value",
        "_wanted_raw",
        "done",
        "skipped",
        "values",
    )

    def __init__(
        self,
        transfer_syntax_uid: str,
        wanted: Collection[int],
        *,
        stop_after: int | None = None,
        max_value_length: int = MAX_VALUE_LENGTH,
        sequences: bool = False,
        required: frozenset[int] = frozenset(),
        max_depth: int = MAX_DEPTH,
        max_inflated: int = MAX_INFLATED,
        max_inflate_ratio: int = MAX_INFLATE_RATIO,
    ) -> None:
        encoding = BIG_ENDIAN_FORMAT if transfer_syntax_uid == EXPLICIT_BIG_ENDIAN else LITTLE_ENDIAN_FORMAT
        wanted_raw, highest = _plan(wanted if isinstance(wanted, frozenset) else frozenset(wanted), encoding)
        if stop_after is None:
            stop_after = highest
        #: Tag -> raw value of each wanted element so far, with its padding.
        self.values: dict[int, bytes] = {}
        #: Tag -> declared length of each wanted element that was left out because it is too long
        #: (0xFFFFFFFF: undefined).
        self.skipped: dict[int, int] = {}
        #: Whether the scan has ended: each wanted element is in ``values`` or ``skipped``, or is known to be absent.
        self.done = stop_after < 0
        self._stop = min(stop_after, _HIGHEST_TAG)
        self._max_value = max_value_length
        self._max_depth = max_depth
        self._max_inflated = max_inflated
        self._max_ratio = max_inflate_ratio
        self._implicit = transfer_syntax_uid in IMPLICIT
        self._encoding = encoding
        self._wanted_raw = wanted_raw
        self._inflater = zlib.decompressobj(-15) if transfer_syntax_uid in DEFLATED else None
        self._deflated_in = 0
        self._inflated_out = 0
        self._error: HeaderError | None = None
        # The state of the scan between two fragments: at most one of skip, need, and pending is in use.
        self._skip = 0  # bytes to skip
        self._need = 0  # bytes still missing from a wanted value, which grows in _value
        self._value = bytearray()
        self._pending = b""  # the beginning of an element header, or of an odd one and the next: less than 16 bytes
        self._tag = 0  # the element that is being skipped or collected, for messages
        self._at = 0  # the position of the last top-level element that did not end in the fragment in which it began
        self._offset = 0  # the position of the current fragment in the (inflated) data set
        self._stopped_at = -1
        # Nesting needs no stack: an element of defined length is skipped whole, so the open levels alternate
        # sequence, item, sequence, ... and their number is enough. Odd: in a sequence. Even: in an item.
        self._depth = 0
        self._un_depth = 0  # the depth of an open UN of undefined length, whose content is in Implicit VR LE
        self._fragments = False  # whether the open sequence has the fragments of pixel data
        self._capture = sequences
        self._required = required
        self._repeated = False  # whether the wanted element that is being scanned was there before
        self._first = b""  # the first two bytes of the data set
        self._captured: bytearray | None = None  # the bytes so far of a wanted sequence of undefined length

    def feed(self, data: Buffer) -> bool:
        """Scan the next fragment.

        :param data: bytes of the encoded data set (of a deflated one: still deflated). They are not kept.
        :returns: whether the scan has ended and needs no more bytes.
        :raises HeaderError: the bytes are malformed or exceed a limit; every later call raises it again.
        """
        if self._error is not None:
            raise self._error
        if self.done:
            return True
        if self._inflater is not None:
            return self._inflate(self._inflater, data)
        if len(data) > _MAX_PIECE:
            view = memoryview(data)
            return any(self._consume(view[at : at + _MAX_PIECE]) for at in range(0, len(view), _MAX_PIECE))
        return self._consume(data)

    def pass_over(self, size: int) -> int:
        """
        Pass over bytes that the scan does not look at, so that they need not be read.

        :param size: the number of bytes that are there.
        :returns: the number of bytes that count as fed; 0 if the next byte has to be fed.
        """
        if self._error is not None or self._inflater is not None or self._captured is not None:
            return 0
        passed = min(self._skip, size)
        self._skip -= passed
        self._offset += passed
        return passed

    @property
    def unfinished(self) -> int:
        """The position of the top-level element whose end has not been fed yet, if there is one, in the (inflated) data set."""
        return self._offset - len(self._pending) if self._pending and not self._depth else self._at

    @property
    def stopped_at(self) -> int:
        """
        The position of the element that has ended the scan, whose tag is above the last one of interest, in the (inflated) data
        set; -1 if none has.
        """
        return self._stopped_at

    def finish(self) -> None:
        """End the data set here: wanted elements that are not in ``values`` now were not in it.

        :raises HeaderError: the data set ends inside an element or a sequence before the scan had ended.
        """
        if self._error is not None:
            raise self._error
        if self.done:
            return
        if self._inflater is not None and not self._inflater.eof:
            self._fail("the deflated data set is cut off", 0)
        if self._skip or self._need:
            missing = self._skip + self._need
            self._fail(f"the data set ends inside {_name(self._tag)}, {missing} bytes short", 0)
        if self._pending:
            self._fail("the data set ends inside the header of an element", 0)
        if self._depth:
            self._fail("the data set ends inside a sequence of undefined length", 0)
        self.done = True

    def _consume(self, data: Buffer) -> bool:
        size = len(data)
        pos = 0
        if len(self._first) < 2:
            self._first += bytes(data[: 2 - len(self._first)])
            if self._first in _META_GROUP:
                self._fail("the data set begins with File Meta Information (group 0002)", 0)
        while pos < size:
            if self._skip:
                taken = min(self._skip, size - pos)
                if self._captured is not None:
                    self._append(data[pos : pos + taken])
                self._skip -= taken
                pos += taken
                continue
            if self._need:
                taken = min(self._need, size - pos)
                self._value += data[pos : pos + taken]
                self._need -= taken
                pos += taken
                if not self._need:
                    self.values[self._tag] = bytes(self._value)
                    self._value = bytearray()
                    if self._tag >= self._stop:
                        self._end()
            elif self._pending:
                # Complete an element header that was split; 16 bytes always suffice.
                before = len(self._pending)
                head = self._pending + bytes(data[pos : pos + _MAX_ELEMENT_HEADER])
                self._offset -= before
                used = self._within(head, 0) if self._depth else self._top(head, 0)
                self._offset += before
                if not used:
                    self._pending = head
                    pos = size
                elif used < before:  # an empty element in the short form, and the beginning of the next header
                    self._pending = head[used:before]
                else:
                    self._pending = b""
                    pos += used - before
            else:
                used = self._within(data, pos) if self._depth else self._top(data, pos)
                if used == pos and not self.done:
                    self._pending = bytes(data[pos:])
                    used = size
                pos = used
            if self.done:
                self._pending = b""
                break
        self._offset += size
        return self.done

    def _top(self, buffer: Buffer, pos: int) -> int:
        """Scan elements outside any sequence. This is the hot loop.

        :returns: the position up to which the buffer was used. It is ``pos`` if the buffer has no whole element
            header.
        """
        size = len(buffer)
        encoding = self._encoding
        unpack, long, implicit = encoding.explicit, encoding.long, encoding.implicit
        short_vrs, long_vrs, is_explicit = encoding.short_vrs, encoding.long_vrs, not self._implicit
        wanted, stop, mask = self._wanted_raw, self._stop, encoding.group_mask
        stop_group = encoding.swap(stop) & mask
        values, skipped, longest = self.values, self.skipped, self._max_value
        here = raw = start = length = 0
        last = size - 8
        while pos <= last:
            if is_explicit:
                raw, vr, length = unpack(buffer, pos)
                start = pos + 8
                if vr not in short_vrs:
                    if vr in long_vrs:
                        start = pos + 12
                        if start > size:
                            break
                        (length,) = long(buffer, pos + 8)
                    else:
                        start, length = odd_header(encoding, buffer, pos, length)
                        if start > size:
                            break
            else:
                raw, length = implicit(buffer, pos)
                start = pos + 8
            if raw in wanted or raw & mask >= stop_group:
                tag = encoding.swap(raw)
                if tag >= DELIMITERS:
                    self._fail(f"{_name(tag)} outside any sequence", pos)
                if tag > stop or (tag == stop and raw not in wanted):
                    self._end()
                    if self.done:
                        self._stopped_at = self._offset + pos
                        return pos
                    stop = self._stop
                    stop_group = encoding.swap(stop) & mask
                if raw in wanted:
                    end = start + length
                    if end <= size and length <= longest and tag < stop and tag not in values and tag not in skipped:
                        values[tag] = bytes(buffer[start:end])  # as _take does; nearly all elements come this way
                        pos = end
                        continue
                    used = self._take(tag, buffer, pos, start, length)
                    if used:
                        return used
            here, pos = pos, start + length
        if pos <= size:
            return pos
        # The value ends beyond the buffer. An undefined length always seems to, because no buffer has 4 GiB.
        self._at = self._offset + here
        if length == UNDEFINED_LENGTH:
            self._open(buffer, here, 1)
            if self._capture and raw in wanted and not (self._un_depth or self._fragments or self._repeated):
                self._tag = encoding.swap(raw)
                self._captured = bytearray()
            return start
        self._tag = encoding.swap(raw)
        self._skip = pos - size
        return size

    def _take(self, tag: int, buffer: Buffer, pos: int, start: int, length: int) -> int:
        """Record a wanted element.

        :returns: the position up to which the buffer was used if the loop has to end here, else 0.
        """
        self._repeated = tag in self.values or tag in self.skipped
        if self._repeated:
            if not self._required or tag in self._required:
                self._fail(f"{_name(tag)} is in the data set twice", pos)
            return 0
        end = start + length
        if length > self._max_value:  # an undefined length is the greatest number
            self.skipped[tag] = length
        elif end <= len(buffer):
            self.values[tag] = bytes(buffer[start:end])
        else:
            self._tag = tag
            self._at = self._offset + pos
            self._value = bytearray(buffer[start:])
            self._need = end - len(buffer)
            return len(buffer)
        if tag < self._stop or (length == UNDEFINED_LENGTH and self._capture):
            return 0
        self._end()
        return min(end, len(buffer))

    def _end(self) -> None:
        """End the scan at the last tag of interest, if all required elements were before it."""
        if self._required <= self.values.keys():
            self.done = True
        else:
            self._stop = _HIGHEST_TAG  # the elements are not in order: go on to the end

    def _within(self, buffer: Buffer, pos: int) -> int:
        """Scan on in a sequence of undefined length, and keep its bytes if it is wanted."""
        if self._captured is None:
            return self._nested(buffer, pos)
        tag = self._tag
        used = self._nested(buffer, pos)
        self._append(buffer[pos:used])
        if not self._depth:
            if self._captured is not None:
                self.values[tag] = bytes(self._captured)
                del self.skipped[tag]
                self._captured = None
            if tag >= self._stop:
                self._end()
        elif self._captured is not None:
            self._tag = tag
        return used

    def _append(self, data: Buffer) -> None:
        assert self._captured is not None
        if len(self._captured) + len(data) > self._max_value:
            self._captured = None
        else:
            self._captured += data

    def _nested(self, buffer: Buffer, pos: int) -> int:
        """Find the end of a sequence of undefined length, at any depth; return as :meth:`_top` does."""
        size = len(buffer)
        while pos + 8 <= size and self._depth:
            in_un = self._un_depth > 0
            encoding = LITTLE_ENDIAN_FORMAT if in_un else self._encoding
            raw, length = encoding.implicit(buffer, pos)
            tag = encoding.swap(raw)
            start = pos + 8
            if tag >= DELIMITERS:
                if tag != ITEM:
                    self._close(tag, pos)
                    pos = start
                    continue
                if not self._depth & 1 or (self._fragments and length == UNDEFINED_LENGTH):
                    self._fail("an item where none can be", pos)
                if length == UNDEFINED_LENGTH:
                    self._depth += 1
                    pos = start
                    continue
            else:
                if self._depth & 1:
                    self._fail(f"{_name(tag)} where an item or the end of a sequence was due", pos)
                if not (in_un or self._implicit):
                    raw, vr, length = encoding.explicit(buffer, pos)
                    if vr in encoding.long_vrs:
                        start = pos + 12
                        if start > size:
                            break
                        (length,) = encoding.long(buffer, pos + 8)
                    elif vr not in encoding.short_vrs:
                        start, length = odd_header(encoding, buffer, pos, length)
                        if start > size:
                            break
                if length == UNDEFINED_LENGTH:
                    self._open(buffer, pos, self._depth + 1)
                    pos = start
                    continue
            pos = start + length
            if pos > size:
                self._tag = tag
                self._skip = pos - size
                return size
        return pos

    def _open(self, buffer: Buffer, pos: int, depth: int) -> None:
        """Enter a sequence, or fragments of pixel data, of undefined length."""
        if depth > 2 * self._max_depth:
            self._fail(f"sequences are nested more than {self._max_depth} deep", pos)
        if not (self._implicit or self._un_depth):
            vr = bytes(buffer[pos + 4 : pos + 6])
            if vr == b"UN":
                self._un_depth = depth  # Implicit VR Little Endian within (PS3.5 section 6.2.2)
            elif vr == b"OB" or vr == b"OW":
                self._fragments = True
            elif vr in LONG_VRS and vr != b"SQ":
                self._fail(f"an element of VR {vr.decode()} and undefined length, which it cannot have", pos)
        self._depth = depth

    def _close(self, tag: int, pos: int) -> None:
        """Leave an item or a sequence at a delimiter, whose length field has no meaning and is ignored."""
        depth = self._depth
        if tag == SEQUENCE_END:
            depth -= 1 if depth & 1 else 2  # in an item: its own delimiter is missing
        elif tag == ITEM_END:
            depth -= 0 if depth & 1 else 1  # in a sequence: a superfluous delimiter after an item of defined length
        else:
            self._fail(f"{_name(tag)} is no item and no delimiter", pos)
        self._depth = depth
        if depth < self._un_depth:
            self._un_depth = 0
        if depth & 1 == 0:
            self._fragments = False

    def _inflate(self, inflater: zlib._Decompress, data: Buffer) -> bool:
        view = memoryview(data)
        for begin in range(0, len(view), _INFLATE_IN):
            source: Buffer = view[begin : begin + _INFLATE_IN]
            self._deflated_in += len(source)
            while not inflater.eof:
                before = inflater.copy()
                try:
                    inflated = inflater.decompress(source, _INFLATE_OUT)
                except zlib.error:
                    return self._inflate_to_error(before, source)
                self._inflated_out += len(inflated)
                source = inflater.unconsumed_tail
                if self._consume(inflated):
                    return True
                if self._inflated_out > self._max_inflated:
                    self._fail(f"the data set inflates to more than {self._max_inflated} bytes", 0)
                used = self._deflated_in - len(source)
                if self._inflated_out > _RATIO_SLACK and self._inflated_out > used * self._max_ratio:
                    self._fail(f"the data set inflates to more than {self._max_ratio} times its size", 0)
                if not source and len(inflated) < _INFLATE_OUT:
                    break
        return False

    def _inflate_to_error(self, inflater: zlib._Decompress, data: Buffer) -> bool:
        """
        Scan what *data* inflates to before an error in it, which :mod:`zlib` throws away. It goes byte by byte, so that the
        outcome does not depend on how the bytes came.
        """
        for at in range(len(data)):
            source = bytes(data[at : at + 1])
            while True:
                try:
                    inflated = inflater.decompress(source, _INFLATE_OUT)
                except zlib.error as error:
                    self._fail(f"the data set is not deflated as its Transfer Syntax says ({error})", 0)
                if self._consume(inflated):
                    return True
                source = inflater.unconsumed_tail
                if not source and len(inflated) < _INFLATE_OUT:
                    break
        raise AssertionError("zlib took bytes one by one that it did not take together")

    def _fail(self, reason: str, pos: int) -> NoReturn:
        self._error = HeaderError(f"{reason} (at byte {self._offset + pos} of the data set)")
        self._value = bytearray()
        raise self._error


def element_header(data: bytes, syntax: str) -> tuple[int, str, int, int] | None:
    """
    Return tag and VR of an element, the beginning of its value behind its own, and the length of the value.

    :param data: the beginning of the element, 16 bytes of it unless the data set ends before.
    :param syntax: the UID of the transfer syntax, which is not a deflated one.
    :returns: the VR is empty in a data set without VRs, and if PS3.5 does not know it, or it is a short one. ``None`` if the
        header is cut off.
    """
    encoding = BIG_ENDIAN_FORMAT if syntax == EXPLICIT_BIG_ENDIAN else LITTLE_ENDIAN_FORMAT
    if len(data) < 12:
        return None
    group, element = encoding.tag(data)
    tag = group << 16 | element
    if syntax in IMPLICIT:
        return tag, "", 8, encoding.long(data, 4)[0]
    vr = data[4:6]
    if vr in LONG_VRS:
        return tag, vr.decode(), 12, encoding.long(data, 8)[0]
    start, length = odd_header(encoding, data, 0, encoding.short(data, 6)[0])
    return tag, "", start, length


def odd_header(encoding: HeaderFormat, buffer: Buffer, pos: int, length: int) -> tuple[int, int]:
    """Return the start of the value, and its length, of an element with a Value Representation that PS3.5 does not know.

    If the start is beyond the buffer, more bytes are needed and the length has no meaning.

    :param encoding: the layout of headers in the byte order of the data set, which has explicit VRs.
    :param pos: the position of the element.
    :param length: the two bytes behind the VR, as a number.
    """
    vr = bytes(buffer[pos + 4 : pos + 6])
    if vr.isalpha() and vr.isupper():
        # A future VR has the long form (PS3.5 section 6.2). A mistaken VR usually has the short form; the
        # two bytes of its length are where the long form has two reserved zeros.
        if length:
            return pos + 8, length
        if pos + 12 > len(buffer):
            return pos + 12, 0
        length = int(encoding.long(buffer, pos + 8)[0])
        if 4 <= length < UNDEFINED_LENGTH:
            # An empty element of the short form, or the long form, whose value has these bytes as well.
            if pos + 16 > len(buffer):
                return pos + 16, 0
            if _is_header(encoding, buffer, pos + 8, pos):
                return pos + 8, 0
        return pos + 12, length
    if 0x20 <= vr[0] <= 0x7E and 0x20 <= vr[1] <= 0x7E:
        # Senders that do not know a VR write "??", "--", blanks or "un", in the short form.
        if length:
            return pos + 8, length
        # Empty, or an implicitly encoded element of some KiB: the header of the next element decides.
        if pos + 16 > len(buffer):
            return pos + 16, 0
        if _is_header(encoding, buffer, pos + 8, pos):
            return pos + 8, 0
    # An implicitly encoded element has its length in place of VR and length.
    return pos + 8, int(encoding.long(buffer, pos + 4)[0])


def _is_header(encoding: HeaderFormat, buffer: Buffer, pos: int, before: int) -> bool:
    """
    Return whether an element of a known VR, or of that of the element at *before*, begins at *pos*, with a tag above that
    of the element at *before*.
    """
    raw, vr, _ = encoding.explicit(buffer, pos)
    last, odd_vr, _ = encoding.explicit(buffer, before)
    tag = encoding.swap(raw)
    return tag >= DELIMITERS or (
        (vr in encoding.short_vrs or vr in encoding.long_vrs or vr == odd_vr) and tag > encoding.swap(last)
    )


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def scan(data: Buffer, transfer_syntax_uid: str, wanted: Collection[int]) -> dict[int, bytes]:
    """Return the wanted top-level elements of a data set in memory.

    :param data: the encoded data set, at least up to the highest wanted element.
    :param transfer_syntax_uid: its transfer syntax.
    :param wanted: tags, each ``group << 16 | element``.
    :returns: tag -> raw value, with its padding; elements that are absent or longer than 64 KiB are left out.
    :raises HeaderError: the bytes are malformed, exceed a limit, or end inside an element.
    """
    scanner = HeaderScanner(transfer_syntax_uid, wanted)
    if not scanner.feed(data):
        scanner.finish()
    return scanner.values
