"""
Store and forward in a process of ``twist dicom``: tasks of what is received, their delivery, and their queue.

Every process makes tasks of what it receives, and each has the queue. One process delivers: the only one, or the supervisor, so
that the limits of a destination hold for the whole server.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.server import ArchiveServer
from dicomtwist.daemon.forwarding.observed import ForwardingTrail, ObservedSender
from dicomtwist.daemon.forwarding.options import Forwarding
from dicomtwist.daemon.processes.siblings import Asker
from dicomtwist.dicomweb.client.web_client import DICOMwebClient
from dicomtwist.forwarding.delivery.association_sender import AssociationSender
from dicomtwist.forwarding.delivery.interfaces import Sender
from dicomtwist.forwarding.delivery.web_sender import WebSender
from dicomtwist.forwarding.forwarder import GRACE, Forwarder
from dicomtwist.forwarding.operators.explanations import named
from dicomtwist.forwarding.operators.queue import Change, ForwardQueue
from dicomtwist.forwarding.receipt.maker import Receipt
from dicomtwist.forwarding.receipt.removal import UnkeptRemoval
from dicomtwist.forwarding.rules import Destination, ForwardRule
from dicomtwist.forwarding.tasks.store import MAX_FORGOTTEN
from dicomtwist.forwarding.tasks.types import Definition, TaskState
from dicomtwist.scp.dispatch import dispatch
from dicomtwist.sop_class import StorageCommitmentPushModel
from dicomtwist.web.monitoring.definitions import Snapshot

__all__ = ["ArchiveSource", "ForwardingService"]

#: How often the age of tasks is looked at, and finished ones are forgotten, in seconds.
LOOK_EVERY: Final = 60.0
#: The time after which the log warns again of tasks that are too old, in seconds.
WARN_AGAIN: Final = 3600.0
#: The time for which a worker collects before it tells the supervisor that there are new tasks, in seconds.
COLLECT: Final = 0.05


class ArchiveSource:
    """
    The instances of an archive, for delivery.

    :param archive: the archive, open.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def locate(self, study: str, series: str, instance: str) -> str:
        """
        Return the path of the file of an instance. One that is stored, and has no file yet, gets it. It blocks.

        :raises LookupError: the archive does not hold it.
        """
        store = self._archive.store
        self._archive.retrievals.note_opened((study, series, instance))
        if not store.exists(study, series, instance):
            self._archive.make_files()
            if not store.exists(study, series, instance):
                raise LookupError("the archive does not hold the instance any more")
        return store.locate(study, series, instance)


