"""
Associations over every kind of endpoint, between two AEs of dicomtwist; over IPv6 with DCMTK as well.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.trial.unittest import SkipTest
from zope.interface import implementer

from dicomtwist import Server, evt
from tests.interop.common import CT, EXPLICIT, VERIFICATION, InteropTestCase, Recorder, Store
from tests.peers import certificates, dataset_bytes, dcmtk, dicom_files, run, socket_path


def require_ipv6() -> None:
    """Skip the test if this machine has no IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as listener:
            listener.bind(("::1", 0))
    except OSError as error:
        raise SkipTest(f"no IPv6 here: {error}") from None


class _WithHeader(ProtocolWrapper):
    """A connection that begins with the header of a proxy."""

    header = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 104\r\n"

    def connectionMade(self) -> None:
        """Send the header first."""
        assert self.transport is not None
        self.transport.write(self.header)
        super().connectionMade()


class _Wrapping(WrappingFactory):
    protocol = _WithHeader


@implementer(IStreamClientEndpoint)
class Proxied:
    """
    A client endpoint that acts as HAProxy does: it sends the server the address of the client.
    """

    def __init__(self, port: int) -> None:
        self.endpoint: Any = TCP4ClientEndpoint(reactor, "127.0.0.1", port)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """Connect with a wrapped factory."""
        wrapped: Deferred[Any] = self.endpoint.connect(_Wrapping(protocolFactory))
        return wrapped


class EndpointTests(InteropTestCase):
    """
    A C-ECHO and a C-STORE over each kind of endpoint.
    """

    async def _works(self, address: Any, client: Any) -> tuple[Server, evt.Event]:
        store, released = Store(), Recorder()
        server = await self.serve((evt.EVT_C_STORE, store), (evt.EVT_RELEASED, released), address=address)
        ae = self.requestor(VERIFICATION, (CT, EXPLICIT))
        (path,) = (file.path for file in dicom_files() if file.name.endswith("CT_small.dcm"))
        endpoint = client(server)
        target = endpoint if isinstance(endpoint, tuple) else (endpoint,)
        async with await ae.associate(*target) as assoc:
            self.assertEqual(await assoc.send_c_echo(), 0)
            self.assertEqual(await assoc.send_c_store(path), 0)
        self.assertEqual([data == dataset_bytes(path) for data in store.datasets], [True])
        await released.wait()
        return server, released.events[0]

    async def test_tcp(self) -> None:
        """
        A host and a port, a string, an endpoint, a host name.
        """
        for address in (
            ("127.0.0.1", 0),
            "tcp:0:interface=127.0.0.1",
            TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"),
        ):
            _, released = await self._works(address, lambda server: f"tcp:127.0.0.1:{server.port}")
            self.assertEqual(released.assoc.requestor.address, "127.0.0.1")
        await self._works(("127.0.0.1", 0), lambda server: ("127.0.0.1", server.port))
        await self._works(("127.0.0.1", 0), lambda server: ("localhost", server.port))

    async def test_tcp6(self) -> None:
        """
        IPv6, as a string and as a host and a port, with DCMTK as well.
        """
        require_ipv6()
        server, released = await self._works(r"tcp6:0:interface=\:\:1", lambda server: rf"tcp:\:\:1:{server.port}")
        self.assertEqual(released.assoc.requestor.address, "::1")
        server, released = await self._works(("::1", 0), lambda server: ("::1", server.port))
        self.assertEqual(server.addresses, [("::1", server.port)])

    async def test_dual_stack(self) -> None:
        """
        One port for IPv4 and IPv6: a peer over IPv4 has its IPv4 address.
        """
        require_ipv6()
        server, released = await self._works("tcp6:0", lambda server: f"tcp:127.0.0.1:{server.port}")
        self.assertEqual(released.assoc.requestor.address, "127.0.0.1")
        result = await run(dcmtk("echoscu"), "127.0.0.1", server.port)
        self.assertEqual(result.code, 0, result.text)

    async def test_unix(self) -> None:
        """
        A UNIX socket.
        """
        path = socket_path(self)
        server, _ = await self._works(f"unix:{path}", lambda server: f"unix:{path}")
        self.assertEqual(server.addresses, [(str(path), 0)])
        await server.shutdown()
        self.assertFalse(path.exists())

    async def test_haproxy(self) -> None:
        """
        Behind a proxy that speaks the PROXY protocol, the peer's address is that of the client.
        """
        _, released = await self._works("haproxy:tcp:0:interface=127.0.0.1", lambda server: Proxied(server.port))
        requestor = released.assoc.requestor
        self.assertEqual((requestor.address, requestor.port), ("192.0.2.7", 40000))

    async def test_tls_of_twisted(self) -> None:
        """
        Twisted's ``tls:`` on both sides, and ``dicomtls:`` as its client.
        """
        require_ipv6()
        folder = Path(self.mktemp())
        folder.mkdir()
        own = certificates()
        pem = Path(own.server_key).read_bytes() + Path(own.server_cert).read_bytes()
        (folder / "localhost.pem").write_bytes(pem)
        address = f"tls:{folder}:port=0"
        await self._works(address, lambda server: f"tls:localhost:{server.port}:trustRoots={own.ca_dir}")
        await self._works(address, lambda server: f"dicomtls:localhost:{server.port}:trustRoots={own.ca}")

    async def test_factories(self) -> None:
        """
        The factories work with any endpoint.
        """
        from dicomtwist import AE

        ae = AE("TWIST")
        ae.add_supported_context(VERIFICATION)
        factory = ae.acceptor_factory()
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        self.addCleanup(port.stopListening)
        closed = Recorder()
        ae.bind(evt.EVT_CONN_CLOSE, closed)
        requestor = self.requestor().requestor_factory("TWIST")
        address: Any = port.getHost()
        protocol: Any = await TCP4ClientEndpoint(reactor, "127.0.0.1", address.port).connect(requestor)
        assoc = await protocol.user.when_established()
        self.assertEqual(await assoc.send_c_echo(), 0)
        result = await run(dcmtk("echoscu"), "127.0.0.1", address.port)
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual(len(factory.associations), 1)
        await assoc.release()
        await closed.wait(2)
        self.assertEqual([each for each in factory.associations if each.is_established], [])
