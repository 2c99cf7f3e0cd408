"""
How a handler answers with a page: what all pages have, and the thread that makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from dicomtwist.access.rules import Operation
from dicomtwist.web.http.compression import MIN_COMPRESSED, gzip
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.services import Services

__all__ = ["MISSING", "common", "is_fragment", "make", "show"]

#: The response instead of a page if the extra is not installed.
MISSING: Final = 'the pages need Jinja2: pip install "dicomtwist[page]"'

_HTML: Final = "text/html; charset=utf-8"


def is_fragment(request: DICOMwebRequest) -> bool:
    """Return whether a script of the page asks for a part of it."""
    return request.header("HX-Request") == "true"


def common(request: DICOMwebRequest, services: Services) -> dict[str, Any]:
    """Return the values that all pages have."""
    return {
        "base": request.client.prefix,
        "ae_title": services.archive_server.ae.ae_title,
        "user": "" if request.checked is None else request.requestor.user,
        "may_find": request.may(Operation.FIND),
        "may_get": request.may(Operation.GET),
        "may_admin": request.may(Operation.ADMIN),
        "has_queue": services.queue is not None,
        "has_pixels": services.pixels is not None,
        "is_fragment": is_fragment(request),
    }


def make(template: str, values: Mapping[str, Any]) -> bytes:
    """
    Return a page. The first one takes a tenth of a second.

    :raises Problem: the extra is not installed (501).
    """
    try:
        from dicomtwist.web.pages.rendering import render
    except ModuleNotFoundError as error:
        if error.name not in ("jinja2", "markupsafe"):
            raise
        raise Problem(501, MISSING) from None
    return render(template, values)


async def show(
    request: DICOMwebRequest,
    services: Services,
    template: str,
    values: Callable[[], Mapping[str, Any]] | Mapping[str, Any],
) -> None:
    """
    Answer with a page, which is made in a thread.

    :param template: the name of its template.
    :param values: its values, or a function that returns them, for the thread.
    """
    known = common(request, services)
    is_gzip = request.negotiate_gzip()

    def page() -> tuple[bytes, bool]:
        content = make(template, {**known, **(values() if callable(values) else values)})
        if is_gzip and len(content) >= MIN_COMPRESSED:
            return gzip(content), True
        return content, False

    content, is_compressed = await services.archive_server.ae.executors.monitoring.run(page)
    if is_compressed:
        request.set_header("Content-Encoding", "gzip")
    request.answer(content, _HTML)
