"""
The folder in which ``dicomtwist get`` and ``move --receive`` store instances: Part 10 files, named by their UIDs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from dicomtwist import Association, Status, evt
from dicomtwist.archive.ingest import Ingest
from dicomtwist.archive.instance import ReceivedInstance
from dicomtwist.archive.services.storage import StorageService
from dicomtwist.archive.storage.file_store import InstanceStore
from dicomtwist.archive.storage.types import Durability, StoreUnusable, Written, check_uids
from dicomtwist.runtime.executors import Executor

__all__ = ["FolderKeeper", "FolderReceiver", "open_folder"]


class FolderKeeper:
    """
    Stores instances as files without an index; a :class:`~dicomtwist.archive.ingest.Keeper`.

    A file is either complete or absent. An instance that arrives again replaces the first.

    :param store: the folder, prepared.
    """

    #: There is no index.
    unindexed = 0

    def __init__(self, store: InstanceStore) -> None:
        self.store = store

    def keep(self, instance: ReceivedInstance, on_result: Callable[[BaseException | None], None]) -> None:
        """Store a complete instance. The call blocks, and calls *on_result* in this thread."""
        store, content = self.store, instance.content
        error: BaseException | None = None
        try:
            check_uids(*instance.uids)
            if not isinstance(content, Written):
                store.store(content, *instance.uids)
            else:
                store.store_temporary(content, *instance.uids)
        except BaseException as raised:
            error = raised
        on_result(error)

    def keep_all(
        self,
        instances: Sequence[tuple[ReceivedInstance, Callable[[BaseException | None], None]]],
        on_batch_done: Callable[[], None] | None = None,
    ) -> None:
        """Store instances; *on_batch_done* is never called, since this thread stores nothing for other threads."""
        for instance, on_result in instances:
            self.keep(instance, on_result)

    def catch_up(self) -> None:
        """Do nothing: there is no index."""


def open_folder(path: str, durability: str) -> InstanceStore:
    """
    Return the folder *path*, which is created if it is missing.

    :raises click.UsageError: the folder cannot be used.
    """
    store = InstanceStore(Path(path), durability=Durability(durability))
    try:
        store.prepare()
    except StoreUnusable as error:
        raise click.UsageError(str(error)) from None
    return store


class FolderReceiver:
    """
    Stores the instances of C-STORE requests in a folder and counts them.

    :param store: the folder.
    :param executor: writes the files; the caller acquires and releases it.

    :ivar stored: the number of instances that were stored.
    :ivar failures: the number of instances that were refused, by status.
    """

    def __init__(self, store: InstanceStore, executor: Executor) -> None:
        self.stored = 0
        self.failures: Counter[str] = Counter()
        self._storage = StorageService(Ingest(FolderKeeper(store), executor))
        self._under_way = 0
        self.associations: set[Association] = set()

    @property
    def handler(self) -> evt.HandlerTuple:
        """The handler of ``EVT_C_STORE``, for ``evt_handlers``."""
        return evt.EVT_C_STORE, self._store

    @evt.streaming
    def _store(self, event: evt.StoreEvent) -> Any:
        # The service returns few different statuses, so the counter stays small.
        return self._storage.handle_store(event).addCallback(self._count)

    def _count(self, status: Status) -> Status:
        if status.is_success or status.is_warning:
            self.stored += 1
        else:
            self.failures[str(status)] += 1
        return status
