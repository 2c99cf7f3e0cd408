"""
The record of an association after its end: peers, contexts, operations, ending.

An association has a :class:`RecordKeeper` only if a handler is bound to ``EVT_RECORD``. It collects the notifications of
the association and builds the :class:`AssociationRecord` at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import time
from typing import Any, Final, TypeVar

from dicomtwist import evt
from dicomtwist.association.operation_log import LoggedOperation, OperationLog
from dicomtwist.dimse.messages import Message, Request, Response
from dicomtwist.dimse.status import StatusCategory, category
from dicomtwist.errors import AssociationAborted, AssociationRejected, AssociationTimeout
from dicomtwist.interfaces import AssociationInterface
from dicomtwist.runtime.figures.network import NetworkFigures

#: The number of operations of an association that are recorded one by one; further ones are only counted.
MAX_OPERATIONS: Final = 1000

#: The number of different (direction, service, status) that have a count of their own.
MAX_COUNTED: Final = 200

#: The status under which the counts collect all statuses beyond MAX_COUNTED. No DIMSE status is negative.
OTHER_STATUS: Final = -1

_Handler = TypeVar("_Handler", bound=Callable[..., Any])

#: The directions of the request of an operation.
SENT: Final = "sent"
RECEIVED: Final = "received"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextRecord:
    """
    A presentation context that was proposed.

    :ivar context_id: its ID.
    :ivar abstract_syntax: the SOP Class UID.
    :ivar transfer_syntax: the transfer syntax that was accepted, ``None`` if none was.
    :ivar result: 0 for accepted, another number for a rejection (PS3.8 9.3.3.2), ``None`` without an answer.
    """

    context_id: int | None
    abstract_syntax: str
    transfer_syntax: str | None
    result: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRecord:
    """
    A DIMSE operation.

    :ivar direction: ``"sent"`` for a request of this side, ``"received"`` for one of the peer.
    :ivar service: such as ``"C-STORE"``.
    :ivar message_id: the Message ID of the request.
    :ivar sop_class_uid: the SOP Class UID of the request, ``""`` if it has none.
    :ivar sop_instance_uid: the SOP Instance UID of the request, or of the response to an N-CREATE; ``""`` without one.
    :ivar status: the status of the final response, ``None`` if none came.
    :ivar pending: the number of pending responses before it.
    :ivar started: the time from the start of the association to the request, in seconds.
    :ivar seconds: the time from the command set of the request to that of the final response, or to the end of the
        association, in seconds.
    """

    direction: str
    service: str
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    status: int | None
    pending: int
    started: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationCount:
    """
    The number of operations that ended in one way.

    :ivar status: the status, ``None`` for no response, ``OTHER_STATUS`` for more different ones than are counted.
    """

    direction: str
    service: str
    status: int | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """
    How an association ended.

    :ivar kind: ``"released"``, ``"aborted"``, ``"rejected"``, ``"timeout"``, ``"lost"``, or ``"not asked for"`` for a
        connection that was closed before an association was requested.
    :ivar by: ``"us"`` or ``"peer"``: the side that requested the release, aborted, rejected or stopped waiting; ``None`` if
        neither side did.
    :ivar why: the error in words, ``""`` if the association was released.
    :ivar codes: result, source and reason of a rejection, source and reason of an abort, else empty.
    :ivar timer: the timer that expired, as :attr:`~dicomtwist.AssociationTimeout.timer`; ``None`` for other endings.
    """

    kind: str
    by: str | None = None
    why: str = ""
    codes: tuple[int, ...] = ()
    timer: str | None = None

    def __str__(self) -> str:
        return self.why or (
            f"{self.kind} by {'this side' if self.by == 'us' else 'the peer'}" if self.by else self.kind
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationRecord:
    """
    An association that has ended.

    :ivar mode: the role of this side, ``"requestor"`` or ``"acceptor"``.
    :ivar calling_ae_title: the AE title of the requestor, ``""`` if no request came.
    :ivar called_ae_title: the AE title that was called.
    :ivar local: address and port of this side.
    :ivar remote: address and port of the peer.
    :ivar secure: whether the connection was TLS.
    :ivar implementation_class_uid: the Implementation Class UID of the peer, ``""`` if it sent none.
    :ivar implementation_version_name: the Implementation Version Name of the peer, ``""`` if it sent none.
    :ivar started: when the connection was made.
    :ivar seconds: the time from then to its end, in seconds.
    :ivar established: the time from the start until the association was established, in seconds; ``None`` if it never was.
    :ivar bytes_received: the number of bytes that were received.
    :ivar bytes_sent: the number of bytes that were given to the transport.
    :ivar contexts: the presentation contexts, in the order of their IDs.
    :ivar operations: the first operations that ended, in the order of their ends, then those that never ended; none if all
        handlers of ``EVT_RECORD`` are :func:`counting`.
    :ivar omitted: the number of further operations, which are only in the counts.
    :ivar counts: all operations, by direction, service and status.
    :ivar ending: how it ended.
    """

    mode: str
    calling_ae_title: str
    called_ae_title: str
    local: tuple[str, int]
    remote: tuple[str, int]
    secure: bool
    implementation_class_uid: str
    implementation_version_name: str
    started: datetime
    seconds: float
    established: float | None
    bytes_received: int
    bytes_sent: int
    contexts: tuple[ContextRecord, ...]
    operations: tuple[OperationRecord, ...]
    omitted: int
    counts: tuple[OperationCount, ...]
    ending: Ending

    @property
    def ended(self) -> datetime:
        """When the connection was closed."""
        return self.started + timedelta(seconds=self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as a dict for ``json.dumps``; times are ISO 8601 in UTC."""
        result = _plain(self)
        result["started"] = self.started.isoformat()
        result["ended"] = self.ended.isoformat()
        return dict(result)

    def __str__(self) -> str:
        peer, us = _address(self.remote), _address(self.local)
        requestor, acceptor = (us, peer) if self.mode == "requestor" else (peer, us)
        return (
            f"{self.calling_ae_title!r} at {requestor} to {self.called_ae_title!r} at {acceptor}: {self._what()};"
            f" {self.bytes_received} bytes in, {self.bytes_sent} out, {self.seconds:.3f} s; {_one_line(str(self.ending))}"
        )

    def _what(self) -> str:
        totals: Counter[tuple[str, str]] = Counter()
        failures: Counter[tuple[str, str]] = Counter()
        for item in self.counts:
            key = item.direction, item.service
            totals[key] += item.count
            # It is not known which statuses were collected under OTHER_STATUS.
            if item.status is None or (item.status >= 0 and category(item.status) is StatusCategory.FAILURE):
                failures[key] += item.count
        words = [
            f"{count} {service} {direction}"
            + (f" ({failures[direction, service]} failed)" if failures[direction, service] else "")
            for (direction, service), count in totals.items()
        ]
        return ", ".join(words) or "nothing asked for"


