"""
A trace of associations: what was proposed and answered, why something was refused, and each DIMSE message in words.

:func:`debug_logger` prints the trace of everything in this process to standard error. :func:`trace` logs that of one AE, for a
program that has a log already. ``twist dicom --trace`` and ``dicomtwist COMMAND --trace`` use the same lines.

No line has a passcode, a ticket, or a value of a data set. Each is an event of Twisted's log with the namespace
``dicomtwist.trace``, with the association and the peer in its fields.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TextIO
from weakref import WeakKeyDictionary, WeakSet

from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, globalLogBeginner, globalLogPublisher
from zope.interface import implementer

from dicomtwist import evt
from dicomtwist.association.acceptor import AcceptorAssociation
from dicomtwist.association.association import Association
from dicomtwist.association.explanations import syntax_names, uid_name
from dicomtwist.association.log_lines import refusal
from dicomtwist.dimse.messages import CStoreRQ, Message, NActionRQ, NEventReportRQ, Response
from dicomtwist.dimse.status import meaning
from dicomtwist.errors import AssociationRejected
from dicomtwist.logs import MAX_MESSAGE, TextLog, one_line
from dicomtwist.presentation import PresentationContext
from dicomtwist.ul.items import RoleSelection, UserIdentity, UserInformation
from dicomtwist.ul.pdu import AAssociateRQ

__all__ = ["debug_logger", "trace", "untrace"]

#: The most transfer syntaxes of one context that a line names.
MAX_SYNTAXES: Final = 40
#: The most contexts alike that have a line each. Scripts propose 128 contexts by default.
_MAX_ALIKE: Final = 8
#: How many of more accepted and of more refused contexts alike are named.
_NAMED_ACCEPTED: Final = 4
_NAMED_REFUSED: Final = 12
#: The most bytes of an extended negotiation item that a line shows.
_MAX_INFORMATION: Final = 32

#: The types of user identity (PS3.7 D.3.3.7.1).
_IDENTITIES: Final = {
    1: "user name",
    2: "user name and passcode",
    3: "Kerberos service ticket",
    4: "SAML assertion",
    5: "JSON Web Token",
}
_PRIORITIES: Final = {0: "medium", 1: "high", 2: "low"}

#: The association control messages that have no event of their own, by their primitives.
_CONTROLS: Final = {
    "A-RELEASE request": "A-RELEASE-RQ",
    "A-RELEASE indication": "A-RELEASE-RQ",
    "A-RELEASE response": "A-RELEASE-RP",
    "A-RELEASE confirmation": "A-RELEASE-RP",
    "A-ABORT request": "A-ABORT",
}

#: Handlers that every AE of the process has, besides its own.
EVERYWHERE: Final = evt.Handlers()

#: The namespace of the events of a trace.
TRACE: Final = __name__

_log = Logger(TRACE)


def _twisted_prints_failures() -> bool:
    """Whether Twisted prints failures on standard error, as it does until the program begins its logging."""
    # Nothing public says so.
    return getattr(globalLogBeginner, "_temporaryObserver", None) is not None


@implementer(ILogObserver)
class _Printed:
    """An observer that writes what this library logs to *file*."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._log: TextLog | None = TextLog(file)

    def __call__(self, event: LogEvent) -> None:
        if self._log is None or not str(event.get("log_namespace", "")).startswith("dicomtwist"):
            return
        if self._file is sys.stderr and event.get("log_level") is LogLevel.critical and _twisted_prints_failures():
            return
        try:
            self._log(event)
        except (BrokenPipeError, ValueError):
            # The reader is gone, such as head, or the file is closed. Twisted would log a traceback for each line.
            self._log = None


_printed: list[_Printed] = []


def debug_logger(file: TextIO | None = None, *, every_context: bool = False) -> None:
    """
    Print the trace of every association that begins from now on, and everything else that this library logs, to a file.

    It has the name of pynetdicom's function and is called as that: ``debug_logger()``. A second call changes the file.

    :param file: a text file, standard error by default.
    :param every_context: see :func:`trace`.
    """
    while _printed:
        globalLogPublisher.removeObserver(_printed.pop())
    _printed.append(_Printed(sys.stderr if file is None else file))
    globalLogPublisher.addObserver(_printed[0])
    trace(every_context=every_context)


