"""
The release of an association, by either side (PS3.8 7.2, 9.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.exchange import nesting
from dicomtwist.exchange.exchange import Exchange
from dicomtwist.interfaces import ExchangeOwner
from dicomtwist.transport.upper_layer import UpperLayerProtocol
from dicomtwist.ul.pdu import AReleaseRP, AReleaseRQ
from dicomtwist.ul.state_machine import State


class ReleasedAssociation(ExchangeOwner, Protocol):
    """
    An association as its release knows it.

    :ivar mode: the role of this side, ``"requestor"`` or ``"acceptor"``.
    :ivar is_established: whether it can be used now.
    """

    mode: str
    is_established: bool

    @property
    def protocol(self) -> UpperLayerProtocol:
        """The Twisted protocol under the association."""

    @property
    def exchange(self) -> Exchange:
        """The messages that it carries."""


class Release:
    """
    The release of an established association, which begins when either side asks for it.

    This side may send nothing after its A-RELEASE-RQ. So that waits for all operations of this side, and for those of the
    peer. The A-RELEASE-RP waits for the operations of the peer.

    :param assoc: the association.
    :param released: called when both sides have agreed.

    :ivar asked_at: when this side sent its A-RELEASE-RQ, in seconds of the clock; ``None`` if it waits for no answer.
    """

    __slots__ = ("_assoc", "_inside", "_released", "_to_answer", "_waiting", "_waits_since", "asked_at")

    def __init__(self, assoc: ReleasedAssociation, released: Callable[[], None]) -> None:
        self._assoc = assoc
        self._released = released
        self._waiting: list[Deferred[None]] = []
        self._waits_since: float | None = None
        self._inside: nesting.Frames = ()
        self._to_answer = False
        self.asked_at: float | None = None

    # --- by this side

    def request(self) -> Deferred[None]:
        """Return a Deferred that :meth:`ended` fires; send A-RELEASE-RQ as soon as that is possible."""
        done: Deferred[None] = Deferred()
        if self._waits_since is None:
            self._waits_since = self._assoc.ae.reactor.seconds()
        self._inside += nesting.frames()
        self._waiting.append(done)
        done.addErrback(self._failed, done)
        self._assoc.exchange.calls.wait_until_idle(done)
        if not done.called:
            self._request_when_idle()
        return done

    def _failed(self, reason: Failure, done: Deferred[None]) -> Failure:
        if done in self._waiting:
            self._waiting.remove(done)
        return reason

    def _request_when_idle(self) -> None:
        assoc, protocol = self._assoc, self._assoc.protocol
        if self.asked_at is not None or assoc.exchange.asking:
            return
        if not assoc.is_established or protocol.connection.state is not State.STA6:
            return  # the peer requests the release as well: its request is answered
        limit = assoc.settings.acse_timeout
        if not self._waits_for_handlers():
            self.asked_at = assoc.ae.reactor.seconds()
            assoc.exchange.outgoing.flush()
            protocol.release()
            assoc.notify(evt.EVT_ACSE_SENT, primitive="A-RELEASE request")
            assoc.notify(evt.EVT_PDU_SENT, pdu=AReleaseRQ())
        if limit is not None:
            protocol.watch(limit)

    def _waits_for_handlers(self) -> bool:
        """Return whether a release waits for handlers whose operations the peer expects responses to."""
        assoc, protocol = self._assoc, self._assoc.protocol
        if not assoc.exchange.performs_besides(self._inside):
            return False
        limit, since = assoc.settings.acse_timeout, self._waits_since
        if limit is None or since is None:
            return True
        now: float = assoc.ae.reactor.seconds()
        return max(since, protocol.last_received, protocol.last_sent) + limit > now

    def confirmed(self) -> None:
        """Take the A-RELEASE-RP of the peer."""
        self.asked_at = None
        if self._assoc.protocol.connection.state is State.STA12:
            self._answer()
        else:
            self._released()

    # --- by the peer

    def requested(self, collision: bool) -> None:
        """
        Take the A-RELEASE-RQ of the peer.

        :param collision: whether this side has sent one as well.
        """
        self._to_answer = True
        if self._assoc.mode == "acceptor" and collision:
            return  # Sta10: the request of this side is answered first (PS3.8 Table 9-10, AR-10)
        self._answer()

    def _answer(self) -> None:
        assoc, protocol = self._assoc, self._assoc.protocol
        if not self._to_answer or assoc.exchange.answering:
            return
        if protocol.connection.state not in (State.STA8, State.STA9, State.STA12):
            return
        self._to_answer = False
        waits_for_confirmation = protocol.connection.state is State.STA9
        assoc.exchange.outgoing.flush()
        protocol.respond_release()
        assoc.notify(evt.EVT_ACSE_SENT, primitive="A-RELEASE response")
        assoc.notify(evt.EVT_PDU_SENT, pdu=AReleaseRP())
        if not waits_for_confirmation:
            self._released()

    # --- by both

    def proceed(self) -> None:
        """Send the PDUs that have waited for an operation or a message to end."""
        self.check_time()
        if self._to_answer:
            self._answer()

    def check_time(self) -> None:
        """Send the A-RELEASE-RQ if handlers have been waited for long enough."""
        if self._waiting:
            self._request_when_idle()

    def ended(self, reason: Failure | None) -> None:
        """
        Fire the Deferreds of the calls.

        :param reason: why the association was not released; ``None`` if it was.
        """
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            if reason is None:
                done.callback(None)
            else:
                done.errback(reason)
