"""
Frames of instances (PS3.18 10.4.1.1.6).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
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
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services
from dicomtwist.web.wado.delivery import NOT_ACCEPTABLE, OpenPart, open_stored, quoted, send_one, send_parts
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
        is_single = len(numbers) == 1
        representation = request.accept.negotiate(
            Category.FRAMES, stored=syntax, convertible=convertible(services, syntax), single=is_single
        )
        if representation is None:
            raise Problem(406, NOT_ACCEPTABLE)
    except BaseException:
        stored.close()
        raise
    given = representation.transfer_syntax or syntax
    if given != syntax and (table.is_encapsulated or given != EXPLICIT_LITTLE_ENDIAN):
        stored.close()
        await _send_transcoded(request, services, uids, numbers, representation, given)
        return
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


async def _send_transcoded(
    request: DICOMwebRequest,
    services: Services,
    uids: InstanceUIDs,
    numbers: Sequence[int],
    representation: Representation,
    syntax: str,
) -> None:
    """Answer with frames that the processes for images convert."""
    assert services.pixels is not None, "nothing is negotiated that these processes would have to do"
    frames = services.pixels.frames(services.files.path(uids), numbers, syntax, peer=request.peer)
    if not representation.multipart:
        try:
            content = await anext(frames)
        finally:
            await frames.aclose()
        request.answer(content, representation.content_type(transfer_syntax=syntax))
        return
    writer = MultipartWriter()

    async def pieces() -> AsyncIterator[bytes]:
        at = 0
        try:
            async for frame in frames:
                yield writer.begin(_headers(request, uids, numbers[at], representation, syntax))
                yield frame
                at += 1
        finally:
            await frames.aclose()
        yield writer.end()

    await request.stream(pieces(), representation.content_type(writer.boundary))


ROUTES: Final = (
    Route(
        "GET",
        "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}",
        frozenset((Operation.GET,)),
        retrieve_frames,
        "frames of an instance",
    ),
)
