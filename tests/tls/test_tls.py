"""TLS in real handshakes on the loopback interface: which peers are accepted or refused, and the messages about it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, cast
from unittest import SkipTest

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
)
from OpenSSL import SSL
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.interfaces import (
    IAddress,
    IHandshakeListener,
    IListeningPort,
    IOpenSSLClientConnectionCreator,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from dicomtwist.endpoints import (
    PROFILES,
    PeerCertificateError,
    TLSError,
    client_endpoint,
    describe_tls_error,
    server_endpoint,
)
from tests.certificates import DAY, NOW, Authority, write

reactor = cast(Any, _reactor)


def awaited(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Deferred[None]]:
    """Let trial run a coroutine."""

    @wraps(test)
    def run(*args: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(test(*args))

    return run


@implementer(IHandshakeListener)
class Side(Protocol):
    """One side of a connection. A server greets after the handshake, then the client closes the connection."""

    def __init__(self, greeting: bytes = b"", answer: bytes = b"") -> None:
        self.greeting = greeting
        self.answer = answer
        self.version = ""
        self.cipher = ""
        self.peer: Any = None
        self.received = b""
        self.lost: Deferred[None] = Deferred()
        self.reason: Any = None
        self.text: str | None = None

    def handshakeCompleted(self) -> None:
        connection = cast(Any, self.transport).getHandle()
        self.version = connection.get_protocol_version_name()
        self.cipher = connection.get_cipher_name()
        self.peer = connection.get_peer_certificate()
        if self.greeting:
            cast(Any, self.transport).write(self.greeting)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self.answer:
            cast(Any, self.transport).write(self.answer)
        cast(Any, self.transport).loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.reason = reason.value
        self.text = describe_tls_error(reason, handshaking=not self.version)
        self.lost.callback(None)


class OneFactory(Factory):
    noisy = False

    def __init__(self, side: Side) -> None:
        self.side = side

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self.side


class Handshakes(TestCase):
    """Helpers: certificates on disk, and a client that connects to a server."""

    timeout = 30.0

    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.mkdir(self.directory)
        self.authority = Authority(self.directory, "ours")
        self.server_pem = self.authority.issue("server", "127.0.0.1", "localhost", "::1")
        self.client_pem = self.authority.issue("client.example")

    def server_string(self, **options: str) -> str:
        options = {"privateKey": self.server_pem, "trustRoots": self.authority.path} | options
        options.setdefault("interface", "127.0.0.1")
        return "dicomtls:0:" + ":".join(f"{name}={value}" for name, value in options.items() if value)

    def client_string(self, port: int, **options: str) -> str:
        options = {"privateKey": self.client_pem, "trustRoots": self.authority.path} | options
        host = options.pop("host", "127.0.0.1")
        return f"dicomtls:{host}:{port}:" + ":".join(f"{k}={v}" for k, v in options.items() if v)

    async def listen(self, description: str, side: Side) -> IListeningPort:
        port = await server_endpoint(reactor, description).listen(OneFactory(side))
        self.addCleanup(port.stopListening)
        return port

    async def meet(
        self,
        server: dict[str, str] | None = None,
        client: dict[str, str] | None = None,
        creator: IOpenSSLClientConnectionCreator | None = None,
    ) -> tuple[Side, Side]:
        """Connect a client and wait until both sides are closed; return the server's side and the client's."""
        server_side, client_side = Side(greeting=b"hello"), Side()
        port = await self.listen(self.server_string(**(server or {})), server_side)
        number = cast(Any, port.getHost()).port
        endpoint: IStreamClientEndpoint
        if creator is None:
            endpoint = client_endpoint(reactor, self.client_string(number, **(client or {})))
        else:
            endpoint = wrapClientTLS(creator, TCP4ClientEndpoint(reactor, "127.0.0.1", number))
        await endpoint.connect(OneFactory(client_side))
        await server_side.lost
        await client_side.lost
        return server_side, client_side

    def assert_accepted(self, server: Side, client: Side) -> None:
        self.assertEqual(client.received, b"hello", (server.text, client.text))
        self.assertIsInstance(server.reason, ConnectionDone)
        self.assertIsInstance(client.reason, ConnectionDone)
        self.assertEqual((server.text, client.text), (None, None))

    def assert_refused_by_server(self, server: Side, client: Side, ours: str, theirs: str) -> None:
        self.assertEqual((server.version, client.received), ("", b""))
        self.assertIn(ours, server.text or "")
        self.assertIn(theirs, client.text or "")

    def assert_refused_by_client(self, server: Side, client: Side, ours: str, theirs: str) -> None:
        self.assertEqual((client.version, client.received), ("", b""))
        self.assertIsInstance(client.reason, PeerCertificateError)
        self.assertIn(ours, client.text or "")
        self.assertIn(theirs, server.text or "")


class ServerTests(Handshakes):
    """The clients that a server accepts."""

    @awaited
    async def test_client_with_a_certificate(self) -> None:
        server, client = await self.meet()
        self.assert_accepted(server, client)
        self.assertEqual((server.version, client.version), ("TLSv1.3", "TLSv1.3"))
        names = server.peer.to_cryptography().extensions.get_extension_for_class(x509.SubjectAlternativeName)
        self.assertEqual(names.value.get_values_for_type(x509.DNSName), ["client.example"])

    @awaited
    async def test_client_without_a_certificate(self) -> None:
        server, client = await self.meet(client={"privateKey": ""})
        self.assert_refused_by_server(
            server,
            client,
            "the peer sent no certificate, and one is required",
            "the peer requires a client certificate, and we sent none",
        )

    @awaited
    async def test_tls13_client_learns_late(self) -> None:
        """With TLS 1.3 the client has finished before the server has verified its certificate."""
        _, client = await self.meet(client={"privateKey": ""})
        self.assertEqual(client.version, "TLSv1.3")
        self.assertIsInstance(client.reason, TLSError)
        self.assertEqual(str(client.reason), "the peer requires a client certificate, and we sent none")

    @awaited
    async def test_client_of_another_authority(self) -> None:
        foreign = Authority(self.directory, "foreign").issue("stranger.example")
        server, client = await self.meet(client={"privateKey": foreign})
        self.assert_refused_by_server(
            server,
            client,
            "is not signed by a trusted CA (it leads to ",
            "not signed by a CA that the peer trusts",
        )
        self.assertIsInstance(server.reason, PeerCertificateError)

    @awaited
    async def test_self_signed_client(self) -> None:
        ca = trustme.CA()
        own = write(self.directory, "own.pem", ca.private_key_pem.bytes(), ca.cert_pem.bytes())
        server, client = await self.meet(client={"privateKey": own})
        self.assert_refused_by_server(server, client, "is self-signed", "not signed by a CA")

    @awaited
    async def test_expired_client(self) -> None:
        old = self.authority.issue("old.example", not_before=NOW - 9 * DAY, not_after=NOW - DAY)
        server, client = await self.meet(client={"privateKey": old})
        self.assert_refused_by_server(server, client, "has expired", "the peer refused our certificate: it has expired")

    @awaited
    async def test_client_from_the_future(self) -> None:
        early = self.authority.issue("early.example", not_before=NOW + DAY, not_after=NOW + 2 * DAY)
        server, client = await self.meet(client={"privateKey": early})
        self.assert_refused_by_server(server, client, "is not valid yet", "the peer refused our certificate")

    @awaited
    async def test_revoked_client(self) -> None:
        crl = self.authority.revocation_list("crl", self.client_pem)
        server, client = await self.meet(server={"crl": crl})
        self.assert_refused_by_server(
            server, client, "has been revoked", "the peer refused our certificate: it has been revoked"
        )

    @awaited
    async def test_client_that_is_not_on_the_list(self) -> None:
        crl = self.authority.revocation_list("crl", self.authority.issue("lost.example"))
        self.assert_accepted(*await self.meet(server={"crl": crl}))

    @awaited
    async def test_no_list_of_the_authority(self) -> None:
        """A certificate is refused if no list says whether it was revoked."""
        other = Authority(self.directory, "other")
        server, client = await self.meet(server={"crl": other.revocation_list("crl")})
        self.assert_refused_by_server(
            server, client, "the crl file has no list of its issuer", "the peer refused our certificate"
        )

    @awaited
    async def test_lists_of_two_authorities_in_one_file(self) -> None:
        other = Authority(self.directory, "other")
        lists = [other.revocation_list("a"), self.authority.revocation_list("b", self.client_pem)]
        both = write(self.directory, "both.pem", *(open(path, "rb").read() for path in lists))
        server, client = await self.meet(server={"crl": both})
        self.assert_refused_by_server(server, client, "has been revoked", "revoked")

    @awaited
    async def test_optional_certificate(self) -> None:
        options = {"clientCertificate": "optional"}
        server, client = await self.meet(server=options, client={"privateKey": ""})
        self.assert_accepted(server, client)
        self.assertIsNone(server.peer)
        server, client = await self.meet(server=options)
        self.assert_accepted(server, client)
        self.assertIsNotNone(server.peer)
        foreign = Authority(self.directory, "foreign").issue("stranger.example")
        server, client = await self.meet(server=options, client={"privateKey": foreign})
        self.assert_refused_by_server(server, client, "is not signed by a trusted CA", "not signed by a CA")

    @awaited
    async def test_no_certificate_wanted(self) -> None:
        server, client = await self.meet(
            server={"clientCertificate": "none", "trustRoots": ""}, client={"privateKey": ""}
        )
        self.assert_accepted(server, client)

    @awaited
    async def test_certificate_for_servers_only(self) -> None:
        path = self.authority.issue_for_servers("a\r\nb\x1b[31m")
        server, client = await self.meet(client={"privateKey": path})
        self.assert_refused_by_server(server, client, "needs serverAuth (server) or", "refused our certificate")
        self.assertTrue((server.text or "").isprintable(), "what the peer chose is escaped")

    @awaited
    async def test_bundle_file_and_directory(self) -> None:
        other = Authority(self.directory, "other")
        bundle = write(
            self.directory,
            "bundle.pem",
            b"# comments are fine\n",
            other.ca.cert_pem.bytes(),
            self.authority.ca.cert_pem.bytes(),
        )
        clients = [self.client_pem, other.issue("c2.example")]
        folder = os.path.join(self.directory, "roots")
        os.mkdir(folder)
        write(folder, "bundle.pem", other.ca.cert_pem.bytes(), self.authority.ca.cert_pem.bytes())
        write(folder, "README.txt", b"not a certificate")
        for roots in (bundle, folder):
            for pem in clients:
                self.assert_accepted(*await self.meet({"trustRoots": roots}, {"privateKey": pem}))

    @awaited
    async def test_intermediate_authority(self) -> None:
        """The certificate comes with its chain, or has the chain in a file of its own; the peer knows only the root."""
        child = self.authority.ca.create_child_ca()
        leaf = child.issue_cert("127.0.0.1")
        whole = write(self.directory, "whole.pem", leaf.private_key_and_cert_chain_pem.bytes())
        self.assert_accepted(*await self.meet(server={"privateKey": whole}))
        key = write(self.directory, "key.pem", leaf.private_key_pem.bytes())
        certificate = write(self.directory, "cert.pem", leaf.cert_chain_pems[0].bytes())
        chain = write(self.directory, "chain.pem", child.cert_pem.bytes())
        apart = {"privateKey": key, "certKey": certificate}
        self.assert_accepted(*await self.meet(server=apart | {"extraCertChain": chain}))
        server, client = await self.meet(server=apart)
        self.assert_refused_by_client(server, client, "is not signed by a trusted CA", "not signed by a CA")

    @awaited
    async def test_tls_1_1(self) -> None:
        """A ClientHello of TLS 1.1 gets the alert protocol_version (70), then the connection ends."""
        hello = bytes.fromhex("0302") + bytes(32) + bytes.fromhex("00 0004 c013002f 01 00")
        record = b"\x16\x03\x01" + (len(hello) + 4).to_bytes(2, "big") + b"\x01"
        record += len(hello).to_bytes(3, "big") + hello
        server, client = Side(), Side()
        port = await self.listen(self.server_string(), server)
        number = cast(Any, port.getHost()).port
        await TCP4ClientEndpoint(reactor, "127.0.0.1", number).connect(OneFactory(client))
        cast(Any, client.transport).write(record)
        await server.lost
        await client.lost
        self.assertEqual((client.received[0], client.received[-2:]), (0x15, bytes([2, 70])))
        self.assertIn("does not speak a version of TLS that we speak", server.text or "")

    @awaited
    async def test_plain_text(self) -> None:
        """An unencrypted A-ASSOCIATE-RQ on the TLS port ends the connection at once, and the reason is known."""
        for data in (b"\x01\x00\x00\x00\x00\xce\x00\x01" + bytes(198), b"GET / HTTP/1.1\r\n\r\n"):
            server, client = Side(), Side()
            port = await self.listen(self.server_string(), server)
            number = cast(Any, port.getHost()).port
            await TCP4ClientEndpoint(reactor, "127.0.0.1", number).connect(OneFactory(client))
            cast(Any, client.transport).write(data)
            await server.lost
            await client.lost
            self.assertIn("the peer does not speak TLS", server.text or "")

    @awaited
    async def test_ipv6(self) -> None:
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError as error:
            raise SkipTest("this machine has no IPv6") from error
        server, client = Side(greeting=b"hello"), Side()
        port = await self.listen(self.server_string(interface=r"\:\:1"), server)
        number = cast(Any, port.getHost()).port
        description = self.client_string(number, host=r"\:\:1")
        await client_endpoint(reactor, description).connect(OneFactory(client))
        await server.lost
        await client.lost
        self.assert_accepted(server, client)


class ClientTests(Handshakes):
    """The servers that a client trusts."""

    @awaited
    async def test_server_of_another_authority(self) -> None:
        other = Authority(self.directory, "other")
        server, client = await self.meet(client={"trustRoots": other.path})
        self.assert_refused_by_client(
            server,
            client,
            "is not signed by a trusted CA (it leads to ",
            "not signed by a CA that the peer trusts",
        )

    @awaited
    async def test_platform_roots(self) -> None:
        """Without trustRoots, a CA that only the tests know is not trusted."""
        server, client = await self.meet(client={"trustRoots": ""})
        self.assert_refused_by_client(server, client, "is not signed by a trusted CA", "not signed by a CA")

    @awaited
    async def test_expired_server(self) -> None:
        old = self.authority.issue("old", "127.0.0.1", not_before=NOW - 9 * DAY, not_after=NOW - DAY)
        server, client = await self.meet(server={"privateKey": old})
        self.assert_refused_by_client(server, client, "has expired", "it has expired")

    @awaited
    async def test_revoked_server(self) -> None:
        crl = self.authority.revocation_list("crl", self.server_pem)
        server, client = await self.meet(client={"crl": crl})
        self.assert_refused_by_client(server, client, "has been revoked", "it has been revoked")

    @awaited
    async def test_host_name(self) -> None:
        """The name is always checked; hostname= gives it if it is not the host of the connection."""
        self.assert_accepted(*await self.meet(client={"hostname": "localhost"}))
        self.assert_accepted(*await self.meet(client={"hostname": "LOCALHOST."}))
        for wrong in ("pacs.example.org", "127.0.0.2", r"\:\:2", "büro.example"):
            server, client = await self.meet(client={"hostname": wrong})
            self.assert_refused_by_client(
                server,
                client,
                "host name mismatch: we asked for " + wrong.replace("\\", ""),
                "perhaps our certificate is not valid for the host name",
            )
            self.assertIn("127.0.0.1", client.text or "")

    @awaited
    async def test_host_that_has_to_be_resolved(self) -> None:
        server, client = Side(greeting=b"hello"), Side()
        port = await self.listen(self.server_string(), server)
        number = cast(Any, port.getHost()).port
        await client_endpoint(reactor, self.client_string(number, host="localhost")).connect(OneFactory(client))
        await server.lost
        await client.lost
        self.assert_accepted(server, client)

    @awaited
    async def test_server_without_names(self) -> None:
        """A certificate without a subjectAltName is valid for no host, even if a trusted CA signed it."""
        path = self.authority.issue_without_names("localhost")
        server, client = await self.meet(server={"privateKey": path}, client={"hostname": "localhost"})
        self.assert_refused_by_client(
            server,
            client,
            "the peer's certificate has no host name or address in it",
            "refused the handshake",
        )

    @awaited
    async def test_pinned_certificate(self) -> None:
        """The server's own certificate is the only trust root; it must still be valid for the host."""
        with open(self.server_pem, "rb") as file:
            leaf = x509.load_pem_x509_certificates(file.read())[0]
        pin = write(self.directory, "pin.pem", leaf.public_bytes(Encoding.PEM))
        self.assert_accepted(*await self.meet(client={"trustRoots": pin}))
        server, client = await self.meet(client={"trustRoots": pin, "hostname": "pacs.example.org"})
        self.assert_refused_by_client(server, client, "host name mismatch", "refused the handshake")
        second = self.authority.issue("second", "127.0.0.1")
        server, client = await self.meet(server={"privateKey": second}, client={"trustRoots": pin})
        self.assert_refused_by_client(server, client, "is not signed by a trusted CA", "refused our")

    @awaited
    async def test_server_that_speaks_plain_text(self) -> None:
        """A DICOM server without TLS answers a ClientHello with an A-ABORT."""
        server, client = Side(answer=bytes.fromhex("07000000000400000201")), Side()
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(OneFactory(server))
        self.addCleanup(port.stopListening)
        await client_endpoint(reactor, self.client_string(port.getHost().port)).connect(OneFactory(client))
        await server.lost
        await client.lost
        self.assertEqual(server.received[:2], b"\x16\x03")
        self.assertEqual(client.text, "the peer does not speak TLS")

    @awaited
    async def test_server_that_hangs_up(self) -> None:
        server, client = Side(), Side()
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(OneFactory(server))
        self.addCleanup(port.stopListening)
        await client_endpoint(reactor, self.client_string(port.getHost().port)).connect(OneFactory(client))
        await server.lost
        await client.lost
        self.assertIn("the peer closed the connection during the TLS handshake", client.text or "")

    @awaited
    async def test_nobody_listens(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            endpoint = client_endpoint(reactor, self.client_string(unused.getsockname()[1]))
            with self.assertRaises(ConnectionRefusedError) as caught:
                await endpoint.connect(OneFactory(Side()))
        self.assertIsNone(describe_tls_error(caught.exception, handshaking=True))

    @awaited
    async def test_words_for_the_errors_of_twisted(self) -> None:
        """The errors of Twisted's own tls: endpoints for another name are described too."""
        with open(self.authority.path, "rb") as file:
            roots = trustRootFromCertificates([Certificate.loadPEM(file.read())])
        _, client = await self.meet(creator=optionsForClientTLS("pacs.example.org", roots))
        self.assertIn("the peer's certificate is not for pacs.example.org", client.text or "")


@implementer(IOpenSSLClientConnectionCreator)
class Foreign:
    """A TLS client that is not dicomtwist's."""

    def __init__(self, test: Handshakes, ciphers: bytes = b"DEFAULT", newest: int = 0, pem: str | None = None) -> None:
        self.context = SSL.Context(SSL.TLS_METHOD)
        self.context.set_cipher_list(ciphers)
        self.context.set_max_proto_version(newest)
        self.context.use_certificate_file(pem or test.client_pem)
        self.context.use_privatekey_file(pem or test.client_pem)

    def clientConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        return SSL.Connection(self.context)


class ProfileTests(Handshakes):
    """PS3.15 Annex B: the cipher suites that are accepted."""

    @awaited
    async def test_every_suite_of_tls_1_2(self) -> None:
        rsa = self.authority.issue("rsa", "127.0.0.1", key_type=trustme.KeyType.RSA)
        for suite in PROFILES["bcp195"].tls12:
            pem = rsa if "-RSA-" in suite else self.server_pem
            creator = Foreign(self, suite.encode(), SSL.TLS1_2_VERSION)
            server, client = await self.meet(server={"privateKey": pem}, creator=creator)
            self.assert_accepted(server, client)
            self.assertEqual((server.version, server.cipher), ("TLSv1.2", suite))

    @awaited
    async def test_suites_that_are_not_in_the_profile(self) -> None:
        rsa = self.authority.issue("rsa", "127.0.0.1", key_type=trustme.KeyType.RSA)
        for suite in (b"AES128-GCM-SHA256", b"ECDHE-RSA-AES128-SHA256", b"ECDHE-RSA-CHACHA20-POLY1305"):
            creator = Foreign(self, suite, SSL.TLS1_2_VERSION)
            server, client = await self.meet(server={"privateKey": rsa}, creator=creator)
            self.assert_refused_by_server(
                server,
                client,
                "offers no cipher suite that our TLS profile allows",
                "no common cipher suite",
            )

    @awaited
    async def test_tls_1_2_client_without_a_certificate(self) -> None:
        context = Foreign(self, newest=SSL.TLS1_2_VERSION)
        context.context = SSL.Context(SSL.TLS_METHOD)
        context.context.set_max_proto_version(SSL.TLS1_2_VERSION)
        server, client = await self.meet(creator=context)
        self.assert_refused_by_server(
            server, client, "the peer sent no certificate", "or it requires a client certificate"
        )
        self.assertEqual(client.version, "")

    @awaited
    async def test_short_key(self) -> None:
        """RSA below 2048 bits is refused (RFC 9325 4.5)."""
        short = Foreign(self, b"DEFAULT:@SECLEVEL=0", pem=self.authority.issue_short("short.example"))
        server, client = await self.meet(creator=short)
        self.assert_refused_by_server(server, client, "has a key that is too short", "the peer")

    @awaited
    async def test_retired_profile(self) -> None:
        options = {"profile": "bcp195-nd"}
        self.assert_accepted(*await self.meet(server=options, client=options))
