"""
Attempts of an :class:`~dicomtwist.pool.AssociationPool`: the counts of an operation, the wait for a place, the failures that
allow a retry, and a file that can be read again.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from threading import Lock
from typing import Any, BinaryIO

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.errors import AssociationError, AssociationRejected, NoAcceptedContexts, NotEstablished
from dicomtwist.interfaces import AssociationInterface
from dicomtwist.pool.lease import Lease, Places


class Call:
    """
    One operation of a user, with all of its attempts.

    :ivar seconds: the time in which an attempt has to begin, in seconds; ``None`` for no limit.
    :ivar deadline: the end of that time, in seconds of the clock; ``None`` for no limit.
    :ivar failures: the number of attempts that failed.
    :ivar last: the error of the last attempt that failed.
    """

    __slots__ = ("deadline", "failures", "last", "seconds")

    def __init__(self, seconds: float | None, deadline: float | None) -> None:
        self.seconds = seconds
        self.deadline = deadline
        self.failures = 0
        self.last: BaseException | None = None

    def failed(self, error: BaseException) -> None:
        """Count an attempt that failed."""
        self.failures += 1
        self.last = error


class Waiter:
    """
    An operation that waits for a place.

    :param call: the operation.
    :param exclusive: whether it needs an association without other leases.
    :param inside: the leases that it is inside of.
    :param pool: the pool whose place it waits for.
    :param gave_up: called with this object when :attr:`place` is cancelled.

    :ivar place: fires with the lease.
    :ivar late: the timer that ends the wait.
    """

    __slots__ = ("call", "exclusive", "inside", "late", "place", "pool")

    def __init__(
        self,
        call: Call,
        inside: tuple[Lease, ...],
        pool: Places,
        gave_up: Callable[[Waiter], None],
        *,
        exclusive: bool,
    ) -> None:
        self.call = call
        self.exclusive = exclusive
        self.inside = inside
        self.pool = pool
        self.late: IDelayedCall | None = None
        for lease in inside:
            lease.waiting.append(self)

        def cancelled(_: Deferred[Lease]) -> None:
            self._end()
            gave_up(self)

        self.place: Deferred[Lease] = Deferred(cancelled)

    def give(self, lease: Lease) -> None:
        """End the wait with *lease*."""
        self._end()
        self.place.callback(lease)

    def fail(self, error: BaseException) -> None:
        """End the wait with *error*."""
        self._end()
        self.place.errback(Failure(error))

    def _end(self) -> None:
        for lease in self.inside:
            lease.waiting.remove(self)
        if self.late is not None and self.late.active():
            self.late.cancel()


class Connecting:
    """
    An association that is being established.

    :param failures_before: the number of attempts in a row that failed before.

    :ivar association: the association, when its connection is made.
    :ivar association_asked: fires with the association when it is established.
    :ivar given_up: whether the pool does not need it any more.
    """

    def __init__(self, failures_before: int) -> None:
        self.failures_before = failures_before
        self.given_up = False
        self.association: AssociationInterface | None = None
        self.association_asked: Deferred[Any] = Deferred()

    def opened(self, event: evt.Event) -> None:
        """Note the association whose connection was made."""
        self.association = event.assoc

    def give_up(self) -> None:
        """Cancel the attempt."""
        self.given_up = True
        self.association_asked.cancel()


def may_repeat(lease: Lease, error: BaseException, retry: bool | None) -> bool:
    """Whether an operation that failed with *error* may be repeated."""
    if not isinstance(error, AssociationError | NotEstablished) or lease.slot.is_usable:
        return False  # the error is not the end of this association
    if lease.is_answered:
        return False
    return lease.is_repeatable if retry is None else retry


def is_transient(error: BaseException) -> bool:
    """Whether a later attempt to establish an association may succeed."""
    if isinstance(error, AssociationRejected):
        return not error.is_permanent
    if isinstance(error, NoAcceptedContexts):
        return False
    # OSError: no route, no name, no port to connect from. TLS errors have other types, and are permanent.
    return isinstance(error, AssociationError | ConnectError | ConnectionClosed | OSError)


class RereadableFile:
    """
    An open file that several readers read, one after the other, from its position at the start.

    :param file: a seekable file, which stays open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.start = file.tell()
        self.lock = Lock()
        self.reader: FileReader | None = None

    @staticmethod
    def is_possible(file: Any) -> bool:
        """Whether *file* can be read again."""
        try:
            return bool(file.seekable())
        except (AttributeError, ValueError):  # an object with read() only, or a closed file
            return False

    def reopen(self) -> BinaryIO:
        """Return a reader that begins at the start; earlier readers get no more bytes."""
        self.reader = FileReader(self)
        return self.reader  # type: ignore[return-value]


class FileReader:
    """A reader of a :class:`RereadableFile`; worker threads read it."""

    def __init__(self, whole: RereadableFile) -> None:
        self._whole = whole
        self._started = False

    def read(self, count: int = -1) -> bytes:
        """Read; wait for a read of an earlier attempt that has not ended."""
        whole = self._whole
        with whole.lock:
            if whole.reader is not self:
                return b""
            if not self._started:
                self._started = True
                whole.file.seek(whole.start, io.SEEK_SET)
            return whole.file.read(count)
