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
from typing import Final

from dicomtwist.archive.index.interfaces import IndexWriter
from dicomtwist.archive.index.record import IndexRow
from dicomtwist.archive.index.write_behind import Behind
from dicomtwist.archive.instance import Instance
from dicomtwist.archive.storage.interfaces import CommittingStorage
from dicomtwist.archive.storage.process_locks import CommitJournal
from dicomtwist.archive.storage.types import Durability, IndexFailed, InstanceUIDs, Written
from dicomtwist.runtime.executors import SideThread

__all__ = ["Arrival", "GroupCommit", "Raced"]

#: How many instances go into one commit at the most.
MAX_GROUP: Final = 256


class Raced(Exception):
    """Another copy of the instance came between the look and the commit: look again."""


@dataclass(slots=True, eq=False)
class Arrival:
    """
    An instance that is whole and wants to be kept.

    :ivar instance: the instance.
    :ivar written: its file, on the medium with durability full; ``None`` where the copy that is there stays.
    :ivar exists: whether there is a copy.
    :ivar done: called in any thread, once, with ``None`` or with what went wrong.
    """

    instance: Instance
    written: Written | None
    exists: bool
    done: Callable[[BaseException | None], None]
    aside: str = field(default="", init=False)
    placed: bool = field(default=False, init=False)


