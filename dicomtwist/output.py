"""
Writing to a transport: through its buffer, or past it straight to the socket while the buffer is empty.

Twisted's transports take bytes into a buffer and write when the reactor finds the socket ready. For an answer of a hundred
bytes that is two changes of the reactor's interest and one more round, more than all the rest of a C-ECHO; for a data set it
is two copies. So on a plain stream socket :class:`SocketOutput` writes at once, and gives the transport only what the
kernel does not take.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from twisted.internet.interfaces import IPullProducer, IPushProducer
from twisted.internet.tcp import Connection
from zope.interface import implementer

Buffers: TypeAlias = Sequence[bytes | memoryview]

#: What the kernel takes in one call, in buffers (``UIO_MAXIOV``); a longer list goes through the transport.
_MAX_BUFFERS = 1024


class Output(Protocol):
    """Where an upper layer writes; tells its ``IPushProducer`` when it is full and when it takes more."""

    def write(self, buffers: Buffers) -> None:
        """Write *buffers* in order."""


def make_output(transport: Any, producer: IPushProducer) -> Output:
    """Return the output to use for *transport*, with *producer* registered."""
    handle = transport.getHandle() if isinstance(transport, Connection) and not transport.TLS else None
    if isinstance(handle, socket.socket) and hasattr(handle, "sendmsg"):
        return SocketOutput(transport, handle, producer)
    transport.registerProducer(producer, True)
    return TransportOutput(transport)


class TransportOutput:
    """Writes to the transport's buffer: for TLS, for wrapped transports, for those in memory."""

    __slots__ = ("_transport",)

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def write(self, buffers: Buffers) -> None:
        """Write *buffers* in order."""
        self._transport.write(b"".join(buffers))


@implementer(IPullProducer)
class SocketOutput:
    """
    Writes to the socket while the transport has nothing to write.

    It is the transport's pull producer, which is asked for more whenever the transport's buffer is empty: that is when
    the socket may be written to again.
    """

    __slots__ = ("_buffered", "_producer", "_socket", "_transport")

    def __init__(self, transport: Any, handle: socket.socket, producer: IPushProducer) -> None:
        self._transport = transport
        self._socket = handle
        self._producer = producer
        self._buffered = False
        transport.registerProducer(self, False)

    def write(self, buffers: Buffers) -> None:
        """Write *buffers* in order."""
        if self._buffered or len(buffers) > _MAX_BUFFERS:
            self._to_transport(b"".join(buffers))
            return
        try:
            sent = self._socket.send(buffers[0]) if len(buffers) == 1 else self._socket.sendmsg(buffers)
        except OSError:
            # Full, or broken: then the transport finds out in its own way, and closes.
            sent = 0
        for index, data in enumerate(buffers):
            if sent < len(data):
                rest = memoryview(data)[sent:]
                self._to_transport(b"".join([rest, *buffers[index + 1 :]]))
                return
            sent -= len(data)

    def _to_transport(self, data: bytes) -> None:
        if not self._buffered:
            self._buffered = True
            self._producer.pauseProducing()
        self._transport.write(data)

    def resumeProducing(self) -> None:
        """The transport's buffer is empty."""
        if self._buffered:
            self._buffered = False
            self._producer.resumeProducing()

    def stopProducing(self) -> None:
        """The transport is going away."""
