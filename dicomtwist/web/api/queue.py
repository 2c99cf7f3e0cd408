"""
The queue of forwarding for operators, as JSON: tasks, destinations, rules, and what is done to tasks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from dicomtwist.access.certificates import Certificate, parse_pattern
from dicomtwist.access.explanation import parse_sender
from dicomtwist.access.rules import Operation
from dicomtwist.archive.storage.types import is_uid
from dicomtwist.errors import DataSetError
from dicomtwist.forwarding.operators.queue import MAX_LISTED, Change, ForwardQueue
from dicomtwist.forwarding.tasks.types import Selection, TaskState
from dicomtwist.part10 import NotDicomFile
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Handler, Route
from dicomtwist.web.services import Services

__all__ = ["ROUTES", "number", "queue_of", "selection_of"]

#: The longest body of a change, in bytes, and the most numbers of tasks in it.
MAX_BODY: Final = 1024 * 1024
MAX_IDS: Final = 10_000
#: The longest front of a file to be explained, in bytes.
MAX_HEADER_BODY: Final = 16 * 1024 * 1024
#: The longest name of a peer or a rule.
MAX_NAME: Final = 256

_TEXTS: Final = ("destination", "study", "instance", "rule")
_KEYS: Final = frozenset(("ids", "states", "all", *_TEXTS))
_SENDER: Final = frozenset(("calling", "called", "from", "user", "certificate"))


def queue_of(services: Services) -> ForwardQueue:
    """
    Return the queue of the server.

    :raises Problem: it has none (404).
    """
    if services.queue is None:
        raise Problem(404, "this server forwards nothing")
    return services.queue


def selection_of(query: list[tuple[str, str]]) -> Selection:
    """
    Return the tasks that the parameters of a request select.

    :raises Problem: one of them is wrong (400).
    """
    values: dict[str, Any] = {"ids": [], "states": []}
    for name, value in query:
        if name == "id":
            values["ids"].append(number("id", value))
        elif name == "state":
            values["states"].append(value)
        elif name in _TEXTS:
            values[name] = value
        elif name not in ("limit", "after"):
            raise Problem(400, "the parameters are id, destination, study, instance, rule, state, limit and after")
    return _selection(values)


def _selection(values: Mapping[str, Any]) -> Selection:
    ids, states = values.get("ids", []), values.get("states", [])
    if not isinstance(ids, list) or not all(type(one) is int and 0 < one < 2**63 for one in ids):
        raise Problem(400, "ids is a list of numbers of tasks")
    if len(ids) > MAX_IDS:
        raise Problem(400, f"ids has at most {MAX_IDS} numbers")
    texts = {name: values.get(name, "") for name in _TEXTS}
    for name, value in texts.items():
        if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable():
            raise Problem(400, f"{name} is a text")
        if value and name in ("study", "instance") and not is_uid(value):
            raise Problem(400, f"{name} is a UID")
    try:
        found = frozenset(TaskState(one) for one in states)
    except (ValueError, TypeError):
        raise Problem(400, f"states are {', '.join(TaskState)}") from None
    return Selection(tuple(ids), states=found, **texts)


def number(name: str, text: str, most: int = 2**63 - 1) -> int:
    """
    Return the number that a parameter of a request is.

    :raises Problem: it is something else (400).
    """
    if not (text.isascii() and text.isdigit() and len(text) < 20) or int(text) > most:
        raise Problem(400, f"{name} is a number, at most {most}")
    return int(text)


async def list_tasks(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with tasks, in the order of their numbers."""
    selection = selection_of(request.query)
    query = dict(request.query)
    limit = number("limit", query.get("limit", "100"), MAX_LISTED)
    request.answer_json(await queue_of(services).tasks(selection, limit, number("after", query.get("after", "0"))))


async def show_task(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with one task."""
    found = await queue_of(services).tasks(Selection((number("the task", values["task"]),)), 1)
    if not found:
        raise Problem(404, "there is no such task")
    request.answer_json(found[0])


async def list_destinations(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the destinations: the numbers of their tasks by state, the age of the oldest, the state of their peers."""
    request.answer_json(await queue_of(services).destinations())


async def list_rules(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the rules that tasks were made by."""
    request.answer_json(await queue_of(services).definitions())


async def change(what: Change, request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Change the tasks that the body selects, a JSON object; answer with their number."""
    body = await request.read(MAX_BODY)
    try:
        wanted: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(400, "the body is not JSON") from None
    if not isinstance(wanted, dict) or wanted.keys() - _KEYS:
        raise Problem(400, f"the body is an object with some of {', '.join(sorted(_KEYS))}")
    selection = _selection(wanted)
    if selection == Selection() and wanted.get("all") is not True:
        raise Problem(400, 'the body selects no tasks: write {"all": true} for all of them')
    by = request.requestor.user or request.client.address
    request.answer_json({"tasks": await queue_of(services).change(what, selection, by)})


async def explain(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with what each rule says about the instance in the body, a PS3.10 file or its front up to the pixel data."""
    queue = queue_of(services)
    fields = dict(request.query)
    if fields.keys() - _SENDER:
        raise Problem(400, f"the parameters are {', '.join(sorted(_SENDER))}")
    certificate = fields.pop("certificate", "")
    try:
        requestor = parse_sender(fields, services.archive_server.ae.ae_title)
        if certificate:
            pattern = parse_pattern(certificate)  # never a file of the server
            requestor = replace(requestor, certificate=Certificate(pattern.subject, pattern.fingerprint))
    except ValueError as error:
        raise Problem(400, str(error)) from None
    body = await request.read(MAX_HEADER_BODY)
    try:
        request.answer_json(await queue.explain(body, requestor))
    except (NotDicomFile, DataSetError) as error:
        raise Problem(400, f"the body is not the front of a DICOM file: {error}") from None


def _change(what: Change) -> Handler:
    return partial(change, what)


_ADMIN: Final = frozenset((Operation.ADMIN,))
ROUTES: Final = (
    Route("GET", "/queue", _ADMIN, list_tasks, "tasks of forwarding"),
    Route("GET", "/queue/destinations", _ADMIN, list_destinations, "destinations, their tasks and their peers"),
    Route("GET", "/queue/rules", _ADMIN, list_rules, "the rules that tasks were made by"),
    Route("GET", "/queue/tasks/{task}", _ADMIN, show_task, "one task"),
    Route("POST", "/queue/retry", _ADMIN, _change(Change.RETRY), "try tasks again at once"),
    Route("POST", "/queue/hold", _ADMIN, _change(Change.HOLD), "put waiting tasks on hold"),
    Route("POST", "/queue/release", _ADMIN, _change(Change.RELEASE), "let tasks on hold be sent"),
    Route("POST", "/queue/drop", _ADMIN, _change(Change.DROP), "remove tasks"),
    Route("POST", "/queue/explain", _ADMIN, explain, "explain the rules of forwarding for an instance"),
)
