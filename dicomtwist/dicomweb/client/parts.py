"""
The parts of a response: instances, frames, bulk data; one after another, while they arrive.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from io import BytesIO
from typing import Final

from pydicom import Dataset, dcmread

from dicomtwist.dicomweb.client.body import IncomingBody
from dicomtwist.dicomweb.client.errors import InvalidResponse
from dicomtwist.dicomweb.client.http import Response
from dicomtwist.dicomweb.media_types import RELATED, MediaType, MediaTypeError
from dicomtwist.dicomweb.multipart import (
    MultipartCutter,
    MultipartError,
    PartBegins,
    PartData,
    PartEnds,
    boundary_of,
)
from dicomtwist.eventloop.coroutines import deferred_items
from dicomtwist.runtime.executors import Executor

__all__ = ["Part", "parts_of"]

#: The most bytes of one part that :meth:`Part.read` collects by default.
MAX_PART: Final = 1024 * 1024 * 1024
#: The most bytes behind the last part that are read to use the connection again.
MAX_EPILOGUE: Final = 64 * 1024


class Part:
    """
    One part of a response, whose content may still arrive: an asynchronous iterator of its pieces.

    The rest of it is dropped when the next part is asked for.

    :ivar headers: its header fields, by their names in lower case.
    """

    def __init__(self, headers: dict[str, str], pieces: AsyncIterator[bytes | memoryview], executor: Executor) -> None:
        self.headers = headers
        self._pieces = pieces
        self._executor = executor

    def __repr__(self) -> str:
        return f"<Part {self.headers.get('content-type', 'without a Content-Type')}>"

    @property
    def media_type(self) -> MediaType:
        """Its media type; ``application/octet-stream`` without one."""
        try:
            return MediaType.parse(self.headers.get("content-type", ""))
        except MediaTypeError:
            return MediaType("application/octet-stream", {})

    @property
    def location(self) -> str:
        """The URL of what it contains (Content-Location); empty without one."""
        return self.headers.get("content-location", "")

    def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        return self._pieces

    async def read(self, limit: int = MAX_PART) -> bytes:
        """
        Return the content.

        :param limit: the most bytes.
        :raises InvalidResponse: there are more, or the response is cut off.
        """
        pieces: list[bytes | memoryview] = []
        size = 0
        async for piece in self._pieces:
            size += len(piece)
            if size > limit:
                raise InvalidResponse(f"a part of more than {limit} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    async def dataset(self, limit: int = MAX_PART) -> Dataset:
        """
        Return the content, a PS3.10 file, as a Dataset. A thread decodes it.

        :param limit: the most bytes.
        :raises InvalidResponse: it is no such file, or there are more bytes.
        """
        content = await self.read(limit)
        return await self._executor.run(_decoded, content)


def _decoded(content: bytes) -> Dataset:
    try:
        dataset: Dataset = dcmread(BytesIO(content))
    except Exception as error:
        # pydicom raises whatever damaged files make it raise.
        raise InvalidResponse("a part is not an instance that can be decoded") from error
    return dataset


@deferred_items
async def parts_of(response: Response, executor: Executor) -> AsyncGenerator[Part, None]:
    """
    Yield the parts of a response; a response that is not multipart is one part. Leaving the loop early closes the connection.

    :raises InvalidResponse: the response is malformed, or cut off.
    :raises NoConnection: the connection was lost.
    """
    body, media_type = response.body, response.media_type
    try:
        if response.status == 204:
            return
        if media_type.name != RELATED:
            headers = {
                name.decode("latin-1").lower(): values[0].decode("latin-1")
                for name, values in response.headers.getAllRawHeaders()
            }
            part = Part(headers, body, executor)
            yield part
            async for _ in body:
                pass
            return
        events = _Events(body, MultipartCutter(boundary_of(media_type.parameters.get("boundary", ""))))
        while (begins := await events.next()) is not None:
            assert isinstance(begins, PartBegins)
            content = events.content()
            yield Part(begins.headers, content, executor)
            async for _ in content:
                pass
    except MultipartError as error:
        raise InvalidResponse(f"the response is malformed: {error}") from None
    finally:
        body.abort()


class _Events:
    """The events of a multipart body, one at a time."""

    def __init__(self, body: IncomingBody, cutter: MultipartCutter) -> None:
        self._body = body
        self._cutter = cutter
        self._events: list[PartBegins | PartData | PartEnds] = []

    async def next(self) -> PartBegins | PartData | PartEnds | None:
        """
        Return the next event; ``None`` at the end of the body.

        :raises InvalidResponse: the body is malformed or cut off.
        """
        try:
            return await self._next()
        except MultipartError as error:
            raise InvalidResponse(f"the response is malformed: {error}") from None

    async def _next(self) -> PartBegins | PartData | PartEnds | None:
        while not self._events:
            if self._cutter.closed:
                await self._read_epilogue()
                return None
            try:
                piece = await anext(self._body)
            except StopAsyncIteration:
                self._cutter.finish()
                return None
            self._events = self._cutter.feed(piece)[::-1]
        return self._events.pop()

    async def _read_epilogue(self) -> None:
        """Read what follows the last part, so that the connection can be used again; a long one is not waited for."""
        left = MAX_EPILOGUE
        async for piece in self._body:
            left -= len(piece)
            if left < 0:
                self._body.abort()
                return

    def content(self) -> AsyncIterator[memoryview]:
        """Return the pieces of the part that has begun."""
        return _Content(self)


class _Content(AsyncIterator[memoryview]):
    """The pieces of one part. A generator would take longer for each, see :func:`deferred_items`."""

    def __init__(self, events: _Events) -> None:
        self._events: _Events | None = events

    async def __anext__(self) -> memoryview:
        if self._events is not None:
            event = await self._events.next()
            if isinstance(event, PartData):
                return event.data
            self._events = None
        raise StopAsyncIteration
