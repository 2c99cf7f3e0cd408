"""
The archive for operators, as JSON: what it holds, its studies, locks, deletions, checks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Final

from dicomtwist.access.rules import Operation
from dicomtwist.archive.query.overview import MAX_STUDIES, StudyChoice, overview, studies
from dicomtwist.archive.removal.holds import MAX_REASON, Hold
from dicomtwist.archive.storage.types import is_uid
from dicomtwist.web.deletion import delete
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services

__all__ = ["ROUTES"]

#: The longest body of a request, in bytes.
MAX_BODY: Final = 64 * 1024


async def show(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with what the archive holds."""
    server = services.archive_server
    found = await server.ae.executors.querying.share(request.peer).run(overview, server.archive)
    policy = server.retention.policy
    retention = None
    if policy is not None:
        retention = {
            "age": policy.age,
            "size": policy.size,
            "order": policy.order,
            "rules": len(policy.rules),
            "dry_run": policy.dry_run,
            **(await _retention(services)),
        }
    request.answer_json({**found, "retention": retention})


async def _retention(services: Services) -> Mapping[str, int | None]:
    """Return the counts of the retention, of all processes together."""
    if services.overview is not None:
        return await services.overview.retention()
    retention = services.archive_server.retention
    return {"deleted": retention.deleted, "kept": retention.kept}


async def list_studies(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with a list of studies."""
    query: dict[str, list[str]] = {}
    for name, value in request.query:
        query.setdefault(name, []).append(value)
    unknown = query.keys() - {"study", "patient_id", "locked", "offset", "limit"}
    if unknown:
        raise Problem(400, "the parameters are study, patient_id, locked, offset and limit")
    uids = query.get("study", [])
    if not all(map(is_uid, uids)) or len(uids) > MAX_STUDIES:
        raise Problem(400, f"study is a UID, at most {MAX_STUDIES} of them")
    choice = StudyChoice(
        uids,
        query.get("patient_id", [""])[0],
        query.get("locked", ["false"])[0] == "true",
        _number(query, "offset", 0),
        _number(query, "limit", 100),
    )
    await _answer_studies(request, services, choice)


async def show_study(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with one study."""
    server = services.archive_server
    share = server.ae.executors.querying.share(request.peer)
    found = await share.run(studies, server.archive, StudyChoice([values["study"]]))
    if not found:
        raise Problem(404, "there is no such study")
    request.answer_json(found[0])


async def _answer_studies(request: DICOMwebRequest, services: Services, choice: StudyChoice) -> None:
    server = services.archive_server
    share = server.ae.executors.querying.share(request.peer)
    request.answer_json(await share.run(studies, server.archive, choice))


def _number(query: Mapping[str, list[str]], name: str, default: int) -> int:
    text = query.get(name, [str(default)])[0]
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise Problem(400, f"{name} is a number")
    return int(text)


async def lock(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Lock a study; the body is a JSON object with a reason, or empty."""
    body = await request.read(MAX_BODY)
    try:
        found: Any = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError):
        raise Problem(400, "the body is not JSON") from None
    reason = found.get("reason", "") if isinstance(found, dict) else None
    if not isinstance(reason, str) or len(reason) > MAX_REASON:
        raise Problem(400, f"the body is an object whose reason is a text of at most {MAX_REASON} characters")
    server = services.archive_server
    hold = Hold(reason, request.requestor.user or request.client.address, time.time())
    await server.ae.executors.housekeeping.share(request.peer).run(server.archive.holds.put, values["study"], hold)
    request.answer(status=204)


async def unlock(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Unlock a study."""
    server = services.archive_server
    share = server.ae.executors.housekeeping.share(request.peer)
    if not await share.run(server.archive.holds.remove, values["study"]):
        raise Problem(404, "the study is not locked")
    request.answer(status=204)


async def begin_check(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Begin to compare files and index."""
    await _begin(request, services, all_files=False)


async def begin_rebuild(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Begin to read all files and make their rows again."""
    await _begin(request, services, all_files=True)


async def _begin(request: DICOMwebRequest, services: Services, *, all_files: bool) -> None:
    state = await services.archive_server.maintenance.begin(all_files=all_files)
    if state is None:
        raise Problem(409, "a check or a rebuild is under way")
    request.answer_json(state, status=202)


async def show_check(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the state of the last check or rebuild."""
    server = services.archive_server
    share = server.ae.executors.housekeeping.share(request.peer)
    request.answer_json(await share.run(server.maintenance.state))


_ADMIN: Final = frozenset((Operation.ADMIN,))
_DELETE: Final = frozenset((Operation.DELETE,))
_STUDY: Final = "/archive/studies/{study}"
ROUTES: Final = (
    Route("GET", "/archive", _ADMIN, show, "counts, sizes, locks and the retention of the archive"),
    Route("GET", "/archive/studies", _ADMIN, list_studies, "studies, with sizes, times and locks"),
    Route("GET", _STUDY, _ADMIN, show_study, "one study"),
    Route("DELETE", _STUDY, _DELETE, delete, "delete a study"),
    Route("DELETE", f"{_STUDY}/series/{{series}}", _DELETE, delete, "delete a series"),
    Route("DELETE", f"{_STUDY}/series/{{series}}/instances/{{instance}}", _DELETE, delete, "delete an instance"),
    Route("PUT", f"{_STUDY}/lock", _ADMIN, lock, "lock a study, so that nobody can delete it"),
    Route("DELETE", f"{_STUDY}/lock", _ADMIN, unlock, "unlock a study"),
    Route("POST", "/archive/check", _ADMIN, begin_check, "begin to compare files and index"),
    Route("POST", "/archive/rebuild", _ADMIN, begin_rebuild, "begin to make the rows of all files again"),
    Route("GET", "/archive/check", _ADMIN, show_check, "the state of the last check or rebuild"),
)
