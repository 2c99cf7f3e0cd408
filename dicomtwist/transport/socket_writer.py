"""
Writing to a transport: through its buffer, or directly to the socket while the buffer is empty.

Twisted's transports append bytes to a buffer and write when the reactor reports the socket as ready. For an answer of a
hundred bytes that costs two changes of the reactor's interest and one more round, more than the rest of a C-ECHO; for a
data set it costs two copies. So on a plain stream socket :class:`SocketOutput` writes at once. Bytes that the kernel does
not accept wait, without a copy, until it accepts more.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from twisted.internet.interfaces import IPullProducer
from twisted.internet.tcp import Connection
from zope.interface import implementer

Buffers: TypeAlias = Sequence[bytes | memoryview]

#: The part of a data set that is given to the transport's buffer at once, in bytes. A peer that accepts this much within
#: the network timeout counts as alive.
WRITE_SIZE = 256 * 1024

#: The part of a data set that is given to the socket at once, in bytes: one call for a chunk of a file. Every byte that the
#: peer accepts of it counts as progress.
SOCKET_WRITE_SIZE = 1024 * 1024

#: The maximum number of buffers in one system call (``UIO_MAXIOV``).
_MAX_BUFFERS = 1024


class Writer(Protocol):
    """The user of an :class:`Output`, which is notified of its progress."""

    def pauseProducing(self) -> None:
        """The peer accepts no more for now."""

    def resumeProducing(self) -> None:
        """Everything is written, more may follow."""

    def write_progressed(self) -> None:
        """The peer accepted a part of the waiting bytes."""


class Output(Protocol):
    """The destination of the bytes that an upper layer writes."""

    @property
    def write_size(self) -> int:
        """The part of a data set to write at once, in bytes."""

    def write(self, buffers: Buffers) -> None:
        """Write *buffers* in order."""

    def hand_over(self) -> None:
        """Give the waiting bytes to the transport, which will be closed after they are written."""


def make_output(transport: Any, writer: Writer) -> Output:
    """Return the output to use for *transport*, with *writer* registered as its producer."""
    handle = transport.getHandle() if isinstance(transport, Connection) and not transport.TLS else None
    if isinstance(handle, socket.socket) and hasattr(handle, "sendmsg"):
        return SocketOutput(transport, handle, writer)
    transport.registerProducer(writer, True)
    return TransportOutput(transport)


class TransportOutput:
    """Writes to the transport's buffer: for TLS, for wrapped transports, for transports in memory."""

    __slots__ = ("_transport",)
    write_size = WRITE_SIZE

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def write(self, buffers: Buffers) -> None:
        """Write *buffers* in order."""
        self._transport.write(b"".join(buffers))

    def hand_over(self) -> None:
        """Do nothing: the transport already has all bytes."""


@implementer(IPullProducer)
class SocketOutput:
    """
    Writes directly to the socket, and holds the bytes that the kernel does not accept until it accepts more.

    It is the pull producer of a transport whose own buffer stays empty, so the transport calls it when the socket becomes
    writable.
    """

    __slots__ = ("_handed", "_rest", "_socket", "_transport", "_when_writable", "_writer")
    write_size = SOCKET_WRITE_SIZE

    def __init__(self, transport: Any, handle: socket.socket, writer: Writer) -> None:
        self._transport = transport
        self._socket = handle
        self._writer = writer
        self._rest: list[bytes | memoryview] = []
        self._handed = False
        self._when_writable: Callable[[], object] | None = None
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
        """Write as much of *buffers* as the kernel accepts; return the rest."""
        try:
            if len(buffers) == 1:
                sent = self._socket.send(buffers[0])
                if sent == len(buffers[0]):
                    return []
            else:
                sent = self._socket.sendmsg(buffers[:_MAX_BUFFERS])
        except OSError:
            # The socket is full or broken. The transport finds out which when it writes, and closes a broken one.
            sent = 0
        for index, data in enumerate(buffers):
            if sent < len(data):
                return [memoryview(data)[sent:], *buffers[index + 1 :]]
            sent -= len(data)
        return []

    @property
    def is_empty(self) -> bool:
        """Whether all bytes are written."""
        return not self._rest and not self._handed

    def lend(self) -> socket.socket:
        """
        Return a second socket object for the connection, for a thread that writes to it and closes it. Nothing else is written
        meanwhile, and before that the output is empty. It has a file descriptor of its own, so that the thread never writes to
        another connection that has got the number of this one.

        :raises OSError: there are no file descriptors left, or the connection is closed.
        """
        return self._socket.dup()

    def call_when_writable(self, function: Callable[[], object]) -> None:
        """Call *function* once when the socket accepts more, for a thread that has found it full."""
        self._when_writable = function
        self._transport.startWriting()

    def resumeProducing(self) -> None:
        """Write the waiting bytes: the socket is writable and the transport has nothing to write."""
        waiting, self._when_writable = self._when_writable, None
        if waiting is not None:
            waiting()
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
            # Nothing was written although the socket is writable: the transport's own attempt finds the error.
            self.hand_over()

    def hand_over(self) -> None:
        """Give the waiting bytes to the transport, which from then on writes until its buffer is empty."""
        self._handed = True
        rest, self._rest = self._rest, []
        if rest:
            self._transport.write(b"".join(rest))

    def stopProducing(self) -> None:
        """Drop the waiting bytes: the transport is closing."""
        self._rest = []
        self._when_writable = None
