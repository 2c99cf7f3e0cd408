"""
The listening sockets of a server. They stay open, so that endpoints can listen at them again after their certificates were
renewed, or in another process.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from zope.interface import implementer

from dicomtwist.endpoints import server_endpoint
from dicomtwist.tls.contexts import server_tls
from dicomtwist.tls.transport import TLSFactory

__all__ = ["Sockets"]

#: Matches endpoint strings whose endpoints read files.
_READS_FILES: Final = re.compile(r"(?:^|:)(?:dicomtls|ssl|tls):")
#: Matches endpoint strings whose sockets are not TCP, or are opened by another program.
_NOT_SHAREABLE: Final = re.compile(r"(?:^|:)(?:unix|systemd|fd):")


class Sockets:
    """
    The sockets behind endpoint strings, one for each string.

    :param reactor: the reactor to listen with.
    :param descriptions: the endpoint strings.
    :param inherited: file descriptors of sockets that already listen, one for each string; each is closed when its
        socket is taken over. By default new sockets are opened.
    :param only_held: whether other processes accept the connections, and this one only holds the sockets.

    :ivar descriptions: the endpoint strings.
    """

    def __init__(
        self, reactor: Any, descriptions: Sequence[str], *, inherited: Sequence[int] = (), only_held: bool = False
    ) -> None:
        self.reactor = reactor
        self.descriptions = [str(description) for description in descriptions]
        self._inherited = dict(enumerate(inherited))
        self._only_held = only_held
        self._ports: dict[int, Any] = {}

    def endpoints(self) -> list[IStreamServerEndpoint]:
        """
        Return new endpoints, which can listen while earlier ones still do.

        :raises EndpointError: a string does not work; files are read, which blocks.
        """
        return [self._endpoint(index) for index in range(len(self.descriptions))]

    def endpoints_with_files(self) -> dict[int, IStreamServerEndpoint]:
        """
        Return new endpoints for the strings whose endpoints read files such as certificates, by index of the string.

        :raises EndpointError: a file is wrong.
        """
        return {
            index: self._endpoint(index)
            for index, description in enumerate(self.descriptions)
            if _READS_FILES.search(description)
        }

    def filenos(self) -> list[int]:
        """Return the file descriptors of the listening sockets."""
        return [self._ports[index].fileno() for index in range(len(self.descriptions))]

    def check_shareable(self) -> None:
        """
        Check that several processes can share the sockets.

        :raises ValueError: a socket cannot be shared.
        """
        for description in self.descriptions:
            if _NOT_SHAREABLE.search(description):
                raise ValueError(
                    f"{description!r} can be used by one process only: several processes can share TCP ports only"
                )

    def _endpoint(self, index: int) -> IStreamServerEndpoint:
        return server_endpoint(_Listener(self, index), self.descriptions[index])

    def listen(self, index: int, factory: Any, make: Callable[[], Any]) -> Any:
        """Listen at the existing socket, or let *make* open one."""
        before = self._ports.get(index)
        inherited = self._inherited.pop(index, None)
        if before is not None and self._only_held:
            return before
        if before is not None:
            port: Any = _AdoptedPort(self, before.held, factory)
        elif inherited is not None:
            # The reactor needs a descriptor of its own.
            with socket.socket(fileno=inherited) as adopted:
                port = self.reactor.adoptStreamPort(inherited, adopted.family, factory)
        else:
            port = make()
        if self._only_held:
            self.reactor.removeReader(port)
        elif before is None and _READS_FILES.search(self.descriptions[index]):
            port = _AdoptedPort(self, port, factory)
        self._ports[index] = port
        return port

    def is_current(self, port: Any) -> bool:
        """Whether *port* is the current port of its socket, which means that no other port has replaced it."""
        return any(port is one for one in self._ports.values())


@implementer(IListeningPort)
class _AdoptedPort:
    """
    A port whose socket can be used again by later ports: a second port, which does not accept connections, holds the
    socket, since the reactor shuts a socket down when the port that opened it is closed.

    :ivar held: the port that holds the socket.
    """

    def __init__(self, sockets: Sockets, held: Any, factory: Any) -> None:
        self._sockets = sockets
        self.held = held
        sockets.reactor.removeReader(held)
        self._port = sockets.reactor.adoptStreamPort(held.fileno(), held.addressFamily, factory)

    def startListening(self) -> None:
        """Do nothing: the port listens already."""

    def getHost(self) -> Any:
        return self.held.getHost()

    def stopListening(self) -> Deferred[None]:
        stopping: Deferred[None] = Deferred.fromCoroutine(self._stop(self._sockets.is_current(self)))
        return stopping

    async def _stop(self, is_current: bool) -> None:
        await maybeDeferred(self._port.stopListening)
        if is_current:
            await maybeDeferred(self.held.stopListening)


class _Listener:
    """Stands for the reactor in the endpoints of one string: it listens at the existing sockets."""

    def __init__(self, sockets: Sockets, index: int) -> None:
        self._sockets = sockets
        self._index = index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sockets.reactor, name)

    def _listen(self, name: str, place: Any, factory: Any, *args: Any, **keywords: Any) -> Any:
        make = getattr(self._sockets.reactor, name)
        return self._sockets.listen(self._index, factory, lambda: make(place, factory, *args, **keywords))

    def listenTCP(self, port: int, factory: Any, *args: Any, **keywords: Any) -> Any:
        return self._listen("listenTCP", port, factory, *args, **keywords)

    def listenUNIX(self, address: Any, factory: Any, *args: Any, **keywords: Any) -> Any:
        return self._listen("listenUNIX", address, factory, *args, **keywords)

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, *args: Any, **keywords: Any) -> Any:
        return self.listenTCP(port, TLSFactory(server_tls(contextFactory), False, factory), *args, **keywords)
