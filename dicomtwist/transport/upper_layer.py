"""
The upper layer on a Twisted transport. This is the only module that uses a transport or a timer.

:class:`UpperLayerProtocol` owns one :class:`~dicomtwist.ul.connection.ULConnection`, carries out its events, and passes
indications to the association above it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, IPushProducer, ISSLTransport
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from dicomtwist.runtime.networks import UNIX
from dicomtwist.transport.socket_writer import Output, make_output
from dicomtwist.ul.connection import (
    RECEIVING,
    SENDING,
    AbortIndication,
    AssociateConfirmation,
    AssociateIndication,
    ReleaseConfirmation,
    ReleaseIndication,
    Signal,
    ULConnection,
    ULEvent,
)
from dicomtwist.ul.framing import Fragment
from dicomtwist.ul.pdu import AAssociateAC, AAssociateRJ, AAssociateRQ
from dicomtwist.ul.state_machine import State

#: The bytes that may wait while the transport is full; with more, reading from the peer pauses. Only answers to the peer's
#: requests can accumulate there, since data sets wait for the transport.
MAX_BACKLOG = 256 * 1024

#: The maximum length of one read while a large data set is received, in bytes. Twisted begins with 64 KiB.
MAX_READ_SIZE = 256 * 1024

#: The maximum length of the text of an address, in characters: that of the path of a UNIX socket.
_MAX_HOST = 108

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


class UpperLayerUser(Protocol):
    """The association as the upper layer sees it."""

    def transport_opened(self) -> None:
        """The transport is open; with TLS the handshake is still to come."""

    def transport_ready(self) -> None:
        """The transport is open, and the TLS handshake, if any, is complete."""

    def associate_indication(self, request: AAssociateRQ) -> None:
        """The peer requests an association."""

    def associate_confirmation(self, answer: AAssociateAC | AAssociateRJ) -> None:
        """The peer has answered the association request."""

    def fragment_received(self, fragment: Fragment) -> None:
        """A fragment of a message was received."""

    def release_indication(self, collision: bool) -> None:
        """The peer requests the release."""

    def release_confirmation(self) -> None:
        """The peer has confirmed the release."""

    def abort_indication(self, indication: AbortIndication) -> None:
        """The association is over."""

    def transport_writable(self) -> None:
        """The transport accepts more of a data set."""

    def transport_closed(self, reason: Failure) -> None:
        """The connection is closed; no other call follows."""

    def check_time(self, now: float) -> float | None:
        """Act on the timeouts that have expired by *now*; return the time of the next check, ``None`` for none."""

    def data_traced(self, sent: bool, data: bytes) -> None:
        """Bytes were received or sent; called only while :attr:`UpperLayerProtocol.tracing` is set."""

    def state_traced(self, before: int, after: int) -> None:
        """The state machine changed its state; called only while :attr:`UpperLayerProtocol.tracing` is set."""


def address_of(address: object) -> tuple[str, int]:
    """
    Return host and port of a Twisted address; for a UNIX socket its path and 0.

    The text is printable and short: a PROXY header may bring any text in place of an address, and the log shows it.
    """
    host, port = _address_of(address)
    if len(host) > _MAX_HOST or not host.isprintable():
        host = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in host[:_MAX_HOST])
    return host, port


def _address_of(address: object) -> tuple[str, int]:
    if isinstance(address, IPv4Address | IPv6Address):
        # A dual-stack socket reports IPv4 peers as ::ffff:192.0.2.1.
        return address.host.removeprefix("::ffff:") if "." in address.host else address.host, address.port
    if isinstance(address, UNIXAddress) and address.name is not None:
        return address.name.decode("utf-8", "replace"), 0
    return "", 0


def proxy_of(transport: Any) -> str:
    """
    Return the address of the proxy that tells the peer's address of *transport*.

    :returns: the address that the socket reports, :data:`~dicomtwist.runtime.networks.UNIX` for a UNIX socket; ``""`` if no
        layer of the transport reads PROXY headers. A header without an address (``LOCAL``, ``UNKNOWN``) is one as well.
    """
    proxied = False
    while isinstance(transport, ProtocolWrapper):
        # Twisted has no public name for the wrapper of "haproxy:".
        proxied = proxied or type(transport).__module__.startswith("twisted.protocols.haproxy")
        transport = transport.transport
    if not proxied:
        return ""
    address = transport.getPeer()
    # Something of a proxy is known even if the socket reports no address: it is not trusted then.
    return UNIX if isinstance(address, UNIXAddress) else address_of(address)[0] or "an unknown address"


@implementer(IHandshakeListener, IPushProducer)
class UpperLayerProtocol(TwistedProtocol):
    """
    One transport connection that carries an association, or will carry one.

    :param user: the association.
    :param requestor: whether this side requests the association.
    :param max_length: the longest P-DATA-TF accepted, in bytes, 0 for no limit.
    :param artim_seconds: the duration of the ARTIM timer; ``None`` for no limit.
    :param clock: an ``IReactorTime``.

    :ivar last_received: the time of the last received byte, in seconds of the clock.
    :ivar last_sent: the last time that bytes were written or left the transport's buffer.
    :ivar bytes_received: the number of bytes received.
    :ivar bytes_sent: the number of bytes given to the transport.
    :ivar write_paused_since: the time since which the transport is full, ``None`` if it is not.
    :ivar read_paused_since: the time since which reading is paused for a reason that the network timeout limits, ``None``
        if reading is not paused, or for another reason.
    :ivar pdu_since: the time since which a PDU of the peer is incomplete, ``None`` if none is, or if reading is paused.
    :ivar secure: whether the connection uses TLS.
    :ivar handshaking: whether the TLS handshake is in progress.
    :ivar tracing: whether the user is notified of all bytes and states.
    """

    transport: Any

    def __init__(
        self,
        user: UpperLayerUser,
        *,
        requestor: bool,
        max_length: int,
        artim_seconds: float | None,
        clock: Any,
    ) -> None:
        self.user = user
        self.clock = clock
        self.connection = ULConnection(requestor=requestor, max_length=max_length)
        self.tracing = False
        self.closed = False
        self.secure = self.handshaking = False
        self.last_received = self.last_sent = 0.0
        self.bytes_received = self.bytes_sent = 0
        self.write_paused_since: float | None = None
        self.read_paused_since: float | None = None
        self.pdu_since: float | None = None
        self._artim_seconds = artim_seconds
        self._artim: IDelayedCall | None = None
        self._closing: IDelayedCall | None = None
        self._watch: IDelayedCall | None = None
        self._cut: IDelayedCall | None = None
        self._pdu_number = 0
        self._read_pauses = self._timed_pauses = 0
        self._backlog = 0
        self._backlogged = False
        self._socket: socket.socket | None = None
        self._output: Output | None = None
        self._read_size = FileDescriptor.bufferSize

    # --- calls of the transport

    def connectionMade(self) -> None:
        """The transport is open; with TLS, the handshake is still to come."""
        self.last_received = self.last_sent = self.clock.seconds()
        self.secure = self.handshaking = ISSLTransport.providedBy(self.transport)
        self._tune_socket()
        self._output = make_output(self.transport, self)
        self.user.transport_opened()
        if not self.connection.requestor:
            self._carry_out(self.connection.connection_made())
        if not self.secure:
            self.user.transport_ready()

    def handshakeCompleted(self) -> None:
        """The TLS handshake is complete."""
        self.handshaking = False
        if not self.closed:
            self.user.transport_ready()

    def _tune_socket(self) -> None:
        """Switch off Nagle's algorithm, and remember the socket if its acknowledgements must not be delayed."""
        try:
            self.transport.setTcpNoDelay(True)
        except (AttributeError, OSError):
            return  # not TCP
        if _QUICKACK is None:
            return
        transport = self.transport
        while transport is not None:
            handle = transport.getHandle() if hasattr(transport, "getHandle") else None
            if isinstance(handle, socket.socket):
                self._socket = handle
                return
            transport = getattr(transport, "transport", None)

    def dataReceived(self, data: bytes) -> None:
        """Process received bytes."""
        sent_before = self.bytes_sent
        self._received(data)
        if self._socket is not None and self.bytes_sent == sent_before:
            # A peer that uses Nagle's algorithm writes its next part only when this one is acknowledged. The kernel delays
            # the acknowledgement by 40 ms unless TCP_QUICKACK is set after each read. An answer carries the acknowledgement
            # with it.
            try:
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)  # type: ignore[arg-type]
            except OSError:
                self._socket = None

    def _received(self, data: bytes) -> None:
        self.last_received = self.clock.seconds()
        self.bytes_received += len(data)
        if self.tracing:
            self.user.data_traced(False, data)
        connection, fragment_received = self.connection, self.user.fragment_received
        for frame in connection.frames_of(data):
            if type(frame) is Fragment and connection.state in RECEIVING:
                if not self.closed:
                    fragment_received(frame)
            else:
                self._step(connection.events_of, frame)
        if not connection.mid_pdu or self._read_pauses:
            self.pdu_since = None
        elif self.pdu_since is None or self._pdu_number != connection.pdus_begun:
            self.pdu_since = self.last_received
            self._pdu_number = connection.pdus_begun
        if len(data) >= self._read_size:
            self._enlarge_reads()

    def _enlarge_reads(self) -> None:
        """Read more at once: the last read was full, so a large data set is being received, and fewer reads are faster."""
        transport = self.transport
        if self._read_size < MAX_READ_SIZE and getattr(transport, "bufferSize", None) == self._read_size:
            self._read_size *= 2
            transport.bufferSize = self._read_size

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is closed."""
        if self.closed:
            return
        # The user is given the transport's reason, which says more than the event of the connection.
        self.connection.connection_lost()
        self.closed = True
        self._socket = None
        for call in (self._artim, self._closing, self._watch, self._cut):
            if call is not None and call.active():
                call.cancel()
        self.user.transport_closed(reason)

    def pauseProducing(self) -> None:
        """Pause the data sets: the transport is full."""
        if self.write_paused_since is None:
            self.write_paused_since = self.clock.seconds()
            self._backlog = 0

    def write_progressed(self) -> None:
        """Note that the peer is alive: the transport is full, but accepted some bytes."""
        self.write_paused_since = self.last_sent = self.clock.seconds()

    def resumeProducing(self) -> None:
        """Resume the data sets: the transport accepts more."""
        self.write_paused_since = None
        self.last_sent = self.clock.seconds()
        if self._backlogged:
            self._backlogged = False
            self.resume_reading()
        if not self.closed:
            self.user.transport_writable()

    def stopProducing(self) -> None:
        """Do nothing: the transport is closing, and ``connectionLost`` follows."""

    # --- calls of the association

    def request(self, request: AAssociateRQ) -> None:
        """Request an association; called in ``transport_ready``."""
        self._carry_out(self.connection.associate(request))
        self._step(self.connection.connection_made)

    def accept(self, answer: AAssociateAC) -> None:
        """Accept the association."""
        self._step(self.connection.accept, answer)

    def reject(self, answer: AAssociateRJ) -> None:
        """Reject the association."""
        self._step(self.connection.reject, answer)

    def release(self) -> None:
        """Request the release."""
        self._step(self.connection.release)

    def respond_release(self) -> None:
        """Confirm the release."""
        self._step(self.connection.release_response)

    def abort(self) -> None:
        """Abort, after at most the PDU that is being written; no effect if there is nothing to abort."""
        self._step(self.connection.abort)

    def protocol_error(self, reason: int, detail: str) -> None:
        """Abort as the service provider, because a message of the peer breaks the rules."""
        self._step(self.connection.protocol_error, reason, detail)

    def close(self) -> None:
        """Close the transport: at once if nothing more can be written."""
        self._carry_out((Signal.CLOSE,))

    def cut_within(self, seconds: float) -> None:
        """
        Close the connection in *seconds* at the latest, whether or not the peer agrees.

        The ARTIM timer has the same effect after an A-ABORT, but it lasts as long as the ACSE timeout, and with TLS the peer
        has to answer the close besides.
        """
        if self.closed or self.transport is None:
            return
        if self._cut is None:
            self._cut = self.clock.callLater(seconds, self.transport.abortConnection)
        elif self._cut.active() and self._cut.getTime() - self.clock.seconds() > seconds:
            self._cut.reset(seconds)

    @property
    def may_send_data(self) -> bool:
        """Whether a P-DATA request is allowed."""
        # Asked for each message: one property, not two.
        return self.connection.state in SENDING and not self.closed

    @property
    def write_size(self) -> int:
        """The part of a data set to write at once, in bytes."""
        assert self._output is not None
        return self._output.write_size

    def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Write P-DATA-TF PDUs; the caller has checked :attr:`may_send_data`."""
        length = sum(map(len, buffers))
        full = self.write_paused_since is not None
        self.last_sent = self.clock.seconds()
        self.bytes_sent += length
        if self.tracing:
            self.user.data_traced(True, b"".join(buffers))
        assert self._output is not None
        self._output.write(buffers)
        if full:
            self._backlog += length
            if self._backlog > MAX_BACKLOG and not self._backlogged:
                self._backlogged = True
                self.pause_reading()

    @property
    def reading_paused(self) -> bool:
        """Whether reading from the peer is paused."""
        return bool(self._read_pauses)

    def pause_reading(self, timed: bool = True) -> None:
        """
        Pause reading from the peer until :meth:`resume_reading` is called as many times as this method.

        :param timed: whether the network timeout limits the pause; if not, it may last forever.
        """
        self._read_pauses += 1
        self._timed_pauses += timed
        if self.closed:
            return
        if timed and self._timed_pauses == 1:
            self.read_paused_since = self.clock.seconds()
        if self._read_pauses == 1:
            self.pdu_since = None
            self.transport.pauseProducing()

    def resume_reading(self, timed: bool = True) -> None:
        """End one pause that was begun with the same *timed*."""
        if not self._read_pauses:
            return  # closing has ended all pauses
        self._read_pauses -= 1
        self._timed_pauses -= timed
        if not self._timed_pauses:
            self.read_paused_since = None
        if not self._read_pauses and not self.closed:
            self.last_received = self.clock.seconds()
            self.pdu_since = self.last_received if self.connection.mid_pdu else None
            self.transport.resumeProducing()

    def _end_all_pauses(self) -> None:
        """End all pauses: from now on only the peer's close is awaited, which a paused transport does not notice."""
        if self._read_pauses and not self.closed:
            self._read_pauses = self._timed_pauses = 0
            self.read_paused_since = None
            self.transport.resumeProducing()

    def watch(self, seconds: float) -> None:
        """Call the user's ``check_time`` in *seconds* at the latest."""
        if self.closed:
            return
        if self._watch is not None and self._watch.active():
            if self._watch.getTime() - self.clock.seconds() <= seconds:
                return
            self._watch.reset(seconds)
            return
        self._watch = self.clock.callLater(seconds, self._check_time)

    def _check_time(self) -> None:
        now = self.clock.seconds()
        again = self.user.check_time(now)
        if again is not None:
            self.watch(max(again - now, 0.001))

    # --- events of the connection

    def _step(self, primitive: Callable[..., list[ULEvent]], *args: Any) -> None:
        before = self.connection.state
        events = primitive(*args)
        if self.tracing and self.connection.state != before:
            self.user.state_traced(before, self.connection.state)
        self._carry_out(events)

    def _carry_out(self, events: Sequence[ULEvent]) -> None:
        data = self.connection.data_to_send()
        if data and not self.closed:
            self.send((data,))
        for event in events:
            match event:
                case Signal.START_ARTIM:
                    self._start_artim()
                case Signal.STOP_ARTIM:
                    if self._artim is not None and self._artim.active():
                        self._artim.cancel()
                case Signal.CLOSE:
                    self._close()
                case AssociateIndication():
                    self.user.associate_indication(event.request)
                case AssociateConfirmation():
                    self.user.associate_confirmation(event.answer)
                case ReleaseIndication():
                    self.user.release_indication(event.collision)
                case ReleaseConfirmation():
                    self.user.release_confirmation()
                case AbortIndication():
                    self.user.abort_indication(event)
                case Fragment():
                    self.user.fragment_received(event)

    def _start_artim(self) -> None:
        self._end_all_pauses()
        if self._artim_seconds is None or self.closed:
            return
        if self._artim is not None and self._artim.active():
            self._artim.reset(self._artim_seconds)
        else:
            self._artim = self.clock.callLater(self._artim_seconds, self._artim_expired)

    def _artim_expired(self) -> None:
        # A peer that has not closed by now may never read the queued bytes, so this does not wait until they are flushed.
        before = self.connection.state
        if before is State.STA2:
            detail = f"no association request was received within {self._artim_seconds:g} seconds"
            self.user.abort_indication(AbortIndication(0, 0, by_peer=False, detail=detail))
        self._carry_out([event for event in self.connection.artim_expired() if event is not Signal.CLOSE])
        if self.tracing:
            self.user.state_traced(before, self.connection.state)
        self.transport.abortConnection()

    def _close(self) -> None:
        if self.closed or (self._closing is not None and self._closing.active()):
            return
        if self._output is not None:
            self._output.hand_over()
        # loseConnection never completes while a producer is registered.
        self.transport.unregisterProducer()
        if self.write_paused_since is not None:
            self.transport.abortConnection()
            return
        if self._artim_seconds is not None:
            # With TLS the peer has to answer the close, and perhaps does not.
            self._closing = self.clock.callLater(self._artim_seconds, self.transport.abortConnection)
        self._end_all_pauses()
        self.transport.loseConnection()