class GroupCommit:
    """
    Commits what arrives to files and index.

    :param store: the files.
    :param index: the index.
    :param journal: keeps other processes from what is committed here, where there are some.
    :param behind: takes the rows of new instances, so that nobody waits for the index; without it all wait.
    """

    def __init__(
        self,
        store: CommittingStorage,
        index: IndexWriter,
        journal: CommitJournal | None = None,
        behind: Behind | None = None,
    ) -> None:
        self._journal = journal
        self._behind = behind
        self._store = store
        self._index = index
        self._lock = threading.Lock()
        self._waiting: list[Arrival] = []
        self._busy = False
        self._syncing = SideThread("sync")

    def close(self) -> None:
        """Nothing more comes; idempotent."""
        self._syncing.stop()

    def submit(self, arrivals: Sequence[Arrival], between: Callable[[], None] | None = None) -> None:
        """
        Commit *arrivals*, and whatever else comes meanwhile, or leave them to the thread that is at it.

        The ``done`` of each gets ``None`` when the instance is kept; an OSError as it came or :class:`IndexFailed` where it is
        not: then nothing is left of it, and an earlier copy is as it was; :class:`Raced` where the instance is
        not as ``exists`` says (the temporary file stays).

        :param between: called before each commit but the first.
        """
        with self._lock:
            self._waiting += arrivals
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
            if committed and between is not None:
                between()
            committed = True
            self._commit(group)

    def _next_group(self) -> list[Arrival]:
        """The next instances that wait, each once."""
        group: dict[InstanceUIDs, Arrival] = {}
        later: list[Arrival] = []
        for arrival in self._waiting:
            if arrival.instance.uids in group or len(group) >= MAX_GROUP:
                later.append(arrival)
            else:
                group[arrival.instance.uids] = arrival
        self._waiting = later
        return list(group.values())

    def _commit(self, group: list[Arrival]) -> None:
        if self._behind is not None:
            for arrival in group:
                if not arrival.exists:
                    arrival.done(self._commit_new(arrival, self._behind))
            group = [arrival for arrival in group if arrival.exists]
        if group:
            self._commit_group(group)

    def _commit_new(self, arrival: Arrival, behind: Behind) -> BaseException | None:
        """Commit a new instance whose row may follow; nothing of it is shared with others."""
        assert arrival.written is not None
        try:
            self._store.rename(arrival.written.path, *arrival.instance.uids, exclusive=True)
            arrival.placed = True
            behind.add(_row(arrival), arrival.instance.held)
        except FileExistsError:
            return Raced()
        except BaseException as error:
            self._settle(arrival, error)
            return error
        return None

    def _commit_group(self, group: list[Arrival]) -> None:
        outcomes: dict[Arrival, BaseException | None] = {}
        if self._journal is None:
            self._commit_alone(group, outcomes)
        else:
            try:
                with self._journal.locked(arrival.instance.uids for arrival in group):
                    self._commit_alone(group, outcomes)
            except OSError as error:
                # There are no locks, or the last note could not be taken back, which is no harm.
                for arrival in group:
                    if arrival not in outcomes:
                        outcomes[arrival] = error
                        self._settle(arrival, error)
        for arrival, outcome in outcomes.items():
            arrival.done(outcome)

    def _commit_alone(self, group: list[Arrival], outcomes: dict[Arrival, BaseException | None]) -> None:
        """Commit *group* while nobody else is at its instances."""
        try:
            group = self._without_raced(group, outcomes)
            self._announce([arrival for arrival in group if arrival.written and arrival.exists], outcomes)
            placed = [arrival for arrival in group if arrival not in outcomes and self._place(arrival, outcomes)]
            if self._store.durability is Durability.FULL and not any(arrival.exists for arrival in placed):
                self._sync_and_add(placed, outcomes)
            else:
                self._sync(placed, outcomes)
                self._add([arrival for arrival in placed if arrival not in outcomes], outcomes)
        except BaseException as error:
            # A mistake of ours: nobody is told of success, and nobody waits for ever.
            for arrival in group:
                outcomes.setdefault(arrival, error)
        for arrival, outcome in outcomes.items():
            self._settle(arrival, outcome)

    def _without_raced(self, group: list[Arrival], outcomes: dict[Arrival, BaseException | None]) -> list[Arrival]:
        left = []
        for arrival in group:
            # For a new one the question is asked when it gets its name.
            if not arrival.exists or self._store.exists(*arrival.instance.uids):
                left.append(arrival)
            else:
                outcomes[arrival] = Raced()
        return left

    def _announce(self, replacing: list[Arrival], outcomes: dict[Arrival, BaseException | None]) -> None:
        if not replacing:
            return
        try:
            if self._behind is not None:
                self._behind.catch_up()  # or the row of the old copy would come after that of the new one
            self._index.announce_replacing(arrival.instance.uids for arrival in replacing)
        except IndexFailed as error:
            outcomes.update(dict.fromkeys(replacing, error))

    def _place(self, arrival: Arrival, outcomes: dict[Arrival, BaseException | None]) -> bool:
        """Give the file its name; one that is there already is set aside, and comes back if anything goes wrong."""
        if arrival.written is None:
            return True
        try:
            if arrival.exists:
                arrival.aside = self._store.set_aside(*arrival.instance.uids)
            self._store.rename(arrival.written.path, *arrival.instance.uids, exclusive=not arrival.exists)
            arrival.placed = True
        except FileExistsError:
            outcomes[arrival] = Raced()
            return False
        except OSError as error:
            outcomes[arrival] = error
            return False
        return True

    def _sync(self, placed: list[Arrival], outcomes: dict[Arrival, BaseException | None]) -> None:
        failed = self._store.sync_names(arrival.instance.uids for arrival in placed)
        if failed:
            outcomes.update(
                (arrival, failed[arrival.instance.uids]) for arrival in placed if arrival.instance.uids in failed
            )

    def _sync_and_add(self, placed: list[Arrival], outcomes: dict[Arrival, BaseException | None]) -> None:
        """
        Have names and rows on the medium, both at once: nobody is told before both are.

        What is there of an instance after a power cut in between, a row or a file, the next start finds alone, and sees to
        it. It is for new instances only: there is no row of an earlier copy to go back to.
        """
        if not placed:
            return
        unsynced: dict[Arrival, BaseException | None] = {}
        wait = self._syncing.begin(self._sync, placed, unsynced)
        try:
            self._add(placed, outcomes)
        finally:
            wait()
        lost = [arrival for arrival in unsynced if outcomes[arrival] is None]
        outcomes.update(unsynced)
        if lost:
            with suppress(IndexFailed):  # the next start finds that there is no file
                self._index.remove(arrival.instance.uids for arrival in lost)

    def _add(self, placed: list[Arrival], outcomes: dict[Arrival, BaseException | None]) -> None:
        new = [arrival for arrival in placed if arrival.written]
        if new:
            try:
                rows = [_row(arrival)() for arrival in new]
                with nullcontext() if self._journal is None else self._journal.index_lock():
                    self._index.add(rows)
            except IndexFailed as error:
                if len(new) == 1:
                    outcomes[new[0]] = error
                else:
                    # It may be one of them that the database does not like.
                    for arrival in new:
                        self._add([arrival], outcomes)
        for arrival in placed:
            outcomes.setdefault(arrival, None)

    def _settle(self, arrival: Arrival, error: BaseException | None) -> None:
        """Remove what is not needed any more: of the old copy after success, of the new one after a failure."""
        store = self._store
        if error is None:
            if arrival.aside:
                store.remove(arrival.aside)
        elif isinstance(error, Raced):
            return
        elif arrival.placed:
            # If that fails as well, the file system is beyond it. The peer is not told of success, and the next start finds
            # out what is there.
            with suppress(OSError):
                if arrival.aside:
                    store.put_back(arrival.aside, *arrival.instance.uids)
                else:
                    store.remove_instance(*arrival.instance.uids)
                store.sync_names([arrival.instance.uids])
        elif arrival.written is not None:
            store.remove(arrival.written.path)
            if arrival.aside:
                store.remove(arrival.aside)


def _row(arrival: Arrival) -> Callable[[], IndexRow]:
    """Return what makes the row of an instance, and keeps nothing of its content."""
    written = arrival.written
    assert written is not None
    describe, syntax, exists = arrival.instance.describe, arrival.instance.transfer_syntax, arrival.exists
    return lambda: IndexRow(describe(), syntax, written.size, exists, written.digest or None)
