"""
The Query/Retrieve Service Class: C-FIND, C-MOVE and C-GET of the archive (PS3.4 Annex C).

Queries are answered from the index, in pages that worker threads read as fast as the peer takes the answers. Instances are
sent directly from their files.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from pydicom import Dataset
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.index import IndexFailed
from dicomtwist.archive.query.compiler import InvalidIdentifier, Model, Negotiated
from dicomtwist.archive.query.search import Finder, Found, StoredInstance, TooManyMatches
from dicomtwist.dimse.status import (
    CANNOT_COUNT_MATCHES,
    DATASET_MISMATCH,
    OUT_OF_RESOURCES,
    PENDING,
    PENDING_WARNING,
    Status,
)
from dicomtwist.errors import DataSetError, ExecutorFull, Refused, loggable
from dicomtwist.runtime.executors import Executor
from dicomtwist.runtime.networks import host_of
from dicomtwist.scp.dispatch import Route
from dicomtwist.scp.move_destination import contexts_for
from dicomtwist.sop_class import (
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    PatientStudyOnlyQueryRetrieveInformationModelFind,
    PatientStudyOnlyQueryRetrieveInformationModelGet,
    PatientStudyOnlyQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)
from dicomtwist.transport.peer_directory import Peers

__all__ = ["QueryRetrieve"]

_FIND: Final = {
    str(PatientRootQueryRetrieveInformationModelFind): Model.PATIENT_ROOT,
    str(StudyRootQueryRetrieveInformationModelFind): Model.STUDY_ROOT,
    str(PatientStudyOnlyQueryRetrieveInformationModelFind): Model.PATIENT_STUDY_ONLY,
}
_MOVE: Final = {
    str(PatientRootQueryRetrieveInformationModelMove): Model.PATIENT_ROOT,
    str(StudyRootQueryRetrieveInformationModelMove): Model.STUDY_ROOT,
    str(PatientStudyOnlyQueryRetrieveInformationModelMove): Model.PATIENT_STUDY_ONLY,
}
_GET: Final = {
    str(PatientRootQueryRetrieveInformationModelGet): Model.PATIENT_ROOT,
    str(StudyRootQueryRetrieveInformationModelGet): Model.STUDY_ROOT,
    str(PatientStudyOnlyQueryRetrieveInformationModelGet): Model.PATIENT_STUDY_ONLY,
}
_MODELS: Final = {**_FIND, **_MOVE, **_GET}

#: The bytes of the application information that may be 1. For C-FIND these are relational queries, date-time matching, fuzzy
#: names, timezone adjustment and empty values (PS3.4 table C.5-1); for C-MOVE and C-GET relational retrieval (table C.5-3).
_FIND_OPTIONS: Final = b"\1\1\1\1\0\1"
_RETRIEVE_OPTIONS: Final = b"\1"


class QueryRetrieve:
    """
    An SCP of the three information models.

    :param archive: the archive, open.
    :param executor: the threads that read the index; the caller holds it while the object is used.
    :param ae_title: Retrieve AE Title (0008,0054) of the answers.
    :param peers: the addresses of the destinations of C-MOVE.

    :ivar routes: the requests that it performs.
    """

    log = Logger()

    def __init__(self, archive: Archive, executor: Executor, ae_title: str, peers: Peers) -> None:
        self._finder = Finder(archive, executor, ae_title)
        self._peers = peers
        self.routes = (
            *(Route(evt.EVT_C_FIND, model, self.handle_find) for model in _FIND),
            *(Route(evt.EVT_C_MOVE, model, self.handle_move) for model in _MOVE),
            *(Route(evt.EVT_C_GET, model, self.handle_get) for model in _GET),
        )

    def start(self) -> None:
        """Prepare the threads and the database for the first query."""
        self._finder.warm_up().addErrback(self._not_warm)

    def _not_warm(self, reason: Failure) -> None:
        # A query that fails for the same reason gives it to its peer and to the log.
        reason.trap(IndexFailed, ExecutorFull)

    def stop(self) -> Deferred[None]:
        """Do nothing: operations end with their associations."""
        return succeed(None)

    # --- handlers

    def handle_extended(self, event: evt.Event) -> dict[str, bytes]:
        """Accept the supported options of the extended negotiation (PS3.4 C.5.1.1, C.5.2.1, C.5.3.1)."""
        return {
            uid: bytes(wanted & known for wanted, known in zip(information, _options(uid), strict=False))
            for uid, information in event.app_info.items()
            if uid in _MODELS
        }

    async def handle_find(self, event: evt.IdentifierEvent) -> AsyncIterator[tuple[int, Any]]:
        """
        Perform a query.

        :returns: yields a status and a list of encoded identifiers for each page of matches. The status is 0xFF00, or 0xFF01
            if a key is not supported. The operation ends with 0xA900 if the identifier is invalid, or with 0xA700 if the
            index cannot be read.
        """
        syntax = str(event.context.transfer_syntax)
        try:
            found = await self._finder.find(
                event.identifier, _model(event), syntax, _negotiated(event), peer=host_of(event.assoc.remote.address)
            )
            status = PENDING_WARNING if found.unsupported else PENDING
            async for page in found.pages():
                yield status, page
        except (InvalidIdentifier, DataSetError, IndexFailed, ExecutorFull) as error:
            status = self._failed(event, error, OUT_OF_RESOURCES)
            if not isinstance(error, IndexFailed | ExecutorFull) or isinstance(error, TooManyMatches):
                # A retrieval that is refused is logged by its own service, which raises.
                event.assoc.log_refusal(
                    self.log.info,
                    "C-FIND of {peer!r} refused with 0x{status:04X}: {why}",
                    peer=event.assoc.remote.ae_title,
                    status=int(status),
                    why=_without_value(status.error_comment or ""),
                )
            yield status, None

    async def handle_get(self, event: evt.IdentifierEvent) -> AsyncIterator[Any]:
        """
        Send the instances that an identifier names over the association of the request.

        :returns: yields the number of instances, then lists of instances, which are paths; or ends with 0xA900 or 0xA701.
        """
        try:
            found = await self._retrieve(event)
            yield found.total
            async for page in found.pages():
                yield PENDING, page
        except (InvalidIdentifier, DataSetError, IndexFailed, ExecutorFull) as error:
            status = self._failed(event, error, CANNOT_COUNT_MATCHES)
            raise Refused(status, status.error_comment or "") from None

    async def handle_move(self, event: evt.IdentifierEvent) -> AsyncIterator[Any]:
        """
        Send the instances that an identifier names to one of the peers.

        :returns: yields the address of the peer, ``None`` if it is not known; then the number of instances; then lists of
            instances, which are paths. Or it ends with 0xA900 or 0xA701.
        """
        destination = self._peers.destination(event.move_destination)
        if destination is None:
            event.assoc.log_refusal(
                self.log.info,
                "C-MOVE of {peer!r} to the unknown destination {destination!r}: name its address with --peer, or in the table"
                " peers of the configuration file",
                peer=event.assoc.remote.ae_title,
                destination=event.move_destination[:16],
            )
            yield None
            return
        try:
            found = await self._retrieve(event)
            pages = found.pages()
            first: list[StoredInstance] = await anext(pages, [])
            place = destination if isinstance(destination, tuple) else (destination, None)
            # Contexts beyond the limit, and those of later pages, are proposed when one of their instances is to be sent.
            contexts = contexts_for(
                ((instance.sop_class_uid, instance.transfer_syntax) for instance in first), event.assoc.ae.transcoder
            )
            yield *place, {"contexts": contexts} if first else {}
            yield found.total
            yield PENDING, first
            async for page in pages:
                yield PENDING, page
        except (InvalidIdentifier, DataSetError, IndexFailed, ExecutorFull) as error:
            status = self._failed(event, error, CANNOT_COUNT_MATCHES)
            raise Refused(status, status.error_comment or "") from None

    async def _retrieve(self, event: evt.IdentifierEvent) -> Found[StoredInstance]:
        found = await self._finder.retrieve(
            event.identifier, _model(event), _negotiated(event), peer=host_of(event.assoc.remote.address)
        )
        for uid in _studies(event.identifier):
            event.assoc.note_study(uid)
        return found

    def _failed(self, event: evt.IdentifierEvent, error: Exception, unreadable: int) -> Status:
        """Return the status for *error*; log the error unless the request is at fault."""
        service = event.request.SERVICE
        if isinstance(error, InvalidIdentifier):
            return Status(error.status, service, error.comment)
        if isinstance(error, DataSetError):
            return Status(DATASET_MISMATCH, service, "the identifier cannot be read")
        if isinstance(error, TooManyMatches):
            return Status(unreadable, service, str(error)[:64])
        event.assoc.log_refusal(
            self.log.error, "{service} cannot be answered: {error}", service=service, error=loggable(error)
        )
        comment = "too many queries wait" if isinstance(error, ExecutorFull) else "the index cannot be read"
        return Status(unreadable, service, comment)


def _without_value(comment: str) -> str:
    """Return an Error Comment for the log: the value of a key, which may be data of a patient, is only for the peer."""
    words, quote, _ = comment.partition("'")
    return f"{words.rstrip(': ')}: an invalid value" if quote else comment


def _studies(identifier: Dataset) -> list[str]:
    """Return the Study Instance UIDs of the *identifier* of a retrieval."""
    value = identifier.get("StudyInstanceUID")
    return [] if not value else [str(value)] if isinstance(value, str) else [str(uid) for uid in value]


def _options(model: str) -> bytes:
    return _FIND_OPTIONS if model in _FIND else _RETRIEVE_OPTIONS


def _model(event: evt.IdentifierEvent) -> Model:
    return _MODELS[str(event.context.abstract_syntax)]


def _negotiated(event: evt.IdentifierEvent) -> Negotiated:
    agreed: Mapping[str, bytes] = event.assoc.acceptor.sop_class_extended
    return Negotiated.from_bytes(agreed.get(str(event.context.abstract_syntax), b""))
