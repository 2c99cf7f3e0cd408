"""
The Storage Service Class: C-STORE into an archive (PS3.4 Annex B).
"""

from __future__ import annotations

import errno
from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from dicomtwist import evt
from dicomtwist.archive.ingest import DataSetMismatch, Ingest, InvalidMeta
from dicomtwist.archive.storage.types import DuplicateInstance, IndexFailed, InvalidUID, StoreError
from dicomtwist.datasets.header_scanner import HeaderError
from dicomtwist.dimse.status import (
    CANNOT_UNDERSTAND,
    DATASET_MISMATCH,
    DUPLICATE_SOP_INSTANCE,
    OUT_OF_RESOURCES,
    Status,
)
from dicomtwist.errors import ExecutorFull, loggable

__all__ = ["StorageService"]

_SUCCESS: Final = Status(0, "C-STORE")


class StorageService:
    """
    An SCP of all Storage SOP Classes: the handler of ``EVT_C_STORE`` for ``twist dicom`` and ``dicomtwist get``.

    :param ingest: the ingest that receives the instances.
    """

    log = Logger()

    def __init__(self, ingest: Ingest) -> None:
        self.ingest = ingest

    @evt.streaming
    def handle_store(self, event: evt.StoreEvent) -> Deferred[Status]:
        """
        Store the instance of *event*.

        :returns: a Deferred with the status: success after the instance is stored
            (:meth:`dicomtwist.archive.archive.Archive.keep`), 0xA900 if command and data set disagree, 0xC000 if the data
            set cannot be understood, 0x0111 if the archive has the instance already and duplicates are rejected, 0xA700 if
            the storage refuses.
        """
        incoming = self.ingest.begin(event.meta, event.stream)
        event.stream.deliver_to(incoming)
        return incoming.result.addCallback(self._status, event)

    def _status(self, error: BaseException | None, event: evt.StoreEvent) -> Status:
        if error is None:
            return _SUCCESS
        status = _status_for(error)
        event.assoc.log_refusal(
            self.log.error,
            "an instance from {peer!r} was not stored, status 0x{status:04X}: {reason}",
            peer=event.assoc.remote.ae_title,
            status=int(status),
            reason=loggable(error),
        )
        return status


def _status_for(error: BaseException) -> Status:
    if isinstance(error, DataSetMismatch):
        return Status(DATASET_MISMATCH, "C-STORE", str(error))
    if isinstance(error, InvalidMeta):
        return Status(CANNOT_UNDERSTAND, "C-STORE", str(error))
    if isinstance(error, InvalidUID):
        return Status(CANNOT_UNDERSTAND, "C-STORE", "a UID in the data set is not valid")
    if isinstance(error, HeaderError):
        return Status(CANNOT_UNDERSTAND, "C-STORE", "the data set cannot be read")
    if isinstance(error, DuplicateInstance):
        return Status(DUPLICATE_SOP_INSTANCE, "C-STORE", "the archive has the instance already")
    if isinstance(error, IndexFailed):
        return Status(OUT_OF_RESOURCES, "C-STORE", str(error)[:64])
    if isinstance(error, ExecutorFull):
        return Status(OUT_OF_RESOURCES, "C-STORE", "too many instances wait to be stored")
    if isinstance(error, OSError) and error.errno is not None:
        return Status(OUT_OF_RESOURCES, "C-STORE", f"storage: {errno.errorcode.get(error.errno, 'error')}")
    if isinstance(error, StoreError):
        return Status(OUT_OF_RESOURCES, "C-STORE", "the storage is closed")
    return Status(OUT_OF_RESOURCES, "C-STORE", "the storage failed")
