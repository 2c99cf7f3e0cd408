"""
The handler of the C-STORE requests of a C-GET or C-MOVE: it checks that an instance was asked for, and stores it in a folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from pydicom import Dataset
from pydicom.multival import MultiValue
from twisted.internet.defer import Deferred

from dicomtwist import Status, evt
from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.index.record import COLUMNS
from dicomtwist.archive.ingest import Ingest
from dicomtwist.archive.instance import Deliver, ReceivedInstance
from dicomtwist.archive.services.storage import StorageService
from dicomtwist.archive.storage.types import Unrequested, check_uids
from dicomtwist.dimse.status import DUPLICATE_SOP_INSTANCE, NOT_AUTHORISED
from dicomtwist.retrieval.folder import Receipt, ReceivingFolder
from dicomtwist.retrieval.results import refusals
from dicomtwist.runtime.executors import Executor

__all__ = ["FolderReceiver", "Requested"]

#: The unique keys of the three lower levels.
UID_KEYS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")

_PATIENT_ID: Final = COLUMNS[Level.PATIENT].index("patient_id")


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


class _Keeper:
    """
    Stores instances without an index; a :class:`~dicomtwist.archive.ingest.Keeper`.

    :ivar requested: the instances that are asked for now.
    :ivar receipt: counts those that have arrived.
    """

    #: There is no index and no inbox.
    unindexed = unsettled = asked = 0
    #: Instances that are retrieved have no tasks.
    tasks = None

    def __init__(self, folder: ReceivingFolder, requested: Requested, receipt: Receipt) -> None:
        self.store = folder.store
        self.requested = requested
        self.receipt = receipt
        self._folder = folder

    def keep_all(self, instances: Sequence[ReceivedInstance], deliver: Deliver) -> None:
        """Store complete instances, see :meth:`dicomtwist.archive.archive.Archive.keep_all`."""
        deliver([(instance, self._kept(instance)) for instance in instances], False)

    def _kept(self, instance: ReceivedInstance) -> BaseException | None:
        """Store an instance; return ``None``, or the error for which it is refused."""
        receipt = self.receipt
        try:
            check_uids(*instance.uids)
            self.requested.check(instance)
            self._folder.keep(instance, receipt)
        except BaseException as error:
            self._folder.drop(instance)
            receipt.refused_uids.add(instance.uids[2])
            return error
        return None

    def move(self) -> None:
        """Do nothing: there is no index."""

    def settle(self) -> None:
        """Do nothing: there is no inbox."""


class FolderReceiver:
    """
    Stores the instances of C-STORE requests in a folder and counts them.

    :param folder: the folder, prepared.
    :param executor: writes the files; the caller acquires and releases it.
    :param requested: the instances that are asked for.
    :param on_stored: called after each instance.
    """

    def __init__(
        self,
        folder: ReceivingFolder,
        executor: Executor,
        requested: Requested | None = None,
        on_stored: Callable[[], object] | None = None,
    ) -> None:
        self._executor = executor
        self._folder = folder
        self._on_stored = on_stored
        self._keeper = _Keeper(folder, requested or Requested(Dataset()), Receipt())
        self._storage = StorageService(Ingest(self._keeper, executor))

    def go_on(self, requested: Requested, receipt: Receipt) -> None:
        """Count the instances of the next request in *receipt*. No instance is under way."""
        self._keeper.requested = requested
        self._keeper.receipt = receipt

    @property
    def ingest(self) -> Ingest:
        """Receives instances that arrive in another way than C-STORE; see :meth:`arrived`."""
        return self._storage.ingest

    def arrived(self, status: Status) -> None:
        """Count an instance that :attr:`ingest` has received; *status* is that with which a C-STORE would be answered."""
        self._count(status, self._keeper.receipt)

    @property
    def receipt(self) -> Receipt:
        """The counts of the instances that have arrived."""
        return self._keeper.receipt

    @property
    def stored(self) -> int:
        """The number of instances that are in the folder, those that were there already included."""
        return self.receipt.stored + self.receipt.existing

    @property
    def failures(self) -> Counter[str]:
        """The number of instances that were refused, by status or reason."""
        return self.receipt.refused

    @property
    def handler(self) -> evt.HandlerTuple:
        """The handler of ``EVT_C_STORE``, for ``evt_handlers``."""
        return evt.EVT_C_STORE, self._store

    def settle(self, *, soon: bool = True) -> Deferred[None]:
        """Have all files named that have arrived, see :meth:`ReceivingFolder.settle`."""
        return self._folder.settle(self._executor, soon=soon)

    @evt.streaming
    def _store(self, event: evt.StoreEvent) -> Any:
        receipt = self._keeper.receipt
        return self._storage.handle_store(event).addCallback(self._count, receipt)

    def _count(self, status: Status, receipt: Receipt) -> Status:
        if not (status.is_success or status.is_warning):
            # The service returns few different statuses, so the counter stays small.
            receipt.refused[str(status)] += 1
        if self._on_stored is not None:
            self._on_stored()
        return status

    def advice(self) -> str:
        """Return why instances were refused and what to do, in words; nothing if none was."""
        return advice(self.failures)


def advice(refused: Counter[str]) -> str:
    """Return why instances were refused and what to do, in words; nothing if none was."""
    words = []
    others: Counter[str] = Counter()
    for reason, count in refused.items():
        status = int(reason.split()[0], 16) if reason.startswith("0x") else None
        if status == DUPLICATE_SOP_INSTANCE and count == 1:
            words.append("1 instance differs from the file that is there already: --overwrite replaces it")
        elif status == DUPLICATE_SOP_INSTANCE:
            words.append(f"{count} instances differ from files that are there already: --overwrite replaces these")
        elif status == NOT_AUTHORISED:
            words.append(f"{count} instance{' was' if count == 1 else 's were'} sent that nobody asked for")
        else:
            others[reason] = count
    return "; ".join([*words, *filter(None, [refusals(others)])])
