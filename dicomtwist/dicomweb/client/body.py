"""
The body of a response as it arrives, with back-pressure: nothing is read from the connection while its receiver does not ask.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss

from dicomtwist.dicomweb.client.errors import InvalidResponse, NoConnection, RequestTimeout

__all__ = ["IncomingBody", "read_all"]

#: The longest response to a request to store, and the longest rendered image, in bytes.
MAX_RESPONSE: Final = 64 * 1024 * 1024
#: The bytes of a body that wait for their receiver before nothing more is read from the connection.
MAX_WAITING: Final = 1024 * 1024
#: The bytes that one step inflates of a compressed body at most.
MAX_INFLATED: Final = 256 * 1024


class IncomingBody(Protocol):
    """
    Receives the body of one response; an asynchronous iterator of its pieces.

    :param reactor: keeps the time.
    :param idle_timeout: the longest pause in the body while its receiver waits for it, in seconds; ``None`` for no limit.
    :param inflates: whether the body is compressed with gzip or deflate (RFC 9110 8.4.1).
    :param when_over: called once when the connection is not used for it any more.

    :ivar received: the number of bytes that have arrived.
    :ivar is_over: whether the body has ended, or was aborted.
    """

    def __init__(
        self,
        reactor: Any,
        idle_timeout: float | None = None,
        *,
        inflates: bool = False,
        when_over: Callable[[], object] | None = None,
    ) -> None:
        self._reactor = reactor
        self._idle_timeout = idle_timeout
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 32) if inflates else None
        self._when_over = when_over
        self._pieces: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._paused = False
        self._waiter: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        self._end: BaseException | None = None
        self.received = 0
        self.is_over = False

    # --- the protocol

    def dataReceived(self, data: bytes) -> None:
        """Keep a piece for the receiver."""
        if self.is_over:
            return
        self.received += len(data)
        self._pieces.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= MAX_WAITING and not self._paused:
            self._paused = True
            self._transport.pauseProducing()
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note the end of the body, or why it is cut off."""
        if not self.is_over:
            # Without a length the connection ends the body; whether it is whole, its own form says.
            if not reason.check(ResponseDone, PotentialDataLoss):
                self._end = NoConnection(f"the connection was lost within the response: {_why(reason)}")
                self._end.__cause__ = reason.value
            self._is_done()
        self._wake()

    # --- the receiver

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """
        Return the next piece of the body.

        :raises NoConnection: the body is cut off.
        :raises RequestTimeout: nothing has arrived in time.
        :raises InvalidResponse: it is not compressed as its header says.
        """
        while True:
            if self._inflater is not None and (inflated := self._inflate(self._inflater, b"")):
                return inflated
            while self._pieces:
                piece = self._pieces.popleft()
                self._waiting_bytes -= len(piece)
                if self._paused and self._waiting_bytes < MAX_WAITING // 2 and not self.is_over:
                    self._paused = False
                    self._transport.resumeProducing()
                if self._inflater is not None:
                    piece = self._inflate(self._inflater, piece)
                if piece:
                    return piece
            if self.is_over:
                if self._end is not None:
                    raise self._end
                if self._inflater is not None and self.received and not self._inflater.eof:
                    raise InvalidResponse("the compressed body of the response is cut off")
                raise StopAsyncIteration
            await self._wait()

    def abort(self) -> None:
        """Close the connection, unless the body has ended. Pieces that have not been taken are dropped."""
        self._pieces.clear()
        if not self.is_over:
            self._end = NoConnection("the request was aborted by this side")
            self._is_done()
            self._transport.loseConnection()
            self._wake()

    @property
    def _transport(self) -> Any:
        return self.transport

    def _is_done(self) -> None:
        self.is_over = True
        when_over, self._when_over = self._when_over, None
        if when_over is not None:
            when_over()

    def _inflate(self, inflater: Any, piece: bytes) -> bytes:
        """
        Return at most :data:`MAX_INFLATED` bytes of the body; empty if they need another piece.

        :raises InvalidResponse: it is not compressed as its header says.
        """
        data: bytes = inflater.unconsumed_tail + piece
        try:
            while True:
                if inflater.eof:
                    # Several members follow each other (RFC 1952 2.2), or bytes that fill a block.
                    data = (inflater.unused_data + data).lstrip(b"\0")
                    if not data:
                        return b""
                    inflater = self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
                if not data:
                    return b""
                if inflated := inflater.decompress(data, MAX_INFLATED):
                    return bytes(inflated)
                data = b""
                if not inflater.eof:
                    return b""
        except zlib.error:
            self.abort()
            raise InvalidResponse("the body of the response is not compressed as its header says") from None

    async def _wait(self) -> None:
        assert self._waiter is None, "two receivers of one body"
        self._waiter = Deferred(self._cancelled)
        if self._idle_timeout is not None:
            self._timer = self._reactor.callLater(self._idle_timeout, self._timed_out, self._idle_timeout)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._timer is not None and self._timer.active():
                self._timer.cancel()
            self._timer = None

    def _cancelled(self, waiter: Deferred[None]) -> None:
        self._waiter = None  # so that it fails with CancelledError
        self.abort()

    def _timed_out(self, seconds: float) -> None:
        self.abort_with(RequestTimeout("idle", seconds))

    def abort_with(self, error: BaseException) -> None:
        """Close the connection; the receiver gets *error*."""
        if not self.is_over:
            self._end = error
            self._is_done()
            self._transport.loseConnection()
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.called:
            waiter.callback(None)


def _why(reason: Failure) -> str:
    if reason.check(ResponseFailed):
        reasons = getattr(reason.value, "reasons", [])
        if reasons:
            return _why(reasons[-1])
    if reason.check(ConnectionDone):
        return "the server closed it"
    return reason.getErrorMessage() or type(reason.value).__name__


async def read_all(body: IncomingBody, limit: int) -> bytes:
    """
    Return a whole body.

    :param limit: the most bytes; the connection is closed if there are more.
    :raises InvalidResponse: it has more.
    """
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in body:
            size += len(piece)
            if size > limit:
                raise InvalidResponse(f"a response of more than {limit} bytes")
            pieces.append(piece)
    finally:
        body.abort()
    return b"".join(pieces)
