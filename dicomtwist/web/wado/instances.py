"""
Studies, series and instances as Part 10 files (PS3.18 10.4.1.1.1), in a multipart body or in a ZIP archive.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final, Protocol

from pydicom import Dataset
from twisted.logger import Logger

from dicomtwist.access.rules import Operation
from dicomtwist.archive.query.compiler import Model
from dicomtwist.archive.query.search import Found, StoredInstance
from dicomtwist.archive.reading.content import Content
from dicomtwist.archive.reading.conversion import converted, stored_content
from dicomtwist.archive.reading.stored_file import NotStored, StoredFile
from dicomtwist.dicomweb.media_types import ZIP, Accept, Category, Representation
from dicomtwist.dicomweb.multipart import MultipartWriter
from dicomtwist.errors import DataSetError, loggable
from dicomtwist.pixels.errors import PixelsFailed
from dicomtwist.web.problems import RETRY_AFTER, Problem
from dicomtwist.web.request import DICOMwebRequest, Piece
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services
from dicomtwist.web.wado.archive_zip import ArchiveWriter, archive_length
from dicomtwist.web.wado.delivery import (
    NOT_ACCEPTABLE,
    OpenPart,
    open_stored,
    problems_of_stored,
    quoted,
    reading,
    send_one,
    send_parts,
)
from dicomtwist.web.wado.pieces import ThreadPieces
from dicomtwist.web.wado.transcoding import Transcoding, convertible, is_transcoded, transcode

__all__ = ["ROUTES", "content_of"]

_log = Logger()

#: The words about instances that are found, and removed before they are read.
MISSING: Final = "the files were removed"
CHANGED: Final = "an instance was replaced or removed meanwhile"


class _Package(Protocol):
    """A body with several instances."""

    content_type: str

    def part(self, instance: StoredInstance, representation: Representation, content: Content) -> Iterator[bytes]:
        """Yield the bytes of an instance, with what is around them."""

    def end(self) -> bytes:
        """Return what is behind the last instance."""

    def length(self, instances: Sequence[tuple[StoredInstance, Representation]], sizes: Sequence[int]) -> int:
        """Return the length of the body in bytes, if the instances are files of *sizes* bytes."""


class _Multipart:
    """
    A multipart body.

    :param representation: its representation.
    """

    def __init__(self, representation: Representation) -> None:
        self._writer = MultipartWriter()
        self.content_type = representation.content_type(self._writer.boundary)

    def begin(self, instance: StoredInstance, representation: Representation) -> bytes:
        """Return what is before an instance."""
        return self._writer.begin(_part_headers(instance.transfer_syntax, representation))

    def part(self, instance: StoredInstance, representation: Representation, content: Content) -> Iterator[bytes]:
        yield self.begin(instance, representation)
        yield from content.pieces()

    def end(self) -> bytes:
        return self._writer.end()

    def length(self, instances: Sequence[tuple[StoredInstance, Representation]], sizes: Sequence[int]) -> int:
        return MultipartWriter.length(
            self._writer.boundary,
            (
                (_part_headers(instance.transfer_syntax, representation), size)
                for (instance, representation), size in zip(instances, sizes, strict=True)
            ),
        )


class _Zip:
    """A ZIP archive."""

    content_type = ZIP

    def __init__(self) -> None:
        self._writer = ArchiveWriter()

    def part(self, instance: StoredInstance, representation: Representation, content: Content) -> Iterator[bytes]:
        return self._writer.member(_member_name(instance), content.length, content.pieces)

    def end(self) -> bytes:
        return self._writer.end()

    def length(self, instances: Sequence[tuple[StoredInstance, Representation]], sizes: Sequence[int]) -> int:
        return archive_length(
            (_member_name(instance), size) for (instance, _), size in zip(instances, sizes, strict=True)
        )


def _member_name(instance: StoredInstance) -> str:
    return f"{instance.series_instance_uid}/{instance.sop_instance_uid}.dcm"


def _part_headers(stored: str, representation: Representation) -> tuple[tuple[str, str], ...]:
    return (("Content-Type", representation.part_type(representation.transfer_syntax or stored)),)


# --- one instance


async def retrieve_instance(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with an instance."""
    uids = (values["study"], values["series"], values["instance"])
    representation = request.accept.negotiate(Category.INSTANCES, offers=(ZIP,))
    if representation is not None and representation.media_type == ZIP:
        await _retrieve_many(request, services, uids)
        return
    stored, _ = await open_stored(request, services, uids, lambda _: None, is_sent=True)
    try:
        syntax = stored.meta.transfer_syntax_uid
        representation = _negotiate(request.accept, services, syntax, single=True)
        if representation is None:
            raise Problem(406, NOT_ACCEPTABLE)
        try:
            if is_transcoded(syntax, representation.transfer_syntax):
                made = await transcode(services, uids, stored, representation.transfer_syntax or "", peer=request.peer)
                stored.close()
                await _send_transcoded(request, made, representation)
                return
            content = await content_of(request, services, stored, representation.transfer_syntax)
        except (DataSetError, PixelsFailed) as error:
            # The default is Explicit VR Little Endian, unless there is no other form than that of the file (PS3.18 8.7.3).
            kept = request.accept.negotiate(Category.INSTANCES, stored=syntax, single=True)
            if kept is None or stored.is_closed:
                if isinstance(error, PixelsFailed):
                    raise
                with problems_of_stored():
                    raise
            representation, content = kept, stored_content(stored)
    except BaseException:
        stored.close()
        raise
    given = representation.transfer_syntax or syntax
    etag = quoted(stored.version, given[-12:], f"{representation.multipart:d}")
    if representation.multipart:
        part = OpenPart(_part_headers(syntax, representation), content)
        await send_parts(request, services, lambda: iter([part]), 1, representation, etag, stored.close)
    else:
        content_type = representation.content_type(transfer_syntax=given)
        await send_one(request, services, content, content_type, etag, stored.close)


