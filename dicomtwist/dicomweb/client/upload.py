"""
The body of a request, made piece by piece in a thread while the connection takes it.

A server may refuse a body before all of it has arrived, and close the connection. twisted.web gives such a response to nobody,
so the connection passes what arrives meanwhile on to the upload, which ends with the server's words.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IDelayedCall
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from dicomtwist.dicomweb.client.errors import RequestFailed, request_failed
from dicomtwist.runtime.executors import Executor

__all__ = ["Upload"]

#: The bytes of an early response that are kept, and the time that its body has to arrive, in seconds.
MAX_EARLY: Final = 64 * 1024
EARLY_SECONDS: Final = 2.0


@implementer(IBodyProducer)
class Upload:
    """
    The body of one request.

    :param pieces: makes the body; a thread runs it, one step at a time.
    :param length: its length in bytes.
    :param executor: runs it.
    :param on_written: called with the number of bytes of each piece that the connection has taken.
    """

    def __init__(
        self,
        pieces: Generator[bytes, None, None],
        length: int,
        executor: Executor,
        on_written: Callable[[int], object] | None = None,
    ) -> None:
        self.length = length
        self._pieces = pieces
        self._executor = executor
        self._on_written = on_written
        self._done: Deferred[None] = Deferred()
        self._stopped = False
        self._is_reading = False
        self._resumed: Deferred[None] | None = None
        self._written = 0
        self._early = b""
        self._timer: IDelayedCall | None = None
        #: Called whenever the connection has taken something.
        self.touch: Callable[[], object] = _nothing
        self.refusal: RequestFailed | None = None

    # --- the producer

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Begin to write the body."""
        Deferred.fromCoroutine(self._produce(consumer)).addErrback(self._failed)
        return self._done

    def pauseProducing(self) -> None:
        """Write nothing more for now."""
        if self._resumed is None:
            self._resumed = Deferred()

    def resumeProducing(self) -> None:
        """Write on."""
        self.touch()
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.callback(None)

    def stopProducing(self) -> None:
        """Write nothing more at all: the connection is gone, or the request was cancelled."""
        self._stopped = True
        self._end_timer()
        self.resumeProducing()
        self._close()

    async def _produce(self, consumer: IConsumer) -> None:
        following = self._next()
        while not self._stopped:
            piece = await following
            if self._stopped or not piece:
                break
            following = self._next()  # it is read while the connection takes this one
            self._written += len(piece)
            consumer.write(piece)
            self.touch()
            if self._on_written is not None:
                self._on_written(len(piece))
            if self._resumed is not None:
                await self._resumed
        if not self._stopped:
            self._end_timer()
            self._done.callback(None)

    def _next(self) -> Deferred[bytes]:
        self._is_reading = True

        def read(result: bytes | Failure) -> bytes | Failure:
            self._is_reading = False
            if self._stopped:
                self._close()
            return result

        reading: Deferred[Any] = self._executor.run_admitted(next, self._pieces, b"")
        return reading.addBoth(read)

    def _close(self) -> None:
        """Close the files, unless a thread is at one; it closes them then."""
        if not self._is_reading:
            self._pieces.close()

    def _failed(self, reason: Failure) -> None:
        self._fail(reason)

    def _fail(self, reason: Failure | BaseException) -> None:
        if not self._stopped:
            self._stopped = True
            self._end_timer()
            self.resumeProducing()
            self._close()
            self._done.errback(reason if isinstance(reason, Failure) else Failure(reason))

    # --- an early response

    def early(self, data: bytes) -> bool:
        """
        Take what arrives while the body is being written.

        :returns: whether more can be taken.
        """
        if self._written >= self.length:
            return True  # it answers the whole body
        if len(self._early) < MAX_EARLY:
            self._early += data
            self._look()
        return len(self._early) < MAX_EARLY

    def _look(self) -> None:
        """Look whether a whole response has arrived that refuses the body."""
        while True:
            head, blank, rest = self._early.partition(b"\r\n\r\n")
            if not blank:
                return
            status, fields = _parse_head(head)
            if 100 <= status < 200:
                self._early = rest  # 100 (Continue)
                continue
            break
        if status < 300:
            return  # the server has what it wants of the body
        length = fields.get("content-length", "")
        moved = f"the service has moved to {fields['location'][:200]}" if "location" in fields else ""
        media_type = fields.get("content-type", "").partition(";")[0].strip().lower()
        self.refusal = request_failed(
            status, media_type, rest, moved or fields.get("warning", ""), fields.get("retry-after", "")
        )
        if length.isdecimal() and len(rest) >= int(length):
            self._fail(self.refusal)
        elif self._timer is None and not self._stopped:
            self._timer = self._executor.call_later(EARLY_SECONDS, self._enough)

    def _enough(self) -> None:
        self._timer = None
        if self.refusal is not None:
            self._fail(self.refusal)

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _nothing() -> None:
    pass


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Return the status code and the fields of the head of a response; 0 if it is malformed."""
    line, *lines = head.decode("latin-1").split("\r\n")
    words = line.split(" ", 2)
    fields: dict[str, str] = {}
    for one in lines:
        name, _, value = one.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    is_status = len(words) > 1 and words[0].startswith("HTTP/") and words[1].isascii() and words[1].isdecimal()
    return int(words[1]) if is_status else 0, fields
