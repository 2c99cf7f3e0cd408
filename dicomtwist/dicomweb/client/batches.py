"""
Batches of instances that are stored with one request each, and divided if the server refuses them together.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from pydicom import Dataset

from dicomtwist.dicomweb.client.body import MAX_RESPONSE, read_all
from dicomtwist.dicomweb.client.errors import NoConnection, RequestFailed, RequestTimeout
from dicomtwist.dicomweb.client.http import HTTPClient
from dicomtwist.dicomweb.client.storing import (
    Outgoing,
    Source,
    StoredInstance,
    StoreOutcome,
    body_length,
    body_pieces,
    prepare,
    results_in,
    unsent,
)
from dicomtwist.dicomweb.client.upload import Upload
from dicomtwist.dicomweb.media_types import DICOM, DICOM_JSON, JSON, RELATED
from dicomtwist.dicomweb.multipart import new_boundary
from dicomtwist.dicomweb.urls import uid_of
from dicomtwist.eventloop.coroutines import deferred_items
from dicomtwist.runtime.executors import Executor

__all__ = ["Batches", "StoreResult"]

#: The most instances, and the most bytes of several, in one request to store.
MAX_BATCH: Final = 50
MAX_BATCH_BYTES: Final = 32 * 1024 * 1024
#: The status codes of a request to store that one instance of several may cause.
_OF_ONE: Final = frozenset((400, 409, 413, 415, 422))


@dataclass(slots=True)
class StoreResult:
    """
    The result of storing instances.

    :ivar stored: the number of instances that the server has stored; those with a warning included.
    :ivar failed: the number of instances that are not stored.
    :ivar failures: the first results of those, see :data:`MAX_FAILURES`.
    """

    stored: int = 0
    failed: int = 0
    failures: list[StoredInstance] = field(default_factory=list)

    #: The most failures that are listed; ``on_result`` gets all.
    MAX_FAILURES = 100

    def add(self, result: StoredInstance) -> None:
        """Add a result."""
        if result.outcome is StoreOutcome.STORED:
            self.stored += 1
            return
        self.failed += 1
        if len(self.failures) < self.MAX_FAILURES:
            self.failures.append(result)


class Batches:
    """
    Stores instances at one service.

    :param http: the connections to it.
    :param executor: reads files.
    """

    def __init__(self, http: HTTPClient, executor: Executor) -> None:
        self._http = http
        self._executor = executor

    async def store(
        self,
        instances: Source | Iterable[Source] | AsyncIterable[Source],
        study: str,
        on_result: Callable[[StoredInstance], object] | None,
        max_batch: int,
        max_batch_bytes: int,
    ) -> StoreResult:
        """Store instances, see :meth:`~dicomtwist.dicomweb.DICOMwebClient.store_instances`."""
        total = StoreResult()
        batch: list[Outgoing] = []
        size = 0

        def done(results: Iterable[StoredInstance]) -> None:
            for result in results:
                total.add(result)
                if on_result is not None:
                    on_result(result)

        with self._executor.in_use():
            async for source in _sources(instances):
                prepared = await self._executor.run(prepare, source)
                if isinstance(prepared, StoredInstance):
                    done([prepared])
                    continue
                if batch and (len(batch) >= max_batch or size + prepared.size > max_batch_bytes):
                    done(await self.store_batch(batch, study, None))
                    batch, size = [], 0
                batch.append(prepared)
                size += prepared.size
            if batch:
                done(await self.store_batch(batch, study, None))
        return total

    async def store_batch(
        self, batch: list[Outgoing], study: str, on_written: Callable[[int], object] | None
    ) -> list[StoredInstance]:
        """Store prepared instances, see :meth:`~dicomtwist.dicomweb.DICOMwebClient.store_batch`."""
        unreadable: dict[int, str] = {}

        def unread(outgoing: Outgoing, error: OSError) -> None:
            unreadable[id(outgoing)] = error.strerror or str(error)

        try:
            with self._executor.in_use():
                return await self._post(batch, study, unread, on_written)
        except (RequestFailed, NoConnection, RequestTimeout) as error:
            if unreadable:
                # One file has vanished or changed: the others are sent again without it.
                good = [one for one in batch if id(one) not in unreadable]
                others = iter(await self.store_batch(good, study, on_written) if good else [])
                return [
                    one.result(words=unreadable[id(one)]) if id(one) in unreadable else next(others) for one in batch
                ]
            if not isinstance(error, RequestFailed) or error.status not in _OF_ONE:
                raise
            if len(batch) == 1:
                return unsent(batch, str(error))
        middle = len(batch) // 2
        first = await self.store_batch(batch[:middle], study, on_written)
        return first + await self.store_batch(batch[middle:], study, on_written)

    async def _post(
        self,
        batch: list[Outgoing],
        study: str,
        unread: Callable[[Outgoing, OSError], object],
        on_written: Callable[[int], object] | None,
    ) -> list[StoredInstance]:
        boundary = new_boundary()
        path = f"studies/{uid_of(study)}" if study else "studies"
        headers = {
            "Accept": DICOM_JSON,
            "Content-Type": f'{RELATED}; type="{DICOM}"; boundary={boundary}',
        }
        length = body_length(boundary, batch)

        def upload() -> Upload:
            return Upload(body_pieces(boundary, batch, unread), length, self._executor, on_written)

        try:
            # An instance that is stored already is no failure (PS3.18 10.5.1), so that the request can be repeated.
            response = await self._http.request("POST", f"{self._http.base}/{path}", headers=headers, upload=upload)
        except RequestFailed as error:
            if error.status == 409 and error.body:
                results = results_in(409, error.body, True, batch)
                if results is not None:
                    return results
            raise
        document = await read_all(response.body, MAX_RESPONSE)
        results = results_in(response.status, document, response.media_type.name in (DICOM_JSON, JSON), batch)
        if results is None:
            return unsent(batch, f"the server answered {response.status}, and not which instances are stored")
        return results


@deferred_items
async def _sources(instances: Source | Iterable[Source] | AsyncIterable[Source]) -> AsyncGenerator[Source, None]:
    if isinstance(instances, Dataset | str | bytes | os.PathLike):  # some of these are iterable themselves
        yield instances
    else:
        several: Any = instances
        if isinstance(instances, AsyncIterable):
            async for one in several:
                yield one
        else:
            for one in several:
                yield one
