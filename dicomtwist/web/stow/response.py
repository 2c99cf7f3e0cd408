"""
The response to a storage request: its status, and the data set of PS3.18 10.5.3 in DICOM JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from dicomtwist.archive.services.storage import status_for
from dicomtwist.archive.storage.types import NO_ROOM, IndexFailed, StoreClosed, is_uid
from dicomtwist.dimse.status import CANNOT_UNDERSTAND, OUT_OF_RESOURCES
from dicomtwist.errors import ExecutorFull
from dicomtwist.web.stow.part import IncomingPart, InstanceTooLong, NotAnInstance, UnsupportedPart

__all__ = ["pieces", "reason_of", "status_of"]

#: The references of a response that are encoded at once.
PIECE: Final = 500

_CLASS: Final = "00081150"
_INSTANCE: Final = "00081155"
_URL: Final = "00081190"
_REASON: Final = "00081197"
_FAILED: Final = "00081198"
_STORED: Final = "00081199"
#: "Referenced SOP Class not supported" (PS3.18 Table 10.5.3-1 has the reasons of C-STORE and this one).
NOT_SUPPORTED: Final = 0x0122


def reason_of(error: BaseException) -> int:
    """Return the Failure Reason (0008,1197) of an instance that is not stored: a status of C-STORE (PS3.4 B.2.3)."""
    if isinstance(error, UnsupportedPart):
        return NOT_SUPPORTED
    if isinstance(error, InstanceTooLong):
        return OUT_OF_RESOURCES
    if isinstance(error, NotAnInstance):
        return CANNOT_UNDERSTAND
    return int(status_for(error))


def status_of(parts: Sequence[IncomingPart]) -> int:
    """
    Return the status of the response to a body that has been read to its end (PS3.18 10.5.3.1).

    :returns: 200 if all instances are stored, 202 if some are; if none is, 507, 503, 413 or 415 if that is the reason for
        each, else 409.
    """
    errors = [part.error for part in parts if part.error is not None]
    if len(errors) < len(parts):
        return 202 if errors else 200
    for status, are_all in (
        (507, all(isinstance(error, OSError) and error.errno in NO_ROOM for error in errors)),
        (503, all(isinstance(error, ExecutorFull | IndexFailed | StoreClosed) for error in errors)),
        (413, all(isinstance(error, InstanceTooLong) for error in errors)),
        (415, all(isinstance(error, UnsupportedPart) for error in errors)),
    ):
        if are_all:
            return status
    return 409


def pieces(parts: Sequence[IncomingPart], base_url: str) -> Iterator[bytes]:
    """
    Yield the pieces of the response, some hundred references each.

    :param base_url: the URL of the resource, see :attr:`~dicomtwist.web.request.DICOMwebRequest.base_url`.
    """
    stored = [part for part in parts if part.error is None]
    failed = [part for part in parts if part.error is not None]
    before = "{"
    studies = {part.study for part in stored}
    if len(studies) == 1:
        url = f"{base_url}/studies/{studies.pop()}"
        before += f"{json.dumps(_URL)}: {json.dumps(_value('UR', url))}, "
    for tag, chosen in ((_FAILED, failed), (_STORED, stored)):
        if not chosen:
            continue
        before += f'"{tag}": {{"vr": "SQ", "Value": ['
        for start in range(0, len(chosen), PIECE):
            items = [
                _failed(part) if tag is _FAILED else _stored(part, base_url) for part in chosen[start : start + PIECE]
            ]
            yield f"{before}{json.dumps(items)[1:-1]}".encode()
            before = ", "
        before = "]}, "
    yield (before.removesuffix(", ") + "}").encode()


def _value(vr: str, value: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]}


def _reference(part: IncomingPart) -> dict[str, Any]:
    """Return the UIDs of a part, as far as they are known."""
    uids = ((_CLASS, part.sop_class), (_INSTANCE, part.sop_instance))
    return {tag: _value("UI", uid) for tag, uid in uids if is_uid(uid)}


def _stored(part: IncomingPart, base_url: str) -> dict[str, Any]:
    url = f"{base_url}/studies/{part.study}/series/{part.series}/instances/{part.sop_instance}"
    return {**_reference(part), _URL: _value("UR", url)}


def _failed(part: IncomingPart) -> dict[str, Any]:
    assert part.error is not None
    return {**_reference(part), _REASON: _value("US", reason_of(part.error))}
