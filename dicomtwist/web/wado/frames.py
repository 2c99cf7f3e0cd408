"""
Frames of instances (PS3.18 10.4.1.1.6).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Final

from dicomtwist.access.rules import Operation
from dicomtwist.archive.reading.frames import FrameTable
from dicomtwist.archive.reading.stored_file import StoredFile
from dicomtwist.archive.storage.types import InstanceUIDs
from dicomtwist.datasets.element_headers import EXPLICIT_LITTLE_ENDIAN
from dicomtwist.dicomweb.media_types import Category, Representation
from dicomtwist.dicomweb.multipart import MultipartWriter
from dicomtwist.dicomweb.rendered import parse_frames
from dicomtwist.errors import DataSetError
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services
from dicomtwist.web.wado.alternatives import first_made, is_of_representation
from dicomtwist.web.wado.delivery import (
    NOT_ACCEPTABLE,
    OpenPart,
    open_stored,
    problems_of_files,
    quoted,
    reading,
    send_one,
    send_parts,
)
from dicomtwist.web.wado.transcoding import convertible

__all__ = ["ROUTES", "send_frames"]


async def retrieve_frames(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with frames of an instance."""
    numbers = parse_frames(values["frames"])
    uids = (values["study"], values["series"], values["instance"])
    stored, table = await open_stored(
        request, services, uids, lambda one: services.frame_tables.of(uids, one), is_sent=True
    )
    await send_frames(request, services, uids, stored, table, numbers)


async def send_frames(
    request: DICOMwebRequest,
    services: Services,
    uids: InstanceUIDs,
    stored: StoredFile,
    table: FrameTable,
    numbers: Sequence[int],
) -> None:
    """
    Answer with frames.

    :param stored: the instance, which is closed in the end.
    :param numbers: the numbers of the frames, from 1.
    """
    try:
        if max(numbers) > table.count:
            raise Problem(404, f"the instance has {table.count} frames")
        if table.count != table.stated:
            request.warn(f"Number of Frames is {table.stated}, but the pixel data has {table.count} frames")
        syntax = stored.meta.transfer_syntax_uid
        alternatives = request.accept.alternatives(
            Category.FRAMES, stored=syntax, convertible=convertible(services, syntax), single=len(numbers) == 1
        )
        if not alternatives:
            raise Problem(406, NOT_ACCEPTABLE)
        representation = alternatives[0]
        if not _is_kept(stored, table, representation):
            await _send_made(request, _Frames(request, services, uids, stored, table, alternatives), numbers)
            return
    except BaseException:
        stored.close()
        raise
    given = representation.transfer_syntax or syntax
    etag = quoted(stored.version, _named(numbers), given[-12:], f"{representation.multipart:d}")
    source = stored.data
    if not representation.multipart:
        content_type = representation.content_type(transfer_syntax=given)
        await send_one(request, services, table.frame(source, numbers[0]), content_type, etag, stored.close)
        return

    def parts() -> Iterator[OpenPart]:
        for number in numbers:
            yield OpenPart(_headers(request, uids, number, representation, given), table.frame(source, number))

    await send_parts(request, services, parts, len(numbers), representation, etag, stored.close)


def _named(numbers: Sequence[int]) -> str:
    """Return a short text that is another one for other *numbers*."""
    text = repr(numbers) if isinstance(numbers, range) else ".".join(map(str, numbers))
    return text if len(text) <= 32 else blake2b(text.encode(), digest_size=16).hexdigest()


def _headers(
    request: DICOMwebRequest, uids: InstanceUIDs, number: int, representation: Representation, syntax: str
) -> tuple[tuple[str, str], ...]:
    """Return the header fields of the part with a frame."""
    url = f"{request.base_url}/studies/{uids[0]}/series/{uids[1]}/instances/{uids[2]}/frames/{number}"
    return (("Content-Type", representation.part_type(syntax)), ("Content-Location", url))


