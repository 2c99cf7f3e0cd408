"""
The items and sub-items of the A-ASSOCIATE PDUs (PS3.8 9.3.2 and 9.3.3, PS3.7 Annex D.3.3).

Each is a frozen dataclass with ``encode``; decoding goes through :func:`decode_variable_items` and
:func:`decode_user_information`, which check each length against the bytes that are there before reading it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct

from dicomtwist.errors import InvalidPDU

#: The only application context name that DICOM defines (PS3.7 A.2.1).
APPLICATION_CONTEXT_NAME = "1.2.840.10008.3.1.1.1"

#: Presentation context IDs are the odd numbers 1 to 255 (PS3.8 9.3.2.2), hence this many at most.
MAX_PRESENTATION_CONTEXTS = 128

_HEADER = Struct(">BxH")
_U32 = Struct(">L")
_U16 = Struct(">H")
_U16x2 = Struct(">HH")


def encode_item(item_type: int, value: bytes) -> bytes:
    """Return an item: its type, a reserved byte, the length of *value* in 16 bits and *value*."""
    if len(value) > 0xFFFF:
        raise ValueError(f"item {item_type:#04x} would hold {len(value)} bytes, its length field counts 65535 at most")
    return _HEADER.pack(item_type, len(value)) + value


def encode_text(value: str) -> bytes:
    """Return *value* as it stands on the wire; UIDs and names in items are not padded (PS3.8 Annex F)."""
    return value.encode("latin-1", "replace")


def decode_text(value: bytes | memoryview) -> str:
    """
    Return *value* as text without the padding that some peers add.

    Latin-1 never fails and keeps each byte, so that a check further up can name what is wrong with it.
    """
    return bytes(value).decode("latin-1").rstrip("\0 ")


def _decode_uid(value: memoryview, tolerated: set[str]) -> str:
    """Return *value* as a UID; add to *tolerated* what should not be in it (PS3.8 Annex F)."""
    text = str(value, "latin-1")
    uid = text.rstrip("\0 ")
    if len(uid) != len(text):
        tolerated.add("UIDs that are padded")
    if not uid.isascii():
        tolerated.add("UIDs that are not ASCII")
    return uid


def _walk(data: memoryview, where: str) -> Iterator[tuple[int, memoryview]]:
    """Yield (item type, value) for each item in *data*; raise :class:`InvalidPDU` where a length lies."""
    position, end = 0, len(data)
    while position < end:
        if end - position < 4:
            raise InvalidPDU(f"{where}: {end - position} bytes are left, an item header takes 4")
        item_type, length = _HEADER.unpack_from(data, position)
        position += 4
        if length > end - position:
            raise InvalidPDU(f"{where}: item {item_type:#04x} says {length} bytes, {end - position} are left")
        yield item_type, data[position : position + length]
        position += length


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """A presentation context item of an A-ASSOCIATE-RQ (type 20H, PS3.8 9.3.2.2)."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]

    def encode(self) -> bytes:
        """Return the item's bytes."""
        parts = [bytes((self.context_id, 0, 0, 0)), encode_item(0x30, encode_text(self.abstract_syntax))]
        parts += [encode_item(0x40, encode_text(uid)) for uid in self.transfer_syntaxes]
        return encode_item(0x20, b"".join(parts))

    @classmethod
    def decode(cls, value: memoryview, tolerated: set[str]) -> ProposedContext:
        """
        Return the context that *value*, the bytes behind the item header, holds.

        :param tolerated: gets what is not as the standard has it and was taken all the same, in words.
        """
        if len(value) < 4:
            raise InvalidPDU(f"presentation context item of {len(value)} bytes")
        abstract_syntax = None
        transfer_syntaxes: list[str] = []
        for item_type, content in _walk(value[4:], "presentation context"):
            if item_type == 0x30:
                abstract_syntax = _decode_uid(content, tolerated)
            elif item_type == 0x40 and (uid := _decode_uid(content, tolerated)):
                transfer_syntaxes.append(uid)
        if not abstract_syntax:
            raise InvalidPDU(f"presentation context {value[0]} has no abstract syntax")
        if not transfer_syntaxes:
            tolerated.add("presentation contexts without a transfer syntax")
        return cls(value[0], abstract_syntax, tuple(transfer_syntaxes))


