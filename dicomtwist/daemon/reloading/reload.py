"""
Reload at SIGHUP: a running ``twist dicom`` reads its options, peers, rules, users and certificates again, and applies all that
can change without a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.daemon.archive_service import ArchiveService
from dicomtwist.daemon.configuration import given_options
from dicomtwist.daemon.http import change_http
from dicomtwist.daemon.journals.options import change_audit, change_records
from dicomtwist.daemon.options import Options
from dicomtwist.daemon.reloading.changes import Changes, changes
from dicomtwist.trace import trace, untrace

__all__ = ["Reloading"]


@dataclass
class Reloading:
    """
    Reloads the options of a service, all or nothing. Associations go on.

    :ivar options: the options that the process was started with.
    :ivar service: the service.
    :ivar http: its HTTP server, ``None`` without one.
    :ivar then: called after a successful reload.
    :ivar in_force: the options of the last reload.
    """

    options: Options
    service: ArchiveService
    http: Any = None
    then: Callable[[], None] = lambda: None
    in_force: Options = field(init=False)
    _values: Mapping[str, Any] = field(init=False)
    _restart: Collection[str] = field(default=(), init=False)
    _under_way: Deferred[None] = field(default_factory=lambda: succeed(None), init=False)

    log = Logger()

    def __post_init__(self) -> None:
        self.in_force = self.options
        self._values = self.options.by_name

    def reload(self) -> Deferred[None]:
        """
        Reload. If there is a mistake, it is logged and nothing changes.

        :returns: a Deferred that fires with ``None`` when this reload is done; reloads are done one after another.
        """
        self._under_way.addCallback(lambda _: Deferred.fromCoroutine(self._reload())).addErrback(self._failed)
        done: Deferred[None] = Deferred()
        self._under_way.addCallback(done.callback)
        return done

    async def _reload(self) -> None:
        executor = self.options.ae.executors.housekeeping
        found, endpoints = await executor.run_admitted(self._read_all)
        await self.service.relisten(endpoints)
        forwarding = self.service.forwarding
        if forwarding is not None:
            await forwarding.reload(found)
        # Nothing of the rest can fail, and no event comes between.
        access = self.service.archive_server.access
        if access is not None:
            access.change(found.policy, self.service.server)
        self.options.peers.change(found.peers)
        if forwarding is not None:
            forwarding.reconnect()
        self.service.archive_server.retention.policy = found.configuration.retention
        changed = changes(self._values, found.by_name)
        self._apply(found, changed)
        self.in_force, self._values, self._restart = found, changed.values, changed.restart
        self.log.info(
            "reloaded the rules ({rules}), the users ({users}), the peers ({peers}) and the certificates of ports ({ports})",
            rules=len(found.policy.rules),
            users=0 if found.policy.users is None else len(found.policy.users),
            peers=len(self.options.peers),
            ports=len(endpoints),
        )
        if changed.applied:
            self.log.info("changed, and applied: {names}", names=", ".join(changed.applied))
        if changed.restart and self.options.worker is None:
            self.log.warn("changed, but needs a restart: {names}", names=", ".join(changed.restart))
        self.then()

    def _read_all(self) -> tuple[Options, dict[int, IStreamServerEndpoint]]:
        found = self.options.read_again()
        return found, self.options.sockets.endpoints_with_files()

    def _apply(self, found: Options, changed: Changes) -> None:
        """Apply the options that have changed; *found* has checked values."""
        service, ae, server = self.service, self.options.ae, self.service.archive_server
        names = set(changed.applied)
        found.set_settings(ae.settings)
        server.archive.duplicates = found["duplicates"]
        server.archive.keep_free(found["min-free"])
        if server.worklist is not None:
            server.worklist.deadline = found["worklist-deadline"]
            if found["worklist"] is not None:
                server.worklist.folder = Path(found["worklist"])
        if "trace" in names:
            (trace if found["trace"] else untrace)(ae)
        if self.http is not None:
            change_http(self.http, found, ae.settings)
        service.grace = found["grace"]
        service.change_warnings(found["lag-warning"], found["executor-warning"])
        if self.options.log_file is not None:
            self.options.log_file.change(found["log-format"], found["log-level"], found["log-rate"])
        if names & {"records", "records-size"}:
            service.journals = change_records(found, ae, self.http, service.journals)
        if names & {"audit", "audit-source"}:
            service.journals = change_audit(self.options, found, server, self.http, service.journals)

    def command_line(self) -> tuple[list[str], int]:
        """
        Return the arguments of a worker process, and how many of them are those of the configuration file that are in force:
        an option that needs a restart is as it was at the start.
        """
        start, now = self.options.configuration, self.in_force.configuration
        options = {name: values for name, values in now.options.items() if name not in self._restart}
        options |= {name: values for name, values in start.options.items() if name in self._restart}
        given = self.options.given
        ahead = replace(now, options=options).options_except(given_options(self.options, given))
        return [*ahead, *given], len(ahead)

    def _failed(self, reason: Failure) -> None:
        if reason.check(ValueError, OSError):
            self.log.error("the reload failed, nothing is changed: {reason}", reason=reason.getErrorMessage())
        else:
            self.log.failure("the reload failed, nothing is changed", reason)
