"""
Pieces of responses that threads read from files: the reactor writes them, or the threads write them to the socket themselves.

A thread that writes needs a call for as much as the client takes, and not one for each 512 KiB; it sends ranges of files by
``sendfile``, without a copy; and the reactor has time for others meanwhile. A study of 158 MB takes half of the CPU time, and a
C-ECHO beside one of 2 GB waits for no turn of the reactor.
"""

from __future__ import annotations

import enum
import errno
import os
import select
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from threading import Lock
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred

from dicomtwist.archive.reading.content import READERS, Block, Extent
from dicomtwist.errors import DataSetError
from dicomtwist.runtime.executors import Runner, is_turn_over
from dicomtwist.runtime.work import check_wanted
from dicomtwist.web.http.site import StreamedRequest
from dicomtwist.web.request import Sending

__all__ = ["ThreadPieces"]

#: The most bytes in memory that a thread writes at once, and the most buffers of them; a system call takes 1,024.
MAX_BATCH: Final = 256 * 1024
MAX_BUFFERS: Final = 512
#: The shortest range of a file that is sent by ``sendfile``; a shorter one is read, together with what is around it.
MIN_SENT: Final = 64 * 1024
#: The most bytes of a file that are sent in one call of the system, after which a thread asks whether they are still wanted.
MAX_SENT: Final = 4 * 1024 * 1024
#: The time for which a thread waits for a client that takes no more, in milliseconds, before it leaves that to the reactor.
PATIENCE: Final = 2

#: Not every platform has them.
_sendfile: Final = getattr(os, "sendfile", None)
_MORE: Final = getattr(socket, "MSG_MORE", 0)
#: The errors of file systems without ``sendfile``.
_UNSUPPORTED: Final = frozenset((errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP))


class _State(enum.Enum):
    """The reasons why a thread has stopped writing."""

    ENDED = "everything is written"
    FULL = "the client takes no more for now"
    TURN = "it is the turn of others"
    LOST = "the connection is lost"


