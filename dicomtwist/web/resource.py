"""
DICOMweb as a resource of twisted.web: it finds the route of a request, checks who sends it, and calls the handler.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from dicomtwist.archive.server import ArchiveServer
from dicomtwist.errors import loggable
from dicomtwist.web import qido, wado
from dicomtwist.web.access import authenticate, refusal
from dicomtwist.web.http.body import Body, FileBody
from dicomtwist.web.http.client import Client
from dicomtwist.web.http.site import StreamingResource
from dicomtwist.web.problems import Problem, problem_of
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Match, Route, Router
from dicomtwist.web.services import Services
from dicomtwist.web.stow.handler import ROUTES as STOW_ROUTES

__all__ = ["ROUTES", "DICOMwebResource"]

#: The table of routes, as the conformance statement has it.
ROUTES: Final = (*STOW_ROUTES, *qido.ROUTES, *wado.ROUTES)

#: The header fields that a web page of an allowed origin may send and read.
_SENT_BY_PAGES: Final = "Accept, Authorization, Content-Type, If-None-Match, Range"
_READ_BY_PAGES: Final = "Content-Length, Content-Location, Content-Range, ETag, Retry-After, Warning"


@implementer(IResource)
class DICOMwebResource(StreamingResource):
    """
    DICOMweb for an archive. It can be mounted in any site of twisted.web; in a :class:`~dicomtwist.web.http.site.Site` bodies
    are streamed, in others they are received as a whole before they are handled.

    :param archive_server: the archive with its services and its access control.
    :param services: other services and settings; by default those of the archive alone.
    """

    isLeaf = True
    log = Logger()

    def __init__(self, archive_server: ArchiveServer, services: Services | None = None) -> None:
        self.services = services or Services(archive_server, archive_server.ae.reactor)
        self.router = Router(ROUTES)

    # --- for twisted.web

    def getChildWithDefault(self, name: bytes, request: Any) -> Any:
        """Return this resource; it has no children."""
        return self

    def putChild(self, path: bytes, child: Any) -> None:
        """Refuse children."""
        raise NotImplementedError("this resource has no children")

    def render(self, request: Any) -> int:
        """Handle a request that has arrived completely."""
        self.begin(request, FileBody(request.content, self.services.reactor.callLater))
        return NOT_DONE_YET

    def begin(self, request: Any, body: Body) -> None:
        """Handle a request whose header has arrived; its body may follow."""
        request.setHeader(b"Server", b"dicomtwist")
        running = Deferred.fromCoroutine(self._handle(request, body))
        request.notifyFinish().addErrback(lambda _: running.cancel())

    # --- one request

    async def _handle(self, http: Any, body: Body) -> None:
        services = self.services
        request = DICOMwebRequest(http, body, services, Client.of(http, services.trusted_proxies))
        try:
            await self._route(request)
            if not request.is_answered:
                raise RuntimeError("the handler has not answered")
        except CancelledError:
            request.abort()
        except Exception as error:
            self._failed(request, error)

    async def _route(self, request: DICOMwebRequest) -> None:
        request.set_header("X-Content-Type-Options", "nosniff")
        self._allow_origin(request)
        match = self.router.find(request.path)
        if request.method == "OPTIONS" and match.routes:
            self._answer_options(request, match)
            return
        request.checked = await authenticate(request, self.services)
        route = match.routes.get("GET" if request.method == "HEAD" else request.method)
        if not match.routes:
            raise Problem(404, "there is no such resource")
        if route is None:
            raise Problem(
                405, f"the methods here are {', '.join(match.methods)}", [("Allow", ", ".join(match.methods))]
            )
        if not request.may(*route.operations):
            raise self._refused(request, route)
        await route.handler(request, self.services, match.values)

    def _refused(self, request: DICOMwebRequest, route: Route) -> Problem:
        """Return the response to a client whose operation no rule allows; the log has the rules."""
        what = " and ".join(sorted(route.operations))
        access = self.services.archive_server.access
        if access is not None:
            requestor = request.requestor
            self.log.info(
                "{method} of {peer!r} at {address} refused: no rule allows {what}: {why}",
                method=request.method,
                peer=requestor.user or "HTTP",
                address=requestor.address,
                what=what,
                why=access.policy.rules.explain_refusal(requestor, route.operations),
            )
        return refusal(request, self.services, what)

    def _failed(self, request: DICOMwebRequest, error: Exception) -> None:
        """Answer with the problem that *error* is."""
        problem = problem_of(error)
        if problem is None:
            self.log.failure(
                "{method} {path} of {address} failed",
                Failure(error),
                method=request.method,
                path=request.path[:200],
                address=request.client.address,
            )
            problem = Problem(500, "the server has failed, and has logged why")
        elif problem.status >= 500:
            self.log.error(
                "{method} {path} of {address} refused with {status}: {reason}",
                method=request.method,
                path=request.path[:200],
                address=request.client.address,
                status=int(problem.status),
                reason=loggable(error),
            )
        if request.is_answered:
            request.abort()
        else:
            request.refuse(problem)

    # --- web pages of other origins

    def _allow_origin(self, request: DICOMwebRequest) -> None:
        """
        Let a web page of an allowed origin read the response.

        :raises Problem: a page of any other origin would change something (403): a browser sends what a form can send without
            asking first.
        """
        origin = request.header("Origin")
        if not origin:
            return
        allowed = self.services.origins
        request.add_header("Vary", "Origin")
        if origin.lower() in allowed or "*" in allowed:
            request.set_header("Access-Control-Allow-Origin", origin)
            if origin.lower() in allowed:
                # Certificates and Basic credentials that the browser has are sent for origins that are named, not for any.
                request.set_header("Access-Control-Allow-Credentials", "true")
            request.set_header("Access-Control-Expose-Headers", _READ_BY_PAGES)
        elif request.method not in ("GET", "HEAD", "OPTIONS") and not self._is_own(request, origin):
            raise Problem(403, "web pages of this origin may not change anything here")

    def _is_own(self, request: DICOMwebRequest, origin: str) -> bool:
        return origin.lower().partition("://")[2] == request.header("Host").lower()

    def _answer_options(self, request: DICOMwebRequest, match: Match) -> None:
        request.set_header("Allow", ", ".join(match.methods))
        if request.http.responseHeaders.hasHeader(b"Access-Control-Allow-Origin"):
            request.set_header("Access-Control-Allow-Methods", ", ".join(match.methods))
            request.set_header("Access-Control-Allow-Headers", _SENT_BY_PAGES)
            request.set_header("Access-Control-Max-Age", "600")
        request.answer(status=204)
