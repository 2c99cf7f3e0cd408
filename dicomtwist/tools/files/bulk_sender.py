"""
Sending many instances over one or several associations.

The scan finds instances and adds them to the *backlog*, which groups them by the presentation contexts that they require;
the scan pauses while the backlog is full. One sender for each concurrent association takes instances out of the backlog.
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
from dicomtwist.tools.client import run_concurrently
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.contexts import Requirement, contexts_for, requirements_of
from dicomtwist.tools.display.console import plural
from dicomtwist.tools.explain import NO_ASSOCIATION_ERRORS, Cause, cause_of
from dicomtwist.tools.files.file_scanner import ScanBatch, ScannedInstance, Scanner
from dicomtwist.ul.items import MAX_PRESENTATION_CONTEXTS

#: The most instances in the backlog; the scan pauses at this number.
MAX_PENDING = 8192
#: The number of threads that read headers.
SCANNERS = 2
#: How many associations in a row may end without a stored instance before the sender gives up.
MAX_UNPRODUCTIVE = 3
#: The back-off before each attempt to reconnect to a peer that has stored something and is gone, in seconds.
RECONNECT_DELAYS = Backoff(first=1.0, longest=16.0)
#: The number of these attempts in a row.
MAX_RECONNECTS = 5


class StoreObserver(Protocol):
    """Receives the outcome of each instance."""

    def scanned(self, batch: ScanBatch) -> None:
        """A batch of files was scanned."""

    def stored(self, instance: ScannedInstance, status: Status) -> None:
        """The peer has stored an instance, possibly with a warning."""

    def failed(self, instance: ScannedInstance, reason: str) -> None:
        """An instance was not stored and will not be sent again."""

    def not_sent(self, instance: ScannedInstance) -> None:
        """An instance was found, and the transfer ended before it was sent."""

    def waiting(self, cause: Cause, seconds: float) -> None:
        """No association could be established; the next attempt is in *seconds*."""


class Sender(Protocol):
    """
    Sends the instances that a scan finds.

    :ivar associations: the number of associations that were established, or of requests that were answered.
    :ivar cause: why the peer cannot be used, or not any more.
    :ivar not_sent: the number of instances that were found and not sent.
    """

    associations: int
    cause: Cause | None
    not_sent: int

    @property
    def means(self) -> str:
        """The associations or requests, in words."""

    @property
    def bytes_under_way(self) -> int:
        """How many bytes of unanswered instances have been sent, approximately."""

    @property
    def scan_complete(self) -> bool:
        """Whether all files have been scanned."""

    async def run(self) -> None:
        """Send until everything is sent or :meth:`stop` is called."""

    def stop(self) -> None:
        """Send no further instance; those in flight are answered first."""

    def abort(self) -> None:
        """Stop at once, without waiting for the instances in flight."""


@dataclass(eq=False)
class InstanceGroup:
    """
    Instances that can be sent over one association.

    :ivar requirements: the requirements of all of them, no more than the presentation contexts of an association.
    :ivar waiting: the instances that are not sent yet, by requirement.
    """

    requirements: dict[Requirement, None] = field(default_factory=dict)
    waiting: dict[Requirement, deque[ScannedInstance]] = field(default_factory=dict)

    def fits(self, requirements: list[Requirement]) -> bool:
        """Whether one association has room for *requirements* as well."""
        return len(self.requirements | dict.fromkeys(requirements)) <= MAX_PRESENTATION_CONTEXTS

    def take(self, proposed: set[Requirement] | None = None) -> ScannedInstance | None:
        """Remove and return the first instance whose requirement is in *proposed*, ``None`` if there is none."""
        first: deque[ScannedInstance] | None = None
        for requirement, waiting in self.waiting.items():
            if waiting and (proposed is None or requirement in proposed):
                if first is None or waiting[0].order < first[0].order:
                    first = waiting
        return None if first is None else first.popleft()


class Backlog:
    """
    The instances that were found and are not sent yet.

    :ivar count: the number of instances.
    :ivar complete: whether the scan is done.
    """

    def __init__(self) -> None:
        self.count = 0
        self.complete = False
        self._added = 0
        self._groups: list[InstanceGroup] = []
        self._of: dict[Requirement, InstanceGroup] = {}
        self._changed: list[Deferred[None]] = []

    def add(self, instance: ScannedInstance) -> None:
        """Add an instance, to the group of its SOP Class if that has room. One that comes back keeps its place."""
        if not instance.order:
            self._added += 1
            instance.order = self._added
        group = self._of.get(instance.requirement)
        if group is None:
            requirements = requirements_of(instance.requirement[0], [instance.requirement[1]])
            group = next((group for group in reversed(self._groups) if group.fits(requirements)), None)
            if group is None:
                group = InstanceGroup()
                self._groups.append(group)
            group.requirements.update(dict.fromkeys(requirements))
            self._of[instance.requirement] = group
        group.waiting.setdefault(instance.requirement, deque()).append(instance)
        self.count += 1

    def take(self, group: InstanceGroup, proposed: set[Requirement] | None = None) -> ScannedInstance | None:
        """Remove and return an instance of *group* whose requirement is in *proposed*, ``None`` if there is none."""
        instance = group.take(proposed)
        if instance is not None:
            self.count -= 1
            if self.count < MAX_PENDING:
                self.notify()
        return instance

    def discard(self, requirements: set[Requirement] | None = None) -> list[ScannedInstance]:
        """Remove and return all instances, or those with one of *requirements*."""
        discarded: list[ScannedInstance] = []
        for group in self._groups:
            while (instance := group.take(requirements)) is not None:
                discarded.append(instance)
        self.count -= len(discarded)
        return discarded

    def largest(self) -> InstanceGroup | None:
        """Return the group with the most instances, ``None`` if the backlog is empty."""

        def size(group: InstanceGroup) -> int:
            return sum(map(len, group.waiting.values()))

        group = max(self._groups, key=size, default=None)
        return group if group is not None and size(group) else None

    def notify(self) -> None:
        """Fire the Deferreds of :meth:`changed`."""
        changed, self._changed = self._changed, []
        for deferred in changed:
            deferred.callback(None)

    def changed(self) -> Deferred[None]:
        """Return a Deferred that fires at the next change of the backlog or of the sender."""
        deferred: Deferred[None] = Deferred()
        self._changed.append(deferred)
        return deferred


@dataclass(eq=False)
class SendingAssociation:
    """
    An association that instances are sent over.

    :ivar bytes_answered: the size of the instances that are sent and answered, in bytes.
    :ivar bytes_in_flight: the size of the instances that are not answered yet, in bytes.
    :ivar stored_count: the number of instances that the peer has stored.
    """

    association: Association
    proposed: set[Requirement]
    bytes_answered: int = 0
    bytes_in_flight: int = 0
    stored_count: int = 0

    @property
    def bytes_under_way(self) -> int:
        """How many bytes of the instances in flight have been sent, approximately."""
        return max(0, min(self.association.bytes_sent - self.bytes_answered, self.bytes_in_flight))


class BulkSender:
    """
    Sends the instances that a scan finds.

    :param connection: the peer and how to connect to it.
    :param scanner: finds the instances.
    :param observer: receives the outcome of each instance.
    :param executor: runs the scan.
    :param retries: how often an instance is sent again after its association broke.

    :ivar associations: the number of associations that were established.
    :ivar cause: why there was no association, or none any more.
    :ivar not_sent: the number of instances that were found and not sent.
    """

    def __init__(
        self,
        connection: Connection,
        ae: AE,
        scanner: Scanner,
        observer: StoreObserver,
        executor: Executor,
        retries: int,
    ) -> None:
        self._connection = connection
        self._ae = ae
        self._scanner = scanner
        self._observer = observer
        self._executor = executor
        self._retries = retries
        self._backlog = Backlog()
        self._sending: set[SendingAssociation] = set()
        self._pending: set[Deferred[Any]] = set()
        self._senders = 0
        self._unproductive = 0
        self._reconnects: int | None = None  # since something was stored last, None before that
        self._stopping = False
        self._refused: dict[Requirement, str] = {}
        self._ahead: dict[int, ScanBatch] = {}  # at most one for each thread
        self._next_batch = 0
        self._found_all = False
        self.associations = 0
        self.cause: Cause | None = None
        self.not_sent = 0

    @property
    def means(self) -> str:
        """The associations, in words."""
        return f"over {plural(self.associations, 'association')}"

    @property
    def bytes_under_way(self) -> int:
        """How many bytes of unanswered instances have been sent, approximately."""
        return sum(sending.bytes_under_way for sending in self._sending)

    @property
    def scan_complete(self) -> bool:
        """Whether all files have been scanned."""
        return self._found_all

    async def run(self) -> None:
        """Send until everything is sent or :meth:`stop` is called."""
        self._senders = self._connection.associations
        try:
            await run_concurrently(self._scan(), *(self._send() for _ in range(self._senders)))
        finally:
            # If one of them fails, the others are aborted, so that nothing continues after the caller has the failure.
            self.abort()
        for instance in sorted(self._backlog.discard(), key=lambda one: one.order):
            self.not_sent += 1
            self._observer.not_sent(instance)

    def stop(self) -> None:
        """Send no further instance; those in flight are answered first, then the associations are released."""
        self._stopping = True
        for pending in list(self._pending):
            pending.cancel()
        self._backlog.notify()

    def abort(self) -> None:
        """Abort the associations at once, without waiting for the instances in flight."""
        self.stop()
        for sending in list(self._sending):
            sending.association.abort("interrupted")

    # --- the scan

    async def _scan(self) -> None:
        await run_concurrently(*(self._scan_in_a_thread() for _ in range(SCANNERS)))
        self._backlog.complete = True
        self._backlog.notify()

    async def _scan_in_a_thread(self) -> None:
        while not self._stopping:
            batch = await self._executor.run(self._scanner.next_batch)
            if batch is None:
                self._found_all = True
                return
            # A thread may overtake another: the files are sent in the order in which they were found.
            self._ahead[batch.number] = batch
            while (following := self._ahead.pop(self._next_batch, None)) is not None:
                self._next_batch += 1
                self._scanned(following)
            self._backlog.notify()
            while self._backlog.count >= MAX_PENDING and not self._stopping:
                await self._backlog.changed()

    def _scanned(self, batch: ScanBatch) -> None:
        self._observer.scanned(batch)
        for instance in batch.instances:
            reason = self._refused.get(instance.requirement)
            if reason is None:
                self._backlog.add(instance)
            else:
                self._observer.failed(instance, reason)

    # --- the senders

    async def _send(self) -> None:
        try:
            while not self._stopping:
                group = self._backlog.largest()
                # The requirements are known only when the scan is done or has filled the backlog.
                if group is not None and (self._backlog.complete or self._backlog.count >= MAX_PENDING):
                    if not await self._send_group(group):
                        return
                elif self._backlog.complete:
                    return
                else:
                    await self._backlog.changed()
        finally:
            self._senders -= 1

    async def _send_group(self, group: InstanceGroup) -> bool:
        """Request an association for *group* and send over it; return whether to request another one."""
        requirements = set(group.requirements)
        pending = self._connection.associate(self._ae, contexts_for(group.requirements))
        self._pending.add(pending)
        try:
            association = await pending
        except NoAcceptedContexts as error:
            self.associations += 1
            self._refuse(requirements, error)
            return True
        except CancelledError:
            return False
        except NO_ASSOCIATION_ERRORS as error:
            return await self._no_association(error)
        finally:
            self._pending.discard(pending)
        self.associations += 1
        sending = SendingAssociation(association, requirements)
        self._sending.add(sending)
        try:
            await self._send_instances(sending, group)
        finally:
            self._sending.discard(sending)
        return self._was_productive(sending)

    def _refuse(self, requirements: set[Requirement], error: NoAcceptedContexts) -> None:
        for requirement in requirements:
            self._refused[requirement] = f"the peer accepts no presentation context for {SOPClass(requirement[0]).name}"
        for instance in self._backlog.discard(requirements):
            self._observer.failed(instance, self._refused[instance.requirement])
        self.cause = self.cause or cause_of(error, self._connection)
        self._backlog.notify()

    async def _no_association(self, error: Exception) -> bool:
        """
        Handle a failed association request; return whether to request again.

        If other associations are open, they do without this one. A peer that has stored something and is gone may be
        restarting, so it is retried with back-off.
        """
        if self._sending or self._stopping or (self._reconnects is None and self._senders > 1):
            return False
        cause = cause_of(error, self._connection)
        if self._reconnects is not None and self._reconnects < MAX_RECONNECTS and is_transient(error):
            self._reconnects += 1
            seconds = RECONNECT_DELAYS(self._reconnects)
            self._observer.waiting(cause, seconds)
            return await self._pause(seconds)
        self.cause = cause
        self.stop()
        return False

    async def _pause(self, seconds: float) -> bool:
        """Wait *seconds*; return whether the wait was not cancelled."""
        pause: Deferred[None] = deferLater(self._ae.reactor, seconds)
        self._pending.add(pause)
        try:
            await pause
        except CancelledError:
            return False
        finally:
            self._pending.discard(pause)
        return True

    def _was_productive(self, sending: SendingAssociation) -> bool:
        if sending.stored_count:
            self._unproductive = 0
            return True
        end = sending.association.end_reason
        if end is None:
            return True  # the association was released
        self._unproductive += 1
        if self._unproductive < MAX_UNPRODUCTIVE:
            return True
        if not self._stopping:
            self.cause = Cause("ended", f"the peer ends every association: {end}", "see the log of the peer")
            self.stop()
        return False

    async def _send_instances(self, sending: SendingAssociation, group: InstanceGroup) -> None:
        association = sending.association
        # A coroutine that waits for a change must notice the end of the association.
        association.when_ended().addCallback(lambda _: self._backlog.notify())
        # The number of operations that the requestor may invoke; 0 means any number.
        agreed = association.acceptor.asynchronous_operations[1] if self._connection.async_ops > 1 else 1
        lanes = min(self._connection.async_ops, agreed or self._connection.async_ops)
        await run_concurrently(*(self._send_in_turn(sending, group) for _ in range(lanes)))
        try:
            if association.is_established:
                await association.release()
        except (AssociationError, NotEstablished):
            pass  # every instance that was sent is answered
        await association.when_ended()

    async def _send_in_turn(self, sending: SendingAssociation, group: InstanceGroup) -> None:
        """Send instances one after the other, until there are no more for this association."""
        while not self._stopping and sending.association.is_established:
            instance = self._backlog.take(group, sending.proposed)
            if instance is not None:
                await self._store(sending, instance)
            elif self._backlog.complete or self._backlog.count:
                return  # the other instances require another association
            else:
                await self._backlog.changed()

    async def _store(self, sending: SendingAssociation, instance: ScannedInstance) -> None:
        sending.bytes_in_flight += instance.size
        try:
            status = await sending.association.send_c_store(instance.path)
        except NoPresentationContext as error:
            self._observer.failed(instance, str(error))
        except (AssociationError, NotEstablished) as error:
            self._broken(instance, error)
        except (OSError, NotDicomFile, DataSetError) as error:
            self._observer.failed(instance, getattr(error, "strerror", None) or str(error))
        else:
            if status.is_success or status.is_warning:
                sending.stored_count += 1
                self._reconnects = 0
                self._observer.stored(instance, status)
            else:
                self._observer.failed(instance, str(status))
        finally:
            sending.bytes_in_flight -= instance.size
            sending.bytes_answered += instance.size

    def _broken(self, instance: ScannedInstance, error: Exception) -> None:
        """Handle an association that broke before its peer answered: the instance may have been stored or not."""
        instance.attempts += 1
        if instance.attempts <= self._retries and not self._stopping:
            self._backlog.add(instance)
            self._backlog.notify()
        else:
            self._observer.failed(instance, str(error))


def count_reasons(reasons: Counter[str], reason: str, most: int) -> None:
    """Count *reason*, as one of the other reasons if there are *most* different ones already."""
    reasons[reason if reason in reasons or len(reasons) < most else "other reasons"] += 1
