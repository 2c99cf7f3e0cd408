"""
The seven PDUs of the DICOM Upper Layer (PS3.8 9.3), with encoding and decoding.

:class:`PDataTF` is here for completeness and for tests: connections read and write P-DATA-TF fragment by fragment, see
:mod:`dicomtwist.ul.framing` and :mod:`dicomtwist.dimse.message_stream`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct
from typing import ClassVar

from dicomtwist.errors import ABORT_REASONS, InvalidPDU
from dicomtwist.ul.items import (
    APPLICATION_CONTEXT_NAME,
    AnsweredContext,
    ProposedContext,
    UserInformation,
    VariableItems,
    decode_variable_items,
    encode_item,
    encode_text,
)

PDU_HEADER = Struct(">BxL")
PDV_HEADER = Struct(">LBB")
PDATA_HEADER = Struct(">BxLLBB")  # of a P-DATA-TF, and of its first PDV
_ASSOCIATE_HEAD = Struct(">HH16s16s32x")

#: Bit 0 of a message control header: the fragment belongs to the command set (PS3.8 E.2).
COMMAND_FRAGMENT = 1
#: Bit 1 of a message control header: the fragment is the last of its command set or data set.
LAST_FRAGMENT = 2


def _encode(pdu_type: int, body: bytes) -> bytes:
    return PDU_HEADER.pack(pdu_type, len(body)) + body


def _encode_title(title: str) -> bytes:
    raw = encode_text(title)
    if len(raw) > 16:
        raise ValueError(f"AE title {title!r} has {len(raw)} characters, the maximum is 16")
    return raw.ljust(16)


def _decode_title(raw: bytes) -> str:
    # Leading and trailing spaces are not significant (PS3.5 6.2, AE); some peers pad with NUL.
    return raw.decode("latin-1").rstrip("\0 ").lstrip(" ")


def _encode_associate(pdu: AAssociateRQ | AAssociateAC) -> bytes:
    head = _ASSOCIATE_HEAD.pack(
        pdu.protocol_version, 0, _encode_title(pdu.called_ae_title), _encode_title(pdu.calling_ae_title)
    )
    parts = [head, encode_item(0x10, encode_text(pdu.application_context_name))]
    parts += [context.encode() for context in pdu.presentation_contexts]
    parts.append(pdu.user_information.encode())
    return _encode(pdu.pdu_type, b"".join(parts))


def _decode_associate(body: memoryview, name: str) -> tuple[int, str, str, VariableItems]:
    """Return the protocol version, the called and the calling AE title, and the items with the deviations in them."""
    if len(body) < _ASSOCIATE_HEAD.size:
        raise InvalidPDU(f"{name} of {len(body)} bytes, the minimum is {_ASSOCIATE_HEAD.size}")
    version, _, called, calling = _ASSOCIATE_HEAD.unpack_from(body)
    items = decode_variable_items(body[_ASSOCIATE_HEAD.size :])
    if name == "A-ASSOCIATE-RQ" and b"\0" in called + calling:  # the titles in an A-ASSOCIATE-AC are not tested
        items.tolerated.add("AE titles that are padded with NULs")
    return version, _decode_title(called), _decode_title(calling), items


@dataclass(frozen=True, slots=True)
class AAssociateRQ:
    """
    A-ASSOCIATE-RQ (PS3.8 9.3.2).

    :ivar tolerated: after decoding, a description of each deviation from the standard that was accepted.
    """

    pdu_type: ClassVar[int] = 1

    called_ae_title: str
    calling_ae_title: str
    presentation_contexts: tuple[ProposedContext, ...] = ()
    user_information: UserInformation = field(default_factory=UserInformation)
    application_context_name: str = APPLICATION_CONTEXT_NAME
    protocol_version: int = 1
    tolerated: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def encode(self) -> bytes:
        """Return the PDU's bytes."""
        return _encode_associate(self)

    @classmethod
    def decode(cls, body: memoryview) -> AAssociateRQ:
        """
        Decode the PDU in *body*, the bytes after the 6 of the PDU header.

        :raises InvalidPDU: *body* is too short, or a length in it is wrong.
        """
        version, called, calling, items = _decode_associate(body, "A-ASSOCIATE-RQ")
        return cls(
            called,
            calling,
            items.proposed,
            items.user_information,
            items.application_context_name,
            version,
            tuple(sorted(items.tolerated)),
        )


@dataclass(frozen=True, slots=True)
class AAssociateAC:
    """
    A-ASSOCIATE-AC (PS3.8 9.3.3). The AE titles repeat those of the request and shall not be tested.

    *tolerated* is as in :class:`AAssociateRQ`.
    """

    pdu_type: ClassVar[int] = 2

    called_ae_title: str
    calling_ae_title: str
    presentation_contexts: tuple[AnsweredContext, ...] = ()
    user_information: UserInformation = field(default_factory=UserInformation)
    application_context_name: str = APPLICATION_CONTEXT_NAME
    protocol_version: int = 1
    tolerated: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def encode(self) -> bytes:
        """Return the PDU's bytes."""
        return _encode_associate(self)

    @classmethod
    def decode(cls, body: memoryview) -> AAssociateAC:
        """
        Decode the PDU in *body*, the bytes after the 6 of the PDU header.

        :raises InvalidPDU: *body* is too short, or a length in it is wrong.
        """
        version, called, calling, items = _decode_associate(body, "A-ASSOCIATE-AC")
        return cls(
            called,
            calling,
            items.answered,
            items.user_information,
            items.application_context_name,
            version,
            tuple(sorted(items.tolerated)),
        )