@dataclass(frozen=True, slots=True)
class AnsweredContext:
    """
    A presentation context item of an A-ASSOCIATE-AC (type 21H, PS3.8 9.3.3.2).

    *result* is 0 acceptance, 1 user rejection, 2 no reason, 3 abstract syntax not supported, 4 transfer syntaxes
    not supported. The transfer syntax counts only where the result is 0.
    """

    context_id: int
    result: int
    transfer_syntax: str = ""

    def encode(self) -> bytes:
        """Return the item's bytes."""
        return encode_item(
            0x21,
            bytes((self.context_id, 0, self.result, 0)) + encode_item(0x40, encode_text(self.transfer_syntax)),
        )

    @classmethod
    def decode(cls, value: memoryview, tolerated: set[str]) -> AnsweredContext:
        """
        Return the answer that *value*, the bytes behind the item header, holds.

        :param tolerated: gets what is not as the standard has it and was taken all the same, in words.
        """
        if len(value) < 4:
            raise InvalidPDU(f"presentation context item of {len(value)} bytes")
        transfer_syntax = ""
        if value[2] == 0:
            # Of a context that was not accepted the syntax is not significant, and some peers send garbage.
            for item_type, content in _walk(value[4:], "presentation context"):
                if item_type == 0x40:
                    transfer_syntax = _decode_uid(content, tolerated)
        return cls(value[0], value[2], transfer_syntax)


@dataclass(frozen=True, slots=True)
class AsyncOperationsWindow:
    """How many operations may be outstanding, 0 for any number (type 53H, PS3.7 D.3.3.3)."""

    invoked: int = 1
    performed: int = 1


@dataclass(frozen=True, slots=True)
class RoleSelection:
    """
    Which roles the requestor proposes or the acceptor grants for one SOP Class (type 54H, PS3.7 D.3.3.4).

    In both PDUs *scu_role* and *scp_role* speak of the requestor of the association.
    """

    sop_class_uid: str
    scu_role: bool = False
    scp_role: bool = False


@dataclass(frozen=True, slots=True)
class SOPClassExtended:
    """Service-class application information for one SOP Class (type 56H, PS3.7 D.3.3.5)."""

    sop_class_uid: str
    information: bytes = b""


@dataclass(frozen=True, slots=True)
class SOPClassCommonExtended:
    """Service class and related general SOP Classes of one SOP Class (type 57H, PS3.7 D.3.3.6)."""

    sop_class_uid: str
    service_class_uid: str
    related_general_sop_classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """
    Who asks for the association (type 58H, PS3.7 D.3.3.7).

    *identity_type*: 1 username, 2 username and passcode, 3 Kerberos service ticket, 4 SAML assertion, 5 JSON Web
    Token. The fields are secrets and do not show in ``repr``.
    """

    identity_type: int
    primary: bytes = field(default=b"", repr=False)
    secondary: bytes = field(default=b"", repr=False)
    response_requested: bool = False


