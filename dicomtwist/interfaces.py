"""
Protocols by which a lower room knows an upper one, and the types that both need.

A handler finds an association at ``event.assoc`` and an AE at ``event.assoc.ae``. Their classes are in
:mod:`dicomtwist.association` and :mod:`dicomtwist.ae`, which import :mod:`dicomtwist.evt`; so events, service classes and
the exchange of messages know them by the Protocols of this module. Use these in annotations of code that handlers call.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, TypeAlias

from pydicom import Dataset
from pydicom.tag import BaseTag
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint

from dicomtwist.datasets.outgoing_instance import Transcoder
from dicomtwist.datasets.stream import DataSetStream
from dicomtwist.dimse.messages import Request
from dicomtwist.dimse.status import Status
from dicomtwist.presentation import PresentationContext, PresentationContextTuple
from dicomtwist.runtime.budget import Budget
from dicomtwist.runtime.executors import Executors
from dicomtwist.runtime.figures.network import NetworkFigures
from dicomtwist.settings import Settings
from dicomtwist.ul.items import RoleSelection, SOPClassCommonExtended, UserIdentity

Handler: TypeAlias = Callable[..., Any]
#: How handlers are given: (event, handler) or (event, handler, arguments).
HandlerTuple: TypeAlias = "tuple[EventType, Handler] | tuple[EventType, Handler, Sequence[Any]]"


@dataclass(frozen=True, eq=False)
class EventType:
    """
    Something to bind a handler to; :mod:`dicomtwist.evt` has them all.

    :ivar name: its name in code, such as ``"EVT_C_STORE"``.
    :ivar description: when it occurs.
    :ivar is_intervention: whether the result of its handler matters.
    """

    name: str
    description: str
    is_intervention: bool = False

    @property
    def is_notification(self) -> bool:
        """Whether the result of its handlers is ignored."""
        return not self.is_intervention

    def __repr__(self) -> str:
        return f"evt.{self.name}"


class AssociationSide(Protocol):
    """One side of an association, see :class:`dicomtwist.association.ServiceUser` for its attributes."""

    ae_title: str
    called_ae_title: str
    address: str
    port: int
    proxy: str
    maximum_length: int
    implementation_class_uid: str
    implementation_version_name: str
    asynchronous_operations: tuple[int, int]
    role_selection: dict[str, RoleSelection]
    user_identity: UserIdentity | bytes | None
    sop_class_extended: dict[str, bytes]
    sop_class_common_extended: dict[str, SOPClassCommonExtended]
    presentation_contexts: list[PresentationContext]


class UpperLayer(Protocol):
    """
    The upper layer under an association, as the exchange of messages knows it.

    :ivar transport: the connection, a Twisted transport.
    :ivar secure: whether the connection is TLS.
    :ivar last_received: when bytes were last received, in seconds of the reactor's clock.
    :ivar last_sent: when bytes were last given to the transport, in seconds of that clock.
    :ivar write_paused_since: since when the transport takes no more bytes, ``None`` while it takes them.
    """

    transport: Any
    secure: bool
    last_received: float
    last_sent: float
    write_paused_since: float | None

    @property
    def may_send_data(self) -> bool:
        """Whether Table 9-10 of PS3.8 allows a P-DATA-TF now."""

    @property
    def write_size(self) -> int:
        """How many bytes make one efficient write to the transport."""

    def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Write encoded P-DATA-TF PDUs."""

    def pause_reading(self, timed: bool = True) -> None:
        """Stop reading from the peer; *timed* says whether the network timeout limits the pause."""

    def resume_reading(self, timed: bool = True) -> None:
        """End a pause that was begun with the same *timed*; the last one to end lets reading go on."""


class AEInterface(Protocol):
    """An Application Entity as associations and their handlers know it: a :class:`dicomtwist.AE`."""

    settings: Settings
    sendable_syntaxes: Callable[[str], Sequence[str]] | None
    transcoder: Transcoder | None

    @property
    def ae_title(self) -> str:
        """Its AE title."""

    @property
    def reactor(self) -> Any:
        """The reactor that it uses."""

    @property
    def executors(self) -> Executors:
        """The threads for what blocks, by purpose."""

    @property
    def figures(self) -> NetworkFigures:
        """Its figures of the network."""

    @property
    def request_memory(self) -> Budget:
        """The memory that the data sets of its requests take, those of C-STORE excepted."""

    @property
    def requested_contexts(self) -> list[PresentationContext]:
        """The presentation contexts that it proposes."""

    @property
    def supported_contexts(self) -> list[PresentationContext]:
        """The presentation contexts that it accepts."""

    @property
    def active_associations(self) -> Sequence[AssociationInterface]:
        """The associations that are established, of both roles."""

    def associate(
        self,
        address: str | IStreamClientEndpoint,
        port: int | None = None,
        *,
        ae_title: str | bytes = "ANY-SCP",
        contexts: Iterable[PresentationContext] | None = None,
        ext_neg: Iterable[object] | None = None,
        max_pdu: int | None = None,
        bind_address: tuple[str, int] | tuple[str, int, int, int] | None = None,
        tls_args: object = None,
        evt_handlers: Iterable[HandlerTuple] | None = None,
    ) -> Deferred[Any]:
        """Request an association, see :meth:`dicomtwist.AE.associate`; the Deferred gives the association."""

    def association_opened(self, association: Any) -> None:
        """Count *association*, whose connection was made."""

    def association_closed(self, association: Any) -> None:
        """Forget *association*, whose connection is closed."""


