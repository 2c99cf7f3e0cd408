"""
The client of DICOMweb for both faces: its options, and the requests that wait for the reactor of a face.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from twisted.internet.interfaces import IOpenSSLClientConnectionCreator

from dicomtwist.eventloop.coroutines import SteppedItems, to_deferred

if TYPE_CHECKING:
    from dicomtwist.archive.storage.types import Durability
    from dicomtwist.dicomweb.client import BaseURL, DICOMwebClient, Part, StoredInstance, Timeouts
    from dicomtwist.dicomweb.client.http import Token
    from dicomtwist.dicomweb.media_types import MediaType
    from dicomtwist.retrieval import Layout, Progress, RequestResult

__all__ = ["ClientFace", "ClientOptions", "FolderOptions", "PartFace", "SearchOptions", "StoreOptions", "sources"]


class ClientOptions(TypedDict, total=False):
    """The options of :class:`dicomtwist.dicomweb.DICOMwebClient`."""

    token: Token | None
    user: tuple[str, str] | None
    tls: IOpenSSLClientConnectionCreator | None
    timeouts: Timeouts | None
    retries: int
    headers: Mapping[str, str] | None
    clear_credentials: bool


class SearchOptions(TypedDict, total=False):
    """The options of :meth:`dicomtwist.dicomweb.DICOMwebClient.search_for_studies`."""

    include: Iterable[str | int]
    fuzzy: bool
    limit: int | None
    offset: int
    page: int


class StoreOptions(TypedDict, total=False):
    """The options of :meth:`dicomtwist.dicomweb.DICOMwebClient.store_instances`."""

    study: str
    on_result: Callable[[StoredInstance], object] | None
    max_batch: int
    max_batch_bytes: int


class FolderOptions(TypedDict, total=False):
    """The options of :func:`dicomtwist.retrieval.retrieve_from_web`."""

    layout: str | Layout
    sop_classes: Sequence[str]
    connections: int
    retries: int
    durability: Durability | str
    min_free: int
    overwrite: bool
    on_result: Callable[[RequestResult], object] | None
    on_progress: Callable[[Progress], object] | None


class ClientFace:
    """
    A client of a face, and the client below it for the reactor that runs now.

    :param url: the base URL.
    :param options: those of the client.
    """

    def __init__(self, url: str | BaseURL, **options: Unpack[ClientOptions]) -> None:
        from dicomtwist.dicomweb.client import DICOMwebClient

        token = options.get("token")
        if callable(token):
            options["token"] = _in_reactor(token)
        self._options = options
        # Its arguments are checked now. It has no connection yet, and gets the reactor with its first request.
        self._inner: DICOMwebClient = DICOMwebClient(url, reactor=_NoReactor(), **options)

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def url(self) -> BaseURL:
        """The base URL."""
        return self._inner.url

    def inner_for(self, reactor: Any) -> DICOMwebClient:
        """Return the client below for *reactor*; call it in the thread of that."""
        if self._inner.reactor is not reactor:
            self._inner = type(self._inner)(self.url, reactor=reactor, **self._options)
        return self._inner


class _NoReactor:
    """The reactor of a client that has made no request."""


def _in_reactor(token: Callable[[], str | Awaitable[str]]) -> Callable[[], str | Awaitable[str]]:
    """Return *token* for code that awaits Deferreds; it may return an awaitable of asyncio."""

    def made() -> str | Awaitable[str]:
        found = token()
        return found if isinstance(found, str) else to_deferred(found)

    return made


def sources(instances: Any) -> Any:
    """Return instances to store for code that awaits Deferreds; an asynchronous generator may await those of asyncio."""
    return SteppedItems(aiter(instances)) if isinstance(instances, AsyncIterable) else instances


class PartFace:
    """
    A part of a response for a face.

    :ivar inner: the part below.
    """

    def __init__(self, inner: Part) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return repr(self.inner)

    @property
    def headers(self) -> dict[str, str]:
        """Its header fields, by their names in lower case."""
        return self.inner.headers

    @property
    def media_type(self) -> MediaType:
        """Its media type; ``application/octet-stream`` without one."""
        return self.inner.media_type

    @property
    def location(self) -> str:
        """The URL of what it contains (Content-Location); empty without one."""
        return self.inner.location