def trace(target: Any = None, *, every_context: bool = False) -> None:
    """
    Log the trace of associations that begin from now on.

    :param target: an AE, a server or an association; ``None`` for all AEs of the process.
    :param every_context: whether every presentation context is named. By default the first few are if many have the same
        outcome; the fields of the event have the UIDs of all.
    """
    handlers = EVERYWHERE if target is None else target
    handlers.unbind(evt.EVT_ACCEPTED, _accepted if every_context else _accepted_in_full)
    for event, handler in _HANDLERS:
        handlers.bind(event, _accepted_in_full if every_context and handler is _accepted else handler)


def untrace(target: Any = None) -> None:
    """Undo :func:`trace` for *target*; associations that were traced continue to be if it is ``None``."""
    unbind = (EVERYWHERE if target is None else target).unbind
    for event, handler in (*_HANDLERS, (evt.EVT_ACCEPTED, _accepted_in_full)):
        unbind(event, handler)


# --- the lines

#: The transfer syntaxes that were proposed, by the IDs of the contexts.
_proposals: WeakKeyDictionary[Association, dict[int, tuple[str, ...]]] = WeakKeyDictionary()
#: The associations that are traced.
_traced: WeakSet[Association] = WeakSet()


def is_traced(assoc: object) -> bool:
    """Whether *assoc* is traced."""
    return bool(_traced) and assoc in _traced


def remark(assoc: Any, text: str) -> None:
    """Add a line to the trace of *assoc*, if it is traced: for rooms that decide about it."""
    if is_traced(assoc):
        _tell(assoc, f"   {text}")


def _tell(assoc: Association, text: str, **fields: object) -> None:
    remote = assoc.remote
    _log.info(
        "{log_text}",
        log_text=text,
        association=assoc,
        peer=remote.ae_title,
        address=remote.address,
        log_always=True,
        **fields,
    )


def _opened(event: evt.Event) -> None:
    host, port = event.address
    assoc: Any = event.assoc
    _traced.add(assoc)
    _tell(assoc, f"connection {'from' if assoc.is_acceptor else 'to'} {host}{f' port {port}' if port else ''}")


def _requested(event: evt.Event) -> None:
    assoc: Any = event.assoc
    request: AAssociateRQ = event.pdu
    sign = "<-" if assoc.is_acceptor else "->"
    _traced.add(assoc)
    _proposals[assoc] = {one.context_id: one.transfer_syntaxes for one in request.presentation_contexts}
    _tell(
        assoc,
        f"{sign} A-ASSOCIATE-RQ: {request.calling_ae_title!r} calls {request.called_ae_title!r},"
        f" {_contexts(len(request.presentation_contexts))}, {_about(request.user_information)}",
    )
    _tell_items(assoc, request.user_information)


def _contexts(number: int) -> str:
    return f"{number} presentation context{'' if number == 1 else 's'}"


def _about(information: UserInformation) -> str:
    length = information.maximum_length
    limit = f"PDUs of at most {length} bytes" if length else "PDUs of any length"
    uid, name = information.implementation_class_uid, information.implementation_version_name
    return f"{limit}, implementation {uid_name(uid) if uid else 'without a UID'}{f' {name!r}' if name else ''}"


def _tell_items(assoc: Association, information: UserInformation) -> None:
    for line in _items(information):
        _tell(assoc, f"   {line}")
    alike: dict[str, dict[str, None]] = {}
    for role in information.roles:
        group = alike.setdefault(_roles(role), {})
        group[role.sop_class_uid] = None  # Orthanc answers a role once for each context
    for roles, group in alike.items():
        uids = list(group)
        if len(uids) <= _MAX_ALIKE:
            for uid in uids:
                _tell(assoc, f"   role selection: {uid_name(uid)}: {roles}", role_selection=[uid])
        else:
            named = ", ".join(map(uid_name, uids[:_NAMED_ACCEPTED]))
            more = len(uids) - _NAMED_ACCEPTED
            line = f"role selection for {len(uids)} SOP Classes: {roles}: {named} and {more} more"
            _tell(assoc, f"   {line}", role_selection=uids)


