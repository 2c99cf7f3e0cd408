"""
``twist dicom --workers N``: the services of the supervisor and of its workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from dicomtwist.archive.recovery import repair
from dicomtwist.daemon.archive_service import ArchiveService
from dicomtwist.daemon.workers import Workers

__all__ = ["SupervisorService", "WorkerService"]


class WorkerService(ArchiveService):
    """
    One of several processes that serve an archive. Before it starts, the supervisor has reconciled files and index, and has
    logged the version.
    """

    reconciles = False

    def _log_version(self) -> None:
        pass


class SupervisorService(ArchiveService):
    """
    The process that starts and watches the workers of an archive. It holds the sockets, reconciles files and index, imports
    folders, and repairs the index after a worker has died.

    :ivar workers: the workers.
    """

    workers: Workers

    def set_workers(self, make: Callable[[Callable[[str], Deferred[Any]]], Workers]) -> None:
        """
        Set the workers.

        :param make: makes the workers; called with the function that repairs the index after one of them has died.
        """
        self.workers = make(self._clean_up)

    def _open_http(self) -> None:
        """Accept connections of HTTP until the workers do."""
        super()._open_http()
        if self._http is not None:
            self._http.accept()

    def _serve_http(self) -> None:
        """Leave the connections of HTTP to the workers."""
        if self._http is not None:
            self._http.leave()
        super()._serve_http()

    async def _start(self) -> None:
        """Reconcile files and index, open the ports, and start the workers."""
        await super()._start()
        if self._is_started:
            self.workers.start()

    def log_vitals(self) -> None:
        """Log the vital signs, and make each worker log its own, because the workers serve the associations."""
        super().log_vitals()
        self.workers.log_vitals()

    def _stop(self) -> Deferred[Any]:
        """Stop the workers, then the supervisor itself."""
        self.workers.grace = self.grace  # a reload may have changed it
        return self.workers.stop().addBoth(lambda _: super(SupervisorService, self)._stop())

    def _clean_up(self, name: str) -> Deferred[Any]:
        def done(count: int) -> None:
            if count:
                self.log.info(
                    "{name} died while it committed {count} instances: their files and the index agree again",
                    name=name,
                    count=count,
                )

        repairing: Deferred[int] = self.ae.executors.housekeeping.run_admitted(
            repair, self.archive_server.archive, name
        )
        return repairing.addCallback(done)
