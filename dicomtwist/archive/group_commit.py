"""
Group commit: several complete instances get their names and their rows in the index together.

Instances submitted during a commit are committed together in the next one, so they share the sync of the folder and of the
database. A single instance is committed at once and waits for no other. The first thread commits for all threads that
submit instances meanwhile; those threads return at once and do not wait.

The tasks of instances that are not in the inbox are committed after their files have their names, so that nothing sends a copy
that is not there, and before success is told. A failure to make them undoes the commit.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeAlias, TypeVar, cast

from dicomtwist.archive.inbox.inbox import Inbox, Small
from dicomtwist.archive.inbox.notes import MakeTasks, Noted, copy_time
from dicomtwist.archive.index.interfaces import IndexWriter
from dicomtwist.archive.index.record import IndexRow, Record, Sender
from dicomtwist.archive.index.write_behind import WriteBehind
from dicomtwist.archive.instance import Deliver, ReceivedInstance
from dicomtwist.archive.replacement import Replacement
from dicomtwist.archive.storage.interfaces import CommittingStorage
from dicomtwist.archive.storage.process_locks import CommitJournal
from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.types import Durability, IndexFailed, InstanceUIDs, StoreError, Written
from dicomtwist.runtime.side_thread import SideThread

__all__ = ["CommitConflict", "GroupCommit", "PendingCommit"]

T = TypeVar("T")

#: The maximum number of instances in one commit.
MAX_GROUP: Final = 256


#: The outcome of each instance of a commit: ``None`` if it was committed, else the error.
_Outcomes: TypeAlias = "dict[PendingCommit, BaseException | None]"
#: A function that takes the outcomes of one commit, and whether the thread goes on with another one.
OnOutcomes: TypeAlias = "Callable[[_Outcomes, bool], None]"
_OnElsewhere: TypeAlias = Callable[[ReceivedInstance, InstanceUIDs], BaseException | None]


class CommitConflict(Exception):
    """A copy of the instance appeared or vanished between the check and the commit: the caller has to check again."""


@dataclass(slots=True, eq=False)
class PendingCommit:
    """
    A complete instance that waits for its commit.

    :ivar instance: the instance.
    :ivar written: its temporary file, on the medium with durability full; ``None`` if the stored copy stays, or if the instance
        is new and goes into the inbox.
    :ivar exists: whether the storage holds a copy already.
    :ivar deliver: takes the outcome of the instance, with those of others, see :class:`~dicomtwist.archive.instance.Deliver`.
    :ivar replacement: the replacement of the stored copy, which is shown that copy before it is removed; ``None`` if nothing
        is replaced, or nobody is to be told.
    :ivar is_unchanged: returns whether the stored copy is still the one that the instance may replace; ``None`` if that may be
        any copy.
    :ivar spare: the temporary file of an instance whose stored copy stays; it is removed when that is certain.
    :ivar aside: the second name of the stored copy while it is being replaced, else empty.
    :ivar placed: whether the file has its final name.
    """

    instance: ReceivedInstance
    written: Written | None
    exists: bool
    deliver: Deliver
    replacement: Replacement | None = None
    is_unchanged: Callable[[], bool] | None = None
    spare: Written | None = None
    aside: str = field(default="", init=False)
    placed: bool = field(default=False, init=False)


class GroupCommit:
    """
    Commits instances to the storage and the index.

    :param store: the storage.
    :param index: the index.
    :param on_outcomes: called after each commit, in the thread that has committed, with the outcomes of its instances. An
        outcome is ``None``, an OSError as it came or an :class:`IndexFailed`; after an error nothing is left of the instance,
        and an earlier copy has not changed. It is a :class:`CommitConflict` if ``exists`` or ``is_unchanged`` is not true any
        more; then the temporary file stays.
    :param journal: locks the instances of a commit against the other processes that share the archive, if there are any.
    :param write_behind: takes the rows of new instances, so that a commit does not wait for the index; without it every
        commit does.
    :param inbox: takes new instances that have no temporary file.
    :param on_elsewhere: called with a new instance whose SOP Instance UID is stored below another study or series, and with the
        UIDs of that one; returns the error for which the new one is refused, ``None`` if both are kept.
    :param make_tasks: makes the tasks of instances that have a note, or that replace one which may have tasks; ``None`` if
        nothing has tasks.
    """

    def __init__(
        self,
        store: CommittingStorage,
        index: IndexWriter,
        on_outcomes: OnOutcomes,
        journal: CommitJournal | None = None,
        write_behind: WriteBehind | None = None,
        inbox: Inbox | None = None,
        on_elsewhere: _OnElsewhere = lambda instance, place: None,
        make_tasks: MakeTasks | None = None,
    ) -> None:
        self._make_tasks = make_tasks
        self._on_outcomes = on_outcomes
        self._on_elsewhere = on_elsewhere
        self._journal = journal
        self._write_behind = write_behind
        self._inbox = inbox
        self._store = store
        self._index = index
        self._lock = threading.Lock()
        self._waiting: list[PendingCommit] = []
        self._busy = False
        # Threads that wait to work alone.
        self._turns: deque[threading.Event] = deque()
        self._syncing = SideThread("sync")

    def close(self) -> None:
        """End the thread for syncs; nothing may be submitted any more. Idempotent."""
        self._syncing.stop()

    def submit(self, commits: Sequence[PendingCommit]) -> None:
        """Commit *commits* and all that other threads submit meanwhile; if another thread is committing, leave them to it."""
        with self._lock:
            self._waiting += commits
            if self._busy:
                return
            self._busy = True
            group = self._next_group()
        self._commit_groups(group)

    def alone(self, work: Callable[[], T]) -> T:
        """
        Call *work* in this thread while nothing is committed; wait for the commit that is under way.

        :returns: the result of *work*, whose exception is raised.
        """
        turn = threading.Event()
        with self._lock:
            if self._busy:
                self._turns.append(turn)
            else:
                self._busy = True
                turn.set()
        turn.wait()
        try:
            return work()
        finally:
            with self._lock:
                group = self._next_group()
                if not group:
                    self._give_turn()
            if group:
                # The result of this thread's work does not wait for the commits of others.
                threading.Thread(
                    target=self._commit_groups, args=(group,), name="dicomtwist-commit", daemon=True
                ).start()

    def _give_turn(self) -> None:
        """Let the next thread work alone that waits for it; the lock is held."""
        self._busy = bool(self._turns)
        if self._turns:
            self._turns.popleft().set()

    def _commit_groups(self, group: list[PendingCommit]) -> None:
        """Commit *group* and those that follow, until none waits or another thread works alone."""
        while group:
            try:
                outcomes = self._commit(group)
            except BaseException as error:
                # A defect of this program: no instance is acknowledged, and no caller waits for ever.
                outcomes = dict.fromkeys(group, error)
            with self._lock:
                group = [] if self._turns else self._next_group()
                if not group:
                    self._give_turn()
            self._on_outcomes(outcomes, bool(group))

    def _next_group(self) -> list[PendingCommit]:
        """Take the next instances that wait, of each SOP Instance one copy."""
        if not self._waiting:
            return []
        group: dict[str, PendingCommit] = {}
        later: list[PendingCommit] = []
        for pending in self._waiting:
            uid = pending.instance.uids[2]
            if uid in group or len(group) >= MAX_GROUP:
                later.append(pending)
            else:
                group[uid] = pending
        self._waiting = later
        return list(group.values())

    def _commit(self, group: list[PendingCommit]) -> _Outcomes:
        outcomes: _Outcomes = {}
        left = group
        if self._write_behind is not None:
            left = [pending for pending in group if pending.exists]
            new = [pending for pending in group if not pending.exists] if left else group
            self._commit_new(new, self._write_behind, outcomes)
        if left:
            outcomes |= self._commit_group(left)
        return outcomes

    def _commit_new(self, new: list[PendingCommit], write_behind: WriteBehind, outcomes: _Outcomes) -> None:
        """Commit new instances whose rows may follow."""
        inbox = self._inbox
        if inbox is not None:
            # In this order, since an instance that waits no longer has its file.
            for pending in new:
                uids = pending.instance.uids
                if inbox.waits(uids) or (pending.written is None and self._store.exists(*uids)):
                    outcomes[pending] = CommitConflict()
        self._refuse_elsewhere([pending for pending in new if pending not in outcomes] if outcomes else new, outcomes)
        small = [pending for pending in new if pending.written is None and pending not in outcomes]
        if small:
            assert inbox is not None
            self._append(small, inbox, outcomes)
        if inbox is not None:
            self._release_removed([pending for pending in new if pending not in outcomes], inbox, outcomes)
        placed = [pending for pending in new if pending not in outcomes and self._place(pending, outcomes)]
        if placed:
            self._sync_and_make_tasks(placed, outcomes)
            for pending in placed:
                if pending not in outcomes:
                    outcomes[pending] = self._add_later(pending, write_behind)
        for pending in new:
            error = outcomes[pending]
            if error is not None:  # after a success there is no earlier copy to remove
                self._settle(pending, error)

    def _release_removed(self, new: list[PendingCommit], inbox: Inbox, outcomes: _Outcomes) -> None:
        """Let no start make files of earlier copies, whose files were removed from outside, in place of new ones."""
        held = [pending for pending in new if inbox.holds(pending.instance.uids)]
        if not held:
            return
        try:
            inbox.release(pending.instance.uids for pending in held)
        except OSError as error:
            outcomes.update(dict.fromkeys(held, error))

    def _append(self, small: list[PendingCommit], inbox: Inbox, outcomes: _Outcomes) -> None:
        """Put small instances into the inbox; if it cannot take them, give them temporary files instead."""
        try:
            inbox.append([self._small(pending) for pending in small])
        except (OSError, StoreError):
            # It is full, or the disk has too little room for a segment. A small file may fit all the same.
            files = self._store.write_temporaries([_content(pending) for pending in small])
            for pending, file in zip(small, files, strict=True):
                if isinstance(file, Written):
                    pending.written = file
                else:
                    outcomes[pending] = file
        except BaseException as error:
            outcomes.update(dict.fromkeys(small, error))
        else:
            outcomes.update(dict.fromkeys(small))

    def _small(self, pending: PendingCommit) -> Small:
        instance = pending.instance
        content = cast("Sequence[Buffer]", instance.content)
        digest = b""
        if self._store.durability is Durability.FULL:
            # Each piece is hashed without the interpreter's lock.
            summed = hashlib.sha256()
            for piece in content:
                summed.update(piece)
            digest = summed.digest()
        return Small(
            *(instance.uids, instance.transfer_syntax, content, digest, instance.held, _row_maker(pending)),
            note=instance.note,
        )

    def _add_later(self, pending: PendingCommit, write_behind: WriteBehind) -> BaseException | None:
        try:
            write_behind.add(_row(pending), pending.instance.uids, pending.instance.held)
        except BaseException as error:
            return error
        return None

    def _commit_group(self, group: list[PendingCommit]) -> _Outcomes:
        outcomes: _Outcomes = {}
        try:
            with self._locked(group):
                self._commit_alone(group, outcomes)
        except OSError as error:
            # The locks failed, or the note could not be cleared after the commit, which does no harm.
            for pending in group:
                if pending not in outcomes:
                    outcomes[pending] = error
                    self._settle(pending, error)
        return outcomes

    def _commit_alone(self, group: list[PendingCommit], outcomes: _Outcomes) -> None:
        """Commit *group* while no other process commits its instances."""
        try:
            group = self._without_conflicts(group, outcomes)
            self._refuse_elsewhere([pending for pending in group if not pending.exists], outcomes)
            self._announce([pending for pending in group if pending.written and pending.exists], outcomes)
            placed = [pending for pending in group if pending not in outcomes and self._place(pending, outcomes)]
            if self._store.durability is Durability.FULL and not any(pending.exists for pending in placed):
                self._sync_and_add(placed, outcomes)
            else:
                self._sync_and_make_tasks(placed, outcomes)
                self._add([pending for pending in placed if pending not in outcomes], outcomes)
        except BaseException as error:
            # A defect of this program: no instance is acknowledged, and no caller waits for ever.
            for pending in group:
                outcomes.setdefault(pending, error)
        for pending, outcome in outcomes.items():
            self._settle(pending, outcome)

    def _locked(self, group: list[PendingCommit]) -> AbstractContextManager[object]:
        """Lock the instances of *group* against the other processes that share the archive."""
        if self._journal is None:
            return nullcontext()
        return self._journal.locked(pending.instance.uids for pending in group)

    def _without_conflicts(self, group: list[PendingCommit], outcomes: _Outcomes) -> list[PendingCommit]:
        left = []
        for pending in group:
            # A new instance is checked when its file gets the name, which must not exist.
            unchanged = not pending.exists or self._store.exists(*pending.instance.uids)
            if unchanged and (pending.is_unchanged is None or pending.is_unchanged()):
                left.append(pending)
            else:
                outcomes[pending] = CommitConflict()
        return left

    def _refuse_elsewhere(self, new: list[PendingCommit], outcomes: _Outcomes) -> None:
        """Refuse instances that are stored below another study or series, unless both are to be kept."""
        looked_for = {pending.instance.uids: pending for pending in new if pending.instance.sender is not None}
        if not looked_for:
            return
        try:
            # The queue first: a row that leaves it meanwhile is in the index.
            behind = {} if self._write_behind is None else self._write_behind.elsewhere(looked_for)
            found = self._index.elsewhere(looked_for)
        except IndexFailed as error:
            outcomes.update(dict.fromkeys(looked_for.values(), error))
            return
        for uids, place in (found | behind).items() if found or behind else ():
            pending = looked_for[uids]
            refusal = self._on_elsewhere(pending.instance, place)
            if refusal is not None:
                outcomes[pending] = refusal

    def _announce(self, replacing: list[PendingCommit], outcomes: _Outcomes) -> None:
        if not replacing:
            return
        try:
            if self._inbox is not None:
                self._inbox.release(pending.instance.uids for pending in replacing)
            if self._write_behind is not None:
                self._write_behind.catch_up()  # else the row of the old copy would be written after that of the new one
            self._index.announce_replacing(pending.instance.uids for pending in replacing)
        except (IndexFailed, OSError) as error:
            outcomes.update(dict.fromkeys(replacing, error))

    def _place(self, pending: PendingCommit, outcomes: _Outcomes) -> bool:
        """Give the file its final name. An earlier copy is set aside first, and put back if a later step fails."""
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

    def _sync_and_make_tasks(self, placed: list[PendingCommit], outcomes: _Outcomes) -> None:
        """Flush the names of instances to the medium, and make their tasks."""
        self._sync(placed, outcomes)
        make = self._make_tasks
        if make is None:
            return
        noted: dict[PendingCommit, Noted] = {}
        for pending in placed:
            # A replaced copy may have tasks that no rule would make now.
            if pending not in outcomes and (pending.instance.note or (pending.exists and pending.placed)):
                try:
                    received, size = self._store.copy_received(*pending.instance.uids)
                except OSError as error:
                    outcomes[pending] = error
                else:
                    noted[pending] = Noted(pending.instance.uids, pending.instance.note, copy_time(received), size)
        if noted:
            try:
                make(list(noted.values()))
            except Exception as error:
                outcomes.update(dict.fromkeys(noted, error))

    def _sync_and_add(self, placed: list[PendingCommit], outcomes: _Outcomes) -> None:
        """
        Flush names and rows to the medium side by side, and make tasks; no instance is acknowledged before all are there.

        After a power cut in between, an instance has only a file or only a row; the next start finds it and repairs the index.
        It has tasks or not; if it is sent again, it gets those that are missing.
        This is for new instances only: a replaced copy would have a row to go back to.
        """
        if not placed:
            return
        unsynced: _Outcomes = {}
        wait = self._syncing.begin(self._sync_and_make_tasks, placed, unsynced)
        try:
            self._add(placed, outcomes)
        finally:
            try:
                wait()
            except BaseException as error:
                # A defect of this program: nobody knows what is on the medium, and which tasks are made.
                unsynced.update(dict.fromkeys(placed, error))
        lost = [pending for pending in unsynced if outcomes[pending] is None]
        outcomes.update(unsynced)
        if lost:
            with suppress(IndexFailed):  # if that fails, the next start removes the row, since it has no file
                self._index.remove(pending.instance.uids for pending in lost)

    def _add(self, placed: list[PendingCommit], outcomes: _Outcomes) -> None:
        new: list[PendingCommit] = []
        rows: list[IndexRow] = []
        for pending in placed:
            if pending.written:
                try:
                    rows.append(_row(pending)())
                    new.append(pending)
                except Exception as error:
                    outcomes[pending] = error
        if new:
            try:
                with nullcontext() if self._journal is None else self._journal.index_lock():
                    self._index.add(rows)
            except Exception as error:
                if len(new) == 1:
                    outcomes[new[0]] = error
                else:
                    # One of them may be the cause.
                    for pending in new:
                        self._add([pending], outcomes)
        for pending in placed:
            outcomes.setdefault(pending, None)

    def _settle(self, pending: PendingCommit, error: BaseException | None) -> None:
        """Remove the old copy after a success, or the new one after a failure."""
        store = self._store
        if pending.spare is not None and not isinstance(error, CommitConflict):
            store.remove(pending.spare.path)
        if error is None:
            if pending.aside:
                self._report_replaced(pending)
                store.remove(pending.aside)
        elif isinstance(error, CommitConflict):
            return
        elif pending.placed:
            # If that fails as well, the file system cannot be written. The peer gets a failure, and the next start compares
            # files and index.
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

    def _report_replaced(self, pending: PendingCommit) -> None:
        """Show the caller the copy that was replaced, while it is there."""
        if pending.replacement is None:
            return
        # The new copy is committed: the instance is acknowledged whatever happens to the old one.
        with suppress(OSError), self._store.open_temporary(Written(pending.aside, 0, b"")) as replaced:
            pending.replacement.read_replaced(replaced)


def _row(pending: PendingCommit) -> Callable[[], IndexRow]:
    """Return a function that makes the row of an instance. It holds no reference to the content."""
    assert pending.written is not None
    return partial(_row_maker(pending), pending.written)


def _row_maker(pending: PendingCommit) -> Callable[[Written], IndexRow]:
    """Return a function that makes the row of an instance from its file. It holds no reference to the content."""
    instance = pending.instance
    return partial(_index_row, instance.describe, instance.transfer_syntax, pending.exists, instance.sender)


def _index_row(
    describe: Callable[[], Record], transfer_syntax: str, exists: bool, sender: Sender | None, file: Written
) -> IndexRow:
    return IndexRow(describe(), transfer_syntax, file.size, exists, file.digest or None, sender)


def _content(pending: PendingCommit) -> Sequence[Buffer]:
    return cast("Sequence[Buffer]", pending.instance.content)
