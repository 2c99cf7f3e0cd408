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

#: The maximum length of one read, and the length of the buffer above which a transport pauses its producer, in bytes; both
#: as in Twisted's TCP.
READ_SIZE = 64 * 1024
#: The maximum number of bytes in transit between two ends, as in the buffers of the kernels.
WIRE_SIZE = 64 * 1024


@implementer(ITransport, IConsumer, IPushProducer)
class MemoryTransport:
    """
    One end of a connection; it behaves as Twisted's TCP does.

    :ivar frozen: whether the process at this end hangs: if so, it neither reads nor notices that the other end has closed.
    :ivar connected: whether the connection is open.
    :ivar disconnecting: whether it will close after the written bytes are sent.
    :ivar reading: whether its protocol accepts received bytes.
    :ivar bytes_written: the number of bytes written to it.
    :ivar bytes_read: the number of bytes given to its protocol.
    :ivar most_buffered: the highest number of bytes that ever waited in its memory.
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
        self._wire = bytearray()  # in transit to this end
        self._aborting = False
        self._was_reset = False  # by the other end
        self._lost: Callable[[Failure], None] | None = None

    def __repr__(self) -> str:
        return f"<MemoryTransport {self._host.port} to {self._peer.port}, {'open' if self.connected else 'closed'}>"

    @property
    def buffered(self) -> int:
        """The number of bytes that wait in its memory."""
        return len(self._buffer)

    # --- ITransport

    def write(self, data: bytes) -> None:
        """Send *data*."""
        if not isinstance(data, bytes):
            raise TypeError(f"a transport writes bytes, not {type(data).__name__}")
        if not self.connected or self._aborting or not data:
            return
        self.bytes_written += len(data)
        self._buffer += data
        self.most_buffered = max(self.most_buffered, len(self._buffer))
        if self.producer is not None and self._streaming and len(self._buffer) > READ_SIZE:
            self._producer_paused = True
            self.producer.pauseProducing()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send all items of *data*."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Close after the written bytes are sent; from now on nothing is read."""
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self.reading = False

    def abortConnection(self) -> None:
        """Close now: bytes in transit are lost, and the other end sees a reset."""
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
        """Store the option; nothing is delayed here."""
        self.no_delay = bool(enabled)

    def getTcpNoDelay(self) -> bool:
        """Return the stored option."""
        return self.no_delay

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Do nothing."""

    # --- IConsumer and IPushProducer

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Register *producer*, which is then paused and resumed."""
        if self.producer is not None:
            raise RuntimeError(f"{producer!r} cannot be registered, {self.producer!r} is")
        if not self.connected:
            producer.stopProducing()
            return
        self.producer, self._streaming, self._producer_paused = producer, streaming, False
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        """Remove the registered producer."""
        self.producer = None

    def pauseProducing(self) -> None:
        """Pause reading."""
        self.reading = False

    def resumeProducing(self) -> None:
        """Resume reading."""
        if self.connected and not self.disconnecting and not self._aborting:
            self.reading = True

    def stopProducing(self) -> None:
        """Close the connection."""
        self.loseConnection()

    # --- for the network

    def start(self, protocol: Any, lost: Callable[[Failure], None] | None = None) -> None:
        """Connect *protocol* to it; *lost* is called when the connection is closed."""
        self.protocol, self._lost = protocol, lost
        protocol.makeConnection(self)

    def step(self) -> bool:
        """Do the work of one reactor round; return whether there was any."""
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
        """Close the connection for this end, with *reason*."""
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
    :ivar server: the end that accepted.
    """

    def __init__(self, client: IPv4Address, server: IPv4Address) -> None:
        self.client = MemoryTransport(self, client, server)
        self.server = MemoryTransport(self, server, client)
        self.client.other, self.server.other = self.server, self.client

    @property
    def is_open(self) -> bool:
        """Whether at least one end is open."""
        return self.client.connected or self.server.connected

    def cut(self) -> None:
        """Cut the connection, as when a cable is pulled and both ends notice: bytes in transit are lost too."""
        self.client.lose(ConnectionLost())
        self.server.lose(ConnectionLost())
