"""
The page of the queue of forwarding: destinations, their peers, and tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from dicomtwist.access.rules import Operation
from dicomtwist.forwarding.tasks.types import TaskState
from dicomtwist.web.api.queue import queue_of, selection_of
from dicomtwist.web.pages.answers import show
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services

__all__ = ["ROUTES"]

#: The tasks of one page.
SHOWN: Final = 100

_FILTERS: Final = ("destination", "state", "study", "rule")


async def show_queue(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the destinations, and the tasks that the parameters select."""
    queue = queue_of(services)
    entered = {name: value.strip() for name, value in request.query if name in _FILTERS and value.strip()}
    found: dict[str, Any] = {"tasks": [], "error": "", "after": ""}
    after = dict(request.query).get("after", "0")
    behind = int(after) if after.isascii() and after.isdigit() and len(after) < 19 else 0
    first = ("/queue?" + urlencode(entered) if entered else "/queue") if behind else ""
    try:
        selection = selection_of(list(entered.items()))
        tasks = await queue.tasks(selection, SHOWN + 1, behind)
    except Problem as problem:
        found["error"] = problem.words
    else:
        found["tasks"] = tasks[:SHOWN]
        if len(tasks) > SHOWN:
            found["after"] = "/queue?" + urlencode([*entered.items(), ("after", str(tasks[SHOWN - 1]["id"]))])
    destinations = await queue.destinations()
    await show(
        request,
        services,
        "queue.html",
        {
            **found,
            "behind": behind,
            "first": first,
            "entered": entered,
            "destinations": destinations,
            "states": [one.value for one in TaskState],
        },
    )


_ADMIN: Final = frozenset((Operation.ADMIN,))

ROUTES: Final = (Route("GET", "/queue", _ADMIN, show_queue, "the queue of forwarding"),)
