"""
Bulk data of instances (PS3.18 10.4.1.1.5): the values that BulkDataURIs of the metadata lead to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dicomtwist.access.rules import Operation
from dicomtwist.archive.reading.bulk_data import PIXEL_DATA, media_type_of, read_document, read_value
from dicomtwist.archive.reading.content import Content
from dicomtwist.archive.reading.frames import FrameTable
from dicomtwist.archive.reading.stored_file import StoredFile
from dicomtwist.archive.storage.types import InstanceUIDs
from dicomtwist.dicomweb.bulk_data import parse_path
from dicomtwist.dicomweb.media_types import OCTET_STREAM, Category
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services
from dicomtwist.web.wado.delivery import NOT_ACCEPTABLE, OpenPart, open_stored, quoted, send_one, send_parts
from dicomtwist.web.wado.frames import send_frames

__all__ = ["ROUTES", "send_document"]


async def retrieve_bulk_data(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the value of an element."""
    path = parse_path(values["path"])
    if path is None:
        raise Problem(404, "there is no such bulk data")
    uids = (values["study"], values["series"], values["instance"])
    if path in PIXEL_DATA:
        await _retrieve_pixels(request, services, uids)
        return

    def read(stored: StoredFile) -> tuple[Content, str]:
        return read_value(stored, path), media_type_of(stored, path)

    stored, (content, media_type) = await open_stored(request, services, uids, read)
    try:
        offers = (media_type,) if media_type else ()
        await _send(request, services, stored, content, values["path"].upper(), offers)
    except BaseException:
        stored.close()
        raise


async def retrieve_pixel_data(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the pixel data of an instance (PS3.18 10.4.1.1.7)."""
    await _retrieve_pixels(request, services, (values["study"], values["series"], values["instance"]))


async def _retrieve_pixels(request: DICOMwebRequest, services: Services, uids: tuple[str, str, str]) -> None:
    """Answer with pixel data: native as one value, encapsulated as one part a frame."""

    def read(stored: StoredFile) -> FrameTable:
        return services.frame_tables.of(uids, stored)

    stored, table = await open_stored(request, services, uids, read, is_sent=True)
    if table.is_encapsulated:
        await send_frames(request, services, uids, stored, table, range(1, table.count + 1))
        return
    try:
        await _send(request, services, stored, table.whole(stored.data), "pixels")
    except BaseException:
        stored.close()
        raise


async def send_document(request: DICOMwebRequest, services: Services, uids: InstanceUIDs) -> bool:
    """
    Answer with the document or the video that an instance is, in its own media type (PS3.18 Table 8.7.4-1).

    :returns: ``False`` without an answer, if it is neither, or the client does not accept its media type.
    """
    stored, found = await open_stored(request, services, uids, read_document)
    try:
        accepted = found and request.accept.negotiate(Category.RENDERED, offers=(found[1],))
        if not found or not accepted or accepted.multipart:
            stored.close()
            return False
    except BaseException:
        stored.close()
        raise
    content, media_type = found
    _restrict(request, media_type)
    await send_one(request, services, content, media_type, quoted(stored.version, "document"), stored.close)
    return True


def _restrict(request: DICOMwebRequest, media_type: str) -> None:
    """
    Let a browser show a document of *media_type*, but not run it.

    The sandbox of all responses keeps HTML or SVG, which anybody may have stored, from acting for the user. Browsers show no
    PDF in it, so that is without one; scripts in it have no access to pages.
    """
    if media_type == "application/pdf":
        request.set_header(
            "Content-Security-Policy", "default-src 'self'; object-src 'self'; style-src 'unsafe-inline'"
        )


async def _send(
    request: DICOMwebRequest,
    services: Services,
    stored: StoredFile,
    content: Content,
    name: str,
    offers: tuple[str, ...] = (),
) -> None:
    representation = request.accept.negotiate(Category.BULKDATA, single=True, offers=offers or (OCTET_STREAM,))
    if representation is None:
        raise Problem(406, NOT_ACCEPTABLE)
    if offers and not representation.multipart:
        _restrict(request, representation.media_type)
    etag = quoted(stored.version, name.replace("/", "."), f"{representation.multipart:d}")
    if representation.multipart:
        part = OpenPart((("Content-Type", representation.part_type()),), content)
        await send_parts(request, services, lambda: iter([part]), 1, representation, etag, stored.close)
    else:
        await send_one(request, services, content, representation.content_type(), etag, stored.close)


ROUTES: Final = (
    Route(
        "GET",
        "/studies/{study}/series/{series}/instances/{instance}/bulkdata/{path...}",
        frozenset((Operation.GET,)),
        retrieve_bulk_data,
        "bulk data of an instance",
    ),
    Route(
        "GET",
        "/studies/{study}/series/{series}/instances/{instance}/pixeldata",
        frozenset((Operation.GET,)),
        retrieve_pixel_data,
        "pixel data of an instance",
    ),
)
