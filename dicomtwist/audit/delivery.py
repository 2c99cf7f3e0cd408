"""
The delivery of audit messages to a syslog server, by TLS, TCP or UDP, from a spool.

Syslog has no acknowledgements. A message counts as delivered when the system of the receiver has acknowledged it, and the
connection has lived for :data:`SETTLE` seconds since it was written; when a connection is lost, all messages that do not count
yet are sent again. So a message may arrive twice, and is not lost while the receiver is down, as long as the spool has room.

Little is written before it is acknowledged: a slow receiver would get everything again after each connection that is lost, and
would never get on.
"""

from __future__ import annotations

import fcntl
import random
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IHandshakeListener, IPushProducer, ISSLTransport, IStreamClientEndpoint
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from dicomtwist.audit.spool import Position, Spool
from dicomtwist.audit.syslog import framed
from dicomtwist.errors import loggable
from dicomtwist.runtime.backoff import Backoff
from dicomtwist.runtime.executors import Executor

__all__ = ["Datagrams", "Delivery", "Stream"]

#: The time after which a written message counts as delivered, in seconds, if the connection still lives.
SETTLE: Final = 10.0
#: The time in which the receiver must take some of what was written, in seconds; then the connection is lost.
STALLED: Final = 60.0
#: The time in which the receiver must complete the handshake of TLS, in seconds; then the connection is closed.
HANDSHAKE: Final = 30.0
#: The bytes after which nothing more is written until the system of the receiver has acknowledged all of them.
UNACKNOWLEDGED: Final = 128 * 1024
#: The time between two looks at the clock, in seconds.
INTERVAL: Final = 1.0
#: The time between two looks while messages wait until others are acknowledged.
SOON: Final = 0.1
#: The spool is measured after this number of looks.
MEASURE: Final = 5
#: The time that a stop waits for messages to be sent, in seconds.
STOP: Final = 2.0
#: A failure is logged once in this time, in seconds.
COMPLAIN_AFTER: Final = 60.0
_BACKOFF: Final = Backoff(1.0, 30.0, jitter=random.random)

#: Makes the connection of a delivery: called with the delivery, returns a Deferred that fails if there is none.
Connect = Callable[["Delivery"], Deferred[Any]]


