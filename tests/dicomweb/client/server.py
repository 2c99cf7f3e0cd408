"""A server that answers requests as a test scripts it, on a port of the loopback interface."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from dicomtwist.dicomweb import DICOMwebClient, Timeouts

__all__ = ["ClientTestCase", "Connection", "Received", "Script", "answer", "multipart"]


class Received(NamedTuple):
    """A request that has arrived."""

    line: str
    headers: dict[str, str]
    body: bytes


#: Returns the response to a request: bytes, or ``None`` to send nothing. It gets the connection too.
Script = Callable[[Received, "Connection"], bytes | None]


def answer(status: int = 200, body: bytes = b"", media_type: str = "application/dicom+json", **headers: str) -> bytes:
    """Return a response; underscores in names of header fields are hyphens."""
    fields = {"Content-Length": str(len(body)), "Content-Type": media_type, **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Word\r\n{head}\r\n".encode() + body


def multipart(*parts: bytes, part_type: str = "application/dicom") -> bytes:
    """Return a response whose body has these parts."""
    body = b"".join(b"--b\r\nContent-Type: " + part_type.encode() + b"\r\n\r\n" + part + b"\r\n" for part in parts)
    return answer(200, body + b"--b--\r\n", f'multipart/related; type="{part_type}"; boundary=b')


class Connection(Protocol):
    """A connection of the server."""

    factory: Any

    def __init__(self) -> None:
        self.data = b""
        self.lost: Deferred[None] = Deferred()

    @property
    def wire(self) -> Any:
        return self.transport

    def connectionMade(self) -> None:
        self.factory.connections.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        early = self.factory.early
        if early is not None and b"\r\n\r\n" in self.data:
            self.factory.early, self.factory.is_early = None, True
            self.wire.write(early(self.data))
            self.wire.pauseProducing()
        if self.factory.is_early:
            return
        while (request := self._request()) is not None:
            self.factory.received.append(request)
            response = self.factory.script(request, self)
            if response is not None:
                self.wire.write(response)

    def _request(self) -> Received | None:
        head, blank, rest = self.data.partition(b"\r\n\r\n")
        if not blank:
            return None
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (one.split(": ", 1) for one in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return None
        self.data = rest[length:]
        return Received(line, headers, rest[:length])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class _Server(Factory):
    protocol = Connection
    noisy = False

    def __init__(self, script: Script) -> None:
        self.script = script
        self.received: list[Received] = []
        self.connections: list[Connection] = []
        #: Called with what has arrived of a request, before it is complete; returns a response to it.
        self.early: Callable[[bytes], bytes] | None = None
        self.is_early = False


class ClientTestCase(TestCase):
    """A test of the client with a scripted server."""

    timeout = 30.0

    def serve(self, script: Script, **arguments: Any) -> DICOMwebClient:
        """Start a server, and return a client of it; :attr:`received` has the requests."""
        reactor: Any = global_reactor
        self.server = _Server(script)
        self.port = reactor.listenTCP(0, self.server, interface="127.0.0.1")
        self.addCleanup(self._stop, self.server, self.port)
        return self.client(f"http://127.0.0.1:{self.port.getHost().port}/dicom-web/", **arguments)

    def client(self, url: str, **arguments: Any) -> DICOMwebClient:
        """Return a client that waits for nothing longer than five seconds."""
        client = DICOMwebClient(url, **{"timeouts": Timeouts(5.0, 5.0, 5.0), "retries": 0, **arguments})
        self.addCleanup(client.close)
        return client

    async def _stop(self, server: _Server, port: Any) -> None:
        await maybeDeferred(port.stopListening)
        for connection in server.connections:
            connection.wire.abortConnection()
            await connection.lost

    @property
    def received(self) -> list[Received]:
        return self.server.received

    def target(self, at: int = 0) -> str:
        """Return method and path of a request."""
        return re.sub(" HTTP/1.1$", "", self.received[at].line)
