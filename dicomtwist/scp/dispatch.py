"""
The dispatch of requests to several service classes of one server.

An intervention has one handler, but a query may be for the archive or for the worklist. So each service class lists the
requests that it performs, by event and SOP Class, and :func:`dispatch` makes one handler for each event.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred

from dicomtwist import evt
from dicomtwist.dimse.status import SOP_CLASS_NOT_SUPPORTED, Status

__all__ = ["Provider", "Route", "dispatch"]


class Route(NamedTuple):
    """
    The requests that one handler of a service class performs.

    :ivar event: the intervention.
    :ivar sop_class: the abstract syntax of their presentation contexts.
    :ivar handler: the handler.
    """

    event: evt.EventType
    sop_class: str
    handler: evt.Handler


class Provider(Protocol):
    """A service class, which runs as long as its server."""

    @property
    def routes(self) -> Sequence[Route]:
        """The requests that it performs."""

    def start(self) -> None:
        """Start the service; the server calls this before it listens."""

    def stop(self) -> Deferred[None]:
        """Stop the service; the Deferred fires when its current work has ended."""


def dispatch(entries: Iterable[Route]) -> list[evt.HandlerTuple]:
    """
    Return handlers that pass each request to the handler of its SOP Class; a request without one gets the status 0x0122.

    :raises ValueError: two routes have the same event and SOP Class.
    """
    handlers: dict[evt.EventType, dict[str, evt.Handler]] = {}
    for entry in entries:
        of_event = handlers.setdefault(entry.event, {})
        if of_event.setdefault(str(entry.sop_class), entry.handler) is not entry.handler:
            raise ValueError(f"two handlers for {entry.event.name} of {entry.sop_class}")
    return [(event, _choose(by_class)) for event, by_class in handlers.items()]


def _choose(by_class: dict[str, evt.Handler]) -> evt.Handler:
    def handler(event: evt.DIMSEEvent) -> Any:
        chosen = by_class.get(str(event.context.abstract_syntax))
        return _refuse(event) if chosen is None else chosen(event)

    if all(getattr(one, "is_decoding", False) for one in by_class.values()):
        evt.decoding(handler)
    return handler


def _refuse(event: evt.DIMSEEvent) -> Any:
    status = Status(SOP_CLASS_NOT_SUPPORTED, event.request.SERVICE, "the service is not provided for this SOP Class")
    return [(status, None)] if isinstance(event, evt.IdentifierEvent) else status
