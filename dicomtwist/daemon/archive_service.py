"""
The service behind ``twist dicom``: a :class:`~dicomtwist.service.DICOMService` with an archive.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint

from dicomtwist import evt
from dicomtwist.access.enforcement import Access
from dicomtwist.ae.ae import AE
from dicomtwist.archive.recovery import Import, Reconciled, import_folder, reconcile
from dicomtwist.archive.storage.types import StoreError
from dicomtwist.scp.dispatch import Provider, combined
from dicomtwist.service import DICOMService


class ArchiveService(DICOMService):
    """
    The service of ``twist dicom``: a :class:`DICOMService` with an archive.

    :param receiver: stores the received instances.
    :param import_from: a folder whose DICOM files are imported while the service runs.
    :param access: the access control; without it any peer may do anything.
    :param lag_warning: as for :class:`DICOMService`.
    :param providers: the service classes that it provides besides storage; their SOP Classes become supported contexts.
    """

    def __init__(
        self,
        ae: AE,
        endpoints: Sequence[str | int | IStreamServerEndpoint],
        receiver: Any,
        *,
        grace: float | None = 10.0,
        import_from: Path | None = None,
        providers: Sequence[Provider] = (),
        access: Access | None = None,
        lag_warning: float | None = 1.0,
    ) -> None:
        provided = [entry for provider in providers for entry in provider.provided]
        handlers: list[evt.HandlerTuple] = [(evt.EVT_C_STORE, receiver.handle_store), *combined(provided)]
        if access is not None:
            handlers = access.guarded(handlers)
        super().__init__(ae, endpoints, evt_handlers=handlers, grace=grace, lag_warning=lag_warning)
        for entry in provided:
            ae.add_supported_context(entry.sop_class)
        self._providers = tuple(providers)
        self._receiver = receiver
        self._import_from = import_from
        self._importing: Deferred[None] = succeed(None)

    def startService(self) -> None:
        """
        Reconcile files and index, then listen.

        An error ends the program with one line. This runs before the reactor does, so it may block.
        """
        self.ae.executors.acquire()
        try:
            self._reconcile()
            for provider in self._providers:
                provider.start()
            super().startService()
        except (CannotListenError, OSError, StoreError) as error:
            self.ae.executors.release()
            self._receiver.archive.close()
            raise SystemExit(f"twist dicom: {error}") from None
        if self._import_from is not None:
            self._importing = self._import(self._import_from)

    def _reconcile(self) -> None:
        def progress(found: Reconciled) -> None:
            self.log.info("{count} files indexed so far", count=found.indexed)

        found = reconcile(self._receiver.archive, progress)
        self.log.info(
            "the archive has {total} instances; at this start {indexed} files were indexed, "
            "{lost} rows without a file removed, {unreadable} files could not be read",
            total=found.instances + found.indexed,
            indexed=found.indexed,
            lost=found.lost,
            unreadable=found.unreadable,
        )
        for name in found.lost_names:
            self.log.error("{name} is missing: it had a row in the index, which was removed", name=name)
        for name in found.unreadable_names:
            self.log.warn("not indexed: {name}", name=name)

    def _import(self, folder: Path) -> Deferred[None]:
        def progress(found: Import) -> None:
            self.log.info("{seen} files examined, {kept} in the archive", seen=found.seen, kept=found.kept)

        def done(found: Import) -> None:
            for reason in found.reasons:
                self.log.warn("not imported: {reason}", reason=reason)
            self.log.info(
                "import of {folder} {how}: {kept} instances in the archive, {skipped} files skipped, {failed} failed",
                folder=str(folder),
                how="ended" if self.running else "interrupted",
                kept=found.kept,
                skipped=found.skipped,
                failed=found.failed,
            )

        running: Deferred[Import] = self.ae.executors.housekeeping.run_admitted(
            import_folder, self._receiver.archive, folder, progress=progress, stopped=lambda: not self.running
        )
        return running.addCallback(done).addErrback(
            lambda reason: self.log.error("the import failed: {reason}", reason=reason.getErrorMessage())
        )

    def stopService(self) -> Deferred[None]:
        """Stop to listen, and close the storage when the last association has ended."""
        stopping = [super().stopService(), *(provider.stop() for provider in self._providers)]
        return DeferredList(stopping).addCallback(lambda _: self._importing).addBoth(self._close)

    def _close(self, result: Any) -> Any:
        self._receiver.stop()
        self.ae.executors.release()
        self._receiver.archive.close()
        return result
