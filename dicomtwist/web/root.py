"""
The tree of resources of ``twist dicom --http``.
"""

from __future__ import annotations

from twisted.web.resource import Resource

from dicomtwist.web.http.site import Site
from dicomtwist.web.resource import DICOMwebResource
from dicomtwist.web.services import Services

__all__ = ["make_site"]


def make_site(services: Services) -> Site:
    """Return a site with DICOMweb below ``/dicom-web``."""
    root = Resource()
    root.putChild(b"dicom-web", DICOMwebResource(services.archive_server, services))
    return Site(root, services.reactor, services.limits, services.trusted_proxies)