@dataclass(frozen=True, slots=True)
class UserInformation:
    """
    The user information item (type 50H, PS3.8 9.3.2.3) with all of its sub-items.

    *maximum_length* is in bytes, 0 for no limit, ``None`` where the sub-item is missing.
    """

    maximum_length: int | None = None
    implementation_class_uid: str | None = None
    implementation_version_name: str | None = None
    async_operations: AsyncOperationsWindow | None = None
    roles: tuple[RoleSelection, ...] = ()
    sop_class_extended: tuple[SOPClassExtended, ...] = ()
    sop_class_common_extended: tuple[SOPClassCommonExtended, ...] = ()
    user_identity: UserIdentity | None = None
    user_identity_response: bytes | None = field(default=None, repr=False)

    def encode(self) -> bytes:
        """Return the item's bytes, the sub-items in the order of their types."""
        parts: list[bytes] = []
        if self.maximum_length is not None:
            parts.append(encode_item(0x51, _U32.pack(self.maximum_length)))
        if self.implementation_class_uid is not None:
            parts.append(encode_item(0x52, encode_text(self.implementation_class_uid)))
        if self.async_operations is not None:
            window = self.async_operations
            parts.append(encode_item(0x53, _U16x2.pack(window.invoked, window.performed)))
        for role in self.roles:
            flags = bytes((role.scu_role, role.scp_role))
            parts.append(encode_item(0x54, _counted(encode_text(role.sop_class_uid)) + flags))
        if self.implementation_version_name is not None:
            parts.append(encode_item(0x55, encode_text(self.implementation_version_name)))
        for extended in self.sop_class_extended:
            uid = _counted(encode_text(extended.sop_class_uid))
            parts.append(encode_item(0x56, uid + extended.information))
        for common in self.sop_class_common_extended:
            related = b"".join(_counted(encode_text(uid)) for uid in common.related_general_sop_classes)
            uids = _counted(encode_text(common.sop_class_uid)) + _counted(encode_text(common.service_class_uid))
            parts.append(encode_item(0x57, uids + _counted(related)))
        if self.user_identity is not None:
            user = self.user_identity
            head = bytes((user.identity_type, user.response_requested))
            parts.append(encode_item(0x58, head + _counted(user.primary) + _counted(user.secondary)))
        if self.user_identity_response is not None:
            parts.append(encode_item(0x59, _counted(self.user_identity_response)))
        return encode_item(0x50, b"".join(parts))


def _counted(value: bytes) -> bytes:
    """Return *value* behind its length in 16 bits."""
    if len(value) > 0xFFFF:
        raise ValueError(f"a field of {len(value)} bytes does not fit, 65535 is the most")
    return _U16.pack(len(value)) + value


#: The sub-items that may come once, in words.
_SINGLE = {
    0x51: "maximum length",
    0x52: "implementation class UID",
    0x53: "asynchronous operations window",
    0x55: "implementation version name",
    0x58: "user identity",
    0x59: "response to a user identity",
}


class _Fields:
    """Reads the fields of one sub-item in order, each checked against what is there."""

    __slots__ = ("_data", "_position", "_where")

    def __init__(self, data: memoryview, where: str) -> None:
        self._data = data
        self._position = 0
        self._where = where

    def take(self, count: int) -> memoryview:
        end = self._position + count
        if end > len(self._data):
            raise InvalidPDU(f"{self._where}: a field of {count} bytes, {len(self._data) - self._position} are left")
        value = self._data[self._position : end]
        self._position = end
        return value

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def counted(self) -> memoryview:
        return self.take(self.number(2))

    def rest(self) -> memoryview:
        return self.take(len(self._data) - self._position)

    def more(self) -> bool:
        return self._position < len(self._data)


#: The longest implementation version name, in characters (PS3.7 D.3.3.2.3).
_MAX_VERSION_NAME = 16


def decode_user_information(value: memoryview, tolerated: set[str]) -> UserInformation:
    """
    Return the user information that *value*, the bytes behind the item header, holds.

    Unknown sub-items are skipped (PS3.8 9.3.1); of a repeated single sub-item the first counts.

    :param tolerated: gets what is not as the standard has it and was taken all the same, in words.
    :raises InvalidPDU: a length disagrees with the bytes that are there.
    """
    single: dict[int, _Fields] = {}
    roles: list[RoleSelection] = []
    extended: list[SOPClassExtended] = []
    common: list[SOPClassCommonExtended] = []
    for item_type, content in _walk(value, "user information"):
        fields = _Fields(content, f"sub-item {item_type:#04x}")
        if item_type == 0x54:
            uid = _decode_uid(fields.counted(), tolerated)
            roles.append(RoleSelection(uid, bool(fields.number(1)), bool(fields.number(1))))
        elif item_type == 0x56:
            extended.append(SOPClassExtended(_decode_uid(fields.counted(), tolerated), bytes(fields.rest())))
        elif item_type == 0x57:
            common.append(_decode_common_extended(fields, tolerated))
        elif single.setdefault(item_type, fields) is not fields and item_type in _SINGLE:
            tolerated.add(f"{_SINGLE[item_type]} more than once")

    window = single.get(0x53)
    class_uid = _decode_uid(single[0x52].rest(), tolerated) if 0x52 in single else None
    version_name = decode_text(single[0x55].rest()) if 0x55 in single else None
    for item_type in (0x51, 0x52):
        if item_type not in single:
            tolerated.add(f"no {_SINGLE[item_type]}")
    if version_name is not None and len(version_name) > _MAX_VERSION_NAME:
        tolerated.add(f"an implementation version name of more than {_MAX_VERSION_NAME} characters")
    return UserInformation(
        maximum_length=single[0x51].number(4) if 0x51 in single else None,
        implementation_class_uid=class_uid,
        implementation_version_name=version_name,
        async_operations=AsyncOperationsWindow(window.number(2), window.number(2)) if window else None,
        roles=tuple(roles),
        sop_class_extended=tuple(extended),
        sop_class_common_extended=tuple(common),
        user_identity=_decode_user_identity(single[0x58], tolerated) if 0x58 in single else None,
        user_identity_response=bytes(single[0x59].counted()) if 0x59 in single else None,
    )


