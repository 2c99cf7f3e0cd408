"""
The body of a request: streamed to a sink as it arrives, or read from a file if the site has received it as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, BinaryIO, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

__all__ = ["Body", "BodyFailed", "BodySink", "BodyTooLong", "FileBody", "StreamedBody"]

#: The bytes of a body in a file that are read at once.
READ_SIZE: Final = 256 * 1024


class BodyTooLong(Exception):
    """A body is longer than the limit on it. A server answers 413."""


class BodyFailed(Exception):
    """
    A body is malformed, or has not arrived in time; the text says which.

    :ivar status: the status of the response, 400 or 408.
    """

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class BodySink(Protocol):
    """The receiver of a body, in the reactor thread."""

    def data(self, data: bytes) -> None:
        """Take the next piece."""

    def end(self) -> None:
        """The body is complete."""

    def fail(self, reason: Failure) -> None:
        """The rest of the body will never arrive: the connection is lost, or the body is too long."""


class Body(Protocol):
    """The body of a request. Its methods :meth:`pause` and :meth:`resume` are the flow control of an ingest."""

    @property
    def length(self) -> int | None:
        """The length in bytes, ``None`` if the client does not state it."""

    def deliver_to(self, sink: BodySink) -> None:
        """
        Pass the body to *sink*; call it once. A client that waits for ``100 Continue`` gets it now, so the checks of the
        request come first.
        """

    def pause(self) -> None:
        """Stop reading from the client: enough data waits."""

    def resume(self) -> None:
        """Read on."""


class _Flow(Protocol):
    """The connection of a body."""

    def pause_body(self) -> None:
        """Stop reading."""

    def resume_body(self) -> None:
        """Read on."""

    def send_continue(self) -> None:
        """Send ``100 Continue``."""


class StreamedBody:
    """
    A body that arrives while the request is handled. Until it has a sink, the connection is not read from.

    :param flow: the connection.
    :param length: the length in bytes, ``None`` if the client does not state it.
    :param maximum: the most bytes.
    :param expects_continue: whether the client waits for ``100 Continue`` before it sends the body.

    :ivar received: the bytes that have arrived.
    :ivar is_complete: whether the body is complete.
    """

    def __init__(self, flow: _Flow, length: int | None, maximum: int, expects_continue: bool = False) -> None:
        self.length = length
        self.received = 0
        self.is_complete = False
        self.expects_continue = expects_continue
        self._flow = flow
        self._maximum = maximum
        self._early: deque[bytes] = deque()
        self._sink: BodySink | None = None
        self._failure: Failure | None = None
        self._is_paused = True
        flow.pause_body()

    def deliver_to(self, sink: BodySink) -> None:
        self._sink = sink
        self._is_paused = False  # the sink may pause it again
        if self.expects_continue and not self.received and not self.is_complete:
            self._flow.send_continue()
        while self._early:
            sink.data(self._early.popleft())
        if self._failure is not None:
            sink.fail(self._failure)
        elif self.is_complete:
            sink.end()
        if not self._is_paused:
            self._flow.resume_body()

    def pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self._flow.pause_body()

    def resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._flow.resume_body()

    # --- for the connection

    def data_received(self, data: bytes) -> None:
        """Take the next piece from the client."""
        if self._failure is not None or not data:
            return
        self.received += len(data)
        if self.received > self._maximum:
            self.fail(Failure(BodyTooLong(f"a body of more than {self._maximum} bytes")))
        elif self._sink is None:
            self._early.append(data)
        else:
            self._sink.data(data)

    def completed(self) -> None:
        """The client has sent the whole body."""
        self.is_complete = True
        if self._sink is not None and self._failure is None:
            self._sink.end()

    def fail(self, reason: Failure) -> None:
        """The rest of the body will never arrive, or is not wanted."""
        if self._failure is None and not self.is_complete:
            self._failure = reason
            if self._sink is not None:
                self._sink.fail(reason)


class FileBody:
    """
    A body that another site than ours has received as a whole, in a file.

    :param file: the file.
    :param call_later: calls a function in the next turn of the reactor, as ``reactor.callLater`` does.
    """

    def __init__(self, file: BinaryIO, call_later: Callable[..., Any]) -> None:
        file.seek(0, 2)
        self.length: int | None = file.tell()
        file.seek(0)
        self._file = file
        self._call_later = call_later
        self._sink: BodySink | None = None
        self._is_paused = self._is_called = False

    def deliver_to(self, sink: BodySink) -> None:
        self._sink = sink
        self._read_later()

    def pause(self) -> None:
        self._is_paused = True

    def resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._read_later()

    def _read_later(self) -> None:
        if not self._is_called:
            self._is_called = True
            self._call_later(0, self._read)

    def _read(self) -> None:
        self._is_called = False
        sink = self._sink
        if self._is_paused or sink is None:
            return
        if self._file.closed:
            self._sink = None
            sink.fail(Failure(ConnectionDone()))
            return
        data = self._file.read(READ_SIZE)
        if data:
            sink.data(data)
            self._read_later()
        else:
            self._sink = None
            sink.end()


class Collector:
    """
    A sink that collects a whole body.

    :param maximum: the most bytes.

    :ivar result: fires with the bytes; fails with :class:`BodyTooLong`, or the reason of a lost connection.
    """

    def __init__(self, maximum: int) -> None:
        self.result: Deferred[bytes] = Deferred()
        self._maximum = maximum
        self._pieces: list[bytes] = []
        self._size = 0

    def data(self, data: bytes) -> None:
        if self.result.called:
            return
        self._size += len(data)
        if self._size > self._maximum:
            self._pieces.clear()
            self.result.errback(Failure(BodyTooLong(f"a body of more than {self._maximum} bytes")))
        else:
            self._pieces.append(data)

    def end(self) -> None:
        if not self.result.called:
            self.result.callback(b"".join(self._pieces))

    def fail(self, reason: Failure) -> None:
        if not self.result.called:
            self.result.errback(reason)
