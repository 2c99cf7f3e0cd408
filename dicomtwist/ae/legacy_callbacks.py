"""
The callbacks of pynetdicom 1, for programs that were written for it: ``ae.on_c_store = f`` and others, and the names
``port``, ``start`` and ``stop``.

Each callback gets an adapter that is bound to one event of :mod:`dicomtwist.evt` and passes the arguments of pynetdicom 1.
New programs bind handlers to events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from dicomtwist import evt
from dicomtwist.endpoints import check_port
from dicomtwist.interfaces import AssociationSide

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from dicomtwist.ae.server import Server

#: A function that returns the arguments of a callback for an event, ``None`` if the callback is not called for it.
Arguments: TypeAlias = Callable[[evt.Event], tuple[Any, ...] | None]


def padded(title: str) -> bytes:
    """Return an AE title as callbacks receive it: 16 bytes, padded with spaces."""
    return title.encode("latin-1", "replace").ljust(16)


def _side(side: AssociationSide) -> dict[str, Any]:
    return {"ae_title": padded(side.ae_title), "address": side.address, "port": side.port}


def information(event: evt.Event) -> dict[str, Any]:
    """
    Return the ``info`` that callbacks receive.

    :returns: a dict of dicts. ``requestor`` has ae_title, called_aet, address and port; ``acceptor`` has ae_title, address and
        port; ``parameters`` has message_id and priority, for C-STORE also originator_aet and originator_message_id, for
        DIMSE-N also requested_sop_class and requested_sop_instance (for N-CREATE and N-EVENT-REPORT affected_...),
        action_type and event_type; ``sop_class_extended`` has the negotiated application information by SOP Class UID. AE
        titles are ``bytes`` of length 16.
    """
    assoc, request = event.assoc, event.request
    parameters: dict[str, Any] = {"message_id": request.message_id}
    if hasattr(request, "priority"):
        parameters["priority"] = request.priority
    if hasattr(request, "move_originator_message_id"):
        originator = request.move_originator_application_entity_title
        parameters["originator_aet"] = padded(originator) if originator else None
        parameters["originator_message_id"] = request.move_originator_message_id
    if isinstance(event, evt.NormalisedEvent):
        named = "requested" if hasattr(request, "requested_sop_class_uid") else "affected"
        parameters[f"{named}_sop_class"] = getattr(request, f"{named}_sop_class_uid")
        parameters[f"{named}_sop_instance"] = getattr(request, f"{named}_sop_instance_uid")
        parameters.update(
            (name, getattr(event, name)) for name in ("action_type", "event_type") if hasattr(event, name)
        )
    return {
        "requestor": {**_side(assoc.requestor), "called_aet": padded(assoc.requestor.called_ae_title)},
        "acceptor": _side(assoc.acceptor),
        "parameters": parameters,
        "sop_class_extended": dict(assoc.acceptor.sop_class_extended),
    }


def _user_identity(event: evt.Event) -> tuple[Any, ...]:
    info = {"requestor": _side(event.assoc.requestor)}
    # Of the five forms only username with passcode has a second field.
    secondary = event.secondary_field if event.user_id_type == 2 else None
    return event.user_id_type, event.primary_field, secondary, info


def _with(attribute: str) -> Arguments:
    """Return a function that returns (data set, context, info); the data set is the *attribute* of the event."""
    return lambda event: (getattr(event, attribute), event.context, information(event))


def _move(event: evt.Event) -> tuple[Any, ...]:
    return event.identifier, padded(event.move_destination), event.context, information(event)


def _cancel_of(service: str) -> Arguments:
    return lambda event: () if service == event.request.SERVICE else None


#: The callbacks: the event of each, and its arguments.
CALLBACKS: Final[dict[str, tuple[evt.EventType, Arguments]]] = {
    "on_make_connection": (evt.EVT_CONN_OPEN, lambda event: () if event.assoc.is_requestor else None),
    "on_receive_connection": (evt.EVT_CONN_OPEN, lambda event: () if event.assoc.is_acceptor else None),
    "on_association_requested": (evt.EVT_REQUESTED, lambda event: (event.pdu,)),
    "on_association_accepted": (evt.EVT_ACCEPTED, lambda event: (event.pdu,)),
    "on_association_rejected": (evt.EVT_REJECTED, lambda event: (event.pdu,)),
    "on_association_released": (evt.EVT_RELEASED, lambda event: (None,)),
    "on_association_aborted": (evt.EVT_ABORTED, lambda event: (event.reason,)),
    "on_async_ops_window": (evt.EVT_ASYNC_OPS, lambda event: (event.nr_invoked, event.nr_performed)),
    "on_sop_class_extended": (evt.EVT_SOP_EXTENDED, lambda event: (event.app_info,)),
    "on_sop_class_common_extended": (evt.EVT_SOP_COMMON, lambda event: (event.items,)),
    "on_user_identity": (evt.EVT_USER_ID, _user_identity),
    "on_c_echo": (evt.EVT_C_ECHO, lambda event: (event.context, information(event))),
    "on_c_store": (evt.EVT_C_STORE, _with("dataset")),
    "on_c_find": (evt.EVT_C_FIND, _with("identifier")),
    "on_c_get": (evt.EVT_C_GET, _with("identifier")),
    "on_c_move": (evt.EVT_C_MOVE, _move),
    "on_c_find_cancel": (evt.EVT_C_CANCEL, _cancel_of("C-FIND")),
    "on_c_get_cancel": (evt.EVT_C_CANCEL, _cancel_of("C-GET")),
    "on_c_move_cancel": (evt.EVT_C_CANCEL, _cancel_of("C-MOVE")),
    "on_n_action": (evt.EVT_N_ACTION, _with("action_information")),
    "on_n_create": (evt.EVT_N_CREATE, _with("attribute_list")),
    "on_n_delete": (evt.EVT_N_DELETE, lambda event: (event.context, information(event))),
    "on_n_event_report": (evt.EVT_N_EVENT_REPORT, _with("event_information")),
    "on_n_get": (evt.EVT_N_GET, _with("attribute_identifiers")),
    "on_n_set": (evt.EVT_N_SET, _with("modification_list")),
}


class _Callback:
    """An attribute of an AE: assigning a function binds it, assigning ``None`` unbinds it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, ae: Any, owner: type | None = None) -> Any:
        if ae is None:
            return self
        bound = ae._callbacks.get(self._name)
        return None if bound is None else bound[0]

    def __set__(self, ae: Any, callback: Any) -> None:
        connect(ae, self._name, callback)


