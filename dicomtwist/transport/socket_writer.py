"""
Writing to a transport: through its buffer, or past it straight to the socket while the buffer is empty.

Twisted's transports take bytes into a buffer and write when the reactor finds the socket ready. For an answer of a hundred
bytes that is two changes of the reactor's interest and one more round, more than all the rest of a C-ECHO; for a data set it
is two copies. So on a plain stream socket :class:`SocketOutput` writes at once, and keeps what the kernel does not
take, without a copy, for the next time that it does.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from twisted.internet.interfaces import IPullProducer
from twisted.internet.tcp import Connection
from zope.interface import implementer

Buffers: TypeAlias = Sequence[bytes | memoryview]

#: How much of a data set is given to the transport's buffer at once, in bytes. A peer that takes this much within the
#: network timeout counts as alive.
WRITE_SIZE = 256 * 1024

#: The same of what is given to the socket: a chunk of a file goes in one call, and whatever the peer takes of it counts.
SOCKET_WRITE_SIZE = 1024 * 1024

#: What the kernel takes in one call, in buffers (``UIO_MAXIOV``).
_MAX_BUFFERS = 1024


class Writer(Protocol):
    """Who writes, and is told how it goes."""

    def pauseProducing(self) -> None:
        """The peer takes no more for now."""

    def resumeProducing(self) -> None:
        """All is written, more may come."""

    def write_progressed(self) -> None:
        """The peer took some of what waits."""


class Output(Protocol):
    """Where an upper layer writes."""

    @property
    def write_size(self) -> int:
        """How much of a data set to write at once, in bytes."""

    def write(self, buffers: Buffers) -> None:
        """Write *buffers* in order."""

    def hand_over(self) -> None:
        """Give what waits to the transport, which is going to be closed when it is written."""


def make_output(transport: Any, writer: Writer) -> Output:
    """Return the output to use for *transport*, with *writer* registered as its producer."""
    handle = transport.getHandle() if isinstance(transport, Connection) and not transport.TLS else None
    if isinstance(handle, socket.socket) and hasattr(handle, "sendmsg"):
        return SocketOutput(transport, handle, writer)
    transport.registerProducer(writer, True)
    return TransportOutput(transport)


class TransportOutput:
    """Writes to the transport's buffer: for TLS, for wrapped transports, for those in memory."""

    __slots__ = ("_transport",)
    write_size = WRITE_SIZE

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def write(self, buffers: Buffers) -> None:
        """Write *buffers* in order."""
        self._transport.write(b"".join(buffers))

    def hand_over(self) -> None:
        """The transport has it all."""


@implementer(IPullProducer)
class SocketOutput:
    """
    Writes to the socket itself, and keeps what the kernel does not take until it takes more.

    It is the pull producer of a transport whose own buffer stays empty, and is asked to go on when the socket can be
    written to.
    """

    __slots__ = ("_handed", "_rest", "_socket", "_transport", "_writer")
    write_size = SOCKET_WRITE_SIZE

    def __init__(self, transport: Any, handle: socket.socket, writer: Writer) -> None:
        self._transport = transport
        self._socket = handle
        self._writer = writer
        self._rest: list[bytes | memoryview] = []
        self._handed = False
        transport.registerProducer(self, False)

    def write(self, buffers: Buffers) -> None:
        """Write *buffers* in order."""
        if self._handed:
            self._transport.write(b"".join(buffers))
        elif self._rest:
            self._rest += buffers
        else:
            self._rest = self._send(buffers)
            if self._rest:
                self._writer.pauseProducing()
                self._transport.startWriting()

    def _send(self, buffers: Buffers) -> list[bytes | memoryview]:
        """Give the kernel what it takes of *buffers*; return the rest."""
        try:
            if len(buffers) == 1:
                sent = self._socket.send(buffers[0])
            else:
                sent = self._socket.sendmsg(buffers[:_MAX_BUFFERS])
        except OSError:
            # Full, or broken: the transport finds out which when it is asked to write, and closes.
            sent = 0
        for index, data in enumerate(buffers):
            if sent < len(data):
                return [memoryview(data)[sent:], *buffers[index + 1 :]]
            sent -= len(data)
        return []

    def resumeProducing(self) -> None:
        """The socket can be written to, and the transport has nothing to write."""
        if self._handed:
            self._handed = False
            self._writer.resumeProducing()
        if not self._rest:
            return
        before = len(self._rest), len(self._rest[0])
        self._rest = self._send(self._rest)
        if not self._rest:
            self._writer.resumeProducing()
        elif (len(self._rest), len(self._rest[0])) != before:
            self._writer.write_progressed()
            self._transport.startWriting()
        else:
            # Nothing went though the socket is writable: the transport's own attempt tells what is wrong.
            self.hand_over()

    def hand_over(self) -> None:
        """Give what waits to the transport; it writes, until it has written all."""
        self._handed = True
        rest, self._rest = self._rest, []
        if rest:
            self._transport.write(b"".join(rest))

    def stopProducing(self) -> None:
        """The transport is going away."""
        self._rest = []
