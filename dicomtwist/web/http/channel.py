"""
One HTTP connection of a site: Twisted's channel with limits on time and size, and with bodies that can be refused and paused.
"""

from __future__ import annotations

import enum
import socket
from http import HTTPStatus
from string import ascii_letters, digits
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from dicomtwist.transport.socket_writer import Buffers, Output, SocketOutput, TransportOutput, make_output
from dicomtwist.web.http.limits import MAX_HEADER_FIELDS, MAX_HEADER_LENGTH, HTTPLimits

__all__ = ["Channel"]

#: The bytes of a body that must arrive in the body timeout, while the server reads. The rest of a body may be less.
MIN_PROGRESS: Final = 16 * 1024
#: After a response that comes before the end of the body: the bytes and the seconds for the client to notice, in which what it
#: sends is discarded. If the connection were closed at once, the client might lose the response.
MAX_DISCARDED: Final = 64 * 1024 * 1024
LINGER: Final = 5.0
#: The bytes of further requests that wait, besides one read, before nothing more is read.
MAX_BACKLOG: Final = 16 * 1024
#: The longest read from the socket, in bytes: of requests, which is Twisted's default, and of a body. Most images arrive in one
#: or two reads of a body, which then take half of the system calls and of the changes of thread of four times as many.
READ_SIZE: Final = 64 * 1024
MAX_READ_SIZE: Final = 1024 * 1024
#: The bytes of one read of each connection together, from which on bodies are read in shorter pieces.
MAX_READS: Final = 16 * 1024 * 1024
#: The bytes that a request may begin with: those of a method (RFC 9110 5.6.2), and of an empty line before it (RFC 9112 2.2).
_FIRST_BYTES: Final = frozenset(b"\r\n!#$%&'*+-.^_`|~" + ascii_letters.encode() + digits.encode())


class _Phase(enum.Enum):
    """The states of a connection, by the event that it waits for."""

    IDLE = "a request"
    HEADER = "the rest of a header"
    BODY = "the rest of a body"
    RESPONSE = "the response, or the client to take it"
    LINGERING = "the client to close"


#: Twisted's class has no annotations, so calls of its methods would not be typed.
_Untyped: Any = HTTPChannel


