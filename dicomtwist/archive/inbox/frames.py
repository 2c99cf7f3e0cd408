"""
The frames of the inbox: how one instance lies in a segment, written and found again. Pure: no file is touched here.

A frame begins at a multiple of :data:`ALIGNMENT` with a head, which fits into the first :data:`ALIGNMENT` bytes and has its own
checksum; the content, which is the DICOM file of the instance, follows at once, then zeros up to the next frame.

A segment is used again, so stale frames lie behind the frames that count. Each use has its own random *generation*, which is in
each head: stale frames have another one, and no sender can forge a head inside of an instance.

Frames that are written together are synced together. Each of them states in *synced* where the first of them begins: all
frames before that offset had been acknowledged. So a bad frame before the highest *synced* of a segment is damage to an
acknowledged instance. A bad frame behind it belongs to the last batch: most likely its sync had not ended, so that no sender
had an answer. Damage to the last batch after its acknowledgement looks alike, unless the segment was made
shorter.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.types import InstanceUIDs, StoreError, is_uid

__all__ = [
    "ALIGNMENT",
    "GENERATION_LENGTH",
    "MAX_NOTE",
    "Damaged",
    "Found",
    "Frame",
    "FrameRefused",
    "begin_of",
    "encode",
    "frame_size",
    "scan",
    "void",
]

#: Frames begin at multiples of this number of bytes, the sector of a disk: a medium writes a sector whole or not at all.
ALIGNMENT: Final = 512
#: The number of random bytes that identify one use of a segment.
GENERATION_LENGTH: Final = 8

#: Magic with the version of the format, generation, own offset, synced, time of receipt, content length, text length, kind of
#: the checksum of the content, and that checksum. The checksum of the head follows, then the text, in lines: UIDs, transfer
#: syntax, and a note if there is one. An earlier program, which knows no notes, counts a frame with a note as a bad one.
_HEAD: Final = struct.Struct("<8s8sQQQIHB32s")
_CHECKSUM: Final = struct.Struct("<I")
_TEXT: Final = _HEAD.size + _CHECKSUM.size
_MAGIC: Final = b"DTINBOX\x01"
#: The longest note: with the longest UIDs it fits into a head.
MAX_NOTE: Final = 160
_MAX_CONTENT: Final = 0xFFFFFFFF
_MAX_RECEIVED: Final = 0xFFFFFFFFFFFFFFFF
#: The kinds of the checksum: CRC-32, SHA-256, and that of a frame that does not count any more.
_CRC, _SHA256, _VOID = range(3)
_DIGEST_LENGTH: Final = 32
_ZEROS: Final = bytes(ALIGNMENT)
#: The bytes that are searched at a time for the next frame behind a bad one; a multiple of ALIGNMENT.
_SEARCHED: Final = 1024 * 1024

#: Returns up to so many bytes at an offset of a segment: fewer only at its end.
_Read: TypeAlias = Callable[[int, int], bytes]


class FrameRefused(StoreError, ValueError):
    """An instance cannot be a frame: it is too large, or what describes it is."""


class Frame(NamedTuple):
    """
    One instance in the inbox.

    :ivar uids: its Study, Series and SOP Instance UIDs.
    :ivar transfer_syntax: the transfer syntax of its data set.
    :ivar content: its DICOM file, each buffer contiguous.
    :ivar digest: the SHA-256 of the content; empty if it is not known, then a CRC-32 protects the content.
    :ivar received: the time of its receipt, in nanoseconds since 1970.
    :ivar note: printable ASCII of at most :data:`MAX_NOTE` bytes that is kept beside the instance, see
        :mod:`dicomtwist.archive.inbox.notes`.
    """

    uids: InstanceUIDs
    transfer_syntax: str
    content: Sequence[Buffer]
    digest: bytes = b""
    received: int = 0
    note: bytes = b""


class Found(NamedTuple):
    """
    A frame that was read and is whole.

    :ivar frame: the frame; its content is one buffer.
    :ivar offset: the offset of the content in the segment.
    """

    frame: Frame
    offset: int


class Damaged(NamedTuple):
    """
    A part of a segment that holds a bad frame, or bad frames.

    :ivar offset: its first byte.
    :ivar end: the first byte behind it.
    :ivar acknowledged: whether an instance in it was acknowledged for certain; if not, it was most likely being written.
    :ivar uids: the UIDs of the instance; ``None`` if the head is bad, so that they are unknown.
    """

    offset: int
    end: int
    acknowledged: bool
    uids: InstanceUIDs | None = None


class _Head(NamedTuple):
    offset: int
    synced: int
    received: int
    content: int
    length: int
    kind: int
    checksum: bytes
    uids: InstanceUIDs
    transfer_syntax: str
    note: bytes

    @property
    def end(self) -> int:
        return _aligned(self.content + self.length)


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def _text(frame: Frame) -> bytes:
    """Return the text of a head, or refuse what could not be read again."""
    study_uid, series_uid, instance_uid = frame.uids
    around = _around(study_uid, series_uid, frame.transfer_syntax)
    if not is_uid(instance_uid):
        raise FrameRefused("an invalid UID")
    if len(frame.digest) not in (0, _DIGEST_LENGTH):
        raise FrameRefused("an invalid digest")
    if not 0 <= frame.received <= _MAX_RECEIVED:
        raise FrameRefused("a time of receipt before 1970, or far in the future: the clock is wrong")
    text = instance_uid.encode().join(around)
    if not frame.note:
        return text
    if len(frame.note) > MAX_NOTE or not frame.note.isascii() or b"\n" in frame.note:
        raise FrameRefused("an invalid note")
    return text + b"\n" + frame.note


@lru_cache(maxsize=256)
def _around(study_uid: str, series_uid: str, transfer_syntax: str) -> tuple[bytes, bytes]:
    """Return the text in front of and behind the SOP Instance UID, which the instances of a series have in common."""
    if not is_uid(study_uid) or not is_uid(series_uid):
        raise FrameRefused("an invalid UID")
    if not transfer_syntax.isascii() or "\n" in transfer_syntax:
        raise FrameRefused("an invalid transfer syntax")
    return f"{study_uid}\n{series_uid}\n".encode(), f"\n{transfer_syntax}".encode()


def frame_size(frame: Frame) -> int:
    """
    Return the number of bytes that a frame takes in a segment.

    :raises FrameRefused: it cannot be encoded.
    """
    return _size(len(_text(frame)), sum(map(len, frame.content)))


def _size(text: int, length: int) -> int:
    if _TEXT + text > ALIGNMENT or length > _MAX_CONTENT:
        raise FrameRefused(
            f"an instance of {length} bytes, with a transfer syntax and UIDs of {text}, fits into no frame"
        )
    return -(-(_TEXT + text + length) // ALIGNMENT) * ALIGNMENT


def encode(frame: Frame, generation: bytes, offset: int, synced: int) -> tuple[list[Buffer], int, int, int]:
    """
    Encode a frame; the content is not copied.

    :param generation: the generation of the segment.
    :param offset: where the frame begins in the segment, a multiple of :data:`ALIGNMENT`.
    :param synced: where the frames begin that are written together with this one; 0 if nothing is synced.
    :returns: the buffers to write; the offset of the content in the segment, its length, and the end of the frame.
    :raises FrameRefused: it cannot be encoded.
    """
    text = _text(frame)
    content, digest = frame.content, frame.digest
    length = sum(map(len, content))
    size = _size(len(text), length)
    kind, checksum = (_SHA256, digest) if digest else (_CRC, _crc(content))
    begin = _TEXT + len(text)
    head = _head(generation, offset, synced, frame.received, length, text, kind, checksum)
    return [head, *content, _ZEROS[: size - begin - length]], offset + begin, length, offset + size


def _head(
    generation: bytes, offset: int, synced: int, received: int, length: int, text: bytes, kind: int, checksum: bytes
) -> bytes:
    head = _HEAD.pack(_MAGIC, generation, offset, synced, received, length, len(text), kind, checksum)
    return head + _CHECKSUM.pack(zlib.crc32(text, zlib.crc32(head))) + text


def _crc(content: Sequence[Buffer]) -> bytes:
    crc = 0
    for buffer in content:
        crc = zlib.crc32(buffer, crc)
    return _CHECKSUM.pack(crc)


def begin_of(content: int) -> int:
    """Return where the frame begins whose content has the offset *content*."""
    return (content - 1) // ALIGNMENT * ALIGNMENT


def void(sector: bytes, offset: int, generation: bytes) -> bytes | None:
    """
    Return a head that says that a frame does not count any more, ``None`` if there is no good head.

    :param sector: the first :data:`ALIGNMENT` bytes of the frame.
    :param offset: where the frame begins in the segment.
    :param generation: the generation of the segment.
    """
    head = _decode(sector, offset, generation)
    if head is None:
        return None
    text = sector[_TEXT : head.content - offset]
    return _head(generation, offset, head.synced, head.received, head.length, text, _VOID, b"")


def scan(read: _Read, size: int, generation: bytes) -> Iterator[Found | Damaged]:
    """
    Yield the frames of one use of a segment and the bad parts between them, in the order of their offsets.

    Behind a bad frame the scan looks for the next good head of the same generation. It ends behind the last frame.

    :param read: returns up to so many bytes (second argument) at an offset (first argument), fewer only at the end.
    :param size: the size of the segment in bytes.
    :param generation: the generation of that use.
    """
    heads = list(_heads(read, size, generation))
    acknowledged = max((head.synced for head in heads), default=0)
    # No write makes such a segment longer, so a frame that its end cuts off is no torn write: the segment was made shorter.
    preallocated = acknowledged > 0
    if _is_garbage(read(0, ALIGNMENT)):
        # Nothing but heads is written into the first sector, and a medium writes a sector whole or not at all: this is no torn
        # write.
        acknowledged = max(acknowledged, 1)
        if not heads:
            yield Damaged(0, size, True)
    here = 0
    for head in heads:
        if head.offset > here:
            yield Damaged(here, head.offset, here < acknowledged)
        here = head.end
        if head.kind != _VOID:
            yield _read(read, head, head.offset < acknowledged or (preallocated and head.end > size))
    if preallocated and here < size and size % ALIGNMENT:
        yield Damaged(here, size, True)


def _read(read: _Read, head: _Head, acknowledged: bool) -> Found | Damaged:
    content = read(head.content, head.length)
    actual = hashlib.sha256(content).digest() if head.kind == _SHA256 else _crc([content])
    if len(content) != head.length or actual != head.checksum[: len(actual)]:
        return Damaged(head.offset, head.end, acknowledged, head.uids)
    digest = actual if head.kind == _SHA256 else b""
    frame = Frame(head.uids, head.transfer_syntax, [content], digest, head.received, head.note)
    return Found(frame, head.content)


def _is_garbage(sector: bytes) -> bool:
    """Whether the first sector of a segment is neither empty nor the head of a frame of any generation."""
    generation = sector[len(_MAGIC) : len(_MAGIC) + GENERATION_LENGTH]
    return any(sector) and _decode(sector, 0, generation) is None


def _heads(read: _Read, size: int, generation: bytes) -> Iterator[_Head]:
    offset = 0
    while offset < size:
        head = _decode(read(offset, ALIGNMENT), offset, generation)
        if head is None:
            head = _search(read, offset + ALIGNMENT, size, generation)
            if head is None:
                return
        yield head
        offset = head.end


def _search(read: _Read, offset: int, size: int, generation: bytes) -> _Head | None:
    """Return the first good head at or behind *offset*."""
    wanted = _MAGIC + generation
    for begin in range(offset, size, _SEARCHED):
        piece = read(begin, _SEARCHED)
        found = piece.find(wanted)
        while found >= 0:
            if found % ALIGNMENT == 0:
                head = _decode(piece[found : found + ALIGNMENT], begin + found, generation)
                if head is not None:
                    return head
            found = piece.find(wanted, found + 1)
    return None


def _decode(sector: bytes, offset: int, generation: bytes) -> _Head | None:
    """Return the head of the frame at *offset*, ``None`` if there is no good one of that generation."""
    if len(sector) < _TEXT or not sector.startswith(_MAGIC + generation):
        return None
    _, _, own, synced, received, length, text_length, kind, checksum = _HEAD.unpack_from(sector)
    text = sector[_TEXT : _TEXT + text_length]
    crc = zlib.crc32(text, zlib.crc32(sector[: _HEAD.size]))
    if own != offset or _CHECKSUM.unpack_from(sector, _HEAD.size) != (crc,) or len(text) != text_length:
        return None
    parts = text.decode("ascii", "replace").split("\n")
    if len(parts) not in (4, 5) or not all(map(is_uid, parts[:3])) or kind > _VOID:
        return None
    study, series, instance, syntax = parts[:4]
    uids = study, series, instance
    note = parts[4].encode() if len(parts) == 5 else b""
    return _Head(offset, synced, received, offset + _TEXT + text_length, length, kind, checksum, uids, syntax, note)
