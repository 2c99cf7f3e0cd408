"""
Connections in memory that behave as Twisted's TCP does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IPushProducer, ITransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

#: How much one read brings at the most, and how much a transport takes before it pauses its producer, in bytes; as with
#: Twisted's TCP.
READ_SIZE = 64 * 1024
#: How much is on its way between two ends at the most, as in the buffers of the kernels, in bytes.
WIRE_SIZE = 64 * 1024


@implementer(ITransport, IConsumer, IPushProducer)
class MemoryTransport:
    """
    One end of a connection; it behaves as Twisted's TCP does.

    :ivar frozen: set it, and the process at this end does nothing any more: it neither reads nor notices that the other
        end has closed.
    :ivar connected: whether it is open.
    :ivar disconnecting: whether it is to close when what was written is out.
    :ivar reading: whether its protocol wants to be given what comes.
    :ivar bytes_written: how much was written to it.
    :ivar bytes_read: how much it gave to its protocol.
    :ivar most_buffered: the most that ever waited in its memory to be sent.
    """

    log = Logger()

    def __init__(self, connection: MemoryConnection, host: IPv4Address, peer: IPv4Address) -> None:
        self.connection = connection
        self.protocol: Any = None
        self.other: MemoryTransport = self
        self.frozen = False
        self.connected = True
        self.disconnecting = False
        self.reading = True
        self.bytes_written = 0
        self.bytes_read = 0
        self.most_buffered = 0
        self.no_delay = False
        self.producer: Any = None
        self._host = host
        self._peer = peer
        self._streaming = False
        self._producer_paused = False
        self._buffer = bytearray()
        self._wire = bytearray()  # on its way to this end
        self._aborting = False
        self._was_reset = False  # by the other end
        self._lost: Callable[[Failure], None] | None = None

    def __repr__(self) -> str:
        return f"<MemoryTransport {self._host.port} to {self._peer.port}, {'open' if self.connected else 'closed'}>"

    @property
    def buffered(self) -> int:
        """How much waits in its memory to be sent."""
        return len(self._buffer)

    # --- ITransport

    def write(self, data: bytes) -> None:
        """Send *data*."""
        if not isinstance(data, bytes):
            raise TypeError(f"a transport is given bytes, not {type(data).__name__}")
        if not self.connected or self._aborting or not data:
            return
        self.bytes_written += len(data)
        self._buffer += data
        self.most_buffered = max(self.most_buffered, len(self._buffer))
        if self.producer is not None and self._streaming and len(self._buffer) > READ_SIZE:
            self._producer_paused = True
            self.producer.pauseProducing()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send all of *data*."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Close when what was written is out; from now on nothing is read."""
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self.reading = False

    def abortConnection(self) -> None:
        """Close now: what is on the way is lost, and the other end sees a reset."""
        if self.connected:
            self._aborting = True
            self.reading = False

    def getHost(self) -> IPv4Address:
        """Return the address of this end."""
        return self._host

    def getPeer(self) -> IPv4Address:
        """Return the address of the other end."""
        return self._peer

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Keep what is asked for; nothing is delayed here."""
        self.no_delay = bool(enabled)

    def getTcpNoDelay(self) -> bool:
        """Return what was asked for."""
        return self.no_delay

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Without effect."""

    # --- IConsumer and IPushProducer

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Tell *producer* when to pause and when to go on."""
        if self.producer is not None:
            raise RuntimeError(f"{producer!r} cannot be registered, {self.producer!r} is")
        if not self.connected:
            producer.stopProducing()
            return
        self.producer, self._streaming, self._producer_paused = producer, streaming, False
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        """Tell nobody any more."""
        self.producer = None

    def pauseProducing(self) -> None:
        """Read no more for now."""
        self.reading = False

    def resumeProducing(self) -> None:
        """Read again."""
        if self.connected and not self.disconnecting and not self._aborting:
            self.reading = True

    def stopProducing(self) -> None:
        """Close."""
        self.loseConnection()

    # --- for the network

    def start(self, protocol: Any, lost: Callable[[Failure], None] | None = None) -> None:
        """Connect *protocol* to it; *lost* is called when the connection is gone."""
        self.protocol, self._lost = protocol, lost
        protocol.makeConnection(self)

    def step(self) -> bool:
        """Do what a reactor does in one round; return whether there was anything."""
        if not self.connected or self.frozen:
            return False
        if self._aborting:
            self.lose(ConnectionAborted())
            return True
        moved = self._read()
        return (self.connected and self._flush()) or moved

    def _read(self) -> bool:
        if not self.reading:
            return False
        if self._was_reset:
            self.lose(ConnectionLost())
        elif self._wire:
            data = bytes(self._wire[:READ_SIZE])
            del self._wire[:READ_SIZE]
            self.bytes_read += len(data)
            try:
                self.protocol.dataReceived(data)
            except Exception as error:
                self.log.failure("the protocol raised")
                self.lose(error)
        elif not self.other.connected:
            self.lose(ConnectionDone())
        else:
            return False
        return True

    def _flush(self) -> bool:
        if not self.other.connected and (self._buffer or self.disconnecting):
            self.lose(ConnectionLost() if self._buffer or self._was_reset else ConnectionDone())
            return True
        room = WIRE_SIZE - len(self.other._wire)
        taken = min(room, len(self._buffer))
        if taken > 0:
            self.other._wire += self._buffer[:taken]
            del self._buffer[:taken]
        if self._buffer:
            return taken > 0
        if self.producer is not None and (self._producer_paused or (not self._streaming and taken)):
            self._producer_paused = False
            self.producer.resumeProducing()
        elif self.disconnecting:
            self.lose(ConnectionDone())
        else:
            return taken > 0
        return True

    def lose(self, reason: Exception) -> None:
        """The connection is gone for this end."""
        if not self.connected:
            return
        self.connected = self.reading = False
        self._buffer.clear()
        self._wire.clear()
        if not isinstance(reason, ConnectionDone) and self.other.connected:
            self.other._was_reset = True
            self.other._wire.clear()
        if self.producer is not None:
            producer, self.producer = self.producer, None
            producer.stopProducing()
        failure = Failure(reason)
        self.protocol.connectionLost(failure)
        if self._lost is not None:
            self._lost(failure)


class MemoryConnection:
    """
    A connection between two protocols.

    :ivar client: the end that connected.
    :ivar server: the end that was connected to.
    """

    def __init__(self, client: IPv4Address, server: IPv4Address) -> None:
        self.client = MemoryTransport(self, client, server)
        self.server = MemoryTransport(self, server, client)
        self.client.other, self.server.other = self.server, self.client

    @property
    def is_open(self) -> bool:
        """Whether either end is."""
        return self.client.connected or self.server.connected

    def cut(self) -> None:
        """Lose it, as when a cable is pulled and both ends notice: what is on its way is lost too."""
        self.client.lose(ConnectionLost())
        self.server.lose(ConnectionLost())