class Channel(_Untyped):  # type: ignore[misc]
    """
    One connection. Its site calls :meth:`look` each second, so that no connection needs timers of its own.

    :ivar limits: the limits; the site sets them.
    :ivar site: the site.
    :ivar root: the root of the resources of this connection; ``None`` for that of the site.
    """

    limits: HTTPLimits
    site: Any
    root: Any = None
    _path: bytes
    _version: bytes
    log = Logger()

    maxHeaders = MAX_HEADER_FIELDS
    totalHeadersSize = MAX_HEADER_LENGTH
    MAX_LENGTH = MAX_HEADER_LENGTH

    _phase = _Phase.IDLE
    _since = 0.0
    _progress = 0
    _discarded = 0
    _body_paused = False
    _full_since: float | None = None
    _has_served = False
    #: Where responses are written: to the socket, without the copies and the rounds of the reactor of Twisted's transport, if
    #: it is a plain one. A study of 132 MB takes 0.6 of the CPU time then.
    _output: Output
    #: The header of a response, which is written with the first bytes of the body.
    _head = b""
    #: The request whose body arrives; ``None`` in any other phase.
    _streaming: Any = None

    # --- the connection

    def connectionMade(self) -> None:
        self._enter(_Phase.IDLE)
        self.timeOut = None
        super().connectionMade()
        self._networkProducer.unregisterProducer()
        self._output = make_output(self.transport, self)
        self.site.connected(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if isinstance(self._output, SocketOutput):
            self.stopProducing()  # the transport has told its producer, which is the output
            self._output = TransportOutput(self.transport)  # which ignores what is written now
        super().connectionLost(reason)
        self.site.disconnected(self)

    def dataReceived(self, data: bytes) -> None:
        if self._phase is _Phase.LINGERING:
            self._discard(len(data))
            return
        if self._phase is _Phase.IDLE:
            if data and data[0] not in _FIRST_BYTES and not (self._buffer or any(self._dataBuffer)):
                # TLS, or an association request of DICOM: without lines, the rest of a header would be waited for.
                self.refuse(400, "the request is not HTTP")
                return
            self._enter(_Phase.HEADER)
        self._progress += len(data)
        super().dataReceived(data)
        self._hold_reading()

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self._progress = 0
        self._since = self.site.reactor.seconds()

    def look(self, now: float) -> None:
        """End the connection if its time for the current phase has passed."""
        limits, phase = self.limits, self._phase
        elapsed = now - self._since
        if phase is _Phase.IDLE:
            # A connection without any request is given less time than one that is kept between two.
            if _is_over(elapsed, limits.idle_timeout if self._has_served else limits.header_timeout):
                self.loseConnection()
                self._enter(_Phase.LINGERING)  # if the client does not take what is left of a response, it is aborted
        elif phase is _Phase.HEADER:
            if _is_over(elapsed, limits.header_timeout):
                self.refuse(408, "the header of the request has not arrived in time")
        elif phase is _Phase.BODY:
            if self._body_paused or self._progress >= MIN_PROGRESS:
                self._enter(_Phase.BODY)
            elif _is_over(elapsed, limits.body_timeout):
                self._stop_body(408, "the body of the request has not arrived in time")
        elif phase is _Phase.LINGERING and elapsed > LINGER:
            self.transport.abortConnection()
        if self._full_since is not None and _is_over(now - self._full_since, limits.write_timeout):
            self.transport.abortConnection()

    # --- requests

    def lineLengthExceeded(self, line: bytes) -> None:
        self.refuse(414 if self._has_no_request_line else 431, "the header of the request is too long")

    @property
    def _has_no_request_line(self) -> bool:
        return not self.requests or not hasattr(self, "_command")

    def headerReceived(self, line: bytes) -> bool:
        try:
            return bool(super().headerReceived(line))
        except ValueError:  # a Content-Length with more digits than Python converts
            self.refuse(400, "the header of the request is wrong")
            return False

    def allHeadersReceived(self) -> None:
        request = self.requests[-1]
        hosts = request.requestHeaders.getRawHeaders(b"Host", [])
        if len(hosts) > 1 or (not hosts and self._version == b"HTTP/1.1"):
            self.refuse(400, "a request has one Host")
            return
        if self._path.startswith((b"http://", b"https://")):
            # The absolute form, which proxies are sent (RFC 9112 3.2.2).
            slash = self._path.find(b"/", 8)
            self._path = self._path[slash:] if slash > 0 else b"/"
        self.persistent = self.checkPersistence(request, self._version) and not self.site.unavailable
        if self.length != 0:
            self._enter(_Phase.BODY)
            self._streaming = request
            self._set_read_size(max(READ_SIZE, min(MAX_READ_SIZE, MAX_READS // (len(self.site.connections) or 1))))
        request.begin(self._command, self._path, self._version, self.length)

    def drain(self) -> None:
        """Close the connection if no request is under way, else after the response."""
        self.persistent = False
        if self._phase in (_Phase.IDLE, _Phase.HEADER):
            self.loseConnection()

    def allContentReceived(self) -> None:
        if self._phase is _Phase.LINGERING:
            return
        if self._streaming is not None:
            self._streaming = None
            self._set_read_size(READ_SIZE)
        self._enter(_Phase.RESPONSE)
        super().allContentReceived()

    def rawDataReceived(self, data: bytes) -> None:
        if self._phase is not _Phase.LINGERING:
            super().rawDataReceived(data)

    def _set_read_size(self, size: int) -> None:
        """Set the longest read from the socket; a body of images is read in longer pieces than requests."""
        if isinstance(getattr(self.transport, "bufferSize", None), int):
            self.transport.bufferSize = size

    def requestDone(self, request: Any) -> None:
        self.flush()
        if self._streaming is request:
            # The response came before the end of the body, so the rest of it would be taken for the next request.
            self._streaming = None
            self.requests.remove(request)
            self._linger()
            return
        self._has_served = True
        if self.persistent:
            self._enter(_Phase.IDLE)
            if self._buffer or any(self._dataBuffer):
                # Requests that came together have turns of the reactor, so that others have theirs between them.
                self.paused = True
                self.site.take_turn(self)
        super().requestDone(request)
        self._hold_reading()

    def go_on(self) -> None:
        """Handle the next of the requests that came together."""
        self.paused = False
        self.dataReceived(b"")
        if not (self._body_paused or self._waitingForTransport or self._handlingRequest):
            self._networkProducer.resumeProducing()
        self._hold_reading()

    def _hold_reading(self) -> None:
        """Read nothing while enough waits."""
        if self._body_paused or (self.paused and len(self._buffer) > MAX_BACKLOG):
            self._networkProducer.pauseProducing()

    def refuse(self, status: int, words: str) -> None:
        """Answer a request that is no request, and close the connection."""
        if self._phase is _Phase.LINGERING:
            return
        code = HTTPStatus(status)
        content = f"{words}\n".encode()
        fields = (
            f"HTTP/1.1 {status} {code.phrase}",
            "Content-Type: text/plain; charset=utf-8",
            f"Content-Length: {len(content)}",
            "Connection: close",
        )
        self.write("\r\n".join((*fields, "", "")).encode("ascii") + content)
        self._linger()

    def _respondToBadRequestAndDisconnect(self) -> None:
        if self._streaming is not None:
            self._stop_body(400, "the body of the request is malformed")
        elif self._receivedHeaderSize > self.totalHeadersSize:
            self.refuse(414 if self._has_no_request_line else 431, "the header of the request is too long")
        elif self._receivedHeaderCount > self.maxHeaders:
            self.refuse(431, f"the header of the request has more than {self.maxHeaders} fields")
        else:
            self.refuse(400, "the request is malformed")

    # --- bodies

    def pause_body(self) -> None:
        """Stop reading a body: enough of it waits."""
        if self._streaming is not None:
            self._body_paused = True
            self._networkProducer.pauseProducing()

    def resume_body(self) -> None:
        """Read on."""
        if self._body_paused:
            self._body_paused = False
            if self._streaming is not None:
                self._enter(_Phase.BODY)
            self._networkProducer.resumeProducing()

    def send_continue(self) -> None:
        """Let the client send the body that it has announced."""
        self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _stop_body(self, status: int, words: str) -> None:
        """Give up a body that does not arrive: its request is told, and answers if it can."""
        request = self._streaming
        if request is not None:
            self.persistent = False
            request.body_failed(status, words)

    def _linger(self) -> None:
        """Discard what the client sends until it closes the connection."""
        self._body_paused = self.paused = False
        self._enter(_Phase.LINGERING)
        self.setRawMode()
        self._networkProducer.resumeProducing()

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > MAX_DISCARDED:
            self.transport.abortConnection()

    # --- the flow of responses

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
        head = [version, b" ", code, b" ", reason, b"\r\n"]
        for name, values in headers.getAllRawHeaders():
            for value in values:
                head += (name, b": ", value, b"\r\n")
        head.append(b"\r\n")
        self._head = b"".join(head)

    def write(self, data: bytes | memoryview) -> None:
        self.writeSequence((data,))

    def writeSequence(self, iovec: Buffers) -> None:
        head, self._head = self._head, b""
        self._output.write([head, *iovec] if head else iovec)

    def flush(self) -> None:
        """Write the header of a response that waits for the body."""
        if self._head:
            self.writeSequence(())

    def can_lend_socket(self) -> bool:
        """Return whether a thread can write to the connection: it is a plain socket, and no bytes wait that come before."""
        return isinstance(self._output, SocketOutput) and self._output.is_empty

    def lend_socket(self) -> socket.socket:
        """Return a socket object for a thread that writes to the connection, see :meth:`SocketOutput.lend`."""
        assert isinstance(self._output, SocketOutput)
        return self._output.lend()

    def when_writable(self) -> Deferred[None]:
        """Return a Deferred that fires when the client takes more. It has the write timeout for that."""
        assert isinstance(self._output, SocketOutput)
        self._full_since = self.site.reactor.seconds()
        done: Deferred[None] = Deferred()
        self._output.call_when_writable(lambda: self._is_writable(done))
        return done

    def _is_writable(self, done: Deferred[None]) -> None:
        self._full_since = None
        if not done.called:
            done.callback(None)

    def loseConnection(self) -> None:
        self.flush()
        self._output.hand_over()
        super().loseConnection()

    def pauseProducing(self) -> None:
        if self._full_since is None:
            self._full_since = self.site.reactor.seconds()
        super().pauseProducing()

    def write_progressed(self) -> None:
        """The client has taken a part of what waits, so it has its time for the next part."""
        self._full_since = self.site.reactor.seconds()

    def resumeProducing(self) -> None:
        self._full_since = None
        super().resumeProducing()
        self._hold_reading()


def _is_over(elapsed: float, limit: float | None) -> bool:
    return limit is not None and elapsed > limit
