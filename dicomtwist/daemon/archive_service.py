"""
The service behind ``twist dicom``: a :class:`~dicomtwist.service.DICOMService` with an archive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IStreamServerEndpoint
from twisted.python.failure import Failure

from dicomtwist import __version__
from dicomtwist.ae.monitor import Vitals
from dicomtwist.ae.server import in_bytes
from dicomtwist.archive.folder_import import Import, import_folder
from dicomtwist.archive.recovery import NotWanted, Reconciled, reconcile
from dicomtwist.archive.server import ArchiveServer
from dicomtwist.archive.storage.types import StoreError, lacks_room
from dicomtwist.daemon.journals.options import Journal
from dicomtwist.service import DICOMService

if TYPE_CHECKING:
    from dicomtwist.daemon.forwarding.service import ForwardingService

#: The time between two attempts to store instances again after there was no room, in seconds.
TRY_AGAIN: Final = 10.0

#: The time that a stop waits beyond the grace of the associations, in seconds, for an import, for reports, for workers.
LATE: Final = 7.0


class HTTPListener(Protocol):
    """The HTTP server of an archive, see :class:`~dicomtwist.web.http.server.HTTPServer`."""

    @property
    def connections(self) -> int:
        """The number of open connections."""

    def start(self, *, is_starting: bool = False) -> None:
        """
        Listen.

        :param is_starting: whether only health and metrics are told, until :meth:`started`.
        """

    def started(self) -> None:
        """Answer all requests."""

    def accept(self) -> None:
        """Accept connections at ports that this process only holds for others."""

    def leave(self) -> None:
        """Leave further connections to the other processes, and close those that are open after their responses."""

    def relisten(self, endpoints: Mapping[int, IStreamServerEndpoint]) -> Deferred[None]:
        """Replace endpoints by others on the same sockets."""

    def shutdown(self, grace: float | None, others: Deferred[Any]) -> Deferred[None]:
        """Stop when *others* has fired: let requests finish for what is left of *grace* seconds, then close all connections."""


class ArchiveService(DICOMService):
    """
    The service of ``twist dicom``: a :class:`DICOMService` with an archive.

    :param server: the archive with its services; closed when this service has stopped.
    :param endpoints: as for :class:`DICOMService`.
    :param import_from: a folder whose DICOM files are imported while the service runs.
    :param lag_warning: as for :class:`DICOMService`, and so is *executor_warning*.
    :param http: the server of HTTP; ``None`` without one.

    :ivar archive_server: the archive with its services.
    :ivar journals: the journals; they are stopped when everything else has ended.
    :ivar forwarding: store and forward, ``None`` if nothing is forwarded.
    :ivar at_start: called first when the service starts, or ``None``; ``twist dicom`` takes over its process there.
    :ivar at_begun: called before files and index are compared, or ``None``; ``twist dicom`` handles signals from there on.
    :ivar at_listening: called when the service listens, or ``None``; the start has ended.
    :ivar at_failed: called with the reason, in words, if the start fails after *at_begun*.
    :ivar at_drained: called during a stop when the associations have ended, or ``None``; ``twist dicom`` limits the rest there.
    """

    at_start: Callable[[], None] | None = None
    at_begun: Callable[[], None] | None = None
    at_listening: Callable[[], None] | None = None
    at_failed: Callable[[str], None] | None = None
    at_drained: Callable[[], None] | None = None
    #: Whether this process compares files and index when it starts.
    reconciles = True

    def __init__(
        self,
        server: ArchiveServer,
        endpoints: Sequence[str | int | IStreamServerEndpoint],
        *,
        grace: float | None = 10.0,
        import_from: Path | None = None,
        lag_warning: float | None = 1.0,
        executor_warning: float | None = 5.0,
        http: HTTPListener | None = None,
    ) -> None:
        super().__init__(
            server.ae,
            endpoints,
            evt_handlers=server.handlers(),
            grace=grace,
            lag_warning=lag_warning,
            executor_warning=executor_warning,
        )
        self.archive_server = server
        self.journals: Sequence[Journal] = ()
        self.forwarding: ForwardingService | None = None
        self._http = http
        self._import_from = import_from
        self._importing: Deferred[None] = succeed(None)
        self._is_stopping = self._is_started = self._start_is_over = False
        self._has_executors = self._has_services = False
        self._starting: Deferred[None] = succeed(None)
        self._waiting_for_start: list[Deferred[None]] = []
        self._next_try: IDelayedCall | None = None
        self._trying: Deferred[None] = succeed(None)
        self._done: Deferred[None] = succeed(None)  # fires when the stop that is under way has ended
        self._late_call: IDelayedCall | None = None

    def startService(self) -> None:
        """
        Tell the health of the server by HTTP, and reconcile files and index in a thread when the reactor runs; then listen.

        An error ends the program with one line. If there is no room on the disk, or it is read-only, the server starts all the
        same, refuses instances, and tries again every :data:`TRY_AGAIN` seconds.

        :raises SystemExit: a port of HTTP cannot be opened.
        """
        if self.at_start is not None:
            self.at_start()
        self._log_version()
        self.ae.executors.acquire()
        self._has_executors = True
        try:
            self._open_http()
        except (CannotListenError, OSError) as error:
            self._close(None)
            raise SystemExit(f"twist dicom: {error}") from None
        self.lag.start()
        for journal in self.journals:
            journal.start()
        if self.at_begun is not None:
            self.at_begun()
        self.ae.reactor.callWhenRunning(self._begin)

    def _open_http(self) -> None:
        if self._http is not None:
            self._http.start(is_starting=True)

    def _serve_http(self) -> None:
        """Answer all requests of HTTP: the archive can be used."""
        if self._http is not None:
            self._http.started()

    @property
    def is_starting(self) -> bool:
        """Whether the start has not ended yet, or has not been given up yet for a stop."""
        return not self._start_is_over

    def when_started(self) -> Deferred[None]:
        """Return a Deferred that fires with ``None`` when the service listens. It does not fire if the start is given up."""
        done: Deferred[None] = Deferred()
        if self._is_started:
            done.callback(None)
        else:
            self._waiting_for_start.append(done)
        return done

    def _begin(self) -> None:
        if self._is_stopping:
            self._start_is_over = True
            return
        self._starting = Deferred.fromCoroutine(self._start()).addErrback(self._cannot_start).addBoth(self._over)

    def _over(self, _: None) -> None:
        self._start_is_over = True

    async def _start(self) -> None:
        archive = self.archive_server.archive
        if self.reconciles and not archive.lacks_room:
            try:
                await self.ae.executors.housekeeping.run_admitted(self._prepare)
            except NotWanted:
                return
            except (OSError, StoreError) as error:
                if not lacks_room(error):
                    raise
                archive.refuse(str(error))
        if self._is_stopping:
            return
        self.archive_server.start()
        self._has_services = True
        super().startService()
        self._serve_http()
        if self.forwarding is not None:
            self.forwarding.start()
        self._is_started = True
        if archive.lacks_room:
            self.log.error(
                "there is no room: the archive can be read, and stores nothing for now: {reason}",
                reason=archive.lacks_room,
            )
            if not archive.index.is_complete:
                self.log.error("a crash left rows of the index that cannot be read before there is room")
            self._try_later()
        else:
            self._warn_of_little_room()
            self._begin_import()
        if self.at_listening is not None:
            self.at_listening()
        waiting, self._waiting_for_start = self._waiting_for_start, []
        for one in waiting:
            one.callback(None)

    def _cannot_start(self, reason: Failure) -> None:
        """End the program, with the words of an error that an operator can do something about."""
        if self._is_stopping:
            return  # the stop has closed what the start needed
        if not reason.check(CannotListenError, OSError, StoreError):
            self.log.failure("the start failed", reason)
        words = f"twist dicom: {reason.getErrorMessage()}"
        if self.at_failed is None:
            self.log.critical("{words}", words=words)
        else:
            self.at_failed(words)

    def _warn_of_little_room(self) -> None:
        """Log that instances will be refused, if less than the storage is to leave is free."""
        store = self.archive_server.archive.store
        with suppress(OSError):
            folder, free = store.room()
            if free < store.min_free:
                self.log.warn(
                    "{folder} has {log_free} free, less than --min-free ({log_min_free}): instances are refused",
                    folder=folder,
                    free=free,
                    log_free=in_bytes(free),
                    log_min_free=in_bytes(store.min_free),
                )

    def vitals(self) -> Vitals:
        """Return the vital signs, with the connections of HTTP if there is a port for it."""
        found = super().vitals()
        return found if self._http is None else replace(found, http_connections=self._http.connections)

    def _log_version(self) -> None:
        self.log.info("dicomtwist {version} starts {title}", version=__version__, title=self.ae.ae_title)

    def _begin_import(self) -> None:
        if self._import_from is not None and not self._is_stopping:
            self._importing = self._import(self._import_from)

    def _try_later(self) -> None:
        if not self._is_stopping:
            self._next_try = self.ae.reactor.callLater(TRY_AGAIN, self._try_again)

    def _try_again(self) -> None:
        trying = self.ae.executors.housekeeping.run_admitted(self.archive_server.archive.try_again, self._reconcile)

        def tried(is_storing: bool) -> None:
            if not is_storing:
                self._try_later()
                return
            self.log.info("there is room again: instances are stored")
            self._begin_import()

        def failed(reason: Failure) -> None:
            self.log.failure("the archive could not be opened again", reason)
            self._try_later()

        self._trying = trying.addCallbacks(tried, failed)

    def _prepare(self) -> None:
        self._reconcile()
        with suppress(OSError):  # then the first instance has to wait for room in the inbox
            self.archive_server.archive.move()

    def _reconcile(self) -> None:
        def progress(found: Reconciled) -> None:
            self.log.info("{count} files indexed so far", count=found.indexed)

        found = reconcile(self.archive_server.archive, progress, is_wanted=lambda: not self._is_stopping)
        self.log.info(
            "the archive has {total} instances; at this start {indexed} files were indexed, "
            "{lost} rows without a file removed, {unreadable} files could not be read",
            total=found.instances + found.indexed,
            indexed=found.indexed,
            lost=found.lost,
            unreadable=found.unreadable,
        )
        if found.deleted:
            self.log.info("{count} instances are gone, whose deletion the previous run had begun", count=found.deleted)
        for name in found.lost_names:
            self.log.error("{name} is missing: it had a row in the index, which was removed", name=name)
        if found.damaged:
            self.log.warn("{count} of the files that were indexed are cut off or damaged", count=found.damaged)
        for name in found.damaged_names:
            self.log.warn("indexed, but not whole: {name}", name=name)
        for name in found.unreadable_names:
            self.log.warn("not indexed: {name}", name=name)

    def _import(self, folder: Path) -> Deferred[None]:
        def progress(found: Import) -> None:
            self.log.info("{seen} files examined, {kept} in the archive", seen=found.seen, kept=found.kept)

        def done(found: Import) -> None:
            for reason in found.reasons:
                self.log.warn("not imported: {reason}", reason=reason)
            for reason in found.damage:
                self.log.warn("imported, but not whole: {reason}", reason=reason)
            if found.damaged:
                self.log.warn("{count} files are in the archive, but not whole", count=found.damaged)
            self.log.info(
                "import of {folder} {how}: {kept} instances in the archive, {skipped} files skipped, {failed} failed",
                folder=str(folder),
                how="interrupted" if self._is_stopping else "ended",
                kept=found.kept,
                skipped=found.skipped,
                failed=found.failed,
            )

        running: Deferred[Import] = self.ae.executors.housekeeping.run_admitted(
            import_folder, self.archive_server.archive, folder, progress=progress, stopped=lambda: self._is_stopping
        )
        return running.addCallback(done).addErrback(
            lambda reason: self.log.error("the import failed: {reason}", reason=reason.getErrorMessage())
        )

    def stopService(self) -> Deferred[None]:
        """
        Stop listening, and close the archive when the last association has ended.

        :returns: a Deferred that fires with ``None`` when that is done, after the grace and :data:`LATE` seconds at the
            latest. Work that is still under way then, such as an import that hangs, is not waited for. Without a limit for the
            associations, the time counts from their end.
        """
        self._is_stopping = True
        done = self._done = Deferred()
        if self.grace is not None:
            self._limit(self.grace if self._is_started else 0.0)
        self._stop().addBoth(self._stopped)
        return done.addBoth(self._close)

    def relisten(self, endpoints: Mapping[int, IStreamServerEndpoint]) -> Deferred[None]:
        """Replace endpoints, see :meth:`DICOMService.relisten`; the indices go on with those of HTTP."""
        count = len(self._endpoints)
        done = super().relisten({index: one for index, one in endpoints.items() if index < count})
        http = self._http
        if http is not None:
            others = {index - count: one for index, one in endpoints.items() if index >= count}
            done.addCallback(lambda _: http.relisten(others))
        return done

    def _stop(self) -> Deferred[Any]:
        """Stop everything but the archive."""
        if self._next_try is not None and self._next_try.active():
            self._next_try.cancel()
        ending: Deferred[Any] = super().stopService()
        if self._http is not None:
            ended: Deferred[None] = Deferred()
            stopping = self._http.shutdown(self.grace, ended)
            ending = DeferredList([ending.addBoth(lambda _: ended.callback(None)), stopping])
        draining = (
            ending.addBoth(lambda _: self._starting)
            .addBoth(self._drained)
            .addBoth(lambda _: self.archive_server.stop_pixels())
        )
        draining.addBoth(lambda _: DeferredList([journal.stop() for journal in self.journals]))
        forwarded = succeed(None)
        if self.forwarding is not None and self._is_started:
            forwarded = self.forwarding.stop()
        stopping = self.archive_server.stop() if self._has_services else succeed(None)
        return DeferredList([draining, stopping, forwarded, self._importing, self._trying])

    def _drained(self, result: Any) -> Any:
        """Note that the associations have ended."""
        if self.grace is None:
            self._limit(0.0)
        if self.at_drained is not None:
            self.at_drained()
        return result

    def _limit(self, grace: float) -> None:
        self._late_call = self.ae.reactor.callLater(grace + LATE, self._late)

    def _stopped(self, _: object) -> None:
        if self._late_call is not None and self._late_call.active():
            self._late_call.cancel()
        if not self._done.called:
            self._done.callback(None)

    def _late(self) -> None:
        self.log.error("the stop is late, and does not wait for what is still under way")
        self._done.callback(None)

    def _close(self, result: Any) -> Any:
        self.archive_server.close()
        if self._has_executors:
            self._has_executors = False
            self.ae.executors.release()
        return result