def _items(information: UserInformation) -> Iterator[str]:
    """Yield what is negotiated besides the contexts and roles, without anything secret."""
    window = information.async_operations
    if window is not None:
        invoked, performed = (str(number or "any number of") for number in (window.invoked, window.performed))
        yield f"asynchronous operations window: {invoked} invoked, {performed} performed"
    for item in information.sop_class_extended:
        shown = item.information[:_MAX_INFORMATION].hex(" ")
        more = f"... ({len(item.information)} bytes)" if len(item.information) > _MAX_INFORMATION else ""
        yield f"extended negotiation: {uid_name(item.sop_class_uid)}: {shown}{more}"
    for common in information.sop_class_common_extended:
        related = ", ".join(map(uid_name, common.related_general_sop_classes[:MAX_SYNTAXES])) or "none"
        yield (
            f"common extended negotiation: {uid_name(common.sop_class_uid)}: service class"
            f" {uid_name(common.service_class_uid)}, related classes {related}"
        )
    if information.user_identity is not None:
        yield f"user identity: {_identity(information.user_identity)}"
    if information.user_identity_response is not None:
        yield f"user identity confirmed, with a response of {len(information.user_identity_response)} bytes"


def _identity(identity: UserIdentity) -> str:
    kind = _IDENTITIES.get(identity.identity_type, f"unknown type {identity.identity_type}")
    wanted = ", a response is requested" if identity.response_requested else ""
    if identity.identity_type in (1, 2):
        hidden = " (the passcode is not shown)" if identity.identity_type == 2 else ""
        return f"{kind}, {one_line(identity.primary.decode('utf-8', 'replace'), 64)!r}{hidden}{wanted}"
    return f"{kind} of {len(identity.primary)} bytes{wanted}"


def _roles(role: RoleSelection) -> str:
    granted = [name for name, has in (("SCU", role.scu_role), ("SCP", role.scp_role)) if has]
    return f"the requestor as {' and '.join(granted)}" if granted else "the requestor as neither SCU nor SCP"


def _accepted(event: evt.Event) -> None:
    _tell_accepted(event, every_context=False)


def _accepted_in_full(event: evt.Event) -> None:
    _tell_accepted(event, every_context=True)


def _tell_accepted(event: evt.Event, *, every_context: bool) -> None:
    assoc: Any = event.assoc
    sign = "->" if assoc.is_acceptor else "<-"
    accepted, rejected = assoc.accepted_contexts, assoc.rejected_contexts
    _tell(
        assoc,
        f"{sign} A-ASSOCIATE-AC: {len(accepted)} of {_contexts(len(accepted) + len(rejected))} accepted,"
        f" {_about(event.pdu.user_information)}",
    )
    proposals = _proposals.pop(assoc, {})
    alike: dict[str, list[tuple[PresentationContext, tuple[str, ...]]]] = {}
    for context in sorted([*accepted, *rejected], key=lambda one: one.context_id or 0):
        proposed = tuple(map(str, proposals.get(context.context_id or 0) or context.transfer_syntax))
        alike.setdefault(_outcome(assoc, context, proposed), []).append((context, proposed))
    for outcome, group in alike.items():
        if len(group) > _MAX_ALIKE and not every_context:
            _log_many(assoc, outcome, group)
        else:
            _log_contexts(assoc, outcome, group)
    _tell_items(assoc, event.pdu.user_information)


def _log_many(assoc: Association, outcome: str, group: list[tuple[PresentationContext, tuple[str, ...]]]) -> None:
    """Log the number of contexts that have the same outcome, and the names of the first ones."""
    contexts = [context for context, _ in group]
    named = contexts[: _NAMED_ACCEPTED if contexts[0].result == 0 else _NAMED_REFUSED]
    names = ", ".join(f"{one.context_id} {uid_name(str(one.abstract_syntax))}" for one in named)
    more = len(contexts) - len(named)
    line = f"{len(contexts)} contexts: {outcome}: {names}{f' and {more} more' if more > 0 else ''}"
    _tell(assoc, f"   {line}", **_fields_of(group))


