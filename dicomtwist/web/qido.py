"""
QIDO-RS: searches for studies, series and instances (PS3.18 10.6).

A search becomes the identifier of a C-FIND, and is performed as one. The answers are encoded as DICOM JSON in the threads that
read the index, a page at a time, when the connection takes the next page.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Final

from pydicom.datadict import keyword_for_tag

from dicomtwist.access.rules import Operation
from dicomtwist.archive.index.attributes import ATTRIBUTES, COMPUTED, Level
from dicomtwist.archive.query.compiler import Model, Negotiated
from dicomtwist.archive.query.json_answers import json_answers
from dicomtwist.archive.query.search import FIRST_PAGE_SIZE, Finder, Found, Part, TooManyMatches
from dicomtwist.dicomweb.media_types import Category
from dicomtwist.dicomweb.parameters import Search, parse_search
from dicomtwist.runtime.executors import Runner
from dicomtwist.web.http.compression import MIN_COMPRESSED, Gzip, gzip
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services

__all__ = ["ROUTES"]

#: The longest URL whose parameters are parsed in the reactor thread, in bytes. It takes some 10 microseconds for each key.
MAX_PARSED: Final = 8 * 1024

#: The most further results that a warning counts. Each takes 8 bytes, and about a microsecond.
MAX_COUNTED: Final = 1000

#: Attributes of an answer besides those of the standard. A viewer chooses among these transfer syntaxes.
_MORE_KEYS: Final = {Level.IMAGE: ("AvailableTransferSyntaxUID",)}


async def _search(level: Level, request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer a search for entities of *level*."""
    representation = request.accept.negotiate(Category.METADATA)
    if representation is None:
        raise Problem(406, "search results are application/dicom+json or application/json")
    server = services.archive_server
    executor = server.ae.executors.querying
    uids = {name: values[name] for name in ("study", "series") if name in values}
    if len(request.http.uri) > MAX_PARSED:
        search = await executor.share(request.peer).run(_parse, request.query, level, uids)
    else:
        search = _parse(request.query, level, uids)
    for warning in search.warnings:
        request.warn(warning)
    if search.is_contradictory:
        request.answer(b"[]", representation.content_type())
        return
    finder = Finder(server.archive, executor, server.ae.ae_title)
    try:
        found = await finder.search(
            search.identifier,
            Model.STUDY_ROOT,
            json_answers(request.base_url, server.ae.ae_title),
            Negotiated(relational=True, fuzzy=search.fuzzy, empty_values=search.empty_values),
            part=Part(search.limit, search.offset, newest_first=level is Level.STUDY, counted=MAX_COUNTED),
            peer=request.peer,
        )
    except TooManyMatches as error:
        raise Problem(413, f"{error}: use further keys, or limit and offset") from None
    for tag in found.unsupported:
        request.warn(f"{keyword_for_tag(tag) or f'{tag:08X}'} is neither matched nor returned at this level")
    if found.more or found.has_uncounted:
        number = (
            f"more than {found.more} " if found.more and found.has_uncounted else f"{found.more} " if found.more else ""
        )
        request.warn(f"There are {number}additional results that can be requested")
    is_gzip = request.negotiate_gzip()
    threads = executor.share(request.peer)
    if found.total > FIRST_PAGE_SIZE:
        pieces = _array(found)
        if is_gzip:
            request.set_header("Content-Encoding", "gzip")
            pieces = _gzipped(pieces, threads)
        await request.stream(pieces, representation.content_type())
        return
    content = b"".join([piece async for piece in _array(found)])
    if is_gzip and len(content) >= MIN_COMPRESSED:
        request.set_header("Content-Encoding", "gzip")
        content = await threads.run_admitted(gzip, content)
    request.answer(content, representation.content_type())


def _parse(query: list[tuple[str, str]], level: Level, uids: Mapping[str, str]) -> Search:
    """
    Return the search that a request is for.

    :raises ParameterError: a value is invalid.
    """
    search = parse_search(query, level.name, **uids)
    search.add_return_keys(_MORE_KEYS.get(level, ()))
    if search.all_fields:
        search.add_return_keys(one.tag for one in (*ATTRIBUTES, *COMPUTED) if one.level <= level)
    return search


async def _array(found: Found[bytes]) -> AsyncIterator[bytes]:
    """Yield the answers as pieces of a JSON array."""
    separator = b"["
    async for page in found.pages():
        if page:
            yield separator + b",".join(page)
            separator = b","
    yield b"]" if separator == b"," else b"[]"


async def _gzipped(pieces: AsyncIterator[bytes], threads: Runner) -> AsyncIterator[bytes]:
    """Yield *pieces* in gzip; threads compress them."""
    compressor = Gzip()
    async for piece in pieces:
        compressed = await threads.run_admitted(compressor.piece, piece)
        if compressed:
            yield compressed
    yield compressor.end()


def _route(path: str, level: Level, words: str) -> Route:
    return Route("GET", path, frozenset((Operation.FIND,)), partial(_search, level), words)


#: The resources of PS3.18 Table 10.6.1-1.
ROUTES: Final[tuple[Route, ...]] = (
    _route("/studies", Level.STUDY, "search for studies"),
    _route("/studies/{study}/series", Level.SERIES, "search for the series of a study"),
    _route("/studies/{study}/instances", Level.IMAGE, "search for the instances of a study"),
    _route("/studies/{study}/series/{series}/instances", Level.IMAGE, "search for the instances of a series"),
    _route("/series", Level.SERIES, "search for series of any study"),
    _route("/instances", Level.IMAGE, "search for instances of any study"),
)
