"""A site in memory for tests: an archive in a folder, real threads, and connections without a network."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet import reactor as _reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource

from dicomtwist.access.policy import Policy
from dicomtwist.ae.ae import AE
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.server import ArchiveServer
from dicomtwist.transport.peer_directory import Peers
from dicomtwist.web.http.limits import HTTPLimits
from dicomtwist.web.http.site import Site
from dicomtwist.web.resource import DICOMwebResource
from dicomtwist.web.services import Services

#: Its interface depends on the platform.
reactor: Any = _reactor

__all__ = ["Client", "Response", "SiteTestCase"]


class Response(NamedTuple):
    """A response that was received."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Transport(StringTransport):
    """A transport in memory that tells when something was written."""

    def __init__(self, address: str, port: int = 8042) -> None:
        super().__init__(
            hostAddress=IPv4Address("TCP", "127.0.0.1", port), peerAddress=IPv4Address("TCP", address, 40000)
        )
        self.changed: Deferred[None] = Deferred()

    def write(self, data: Any) -> None:
        super().write(bytes(data))
        self._tell()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        super().loseConnection()
        self._tell()

    def abortConnection(self) -> None:
        super().abortConnection()
        self._tell()

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Do nothing."""

    def _tell(self) -> None:
        # In the next turn of the reactor: what has written goes on first, as with a socket.
        changed, self.changed = self.changed, Deferred()
        reactor.callLater(0, changed.callback, None)


class Client:
    """A connection to a site, or to one of its entrances."""

    def __init__(self, site: Site | Factory, address: str = "127.0.0.1") -> None:
        self.protocol: Any = site.buildProtocol(IPv4Address("TCP", address, 40000))
        self.transport = Transport(address)
        self._received = b""
        if self.protocol is not None:
            self.protocol.makeConnection(self.transport)

    @property
    def is_closed(self) -> bool:
        return self.protocol is None or self.transport.disconnecting or self.transport.disconnected

    def send(self, data: bytes) -> None:
        if not self.transport.disconnected:
            self.protocol.dataReceived(data)

    def lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))

    async def response(self, *, head: bool = False) -> Response:
        """Return the next response; wait until it is complete."""
        while True:
            self._received += self.transport.value()
            self.transport.clear()
            found = parse(self._received, head=head, closed=self.is_closed)
            if found is not None:
                response, self._received = found
                return response
            await self.transport.changed

    async def request(
        self, method: str, path: str, headers: Iterable[tuple[str, str]] = (), body: bytes | None = None
    ) -> Response:
        """Send a request, and return its response."""
        self.send(encode(method, path, headers, body))
        return await self.response(head=method == "HEAD")


def encode(method: str, path: str, headers: Iterable[tuple[str, str]] = (), body: bytes | None = None) -> bytes:
    """Return the bytes of a request."""
    fields = list(headers)
    names = {name.lower() for name, _ in fields}
    if "host" not in names:
        fields.insert(0, ("Host", "127.0.0.1:8042"))
    if body is not None and not names & {"content-length", "transfer-encoding"}:
        fields.append(("Content-Length", str(len(body))))
    head = "".join([f"{method} {path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in fields), "\r\n"])
    return head.encode("latin-1") + (body or b"")


def parse(data: bytes, *, head: bool = False, closed: bool = False) -> tuple[Response, bytes] | None:
    """Return a response and the bytes behind it; ``None`` if it is not complete."""
    header, blank, rest = data.partition(b"\r\n\r\n")
    if not blank:
        return None
    line, *lines = header.decode("latin-1").split("\r\n")
    fields: dict[str, str] = {}
    for one in lines:
        name, _, value = one.partition(":")
        name = name.lower()
        fields[name] = f"{fields[name]}, {value.strip()}" if name in fields else value.strip()
    status = int(line.split()[1])
    if head or status in (204, 304) or status < 200:
        return Response(status, fields, b""), rest
    if "content-length" in fields:
        length = int(fields["content-length"])
        if len(rest) < length and not closed:
            return None
        body, rest = rest[:length], rest[length:]
    elif fields.get("transfer-encoding") == "chunked":
        body = b""
        while True:
            size, line_end, rest = rest.partition(b"\r\n")
            if not line_end:
                return None
            count = int(size, 16)
            if len(rest) < count + 2:
                return None
            body, rest = body + rest[:count], rest[count + 2 :]
            if not count:
                break
    else:
        if not closed:
            return None
        body, rest = rest, b""
    if fields.get("content-encoding") == "gzip":
        body = zlib.decompress(body, 31)
    return Response(status, fields, body), rest


class SiteTestCase(TestCase):
    """
    A test with a site.

    :ivar archive: the archive behind it.
    :ivar server: the archive with its services.
    :ivar services: the services of DICOMweb.
    :ivar site: the site; the resource is at ``/dicom-web``.
    """

    policy: Policy | None = None
    limits: HTTPLimits | None = None

    def setUp(self) -> None:
        self.clients: list[Client] = []
        self.addCleanup(self._close)
        self.folder = Path(self.mktemp())
        self.open_site(self.make_archive())

    def make_archive(self) -> Archive:
        """Return the archive of the site, which is in :attr:`folder`."""
        return Archive(self.folder)

    def open_site(self, archive: Archive) -> None:
        """Open an archive, and a site before it for new clients."""
        self.ae = AE("ARCHIVE")
        self.archive = archive
        self.archive.open()
        self.server = ArchiveServer(self.ae, self.archive, Peers(reactor, []), policy=self.policy)
        self.server.start()
        self.addCleanup(self.server.close)
        self.addCleanup(self.server.stop)
        self.services = Services(self.server, reactor, limits=self.limits or HTTPLimits())
        self.resource = DICOMwebResource(self.server, self.services)
        root = Resource()
        root.putChild(b"dicom-web", self.resource)
        self.site = Site(root, reactor, self.services.limits)

    def client(self, address: str = "127.0.0.1") -> Client:
        """Return a new connection to the site."""
        client = Client(self.site, address)
        self.clients.append(client)
        return client

    def _close(self) -> None:
        for client in self.clients:
            if client.protocol is not None:
                client.lose()