class Responses(Protocol):
    """The responses to a C-FIND, see :class:`dicomtwist.scu.Answers`."""

    @property
    def message_id(self) -> int | None:
        """The Message ID of the request, ``None`` while the request waits for the operations window."""

    @property
    def status(self) -> Status | None:
        """The status of the final response, ``None`` until it has come."""

    def __aiter__(self) -> AsyncIterator[tuple[Status, Dataset | None]]:
        """Iterate over (status, identifier or ``None``)."""

    def cancel(self) -> None:
        """Send C-CANCEL; responses come until the peer ends the operation."""

    def leave(self) -> None:
        """Send C-CANCEL and drop the responses that still come."""

    def collect(self, limit: int = ...) -> Deferred[Any]:
        """Return a Deferred with the identifiers of all pending responses, *limit* of them at most."""


class RetrievalResponses(Responses, Protocol):
    """The responses to a C-GET or C-MOVE, see :class:`dicomtwist.scu.Retrieval`."""

    def when_done(self) -> Deferred[Any]:
        """Return a Deferred with the :class:`dicomtwist.scu.RetrievalResult`."""


class AssociationInterface(Protocol):
    """
    An association as handlers and service classes know it: a :class:`dicomtwist.Association`, which documents each member.
    """

    ae: AEInterface
    settings: Settings
    mode: str
    is_established: bool
    was_established: bool
    is_rejected: bool
    is_aborted: bool
    is_released: bool

    @property
    def requestor(self) -> AssociationSide:
        """The side that requested the association."""

    @property
    def acceptor(self) -> AssociationSide:
        """The side that was asked for it."""

    @property
    def local(self) -> AssociationSide:
        """This side."""

    @property
    def remote(self) -> AssociationSide:
        """The peer."""

    @property
    def protocol(self) -> UpperLayer:
        """The Twisted protocol under the association."""

    @property
    def is_requestor(self) -> bool:
        """Whether this side requested it."""

    @property
    def is_acceptor(self) -> bool:
        """Whether the peer requested it."""

    def note_study(self, uid: str) -> None:
        """Count the study *uid* in the line of the log about the end of the association."""

    def log_refusal(self, emit: Callable[..., None], message: str, *details: object, **fields: object) -> None:
        """Log a line about an operation that is refused or fails, unless the association has had its share of them."""

    @property
    def accepted_contexts(self) -> list[PresentationContext]:
        """The accepted presentation contexts, in the order of their IDs."""

    @property
    def rejected_contexts(self) -> list[PresentationContext]:
        """The other presentation contexts, each with its result."""

    @property
    def bytes_received(self) -> int:
        """How many bytes were received."""

    @property
    def bytes_sent(self) -> int:
        """How many bytes were given to the transport."""

    @property
    def end_reason(self) -> BaseException | None:
        """Why it ended, ``None`` if it was released or has not ended."""

    def bind(self, event: EventType, handler: Handler, args: Sequence[Any] | None = None) -> None:
        """Bind *handler* to *event* for this association."""

    def unbind(self, event: EventType, handler: Handler) -> None:
        """Unbind a handler that was bound for this association."""

    def get_handlers(self, event: EventType | None = None) -> list[HandlerTuple]:
        """Return the handlers that *event*, or any event, of this association reaches."""

    def handler(self, event: EventType) -> tuple[Handler, tuple[Any, ...]] | None:
        """Return the handler of an intervention and its arguments, or ``None``."""

    def has_handler(self, event: EventType) -> bool:
        """Whether a handler of an intervention is bound."""

    def release(self) -> Deferred[None]:
        """Release the association when the operations of this side are answered."""

    def abort(self, detail: str = "", *, within: float | None = None) -> None:
        """
        Abort the association; *detail* says why, in the exceptions and the log of this side.

        :param within: the time for the peer to close the connection, in seconds; by default the ACSE timeout.
        """

    def when_ended(self) -> Deferred[Any]:
        """Return a Deferred that fires with the association when its connection is closed."""

    def check_established(self) -> None:
        """Raise :class:`~dicomtwist.errors.NotEstablished` if it is not established."""

    def context_for(
        self, abstract_syntax: str, transfer_syntax: str | None = None, *, as_scu: bool = True
    ) -> PresentationContextTuple:
        """Return the accepted presentation context for a service."""

    def send_c_echo(self) -> Deferred[Status]:
        """Send C-ECHO."""

    def send_c_store(
        self,
        dataset: str | os.PathLike[str] | bytes | BinaryIO | Dataset,
        *,
        priority: int = 2,
        originator_aet: str | bytes | None = None,
        originator_id: int | None = None,
    ) -> Deferred[Status]:
        """Send C-STORE."""

    def send_c_find(self, identifier: Dataset | bytes, query_model: str, *, priority: int = 2) -> Responses:
        """Send C-FIND."""

    def send_c_get(
        self,
        identifier: Dataset | bytes,
        query_model: str,
        *,
        priority: int = 2,
        on_progress: Callable[[Any], object] | None = None,
    ) -> RetrievalResponses:
        """Send C-GET."""

    def send_c_move(
        self,
        identifier: Dataset | bytes,
        move_aet: str,
        query_model: str,
        *,
        priority: int = 2,
        on_progress: Callable[[Any], object] | None = None,
    ) -> RetrievalResponses:
        """Send C-MOVE."""

    def send_c_cancel(self, message_id: int) -> None:
        """Send C-CANCEL."""

    def send_n_create(
        self,
        dataset: Dataset | bytes | None,
        class_uid: str,
        instance_uid: str | None = None,
        *,
        meta_uid: str | None = None,
    ) -> Deferred[tuple[Status, Dataset | None]]:
        """Send N-CREATE."""

    def send_n_set(
        self, dataset: Dataset | bytes, class_uid: str, instance_uid: str, *, meta_uid: str | None = None
    ) -> Deferred[tuple[Status, Dataset | None]]:
        """Send N-SET."""

    def send_n_get(
        self,
        identifier_list: Iterable[int | str | BaseTag | tuple[int, int]] | None,
        class_uid: str,
        instance_uid: str,
        *,
        meta_uid: str | None = None,
    ) -> Deferred[tuple[Status, Dataset | None]]:
        """Send N-GET."""

    def send_n_action(
        self,
        dataset: Dataset | bytes | None,
        action_type: int,
        class_uid: str,
        instance_uid: str,
        *,
        meta_uid: str | None = None,
    ) -> Deferred[tuple[Status, Dataset | None]]:
        """Send N-ACTION."""

    def send_n_event_report(
        self,
        dataset: Dataset | bytes | None,
        event_type: int,
        class_uid: str,
        instance_uid: str,
        *,
        meta_uid: str | None = None,
        any_role: bool = False,
    ) -> Deferred[tuple[Status, Dataset | None]]:
        """Send N-EVENT-REPORT."""

    def send_n_delete(self, class_uid: str, instance_uid: str, *, meta_uid: str | None = None) -> Deferred[Status]:
        """Send N-DELETE."""


