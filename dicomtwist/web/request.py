"""
A request of DICOMweb, as its handler sees it: who asks, what for, and the ways to answer.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Final, TypeAlias

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from dicomtwist.access.policy import CheckedRequestor
from dicomtwist.access.rules import Operation, Requestor
from dicomtwist.dicomweb.media_types import Accept
from dicomtwist.dicomweb.parameters import parse_query
from dicomtwist.runtime.networks import host_of
from dicomtwist.web.http.body import Body, Collector
from dicomtwist.web.http.client import Client
from dicomtwist.web.http.conditions import accepts_gzip
from dicomtwist.web.http.site import StreamedRequest
from dicomtwist.web.problems import RETRY_AFTER, Problem
from dicomtwist.web.services import Services

__all__ = ["DICOMwebRequest", "Piece", "Pieces", "Sending"]


class Sending(ABC):
    """
    A part of a response that threads read, and that they write to the socket themselves if they can.

    :ivar made: the number of bytes so far.
    """

    @property
    @abstractmethod
    def made(self) -> int: ...

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[Sequence[bytes | memoryview]]:
        """Return the pieces, if the threads cannot write them."""

    @abstractmethod
    async def begin(self) -> int:
        """
        Read the beginning, and return the number of its bytes; 0 if there is nothing. Called once, before all others but
        :meth:`aclose`.
        """

    @abstractmethod
    async def send(self, response: StreamedRequest, check: Callable[[int], object]) -> int:
        """
        Write everything to the socket that *response* lends, and return the number of bytes.

        :param check: called in a thread with the number of bytes so far, before they are written; it may raise.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Close it; idempotent."""


#: A piece of a response, or several that are written together.
Piece: TypeAlias = bytes | bytearray | memoryview | Sequence[bytes | memoryview] | Sending
#: The pieces of a response that is streamed: each at most some hundred KiB, since a client has the write timeout for each.
Pieces: TypeAlias = AsyncIterator[Piece]

#: Fields of a header about the content of a response, which a response with a problem has no more.
_OF_CONTENT: Final = (
    b"Accept-Ranges",
    b"Content-Disposition",
    b"Content-Encoding",
    b"Content-Range",
    b"ETag",
)

#: The most fields ``Warning`` of a response.
MAX_WARNINGS: Final = 16
#: The longest text of one, in characters.
MAX_WARNING_LENGTH: Final = 300


class DICOMwebRequest:
    """
    A request of DICOMweb. A handler gets it when the rules allow the operations of its route.

    :param http: the request of twisted.web.
    :param body: its body.
    :param services: the services of the resource.
    :param client: the client.

    :ivar http: the request of twisted.web, for what has no method here.
    :ivar body: the body, which a handler may read from or pass to a sink.
    :ivar client: the client.
    :ivar method: the method, such as ``GET``; handlers of GET get HEAD as well, and answer as to GET: nothing of a body is
        sent then.
    :ivar path: the path below the resource, decoded: ``/studies/1.2.3``.
    :ivar mount: the path of the resource, without a slash at the end: ``/dicom-web``.
    :ivar checked: the requestor, and what the rules allow to it; set when the client is authenticated.
    """

    def __init__(self, http: Any, body: Body, services: Services, client: Client) -> None:
        self.http = http
        self.body = body
        self.client = client
        self.method = http.method.decode("latin-1")
        # The resource is a leaf: the path is divided into that of the resource and the rest.
        rest = b"/".join(http.postpath or [])
        self.path = "/" + rest.decode("utf-8", "replace") if rest else ""
        self.mount = "/" + b"/".join(http.prepath or []).decode("utf-8", "replace").strip("/")
        self.checked: CheckedRequestor | None = None
        self._services = services
        self._warnings = 0
        self._is_closed = False

    # --- who asks

    @property
    def requestor(self) -> Requestor:
        """The facts about the client that the rules are matched against. Its AE titles are empty."""
        assert self.checked is not None, "the client is not authenticated yet"
        return self.checked.requestor

    @property
    def peer(self) -> str:
        """The name of the host of the client, by which executors and limits are shared, as for DIMSE."""
        return host_of(self.client.address)

    @property
    def words_of_client(self) -> str:
        """The client in words for the log: its user, if there is one, and its address."""
        user = self.requestor.user
        return f"{f'the user {user!r}' if user else 'an HTTP client'} at {self.client.address}"

    def may(self, *operations: Operation) -> bool:
        """Return whether the rules that apply now allow all *operations* to the client; may be called from any thread."""
        access = self._services.archive_server.access
        if access is None:
            return True
        return self.checked is not None and self.checked.may(operations, access.policy)

    # --- what for

    @cached_property
    def query(self) -> list[tuple[str, str]]:
        """
        The parameters in the query of the URL, decoded, in their order.

        :raises ParameterError: the query is too long, or not in UTF-8 (400).
        """
        return parse_query(self.http.uri.partition(b"?")[2])

    @cached_property
    def accept(self) -> Accept:
        """The media ranges that the client accepts, in its header and in its query (PS3.18 8.7.8)."""
        query = {name.lower(): value for name, value in reversed(self.query)}
        fields = [value.decode("latin-1") for value in self.http.requestHeaders.getRawHeaders(b"Accept", [])]
        return Accept.parse(fields, query.get("accept", ""), query.get("transfersyntax", ""))

    def header(self, name: str) -> str:
        """Return a field of the header, ``""`` without it; several of the same name are one list with commas."""
        values = self.http.requestHeaders.getRawHeaders(name, [])
        return ", ".join(value if isinstance(value, str) else value.decode("latin-1") for value in values)

    @cached_property
    def base_url(self) -> str:
        """
        The URL of the resource, without a slash at the end, for URLs in responses.

        That is the public URL of the configuration; else the URL that the client has used, if it leads back here, or a trusted
        proxy has it; else the path alone, which the client resolves against the URL of its request.
        """
        if self._services.public_url:
            return self._services.public_url.rstrip("/")
        return f"{self.client.origin}{self.client.prefix}{self.mount.rstrip('/')}"

    def negotiate_gzip(self) -> bool:
        """Return whether the client takes the response in gzip, and tell caches what the response depends on."""
        self.add_header("Vary", "Accept, Accept-Encoding")
        return accepts_gzip(self.header("Accept-Encoding"))

    async def read(self, maximum: int) -> bytes:
        """
        Return the whole body.

        :raises BodyTooLong: it has more than *maximum* bytes (413).
        """
        collector = Collector(maximum)
        if self.body.length is not None and self.body.length > maximum:
            raise Problem(413, f"a body of more than {maximum} bytes")
        self.body.deliver_to(collector)
        return await collector.result

    # --- answers

    @property
    def is_answered(self) -> bool:
        """Whether the header of the response is sent, so that nothing can change the status any more."""
        return bool(self.http.startedWriting) or self._is_closed

    def set_header(self, name: str, value: str) -> None:
        """Set a field in the header of the response."""
        self.http.responseHeaders.setRawHeaders(name.encode("latin-1"), [value.encode("latin-1", "replace")])

    def add_header(self, name: str, value: str) -> None:
        """Add a field to the header of the response, besides others of the same name."""
        self.http.responseHeaders.addRawHeader(name.encode("latin-1"), value.encode("latin-1", "replace"))

    def warn(self, words: str) -> None:
        """Tell the client of something that is ignored or cut (PS3.18 10.6.3): a field ``Warning`` with the code 299."""
        if self._warnings == MAX_WARNINGS:
            return
        self._warnings += 1
        plain = "".join(one if one.isprintable() else " " for one in words[:MAX_WARNING_LENGTH])
        escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
        self.add_header("Warning", f'299 dicomtwist "{escaped}"')

    def answer(self, content: bytes = b"", content_type: str = "", status: int = 200) -> None:
        """Answer with *content*, which is in memory; the length is stated."""
        self._begin(status, content_type, len(content))
        if content and self.method != "HEAD":
            self.http.write(content)
        self._finish()

    def answer_json(self, value: Any, content_type: str = "application/json", status: int = 200) -> None:
        """Answer with *value* as JSON."""
        self.answer(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"), content_type, status)

    async def stream(
        self, pieces: Pieces | Sending, content_type: str, *, status: int = 200, length: int | None = None
    ) -> None:
        """
        Answer with *pieces*. The next one is asked for when the connection takes it.

        If the client goes away, the handler is cancelled: what it awaits raises ``CancelledError``, and work in an executor is
        not begun, or learns that it is not wanted. An error before the first piece becomes the response; one after it closes
        the connection, so that the client does not take a part for the whole.

        :param pieces: the pieces, or one that threads write.
        :param length: the length of all pieces together, if it is known.
        :raises Problem: they have another length (503): what they are made of has changed meanwhile.
        """
        try:
            if self.method == "HEAD":
                self._begin(status, content_type, length)
                self._finish()
                return
            first: Piece = b""
            several: Pieces | None = None
            if isinstance(pieces, Sending):
                if _checked(await pieces.begin(), length):
                    first = pieces
            else:
                several = pieces
                # Python 3.11 cannot await anext() with a default of an iterator that is a class.
                with suppress(StopAsyncIteration):
                    first = await anext(several)
            _checked(_size(first), length)
            self._begin(status, content_type, length)
            flow = _Flow(self.http, length)
            self.http.registerProducer(flow, True)
            try:
                await flow.write(first)
                if several is not None:
                    async for piece in several:
                        await flow.write(piece)
            finally:
                if not flow.is_stopped and self.http.channel is not None:
                    self.http.unregisterProducer()
            if length is not None and flow.sent < length:
                raise _changed(f"{flow.sent} bytes", length)
            self._finish()
        finally:
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()

    def refuse(self, problem: Problem) -> None:
        """
        Answer with *problem*: an object of JSON, or a line of text for a client that prefers text. Fields of the header that
        were set for another content are removed.
        """
        for field in _OF_CONTENT:
            self.http.responseHeaders.removeHeader(field)
        for name, value in problem.headers:
            self.add_header(name, value)
        accepted = self.header("Accept")
        if "text/" in accepted and "json" not in accepted:
            self.answer(f"{problem.words}\n".encode(), "text/plain; charset=utf-8", problem.status)
        else:
            self.answer_json({"status": int(problem.status), "words": problem.words}, status=problem.status)

    def abort(self) -> None:
        """Close the connection at once, since the response that was begun cannot be completed."""
        self._is_closed = True
        transport = getattr(self.http, "transport", None)
        if transport is not None:
            transport.abortConnection()

    def _begin(self, status: int, content_type: str, length: int | None) -> None:
        self.http.setResponseCode(int(status))
        if content_type:
            self.set_header("Content-Type", content_type)
        else:
            self.http.defaultContentType = None
        if length is not None and status not in (204, 304):
            self.set_header("Content-Length", str(length))

    def _finish(self) -> None:
        self._is_closed = True
        if getattr(self.http, "channel", None) is not None:  # the connection may have been lost
            self.http.finish()


def _size(piece: Piece) -> int:
    """Return the number of bytes of a piece, as far as they are read."""
    if isinstance(piece, Sending):
        return piece.made
    return len(piece) if isinstance(piece, bytes | bytearray | memoryview) else sum(map(len, piece))


def _checked(sent: int, length: int | None) -> int:
    """Return *sent*, the number of bytes of a response so far, unless that is more than was announced."""
    if length is not None and sent > length:
        raise _changed("more", length)
    return sent


def _changed(sent: str, length: int) -> Problem:
    words = f"the content has changed meanwhile: {sent} instead of {length} bytes"
    return Problem(503, words, [("Retry-After", str(RETRY_AFTER))])


@implementer(IPushProducer)
class _Flow:
    """
    The pieces of a response as a producer that the connection pauses.

    :param length: the length of all pieces together, if it is known.

    :ivar sent: the number of bytes that were written.
    :ivar is_stopped: whether the connection is lost.
    """

    def __init__(self, http: Any, length: int | None) -> None:
        self._http = http
        self._length = length
        self._is_paused = False
        self._ready: Deferred[None] | None = None
        self.sent = 0
        self.is_stopped = False

    async def write(self, piece: Piece) -> None:
        """
        Write a piece; go on when the connection takes more.

        :raises Problem: it is longer than what is left of the length.
        """
        if isinstance(piece, Sending):
            await self._send(piece)
            return
        if not piece:
            return
        # Before it is written: a client that has as many bytes as were announced takes them for the whole.
        self.sent = _checked(self.sent + _size(piece), self._length)
        if isinstance(piece, bytes | bytearray | memoryview):
            self._http.write(piece)
        elif isinstance(self._http, StreamedRequest):
            self._http.write_all(piece)
        else:
            self._http.write(b"".join(piece))
        if self._is_paused:
            self._ready = Deferred()
            await self._ready

    async def _send(self, sending: Sending) -> None:
        """Let threads write to the socket, or write what they read if they cannot."""
        http, sent, length = self._http, self.sent, self._length
        if isinstance(http, StreamedRequest) and http.can_lend_socket():
            self.sent += await sending.send(http, lambda size: _checked(sent + size, length))
            return
        async for several in sending:
            await self.write(several)

    def pauseProducing(self) -> None:
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False
        ready, self._ready = self._ready, None
        if ready is not None and not ready.called:
            ready.callback(None)

    def stopProducing(self) -> None:
        """Note that the connection is lost; the handler is cancelled."""
        self.is_stopped = True
