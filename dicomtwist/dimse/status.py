"""
DIMSE status codes: what class they are of and what they mean (PS3.7 Annex C, PS3.4 for each service class).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

SUCCESS: Final = 0x0000
CANCEL: Final = 0xFE00
PENDING: Final = 0xFF00
#: Pending, and some optional keys were not supported for this answer (PS3.4 C.4.1.1.4).
PENDING_WARNING: Final = 0xFF01
NO_SUCH_ATTRIBUTE: Final = 0x0105
INVALID_ATTRIBUTE_VALUE: Final = 0x0106
PROCESSING_FAILURE: Final = 0x0110
DUPLICATE_SOP_INSTANCE: Final = 0x0111
NO_SUCH_SOP_INSTANCE: Final = 0x0112
INVALID_ARGUMENT_VALUE: Final = 0x0115
INVALID_SOP_INSTANCE: Final = 0x0117
NO_SUCH_SOP_CLASS: Final = 0x0118
MISSING_ATTRIBUTE: Final = 0x0120
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

#: What the hooks that are missing or raise give, as the reference does, so that its users find the same numbers.
STORE_HANDLER_FAILED: Final = 0xC211
ECHO_HANDLER_FAILED: Final = 0xC001


class StatusCategory(Enum):
    """The status classes of PS3.7 Annex C."""

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


_GENERAL: Final[dict[int, str]] = {
    0x0000: "Success",
    0x0105: "No such attribute",
    0x0106: "Invalid attribute value",
    0x0107: "Attribute list error",
    0x0110: "Processing failure",
    0x0111: "Duplicate SOP Instance",
    0x0112: "No such SOP Instance",
    0x0113: "No such Event Type",
    0x0114: "No such argument",
    0x0115: "Invalid argument value",
    0x0116: "Attribute value out of range",
    0x0117: "Invalid SOP Instance",
    0x0118: "No such SOP Class",
    0x0119: "Class-Instance conflict",
    0x0120: "Missing attribute",
    0x0121: "Missing attribute value",
    0x0122: "SOP Class not supported",
    0x0123: "No such Action Type",
    0x0124: "Refused: not authorised",
    0x0210: "Duplicate invocation",
    0x0211: "Unrecognised operation",
    0x0212: "Mistyped argument",
    0x0213: "Resource limitation",
    0xFE00: "Cancelled",
    0xFF00: "Pending",
    0xFF01: "Pending: optional keys not supported",
}

#: Per DIMSE service: (first code, last code, meaning), PS3.4 B.2.3, C.4.
_BY_SERVICE: Final[dict[str, tuple[tuple[int, int, str], ...]]] = {
    "C-STORE": (
        (0xA700, 0xA7FF, "Refused: out of resources"),
        (0xA900, 0xA9FF, "Error: data set does not match SOP Class"),
        (0xB000, 0xB000, "Coercion of data elements"),
        (0xB006, 0xB006, "Elements discarded"),
        (0xB007, 0xB007, "Data set does not match SOP Class"),
        (0xC000, 0xCFFF, "Error: cannot understand"),
    ),
    "C-FIND": (
        (0xA700, 0xA700, "Refused: out of resources"),
        (0xA900, 0xA900, "Error: identifier does not match SOP Class"),
        (0xB001, 0xB001, "Matching reached the response limit, the search may be resumed"),
        (0xC000, 0xCFFF, "Unable to process"),
    ),
    "C-GET": (
        (0xA701, 0xA701, "Refused: out of resources, cannot count the matches"),
        (0xA702, 0xA702, "Refused: out of resources, cannot perform sub-operations"),
        (0xA900, 0xA900, "Error: identifier does not match SOP Class"),
        (0xB000, 0xB000, "Sub-operations complete with failures or warnings"),
        (0xC000, 0xCFFF, "Unable to process"),
    ),
    "C-MOVE": (
        (0xA701, 0xA701, "Refused: out of resources, cannot count the matches"),
        (0xA702, 0xA702, "Refused: out of resources, cannot perform sub-operations"),
        (0xA801, 0xA801, "Refused: Move Destination unknown"),
        (0xA900, 0xA900, "Error: identifier does not match SOP Class"),
        (0xB000, 0xB000, "Sub-operations complete with failures or warnings"),
        (0xC000, 0xCFFF, "Unable to process"),
    ),
}


def meaning(code: int, service: str = "") -> str:
    """
    Return the status *code* in words.

    :param service: the DIMSE service, such as ``"C-STORE"``; without it only the codes common to all are told apart.
    """
    for first, last, words in _BY_SERVICE.get(service, ()):
        if first <= code <= last:
            return words
    return _GENERAL.get(code, category(code).value)


class Status(int):
    """
    The status of an operation: the number itself, with what the response said beside it.

    It compares and formats as a number (``status == 0x0000``, ``f"{status:04X}"``), but is always true, since there
    is an answer: ask :attr:`is_success`. (The reference's status is a data set, which is true in the same way.)

    :ivar service: the DIMSE service that it answers.
    :ivar error_comment: Error Comment (0000,0902), or ``None``.
    :ivar offending_element: the tags of (0000,0901), or ``None``.
    :ivar error_id: Error ID (0000,0903), or ``None``.
    """

    service: str
    error_comment: str | None
    offending_element: tuple[int, ...] | None
    error_id: int | None

    def __new__(
        cls,
        code: int,
        service: str = "",
        error_comment: str | None = None,
        offending_element: tuple[int, ...] | None = None,
        error_id: int | None = None,
    ) -> Status:
        """Make the status *code*."""
        self = super().__new__(cls, code)
        self.service = service
        self.error_comment = error_comment
        self.offending_element = offending_element
        self.error_id = error_id
        return self

    def __bool__(self) -> bool:
        return True

    @property
    def category(self) -> StatusCategory:
        """The status class."""
        return category(self)

    @property
    def is_success(self) -> bool:
        """Whether the operation was done: success, not a warning."""
        return int(self) == SUCCESS

    @property
    def is_warning(self) -> bool:
        """Whether the operation was done, with something to note."""
        return self.category is StatusCategory.WARNING

    @property
    def is_pending(self) -> bool:
        """Whether more responses follow."""
        return self.category is StatusCategory.PENDING

    @property
    def is_failure(self) -> bool:
        """Whether the operation was not done."""
        return self.category is StatusCategory.FAILURE

    @property
    def meaning(self) -> str:
        """The status in words."""
        return meaning(self, self.service)

    @property
    def Status(self) -> int:
        """The plain number, under the name that the reference's data set has for it."""
        return int(self)

    def __repr__(self) -> str:
        return f"<Status 0x{int(self):04X} {self.meaning}>"

    def __str__(self) -> str:
        text = f"0x{int(self):04X} {self.meaning}"
        return f"{text}: {self.error_comment}" if self.error_comment else text
