"""
Delivery of what is stored: as one part, whole or in a range, or as the parts of a multipart body.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, TypeVar

from twisted.logger import Logger

from dicomtwist.archive.reading.content import READERS, Block, Content
from dicomtwist.archive.reading.frames import NoPixelData
from dicomtwist.archive.reading.stored_file import CHECK, NotStored, StoredFile
from dicomtwist.archive.storage.types import NO_ROOM, InstanceUIDs
from dicomtwist.dicomweb.media_types import Representation
from dicomtwist.dicomweb.multipart import MultipartWriter
from dicomtwist.errors import DataSetError, loggable
from dicomtwist.part10 import NotDicomFile
from dicomtwist.runtime.executors import Share
from dicomtwist.web.http.conditions import UnsatisfiableRange, matches_etag, parse_range
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest, Pieces
from dicomtwist.web.services import Services
from dicomtwist.web.wado.pieces import ThreadPieces

__all__ = [
    "DAMAGED",
    "ELSEWHERE",
    "NOT_ACCEPTABLE",
    "OpenPart",
    "is_unchanged",
    "open_stored",
    "problems_of_files",
    "problems_of_stored",
    "quoted",
    "reading",
    "send_one",
    "send_parts",
]

T = TypeVar("T")

_log = Logger()

#: The errors of the system that say nothing about the file: there is no room for a temporary one, or too many are open.
ELSEWHERE: Final = NO_ROOM | {errno.EMFILE, errno.ENFILE, errno.ENOMEM}

#: The most parts whose lengths are added up before the first is sent: that of 500 takes 2 ms.
MAX_MEASURED: Final = 500

#: The words about an instance whose file cannot be read.
DAMAGED: Final = "the stored instance cannot be read"
NOT_ACCEPTABLE: Final = "there is no representation of the resource that the request accepts"


class OpenPart(NamedTuple):
    """
    A part of a multipart body, or the content of a response.

    :ivar headers: its header fields.
    :ivar content: its content.
    """

    headers: Sequence[tuple[str, str]]
    content: Content


def reading(request: DICOMwebRequest, services: Services) -> Share:
    """Return the threads that read files, as the client of *request* may use them."""
    return services.archive_server.ae.executors.retrieval.share(request.peer)


@contextmanager
def problems_of_stored() -> Iterator[None]:
    """
    Make problems of the errors of stored instances.

    :raises Problem: 404 if there is no such instance, or it has no such part; 406 if its data set, which is as a peer has sent
        it, has no such representation; 500 if its file is damaged.
    """
    try:
        yield
    except NotStored:
        raise Problem(404, "there is no such instance") from None
    except NoPixelData as error:
        raise Problem(404, str(error)) from None
    except DataSetError as error:
        _log.info("a stored instance is not given: {reason}", reason=loggable(error))
        raise Problem(406, "the data set of the instance cannot be read") from error
    except NotDicomFile as error:
        raise _damaged(error) from error
    except OSError as error:
        if error.errno in ELSEWHERE:
            raise
        raise _damaged(error) from error


@contextmanager
def problems_of_files() -> Iterator[None]:
    """
    Make problems of the errors of a process that reads the file of an instance by its path.

    :raises Problem: 404 if the file was removed meanwhile; 500 if it is damaged.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise Problem(404, "there is no such instance") from None
    except OSError as error:
        if error.errno in ELSEWHERE:
            raise
        raise _damaged(error) from error


def _damaged(error: Exception) -> Problem:
    _log.error("a stored instance cannot be read: {reason}; {check}", reason=loggable(error), check=CHECK)
    return Problem(500, DAMAGED)


async def open_stored(
    request: DICOMwebRequest,
    services: Services,
    uids: InstanceUIDs,
    read: Callable[[StoredFile], T],
    *,
    is_sent: bool = False,
) -> tuple[StoredFile, T]:
    """
    Open an instance, and read something of it, in a thread. The caller closes it.

    :param is_sent: whether most of it will be sent: a short one is read as a whole at once, since each further call in a thread
        takes longer than that.
    :raises Problem: there is no such instance (404), or it is damaged (500).
    """
    files = services.files
    share = reading(request, services)
    is_sent = is_sent and request.method != "HEAD" and not request.header("If-None-Match")

    def call() -> tuple[StoredFile, T]:
        stored = files.open(uids)
        try:
            found = read(stored)
            if is_sent and stored.size <= 2 * READERS.piece:  # a reader has two pieces in memory
                stored.load()
            return stored, found
        except BaseException:
            stored.close()
            raise

    with problems_of_stored():
        return await share.run(call)


