"""
The handler of storage requests (PS3.18 10.5).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from itertools import islice
from typing import Final

from twisted.logger import Logger

from dicomtwist.access.rules import Operation, Requestor
from dicomtwist.ae.server import in_bytes
from dicomtwist.archive.storage.types import ReplacementRefused, is_uid
from dicomtwist.dicomweb.media_types import DICOM, DICOM_JSON, MediaType, MediaTypeError
from dicomtwist.dicomweb.multipart import MultipartCutter, boundary_of
from dicomtwist.errors import loggable
from dicomtwist.web.problems import RETRY_AFTER, Problem, problem_of
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services
from dicomtwist.web.stow.body import IncomingBody, SinglePart
from dicomtwist.web.stow.part import NotAnInstance
from dicomtwist.web.stow.response import pieces, reason_of, status_of

__all__ = ["ROUTES"]

#: The most lines in the log about instances of one body that are not stored.
MAX_REASONS_LOGGED: Final = 20

_log = Logger()


class _Client:
    """The client of a request as the sender of instances."""

    def __init__(self, request: DICOMwebRequest, services: Services) -> None:
        self._request = request
        self._executor = services.archive_server.ingest.executor
        self._conflicts = 0

    @property
    def requestor(self) -> Requestor:
        """The facts about it that rules are matched against."""
        return self._request.requestor

    @property
    def may_replace(self) -> bool:
        """Whether the rules allow it to replace instances now."""
        return self._request.may(Operation.REPLACE)

    def log_replacement(self, message: str, /, **fields: object) -> None:
        """Log that its instance replaced another one: a line each, however many there are."""
        self._log(message, {**fields, "log_always": True})

    def log_conflict(self, message: str, /, **fields: object) -> None:
        """Log that its instance disagrees with the index, a number of times."""
        self._conflicts += 1
        if self._conflicts <= MAX_REASONS_LOGGED:
            self._log(message, fields)

    def _log(self, message: str, fields: dict[str, object]) -> None:
        fields.update(peer=self._request.requestor.user or "HTTP", address=self._request.client.address)
        fields["log_client"] = self._request.words_of_client
        message = f"{{log_client}}: {message}"
        self._executor.call_in_reactor(lambda: _log.warn(message, **fields))


async def store(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """
    Store the instances in the body, and answer with the outcome of each.

    Whole instances are stored even if the rest of the body is cut off or malformed. The client may send all of it again, since
    an instance that is there already is a success.

    :raises Problem: nothing of the body was read or stored.
    """
    server = services.archive_server
    cutter = _cutter(request)
    if server.archive.lacks_room:
        raise Problem(507, "there is no room in the storage")
    length = request.body.length
    if length is not None and length > services.limits.maximum_body:
        raise Problem(413, f"a body of more than {services.limits.maximum_body} bytes")
    body = IncomingBody(
        *(request.body, cutter, server.ingest, _Client(request, services)),
        study=values.get("study", ""),
        maximum=server.ae.settings.maximum_object_size,
    )
    begun = services.reactor.seconds()
    request.body.deliver_to(body)
    await body.done
    _note(request, body)
    _log_outcome(request, services, body, services.reactor.seconds() - begun)
    status = _status(request, body)
    found = pieces(body.parts, request.base_url)
    content = b"".join(islice(found, 4))
    rest = next(found, None)
    if rest is None:
        request.answer(content, DICOM_JSON, status)
    else:
        await request.stream(_stream(content, rest, found), DICOM_JSON, status=status)


async def _stream(*parts: bytes | Iterator[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        if isinstance(part, bytes):
            yield part
        else:
            for piece in part:
                yield piece


def _cutter(request: DICOMwebRequest) -> MultipartCutter | SinglePart:
    """
    Return what cuts the body into instances.

    :raises Problem: its media type is not supported (415), or its boundary is missing (400).
    """
    if request.header("Content-Encoding").lower() not in ("", "identity"):
        raise Problem(415, "a body with a Content-Encoding")
    try:
        media_type = MediaType.parse(request.header("Content-Type"))
    except MediaTypeError as error:
        raise Problem(415, f"a body without a valid Content-Type: {error}") from None
    if media_type.name == DICOM:
        return SinglePart()
    if media_type.name != "multipart/related":
        raise Problem(415, f"a body that is neither multipart/related nor {DICOM}")
    try:
        kind = MediaType.parse(media_type.parameters.get("type", DICOM)).name
    except MediaTypeError:
        kind = ""
    if kind != DICOM:
        raise Problem(415, f"a body with parts of another type than {DICOM}: metadata and bulk data are not supported")
    return MultipartCutter(boundary_of(media_type.parameters.get("boundary", "")))


def _status(request: DICOMwebRequest, body: IncomingBody) -> int:
    """
    Return the status of the response, and add its warnings.

    :raises Problem: nothing was stored, and there is no instance to report.
    """
    failure = body.failure
    problem = None if failure is None else problem_of(failure)
    if failure is not None and problem is None:
        raise failure
    if not body.parts:
        raise problem or Problem(400, "the body has no instance")
    status = status_of(body.parts)
    if problem is not None:
        request.warn(f"the body was not read to its end: {problem.words}; what is reported here was received before")
        stored = any(part.error is None for part in body.parts)
        status = 202 if stored and problem.status == 400 else problem.status
    if status == 503:
        request.set_header("Retry-After", str(RETRY_AFTER))
    for words in dict.fromkeys(str(part.error) for part in body.parts if isinstance(part.error, NotAnInstance)):
        request.warn(words)
    return int(status)


def _note(request: DICOMwebRequest, body: IncomingBody) -> None:
    """Note what was stored, for the record of the request."""
    noted = request.http.noted
    for part in body.parts:
        if part.error is None:
            counts = noted.stored.setdefault(part.study, {})
            counts[part.sop_class] = counts.get(part.sop_class, 0) + 1
        else:
            noted.failed += 1


def _log_outcome(request: DICOMwebRequest, services: Services, body: IncomingBody, seconds: float) -> None:
    """Log the outcome of a body: one line, and some about instances that are not stored."""
    no_room = services.archive_server.storage.no_room
    fields = {
        "peer": request.requestor.user or "HTTP",
        "address": request.client.address,
        "log_client": request.words_of_client,
    }
    errors = [part.error for part in body.parts if part.error is not None]
    told = 0
    _log_refused_replacements(request, services, body)
    for error in errors:
        if isinstance(error, ReplacementRefused):
            continue
        if not no_room.takes(error) and told < MAX_REASONS_LOGGED:
            told += 1
            _log.error(
                "an instance from {address} was not stored, status 0x{status:04X}: {reason}",
                status=reason_of(error),
                reason=loggable(error),
                **fields,
            )
    _log.info(
        "{log_client} stored by HTTP: {instances_stored} instances, {failed} failed, {studies} studies; "
        "{log_size} in, {seconds} s",
        instances_stored=len(body.parts) - len(errors),
        failed=len(errors),
        studies=len({part.study for part in body.parts if part.error is None}),
        log_size=in_bytes(body.size),
        bytes_received=body.size,
        seconds=round(seconds, 3),
        **fields,
    )


def _log_refused_replacements(request: DICOMwebRequest, services: Services, body: IncomingBody) -> None:
    """Log that instances may not be replaced: one line for a body, as for an association."""
    refused = [part for part in body.parts if isinstance(part.error, ReplacementRefused)]
    access = services.archive_server.access
    if refused and access is not None:
        uid = refused[0].sop_instance
        _log.info(
            "{method} of {log_client}: {refused} instances refused: no rule allows replace: {reason}{log_which}: {why}",
            method=request.method,
            log_client=request.words_of_client,
            peer=request.requestor.user or "HTTP",
            address=request.client.address,
            refused=len(refused),
            reason=loggable(refused[0].error),
            # An invalid UID is not quoted: it may be a patient's name.
            log_which=f" ({uid})" if is_uid(uid) else "",
            why=access.policy.explain_refusal(request.requestor, (Operation.REPLACE,)),
        )


_STORE: Final = frozenset((Operation.STORE,))

ROUTES: Final = (
    Route("POST", "/studies", _STORE, store, "stores instances of any study"),
    Route("POST", "/studies/{study}", _STORE, store, "stores instances of one study"),
)