def _fields_of(group: list[tuple[PresentationContext, tuple[str, ...]]]) -> dict[str, object]:
    fields = _fields(*group[0])
    fields["context_id"] = [one.context_id for one, _ in group]
    fields["abstract_syntax"] = [str(one.abstract_syntax) for one, _ in group]
    return fields


def _log_contexts(assoc: Association, outcome: str, group: list[tuple[PresentationContext, tuple[str, ...]]]) -> None:
    """Log contexts that have the same outcome: each on a line of its own, or many together."""
    room = 0 if len(group) <= _MAX_ALIKE else MAX_MESSAGE - len(outcome) - 100  # a longer line would be cut
    names = [f"{one.context_id} {uid_name(str(one.abstract_syntax))}" for one, _ in group]
    start = stop = 0
    while stop < len(group):
        length = 0
        while stop < len(group) and (stop == start or length + len(names[stop]) < room):
            length += len(names[stop]) + 2
            stop += 1
        part = [context for context, _ in group[start:stop]]
        fields = _fields_of(group[start:stop]) if len(part) > 1 else _fields(*group[start])
        if len(part) > 1:
            line = f"{len(part)} contexts: {outcome}: {', '.join(names[start:stop])}"
        else:
            line = f"context {part[0].context_id}: {uid_name(str(part[0].abstract_syntax))}: {outcome}"
        _tell(assoc, f"   {line}", **fields)
        start = stop


def _fields(context: PresentationContext, proposed: Iterable[str]) -> dict[str, object]:
    return {
        "context_id": context.context_id,
        "abstract_syntax": str(context.abstract_syntax),
        "proposed": [str(uid) for uid in proposed],
        "accepted": str(context.transfer_syntax[0]) if context.result == 0 else None,
        "result": context.result,
    }


def _outcome(assoc: Any, context: PresentationContext, proposed: Iterable[str]) -> str:
    """Return what was proposed in *context*, and what became of it."""
    head = f"proposed {_names(proposed)}"
    if context.result == 0:
        roles = [name for name, has in (("SCU", context.as_scu), ("SCP", context.as_scp)) if has]
        return (
            f"{head}; accepted {uid_name(str(context.transfer_syntax[0]))}, we are {' and '.join(roles) or 'nothing'}"
        )
    return f"{head}; NOT accepted: {refusal(context)}{_supported(assoc, context)}"


def _names(uids: Iterable[str]) -> str:
    # A text of the peer that is no UID is replaced first.
    return syntax_names((uid_name(str(uid)) for uid in uids), MAX_SYNTAXES)


def _supported(assoc: Any, context: PresentationContext) -> str:
    """Return what an acceptor has to offer in place of a refused context."""
    if not isinstance(assoc, AcceptorAssociation) or context.result not in (1, 4):
        return ""
    own = assoc.host.supported.get(str(context.abstract_syntax))
    if own is None:
        return ""
    if context.result == 1:
        return f"; the roles that we support: SCU {_word(own.scu_role)}, SCP {_word(own.scp_role)}"
    return f"; we support {_names(own.transfer_syntax)}"


def _word(flag: bool | None) -> str:
    return "by default" if flag is None else "yes" if flag else "no"


def _rejected(event: evt.Event) -> None:
    assoc: Any = event.assoc
    _proposals.pop(assoc, None)
    why = getattr(event, "why", "")
    answer = event.pdu
    reason = AssociationRejected(answer.result, answer.source, answer.reason)
    _tell(
        assoc,
        f"{'->' if assoc.is_acceptor else '<-'} A-ASSOCIATE-RJ: {reason}{f': {why}' if why else ''}",
    )


def _control(sign: str) -> Callable[[evt.Event], None]:
    def tell(event: evt.Event) -> None:
        assoc: Any = event.assoc
        name = _CONTROLS.get(event.primitive)
        if name is not None:
            _tell(assoc, f"{sign} {name}")

    return tell


def _aborted(event: evt.Event) -> None:
    assoc: Any = event.assoc
    _tell(assoc, f"the association ended: {event.reason}")


