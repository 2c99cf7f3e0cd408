"""WADO-RS and WADO-URI: retrieval (PS3.18 10.4, 9)."""

from __future__ import annotations

from typing import Final

from dicomtwist.web.routes import Route
from dicomtwist.web.wado import bulk_data, frames, instances, metadata, rendered, uri

__all__ = ["ROUTES"]

ROUTES: Final[tuple[Route, ...]] = (
    *instances.ROUTES,
    *metadata.ROUTES,
    *frames.ROUTES,
    *bulk_data.ROUTES,
    *rendered.ROUTES,
    *uri.ROUTES,
)
