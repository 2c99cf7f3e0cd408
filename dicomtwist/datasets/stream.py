"""Data sets that are being received: streams of fragments, and the sinks that take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from dicomtwist.datasets.chunk_buffer import ChunkBuffer
from dicomtwist.errors import DataSetError, DataSetTooLong
from dicomtwist.runtime.budget import Share

#: The bytes of a file that are read at once, and the bytes of a stream that wait for a slow reader.
CHUNK = 1024 * 1024


class DataSetSink(Protocol):
    """Takes a data set as it arrives, see :meth:`DataSetStream.deliver_to`."""

    def write(self, data: memoryview) -> None:
        """Take the next chunk. The view may be kept; it keeps alive all of the read that it came in."""

    def finish(self) -> None:
        """The data set is complete."""

    def fail(self, reason: Failure) -> None:
        """The data set stays incomplete: the association ended, or a limit was passed."""


class StreamPauser(Protocol):
    """Stops reading from the peer while a sink is busy."""

    def pause_reading(self) -> None:
        """Stop reading."""

    def resume_reading(self) -> None:
        """Read again."""


class DataSetStream:
    """
    A data set that is arriving.

    There are three ways to read it: ``async for chunk in stream``, :meth:`deliver_to` a sink, or :meth:`read` all of it. Until
    one is chosen, and whenever the reader is behind by more than :data:`CHUNK`, the association stops reading from the peer,
    which bounds the bytes that wait here.

    :ivar received: the number of bytes that have arrived.
    """

    __slots__ = ("_buffer", "_failure", "_finished", "_paused", "_pauser", "_sink", "_waiting", "received")

    def __init__(self, pauser: StreamPauser) -> None:
        self._pauser = pauser
        self._sink: DataSetSink | None = None
        self._buffer = ChunkBuffer()
        self._finished = False
        self._failure: Failure | None = None
        self._paused = False
        self._waiting: Deferred[memoryview | None] | None = None
        self.received = 0

    # --- for the reader

    def deliver_to(self, sink: DataSetSink) -> None:
        """
        Give the whole data set to *sink*; the part that has arrived already at once.

        A sink that cannot keep up calls :meth:`pause` and :meth:`resume`.

        :raises RuntimeError: the stream has a reader already.
        """
        if self._sink is not None:
            raise RuntimeError("this data set is delivered to a sink already")
        self._sink = sink
        while self._buffer.length:
            sink.write(self._buffer.pop())
        if self._failure is not None:
            sink.fail(self._failure)
        elif self._finished:
            sink.finish()
        else:
            self.resume()

    def read(self) -> Deferred[bytes]:
        """
        Read the whole data set into memory.

        :returns: a Deferred with its bytes; it fails with the reason if the data set stays incomplete.
        """
        sink = CollectingSink()
        self.deliver_to(sink)
        return sink.done

    @property
    def is_complete(self) -> bool:
        """Whether the data set has arrived as a whole, and was taken by a sink."""
        return self._finished and self._failure is None and self._sink is not None

    @property
    def needs_reader(self) -> bool:
        """Whether nothing more of the peer is read before the caller reads this data set on."""
        return self._sink is None and (self._paused or not self._finished) and self._failure is None

    def __aiter__(self) -> DataSetStream:
        return self

    async def __anext__(self) -> memoryview:
        data = await self._next()
        if data is None:
            raise StopAsyncIteration
        return data

    def _next(self) -> Deferred[memoryview | None]:
        if self._buffer.length:
            data = self._buffer.pop()
            if self._buffer.length < CHUNK:
                self.resume()
            return succeed(data)
        waiting: Deferred[memoryview | None] = Deferred()
        if self._failure is not None:
            waiting.errback(self._failure)
        elif self._finished:
            waiting.callback(None)
        else:
            self._waiting = waiting
            self.resume()
        return waiting

    def pause(self) -> None:
        """Stop reading from the peer. Fragments that were read already may still arrive."""
        if not self._paused and not self._finished:
            self._paused = True
            self._pauser.pause_reading()

    def resume(self) -> None:
        """Read from the peer again."""
        if self._paused:
            self._paused = False
            self._pauser.resume_reading()

    # --- for the association

    def feed(self, data: memoryview) -> None:
        """Take the next fragment."""
        self.received += len(data)
        if self._sink is not None:
            self._sink.write(data)
        elif self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(data)
        else:
            self._buffer.append(data)
            if self._buffer.length >= CHUNK:
                self.pause()

    def end(self) -> None:
        """The data set is complete."""
        if self._paused:
            self.resume()
        self._finished = True
        if self._sink is not None:
            self._sink.finish()
        elif self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)

    def fail(self, reason: Failure) -> None:
        """The data set stays incomplete."""
        if self._finished:
            return
        self._paused = False  # there is nothing left to resume
        self._finished = True
        self._failure = reason
        if self._sink is not None:
            self._sink.fail(reason)
        elif self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.errback(reason)

    def discard(self, then: Callable[[], None]) -> None:
        """
        Drop the bytes that have arrived and those to come, and call *then* when the data set has ended.

        A reader that has not finished gets a :class:`~dicomtwist.errors.DataSetError`.
        """
        self._buffer.clear()
        if self._failure is not None:
            return
        if self._finished:
            then()
            return
        sink, self._sink = self._sink, _DiscardingSink(then)
        waiting, self._waiting = self._waiting, None
        if sink is not None:
            sink.fail(_unwanted())
        if waiting is not None:
            waiting.errback(_unwanted())
        self.resume()


def _unwanted() -> Failure:
    return Failure(DataSetError("the request was answered before the data set had come, the rest of it is dropped"))


#: The length of a data set up to which it takes no part of the memory that data sets share, in bytes.
UNCOUNTED: Final = 64 * 1024


class CollectingSink:
    """
    Collects a data set in memory, up to a limit.

    :param limit: the most bytes to keep, ``None`` for any number. Nothing is kept of a data set with more.
    :param share: the part of the memory for data sets that this one takes, if it is longer than :data:`UNCOUNTED`. Nothing is
        kept of a data set for which there is no more. It is released with the data set, by the caller if that is complete.
    :ivar done: a Deferred with the bytes, once all have arrived. It fails with :class:`~dicomtwist.errors.DataSetTooLong` if
        they are more than *limit*, or than there is memory for, at the end of the data set, and with the reason if the data set
        stays incomplete.
    """

    __slots__ = ("_chunks", "_length", "_limit", "_refusal", "_share", "done")

    def __init__(self, limit: int | None = None, share: Share | None = None) -> None:
        self._limit = limit
        self._share = share
        self._length = 0
        self._refusal = ""
        self._chunks = ChunkBuffer()
        self.done: Deferred[bytes] = Deferred()

    def write(self, data: memoryview) -> None:
        """Keep *data*. Once there is too much, drop it and everything before it."""
        if self._refusal:
            return
        before, self._length = self._length, self._length + len(data)
        if self._limit is not None and self._length > self._limit:
            self._refuse(f"a data set of more than {self._limit} bytes")
        elif self._share is not None and self._length > UNCOUNTED:
            if not self._share.grow(self._length - (before if before > UNCOUNTED else 0)):
                self._refuse("too many long data sets of requests at once")
        if not self._refusal:
            self._chunks.append(data)

    def _refuse(self, why: str) -> None:
        self._refusal = why
        self._drop()

    def _drop(self) -> None:
        self._chunks.clear()
        if self._share is not None:
            self._share.release()

    def finish(self) -> None:
        """Join the bytes."""
        if self._refusal:
            self.done.errback(DataSetTooLong(self._refusal))
        else:
            self.done.callback(self._chunks.take())

    def fail(self, reason: Failure) -> None:
        """Pass *reason* on."""
        self._drop()
        self.done.errback(reason)


class _DiscardingSink:
    """Drops a data set that nobody reads."""

    __slots__ = ("_then",)

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def write(self, data: memoryview) -> None:
        """Drop *data*."""

    def finish(self) -> None:
        """Report the end."""
        self._then()

    def fail(self, reason: Failure) -> None:
        """Nothing to do: no caller waits for the end."""
