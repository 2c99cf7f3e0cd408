"""
Sending over DICOMweb: STOW-RS in batches, with a result for each instance (PS3.18 10.5).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, DeferredList

from dicomtwist.dicomweb.client.batches import MAX_BATCH, MAX_BATCH_BYTES
from dicomtwist.dicomweb.client.storing import StoredInstance, StoreOutcome
from dicomtwist.dicomweb.client.web_client import DICOMwebClient
from dicomtwist.forwarding.delivery.confirmation import missing
from dicomtwist.forwarding.delivery.instances import open_each, open_for_request
from dicomtwist.forwarding.delivery.interfaces import Delivery, Feed, InstanceSource, when_fired
from dicomtwist.forwarding.delivery.results import DONE, MAX_UNEXPLAINED, Action, Result, of_error, of_reason

__all__ = ["WebSender"]

#: The bytes of changed instances in memory from which on no more are opened in one trip to a thread.
ENOUGH: Final = 4 * 1024 * 1024


class WebSender:
    """
    Sends instances to one DICOMweb service.

    :param client: the service; this object closes it. The breaker of the peer waits between attempts, so a client without
        retries is best.
    :param source: the instances.
    """

    def __init__(self, client: DICOMwebClient, source: InstanceSource) -> None:
        self._client = client
        self._source = source
        self._storing: set[Deferred[list[StoredInstance]]] = set()

    def open(self, deliveries: Sequence[Delivery]) -> list[Result | None]:
        """Open instances, see :class:`~dicomtwist.forwarding.delivery.interfaces.Sender`."""
        return open_each(deliveries, self._source, open_for_request, ENOUGH)

    async def send(self, feed: Feed) -> None:
        """Send what *feed* has, see :class:`~dicomtwist.forwarding.delivery.interfaces.Sender`."""
        while True:
            batch = _batch(feed)
            if batch:
                if not await self._store(feed, batch):
                    return
            elif not await feed.more():
                return

    async def _store(self, feed: Feed, batch: list[Delivery]) -> bool:
        """Send one batch; return whether the service can be used."""
        storing = self._client.store_batch([delivery.parcel for delivery in batch])
        self._storing.add(storing)
        try:
            stored = await storing
        except CancelledError:
            results = [Result(Action.RETRY, "the forwarder was stopped", is_lost=True)] * len(batch)
        except Exception as error:
            results = [of_error(error)] * len(batch)
        else:
            results = [_result(one) for one in stored]
        finally:
            self._storing.discard(storing)
        for delivery, result in zip(batch, results, strict=True):
            delivery.close()
            feed.ended(delivery, result)
        return not any(result.is_lost or result.is_down for result in results)

    async def confirm(self, deliveries: Sequence[Delivery], how: str) -> Sequence[Result]:
        """
        Search for instances that were sent. No service that is known has the storage commitment of DICOMweb, so that a search
        stands for it as well.
        """
        by_series: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, delivery in enumerate(deliveries):
            assert delivery.uids is not None
            by_series[delivery.uids.study, delivery.uids.series].append(number)
        found: set[str] = set()
        for study, series in by_series:
            keys: dict[str, Any] = {}
            async for match in self._client.search_for_instances(study, series, keys, include=("SOPInstanceUID",)):
                found.add(str(match.get("SOPInstanceUID")))
        return [DONE if one.uids is not None and one.uids.instance in found else missing() for one in deliveries]

    async def close(self, grace: float) -> None:
        """Close the connections; requests that are not answered after *grace* seconds are cancelled."""
        late = self._client.reactor.callLater(grace, self._cancel)
        # Their results go to the feed first.
        while self._storing:
            await DeferredList([when_fired(storing) for storing in self._storing])
        if late.active():
            late.cancel()
        await self._client.close()

    def _cancel(self) -> None:
        for storing in list(self._storing):
            storing.cancel()


def _batch(feed: Feed) -> list[Delivery]:
    batch: list[Delivery] = []
    size = 0
    while len(batch) < MAX_BATCH and (ready := feed.ready()):
        following = ready[0]
        if batch and (size + following.size > MAX_BATCH_BYTES or following.is_suspect):
            break
        delivery = feed.take()
        assert delivery is not None
        batch.append(delivery)
        size += delivery.size
        if delivery.is_suspect:
            break
    return batch


def _result(stored: StoredInstance) -> Result:
    if stored.outcome is StoreOutcome.STORED:
        return Result(Action.DONE, stored.words) if stored.words else DONE
    if stored.reason:
        return of_reason(stored.reason)
    return Result(Action.RETRY, stored.words or "the server gave no reason", MAX_UNEXPLAINED)
