"""
The tree of resources of ``twist dicom --http``.
"""

from __future__ import annotations

from twisted.web.resource import Resource

from dicomtwist.web.http.site import Site
from dicomtwist.web.monitoring.monitor import Monitor
from dicomtwist.web.monitoring.resource import HEALTH, METRICS, MonitoringResource
from dicomtwist.web.resource import DICOMwebResource
from dicomtwist.web.services import Services

__all__ = ["make_site"]


def make_site(services: Services) -> Site:
    """Return a site with DICOMweb below ``/dicom-web``, with ``/metrics`` and ``/health``."""
    root = Resource()
    archive_server = services.archive_server
    monitor = services.monitor = services.monitor or Monitor(archive_server)
    root.putChild(b"metrics", MonitoringResource(archive_server, services, METRICS))
    root.putChild(b"health", MonitoringResource(archive_server, services, HEALTH))
    root.putChild(b"dicom-web", DICOMwebResource(archive_server, services))
    site = monitor.site = Site(root, services.reactor, services.limits, services.trusted_proxies)
    return site
