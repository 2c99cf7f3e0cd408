"""
What the attempts of an :class:`~dicomtwist.pool.AssociationPool` are made of: what is counted of each operation, who waits for
a place, which failures may go away, and a file that is read again.
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
from dicomtwist.pool.lease import Lease


class Call:
    """
    One operation of a user's, with all of its attempts.

    :ivar seconds: how long it may take to begin, ``None`` for ever.
    :ivar deadline: until when that is, in seconds of the clock.
    :ivar failures: how many attempts have failed.
    :ivar last: what the last one failed with.
    """

    __slots__ = ("deadline", "failures", "last", "seconds")

    def __init__(self, seconds: float | None, deadline: float | None) -> None:
        self.seconds = seconds
        self.deadline = deadline
        self.failures = 0
        self.last: BaseException | None = None

    def failed(self, error: BaseException) -> None:
        """One more attempt has failed."""
        self.failures += 1
        self.last = error


class Waiter:
    """
    Who waits for a place.

    :param call: for which operation.
    :param exclusive: whether the association is wanted alone.
    :param gave_up: called with it when :attr:`place` is cancelled.

    :ivar place: fires with it.
    :ivar late: what happens when it is waited for too long.
    """

    __slots__ = ("call", "exclusive", "late", "place")

    def __init__(self, call: Call, exclusive: bool, gave_up: Callable[[Waiter], None]) -> None:
        self.call = call
        self.exclusive = exclusive
        self.late: IDelayedCall | None = None

        def cancelled(_: Deferred[Lease]) -> None:
            self._stop_timer()
            gave_up(self)

        self.place: Deferred[Lease] = Deferred(cancelled)

    def give(self, lease: Lease) -> None:
        """It is this one."""
        self._stop_timer()
        self.place.callback(lease)

    def fail(self, error: BaseException) -> None:
        """There is none, for *error*."""
        self._stop_timer()
        self.place.errback(Failure(error))

    def _stop_timer(self) -> None:
        if self.late is not None and self.late.active():
            self.late.cancel()


class Connecting:
    """
    An association that is being asked for.

    :param failures_before: how many attempts in a row had failed.

    :ivar association: it, once there is a connection.
    :ivar association_asked: fires with it, once it is established.
    :ivar given_up: whether it is not wanted any more.
    """

    def __init__(self, failures_before: int) -> None:
        self.failures_before = failures_before
        self.given_up = False
        self.association: AssociationInterface | None = None
        self.association_asked: Deferred[Any] = Deferred()

    def opened(self, event: evt.Event) -> None:
        """There is a connection."""
        self.association = event.assoc

    def give_up(self) -> None:
        """It is not wanted any more."""
        self.given_up = True
        self.association_asked.cancel()


def may_repeat(lease: Lease, error: BaseException, retry: bool | None) -> bool:
    """Whether an operation that failed with *error* may be done again."""
    if not isinstance(error, AssociationError | NotEstablished) or lease.slot.is_usable:
        return False  # it is not this association that ended
    if lease.is_answered:
        return False
    return lease.is_repeatable if retry is None else retry


def is_transient(error: BaseException) -> bool:
    """Whether an attempt to establish an association may go better later."""
    if isinstance(error, AssociationRejected):
        return not error.is_permanent
    if isinstance(error, NoAcceptedContexts):
        return False
    # OSError: no route, no name, no port to connect from. Errors of TLS are others, and do not go away by themselves.
    return isinstance(error, AssociationError | ConnectError | ConnectionClosed | OSError)


class RereadableFile:
    """
    An open file that is read again from where it stood, by one reader after the other.

    :param file: it can seek; it is left open.
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
        except (AttributeError, ValueError):  # an object with read() alone; a file that is closed
            return False

    def reopen(self) -> BinaryIO:
        """Return a reader that begins at the start; those before get nothing any more."""
        self.reader = FileReader(self)
        return self.reader  # type: ignore[return-value]


class FileReader:
    """What :meth:`RereadableFile.reopen` gives; it is read in threads."""

    def __init__(self, whole: RereadableFile) -> None:
        self._whole = whole
        self._started = False

    def read(self, count: int = -1) -> bytes:
        """Read; a read for an attempt before may still be under way, and is waited for."""
        whole = self._whole
        with whole.lock:
            if whole.reader is not self:
                return b""
            if not self._started:
                self._started = True
                whole.file.seek(whole.start, io.SEEK_SET)
            return whole.file.read(count)
