"""
Group commit: many instances that are whole get their names, and their rows in the index, together.

Whoever comes while a commit is under way goes into the next. So the syncs of a folder and of the database are shared by all
who wait for them, and one who is alone does not wait for anybody. The thread that comes first does the work of those that
come while it is at it; the others do not wait in theirs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from dicomtwist.archive.index.interfaces import IndexWriter
from dicomtwist.archive.index.record import IndexRow
from dicomtwist.archive.index.write_behind import WriteBehind
from dicomtwist.archive.instance import ReceivedInstance
from dicomtwist.archive.storage.interfaces import CommittingStorage
from dicomtwist.archive.storage.process_locks import CommitJournal
from dicomtwist.archive.storage.types import Durability, IndexFailed, InstanceUIDs, Written
from dicomtwist.runtime.executors import SideThread

__all__ = ["PendingCommit", "GroupCommit", "CommitConflict"]

#: How many instances go into one commit at the most.
MAX_GROUP: Final = 256


_Outcomes: TypeAlias = "dict[PendingCommit, BaseException | None]"


class CommitConflict(Exception):
    """Another copy of the instance came between the look and the commit: look again."""


@dataclass(slots=True, eq=False)
class PendingCommit:
    """
    An instance that is whole and wants to be kept.

    :ivar instance: the instance.
    :ivar written: its file, on the medium with durability full; ``None`` where the copy that is there stays.
    :ivar exists: whether there is a copy.
    :ivar on_result: called in any thread, once, with ``None`` or with what went wrong.
    """

    instance: ReceivedInstance
    written: Written | None
    exists: bool
    on_result: Callable[[BaseException | None], None]
    aside: str = field(default="", init=False)
    placed: bool = field(default=False, init=False)


class GroupCommit:
    """
    Commits what arrives to files and index.

    :param store: the files.
    :param index: the index.
    :param journal: keeps other processes from what is committed here, where there are some.
    :param write_behind: takes the rows of new instances, so that nobody waits for the index; without it all wait.
    """

    def __init__(
        self,
        store: CommittingStorage,
        index: IndexWriter,
        journal: CommitJournal | None = None,
        write_behind: WriteBehind | None = None,
    ) -> None:
        self._journal = journal
        self._write_behind = write_behind
        self._store = store
        self._index = index
        self._lock = threading.Lock()
        self._waiting: list[PendingCommit] = []
        self._busy = False
        self._syncing = SideThread("sync")

    def close(self) -> None:
        """Nothing more comes; idempotent."""
        self._syncing.stop()

    def submit(self, commits: Sequence[PendingCommit], on_batch_done: Callable[[], None] | None = None) -> None:
        """
        Commit *commits*, and whatever else comes meanwhile, or leave them to the thread that is at it.

        The ``on_result`` of each gets ``None`` when the instance is kept; an OSError as it came or :class:`IndexFailed` if it
        is not: then nothing is left of it, and an earlier copy is as it was; :class:`CommitConflict` if the instance is not
        as ``exists`` says (the temporary file stays).

        :param on_batch_done: called before each commit but the first.
        """
        with self._lock:
            self._waiting += commits
            if self._busy:
                return
            self._busy = True
        committed = False
        while True:
            with self._lock:
                group = self._next_group()
                if not group:
                    self._busy = False
                    return
            if committed and on_batch_done is not None:
                on_batch_done()
            committed = True
            self._commit(group)

    def _next_group(self) -> list[PendingCommit]:
        """The next instances that wait, each once."""
        group: dict[InstanceUIDs, PendingCommit] = {}
        later: list[PendingCommit] = []
        for pending in self._waiting:
            if pending.instance.uids in group or len(group) >= MAX_GROUP:
                later.append(pending)
            else:
                group[pending.instance.uids] = pending
        self._waiting = later
        return list(group.values())

    def _commit(self, group: list[PendingCommit]) -> None:
        if self._write_behind is not None:
            for pending in group:
                if not pending.exists:
                    pending.on_result(self._commit_new(pending, self._write_behind))
            group = [pending for pending in group if pending.exists]
        if group:
            self._commit_group(group)

    def _commit_new(self, pending: PendingCommit, write_behind: WriteBehind) -> BaseException | None:
        """Commit a new instance whose row may follow; nothing of it is shared with others."""
        assert pending.written is not None
        try:
            self._store.rename(pending.written.path, *pending.instance.uids, exclusive=True)
            pending.placed = True
            write_behind.add(_row(pending), pending.instance.held)
        except FileExistsError:
            return CommitConflict()
        except BaseException as error:
            self._settle(pending, error)
            return error
        return None

    def _commit_group(self, group: list[PendingCommit]) -> None:
        outcomes: _Outcomes = {}
        if self._journal is None:
            self._commit_alone(group, outcomes)
        else:
            try:
                with self._journal.locked(pending.instance.uids for pending in group):
                    self._commit_alone(group, outcomes)
            except OSError as error:
                # There are no locks, or the last note could not be taken back, which is no harm.
                for pending in group:
                    if pending not in outcomes:
                        outcomes[pending] = error
                        self._settle(pending, error)
        for pending, outcome in outcomes.items():
            pending.on_result(outcome)

    def _commit_alone(self, group: list[PendingCommit], outcomes: _Outcomes) -> None:
        """Commit *group* while nobody else is at its instances."""
        try:
            group = self._without_conflicts(group, outcomes)
            self._announce([pending for pending in group if pending.written and pending.exists], outcomes)
            placed = [pending for pending in group if pending not in outcomes and self._place(pending, outcomes)]
            if self._store.durability is Durability.FULL and not any(pending.exists for pending in placed):
                self._sync_and_add(placed, outcomes)
            else:
                self._sync(placed, outcomes)
                self._add([pending for pending in placed if pending not in outcomes], outcomes)
        except BaseException as error:
            # A mistake of ours: nobody is told of success, and nobody waits for ever.
            for pending in group:
                outcomes.setdefault(pending, error)
        for pending, outcome in outcomes.items():
            self._settle(pending, outcome)

    def _without_conflicts(self, group: list[PendingCommit], outcomes: _Outcomes) -> list[PendingCommit]:
        left = []
        for pending in group:
            # For a new one the question is asked when it gets its name.
            if not pending.exists or self._store.exists(*pending.instance.uids):
                left.append(pending)
            else:
                outcomes[pending] = CommitConflict()
        return left

    def _announce(self, replacing: list[PendingCommit], outcomes: _Outcomes) -> None:
        if not replacing:
            return
        try:
            if self._write_behind is not None:
                self._write_behind.catch_up()  # or the row of the old copy would come after that of the new one
            self._index.announce_replacing(pending.instance.uids for pending in replacing)
        except IndexFailed as error:
            outcomes.update(dict.fromkeys(replacing, error))

    def _place(self, pending: PendingCommit, outcomes: _Outcomes) -> bool:
        """Give the file its name; one that is there already is set aside, and comes back if anything goes wrong."""
        if pending.written is None:
            return True
        try:
            if pending.exists:
                pending.aside = self._store.set_aside(*pending.instance.uids)
            self._store.rename(pending.written.path, *pending.instance.uids, exclusive=not pending.exists)
            pending.placed = True
        except FileExistsError:
            outcomes[pending] = CommitConflict()
            return False
        except OSError as error:
            outcomes[pending] = error
            return False
        return True

    def _sync(self, placed: list[PendingCommit], outcomes: _Outcomes) -> None:
        failed = self._store.sync_names(pending.instance.uids for pending in placed)
        if failed:
            outcomes.update(
                (pending, failed[pending.instance.uids]) for pending in placed if pending.instance.uids in failed
            )

    def _sync_and_add(self, placed: list[PendingCommit], outcomes: _Outcomes) -> None:
        """
        Have names and rows on the medium, both at once: nobody is told before both are.

        What is there of an instance after a power cut in between, a row or a file, the next start finds alone, and sees to
        it. It is for new instances only: there is no row of an earlier copy to go back to.
        """
        if not placed:
            return
        unsynced: _Outcomes = {}
        wait = self._syncing.begin(self._sync, placed, unsynced)
        try:
            self._add(placed, outcomes)
        finally:
            wait()
        lost = [pending for pending in unsynced if outcomes[pending] is None]
        outcomes.update(unsynced)
        if lost:
            with suppress(IndexFailed):  # the next start finds that there is no file
                self._index.remove(pending.instance.uids for pending in lost)

    def _add(self, placed: list[PendingCommit], outcomes: _Outcomes) -> None:
        new = [pending for pending in placed if pending.written]
        if new:
            try:
                rows = [_row(pending)() for pending in new]
                with nullcontext() if self._journal is None else self._journal.index_lock():
                    self._index.add(rows)
            except IndexFailed as error:
                if len(new) == 1:
                    outcomes[new[0]] = error
                else:
                    # It may be one of them that the database does not like.
                    for pending in new:
                        self._add([pending], outcomes)
        for pending in placed:
            outcomes.setdefault(pending, None)

    def _settle(self, pending: PendingCommit, error: BaseException | None) -> None:
        """Remove what is not needed any more: of the old copy after success, of the new one after a failure."""
        store = self._store
        if error is None:
            if pending.aside:
                store.remove(pending.aside)
        elif isinstance(error, CommitConflict):
            return
        elif pending.placed:
            # If that fails as well, the file system is beyond it. The peer is not told of success, and the next start finds
            # out what is there.
            with suppress(OSError):
                if pending.aside:
                    store.put_back(pending.aside, *pending.instance.uids)
                else:
                    store.remove_instance(*pending.instance.uids)
                store.sync_names([pending.instance.uids])
        elif pending.written is not None:
            store.remove(pending.written.path)
            if pending.aside:
                store.remove(pending.aside)


def _row(pending: PendingCommit) -> Callable[[], IndexRow]:
    """Return what makes the row of an instance, and keeps nothing of its content."""
    written = pending.written
    assert written is not None
    describe, syntax, exists = pending.instance.describe, pending.instance.transfer_syntax, pending.exists
    return lambda: IndexRow(describe(), syntax, written.size, exists, written.digest or None)
