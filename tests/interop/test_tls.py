"""
DCMTK over TLS, in both roles, with the endpoint strings that a user writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from dicomtwist import AssociationError, AssociationLost, Server, evt
from dicomtwist.endpoints import PeerCertificateError, describe_tls_error
from tests.certificates import DAY, NOW, Authority
from tests.interop.common import EXPLICIT, LOOPBACK, VERIFICATION, InteropTestCase, Recorder, Store
from tests.peers import (
    DicomFile,
    Result,
    certificates,
    dataset_bytes,
    dcmtk,
    dcmtk_storescp,
    dicom_files,
    one_per_transfer_syntax,
    run,
    tool,
)


def image() -> DicomFile:
    """Return an MR image of 322 KB that DCMTK encodes as pydicom did."""
    (found,) = (file for file in dicom_files() if file.name.endswith("examples_overlay.dcm"))
    return found


class TLSTestCase(InteropTestCase):
    """
    The tests examine the log: a refused peer is a line in it, without a traceback.
    """

    def setUp(self) -> None:
        self.certificates = certificates()
        self.log: list[LogEvent] = []
        # It is not annotated as an observer, although it is one.
        observer: Any = self.log.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def logged(self) -> str:
        """Return the descriptions that our server logged for connections without an association."""
        return "; ".join(formatEvent(event) for event in self.log if event["log_namespace"].startswith("dicomtwist"))

    # Endpoint strings.

    def own(self, name: str) -> str:
        """Return the options that name a key and its certificate."""
        paths = vars(self.certificates)
        return f"privateKey={paths[f'{name}_key']}:certKey={paths[f'{name}_cert']}"

    @property
    def mutual(self) -> str:
        """Return the string of a server that requires a certificate of its CA."""
        return f"dicomtls:0:{self.own('server')}:trustRoots={self.certificates.ca}:interface=127.0.0.1"

    @property
    def one_sided(self) -> str:
        """Return the string of a server that requests no certificate."""
        return f"dicomtls:0:{self.own('server')}:clientCertificate=none:interface=127.0.0.1"

    @property
    def stock(self) -> str:
        """Return the string of a one-sided server with Twisted's own prefix."""
        return f"ssl:0:{self.own('server')}:interface=127.0.0.1"

    def client(self, port: int, options: str, host: str = "127.0.0.1") -> str:
        """Return the string of a client that trusts the CA of the tests."""
        return f"dicomtls:{host}:{port}:trustRoots={self.certificates.ca}:{options}".rstrip(":")

    # DCMTK's flags.

    def shows(self, name: str) -> list[str]:
        """Return the flags that name a key and its certificate."""
        paths = vars(self.certificates)
        return ["+tls", paths[f"{name}_key"], paths[f"{name}_cert"]]

    async def echoscu(self, server: Server, *flags: str) -> Result:
        """Run echoscu."""
        return await run(dcmtk("echoscu"), "-v", *flags, "127.0.0.1", server.port)

    async def scp(self, *flags: str) -> int:
        """Start storescp."""
        self.folder = Path(self.mktemp())
        return await dcmtk_storescp(self, self.folder, "+xa", "+B", *flags)

    async def refused(self, endpoint: str, *kinds: type[BaseException]) -> Any:
        """Return the error that an association fails with."""
        return await self.assert_fails(self.requestor().associate(endpoint), *kinds)


