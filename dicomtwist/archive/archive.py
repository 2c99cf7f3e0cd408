"""
An archive: the files of instances and the index of them, kept together.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from contextlib import suppress
from os import SEEK_END
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias, cast

from dicomtwist.archive.group_commit import CommitConflict, GroupCommit, PendingCommit
from dicomtwist.archive.index.index import FOLDER, Database, Index, IndexFailed
from dicomtwist.archive.index.write_behind import WriteBehind
from dicomtwist.archive.instance import ReceivedInstance
from dicomtwist.archive.storage.file_store import InstanceStore
from dicomtwist.archive.storage.interfaces import Storage
from dicomtwist.archive.storage.process_locks import CommitJournal
from dicomtwist.archive.storage.system_calls import Buffer, FileSystem
from dicomtwist.archive.storage.types import DuplicateInstance, Durability, StoreError, Written, check_uids
from dicomtwist.part10 import NotDicomFile, read_file_meta

__all__ = ["Archive", "DuplicateInstance", "Duplicates"]

_PIECE: Final = 256 * 1024

#: What is called with how it went.
_OnResult: TypeAlias = Callable[[BaseException | None], None]


class Duplicates(enum.Enum):
    """What becomes of an instance that is there already."""

    KEEP = "keep"
    """The first copy stays, whatever comes; the peer is told of success."""
    REPLACE = "replace"
    """The first copy stays where both are byte for byte the same; else the one that came last takes its place."""
    REJECT = "reject"
    """The first copy stays; the peer is told that the instance is a duplicate (0x0111)."""

    def __str__(self) -> str:
        return str(self.value)


class Archive:
    """
    Files and index in one folder.

    Everything here blocks and is meant for worker threads, any number of them.

    :param root: the folder; made by :meth:`open` when it is missing, if its parent is there.
    :param durability: what success promises.
    :param duplicates: what becomes of an instance that is there already.
    :param min_free: how many bytes have to stay free on the file system.
    :param file_system: the system calls to use for files.
    :param process: the name of this process among those that share the archive; empty where it is the only one.
    :param lock: for another than the first of them: the file descriptor of the lock that the first has, taken over by
        :meth:`open`.
    :param engine: the database of the index, disposed of by :meth:`close`, where it is not to be the SQLite file in the folder:
        one of PostgreSQL, which then answers for what durability full promises of rows.

    :ivar store: the files.
    :ivar index: the index, while it is open.
    :ivar journal: what keeps other processes from what is committed here; ``None`` where there is no other.
    """

    index: Index

    def __init__(
        self,
        root: Path,
        *,
        durability: Durability = Durability.FULL,
        duplicates: Duplicates = Duplicates.REPLACE,
        min_free: int = 0,
        file_system: FileSystem | None = None,
        process: str = "",
        lock: int = -1,
        engine: Database | None = None,
    ) -> None:
        self.root = root
        self._engine = engine
        self._file_system = file_system
        self._process = process
        self._lock = lock
        self.duplicates = duplicates
        self.store = InstanceStore(root, durability=durability, min_free=min_free, file_system=file_system)
        self._commits: GroupCommit | None = None
        self._write_behind: WriteBehind | None = None
        self.journal: CommitJournal | None = None

    def open(self) -> int:
        """
        Make or open the folder and its index, and remove left-over temporary files.

        :returns: how many temporary files were removed.
        :raises StoreUnusable: the folder or its index cannot be used; the text says why and what to do.
        """
        removed = self.store.prepare()
        try:
            self.index = Index(
                self.root / FOLDER,
                durability=self.store.durability,
                lock=self._lock,
                engine=self._engine,
                file_system=self._file_system,
            )
            if self._process:
                self.journal = CommitJournal(self.root / FOLDER, self._process, self.store.temporary_files.beginning)
        except BaseException:
            self.store.close()
            raise
        if self.store.durability is Durability.NONE and self.journal is None:
            # Of several processes none knows what another has not told the index yet.
            self._write_behind = WriteBehind(self.index)
        self._commits = GroupCommit(self.store, self.index, self.journal, self._write_behind)
        return removed

    def close(self) -> None:
        """Let go of files and index; idempotent."""
        self.store.close()
        if self._commits is not None:
            self._commits.close()
            self._commits = None
            # What the index refuses now it learns at the next start, from the files.
            with suppress(IndexFailed):
                self.catch_up()
            self.index.close()
        if self.journal is not None:
            self.journal.close()

    def keep(self, instance: ReceivedInstance, on_result: _OnResult) -> None:
        """
        Keep an instance that is whole.

        :param on_result: called once, in any thread: with ``None`` when the instance is kept, else with what went wrong. Kept
            means with durability full that its file, its folders and its row in the index are on the medium; with
            durability none that its file has its name, and its row follows (see :meth:`catch_up`). What went wrong is an
            :class:`OSError` as it came, :class:`DuplicateInstance`,
            :class:`~dicomtwist.archive.storage.types.InvalidUID` or :class:`~dicomtwist.archive.storage.types.IndexFailed`;
            then nothing is left of the instance, and an earlier copy is as it was.
        """
        self.keep_all([(instance, on_result)])

    def keep_all(
        self, instances: Sequence[tuple[ReceivedInstance, _OnResult]], on_batch_done: Callable[[], None] | None = None
    ) -> None:
        """
        Keep instances that are whole, together, which is less work than one by one.

        :param instances: each with what is called with how it went, see :meth:`keep`.
        :param on_batch_done: called after the results of *instances* are known, if this thread goes on committing for others.
        """
        commits = self._commits
        fresh: list[tuple[ReceivedInstance, _OnResult, bool]] = []
        pending: list[PendingCommit] = []
        for instance, on_result in instances:
            content = instance.content
            try:
                if commits is None:
                    raise StoreError("the archive is closed")
                check_uids(*instance.uids)
                exists = self.store.exists(*instance.uids)
                first_stays = exists and self._first_stays(instance)
            except BaseException as error:
                if isinstance(content, Written):
                    self.store.remove(content.path)
                on_result(error)
                continue
            if first_stays or isinstance(content, Written):
                written = content if isinstance(content, Written) else None
                if first_stays and written is not None:
                    self.store.remove(written.path)
                    written = None
                pending.append(self._pending_commit(instance, on_result, written, exists))
            else:
                fresh.append((instance, on_result, exists))
        contents = [cast("Sequence[Buffer]", instance.content) for instance, *_ in fresh]
        for (instance, on_result, exists), result in zip(fresh, self.store.write_temporaries(contents), strict=True):
            if isinstance(result, Written):
                pending.append(self._pending_commit(instance, on_result, result, exists))
            else:
                on_result(result)
        if pending and commits is not None:
            commits.submit(pending, on_batch_done)

    def _pending_commit(
        self, instance: ReceivedInstance, on_result: _OnResult, written: Written | None, exists: bool
    ) -> PendingCommit:
        def committed(error: BaseException | None) -> None:
            if isinstance(error, CommitConflict):
                if written is not None:
                    instance.content = written
                self.keep(instance, on_result)
            else:
                on_result(error)

        return PendingCommit(instance, written, exists, committed)

    @property
    def unindexed(self) -> int:
        """How many instances are kept and not in the index yet."""
        return len(self._write_behind) if self._write_behind is not None else 0

    def catch_up(self) -> None:
        """
        Have the index know all that is kept; who is about to ask it calls this first. It blocks.

        :raises IndexFailed: the database refused; what could not be added is tried again with the next call.
        """
        if self._write_behind is not None:
            self._write_behind.catch_up()

    def _first_stays(self, instance: ReceivedInstance) -> bool:
        """Whether the copy that is there stays; what is compared is the data set and how it is encoded."""
        if self.duplicates is Duplicates.REJECT:
            raise DuplicateInstance("the instance is in the archive already")
        return self.duplicates is Duplicates.KEEP or _same_dataset(self.store, instance)


def _same_dataset(store: Storage, instance: ReceivedInstance) -> bool:
    """Whether the copy that is there holds the data set of *instance*; one that cannot be read does not."""
    content = instance.content
    try:
        with store.open(*instance.uids) as first:
            meta, start = read_file_meta(first)
            if meta.transfer_syntax_uid != instance.transfer_syntax:
                return False
            length = _size(first) - start
            if not isinstance(content, Written):
                return length == sum(map(len, content[1:])) and all(
                    first.read(len(piece)) == piece for piece in content[1:]
                )
            with store.open_temporary(content) as second:
                _, start = read_file_meta(second)
                return length == _size(second) - start and _same_rest(first, second)
    except (OSError, NotDicomFile):
        return False


def _size(file: BinaryIO) -> int:
    """How many bytes a file has; what is read next is as before."""
    here = file.tell()
    size = file.seek(0, SEEK_END)
    file.seek(here)
    return size


def _same_rest(first: BinaryIO, second: BinaryIO) -> bool:
    while piece := first.read(_PIECE):
        if piece != second.read(_PIECE):
            return False
    return True