def _negotiate(accept: Accept, services: Services, stored: str, *, single: bool) -> Representation | None:
    return accept.negotiate(
        Category.INSTANCES, stored=stored, convertible=convertible(services, stored), single=single, offers=(ZIP,)
    )


async def _send_transcoded(request: DICOMwebRequest, made: Transcoding, representation: Representation) -> None:
    """Answer with an instance whose pixel data the processes for images convert."""
    syntax = representation.transfer_syntax or ""
    if not representation.multipart:
        content_type = representation.content_type(transfer_syntax=syntax)
        await request.stream(made.pieces(), content_type, length=made.length)
        return
    writer = MultipartWriter()

    async def pieces() -> AsyncIterator[bytes]:
        yield writer.begin(_part_headers(syntax, representation))
        async for piece in made.pieces():
            yield piece
        yield writer.end()

    await request.stream(pieces(), representation.content_type(writer.boundary))


async def content_of(request: DICOMwebRequest, services: Services, stored: StoredFile, syntax: str | None) -> Content:
    """
    Return the Part 10 file of an instance.

    :param syntax: the UID of its transfer syntax; ``None`` as it is stored.
    :raises DataSetError: it cannot be converted.
    """
    if syntax is None or syntax == stored.meta.transfer_syntax_uid:
        return stored_content(stored)
    executor = services.archive_server.ae.executors.decoding.share(request.peer)
    return await executor.run(converted, stored, syntax)


# --- several