def _is_kept(stored: StoredFile, table: FrameTable, representation: Representation) -> bool:
    """Return whether the bytes of a frame are those of the file."""
    given = representation.transfer_syntax
    if given is None or given == stored.meta.transfer_syntax_uid:
        return True
    return not table.is_encapsulated and given == EXPLICIT_LITTLE_ENDIAN


class _Frames:
    """
    Makes frames, each in the first of several representations that it can be given in.

    :param stored: the instance.
    :param table: its frames.
    :param alternatives: the representations, the best first.
    """

    def __init__(
        self,
        request: DICOMwebRequest,
        services: Services,
        uids: InstanceUIDs,
        stored: StoredFile,
        table: FrameTable,
        alternatives: Sequence[Representation],
    ) -> None:
        self.stored = stored
        self.alternatives = alternatives
        self._request, self._services, self._uids, self._table = request, services, uids, table

    async def single(self, number: int) -> tuple[bytes, Representation]:
        """
        Return a frame and its representation.

        :raises DataSetError: it cannot be given in any; the error is that of the first.
        """
        what = f"a frame of instance {self._uids[2]}"
        return await first_made(self.alternatives, lambda one: self._made(number, one), what)

    async def _made(self, number: int, representation: Representation) -> tuple[bytes, Representation]:
        if _is_kept(self.stored, self._table, representation):
            content = self._table.frame(self.stored.data, number)
            share = reading(self._request, self._services)
            return await share.run_admitted(lambda: b"".join(content.pieces())), representation
        frames = self._converted((number,), representation)
        try:
            with problems_of_files():
                return await anext(frames), representation
        finally:
            await frames.aclose()

    def _converted(self, numbers: Sequence[int], representation: Representation) -> AsyncGenerator[bytes, None]:
        """Return frames that the processes for images convert."""
        pixels, syntax = self._services.pixels, representation.transfer_syntax
        assert pixels is not None and syntax, "nothing is negotiated that these processes would have to do"
        return pixels.frames(self._services.files.path(self._uids), numbers, syntax, peer=self._request.peer)

    async def parts(
        self, writer: MultipartWriter, numbers: Sequence[int], first: bytes, given: Representation
    ) -> AsyncIterator[bytes]:
        """
        Yield the bytes of a multipart body. Its parts are frames, several of which are converted in one job. The one that fails
        is given in the next representation; those behind it are converted again.

        :param first: the first frame.
        :param given: its representation.
        """
        yield self._begin(writer, numbers[0], given)
        yield first
        at = 1
        while at < len(numbers):
            best = self.alternatives[0]
            frames = self._converted(numbers[at:], best)
            try:
                async for frame in frames:
                    yield self._begin(writer, numbers[at], best)
                    yield frame
                    at += 1
            except DataSetError as error:
                if not is_of_representation(error):
                    raise
                frame, given = await self.single(numbers[at])
                yield self._begin(writer, numbers[at], given)
                yield frame
                at += 1
            finally:
                await frames.aclose()
        yield writer.end()

    def _begin(self, writer: MultipartWriter, number: int, representation: Representation) -> bytes:
        syntax = representation.transfer_syntax or self.stored.meta.transfer_syntax_uid
        return writer.begin(_headers(self._request, self._uids, number, representation, syntax))


async def _send_made(request: DICOMwebRequest, frames: _Frames, numbers: Sequence[int]) -> None:
    """Answer with frames that are converted."""
    content, given = await frames.single(numbers[0])
    if not given.multipart:
        frames.stored.close()
        syntax = given.transfer_syntax or frames.stored.meta.transfer_syntax_uid
        request.answer(content, given.content_type(transfer_syntax=syntax))
        return
    frames.alternatives = [one for one in frames.alternatives if one.multipart]
    writer = MultipartWriter()
    try:
        await request.stream(frames.parts(writer, numbers, content, given), given.content_type(writer.boundary))
    finally:
        frames.stored.close()


ROUTES: Final = (
    Route(
        "GET",
        "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}",
        frozenset((Operation.GET,)),
        retrieve_frames,
        "frames of an instance",
    ),
)
