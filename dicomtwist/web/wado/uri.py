"""
WADO-URI: an instance by the parameters of a query, as a Part 10 file or rendered (PS3.18 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dicomtwist.access.rules import Operation
from dicomtwist.datasets.element_headers import EXPLICIT_LITTLE_ENDIAN
from dicomtwist.dicomweb.media_types import DICOM, Category
from dicomtwist.dicomweb.rendered import parse_uri_request
from dicomtwist.pixels.errors import UnsupportedPixels
from dicomtwist.pixels.options import MEDIA_TYPES
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services
from dicomtwist.web.wado.delivery import NOT_ACCEPTABLE, open_stored, problems_of_stored, quoted, send_one
from dicomtwist.web.wado.instances import content_of
from dicomtwist.web.wado.rendered import options_of, send_rendered
from dicomtwist.web.wado.transcoding import convertible, is_transcoded, transcode

__all__ = ["ROUTES"]


async def retrieve(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with an instance: an image is rendered, if the request does not say otherwise (PS3.18 8.7.2)."""
    asked = parse_uri_request(request.query, [request.header("Accept")])
    if asked.anonymize:
        raise Problem(501, "this server does not de-identify instances")
    uids = (asked.study, asked.series, asked.instance)
    images = MEDIA_TYPES if services.pixels is not None else ()
    representation = asked.accept.negotiate(Category.RENDERED, offers=(*images, DICOM))
    as_file = asked.accept.negotiate(Category.RENDERED, offers=(DICOM,))
    if representation is None:
        raise Problem(406, NOT_ACCEPTABLE)
    if representation.media_type != DICOM:
        options = options_of(request, asked.rendering, representation.media_type, is_animated=not asked.rendering.frame)
        try:
            await send_rendered(request, services, uids, asked.rendering.frame or 1, options)
            return
        except UnsupportedPixels:
            if as_file is None:
                raise
            representation = as_file
    else:
        for words in asked.rendering.warnings:
            request.warn(words)
    stored, _ = await open_stored(request, services, uids, lambda _: None, is_sent=True)
    try:
        own = stored.meta.transfer_syntax_uid
        syntax = _given(services, asked.transfer_syntax, own)
        if is_transcoded(own, syntax):
            made = await transcode(services, uids, stored, syntax, peer=request.peer)
            stored.close()
            await request.stream(made.pieces(), representation.part_type(syntax), length=made.length)
            return
        with problems_of_stored():
            content = await content_of(request, services, stored, syntax)
    except BaseException:
        stored.close()
        raise
    etag = quoted(stored.version, syntax[-12:])
    await send_one(request, services, content, representation.part_type(syntax), etag, stored.close)


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