def _check_length_4(body: memoryview, name: str) -> memoryview:
    if len(body) != 4:
        raise InvalidPDU(f"{name} of {len(body)} bytes, the length must be 4")
    return body


@dataclass(frozen=True, slots=True)
class AAssociateRJ:
    """A-ASSOCIATE-RJ (PS3.8 9.3.4)."""

    pdu_type: ClassVar[int] = 3

    result: int
    source: int
    reason: int

    def encode(self) -> bytes:
        """Return the PDU's bytes."""
        return _encode(3, bytes((0, self.result, self.source, self.reason)))

    @classmethod
    def decode(cls, body: memoryview) -> AAssociateRJ:
        """Decode the PDU in *body*."""
        _, result, source, reason = _check_length_4(body, "A-ASSOCIATE-RJ")
        return cls(result, source, reason)


@dataclass(frozen=True, slots=True)
class PDV:
    """A presentation data value item (PS3.8 9.3.5.1); *control* is the message control header (Annex E.2)."""

    context_id: int
    control: int
    data: bytes

    def encode(self) -> bytes:
        """Return the item's bytes."""
        return PDV_HEADER.pack(len(self.data) + 2, self.context_id, self.control) + self.data


@dataclass(frozen=True, slots=True)
class PDataTF:
    """P-DATA-TF (PS3.8 9.3.5)."""

    pdu_type: ClassVar[int] = 4

    pdvs: tuple[PDV, ...]

    def encode(self) -> bytes:
        """Return the PDU's bytes."""
        return _encode(4, b"".join(pdv.encode() for pdv in self.pdvs))

    @classmethod
    def decode(cls, body: memoryview) -> PDataTF:
        """Decode the PDU in *body*; the PDVs hold copies of the data."""
        pdvs: list[PDV] = []
        position = 0
        while position < len(body):
            if len(body) - position < PDV_HEADER.size:
                raise InvalidPDU(f"{len(body) - position} bytes remain, a PDV header has 6")
            length, context_id, control = PDV_HEADER.unpack_from(body, position)
            end = position + 4 + length
            if length < 2 or end > len(body):
                raise InvalidPDU(f"PDV length {length} in a P-DATA-TF with {len(body) - position} bytes remaining")
            pdvs.append(PDV(context_id, control, bytes(body[position + 6 : end])))
            position = end
        return cls(tuple(pdvs))


@dataclass(frozen=True, slots=True)
class AReleaseRQ:
    """A-RELEASE-RQ (PS3.8 9.3.6)."""

    pdu_type: ClassVar[int] = 5

    def encode(self) -> bytes:
        """Return the PDU's bytes."""
        return _encode(5, b"\0\0\0\0")

    @classmethod
    def decode(cls, body: memoryview) -> AReleaseRQ:
        """Decode the PDU in *body*."""
        _check_length_4(body, "A-RELEASE-RQ")
        return cls()


@dataclass(frozen=True, slots=True)
class AReleaseRP:
    """A-RELEASE-RP (PS3.8 9.3.7)."""

    pdu_type: ClassVar[int] = 6

    def encode(self) -> bytes:
        """Return the PDU's bytes."""
        return _encode(6, b"\0\0\0\0")

    @classmethod
    def decode(cls, body: memoryview) -> AReleaseRP:
        """Decode the PDU in *body*."""
        _check_length_4(body, "A-RELEASE-RP")
        return cls()


@dataclass(frozen=True, slots=True)
class AAbort:
    """A-ABORT (PS3.8 9.3.8): the source is 0 for the service user, 2 for the service provider."""

    pdu_type: ClassVar[int] = 7

    source: int = 0
    reason: int = 0

    def encode(self) -> bytes:
        """Return the PDU's bytes."""
        return _encode(7, bytes((0, 0, self.source, self.reason)))

    @classmethod
    def decode(cls, body: memoryview) -> AAbort:
        """Decode the PDU in *body*."""
        _, _, source, reason = _check_length_4(body, "A-ABORT")
        return cls(source, reason)

    @property
    def reason_text(self) -> str:
        """The meaning of the reason code."""
        return ABORT_REASONS.get(self.reason, f"unknown reason {self.reason}")


PDU = AAssociateRQ | AAssociateAC | AAssociateRJ | PDataTF | AReleaseRQ | AReleaseRP | AAbort

#: The PDU classes by type. P-DATA-TF is included, although the framing never decodes one as a whole.
PDU_TYPES: dict[
    int,
    type[AAssociateRQ]
    | type[AAssociateAC]
    | type[AAssociateRJ]
    | type[PDataTF]
    | type[AReleaseRQ]
    | type[AReleaseRP]
    | type[AAbort],
] = {
    1: AAssociateRQ,
    2: AAssociateAC,
    3: AAssociateRJ,
    4: PDataTF,
    5: AReleaseRQ,
    6: AReleaseRP,
    7: AAbort,
}


def decode_pdu(pdu_type: int, body: memoryview) -> PDU:
    """
    Decode the PDU of type *pdu_type* in *body*, the bytes after the PDU header.

    :raises InvalidPDU: the type is unknown (reason 1) or the content is malformed (reason 6).
    """
    try:
        cls = PDU_TYPES[pdu_type]
    except KeyError:
        raise InvalidPDU(f"PDU type {pdu_type:#04x} is unknown", 1) from None
    return cls.decode(body)
