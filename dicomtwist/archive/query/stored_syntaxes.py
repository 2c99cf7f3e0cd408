"""
The transfer syntaxes that the instances of an archive are stored in, by SOP Class.

The negotiation of an association for C-GET prefers them, so that instances are sent as they are stored and not converted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from sqlalchemy import func, select
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.reading import reading
from dicomtwist.archive.index.schema import instance
from dicomtwist.errors import loggable
from dicomtwist.runtime.executors import Executor

__all__ = ["StoredSyntaxes"]

#: The time for which counts are used before they are read again, in seconds.
FRESH: Final = 1.0
#: The time for which counts are used after a slow read, as a multiple of the duration of the read. So reading takes at most a
#: hundredth of one thread, however large the index is.
PATIENCE: Final = 100


class StoredSyntaxes:
    """
    Counts the instances of each SOP Class in each transfer syntax, in a thread.

    The answer is immediate and uses the last count, since an association must not wait for a count of all instances. Before
    the first count no transfer syntax is preferred.

    :param archive: the archive, open.
    :param executor: the threads that read the index; the caller holds it while the object is used.
    :param seconds: returns the time, in seconds of the reactor's clock.
    """

    log = Logger()

    def __init__(self, archive: Archive, executor: Executor, seconds: Callable[[], float]) -> None:
        self._archive = archive
        self._executor = executor
        self._seconds = seconds
        self._syntaxes: dict[str, list[str]] = {}
        self._stale_at = 0.0
        self._is_reading = False

    def of(self, sop_class: str) -> Sequence[str]:
        """
        Return the transfer syntaxes of the stored instances of *sop_class*, the most frequent first.

        The counts are read again for later calls if they are old.
        """
        if not self._is_reading and self._seconds() >= self._stale_at:
            self._is_reading = True
            began = self._seconds()
            self._executor.run(self._count).addCallbacks(self._counted, self._failed).addBoth(self._done, began)
        return self._syntaxes.get(sop_class, ())

    def _count(self) -> dict[str, list[str]]:
        self._archive.add_rows()
        columns = instance.c.sop_class_uid, instance.c.transfer_syntax
        number = func.count()
        statement = select(*columns).group_by(*columns).order_by(number.desc(), instance.c.transfer_syntax)
        found: dict[str, list[str]] = {}
        with reading(self._archive.index.engine) as connection:
            for sop_class, syntax in connection.execute(statement):
                found.setdefault(sop_class, []).append(syntax)
        return found

    def _counted(self, found: dict[str, list[str]]) -> None:
        self._syntaxes = found

    def _failed(self, reason: Failure) -> None:
        self.log.warn("the transfer syntaxes of the archive cannot be counted: {why}", why=loggable(reason.value))

    def _done(self, _: object, began: float) -> None:
        self._is_reading = False
        now = self._seconds()
        self._stale_at = now + max(FRESH, PATIENCE * (now - began))
