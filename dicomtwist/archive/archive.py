"""
An archive: a storage for the files of instances, and an index of them.
"""

from __future__ import annotations

import enum
import errno
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias, TypeVar, cast

from twisted.logger import Logger

from dicomtwist.archive.completeness import check_replacement
from dicomtwist.archive.group_commit import CommitConflict, GroupCommit, PendingCommit
from dicomtwist.archive.inbox.frames import MAX_NOTE
from dicomtwist.archive.inbox.inbox import MAX_CONTENT, Inbox
from dicomtwist.archive.inbox.replay import replay_at_start
from dicomtwist.archive.inbox.segments import Segments
from dicomtwist.archive.index.conflicts import Precedence
from dicomtwist.archive.index.index import FOLDER, Database, Index
from dicomtwist.archive.index.study_times import StudyTimes
from dicomtwist.archive.index.write_behind import WriteBehind
from dicomtwist.archive.instance import Deliver, ReceivedInstance, TaskMaker, same_dataset
from dicomtwist.archive.removal.holds import FOLDER as HOLDS
from dicomtwist.archive.removal.holds import Holds
from dicomtwist.archive.removal.remover import Deleted, Remover
from dicomtwist.archive.removal.retrievals import Retrievals
from dicomtwist.archive.replacement import Replacement
from dicomtwist.archive.storage.file_store import InstanceStore
from dicomtwist.archive.storage.process_locks import CommitJournal
from dicomtwist.archive.storage.removed import Removed
from dicomtwist.archive.storage.system_calls import Buffer, FileSystem
from dicomtwist.archive.storage.types import (
    DuplicateInstance,
    Durability,
    InstanceUIDs,
    ReplacementRefused,
    StoreError,
    StoreUnusable,
    Written,
    check_uids,
    lacks_room,
)
from dicomtwist.datasets.character_sets import canonical
from dicomtwist.errors import loggable

__all__ = ["Archive", "DuplicateInstance", "Duplicates", "Precedence"]

T = TypeVar("T")

#: A failure of the inbox is logged once in this time, in seconds.
COMPLAIN_AFTER: Final = 60.0

#: A function that is called with ``None`` or with the error.
_OnResult: TypeAlias = Callable[[BaseException | None], None]


class Duplicates(enum.Enum):
    """The treatment of an instance that the archive holds already."""

    KEEP = "keep"
    """The first copy always stays; the new one is acknowledged and dropped."""
    REPLACE = "replace"
    """The first copy stays if the data sets of both are equal byte for byte; otherwise the new copy replaces it."""
    REJECT = "reject"
    """The first copy stays; the peer gets the status of a duplicate SOP Instance (0x0111)."""

    def __str__(self) -> str:
        return str(self.value)


