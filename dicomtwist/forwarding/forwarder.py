"""
Forwarder: a service that sends instances to their destinations, by tasks that survive restarts.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Mapping
from functools import partial
from random import random
from secrets import token_hex
from time import time
from typing import TYPE_CHECKING, Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.dicomweb.client.web_client import DICOMwebClient
from dicomtwist.dicomweb.urls import is_url
from dicomtwist.forwarding.delivery.association_sender import AssociationSender
from dicomtwist.forwarding.delivery.confirmation import Commitments
from dicomtwist.forwarding.delivery.interfaces import InstanceSource, Sender, TaskQueue, when_fired
from dicomtwist.forwarding.delivery.lane import Lane
from dicomtwist.forwarding.delivery.outcomes import Outcomes
from dicomtwist.forwarding.delivery.peer import Peer
from dicomtwist.forwarding.delivery.results import delays
from dicomtwist.forwarding.delivery.web_sender import WebSender
from dicomtwist.forwarding.parsing import parse_forward
from dicomtwist.forwarding.rules import Destination, ForwardRule
from dicomtwist.forwarding.tasks.types import Definition, Outcome, Task
from dicomtwist.runtime.executors import Executor
from dicomtwist.transport.peer_address import parse_peer

if TYPE_CHECKING:
    from dicomtwist.ae.ae import AE

__all__ = ["Address", "Forwarder"]

#: Where a peer is: ``"host:port"``, an endpoint string, the URL of a DICOMweb service, (host, port), or an endpoint.
Address = str | tuple[str, int] | IStreamClientEndpoint

#: The time for which claimed tasks belong to this forwarder, in seconds. It extends that while it runs; after a crash another
#: one sends them then.
LEASE: Final = 300.0
#: How often the queue is asked when tasks are due if nobody says that there are new ones, in seconds.
LOOK_EVERY: Final = 15.0
#: The shortest time between two such questions, in seconds.
LOOK_AFTER: Final = 0.02
#: The delay after one that failed.
LOOK_AGAIN: Final = 2.0
#: The time after which a rule that could not be read is read again.
READ_AGAIN: Final = 60.0
#: The time in which instances that are being sent may end when the forwarder stops, in seconds.
GRACE: Final = 10.0


def parse_definition(definition: Definition) -> ForwardRule:
    """
    Return the rule that tasks were made by. A rule that needs a key or a table of values needs a function of your own.

    :raises ValueError: the rule is wrong.
    """
    return parse_forward([dict(definition.table)]).rules[0]


class Forwarder(Service):
    """
    Sends instances to their destinations.

    Each destination has connections of its own and waits for no other one. A destination that is down costs one attempt at a
    time, after pauses of up to a minute. The reference page says what follows from each answer of a peer. Every instance
    arrives at least once.

    It is a Twisted service; or call :meth:`startService` and :meth:`stopService` yourself.

    :param ae: requests the associations, with its settings and its AE title; it has the threads as well.
    :param queue: the tasks, such as a :class:`~dicomtwist.forwarding.tasks.store.TaskStore`; the caller opens and closes it.
    :param source: the instances.
    :param peers: the addresses of the peers by their names, which are their AE titles as well; or a function that makes the
        :class:`~dicomtwist.forwarding.delivery.interfaces.Sender` of a name and a number of connections, and raises
        ``LookupError`` if there is no such peer.
    :param read_rule: makes a rule of its definition in the queue; it is called in a thread, and may raise ``ValueError``.
    :param owner: the name of this forwarder in the leases of tasks; by default one of its own.
    :param lease: the time for which tasks are claimed, in seconds.
    :param grace: the time in which instances that are being sent may end when it stops, in seconds.
    :param clock: returns the time in seconds since 1970.
    :param jitter: returns a number from 0 to 1.

    :ivar commitments: its storage commitments, whose routes a server needs for reports on associations of their own.
    :ivar rules: the rules by number, as far as tasks needed them.
    """

    log = Logger()

    def __init__(
        self,
        ae: AE,
        queue: TaskQueue,
        source: InstanceSource,
        peers: Mapping[str, Address] | Callable[[str, int], Sender],
        *,
        read_rule: Callable[[Definition], ForwardRule] = parse_definition,
        owner: str = "",
        lease: float = LEASE,
        grace: float = GRACE,
        clock: Callable[[], float] = time,
        jitter: Callable[[], float] = random,
        executor: Executor | None = None,
    ) -> None:
        self.ae = ae
        self.reactor = ae.reactor
        self.owner = owner or f"{socket.gethostname()[:64]}:{os.getpid()}:{token_hex(4)}"
        self.now = clock
        self.commitments = Commitments(ae.reactor)
        self.rules: dict[int, ForwardRule] = {}
        self._queue = queue
        self._source = source
        self._connect = peers if callable(peers) else self._connect_to(peers)
        self._read_rule = read_rule
        self._lease = lease
        self._grace = grace
        self._jitter = jitter
        self.delay = delays(jitter)
        self._executor: Executor = executor or ae.executors.forwarding
        self._outcomes = Outcomes(queue, self._executor, ae.reactor, self._recorded)
        self._peers: dict[str, Peer] = {}
        self._unknown: set[str] = set()
        self._closing: set[Deferred[Any]] = set()
        self._lanes: dict[Destination, Lane] = {}
        self._unread: dict[int, float] = {}
        self._looking: Deferred[None] | None = None
        self._look_again = False
        #: Why the queue could not be asked; empty if it could.
        self._unreadable = ""
        self._looked_at = -LOOK_EVERY
        self._look_timer: Any = None
        self._renewing: Any = None
        self._claims: set[Deferred[Any]] = set()
        self._holds_executors = False

    # --- state

    @property
    def peers(self) -> Mapping[str, Peer]:
        """The peers that something was sent to, or is to be sent to, by name."""
        return self._peers

    @property
    def may_claim(self) -> bool:
        """Whether tasks may be claimed."""
        return bool(self.running) and not self._outcomes.is_full

    # --- IService

    def startService(self) -> None:
        """Start to send."""
        if self.running:
            return
        super().startService()  # type: ignore[no-untyped-call]
        self.ae.executors.acquire()
        self._holds_executors = True
        self._renewing = self.reactor.callLater(self._lease / 3, self._renew)
        self.look_soon()

    def stopService(self) -> Deferred[None]:
        """
        Stop. Instances that are being sent may end in the grace time; the other tasks are given back.

        :returns: a Deferred that fires with ``None`` when nothing is under way any more.
        """
        if not self.running:
            return Deferred.fromCoroutine(self._closed())
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _closed(self) -> None:
        """Do nothing: it is stopped."""

    async def _stop(self) -> None:
        for timer in (self._look_timer, self._renewing):
            if timer is not None and timer.active():
                timer.cancel()
        self._look_timer = self._renewing = None
        for lane in self._lanes.values():
            lane.stop()
        if self._looking is not None:
            self._claims.add(self._looking)
        for peer in self._peers.values():
            peer.stop()
        await DeferredList(
            [
                *(Deferred.fromCoroutine(peer.close(self._grace)) for peer in self._peers.values()),
                *self._closing,
                *map(when_fired, self._claims),
            ],
            consumeErrors=True,
        )
        self._peers.clear()
        self._lanes.clear()
        await self._outcomes.flush()
        try:
            await self._executor.run(self._queue.release, self.owner)
        except Exception as error:
            self.log.error("the tasks of forwarding cannot be given back: {why}; their leases end", why=str(error))
        finally:
            if self._holds_executors:
                self._holds_executors = False
                self.ae.executors.release()

    # --- for users

    def notify(self) -> None:
        """Note that there are new tasks, or that tasks are to be tried again. Call it in the reactor's thread."""
        self.look_soon()

    def reload(self, peers: Mapping[str, Address] | Callable[[str, int], Sender] | None = None) -> None:
        """
        Read the rules again, and connect to the peers again. Instances that are being sent may end in the grace time.

        :param peers: the peers in place of the former ones.
        """
        if peers is not None:
            self._connect = peers if callable(peers) else self._connect_to(peers)
        self.rules = {}
        self._unread.clear()
        self._unknown.clear()
        former, self._peers = self._peers, {}
        for peer in former.values():
            closing = Deferred.fromCoroutine(peer.close(self._grace))
            self._closing.add(closing)
            closing.addErrback(self._log).addCallback(partial(self._peer_closed, closing))
        for lane in self._lanes.values():
            lane.due = {}
        self.look_soon()

    # --- for lanes

    def peer(self, name: str) -> Peer | None:
        """Return a peer, or ``None`` if there is none of that name."""
        peer = self._peers.get(name)
        if peer is not None or name in self._unknown:
            return peer
        associations = self._associations(name)
        try:
            sender = self._connect(name, associations)
        except (LookupError, ValueError) as error:
            self._unknown.add(name)
            self.log.error("there is no peer {name} to forward to: {why}; its tasks wait", name=name, why=str(error))
            return None
        peer = Peer(name, sender, self.ae.executors.retrieval, self.reactor, self._changed, self._jitter)
        self._peers[name] = peer
        self._configure(peer)
        return peer

    def claim(self, destination: Destination, limit: int, rules: Collection[int]) -> Deferred[list[Task]]:
        """Claim tasks of *rules* for *destination*."""
        claiming = self._executor.run(
            self._queue.claim, destination, limit, self.now(), self._lease, self.owner, list(rules)
        )
        self._claims.add(claiming)

        def claimed(result: Any) -> Any:
            self._claims.discard(claiming)
            return [] if isinstance(result, list) and not self.running else result

        return claiming.addBoth(claimed)

    def finished(self, outcome: Outcome) -> None:
        """Record an outcome."""
        self._outcomes.add(outcome)

    def look_soon(self) -> None:
        """Ask the queue when tasks are due."""
        if not self.running:
            return
        if self._looking is not None:
            self._look_again = True
            return
        self._look_in(max(0.0, self._looked_at + LOOK_AFTER - self.reactor.seconds()))

    # --- inside

    def _connect_to(self, addresses: Mapping[str, Address]) -> Callable[[str, int], Sender]:
        def connect(name: str, associations: int) -> Sender:
            address = addresses[name]
            if isinstance(address, str):
                if is_url(address):
                    return WebSender(DICOMwebClient(address, retries=0, reactor=self.reactor), self._source)
                peer = parse_peer(address)
                if not peer.description:
                    address = peer.host, peer.port
            return AssociationSender(self.ae, address, name, self._source, self.commitments, associations)

        return connect

    def _associations(self, name: str) -> int:
        return max((rule.associations for rule in self._rules_of(name)), default=1)

    def _rules_of(self, name: str) -> list[ForwardRule]:
        return [rule for rule in self.rules.values() if any(name in destination for destination in rule.to)]

    def _configure(self, peer: Peer) -> None:
        rates = {rule.name: rule.rate for rule in self._rules_of(peer.name) if rule.rate}
        peer.configure(self._associations(peer.name), rates)

    def _changed(self) -> None:
        """Let the lanes claim: there may be room at a peer."""
        for destination in list(self._lanes):
            lane = self._lanes.get(destination)
            if lane is not None and lane.due:
                lane.advance()

    def _recorded(self, waits: bool) -> None:
        if waits:
            self.look_soon()
        self._changed()

    def _look_in(self, seconds: float) -> None:
        at = self.reactor.seconds() + seconds
        if self._look_timer is not None and self._look_timer.active():
            if self._look_timer.getTime() <= at:
                return
            self._look_timer.cancel()
        self._look_timer = self.reactor.callLater(seconds, self._look)

    def _look(self) -> None:
        self._look_timer = None
        if self._looking is None and self.running:
            looking = Deferred.fromCoroutine(self._ask()).addErrback(self._log)
            if not looking.called:
                self._looking = looking

    async def _ask(self) -> None:
        self._looked_at = self.reactor.seconds()
        self._look_again = False
        wait = LOOK_EVERY
        try:
            found = await self._executor.run(self._queue.due)
            by_destination: dict[Destination, dict[int, float]] = {}
            for one in found:
                by_destination.setdefault(one.destination, {})[one.rule] = one.at
            await self._read_rules({one.rule for one in found})
        except Exception as error:
            if str(error) != self._unreadable:
                self._unreadable = str(error)
                self.log.error("the tasks of forwarding cannot be read: {why}", why=str(error))
            wait = LOOK_AGAIN
            by_destination = {}
        else:
            if self._unreadable:
                self._unreadable = ""
                self.log.info("the tasks of forwarding can be read again")
        self._looking = None
        if not self.running:
            return
        self._look_in(LOOK_AFTER if self._look_again else wait)
        for destination in [one for one in self._lanes if one not in by_destination]:
            self._lanes[destination].due = {}
        for destination, due in by_destination.items():
            lane = self._lanes.get(destination)
            if lane is None:
                lane = self._lanes[destination] = Lane(self, destination)
            lane.take_due(due)

    async def _read_rules(self, numbers: Collection[int]) -> None:
        """Read the rules that tasks need."""
        now = self.reactor.seconds()
        missing = [one for one in numbers if one not in self.rules and self._unread.get(one, now) <= now]
        if not missing:
            return
        definitions = await self._executor.run(self._queue.definitions)
        for number in missing:
            definition = definitions.get(number)
            try:
                if definition is None:
                    raise ValueError("the queue does not have it")
                self.rules[number] = await self._executor.run(self._read_rule, definition)
            except Exception as error:
                self._unread[number] = now + READ_AGAIN
                name = definition.name if definition is not None else str(number)
                self.log.error("the tasks of the rule {name} wait: {why}", name=name, why=str(error))
        for peer in self._peers.values():
            self._configure(peer)

    def _renew(self) -> None:
        self._renewing = self.reactor.callLater(self._lease / 3, self._renew)
        renewing = self._executor.run(self._queue.renew, self.owner, self.now(), self._lease)

        def failed(reason: Failure) -> None:
            self.log.error("leases of forwarding cannot be extended: {why}", why=reason.getErrorMessage())

        renewing.addErrback(failed)

    def _peer_closed(self, closing: Deferred[None], _: None) -> None:
        self._closing.discard(closing)

    def _log(self, reason: Failure) -> None:
        self.log.failure("in the forwarder", reason)
