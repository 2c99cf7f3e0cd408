"""
``twist dicom``: its options, and the service that is made from them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred

try:
    from dicomtwist.archive.server import ArchiveServer
    from dicomtwist.daemon.archive_service import ArchiveService
    from dicomtwist.daemon.options import Options
except ModuleNotFoundError as error:
    if error.name != "sqlalchemy":
        raise
    raise SystemExit('twist dicom needs SQLAlchemy: pip install "dicomtwist[archive]"') from None
from dicomtwist.daemon.http import make_http
from dicomtwist.daemon.journals.audit import AuditJournal
from dicomtwist.daemon.journals.options import make_journals
from dicomtwist.daemon.notify import Notifier
from dicomtwist.daemon.processes.siblings import Alone, Asker
from dicomtwist.daemon.reloading.reload import Reloading
from dicomtwist.daemon.signals import exit_with_words, limit_stop, take_signals
from dicomtwist.daemon.supervisor import SupervisorService, WorkerService
from dicomtwist.daemon.workers import WorkerLink, Workers, WorkerSpec, worker_command
from dicomtwist.pixels.pool import Pixels
from dicomtwist.pixels.syntaxes import is_available
from dicomtwist.runtime.memory import freeze_startup_objects, retain_heap
from dicomtwist.runtime.read_dispatch import dispatch_reads_directly

__all__ = ["Options", "makeService"]


def makeService(options: Options, received: Sequence[int] = ()) -> IService:
    """
    Make the service of ``twist dicom``.

    :param received: the signals that the process has received since it was started; they are handled when the reactor runs.
    """
    # pydicom's warnings quote wrong values, which would put data of patients into the log.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(pydicom|dicomtwist)\b")
    ae = options.ae
    worker = options.worker
    server = ArchiveServer(
        *(ae, options.archive, options.peers),
        policy=options.policy,
        worklist=_folder(options, "worklist"),
        worklist_deadline=options["worklist-deadline"],
        takes_up=worker is None,
        pixels=_pixels(options),
    )
    server.retention.policy = options.configuration.retention
    http = make_http(options, server)
    kind = WorkerService if worker else SupervisorService if options["workers"] > 1 else ArchiveService
    service = kind(
        *(server, options.endpoints),
        grace=options["grace"],
        import_from=None if worker else _folder(options, "import"),
        lag_warning=options["lag-warning"],
        executor_warning=options["executor-warning"],
        http=http,
    )
    reloading = Reloading(options, service, http)
    link = None if worker is None else WorkerLink(ae.reactor)
    # A worker has the environment of its supervisor, which speaks for both.
    notifier = Notifier(os.environ if worker is None else {})
    if isinstance(service, SupervisorService):
        service.set_workers(lambda clean_up: _workers(options, reloading, clean_up, notifier.ready))
        reloading.then = service.workers.reload
        siblings: Asker = service.workers.siblings
    else:
        siblings = Alone() if link is None else link.siblings
    if options.receipt is not None:
        # Its imports take a while, which a server without a configuration need not wait for.
        from dicomtwist.daemon.forwarding.service import ForwardingService

        forwarding = service.forwarding = ForwardingService(
            *(options, server, options.receipt, siblings), delivers=worker is None
        )
        if http is not None:
            http.services.queue = forwarding.queue
            if forwarding.forwarder is not None:
                http.services.monitor.forwarding = forwarding.metrics
    if http is not None:
        _connect(http.services, service, siblings, worker)
    service.journals = make_journals(options, server, http)
    if service.forwarding is not None:
        service.forwarding.trail = next((one.trail for one in service.journals if isinstance(one, AuditJournal)), None)
    service.at_start = partial(_take_over_process, options, service, reloading, received, link, notifier)
    return service


def _take_over_process(
    options: Options,
    service: ArchiveService,
    reloading: Reloading,
    received: Sequence[int],
    link: WorkerLink | None,
    notifier: Notifier,
) -> None:
    """
    Register what concerns the whole process: signals, the deadline of its stop, its memory, its reactor.

    This happens when the service starts, not when it is made: a program that only makes it keeps its own signals, and is not
    killed by the deadline.
    """
    reactor = options.ae.reactor
    reload = _when_started(service, partial(notifier.during, reloading.reload))
    reopen_log = partial(_reopen_log, options, service)
    service.at_begun = lambda: take_signals(
        *(reactor, reload, service.log_vitals, reopen_log, received), is_starting=lambda: service.is_starting
    )
    service.at_failed = exit_with_words(reactor)
    service.at_drained = limit_stop(reactor, lambda: service.grace)
    reactor.callWhenRunning(notifier.starting, reactor)
    reactor.addSystemEventTrigger("before", "shutdown", notifier.stopping)
    reactor.callWhenRunning(freeze_startup_objects)
    reactor.callWhenRunning(retain_heap)
    reactor.callWhenRunning(dispatch_reads_directly, reactor)
    if options.worker is not None and link is not None:
        service.at_listening = partial(options.worker.begin, reactor, link)
    elif not isinstance(service, SupervisorService):
        service.at_listening = notifier.ready


def _when_started(service: ArchiveService, function: Callable[[], Any]) -> Callable[[], None]:
    """Return a function that calls *function*, but once when the start has ended for all calls during it."""
    is_waiting = False

    def call(_: None = None) -> None:
        nonlocal is_waiting
        is_waiting = False
        function()

    def begin() -> None:
        nonlocal is_waiting
        if not is_waiting:
            is_waiting = True
            service.when_started().addCallback(call)

    return begin


def _reopen_log(options: Options, service: ArchiveService) -> None:
    """Open the log file and those of journals again, in this process and in its workers."""
    if options.log_file is not None:
        options.log_file.reopen()
    for journal in service.journals:
        journal.reopen()
    if isinstance(service, SupervisorService):
        service.workers.reopen_logs()


def _pixels(options: Options) -> Pixels | None:
    """Return the processes that convert images, ``None`` without any, or without the extra ``pixels``."""
    processes = options["image-processes"]
    if not processes or not is_available():
        return None
    return Pixels(options.ae.reactor, processes=processes)


def _connect(services: Any, service: ArchiveService, siblings: Asker, worker: WorkerSpec | None) -> None:
    """Have the site show the figures of all processes, those of *service* among them."""
    monitor = services.monitor
    monitor.service = service
    monitor.ask_others = siblings.ask
    siblings.answers["metrics"] = lambda: Deferred.fromCoroutine(monitor.collect())
    siblings.answers.update(services.overview.answers)
    if isinstance(service, SupervisorService):
        monitor.name = "supervisor"
    elif worker is not None:
        monitor.name = worker.name


def _folder(options: Options, name: str) -> Path | None:
    return None if options[name] is None else Path(options[name])


def _workers(
    options: Options, reloading: Reloading, clean_up: Callable[[str], Deferred[Any]], on_ready: Callable[[], object]
) -> Workers:
    ae = options.ae
    twist: Any = options.parent
    if twist is not None and options.log_file is not None:
        # Workers choose format and level themselves, as this process has done.
        given = options.log_file.given
        twist = {**twist, "logFormat": given.format, "logLevel": given.level}

    def command() -> tuple[list[str], int]:
        arguments, ahead = reloading.command_line()
        return worker_command(twist, arguments), ahead

    return Workers(
        *(ae.reactor, options["workers"], command, options.sockets.descriptions),
        lambda: [options.archive.index.lock, *options.sockets.filenos()],
        grace=options["grace"],
        clean_up=clean_up,
        on_ready=on_ready,
    )