class ServerTests(TLSTestCase):
    """
    DCMTK's clients, our server.
    """

    async def _store(self, address: str, *flags: str) -> None:
        store, released = Store(), Recorder()
        server = await self.serve((evt.EVT_C_STORE, store), (evt.EVT_RELEASED, released), address=address)
        result = await run(dcmtk("storescu"), "-R", "-xe", *flags, "127.0.0.1", server.port, image().path)
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual([data == dataset_bytes(image().path) for data in store.datasets], [True])
        await released.wait()
        self.assertTrue(released.events[0].assoc.protocol.secure)
        result = await self.echoscu(server, "--repeat", "50", *flags)
        self.assertEqual(result.code, 0, result.text)

    async def test_mutual(self) -> None:
        """
        Both sides have a certificate of the same CA.
        """
        await self._store(self.mutual, *self.shows("client"), "+cf", self.certificates.ca)

    async def test_client_profiles(self) -> None:
        """
        The profiles of the standard that are not retired, as DCMTK's client has them.
        """
        server = await self.serve(address=self.mutual)
        for profile in ("+py", "+px", "+pz"):
            result = await self.echoscu(server, *self.shows("client"), "+cf", self.certificates.ca, profile)
            self.assertEqual(result.code, 0, profile + result.text)

    async def test_server_certificate_only(self) -> None:
        """
        A client without a certificate, at a server that requests none.
        """
        await self._store(self.one_sided, "+tla", "+cf", self.certificates.ca)

    async def test_string_of_twisted(self) -> None:
        """
        Twisted's ``ssl:``.
        """
        await self._store(self.stock, *self.shows("client"), "+cf", self.certificates.ca)

    async def test_large_data(self) -> None:
        """
        All transfer syntaxes on one association, in small and in large PDUs.
        """
        files = [file.path for file in one_per_transfer_syntax(without_study=True).values()]
        for size in (4096, 131072):
            store = Store()
            server = await self.serve((evt.EVT_C_STORE, store), address=self.mutual, maximum_pdu_size=size)
            result = await run(
                dcmtk("storescu"),
                *("-R", "-nh", *self.shows("client"), "+cf", self.certificates.ca, "-pdu", size),
                *("--repeat", 10, "127.0.0.1", server.port),
                *[path for path in files if path.endswith(("examples_overlay.dcm", "SC_rgb_jpeg_dcmd.dcm"))],
            )
            self.assertEqual(result.code, 0, result.text)
            self.assertEqual(len(store.stored), 20)
            self.assertEqual(len(set(store.datasets)), 2)

    async def _is_refused(self, address: Any, *flags: str) -> tuple[str, str]:
        """Return the output of echoscu and our log for a refused association."""
        closed = Recorder()
        server = await self.serve((evt.EVT_CONN_CLOSE, closed), address=address)
        self.log.clear()
        result = await self.echoscu(server, *flags)
        self.assertNotEqual(result.code, 0)
        await closed.wait()
        self.assertEqual(self.flushLoggedErrors(), [])
        return result.text, self.logged()

    async def test_client_of_another_ca(self) -> None:
        """
        A client whose certificate comes from an unrelated CA is refused, and the log says why.
        """
        _, log = await self._is_refused(self.mutual, *self.shows("other"), "+cf", self.certificates.ca)
        self.assertIn("127.0.0.1: no association: the peer's certificate is not signed by a trusted CA", log)

    async def test_client_without_a_certificate(self) -> None:
        """
        A client without a certificate is refused if one is required.
        """
        _, log = await self._is_refused(self.mutual, "+tla", "+cf", self.certificates.ca)
        self.assertIn("the peer sent no certificate, and one is required", log)

    async def test_client_that_does_not_trust_us(self) -> None:
        """
        A client that refuses our certificate.
        """
        for address in (self.mutual, self.one_sided, self.stock):
            text, log = await self._is_refused(address, *self.shows("client"), "+cf", self.certificates.other_ca)
            self.assertIn("certificate verify failed", text)
            self.assertIn("the peer refused our certificate", log)

    async def test_plain_client(self) -> None:
        """
        A client without TLS at a port with TLS, and the reverse: both connections end, nothing hangs.
        """
        for address in (self.mutual, self.stock):
            _, log = await self._is_refused(address)
            self.assertIn("the peer does not speak TLS", log)
        _, log = await self._is_refused(LOOPBACK, *self.shows("client"), "+cf", self.certificates.ca)
        self.assertIn("PDU type 0x16 is unknown", log)

    async def test_goes_on(self) -> None:
        """
        Refused peers do not impede others.
        """
        server = await self.serve(address=self.mutual)
        for _ in range(3):
            for flags in ([], self.shows("other"), ["+tla"]):
                result = await self.echoscu(server, *flags, *(["+cf", self.certificates.ca] if flags else []))
                self.assertNotEqual(result.code, 0)
            result = await self.echoscu(server, *self.shows("client"), "+cf", self.certificates.ca)
            self.assertEqual(result.code, 0, result.text)


