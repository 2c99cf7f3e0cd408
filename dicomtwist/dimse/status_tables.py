"""
The meanings of status codes for each service class and DIMSE service: the tables of PS3.4 and of PS3.7 Annex C as data.

Service classes are identified by their names, since the DIMSE room does not know SOP Classes. The lookups are in
:mod:`dicomtwist.dimse.status`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: First code, last code, meaning.
Row = tuple[int, int, str]


class StatusTable(NamedTuple):
    """
    The status codes that a service class defines for one DIMSE service.

    :ivar service_class: the name of the service class, such as ``"Print Management"``.
    :ivar service: the DIMSE service, such as ``"N-ACTION"``.
    :ivar clause: the clauses of PS3.4 that define them.
    :ivar rows: first and last code of each range, and the meaning; of two ranges that overlap, the narrower one comes
        first.
    """

    service_class: str
    service: str
    clause: str
    rows: tuple[Row, ...]


def _code(code: int, words: str) -> Row:
    return code, code, words


#: The statuses of PS3.7 Annex C, common to all services.
GENERAL: Final[dict[int, str]] = {
    0x0000: "Success",
    0x0001: "Requested optional attributes are not supported",
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

_STORE: Final = (
    (0xA700, 0xA7FF, "Refused: out of resources"),
    (0xA900, 0xA9FF, "Error: data set does not match SOP Class"),
    _code(0xB000, "Coercion of data elements"),
    _code(0xB006, "Elements discarded"),
    _code(0xB007, "Data set does not match SOP Class"),
    (0xC000, 0xCFFF, "Error: cannot understand"),
)

_NON_PATIENT_STORE: Final = (
    _code(0xA700, "Refused: out of resources"),
    _code(0xA900, "Error: data set does not match SOP Class"),
    _code(0xC000, "Error: cannot understand"),
)

_FIND: Final = (
    _code(0xA700, "Refused: out of resources"),
    _code(0xA900, "Error: identifier does not match SOP Class"),
    (0xC000, 0xCFFF, "Unable to process"),
    _code(0xFE00, "Matching was cancelled"),
    _code(0xFF00, "Matches are continuing"),
    _code(0xFF01, "Matches are continuing, one or more optional keys were not supported"),
)

#: The additional statuses of the Repository Query SOP Class (PS3.4 C.6.4).
_REPOSITORY_FIND: Final = (
    _code(0xA710, "Invalid Prior Record Key"),
    _code(0xB001, "Matching reached the response limit, the search may be resumed"),
)

_RETRIEVE: Final = (
    _code(0xA701, "Refused: out of resources, cannot count the matches"),
    _code(0xA702, "Refused: out of resources, cannot perform sub-operations"),
    _code(0xA900, "Error: identifier does not match SOP Class"),
    _code(0xB000, "Sub-operations complete with failures or warnings"),
    (0xC000, 0xCFFF, "Unable to process"),
    _code(0xFE00, "Sub-operations were cancelled"),
    _code(0xFF00, "Sub-operations are continuing"),
)

#: The additional statuses of Composite Instance Root Retrieve (PS3.4 Y.4.1.1.4, Y.4.2.1.4).
_FRAME_RETRIEVE: Final = (
    _code(0xAA00, "None of the frames that were asked for are in the SOP Instance"),
    _code(0xAA01, "Unable to create an object of this SOP Class"),
    _code(0xAA02, "Unable to extract frames"),
    _code(0xAA03, "Frames were asked for by time, but the SOP Instance is not based on time"),
    _code(0xAA04, "Invalid request"),
)

_MOVE: Final = (_code(0xA801, "Refused: Move Destination unknown"), *_RETRIEVE)


def _query_retrieve(service_class: str, find: str, move: str, get: str) -> tuple[StatusTable, ...]:
    """Return the tables, at the given clauses, of a service class whose statuses are those of Query/Retrieve."""
    return (
        StatusTable(service_class, "C-FIND", find, _FIND),
        StatusTable(service_class, "C-MOVE", move, _MOVE),
        StatusTable(service_class, "C-GET", get, _RETRIEVE),
    )


_STORAGE: Final = (
    StatusTable("Storage", "C-STORE", "B.2.3", _STORE),
    StatusTable("Non-Patient Object Storage", "C-STORE", "GG.4.2", _NON_PATIENT_STORE),
)

_QUERIES: Final = (
    StatusTable("Query/Retrieve", "C-FIND", "C.4.1.1.4, C.6.4", (*_REPOSITORY_FIND, *_FIND)),
    StatusTable("Query/Retrieve", "C-MOVE", "C.4.2.1.5, Y.4.1.1.4", (*_FRAME_RETRIEVE, *_MOVE)),
    StatusTable("Query/Retrieve", "C-GET", "C.4.3.1.4, Y.4.2.1.4", (*_FRAME_RETRIEVE, *_RETRIEVE)),
    *_query_retrieve("Hanging Protocol Query/Retrieve", "U.4.1", "U.4.2", "U.4.3"),
    *_query_retrieve("Color Palette Query/Retrieve", "X", "X", "X"),
    *_query_retrieve("Implant Template Query/Retrieve", "BB", "BB", "BB"),
    *_query_retrieve("Defined Procedure Protocol Query/Retrieve", "HH", "HH", "HH"),
    *_query_retrieve("Protocol Approval Query/Retrieve", "II", "II", "II"),
    *_query_retrieve("Inventory Query/Retrieve", "JJ", "JJ", "JJ"),
    StatusTable("Basic Worklist Management", "C-FIND", "K.4.1.1.4", _FIND),
    StatusTable("Substance Administration Query", "C-FIND", "V", _FIND),
    StatusTable(
        "Relevant Patient Information Query",
        "C-FIND",
        "Q.2.1.1.4",
        (
            _code(0xA700, "Refused: out of resources"),
            _code(0xA900, "Error: identifier does not match SOP Class"),
            _code(0xC000, "Unable to process"),
            _code(0xC100, "More than one match found"),
            _code(0xC200, "Unable to support the requested template"),
            _code(0xFE00, "Matching was cancelled"),
            _code(0xFF00, "The match is supplied"),
        ),
    ),
)

_OPTIONAL_ATTRIBUTES: Final = _code(0x0001, "Requested optional attributes are not supported")

_PROCEDURE_STEPS: Final = (StatusTable("Modality Performed Procedure Step", "N-GET", "F.8.2", (_OPTIONAL_ATTRIBUTES,)),)

_SMALLER_IMAGE: Final = _code(0xB604, "The image is larger than its Image Box, it was demagnified")
_CROPPED_IMAGE: Final = _code(0xB609, "The image is larger than its Image Box, it was cropped to fit")
_DECIMATED_IMAGE: Final = _code(
    0xB60A, "The image or Combined Print Image is larger than its Image Box, it was decimated to fit"
)
_DENSITY: Final = _code(0xB605, "Requested Min Density or Max Density is beyond the printer's, which takes its own")
_MEMORY_ALLOCATION: Final = _code(0xB600, "Memory allocation is not supported")
_LARGE_IMAGE: Final = _code(0xC603, "The image is larger than its Image Box")
_LARGE_COMBINED_IMAGE: Final = _code(0xC613, "The Combined Print Image is larger than its Image Box")
_UNPRINTED_FILM: Final = _code(
    0xC616, "There is a Film Box that was not printed, and N-ACTION of the Film Session is not supported"
)

_PRINT: Final = (
    StatusTable(
        "Print Management",
        "N-CREATE",
        "H.4.1.2.1.2, H.4.2.2.1.2, H.4.9.2.1.2",
        (_MEMORY_ALLOCATION, _DENSITY, _UNPRINTED_FILM),
    ),
    StatusTable(
        "Print Management",
        "N-SET",
        "H.4.1.2.2.2, H.4.2.2.2.2, H.4.3.1.2.1.2, H.4.3.2.2.1.2",
        (
            _MEMORY_ALLOCATION,
            _SMALLER_IMAGE,
            _DENSITY,
            _CROPPED_IMAGE,
            _DECIMATED_IMAGE,
            _LARGE_IMAGE,
            _code(0xC605, "Insufficient memory in the printer to store the image"),
            _LARGE_COMBINED_IMAGE,
            _UNPRINTED_FILM,
        ),
    ),
    StatusTable(
        "Print Management",
        "N-ACTION",
        "H.4.1.2.4.2, H.4.2.2.4.2",
        (
            _code(0xB601, "Film Session printing (collation) is not supported"),
            _code(0xB602, "The Film Session has no Image Box (empty page)"),
            _code(0xB603, "The Film Box has no Image Box (empty page)"),
            _SMALLER_IMAGE,
            _CROPPED_IMAGE,
            _DECIMATED_IMAGE,
            _code(0xC600, "The Film Session has no Film Box"),
            _code(0xC601, "Unable to create a Print Job of the Film Session: the print queue is full"),
            _code(0xC602, "Unable to create a Print Job of the Film Box: the print queue is full"),
            _LARGE_IMAGE,
            _LARGE_COMBINED_IMAGE,
        ),
    ),
)

_LOGGING: Final = (
    StatusTable(
        "Application Event Logging",
        "N-ACTION",
        "P.2.2.4, P.3.2.4",
        (
            _code(0xB101, "Synchronization Frame of Reference UID is not that of the SCP"),
            _code(0xB102, "Study Instance UID coerced: the event was logged under another one"),
            _code(0xB104, "IDs inconsistent in matching a current study: the event was logged"),
            _code(0xC101, "Procedural logging is not available for this Study Instance UID"),
            _code(0xC102, "Event Information does not match the template"),
            _code(0xC103, "Cannot match the event to a current study"),
            _code(0xC104, "IDs inconsistent in matching a current study: the event was not logged"),
            _code(0xC10E, "Operator not authorised to add to the Medication Administration Record"),
            _code(0xC110, "Patient cannot be identified from Patient ID or Admission ID"),
            _code(0xC111, "Update of the Medication Administration Record failed"),
        ),
    ),
)

_MEDIA_CREATION: Final = (
    StatusTable(
        "Media Creation Management",
        "N-CREATE",
        "S.3.2.1.4",
        (_code(0xA510, "Refused: an Initiate Media Creation action was already received for this SOP Instance"),),
    ),
    StatusTable(
        "Media Creation Management",
        "N-ACTION",
        "S.3.2.3.4",
        (
            _code(0xC201, "Media creation request is already completed"),
            _code(0xC202, "Media creation request is already in progress and cannot be interrupted"),
            _code(0xC203, "Cancellation denied for an unspecified reason"),
        ),
    ),
    StatusTable("Media Creation Management", "N-GET", "S.3.2.4.4", (_OPTIONAL_ATTRIBUTES,)),
)

_NO_LONGER_UPDATED: Final = _code(0xC300, "The UPS may no longer be updated")
_WRONG_TRANSACTION: Final = _code(0xC301, "The correct Transaction UID was not provided")
_NO_SUCH_UPS: Final = _code(0xC307, "There is no such UPS Instance managed by this SCP")
_NOT_IN_PROGRESS: Final = _code(0xC310, "The UPS is not yet IN PROGRESS")

_UNIFIED_PROCEDURE_STEP: Final = (
    StatusTable(
        "Unified Procedure Step",
        "N-CREATE",
        "CC.2.5.4",
        (
            _code(0xB300, "The UPS was created with modifications"),
            _code(0xC309, "The value of UPS State that was provided was not SCHEDULED"),
        ),
    ),
    StatusTable(
        "Unified Procedure Step",
        "N-SET",
        "CC.2.6.4",
        (
            _OPTIONAL_ATTRIBUTES,
            _code(0xB305, "Invalid values were coerced to valid ones"),
            _NO_LONGER_UPDATED,
            _WRONG_TRANSACTION,
            _NO_SUCH_UPS,
            _NOT_IN_PROGRESS,
        ),
    ),
    StatusTable("Unified Procedure Step", "N-GET", "CC.2.7.4", (_OPTIONAL_ATTRIBUTES, _NO_SUCH_UPS)),
    StatusTable(
        "Unified Procedure Step",
        "N-ACTION",
        "CC.2.1.4, CC.2.2.4, CC.2.3.4",
        (
            _code(0xB301, "Deletion Lock not granted"),
            _code(0xB304, "The UPS is already CANCELED, as was asked for"),
            _code(0xB306, "The UPS is already COMPLETED, as was asked for"),
            _NO_LONGER_UPDATED,
            _WRONG_TRANSACTION,
            _code(0xC302, "The UPS is already IN PROGRESS"),
            _code(0xC303, "The UPS may only become SCHEDULED by N-CREATE, not by N-SET or N-ACTION"),
            _code(0xC304, "The UPS does not meet the final state requirements of the state that was asked for"),
            _NO_SUCH_UPS,
            _code(0xC308, "Receiving AE Title is unknown to this SCP"),
            _NOT_IN_PROGRESS,
            _code(0xC311, "The UPS is already COMPLETED"),
            _code(0xC312, "The performer cannot be contacted"),
            _code(0xC313, "The performer chooses not to cancel"),
            _code(0xC314, "The action is not appropriate for this instance"),
            _code(0xC315, "The SCP does not support event reports"),
        ),
    ),
    StatusTable("Unified Procedure Step", "C-FIND", "CC.2.8.4", _FIND),
)

_NO_MACHINE_VERIFICATION: Final = _code(0xC112, "The Machine Verification instance was not found")

_RT_MACHINE_VERIFICATION: Final = (
    StatusTable(
        "RT Machine Verification",
        "N-CREATE",
        "DD.3.2.1.2",
        (
            _code(0xC221, "Referenced Fraction Group Number does not exist in the referenced plan"),
            _code(0xC222, "No beams exist in the referenced fraction group"),
            _code(0xC223, "The SCU is already verifying, this request cannot be processed at the moment"),
            _code(0xC227, "The referenced RT Plan was not found"),
        ),
    ),
    StatusTable(
        "RT Machine Verification",
        "N-SET",
        "DD.3.2.1.2",
        (
            _code(0xC224, "Referenced Beam Number was not found in the referenced fraction group"),
            _code(0xC225, "The referenced device or accessory is not supported"),
            _code(0xC226, "The referenced device or accessory was not found in the referenced beam"),
        ),
    ),
    StatusTable("RT Machine Verification", "N-GET", "DD.3.2.2.2", (_NO_MACHINE_VERIFICATION,)),
    StatusTable("RT Machine Verification", "N-ACTION", "DD.3.2.3.2", (_NO_MACHINE_VERIFICATION,)),
)

_STORAGE_MANAGEMENT: Final = (
    StatusTable(
        "Storage Management",
        "N-ACTION",
        "KK.2.2.3",
        (
            _code(0x0212, "Mistyped argument: a parameter was not agreed on"),
            _code(0xB010, "Attribute list error: one or more Key Attributes are not supported for matching"),
        ),
    ),
)

#: All tables. A service class that is not in them defines no codes of its own.
TABLES: Final[tuple[StatusTable, ...]] = (
    *_STORAGE,
    *_QUERIES,
    *_PROCEDURE_STEPS,
    *_PRINT,
    *_LOGGING,
    *_MEDIA_CREATION,
    *_UNIFIED_PROCEDURE_STEP,
    *_RT_MACHINE_VERIFICATION,
    *_STORAGE_MANAGEMENT,
)

#: The meanings that Error ID (0000,0903) adds, by (service class, status, Error ID).
ERROR_IDS: Final[dict[tuple[str, int, int], str]] = {
    # PS3.4 F.7.2.2.4
    ("Modality Performed Procedure Step", 0x0110, 0xA710): ("Performed Procedure Step Object may no longer be updated"),
}

#: The service class whose codes apply if the SOP Class is not known, by DIMSE service.
USUAL_SERVICE_CLASS: Final[dict[str, str]] = {
    "C-STORE": "Storage",
    "C-FIND": "Query/Retrieve",
    "C-MOVE": "Query/Retrieve",
    "C-GET": "Query/Retrieve",
}

#: The Failure Reasons (0008,1197) of a SOP Instance that are not status codes (PS3.3 C.14.1.1).
FAILURE_REASONS: Final[dict[int, str]] = {
    0x0122: "Referenced SOP Class not supported",
    0x0131: "Duplicate Transaction UID",
}
