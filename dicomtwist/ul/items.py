"""
The items and sub-items of the A-ASSOCIATE PDUs (PS3.8 9.3.2 and 9.3.3, PS3.7 Annex D.3.3).

Each one is a frozen dataclass with an ``encode`` method. :func:`decode_variable_items` and
:func:`decode_user_information` decode them; they check each length against the available bytes before they read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from struct import Struct

from dicomtwist.errors import InvalidPDU

#: The only application context name that DICOM defines (PS3.7 A.2.1).
APPLICATION_CONTEXT_NAME = "1.2.840.10008.3.1.1.1"

#: Presentation context IDs are the odd numbers from 1 to 255 (PS3.8 9.3.2.2), which gives this maximum.
MAX_PRESENTATION_CONTEXTS = 128

#: The longest presentation context or role selection that is remembered with its other form, in bytes, and their number. Most
#: peers propose the same 120 of each again and again; to decode those takes 0.8 ms, and 0.2 ms when they are remembered.
MAX_REMEMBERED_LENGTH = 256
MAX_REMEMBERED = 1024

#: The longest variable field of an A-ASSOCIATE PDU that is remembered as a whole, in bytes, and their number. To decode the one
#: of such a peer takes 0.01 ms then.
MAX_REMEMBERED_FIELD = 32_768
MAX_REMEMBERED_FIELDS = 16

_HEADER = Struct(">BxH")
_U32 = Struct(">L")
_U16 = Struct(">H")
_U16x2 = Struct(">HH")


def encode_item(item_type: int, value: bytes) -> bytes:
    """Return an item: its type, a reserved byte, the length of *value* in 16 bits and *value*."""
    if len(value) > 0xFFFF:
        raise ValueError(f"item {item_type:#04x} is too long: {len(value)} bytes, the maximum is 65535")
    return _HEADER.pack(item_type, len(value)) + value


def encode_text(value: str) -> bytes:
    """Return *value* encoded; UIDs and names in items are not padded (PS3.8 Annex F)."""
    return value.encode("latin-1", "replace")


def decode_text(value: bytes | memoryview) -> str:
    """
    Return *value* as text without the padding that some peers add.

    Latin-1 never fails and preserves each byte, so that a later check can name the error.
    """
    return bytes(value).decode("latin-1").rstrip("\0 ")


def _decode_uid(value: memoryview, tolerated: set[str]) -> str:
    """Return *value* as a UID; add to *tolerated* each deviation from PS3.8 Annex F."""
    text = str(value, "latin-1")
    uid = text.rstrip("\0 ")
    if len(uid) != len(text):
        tolerated.add("UIDs that are padded")
    if not uid.isascii():
        tolerated.add("UIDs that are not ASCII")
    return uid


def _iterate_items(data: memoryview, where: str) -> Iterator[tuple[int, memoryview]]:
    """Yield (item type, value) for each item in *data*; raise :class:`InvalidPDU` for a wrong length."""
    position, end = 0, len(data)
    while position < end:
        if end - position < 4:
            raise InvalidPDU(f"{where}: {end - position} bytes remain, an item header has 4")
        item_type, length = _HEADER.unpack_from(data, position)
        position += 4
        if length > end - position:
            raise InvalidPDU(f"{where}: item {item_type:#04x} of {length} bytes, only {end - position} remain")
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
        Decode the presentation context in *value*, the bytes after the item header.

        :param tolerated: receives a description of each deviation from the standard that is accepted.
        """
        decode = _proposed_context if len(value) <= MAX_REMEMBERED_LENGTH else _proposed_context.__wrapped__
        context, deviations = decode(bytes(value))
        tolerated.update(deviations)
        return context

    @classmethod
    def _decode(cls, value: memoryview, tolerated: set[str]) -> ProposedContext:
        if len(value) < 4:
            raise InvalidPDU(f"presentation context item of {len(value)} bytes")
        abstract_syntax = None
        transfer_syntaxes: list[str] = []
        for item_type, content in _iterate_items(value[4:], "presentation context"):
            if item_type == 0x30:
                abstract_syntax = _decode_uid(content, tolerated)
            elif item_type == 0x40 and (uid := _decode_uid(content, tolerated)):
                transfer_syntaxes.append(uid)
        if not abstract_syntax:
            raise InvalidPDU(f"presentation context {value[0]} has no abstract syntax")
        if not transfer_syntaxes:
            tolerated.add("presentation contexts without a transfer syntax")
        return cls(value[0], abstract_syntax, tuple(transfer_syntaxes))


