"""
``/api`` of the site: JSON for operators and their tools, with the operations ``admin`` and ``delete``.
"""

from __future__ import annotations

from typing import Final

from dicomtwist.archive.server import ArchiveServer
from dicomtwist.web.api.archive import ROUTES as ARCHIVE_ROUTES
from dicomtwist.web.api.overview import ROUTES as OVERVIEW_ROUTES
from dicomtwist.web.api.queue import ROUTES as QUEUE_ROUTES
from dicomtwist.web.resource import DICOMwebResource
from dicomtwist.web.routes import Router
from dicomtwist.web.services import Services

__all__ = ["ROUTES", "APIResource"]

#: The table of routes, as the documentation has it.
ROUTES: Final = (*OVERVIEW_ROUTES, *ARCHIVE_ROUTES, *QUEUE_ROUTES)


class APIResource(DICOMwebResource):
    """JSON for operators. Web pages of other origins neither read nor change it, whatever origins may use DICOMweb."""

    is_shared = False
    fields = (*DICOMwebResource.fields, ("Cache-Control", "no-store"))

    def __init__(self, archive_server: ArchiveServer, services: Services) -> None:
        super().__init__(archive_server, services)
        self.router = Router(ROUTES)
