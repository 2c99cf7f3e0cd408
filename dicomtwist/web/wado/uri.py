"""
WADO-URI: an instance by the parameters of a query, as a Part 10 file or rendered (PS3.18 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from dicomtwist.access.rules import Operation
from dicomtwist.archive.reading.content import Content
from dicomtwist.archive.reading.stored_file import StoredFile
from dicomtwist.archive.storage.types import InstanceUIDs
from dicomtwist.datasets.element_headers import EXPLICIT_LITTLE_ENDIAN
from dicomtwist.dicomweb.media_types import DICOM, Category, Representation
from dicomtwist.dicomweb.rendered import parse_uri_request
from dicomtwist.errors import DataSetError
from dicomtwist.pixels.options import MEDIA_TYPES
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services
from dicomtwist.web.wado.alternatives import first_made, is_of_representation
from dicomtwist.web.wado.delivery import NOT_ACCEPTABLE, open_stored, quoted, send_one
from dicomtwist.web.wado.instances import content_of
from dicomtwist.web.wado.rendered import options_of, send_rendered
from dicomtwist.web.wado.transcoding import Transcoding, convertible, is_transcoded, transcode

__all__ = ["ROUTES"]


async def retrieve(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with an instance: an image is rendered, if the request does not say otherwise (PS3.18 8.7.2)."""
    asked = parse_uri_request(request.query, [request.header("Accept")])
    if asked.anonymize:
        raise Problem(501, "this server does not de-identify instances")
    uids = (asked.study, asked.series, asked.instance)
    images = MEDIA_TYPES if services.pixels is not None else ()
    alternatives = asked.accept.alternatives(Category.RENDERED, offers=(*images, DICOM))
    if not alternatives:
        raise Problem(406, NOT_ACCEPTABLE)
    as_file = next((one for one in alternatives if one.media_type == DICOM), None)
    if alternatives[0] is not as_file:
        rendered = [one.media_type for one in alternatives if one is not as_file]
        options = options_of(request, asked.rendering, rendered, is_animated=not asked.rendering.frame)
        try:
            await send_rendered(request, services, uids, asked.rendering.frame or 1, options)
            return
        except DataSetError as error:
            if as_file is None or request.is_answered or not is_of_representation(error):
                raise
    else:
        for words in asked.rendering.warnings:
            request.warn(words)
    assert as_file is not None, "there is no other media type"
    await _send_file(request, services, uids, asked.transfer_syntax, as_file)


async def _send_file(
    request: DICOMwebRequest, services: Services, uids: InstanceUIDs, wanted: str, representation: Representation
) -> None:
    """
    Answer with an instance as a Part 10 file.

    :param wanted: the transfer syntax that is asked for. The default is not demanded: if the instance cannot be converted to
        it, the response is in that of the file.
    """
    stored, _ = await open_stored(request, services, uids, lambda _: None, is_sent=True)
    try:
        own = stored.meta.transfer_syntax_uid
        syntax = _given(services, wanted, own)
        possible = [
            replace(representation, transfer_syntax=None if one == own else one)
            for one in dict.fromkeys((syntax, "" if wanted else own))
            if one
        ]
        made, given = await first_made(
            possible,
            lambda one: _made(request, services, uids, stored, one.transfer_syntax or own),
            f"instance {uids[2]}",
        )
    except BaseException:
        stored.close()
        raise
    content_type = representation.part_type(given)
    if isinstance(made, Transcoding):
        stored.close()
        await request.stream(made.pieces(), content_type, length=made.length)
        return
    etag = quoted(stored.version, given[-12:])
    await send_one(request, services, made, content_type, etag, stored.close)


async def _made(
    request: DICOMwebRequest, services: Services, uids: InstanceUIDs, stored: StoredFile, syntax: str
) -> tuple[Transcoding | Content, str]:
    """
    Return an instance in the transfer syntax *syntax*, and that.

    :raises DataSetError: it cannot be converted.
    """
    if is_transcoded(stored.meta.transfer_syntax_uid, syntax):
        return await transcode(services, uids, stored, syntax, peer=request.peer), syntax
    return await content_of(request, services, stored, syntax), syntax


def _given(services: Services, wanted: str, stored: str) -> str:
    """
    Return the transfer syntax of the response.

    :param wanted: the one that is asked for; ``*`` for that of the file. The default is Explicit VR Little Endian (PS3.18
        9.4.2.4), if the file can be converted to that.
    :raises Problem: the file cannot be converted (406).
    """
    possible = {stored, *convertible(services, stored)}
    if wanted == "*":
        return stored
    if not wanted:
        return EXPLICIT_LITTLE_ENDIAN if EXPLICIT_LITTLE_ENDIAN in possible else stored
    if wanted not in possible:
        raise Problem(406, "the instance cannot be converted to this transfer syntax")
    return wanted


ROUTES: Final = (
    Route("GET", "/wado", frozenset((Operation.GET,)), retrieve, "an instance, by the parameters of WADO-URI"),
)
