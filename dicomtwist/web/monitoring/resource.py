"""
``/metrics`` and ``/health`` of the site.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dicomtwist.access.rules import Operation
from dicomtwist.archive.server import ArchiveServer
from dicomtwist.runtime.networks import Networks
from dicomtwist.web.access import refusal
from dicomtwist.web.monitoring.monitor import Monitor
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.resource import DICOMwebResource
from dicomtwist.web.routes import Route, Router
from dicomtwist.web.services import Services

__all__ = ["HEALTH", "METRICS", "MonitoringResource"]

#: The programs of this machine, which see the metrics under any rules.
_HERE: Final = Networks(loopback=True, unix=True)


class MonitoringResource(DICOMwebResource):
    """
    A resource with the routes of monitoring. It answers while the server starts and stops as well.

    :param routes: :data:`METRICS` or :data:`HEALTH`.
    """

    is_always_answered = True

    def __init__(self, archive_server: ArchiveServer, services: Services, routes: tuple[Route, ...]) -> None:
        super().__init__(archive_server, services)
        self.router = Router(routes)


def _monitor(services: Services) -> Monitor:
    if services.monitor is None:
        raise Problem(404, "this server is not monitored")
    return services.monitor


async def live(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer that the process runs: its reactor handles requests."""
    request.set_header("Cache-Control", "no-store")
    request.answer(b"live\n", "text/plain; charset=utf-8")


async def ready(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer 200 if the server can work, 503 with the reasons if it cannot."""
    problems = await _monitor(services).problems()
    request.set_header("Cache-Control", "no-store")
    if problems:
        request.set_header("Retry-After", "10")
    words = "".join(f"{one}\n" for one in problems) or "ready\n"
    request.answer(words.encode(), "text/plain; charset=utf-8", 503 if problems else 200)


async def metrics(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the metrics of all processes of the server."""
    requestor = request.requestor
    if not request.may(Operation.ADMIN) and not _HERE.has(requestor.address, proxied=requestor.proxied):
        access = services.archive_server.access
        if access is not None:
            access.refusals.add(("http", "operation"))
        raise refusal(request, services, Operation.ADMIN)
    monitor = _monitor(services)
    try:
        from dicomtwist.web.monitoring.exposition import expose
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("prometheus_client"):
            raise
        raise Problem(501, 'metrics need prometheus-client: pip install "dicomtwist[metrics]"') from None
    snapshots = await monitor.collect_all()
    executor = services.archive_server.ae.executors.monitoring
    text, content_type = await executor.run(expose, snapshots, request.header("Accept"))
    request.set_header("Cache-Control", "no-store")
    request.answer(text, content_type)


#: The route of ``/metrics``. Its handler checks the rules: a program of this machine needs none.
METRICS: Final = (Route("GET", "", frozenset(), metrics, "the metrics, in the text format of Prometheus"),)
#: The routes of ``/health``, which is open for everybody: it shows no more than an attempt to connect.
HEALTH: Final = (
    Route("GET", "/live", frozenset(), live, "200 if the process runs"),
    Route("GET", "/ready", frozenset(), ready, "200 if the server can work, else 503"),
)