class ForwardingService:
    """
    Store and forward of one process.

    :param options: the options of ``twist dicom``.
    :param server: the archive with its services.
    :param receipt: makes tasks; open while the archive is.
    :param siblings: the other processes.
    :param delivers: whether this process delivers.

    :ivar queue: the queue, for operators.
    :ivar trail: the audit trail, ``None`` without one.
    :ivar forwarder: delivers; ``None`` in a process that does not.
    :ivar removal: removes what is forwarded and not kept.
    """

    log = Logger()

    def __init__(
        self, options: Any, server: ArchiveServer, receipt: Receipt, siblings: Asker, *, delivers: bool
    ) -> None:
        self._options = options
        self._server = server
        self._receipt = receipt
        self._siblings = siblings
        self._forwarding: Forwarding = options.forwarding
        self._reactor = server.ae.reactor
        self._executor = server.ae.executors.forwarding
        self._source = ArchiveSource(server.archive)
        self._looking: Deferred[Any] = succeed(None)
        self._next_look: IDelayedCall | None = None
        self._telling: IDelayedCall | None = None
        self._warned: dict[Destination, float] = {}
        self._is_stopping = False
        self.trail: ForwardingTrail | None = None
        self.warning, self.history = options["forward-warning"], options["forward-history"]
        self.queue = ForwardQueue(self._executor, self._changed)
        self.queue.store, self.queue.rules = receipt.store, receipt.rules
        self.forwarder: Forwarder | None = self._make_forwarder() if delivers else None
        self.removal = UnkeptRemoval(receipt.store, server.archive, server.deletion, server.ae.executors.deletion)
        server.retention.wanted_by.append(receipt.wants)
        receipt.notify = partial(self._executor.call_in_reactor, self.notify)
        if delivers:
            siblings.answers["forwarding"] = self.peers
            siblings.notes |= {"forwarding": self.notify, "forwarding again": self._try_again}
            self.queue.ask_peers = lambda: succeed(self.peers())
        else:
            self.queue.ask_peers = lambda: siblings.ask("forwarding").addCallback(_of_any)

    def _make_forwarder(self) -> Forwarder:
        ae, grace = self._server.ae, self._options["grace"]
        forwarder = Forwarder(
            *(ae, self._receipt.store, self._source, self._connect),
            read_rule=self._read_rule,
            grace=GRACE if grace is None else min(grace, GRACE),
        )
        # A peer may report a commitment on an association of its own. The report has the number of a request, so that no rule
        # has to allow it.
        for entry in dispatch(forwarder.commitments.routes):
            ae.bind(*entry)
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        return forwarder

    def _read_rule(self, definition: Definition) -> ForwardRule:
        return self._forwarding.parse(definition.table)

    def _connect(self, name: str, associations: int) -> Sender:
        peers, forwarder = self._options.peers, self.forwarder
        web = peers.web(name)
        if web is not None:
            client = DICOMwebClient(
                web.url,
                token=web.token or None,
                user=web.user,
                tls=web.tls,
                retries=0,
                reactor=self._reactor,
            )
            return ObservedSender(name, WebSender(client, self._source), lambda: self.trail, is_web=True)
        address = peers.destination(name)
        if address is None or forwarder is None:
            raise LookupError("it is not in [peers]")
        sender = AssociationSender(self._server.ae, address, name, self._source, forwarder.commitments, associations)
        return ObservedSender(name, sender, lambda: self.trail, is_web=False)

    # --- the process

    def start(self) -> None:
        """Deliver, in the process that does."""
        if self.forwarder is not None:
            self.forwarder.startService()
            self._look_later()

    def stop(self) -> Deferred[Any]:
        """
        Stop to deliver.

        :returns: a Deferred that fires when nothing is under way any more.
        """
        self._is_stopping = True
        self.removal.stop()
        for call in (self._next_look, self._telling):
            if call is not None and call.active():
                call.cancel()
        done = succeed(None) if self.forwarder is None else self.forwarder.stopService()
        return done.addBoth(lambda _: self._looking)

    async def reload(self, options: Any) -> None:
        """
        Have the rules, the peers and the times of *options*. Tasks that wait keep the rule that they were made by.

        :raises TasksFailed: the rules cannot be registered; nothing has changed.
        """
        forwarding: Forwarding = options.forwarding
        await self._executor.run(self._receipt.reload, forwarding.rules, forwarding.tables)
        self._forwarding = forwarding
        self.queue.rules = forwarding.rules
        self.warning, self.history = options["forward-warning"], options["forward-history"]

    def reconnect(self) -> None:
        """Use the peers as they are now."""
        if self.forwarder is not None:
            self.forwarder.reload()

    def notify(self) -> None:
        """Note that there are tasks to deliver; in the reactor's thread."""
        if self.forwarder is not None:
            self.forwarder.notify()
        elif self._telling is None and not self._is_stopping:
            self._telling = self._reactor.callLater(COLLECT, self._tell)

    def _changed(self, what: Change) -> None:
        """An operator has changed tasks."""
        if what is not Change.RETRY:
            self.notify()
        elif self.forwarder is None:
            self._siblings.note("forwarding again")
        else:
            self._try_again()

    def _try_again(self) -> None:
        """Deliver, also to destinations that are down: their next attempts are made at once."""
        if self.forwarder is not None:
            for peer in self.forwarder.peers.values():
                peer.breaker.until = 0.0
        self.notify()

    def _tell(self) -> None:
        self._telling = None
        self._siblings.note("forwarding")

    def peers(self) -> dict[str, Any]:
        """Return the state of the peers, as values of JSON."""
        if self.forwarder is None:
            return {}
        return {
            name: {
                "breaker": peer.state().value,
                "said": peer.breaker.said,
                "sent": peer.sent,
                "bytes_sent": peer.bytes_sent,
                "failures": peer.failures,
                "in_hand": peer.in_hand,
                "confirming": peer.confirming,
            }
            for name, peer in self.forwarder.peers.items()
        }

    async def metrics(self) -> Snapshot:
        """Return the metrics of forwarding."""
        rows = [] if self._is_stopping else await self.queue.numbers()
        peers = self.peers()
        return {
            "dicomtwist_forward_tasks": [
                [one["destination"], state.value, one[state.value]] for one in rows for state in TaskState
            ],
            "dicomtwist_forward_oldest_seconds": [[one["destination"], one["oldest_age"] or 0] for one in rows],
            "dicomtwist_forward_sent_total": [[name, peer["sent"]] for name, peer in peers.items()],
            "dicomtwist_forward_sent_bytes_total": [[name, peer["bytes_sent"]] for name, peer in peers.items()],
            "dicomtwist_forward_failures_total": [[name, peer["failures"]] for name, peer in peers.items()],
            "dicomtwist_forward_peer_up": [[name, int(peer["breaker"] == "closed")] for name, peer in peers.items()],
        }

    # --- age

    def _look_later(self) -> None:
        if not self._is_stopping:
            self._next_look = self._reactor.callLater(LOOK_EVERY, self._look)

    def _look(self) -> None:
        def failed(reason: Any) -> None:
            self.log.error("the tasks of forwarding cannot be looked at: {why}", why=reason.getErrorMessage())

        self._looking = Deferred.fromCoroutine(self.look()).addErrback(failed).addCallback(lambda _: self._look_later())

    async def look(self) -> None:
        """
        Warn of tasks that are too old, forget those that were finished long ago, and remove what is forwarded and not kept.
        """
        store = self._receipt.store
        now = time.time()
        if self.warning is not None:
            self._warn(await self._executor.run(store.oldest), now)
        count = MAX_FORGOTTEN
        while count == MAX_FORGOTTEN and not self._is_stopping:
            count = await self._executor.run(store.forget, now - self.history)
        if not self._server.archive.index.is_reading:
            await self.removal.look()

    def _warn(self, oldest: Mapping[Destination, float], now: float) -> None:
        old = {one: now - made_at for one, made_at in oldest.items() if now - made_at > self.warning}
        for destination in [one for one in self._warned if one not in old]:
            del self._warned[destination]
            self.log.info("the tasks of forwarding to {peer} are not too old any more", peer=named(destination))
        for destination, age in old.items():
            if now - self._warned.get(destination, 0.0) >= WARN_AGAIN:
                self._warned[destination] = now
                self.log.warn(
                    "the oldest task of forwarding to {peer} has waited for {log_age} s: see dicomtwist queue list",
                    peer=named(destination),
                    age=age,
                    log_age=round(age),
                )


def _of_any(answers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer of the process that delivers; the others have none."""
    return next((one for one in answers.values() if one), {})