class _Steps:
    """
    An iterator of blocks that threads read, or write to a socket, one call at a time.

    :param blocks: the iterator; it blocks.
    :param close: called when it is not needed any more, in a thread.

    :ivar made: the bytes of the blocks so far.
    :ivar lent: the socket for the next call of :meth:`send`, which closes it.
    """

    def __init__(self, blocks: Iterator[Block], close: Callable[[], None]) -> None:
        self.made = 0
        self.lent: socket.socket | None = None
        self._blocks = blocks
        self._close = close
        self._lock = Lock()
        self._is_closed = self._is_ended = False
        # The next to be written: buffers, behind them a range of a file, and the bytes of these that no chunk states yet.
        self._batch: list[bytes | memoryview] = []
        self._range: Extent | None = None
        self._unstated = 0
        # The end of the chunk before.
        self._behind = b""
        self._can_send_files = _sendfile is not None

    # --- reading

    def next(self) -> tuple[list[bytes | memoryview], bool]:
        """Return the next pieces, and whether they are the last."""
        with self._lock:
            found: list[bytes | memoryview] = []
            size = 0
            if self._is_closed:
                return [], True
            for piece in self._pieces():
                check_wanted()
                found.append(piece)
                size += len(piece)
                # The least bytes of a call, but of the last one: a call in a thread takes some 50 microseconds.
                if size >= READERS.piece:
                    return found, False
            return found, True

    def _pieces(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes of what comes next."""
        while self._batch:
            yield self._batch.pop(0)
        while True:
            while self._range is not None:
                yield self._read_range(READERS.piece)
            block = next(self._blocks, None)
            if block is None:
                return
            if isinstance(block, bytes):
                yield block
            else:
                self._range = block

    def _read_range(self, size: int) -> bytes:
        """Read up to *size* bytes of the range."""
        assert self._range is not None
        size = min(size, self._range.length)
        data = self._range.source.read(self._range.offset, size)
        if len(data) < size:
            raise DataSetError("the stored data set is cut off")
        self._range = self._range.behind(size)
        return data

    # --- writing

    def begin(self) -> int:
        """Read the first blocks; return the number of their bytes."""
        with self._lock:
            if not self._is_closed:
                self._gather(lambda _: None)
            return self.made

    def send(self, check: Callable[[int], object], *, is_chunked: bool) -> tuple[int, _State]:
        """
        Write to the socket :attr:`lent`, and close it.

        :param check: called with the bytes of the blocks so far, before more is written than it has been called with; it raises
            if that is too much.
        :param is_chunked: whether the body is in chunks.
        :returns: the number of bytes that were written, and the reason why it is no more.
        """
        with self._lock:
            lent, self.lent = self.lent, None
            if lent is None:
                raise CancelledError  # closed
            with lent:
                return self._send(lent, check, is_chunked)

    def _send(self, lent: socket.socket, check: Callable[[int], object], is_chunked: bool) -> tuple[int, _State]:
        written = 0
        poller: Any = None
        check(self.made)
        while True:
            check_wanted()
            if not self._batch and self._range is None:
                self._gather(check)
            if is_chunked:
                self._frame()
            if not self._batch and self._range is None:
                return written, _State.ENDED
            try:
                written += self._write(lent)
            except BlockingIOError:
                if poller is None:
                    poller = select.poll()
                    poller.register(lent, select.POLLOUT)
                if not poller.poll(PATIENCE):
                    return written, _State.FULL
            except ConnectionError:
                return written, _State.LOST
            if is_turn_over():
                return written, _State.TURN

    def _gather(self, check: Callable[[int], object]) -> None:
        """Get what comes next, if there is more."""
        size = 0
        most = min(MAX_BATCH, READERS.piece)
        while not self._is_ended and size < most and len(self._batch) < MAX_BUFFERS:
            block = next(self._blocks, None)
            if block is None:
                self._is_ended = True
            elif isinstance(block, bytes):
                self._batch.append(block)
                size += len(block)
            else:
                size += block.length
                self._range = block
                if not self._can_send_files or block.length < MIN_SENT:
                    self._read_ahead(most)
                if self._range is not None:
                    break
        self._unstated = size
        self.made += size
        check(self.made)

    def _read_ahead(self, size: int) -> None:
        """Read *size* bytes of the range, or all, into the batch."""
        self._batch.append(self._read_range(size))

    def _frame(self) -> None:
        """Put the size of a chunk before what comes next, and behind it what ends the chunk (RFC 9112 7.1)."""
        if self._unstated:
            self._batch.insert(0, b"%b%x\r\n" % (self._behind, self._unstated))
            self._unstated, self._behind = 0, b"\r\n"
        elif self._is_ended and self._behind and not self._batch and self._range is None:
            self._batch, self._behind = [self._behind], b""

    def _write(self, lent: socket.socket) -> int:
        """Write some of what comes next, and return the number of bytes."""
        if not self._batch and not self._can_send_files:
            self._read_ahead(min(MAX_BATCH, READERS.piece))
        if self._batch:
            size = lent.sendmsg(self._batch, (), 0 if self._range is None else _MORE)
            self._batch = _behind(self._batch, size)
            return size
        assert self._range is not None and _sendfile is not None
        descriptor = self._range.source.descriptor
        assert descriptor is not None
        try:
            position = self._range.source.position(self._range.offset)
            size = _sendfile(lent.fileno(), descriptor, position, min(self._range.length, MAX_SENT))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self._can_send_files = False
            return 0
        if not size:
            raise DataSetError("the stored data set is cut off")
        self._range = self._range.behind(size)
        return int(size)

    def close(self) -> None:
        """Close the iterator."""
        with self._lock:
            lent, self.lent = self.lent, None
            if lent is not None:
                lent.close()
            if not self._is_closed:
                self._is_closed = True
                try:
                    close = getattr(self._blocks, "close", None)
                    if close is not None:
                        close()
                finally:
                    self._close()


def _behind(buffers: list[bytes | memoryview], size: int) -> list[bytes | memoryview]:
    """Return what is behind the first *size* bytes of *buffers*."""
    for index, one in enumerate(buffers):
        if size < len(one):
            return [memoryview(one)[size:], *buffers[index + 1 :]]
        size -= len(one)
    return []


def _nothing() -> None:
    pass


class ThreadPieces(Sending):
    """
    The pieces of an iterator that blocks, as an asynchronous iterator of lists of them: while the caller has one list, the next
    is read. Or threads write them to the socket, see :meth:`send`.

    :param executor: the threads, as the client may use them. The work is admitted already.
    :param blocks: the iterator. A range of a file that it yields stays open until the next one is asked for.
    :param close: called in a thread when the iterator has ended, or :meth:`aclose` is called.
    """

    def __init__(self, executor: Runner, blocks: Iterator[Block], close: Callable[[], None] = _nothing) -> None:
        self._executor = executor
        self._steps = _Steps(blocks, close)
        self._coming: Deferred[tuple[list[bytes | memoryview], bool]] | None = None
        self._is_begun = self._is_closed = False

    def __aiter__(self) -> AsyncIterator[list[bytes | memoryview]]:
        return self

    async def __anext__(self) -> list[bytes | memoryview]:
        if self._coming is None and not self._is_closed:
            self._note_begun()
            self._coming = self._executor.run_admitted(self._steps.next)
        while self._coming is not None:
            pieces, is_last = await self._coming
            self._coming = None if is_last else self._executor.run_admitted(self._steps.next)
            if is_last:
                await self.aclose()
            if pieces:
                return pieces
        await self.aclose()
        raise StopAsyncIteration

    def _note_begun(self) -> None:
        if not self._is_begun:
            self._is_begun = True
            READERS.count += not self._is_closed

    @property
    def made(self) -> int:
        return self._steps.made

    async def begin(self) -> int:
        self._note_begun()
        return await self._executor.run_admitted(self._steps.begin)

    async def send(self, response: StreamedRequest, check: Callable[[int], object]) -> int:
        steps = self._steps
        written = 0
        state = _State.TURN
        while state is not _State.ENDED:
            steps.lent = response.lend_socket()
            if steps.lent is None:
                raise CancelledError  # the connection is closing
            size, state = await self._executor.run_admitted(steps.send, check, is_chunked=bool(response.chunked))
            written += size
            response.note_written(size)
            if state is _State.FULL:
                await response.when_writable()
            elif state is _State.LOST:
                raise CancelledError
        response.note_written(steps.made - written)  # but for the framing
        return steps.made

    async def aclose(self) -> None:
        """End the iteration; idempotent. It does not wait for the thread."""
        if self._is_closed:
            return
        self._is_closed = True
        READERS.count -= self._is_begun
        coming, self._coming = self._coming, None
        if coming is not None:
            coming.addErrback(lambda _: None)  # its result is not wanted
            coming.cancel()
        self._executor.run_admitted(self._steps.close).addErrback(lambda _: None)
