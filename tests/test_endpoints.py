"""Endpoint strings: those that work, and those that cannot work, with the texts of their errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from OpenSSL import SSL
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.endpoints import (
    EndpointError,
    client_endpoint,
    client_tls_options,
    describe_tls_error,
    server_endpoint,
    server_tls_options,
)
from tests.certificates import DAY, NOW, Authority, write


class DescriptionTests(SynchronousTestCase):
    """Endpoint strings that work, on a reactor that only records its calls."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()

    def test_bare_port(self) -> None:
        for description in (11112, "11112", " 11112 "):
            reactor = MemoryReactorClock()
            self.successResultOf(server_endpoint(reactor, description).listen(Factory()))
            self.assertEqual([(each[0], each[3]) for each in reactor.tcpServers], [(11112, "")])

    def test_strings_of_twisted(self) -> None:
        self.successResultOf(server_endpoint(self.reactor, "tcp:104:interface=127.0.0.1").listen(Factory()))
        self.successResultOf(server_endpoint(self.reactor, "tcp6:105").listen(Factory()))
        self.assertEqual([(p[0], p[3]) for p in self.reactor.tcpServers], [(104, "127.0.0.1"), (105, "::")])
        self.successResultOf(server_endpoint(self.reactor, "unix:/run/dicom.sock").listen(Factory()))
        self.assertEqual([each[0] for each in self.reactor.unixServers], ["/run/dicom.sock"])
        client_endpoint(self.reactor, "tcp:10.0.0.1:104").connect(Factory()).addErrback(lambda _: None)
        client_endpoint(self.reactor, r"tcp:\:\:1:104").connect(Factory()).addErrback(lambda _: None)
        self.assertEqual(self.reactor.tcpClients[0][:2], ("10.0.0.1", 104))

    def test_endpoints_pass_through(self) -> None:
        server = TCP4ServerEndpoint(self.reactor, 104)
        client = TCP4ClientEndpoint(self.reactor, "10.0.0.1", 104)
        self.assertIs(server_endpoint(self.reactor, server), server)
        self.assertIs(client_endpoint(self.reactor, client), client)

    def test_options_reach_the_transport(self) -> None:
        directory = self.mktemp()
        os.mkdir(directory)
        authority = Authority(directory, "ours")
        rest = f"privateKey={authority.issue('x.example')}:trustRoots={authority.path}"
        server = server_endpoint(self.reactor, rf"dicomtls:2762:{rest}:interface=\:\::backlog=7")
        self.successResultOf(server.listen(Factory()))
        self.assertEqual([(p[0], p[2], p[3]) for p in self.reactor.tcpServers], [(2762, 7, "::")])
        client = client_endpoint(self.reactor, f"dicomtls:10.0.0.1:2762:{rest}:timeout=5:bindAddress=10.0.0.2")
        client.connect(Factory()).addErrback(lambda _: None)
        host, port, _, timeout, bind_address = self.reactor.tcpClients[0]
        self.assertEqual((host, port, timeout, bind_address), ("10.0.0.1", 2762, 5, ("10.0.0.2", 0)))

    def test_options_without_strings(self) -> None:
        directory = self.mktemp()
        os.mkdir(directory)
        authority = Authority(directory, "ours")
        pem = authority.issue("x.example")
        self.assertTrue(server_tls_options(pem, pem, authority.path))
        self.assertTrue(server_tls_options(pem, pem, client_certificate="none"))
        self.assertTrue(client_tls_options("x.example", authority.path, pem, pem))
        self.assertTrue(client_tls_options("x.example"))

    def test_own_certificate_that_has_expired(self) -> None:
        """Our own certificate is used even if it has expired, but the log says so."""
        directory = self.mktemp()
        os.mkdir(directory)
        old = Authority(directory, "ours").issue("x", not_before=NOW - 9 * DAY, not_after=NOW - DAY)
        with capturedLogs() as events:
            server_tls_options(old, old, client_certificate="none")
        self.assertEqual([event["path"] for event in events], [old])


