"""
The record of a request after its end, and the figures of all requests of a site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from time import time
from typing import Any, Final

from dicomtwist.access.rules import Requestor
from dicomtwist.runtime.figures.counts import Counts, Durations
from dicomtwist.web.http.client import Client

__all__ = ["HTTPFigures", "Noted", "RequestRecord", "record_of"]

#: The methods that have series of their own.
METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"))
#: The method and the route of all others.
OTHER: Final = "other"
#: The longest path in a record, in characters.
MAX_PATH: Final = 1000


@dataclass(slots=True)
class Noted:
    """
    The facts about a request that twisted.web does not know; the resource that handles it sets them.

    :ivar client: the client.
    :ivar requestor: the client as the rules see it, when it is authenticated.
    :ivar route: the route that handles it, ``""`` if there is none.
    :ivar stored: the instances that it has stored: their number by Study Instance UID and SOP Class UID.
    :ivar failed: the number of instances that it has not stored.
    :ivar sent: the instances of several that were sent as files: their number by Study Instance UID and SOP Class UID.
    """

    client: Client | None = None
    requestor: Requestor | None = None
    route: str = ""
    stored: dict[str, dict[str, int]] = field(default_factory=dict)
    failed: int = 0
    sent: dict[str, dict[str, int]] = field(default_factory=dict)

    def note_sent(self, study: str, sop_class: str) -> None:
        """Note that an instance was sent. It may be called in a thread, by one at a time."""
        counts = self.sent.setdefault(study, {})
        counts[sop_class] = counts.get(sop_class, 0) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """
    A request that has ended.

    The query of its URL is not in :meth:`as_dict`: it may have names and dates of birth of patients.

    :ivar method: the method.
    :ivar path: the path of its URL, as it was sent.
    :ivar route: the route that handled it, such as ``/dicom-web/studies/{study}``; ``""`` if none did.
    :ivar status: the status of the response, ``None`` if none was sent.
    :ivar address: the address of the client, which a trusted proxy may have told.
    :ivar proxied: whether a proxy told it.
    :ivar secure: whether the connection of the client has TLS, or stays on this machine.
    :ivar user: the confirmed user, ``""`` without one.
    :ivar identity: how the user was confirmed, ``""`` without one.
    :ivar certificate: the certificate of the client in words, ``""`` without one.
    :ivar credentials: whether the client has sent credentials, right or wrong.
    :ivar started: when its header had arrived.
    :ivar seconds: the time from then to the end of the response, in seconds.
    :ivar bytes_received: the bytes of its body that arrived.
    :ivar bytes_sent: the bytes of the body of the response that were given to the transport.
    :ivar ending: ``"answered"``, or ``"lost"`` if the connection was closed before the end of the response, by either side.
    :ivar stored: the instances that were stored: their number by Study Instance UID and SOP Class UID.
    :ivar failed: the number of instances that were not stored.
    :ivar sent: the instances of a study or a series that were sent as files: their number by Study Instance UID and SOP Class
        UID.
    :ivar query: the query of its URL.
    """

    method: str
    path: str
    route: str
    status: int | None
    address: str
    proxied: bool
    secure: bool
    user: str
    identity: str
    certificate: str
    credentials: bool
    started: datetime
    seconds: float
    bytes_received: int
    bytes_sent: int
    ending: str
    stored: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    failed: int = 0
    sent: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    query: str = field(default="", repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as a dict for ``json.dumps``; times are ISO 8601 in UTC."""
        found = {**asdict(self), "started": self.started.isoformat()}
        del found["query"]
        return found


class HTTPFigures:
    """
    The figures of a site.

    :ivar counts: the requests that have ended, by method, route and status.
    :ivar durations: their durations, by route.
    :ivar bytes_received: the bytes of their bodies.
    :ivar bytes_sent: the bytes of the bodies of their responses.
    """

    __slots__ = ("bytes_received", "bytes_sent", "counts", "durations")

    def __init__(self) -> None:
        self.counts = Counts()
        self.durations: Durations[str] = Durations()
        self.bytes_received = self.bytes_sent = 0

    def ended(self, method: str, route: str, status: int | str, seconds: float, received: int, sent: int) -> None:
        """Count a request that has ended."""
        route = route or OTHER
        self.counts.add((method if method in METHODS else OTHER, route, status))
        self.durations.add(route, seconds)
        self.bytes_received += received
        self.bytes_sent += sent


def record_of(request: Any, seconds: float, received: int, sent: int, ending: str) -> RequestRecord:
    """
    Return the record of *request*, which has ended.

    :param request: a :class:`~dicomtwist.web.http.site.StreamedRequest`.
    """
    noted = request.noted
    client, requestor = noted.client, noted.requestor
    certificate = None if client is None else client.certificate
    return RequestRecord(
        method=request.method.decode("latin-1")[:MAX_PATH],
        path=request.uri.partition(b"?")[0].decode("latin-1")[:MAX_PATH],
        route=noted.route,
        status=request.code if request.startedWriting else None,
        address="" if client is None else client.address,
        proxied=client is not None and client.proxied,
        secure=client is not None and client.is_secure,
        user="" if requestor is None else requestor.user,
        identity="" if requestor is None or requestor.identity is None else str(requestor.identity),
        certificate="" if certificate is None else str(certificate),
        credentials=request.requestHeaders.hasHeader(b"Authorization"),
        started=datetime.fromtimestamp(time() - seconds, UTC),
        seconds=seconds,
        bytes_received=received,
        bytes_sent=sent,
        ending=ending,
        stored=noted.stored,
        failed=noted.failed,
        sent={study: dict(counts) for study, counts in noted.sent.items()},
        query=request.uri.partition(b"?")[2].decode("latin-1"),
    )
