"""
Events that users bind handlers to, and the objects that handlers receive.

There are two kinds. A *notification* reports what has happened: any number of handlers may be bound, and their results
are ignored. An *intervention* asks for a decision: one handler may be bound, and its result is used. The result is a
value, or a Deferred, a coroutine or another awaitable that gives it.

Handlers are bound with ``evt_handlers=[(evt.EVT_C_STORE, handler), (evt.EVT_RELEASED, handler, [argument])]`` at an AE, a
server or an association. A handler is called as ``handler(event, *arguments)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from time import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from pydicom.tag import BaseTag, Tag
from pydicom.uid import generate_uid

from dicomtwist.datasets.codec import DecodingLimits, decode_dataset, file_meta_dataset
from dicomtwist.datasets.identifier import decode_small
from dicomtwist.datasets.stream import DataSetStream
from dicomtwist.dimse.messages import (
    CFindRQ,
    CGetRQ,
    CMoveRQ,
    CStoreRQ,
    NActionRQ,
    NCreateRQ,
    NDeleteRQ,
    NEventReportRQ,
    NGetRQ,
    NSetRQ,
    Request,
)
from dicomtwist.errors import DataSetError, DataSetTooLong
from dicomtwist.interfaces import AssociationInterface, PerformedOperation
from dicomtwist.interfaces import EventType as EventType
from dicomtwist.interfaces import Handler as Handler
from dicomtwist.interfaces import HandlerTuple as HandlerTuple
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta
from dicomtwist.presentation import PresentationContextTuple

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset


#: The requests of DIMSE-N.
NormalisedRequest: TypeAlias = NActionRQ | NCreateRQ | NDeleteRQ | NEventReportRQ | NGetRQ | NSetRQ


def _notification(name: str, description: str) -> EventType:
    return EventType(name, description)


def _intervention(name: str, description: str) -> EventType:
    return EventType(name, description, True)


EVT_CONN_OPEN: Final = _notification("EVT_CONN_OPEN", "a transport connection is open")
EVT_CONN_CLOSE: Final = _notification("EVT_CONN_CLOSE", "a transport connection is closed")
EVT_DATA_RECV: Final = _notification("EVT_DATA_RECV", "bytes were received: event.data")
EVT_DATA_SENT: Final = _notification("EVT_DATA_SENT", "bytes were given to the transport: event.data")
EVT_PDU_RECV: Final = _notification("EVT_PDU_RECV", "a PDU, or a fragment of a P-DATA-TF, was received: event.pdu")
EVT_PDU_SENT: Final = _notification("EVT_PDU_SENT", "a PDU other than P-DATA-TF was sent: event.pdu")
EVT_ACSE_RECV: Final = _notification("EVT_ACSE_RECV", "an association control message was received: event.primitive")
EVT_ACSE_SENT: Final = _notification("EVT_ACSE_SENT", "an association control message was sent: event.primitive")
EVT_DIMSE_RECV: Final = _notification("EVT_DIMSE_RECV", "a DIMSE command set was received: event.message")
EVT_DIMSE_SENT: Final = _notification("EVT_DIMSE_SENT", "a DIMSE message was sent: event.message")
EVT_C_CANCEL: Final = _notification(
    "EVT_C_CANCEL", "the peer cancels an operation that is being performed: event.message_id, event.request"
)
EVT_FSM_TRANSITION: Final = _notification(
    "EVT_FSM_TRANSITION", "the state machine changed its state: event.current_state, event.next_state"
)
EVT_REQUESTED: Final = _notification(
    "EVT_REQUESTED", "an association is requested, by the peer or by this side: event.pdu"
)
EVT_ACCEPTED: Final = _notification(
    "EVT_ACCEPTED", "an association was accepted, by the peer or by this side: event.pdu"
)
EVT_ESTABLISHED: Final = _notification("EVT_ESTABLISHED", "an association can be used")
EVT_REJECTED: Final = _notification(
    "EVT_REJECTED", "an association was rejected, by the peer or by this side: event.pdu"
)
EVT_RELEASED: Final = _notification("EVT_RELEASED", "an association was released")
EVT_ABORTED: Final = _notification("EVT_ABORTED", "an association was aborted or lost: event.reason")
EVT_RECORD: Final = _notification("EVT_RECORD", "an association has ended, with its record: event.record")

EVT_ASYNC_OPS: Final = _intervention(
    "EVT_ASYNC_OPS", "the peer proposes an asynchronous operations window; returns (invoked, performed)"
)
EVT_SOP_EXTENDED: Final = _intervention(
    "EVT_SOP_EXTENDED", "the peer proposes SOP Class extended negotiation; returns {SOP Class UID: bytes}"
)
EVT_SOP_COMMON: Final = _intervention(
    "EVT_SOP_COMMON", "the peer proposes SOP Class common extended negotiation; returns the items that are accepted"
)
EVT_USER_ID: Final = _intervention(
    "EVT_USER_ID", "the peer sends a user identity; returns (verified, response or None)"
)
EVT_C_ECHO: Final = _intervention("EVT_C_ECHO", "C-ECHO request; returns the status")
EVT_C_STORE: Final = _intervention("EVT_C_STORE", "C-STORE request; returns the status")
EVT_C_FIND: Final = _intervention("EVT_C_FIND", "C-FIND request; yields (status, identifier)")
EVT_C_GET: Final = _intervention("EVT_C_GET", "C-GET request; yields the number, then (status, instance)")
EVT_C_MOVE: Final = _intervention(
    "EVT_C_MOVE", "C-MOVE request; yields the destination, the number, then (status, instance)"
)
EVT_N_ACTION: Final = _intervention("EVT_N_ACTION", "N-ACTION request; returns (status, action reply or None)")
EVT_N_CREATE: Final = _intervention("EVT_N_CREATE", "N-CREATE request; returns (status, attribute list or None)")
EVT_N_DELETE: Final = _intervention("EVT_N_DELETE", "N-DELETE request; returns the status")
EVT_N_EVENT_REPORT: Final = _intervention(
    "EVT_N_EVENT_REPORT", "N-EVENT-REPORT request; returns (status, event reply or None)"
)
EVT_N_GET: Final = _intervention("EVT_N_GET", "N-GET request; returns (status, attribute list or None)")
EVT_N_SET: Final = _intervention("EVT_N_SET", "N-SET request; returns (status, attribute list or None)")

_EVENTS: Final = tuple(value for value in dict(globals()).values() if isinstance(value, EventType))

_H = TypeVar("_H", bound=Handler)


def streaming(handler: _H) -> _H:
    """
    Mark *handler* as a streaming handler, which receives the data set of a C-STORE while it arrives.

    A streaming handler is called with the command set, before the data set has arrived, and reads ``event.stream``: either
    ``async for chunk in event.stream`` or ``event.stream.deliver_to(sink)``. Any other handler is called when the data set
    is complete.
    """
    handler.is_streaming = True  # type: ignore[attr-defined]
    return handler


def decoding(handler: _H) -> _H:
    """
    Mark *handler* as one that decodes the data set of a request itself, in a thread, when it has come to it.

    Any other handler finds a data set decoded, which takes many times the memory of its bytes. Requests that wait in a handler
    do not need that yet. A small data set is decoded in any case. For others the accessors of the event decode, and raise
    :class:`~dicomtwist.errors.DataSetTooLong` beyond the limits.
    """
    handler.is_decoding = True  # type: ignore[attr-defined]
    return handler


class Handlers:
    """
    The handlers that are bound at one level: an association, a server or an AE.

    A notification reaches the handlers of every level, those of the AE first; an intervention reaches one, that of the
    innermost level.

    :param handlers: the handlers to bind.
    :param parent: the next outer level.
    """

    __slots__ = ("_interventions", "_notifications", "parent")

    def __init__(self, handlers: Iterable[HandlerTuple] | None = None, parent: Handlers | None = None) -> None:
        self.parent = parent
        self._notifications: dict[EventType, list[tuple[Handler, tuple[Any, ...]]]] = {}
        self._interventions: dict[EventType, tuple[Handler, tuple[Any, ...]]] = {}
        for item in handlers or ():
            self.bind(*item)

    def bind(self, event: EventType, handler: Handler, args: Sequence[Any] | None = None) -> None:
        """
        Bind *handler* to *event*. The handler of an intervention replaces the one before.

        :param args: further arguments of the handler, after the event.
        :raises TypeError: *event* is not an event of this module, or *handler* is not callable.
        """
        if not isinstance(event, EventType):
            raise TypeError(f"{event!r} is not an event of dicomtwist.evt")
        if not callable(handler):
            raise TypeError(f"the handler {handler!r} of {event!r} is not callable")
        entry = (handler, tuple(args or ()))
        if event.is_intervention:
            self._interventions[event] = entry
        else:
            entries = self._notifications.setdefault(event, [])
            if handler not in [bound for bound, _ in entries]:
                entries.append(entry)

    def unbind(self, event: EventType, handler: Handler) -> None:
        """Unbind *handler* from *event* at this level, if it is bound."""
        if event.is_intervention:
            entry = self._interventions.get(event)
            if entry is not None and entry[0] == handler:
                del self._interventions[event]
            return
        entries = self._notifications.get(event, [])
        entries[:] = [entry for entry in entries if entry[0] != handler]
        if not entries:
            self._notifications.pop(event, None)

    def get(self, event: EventType) -> tuple[Handler, tuple[Any, ...]] | None:
        """Return the handler and arguments of an intervention, or ``None`` if none is bound."""
        level: Handlers | None = self
        while level is not None:
            entry = level._interventions.get(event)
            if entry is not None:
                return entry
            level = level.parent
        return None

    def listeners(self, event: EventType) -> list[tuple[Handler, tuple[Any, ...]]]:
        """Return the handlers and arguments of a notification, the outermost level first."""
        found = self.parent.listeners(event) if self.parent is not None else []
        return found + self._notifications[event] if event in self._notifications else found

    def wants(self, event: EventType) -> bool:
        """Whether a handler of a notification is bound: a cheap test for frequent events."""
        level: Handlers | None = self
        while level is not None:
            if event in level._notifications:
                return True
            level = level.parent
        return False

    def bound(self, event: EventType | None = None) -> list[HandlerTuple]:
        """Return the handlers that are bound at this level, to *event* or to any event."""
        found: list[HandlerTuple] = [
            (key, handler, args)
            for key, entries in self._notifications.items()
            for handler, args in entries
            if event in (None, key)
        ]
        found += [(key, *entry) for key, entry in self._interventions.items() if event in (None, key)]
        return found

    def events(self) -> list[EventType]:
        """Return the events with a handler that is bound at this level, in the order of their names."""
        return sorted({bound[0] for bound in self.bound()}, key=lambda event: event.name)

    def reached(self, event: EventType | None = None) -> list[HandlerTuple]:
        """Return the handlers that *event*, or any event, reaches from this level: those of outer levels first."""
        found: list[HandlerTuple] = []
        for one in _EVENTS if event is None else (event,):
            if one.is_intervention:
                entry = self.get(one)
                entries = [] if entry is None else [entry]
            else:
                entries = self.listeners(one)
            found += [(one, *bound) for bound in entries]
        return found


def get_events() -> list[EventType]:
    """Return all events, in the order of their names."""
    return sorted(_EVENTS, key=lambda event: event.name)


class Event:
    """
    An occurrence of an event, the first argument of its handlers.

    :ivar event: the event, one of this module.
    :ivar assoc: the association of the event.
    :ivar timestamp: the time of the event, as an aware ``datetime`` in UTC.
    """

    def __init__(self, event: EventType, assoc: AssociationInterface, **attributes: Any) -> None:
        self.event = event
        self.assoc = assoc
        self._seconds = time()
        self.__dict__.update(attributes)

    @property
    def timestamp(self) -> datetime:
        """The time of the event."""
        return datetime.fromtimestamp(self._seconds, UTC)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self.event.name} has no attribute {name!r}: {self.event.description}")

    def __repr__(self) -> str:
        return f"<{self.event.name} of {self.assoc!r}>"


class DIMSEEvent(Event):
    """
    A request of the peer.

    :ivar request: its command set, such as :class:`~dicomtwist.dimse.messages.CStoreRQ`.
    :ivar context: the presentation context of the request: context_id, abstract_syntax, transfer_syntax.
    """

    def __init__(
        self, event: EventType, assoc: AssociationInterface, request: Request, context: PresentationContextTuple
    ) -> None:
        self.event = event
        self.assoc = assoc
        self._seconds = time()
        self.request = request
        self.context = context

    @property
    def message_id(self) -> int:
        """The Message ID (0000,0110) of the request."""
        return self.request.message_id


class DataSetEvent(DIMSEEvent):
    """
    A request with a data set that was collected in memory.

    It is decoded before the handler is called: in the reactor thread if that takes milliseconds, otherwise in another, or by
    a handler that is marked with :func:`decoding`.
    """

    def __init__(
        self, event: EventType, performance: PerformedOperation, encoded: bytes, limits: DecodingLimits
    ) -> None:
        super().__init__(event, performance.assoc, performance.request, performance.context)
        self._encoded = encoded
        self._limits = limits
        self._dataset: Dataset | None = None
        self._failure: DataSetError | None = None

    def decode(self) -> Dataset:
        """
        Return the data set, decoded at the first call.

        :raises DataSetError: it cannot be decoded.
        """
        if self._failure is not None:
            raise self._failure
        if self._dataset is None:
            self._dataset = self._attempt(decode_dataset)
        assert self._dataset is not None
        return self._dataset

    def decode_small(self) -> bool:
        """
        Decode the data set if that takes some milliseconds at the most.

        :returns: whether nothing is left to do: it is decoded, or :meth:`decode` will raise why it cannot be.
        :raises DataSetTooLong: it exceeds the limits.
        """
        try:
            self._dataset = self._attempt(decode_small)
        except DataSetTooLong:
            raise
        except DataSetError:
            return True
        return self._dataset is not None

    def _attempt(self, decode: Callable[[bytes, str, DecodingLimits], Dataset | None]) -> Dataset | None:
        try:
            return decode(self._encoded, str(self.context.transfer_syntax), self._limits)
        except DataSetError as error:
            # The failure is kept: the data set is not decoded again when the handler asks for it.
            self._failure = error
            raise


class IdentifierEvent(DataSetEvent):
    """
    A C-FIND, C-GET or C-MOVE request with its identifier.

    :ivar is_cancelled: whether the peer sent C-CANCEL for it or is gone; it changes while the handler works.
    """

    request: CFindRQ | CGetRQ | CMoveRQ

    def __init__(self, event: EventType, performance: PerformedOperation, encoded: bytes) -> None:
        settings = performance.assoc.settings
        limits = DecodingLimits(
            settings.maximum_identifier_size,
            settings.maximum_identifier_elements,
            settings.maximum_identifier_values,
        )
        super().__init__(event, performance, encoded, limits)
        self._performance = performance

    @property
    def is_cancelled(self) -> bool:
        """Whether the peer wants no further responses."""
        return self._performance.is_cancelled

    @property
    def identifier(self) -> Dataset:
        """
        The identifier: the keys to match and to return.

        :raises DataSetError: it cannot be decoded.
        """
        return self.decode()

    @property
    def encoded_identifier(self) -> bytes:
        """The identifier as it was received."""
        return self._encoded

    @property
    def move_destination(self) -> str:
        """The Move Destination (0000,0600) of a C-MOVE: the AE title to send to."""
        if not isinstance(self.request, CMoveRQ):
            raise AttributeError(f"{self.event.name} has no move destination")
        return self.request.move_destination


class NormalisedEvent(DataSetEvent):
    """
    A request of a DIMSE-N service (PS3.7 10.1): this class for N-DELETE, a subclass for each of the others.

    Without a data set, it is empty.
    """

    request: NormalisedRequest

    def __init__(self, event: EventType, performance: PerformedOperation) -> None:
        settings = performance.assoc.settings
        limits = DecodingLimits(
            settings.maximum_buffered_size, settings.maximum_attributes, settings.maximum_attribute_values
        )
        super().__init__(event, performance, b"", limits)
        self._made_uid: str | None = None

    def complete(self, encoded: bytes) -> None:
        """Take the data set, before the handler is called."""
        self._encoded = encoded

    @property
    def sop_class_uid(self) -> str:
        """The Affected or Requested SOP Class UID of the request."""
        request = self.request
        if isinstance(request, NCreateRQ | NEventReportRQ):
            return request.affected_sop_class_uid
        return request.requested_sop_class_uid

    @property
    def sop_instance_uid(self) -> str:
        """
        The Affected or Requested SOP Instance UID of the request.

        For an N-CREATE that leaves it to this side, a UID that is generated at the first access: the response contains it,
        unless the handler returns another one.
        """
        request = self.request
        if not isinstance(request, NCreateRQ | NEventReportRQ):
            return request.requested_sop_instance_uid
        if request.affected_sop_instance_uid:
            return request.affected_sop_instance_uid
        if self._made_uid is None:
            self._made_uid = str(generate_uid(prefix=None))
        return self._made_uid

    @property
    def meta_uid(self) -> str | None:
        """The abstract syntax of the context if it differs from the SOP Class: a Meta SOP Class, or another one of UPS."""
        abstract_syntax = str(self.context.abstract_syntax)
        return None if abstract_syntax == self.sop_class_uid else abstract_syntax

    @property
    def encoded_dataset(self) -> bytes:
        """The data set as it was received, empty if there is none."""
        return self._encoded


class CreateEvent(NormalisedEvent):
    """An N-CREATE request."""

    @property
    def attribute_list(self) -> Dataset:
        """
        The Attribute List of the new instance.

        :raises DataSetError: it cannot be decoded.
        """
        return self.decode()


class SetEvent(NormalisedEvent):
    """An N-SET request."""

    @property
    def modification_list(self) -> Dataset:
        """
        The Modification List: the attributes to change, with their new values.

        :raises DataSetError: it cannot be decoded.
        """
        return self.decode()


class GetEvent(NormalisedEvent):
    """An N-GET request."""

    @property
    def attribute_identifiers(self) -> list[BaseTag]:
        """The tags of the requested attributes; an empty list stands for all (PS3.7 10.1.2.1.5)."""
        assert isinstance(self.request, NGetRQ)
        return [Tag(tag) for tag in self.request.attribute_identifier_list or ()]


class ActionEvent(NormalisedEvent):
    """An N-ACTION request."""

    @property
    def action_type(self) -> int:
        """The Action Type ID (0000,1008)."""
        assert isinstance(self.request, NActionRQ)
        return self.request.action_type_id

    @property
    def action_information(self) -> Dataset:
        """
        The Action Information.

        :raises DataSetError: it cannot be decoded.
        """
        return self.decode()


class EventReportEvent(NormalisedEvent):
    """An N-EVENT-REPORT request."""

    @property
    def event_type(self) -> int:
        """The Event Type ID (0000,1002)."""
        assert isinstance(self.request, NEventReportRQ)
        return self.request.event_type_id

    @property
    def event_information(self) -> Dataset:
        """
        The Event Information.

        :raises DataSetError: it cannot be decoded.
        """
        return self.decode()


class StoreEvent(DIMSEEvent):
    """
    A C-STORE request with its data set.

    :ivar stream: the data set while it arrives, for a handler that is marked with :func:`streaming`.
    """

    request: CStoreRQ

    def __init__(
        self,
        event: EventType,
        assoc: AssociationInterface,
        request: CStoreRQ,
        context: PresentationContextTuple,
        stream: DataSetStream,
    ) -> None:
        # As DIMSEEvent does; this is done for each instance.
        self.event = event
        self.assoc = assoc
        self._seconds = time()
        self.request = request
        self.context = context
        self.stream = stream
        self._encoded: bytes | None = None
        self._dataset: Dataset | None = None

    def complete(self, encoded: bytes) -> None:
        """Take the whole data set, before a handler that is not streaming is called."""
        self._encoded = encoded

    @property
    def dataset(self) -> Dataset:
        """
        The data set, decoded at the first access.

        :raises DataSetError: it cannot be decoded.
        """
        if self._dataset is None:
            self._dataset = decode_dataset(self.encoded_dataset(include_meta=False), self.context.transfer_syntax)
        return self._dataset

    @property
    def file_meta(self) -> FileMetaDataset:
        """File Meta Information for a Part 10 file of the data set (PS3.10 7.1)."""
        return file_meta_dataset(self.meta)

    @property
    def meta(self) -> FileMeta:
        """File Meta Information of the data set, for :func:`dicomtwist.part10.encode_preamble_and_meta`."""
        request, assoc = self.request, self.assoc
        settings = assoc.settings
        # By position, in the order of the elements: this takes half of the time that names take.
        return FileMeta(
            request.affected_sop_class_uid,
            request.affected_sop_instance_uid,
            str(self.context.transfer_syntax),
            settings.implementation_class_uid,
            settings.implementation_version_name or "",
            assoc.remote.ae_title,
        )

    def encoded_dataset(self, include_meta: bool = True) -> bytes:
        """
        Return the data set as it was received.

        :param include_meta: whether to put preamble and File Meta Information in front, which makes a Part 10 file.
        :raises RuntimeError: the handler is a streaming handler, which reads :attr:`stream` instead.
        """
        if self._encoded is None:
            raise RuntimeError("a streaming handler has no whole data set: read event.stream")
        if not include_meta:
            return self._encoded
        return encode_preamble_and_meta(self.meta) + self._encoded
