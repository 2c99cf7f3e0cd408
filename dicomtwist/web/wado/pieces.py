"""
Pieces of responses that threads read from files, one ahead of the one that the client takes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from threading import Lock

from twisted.internet.defer import Deferred

from dicomtwist.archive.reading.content import READERS
from dicomtwist.runtime.executors import Runner
from dicomtwist.runtime.work import check_wanted

__all__ = ["ThreadPieces"]


class _Steps:
    """
    An iterator of bytes that is read in threads, one call at a time.

    :param pieces: the iterator; it blocks.
    :param close: called when it is not needed any more, in a thread.
    """

    def __init__(self, pieces: Iterator[bytes], close: Callable[[], None]) -> None:
        self._pieces = pieces
        self._close = close
        self._lock = Lock()
        self._is_closed = False

    def next(self) -> tuple[list[bytes], bool]:
        """Return the next pieces, and whether they are the last."""
        with self._lock:
            found: list[bytes] = []
            size = 0
            if self._is_closed:
                return [], True
            for piece in self._pieces:
                check_wanted()
                found.append(piece)
                size += len(piece)
                # The least bytes of a call, but of the last one: a call in a thread takes some 50 microseconds.
                if size >= READERS.piece:
                    return found, False
            return found, True

    def close(self) -> None:
        """Close the iterator."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                try:
                    close = getattr(self._pieces, "close", None)
                    if close is not None:
                        close()
                finally:
                    self._close()


def _nothing() -> None:
    pass


class ThreadPieces:
    """
    The pieces of an iterator that blocks, as an asynchronous iterator of lists of them. While the caller has one list, the next
    is read.

    :param executor: the threads, as the client may use them. The work is admitted already.
    :param pieces: the iterator.
    :param close: called in a thread when the iterator has ended, or :meth:`aclose` is called.
    """

    def __init__(self, executor: Runner, pieces: Iterator[bytes], close: Callable[[], None] = _nothing) -> None:
        self._executor = executor
        self._steps = _Steps(pieces, close)
        self._coming: Deferred[tuple[list[bytes], bool]] | None = None
        self._is_begun = self._is_closed = False

    def __aiter__(self) -> AsyncIterator[list[bytes]]:
        return self

    async def __anext__(self) -> list[bytes]:
        if not self._is_begun:
            self._is_begun = True
            READERS.count += not self._is_closed
            self._coming = self._executor.run_admitted(self._steps.next)
        while self._coming is not None:
            pieces, is_last = await self._coming
            self._coming = None if is_last else self._executor.run_admitted(self._steps.next)
            if pieces:
                return pieces
        await self.aclose()
        raise StopAsyncIteration

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