class ClientTests(TLSTestCase):
    """
    Our client, DCMTK's server.
    """

    async def _store(self, endpoint: str) -> None:
        ae = self.requestor(VERIFICATION, (image().sop_class, EXPLICIT))
        async with await ae.associate(endpoint) as assoc:
            self.assertTrue(assoc.protocol.secure)
            self.assertEqual(assoc.remote.address, "127.0.0.1")
            for _ in range(10):
                self.assertEqual(await assoc.send_c_echo(), 0)
            self.assertEqual(await assoc.send_c_store(image().path), 0)
        self.assertTrue(assoc.is_released)
        (path,) = self.folder.iterdir()
        self.assertEqual(dataset_bytes(path) == dataset_bytes(image().path), True)
        path.unlink()

    async def test_mutual(self) -> None:
        """
        Both sides have a certificate, with our endpoint strings and with Twisted's.
        """
        port = await self.scp(*self.shows("server"), "+cf", self.certificates.ca)
        own, c = self.own("client"), self.certificates
        for endpoint in (
            self.client(port, own),
            self.client(port, own, "localhost"),
            f"ssl:127.0.0.1:{port}:{own}:caCertsDir={c.ca_dir}:hostname=localhost",
            f"tls:127.0.0.1:{port}:certificate={c.client_cert}:privateKey={c.client_key}:trustRoots={c.ca_dir}",
        ):
            await self._store(endpoint)

    async def test_without_a_certificate(self) -> None:
        """
        Only the server has a certificate.
        """
        port = await self.scp(*self.shows("server"), "-ic")
        await self._store(self.client(port, ""))

    async def test_server_profiles(self) -> None:
        """
        The profiles of the standard that are not retired, as DCMTK's server has them, and both of ours.
        """
        for flag in ("+py", "+px", "+pz"):
            port = await self.scp(*self.shows("server"), "+cf", self.certificates.ca, flag)
            for profile in ("bcp195", "bcp195-nd"):
                endpoint = self.client(port, f"{self.own('client')}:profile={profile}")
                async with await self.requestor().associate(endpoint) as assoc:
                    self.assertEqual(await assoc.send_c_echo(), 0)

    async def test_many_files(self) -> None:
        """
        Data in both directions does not stall.
        """
        port = await self.scp(*self.shows("server"), "+cf", self.certificates.ca, "+uf")
        files = [file for file in dicom_files() if file.transfer_syntax == EXPLICIT]
        ae = self.requestor(*sorted({(file.sop_class, EXPLICIT) for file in files}))
        async with await ae.associate(self.client(port, self.own("client"))) as assoc:
            for file in files:
                self.assertEqual(await assoc.send_c_store(file.path), 0)
        stored = sorted(dataset_bytes(path) for path in self.folder.iterdir())
        self.assertEqual(stored == sorted(dataset_bytes(file.path) for file in files), True)

    async def test_server_of_another_ca(self) -> None:
        """
        Our side refuses a server whose certificate comes from an unrelated CA: the error is that of TLS.
        """
        port = await self.scp(*self.shows("other"), "+cf", self.certificates.ca)
        error = await self.refused(self.client(port, self.own("client")), PeerCertificateError)
        self.assertIn("not signed by a trusted CA", str(error))
        for endpoint in (
            f"tls:localhost:{port}:trustRoots={self.certificates.ca_dir}",
            f"ssl:localhost:{port}:caCertsDir={self.certificates.ca_dir}:hostname=localhost",
        ):
            error = await self.refused(endpoint, SSL.Error)
            self.assertIn("certificate verify failed", str(error))

    async def test_wrong_host(self) -> None:
        """
        A certificate for another host.
        """
        port = await self.scp(*self.shows("server"), "+cf", self.certificates.ca)
        endpoint = self.client(port, f"{self.own('client')}:hostname=pacs.example.org")
        error = await self.refused(endpoint, PeerCertificateError)
        self.assertIn("host name mismatch", str(error))

    async def test_we_are_refused(self) -> None:
        """
        The server refuses our certificate, or requires one that is missing: the error is that of TLS, and says so.
        """
        port = await self.scp(*self.shows("server"), "+cf", self.certificates.ca)
        for options, words in (
            (self.own("other"), "the peer refused our certificate"),
            ("", "requires a client certificate"),
        ):
            error = await self.refused(self.client(port, options), SSL.Error)
            self.assertIn(words, describe_tls_error(error) or "")

    async def test_plain_server(self) -> None:
        """
        TLS to a port without TLS, and the reverse.
        """
        port = await self.scp()
        error = await self.refused(self.client(port, self.own("client")), SSL.Error, AssociationLost)
        self.assertIn("it does not speak TLS", str(error))
        port = await self.scp(*self.shows("server"), "+cf", self.certificates.ca)
        await self.refused(f"tcp:127.0.0.1:{port}", AssociationError)