class Delivery:
    """
    Delivers the messages of a spool.

    :param clock: the reactor.
    :param executor: the threads that read the spool; the caller holds it while the object is used.
    :param spool: the spool.
    :param transport: how messages are sent: a :class:`Stream` or :class:`Datagrams`.

    :ivar waiting: the bytes in the spool, as of the last look.
    """

    log = Logger()

    def __init__(self, clock: Any, executor: Executor, spool: Spool, transport: Stream | Datagrams) -> None:
        self.waiting = 0
        self._clock = clock
        self._executor = executor
        self._spool = spool
        self._transport = transport
        self._line: Any = None  # the connection that messages are written to
        self._settled: Position | None = None
        self._next = Position(0, 0)
        self._written: deque[tuple[float, Position]] = deque()
        self._unacknowledged = 0  # bytes written since the line was flushed
        self._flushed = self._since = 0.0
        self._is_reading = self._is_connecting = self._is_stopped = False
        self._is_empty = False
        self._failures = 0
        self._looks = 0
        self._complained: float | None = None
        self._call: Any = None
        self._retry: Any = None
        self._stopping: Deferred[None] | None = None
        self._late: Any = None

    def start(self) -> None:
        """Begin to deliver what is in the spool."""
        self._executor.run_admitted(self._spool.first).addCallbacks(self._begin, self._cannot_read)

    def wake(self) -> None:
        """Deliver what has been added to the spool."""
        self._is_empty = False
        self._go_on()

    def stop(self) -> Deferred[None]:
        """Send what is left, for :data:`STOP` seconds; the rest is sent after the next start. The Deferred fires then."""
        if self._is_stopped:
            return succeed(None)
        self._is_stopped = True
        for call in (self._call, self._retry):
            if call is not None and call.active():
                call.cancel()
        stopping = self._stopping = Deferred()
        self._late = self._clock.callLater(STOP, self._stopped)
        self._go_on()
        if self._line is None:
            self._stopped()
        return stopping

    # --- the connection

    def connected(self, line: Any) -> None:
        """Take note that messages can be written to *line*."""
        self._is_connecting = False
        if self._is_stopped and self._stopping is None:
            line.abort()
            return
        self._line = line
        self._since = self._flushed = self._clock.seconds()
        self._unacknowledged = 0
        self._go_on()

    def lost(self, reason: Failure) -> None:
        """Take note that the connection is lost: what does not count as delivered is sent again."""
        self._is_connecting = False
        is_clean = self._is_stopped and self._is_empty and reason.check(type(connectionDone.value))
        if self._line is not None and self._clock.seconds() - self._since >= SETTLE:
            self._failures = 0  # a receiver that closes each connection at once is not asked again and again
        is_idle = self._line is not None and self._is_empty and not self._written
        self._line = None
        if is_clean:
            self._settle(float("inf"))  # the receiver has closed after all that was written
        self._written.clear()
        self._is_empty = False
        if self._settled is not None:
            self._next = self._settled
        if self._stopping is not None:
            self._stopped()
        elif not self._is_stopped:
            # A receiver may close a connection that nothing is sent on.
            self._failed(None if is_idle else reason)

    def resumed(self) -> None:
        """Write on: the connection takes more."""
        self._go_on()

    def _begin(self, position: Position) -> None:
        self._settled = self._next = position
        self._look()
        self._go_on()

    def _cannot_read(self, reason: Failure) -> None:
        self._complain(reason)
        if not self._is_stopped:
            self._retry = self._clock.callLater(_BACKOFF.longest, self.start)

    def _go_on(self) -> None:
        if self._settled is None or self._is_reading:
            return
        if self._line is None:
            self._connect()
        elif self._is_empty:
            self._finish()
        elif self._unacknowledged >= UNACKNOWLEDGED and not self._is_stopped:
            if self._call.getTime() > self._clock.seconds() + SOON:
                self._call.reset(SOON)
        elif not self._line.is_paused:
            self._is_reading = True
            reading = self._executor.run_admitted(self._spool.read, self._next)
            reading.addCallbacks(self._read, self._not_read, callbackArgs=(self._line,))

    def _connect(self) -> None:
        if self._is_connecting or self._is_stopped or self._is_empty or (self._retry and self._retry.active()):
            return
        self._is_connecting = True
        connecting = self._transport.connect(self)
        connecting.addCallback(self._made).addErrback(self._not_connected)

    def _made(self, _: Any) -> None:
        if self._stopping is not None:
            self._go_on()

    def _not_connected(self, reason: Failure) -> None:
        self._is_connecting = False
        if not self._is_stopped:
            self._failed(reason)

    def _failed(self, reason: Failure | None) -> None:
        self._failures += 1
        if reason is not None:
            self._complain(reason)
        self._retry = self._clock.callLater(_BACKOFF(self._failures), self._go_on)

    # --- messages

    def _read(self, found: tuple[list[bytes], Position], line: Any) -> None:
        self._is_reading = False
        messages, position = found
        if line is not self._line:
            self._go_on()  # the connection was lost meanwhile
            return
        for one in messages:
            line.send(one)
        self._next = position
        self._unacknowledged += sum(map(len, messages))
        if messages:
            self._written.append((self._clock.seconds(), position))
            self._go_on()
        else:
            self._is_empty = True
            self._finish()

    def _not_read(self, reason: Failure) -> None:
        self._is_reading = False
        self._complain(reason)
        if not self._is_stopped:
            self._retry = self._clock.callLater(_BACKOFF.longest, self._go_on)

    def _look(self) -> None:
        """Count messages as delivered whose connection has lived long enough."""
        if self._is_stopped:
            return
        is_full = self._unacknowledged >= UNACKNOWLEDGED
        self._call = self._clock.callLater(SOON if is_full else INTERVAL, self._look)
        self._looks += 1
        if self._looks % MEASURE == 0:
            self._executor.run_admitted(self._measure).addErrback(self._complain)
        now = self._clock.seconds()
        if self._line is not None and self._line.is_flushed:
            self._flushed = now
            if self._unacknowledged:
                self._unacknowledged = 0
                self._go_on()
        # Messages that were written just before the line was flushed may have been on their way to the socket.
        self._settle(min(now - self._transport.settle, self._flushed - INTERVAL))

    def _settle(self, before: float) -> None:
        position = None
        while self._written and self._written[0][0] <= before:
            position = self._written.popleft()[1]
        if position is None or position == self._settled:
            return
        self._settled = position
        self._failures = 0
        self._complained = None
        self._executor.run_admitted(self._note, position).addErrback(self._complain)

    def _note(self, position: Position) -> None:
        self._spool.delivered(position)
        self.waiting = self._spool.waiting(position)

    def _measure(self) -> None:
        settled = self._settled
        if settled is not None:
            self.waiting = self._spool.waiting(settled)

    def _finish(self) -> None:
        """End the stop, if there is one: all is written."""
        if self._stopping is not None and self._line is not None:
            self._line.close()

    def _stopped(self) -> None:
        stopping, self._stopping = self._stopping, None
        if self._late is not None and self._late.active():
            self._late.cancel()
        if self._line is not None:
            self._line.abort()
        if stopping is not None:
            # Behind the last note of what is delivered, which the executor may still be at.
            self._executor.run_admitted(lambda: None).addBoth(lambda _: stopping.callback(None))

    def _complain(self, reason: Failure) -> None:
        now = self._clock.seconds()
        if self._complained is None or now - self._complained >= COMPLAIN_AFTER:
            self._complained = now
            self.log.error(
                "audit messages are not delivered to {place}, and wait in {path}: {why}",
                place=self._transport.place,
                path=self._spool.path,
                why=loggable(reason.value),
            )


