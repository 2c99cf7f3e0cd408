"""
The state of the server, its figures, and what it has done lately, as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dicomtwist.access.rules import Operation
from dicomtwist.web.monitoring.overview import Overview
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services

__all__ = ["ROUTES", "overview_of"]


def overview_of(services: Services) -> Overview:
    """
    Return the overview of the server.

    :raises Problem: it has none (404).
    """
    if services.overview is None:
        raise Problem(404, "this server has no overview")
    return services.overview


async def state(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the state of the server."""
    request.answer_json(await overview_of(services).state())


async def figures(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the figures of the last quarter of an hour."""
    request.answer_json(await overview_of(services).figures())


async def associations(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the open associations, and the last ones that have ended."""
    activity = await overview_of(services).activity()
    request.answer_json({"open": activity["open"], "ended": activity["associations"]})


async def requests(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the last requests of HTTP."""
    request.answer_json((await overview_of(services).activity())["requests"])


async def refusals(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the last refusals by the access rules."""
    request.answer_json((await overview_of(services).activity())["refusals"])


_ADMIN: Final = frozenset((Operation.ADMIN,))

ROUTES: Final = (
    Route("GET", "/state", _ADMIN, state, "the processes, the disk, the index, the executors, and totals"),
    Route("GET", "/figures", _ADMIN, figures, "rates, associations and lag of the last quarter of an hour"),
    Route("GET", "/associations", _ADMIN, associations, "the open associations, and the last ones that have ended"),
    Route("GET", "/requests", _ADMIN, requests, "the last requests of HTTP"),
    Route("GET", "/refusals", _ADMIN, refusals, "the last refusals by the access rules, with the rules"),
)
