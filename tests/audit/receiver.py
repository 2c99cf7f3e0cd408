"""A syslog server with TLS (RFC 5425) that a test can stop, start and look into."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from dicomtwist.endpoints import server_endpoint
from tests import peers
from tests.audit.schema import parsed

__all__ = ["Receiver", "content_of"]

reactor = cast(Any, _reactor)

#: The end of the header of each message, with the mark of UTF-8.
MARK = b" DICOM+RFC3881 - \xef\xbb\xbf"


def content_of(message: bytes) -> Any:
    """Return the audit message in a syslog message, as a tree; it fails if one of the two is not valid."""
    header, mark, content = message.partition(MARK)
    assert mark and header.startswith(b"<85>1 20"), message
    assert len(header.split(b" ")) == 5, header
    return parsed(content)


class _Connection(Protocol):
    """Cuts messages by their lengths."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._buffer = b""

    def connectionMade(self) -> None:
        self._receiver.connections.append(self)

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        while True:
            length, space, rest = self._buffer.partition(b" ")
            if not space or len(rest) < int(length):
                return
            self._receiver.received.append(rest[: int(length)])
            self._buffer = rest[int(length) :]

    def connectionLost(self, reason: Any = Failure) -> None:
        self._receiver.connections.remove(self)


class Receiver:
    """
    The server.

    :ivar received: the syslog messages.
    :ivar connections: the open connections.
    """

    def __init__(self) -> None:
        self.port = peers.free_port()
        self.received: list[bytes] = []
        self.connections: list[Any] = []
        self._listening: Any = None
        found = peers.certificates()
        self._files = f"privateKey={found.server_key}:certKey={found.server_cert}:trustRoots={found.ca}"
        self.target = (
            f"dicomtls:127.0.0.1:{self.port}:trustRoots={found.ca}"
            f":privateKey={found.client_key}:certKey={found.client_cert}"
        )

    async def start(self) -> None:
        factory = Factory.forProtocol(cast(Any, lambda: _Connection(self)))
        endpoint = server_endpoint(reactor, f"dicomtls:{self.port}:interface=127.0.0.1:{self._files}")
        self._listening = await endpoint.listen(factory)

    async def stop(self) -> None:
        """Stop as a machine does that loses its power: what is on its way is lost."""
        listening, self._listening = self._listening, None
        if listening is not None:
            await listening.stopListening()
        for connection in [*self.connections]:
            connection.transport.abortConnection()

    @property
    def messages(self) -> list[Any]:
        """The audit messages, each once."""
        return [content_of(one) for one in dict.fromkeys(self.received)]
