"""Operations that this side invoked, until their final responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias
from weakref import ReferenceType

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from dicomtwist.dimse.messages import Request, Response
from dicomtwist.exchange.operations_window import Window

#: A function that receives the pending responses to a request, each with its data set.
PendingResponses: TypeAlias = Callable[[Response, bytes | None], None]


class Operation:
    """
    A request that this side sent, until its final response has arrived.

    :ivar message_id: its Message ID.
    :ivar is_nested: whether it began while an operation of the peer was performed, which may depend on its response.
    :ivar inside: the operations that the code that made the request is inside of, see :mod:`dicomtwist.exchange.nesting`.
    :ivar result: fires with the final response and its data set.
    """

    __slots__ = (
        *("__weakref__", "_window", "context_id", "inside", "is_given_up", "is_nested", "message_id", "pending"),
        *("request", "response", "result", "sent_at"),
    )

    def __init__(self, context_id: int, request: Request, window: Window, pending: PendingResponses | None) -> None:
        self.context_id = context_id
        self.request = request
        self.pending = pending
        self.message_id = request.message_id
        self.sent_at: float | None = None
        self.response: Response | None = None  # while its data set is still coming
        self.result: Deferred[tuple[Response, bytes | None]] = Deferred(self._given_up)
        self.is_given_up = self.is_nested = False
        self.inside: tuple[ReferenceType[Any], ...] = ()
        self._window = window

    def _given_up(self, result: object) -> None:
        # The caller has cancelled, the peer still performs the operation: its place in the window stays taken.
        self.is_given_up = True
        self._window.keep()

    def give_up(self, reason: Failure) -> None:
        """Fail for the caller, as if it had cancelled: the peer still performs the operation."""
        if not self.result.called:
            self._given_up(None)
            self.result.errback(reason)
