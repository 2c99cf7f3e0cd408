"""
Requests of HTTP to one server: connections, credentials, redirections, time limits, and repeated attempts.

It is built on the Agent of twisted.web. treq is a layer on the same Agent, which adds nothing that is needed here.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast
from urllib.parse import urljoin, urlsplit

from twisted.internet import error as errors
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import (
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import connectionDone
from twisted.internet.task import deferLater
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web._newclient import RequestNotSent
from twisted.web.client import URI, Agent, HTTPConnectionPool, ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IResponse
from zope.interface import implementer

from dicomtwist.dicomweb.client.body import IncomingBody, read_all
from dicomtwist.dicomweb.client.errors import (
    DICOMwebError,
    InvalidResponse,
    NoConnection,
    RequestTimeout,
    ServerUnavailable,
    request_failed,
)
from dicomtwist.dicomweb.client.upload import Upload
from dicomtwist.dicomweb.media_types import MediaType, MediaTypeError
from dicomtwist.dicomweb.urls import BaseURL, origin_of
from dicomtwist.endpoints import client_tls_options, describe_tls_error
from dicomtwist.runtime.backoff import Backoff
from dicomtwist.tls.transport import wrap_client_tls

__all__ = ["HTTPClient", "Response", "Timeouts", "Token"]

#: The most bytes of the head of a response: its status line and header fields, with those of the responses 1xx before it.
MAX_HEAD: Final = 256 * 1024
#: The most redirections of one request.
MAX_REDIRECTIONS: Final = 5
#: The most bytes of the body of a response that refuses a request; a longer one is not looked at.
MAX_ERROR_BODY: Final = 1024 * 1024
#: The longest time that a server may ask for with Retry-After and get it, in seconds.
MAX_RETRY_AFTER: Final = 60.0
#: The back-off before a request is sent again, in seconds.
RETRY_DELAYS: Final = Backoff(first=0.5, longest=8.0)
#: The idle connections to one server that are kept.
MAX_IDLE_CONNECTIONS: Final = 16

#: A token; or a function that returns it, or an awaitable of it, for each request.
Token = str | Callable[[], "str | Awaitable[str]"]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """
    The time limits of requests, in seconds; ``None`` for no limit.

    :ivar connect: to make a connection, with its TLS handshake.
    :ivar response: from the last byte of a request that the connection has taken to the header of its response. A server that
        stores or renders much needs its time.
    :ivar idle: a pause in the body of a response, while it is waited for.
    """

    connect: float | None = 15.0
    response: float | None = 120.0
    idle: float | None = 60.0


@dataclass(slots=True)
class Response:
    """
    A response whose body may still arrive.

    :ivar status: the status code, 200 to 299.
    :ivar headers: its header fields.
    :ivar body: its body.
    :ivar url: the URL of the last request, after redirections.
    """

    status: int
    headers: Headers
    body: IncomingBody
    url: str

    def header(self, name: str) -> str:
        """Return the first header field *name*; empty without one."""
        values = self.headers.getRawHeaders(name, [])
        return values[0] if values else ""

    @property
    def media_type(self) -> MediaType:
        """The media type of the body; ``application/octet-stream`` without a valid one."""
        try:
            return MediaType.parse(self.header("content-type"))
        except MediaTypeError:
            return MediaType("application/octet-stream", {})


class HTTPClient:
    """
    The connections to one server.

    :param reactor: the reactor.
    :param base: the base URL of the service.
    :param token: a token for ``Authorization: Bearer`` (RFC 6750), or a function that returns it.
    :param user: name and password for ``Authorization: Basic`` (RFC 7617).
    :param tls: TLS for the host of *base*; by default :func:`~dicomtwist.endpoints.client_tls_options` for its name.
    :param timeouts: the time limits.
    :param retries: how often a request that may be repeated is sent again.
    :param headers: further header fields of every request to the server.
    """

    def __init__(
        self,
        reactor: Any,
        base: BaseURL,
        *,
        token: Token | None = None,
        user: tuple[str, str] | None = None,
        tls: IOpenSSLClientConnectionCreator | None = None,
        timeouts: Timeouts | None = None,
        retries: int = 2,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if token is not None and user is not None:
            raise ValueError("token and user contradict each other: a request has one of them")
        if user is not None and ":" in user[0]:
            raise ValueError("the name of a user has no colon (RFC 7617)")
        self.reactor = reactor
        self.base = base
        self.timeouts = timeouts or Timeouts()
        self.retries = retries
        self._token = token
        self._basic = "" if user is None else "Basic " + b64encode(f"{user[0]}:{user[1]}".encode()).decode("ascii")
        self._headers = dict(headers or {})
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._pool.maxPersistentPerHost = MAX_IDLE_CONNECTIONS
        # This module repeats requests, since it knows which may be sent twice.
        self._pool.retryAutomatically = False
        endpoints = _Endpoints(reactor, base, tls, self.timeouts.connect)
        self._agent = Agent.usingEndpointFactory(reactor, endpoints, pool=self._pool)

    def close(self) -> Deferred[None]:
        """Close the idle connections; those of requests under way stay until these end."""

        def close(_: object) -> Deferred[None]:
            closed: Deferred[None] = self._pool.closeCachedConnections()
            return closed

        # A connection whose response has just been read comes back to the pool before.
        return deferLater(self.reactor, 0).addCallback(close)

    # --- a request, with its attempts

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        upload: Callable[[], Upload] | None = None,
        may_repeat: bool = True,
    ) -> Response:
        """
        Send a request and return its response when the header of that has arrived.

        :param url: an absolute URL. Credentials are sent only to the origin of the base URL.
        :param upload: makes the body; called for each attempt.
        :param may_repeat: whether the request may be sent again although the server may have performed it.
        :raises RequestFailed: the server refuses it.
        :raises NoConnection: there is no connection, or it was lost.
        :raises RequestTimeout: the server took too long.
        :raises InvalidResponse: the response is not HTTP.
        """
        failures = stale = 0
        while True:
            try:
                return await self._redirected(method, url, headers or {}, upload)
            except (NoConnection, ServerUnavailable) as error:
                if may_repeat and isinstance(error.__cause__, _StaleConnection) and stale <= MAX_IDLE_CONNECTIONS:
                    stale += 1  # the server closed an idle connection just before the request: this is no failure of it
                    continue
                failures += 1
                was_not_performed = (
                    error.status in _NOT_PERFORMED
                    if isinstance(error, ServerUnavailable)
                    else isinstance(error.__cause__, _NOT_SENT)
                )
                if failures > self.retries or not (may_repeat or was_not_performed) or _is_permanent(error):
                    raise
                wanted = getattr(error, "retry_after", None)
                if wanted is not None and wanted > MAX_RETRY_AFTER:
                    raise
                delay = wanted if wanted is not None else RETRY_DELAYS(failures)
            await _pause(self.reactor, delay)

    async def _redirected(
        self, method: str, url: str, headers: Mapping[str, str], upload: Callable[[], Upload] | None
    ) -> Response:
        for _ in range(MAX_REDIRECTIONS + 1):
            response = await self._once(method, url, headers, None if upload is None else upload())
            location = response.header("location")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                break
            response.body.abort()
            if method not in ("GET", "HEAD") and response.status not in (307, 308):
                raise request_failed(response.status, warning=f"the service has moved to {location[:200]}")
            try:
                target = urljoin(response.url, location)
                origin = origin_of(target)
            except ValueError:
                raise InvalidResponse("the server redirects to something that is not a URL of HTTP") from None
            if origin_of(url)[0] == "https" and origin[0] == "http":
                raise InvalidResponse("the server redirects from https to http")
            if method not in ("GET", "HEAD") and origin != self.base.origin:
                raise InvalidResponse(f"the server redirects to another one, {urlsplit(target).netloc[:200]}")
            url = target
        else:
            raise InvalidResponse(f"more than {MAX_REDIRECTIONS} redirections")
        if 200 <= response.status < 300:
            return response
        raise await _failure_of(response)

    async def _once(self, method: str, url: str, headers: Mapping[str, str], upload: Upload | None) -> Response:
        fields = Headers()
        if origin_of(url) == self.base.origin:
            for name, value in {**self._headers, **await self._authorization()}.items():
                fields.setRawHeaders(name, [value])
        for name, value in headers.items():
            fields.setRawHeaders(name, [value])
        pending: Deferred[IResponse] = self._agent.request(method.encode("ascii"), url.encode("ascii"), fields, upload)
        watch = _Watch(self.reactor, pending, self.timeouts.response)
        if upload is not None:
            upload.touch = watch.touch
        try:
            got = await pending
        except Exception as error:
            if upload is not None and upload.refusal is not None:
                raise upload.refusal from None
            inner = _innermost(error)
            if watch.expired and self.timeouts.response is not None:
                raise RequestTimeout("response", self.timeouts.response) from None
            if isinstance(inner, CancelledError):
                raise inner from None
            raise _mapped(error, inner) from inner
        finally:
            watch.stop()
        codings = ", ".join(got.headers.getRawHeaders("content-encoding", [])).lower().split(",")
        used = [coding for one in codings if (coding := one.strip()) not in ("", "identity")]
        body = IncomingBody(self.reactor, self.timeouts.idle, inflates=bool(used))
        got.deliverBody(body)
        if len(used) > 1 or (used and used[0] not in ("gzip", "x-gzip", "deflate")):
            body.abort()
            raise InvalidResponse(f"the response is encoded as {', '.join(used)[:100]}, which was not asked for")
        return Response(int(got.code), got.headers, body, url)

    async def _authorization(self) -> dict[str, str]:
        if self._basic:
            return {"Authorization": self._basic}
        token = self._token
        if token is None:
            return {}
        if not isinstance(token, str):
            made = token()
            token = made if isinstance(made, str) else await made
        return {"Authorization": f"Bearer {token}"}


#: The status codes after which the server has not performed the request; behind 502 and 504 of a proxy it may have.
_NOT_PERFORMED: Final = (429, 503)
#: The errors after which the server has not got the request.
_NOT_SENT: Final = (RequestNotSent, errors.ConnectError, errors.DNSLookupError)


def _is_permanent(error: BaseException) -> bool:
    """Whether another attempt is in vain."""
    cause = error.__cause__
    if cause is not None and describe_tls_error(cause) is not None:
        return True
    return isinstance(cause, errors.DNSLookupError | errors.UnknownHostError | ValueError)


async def _pause(reactor: Any, seconds: float) -> None:
    await deferLater(reactor, seconds)


async def _failure_of(response: Response) -> DICOMwebError:
    try:
        body = await read_all(response.body, MAX_ERROR_BODY)
    except DICOMwebError:
        body = b""  # the status code says enough
    return request_failed(
        response.status,
        response.media_type.name,
        body,
        response.header("warning"),
        response.header("retry-after"),
    )


def _innermost(error: Any) -> BaseException:
    """Return the error that is the reason for one of the Agent."""
    while reasons := getattr(error, "reasons", None):
        error = reasons[0].value if isinstance(reasons[0], Failure) else reasons[0]
    found: BaseException = error
    return found


def _mapped(error: BaseException, inner: BaseException) -> DICOMwebError:
    """Return the exception for an *error* of the Agent, whose reason is *inner*."""
    if isinstance(inner, DICOMwebError):
        return inner
    if isinstance(inner, errors.ConnectionDone):
        return NoConnection("the server closed the connection without a response")
    if isinstance(inner, errors.ConnectionLost):
        return NoConnection("the connection was lost before the response had arrived")
    if isinstance(inner, errors.ConnectError | errors.DNSLookupError):
        return NoConnection(f"no connection: {inner}")
    if (words := describe_tls_error(inner)) is not None:
        return NoConnection(f"no connection over TLS: {words}")
    if isinstance(error, ResponseFailed):
        return InvalidResponse(f"the response is not HTTP: {inner}")
    return NoConnection(f"the request failed: {inner}")


class _Watch:
    """Cancels a request whose response takes too long."""

    def __init__(self, reactor: Any, pending: Deferred[IResponse], seconds: float | None) -> None:
        self._pending = pending
        self._seconds = seconds
        self._call = None if seconds is None else reactor.callLater(seconds, self._expire)
        self.expired = False

    def touch(self) -> None:
        """Begin again: a piece of the request was sent."""
        if self._call is not None and self._call.active():
            self._call.reset(self._seconds)

    def stop(self) -> None:
        """Watch no more."""
        if self._call is not None and self._call.active():
            self._call.cancel()

    def _expire(self) -> None:
        self.expired = True
        self._pending.cancel()


class _StaleConnection(errors.ConnectionLost):
    """A connection that had a request before was closed without any byte of a response to the next one."""


class _HandshakeTimeout(errors.TimeoutError):
    """The handshake of TLS took too long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(string=f"the TLS handshake was not done within {seconds:g} seconds")  # type: ignore[no-untyped-call]

    def __str__(self) -> str:
        return str(self.args[0])