class Archive:
    """
    An archive: files and index in one folder.

    All methods block and are meant for worker threads, any number of them.

    :param root: the folder; :meth:`open` makes it if it is missing and its parent exists.
    :param durability: the state of an instance when it is acknowledged.
    :param duplicates: the treatment of an instance that the archive holds already.
    :param min_free: the number of bytes that must stay free on the file system.
    :param file_system: the system calls to use for files.
    :param default_charset: the character set of text without one, a defined term of PS3.3 C.12.1.1.2; empty if it is unknown.
    :param process: the name of this process among the processes that share the archive; empty if it is the only one.
    :param lock: for every process but the first: the file descriptor of the lock that the first process holds;
        :meth:`open` takes it over.
    :param engine: the database of the index, if it is not the SQLite file in the folder; :meth:`close` disposes of it. If it
        is PostgreSQL, the durability of rows depends on that server's settings, even with durability full.
    :param precedence: which values the index has if instances disagree about their patient, study or series.
    :param inbox: whether a small instance is stored when it is in the inbox; its file and its row follow, see :meth:`move`.
        Several processes that share an archive have none.
    :param tasks: makes tasks of what is received; opened and closed with the archive. ``None`` for an archive without them.

    :ivar store: the storage.
    :ivar index: the index, while it is open.
    :ivar holds: the locks of studies.
    :ivar study_times: when studies were received and retrieved.
    :ivar retrievals: notes what is retrieved, and files that are missing.
    :ivar journal: the locks against other processes that share the archive; ``None`` if there are no others.
    :ivar asked: the number of calls of :meth:`add_rows`, which queries make.
    :ivar lacks_room: why nothing can be stored for now, although the archive can be read; empty if instances can be stored.
    """

    log = Logger()
    index: Index

    def __init__(
        self,
        root: Path,
        *,
        durability: Durability = Durability.FULL,
        duplicates: Duplicates = Duplicates.REPLACE,
        min_free: int = 0,
        default_charset: str = "",
        file_system: FileSystem | None = None,
        process: str = "",
        lock: int = -1,
        engine: Database | None = None,
        precedence: Precedence = Precedence.LAST,
        inbox: bool = False,
        tasks: TaskMaker | None = None,
    ) -> None:
        self.root = root
        self.tasks = tasks
        self._has_inbox = inbox and not process
        self._replays = lock < 0
        self._inbox: Inbox | None = None
        self.default_charset = canonical(default_charset)
        self._engine = engine
        self._file_system = file_system
        self._process = process
        self._lock = lock
        self._precedence = precedence
        self.duplicates = duplicates
        self.store = InstanceStore(root, durability=durability, min_free=min_free, file_system=file_system)
        self.holds = Holds(self.store.side_folder(HOLDS))
        self.study_times = StudyTimes()
        self.retrievals = Retrievals(self.store, self.study_times)
        self._commits: GroupCommit | None = None
        self._write_behind: WriteBehind | None = None
        self.journal: CommitJournal | None = None
        self._is_open = False
        self.lacks_room = ""
        self.asked = 0
        self._complained = -COMPLAIN_AFTER
        # Held while something is removed and nothing is stored, or while storing begins again.
        self._changing = threading.Lock()
        # Whether an inbox was closed that the next start makes files of.
        self._left_inbox = False

    def open(self) -> int:
        """
        Make or open the folder and its index, and remove left-over temporary files.

        If the file system is full or read-only, an archive that exists is opened for reading: :attr:`lacks_room` says why, what
        is stored fails with ENOSPC, and :meth:`try_again` opens it for writing.

        :returns: the number of temporary files that were removed.
        :raises StoreUnusable: the folder or its index cannot be used; the text says why and what to do.
        """
        try:
            removed = self._open(self._lock)
        except (StoreUnusable, OSError) as error:
            if not lacks_room(error) or not self._open_for_reading():
                raise
            self.refuse(str(error))
            return 0
        self._is_open = True
        self._begin()
        return removed

    def _open(self, lock: int) -> int:
        """
        Open storage, index and journal; if that fails, nothing is open and *lock* is as before.

        :param lock: the file descriptor of the lock of the index if this program holds it already.
        """
        removed = self.store.prepare()
        own = os.dup(lock) if lock >= 0 else -1
        try:
            index = Index(
                self.root / FOLDER,
                durability=self.store.durability,
                lock=own,
                engine=self._engine,
                file_system=self._file_system,
                precedence=self._precedence,
            )
            try:
                if self._process:
                    self.journal = CommitJournal(
                        self.root / FOLDER, self._process, self.store.temporary_files.beginning
                    )
            except BaseException:
                index.close()
                raise
            try:
                if self.tasks is not None:
                    self.tasks.open(alone=self._replays)
                if self._replays:
                    self._replay()
            except BaseException:
                index.close()
                if self.tasks is not None:
                    self.tasks.close()
                raise
        except BaseException:
            self.store.close()
            raise
        self.index = index
        if lock >= 0 and lock == self._lock:
            os.close(lock)
            self._lock = -1
        return removed

    def _replay(self) -> None:
        """
        Make files of what an earlier run has left in its inbox, and tasks of the notes in it.

        :raises StoreUnusable: they cannot be made.
        """
        make_tasks = None if self.tasks is None else self.tasks.make
        found = replay_at_start(self.store, self._file_system or FileSystem(), make_tasks)
        if found.instances:
            self.log.info(
                "the previous run left {instances} instances in its inbox; files were made of {made}, the others had theirs",
                instances=found.instances,
                made=found.made,
            )
        for note in found.notes:
            self.log.error("the inbox: {note}", note=note)

    def _open_for_reading(self) -> bool:
        """Open the index for reading; return whether there is one that can be read."""
        if self._engine is None and not (self.root / FOLDER / "index.sqlite").exists():
            return False
        try:
            self.index = Index(self.root / FOLDER, lock=self._lock, engine=self._engine, reading=True)
        except (StoreUnusable, OSError):
            return False
        self._lock = -1
        self._is_open = True
        return True

    def _begin(self) -> None:
        """Begin to store instances."""
        make_tasks = None if self.tasks is None else self.tasks.make
        if self.journal is None and (self._has_inbox or self.store.durability is Durability.NONE):
            # Several processes cannot use write-behind: none knows which rows another has not added yet.
            self._write_behind = WriteBehind(self.index, self._set_aside)
            if self._has_inbox:
                self._inbox = Inbox(self.store, self._segments(), self._write_behind, make_tasks)
        self._commits = GroupCommit(
            *(self.store, self.index, self._committed, self.journal, self._write_behind, self._inbox),
            self._check_elsewhere,
            make_tasks,
        )

    def _segments(self) -> Segments:
        store = self.store
        return Segments(
            store.temporary_files.folder,
            self._file_system or FileSystem(),
            durability=store.durability,
            min_free=store.min_free,
        )

    def keep_free(self, count: int) -> None:
        """Change the number of bytes that must stay free on the file system; the next instance is subject to it."""
        self.store.min_free = count
        if self._inbox is not None:
            self._inbox.min_free = count

    def refuse(self, why: str) -> None:
        """
        Store nothing until :meth:`try_again` succeeds: each instance fails with ENOSPC.

        :param why: the reason, for the log.
        """
        self.lacks_room = why
        self.store.temporary_files.refuses = True
        commits, self._commits = self._commits, None
        if commits is not None:
            commits.close()
        self._close_inbox()

    def try_again(self, recover: Callable[[], None]) -> bool:
        """
        Store instances again if there is room now.

        :param recover: called to make files and index agree, before anything is stored.
        :returns: whether instances are stored.
        """
        with self._changing:
            return self._try_again(recover)

    def _try_again(self, recover: Callable[[], None]) -> bool:
        before = self.index
        try:
            if before.is_reading:
                self.store.close()
                self._open(before.lock)
            recover()
        except (StoreError, OSError):
            if self.index is not before:
                after, self.index = self.index, before
                after.close()
                if self.journal is not None:
                    self.journal.close()
                    self.journal = None
            return False
        if self.index is not before:
            before.close()
        self._begin()
        self.store.temporary_files.refuses = False
        self.lacks_room = ""
        return True

    def _set_aside(self, error: Exception) -> None:
        self.log.error("an instance is stored, and cannot be indexed: {reason}", reason=loggable(error))

    def close(self) -> None:
        """Close storage and index; idempotent."""
        if self._commits is not None:
            self._commits.close()
            self._commits = None
        self._close_inbox()
        self.store.close()
        if self._is_open:
            self._is_open = False
            # The next start reads the files whose rows the index refuses now.
            with suppress(Exception):
                self.move()
            self.index.close()
        if self.tasks is not None:
            self.tasks.close()
        if self.journal is not None:
            self.journal.close()

    def _close_inbox(self) -> None:
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            try:
                inbox.close()
            except Exception as error:
                self._left_inbox = True
                self.log.error(
                    "instances stay in the inbox, and become files at the next start: {reason}", reason=loggable(error)
                )

    def keep(self, instance: ReceivedInstance, on_result: _OnResult) -> None:
        """
        Store a complete instance.

        :param on_result: called once, in any thread, with the outcome, see :meth:`keep_all`.
        """
        self.keep_all([instance], lambda outcomes, more: on_result(outcomes[0][1]))

    def keep_all(self, instances: Sequence[ReceivedInstance], deliver: Deliver) -> None:
        """
        Store complete instances together, which is less work than one by one.

        :param deliver: called once or more, in any thread, with a list of instances and their outcomes; each instance has one
            outcome. It is ``None`` when the instance is stored, else the error. Stored means that it has a file with its
            name, or is in the inbox, on the medium with durability full; with durability none or an inbox its row follows
            (see :meth:`move`). The error is an :class:`OSError` as it came,
            :class:`DuplicateInstance`, :class:`~dicomtwist.archive.storage.types.ReplacementRefused`,
            :class:`~dicomtwist.archive.storage.types.IncompleteInstance`,
            :class:`~dicomtwist.archive.storage.types.InvalidUID` or :class:`~dicomtwist.archive.storage.types.IndexFailed`;
            then nothing is left of the instance, and an earlier copy has not changed.
        """
        self._keep_all(instances, deliver)

    def _keep_all(self, instances: Sequence[ReceivedInstance], deliver: Deliver, *, again: bool = False) -> None:
        commits = self._commits
        failed: list[tuple[ReceivedInstance, BaseException | None]] = []
        fresh: list[PendingCommit] = []
        pending: list[PendingCommit] = []
        for instance in instances:
            content = instance.content
            try:
                if commits is None:
                    if self.lacks_room:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(self.root))
                    raise StoreError("the archive is closed")
                check_uids(*instance.uids)
                fits = self._fits_inbox(instance)
                if fits and not again:
                    # Most small instances are new: the commit looks for a copy of them, and comes back if there is one.
                    pending.append(PendingCommit(instance, None, False, deliver))
                    continue
                exists = self._exists(instance.uids)
                first_stays = exists and self._first_stays(instance)
                replaces = exists and not first_stays and instance.sender is not None
                replacement = Replacement(self.store, instance) if replaces else None
                is_unchanged = check_replacement(self.store, instance) if exists and not first_stays else None
            except BaseException as error:
                if isinstance(content, Written):
                    self.store.remove(content.path)
                failed.append((instance, error))
                continue
            written = content if isinstance(content, Written) else None
            spare = None
            if first_stays:
                written, spare = None, written  # if the first copy is deleted before the commit, this one is stored
            one = PendingCommit(instance, written, exists, deliver, replacement, is_unchanged, spare)
            is_ready = first_stays or written is not None or (fits and not exists)
            (pending if is_ready else fresh).append(one)
        if fresh:
            results = self.store.write_temporaries([cast("Sequence[Buffer]", one.instance.content) for one in fresh])
            for one, result in zip(fresh, results, strict=True):
                if isinstance(result, Written):
                    one.written = result
                    pending.append(one)
                else:
                    failed.append((one.instance, result))
        if failed:
            deliver(failed, bool(pending))
        if pending and commits is not None:
            commits.submit(pending)

    def delete(self, uids: Sequence[str], unless: Callable[[], str] = lambda: "") -> Deleted:
        """
        Remove a study, a series or an instance. When the call returns, no query and no retrieval finds it any more, and no
        start brings it back; with durability full that is on the medium. :meth:`purge` removes its files then. If the program
        ends during the call, all of it is there at the next start, or nothing.

        :param uids: the Study Instance UID, or that and the Series Instance UID, or these and the SOP Instance UID.
        :param unless: returns why it must stay, ``""`` if it need not; called when nothing is stored in it any more.
        :raises NotInArchive: it is not there.
        :raises StudyLocked: the study is locked, or must stay.
        :raises InvalidUID: one of them is not a UID.
        :raises StoreError: it cannot be removed now; nothing has changed.
        :raises OSError: as it came, errno intact; nothing has changed.
        """
        check_uids(*uids)
        commits = self._commits
        if commits is not None:
            return commits.alone(lambda: self._delete(uids, unless))
        with self._changing:
            return self._delete(uids, unless)

    def _delete(self, uids: Sequence[str], unless: Callable[[], str]) -> Deleted:
        if not self._is_open:
            raise StoreError("the archive is closed")
        if self.index.is_reading:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(self.root))
        if self._left_inbox:
            raise StoreError("instances wait in the inbox for the next start, which may bring back what is deleted now")
        return Remover(self.store, self.index, self.journal, self._write_behind, self._inbox, self.holds).remove(
            uids, unless
        )

    def alone(self, work: Callable[[], T]) -> T:
        """
        Call *work* while this process commits nothing, with all files and rows made.

        :raises StoreError: nothing can be stored or deleted now.
        """
        commits = self._commits
        if commits is None:
            raise StoreError("the archive is closed, or has no room")

        def call() -> T:
            self.catch_up()
            return work()

        return commits.alone(call)

    def purge(self, files: Removed) -> Generator[None, None, int]:
        """
        Remove the files of what :meth:`delete` has taken away, see
        :meth:`~dicomtwist.archive.storage.removed.RemovedFiles.purge`.
        """
        return self.store.removed.purge(files)

    def unpurged(self) -> list[Removed]:
        """
        Return what earlier runs have taken away and whose files are left, if no other process may be at them.

        :raises OSError: the folder cannot be read.
        """
        return self.store.removed.left() if self._replays else []

    def _exists(self, uids: InstanceUIDs) -> bool:
        """Whether there is a copy of an instance; it has its file then."""
        inbox = self._inbox
        if inbox is not None and inbox.waits(uids):
            try:
                inbox.publish()
            except OSError:
                if inbox.waits(uids):
                    raise
        return self.store.exists(*uids)

    def _fits_inbox(self, instance: ReceivedInstance) -> bool:
        if self._inbox is None or instance.is_from_file or isinstance(instance.content, Written):
            return False
        if len(instance.note) > MAX_NOTE:
            return False
        return sum(map(len, instance.content)) <= MAX_CONTENT

    def _committed(self, outcomes: Mapping[PendingCommit, BaseException | None], more: bool) -> None:
        """Deliver the outcomes of a commit, and keep again what was in conflict with another one."""
        delivered: dict[Deliver, list[tuple[ReceivedInstance, BaseException | None]]] = {}
        again: dict[Deliver, list[ReceivedInstance]] = {}
        for pending, error in outcomes.items():
            instance = pending.instance
            if isinstance(error, CommitConflict):
                if pending.written is not None:
                    instance.content = pending.written
                again.setdefault(pending.deliver, []).append(instance)
                continue
            if pending.replacement is not None and error is None:
                pending.replacement.log()
            delivered.setdefault(pending.deliver, []).append((instance, error))
        for deliver, results in delivered.items():
            deliver(results, more or bool(again))
        for deliver, instances in again.items():
            self._keep_all(instances, deliver, again=True)

    @property
    def unindexed(self) -> int:
        """The number of stored instances that have no file or no row yet."""
        inbox = 0 if self._inbox is None else len(self._inbox)
        return max(inbox, 0 if self._write_behind is None else len(self._write_behind))

    @property
    def unsettled(self) -> int:
        """The number of instances that have a file and are still in the inbox, until :meth:`settle`."""
        return 0 if self._inbox is None else self._inbox.unsettled

    def add_rows(self) -> None:
        """
        Give all stored instances their rows. It blocks; every query calls it first. Files may follow, see :meth:`catch_up`.

        :raises IndexFailed: the database refused; the next call tries again to add the rows that are missing.
        """
        self.asked += 1
        if self._write_behind is not None:
            self._write_behind.catch_up()

    def make_files(self) -> None:
        """
        Give all stored instances their files. It blocks; a retrieval calls it when it has found its instances.

        An instance whose file cannot be made for now, for want of room, say, is safe in the inbox and is left out; the log
        says so.
        """
        if self._inbox is not None and len(self._inbox):
            try:
                self._inbox.publish()
            except OSError as error:
                self._complain(error)

    def catch_up(self) -> None:
        """
        Give all stored instances their files and rows, see :meth:`make_files` and :meth:`add_rows`.

        :raises IndexFailed: as :meth:`add_rows`.
        """
        self.make_files()
        self.add_rows()

    def move(self) -> None:
        """
        Catch up, retire the full segments of the inbox, and make one in advance.

        :raises OSError: some files cannot be made for now, or not be flushed to the medium; their instances stay in the inbox.
        :raises IndexFailed: as :meth:`add_rows`.
        """
        try:
            if self._inbox is not None:
                self._inbox.settle()
                with suppress(OSError):  # then the next instance has to wait for a segment, or becomes a file at once
                    self._inbox.make_spare()
        finally:
            if self._write_behind is not None:
                self._write_behind.catch_up()

    def settle(self) -> None:
        """
        Flush all files to the medium, as durability asks for, so that nothing depends on the inbox any more.

        :raises OSError: as :meth:`move`.
        """
        if self._inbox is not None:
            self._inbox.settle(everything=True)

    def _complain(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._complained >= COMPLAIN_AFTER:
            self._complained = now
            self.log.error(
                "{count} instances are safe in the inbox, and cannot become files for now: {reason}",
                count=0 if self._inbox is None else len(self._inbox),
                reason=loggable(error),
            )

    def _check_elsewhere(self, instance: ReceivedInstance, place: InstanceUIDs) -> StoreError | None:
        """
        Return the error for which an instance is refused if its SOP Instance UID is stored below another study or series;
        ``None`` if both are kept.

        A SOP Instance UID is unique (PS3.3 C.12.1.1.1): a retrieval would send both, and its receiver keep the later one.
        """
        sender = instance.sender
        if self.duplicates is Duplicates.REJECT:
            return DuplicateInstance("the instance is in the archive already, below another study or series")
        if sender is None:
            return None
        if not sender.may_replace:
            return ReplacementRefused("the instance is here in another series")
        sender.log_replacement(
            "the SOP Instance UID of {instance} is that of {stored} too: both are kept",
            instance="/".join(instance.uids),
            stored="/".join(place),
        )
        return None

    def _first_stays(self, instance: ReceivedInstance) -> bool:
        """Whether the stored copy stays. Compared are the data set and its transfer syntax."""
        if self.duplicates is Duplicates.REJECT:
            raise DuplicateInstance("the instance is in the archive already")
        return self.duplicates is Duplicates.KEEP or same_dataset(self.store, instance)
