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
    """One of several processes that serve an archive: files and index were brought together before it started."""

    def _reconcile(self) -> None:
        pass


class SupervisorService(ArchiveService):
    """
    The process that has others serve an archive. It holds the sockets, brings files and index together, takes over folders,
    and sees to what workers leave behind.

    :ivar workers: the others.
    """

    workers: Workers

    def have(self, make: Callable[[Callable[[str], Deferred[Any]]], Workers]) -> None:
        """
        Have workers.

        :param make: makes them; called with what is to be done when one of them has died.
        """
        self.workers = make(self._clean_up)

    def startService(self) -> None:
        """Bring files and index together, take the ports, and have the workers listen."""
        super().startService()
        self.ae.reactor.callWhenRunning(self.workers.start)

    def log_vitals(self) -> None:
        """Have the workers write how they are doing, for it is they who serve."""
        super().log_vitals()
        self.workers.log_vitals()

    def stopService(self) -> Deferred[None]:
        """Stop the workers, then the rest."""
        return self.workers.stop().addBoth(lambda _: super(SupervisorService, self).stopService())

    def _clean_up(self, name: str) -> Deferred[Any]:
        def done(count: int) -> None:
            if count:
                self.log.info("{name} was committing {count} instances: the index agrees", name=name, count=count)

        repairing: Deferred[int] = self.ae.executors.housekeeping.run_admitted(repair, self._receiver.archive, name)
        return repairing.addCallback(done)
