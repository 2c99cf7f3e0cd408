"""
Studies, series and instances as Part 10 files (PS3.18 10.4.1.1.1), in a multipart body or in a ZIP archive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Final, Protocol

from pydicom import Dataset
from twisted.logger import Logger

from dicomtwist.access.rules import Operation
from dicomtwist.archive.query.compiler import Model
from dicomtwist.archive.query.search import Found, StoredInstance
from dicomtwist.archive.reading.content import Block, Content
from dicomtwist.archive.reading.conversion import converted, stored_content
from dicomtwist.archive.reading.stored_file import FileHead, NotStored, StoredFile
from dicomtwist.archive.storage.types import InstanceUIDs
from dicomtwist.dicomweb.media_types import DICOM, ZIP, Category, Representation
from dicomtwist.dicomweb.multipart import MultipartWriter
from dicomtwist.errors import loggable
from dicomtwist.part10 import NotDicomFile
from dicomtwist.pixels.errors import PixelsFailed, PixelsStopped
from dicomtwist.web.problems import RETRY_AFTER, Problem
from dicomtwist.web.request import DICOMwebRequest, Piece
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services
from dicomtwist.web.wado.alternatives import first_made
from dicomtwist.web.wado.archive_zip import ArchiveWriter, archive_length
from dicomtwist.web.wado.delivery import (
    NOT_ACCEPTABLE,
    OpenPart,
    open_stored,
    quoted,
    reading,
    send_one,
    send_parts,
)
from dicomtwist.web.wado.pieces import ThreadPieces
from dicomtwist.web.wado.selection import Chosen, Selection, representations, select, within
from dicomtwist.web.wado.transcoding import Transcoding, is_transcoded, transcode

__all__ = ["ROUTES", "content_of"]

_log = Logger()

#: The words about instances that are removed while the others are sent.
CHANGED: Final = "an instance was replaced or removed meanwhile"
#: The most instances whose files are looked at before the response begins, so that its header tells the length of the body, and
#: what is left out: 2,000 take 30 ms. Those behind them are looked at page by page.
MAX_SELECTED: Final = 2000


class _Package(Protocol):
    """
    A body with several instances.

    :ivar content_type: its Content-Type.
    :ivar media_type: its media type, or that of its parts.
    """

    content_type: str
    media_type: str

    def part(self, one: Chosen, representation: Representation, content: Content) -> Iterator[Block]:
        """Yield the bytes of an instance, with what is around them."""

    def leave_out(self, count: int = 1) -> None:
        """Note that instances are left out, which the header of the response does not say."""

    def end(self) -> bytes:
        """Return what is behind the last instance."""

    def length(self, chosen: Sequence[Chosen]) -> int:
        """Return the length of the body in bytes, if the instances are given as they are stored."""


class _Multipart:
    """
    A multipart body.

    :param representation: its representation.
    """

    media_type = DICOM

    def __init__(self, representation: Representation) -> None:
        self._writer = MultipartWriter()
        self._is_begun = False
        # The bytes before an instance, by its transfer syntax and its representation: a study has few of them.
        self._heads: dict[tuple[str, Representation], bytes] = {}
        self.content_type = representation.content_type(self._writer.boundary)

    def begin(self, one: Chosen, representation: Representation) -> bytes:
        """Return what is before an instance."""
        key = (one.syntax, representation)
        head = self._heads.get(key)
        if head is None:
            head = self._writer.begin(_part_headers(*key))
            if self._is_begun:
                self._heads[key] = head
            self._is_begun = True  # the first has no line end before it
        return head

    def part(self, one: Chosen, representation: Representation, content: Content) -> Iterator[Block]:
        yield self.begin(one, representation)
        yield from content.blocks()

    def leave_out(self, count: int = 1) -> None:
        """Do nothing: a multipart body has no place for it."""

    def end(self) -> bytes:
        return self._writer.end()

    def length(self, chosen: Sequence[Chosen]) -> int:
        kinds = Counter((one.syntax, one.representation) for one in chosen)
        heads = [(_part_headers(*kind), count) for kind, count in kinds.items()]

        def measured(*headers: tuple[tuple[str, str], ...]) -> int:
            return MultipartWriter.length(self._writer.boundary, ((one, 0) for one in headers))

        further = sum((count - 1) * (measured(one, one) - measured(one)) for one, count in heads)
        return measured(*(one for one, _ in heads)) + further + sum(one.head.size for one in chosen)


class _Zip:
    """A ZIP archive."""

    content_type = media_type = ZIP

    def __init__(self) -> None:
        self._writer = ArchiveWriter()

    def part(self, one: Chosen, representation: Representation, content: Content) -> Iterator[bytes]:
        return self._writer.member(_member_name(one.instance), content.length, content.pieces)

    def leave_out(self, count: int = 1) -> None:
        self._writer.left_out += count

    def end(self) -> bytes:
        return self._writer.end()

    def length(self, chosen: Sequence[Chosen]) -> int:
        return archive_length((_member_name(one.instance), one.head.size) for one in chosen)


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
        # The default is Explicit VR Little Endian, unless there is no other form than that of the file (PS3.18 8.7.3).
        alternatives = representations(request.accept, services, syntax, single=True)
        send = await first_made(
            alternatives, lambda one: _made(request, services, uids, stored, one), f"instance {uids[2]}"
        )
    except BaseException:
        stored.close()
        raise
    await send()


async def _made(
    request: DICOMwebRequest,
    services: Services,
    uids: InstanceUIDs,
    stored: StoredFile,
    representation: Representation,
) -> Callable[[], Awaitable[None]]:
    """
    Make a representation of an instance.

    :returns: a function that answers with it.
    :raises DataSetError: it cannot be made.
    """
    if representation.media_type == ZIP:
        stored.close()
        return partial(_retrieve_many, request, services, uids)
    syntax = stored.meta.transfer_syntax_uid
    if is_transcoded(syntax, representation.transfer_syntax):
        made = await transcode(services, uids, stored, representation.transfer_syntax or "", peer=request.peer)
        stored.close()
        return partial(_send_transcoded, request, made, representation)
    content = await content_of(request, services, stored, representation.transfer_syntax)
    return partial(_send_content, request, services, stored, content, representation)


async def _send_content(
    request: DICOMwebRequest,
    services: Services,
    stored: StoredFile,
    content: Content,
    representation: Representation,
) -> None:
    """Answer with an instance whose bytes are in its file."""
    syntax = stored.meta.transfer_syntax_uid
    given = representation.transfer_syntax or syntax
    etag = quoted(stored.version, given[-12:], f"{representation.multipart:d}")
    if representation.multipart:
        part = OpenPart(_part_headers(syntax, representation), content)
        await send_parts(request, services, lambda: iter([part]), 1, representation, etag, stored.close)
    else:
        content_type = representation.content_type(transfer_syntax=given)
        await send_one(request, services, content, content_type, etag, stored.close)


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
    """Answer with the instances that can be given. The header warns of the others, as far as they are known then."""
    found = await find_instances(request, services, uids)
    pages = found.pages()
    first: list[StoredInstance] = []
    async for page in pages:
        first += page
        if len(first) >= MAX_SELECTED:
            break
    is_all = len(first) == found.total
    forms = request.accept.alternatives(Category.INSTANCES, single=False, offers=(ZIP,))
    if not forms:
        raise Problem(406, NOT_ACCEPTABLE)
    heads = await reading(request, services).run(services.files.heads, [instance.uids for instance in first])
    for whole in forms:
        selection = Selection()
        selection.add(first, heads, request.accept, services, whole.media_type)
        if selection.chosen:
            break
    selection.log(uids)
    if not selection.chosen and is_all:
        raise selection.problem
    selection.warn(request)
    package: _Package
    if whole.media_type == ZIP:
        package = _Zip()
        request.set_header("Content-Disposition", f'attachment; filename="{uids[-1]}.zip"')
    else:
        package = _Multipart(whole)
    chosen = selection.chosen
    length = None
    if is_all and all(one.is_kept for one in chosen):
        length = package.length(chosen)
    body = _Body(request, services, package, uids, is_measured=length is not None)
    await request.stream(body.pieces(selection, pages), package.content_type, length=length)


class _Body:
    """
    Makes the bytes of a body with several instances. Those whose files cannot be read, or that cannot be given in an acceptable
    form, are left out and logged.

    :param uids: the UIDs of the study, the series and the instance that are asked for.
    :param is_measured: whether the length of the body is announced, so that nothing can be left out.
    """

    def __init__(
        self, request: DICOMwebRequest, services: Services, package: _Package, uids: Sequence[str], *, is_measured: bool
    ) -> None:
        self._request, self._services, self._package = request, services, package
        self._uids = uids
        self._is_measured = is_measured
        self._is_empty = True
        self._error: Exception | None = None

    async def pieces(self, first: Selection, pages: AsyncIterator[list[StoredInstance]]) -> AsyncIterator[Piece]:
        """
        Yield the bytes.

        :param first: the first instances.
        :param pages: the pages behind them.
        :raises Problem: nothing can be given; or a file was removed or replaced, and the response cannot say so (503).
        """
        selection = first
        is_last = False
        while not is_last:
            for is_kept, group in groupby(selection.chosen, lambda one: one.is_kept):
                if is_kept:
                    pieces: AsyncIterator[Piece] = self._as_stored(list(group))
                    async for piece in pieces:
                        self._is_empty = False
                        yield piece
                    continue
                for one in group:
                    async for piece in self._converted(one):
                        self._is_empty = False
                        yield piece
            is_last = True
            async for page in pages:
                selection = Selection()
                await select(self._request, self._services, selection, page, self._package.media_type)
                selection.log(self._uids)
                self._package.leave_out(selection.left_out)
                is_last = False
                break
        if self._is_empty:
            raise self._error or selection.problem
        yield self._package.end()

    async def _as_stored(self, chosen: Sequence[Chosen]) -> AsyncIterator[Piece]:
        pieces = ThreadPieces(reading(self._request, self._services), self._stored(chosen))
        try:
            if await pieces.begin():
                yield pieces
        finally:
            await pieces.aclose()

    def _stored(self, chosen: Sequence[Chosen]) -> Iterator[Block]:
        """Yield the bytes of instances as they are stored, in a thread."""
        files = self._services.files
        for one in chosen:
            short = files.read_short(one.instance.uids, one.head)
            if short is not None:
                yield from self._package.part(one, one.representation, Content([short]))
                self._note_sent(one)
                continue
            try:
                stored = files.open(one.instance.uids, one.head)
            except (NotStored, NotDicomFile, OSError) as error:
                self._left_out(one, error)
                continue
            with stored:
                if stored.version != one.head.version:
                    # Replaced since it was looked at, so that its length and its transfer syntax are not those announced.
                    if self._is_measured:
                        raise _changed()
                    again = self._again(one, stored)
                    if again is None:
                        continue
                    one = again
                yield from self._package.part(one, one.representation, stored_content(stored))
            self._note_sent(one)

    def _again(self, one: Chosen, stored: StoredFile) -> Chosen | None:
        """Return the instance as its new file is, if that can be given as it is stored."""
        syntax = stored.meta.transfer_syntax_uid
        found = within(
            representations(self._request.accept, self._services, syntax, single=False),
            syntax,
            self._package.media_type,
        )
        kept = tuple(each for each in found if each.transfer_syntax in (None, syntax))
        if not kept:
            self._left_out(one, _changed())
            return None
        return Chosen(one.instance, FileHead(stored.size, stored.version, stored.meta, stored.start), kept)

    def _note_sent(self, one: Chosen) -> None:
        self._request.http.noted.note_sent(one.instance.study_instance_uid, one.instance.sop_class_uid)

    def _left_out(self, one: Chosen, error: Exception) -> None:
        """
        Note that an instance is left out.

        :raises Problem: the length of the body is announced (503).
        """
        if self._is_measured:
            raise _changed() from error
        self._error = self._error or error
        self._package.leave_out()
        _log.warn(
            "instance {instance} is left out of a retrieval: {reason}",
            instance=one.instance.sop_instance_uid,
            reason=loggable(error),
        )

    async def _converted(self, one: Chosen) -> AsyncIterator[Piece]:
        """Yield the bytes of an instance in the first of its representations that can be made."""
        share = reading(self._request, self._services)
        try:
            stored = await share.run_admitted(self._services.files.open, one.instance.uids, one.head)
        except (NotStored, NotDicomFile, OSError) as error:
            self._left_out(one, error)
            return
        try:
            if stored.version != one.head.version:
                again = self._again(one, stored)
                if again is None:
                    stored.close()
                    return
                one = again
            try:
                pieces = await first_made(
                    one.alternatives,
                    lambda each: self._made(one, stored, each),
                    f"instance {one.instance.sop_instance_uid}",
                )
            except (PixelsFailed, Problem) as error:
                if isinstance(error, PixelsStopped):
                    raise
                self._left_out(one, error)
                stored.close()
                return
        except BaseException:
            stored.close()
            raise
        try:
            if not isinstance(pieces, ThreadPieces):
                async for piece in pieces:
                    yield piece
            elif await pieces.begin():
                yield pieces
            self._note_sent(one)
        finally:
            await pieces.aclose()

    async def _made(
        self, one: Chosen, stored: StoredFile, representation: Representation
    ) -> AsyncGenerator[Piece, None] | ThreadPieces:
        """
        Make a representation of an instance.

        :raises DataSetError: it cannot be made.
        """
        request, services = self._request, self._services
        if is_transcoded(one.syntax, representation.transfer_syntax):
            syntax = representation.transfer_syntax or ""
            made = await transcode(services, one.instance.uids, stored, syntax, peer=request.peer)
            whole = await made.complete(reading(request, services))
            stored.close()
            return self._transcoded(one, representation, whole)
        content = await content_of(request, services, stored, representation.transfer_syntax)
        pieces = self._package.part(one, representation, content)
        return ThreadPieces(reading(request, services), pieces, stored.close)

    async def _transcoded(
        self, one: Chosen, representation: Representation, pieces: AsyncGenerator[Piece, None] | ThreadPieces
    ) -> AsyncGenerator[Piece, None]:
        assert isinstance(self._package, _Multipart), "the header of a member of an archive states its length"
        yield self._package.begin(one, representation)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()


def _changed() -> Problem:
    return Problem(503, CHANGED, [("Retry-After", str(RETRY_AFTER))])


_GET: Final = frozenset((Operation.GET,))

ROUTES: Final = (
    Route("GET", "/studies/{study}", _GET, retrieve_study, "the instances of a study"),
    Route("GET", "/studies/{study}/series/{series}", _GET, retrieve_series, "the instances of a series"),
    Route("GET", "/studies/{study}/series/{series}/instances/{instance}", _GET, retrieve_instance, "an instance"),
)
