"""
Notes of retrievals: when a study is used, and which files are missing.

A file that was removed by hand still has its row, so that searches find an instance that cannot be retrieved. The first
retrieval notices that, and its row is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Final, Protocol, TypeVar

from dicomtwist.archive.index.study_times import StudyTimes
from dicomtwist.archive.storage.file_store import InstanceStore
from dicomtwist.archive.storage.types import InstanceUIDs

__all__ = ["Retrievals"]

#: The missing files that wait for a look; further ones are noticed by the next retrieval.
MAX_MISSING: Final = 10_000


class _Instance(Protocol):
    @property
    def uids(self) -> InstanceUIDs: ...


T = TypeVar("T", bound=_Instance)


class Retrievals:
    """
    Notes the instances that are retrieved, in any thread.

    :param store: the storage.
    :param times: the times of studies.

    :ivar on_missing: called in any thread when a file is missing, or ``None``; :meth:`take_missing` returns it.
    """

    def __init__(self, store: InstanceStore, times: StudyTimes) -> None:
        self.on_missing: Callable[[], object] | None = None
        self._store = store
        self._times = times
        self._lock = Lock()
        self._missing: dict[InstanceUIDs, None] = {}

    def note(self, instances: list[T]) -> list[T]:
        """Note that instances are to be sent, and return them. Each has its file, unless that is missing."""
        exists = self._store.exists
        missing = [one.uids for one in instances if not exists(*one.uids)]
        for study_uid in {one.uids[0] for one in instances}:
            self._times.note_accessed(study_uid)
        if missing:
            self.note_missing(missing)
        return instances

    def note_opened(self, uids: InstanceUIDs) -> None:
        """Note that an instance is opened."""
        self._times.note_accessed(uids[0])

    def note_missing(self, instances: Sequence[InstanceUIDs]) -> None:
        """Note that the files of *instances* are missing; some of them may not be in the archive at all."""
        with self._lock:
            for uids in instances:
                if len(self._missing) < MAX_MISSING:
                    self._missing[uids] = None
        if self.on_missing is not None:
            self.on_missing()

    def take_missing(self) -> list[InstanceUIDs]:
        """Return the instances that are noted as missing, and forget them."""
        with self._lock:
            missing, self._missing = self._missing, {}
        return list(missing)