class MistakeTests(SynchronousTestCase):
    """Endpoint strings that cannot work: the error names the option and says what to do."""

    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.mkdir(self.directory)
        self.authority = Authority(self.directory, "ours")
        self.pem = self.authority.issue("server", "127.0.0.1")
        self.ca = self.authority.path
        self.reactor = MemoryReactorClock()

    def assert_mistake(self, make: Callable[..., object], description: Any, option: str | None, *words: str) -> None:
        with self.assertRaises(EndpointError) as caught:
            make(self.reactor, description)
        self.assertIsInstance(caught.exception, ValueError)
        self.assertEqual(caught.exception.option, option, str(caught.exception))
        for each in (option or "", *words):
            self.assertIn(each, str(caught.exception))

    def server(self, rest: str, option: str | None, *words: str) -> None:
        self.assert_mistake(server_endpoint, f"dicomtls:{rest}", option, *words)

    def client(self, rest: str, option: str | None, *words: str) -> None:
        self.assert_mistake(client_endpoint, f"dicomtls:{rest}", option, *words)

    def test_unknown_prefix(self) -> None:
        for make in (server_endpoint, client_endpoint):
            self.assert_mistake(make, "quic:1", None, "'quic' is not a known prefix")
            self.assert_mistake(make, "", None, "is not a known prefix")
        self.assert_mistake(client_endpoint, "pacs.example.org:104", None, "write tcp:pacs.example.org:104")
        for host in ("127.0.0.1", "localhost", "pacs-1.example.org", "::1"):
            self.assert_mistake(client_endpoint, host, None, f"a host needs its port: '{host}', 11112")
        for peer, place in (("PACS@10.1.2.3:104", "'10.1.2.3', 104"), ("MY PACS@pacs", "'pacs', 11112")):
            self.assert_mistake(client_endpoint, peer, None, f"a host and a port, {place}, and its AE title ae_title='")

    def test_ports(self) -> None:
        for port in ("65536", "-1", "x", "1.5", "²"):
            self.assert_mistake(server_endpoint, f"tcp:{port}", "port", "from 0 to 65535")
            self.assert_mistake(client_endpoint, f"tcp:127.0.0.1:{port}", "port", "from 0 to 65535")
            self.server(f"{port}:privateKey={self.pem}", "port")
            self.client(f"host:{port}", "port", "from 1 to 65535")
        self.assert_mistake(server_endpoint, 70000, "port", "70000")
        self.assert_mistake(server_endpoint, "-5", "port", "-5")
        self.server("", "port", "is missing")
        self.client("host", "port", "is missing")
        self.client(":2762", "host", "is missing")

    def test_paths(self) -> None:
        longest = "/run/" + "s" * (102 if sys.platform == "linux" else 98)
        server_endpoint(self.reactor, f"unix:{longest}:mode=600")
        client_endpoint(self.reactor, f"unix:path={longest}:timeout=5")
        client_endpoint(self.reactor, rf"unix:{longest[:-1]}\:")
        for make in (server_endpoint, client_endpoint):
            for description in (f"unix:{longest}s", rf"unix:{longest}\:", f"unix:{longest[:-1]}ä"):
                error = self.assertRaises(EndpointError, make, self.reactor, description)
                self.assertIn("the path of the socket has", str(error))
        error = self.assertRaises(EndpointError, client_endpoint, self.reactor, f"unix:address={longest}/s:timeout=5")
        self.assertIn(f"has {len(longest) + 2} bytes", str(error))

    def test_options(self) -> None:
        self.server(f"2762:privatekey={self.pem}", "privatekey", "did you mean privateKey?")
        self.server("2762:zzz=1", "zzz", "the options are port, privateKey,")
        self.server(f"2762:privateKey={self.pem}:interface=::1", None, "written \\:")
        self.server(f"2762:port=1:privateKey={self.pem}", "port", "given twice")
        self.server("2762:trustRoots=" + self.ca, "privateKey", "is missing")
        self.server(f"2762:privateKey={self.pem}:trustRoots={self.ca}:backlog=no", "backlog", "'no'")
        self.server(f"2762:privateKey={self.pem}:trustRoots={self.ca}:profile=aes", "profile", "bcp195")
        self.client(f"host:2762:trustRoots={self.ca}:timeout=0", "timeout")
        self.client(f"host:2762:trustRoots={self.ca}:bindAddress=eth0", "bindAddress", "not an IP address")
        self.client(f"host:2762:trustRoots={self.ca}:hostname=a..b", "hostname", "neither a host name")
        self.client(f"host:2762:trustRoots={self.ca}:extraCertChain={self.ca}", "extraCertChain")

    def test_client_certificate(self) -> None:
        own = f"2762:privateKey={self.pem}"
        self.server(own, "trustRoots", "clientCertificate=none")
        self.server(f"{own}:clientCertificate=required", "clientCertificate", "needs trustRoots")
        self.server(f"{own}:clientCertificate=optional", "clientCertificate", "needs trustRoots")
        self.server(f"{own}:trustRoots={self.ca}:clientCertificate=none", "clientCertificate", "contradict")
        self.server(f"{own}:trustRoots={self.ca}:clientCertificate=maybe", "clientCertificate", "maybe")
        self.server(f"{own}:clientCertificate=none:crl={self.ca}", "crl", "without trustRoots")

    def test_files(self) -> None:
        missing = os.path.join(self.directory, "missing.pem")
        text = write(self.directory, "notes.txt", b"hello")
        empty = os.path.join(self.directory, "empty")
        os.mkdir(empty)
        trust = f":trustRoots={self.ca}"
        self.server(f"1:privateKey={missing}:certKey={self.pem}{trust}", "privateKey", "No such file")
        self.server(f"1:privateKey={self.pem}:certKey={missing}{trust}", "certKey", "No such file")
        self.server(f"1:privateKey={text}:certKey={self.pem}{trust}", "privateKey", "no usable PEM")
        self.server(f"1:privateKey={self.pem}:certKey={text}{trust}", "certKey", "in PEM form")
        self.server(f"1:privateKey={self.pem}:trustRoots={missing}", "trustRoots", "No such file")
        self.server(f"1:privateKey={self.pem}:trustRoots={text}", "trustRoots", "in PEM form")
        self.server(f"1:privateKey={self.pem}:trustRoots={empty}", "trustRoots", "no *.pem files")
        self.server(f"1:privateKey={self.pem}{trust}:crl={text}", "crl", "no revocation list")
        self.server(f"1:privateKey={self.pem}{trust}:extraCertChain={text}", "extraCertChain", "in PEM form")
        self.client(f"host:1:trustRoots={missing}", "trustRoots", "No such file")
        self.client(f"host:1:certKey={self.ca}", "privateKey", "no usable PEM")
        self.assert_mistake(server_endpoint, "systemd:domain=INET:index=9", None, "systemd passed no such")
        self.assert_mistake(server_endpoint, f"ssl:1:privateKey={missing}", None, "cannot read the file")

    def test_key_of_another_certificate(self) -> None:
        other = self.authority.issue("other", "127.0.0.1")
        for make in (self.server, self.client):
            place = "1" if make == self.server else "host:1"
            rest = f"{place}:privateKey={other}:certKey={self.pem}:trustRoots={self.ca}"
            make(rest, "privateKey", "does not belong to the first certificate")

    def test_key_with_a_passphrase(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
        path = write(self.directory, "locked.pem", pem)
        self.server(f"1:privateKey={path}:certKey={self.pem}:trustRoots={self.ca}", "privateKey", "passphrase")

    def test_list_that_ran_out(self) -> None:
        crl = self.authority.revocation_list("crl", expires=NOW - DAY)
        self.server(f"1:privateKey={self.pem}:trustRoots={self.ca}:crl={crl}", "crl", "expired on", "fetch")

    def test_short_key(self) -> None:
        """BCP 195 does not allow RSA keys below 2048 bits (RFC 9325 4.5)."""
        path = self.authority.issue_short("short")
        self.server(f"1:privateKey={path}:trustRoots={self.ca}", "certKey", "too small")

    def test_neither_description_nor_endpoint(self) -> None:
        self.assert_mistake(server_endpoint, ("127.0.0.1", 104), None, "neither")
        self.assert_mistake(client_endpoint, 104, None, "neither")


class WordTests(SynchronousTestCase):
    """describe_tls_error for errors that no handshake in test_tls causes."""

    def test_not_tls(self) -> None:
        self.assertIsNone(describe_tls_error(ConnectionLost()))
        self.assertIsNone(describe_tls_error(Failure(ConnectionDone())))
        self.assertIsNone(describe_tls_error(ValueError(), handshaking=True))

    def test_wrapped(self) -> None:
        """An error that is the cause of another one, or among its reasons."""
        inner = SSL.Error([("SSL routines", "", "tlsv1 alert unknown ca")])
        outer = RuntimeError("no association")
        outer.__cause__ = inner
        self.assertIn("not signed by a CA that the peer trusts", describe_tls_error(outer) or "")
        several = RuntimeError()
        several.reasons = [Failure(ConnectionLost()), Failure(inner)]  # type: ignore[attr-defined]
        self.assertIn("not signed by a CA that the peer trusts", describe_tls_error(Failure(several)) or "")

    def test_unknown_reasons(self) -> None:
        alert = SSL.Error([("SSL routines", "", "tlsv1 alert user cancelled")])
        self.assertEqual(describe_tls_error(alert), "the peer ended TLS with the alert: user cancelled")
        odd = SSL.Error([("SSL routines", "", "something new")])
        self.assertEqual(describe_tls_error(odd), "TLS failed: something new")

    def test_end_of_file(self) -> None:
        for error in (SSL.SysCallError(-1, "Unexpected EOF"), SSL.Error(), SSL.Error([])):
            self.assertIn("in the middle of TLS", describe_tls_error(error) or "")
