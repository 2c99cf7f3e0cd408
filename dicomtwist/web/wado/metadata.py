"""
Metadata of studies, series and instances as DICOM JSON (PS3.18 10.4.1.1.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Final

from twisted.logger import Logger

from dicomtwist.access.rules import Operation
from dicomtwist.archive.reading.metadata import MetadataEncoder, with_base_url
from dicomtwist.archive.reading.series_document import SeriesDocument
from dicomtwist.archive.reading.stored_file import CHECK
from dicomtwist.dicomweb.media_types import Category
from dicomtwist.errors import loggable
from dicomtwist.web.http.compression import MIN_COMPRESSED, gzip, gzipped
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services
from dicomtwist.web.wado.delivery import DAMAGED, ELSEWHERE, NOT_ACCEPTABLE, is_unchanged, open_stored, quoted, reading
from dicomtwist.web.wado.pieces import ThreadPieces

__all__ = ["ROUTES"]

_log = Logger()


async def retrieve_instance(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the metadata of an instance."""
    content_type = _media_type(request)
    uids = (values["study"], values["series"], values["instance"])
    encoder = MetadataEncoder(services.archive_server.archive.default_charset)
    stored, metadata = await open_stored(request, services, uids, lambda one: encoder.encode(uids, one))
    stored.close()
    content = b"[" + with_base_url(metadata, request.base_url) + b"]"
    is_gzip = request.negotiate_gzip() and len(content) >= MIN_COMPRESSED
    if is_unchanged(request, _etag(request, [stored.version], is_gzip)):
        return
    if is_gzip:
        request.set_header("Content-Encoding", "gzip")
        content = await reading(request, services).run_admitted(gzip, content)
    request.answer(content, content_type)


async def retrieve_series(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the metadata of the instances of a series."""
    content_type = _media_type(request)
    document = await services.documents.document(values["study"], values["series"], request.peer)
    if document is None:
        raise Problem(404, "there is no such series")
    await _send(request, services, [document], content_type)


async def retrieve_study(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the metadata of the instances of a study."""
    content_type = _media_type(request)
    study = values["study"]
    documents = []
    failed = 0
    for series in await reading(request, services).run(services.files.series_of, study):
        try:
            document = await services.documents.document(study, series, request.peer)
        except OSError as error:
            # The other series are given.
            if error.errno in ELSEWHERE:
                raise
            failed += 1
            _log.error(
                "series {series} cannot be read: {reason}; {check}", series=series, reason=loggable(error), check=CHECK
            )
            continue
        if document is not None:
            documents.append(document)
    if not documents:
        raise Problem(500, DAMAGED) if failed else Problem(404, "there is no such study")
    if failed:
        request.warn(f"the metadata of {failed} series cannot be read, and are left out")
    await _send(request, services, documents, content_type)


def _media_type(request: DICOMwebRequest) -> str:
    representation = request.accept.negotiate(Category.METADATA)
    if representation is None:
        raise Problem(406, NOT_ACCEPTABLE)
    return representation.content_type()


async def _send(
    request: DICOMwebRequest, services: Services, documents: Sequence[SeriesDocument], content_type: str
) -> None:
    is_gzip = request.negotiate_gzip()
    versions = [version for document in documents for version in document.versions.values()]
    etag = _etag(request, versions, is_gzip)
    if is_unchanged(request, etag):
        return
    unread = sum(document.unread for document in documents)
    if unread:
        request.warn(f"the metadata of {unread} instances cannot be read, and are left out")
    pieces = _array(documents, request.base_url)
    if is_gzip:
        request.set_header("Content-Encoding", "gzip")
        known = services.compressed.get(etag)
        if known is not None:
            request.answer(known, content_type)
            return
        pieces = services.compressed.kept(etag, gzipped(pieces))
    await request.stream(ThreadPieces(reading(request, services), pieces), content_type)


def _etag(request: DICOMwebRequest, versions: Sequence[str], is_gzip: bool) -> str:
    """Return the entity tag of the metadata of instances in their *versions*. URLs in it depend on the request."""
    digest = blake2b("\n".join((request.base_url, *versions)).encode(), digest_size=16).hexdigest()
    return quoted(digest, "gzip") if is_gzip else quoted(digest)


# --- in threads


def _array(documents: Sequence[SeriesDocument], base_url: str) -> Iterator[bytes]:
    yield b"["
    is_first = True
    for document in documents:
        for number, piece in enumerate(document.pieces()):
            yield (b"" if number or is_first else b",") + with_base_url(piece, base_url)
            is_first = False
    yield b"]"


_GET: Final = frozenset((Operation.GET,))

ROUTES: Final = (
    Route("GET", "/studies/{study}/metadata", _GET, retrieve_study, "metadata of a study"),
    Route("GET", "/studies/{study}/series/{series}/metadata", _GET, retrieve_series, "metadata of a series"),
    Route(
        "GET",
        "/studies/{study}/series/{series}/instances/{instance}/metadata",
        _GET,
        retrieve_instance,
        "metadata of an instance",
    ),
)
