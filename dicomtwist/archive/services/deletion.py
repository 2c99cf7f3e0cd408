"""
The deletion of studies, series and instances, for every protocol.

A deletion is answered when nothing finds the instances any more. Their files are removed behind that, a few at a time, in
threads that do nothing else; a start goes on with what an earlier run has left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.reading.series_documents import FOLDER
from dicomtwist.archive.recovery import remove_missing
from dicomtwist.archive.removal.remover import Deleted
from dicomtwist.archive.storage.removed import Removed
from dicomtwist.archive.storage.types import InstanceUIDs
from dicomtwist.errors import loggable
from dicomtwist.runtime.executors import Executor, is_turn_over, run_in_turns

__all__ = ["Deletion"]

#: The time between two attempts to remove files that could not be removed, in seconds.
TRY_AGAIN: Final = 60.0
#: The time after which files that a retrieval has missed are looked for, in seconds.
LOOK_AFTER: Final = 0.1
#: The deletions whose files wait to be removed and that are remembered; the next start removes those of others.
MAX_WAITING: Final = 10_000


class Deletion:
    """
    Deletes studies, series and instances.

    :param archive: the archive, open while the service runs.
    :param executor: the threads that delete; the caller holds it while the object is used.

    :ivar listeners: called in the reactor thread with each deletion, and with the words that name the client.
    :ivar instances: the number of instances that were deleted, since the start.
    :ivar freed: the number of bytes that removed files had, since the start.
    """

    log = Logger()

    def __init__(self, archive: Archive, executor: Executor) -> None:
        self.listeners: list[Callable[[Deleted, str], object]] = []
        self.instances = 0
        self.freed = 0
        self._archive = archive
        self._executor = executor
        self._deleting: set[Deferred[Deleted]] = set()
        self._waiting: deque[Removed] = deque()
        self._purging: Deferred[None] = succeed(None)
        self._is_purging = False
        self._is_looking = False
        self._calls: list[IDelayedCall] = []
        self._is_stopped = True

    def _look_for_missing(self) -> None:
        """Look in a thread whether files are missing, soon: a retrieval finds many at once."""
        if not self._is_looking and not self._is_stopped:
            self._is_looking = True
            self._call(LOOK_AFTER, self._look)

    def _call(self, seconds: float, function: Callable[[], None]) -> None:
        """Call *function* after *seconds*, unless the service is stopped before."""

        def call() -> None:
            self._calls.remove(later)
            function()

        later = self._executor.call_later(seconds, call)
        self._calls.append(later)

    def _look(self) -> None:
        self._is_looking = False
        missing = self._archive.retrievals.take_missing()
        if missing and not self._is_stopped:
            self._executor.run(remove_missing, self._archive, missing).addCallbacks(self._removed, self._not_removed)

    def _removed(self, lost: Sequence[InstanceUIDs]) -> None:
        if lost:
            self.log.error(
                "the files of {count} instances are missing, the first is {path}: their rows were removed",
                count=len(lost),
                path=self._archive.store.name(*lost[0]),
            )

    def _not_removed(self, reason: Failure) -> None:
        self.log.error("rows without files cannot be removed for now: {reason}", reason=loggable(reason.value))

    @property
    def unpurged(self) -> int:
        """The number of deletions whose files are not all removed yet."""
        return len(self._waiting) + int(self._is_purging)

    def start(self) -> None:
        """Remove the files of deletions that the previous run of the program has left. It blocks while it lists them."""
        self._is_stopped = False
        self._archive.retrievals.on_missing = lambda: self._executor.call_in_reactor(self._look_for_missing)
        self._waiting.extend(self._archive.unpurged())
        if self._waiting:
            self.log.info("the files of {count} deletions are left, and are removed now", count=len(self._waiting))
        self._purge_next()

    def stop(self) -> Deferred[None]:
        """
        Remove no further files; the next start does.

        :returns: a Deferred that fires with ``None`` when the current step and the deletions under way have ended.
        """
        self._is_stopped = True
        self._archive.retrievals.on_missing = None
        while self._calls:
            self._calls.pop().cancel()
        self._is_looking = False
        under_way: list[Deferred[Any]] = [self._purging, *self._deleting]
        return DeferredList(under_way).addCallback(lambda _: None)

    def delete(
        self, uids: Sequence[str], by: str, *, peer: str = "", unless: Callable[[], str] = lambda: ""
    ) -> Deferred[Deleted]:
        """
        Delete a study, a series or an instance, see :meth:`~dicomtwist.archive.archive.Archive.delete`.

        :param uids: its UIDs, from the study on.
        :param by: words that name the client, for the log.
        :param peer: the host of the client; its calls never take all threads.
        :param unless: see :meth:`~dicomtwist.archive.archive.Archive.delete`; called in a thread.
        :returns: a Deferred that fires when nothing finds it any more. It fails as ``Archive.delete`` raises, or with
            :class:`~dicomtwist.errors.ExecutorFull`. Cancelling it does not undo a deletion that has begun.
        """
        result: Deferred[Deleted] = Deferred()
        self._deleting.add(result)
        running = self._executor.share(peer).run(self._archive.delete, uids, unless)

        def deliver(outcome: Deleted | Failure) -> None:
            self._deleting.discard(result)
            if isinstance(outcome, Deleted):
                self._deleted(outcome, by)
            if not result.called:
                result.callback(outcome)  # a Failure fails it

        running.addBoth(deliver)
        return result

    def _deleted(self, deleted: Deleted, by: str) -> None:
        what = ("study", "series", "instance")[len(deleted.uids) - 1]
        self.instances += deleted.instances
        self.log.info(
            "{what} {uids} deleted by {by}: {count} instances",
            what=what,
            uids="/".join(deleted.uids),
            by=by,
            count=deleted.instances,
        )
        if deleted.files is not None and len(self._waiting) < MAX_WAITING:
            self._waiting.append(deleted.files)
            self._purge_next()
        for listener in self.listeners:
            try:
                listener(deleted, by)
            except Exception:
                self.log.failure("a listener of deletions failed")

    # --- the files

    def _purge_next(self) -> None:
        if self._is_stopped or self._is_purging or not self._waiting:
            return
        self._is_purging = True
        removed = self._waiting.popleft()
        self._purging = Deferred.fromCoroutine(run_in_turns(self._executor, self._purge(removed), is_admitted=True))
        self._purging.addErrback(self._not_purged, removed).addCallback(self._purged)

    def _purge(self, removed: Removed) -> Generator[None, None, None]:
        """Remove the files of a deletion, and the documents of its series; leave the thread when the turn is over."""
        documents = self._archive.store.side_folder(FOLDER)
        if len(removed.uids) == 1:
            series = self._archive.store.removed.names(removed)
        else:
            series = [removed.uids[1]] if len(removed.uids) == 2 else []
        for uid in series:
            documents.remove(f"{removed.uids[0]}_{uid}")
        steps = self._archive.purge(removed)
        while not self._is_stopped:
            try:
                next(steps)
            except StopIteration as end:
                self.freed += end.value
                return
            if is_turn_over():
                yield

    def _not_purged(self, reason: Failure, removed: Removed) -> None:
        self.log.error(
            "files of a deletion cannot be removed for now, they are in {path}: {reason}",
            path=removed.path,
            reason=loggable(reason.value),
        )
        if not self._is_stopped:
            self._call(TRY_AGAIN, partial(self._again, removed))

    def _again(self, removed: Removed) -> None:
        self._waiting.append(removed)
        self._purge_next()

    def _purged(self, _: None) -> None:
        self._is_purging = False
        self._purge_next()
