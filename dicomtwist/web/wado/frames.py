"""
Frames of instances (PS3.18 10.4.1.1.6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dicomtwist.access.rules import Operation
from dicomtwist.archive.reading.frames import FrameTable
from dicomtwist.archive.reading.stored_file import StoredFile
from dicomtwist.archive.storage.types import InstanceUIDs
from dicomtwist.dicomweb.media_types import Category
from dicomtwist.dicomweb.rendered import parse_frames
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services
from dicomtwist.web.wado.delivery import NOT_ACCEPTABLE, OpenPart, open_stored, quoted, send_one, send_parts

__all__ = ["ROUTES", "send_frames"]


async def retrieve_frames(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with frames of an instance."""
    numbers = parse_frames(values["frames"])
    uids = (values["study"], values["series"], values["instance"])
    stored, table = await open_stored(request, services, uids, lambda one: services.frame_tables.of(uids, one))
    await send_frames(request, services, uids, stored, table, numbers)


async def send_frames(
    request: DICOMwebRequest,
    services: Services,
    uids: InstanceUIDs,
    stored: StoredFile,
    table: FrameTable,
    numbers: tuple[int, ...],
) -> None:
    """
    Answer with frames.

    :param stored: the instance, which is closed in the end.
    :param numbers: the numbers of the frames, from 1.
    """
    try:
        if max(numbers) > table.count:
            raise Problem(404, f"the instance has {table.count} frames")
        syntax = stored.meta.transfer_syntax_uid
        is_single = len(numbers) == 1
        representation = request.accept.negotiate(Category.FRAMES, stored=syntax, single=is_single)
        if representation is None:
            raise Problem(406, NOT_ACCEPTABLE)
    except BaseException:
        stored.close()
        raise
    given = representation.transfer_syntax or syntax
    etag = quoted(stored.version, "-".join(map(str, numbers[:16])), given[-12:], f"{representation.multipart:d}")
    frames = [table.frame(stored.data, number) for number in numbers]
    if not representation.multipart:
        content_type = representation.content_type(transfer_syntax=given)
        await send_one(request, services, frames[0], content_type, etag, stored.close)
        return
    part_type = representation.part_type(given)
    url = f"{request.base_url}/studies/{uids[0]}/series/{uids[1]}/instances/{uids[2]}/frames"
    parts = [
        OpenPart((("Content-Type", part_type), ("Content-Location", f"{url}/{number}")), frame)
        for number, frame in zip(numbers, frames, strict=True)
    ]
    await send_parts(request, services, parts, representation, etag, stored.close)


ROUTES: Final = (
    Route(
        "GET",
        "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}",
        frozenset((Operation.GET,)),
        retrieve_frames,
        "frames of an instance",
    ),
)
