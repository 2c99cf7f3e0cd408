"""
The client of DICOMweb (PS3.18): search, retrieval and storage of instances at one server.
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any, Final, TypeVar
from urllib.parse import urlencode, urljoin

from pydicom import Dataset
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator

from dicomtwist.dicomweb.client.batches import MAX_BATCH, MAX_BATCH_BYTES, Batches, StoreResult
from dicomtwist.dicomweb.client.body import MAX_RESPONSE, read_all
from dicomtwist.dicomweb.client.documents import datasets_of
from dicomtwist.dicomweb.client.errors import InvalidResponse
from dicomtwist.dicomweb.client.http import HTTPClient, Response, Timeouts, Token
from dicomtwist.dicomweb.client.parts import Part, parts_of
from dicomtwist.dicomweb.client.storing import Outgoing, Source, StoredInstance
from dicomtwist.dicomweb.media_types import DICOM, DICOM_JSON, JPEG, JSON, OCTET_STREAM, RELATED
from dicomtwist.dicomweb.parameters import search_query
from dicomtwist.dicomweb.urls import BaseURL, path_of, uid_of
from dicomtwist.eventloop.coroutines import deferred_items
from dicomtwist.runtime.executors import Bounds, Executor

__all__ = ["DICOMwebClient", "Keys"]

#: The matching keys of a search: by keyword or tag; or the identifier of a C-FIND, whose empty elements are return keys.
Keys = Mapping[str, Any] | Dataset

#: The matches that are asked for in one request of a search.
PAGE: Final = 1000
#: The threads that read files and decode, and the calls that may wait for them.
THREADS: Final = Bounds(threads=4, max_queued=1024)

_INSTANCES: Final = f'{RELATED}; type="{DICOM}"; transfer-syntax='

T = TypeVar("T")


class DICOMwebClient:
    """
    A client of one DICOMweb service.

    .. code-block:: python

        client = DICOMwebClient("https://pacs.example.org/dicom-web", token=token)
        async for study in client.search_for_studies({"PatientID": "A17"}):
            async for part in client.retrieve_study(study.StudyInstanceUID):
                print(await part.dataset())
        result = await client.store_instances(["a.dcm", "b.dcm"])
        await client.close()

    Searches and retrievals are asynchronous iterators: the connection is read only as fast as their loop runs, and leaving
    the loop early closes it when the iterator is closed, at once with :func:`contextlib.aclosing`. The other methods return
    Deferreds, and cancelling one closes the connection of its request. All fail with a
    :class:`~dicomtwist.dicomweb.DICOMwebError`.

    Requests that change nothing are sent again after a lost connection, and all requests if the server answers that it is
    busy. Redirections are followed; credentials and *headers* are sent to the origin of *url* only.

    :param url: the base URL of the service.
    :param token: a token (``Authorization: Bearer``); or a function that returns one, or an awaitable of one.
    :param user: a name and a password (``Authorization: Basic``).
    :param tls: TLS for the server, see :func:`dicomtwist.endpoints.client_tls_options`; by default the roots that the
        platform trusts.
    :param timeouts: the time limits.
    :param retries: how often a request is sent again.
    :param headers: further header fields of each request.
    :param clear_credentials: whether credentials may be sent without TLS to another machine.
    :param reactor: the reactor; by default the global one.

    :ivar url: the base URL.
    :raises ValueError: the URL is invalid, or credentials would be sent without TLS.
    """

    def __init__(
        self,
        url: str | BaseURL,
        *,
        token: Token | None = None,
        user: tuple[str, str] | None = None,
        tls: IOpenSSLClientConnectionCreator | None = None,
        timeouts: Timeouts | None = None,
        retries: int = 2,
        headers: Mapping[str, str] | None = None,
        clear_credentials: bool = False,
        reactor: Any = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        base = url if isinstance(url, BaseURL) else BaseURL.parse(url)
        if (token or user) and not (base.secure or base.is_loopback or clear_credentials):
            raise ValueError(f"credentials would be sent to {base.host} without TLS: use https, or clear_credentials")
        self.url = base
        self.reactor = reactor
        self._http = HTTPClient(
            reactor, base, token=token, user=user, tls=tls, timeouts=timeouts, retries=retries, headers=headers
        )
        self.executor = Executor(reactor, "dicomweb", THREADS)
        self._batches = Batches(self._http, self.executor)

    def __repr__(self) -> str:
        return f"<DICOMwebClient {self.url}>"

    async def __aenter__(self) -> DICOMwebClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def close(self) -> Deferred[None]:
        """Close the connections that no request uses."""
        return self._http.close()

    # --- search (PS3.18 10.6)

    def search_for_studies(
        self,
        keys: Keys | None = None,
        *,
        include: Iterable[str | int] = (),
        fuzzy: bool = False,
        limit: int | None = None,
        offset: int = 0,
        page: int = PAGE,
    ) -> AsyncGenerator[Dataset, None]:
        """
        Search for studies, and yield a Dataset for each.

        :param keys: the keys to match, such as ``{"PatientName": "DOE*", "StudyDate": "20240101-"}``; or an identifier.
        :param include: further attributes to return: keywords, tags, or ``"all"``.
        :param fuzzy: whether names that sound alike match; a server may ignore it.
        :param limit: the most matches; by default all, which are asked for in pages.
        :param offset: the number of matches to leave out.
        :param page: the number of matches that are asked for at a time.
        :raises ParameterError: a key is not an attribute, when the first match is asked for.
        """
        return self._search("studies", keys, include, fuzzy, limit, offset, page)

    def search_for_series(
        self,
        study: str = "",
        keys: Keys | None = None,
        *,
        include: Iterable[str | int] = (),
        fuzzy: bool = False,
        limit: int | None = None,
        offset: int = 0,
        page: int = PAGE,
    ) -> AsyncGenerator[Dataset, None]:
        """
        Search for series, see :meth:`search_for_studies`.

        :param study: the Study Instance UID; by default the series of all studies are searched.
        """
        path = f"studies/{uid_of(study)}/series" if study else "series"
        return self._search(path, keys, include, fuzzy, limit, offset, page)

    def search_for_instances(
        self,
        study: str = "",
        series: str = "",
        keys: Keys | None = None,
        *,
        include: Iterable[str | int] = (),
        fuzzy: bool = False,
        limit: int | None = None,
        offset: int = 0,
        page: int = PAGE,
    ) -> AsyncGenerator[Dataset, None]:
        """
        Search for instances, see :meth:`search_for_studies`.

        :param study: the Study Instance UID; by default the instances of all studies are searched.
        :param series: the Series Instance UID; by default the instances of all series of the study are searched.
        """
        return self._search(path_of(study, series, instance=None), keys, include, fuzzy, limit, offset, page)

    @deferred_items
    async def _search(
        self,
        path: str,
        keys: Keys | None,
        include: Iterable[str | int],
        fuzzy: bool,
        limit: int | None,
        offset: int,
        page: int,
    ) -> AsyncGenerator[Dataset, None]:
        included = tuple(include)
        left = limit
        first = None
        while left is None or left > 0:
            size = page if left is None else min(page, left)
            query = search_query(keys, include=included, fuzzy=fuzzy, limit=size, offset=offset)
            response = await self._get(f"{self.url}/{path}?{query}", DICOM_JSON, f"{DICOM_JSON}, {JSON};q=0.9")
            count = 0
            async for match in datasets_of(response, self.executor):
                if not count:
                    unique = tuple(str(match.get(keyword) or "") for keyword in _UNIQUE)
                    if offset and any(unique) and unique == first:
                        return  # the server ignores the offset, and sends the first page again and again
                    first = unique
                count += 1
                yield match
                if left is not None and count >= left:
                    return
            # A server may have a limit of its own, and then says with a Warning that there is more (PS3.18 8.3.4.4).
            if not count or (count < size and not response.header("warning").startswith("299")):
                return
            if count > size:
                return  # the server ignores the limit, and has sent all
            offset += count
            left = None if left is None else left - count

    # --- retrieval (PS3.18 10.4)

    def retrieve_study(self, study: str, *, transfer_syntax: str = "*") -> AsyncGenerator[Part, None]:
        """
        Retrieve the instances of a study, as PS3.10 files.

        :param transfer_syntax: the UID of the transfer syntax to convert to; by default they are left as the server has them.
        """
        return self._parts(path_of(study), _INSTANCES + transfer_syntax)

    def retrieve_series(self, study: str, series: str, *, transfer_syntax: str = "*") -> AsyncGenerator[Part, None]:
        """Retrieve the instances of a series, see :meth:`retrieve_study`."""
        return self._parts(path_of(study, series), _INSTANCES + transfer_syntax)

    def retrieve_instance(
        self, study: str, series: str, instance: str, *, transfer_syntax: str = "*"
    ) -> AsyncGenerator[Part, None]:
        """Retrieve one instance, see :meth:`retrieve_study`."""
        return self._parts(path_of(study, series, instance), _INSTANCES + transfer_syntax)

    def retrieve_metadata(self, study: str, series: str = "", instance: str = "") -> AsyncGenerator[Dataset, None]:
        """
        Retrieve the attributes of the instances of a study, series or instance, and yield a Dataset for each.

        Values that the server gives a BulkDataURI for, such as Pixel Data, are empty.
        """
        return self._metadata(f"{path_of(study, series, instance)}/metadata")

    @deferred_items
    async def _metadata(self, path: str) -> AsyncGenerator[Dataset, None]:
        response = await self._get(f"{self.url}/{path}", DICOM_JSON, f"{DICOM_JSON}, {JSON};q=0.9")
        async for dataset in datasets_of(response, self.executor):
            yield dataset

    def retrieve_frames(
        self, study: str, series: str, instance: str, frames: Sequence[int] = (1,), *, media_type: str = ""
    ) -> AsyncGenerator[Part, None]:
        """
        Retrieve frames of an instance.

        :param frames: their numbers, from 1.
        :param media_type: the media type of the frames, such as ``image/jls``; by default they are left as the server has
            them, and :attr:`~dicomtwist.dicomweb.Part.media_type` says as what.
        """
        if not frames or any(number < 1 for number in frames):
            raise ValueError("frames have numbers from 1")
        numbers = ",".join(map(str, frames))
        kind = media_type or OCTET_STREAM
        # One media range alone: Orthanc answers 400 to others.
        accept = f'{RELATED}; type="{kind}"' + ("" if media_type else "; transfer-syntax=*")
        return self._parts(f"{path_of(study, series, instance)}/frames/{numbers}", accept)

    def retrieve_bulkdata(
        self, uri: str, *, first: int = 0, last: int | None = None, media_type: str = ""
    ) -> AsyncGenerator[Part, None]:
        """
        Retrieve bulk data.

        :param uri: its BulkDataURI, absolute or relative to the base URL.
        :param first: the first byte that is wanted.
        :param last: the last byte that is wanted; by default all. A server may send all the same.
        """
        kind = media_type or OCTET_STREAM
        accept = f'{RELATED}; type="{kind}"; transfer-syntax=*, {kind};q=0.9' + ("" if media_type else ", */*;q=0.8")
        ranges = {} if not first and last is None else {"Range": f"bytes={first}-{'' if last is None else last}"}
        return self._parts_at(urljoin(f"{self.url}/", uri), accept, ranges)

    def retrieve_rendered(
        self,
        study: str,
        series: str = "",
        instance: str = "",
        *,
        frame: int | None = None,
        media_type: str = JPEG,
        thumbnail: bool = False,
        parameters: Mapping[str, str] | None = None,
    ) -> Deferred[bytes]:
        """
        Retrieve a rendered image (PS3.18 10.4.1.1.3), or a thumbnail.

        :param frame: the frame of the instance, from 1.
        :param media_type: ``image/jpeg``, ``image/png`` or another that the server has.
        :param thumbnail: whether the thumbnail is wanted.
        :param parameters: query parameters such as ``{"window": "40,400,linear", "viewport": "512,512"}``.
        """
        path = path_of(study, series, instance)
        if frame is not None:
            path += f"/frames/{frame}"
        query = f"?{urlencode(parameters, safe=',')}" if parameters else ""
        return self._deferred(self._rendered(f"{path}/{'thumbnail' if thumbnail else 'rendered'}{query}", media_type))

    async def _rendered(self, path: str, media_type: str) -> bytes:
        response = await self._get(f"{self.url}/{path}", "", media_type)
        if response.media_type.name != RELATED:
            return await read_all(response.body, MAX_RESPONSE)
        async for part in parts_of(response, self.executor):
            return await part.read(MAX_RESPONSE)
        raise InvalidResponse("the response has no part")

    def _parts(self, path: str, accept: str) -> AsyncGenerator[Part, None]:
        return self._parts_at(f"{self.url}/{path}", accept, {})

    @deferred_items
    async def _parts_at(self, url: str, accept: str, headers: Mapping[str, str]) -> AsyncGenerator[Part, None]:
        response = await self._get(url, "", accept, headers)
        with self.executor.in_use():
            async for part in parts_of(response, self.executor):
                yield part

    async def _get(self, url: str, wanted: str, accept: str, headers: Mapping[str, str] | None = None) -> Response:
        """
        Send a GET request.

        :param wanted: the media type that the response has to have; empty for any.
        """
        fields = {"Accept": accept, **(headers or {})}
        if wanted:
            fields["Accept-Encoding"] = "gzip"
        response = await self._http.request("GET", url, headers=fields)
        got = response.media_type.name
        if wanted and response.status != 204 and got not in (wanted, JSON, OCTET_STREAM):
            response.body.abort()
            raise InvalidResponse(
                f"the response has the media type {got[:100]}, not {wanted}: is this a DICOMweb service?"
            )
        return response

    # --- storage (PS3.18 10.5)

    def store_instances(
        self,
        instances: Source | Iterable[Source] | AsyncIterable[Source],
        *,
        study: str = "",
        on_result: Callable[[StoredInstance], object] | None = None,
        max_batch: int = MAX_BATCH,
        max_batch_bytes: int = MAX_BATCH_BYTES,
    ) -> Deferred[StoreResult]:
        """
        Store instances.

        They are taken one at a time and sent in batches, each in one request. Files are read while they are sent. If the
        server refuses a batch as a whole, and one instance may be the reason, the batch is divided.

        :param instances: paths of files, the bytes of PS3.10 files, or Datasets.
        :param study: the Study Instance UID that all have to have.
        :param on_result: called with the result of each instance.
        :param max_batch: the most instances of one request.
        :param max_batch_bytes: the most bytes of several instances of one request.
        :returns: a Deferred with the counts; it fails if the server cannot be reached, or refuses the user.
        """
        return self._deferred(self._batches.store(instances, study, on_result, max_batch, max_batch_bytes))

    def store_batch(
        self,
        batch: Sequence[Outgoing],
        *,
        study: str = "",
        on_written: Callable[[int], object] | None = None,
    ) -> Deferred[list[StoredInstance]]:
        """
        Store prepared instances with one request, or with several if the server refuses them together.

        :param batch: the instances, from :func:`~dicomtwist.dicomweb.client.storing.prepare`.
        :param on_written: called with the number of bytes whenever the connection has taken some.
        :returns: a Deferred with their results in the same order, see :meth:`store_instances`.
        """
        return self._deferred(self._batches.store_batch(list(batch), study, on_written))

    # --- deletion

    def delete_study(self, study: str) -> Deferred[None]:
        """Delete a study, if the server offers that; the standard does not have it."""
        return self._deferred(self._delete(path_of(study)))

    def delete_series(self, study: str, series: str) -> Deferred[None]:
        """Delete a series, see :meth:`delete_study`."""
        return self._deferred(self._delete(path_of(study, series)))

    def delete_instance(self, study: str, series: str, instance: str) -> Deferred[None]:
        """Delete an instance, see :meth:`delete_study`."""
        return self._deferred(self._delete(path_of(study, series, instance)))

    async def _delete(self, path: str) -> None:
        # Not repeated after a lost connection: the second would answer 404 for a study that the first has deleted.
        response = await self._http.request("DELETE", f"{self.url}/{path}", may_repeat=False)
        await read_all(response.body, MAX_RESPONSE)

    # --- helpers

    @staticmethod
    def _deferred(coroutine: Coroutine[Any, Any, T]) -> Deferred[T]:
        return Deferred.fromCoroutine(coroutine)


_UNIQUE: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
