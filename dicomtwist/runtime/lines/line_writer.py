"""
The queue of a :class:`~dicomtwist.runtime.lines.line_file.LineFile`: lines are made and written in a thread, in batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.errors import loggable
from dicomtwist.runtime.executors import Executor

__all__ = ["LineWriter"]

#: The greatest weight of what waits to be written; what comes then is dropped.
MAX_WAITING: Final = 100_000
#: The greatest weight of one batch, so that a thread is not at it for long.
MAX_BATCH: Final = 2_000
#: The time after which a write that failed is tried again, in seconds.
TRY_AGAIN: Final = 5.0
#: A failure is logged once in this time, in seconds.
COMPLAIN_AFTER: Final = 60.0

_Item = TypeVar("_Item")


class Lines(Protocol):
    """
    The place of lines, such as a :class:`~dicomtwist.runtime.lines.line_file.LineFile`. Its methods block.

    :ivar path: its path.
    """

    path: str

    def append(self, lines: bytes, /) -> None:
        """
        Append lines.

        :raises OSError: nothing was appended.
        """

    def close(self) -> None:
        """Close it; the next call opens it again."""


class LineWriter(Generic[_Item]):
    """
    Writes a line for each item.

    Nothing here blocks, and no item is lost while the file cannot be written, for want of room, say, as long as not too many
    wait: then further ones are dropped, and counted.

    :param executor: the threads; the caller holds it while the object is used.
    :param file: the file.
    :param encode: makes the line of an item, with its line break, in a thread.
    :param what: the items in words, for the log: ``"records"``.

    :ivar dropped: the number of items that were dropped.
    """

    log = Logger()

    def __init__(self, executor: Executor, file: Lines, encode: Callable[[_Item], bytes], what: str) -> None:
        self.dropped = 0
        self._executor = executor
        self._file = file
        self._encode = encode
        self._what = what
        self._waiting: list[tuple[_Item, int]] = []
        self._weight = 0
        self._is_writing = False
        self._reopens = False
        self._is_stopped = False
        self._retry: Any = None
        self._complained: float | None = None
        self._ended: list[Deferred[None]] = []

    def put(self, item: _Item, weight: int = 1) -> None:
        """
        Write a line for *item* soon.

        :param weight: how much memory and time it takes, compared with others.
        """
        if self._weight + weight > MAX_WAITING:
            self.dropped += 1
            self._complain("too many wait to be written")
            return
        self._waiting.append((item, weight))
        self._weight += weight
        self._write()

    def reopen(self) -> None:
        """Open the file again before the next write, because another file has its name now."""
        self._reopens = True

    def stop(self) -> Deferred[None]:
        """Write what waits, once. The Deferred fires when that is done, or has failed."""
        self._is_stopped = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._write()
        if not self._is_writing:
            self._file.close()
            return succeed(None)
        ended: Deferred[None] = Deferred()
        self._ended.append(ended)
        return ended

    def _write(self) -> None:
        if self._is_writing or self._retry is not None or not self._waiting:
            return
        self._is_writing = True
        count = weight = 0
        for _, one in self._waiting:
            if count and weight + one > MAX_BATCH:
                break
            count += 1
            weight += one
        items = [item for item, _ in self._waiting[:count]]
        reopens, self._reopens = self._reopens, False
        writing = self._executor.run_admitted(self._write_batch, items, reopens)
        writing.addCallbacks(self._wrote, self._failed, callbackArgs=(count,))

    def _write_batch(self, items: list[_Item], reopens: bool) -> list[Failure]:
        """Write items; return why some of them cannot be encoded."""
        if reopens:
            self._file.close()
        lines, defects = [], []
        for item in items:
            try:
                lines.append(self._encode(item))
            except OSError:
                raise
            except Exception:
                defects.append(Failure())
        if lines:
            self._file.append(b"".join(lines))
        return defects

    def _wrote(self, defects: list[Failure], count: int) -> None:
        self._is_writing = False
        for reason in defects:
            # A defect of this program: the item would fail again, and the others must not wait for it.
            self.log.failure("a line of {what} was not written", reason, what=self._what)
            self.dropped += 1
        self._weight -= sum(weight for _, weight in self._waiting[:count])
        del self._waiting[:count]
        if self._waiting:
            self._write()
        else:
            self._finish()

    def _failed(self, reason: Failure) -> None:
        self._is_writing = False
        if not reason.check(OSError):
            # A defect of this program: the first item would fail again.
            self.log.failure("a line of {what} was not written", reason, what=self._what)
            self._weight -= self._waiting.pop(0)[1]
            self.dropped += 1
        elif not self._is_stopped:
            self._complain(loggable(reason.value))
        if self._is_stopped:
            if self._waiting:
                self.dropped += len(self._waiting)
                self._waiting.clear()
                self._complained = None  # the last chance to tell how many are lost
                self._complain(loggable(reason.value))
            self._finish()
        else:
            self._retry = self._executor.call_later(TRY_AGAIN, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._write()

    def _finish(self) -> None:
        ended, self._ended = self._ended, []
        if ended:
            self._file.close()
        for one in ended:
            one.callback(None)

    def _complain(self, why: str) -> None:
        now = self._executor.seconds()
        if self._complained is None or now - self._complained >= COMPLAIN_AFTER:
            self._complained = now
            self.log.error(
                "{what} are not written to {path}: {why}; {waiting} wait, {dropped} were dropped so far",
                what=self._what,
                path=self._file.path,
                why=why,
                waiting=len(self._waiting),
                dropped=self.dropped,
            )
