"""
The removal of a study, a series or an instance from an archive.

The order of the steps: instances that are still in the inbox become files, and no start makes files of them again; the study
is taken away, with one rename; its rows are removed. The rename decides: if the program ends before it, the study is there as
a whole, and after it, it is gone, since a start removes rows without files. The files are removed afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

from twisted.logger import Logger

from dicomtwist.archive.inbox.inbox import Inbox
from dicomtwist.archive.index.index import Index
from dicomtwist.archive.index.reading import Subject
from dicomtwist.archive.index.write_behind import WriteBehind
from dicomtwist.archive.removal.holds import Holds, StudyLocked
from dicomtwist.archive.storage.file_store import InstanceStore
from dicomtwist.archive.storage.process_locks import CommitJournal
from dicomtwist.archive.storage.removed import Removed
from dicomtwist.archive.storage.types import StoreError
from dicomtwist.errors import loggable

__all__ = ["Deleted", "NotInArchive", "Remover"]


class NotInArchive(StoreError):
    """The archive does not have the study, series or instance."""


class Deleted(NamedTuple):
    """
    The result of a deletion.

    :ivar uids: the UIDs of the study, the series or the instance.
    :ivar series: the Series Instance UIDs that had instances in it.
    :ivar instances: the number of instances.
    :ivar files: the files, which were taken away and are still to be removed; ``None`` if there were rows and no files.
    :ivar subject: the study and its patient, as the index had them.
    """

    uids: tuple[str, ...]
    series: tuple[str, ...]
    instances: int
    files: Removed | None
    subject: Subject


class Remover:
    """
    Removes studies, series and instances. Nothing is committed by this process meanwhile.

    :param store: the storage.
    :param index: the index.
    :param journal: the locks against other processes that share the archive; ``None`` if there are no others.
    :param write_behind: the rows that are not in the index yet, if there may be any.
    :param inbox: the inbox, if there is one.
    :param holds: the locks of studies.
    """

    log = Logger()

    def __init__(
        self,
        store: InstanceStore,
        index: Index,
        journal: CommitJournal | None,
        write_behind: WriteBehind | None,
        inbox: Inbox | None,
        holds: Holds,
    ) -> None:
        self._store = store
        self._index = index
        self._journal = journal
        self._write_behind = write_behind
        self._inbox = inbox
        self._holds = holds

    def remove(self, uids: Sequence[str], unless: Callable[[], str] = lambda: "") -> Deleted:
        """
        Remove a study, a series or an instance.

        :param uids: its UIDs, from the study on, which are valid.
        :param unless: returns why it must stay, ``""`` if it need not; called when nothing is stored in it any more, and all of
            its instances have files.
        :raises NotInArchive: it is not there.
        :raises StudyLocked: it is locked, or must stay.
        :raises IndexFailed: the database refused; it is there as before.
        :raises OSError: as it came, errno intact; it is there as before.
        """
        with nullcontext() if self._journal is None else self._journal.study_locked(uids[0]):
            return self._remove(tuple(uids), unless)

    def _remove(self, uids: tuple[str, ...], unless: Callable[[], str]) -> Deleted:
        self._holds.check(uids[0])
        if self._inbox is not None:
            self._inbox.release(self._inbox.held_below(uids))
        if self._write_behind is not None:
            self._write_behind.catch_up()  # else rows would follow those that are removed
        kept_for = unless()
        if kept_for:
            raise StudyLocked(kept_for)
        series = self._index.series_below(uids)
        subjects = self._index.find_subjects(studies=uids[:1])
        self._holds.check(uids[0])  # again: the steps before may have taken long
        files = self._store.take_away(uids)
        if files is None and not series:
            raise NotInArchive("there is no such study, series or instance")
        try:
            # A lock that was set before the study was taken away holds, also if the deletion had begun before.
            self._holds.check(uids[0])
            with self._index_locked():
                instances = self._index.remove_below(uids)
        except BaseException:
            if files is not None:
                self._put_back(files)
            raise
        if not instances and files is None:
            raise NotInArchive("there is no such instance")
        self._store.removed.remove_empty(uids)
        return Deleted(uids, tuple(series), instances, files, subjects[0][2] if subjects else Subject(uids[0]))

    @contextmanager
    def _index_locked(self) -> Iterator[None]:
        with nullcontext() if self._journal is None else self._journal.index_lock():
            yield

    def _put_back(self, files: Removed) -> None:
        try:
            self._store.removed.put_back(files)
        except OSError as error:
            # The file system cannot be written. The next start compares files and index.
            self.log.error(
                "{uids} has rows, and its files are in {path}: {reason}",
                uids="/".join(files.uids),
                path=files.path,
                reason=loggable(error),
            )
