"""
The pages as a resource of twisted.web, with the fields that keep what peers send from acting in a browser.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from dicomtwist.archive.server import ArchiveServer
from dicomtwist.web.http.conditions import matches_etag
from dicomtwist.web.pages import images, operation, queue, studies
from dicomtwist.web.pages.answers import common, make
from dicomtwist.web.pages.files import file_named
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.resource import DICOMwebResource
from dicomtwist.web.routes import Route, Router
from dicomtwist.web.services import Services

__all__ = ["ROUTES", "PageResource"]

#: Scripts and styles come from files of this server alone, and nothing is asked of any other one. The pages are in no frame
#: of another page. The UIDs in their URLs are told to no other site, and no cache keeps them.
_FIELDS: Final = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'",
    ),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)


async def send_file(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with a file of the pages."""
    file = await services.archive_server.ae.executors.monitoring.run(file_named, values["name"])
    if file is None:
        raise Problem(404, "there is no such file")
    is_gzip = request.negotiate_gzip() and bool(file.compressed)
    etag = f'"{file.version}-gzip"' if is_gzip else f'"{file.version}"'
    is_versioned = ("v", file.version) in request.query
    request.set_header("ETag", etag)
    request.set_header("Cache-Control", "public, max-age=31536000, immutable" if is_versioned else "no-cache")
    if is_gzip:
        request.set_header("Content-Encoding", "gzip")
    if matches_etag(request.header("If-None-Match"), etag):
        request.answer(status=304)
    else:
        request.answer(file.compressed if is_gzip else file.content, file.media_type)


#: The table of routes. The files are public.
ROUTES: Final = (
    *studies.ROUTES,
    *images.ROUTES,
    *operation.ROUTES,
    *queue.ROUTES,
    Route("GET", "/static/{name}", frozenset(), send_file, "the style sheet and the scripts"),
)


class PageResource(DICOMwebResource):
    """The pages. No page of another origin reads them."""

    is_shared = False
    fields = _FIELDS

    def __init__(self, archive_server: ArchiveServer, services: Services) -> None:
        super().__init__(archive_server, services)
        self.router = Router(ROUTES)

    def refuse(self, request: DICOMwebRequest, problem: Problem) -> None:
        """Answer with a page about *problem*; with its words alone if there are no pages."""
        accepted = request.header("Accept")
        if "text/html" in accepted or "*/*" in accepted:
            for name, value in problem.headers:
                request.add_header(name, value)
            content, content_type = f"{problem.words}\n".encode(), "text/plain; charset=utf-8"
            with suppress(Problem):
                values = {**common(request, self.services), "problem": problem}
                content, content_type = make("problem.html", values), "text/html; charset=utf-8"
            request.answer(content, content_type, problem.status)
        else:
            super().refuse(request, problem)