@implementer(IHandshakeListener, IPushProducer)
class _Line(Protocol):
    """A connection to a syslog server, whose own messages are ignored."""

    def __init__(self, delivery: Delivery, clock: Any) -> None:
        self._delivery = delivery
        self._clock = clock
        self._late: Any = None
        self._reason: Failure | None = None
        self.is_paused = False

    def connectionMade(self) -> None:
        lowest = self._lowest()
        with suppress(OSError, AttributeError):
            milliseconds = int(STALLED * 1000)
            lowest.getHandle().setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            lowest.setTcpKeepAlive(True)
        if ISSLTransport.providedBy(self.transport):
            # Messages that are written before the end of the handshake stay in this process.
            self._late = self._clock.callLater(HANDSHAKE, self._hangs)
        else:
            self.handshakeCompleted()

    def handshakeCompleted(self) -> None:
        self._on_time()
        transport: Any = self.transport
        transport.registerProducer(self, True)
        self._delivery.connected(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._on_time()
        self._delivery.lost(self._reason or reason)

    def _hangs(self) -> None:
        self._reason = Failure(TimeoutError(f"it has not completed the handshake of TLS in {HANDSHAKE:g} s"))
        self.abort()

    def _on_time(self) -> None:
        late, self._late = self._late, None
        if late is not None and late.active():
            late.cancel()

    def _lowest(self) -> Any:
        """Return the transport of the socket."""
        lowest: Any = self.transport
        while hasattr(lowest, "transport"):  # below TLS
            lowest = lowest.transport
        return lowest

    @property
    def is_flushed(self) -> bool:
        """Whether the receiver's system has acknowledged all that was written, but for what was written just now."""
        if self.is_paused:
            return False
        try:
            waiting = fcntl.ioctl(self._lowest().fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):
            return True  # only Linux tells
        return not struct.unpack("i", waiting)[0]

    def send(self, message: bytes) -> None:
        """Write a message."""
        transport: Any = self.transport
        transport.write(framed(message))

    def close(self) -> None:
        """
        Close the connection when everything is written, and the receiver has read it: it closes its side then. TLS has an
        alert for that; without it only the writing side is closed, since a socket that is closed tells nothing of what the
        receiver has read.
        """
        transport: Any = self.transport
        transport.unregisterProducer()
        if hasattr(transport, "transport"):  # TLS
            transport.loseConnection()
        else:
            transport.loseWriteConnection()

    def abort(self) -> None:
        """Close the connection at once."""
        transport: Any = self.transport
        transport.abortConnection()

    def pauseProducing(self) -> None:
        self.is_paused = True

    def resumeProducing(self) -> None:
        self.is_paused = False
        self._delivery.resumed()

    def stopProducing(self) -> None:
        """Do nothing: the loss of the connection follows."""


class Stream:
    """
    Delivery on a connection, with or without TLS.

    :param endpoint: makes the client endpoint: again for each connection, since certificates may have been renewed.
    :param place: the receiver in words.

    :ivar settle: the time after which a message counts as delivered, in seconds.
    """

    settle = SETTLE

    def __init__(self, endpoint: Callable[[], IStreamClientEndpoint], place: str) -> None:
        self._endpoint = endpoint
        self.place = place

    def connect(self, delivery: Delivery) -> Deferred[Any]:
        """Connect. The Deferred fails if that is not possible."""
        try:
            endpoint = self._endpoint()
        except (OSError, ValueError):
            failed: Deferred[Any] = Deferred()
            failed.errback(Failure())
            return failed
        factory = Factory.forProtocol(lambda: _Line(delivery, delivery._clock))
        factory.noisy = False  # an attempt is no news
        connecting: Deferred[Any] = endpoint.connect(factory)
        return connecting


class Datagrams:
    """
    Delivery by UDP, a datagram for each message. Nothing tells whether it arrives.

    :param reactor: the reactor.
    :param host: the address of the receiver.
    :param port: its port.
    """

    settle = 0.0

    def __init__(self, reactor: Any, host: str, port: int) -> None:
        self.place = f"udp:{host}:{port}"
        self._reactor = reactor
        self._host, self._port = host, port

    def connect(self, delivery: Delivery) -> Deferred[Any]:
        """Open a socket."""
        sender = _Sender(delivery, self._host, self._port)
        try:
            self._reactor.listenUDP(0, sender)
        except Exception:
            failed: Deferred[Any] = Deferred()
            failed.errback(Failure())
            return failed
        return succeed(None)


class _Sender(DatagramProtocol):
    """A socket that sends datagrams to one address."""

    is_paused = False
    is_flushed = True

    def __init__(self, delivery: Delivery, host: str, port: int) -> None:
        self._delivery = delivery
        self._place = (host, port)

    def startProtocol(self) -> None:
        self._delivery.connected(self)

    def send(self, message: bytes) -> None:
        """Send a message. One that is longer than a datagram may be, or has no way to the receiver, is lost."""
        transport: Any = self.transport
        with suppress(OSError):
            transport.write(message, self._place)

    def close(self) -> None:
        """Close the socket."""
        transport: Any = self.transport
        transport.stopListening()

    abort = close

    def stopProtocol(self) -> None:
        self._delivery.lost(Failure(connectionDone.value))
