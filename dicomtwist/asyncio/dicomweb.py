"""
The client of DICOMweb for coroutines of asyncio.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack

from pydicom import Dataset

from dicomtwist.eventloop.coroutines import SteppedItems, await_any, from_deferred
from dicomtwist.eventloop.loop_reactor import reactor_of_running_loop
from dicomtwist.faces.dicomweb import ClientFace, FolderOptions, PartFace, SearchOptions, StoreOptions, sources

if TYPE_CHECKING:
    from dicomtwist import dicomweb
    from dicomtwist.dicomweb.client import Source, StoreResult
    from dicomtwist.retrieval import Totals
    from dicomtwist.retrieval.function import Wanted

__all__ = ["DICOMwebClient", "Items", "Part"]

Keys = Mapping[str, Any] | Dataset
#: The most bytes of a part that :meth:`Part.read` collects by default, see :mod:`dicomtwist.dicomweb.client.parts`.
_MAX_PART = 1024 * 1024 * 1024

T = TypeVar("T")


class Items(AsyncIterator[T], Generic[T]):
    """
    The results of a search or a retrieval, as they arrive: an asynchronous iterator.

    The connection is read no faster than the loop takes them. Leaving the loop before its end closes the connection: by
    ``break``, by an exception, or by a cancellation, such as of ``asyncio.timeout``. So does :meth:`aclose`.
    """

    def __init__(self, begin: Callable[[], AsyncIterator[Any]], wrap: Callable[[Any], T] | None = None) -> None:
        self._begin = begin
        self._items: AsyncIterator[Any] | None = None
        self._wrap = wrap

    async def __anext__(self) -> T:
        if self._items is None:
            self._items = self._begin()
        step: Any = self._items.__anext__()
        item = await await_any(_result(step))
        return item if self._wrap is None else self._wrap(item)

    async def aclose(self) -> None:
        """Close the connection if there is more to come."""
        close = getattr(self._items, "aclose", None)
        if close is not None:
            await await_any(close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _result(step: Any) -> Any:
    return await step


class Part(PartFace):
    """
    One part of a response, whose content may still arrive: an asynchronous iterable of its pieces.

    The rest of it is dropped when the next part is asked for.
    """

    def __aiter__(self) -> Items[bytes | memoryview]:
        return Items(self.inner.__aiter__)

    async def read(self, limit: int = _MAX_PART) -> bytes:
        """
        Return the content.

        :param limit: the most bytes.
        :raises InvalidResponse: there are more, or the response is cut off.
        """
        return await await_any(self.inner.read(limit))

    async def dataset(self, limit: int = _MAX_PART) -> Dataset:
        """
        Return the content, a PS3.10 file, as a Dataset. A thread decodes it.

        :param limit: the most bytes.
        :raises InvalidResponse: it is no such file, or there are more bytes.
        """
        return await await_any(self.inner.dataset(limit))


class DICOMwebClient(ClientFace):
    """
    A client of one DICOMweb service, for coroutines of asyncio.

    .. code-block:: python

        async with dicomtwist.asyncio.DICOMwebClient("https://pacs.example.org/dicom-web", token=token) as client:
            async for study in client.search_for_studies({"PatientID": "A17"}):
                async for part in client.retrieve_study(study.StudyInstanceUID):
                    print(await part.dataset())

    It may be made anywhere, and be used by several coroutines at once. A cancellation closes the connection of its request.
    Errors, redirections and credentials are those of :class:`dicomtwist.dicomweb.DICOMwebClient`.

    :param url: the base URL of the service.
    :param options: ``token``, ``user``, ``tls``, ``timeouts``, ``retries``, ``headers`` and ``clear_credentials``. A function
        that returns a token may be a coroutine function.
    :raises ValueError: the URL is invalid, or credentials would be sent without TLS.
    """

    @property
    def inner(self) -> dicomweb.DICOMwebClient:
        """
        The client below, whose reactor is on the event loop that runs.

        :raises ReactorConflict: the reactor cannot be used.
        """
        return self.inner_for(reactor_of_running_loop())

    def search_for_studies(self, keys: Keys | None = None, **options: Unpack[SearchOptions]) -> Items[Dataset]:
        """
        Search for studies, a Dataset for each; see :meth:`dicomtwist.dicomweb.DICOMwebClient.search_for_studies`.

        :param options: ``include``, ``fuzzy``, ``limit``, ``offset`` and ``page``.
        """
        return Items(lambda: self.inner.search_for_studies(keys, **options))

    def search_for_series(
        self, study: str = "", keys: Keys | None = None, **options: Unpack[SearchOptions]
    ) -> Items[Dataset]:
        """Search for series, in one study or in all; see :meth:`search_for_studies`."""
        return Items(lambda: self.inner.search_for_series(study, keys, **options))

    def search_for_instances(
        self, study: str = "", series: str = "", keys: Keys | None = None, **options: Unpack[SearchOptions]
    ) -> Items[Dataset]:
        """Search for instances, in one series, in one study or in all; see :meth:`search_for_studies`."""
        return Items(lambda: self.inner.search_for_instances(study, series, keys, **options))

    def retrieve_study(self, study: str, *, transfer_syntax: str = "*") -> Items[Part]:
        """Retrieve the instances of a study; see :meth:`dicomtwist.dicomweb.DICOMwebClient.retrieve_study`."""
        return Items(lambda: self.inner.retrieve_study(study, transfer_syntax=transfer_syntax), Part)

    def retrieve_series(self, study: str, series: str, *, transfer_syntax: str = "*") -> Items[Part]:
        """Retrieve the instances of a series."""
        return Items(lambda: self.inner.retrieve_series(study, series, transfer_syntax=transfer_syntax), Part)

    def retrieve_instance(self, study: str, series: str, instance: str, *, transfer_syntax: str = "*") -> Items[Part]:
        """Retrieve one instance."""
        return Items(
            lambda: self.inner.retrieve_instance(study, series, instance, transfer_syntax=transfer_syntax), Part
        )

    def retrieve_metadata(self, study: str, series: str = "", instance: str = "") -> Items[Dataset]:
        """Retrieve attributes; see :meth:`dicomtwist.dicomweb.DICOMwebClient.retrieve_metadata`."""
        return Items(lambda: self.inner.retrieve_metadata(study, series, instance))

    def retrieve_frames(
        self, study: str, series: str, instance: str, frames: Sequence[int] = (1,), *, media_type: str = ""
    ) -> Items[Part]:
        """Retrieve frames; see :meth:`dicomtwist.dicomweb.DICOMwebClient.retrieve_frames`."""
        return Items(lambda: self.inner.retrieve_frames(study, series, instance, frames, media_type=media_type), Part)

    def retrieve_bulkdata(
        self, uri: str, *, first: int = 0, last: int | None = None, media_type: str = ""
    ) -> Items[Part]:
        """Retrieve bulk data; see :meth:`dicomtwist.dicomweb.DICOMwebClient.retrieve_bulkdata`."""
        return Items(lambda: self.inner.retrieve_bulkdata(uri, first=first, last=last, media_type=media_type), Part)

    async def retrieve_rendered(
        self,
        study: str,
        series: str = "",
        instance: str = "",
        *,
        frame: int | None = None,
        media_type: str = "image/jpeg",
        thumbnail: bool = False,
        parameters: Mapping[str, str] | None = None,
    ) -> bytes:
        """Retrieve a rendered image; see :meth:`dicomtwist.dicomweb.DICOMwebClient.retrieve_rendered`."""
        return await from_deferred(
            self.inner.retrieve_rendered(
                study,
                series,
                instance,
                frame=frame,
                media_type=media_type,
                thumbnail=thumbnail,
                parameters=parameters,
            )
        )

    async def retrieve_into(
        self,
        wanted: Wanted | Iterable[Wanted] | AsyncIterable[Wanted],
        folder: str | os.PathLike[str],
        **options: Unpack[FolderOptions],
    ) -> Totals:
        """Retrieve studies into a folder; the parameters are those of :func:`dicomtwist.retrieval.retrieve_from_web`."""
        from dicomtwist.retrieval.function import retrieve_from_web

        if isinstance(wanted, AsyncIterable):
            wanted = SteppedItems(aiter(wanted))
        return await from_deferred(retrieve_from_web(self.inner, wanted, folder, **options))

    async def store_instances(
        self, instances: Source | Iterable[Source] | AsyncIterable[Source], **options: Unpack[StoreOptions]
    ) -> StoreResult:
        """
        Store instances; see :meth:`dicomtwist.dicomweb.DICOMwebClient.store_instances`.

        :param instances: paths of files, the bytes of PS3.10 files, or Datasets; or an asynchronous iterable of these.
        :param options: ``study``, ``on_result``, ``max_batch`` and ``max_batch_bytes``.
        """
        return await from_deferred(self.inner.store_instances(sources(instances), **options))

    async def delete_study(self, study: str) -> None:
        """Delete a study, if the server offers that; the standard does not have it."""
        await from_deferred(self.inner.delete_study(study))

    async def delete_series(self, study: str, series: str) -> None:
        """Delete a series."""
        await from_deferred(self.inner.delete_series(study, series))

    async def delete_instance(self, study: str, series: str, instance: str) -> None:
        """Delete an instance."""
        await from_deferred(self.inner.delete_instance(study, series, instance))

    async def close(self) -> None:
        """Close the connections that no request uses; the client can still be used."""
        await from_deferred(self.inner.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
