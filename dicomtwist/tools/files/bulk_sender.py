"""
Sending many instances: from what a scan finds, over one association or several, to what the peer says of each.

The parts are the *backlog*, where instances wait by what has to be proposed for them; the scan, which fills it and waits
while it is full; and the senders, one for each association at a time, which empty it.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from dicomtwist import (
    AE,
    Association,
    AssociationError,
    DataSetError,
    NoAcceptedContexts,
    NoPresentationContext,
    NotEstablished,
    Status,
)
from dicomtwist.part10 import NotDicomFile
from dicomtwist.pool.retry import is_transient
from dicomtwist.runtime.backoff import Backoff
from dicomtwist.runtime.executors import Executor
from dicomtwist.sop_class import SOPClass
from dicomtwist.tools.client import together
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.contexts import Need, contexts_for, needed_by
from dicomtwist.tools.explain import NO_ASSOCIATION_ERRORS, Cause, cause_of
from dicomtwist.tools.files.file_scanner import Batch, Instance, Scanner
from dicomtwist.ul.items import MAX_PRESENTATION_CONTEXTS

#: How many instances may wait to be sent before the scan waits for them.
MAX_PENDING = 8192
#: How many threads read headers.
SCANNERS = 2
#: How many associations may end without having had anything stored, one after the other, before it is given up.
MAX_FRUITLESS = 3
#: How long to wait for a peer that is gone, after it has stored something: before each further attempt, in seconds.
RECONNECT_DELAYS = Backoff(first=1.0, longest=16.0)
#: The number of these attempts in a row.
MAX_RECONNECTS = 5


class Report(Protocol):
    """Who is told how it goes."""

    def scanned(self, batch: Batch) -> None:
        """Some more files were looked at."""

    def stored(self, instance: Instance, status: Status) -> None:
        """The peer has stored an instance, maybe with a warning."""

    def failed(self, instance: Instance, reason: str) -> None:
        """An instance was not stored, and will not be."""

    def waiting(self, cause: Cause, seconds: float) -> None:
        """There is no association; it is asked for again in *seconds*."""


@dataclass(eq=False)
class Group:
    """
    Instances that can go over one association.

    :ivar needs: what has to be proposed for them, no more than an association has place for.
    :ivar waiting: those that wait, by their own needs.
    """

    needs: dict[Need, None] = field(default_factory=dict)
    waiting: dict[Need, deque[Instance]] = field(default_factory=dict)

    def takes(self, needs: list[Need]) -> bool:
        """Whether there is place for *needs*."""
        return len(self.needs | dict.fromkeys(needs)) <= MAX_PRESENTATION_CONTEXTS

    def take(self, proposed: set[Need] | None = None) -> Instance | None:
        """Return an instance that waits and that one of *proposed* is for, or ``None``."""
        for need, waiting in self.waiting.items():
            if waiting and (proposed is None or need in proposed):
                return waiting.popleft()
        return None


class Backlog:
    """
    The instances that were found and are not sent yet.

    :ivar count: how many they are.
    :ivar complete: whether no more come.
    """

    def __init__(self) -> None:
        self.count = 0
        self.complete = False
        self._groups: list[Group] = []
        self._of: dict[Need, Group] = {}
        self._changed: list[Deferred[None]] = []

    def add(self, instance: Instance) -> None:
        """Have an instance wait; in the group that its SOP Class is in, as far as there is place."""
        group = self._of.get(instance.need)
        if group is None:
            needs = needed_by(instance.need[0], [instance.need[1]])
            group = next((group for group in reversed(self._groups) if group.takes(needs)), None)
            if group is None:
                group = Group()
                self._groups.append(group)
            group.needs.update(dict.fromkeys(needs))
            self._of[instance.need] = group
        group.waiting.setdefault(instance.need, deque()).append(instance)
        self.count += 1

    def take(self, group: Group, proposed: set[Need] | None = None) -> Instance | None:
        """Return an instance of *group* that one of *proposed* is for, or ``None`` where none waits."""
        instance = group.take(proposed)
        if instance is not None:
            self.count -= 1
            if self.count < MAX_PENDING:
                self.wake()
        return instance

    def give_up(self, needs: set[Need] | None = None) -> list[Instance]:
        """Return all that wait, or those with *needs*; they wait no longer."""
        given_up: list[Instance] = []
        for group in self._groups:
            while (instance := group.take(needs)) is not None:
                given_up.append(instance)
        self.count -= len(given_up)
        return given_up

    def busiest(self) -> Group | None:
        """Return the group in which the most wait, ``None`` where none do."""

        def size(group: Group) -> int:
            return sum(map(len, group.waiting.values()))

        group = max(self._groups, key=size, default=None)
        return group if group is not None and size(group) else None

    def wake(self) -> None:
        """Something has changed."""
        changed, self._changed = self._changed, []
        for deferred in changed:
            deferred.callback(None)

    def changed(self) -> Deferred[None]:
        """Return a Deferred that fires when something changes."""
        deferred: Deferred[None] = Deferred()
        self._changed.append(deferred)
        return deferred


@dataclass(eq=False)
class Way:
    """
    An association that instances are sent over.

    :ivar accounted: the size of what was sent over it and is answered, in bytes.
    :ivar in_flight: the size of what is not answered yet.
    :ivar fruits: how many were stored.
    """

    association: Association
    proposed: set[Need]
    accounted: int = 0
    in_flight: int = 0
    fruits: int = 0

    @property
    def under_way(self) -> int:
        """How much of what is in flight has gone out, about."""
        return max(0, min(self.association.bytes_sent - self.accounted, self.in_flight))


class Sender:
    """
    Sends what a scan finds.

    :param connection: to whom and how.
    :param scanner: finds the instances.
    :param report: is told how it goes.
    :param retries: how often an instance is sent again whose association broke.

    :ivar associations: how many there have been.
    :ivar cause: why there were none, or no more.
    :ivar not_sent: how many instances were found and left.
    """

    def __init__(
        self, connection: Connection, ae: AE, scanner: Scanner, report: Report, executor: Executor, retries: int
    ) -> None:
        self._connection = connection
        self._ae = ae
        self._scanner = scanner
        self._report = report
        self._executor = executor
        self._retries = retries
        self._backlog = Backlog()
        self._ways: set[Way] = set()
        self._asking: set[Deferred[Any]] = set()
        self._senders = 0
        self._fruitless = 0
        self._reconnects: int | None = None  # since something was stored last, None before that
        self._stopping = False
        self._refused: dict[Need, str] = {}
        self.associations = 0
        self.cause: Cause | None = None
        self.not_sent = 0

    @property
    def under_way(self) -> int:
        """How many bytes of what is not answered yet have gone out, about."""
        return sum(way.under_way for way in self._ways)

    @property
    def scan_complete(self) -> bool:
        """Whether all files have been looked at."""
        return self._backlog.complete

    async def run(self) -> None:
        """Send everything, or until :meth:`stop` is called."""
        self._senders = self._connection.associations
        try:
            await together(self._scan(), *(self._send() for _ in range(self._senders)))
        finally:
            # Where one of them failed the others are let go as well: nothing goes on behind the caller's back.
            self.abort()
        self.not_sent = len(self._backlog.give_up())

    def stop(self) -> None:
        """Take nothing new; what is in flight is answered first, and the associations are released."""
        self._stopping = True
        for asking in list(self._asking):
            asking.cancel()
        self._backlog.wake()

    def abort(self) -> None:
        """Stop at once: what is in flight is not waited for."""
        self.stop()
        for way in list(self._ways):
            way.association.abort("interrupted")

    # --- the scan

    async def _scan(self) -> None:
        await together(*(self._scan_in_a_thread() for _ in range(SCANNERS)))
        self._backlog.complete = True
        self._backlog.wake()

    async def _scan_in_a_thread(self) -> None:
        while not self._stopping:
            batch = await self._executor.run(self._scanner.next_batch)
            if batch is None:
                return
            self._report.scanned(batch)
            for instance in batch.instances:
                reason = self._refused.get(instance.need)
                if reason is None:
                    self._backlog.add(instance)
                else:
                    self._report.failed(instance, reason)
            self._backlog.wake()
            while self._backlog.count >= MAX_PENDING and not self._stopping:
                await self._backlog.changed()

    # --- the senders

    async def _send(self) -> None:
        try:
            while not self._stopping:
                group = self._backlog.busiest()
                # Not before the scan is done or has come far: until then it is not known what to propose.
                if group is not None and (self._backlog.complete or self._backlog.count >= MAX_PENDING):
                    if not await self._send_group(group):
                        return
                elif self._backlog.complete:
                    return
                else:
                    await self._backlog.changed()
        finally:
            self._senders -= 1

    async def _send_group(self, group: Group) -> bool:
        """Ask for an association for *group* and send over it; return whether to ask for more of them."""
        needs = set(group.needs)
        asking = self._connection.associate(self._ae, contexts_for(group.needs))
        self._asking.add(asking)
        try:
            association = await asking
        except NoAcceptedContexts as error:
            self.associations += 1
            self._refuse(needs, error)
            return True
        except CancelledError:
            return False
        except NO_ASSOCIATION_ERRORS as error:
            return await self._no_association(error)
        finally:
            self._asking.discard(asking)
        self.associations += 1
        way = Way(association, needs)
        self._ways.add(way)
        try:
            await self._send_over(way, group)
        finally:
            self._ways.discard(way)
        return self._bears_fruit(way)

    def _refuse(self, needs: set[Need], error: NoAcceptedContexts) -> None:
        for need in needs:
            self._refused[need] = f"the peer accepts no presentation context for {SOPClass(need[0]).name}"
        for instance in self._backlog.give_up(needs):
            self._report.failed(instance, self._refused[instance.need])
        self.cause = self.cause or cause_of(error, self._connection)
        self._backlog.wake()

    async def _no_association(self, error: Exception) -> bool:
        """
        An association could not be had; return whether to ask again.

        With others at work it is done without. A peer that has stored something and is gone may come back.
        """
        if self._ways or self._stopping or (self._reconnects is None and self._senders > 1):
            return False
        cause = cause_of(error, self._connection)
        if self._reconnects is not None and self._reconnects < MAX_RECONNECTS and is_transient(error):
            self._reconnects += 1
            seconds = RECONNECT_DELAYS(self._reconnects)
            self._report.waiting(cause, seconds)
            return await self._pause(seconds)
        self.cause = cause
        self.stop()
        return False

    async def _pause(self, seconds: float) -> bool:
        """Wait; return whether it was not for nothing."""
        pause: Deferred[None] = deferLater(self._ae.reactor, seconds)
        self._asking.add(pause)
        try:
            await pause
        except CancelledError:
            return False
        finally:
            self._asking.discard(pause)
        return True

    def _bears_fruit(self, way: Way) -> bool:
        if way.fruits:
            self._fruitless = 0
            return True
        end = way.association.end_reason
        if end is None:
            return True  # it was released
        self._fruitless += 1
        if self._fruitless < MAX_FRUITLESS:
            return True
        if not self._stopping:
            self.cause = Cause("ended", f"the peer ends every association: {end}", "the log of the peer says why")
            self.stop()
        return False

    async def _send_over(self, way: Way, group: Group) -> None:
        association = way.association
        # What waits for a change is to notice that the association is over.
        association.when_ended().addCallback(lambda _: self._backlog.wake())
        # Of the requestor: what it may invoke, 0 for any number.
        agreed = association.acceptor.asynchronous_operations[1] if self._connection.async_ops > 1 else 1
        lanes = min(self._connection.async_ops, agreed or self._connection.async_ops)
        await together(*(self._lane(way, group) for _ in range(lanes)))
        try:
            if association.is_established:
                await association.release()
        except (AssociationError, NotEstablished):
            pass  # all that was sent is answered
        await association.when_ended()

    async def _lane(self, way: Way, group: Group) -> None:
        """Send one instance after the other, until there are no more for this association."""
        while not self._stopping and way.association.is_established:
            instance = self._backlog.take(group, way.proposed)
            if instance is not None:
                await self._store(way, instance)
            elif self._backlog.complete or self._backlog.count:
                return  # what waits needs another association
            else:
                await self._backlog.changed()

    async def _store(self, way: Way, instance: Instance) -> None:
        way.in_flight += instance.size
        try:
            status = await way.association.send_c_store(instance.path)
        except NoPresentationContext as error:
            self._report.failed(instance, str(error))
        except (AssociationError, NotEstablished) as error:
            self._broken(instance, error)
        except (OSError, NotDicomFile, DataSetError) as error:
            self._report.failed(instance, getattr(error, "strerror", None) or str(error))
        else:
            if status.is_success or status.is_warning:
                way.fruits += 1
                self._reconnects = 0
                self._report.stored(instance, status)
            else:
                self._report.failed(instance, str(status))
        finally:
            way.in_flight -= instance.size
            way.accounted += instance.size

    def _broken(self, instance: Instance, error: Exception) -> None:
        """The association broke while an instance was on its way: nobody knows whether it has come."""
        instance.attempts += 1
        if instance.attempts <= self._retries and not self._stopping:
            self._backlog.add(instance)
            self._backlog.wake()
        else:
            self._report.failed(instance, str(error))


def count_reasons(reasons: Counter[str], reason: str, most: int) -> None:
    """Count *reason*, among the others where there are *most* already."""
    reasons[reason if reason in reasons or len(reasons) < most else "other reasons"] += 1