def _plain(value: Any) -> Any:
    """Return records as dicts and tuples as lists."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    fields = getattr(value, "__dataclass_fields__", None)
    return value if fields is None else {name: _plain(getattr(value, name)) for name in fields}


def _address(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _one_line(text: str) -> str:
    """Return *text* without line breaks, because a part of it may come from the peer."""
    return "".join(character if character.isprintable() else " " for character in text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """
    The operations of an association so far.

    :ivar counts: the operations that have ended, by direction, service and status.
    :ivar under_way: the others: direction, service, and the time since the request, in seconds.
    """

    counts: tuple[OperationCount, ...]
    under_way: tuple[tuple[str, str, float], ...]


def counting(handler: _Handler) -> _Handler:
    """
    Mark a handler of ``EVT_RECORD`` as one that needs the counts of operations, and not the list of them.

    The list of an association with many operations takes about 100 KB while it is open.
    """
    handler.is_counting = True  # type: ignore[attr-defined]
    return handler


def lists_operations(handlers: Iterable[tuple[Any, Any]]) -> bool:
    """
    Return whether a handler of ``EVT_RECORD`` needs the list of operations.

    :param handlers: the handlers, with their arguments.
    """
    return any(not getattr(handler, "is_counting", False) for handler, _ in handlers)


class _Open:
    """An operation that is under way."""

    __slots__ = ("direction", "pending", "request", "since")

    def __init__(self, direction: str, request: Request, since: float) -> None:
        self.direction = direction
        self.request = request
        self.since = since
        self.pending = 0


class RecordKeeper:
    """
    Collects the record of an association, from the time when a handler for it is bound.

    :param now: the time, in seconds of the clock.
    :param lists: whether it lists operations; otherwise it only counts them.

    :ivar lists: this parameter, which may change.
    """

    __slots__ = (
        "_asked_for",
        "_counts",
        "_established",
        "_omitted",
        "_open",
        "_operations",
        "_proposed",
        "_released_by",
        "_since",
        "_started",
        "lists",
    )  # fmt: skip

    def __init__(self, now: float, *, lists: bool = True) -> None:
        self.lists = lists
        self._since = now
        self._started = datetime.fromtimestamp(time(), UTC)
        self._established: float | None = None
        self._asked_for = False
        self._proposed: tuple[ContextRecord, ...] = ()
        self._released_by: str | None = None
        # Several for one Message ID: a request with an ID that is in use is refused, before the first one is answered.
        self._open: dict[tuple[str, int], list[_Open]] = {}
        self._operations = OperationLog(MAX_OPERATIONS)
        self._omitted = 0
        self._counts: Counter[tuple[str, str, int | None]] = Counter()

    def notified(self, event: evt.EventType, attributes: Mapping[str, Any], now: float) -> None:
        """Add a notification to the record."""
        if event is evt.EVT_DIMSE_SENT:
            self._message(SENT, RECEIVED, attributes["message"], now)
        elif event is evt.EVT_DIMSE_RECV:
            self._message(RECEIVED, SENT, attributes["message"], now)
        elif event is evt.EVT_ACSE_SENT:
            self._control(attributes["primitive"], "A-RELEASE request", "us")
        elif event is evt.EVT_ACSE_RECV:
            self._control(attributes["primitive"], "A-RELEASE indication", "peer")
        elif event is evt.EVT_REQUESTED:
            self._asked_for = True
            self._proposed = tuple(
                ContextRecord(
                    context_id=context.context_id,
                    abstract_syntax=context.abstract_syntax,
                    transfer_syntax=None,
                    result=None,
                )
                for context in attributes["pdu"].presentation_contexts
            )
        elif event is evt.EVT_ESTABLISHED:
            self._established = now - self._since

    def _control(self, primitive: str, release: str, by: str) -> None:
        if primitive == release and self._released_by is None:
            self._released_by = by

    def _message(self, asking: str, answering: str, message: Message, now: float) -> None:
        """
        Add a message to the record.

        :param asking: the direction to record if *message* is a request.
        :param answering: the direction of the operation if *message* is a response: that of its request.
        """
        if isinstance(message, Request):
            self._open.setdefault((asking, message.message_id), []).append(_Open(asking, message, now))
        elif isinstance(message, Response):
            key = answering, message.message_id_being_responded_to
            waiting = self._open.get(key)
            if not waiting:
                return  # the association is aborted for this message
            if category(message.status) is StatusCategory.PENDING:
                waiting[-1].pending += 1
                return
            operation = waiting.pop()
            if not waiting:
                del self._open[key]
            self._done(operation, message, now)

    def _done(self, operation: _Open, response: Response | None, now: float) -> None:
        request = operation.request
        status = None if response is None else response.status
        counted = operation.direction, request.SERVICE, status
        if counted not in self._counts and len(self._counts) >= MAX_COUNTED:
            counted = operation.direction, request.SERVICE, OTHER_STATUS
        self._counts[counted] += 1
        if not self.lists or not self._operations.add(
            LoggedOperation(
                direction=operation.direction,
                service=request.SERVICE,
                sop_class_uid=_uid(request, "sop_class_uid"),
                # The SCP of an N-CREATE may choose the UID, which is then in its response (PS3.7 10.1.5.1.4).
                sop_instance_uid=_uid(request, "sop_instance_uid") or _uid(response, "sop_instance_uid"),
                message_id=request.message_id,
                status=status,
                pending=operation.pending,
                started=operation.since - self._since,
                seconds=now - operation.since,
            )
        ):
            self._omitted += 1

    def progress(self, now: float) -> Progress:
        """Return what has happened so far."""
        return Progress(
            counts=self._operation_counts(),
            under_way=tuple(
                (one.direction, one.request.SERVICE, now - one.since)
                for waiting in self._open.values()
                for one in waiting
            ),
        )

    def _operation_counts(self) -> tuple[OperationCount, ...]:
        return tuple(
            OperationCount(direction=direction, service=service, status=status, count=count)
            for (direction, service, status), count in self._counts.items()
        )

    def finish(self, association: AssociationInterface, now: float) -> AssociationRecord:
        """Return the record of *association*, which has ended."""
        for operation in [operation for waiting in self._open.values() for operation in waiting]:
            self._done(operation, None, now)
        self._open.clear()
        requestor, remote, local = association.requestor, association.remote, association.local
        return AssociationRecord(
            mode=association.mode,
            calling_ae_title=requestor.ae_title,
            called_ae_title=requestor.called_ae_title,
            local=(local.address, local.port),
            remote=(remote.address, remote.port),
            secure=association.protocol.secure,
            implementation_class_uid=remote.implementation_class_uid,
            implementation_version_name=remote.implementation_version_name,
            started=self._started,
            seconds=now - self._since,
            established=self._established,
            bytes_received=association.bytes_received,
            bytes_sent=association.bytes_sent,
            contexts=_contexts(association) or self._proposed,
            operations=tuple(_record_of(one) for one in self._operations.operations()),
            omitted=self._omitted,
            counts=self._operation_counts(),
            ending=ending_of(association, self._asked_for, self._released_by),
        )


def _record_of(one: LoggedOperation) -> OperationRecord:
    return OperationRecord(
        direction=one.direction,
        service=one.service,
        message_id=one.message_id,
        sop_class_uid=one.sop_class_uid,
        sop_instance_uid=one.sop_instance_uid,
        status=one.status,
        pending=one.pending,
        started=one.started,
        seconds=one.seconds,
    )


def count_ended(association: AssociationInterface, figures: NetworkFigures, seconds: float) -> None:
    """Count *association*, which has ended after *seconds*."""
    # An acceptor knows the title of the requestor from its request.
    ending = ending_of(association, association.is_requestor or bool(association.requestor.ae_title))
    figures.associations.add((association.mode, ending.kind, ending.by or ""))
    figures.lifetimes.add(association.mode, seconds)
    figures.bytes_received += association.bytes_received
    figures.bytes_sent += association.bytes_sent


def ending_of(association: AssociationInterface, was_requested: bool, released_by: str | None = None) -> Ending:
    """
    Return how *association* has ended.

    :param was_requested: whether an association was requested on the connection.
    :param released_by: the side that requested its release, if it is known.
    """
    if association.is_released:
        return Ending(kind="released", by=released_by)
    error = association.end_reason
    why = str(error)
    if isinstance(error, AssociationRejected):
        by = "peer" if association.is_requestor else "us"
        return Ending(kind="rejected", by=by, why=why, codes=(error.result, error.source, error.reason))
    if isinstance(error, AssociationTimeout):
        return Ending(kind="timeout", by="us", why=why, timer=error.timer)
    if isinstance(error, AssociationAborted):
        by = "peer" if error.by_peer else "us"
        return Ending(kind="aborted", by=by, why=why, codes=(error.source, error.reason))
    return Ending(kind="lost" if was_requested or association.was_established else "not asked for", why=why)


def _uid(message: Message | None, name: str) -> str:
    """Return a UID of *message*: the affected or the requested one, as the service names it."""
    for prefix in ("affected_", "requested_"):
        value = getattr(message, prefix + name, None)
        if value:
            return str(value)
    return ""


def _contexts(association: AssociationInterface) -> tuple[ContextRecord, ...]:
    """Return the records of the contexts that were answered."""
    contexts = [*association.accepted_contexts, *association.rejected_contexts]
    return tuple(
        ContextRecord(
            context_id=context.context_id,
            abstract_syntax=str(context.abstract_syntax),
            transfer_syntax=str(context.transfer_syntax[0]) if context.result == 0 else None,
            result=context.result,
        )
        for context in sorted(contexts, key=lambda context: context.context_id or 0)
    )