async def retrieve_series(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the instances of a series."""
    await _retrieve_many(request, services, (values["study"], values["series"]))


async def retrieve_study(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the instances of a study."""
    await _retrieve_many(request, services, (values["study"],))


_LEVELS: Final = ("STUDY", "SERIES", "IMAGE")
_KEYWORDS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


async def find_instances(request: DICOMwebRequest, services: Services, uids: Sequence[str]) -> Found[StoredInstance]:
    """
    Find the instances of a study, a series, or one instance.

    :param uids: the UIDs of study, series and instance, as many as there are.
    :raises Problem: there is none (404).
    """
    identifier = Dataset()
    identifier.QueryRetrieveLevel = _LEVELS[len(uids) - 1]
    for keyword, uid in zip(_KEYWORDS, uids, strict=False):
        setattr(identifier, keyword, uid)
    found = await services.finder.retrieve(identifier, Model.STUDY_ROOT, peer=request.peer)
    if not found.total:
        raise Problem(404, f"there is no such {('study', 'series', 'instance')[len(uids) - 1]}")
    return found


async def _retrieve_many(request: DICOMwebRequest, services: Services, uids: Sequence[str]) -> None:
    found = await find_instances(request, services, uids)
    pages = found.pages()
    first: list[StoredInstance] = await anext(pages, [])
    whole = request.accept.negotiate(Category.INSTANCES, single=False, offers=(ZIP,))
    if whole is None:
        raise Problem(406, NOT_ACCEPTABLE)
    is_zip = whole.media_type == ZIP
    chosen = _chosen(request.accept, services, first, is_zip=is_zip)
    if not chosen:
        raise Problem(406, NOT_ACCEPTABLE)
    if len(chosen) < len(first):
        request.warn("instances that cannot be converted to an acceptable transfer syntax are left out")
    package: _Package
    if is_zip:
        package = _Zip()
        request.set_header("Content-Disposition", f'attachment; filename="{uids[-1]}.zip"')
    else:
        package = _Multipart(whole)
    every = await reading(request, services).run(services.files.sizes, [instance.uids for instance, _ in chosen])
    sizes = [size for size in every if size is not None]
    missing = len(chosen) - len(sizes)
    if missing:
        chosen = [one for one, size in zip(chosen, every, strict=True) if size is not None]
        _log.warn("{count} files of a retrieval are missing, of {uids}", count=missing, uids="/".join(uids))
        if not chosen and len(first) == found.total:
            raise Problem(404, MISSING)
        request.warn(f"{missing} instances whose files are missing are left out")
    length = None
    if len(first) == found.total and all(_is_kept(*one) for one in chosen):
        length = package.length(chosen, sizes)
    body = _body(request, services, package, chosen, pages, is_measured=length is not None)
    await request.stream(body, package.content_type, length=length)


_Chosen = tuple[StoredInstance, Representation]


def _chosen(accept: Accept, services: Services, instances: Sequence[StoredInstance], *, is_zip: bool) -> list[_Chosen]:
    """
    Return the instances that can be given, each with its representation.

    :param is_zip: whether they are members of a ZIP archive, whose header states their lengths: none is transcoded.
    """
    chosen = []
    for instance in instances:
        representation = _negotiate(accept, services, instance.transfer_syntax, single=False)
        if representation is None:
            continue
        if is_zip and is_transcoded(instance.transfer_syntax, representation.transfer_syntax):
            continue
        chosen.append((instance, representation))
    return chosen


def _is_kept(instance: StoredInstance, representation: Representation) -> bool:
    """Whether an instance is given as it is stored."""
    return representation.transfer_syntax in (None, instance.transfer_syntax)


async def _body(
    request: DICOMwebRequest,
    services: Services,
    package: _Package,
    first: list[_Chosen],
    pages: AsyncIterator[list[StoredInstance]],
    *,
    is_measured: bool,
) -> AsyncIterator[Piece]:
    """
    Yield the bytes of a body with the instances *first*, and those of further *pages*. Instances that are removed meanwhile
    are left out.

    :param is_measured: whether the length of the body is announced, so that nothing can be left out.
    :raises Problem: all files are missing (404); a file was removed or replaced, and the response cannot say so (503).
    """
    chosen = first
    is_empty = True
    is_last = False
    while not is_last:
        for is_kept, group in groupby(chosen, lambda one: _is_kept(*one)):
            if is_kept:
                pieces = ThreadPieces(
                    reading(request, services), _kept(request, services, package, list(group), is_measured=is_measured)
                )
                try:
                    async for several in pieces:
                        is_empty = False
                        yield several
                finally:
                    await pieces.aclose()
                continue
            for instance, representation in group:
                async for piece in _converted(request, services, package, instance, representation):
                    is_empty = False
                    yield piece
        is_last = True
        async for page in pages:
            chosen = _chosen(request.accept, services, page, is_zip=isinstance(package, _Zip))
            is_last = False
            break
    if is_empty:
        raise Problem(404, MISSING)
    yield package.end()


def _kept(
    request: DICOMwebRequest, services: Services, package: _Package, chosen: Sequence[_Chosen], *, is_measured: bool
) -> Iterator[bytes]:
    """Yield the bytes of instances as they are stored, in a thread."""
    for one in chosen:
        try:
            stored = services.files.open(one[0].uids)
        except NotStored:
            if is_measured:
                raise _changed() from None
            continue  # removed meanwhile
        with stored:
            instance, representation = _actual(request.accept, services, stored, one)
            if not _is_kept(instance, representation):
                raise _changed()
            yield from package.part(instance, representation, stored_content(stored))


def _actual(accept: Accept, services: Services, stored: StoredFile, one: _Chosen) -> _Chosen:
    """
    Return *one* as it is in the open file, which may have replaced the one that the index had.

    :raises Problem: the new file cannot be given (503); the client asks again, and gets the form that is possible then.
    """
    syntax = stored.meta.transfer_syntax_uid
    instance, _ = one
    if syntax == instance.transfer_syntax:
        return one
    found = _negotiate(accept, services, syntax, single=False)
    if found is None:
        raise _changed()
    return replace(instance, transfer_syntax=syntax), found


def _changed() -> Problem:
    return Problem(503, CHANGED, [("Retry-After", str(RETRY_AFTER))])


async def _converted(
    request: DICOMwebRequest,
    services: Services,
    package: _Package,
    instance: StoredInstance,
    representation: Representation,
) -> AsyncIterator[Piece]:
    """Yield the bytes of an instance in another transfer syntax; if it cannot be converted, as it is stored."""
    share = reading(request, services)
    try:
        stored = await share.run_admitted(services.files.open, instance.uids)
    except NotStored:
        return
    try:
        instance, representation = _actual(request.accept, services, stored, (instance, representation))
        try:
            if isinstance(package, _Multipart) and is_transcoded(
                instance.transfer_syntax, representation.transfer_syntax
            ):
                made = await transcode(
                    services, instance.uids, stored, representation.transfer_syntax or "", peer=request.peer
                )
                stored.close()
                yield package.begin(instance, representation)
                async for piece in made.pieces():
                    yield piece
                return
            content = await content_of(request, services, stored, representation.transfer_syntax)
        except (DataSetError, PixelsFailed) as error:
            if stored.is_closed:
                raise  # in the middle of it
            _log.info(
                "instance {instance} is given as it is stored: {reason}",
                instance=instance.sop_instance_uid,
                reason=loggable(error),
            )
            content = stored_content(stored)
            representation = Representation(representation.media_type, representation.multipart)
        pieces = ThreadPieces(share, package.part(instance, representation, content), stored.close)
    except BaseException:
        stored.close()
        raise
    try:
        async for several in pieces:
            yield several
    finally:
        await pieces.aclose()


_GET: Final = frozenset((Operation.GET,))

ROUTES: Final = (
    Route("GET", "/studies/{study}", _GET, retrieve_study, "the instances of a study"),
    Route("GET", "/studies/{study}/series/{series}", _GET, retrieve_series, "the instances of a series"),
    Route("GET", "/studies/{study}/series/{series}/instances/{instance}", _GET, retrieve_instance, "an instance"),
)
