"""
The messages of the eleven DIMSE services as dataclasses (PS3.7 9.3 and 10.3).

A message is its command set. :attr:`Message.has_dataset` says whether a data set follows; the data set itself is
transferred separately, as fragments. The attributes are the standard's keywords in snake_case, in the order of their
elements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from itertools import groupby
from operator import attrgetter
from struct import Struct, error
from typing import Any, ClassVar, Final, NoReturn, cast

from dicomtwist.dimse.command import (
    ENCODERS,
    KEYWORDS,
    Value,
    decode_command,
    encode_group_length,
    number_header,
)
from dicomtwist.errors import InvalidMessage

#: Command Data Set Type of a message without a data set; any other value means that one follows (PS3.7 E.1).
NO_DATASET: Final = 0x0101
_WITH_DATASET: Final = 0x0001

#: Priority (0000,0700) (PS3.7 E.1).
MEDIUM, HIGH, LOW = 0, 1, 2


#: The values of mandatory elements that a peer may omit all the same.
_DEFAULTS: Final[dict[str, int]] = {"priority": MEDIUM, "command_data_set_type": NO_DATASET}


@dataclass(slots=True, kw_only=True)
class Message:
    """
    The base class of all messages.

    Each element is also readable by its keyword in the standard (``AffectedSOPInstanceUID``).

    :ivar has_dataset: whether a data set follows.
    :ivar tolerated: after decoding, a description of each deviation from the standard that was accepted.
    """

    COMMAND_FIELD: ClassVar[int] = 0
    #: The name of the message, such as ``"C-STORE-RQ"``.
    NAME: ClassVar[str] = ""
    #: The DIMSE service of the message, such as ``"C-STORE"``.
    SERVICE: ClassVar[str] = ""
    #: The attributes without which the message cannot be acted on.
    REQUIRED: ClassVar[tuple[str, ...]] = ()

    has_dataset: bool = False
    tolerated: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)

    def encode(self) -> bytes:
        """
        Return the encoded command set (PS3.7 6.3.1).

        :raises ValueError: a number does not fit into 16 bits, or a value is of a type that its element cannot hold.
        """
        raise TypeError(
            f"{type(self).__name__} is not a message of PS3.7"
        )  # each message has a method of its own, see below


@dataclass(slots=True, kw_only=True)
class Request(Message):
    """The base class of requests; the association that sends the request sets *message_id*."""

    message_id: int = 0


@dataclass(slots=True, kw_only=True)
class Response(Message):
    """The base class of responses (PS3.7 Annex C has the statuses and the fields that accompany them)."""

    message_id_being_responded_to: int = 0
    status: int = 0
    offending_element: tuple[int, ...] | None = None
    error_comment: str | None = None
    error_id: int | None = None


@dataclass(slots=True, kw_only=True)
class CEchoRQ(Request):
    """C-ECHO-RQ (PS3.7 9.3.5.1)."""

    COMMAND_FIELD: ClassVar[int] = 0x0030
    affected_sop_class_uid: str = "1.2.840.10008.1.1"


@dataclass(slots=True, kw_only=True)
class CEchoRSP(Response):
    """C-ECHO-RSP (PS3.7 9.3.5.2)."""

    COMMAND_FIELD: ClassVar[int] = 0x8030
    affected_sop_class_uid: str | None = None


@dataclass(slots=True, kw_only=True)
class CStoreRQ(Request):
    """C-STORE-RQ (PS3.7 9.3.1.1)."""

    COMMAND_FIELD: ClassVar[int] = 0x0001
    REQUIRED: ClassVar[tuple[str, ...]] = ("affected_sop_class_uid", "affected_sop_instance_uid")
    affected_sop_class_uid: str = ""
    affected_sop_instance_uid: str = ""
    priority: int = MEDIUM
    move_originator_application_entity_title: str | None = None
    move_originator_message_id: int | None = None


@dataclass(slots=True, kw_only=True)
class CStoreRSP(Response):
    """C-STORE-RSP (PS3.7 9.3.1.2)."""

    COMMAND_FIELD: ClassVar[int] = 0x8001
    affected_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None


@dataclass(slots=True, kw_only=True)
class CFindRQ(Request):
    """C-FIND-RQ (PS3.7 9.3.2.1)."""

    COMMAND_FIELD: ClassVar[int] = 0x0020
    REQUIRED: ClassVar[tuple[str, ...]] = ("affected_sop_class_uid",)
    affected_sop_class_uid: str = ""
    priority: int = MEDIUM


@dataclass(slots=True, kw_only=True)
class CFindRSP(Response):
    """C-FIND-RSP (PS3.7 9.3.2.2)."""

    COMMAND_FIELD: ClassVar[int] = 0x8020
    affected_sop_class_uid: str | None = None


@dataclass(slots=True, kw_only=True)
class _RetrieveResponse(Response):
    """The base class of C-GET and C-MOVE responses, which carry the counts of sub-operations."""

    affected_sop_class_uid: str | None = None
    number_of_remaining_suboperations: int | None = None
    number_of_completed_suboperations: int | None = None
    number_of_failed_suboperations: int | None = None
    number_of_warning_suboperations: int | None = None


@dataclass(slots=True, kw_only=True)
class CGetRQ(Request):
    """C-GET-RQ (PS3.7 9.3.3.1)."""

    COMMAND_FIELD: ClassVar[int] = 0x0010
    REQUIRED: ClassVar[tuple[str, ...]] = ("affected_sop_class_uid",)
    affected_sop_class_uid: str = ""
    priority: int = MEDIUM


@dataclass(slots=True, kw_only=True)
class CGetRSP(_RetrieveResponse):
    """C-GET-RSP (PS3.7 9.3.3.2)."""

    COMMAND_FIELD: ClassVar[int] = 0x8010


@dataclass(slots=True, kw_only=True)
class CMoveRQ(Request):
    """C-MOVE-RQ (PS3.7 9.3.4.1)."""

    COMMAND_FIELD: ClassVar[int] = 0x0021
    REQUIRED: ClassVar[tuple[str, ...]] = ("affected_sop_class_uid", "move_destination")
    affected_sop_class_uid: str = ""
    priority: int = MEDIUM
    move_destination: str = ""


@dataclass(slots=True, kw_only=True)
class CMoveRSP(_RetrieveResponse):
    """C-MOVE-RSP (PS3.7 9.3.4.2)."""

    COMMAND_FIELD: ClassVar[int] = 0x8021


@dataclass(slots=True, kw_only=True)
class CCancelRQ(Message):
    """C-CANCEL-RQ (PS3.7 9.3.2.3). It has no message ID of its own and no response."""

    COMMAND_FIELD: ClassVar[int] = 0x0FFF
    REQUIRED: ClassVar[tuple[str, ...]] = ("message_id_being_responded_to",)
    message_id_being_responded_to: int = 0


@dataclass(slots=True, kw_only=True)
class NEventReportRQ(Request):
    """N-EVENT-REPORT-RQ (PS3.7 10.3.1.1)."""

    COMMAND_FIELD: ClassVar[int] = 0x0100
    REQUIRED: ClassVar[tuple[str, ...]] = (
        "affected_sop_class_uid",
        "affected_sop_instance_uid",
        "event_type_id",
    )
    affected_sop_class_uid: str = ""
    affected_sop_instance_uid: str = ""
    event_type_id: int = 0


@dataclass(slots=True, kw_only=True)
class NEventReportRSP(Response):
    """N-EVENT-REPORT-RSP (PS3.7 10.3.1.2)."""

    COMMAND_FIELD: ClassVar[int] = 0x8100
    affected_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None
    event_type_id: int | None = None


@dataclass(slots=True, kw_only=True)
class NGetRQ(Request):
    """N-GET-RQ (PS3.7 10.3.2.1)."""

    COMMAND_FIELD: ClassVar[int] = 0x0110
    REQUIRED: ClassVar[tuple[str, ...]] = ("requested_sop_class_uid", "requested_sop_instance_uid")
    requested_sop_class_uid: str = ""
    requested_sop_instance_uid: str = ""
    attribute_identifier_list: tuple[int, ...] | None = None


@dataclass(slots=True, kw_only=True)
class NGetRSP(Response):
    """
    N-GET-RSP (PS3.7 10.3.2.2). The list holds the attributes that the status is about (Annex C), as in the classes below.
    """

    COMMAND_FIELD: ClassVar[int] = 0x8110
    affected_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None
    attribute_identifier_list: tuple[int, ...] | None = None


@dataclass(slots=True, kw_only=True)
class NSetRQ(Request):
    """N-SET-RQ (PS3.7 10.3.3.1)."""

    COMMAND_FIELD: ClassVar[int] = 0x0120
    REQUIRED: ClassVar[tuple[str, ...]] = ("requested_sop_class_uid", "requested_sop_instance_uid")
    requested_sop_class_uid: str = ""
    requested_sop_instance_uid: str = ""


@dataclass(slots=True, kw_only=True)
class NSetRSP(Response):
    """N-SET-RSP (PS3.7 10.3.3.2)."""

    COMMAND_FIELD: ClassVar[int] = 0x8120
    affected_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None
    attribute_identifier_list: tuple[int, ...] | None = None


@dataclass(slots=True, kw_only=True)
class NActionRQ(Request):
    """N-ACTION-RQ (PS3.7 10.3.4.1)."""

    COMMAND_FIELD: ClassVar[int] = 0x0130
    REQUIRED: ClassVar[tuple[str, ...]] = (
        "requested_sop_class_uid",
        "requested_sop_instance_uid",
        "action_type_id",
    )
    requested_sop_class_uid: str = ""
    requested_sop_instance_uid: str = ""
    action_type_id: int = 0


@dataclass(slots=True, kw_only=True)
class NActionRSP(Response):
    """N-ACTION-RSP (PS3.7 10.3.4.2)."""

    COMMAND_FIELD: ClassVar[int] = 0x8130
    affected_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None
    action_type_id: int | None = None


@dataclass(slots=True, kw_only=True)
class NCreateRQ(Request):
    """N-CREATE-RQ (PS3.7 10.3.5.1); without an instance UID, the performer assigns one."""

    COMMAND_FIELD: ClassVar[int] = 0x0140
    REQUIRED: ClassVar[tuple[str, ...]] = ("affected_sop_class_uid",)
    affected_sop_class_uid: str = ""
    affected_sop_instance_uid: str | None = None


@dataclass(slots=True, kw_only=True)
class NCreateRSP(Response):
    """N-CREATE-RSP (PS3.7 10.3.5.2)."""

    COMMAND_FIELD: ClassVar[int] = 0x8140
    affected_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None
    attribute_identifier_list: tuple[int, ...] | None = None


@dataclass(slots=True, kw_only=True)
class NDeleteRQ(Request):
    """N-DELETE-RQ (PS3.7 10.3.6.1)."""

    COMMAND_FIELD: ClassVar[int] = 0x0150
    REQUIRED: ClassVar[tuple[str, ...]] = ("requested_sop_class_uid", "requested_sop_instance_uid")
    requested_sop_class_uid: str = ""
    requested_sop_instance_uid: str = ""


@dataclass(slots=True, kw_only=True)
class NDeleteRSP(Response):
    """N-DELETE-RSP (PS3.7 10.3.6.2)."""

    COMMAND_FIELD: ClassVar[int] = 0x8150
    affected_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None


_CLASSES: Final[tuple[type[Message], ...]] = (
    CEchoRQ, CEchoRSP, CStoreRQ, CStoreRSP, CFindRQ, CFindRSP, CGetRQ, CGetRSP, CMoveRQ, CMoveRSP, CCancelRQ,
    NEventReportRQ, NEventReportRSP, NGetRQ, NGetRSP, NSetRQ, NSetRSP, NActionRQ, NActionRSP, NCreateRQ, NCreateRSP,
    NDeleteRQ, NDeleteRSP,
)  # fmt: skip

_WORDS: Final = {"sop": "SOP", "uid": "UID", "id": "ID"}


def _standard_keyword(attribute: str) -> str:
    """Return the name of an element in the spelling of PS3.7 E.1, such as ``AffectedSOPInstanceUID``."""
    return "".join(_WORDS.get(word, word.capitalize()) for word in attribute.split("_"))


# The elements can be read by their keywords in the standard as well; a type checker sees the names in snake_case only. A
# __getattr__ would do it in a line, but CPython caches the attribute lookups of no class that has one: each access to an
# attribute of a message would take three times as long.
for _class in _CLASSES:
    for _field in fields(_class):
        if _field.name in KEYWORDS:
            setattr(_class, _standard_keyword(_field.name), property(attrgetter(_field.name)))


def _elsewhere(name: str, place: str) -> property:
    """Return a property that a class does not have: its AttributeError says where the value is."""

    def read(message: Message) -> NoReturn:
        raise AttributeError(f"{type(message).__name__} is a command set without {name}: {place}")

    return property(read)


#: The data sets of requests by their names in the standard. A message has none; the events of handlers have them.
_DATA_SETS: Final[dict[type[Message], tuple[str, str]]] = {
    CStoreRQ: (
        "DataSet",
        "event.dataset is the decoded data set, event.encoded_dataset(include_meta=False) its bytes, and"
        " event.encoded_dataset() a whole file of them, with preamble and File Meta Information",
    ),
    **dict.fromkeys((CFindRQ, CGetRQ, CMoveRQ), ("Identifier", "event.identifier is the decoded identifier")),
    NCreateRQ: ("AttributeList", "event.attribute_list is the decoded attribute list"),
    NSetRQ: ("ModificationList", "event.modification_list is the decoded modification list"),
    NActionRQ: ("ActionInformation", "event.action_information is the decoded action information"),
    NEventReportRQ: ("EventInformation", "event.event_information is the decoded event information"),
}
for _class, (_name, _place) in _DATA_SETS.items():
    setattr(_class, _name, _elsewhere(_name, _place))

#: The message classes by Command Field.
MESSAGES: Final[dict[int, type[Message]]] = {cls.COMMAND_FIELD: cls for cls in _CLASSES}

#: The response class of each request class.
RESPONSES: Final[dict[type[Message], type[Response]]] = {
    cls: cast("type[Response]", MESSAGES[cls.COMMAND_FIELD | 0x8000]) for cls in _CLASSES if issubclass(cls, Request)
}


_NAMES: Final = {
    "CEcho": "C-ECHO", "CStore": "C-STORE", "CFind": "C-FIND", "CGet": "C-GET", "CMove": "C-MOVE",
    "CCancel": "C-CANCEL", "NEventReport": "N-EVENT-REPORT", "NGet": "N-GET", "NSet": "N-SET",
    "NAction": "N-ACTION", "NCreate": "N-CREATE", "NDelete": "N-DELETE",
}  # fmt: skip

for _class in _CLASSES:
    _class.SERVICE = _NAMES[_class.__name__.removesuffix("RQ").removesuffix("RSP")]
    _class.NAME = _class.SERVICE + ("-RSP" if _class.__name__.endswith("RSP") else "-RQ")


# Each message passes through encode and decode once, so both functions are generated for each class, as dataclasses
# generates __init__: a loop over the fields takes twice as long.


def _compile(signature: str, lines: list[str], names: dict[str, Any]) -> Any:
    exec("\n    ".join([f"def function({signature}):", *lines]), names)
    return names["function"]


#: The fields of a message that are not elements of its command set.
_NOT_ELEMENTS: Final = ("has_dataset", "tolerated")


def _write_encoder(cls: type[Message]) -> Callable[[Message], bytes]:
    """Return :meth:`Message.encode` of *cls*. It packs mandatory numbers together and all other elements one by one."""
    sources = {
        element.name: (f"self.{element.name}", element.default is None)
        for element in fields(cls)
        if element.name not in _NOT_ELEMENTS
    }
    sources["command_field"] = (str(cls.COMMAND_FIELD), False)
    sources["command_data_set_type"] = (f"{_WITH_DATASET} if self.has_dataset else {NO_DATASET}", False)
    elements = sorted((KEYWORDS[keyword], keyword, *source) for keyword, source in sources.items())

    names: dict[str, Any] = {"failed": _encoding_failed, "group_length": encode_group_length, "join": b"".join}
    names["expected"] = (error, TypeError, AttributeError)
    parts: list[str] = []
    for is_run, group in groupby(elements, lambda element: element[0][1] == "US" and not element[3]):
        if is_run:
            run = [f"{number_header(keyword)}, {source}" for _, keyword, source, _ in group]
            pack = f"pack_{len(run)}"
            names[pack] = Struct("<" + "QH" * len(run)).pack
            parts.append(f"{pack}({', '.join(run)})")
            continue
        for _, keyword, source, optional in group:
            names[f"encode_{keyword}"] = ENCODERS[keyword]
            skip = f"b'' if {source} is None else " if optional else ""
            parts.append(f"{skip}encode_{keyword}({source})")
    lines = [
        "try:",
        f"    body = join(({', '.join(parts)},))",
        "    return group_length(0, 4, len(body)) + body",
        "except expected as reason:",
        "    raise failed(self, reason) from reason",
    ]
    return cast("Callable[[Message], bytes]", _compile("self", lines, names))


def _encoding_failed(message: Message, reason: Exception) -> ValueError:
    return ValueError(f"{message.NAME} cannot be encoded: {reason}")


def _write_maker(cls: type[Message]) -> Callable[[dict[str, Value]], Message]:
    """Return a function that builds a *cls* from decoded elements; its ``KeyError`` names a missing element."""
    needed = {"message_id"} if issubclass(cls, Request) else {"message_id_being_responded_to"}
    needed.update(_DEFAULTS)
    if issubclass(cls, Response):
        needed.add("status")
    lines = [
        "self = new(cls)",
        f"self.has_dataset = values['command_data_set_type'] != {NO_DATASET}",
        "self.tolerated = ()",
    ]
    for element in fields(cls):
        name = element.name
        if name in needed:
            lines.append(f"self.{name} = values['{name}']")
        elif name not in _NOT_ELEMENTS:
            lines.append(f"self.{name} = values.get('{name}', {element.default!r})")
    names = {"new": object.__new__, "cls": cls}
    return cast("Callable[[dict[str, Value]], Message]", _compile("values", [*lines, "return self"], names))


def _write_responder(cls: type[Message]) -> Callable[[Request, int], Response]:
    """Return a function that builds the response to a *cls* from it and a status, see :func:`make_response`."""
    asked = {field.name for field in fields(cls)}
    response = RESPONSES[cls]
    sources = {"message_id_being_responded_to": "request.message_id", "status": "status"}
    for suffix in ("_sop_class_uid", "_sop_instance_uid"):
        for name in ("affected" + suffix, "requested" + suffix):
            if name in asked:
                sources["affected" + suffix] = f"request.{name} or None"
    lines = ["self = new(cls)"]
    lines += [f"self.{item.name} = {sources.get(item.name, repr(item.default))}" for item in fields(response)]
    names = {"new": object.__new__, "cls": response}
    return cast("Callable[[Request, int], Response]", _compile("request, status", [*lines, "return self"], names))


_RESPONDERS: Final = {cls: _write_responder(cls) for cls in RESPONSES}


def make_response(request: Request, status: int) -> Response:
    """Return the response to *request*, with the attributes that it repeats (PS3.7 9.3, 10.3)."""
    return _RESPONDERS[type(request)](request, status)


for _class in _CLASSES:
    _class.encode = _write_encoder(_class)  # type: ignore[assignment, method-assign]

_MAKE: Final[dict[Value, Callable[[dict[str, Value]], Message]]] = {
    cls.COMMAND_FIELD: _write_maker(cls) for cls in _CLASSES
}


def decode_message(data: bytes) -> Message:
    """
    Return the message with the command set *data*.

    Elements that do not belong to the message are ignored. A response may lack optional elements; only the elements that
    are needed to act on a message are required.

    :raises InvalidMessage: *data* is malformed, has an unknown Command Field, or lacks a required element.
    """
    tolerated: list[str] = []
    values = decode_command(data, tolerated)
    try:
        command_field = values["command_field"]
    except KeyError:
        raise InvalidMessage("a command set without Command Field") from None
    try:
        make = _MAKE[command_field]
    except KeyError:
        raise InvalidMessage(f"Command Field {command_field:#06x} is unknown") from None
    while True:
        try:
            message = make(values)
        except KeyError as error:
            (missing,) = error.args
            without = f"{MESSAGES[cast('int', command_field)].NAME} without {missing}"
            if missing not in _DEFAULTS:
                raise InvalidMessage(without) from None
            tolerated.append(without)
            values[missing] = _DEFAULTS[missing]
            continue
        if tolerated:
            message.tolerated = tuple(dict.fromkeys(tolerated))
        return message
