"""
The tree of resources of ``twist dicom --http``.
"""

from __future__ import annotations

from typing import Any

from twisted.web.resource import Resource

from dicomtwist.web.api.resource import APIResource
from dicomtwist.web.http.site import Site
from dicomtwist.web.monitoring.monitor import Monitor
from dicomtwist.web.monitoring.overview import Overview
from dicomtwist.web.monitoring.resource import HEALTH, METRICS, MonitoringResource
from dicomtwist.web.pages.resource import PageResource
from dicomtwist.web.resource import DICOMwebResource
from dicomtwist.web.services import Services

__all__ = ["make_site"]


class _Root(Resource):
    """
    The root of a site, with pages at all paths that no other resource has.

    :param pages: the pages.
    """

    def __init__(self, pages: PageResource) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pages = pages

    def getChild(self, path: bytes, request: Any) -> Any:
        """Return the pages, and give the path back to the request."""
        request.postpath.insert(0, request.prepath.pop())
        return self._pages


def make_site(services: Services) -> Site:
    """
    Return a site with DICOMweb below ``/dicom-web``, with JSON for operators below ``/api``, with ``/metrics`` and ``/health``,
    and with pages for people at all other paths.
    """
    archive_server = services.archive_server
    monitor = services.monitor = services.monitor or Monitor(archive_server)
    root = _Root(PageResource(archive_server, services))
    root.putChild(b"metrics", MonitoringResource(archive_server, services, METRICS))
    root.putChild(b"health", MonitoringResource(archive_server, services, HEALTH))
    root.putChild(b"dicom-web", DICOMwebResource(archive_server, services))
    root.putChild(b"api", APIResource(archive_server, services))
    site = monitor.site = Site(root, services.reactor, services.limits, services.trusted_proxies)
    services.overview = Overview(monitor, archive_server)
    return site
