"""
DIMSE status codes: their classes and meanings (PS3.7 Annex C, and PS3.4 for each service class).

The meanings are in :mod:`dicomtwist.dimse.status_tables` and are looked up on demand: each response has a
:class:`Status`, and few of them are printed.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, ClassVar, Final, NamedTuple

from dicomtwist.dimse.status_tables import (
    ERROR_IDS,
    FAILURE_REASONS,
    GENERAL,
    TABLES,
    USUAL_SERVICE_CLASS,
    Row,
    StatusTable,
)

SUCCESS: Final = 0x0000
CANCEL: Final = 0xFE00
PENDING: Final = 0xFF00
#: Pending; some optional keys were not supported for this match (PS3.4 C.4.1.1.4).
PENDING_WARNING: Final = 0xFF01
NO_SUCH_ATTRIBUTE: Final = 0x0105
INVALID_ATTRIBUTE_VALUE: Final = 0x0106
ATTRIBUTE_LIST_ERROR: Final = 0x0107
PROCESSING_FAILURE: Final = 0x0110
DUPLICATE_SOP_INSTANCE: Final = 0x0111
NO_SUCH_SOP_INSTANCE: Final = 0x0112
NO_SUCH_EVENT_TYPE: Final = 0x0113
NO_SUCH_ARGUMENT: Final = 0x0114
INVALID_ARGUMENT_VALUE: Final = 0x0115
ATTRIBUTE_VALUE_OUT_OF_RANGE: Final = 0x0116
INVALID_SOP_INSTANCE: Final = 0x0117
NO_SUCH_SOP_CLASS: Final = 0x0118
CLASS_INSTANCE_CONFLICT: Final = 0x0119
MISSING_ATTRIBUTE: Final = 0x0120
MISSING_ATTRIBUTE_VALUE: Final = 0x0121
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
NO_SUCH_ACTION: Final = 0x0123
NOT_AUTHORISED: Final = 0x0124
DUPLICATE_INVOCATION: Final = 0x0210
UNRECOGNISED_OPERATION: Final = 0x0211
MISTYPED_ARGUMENT: Final = 0x0212
RESOURCE_LIMITATION: Final = 0x0213
#: C-STORE (PS3.4 B.2.3).
OUT_OF_RESOURCES: Final = 0xA700
DATASET_MISMATCH: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000
#: C-MOVE and C-GET (PS3.4 C.4.2.1.5).
CANNOT_COUNT_MATCHES: Final = 0xA701
CANNOT_PERFORM_SUBOPERATIONS: Final = 0xA702
MOVE_DESTINATION_UNKNOWN: Final = 0xA801
SUBOPERATIONS_FAILED: Final = 0xB000
#: Relevant Patient Information Query (PS3.4 Q.2.1.1.4).
MORE_THAN_ONE_MATCH: Final = 0xC100

#: The statuses for missing handlers and handlers that raise. They are those of pynetdicom, so that its users find equal
#: numbers.
STORE_HANDLER_FAILED: Final = 0xC211
FIND_HANDLER_FAILED: Final = 0xC311
FIND_ENCODING_FAILED: Final = 0xC312
GET_HANDLER_FAILED: Final = 0xC411
GET_NUMBER_INVALID: Final = 0xC413
MOVE_HANDLER_FAILED: Final = 0xC511
MOVE_NUMBER_INVALID: Final = 0xC513
MOVE_DESTINATION_FAILED: Final = 0xC514
MOVE_DESTINATION_INVALID: Final = 0xC515
ECHO_HANDLER_FAILED: Final = 0xC001


class StatusCategory(StrEnum):
    """The status classes of PS3.7 Annex C; each one equals its name as a ``str``."""

    SUCCESS = "Success"
    WARNING = "Warning"
    FAILURE = "Failure"
    CANCEL = "Cancel"
    PENDING = "Pending"


def category(code: int) -> StatusCategory:
    """Return the class of the status *code* (PS3.7 Annex C)."""
    if code == 0:
        return StatusCategory.SUCCESS
    if code in (PENDING, PENDING_WARNING):
        return StatusCategory.PENDING
    if code == CANCEL:
        return StatusCategory.CANCEL
    if code in (0x0001, 0x0107, 0x0116) or 0xB000 <= code <= 0xBFFF:
        return StatusCategory.WARNING
    return StatusCategory.FAILURE


class _Meanings(NamedTuple):
    """The meanings of one service class."""

    by_service: dict[str, tuple[Row, ...]]
    exact: dict[int, str]  # for any service
    ranges: tuple[Row, ...]


def _meanings_of(service_class: str) -> _Meanings:
    tables = status_tables(service_class)
    rows = [row for table in tables for row in table.rows]
    return _Meanings(
        {table.service: table.rows for table in tables},
        {first: words for first, last, words in rows if first == last},
        tuple(row for row in rows if row[0] != row[1]),
    )


def status_tables(service_class: str = "", service: str = "") -> tuple[StatusTable, ...]:
    """
    Return the tables of status codes that PS3.4 defines in addition to the general ones.

    :param service_class: the name of a service class, such as ``"Print Management"``; by default all.
    :param service: the DIMSE service, such as ``"N-ACTION"``; by default all.
    """
    return tuple(
        table for table in TABLES if service_class in ("", table.service_class) and service in ("", table.service)
    )


_MEANINGS: Final = {name: _meanings_of(name) for name in {table.service_class for table in TABLES}}


def _unknown_service_class(sop_class: str) -> str:
    return ""


_find_service_class: Callable[[str], str] = _unknown_service_class


def use_service_classes(find: Callable[[str], str]) -> None:
    """
    Set the function that maps a SOP Class UID to the name of its service class.

    The DIMSE room does not know SOP Classes. :mod:`dicomtwist.sop_class` does, and calls this function on import.
    """
    global _find_service_class
    _find_service_class = find


def service_class_of(sop_class: str) -> str:
    """Return the name of the service class of *sop_class*, which is a UID or such a name; ``""`` if it is not known."""
    return sop_class if sop_class in _MEANINGS else str(_find_service_class(sop_class))


def meaning(code: int, service: str = "", sop_class: str = "", error_id: int | None = None) -> str:
    """
    Return the meaning of the status *code*.

    The meaning of a code depends on the service class: 0xC100 of a query is *More than one match found* for Relevant
    Patient Information and *Unable to process* elsewhere. So pass all that you know.

    :param service: the DIMSE service, such as ``"C-STORE"``. If the service class is not known, the C services are taken
        to belong to Storage or Query/Retrieve.
    :param sop_class: the UID of the SOP Class, or the name of its service class, such as ``"Print Management"``.
    :param error_id: Error ID (0000,0903) of the response.
    :returns: the meaning in PS3.4; otherwise that in PS3.7 Annex C; otherwise only the status class.
    """
    service_class = service_class_of(sop_class) if sop_class else ""
    if error_id is not None:
        words = ERROR_IDS.get((service_class, code, error_id))
        if words:
            return words
    return (
        _meaning_within(service_class, code, service)
        or _meaning_within(USUAL_SERVICE_CLASS.get(service, ""), code, service)
        or GENERAL.get(code)
        or category(code).value
    )


def _meaning_within(service_class: str, code: int, service: str) -> str | None:
    known = _MEANINGS.get(service_class)
    if known is None:
        return None
    rows = known.by_service.get(service, () if service else known.ranges)
    if not service and code in known.exact:
        return known.exact[code]
    for first, last, words in rows:
        if first <= code <= last:
            return words
    # A code has one meaning in a service class, and devices send it with services that it is not defined for.
    return known.exact.get(code) if code not in GENERAL else None


def failure_reason(code: int) -> str:
    """
    Return the meaning of a Failure Reason (0008,1197): why a SOP Instance was not stored, committed or sent.

    :param code: the reason; most are status codes, including those of C-STORE (PS3.3 C.14.1.1).
    """
    return FAILURE_REASONS.get(code) or meaning(code, "C-STORE")


def code_to_category(code: int) -> StatusCategory:
    """
    Return the class of the status *code*, which equals the ``str`` of its name, such as ``"Failure"``.

    :raises ValueError: *code* is not a number of 16 bits.
    """
    return category(_checked(code))


def code_to_status(code: int, service: str = "", sop_class: str = "") -> Status:
    """
    Return *code* as a :class:`Status`, the type that operations return.

    :param service: see :func:`meaning`.
    :param sop_class: see :func:`meaning`.
    :raises ValueError: *code* is not a number of 16 bits.
    """
    return Status(_checked(code), service, sop_class=sop_class)


def _checked(code: int) -> int:
    if not isinstance(code, int) or not 0 <= code <= 0xFFFF:
        raise ValueError(f"a status must be a number of 16 bits, not {code!r}")
    return code


#: The elements of a response by their keywords, as attributes of a status.
_ELEMENTS: Final = {
    "ErrorComment": "error_comment",
    "ErrorID": "error_id",
    "OffendingElement": "offending_element",
    "AttributeIdentifierList": "attribute_identifier_list",
    "AffectedSOPInstanceUID": "affected_sop_instance_uid",
    "NumberOfRemainingSuboperations": "number_of_remaining_suboperations",
    "NumberOfCompletedSuboperations": "number_of_completed_suboperations",
    "NumberOfFailedSuboperations": "number_of_failed_suboperations",
    "NumberOfWarningSuboperations": "number_of_warning_suboperations",
}


def _element(keyword: str) -> property:
    def read(status: Status) -> Any:
        value = status.get(keyword)
        if value is None:
            raise AttributeError(f"the response with the status {status} has no {keyword}")
        return value

    return property(read)


class Status(int):
    """
    The status of an operation: the number, with the other fields of the response that explain it.

    It compares and formats as a number (``status == 0x0000``, ``f"{status:04X}"``), but is always true, because a response
    was received; test :attr:`is_success`. (The status in pynetdicom is a data set, which is true for that reason as well.)

    :ivar service: the DIMSE service of the response.
    :ivar error_comment: Error Comment (0000,0902), or ``None``.
    :ivar offending_element: the tags of (0000,0901), or ``None``.
    :ivar error_id: Error ID (0000,0903), or ``None``.
    :ivar sop_class: the UID of the SOP Class of the operation, or the name of its service class; ``""`` if it is not known.
    :ivar attribute_identifier_list: the tags of (0000,1005), or ``None``: for N-GET, N-SET and N-CREATE, the attributes
        that the status is about.
    :ivar affected_sop_instance_uid: the SOP Instance of the operation, for N-CREATE the one that was created; ``None`` if
        it is not known, and for the C services.
    :ivar number_of_remaining_suboperations: (0000,1020) of a response to C-GET or C-MOVE, or ``None``; likewise
        ``..._completed_...``, ``..._failed_...`` and ``..._warning_...``.

    Scripts for pynetdicom find the elements of the response by their keywords as well: ``status.ErrorComment``,
    ``"ErrorComment" in status``, ``status.get("ErrorComment")``. As in a data set, the attribute of an element that the
    response does not have raises ``AttributeError``.
    """

    #: The statuses that every service may return.
    SUCCESS: ClassVar[Status]
    CANCEL: ClassVar[Status]
    PENDING: ClassVar[Status]
    MOVE_DESTINATION_UNKNOWN: ClassVar[Status]

    # Most statuses have none of these, and each response has a status: so the defaults are stored once, on the class.
    service: str = ""
    error_comment: str | None = None
    offending_element: tuple[int, ...] | None = None
    error_id: int | None = None
    sop_class: str = ""
    attribute_identifier_list: tuple[int, ...] | None = None
    affected_sop_instance_uid: str | None = None
    number_of_remaining_suboperations: int | None = None
    number_of_completed_suboperations: int | None = None
    number_of_failed_suboperations: int | None = None
    number_of_warning_suboperations: int | None = None

    def __new__(
        cls,
        code: int,
        service: str = "",
        error_comment: str | None = None,
        offending_element: tuple[int, ...] | None = None,
        error_id: int | None = None,
        sop_class: str = "",
        attribute_identifier_list: tuple[int, ...] | None = None,
        affected_sop_instance_uid: str | None = None,
    ) -> Status:
        """Create the status *code*."""
        self = int.__new__(cls, code)
        if service:
            self.service = service
        if sop_class:
            self.sop_class = sop_class
        if error_comment is not None:
            self.error_comment = error_comment
        if offending_element is not None:
            self.offending_element = offending_element
        if error_id is not None:
            self.error_id = error_id
        if attribute_identifier_list is not None:
            self.attribute_identifier_list = attribute_identifier_list
        if affected_sop_instance_uid is not None:
            self.affected_sop_instance_uid = affected_sop_instance_uid
        return self

    def __bool__(self) -> bool:
        return True

    @property
    def category(self) -> StatusCategory:
        """The status class."""
        return category(self)

    @property
    def is_success(self) -> bool:
        """Whether the operation succeeded without a warning."""
        return int(self) == SUCCESS

    @property
    def is_warning(self) -> bool:
        """Whether the operation succeeded with a warning."""
        return self.category is StatusCategory.WARNING

    @property
    def is_pending(self) -> bool:
        """Whether more responses follow."""
        return self.category is StatusCategory.PENDING

    @property
    def is_failure(self) -> bool:
        """Whether the operation failed."""
        return self.category is StatusCategory.FAILURE

    @property
    def meaning(self) -> str:
        """The meaning of the status."""
        return meaning(self, self.service, self.sop_class, self.error_id)

    @property
    def service_class(self) -> str:
        """The name of the service class, such as ``"Print Management"``; ``""`` if it is not known."""
        return service_class_of(self.sop_class)

    @property
    def Status(self) -> int:
        """The plain number, under the name that it has in pynetdicom's status data set."""
        return int(self)

    # Properties, since CPython caches the attribute lookups of no class that has a __getattr__, as in the messages.
    ErrorComment = _element("ErrorComment")
    ErrorID = _element("ErrorID")
    OffendingElement = _element("OffendingElement")
    AttributeIdentifierList = _element("AttributeIdentifierList")
    AffectedSOPInstanceUID = _element("AffectedSOPInstanceUID")
    NumberOfRemainingSuboperations = _element("NumberOfRemainingSuboperations")
    NumberOfCompletedSuboperations = _element("NumberOfCompletedSuboperations")
    NumberOfFailedSuboperations = _element("NumberOfFailedSuboperations")
    NumberOfWarningSuboperations = _element("NumberOfWarningSuboperations")

    def __contains__(self, keyword: object) -> bool:
        return isinstance(keyword, str) and self.get(keyword) is not None

    def get(self, keyword: str, default: Any = None) -> Any:
        """Return the element of the response with *keyword*, such as ``"ErrorComment"``; *default* if it has none."""
        if keyword == "Status":
            return int(self)
        value = getattr(self, _ELEMENTS[keyword]) if keyword in _ELEMENTS else None
        return default if value is None else value

    def __repr__(self) -> str:
        return f"<Status 0x{int(self):04X} {self.meaning}>"

    def __str__(self) -> str:
        text = f"0x{int(self):04X} {self.meaning}"
        return f"{text}: {self.error_comment}" if self.error_comment else text


Status.SUCCESS = Status(SUCCESS)
Status.CANCEL = Status(CANCEL)
Status.PENDING = Status(PENDING)
Status.MOVE_DESTINATION_UNKNOWN = Status(MOVE_DESTINATION_UNKNOWN)
