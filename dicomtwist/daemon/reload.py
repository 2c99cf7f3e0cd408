"""
Reload at SIGHUP: a running ``twist dicom`` reads its configuration file, peers, rules, users and certificates again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.access.enforcement import Access, Policy
from dicomtwist.archive.services.retention import Retention
from dicomtwist.daemon.configuration import Configuration
from dicomtwist.runtime.executors import Executor
from dicomtwist.service import DICOMService
from dicomtwist.transport.listening_sockets import Sockets
from dicomtwist.transport.peer_directory import Peers

__all__ = ["Reloading"]


@dataclass
class Reloading:
    """
    Reloads the configuration of a service, all or nothing. Associations go on.

    :ivar service: the service.
    :ivar executor: the executor that reads files.
    :ivar sockets: the sockets of the service; their endpoint strings name the certificates and revocation lists.
    :ivar access: the access control.
    :ivar peers: the peers.
    :ivar given_peers: the peers of the command line, which take precedence over those of the file.
    :ivar configuration: the configuration that applies.
    :ivar read: reads the configuration file, or returns the configuration that applies if there is no file; it may block.
    :ivar then: called after a successful reload.
    :ivar retention: deletes studies as the configuration says, or ``None``.
    """

    service: DICOMService
    executor: Executor
    sockets: Sockets
    access: Access
    peers: Peers
    given_peers: Sequence[str]
    configuration: Configuration
    read: Callable[[], Configuration]
    then: Callable[[], None] = lambda: None
    retention: Retention | None = None
    _under_way: Deferred[None] = field(default_factory=lambda: succeed(None), init=False)
    _at_start: Configuration = field(init=False)

    log = Logger()

    def __post_init__(self) -> None:
        self._at_start = self.configuration

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
        configuration, policy, endpoints = await self.executor.run_admitted(self._read_all)
        await self.service.relisten(endpoints)
        self.access.change(policy, self.service.server)
        self.configuration = configuration
        if self.retention is not None:
            self.retention.policy = configuration.retention
        self.log.info(
            "reloaded the rules ({rules}), the users ({users}), the peers ({peers}) and the certificates of ports ({ports})",
            rules=len(policy.rules),
            users=0 if policy.users is None else len(policy.users),
            peers=len(self.peers),
            ports=len(endpoints),
        )
        before = self._at_start  # the options that the server runs with
        changed = sorted(
            name
            for name in {*before.options, *configuration.options} - {"peer"}
            if before.options.get(name) != configuration.options.get(name)
        )
        if changed:
            self.log.warn("changed in {path}, but not applied before the next start: {names}", path=str(configuration.path),
                          names=", ".join(changed))  # fmt: skip
        self.then()

    def _read_all(self) -> tuple[Configuration, Policy, dict[int, IStreamServerEndpoint]]:
        configuration = self.read()
        policy = configuration.policy()
        endpoints = self.sockets.endpoints_with_files()
        self.peers.reload([*configuration.options.get("peer", ()), *configuration.peers, *self.given_peers])
        return configuration, policy, endpoints

    def _failed(self, reason: Failure) -> None:
        if reason.check(ValueError, OSError):
            self.log.error("the reload failed, nothing is changed: {reason}", reason=reason.getErrorMessage())
        else:
            self.log.failure("the reload failed, nothing is changed", reason)
