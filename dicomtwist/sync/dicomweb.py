"""
The client of DICOMweb for code that blocks.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack

from pydicom import Dataset
from twisted.internet.defer import Deferred

from dicomtwist.eventloop.reactor_thread import Beginning, reactor_of_thread, wait_for
from dicomtwist.faces.dicomweb import ClientFace, FolderOptions, PartFace, SearchOptions, StoreOptions

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


def _as_it_is(item: Any, reactor: Any) -> Any:
    return item


class Items(Iterator[T], Generic[T]):
    """
    The results of a search or a retrieval, as they arrive: an iterator.

    The connection is read no faster than the loop takes them. Leaving the loop before its end closes the connection: by
    ``break``, an exception or Ctrl-C. So does :meth:`close`, or the end of a block ``with items:``.

    :ivar needs_reactor: whether there may be more to come.
    """

    def __init__(self, begin: Callable[[Any], AsyncIterator[Any]], wrap: Callable[[Any, Any], T]) -> None:
        self._begin = begin
        self._wrap = wrap
        self._reactor: Any = None
        self._items: AsyncIterator[Any] | None = None
        self.needs_reactor = True

    def __next__(self) -> T:
        if not self.needs_reactor:
            raise StopIteration
        if self._reactor is None:
            self._reactor = reactor_of_thread(self)
        try:
            return self._wrap(wait_for(self._reactor, self._next), self._reactor)
        except StopAsyncIteration:
            self.close()
            raise StopIteration from None
        except BaseException:
            self.close()
            raise

    def _next(self) -> Deferred[Any]:
        if self._items is None:
            self._items = self._begin(self._reactor)
        return Deferred.fromCoroutine(_result(self._items))

    def close(self) -> None:
        """Close the connection if there is more to come."""
        self.needs_reactor = False
        if self._reactor is not None:
            # The items end in the reactor's thread.
            items, self._items = self._items, None
            if items is not None:
                self._reactor.callFromThread(_close, items)

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _result(items: AsyncIterator[Any]) -> Any:
    return await items.__anext__()


def _close(items: Any) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        Deferred.fromCoroutine(close()).addErrback(lambda _: None)


class Part(PartFace):
    """
    One part of a response, whose content may still arrive: an iterable of its pieces.

    The rest of it is dropped when the next part is asked for.
    """

    def __init__(self, inner: dicomweb.Part, reactor: Any) -> None:
        super().__init__(inner)
        self._reactor = reactor

    def __iter__(self) -> Iterator[bytes | memoryview]:
        pieces = self.inner.__aiter__()
        while True:
            try:
                yield wait_for(self._reactor, lambda: Deferred.fromCoroutine(_result(pieces)))
            except StopAsyncIteration:
                return

    def read(self, limit: int = _MAX_PART) -> bytes:
        """
        Return the content.

        :param limit: the most bytes.
        :raises InvalidResponse: there are more, or the response is cut off.
        """
        return wait_for(self._reactor, lambda: Deferred.fromCoroutine(self.inner.read(limit)))

    def dataset(self, limit: int = _MAX_PART) -> Dataset:
        """
        Return the content, a PS3.10 file, as a Dataset.

        :param limit: the most bytes.
        :raises InvalidResponse: it is no such file, or there are more bytes.
        """
        return wait_for(self._reactor, lambda: Deferred.fromCoroutine(self.inner.dataset(limit)))


class DICOMwebClient(ClientFace):
    """
    A client of one DICOMweb service, for code that blocks.

    .. code-block:: python

        with dicomtwist.sync.DICOMwebClient("https://pacs.example.org/dicom-web", token=token) as client:
            for study in client.search_for_studies({"PatientID": "A17"}):
                for part in client.retrieve_study(study.StudyInstanceUID):
                    print(part.dataset())

    Several threads may use it at once. Ctrl-C closes the connection of its request.
    Errors, redirections and credentials are those of :class:`dicomtwist.dicomweb.DICOMwebClient`.

    :param url: the base URL of the service.
    :param options: ``token``, ``user``, ``tls``, ``timeouts``, ``retries``, ``headers`` and ``clear_credentials``. A function
        that returns a token is called in the reactor's thread: it must not block for long.
    :raises ValueError: the URL is invalid, or credentials would be sent without TLS.
    """

    def _wait(self, request: Callable[[dicomweb.DICOMwebClient], Deferred[T]]) -> T:
        """Make a request in the reactor's thread, and wait for its result."""
        beginning = Beginning()
        reactor = reactor_of_thread(beginning)
        try:
            return wait_for(reactor, lambda: request(self.inner_for(reactor)))
        finally:
            beginning.needs_reactor = False

    def _items(
        self,
        begin: Callable[[dicomweb.DICOMwebClient], AsyncIterator[Any]],
        wrap: Callable[[Any, Any], Any] = _as_it_is,
    ) -> Items[Any]:
        return Items(lambda reactor: begin(self.inner_for(reactor)), wrap)

    def search_for_studies(self, keys: Keys | None = None, **options: Unpack[SearchOptions]) -> Items[Dataset]:
        """
        Search for studies, a Dataset for each; see :meth:`dicomtwist.dicomweb.DICOMwebClient.search_for_studies`.

        :param options: ``include``, ``fuzzy``, ``limit``, ``offset`` and ``page``.
        """
        return self._items(lambda inner: inner.search_for_studies(keys, **options))

    def search_for_series(
        self, study: str = "", keys: Keys | None = None, **options: Unpack[SearchOptions]
    ) -> Items[Dataset]:
        """Search for series, in one study or in all; see :meth:`search_for_studies`."""
        return self._items(lambda inner: inner.search_for_series(study, keys, **options))

    def search_for_instances(
        self, study: str = "", series: str = "", keys: Keys | None = None, **options: Unpack[SearchOptions]
    ) -> Items[Dataset]:
        """Search for instances, in one series, in one study or in all; see :meth:`search_for_studies`."""
        return self._items(lambda inner: inner.search_for_instances(study, series, keys, **options))

    def retrieve_study(self, study: str, *, transfer_syntax: str = "*") -> Items[Part]:
        """Retrieve the instances of a study; see :meth:`dicomtwist.dicomweb.DICOMwebClient.retrieve_study`."""
        return self._items(lambda inner: inner.retrieve_study(study, transfer_syntax=transfer_syntax), Part)

    def retrieve_series(self, study: str, series: str, *, transfer_syntax: str = "*") -> Items[Part]:
        """Retrieve the instances of a series."""
        return self._items(lambda inner: inner.retrieve_series(study, series, transfer_syntax=transfer_syntax), Part)

    def retrieve_instance(self, study: str, series: str, instance: str, *, transfer_syntax: str = "*") -> Items[Part]:
        """Retrieve one instance."""
        return self._items(
            lambda inner: inner.retrieve_instance(study, series, instance, transfer_syntax=transfer_syntax), Part
        )

    def retrieve_metadata(self, study: str, series: str = "", instance: str = "") -> Items[Dataset]:
        """Retrieve attributes; see :meth:`dicomtwist.dicomweb.DICOMwebClient.retrieve_metadata`."""
        return self._items(lambda inner: inner.retrieve_metadata(study, series, instance))

    def retrieve_frames(
        self, study: str, series: str, instance: str, frames: Sequence[int] = (1,), *, media_type: str = ""
    ) -> Items[Part]:
        """Retrieve frames; see :meth:`dicomtwist.dicomweb.DICOMwebClient.retrieve_frames`."""
        return self._items(
            lambda inner: inner.retrieve_frames(study, series, instance, frames, media_type=media_type), Part
        )

    def retrieve_bulkdata(
        self, uri: str, *, first: int = 0, last: int | None = None, media_type: str = ""
    ) -> Items[Part]:
        """Retrieve bulk data; see :meth:`dicomtwist.dicomweb.DICOMwebClient.retrieve_bulkdata`."""
        return self._items(
            lambda inner: inner.retrieve_bulkdata(uri, first=first, last=last, media_type=media_type), Part
        )

    def retrieve_rendered(
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
        return self._wait(
            lambda inner: inner.retrieve_rendered(
                study,
                series,
                instance,
                frame=frame,
                media_type=media_type,
                thumbnail=thumbnail,
                parameters=parameters,
            )
        )

    def retrieve_into(
        self,
        wanted: Wanted | Iterable[Wanted],
        folder: str | os.PathLike[str],
        **options: Unpack[FolderOptions],
    ) -> Totals:
        """Retrieve studies into a folder; the parameters are those of :func:`dicomtwist.retrieval.retrieve_from_web`."""
        from dicomtwist.retrieval.function import retrieve_from_web

        return self._wait(lambda inner: retrieve_from_web(inner, wanted, folder, **options))

    def store_instances(self, instances: Source | Iterable[Source], **options: Unpack[StoreOptions]) -> StoreResult:
        """
        Store instances; see :meth:`dicomtwist.dicomweb.DICOMwebClient.store_instances`.

        :param instances: paths of files, the bytes of PS3.10 files, or Datasets.
        :param options: ``study``, ``on_result``, ``max_batch`` and ``max_batch_bytes``.
        """
        return self._wait(lambda inner: inner.store_instances(instances, **options))

    def delete_study(self, study: str) -> None:
        """Delete a study, if the server offers that; the standard does not have it."""
        self._wait(lambda inner: inner.delete_study(study))

    def delete_series(self, study: str, series: str) -> None:
        """Delete a series."""
        self._wait(lambda inner: inner.delete_series(study, series))

    def delete_instance(self, study: str, series: str, instance: str) -> None:
        """Delete an instance."""
        self._wait(lambda inner: inner.delete_instance(study, series, instance))

    def close(self) -> None:
        """Close the connections that no request uses; the client can still be used."""
        self._wait(lambda inner: inner.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
