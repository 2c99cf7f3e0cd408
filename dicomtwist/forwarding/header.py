"""
The header of an encoded data set: decoded, changed, encoded again, and put in front of the pixel data, which pass untouched.

The header is all that precedes group 7FE0. No I/O, and no copy of pixel data in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, Final, TypeAlias

from pydicom import Dataset
from pydicom.dataelem import RawDataElement

from dicomtwist.datasets.codec import DecodingLimits, decode_dataset, encode_dataset
from dicomtwist.datasets.element_headers import (
    BIG_ENDIAN_FORMAT,
    DEFLATED,
    EXPLICIT_BIG_ENDIAN,
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT,
    IMPLICIT_LITTLE_ENDIAN,
    LITTLE_ENDIAN_FORMAT,
)
from dicomtwist.datasets.header_scanner import HeaderError, HeaderScanner, odd_header
from dicomtwist.errors import DataSetError
from dicomtwist.forwarding.errors import CoercionError
from dicomtwist.part10 import UNDEFINED_LENGTH, FileMeta, read_file_meta
from dicomtwist.settings import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

__all__ = ["PIXEL_GROUP", "Edit", "Rewritten", "Splice", "read_header", "rewrite", "rewritten_meta"]

Buffer: TypeAlias = bytes | bytearray | memoryview

#: Changes a header in place.
Edit: TypeAlias = Callable[[Dataset], None]

#: The group of the pixel data.
PIXEL_GROUP: Final = 0x7FE0
#: The longest header, in bytes. It holds documents, waveforms and overlays as well.
MAX_HEADER: Final = 256 * 1024 * 1024
#: The most elements and items of a header together. A header of a million takes pydicom about ten seconds.
MAX_ELEMENTS: Final = 1_000_000

#: The elements of that group in the data dictionary: extended offset tables, pixel data of all kinds, and retired coefficients.
_PIXEL_ELEMENTS: Final = frozenset((0x0001, 0x0002, 0x0003, 0x0008, 0x0009, 0x0010, 0x0020, 0x0030, 0x0040))

_INFLATED_PIECE: Final = 1024 * 1024
_ITEM_HEADER: Final = 8
#: The longest header of an element, with what :func:`odd_header` looks at behind it.
_ELEMENT_HEADER: Final = 16


@dataclass(frozen=True, slots=True)
class Rewritten:
    """
    A changed header.

    :ivar header: its bytes, in the transfer syntax of the source (of a deflated one: before deflation).
    :ivar offset: the position in the source of the bytes that follow *header*.
    :ivar sop_class_uid: the SOP Class UID in it, for the request and the File Meta Information.
    :ivar sop_instance_uid: the SOP Instance UID in it.
    """

    header: bytes
    offset: int
    sop_class_uid: str
    sop_instance_uid: str


def rewrite(header: bytes, transfer_syntax: str, edit: Edit) -> Rewritten:
    """
    Change a header.

    Elements that *edit* leaves alone keep their bytes. Group lengths are removed: PS3.5 7.2 retires them, and they would be
    wrong.

    :param header: the bytes before group 7FE0, not deflated.
    :param transfer_syntax: the UID of the transfer syntax of the data set.
    :raises DataSetError: it cannot be decoded or encoded.
    :raises CoercionError: *edit* refuses it, or it has no SOP Class UID or no SOP Instance UID afterwards.
    """
    plain = _plain(transfer_syntax)
    dataset = decode_dataset(header, plain, DecodingLimits(MAX_HEADER, MAX_ELEMENTS, MAX_ELEMENTS))
    try:
        edit(dataset)
        _drop_group_lengths(dataset)
        uids = [str(dataset.get(keyword) or "") for keyword in ("SOPClassUID", "SOPInstanceUID")]
    except DataSetError:
        raise
    except Exception as error:
        # pydicom raises many kinds for damaged values, with texts that quote them.
        raise CoercionError("", "header", f"a value cannot be decoded ({type(error).__name__})") from error
    for keyword, uid in zip(("SOPClassUID", "SOPInstanceUID"), uids, strict=True):
        if not uid or not uid.isascii():
            raise CoercionError(keyword, "header", "the data set has none that can be sent")
    return Rewritten(encode_dataset(dataset, plain), len(header), *uids)


def rewritten_meta(meta: FileMeta, rewritten: Rewritten, *, anonymous: bool = False) -> FileMeta:
    """
    Return the File Meta Information of a changed instance.

    :param anonymous: leave out the AE titles, which name machines of an institution, and name dicomtwist as the writer.
    """
    changed = replace(
        meta,
        media_storage_sop_class_uid=rewritten.sop_class_uid,
        media_storage_sop_instance_uid=rewritten.sop_instance_uid,
    )
    if anonymous:
        changed.source_ae_title = changed.sending_ae_title = changed.receiving_ae_title = ""
        changed.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        changed.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    return changed


def read_header(file: BinaryIO) -> Dataset:
    """
    Return the decoded header of a PS3.10 file, which may end where its pixel data begins. It blocks.

    :raises NotDicomFile: it is another kind of file.
    :raises DataSetError: the header cannot be decoded.
    """
    meta, offset = read_file_meta(file)
    file.seek(offset)
    found: list[Dataset] = []
    splice = Splice(meta.transfer_syntax_uid, found.append)
    try:
        while splice.rewritten is None:
            data = file.read(_INFLATED_PIECE)
            if not data:
                splice.finish()
                break
            splice.feed(data)
    except DataSetError:
        # It need not be one that can be sent, such as one without a SOP Instance UID.
        if not found:
            raise
    return found[0]


class Splice:
    """
    Changes the header of a data set whose bytes are fed in pieces of any size, and passes all that follows it.

    :param transfer_syntax: the UID of its transfer syntax.
    :param edit: changes the header.
    :param drop_tail: leave out what follows group 7FE0: digital signatures, padding and private elements.

    :ivar rewritten: the changed header, as soon as it is known. In a file that is not deflated, and whose tail stays, the bytes
        from ``rewritten.offset`` on follow as they are, so that a sender can stop feeding and send those itself.
    """

    def __init__(self, transfer_syntax: str, edit: Edit, *, drop_tail: bool = False) -> None:
        self._syntax = transfer_syntax
        self._edit = edit
        self._scanner = HeaderScanner(_plain(transfer_syntax), frozenset(), stop_after=(PIXEL_GROUP << 16) - 1)
        self._header = bytearray()
        self._tail = _TailCutter(transfer_syntax) if drop_tail else None
        deflated = transfer_syntax in DEFLATED
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if deflated else None
        self._deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS) if deflated else None
        self._sent = 0
        self.rewritten: Rewritten | None = None

    def feed(self, data: Buffer) -> list[Buffer]:
        """
        Take the next bytes of the source.

        :returns: the bytes that can be sent now. Those of pixel data are views on *data*.
        :raises DataSetError: the header cannot be read, decoded or encoded, or is longer than :data:`MAX_HEADER`.
        :raises CoercionError: the header cannot be changed as the rules say.
        """
        return self._deflated(one for piece in self._inflated(data) for one in self._plain_bytes(piece))

    def finish(self) -> list[Buffer]:
        """
        End the source.

        :returns: the last bytes to send.
        :raises DataSetError: the source ends in the header, in an element, or in a deflated stream.
        """
        out: list[Buffer] = []
        if self._inflater is not None and not self._inflater.eof:
            raise DataSetError("the deflated data set ends too early")
        if self.rewritten is None:
            try:
                self._scanner.finish()
            except HeaderError as error:
                raise DataSetError(str(error)) from None
            out = list(self._end_header(bytes(self._header)))
        if self._tail is not None:
            self._tail.finish()
        out = self._deflated(out)
        if self._deflater is not None:
            last = self._deflater.flush()
            out.append(last + b"\0" * ((self._sent + len(last)) & 1))
        return out

    def _plain_bytes(self, data: Buffer) -> Iterator[Buffer]:
        if self.rewritten is not None:
            yield from self._behind(data)
            return
        before = len(self._header)
        try:
            self._scanner.feed(data)
        except HeaderError as error:
            raise DataSetError(str(error)) from None
        if not self._scanner.done:
            self._header += data
            if len(self._header) > MAX_HEADER:
                raise DataSetError(f"the header has more than {MAX_HEADER} bytes")
            return
        end = self._scanner.stopped_at
        # The beginning of the first header behind the end may have come before this piece.
        self._header += data
        header, rest = bytes(self._header[:end]), bytes(self._header[end:before])
        self._header = bytearray()
        yield from self._end_header(header)
        if rest:
            yield from self._behind(rest)
        yield from self._behind(memoryview(data)[max(0, end - before) :])

    def _end_header(self, header: bytes) -> Iterator[Buffer]:
        self.rewritten = rewrite(header, self._syntax, self._edit)
        yield self.rewritten.header

    def _behind(self, data: Buffer) -> Iterator[Buffer]:
        if self._tail is None:
            yield data
        else:
            yield from self._tail.feed(data)

    def _inflated(self, data: Buffer) -> Iterator[Buffer]:
        inflater = self._inflater
        if inflater is None:
            yield data
            return
        while data and not inflater.eof:
            try:
                inflated = inflater.decompress(data, _INFLATED_PIECE)
            except zlib.error as error:
                raise DataSetError(f"the data set is not deflated: {error}") from error
            data = inflater.unconsumed_tail
            if not inflated and not data:
                return
            yield inflated
        while not inflater.eof and (inflated := inflater.decompress(b"", _INFLATED_PIECE)):
            yield inflated

    def _deflated(self, pieces: Iterator[Buffer] | list[Buffer]) -> list[Buffer]:
        if self._deflater is None:
            return [one for one in pieces if len(one)]
        out: list[Buffer] = [one for piece in pieces if (one := self._deflater.compress(piece))]
        self._sent += sum(map(len, out))
        return out


class _TailCutter:
    """
    Passes the elements of group 7FE0 that are pixels and their offsets, and drops all others and all that follow.

    Others are group lengths, which would be wrong, and those that the data dictionary does not have, which may hold anything.
    """

    def __init__(self, transfer_syntax: str) -> None:
        self._encoding = BIG_ENDIAN_FORMAT if transfer_syntax == EXPLICIT_BIG_ENDIAN else LITTLE_ENDIAN_FORMAT
        self._implicit = transfer_syntax in IMPLICIT
        self._pending = bytearray()
        self._pass = 0  # the bytes of a value that pass, or do not
        self._drops = False
        self._in_items = False
        self._ended = False

    def feed(self, data: Buffer) -> Iterator[Buffer]:
        view = memoryview(data)
        while len(view) and not self._ended:
            if self._pass:
                taken = min(self._pass, len(view))
                self._pass -= taken
                if not self._drops:
                    yield view[:taken]
                view = view[taken:]
                continue
            before = len(self._pending)
            head = self._pending + view[:_ELEMENT_HEADER]
            used = self._item(head) if self._in_items else self._element(head)
            if not used and not self._ended:
                self._pending += view[:_ELEMENT_HEADER]
                view = view[_ELEMENT_HEADER:]
                continue
            if self._ended:
                return
            if not self._drops:
                yield bytes(head[:used])
            self._pending = head[used:before] if used < before else bytearray()
            view = view[max(0, used - before) :]

    def finish(self) -> None:
        if self._ended:
            return
        if self._pending and not self._in_items:
            # A last element with a header of 8 bytes, or what is too short for any: nothing of the pixel data.
            head = self._pending + bytes(_ELEMENT_HEADER)
            if self._encoding.tag(head, 0)[0] != PIXEL_GROUP:
                return
        if self._pass or self._in_items or self._pending:
            raise DataSetError("the data set ends inside its pixel data")

    def _element(self, head: bytearray) -> int:
        """Return the length of the header of an element of group 7FE0 at the front of *head*; 0 if more bytes are needed."""
        if len(head) < 4:
            return 0
        if self._encoding.tag(head, 0)[0] != PIXEL_GROUP:
            self._ended = True
            return 0
        if len(head) < _ITEM_HEADER:
            return 0
        if self._implicit:
            start, length = 8, self._encoding.implicit(head, 0)[1]
        else:
            _, vr, length = self._encoding.explicit(head, 0)
            start = 8
            if vr in self._encoding.long_vrs:
                start = 12
                if len(head) < start:
                    return 0
                length = self._encoding.long(head, 8)[0]
            elif vr not in self._encoding.short_vrs:
                if len(head) < _ELEMENT_HEADER:
                    return 0
                start, length = odd_header(self._encoding, head, 0, length)
        self._drops = self._encoding.tag(head, 0)[1] not in _PIXEL_ELEMENTS
        self._in_items = length == UNDEFINED_LENGTH
        if self._drops and self._in_items:
            raise DataSetError("an element of group 7FE0 that is no pixel data has no length")
        self._pass = 0 if self._in_items else length
        return start

    def _item(self, head: bytearray) -> int:
        """Return the length of the header of a fragment, or of the delimiter behind the last, at the front of *head*."""
        if len(head) < _ITEM_HEADER:
            return 0
        group, element = self._encoding.tag(head, 0)
        length = self._encoding.long(head, 4)[0]
        if (group, element) == (0xFFFE, 0xE0DD):
            self._in_items = False
        elif (group, element) != (0xFFFE, 0xE000) or length == UNDEFINED_LENGTH:
            raise DataSetError("the pixel data is not a sequence of fragments (PS3.5 A.4)")
        else:
            self._pass = length
        return _ITEM_HEADER


def _plain(transfer_syntax: str) -> str:
    """Return the syntax in which the header of a data set in *transfer_syntax* is encoded, before deflation."""
    if transfer_syntax in IMPLICIT:
        return IMPLICIT_LITTLE_ENDIAN
    return EXPLICIT_BIG_ENDIAN if transfer_syntax == EXPLICIT_BIG_ENDIAN else EXPLICIT_LITTLE_ENDIAN


def _drop_group_lengths(dataset: Dataset) -> None:
    for tag in [tag for tag in dataset.keys() if tag.element == 0]:  # noqa: SIM118, a Dataset iterates over its elements
        del dataset[tag]
    for element in dataset.values():
        if not isinstance(element, RawDataElement) and element.VR == "SQ":
            for item in element.value or ():
                _drop_group_lengths(item)
