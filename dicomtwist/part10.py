"""The File Meta Information at the front of a DICOM file (PS3.10 section 7.1), encoded and decoded by hand.

A received instance becomes a file when these few hundred bytes are written before its data set, and a file can be sent as
soon as the start of its data set is found. Neither needs a parsed data set, so nothing here parses one.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["FileMeta", "NotDicomFile", "decode_uid", "encode_preamble_and_meta", "read_file_meta"]

#: The longest File Meta Information that is read, in bytes. Real ones have 200 to 400; only private information (0002,0102)
#: makes one longer, and it is not used here.
MAX_META_LENGTH = 64 * 1024

#: Why a file cannot be sent or archived.
NO_TRANSFER_SYNTAX = (
    "its File Meta Information has no Transfer Syntax UID (0002,0010), so it does not say how the data set is encoded"
)

_FIRST_READ = 4096
_PREAMBLE_LENGTH = 132

#: The transfer syntaxes that deflate the data set: Deflated Explicit VR Little Endian (PS3.5 A.5), JPIP Referenced Deflate,
#: and JPIP HTJ2K Referenced Deflate.
DEFLATED = frozenset(("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"))

#: The VRs with a length of four bytes, after two reserved bytes (PS3.5 table 7.1-1).
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())

#: The length of a value that ends with a delimiter (PS3.5 7.1.1).
UNDEFINED_LENGTH = 0xFFFFFFFF

_LENGTH = struct.Struct("<H")
_LONG = struct.Struct("<I")
_ELEMENT = struct.Struct("<HH2sH")

# The preamble is always zero (a peer's preamble could turn the file into a program, CVE-2019-11687), and the group
# length and the version have fixed positions, so everything before the first UID is two constants and one number.
_HEAD = bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00"
_VERSION = b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01"


class NotDicomFile(ValueError):
    """The file is not a DICOM file of PS3.10, or its File Meta Information is damaged; the text says why."""


@dataclass(slots=True)
class FileMeta:
    """The File Meta Information of one file (PS3.10 table 7.1-1). An empty string means that the element is absent.

    :param media_storage_sop_class_uid: (0002,0002).
    :param media_storage_sop_instance_uid: (0002,0003).
    :param transfer_syntax_uid: (0002,0010), of the data set that follows.
    :param implementation_class_uid: (0002,0012), of the program that wrote the file.
    :param implementation_version_name: (0002,0013), at most 16 characters.
    :param source_ae_title: (0002,0016), of the application that the data set came from; at most 16
        characters.
    :param sending_ae_title: (0002,0017), of the application that sent it over a network.
    :param receiving_ae_title: (0002,0018), of the application that received it.
    """

    media_storage_sop_class_uid: str = ""
    media_storage_sop_instance_uid: str = ""
    transfer_syntax_uid: str = ""
    implementation_class_uid: str = ""
    implementation_version_name: str = ""
    source_ae_title: str = ""
    sending_ae_title: str = ""
    receiving_ae_title: str = ""


# The fields by element number in group 0002, for decoding.
_FIELDS = {
    0x0002: "media_storage_sop_class_uid",
    0x0003: "media_storage_sop_instance_uid",
    0x0010: "transfer_syntax_uid",
    0x0012: "implementation_class_uid",
    0x0013: "implementation_version_name",
    0x0016: "source_ae_title",
    0x0017: "sending_ae_title",
    0x0018: "receiving_ae_title",
}


def decode_uid(value: bytes) -> str:
    """Return the text of a UI, AE or SH value, without its padding.

    Padding is NUL by PS3.5 section 9.1; spaces are wrong but common and are removed as well. A byte that is not ASCII
    becomes the character with its number, so that an invalid UID stays visibly invalid.

    :param value: the value in the data set.
    :returns: its text.
    """
    return value.strip(b"\0 ").decode("latin-1")


def _encode_uid(head: bytes, value: str) -> bytes:
    raw = value.encode("ascii")
    length = len(raw)
    if not 0 < length <= 64:
        raise ValueError(f"a UID of the File Meta Information has 1 to 64 characters, not {length}")
    if length & 1:
        return head + _LENGTH.pack(length + 1) + raw + b"\0"
    return head + _LENGTH.pack(length) + raw


def _encode_text(head: bytes, value: str) -> bytes:
    raw = value.encode("ascii")
    length = len(raw)
    if length > 16 or not value.isprintable():
        raise ValueError(
            f"{value[:64]!r} is invalid in the File Meta Information: at most 16 characters, no control characters"
        )
    if length & 1:
        return head + _LENGTH.pack(length + 1) + raw + b" "
    return head + _LENGTH.pack(length) + raw


def encode_preamble_and_meta(meta: FileMeta) -> bytes:
    """Encode the part of a file before its data set (PS3.10 section 7.1).

    :param meta: the content; the four UIDs are required, other elements are omitted if empty.
    :returns: 128 zero bytes, ``DICM``, and group 0002 in Explicit VR Little Endian with its group length.
    :raises ValueError: a UID is empty, too long or not ASCII; an AE title or version name is too long, not ASCII or has
        control characters (UnicodeEncodeError is a ValueError).
    """
    before, behind = _encode_around_instance_uid(
        meta.media_storage_sop_class_uid,
        meta.transfer_syntax_uid,
        meta.implementation_class_uid,
        meta.implementation_version_name,
        meta.source_ae_title,
        meta.sending_ae_title,
        meta.receiving_ae_title,
    )
    instance_uid = _encode_uid(b"\x02\x00\x03\x00UI", meta.media_storage_sop_instance_uid)
    length = len(before) + len(instance_uid) + len(behind)
    return b"".join((_HEAD, _LONG.pack(length), before, instance_uid, behind))


@functools.lru_cache(maxsize=256)
def _encode_around_instance_uid(
    sop_class: str, transfer_syntax: str, implementation: str, version: str, source: str, sending: str, receiving: str
) -> tuple[bytes, bytes]:
    """Return the bytes before and after the SOP Instance UID, which are equal for all instances of a kind from one peer."""
    before = _VERSION + _encode_uid(b"\x02\x00\x02\x00UI", sop_class)
    behind = _encode_uid(b"\x02\x00\x10\x00UI", transfer_syntax) + _encode_uid(b"\x02\x00\x12\x00UI", implementation)
    for head, value in (
        (b"\x02\x00\x13\x00SH", version),
        (b"\x02\x00\x16\x00AE", source),
        (b"\x02\x00\x17\x00AE", sending),
        (b"\x02\x00\x18\x00AE", receiving),
    ):
        if value:
            behind += _encode_text(head, value)
    return before, behind


def read_file_meta(file: BinaryIO) -> tuple[FileMeta, int]:
    """Read the File Meta Information and find the start of the data set, which is not read.

    A missing or wrong group length, missing elements, and unknown or private elements of group 0002 are tolerated. The
    field of a missing element is an empty string, so a caller that needs the Transfer Syntax must check it.

    :param file: a seekable binary file, at its start; afterwards at the start of the data set.
    :returns: the File Meta Information, and the offset of the data set in bytes from the start.
    :raises NotDicomFile: there is no preamble, no ``DICM``, no group 0002; or an element of group 0002 has no valid header,
        is truncated, or ends beyond 64 KiB.
    :raises OSError: the file cannot be read.
    """
    data = file.read(_FIRST_READ)
    if data[128:_PREAMBLE_LENGTH] != b"DICM":
        raise NotDicomFile(_explain_missing_prefix(data))
    meta = FileMeta()
    pos = _PREAMBLE_LENGTH
    declared_end = -1
    while True:
        if len(data) < pos + 12:
            data = _read_at_least(file, data, pos + 12)
        if data[pos : pos + 2] != b"\x02\x00":
            break
        # Only a compressed data set can begin with the bytes of group 0002 by accident. For it the group length decides;
        # for all others the elements themselves decide, because group lengths are often wrong.
        if pos == declared_end and meta.transfer_syntax_uid in DEFLATED:
            break
        start, length, element = _decode_element_header(data, pos)
        pos = start + length
        if pos > _PREAMBLE_LENGTH + MAX_META_LENGTH:
            raise NotDicomFile(
                f"element (0002,{element:04X}) has a length of {length} bytes; File Meta Information above "
                f"{MAX_META_LENGTH} bytes is not accepted"
            )
        if len(data) < pos:
            data = _read_at_least(file, data, pos)
            if len(data) < pos:
                raise NotDicomFile(f"the file ends inside element (0002,{element:04X}) of its File Meta Information")
        if element == 0:
            if length == 4:
                declared_end = pos + int(_LONG.unpack_from(data, start)[0])
        elif field := _FIELDS.get(element):
            # The first value counts: a data set that begins with group 0002 does not change what its file says of it.
            if not getattr(meta, field):
                setattr(meta, field, decode_uid(data[start:pos]))
    if pos == _PREAMBLE_LENGTH:
        raise NotDicomFile("the file has a preamble and DICM but no File Meta Information (group 0002)")
    file.seek(pos)
    return meta, pos


def _read_at_least(file: BinaryIO, data: bytes, needed: int) -> bytes:
    """Read until there are at least ``needed`` bytes, or to the end: a raw file may return fewer bytes than requested."""
    while len(data) < needed:
        more = file.read(max(needed - len(data), _FIRST_READ))
        if not more:
            break
        data += more
    return data


def _decode_element_header(data: bytes, pos: int) -> tuple[int, int, int]:
    """Return the start and length of the value of the element at ``pos``, and its element number."""
    if len(data) < pos + 8:
        raise NotDicomFile("the file ends inside its File Meta Information")
    _, element, vr, length = _ELEMENT.unpack_from(data, pos)
    if vr not in LONG_VRS:
        if not (vr.isalpha() and vr.isupper()):
            raise NotDicomFile(
                f"element (0002,{element:04X}) has no Value Representation: "
                "File Meta Information is Explicit VR Little Endian"
            )
        return pos + 8, length, element
    if len(data) < pos + 12:
        raise NotDicomFile("the file ends inside its File Meta Information")
    length = _LONG.unpack_from(data, pos + 8)[0]
    if length == UNDEFINED_LENGTH:
        raise NotDicomFile(
            f"element (0002,{element:04X}) has an undefined length, which File Meta Information does not allow"
        )
    return pos + 12, length, element


def _explain_missing_prefix(data: bytes) -> str:
    if not data:
        return "the file is empty"
    if data[:2] in (b"\x08\x00", b"\x00\x08", b"\x02\x00"):
        return (
            "the file has no preamble and no DICM at byte 128; it looks like a bare data set, "
            "whose Transfer Syntax cannot be known"
        )
    if len(data) < _PREAMBLE_LENGTH:
        return f"the file has {len(data)} bytes; a DICOM file has at least a preamble of 128 and DICM"
    return "the file does not have DICM at byte 128, so it is not a DICOM file (PS3.10)"