class ExchangeOwner(Protocol):
    """
    An association as its exchange of messages knows it.

    :ivar observes_messages: whether each message and fragment is to be told with :meth:`notify`.
    """

    ae: AEInterface
    settings: Settings
    observes_messages: bool

    @property
    def remote(self) -> AssociationSide:
        """The peer."""

    @property
    def protocol(self) -> UpperLayer:
        """The upper layer that carries the messages."""

    def notify(self, event: EventType, **attributes: Any) -> None:
        """Call the handlers of a notification."""

    def has_handler(self, event: EventType) -> bool:
        """Whether a handler of an intervention is bound."""

    def has_role(self, context_id: int, *, as_scu: bool) -> bool:
        """Whether this side is SCU, or SCP, in a presentation context."""

    def has_proposed_scp(self, context_id: int) -> bool:
        """Whether this side is the requestor, and has proposed to be SCP in a presentation context."""

    def log_deviation(self, what: Sequence[str]) -> None:
        """Log deviations of the peer from the standard."""

    def exchange_advanced(self) -> None:
        """Continue what waits for the exchange, after an operation or a message has ended."""

    def abort(self, detail: str = "") -> None:
        """Abort the association."""


class PerformedOperation(Protocol):
    """
    An operation that the peer invoked, as the exchange and events know it: a :class:`dicomtwist.scp.Performance`.

    :ivar request: its command set.
    :ivar context: the presentation context of the request.
    :ivar stream: its data set as it arrives, ``None`` if it has none.
    :ivar is_cancelled: whether the peer sent C-CANCEL or is gone.
    :ivar started: when its request arrived, in seconds of the clock; the exchange sets it.
    """

    request: Request
    context: PresentationContextTuple
    stream: DataSetStream | None
    is_cancelled: bool
    started: float

    @property
    def assoc(self) -> AssociationInterface:
        """The association of the request."""

    @property
    def service_name(self) -> str:
        """The DIMSE service, such as ``"C-STORE"``."""

    def perform(self) -> None:
        """Give the request to its service."""

    def refuse(self, status: int, why: str) -> None:
        """Answer with a failure when the data set, which is discarded, has come."""

    def cancel(self) -> None:
        """Note that the peer wants no more responses or is gone."""
