"""
The Storage Service Class: C-STORE into an archive (PS3.4 Annex B).
"""

from __future__ import annotations

from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from dicomtwist import evt
from dicomtwist.access.enforcement import Access, requestor_of
from dicomtwist.access.rules import Requestor
from dicomtwist.archive.ingest import DataSetMismatch, IncomingInstance, Ingest, InvalidMeta
from dicomtwist.archive.services.no_room import NoRoomLog, refusal_words
from dicomtwist.archive.storage.types import (
    DuplicateInstance,
    IncompleteInstance,
    IndexFailed,
    InvalidUID,
    ReplacementRefused,
    StoreError,
    Unrequested,
    is_uid,
)
from dicomtwist.datasets.header_scanner import HeaderError
from dicomtwist.dimse.status import (
    CANNOT_UNDERSTAND,
    DATASET_MISMATCH,
    DUPLICATE_SOP_INSTANCE,
    NOT_AUTHORISED,
    OUT_OF_RESOURCES,
    Status,
)
from dicomtwist.errors import ExecutorFull, loggable
from dicomtwist.interfaces import AssociationInterface

__all__ = ["StorageService", "status_for"]

_SUCCESS: Final = Status(0, "C-STORE")


class _Peer:
    """The peer of an association as the sender of an instance."""

    __slots__ = ("_assoc", "_service")

    def __init__(self, service: StorageService, assoc: AssociationInterface) -> None:
        self._service = service
        self._assoc = assoc

    @property
    def requestor(self) -> Requestor:
        """The facts about it that rules are matched against; in the reactor thread, while its association is there."""
        access = self._service.access
        checked = None if access is None else access.requestor_of(self._assoc)
        return requestor_of(self._assoc) if checked is None else checked

    @property
    def may_replace(self) -> bool:
        """Whether the rules allow it to replace instances now."""
        access = self._service.access
        return access is None or access.may_replace(self._assoc)

    def log_replacement(self, message: str, /, **fields: object) -> None:
        """Log that its instance replaced another one."""
        self._log(False, message, fields)

    def log_conflict(self, message: str, /, **fields: object) -> None:
        """Log that its instance disagrees with the index."""
        self._log(True, message, fields)

    def _log(self, bounded: bool, message: str, fields: dict[str, object]) -> None:
        log, remote = self._service.log, self._assoc.remote
        message = f"{{peer!r}} at {{address}}: {message}"
        fields.update(peer=remote.ae_title, address=remote.address)

        def write() -> None:
            if bounded:
                self._assoc.log_refusal(log.warn, message, **fields)
            else:
                # Each replacement is a line, however many there are.
                log.warn(message, association=self._assoc, log_always=True, **fields)

        self._service.ingest.executor.call_in_reactor(write)


class StorageService:
    """
    An SCP of all Storage SOP Classes: the handler of ``EVT_C_STORE`` for ``twist dicom`` and ``dicomtwist get``.

    :param ingest: the ingest that receives the instances.
    :param access: the access control, which knows who may replace stored instances. Without it every peer may.

    :ivar no_room: logs that there is no room, for every protocol.
    """

    log = Logger()

    def __init__(self, ingest: Ingest, access: Access | None = None) -> None:
        self.ingest = ingest
        self.access = access
        self.no_room = NoRoomLog(ingest.archive.store, ingest.executor)

    @evt.streaming
    def handle_store(self, event: evt.StoreEvent) -> Deferred[Status]:
        """
        Store the instance of *event*.

        :returns: a Deferred with the status: success after the instance is stored
            (:meth:`dicomtwist.archive.archive.Archive.keep`), 0xA900 if command and data set disagree, 0xC000 if the data
            set cannot be understood, or is cut off and a better copy is stored, 0x0111 if the archive has the instance already
            and duplicates are rejected, 0x0124 if the peer may not replace it, 0xA700 if the storage refuses.
        """
        incoming = self.ingest.begin(event.meta, event.stream, _Peer(self, event.assoc))
        event.stream.deliver_to(incoming)
        return incoming.result.addCallback(self._status, event, incoming)

    def _status(self, error: BaseException | None, event: evt.StoreEvent, incoming: IncomingInstance) -> Status:
        if error is None:
            event.assoc.note_study(incoming.study_uid)
            return _SUCCESS
        status = status_for(error)
        if self.no_room.takes(error):
            return status
        uid = event.request.affected_sop_instance_uid
        # An invalid UID is not quoted: it may be a patient's name.
        instance = uid if is_uid(uid) else "with an invalid UID"
        if isinstance(error, ReplacementRefused) and self.access is not None:
            self.access.log_refused_replacement(event, f"{error} ({instance})")
            return status
        event.assoc.log_refusal(
            self.log.error,
            "the instance {instance} from {peer!r} was not stored, status 0x{status:04X}: {reason}",
            instance=instance,
            peer=event.assoc.remote.ae_title,
            status=int(status),
            reason=loggable(error),
        )
        return status


def status_for(error: BaseException) -> Status:
    """Return the status of a C-STORE that failed with *error*."""
    if isinstance(error, DataSetMismatch):
        return Status(DATASET_MISMATCH, "C-STORE", str(error))
    if isinstance(error, InvalidMeta):
        return Status(CANNOT_UNDERSTAND, "C-STORE", str(error))
    if isinstance(error, InvalidUID):
        return Status(CANNOT_UNDERSTAND, "C-STORE", "a UID in the data set is not valid")
    if isinstance(error, HeaderError):
        return Status(CANNOT_UNDERSTAND, "C-STORE", _comment(error))
    if isinstance(error, ReplacementRefused):
        return Status(NOT_AUTHORISED, "C-STORE", f"no rule allows replace: {error}"[:64])
    if isinstance(error, IncompleteInstance):
        return Status(CANNOT_UNDERSTAND, "C-STORE", "the data set is cut off, and a better copy is stored")
    if isinstance(error, DuplicateInstance):
        return Status(DUPLICATE_SOP_INSTANCE, "C-STORE", "the archive has the instance already")
    if isinstance(error, Unrequested):
        return Status(NOT_AUTHORISED, "C-STORE", str(error)[:64])
    if isinstance(error, IndexFailed):
        return Status(OUT_OF_RESOURCES, "C-STORE", str(error)[:64])
    if isinstance(error, ExecutorFull):
        return Status(OUT_OF_RESOURCES, "C-STORE", "too many instances wait to be stored")
    if isinstance(error, OSError) and error.errno is not None:
        return Status(OUT_OF_RESOURCES, "C-STORE", refusal_words(error))
    if isinstance(error, StoreError):
        return Status(OUT_OF_RESOURCES, "C-STORE", "the storage is closed")
    return Status(OUT_OF_RESOURCES, "C-STORE", "the storage failed")


def _comment(error: HeaderError) -> str:
    """Return why a data set cannot be read, in an Error Comment's 64 characters."""
    text = str(error)
    return text if len(text) <= 64 else text.partition(" (at byte")[0][:64]
