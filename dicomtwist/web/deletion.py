"""
The deletion of studies, series and instances by DELETE.

PS3.18 has no transaction for it. Servers that have one agree on this form: DELETE of the resource that WADO-RS retrieves,
answered with 204.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dicomtwist.access.rules import Operation
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services

__all__ = ["ROUTES"]


async def delete(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Delete a study, a series or an instance; answer when nothing finds it any more."""
    uids = [values[name] for name in ("study", "series", "instance") if name in values]
    requestor = request.requestor
    by = f"{requestor.user!r} at {requestor.address}" if requestor.user else requestor.address
    await services.archive_server.deletion.delete(uids, by, peer=request.peer)
    request.answer(status=204)


_DELETE: Final = frozenset((Operation.DELETE,))
ROUTES: Final = (
    Route("DELETE", "/studies/{study}", _DELETE, delete, "Delete a study"),
    Route("DELETE", "/studies/{study}/series/{series}", _DELETE, delete, "Delete a series"),
    Route("DELETE", "/studies/{study}/series/{series}/instances/{instance}", _DELETE, delete, "Delete an instance"),
)
