"""
The pages of operators: what the server does, and how it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dicomtwist.access.rules import Operation
from dicomtwist.web.api.overview import overview_of
from dicomtwist.web.pages.answers import show
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services

__all__ = ["ROUTES"]

#: The rows of each table, and of the one that is shown alone.
FEW: Final = 20
MANY: Final = 200
#: The tables of what the server does.
TABLES: Final = ("associations", "requests", "refusals")

#: The charts: the name of the figure, its words, its unit, and the value that the height stands for at least.
CHARTS: Final = (
    ("associations", "Open associations", "count", 4.0),
    ("operations", "DIMSE operations per second", "count", 2.0),
    ("requests", "HTTP requests per second", "count", 2.0),
    ("instances", "Instances stored per second", "count", 2.0),
    ("received", "Received per second", "size", 100_000.0),
    ("sent", "Sent per second", "size", 100_000.0),
    ("lag", "Reactor lag", "duration", 0.05),
    ("busy", "Busy threads", "count", 4.0),
)

#: The work of the executors.
PURPOSES: Final = {
    "receiving": "writes and commits received instances",
    "querying": "searches the index",
    "retrieval": "reads files that are sent",
    "decoding": "decodes and converts data sets",
    "passcodes": "checks passcodes",
    "worklist": "reads worklist files",
    "deletion": "removes deleted files",
    "housekeeping": "everything else with files",
    "monitoring": "makes metrics and these pages",
    "records": "writes records and audit messages",
}


async def show_activity(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with what the server does, and what it has done lately."""
    shown = dict(request.query).get("show", "")
    activity = await overview_of(services).activity()
    wanted = (shown,) if shown in TABLES else TABLES
    await show(
        request,
        services,
        "activity.html",
        {
            "shown": shown if shown in TABLES else "",
            "open": activity["open"],
            "tables": {name: activity[name][: MANY if len(wanted) == 1 else FEW] for name in wanted},
            "has_more": {name: len(wanted) > 1 and len(activity[name]) > FEW for name in wanted},
        },
    )


async def show_server(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the state of the server, and the figures of the last minutes."""
    overview = overview_of(services)
    state, figures = await overview.state(), await overview.figures()
    series: Mapping[str, Any] = figures["series"]
    await show(
        request,
        services,
        "server.html",
        {
            "state": state,
            "charts": [(*chart, series.get(chart[0], [])) for chart in CHARTS],
            "purposes": PURPOSES,
        },
    )


_ADMIN: Final = frozenset((Operation.ADMIN,))

ROUTES: Final = (
    Route("GET", "/activity", _ADMIN, show_activity, "associations, requests and refusals"),
    Route("GET", "/server", _ADMIN, show_server, "the state of the server"),
)
