"""
Audit messages as XML (PS3.15 A.5.1): what happened, who took part, which patients and studies were concerned.

No I/O, no Twisted. Each message is one line of UTF-8.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from xml.sax.saxutils import quoteattr

__all__ = [
    "ACTIVITY",
    "ACCESSED",
    "AUTHENTICATION",
    "BEGIN_TRANSFERRING",
    "DELETED",
    "DESTINATION",
    "FAILURE",
    "LOGIN",
    "NODE",
    "QUERY",
    "RESTRICTED",
    "SECURITY_ALERT",
    "SOURCE",
    "START",
    "STOP",
    "SUCCESS",
    "TRANSFERRED",
    "Code",
    "Event",
    "Participant",
    "PatientObject",
    "QueryObject",
    "StudyObject",
    "message",
]

#: The longest text of a peer in a message, in characters.
MAX_TEXT: Final = 256
#: The longest query in a message, in bytes; of a longer one the beginning is kept.
MAX_QUERY: Final = 16 * 1024
#: The most SOP Classes of a study that a message names; instances of further ones are counted together.
MAX_CLASSES: Final = 100


@dataclass(frozen=True, slots=True)
class Code:
    """
    A coded value.

    :ivar value: the code.
    :ivar words: its meaning.
    :ivar system: the coding scheme.
    """

    value: str
    words: str
    system: str = "DCM"


#: Event IDs (CID 400).
ACTIVITY: Final = Code("110100", "Application Activity")
BEGIN_TRANSFERRING: Final = Code("110102", "Begin Transferring DICOM Instances")
ACCESSED: Final = Code("110103", "DICOM Instances Accessed")
TRANSFERRED: Final = Code("110104", "DICOM Instances Transferred")
DELETED: Final = Code("110105", "DICOM Study Deleted")
QUERY: Final = Code("110112", "Query")
SECURITY_ALERT: Final = Code("110113", "Security Alert")
AUTHENTICATION: Final = Code("110114", "User Authentication")
#: Types of events (CID 401).
START: Final = Code("110120", "Application Start")
STOP: Final = Code("110121", "Application Stop")
LOGIN: Final = Code("110122", "Login")
NODE: Final = Code("110126", "Node Authentication")
RESTRICTED: Final = Code("110132", "Use of Restricted Function")
#: Roles of participants (CID 402).
APPLICATION: Final = Code("110150", "Application")
DESTINATION: Final = Code("110152", "Destination Role ID")
SOURCE: Final = Code("110153", "Source Role ID")

_STUDY_UID: Final = Code("110180", "Study Instance UID")
_CLASS_UID: Final = Code("110181", "SOP Class UID")
_NODE_ID: Final = Code("110182", "Node ID")
_PATIENT: Final = Code("2", "Patient Number", "RFC-3881")
_URI: Final = Code("12", "URI", "RFC-3881")

#: Outcomes.
SUCCESS: Final = 0
FAILURE: Final = 4

#: Matches the characters that XML 1.0 cannot have.
_IMPOSSIBLE: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """
    A person or a program that took part.

    :ivar user: the AE title, the name of the user, or the address.
    :ivar alternative: another name of it, such as a process ID.
    :ivar is_requestor: whether it asked for what happened.
    :ivar role: its role, ``None`` without one.
    :ivar address: its address, ``""`` if it is not known.
    """

    user: str
    alternative: str = ""
    is_requestor: bool = False
    role: Code | None = None
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientObject:
    """
    A patient.

    :ivar patient_id: the Patient ID.
    :ivar name: the Patient's Name.
    """

    patient_id: str
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyObject:
    """
    A study.

    :ivar uid: the Study Instance UID.
    :ivar instances: the number of instances by SOP Class UID; empty if that is not known.
    :ivar accession: the Accession Number.
    :ivar uids: some SOP Instance UIDs by SOP Class UID.
    """

    uid: str
    instances: Mapping[str, int] = field(default_factory=dict)
    accession: str = ""
    uids: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryObject:
    """
    A query.

    :ivar of: the SOP Class UID of a C-FIND, or the path of a URL.
    :ivar content: the encoded identifier, or the URL.
    :ivar syntax: the transfer syntax of an identifier, ``""`` for a URL.
    """

    of: str
    content: bytes
    syntax: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeObject:
    """
    A machine or a service that an alert is about.

    :ivar node: its name.
    :ivar why: the reason of the alert.
    """

    node: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """
    An event.

    :ivar code: its ID.
    :ivar kind: its type, ``None`` without one.
    :ivar action: ``"C"`` for create, ``"R"`` read, ``"U"`` update, ``"D"`` delete, ``"E"`` execute.
    :ivar when: when it happened, with a time zone.
    :ivar outcome: :data:`SUCCESS` or :data:`FAILURE`.
    :ivar why: the reason of a failure.
    :ivar participants: at least one.
    :ivar objects: the objects.
    """

    code: Code
    kind: Code | None = None
    action: str
    when: datetime
    outcome: int = SUCCESS
    why: str = ""
    participants: Sequence[Participant]
    objects: Sequence[PatientObject | StudyObject | QueryObject | NodeObject] = ()


def message(event: Event, source: str) -> bytes:
    """
    Return the message about *event*, on one line without a line break.

    :param source: the name of the source of the audit trail.
    """
    parts = [
        "<AuditMessage>",
        f"<EventIdentification EventActionCode={_quoted(event.action)}"
        f" EventDateTime={_quoted(event.when.isoformat(timespec='milliseconds'))}"
        f' EventOutcomeIndicator="{event.outcome}">',
        _coded("EventID", event.code),
        "" if event.kind is None else _coded("EventTypeCode", event.kind),
        f"<EventOutcomeDescription>{_text(event.why)}</EventOutcomeDescription>" if event.why else "",
        "</EventIdentification>",
        *map(_participant, event.participants),
        f"<AuditSourceIdentification AuditSourceID={_quoted(source)}>"
        '<AuditSourceTypeCode csd-code="4"/></AuditSourceIdentification>',
        *(piece for one in event.objects for piece in _object(one)),
        "</AuditMessage>",
    ]
    return "".join(parts).encode("utf-8")


def _participant(one: Participant) -> str:
    attributes = f"UserID={_quoted(one.user or 'unknown')}"
    if one.alternative:
        attributes += f" AlternativeUserID={_quoted(one.alternative)}"
    attributes += f' UserIsRequestor="{"true" if one.is_requestor else "false"}"'
    if one.address:
        kind = "2" if _is_address(one.address) else "1"
        attributes += f' NetworkAccessPointID={_quoted(one.address)} NetworkAccessPointTypeCode="{kind}"'
    role = "" if one.role is None else _coded("RoleIDCode", one.role)
    return f"<ActiveParticipant {attributes}>{role}</ActiveParticipant>"


def _object(one: PatientObject | StudyObject | QueryObject | NodeObject) -> Iterator[str]:
    if isinstance(one, PatientObject):
        yield from _identified(one.patient_id or "unknown", 1, 1, _PATIENT, one.name)
    elif isinstance(one, StudyObject):
        described = f"<Accession Number={_quoted(one.accession)}/>" if one.accession else ""
        counts = [*one.instances.items()]
        for uid, count in counts[:MAX_CLASSES]:
            names = "".join(f"<Instance UID={_quoted(name)}/>" for name in one.uids.get(uid, ()))
            described += f'<SOPClass UID={_quoted(uid)} NumberOfInstances="{count}">{names}</SOPClass>'
        if counts[MAX_CLASSES:]:
            described += f'<SOPClass NumberOfInstances="{sum(count for _, count in counts[MAX_CLASSES:])}"/>'
        rest = f"<ParticipantObjectDescription>{described}</ParticipantObjectDescription>" if described else ""
        yield from _identified(one.uid or "unknown", 2, 3, _STUDY_UID, "", rest)
    elif isinstance(one, NodeObject):
        rest = (
            f'<ParticipantObjectDetail type="Alert Description" value={_binary(one.why.encode("utf-8", "replace"))}/>'
        )
        yield from _identified(one.node or "unknown", 2, 13, _NODE_ID, "", rest)
    else:
        kind, role = (_CLASS_UID, 3) if one.syntax else (_URI, 24)
        yield _opening(one.of, 2, role, kind)
        yield f"<ParticipantObjectQuery>{_binary(one.content[:MAX_QUERY])[1:-1]}</ParticipantObjectQuery>"
        name, value = ("TransferSyntax", one.syntax) if one.syntax else ("QueryEncoding", "UTF-8")
        yield f'<ParticipantObjectDetail type="{name}" value={_binary(value.encode())}/>'
        yield "</ParticipantObjectIdentification>"


def _identified(identifier: str, kind: int, role: int, code: Code, name: str, rest: str = "") -> Iterator[str]:
    yield _opening(identifier, kind, role, code)
    yield f"<ParticipantObjectName>{_text(name)}</ParticipantObjectName>{rest}</ParticipantObjectIdentification>"


def _opening(identifier: str, kind: int, role: int, code: Code) -> str:
    return (
        f"<ParticipantObjectIdentification ParticipantObjectID={_quoted(identifier)}"
        f' ParticipantObjectTypeCode="{kind}" ParticipantObjectTypeCodeRole="{role}">'
        f"{_coded('ParticipantObjectIDTypeCode', code)}"
    )


def _coded(name: str, code: Code) -> str:
    return f'<{name} csd-code="{code.value}" codeSystemName="{code.system}" originalText="{code.words}"/>'


def _binary(value: bytes) -> str:
    return f'"{b64encode(value).decode()}"'


def _possible(text: str) -> str:
    """Return *text* on one line, without characters that XML cannot have, cut."""
    return " ".join(_IMPOSSIBLE.sub("\ufffd", text[:MAX_TEXT]).split())


def _quoted(text: str) -> str:
    return quoteattr(_possible(text))


def _text(text: str) -> str:
    return quoteattr(_possible(text))[1:-1].replace("&quot;", '"')


def _is_address(text: str) -> bool:
    return ":" in text or bool(re.fullmatch(r"[0-9.]+", text))