def connect(ae: Any, name: str, callback: Callable[..., Any] | None) -> None:
    """
    Bind *callback* as the callback *name*, in place of the one before.

    :raises TypeError: *callback* is neither callable nor ``None``.
    """
    if callback is not None and not callable(callback):
        raise TypeError(f"{name} is a function or None, not {type(callback).__name__}")
    event_type, arguments = CALLBACKS[name]
    before = ae._callbacks.pop(name, None)
    if before is not None:
        ae.unbind(event_type, before[1])
    if callback is None:
        return

    def adapter(event: evt.Event) -> Any:
        given = arguments(event)
        return None if given is None else callback(*given)

    ae.bind(event_type, adapter)
    ae._callbacks[name] = (callback, adapter)


class LegacyCallbacks:
    """
    The attributes and methods of an AE of pynetdicom 1.

    A subclass may define the callbacks as methods.

    :ivar port: the port that :meth:`start` listens at.
    :ivar bind_addr: the address of the network interface that :meth:`start` listens at, ``""`` for all.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = check_port(port)
        self.bind_addr = ""
        self._callbacks: dict[str, tuple[Callable[..., Any], evt.Handler]] = {}
        for name in CALLBACKS:
            if not isinstance(getattr(type(self), name), _Callback):
                connect(self, name, getattr(self, name))

    on_make_connection = _Callback()
    on_receive_connection = _Callback()
    on_association_requested = _Callback()
    on_association_accepted = _Callback()
    on_association_rejected = _Callback()
    on_association_released = _Callback()
    on_association_aborted = _Callback()
    on_async_ops_window = _Callback()
    on_sop_class_extended = _Callback()
    on_sop_class_common_extended = _Callback()
    on_user_identity = _Callback()
    on_c_echo = _Callback()
    on_c_store = _Callback()
    on_c_find = _Callback()
    on_c_find_cancel = _Callback()
    on_c_get = _Callback()
    on_c_get_cancel = _Callback()
    on_c_move = _Callback()
    on_c_move_cancel = _Callback()
    on_n_action = _Callback()
    on_n_create = _Callback()
    on_n_delete = _Callback()
    on_n_event_report = _Callback()
    on_n_get = _Callback()
    on_n_set = _Callback()

    if TYPE_CHECKING:

        def start_server(self, address: tuple[str, int]) -> Deferred[Server]:
            """Listen for association requests. :class:`~dicomtwist.AE` implements it."""

        def shutdown(self, grace: float | None = 0.0) -> Deferred[None]:
            """Stop every server and abort every association. :class:`~dicomtwist.AE` implements it."""

    def start(self) -> Deferred[Server]:
        """Listen at :attr:`bind_addr` and :attr:`port` with :meth:`AE.start_server`, which does not block."""
        return self.start_server((self.bind_addr, self.port))

    def stop(self) -> Deferred[None]:
        """Stop listening and abort every association: :meth:`AE.shutdown` without grace."""
        return self.shutdown()

    def quit(self) -> Deferred[None]:
        """Call :meth:`stop`."""
        return self.stop()

    def cleanup_associations(self) -> None:
        """Do nothing: ``active_associations`` drops an association when it ends."""

    @property
    def address(self) -> str:
        """:raises AttributeError: always, since a look-up would block; the message names other attributes."""
        raise AttributeError(
            "an AE has no address of its own: server.addresses tells where a server listens, association.local.address"
            " where an association comes from"
        )

    @property
    def client_socket(self) -> Any:
        """:raises AttributeError: always, since Twisted owns the sockets; the message names the transport."""
        raise AttributeError("an AE has no socket: association.protocol.transport is the connection of an association")