@lru_cache(MAX_REMEMBERED)
def _proposed_context(value: bytes) -> tuple[ProposedContext, frozenset[str]]:
    """Return the presentation context in *value*, and the deviations from the standard that are accepted."""
    tolerated: set[str] = set()
    return ProposedContext._decode(memoryview(value), tolerated), frozenset(tolerated)


@dataclass(frozen=True, slots=True)
class AnsweredContext:
    """
    :ivar result: 0 acceptance, 1 user rejection, 2 no reason, 3 abstract syntax not supported, 4 transfer syntaxes not
        supported.
    :ivar transfer_syntax: the accepted transfer syntax; not significant unless the result is 0.
    """

    context_id: int
    result: int
    transfer_syntax: str = ""

    def encode(self) -> bytes:
        """Return the item's bytes."""
        remember = len(self.transfer_syntax) <= MAX_REMEMBERED_LENGTH
        encode = _encoded_answer if remember else _encoded_answer.__wrapped__
        return encode(self.context_id, self.result, self.transfer_syntax)

    @classmethod
    def decode(cls, value: memoryview, tolerated: set[str]) -> AnsweredContext:
        """
        Decode the answer in *value*, the bytes after the item header.

        :param tolerated: receives a description of each deviation from the standard that is accepted.
        """
        if len(value) < 4:
            raise InvalidPDU(f"presentation context item of {len(value)} bytes")
        transfer_syntax = ""
        if value[2] == 0:
            # The syntax of a context that was not accepted is not significant, and some peers send garbage in it.
            for item_type, content in _iterate_items(value[4:], "presentation context"):
                if item_type == 0x40:
                    transfer_syntax = _decode_uid(content, tolerated)
        return cls(value[0], value[2], transfer_syntax)


@lru_cache(MAX_REMEMBERED)
def _encoded_answer(context_id: int, result: int, transfer_syntax: str) -> bytes:
    """Return the bytes of an :class:`AnsweredContext`."""
    return encode_item(0x21, bytes((context_id, 0, result, 0)) + encode_item(0x40, encode_text(transfer_syntax)))


@dataclass(frozen=True, slots=True)
class AsyncOperationsWindow:
    """The number of operations that may be outstanding, 0 for any number (type 53H, PS3.7 D.3.3.3)."""

    invoked: int = 1
    performed: int = 1


