"""
Checks and rebuilds of an archive while it is in use, one at a time.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.recovery import Reconciled, check
from dicomtwist.errors import loggable
from dicomtwist.runtime.executors import Executor
from dicomtwist.runtime.work import check_wanted

__all__ = ["Maintenance", "as_json"]


def as_json(found: Reconciled) -> dict[str, Any]:
    """Return the result of a comparison of files and index, as JSON can have it."""
    return {
        "instances": found.instances + found.indexed,
        "indexed": found.indexed,
        "lost": found.lost,
        "unreadable": found.unreadable,
        "damaged": found.damaged,
        "lost_names": found.lost_names,
        "unreadable_names": found.unreadable_names,
        "damaged_names": found.damaged_names,
    }


class Maintenance:
    """
    Compares the files of an archive with its index.

    :param archive: the archive, open while the service runs.
    :param executor: the threads; the caller holds them while the object is used.
    """

    log = Logger()

    def __init__(self, archive: Archive, executor: Executor) -> None:
        self._archive = archive
        self._executor = executor
        self._running: Deferred[Any] | None = None
        self._number = 0
        self._state: dict[str, Any] = {"number": 0, "kind": None, "state": "idle"}

    @property
    def state(self) -> dict[str, Any]:
        """The last comparison: its number, kind, state (``idle``, ``running``, ``done`` or ``failed``), and result."""
        return dict(self._state)

    def begin(self, *, all_files: bool) -> bool:
        """
        Begin a comparison, see :func:`~dicomtwist.archive.recovery.check`.

        :returns: whether it has begun; not if one is under way.
        """
        if self._running is not None:
            return False
        self._number += 1
        self._state = {"number": self._number, "kind": "rebuild" if all_files else "check", "state": "running"}
        self._running = self._executor.share("maintenance").run(
            check, self._archive, self._progress, all_files=all_files
        )
        self._running.addCallbacks(self._done, self._failed).addCallback(self._ended)
        return True

    def _progress(self, found: Reconciled) -> None:
        check_wanted()
        self._state["indexed"] = found.indexed

    def _done(self, found: Reconciled) -> None:
        self._state = {**self._state, "state": "done", "result": as_json(found)}
        self.log.info(
            "{kind}: the archive has {total} instances; {indexed} files were indexed, {lost} rows without a file removed, "
            "{unreadable} files could not be read",
            kind=self._state["kind"],
            total=found.instances + found.indexed,
            indexed=found.indexed,
            lost=found.lost,
            unreadable=found.unreadable,
        )

    def _failed(self, reason: Failure) -> None:
        self._state = {**self._state, "state": "failed", "reason": "the files or the index cannot be read now"}
        self.log.error("a comparison of files and index failed: {reason}", reason=loggable(reason.value))

    def _ended(self, _: None) -> None:
        self._running = None

    def stop(self) -> Deferred[None]:
        """End what is under way; the returned Deferred fires with ``None``."""
        if self._running is not None:
            self._running.cancel()
        return succeed(None)