@implementer(IHandshakeListener)
class _Connection(ProtocolWrapper):
    """
    A connection below the protocol of HTTP.

    Closing it aborts it: nothing that this side has sent is still needed then, and a server that goes on to send a long body
    would keep it open. Data that arrives while a body is being sent goes to that as well.
    """

    upload: Upload | None = None
    _reason: Failure | None = None
    _head: int | None = 0  # the bytes of the head of the response that have arrived; None behind it

    _is_reused = False  # whether it had a request before this one
    _secured: Deferred[None] | None = None  # fires at the end of the handshake, if that is waited for

    def secured(self) -> Deferred[None]:
        """Return a Deferred that fires at the end of the TLS handshake. Cancelling it aborts the connection."""
        self._secured = Deferred(lambda _: self._raw.abortConnection())
        return self._secured

    def handshakeCompleted(self) -> None:
        """Note the end of the TLS handshake."""
        waiting, self._secured = self._secured, None
        if waiting is not None:
            waiting.callback(None)

    def write(self, data: bytes) -> None:
        """Write a part of a request; the head of a response is next."""
        self._begin()
        self._raw.write(data)

    def writeSequence(self, data: Any) -> None:
        """Write parts of a request."""
        self._begin()
        self._raw.writeSequence(data)

    def _begin(self) -> None:
        if self._head != 0 and self.upload is None:
            self._is_reused = True
        self._head = 0

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Note whether the producer is the body of a request."""
        self._raw.registerProducer(producer, streaming)
        if isinstance(producer, Upload):
            self.upload = producer

    def unregisterProducer(self) -> None:
        """Forget the producer."""
        self.upload = None
        self._raw.unregisterProducer()

    def pauseProducing(self) -> None:
        """Pause at the end of a head; but read on while a body is being sent, since its refusal may follow."""
        self._head = None
        if self.upload is None:
            self._raw.pauseProducing()

    def loseConnection(self) -> None:
        """Close the connection at once; in the middle of a head, because twisted.web takes none of its lines."""
        if self._head and self._reason is None:
            self._reason = Failure(InvalidResponse("the head of the response is not HTTP, or has a long line"))
        self.disconnecting = 1
        self._raw.abortConnection()

    @property
    def _raw(self) -> Any:
        return self.transport

    @property
    def _above(self) -> Any:
        return self.wrappedProtocol

    def dataReceived(self, data: bytes) -> None:
        """Pass on what arrives."""
        if self.upload is not None and not self.upload.early(data):
            self.loseConnection()
            return
        if self._head is not None:
            # twisted.web has a limit on each header field, but none on their number.
            self._head += len(data)
            if self._head > MAX_HEAD:
                self._reason = Failure(InvalidResponse(f"the head of the response has more than {MAX_HEAD} bytes"))
                self.loseConnection()
                return
        self._above.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Pass on why the connection is lost."""
        if self._reason is None and self._is_reused and self._head == 0:
            self._reason = Failure(_StaleConnection())
        super().connectionLost(self._reason or reason)  # type: ignore[no-untyped-call]
        waiting, self._secured = self._secured, None
        if waiting is not None and not waiting.called:
            waiting.errback(self._reason or reason)


