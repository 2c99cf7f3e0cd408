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

from dicomtwist.archive.recovery import Import, Reconciled, import_folder, reconcile
from dicomtwist.archive.server import ArchiveServer
from dicomtwist.archive.storage.types import StoreError
from dicomtwist.service import DICOMService


class ArchiveService(DICOMService):
    """
    The service of ``twist dicom``: a :class:`DICOMService` with an archive.

    :param server: the archive with its services; closed when this service has stopped.
    :param endpoints: as for :class:`DICOMService`.
    :param import_from: a folder whose DICOM files are imported while the service runs.
    :param lag_warning: as for :class:`DICOMService`.

    :ivar archive_server: the archive with its services.
    """

    def __init__(
        self,
        server: ArchiveServer,
        endpoints: Sequence[str | int | IStreamServerEndpoint],
        *,
        grace: float | None = 10.0,
        import_from: Path | None = None,
        lag_warning: float | None = 1.0,
    ) -> None:
        super().__init__(server.ae, endpoints, evt_handlers=server.handlers(), grace=grace, lag_warning=lag_warning)
        self.archive_server = server
        self._import_from = import_from
        self._importing: Deferred[None] = succeed(None)

    def startService(self) -> None:
        """
        Reconcile files and index, then listen.

        An error ends the program with one line. This runs before the reactor does, so it may block.
        """
        try:
            self._reconcile()
            self.archive_server.start()
            super().startService()
        except (CannotListenError, OSError, StoreError) as error:
            self.archive_server.close()
            raise SystemExit(f"twist dicom: {error}") from None
        if self._import_from is not None:
            self._importing = self._import(self._import_from)

    def _reconcile(self) -> None:
        def progress(found: Reconciled) -> None:
            self.log.info("{count} files indexed so far", count=found.indexed)

        found = reconcile(self.archive_server.archive, progress)
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
            import_folder, self.archive_server.archive, folder, progress=progress, stopped=lambda: not self.running
        )
        return running.addCallback(done).addErrback(
            lambda reason: self.log.error("the import failed: {reason}", reason=reason.getErrorMessage())
        )

    def stopService(self) -> Deferred[None]:
        """Stop to listen, and close the storage when the last association has ended."""
        stopping = [super().stopService(), self.archive_server.stop()]
        return DeferredList(stopping).addCallback(lambda _: self._importing).addBoth(self._close)

    def _close(self, result: Any) -> Any:
        self.archive_server.close()
        return result