def _decode_common_extended(fields: _Fields, tolerated: set[str]) -> SOPClassCommonExtended:
    sop_class_uid = _decode_uid(fields.counted(), tolerated)
    service_class_uid = _decode_uid(fields.counted(), tolerated)
    related = _Fields(fields.counted(), "related general SOP classes")
    uids: list[str] = []
    while related.more():
        uids.append(_decode_uid(related.counted(), tolerated))
    return SOPClassCommonExtended(sop_class_uid, service_class_uid, tuple(uids))


def _decode_user_identity(fields: _Fields, tolerated: set[str]) -> UserIdentity:
    identity_type = fields.number(1)
    response_requested = bool(fields.number(1))
    primary = bytes(fields.counted())
    # The secondary field is there for type 2 only, and some peers leave its length out for the other types.
    if fields.more():
        secondary = bytes(fields.counted())
    else:
        secondary = b""
        tolerated.add("a user identity without the length of its second field")
    return UserIdentity(identity_type, primary, secondary, response_requested)


@dataclass(frozen=True, slots=True)
class VariableItems:
    """
    What stands in the variable field of an A-ASSOCIATE-RQ or -AC; and what is not as the standard has it there and was
    taken all the same, in words.
    """

    application_context_name: str
    proposed: tuple[ProposedContext, ...]
    answered: tuple[AnsweredContext, ...]
    user_information: UserInformation
    tolerated: set[str]


def decode_variable_items(data: memoryview) -> VariableItems:
    """
    Return the items of an A-ASSOCIATE PDU's variable field; unknown ones are skipped (PS3.8 9.3.1).

    :raises InvalidPDU: a length lies, a context ID is even or repeated, or there are more than 128 contexts.
    """
    name = ""
    tolerated: set[str] = set()
    proposed: list[ProposedContext] = []
    answered: list[AnsweredContext] = []
    user_information: UserInformation | None = None
    seen: set[int] = set()
    for item_type, content in _walk(data, "A-ASSOCIATE"):
        if item_type == 0x10:
            name = _decode_uid(content, tolerated)
        elif item_type == 0x20:
            offer = ProposedContext.decode(content, tolerated)
            _check_context_id(offer.context_id, seen)
            proposed.append(offer)
        elif item_type == 0x21:
            answer = AnsweredContext.decode(content, tolerated)
            _check_context_id(answer.context_id, seen)
            answered.append(answer)
        elif item_type == 0x50 and user_information is None:
            user_information = decode_user_information(content, tolerated)
        elif item_type == 0x50:
            tolerated.add("user information more than once")
    if user_information is None:
        user_information = UserInformation()
        tolerated.add("no user information")
    return VariableItems(name, tuple(proposed), tuple(answered), user_information, tolerated)


def _check_context_id(context_id: int, seen: set[int]) -> None:
    # Odd and unrepeated also means that no more than MAX_PRESENTATION_CONTEXTS can come.
    if not context_id & 1:
        raise InvalidPDU(f"presentation context ID {context_id} is even")
    if context_id in seen:
        raise InvalidPDU(f"presentation context ID {context_id} is repeated")
    seen.add(context_id)
