"""
Sending many instances to a server of DICOMweb (STOW-RS), in batches, over one or several connections.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from dicomtwist import Status
from dicomtwist.dicomweb import (
    AccessDenied,
    DICOMwebClient,
    DICOMwebError,
    RequestFailed,
    ServerUnavailable,
    StoredInstance,
    StoreOutcome,
)
from dicomtwist.dicomweb.client.batches import MAX_BATCH, MAX_BATCH_BYTES
from dicomtwist.dicomweb.client.storing import Outgoing, prepare
from dicomtwist.runtime.executors import Executor
from dicomtwist.tools.client import run_concurrently
from dicomtwist.tools.display.console import plural
from dicomtwist.tools.explain import Cause, cause_of
from dicomtwist.tools.files.bulk_sender import MAX_PENDING, MAX_UNPRODUCTIVE, StoreObserver
from dicomtwist.tools.files.file_scanner import ScannedInstance, Scanner
from dicomtwist.tools.web_connection import WebConnection

__all__ = ["WebSender"]


class WebSender:
    """
    Sends the instances that a scan finds, as :class:`~dicomtwist.tools.files.bulk_sender.BulkSender` does.

    :param connection: the server and how to connect to it.
    :param client: the client of the server; the caller closes it.
    :param scanner: finds the instances.
    :param observer: receives the outcome of each instance.
    :param executor: runs the scan.

    :ivar associations: the number of requests that were answered.
    :ivar cause: why the server cannot be used, or not any more.
    :ivar not_sent: the number of instances that were found and not sent.
    :ivar scan_complete: whether all files have been scanned.
    """

    def __init__(
        self,
        connection: WebConnection,
        client: DICOMwebClient,
        scanner: Scanner,
        observer: StoreObserver,
        executor: Executor,
    ) -> None:
        self._connection = connection
        self._client = client
        self._scanner = scanner
        self._observer = observer
        self._executor = executor
        self._left: list[ScannedInstance] = []
        self._waiting: deque[ScannedInstance] = deque()
        self._changed: list[Deferred[None]] = []
        self._pending: set[Deferred[Any]] = set()
        self._stopping = False
        self._unproductive = 0
        self.associations = 0
        self.cause: Cause | None = None
        self.not_sent = 0
        self.scan_complete = False
        self.bytes_under_way = 0

    @property
    def means(self) -> str:
        """The requests, in words."""
        return f"in {plural(self.associations, 'request')}"

    async def run(self) -> None:
        """Send until everything is sent or :meth:`stop` is called."""
        try:
            await run_concurrently(self._scan(), *(self._send() for _ in range(self._connection.associations)))
        finally:
            self.abort()
        self._leave([*self._left, *self._waiting])

    def _leave(self, instances: list[ScannedInstance]) -> None:
        for instance in instances:
            self.not_sent += 1
            self._observer.not_sent(instance)

    def stop(self) -> None:
        """Begin no further request; those under way are answered first."""
        self._stopping = True
        self._notify()

    def abort(self) -> None:
        """Close the connections at once."""
        self.stop()
        for pending in list(self._pending):
            pending.cancel()

    # --- the scan

    async def _scan(self) -> None:
        while not self._stopping:
            batch = await self._executor.run(self._scanner.next_batch)
            if batch is None:
                break
            self._observer.scanned(batch)
            self._waiting += batch.instances
            self._notify()
            while len(self._waiting) >= MAX_PENDING and not self._stopping:
                await self._change()
        else:
            return
        self.scan_complete = True
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, []
        for deferred in changed:
            deferred.callback(None)

    def _change(self) -> Deferred[None]:
        changed: Deferred[None] = Deferred()
        self._changed.append(changed)
        return changed

    # --- the senders

    async def _send(self) -> None:
        while not self._stopping:
            # A request that is full takes less time than two that are not.
            if len(self._waiting) < MAX_BATCH and not self.scan_complete:
                await self._change()
            elif self._waiting:
                await self._send_batch(self._take())
            else:
                return

    def _take(self) -> list[ScannedInstance]:
        batch: list[ScannedInstance] = []
        size = 0
        while self._waiting and len(batch) < MAX_BATCH:
            if batch and size + self._waiting[0].size > MAX_BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
            size += batch[-1].size
        self._notify()  # the scan may go on
        return batch

    async def _send_batch(self, scanned: list[ScannedInstance]) -> None:
        prepared = await self._executor.run(_prepare_all, [one.path for one in scanned])
        good: list[tuple[ScannedInstance, Outgoing]] = []
        for instance, one in zip(scanned, prepared, strict=True):
            if isinstance(one, Outgoing):
                good.append((instance, one))
            else:
                self._observer.failed(instance, one.words)
        if not good:
            return
        sent = 0

        def written(count: int) -> None:
            nonlocal sent
            sent += count
            self.bytes_under_way += count

        storing = self._client.store_batch([one for _, one in good], on_written=written)
        self._pending.add(storing)
        try:
            results = await storing
        except CancelledError:
            self._left += [instance for instance, _ in good]
            return
        except DICOMwebError as error:
            self._failed([instance for instance, _ in good], error)
            return
        finally:
            self._pending.discard(storing)
            self.bytes_under_way -= sent
        self.associations += 1
        self._unproductive = 0
        for (instance, _), result in zip(good, results, strict=True):
            self._told(instance, result)

    def _told(self, instance: ScannedInstance, result: StoredInstance) -> None:
        if result.outcome is StoreOutcome.STORED:
            self._observer.stored(instance, Status(result.reason, "C-STORE"))
        else:
            self._observer.failed(instance, result.words)

    def _failed(self, instances: list[ScannedInstance], error: DICOMwebError) -> None:
        """Handle a request that failed as a whole: the server is gone, refuses the user, or cannot handle it."""
        if isinstance(error, RequestFailed) and not isinstance(error, AccessDenied | ServerUnavailable):
            self.associations += 1
            self._unproductive += 1
            for instance in instances:
                self._observer.failed(instance, str(error))
            if self._unproductive < MAX_UNPRODUCTIVE:
                return
        else:
            self._left += instances
        self.cause = self.cause or cause_of(error, self._connection)
        self.stop()


def _prepare_all(paths: list[str]) -> list[Outgoing | StoredInstance]:
    return [prepare(path) for path in paths]