def _released(event: evt.Event) -> None:
    assoc: Any = event.assoc
    _tell(assoc, "the association is released")


def _closed(event: evt.Event) -> None:
    assoc: Any = event.assoc
    if not assoc.was_established:
        why = assoc.end_reason
        _tell(assoc, f"the connection is closed{f': {why}' if why is not None else ''}")


def _message(sign: str) -> Callable[[evt.Event], None]:
    def tell(event: evt.Event) -> None:
        assoc: Any = event.assoc
        _tell(
            assoc,
            f"{sign} {message_in_words(event.message)}",
            context_id=event.context_id,
            dimse=event.message.NAME,
            status=getattr(event.message, "status", None),
        )

    return tell


def message_in_words(message: Message) -> str:
    """Return a DIMSE message in words, without its data set."""
    parts = []
    for prefix in ("affected", "requested"):
        sop_class = getattr(message, f"{prefix}_sop_class_uid", None)
        if sop_class and not isinstance(message, Response):
            parts.append(uid_name(sop_class))
        instance = getattr(message, f"{prefix}_sop_instance_uid", None)
        if instance and not isinstance(message, Response):
            parts.append(uid_name(instance))
    if isinstance(message, Response):
        return f"{message.NAME} {message.message_id_being_responded_to}: {_answer(message)}"
    priority = getattr(message, "priority", None)
    if priority:
        parts.append(f"priority {_PRIORITIES.get(priority, priority)}")
    destination = getattr(message, "move_destination", None)
    if destination is not None:
        parts.append(f"to {destination!r}")
    if isinstance(message, CStoreRQ) and message.move_originator_application_entity_title:
        parts.append(
            f"for the C-MOVE {message.move_originator_message_id} of "
            f"{message.move_originator_application_entity_title!r}"
        )
    if isinstance(message, NEventReportRQ):
        parts.append(f"event type {message.event_type_id}")
    if isinstance(message, NActionRQ):
        parts.append(f"action type {message.action_type_id}")
    tags = getattr(message, "attribute_identifier_list", None)
    if tags:
        parts.append(f"{len(tags)} attributes")
    if message.has_dataset:
        parts.append("with a data set")
    number = getattr(message, "message_id", None) or getattr(message, "message_id_being_responded_to", "")
    return f"{message.NAME} {number}" + (f": {', '.join(parts)}" if parts else "")


def _answer(message: Response) -> str:
    sop_class = getattr(message, "affected_sop_class_uid", None) or ""
    parts = [f"0x{message.status:04X} {meaning(message.status, message.SERVICE, sop_class, message.error_id)}"]
    counts = [
        f"{number} {name}"
        for name in ("remaining", "completed", "failed", "warning")
        if (number := getattr(message, f"number_of_{name}_suboperations", None)) is not None
    ]
    if counts:
        parts.append(f"sub-operations: {', '.join(counts)}")
    if message.error_comment:
        parts.append(f"comment {one_line(message.error_comment, 64)!r}")
    if message.offending_element:
        tags = [f"({tag >> 16:04X},{tag & 0xFFFF:04X})" for tag in message.offending_element[:MAX_SYNTAXES]]
        parts.append(f"offending element {', '.join(tags)}")
    if message.has_dataset:
        parts.append("with a data set")
    return "; ".join(parts)


_HANDLERS: Final[tuple[tuple[evt.EventType, evt.Handler], ...]] = (
    (evt.EVT_CONN_OPEN, _opened),
    (evt.EVT_REQUESTED, _requested),
    (evt.EVT_ACCEPTED, _accepted),
    (evt.EVT_REJECTED, _rejected),
    (evt.EVT_ACSE_SENT, _control("->")),
    (evt.EVT_ACSE_RECV, _control("<-")),
    (evt.EVT_DIMSE_SENT, _message("->")),
    (evt.EVT_DIMSE_RECV, _message("<-")),
    (evt.EVT_ABORTED, _aborted),
    (evt.EVT_RELEASED, _released),
    (evt.EVT_CONN_CLOSE, _closed),
)
