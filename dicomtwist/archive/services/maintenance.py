"""
Checks and rebuilds of an archive while it is in use, one at a time.

The state of the last one is a file beside the instances, so that each process of a server can tell it.
"""

from __future__ import annotations

import json
import time
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.recovery import Reconciled, check
from dicomtwist.archive.storage.types import StoreError
from dicomtwist.errors import loggable
from dicomtwist.runtime.executors import Executor
from dicomtwist.runtime.work import check_wanted

__all__ = ["Maintenance", "as_json"]

#: The folder of the state, in that of the archive.
FOLDER: Final = ".maintenance"
_STATE: Final = "state"
_MAX_STATE: Final = 1024 * 1024


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
        self._folder = archive.store.side_folder(FOLDER)
        self._running: Deferred[None] | None = None

    def state(self) -> dict[str, Any]:
        """
        Return the last comparison: its number, kind, state (``idle``, ``running``, ``done`` or ``failed``), and result. It
        blocks.
        """
        state = self._read()
        if state["state"] == "running":
            with self._folder.try_locked() as is_free:
                if is_free:
                    # It may have ended in between.
                    state = self._read()
                    if state["state"] == "running":
                        state = {**state, "state": "failed", "reason": "the server has ended meanwhile"}
        return state

    def _read(self) -> dict[str, Any]:
        try:
            state = json.loads(self._folder.read(_STATE, _MAX_STATE))
            return {**state, "number": int(state["number"]), "state": str(state["state"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {"number": 0, "kind": None, "state": "idle"}

    def begin(self, *, all_files: bool) -> Deferred[dict[str, Any] | None]:
        """
        Begin a comparison, see :func:`~dicomtwist.archive.recovery.check`.

        :returns: a Deferred with its state when it has begun; with ``None`` if one is under way. It fails with
            :class:`~dicomtwist.errors.ExecutorFull`, an :class:`OSError` or a
            :class:`~dicomtwist.archive.storage.types.StoreError`.
        """
        begun: Deferred[dict[str, Any] | None] = Deferred()

        def tell(state: dict[str, Any] | None) -> None:
            self._executor.call_in_reactor(begun.callback, state)

        def ended(outcome: Failure | None) -> None:
            if not isinstance(outcome, Failure):
                return
            if begun.called:
                self.log.error("a comparison of files and index failed: {reason}", reason=loggable(outcome.value))
            else:
                begun.errback(outcome)

        self._running = self._executor.share("maintenance").run(self._run, all_files, tell)
        self._running.addBoth(ended)
        return begun

    def _run(self, all_files: bool, tell: Any) -> None:
        """Compare files and index, in a thread; *tell* is called when it has begun, or cannot."""
        if self._archive.lacks_room:
            raise StoreError("the archive has no room")
        if self.state()["state"] == "running":
            tell(None)
            return
        with self._folder.locked():  # if another one holds it, that has ended, or has begun at the same time
            state = {
                "number": time.time_ns() // 1000,
                "kind": "rebuild" if all_files else "check",
                "state": "running",
            }
            self._write(state)
            tell(state)
            try:
                found = check(self._archive, lambda _: check_wanted(), all_files=all_files)
            except BaseException:
                self._write({**state, "state": "failed", "reason": "the files or the index cannot be read now"})
                raise
            self._write({**state, "state": "done", "result": as_json(found)})
        self.log.info(
            "{kind}: the archive has {total} instances; {indexed} files were indexed, {lost} rows without a file removed, "
            "{unreadable} files could not be read",
            kind=state["kind"],
            total=found.instances + found.indexed,
            indexed=found.indexed,
            lost=found.lost,
            unreadable=found.unreadable,
        )

    def _write(self, state: dict[str, Any]) -> None:
        self._folder.put([json.dumps(state).encode("utf-8", "replace")], _STATE)

    def stop(self) -> Deferred[None]:
        """End what is under way; the returned Deferred fires with ``None``."""
        if self._running is not None and not self._running.called:
            self._running.cancel()
        return succeed(None)
