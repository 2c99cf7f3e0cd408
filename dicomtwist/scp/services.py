"""
The table of services: one function for each request.

:data:`SERVICES` maps request classes to functions that receive a :class:`~dicomtwist.scp.Performance` and answer it, at once
or later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dicomtwist.dimse.messages import (
    CEchoRQ,
    CFindRQ,
    CGetRQ,
    CMoveRQ,
    CStoreRQ,
    Message,
    NActionRQ,
    NCreateRQ,
    NDeleteRQ,
    NEventReportRQ,
    NGetRQ,
    NSetRQ,
    Request,
)
from dicomtwist.presentation import PresentationContextTuple
from dicomtwist.scp.dimse_n import perform_normalised
from dicomtwist.scp.echo import perform_echo
from dicomtwist.scp.find import perform_find
from dicomtwist.scp.performed import Performance, PerformingAssociation
from dicomtwist.scp.retrieve import perform_get, perform_move
from dicomtwist.scp.store import perform_store

__all__ = ["SERVICES", "Performance", "performance"]

SERVICES: Final[dict[type[Message], Callable[[Performance], None]]] = {
    CEchoRQ: perform_echo,
    CStoreRQ: perform_store,
    CFindRQ: perform_find,
    CGetRQ: perform_get,
    CMoveRQ: perform_move,
    NEventReportRQ: perform_normalised,
    NGetRQ: perform_normalised,
    NSetRQ: perform_normalised,
    NActionRQ: perform_normalised,
    NCreateRQ: perform_normalised,
    NDeleteRQ: perform_normalised,
}


def performance(assoc: PerformingAssociation, context: PresentationContextTuple, request: Request) -> Performance:
    """Return the operation, with its service, for a *request* that arrived on *assoc* in *context*."""
    return Performance(assoc, context, request, SERVICES[type(request)])
