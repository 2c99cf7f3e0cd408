"""
Resources of twisted.web whose requests are handled by a coroutine, and whose errors become responses.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from dicomtwist.errors import loggable
from dicomtwist.web.http.body import Body, FileBody
from dicomtwist.web.http.client import Client
from dicomtwist.web.http.records import Noted
from dicomtwist.web.http.site import StreamingResource
from dicomtwist.web.problems import RETRY_AFTER, Problem, problem_of
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.services import Services

__all__ = ["HandlingResource"]


@implementer(IResource)
class HandlingResource(StreamingResource):
    """
    A resource without children: it handles all paths below its own. It can be mounted in any site of twisted.web.

    :param services: the services of its handler.
    """

    isLeaf = True
    #: Whether requests are handled while the server starts or stops.
    is_always_answered = False
    log = Logger()

    def __init__(self, services: Services) -> None:
        self.services = services

    @abstractmethod
    async def handle(self, request: DICOMwebRequest) -> None:
        """
        Answer a request. It is cancelled when the client goes away. An exception becomes the response; that of an error of
        this program is 500.
        """

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
        http.noted = Noted(request.client)
        request.set_header("X-Content-Type-Options", "nosniff")
        try:
            why = "" if self.is_always_answered else getattr(http.site, "unavailable", "")
            if why:
                raise Problem(503, why, [("Retry-After", str(RETRY_AFTER))])
            await self.handle(request)
            if not request.is_answered:
                raise RuntimeError("the handler has not answered")
        except CancelledError:
            request.abort()
        except Exception as error:
            self._failed(request, error)

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
            self.refuse(request, problem)

    def refuse(self, request: DICOMwebRequest, problem: Problem) -> None:
        """Answer with *problem*, in the form that clients of this resource expect."""
        request.refuse(problem)
