"""
The folder in which ``dicomtwist get`` and ``move --receive`` store instances: Part 10 files, named by their UIDs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from pydicom import Dataset
from pydicom.multival import MultiValue

from dicomtwist import Association, Status, evt
from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.index.record import COLUMNS
from dicomtwist.archive.ingest import Ingest
from dicomtwist.archive.instance import Deliver, ReceivedInstance, same_dataset
from dicomtwist.archive.services.storage import StorageService
from dicomtwist.archive.storage.file_store import InstanceStore
from dicomtwist.archive.storage.types import (
    DuplicateInstance,
    Durability,
    InvalidUID,
    StoreUnusable,
    Unrequested,
    Written,
    check_uids,
)
from dicomtwist.dimse.status import DUPLICATE_SOP_INSTANCE, NOT_AUTHORISED
from dicomtwist.runtime.executors import Executor

__all__ = ["FolderKeeper", "FolderReceiver", "Requested", "open_folder"]

#: The unique keys of the three lower levels.
UID_KEYS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")

_PATIENT_ID = COLUMNS[Level.PATIENT].index("patient_id")


class Requested:
    """
    The instances that a C-GET or C-MOVE asks for, as far as its unique keys say (PS3.4 C.4.2.1.4).

    :param identifier: the identifier of the request. A key with wildcards or without a value says nothing.
    """

    def __init__(self, identifier: Dataset) -> None:
        study, series, instance = (_values(identifier, keyword) for keyword in UID_KEYS)
        self._uids = (study, series, instance)
        self._patients = {value.casefold() for value in _values(identifier, "PatientID")}

    def check(self, instance: ReceivedInstance) -> None:
        """
        Check that an instance is one of them.

        :raises Unrequested: it is not.
        """
        for keyword, wanted, uid in zip(UID_KEYS, self._uids, instance.uids, strict=True):
            if wanted and uid not in wanted:
                raise Unrequested(f"an instance of another {keyword} was asked for")
        if self._patients:
            patient = instance.describe().patient[_PATIENT_ID].strip().casefold()
            if patient not in self._patients:
                raise Unrequested("an instance of another PatientID was asked for")


def _values(identifier: Dataset, keyword: str) -> set[str]:
    value = identifier.get(keyword)
    values = [str(one).strip(" \0") for one in (value if isinstance(value, list | MultiValue) else [value or ""])]
    return set() if any("*" in one or "?" in one for one in values) else {one for one in values if one}


class FolderKeeper:
    """
    Stores instances as files without an index; a :class:`~dicomtwist.archive.ingest.Keeper`.

    A file is either complete or absent. An instance that was not asked for is refused. A file that is there already stays as it
    is: an instance with the same data set counts as stored, another one is refused.

    :param store: the folder, prepared.
    :param requested: the instances that were asked for.
    :param overwrite: whether an instance replaces a file that is there already.
    """

    #: There is no index and no inbox.
    unindexed = unsettled = asked = 0

    def __init__(self, store: InstanceStore, requested: Requested, *, overwrite: bool = False) -> None:
        self.store = store
        self._requested = requested
        self._overwrite = overwrite

    def keep_all(self, instances: Sequence[ReceivedInstance], deliver: Deliver) -> None:
        """Store complete instances, see :meth:`dicomtwist.archive.archive.Archive.keep_all`."""
        deliver([(instance, self._kept(instance)) for instance in instances], False)

    def _kept(self, instance: ReceivedInstance) -> BaseException | None:
        """Store an instance; return ``None``, or the error for which it is refused."""
        store, content = self.store, instance.content
        try:
            check_uids(*instance.uids)
            self._requested.check(instance)
            if not self._overwrite and store.exists(*instance.uids):
                if not same_dataset(store, instance):
                    raise DuplicateInstance("a file of this name is there already, with another data set")
                if isinstance(content, Written):
                    store.remove(content.path)
            elif not isinstance(content, Written):
                store.store(content, *instance.uids)
            else:
                store.store_temporary(content, *instance.uids)
        except BaseException as error:
            if isinstance(content, Written) and isinstance(error, Unrequested | DuplicateInstance | InvalidUID):
                store.remove(content.path)
            return error
        return None

    def move(self) -> None:
        """Do nothing: there is no index."""

    def settle(self) -> None:
        """Do nothing: there is no inbox."""


def open_folder(path: str, durability: str, min_free: int = 0) -> InstanceStore:
    """
    Return the folder *path*, which is created if it is missing.

    :param min_free: the bytes that stay free on its disk; with less, instances are refused.

    :raises click.UsageError: the folder cannot be used.
    """
    store = InstanceStore(Path(path), durability=Durability(durability), min_free=min_free)
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
    :param requested: the instances that were asked for.
    :param overwrite: whether an instance replaces a file that is there already.

    :ivar stored: the number of instances that were stored.
    :ivar failures: the number of instances that were refused, by status.
    """

    def __init__(
        self, store: InstanceStore, executor: Executor, requested: Requested, *, overwrite: bool = False
    ) -> None:
        self.stored = 0
        self.failures: Counter[str] = Counter()
        self._storage = StorageService(Ingest(FolderKeeper(store, requested, overwrite=overwrite), executor))
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

    def advice(self) -> str:
        """Return why instances were refused and what to do, in words; nothing if none was, or for another reason."""
        statuses = {int(status.split()[0], 16): count for status, count in self.failures.items()}
        words = []
        if count := statuses.get(DUPLICATE_SOP_INSTANCE):
            words.append(f"{count} instances differ from files that are there already: --overwrite replaces these")
        if count := statuses.get(NOT_AUTHORISED):
            words.append(f"{count} instances were sent that nobody asked for")
        return "; ".join(words)

    def _count(self, status: Status) -> Status:
        if status.is_success or status.is_warning:
            self.stored += 1
        else:
            self.failures[str(status)] += 1
        return status