@dataclass(frozen=True, slots=True)
class RoleSelection:
    """
    The roles that the requestor proposes or the acceptor grants for one SOP Class (type 54H, PS3.7 D.3.3.4).

    In both PDUs *scu_role* and *scp_role* are roles of the requestor of the association.
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
    """The service class and the related general SOP Classes of one SOP Class (type 57H, PS3.7 D.3.3.6)."""

    sop_class_uid: str
    service_class_uid: str
    related_general_sop_classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """
    The identity of the user who requests the association (type 58H, PS3.7 D.3.3.7).

    *identity_type* is 1 username, 2 username and passcode, 3 Kerberos service ticket, 4 SAML assertion, 5 JSON Web
    Token. The fields are secrets and are not part of ``repr``.
    """

    identity_type: int
    primary: bytes = field(default=b"", repr=False)
    secondary: bytes = field(default=b"", repr=False)
    response_requested: bool = False


@dataclass(frozen=True, slots=True)
class UserInformation:
    """
    The user information item (type 50H, PS3.8 9.3.2.3) with all of its sub-items.

    *maximum_length* is in bytes, 0 for no limit, ``None`` if the sub-item is missing.
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
        """
        Return the item's bytes, the sub-items in the order of their types.

        :raises ValueError: a sub-item, or all of them together, are too long.
        """
        parts: list[bytes] = []
        if self.maximum_length is not None:
            parts.append(encode_item(0x51, _U32.pack(self.maximum_length)))
        if self.implementation_class_uid is not None:
            parts.append(encode_item(0x52, encode_text(self.implementation_class_uid)))
        if self.async_operations is not None:
            window = self.async_operations
            parts.append(encode_item(0x53, _U16x2.pack(window.invoked, window.performed)))
        for role in self.roles:
            uid = role.sop_class_uid
            encode = _encoded_role if len(uid) <= MAX_REMEMBERED_LENGTH else _encoded_role.__wrapped__
            parts.append(encode(uid, role.scu_role, role.scp_role))
        if self.implementation_version_name is not None:
            parts.append(encode_item(0x55, encode_text(self.implementation_version_name)))
        for extended in self.sop_class_extended:
            sop_class = _with_length(encode_text(extended.sop_class_uid))
            parts.append(encode_item(0x56, sop_class + extended.information))
        for common in self.sop_class_common_extended:
            related = b"".join(_with_length(encode_text(uid)) for uid in common.related_general_sop_classes)
            uids = _with_length(encode_text(common.sop_class_uid)) + _with_length(encode_text(common.service_class_uid))
            parts.append(encode_item(0x57, uids + _with_length(related)))
        if self.user_identity is not None:
            user = self.user_identity
            head = bytes((user.identity_type, user.response_requested))
            parts.append(encode_item(0x58, head + _with_length(user.primary) + _with_length(user.secondary)))
        if self.user_identity_response is not None:
            parts.append(encode_item(0x59, _with_length(self.user_identity_response)))
        return encode_item(0x50, b"".join(parts))


@lru_cache(MAX_REMEMBERED)
def _encoded_role(sop_class_uid: str, scu_role: bool, scp_role: bool) -> bytes:
    """Return the bytes of the sub-item for a :class:`RoleSelection`."""
    return encode_item(0x54, _with_length(encode_text(sop_class_uid)) + bytes((scu_role, scp_role)))


def _with_length(value: bytes) -> bytes:
    """Return *value* with its length in 16 bits before it."""
    if len(value) > 0xFFFF:
        raise ValueError(f"a field is too long: {len(value)} bytes, the maximum is 65535")
    return _U16.pack(len(value)) + value


#: The names of the sub-items that may occur only once.
_SINGLE = {
    0x51: "maximum length",
    0x52: "implementation class UID",
    0x53: "asynchronous operations window",
    0x55: "implementation version name",
    0x58: "user identity",
    0x59: "response to a user identity",
}


class _FieldReader:
    """Reads the fields of one sub-item in order; checks each length against the remaining bytes."""

    __slots__ = ("_data", "_position", "_where")

    def __init__(self, data: memoryview, where: str) -> None:
        self._data = data
        self._position = 0
        self._where = where

    def take(self, count: int) -> memoryview:
        end = self._position + count
        if end > len(self._data):
            raise InvalidPDU(f"{self._where}: a field of {count} bytes, only {len(self._data) - self._position} remain")
        value = self._data[self._position : end]
        self._position = end
        return value

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def take_with_length(self) -> memoryview:
        return self.take(self.number(2))

    def rest(self) -> memoryview:
        return self.take(len(self._data) - self._position)

    def more(self) -> bool:
        return self._position < len(self._data)


#: The longest implementation version name, in characters (PS3.7 D.3.3.2.3).
_MAX_VERSION_NAME = 16


def decode_user_information(value: memoryview, tolerated: set[str]) -> UserInformation:
    """
    Decode the user information in *value*, the bytes after the item header.

    Unknown sub-items are skipped (PS3.8 9.3.1). If a sub-item that may occur once is repeated, the first one counts.

    :param tolerated: receives a description of each deviation from the standard that is accepted.
    :raises InvalidPDU: a length does not match the available bytes.
    """
    single: dict[int, _FieldReader] = {}
    roles: list[RoleSelection] = []
    extended: list[SOPClassExtended] = []
    common: list[SOPClassCommonExtended] = []
    for item_type, content in _iterate_items(value, "user information"):
        if item_type == 0x54:
            decode = _role_selection if len(content) <= MAX_REMEMBERED_LENGTH else _role_selection.__wrapped__
            role, deviations = decode(bytes(content))
            tolerated.update(deviations)
            roles.append(role)
            continue
        fields = _FieldReader(content, f"sub-item {item_type:#04x}")
        if item_type == 0x56:
            extended.append(SOPClassExtended(_decode_uid(fields.take_with_length(), tolerated), bytes(fields.rest())))
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
        user_identity_response=bytes(single[0x59].take_with_length()) if 0x59 in single else None,
    )


