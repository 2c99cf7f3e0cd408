"""
A site of twisted.web with limits, whose resources may handle a request before its body has arrived.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import datetimeToString
from twisted.web.resource import getChildForRequest

from dicomtwist.runtime.networks import Networks, host_of
from dicomtwist.web.http.body import Body, BodyFailed, BodyTooLong, StreamedBody
from dicomtwist.web.http.channel import Channel
from dicomtwist.web.http.limits import MAX_BODY_LENGTH, HTTPLimits
from dicomtwist.web.http.records import HTTPFigures, Noted, RequestRecord, record_of

__all__ = ["Site", "StreamedRequest", "StreamingResource"]

#: The most requests that came together with others, on all connections, that are handled in one turn of the reactor. Each takes
#: some 0.4 ms, in which associations wait.
MAX_TURNS: Final = 4
#: The time between two looks at all connections, in seconds.
INTERVAL: Final = 1.0


class StreamingResource(ABC):
    """A resource that handles a request when its header has arrived. It is a leaf of the tree of resources."""

    @abstractmethod
    def begin(self, request: Any, body: Body) -> None:
        """
        Handle a request.

        :param request: the request of twisted.web; it has a method, a URI and a header.
        :param body: its body, which may follow.
        """


#: Twisted's classes have no annotations, so calls of their methods would not be typed.
_UntypedRequest: Any = server.Request
_UntypedSite: Any = server.Site


class StreamedRequest(_UntypedRequest):  # type: ignore[misc]
    """A request whose body goes to a :class:`StreamingResource`, or into memory within a bound."""

    channel: Any
    defaultContentType = None
    _body: StreamedBody | None = None
    _is_begun = False
    #: When the header had arrived, in seconds of the reactor's clock; ``None`` before.
    begun_at: float | None = None
    noted: Noted

    def begin(self, method: bytes, uri: bytes, version: bytes, length: int | None) -> None:
        """The header has arrived: find the resource, and let it begin if the body can be streamed to it."""
        self.method, self.uri, self.clientproto = method, uri, version
        self.path = uri.partition(b"?")[0]
        self.content = BytesIO()
        self.site = self.channel.site
        self.begun_at = self.site.reactor.seconds()
        self.noted = Noted()
        if length == 0:
            return
        self.prepath: list[bytes] = []
        self.postpath = [unquote_to_bytes(one) for one in self.path[1:].split(b"/")]
        expects = self.requestHeaders.getRawHeaders(b"Expect", [b""])[0].lower() == b"100-continue"
        channel, limits = self.channel, self.channel.limits
        self._body = StreamedBody(channel, length, limits.maximum_body, expects and version == b"HTTP/1.1")
        self.setHeader(b"Date", datetimeToString())
        self.setHeader(b"Connection", b"close")  # unless the body is complete before the response
        try:
            resource: Any = self.site.getResourceFor(self)
            if isinstance(resource, StreamingResource):
                self._is_begun = True
                resource.begin(self, self._body)
            else:
                self._body.deliver_to(_Collecting(self))
        except BaseException:
            self.processingFailed(Failure())

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write a part of the response, after its header; without content, the header alone."""
        super().write(data)
        if not data and self.channel is not None:
            self.channel.flush()

    def write_all(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Write parts of the response that are in several buffers, without a copy."""
        if not self.startedWriting:
            super().write(b"")
        size = sum(map(len, buffers))
        if size and not self._disconnected and not self.finished:
            self.sentLength += size
            self.channel.writeSequence((b"%x\r\n" % size, *buffers, b"\r\n") if self.chunked else buffers)

    def can_lend_socket(self) -> bool:
        """Write the header of the response if :meth:`lend_socket` is possible then, and return whether it is."""
        channel = self.channel
        if self._disconnected or not channel.can_lend_socket():
            return False
        if not self.startedWriting:
            self.write(b"")
        return bool(channel.can_lend_socket())  # unless a part of the header waits

    def lend_socket(self) -> socket.socket | None:
        """
        Return a socket object for a thread that writes parts of the response, framed as the header says, and closes it.

        :returns: ``None`` if the connection is lost.
        :raises OSError: there are no file descriptors left.
        """
        if self._disconnected or self.finished:
            return None
        lent: socket.socket = self.channel.lend_socket()
        return lent

    def note_written(self, size: int) -> None:
        """Count bytes of the response that a thread has written."""
        self.sentLength += size

    def when_writable(self) -> Deferred[None]:
        """Return a Deferred that fires when the client takes more of what a thread writes."""
        done: Deferred[None] = self.channel.when_writable()
        return done

    def handleContentChunk(self, data: bytes) -> None:
        """Take a piece of the body."""
        if self._body is not None:
            self._body.data_received(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The body is complete: render the resource, unless it handles the request already."""
        body = self._body
        if body is None:
            super().requestReceived(command, path, version)
            return
        if self.channel.persistent and not self.startedWriting:
            self.responseHeaders.removeHeader(b"Connection")
        body.completed()
        if not self._is_begun and not self.finished:
            super().requestReceived(command, path, version)

    def body_failed(self, status: int, words: str) -> None:
        """The rest of the body will not arrive."""
        if self._body is not None:
            self._body.fail(Failure(BodyFailed(status, words)))

    def connectionLost(self, reason: Failure) -> None:
        """The connection is lost, perhaps in the body."""
        body, self._body = self._body, None
        site = None if self.finished else self.site
        super().connectionLost(reason)  # cancels the handler first, which could not answer any more
        if site is not None:
            site.count(self, "lost", 0 if body is None else body.received)
        if body is not None:
            body.fail(reason)

    @property
    def bytes_received(self) -> int:
        """The bytes of the body that have arrived."""
        return 0 if self._body is None else self._body.received


class _Collecting:
    """Collects the body of a request whose resource does not stream it."""

    def __init__(self, request: StreamedRequest) -> None:
        self._request = request
        self._size = 0

    def data(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_BODY_LENGTH:
            self.fail(Failure(BodyTooLong()))
        elif not self._request.finished:
            self._request.content.write(data)

    def end(self) -> None:
        """Do nothing: the request is rendered."""

    def fail(self, reason: Failure) -> None:
        request = self._request
        if not request.finished and request.channel is not None:
            request.setResponseCode(413 if reason.check(BodyTooLong) else getattr(reason.value, "status", 400))
            request.setHeader(b"Content-Length", b"0")
            request.finish()


class Site(_UntypedSite):  # type: ignore[misc]
    """
    A site with limits.

    :param resource: the root of its resources.
    :param reactor: the reactor.
    :param limits: the limits.
    :param trusted_proxies: addresses that may have any number of connections.

    :ivar limits: the limits. Its fields may change; connections that are open follow.
    :ivar trusted_proxies: these addresses; they may change.
    :ivar connections: the open connections.
    :ivar figures: its figures: requests, durations, bytes.
    :ivar listeners: functions that are called with the record of each request when it has ended. They do not fail.
    :ivar is_draining: whether the server stops: each connection is closed after its response.
    :ivar is_starting: whether the server starts: likewise.
    """

    noisy = False
    protocol = Channel
    requestFactory = StreamedRequest

    def __init__(
        self,
        resource: Any,
        reactor: Any,
        limits: HTTPLimits | None = None,
        trusted_proxies: Networks = Networks(loopback=True, unix=True),  # noqa: B008
    ) -> None:
        super().__init__(resource, reactor=reactor, timeout=None, parsePOSTFormSubmission=False)
        self.limits = limits or HTTPLimits()
        self.connections: set[Channel] = set()
        self.trusted_proxies = trusted_proxies
        self._per_peer: Counter[str] = Counter()
        self._peers: dict[Channel, str] = {}
        self._look_call: Any = None
        self._turns: deque[Channel] = deque()
        self._turn_call: Any = None
        self._drained: list[Deferred[None]] = []
        self.is_draining = self.is_starting = False
        self.figures = HTTPFigures()
        self.listeners: list[Callable[[RequestRecord], object]] = []

    def startFactory(self) -> None:
        """Do nothing: Twisted would open a log of accesses."""

    def stopFactory(self) -> None:
        """Do nothing."""

    def log(self, request: Any) -> None:
        """Count a request that has ended; twisted.web writes a log of accesses here."""
        self.count(request, "answered", request.bytes_received)

    def count(self, request: Any, ending: str, received: int) -> None:
        """Count *request*, which has ended with *ending*, and make its record if that is wanted."""
        if request.begun_at is None:
            return
        seconds = self.reactor.seconds() - request.begun_at
        status = request.code if request.startedWriting else "none"
        method, sent = request.method.decode("latin-1"), request.sentLength
        self.figures.ended(method, request.noted.route, status, seconds, received, sent)
        if self.listeners:
            record = record_of(request, seconds, received, sent, ending)
            for listener in self.listeners:
                listener(record)

    @property
    def unavailable(self) -> str:
        """The reason for which nothing but health and metrics is answered now; empty if there is none."""
        if self.is_draining:
            return "the server is stopping"
        return "the server is starting" if self.is_starting else ""

    def entrance(self, root: Any) -> Factory:
        """
        Return a factory for connections to other resources of this site; its limits hold for all connections together.

        :param root: the root of these resources.
        """
        return _Entrance(self, root)

    def getResourceFor(self, request: Any) -> Any:
        """Return the resource of a request, below the root of its connection."""
        request.site = self
        request.sitepath = list(request.prepath)
        return getChildForRequest(request.channel.root or self.resource, request)

    def buildProtocol(self, addr: Any) -> Any:
        """Return the protocol of a connection, ``None`` if there are too many."""
        if len(self.connections) >= self.limits.maximum_connections:
            return None
        channel = super().buildProtocol(addr)
        channel.limits = self.limits
        return channel

    # --- for connections

    def connected(self, channel: Channel) -> None:
        """Count a connection, and close it if its peer has too many."""
        address = getattr(channel.transport.getPeer(), "host", "unix")
        peer = host_of(str(address))
        self.connections.add(channel)
        self._peers[channel] = peer
        self._per_peer[peer] += 1
        if self._per_peer[peer] > self.limits.maximum_connections_per_peer and not self.trusted_proxies.has(
            str(address)
        ):
            channel.transport.abortConnection()
        if self._look_call is None:
            self._look_call = self.reactor.callLater(INTERVAL, self._look)

    def disconnected(self, channel: Channel) -> None:
        """Note that a connection is lost."""
        self.connections.discard(channel)
        if channel in self._turns:
            self._turns.remove(channel)
        if not self._turns and self._turn_call is not None:
            call, self._turn_call = self._turn_call, None
            call.cancel()
        peer = self._peers.pop(channel, None)
        if peer is not None:
            self._per_peer[peer] -= 1
            if not self._per_peer[peer]:
                del self._per_peer[peer]
        if not self.connections and self._look_call is not None:
            call, self._look_call = self._look_call, None
            call.cancel()
        if not self.connections:
            drained, self._drained = self._drained, []
            for done in drained:
                done.callback(None)

    def take_turn(self, channel: Channel) -> None:
        """Let *channel* handle its next request when it is its turn among those that have several."""
        self._turns.append(channel)
        if self._turn_call is None:
            self._turn_call = self.reactor.callLater(0, self._go_on)

    def _go_on(self) -> None:
        self._turn_call = None
        for _ in range(min(MAX_TURNS, len(self._turns))):
            if self._turns:  # one may have closed another
                self._turns.popleft().go_on()
        if self._turns and self._turn_call is None:
            self._turn_call = self.reactor.callLater(0, self._go_on)

    def drain(self) -> Deferred[None]:
        """
        Close idle connections now, and the others after their responses.

        :returns: a Deferred that fires when no connection is left.
        """
        self.is_draining = True
        done: Deferred[None] = Deferred()
        self.close_idle()
        if self.connections:
            self._drained.append(done)
        else:
            done.callback(None)
        return done

    def close_idle(self) -> None:
        """Close idle connections now, and those that are open after their responses; further ones may follow."""
        for channel in [*self.connections]:
            channel.drain()

    def abort(self) -> None:
        """Close all connections at once."""
        for channel in [*self.connections]:
            channel.transport.abortConnection()

    def _look(self) -> None:
        self._look_call = self.reactor.callLater(INTERVAL, self._look)
        now = self.reactor.seconds()
        for channel in [*self.connections]:
            channel.look(now)


class _Entrance(Factory):
    """Makes connections of a site that lead to other resources than its own."""

    noisy = False

    def __init__(self, site: Site, root: Any) -> None:
        self._site = site
        self._root = root

    def buildProtocol(self, addr: Any) -> Any:
        """Return the protocol of a connection, ``None`` if there are too many."""
        channel = self._site.buildProtocol(addr)
        if channel is not None:
            channel.root = self._root
        return channel
