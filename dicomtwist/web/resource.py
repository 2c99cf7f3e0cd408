"""
DICOMweb as a resource of twisted.web: it finds the route of a request, checks who sends it, and calls the handler.
"""

from __future__ import annotations

from typing import Final

from dicomtwist.access.refusals import Refusal
from dicomtwist.archive.server import ArchiveServer
from dicomtwist.web import deletion, qido, wado
from dicomtwist.web.access import authenticate, refusal
from dicomtwist.web.handling import HandlingResource
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Match, Route, Router
from dicomtwist.web.services import Services
from dicomtwist.web.stow.handler import ROUTES as STOW_ROUTES

__all__ = ["ROUTES", "DICOMwebResource"]

#: The table of routes, as the conformance statement has it.
ROUTES: Final = (*STOW_ROUTES, *qido.ROUTES, *wado.ROUTES, *deletion.ROUTES)

#: The header fields that a web page of an allowed origin may send and read.
_SENT_BY_PAGES: Final = "Accept, Authorization, Content-Type, If-None-Match, Range"
_READ_BY_PAGES: Final = "Content-Length, Content-Location, Content-Range, ETag, Retry-After, Warning"

#: Fields of each response, for browsers. A document in it runs no script: it may be one that somebody has stored. A page that
#: is isolated from other origins, as that of OHIF, can show it within itself. No cache that several people use keeps it, and
#: that of a browser asks before it shows it again: what has neither a date nor this field may be kept for any time.
_FIELDS: Final = (
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox"),
    ("Cross-Origin-Embedder-Policy", "require-corp"),
    ("Cache-Control", "private, no-cache"),
)


class DICOMwebResource(HandlingResource):
    """
    DICOMweb for an archive. It can be mounted in any site of twisted.web; in a :class:`~dicomtwist.web.http.site.Site` bodies
    are streamed, in others they are received as a whole before they are handled.

    :param archive_server: the archive with its services and its access control.
    :param services: other services and settings; by default those of the archive alone.
    """

    #: Whether web pages of the allowed origins may use it, besides its own.
    is_shared = True
    #: The header fields of each response.
    fields: tuple[tuple[str, str], ...] = _FIELDS

    def __init__(self, archive_server: ArchiveServer, services: Services | None = None) -> None:
        super().__init__(services or Services(archive_server, archive_server.ae.reactor))
        self.router = Router(ROUTES)

    async def handle(self, request: DICOMwebRequest) -> None:
        """Find the route of a request, check its client, and call the handler."""
        for name, value in self.fields:
            request.set_header(name, value)
        is_for_others = self.is_shared and bool(self.services.origins)
        request.set_header("Cross-Origin-Resource-Policy", "cross-origin" if is_for_others else "same-origin")
        self._allow_origin(request)
        match = self.router.find(request.path)
        if request.method == "OPTIONS" and match.routes:
            self._answer_options(request, match)
            return
        request.checked = await authenticate(request, self.services)
        request.http.noted.requestor = request.requestor
        route = match.routes.get("GET" if request.method == "HEAD" else request.method)
        if not match.routes:
            raise Problem(404, "there is no such resource")
        if route is None:
            raise Problem(
                405, f"the methods here are {', '.join(match.methods)}", [("Allow", ", ".join(match.methods))]
            )
        request.http.noted.route = request.mount.rstrip("/") + route.path
        if not request.may(*route.operations):
            raise self._refused(request, route)
        await route.handler(request, self.services, match.values)

    def _refused(self, request: DICOMwebRequest, route: Route) -> Problem:
        """Return the response to a client whose operation no rule allows; the log has the rules."""
        what = " and ".join(sorted(route.operations))
        access = self.services.archive_server.access
        if access is not None:
            requestor = request.requestor
            why = access.policy.explain_refusal(requestor, route.operations)
            access.refusals.add(("http", "operation"))
            access.refusals.report(
                Refusal(
                    protocol="http",
                    what="operation",
                    peer=requestor.user,
                    address=requestor.address,
                    request=f"{request.method} {route.path}",
                    words=f"no rule allows {what}: {why}",
                )
            )
            self.log.info(
                "{method} of {log_client} refused: no rule allows {what}: {why}",
                method=request.method,
                log_client=request.words_of_client,
                peer=requestor.user or "HTTP",
                address=requestor.address,
                what=what,
                why=why,
            )
        return refusal(request, self.services, what)

    # --- web pages of other origins

    def _allow_origin(self, request: DICOMwebRequest) -> None:
        """
        Let a web page of an allowed origin read the response.

        :raises Problem: a page of any other origin would change something (403): a browser sends what a form can send without
            asking first.
        """
        origin = request.header("Origin").lower()
        allowed = self.services.origins if self.is_shared else frozenset()
        if origin:
            request.add_header("Vary", "Origin")
        if origin and (origin in allowed or "*" in allowed):
            request.set_header("Access-Control-Allow-Origin", request.header("Origin"))
            if origin in allowed:
                # Certificates and Basic credentials that the browser has are sent for origins that are named, not for any.
                request.set_header("Access-Control-Allow-Credentials", "true")
            request.set_header("Access-Control-Expose-Headers", _READ_BY_PAGES)
        elif request.method not in ("GET", "HEAD", "OPTIONS") and self._is_foreign(request, origin):
            raise Problem(403, "web pages of this origin may not change anything here")

    def _is_foreign(self, request: DICOMwebRequest, origin: str) -> bool:
        """Return whether a request comes from a web page of another origin."""
        # Browsers send this field, and no page can change it; "none" is for a request that no page has made.
        site = request.header("Sec-Fetch-Site").lower()
        if site:
            return site not in ("same-origin", "none")
        return bool(origin) and not self._is_own(request, origin)

    def _is_own(self, request: DICOMwebRequest, origin: str) -> bool:
        return origin.partition("://")[2] == request.header("Host").lower()

    def _answer_options(self, request: DICOMwebRequest, match: Match) -> None:
        request.set_header("Allow", ", ".join(match.methods))
        if request.http.responseHeaders.hasHeader(b"Access-Control-Allow-Origin"):
            request.set_header("Access-Control-Allow-Methods", ", ".join(match.methods))
            request.set_header("Access-Control-Allow-Headers", _SENT_BY_PAGES)
            request.set_header("Access-Control-Max-Age", "600")
        request.answer(status=204)