class OpenSSLTests(TLSTestCase):
    """
    OpenSSL's own client gets nothing from our server that BCP 195 forbids.
    """

    async def s_client(self, server: Server, *flags: str) -> Result:
        """Run a handshake without data after it."""
        script = 'exec "$0" s_client "$@" </dev/null'
        files = self.certificates
        # If a flag occurs twice, the last one counts.
        certificate = ("-cert", files.client_cert, "-key", files.client_key, "-CAfile", files.ca)
        address = f"127.0.0.1:{server.port}"
        return await run(tool("sh"), "-c", script, tool("openssl"), "-connect", address, *certificate, *flags)

    async def negotiated(self, server: Server, *flags: str) -> str:
        """Return the protocol and cipher suite of a successful handshake."""
        result = await self.s_client(server, *flags)
        self.assertEqual(result.code, 0, result.text)
        self.assertIn("Verify return code: 0 (ok)", result.text)
        (line,) = {line for line in result.text.splitlines() if "Cipher is" in line}
        return line

    async def test_what_is_taken(self) -> None:
        """
        TLS 1.2 and 1.3 are accepted, without compression and with secure renegotiation only.
        """
        server = await self.serve(address=self.mutual)
        for flags, words in (
            (("-tls1_3",), "TLSv1.3, Cipher is TLS_AES_"),
            (("-tls1_2",), "TLSv1.2, Cipher is ECDHE-RSA-AES"),
            (("-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"), "TLSv1.2, Cipher is ECDHE-RSA-AES128-GCM-SHA256"),
        ):
            self.assertIn(words, await self.negotiated(server, *flags))
            result = await self.s_client(server, *flags)
            self.assertIn("Compression: NONE", result.text)

    async def test_old_versions(self) -> None:
        """
        TLS 1.0 and 1.1 get the alert protocol_version, with any cipher suites.
        """
        server = await self.serve(address=self.mutual)
        for flag in ("-tls1", "-tls1_1"):
            result = await self.s_client(server, flag, "-cipher", "ALL:@SECLEVEL=0")
            self.assertNotEqual(result.code, 0, result.text)
            self.assertIn("alert protocol version", result.text)
            self.assertIn("Cipher is (NONE)", result.text)
        self.assertIn("Cipher is ECDHE", await self.negotiated(server, "-tls1_2"))

    async def test_weak_ciphers(self) -> None:
        """
        There is no handshake without forward secrecy, with CBC and SHA-1, without encryption, without a certificate, or
        with a short hash.
        """
        server = await self.serve(address=self.mutual)
        listed = await run(tool("openssl"), "ciphers", "-s", "-tls1_2", "ALL:COMPLEMENTOFALL:@SECLEVEL=0")
        there = set(listed.text.strip().split(":"))
        weak = (
            *(
                "AES128-SHA",
                "AES256-GCM-SHA384",
                "AES128-SHA256",
                "NULL-SHA256",
                "ECDHE-RSA-NULL-SHA",
                "ADH-AES256-GCM-SHA384",
            ),
            *(
                "AECDH-AES128-SHA",
                "ECDHE-RSA-AES128-SHA",
                "DHE-RSA-AES128-SHA",
                "CAMELLIA128-SHA",
                "DES-CBC3-SHA",
                "RC4-SHA",
            ),
        )
        tried = [name for name in weak if name in there]
        self.assertGreater(len(tried), 5, listed.text)
        for name in tried:
            result = await self.s_client(server, "-tls1_2", "-cipher", f"{name}:@SECLEVEL=0")
            self.assertNotEqual(result.code, 0, name)
            self.assertIn("handshake failure", result.text, name)

    async def test_no_resumption(self) -> None:
        """
        Each connection has a handshake of its own, in which the certificate is verified again.
        """
        server = await self.serve(address=self.mutual)
        result = await self.s_client(server, "-tls1_2", "-reconnect")
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual((result.text.count("New, TLSv1.2"), result.text.count("Reused, ")), (6, 0), result.text)

    async def test_client_certificates(self) -> None:
        """
        A certificate that is expired, not yet valid, revoked, from another CA, or missing: the client gets an alert, the
        log the reason.
        """
        folder = self.mktemp()
        Path(folder).mkdir()
        ours, theirs = Authority(folder, "ours"), Authority(folder, "theirs")
        good, revoked = ours.issue("good"), ours.issue("revoked")
        files = f"privateKey={ours.issue('server', '127.0.0.1')}:trustRoots={ours.path}"
        lists = f"crl={ours.revocation_list('list', revoked)}"
        server = await self.serve(address=f"dicomtls:0:{files}:{lists}:interface=127.0.0.1")
        past = {"not_before": NOW - 9 * DAY, "not_after": NOW - DAY}
        future = {"not_before": NOW + DAY, "not_after": NOW + 9 * DAY}
        cases = (
            (ours.issue("expired", **past), "certificate expired", "has expired"),
            (ours.issue("future", **future), "certificate", "is not valid yet"),
            (revoked, "certificate revoked", "has been revoked"),
            (theirs.issue("stranger"), "unknown ca", "is not signed by a trusted CA"),
        )
        for version in ("-tls1_2", "-tls1_3"):
            for pem, alert, words in cases:
                # A TLS 1.3 client gets the alert after its own handshake: -ign_eof makes it wait for the end.
                self.log.clear()
                shown = ("-cert", pem, "-key", pem, "-CAfile", ours.path)
                result = await self.s_client(server, version, *shown, "-ign_eof")
                self.assertNotEqual(result.code, 0, (version, words))
                self.assertRegex(result.text, f"alert ([a-z]+ )*{alert}")
                self.assertRegex(
                    self.logged(), rf"^127\.0\.0\.1: no association: the peer's certificate( \(.*\))? {words}"
                )
                shown = ("-cert", good, "-key", good, "-CAfile", ours.path)
                result = await self.s_client(server, version, *shown)
                self.assertEqual(result.code, 0, result.text)
        self.assertEqual(self.flushLoggedErrors(), [])
