"""
An archive and its services, wired in one place, for DIMSE and for every other protocol that gives access to the archive.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pydicom.uid import ExplicitVRLittleEndian
from twisted.internet.defer import Deferred, DeferredList, succeed

from dicomtwist import evt
from dicomtwist.access.enforcement import Access, Policy
from dicomtwist.ae.ae import AE
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.ingest import Ingest
from dicomtwist.archive.query.stored_syntaxes import StoredSyntaxes
from dicomtwist.archive.services.deletion import Deletion
from dicomtwist.archive.services.maintenance import Maintenance
from dicomtwist.archive.services.mpps import PerformedProcedureSteps
from dicomtwist.archive.services.query_retrieve import QueryRetrieve
from dicomtwist.archive.services.retention import Retention
from dicomtwist.archive.services.storage import StorageService
from dicomtwist.archive.services.storage_commitment import StorageCommitment
from dicomtwist.archive.services.worklist import DEADLINE, Worklist
from dicomtwist.pixels.pool import Pixels
from dicomtwist.presentation import DEFAULT_TRANSFER_SYNTAXES
from dicomtwist.scp.dispatch import Provider, dispatch
from dicomtwist.transport.peer_directory import Peers

__all__ = ["ArchiveServer"]

#: The transfer syntaxes of identifiers and attribute lists: Explicit VR first, which keeps the VRs of private elements.
_BY_PREFERENCE = sorted(DEFAULT_TRANSFER_SYNTAXES, key=lambda uid: uid != ExplicitVRLittleEndian)

#: The events of requests with an identifier.
_WITH_IDENTIFIER: Final = (evt.EVT_C_FIND, evt.EVT_C_GET, evt.EVT_C_MOVE)


def _any_window(event: evt.Event) -> tuple[int, int]:
    """Agree to the asynchronous operations window that a requestor proposes; ``maximum_operations`` bounds it."""
    return event.nr_invoked, event.nr_performed


class ArchiveServer:
    """
    An archive with its services. The AE supports the SOP Classes of the services; the caller adds those of storage.

    :param ae: the AE that serves the archive. Its executors run all blocking work of the services.
    :param archive: the archive, open; :meth:`close` closes it.
    :param peers: the addresses of the AEs that the archive sends to.
    :param policy: the access rules; without them any peer may do anything.
    :param worklist: the folder of a modality worklist, if there is one.
    :param worklist_deadline: the time for that folder to be read and searched for a query, in seconds; ``None`` for any time.
    :param takes_up: whether this process reports the storage commitments that the previous run of the program left
        unreported. Of several processes that share an archive one does.
    :param pixels: converts images for peers that do not take them as they are stored; this object stops it. ``None`` for a
        server that sends them as they are stored only.

    :ivar access: the access control, ``None`` without a policy.
    :ivar ingest: receives instances, for every protocol.
    :ivar storage: the Storage Service Class.
    :ivar query_retrieve: the Query/Retrieve Service Class.
    :ivar deletion: deletes studies, series and instances.
    :ivar retention: deletes studies by age, and to keep the archive below a size.
    :ivar maintenance: compares files and index.
    :ivar performed_steps: the SOP Classes of performed procedure steps.
    :ivar storage_commitment: the Storage Commitment Service Class.
    :ivar worklist: the SOP Class of the modality worklist, ``None`` without a folder.
    :ivar providers: the services besides storage.
    :ivar observers: functions that are called with each C-FIND, C-GET and C-MOVE that the rules allow, before it is performed.
    :ivar pixels: decodes, renders and converts images, or ``None``.
    """

    def __init__(
        self,
        ae: AE,
        archive: Archive,
        peers: Peers,
        *,
        policy: Policy | None = None,
        worklist: Path | None = None,
        worklist_deadline: float | None = DEADLINE,
        takes_up: bool = True,
        pixels: Pixels | None = None,
    ) -> None:
        executors = ae.executors
        self.ae = ae
        self.archive = archive
        self.peers = peers
        self.access = None if policy is None else Access(policy, executors.passcodes)
        self.ingest = Ingest(archive, executors.receiving, archive.default_charset)
        self.ingest.on_received = archive.study_times.note_received
        self.storage = StorageService(self.ingest, self.access)
        self.query_retrieve = QueryRetrieve(archive, executors.querying, ae.ae_title, peers)
        self.deletion = Deletion(archive, executors.deletion)
        self.retention = Retention(archive, self.deletion, executors.deletion, is_first=takes_up)
        self.maintenance = Maintenance(archive, executors.deletion)
        self.performed_steps = PerformedProcedureSteps(
            archive.store,
            executors.housekeeping,
            default_charset=archive.default_charset,
            no_room=self.storage.no_room,
        )
        self.storage_commitment = StorageCommitment(
            archive, executors.housekeeping, ae, peers, takes_up=takes_up, no_room=self.storage.no_room
        )
        self.worklist = (
            None
            if worklist is None
            else Worklist(worklist, executors.worklist, worklist_deadline, default_charset=archive.default_charset)
        )
        providers: list[Provider] = [self.query_retrieve, self.performed_steps, self.storage_commitment]
        if self.worklist is not None:
            providers.append(self.worklist)
        self.providers = tuple(providers)
        self.observers: list[Callable[[evt.IdentifierEvent], object]] = []
        self.pixels = pixels
        ae.transcoder = pixels
        self._is_started = False
        ae.bind(evt.EVT_SOP_EXTENDED, self.query_retrieve.handle_extended)
        ae.bind(evt.EVT_ASYNC_OPS, _any_window)
        ae.sendable_syntaxes = StoredSyntaxes(archive, executors.querying, ae.reactor.seconds).of
        for provider in providers:
            for entry in provider.routes:
                ae.add_supported_context(entry.sop_class, _BY_PREFERENCE)

    def handlers(self) -> list[evt.HandlerTuple]:
        """Return the handlers of a server of the AE, behind the access control."""
        provided = [entry for provider in self.providers for entry in provider.routes]
        handlers: list[evt.HandlerTuple] = [(evt.EVT_C_STORE, self.storage.handle_store)]
        for entry in dispatch(provided):
            handlers.append((entry[0], self._observed(entry[1])) if entry[0] in _WITH_IDENTIFIER else entry)
        return handlers if self.access is None else self.access.guarded(handlers)

    def _observed(self, handler: evt.Handler) -> evt.Handler:
        def observe(event: evt.IdentifierEvent) -> Any:
            for observer in self.observers:
                observer(event)
            return handler(event)

        if getattr(handler, "is_decoding", False):
            evt.decoding(observe)
        return observe

    def start(self) -> None:
        """
        Start the services; it may block. The caller calls :meth:`close` even if this fails.

        :raises StoreError: the state that the previous run of the program left cannot be read.
        :raises OSError: as it came, errno intact.
        """
        self._is_started = True
        self.ae.executors.acquire()
        if not self.archive.lacks_room:
            with suppress(OSError):  # without room for a segment in advance, the first instance has to wait for one
                self.archive.move()
        self.deletion.start()
        self.retention.start()
        for provider in self.providers:
            provider.start()

    def stop(self) -> Deferred[None]:
        """Stop the services; the returned Deferred fires with ``None`` when their current work has ended."""
        stopping = [
            self.maintenance.stop(),
            self.retention.stop(),
            self.deletion.stop(),
            *(provider.stop() for provider in self.providers),
        ]
        return DeferredList(stopping).addCallback(lambda _: None)

    def stop_pixels(self) -> Deferred[None]:
        """End the processes that convert images; the returned Deferred fires when they have ended. Associations end before."""
        return succeed(None) if self.pixels is None else self.pixels.stop()

    def close(self) -> None:
        """Close the archive and release the executors; idempotent."""
        self.ingest.stop()
        self.retention.cancel()
        self.stop_pixels()
        if self._is_started:
            self._is_started = False
            self.ae.executors.release()
        self.archive.close()