@lru_cache(MAX_REMEMBERED)
def _role_selection(value: bytes) -> tuple[RoleSelection, frozenset[str]]:
    """Return the role selection in *value*, and the deviations from the standard that are accepted."""
    fields, tolerated = _FieldReader(memoryview(value), "sub-item 0x54"), set[str]()
    uid = _decode_uid(fields.take_with_length(), tolerated)
    return RoleSelection(uid, bool(fields.number(1)), bool(fields.number(1))), frozenset(tolerated)


def _decode_common_extended(fields: _FieldReader, tolerated: set[str]) -> SOPClassCommonExtended:
    sop_class_uid = _decode_uid(fields.take_with_length(), tolerated)
    service_class_uid = _decode_uid(fields.take_with_length(), tolerated)
    related = _FieldReader(fields.take_with_length(), "related general SOP classes")
    uids: list[str] = []
    while related.more():
        uids.append(_decode_uid(related.take_with_length(), tolerated))
    return SOPClassCommonExtended(sop_class_uid, service_class_uid, tuple(uids))


def _decode_user_identity(fields: _FieldReader, tolerated: set[str]) -> UserIdentity:
    identity_type = fields.number(1)
    response_requested = bool(fields.number(1))
    primary = bytes(fields.take_with_length())
    # The secondary field belongs to type 2 only, and some peers omit its length for the other types.
    if fields.more():
        secondary = bytes(fields.take_with_length())
    else:
        secondary = b""
        tolerated.add("a user identity without the length of its second field")
    return UserIdentity(identity_type, primary, secondary, response_requested)


@dataclass(frozen=True, slots=True)
class VariableItems:
    """
    The variable field of an A-ASSOCIATE-RQ or -AC.

    :ivar tolerated: a description of each deviation from the standard that was accepted.
    """

    application_context_name: str
    proposed: tuple[ProposedContext, ...]
    answered: tuple[AnsweredContext, ...]
    user_information: UserInformation
    tolerated: set[str]


def decode_variable_items(data: memoryview) -> VariableItems:
    """
    Decode the variable field of an A-ASSOCIATE PDU; unknown items are skipped (PS3.8 9.3.1).

    :raises InvalidPDU: a length is wrong, a context ID is even or repeated, or there are more than 128 contexts.
    """
    if len(data) > MAX_REMEMBERED_FIELD:
        return _decode_variable_items(data)
    key = bytes(data)
    items = _fields.get(key)
    if items is None:
        items = _decode_variable_items(data)
        user = items.user_information
        # Passcodes and tokens do not stay in memory.
        if user.user_identity is not None or user.user_identity_response is not None:
            return items
        if len(_fields) >= MAX_REMEMBERED_FIELDS:
            _fields.clear()
        _fields[key] = items
    return replace(items, tolerated=set(items.tolerated))


#: The remembered fields, with their items.
_fields: dict[bytes, VariableItems] = {}


def _decode_variable_items(data: memoryview) -> VariableItems:
    name = ""
    tolerated: set[str] = set()
    proposed: list[ProposedContext] = []
    answered: list[AnsweredContext] = []
    user_information: UserInformation | None = None
    seen: set[int] = set()
    for item_type, content in _iterate_items(data, "A-ASSOCIATE"):
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
    # Odd IDs without repetition also keep the number of contexts within MAX_PRESENTATION_CONTEXTS.
    if not context_id & 1:
        raise InvalidPDU(f"presentation context ID {context_id} is even")
    if context_id in seen:
        raise InvalidPDU(f"presentation context ID {context_id} is repeated")
    seen.add(context_id)