@implementer(IStreamClientEndpoint)
class _Wrapped:
    """An endpoint whose connections are :class:`_Connection`."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def connect(self, factory: Any) -> Deferred[IProtocol]:
        """Connect, and return the protocol of *factory*."""
        return self._connected(factory).addCallback(lambda wrapper: wrapper.wrappedProtocol)

    def _connected(self, factory: Any) -> Deferred[Any]:
        wrapping: Any = WrappingFactory(factory)
        wrapping.protocol = _Connection
        wrapping.noisy = False
        connected: Deferred[Any] = self._endpoint.connect(wrapping)
        return connected


class _Secured(_Wrapped):
    """
    An endpoint with TLS, which is connected when the handshake is done. That of Twisted is so before, and the time of the
    handshake would be that of the response: a port without TLS was waited for as long as a server may store and render.

    :param timeout: the limit for the connection and its handshake together, in seconds; ``None`` for no limit.
    """

    def __init__(self, reactor: Any, endpoint: IStreamClientEndpoint, timeout: float | None) -> None:
        super().__init__(endpoint)
        self._reactor = reactor
        self._timeout = timeout

    def _connected(self, factory: Any) -> Deferred[Any]:
        begun = self._reactor.seconds()

        def shake_hands(wrapper: _Connection) -> Deferred[Any]:
            secured = wrapper.secured()
            limit = self._timeout
            if limit is not None:
                left = max(0.0, begun + limit - self._reactor.seconds())
                secured.addTimeout(left, self._reactor, lambda *_: Failure(_HandshakeTimeout(limit)))
            return secured.addCallback(lambda _: wrapper)

        return super()._connected(factory).addCallback(shake_hands)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Makes the endpoints for URLs."""

    def __init__(
        self, reactor: Any, base: BaseURL, tls: IOpenSSLClientConnectionCreator | None, timeout: float | None
    ) -> None:
        self._reactor = reactor
        self._base = base
        self._tls = tls
        self._timeout = timeout

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return the endpoint of a URL."""
        host = uri.host.decode("ascii").strip("[]")
        connect = partial(HostnameEndpoint, self._reactor, host, uri.port)
        endpoint: Any = connect() if self._timeout is None else connect(timeout=self._timeout)
        if uri.scheme == b"https":
            # The certificate of the client is a credential: other origins do not get it.
            options = self._tls if ("https", host, uri.port) == self._base.origin else None
            endpoint = wrap_client_tls(options or client_tls_options(host), endpoint)
            return cast(IStreamClientEndpoint, _Secured(self._reactor, endpoint, self._timeout))
        return cast(IStreamClientEndpoint, _Wrapped(endpoint))