def quoted(*facts: str) -> str:
    """Return an entity tag made of *facts*, which have no quotation marks."""
    return f'"{"-".join(facts)}"'


def is_unchanged(request: DICOMwebRequest, etag: str) -> bool:
    """Set the entity tag of the response; answer with 304 and return ``True`` if the client has that already."""
    request.set_header("ETag", etag)
    request.set_header("Cache-Control", "private, no-cache")
    condition = request.header("If-None-Match")
    if condition and matches_etag(condition, etag):
        request.answer(status=304)
        return True
    return False


async def send_one(
    request: DICOMwebRequest,
    services: Services,
    content: Content,
    content_type: str,
    etag: str,
    close: Callable[[], None],
) -> None:
    """
    Answer with *content*, or with the range of it that is asked for, or with 304.

    :param etag: the entity tag.
    :param close: called in a thread, once, when the content is not needed any more.
    """
    try:
        if is_unchanged(request, etag):
            close()
            return
        request.set_header("Accept-Ranges", "bytes")
        length = content.length
        start, stop, status = 0, length, 200
        condition = request.header("If-Range")
        if not condition or condition.strip() == etag:
            try:
                wanted = parse_range(request.header("Range"), length)
            except UnsatisfiableRange as error:
                raise Problem(416, str(error), [("Content-Range", f"bytes */{length}")]) from None
            if wanted is not None:
                start, stop, status = wanted.start, wanted.stop, 206
                request.set_header("Content-Range", wanted.content_range(length))
        buffers = content.buffers(start, stop)
        pieces: Pieces | ThreadPieces
        if buffers is not None:
            close()
            pieces = _at_once(buffers)
        else:
            pieces = ThreadPieces(reading(request, services), content.blocks(start, stop), close)
    except BaseException:
        close()
        raise
    with problems_of_stored():  # of the first piece, which may not be there
        await request.stream(pieces, content_type, status=status, length=stop - start)


async def send_parts(
    request: DICOMwebRequest,
    services: Services,
    parts: Callable[[], Iterator[OpenPart]],
    count: int,
    representation: Representation,
    etag: str,
    close: Callable[[], None],
) -> None:
    """
    Answer with a multipart body, or with 304. Its length is stated if it has few parts.

    :param parts: yields the parts; it may be called twice.
    :param count: their number.
    :param etag: the entity tag.
    :param close: called in a thread, once, when the contents are not needed any more.
    """
    try:
        if is_unchanged(request, etag):
            close()
            return
        writer = MultipartWriter()
        length = None
        if count <= MAX_MEASURED:
            length = MultipartWriter.length(writer.boundary, ((part.headers, part.content.length) for part in parts()))
        buffers = _buffers(writer, parts()) if count <= MAX_MEASURED else None
        pieces: Pieces | ThreadPieces
        if buffers is not None:
            close()
            pieces = _at_once(buffers)
        else:
            pieces = ThreadPieces(reading(request, services), _multipart(writer, parts()), close)
    except BaseException:
        close()
        raise
    with problems_of_stored():  # of the first piece, which may not be there
        await request.stream(pieces, representation.content_type(writer.boundary), length=length)


async def _at_once(buffers: list[bytes | memoryview]) -> AsyncIterator[list[bytes | memoryview]]:
    READERS.count += 1
    try:
        yield buffers
    finally:
        READERS.count -= 1


def _buffers(writer: MultipartWriter, parts: Iterator[OpenPart]) -> list[bytes | memoryview] | None:
    """Return a multipart body whose contents are in memory, ``None`` if they are not."""
    found: list[bytes | memoryview] = []
    for part in parts:
        buffers = part.content.buffers()
        if buffers is None:
            return None
        found += (writer.begin(part.headers), *buffers)
    return [*found, writer.end()]


def _multipart(writer: MultipartWriter, parts: Iterator[OpenPart]) -> Iterator[Block]:
    for part in parts:
        yield writer.begin(part.headers)
        yield from part.content.blocks()
    yield writer.end()
