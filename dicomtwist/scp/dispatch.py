"""
Service classes that one server provides side by side.

Of an intervention there is one handler, but a query may be one of the archive or of the worklist. So each service class
tells which requests in which presentation contexts are its own, and :func:`dispatch` makes handlers of them all.
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
    Requests that a service class answers.

    :ivar event: the intervention.
    :ivar sop_class: the abstract syntax of the presentation contexts that they come in.
    :ivar handler: who answers.
    """

    event: evt.EventType
    sop_class: str
    handler: evt.Handler


class Provider(Protocol):
    """A service class, alive while its server is."""

    @property
    def routes(self) -> Sequence[Route]:
        """What it answers."""

    def start(self) -> None:
        """The server is about to listen."""

    def stop(self) -> Deferred[None]:
        """The server stops: end what is under way. The Deferred fires when that is done."""


def dispatch(entries: Iterable[Route]) -> list[evt.HandlerTuple]:
    """
    Return handlers that give each request to the one whose it is; others get the status 0x0122.

    :raises ValueError: two answer the same requests.
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

    return handler


def _refuse(event: evt.DIMSEEvent) -> Any:
    status = Status(SOP_CLASS_NOT_SUPPORTED, event.request.SERVICE, "the service is not provided for this SOP Class")
    return [(status, None)] if isinstance(event, evt.IdentifierEvent) else status
