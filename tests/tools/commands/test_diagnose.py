"""``dicomtwist diagnose``: broken set-ups, each with a real process or socket at the other end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydicom.data import get_testdata_file
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol

from dicomtwist import AE, Status, evt
from dicomtwist.sop_class import CTImageStorage, Verification
from tests import peers
from tests.certificates import NOW, Authority
from tests.tools.common import Stores, ToolTestCase, reactor

LOCAL = "127.0.0.1"


class Greeting(Protocol):
    """A server that sends fixed bytes on connection, or nothing."""

    data = b""

    def connectionMade(self) -> None:
        """Send the bytes to a client."""
        assert self.transport is not None
        if self.data:
            self.transport.write(self.data)


class DiagnoseTestCase(ToolTestCase):
    """The base of the tests of diagnoses."""

    async def diagnosed(self, code: str, *args: object, status: int = 3, failed: str | None = None) -> dict[str, Any]:
        """
        Run a diagnosis that finds the cause *code*.

        :param failed: the step that failed.
        """
        document = await self.json("diagnose", *args, code=status)
        self.assertIsNotNone(document["cause"], document)
        self.assertEqual(document["cause"]["code"], code, document)
        for text in (document["cause"]["what"], document["cause"]["advice"]):
            self.assertTrue(text)
            self.assertNotIn("\n", text)
        steps = document["steps"]
        self.assertTrue(all(step["seconds"] >= 0 for step in steps))
        self.assertEqual(
            [step["step"] for step in steps if not step["ok"]], [] if failed is None else [failed], document
        )
        return document

    async def listen(self, data: bytes = b"") -> int:
        """Listen with a socket that does not speak DICOM."""
        factory = Factory.forProtocol(type("Peer", (Greeting,), {"data": data}))
        port = await TCP4ServerEndpoint(reactor, 0, interface=LOCAL).listen(factory)
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def secure(self, certificate: str, *options: str) -> int:
        """Start ``twist dicom`` over TLS with a file of key and certificate."""
        files = f"privateKey={certificate}:certKey={certificate}"
        port, _ = await self.twist_dicom(tls=":".join((files, *(options or ("clientCertificate=none",)))))
        return port

    def authority(self, name: str = "ours") -> Authority:
        """A certificate authority that writes into the folder of the test."""
        return Authority(str(self.folder), name)


class Works(DiagnoseTestCase):
    """Set-ups without a fault."""

    async def test_twist_dicom(self) -> None:
        port, _ = await self.twist_dicom()
        self.instances(1)
        result = await self.tool("diagnose", f"localhost:{port}", self.folder / "study")
        self.assertEqual(result.code, 0, result.text)
        text = result.stdout.decode()
        for step in ("look up name", "connect", "association", "echo", "release"):
            self.assertRegex(text, rf"(?m)^  ok  {step} +\d+\.\d ms")
        self.assertRegex(text, r"(?m)^  3 +CT Image Storage +Explicit VR Little Endian +Explicit VR Little Endian$")
        self.assertTrue(text.splitlines()[-1].startswith("It works: the peer accepts the presentation contexts"), text)

    async def test_over_tls(self) -> None:
        authority = self.authority()
        port = await self.secure(authority.issue("server", LOCAL), f"trustRoots={authority.path}")
        own = authority.issue("client", "ct1")
        document = await self.json(
            "diagnose", "--tls-roots", authority.path, "--tls-certificate", own, f"{LOCAL}:{port}", code=0
        )
        steps = {step["step"]: step["detail"] for step in document["steps"]}
        self.assertRegex(steps["TLS handshake"], r"^TLSv1\.3, TLS_\w+, certificate valid until \d{4}-\d\d-\d\d$")

    async def test_at_a_terminal(self) -> None:
        server = await self.serve()
        result = await self.terminal("diagnose", f"{LOCAL}:{server.port}").wait()
        self.assertEqual(result.code, 0, result.text)
        self.assertIn("It works.", result.text)


class Broken(DiagnoseTestCase):
    """The most frequent faults."""

    async def test_wrong_port(self) -> None:
        port = peers.free_port()
        found = await self.diagnosed("refused", f"{LOCAL}:{port}", failed="connect")
        self.assertIn(f"nothing listens at {LOCAL}:{port}", found["cause"]["what"])
        self.assertIn("check the port", found["cause"]["advice"])

    async def test_wrong_title(self) -> None:
        port, _ = await self.twist_dicom("--ae-title", "ARCHIVE", "--require-called-aet")
        found = await self.diagnosed("called-title", f"WRONG@{LOCAL}:{port}", failed="association")
        self.assertIn("does not answer to the AE title WRONG", found["cause"]["what"])
        self.assertIn("called AE title not recognised (1, 1, 7)", found["cause"]["what"])
        self.assertEqual((await self.tool("diagnose", f"ARCHIVE@{LOCAL}:{port}")).code, 0)

    async def test_calling_title_refused(self) -> None:
        port, _ = await self.twist_dicom("--allow-calling", "CT1")
        found = await self.diagnosed("calling-title", f"{LOCAL}:{port}", failed="association")
        self.assertIn("(1, 1, 3)", found["cause"]["what"])
        self.assertIn("--calling", found["cause"]["advice"])
        self.assertEqual((await self.tool("diagnose", "--calling", "CT1", f"{LOCAL}:{port}")).code, 0)

    async def test_no_common_context(self) -> None:
        ae = AE("CTONLY")
        ae.add_supported_context(CTImageStorage)
        self.addCleanup(ae.shutdown)
        server = await ae.start_server((LOCAL, 0))
        found = await self.diagnosed("no-common-context", f"{LOCAL}:{server.port}", failed="association")
        (row,) = found["contexts"]
        self.assertEqual((row["sop_class"], row["answer"]), (str(Verification), "Abstract Syntax Not Supported"))

    async def test_tls_to_plain(self) -> None:
        """TLS to a plain peer: DCMTK, ourselves, and with an endpoint string."""
        dcmtk = await peers.dcmtk_storescp(self, self.folder / "out")
        twist, _ = await self.twist_dicom()
        ca = self.authority().path
        for options in (
            ("--tls-roots", ca, f"{LOCAL}:{dcmtk}"),
            ("--tls-roots", ca, f"{LOCAL}:{twist}"),
            (f"dicomtls:{LOCAL}:{dcmtk}:trustRoots={ca}",),
        ):
            found = await self.diagnosed("peer-is-plain", *options, failed="TLS handshake")
            self.assertIn("without TLS", f"{found['cause']}")

    async def test_plain_to_tls(self) -> None:
        """No TLS to a secure peer: DCMTK, which requires a certificate, and ourselves."""
        certificates = peers.certificates()
        dcmtk = await peers.dcmtk_storescp(
            self, self.folder / "out", "+tls", certificates.server_key, certificates.server_cert, "+cf", certificates.ca
        )
        twist = await self.secure(self.authority().issue("server", LOCAL))
        for port in (dcmtk, twist):
            found = await self.diagnosed("peer-is-secure", f"{LOCAL}:{port}", failed="association")
            self.assertIn("--tls", found["cause"]["advice"])

    async def test_unknown_ca(self) -> None:
        port = await self.secure(self.authority().issue("server", LOCAL))
        other = self.authority("other").path
        found = await self.diagnosed("unknown-ca", "--tls-roots", other, f"{LOCAL}:{port}", failed="TLS handshake")
        self.assertIn("not signed by a trusted CA (it leads to", found["cause"]["what"])
        self.assertIn("--tls-roots", found["cause"]["advice"])

    async def test_expired_certificate(self) -> None:
        authority = self.authority()
        expired = authority.issue("server", LOCAL, not_before=NOW - timedelta(3), not_after=NOW - timedelta(1))
        port = await self.secure(expired)
        found = await self.diagnosed(
            "expired", "--tls-roots", authority.path, f"{LOCAL}:{port}", failed="TLS handshake"
        )
        self.assertIn("has expired", found["cause"]["what"])

    async def test_client_certificate_missing(self) -> None:
        """A missing certificate with TLS 1.3, which shows only after the handshake, and with DCMTK."""
        authority, certificates = self.authority(), peers.certificates()
        ours = await self.secure(authority.issue("server", LOCAL), f"trustRoots={authority.path}")
        dcmtk = await peers.dcmtk_storescp(
            self, self.folder / "out", "+tls", certificates.server_key, certificates.server_cert, "+cf", certificates.ca
        )
        for port, ca in ((ours, authority.path), (dcmtk, certificates.ca)):
            document = await self.json("diagnose", "--tls-roots", ca, f"{LOCAL}:{port}", code=3)
            self.assertEqual(document["cause"]["code"], "client-certificate", document)
            self.assertIn("--tls-certificate", document["cause"]["advice"])
            self.assertNotIn("SSL routines", str(document["steps"]))

    async def test_host_name_mismatch(self) -> None:
        authority = self.authority()
        port = await self.secure(authority.issue("server", "pacs.example.org"))
        roots = ("--tls-roots", authority.path)
        found = await self.diagnosed("host-name", *roots, f"{LOCAL}:{port}", failed="TLS handshake")
        self.assertIn(f"we asked for {LOCAL}, the peer's certificate is for pacs.example.org", found["cause"]["what"])
        result = await self.tool("diagnose", *roots, "--tls-hostname", "pacs.example.org", f"{LOCAL}:{port}")
        self.assertEqual(result.code, 0, result.text)

    async def test_silent_peer(self) -> None:
        port = await self.listen()
        found = await self.diagnosed("silent", "--acse-timeout", "1", f"{LOCAL}:{port}", failed="association")
        self.assertIn("sent nothing for 1 seconds", found["cause"]["what"])
        took = next(step["seconds"] for step in found["steps"] if step["step"] == "association")
        self.assertGreaterEqual(took, 0.9)

    async def test_silent_peer_over_tls(self) -> None:
        port = await self.listen()
        await self.diagnosed("silent", "--acse-timeout", "1", "--tls", f"{LOCAL}:{port}", failed="TLS handshake")

    async def test_peer_at_its_limit(self) -> None:
        port, _ = await self.twist_dicom("--max-associations", "1")
        ae = AE("HOLDER")
        ae.add_requested_context(Verification)
        async with await ae.associate(LOCAL, port):
            found = await self.diagnosed("limit", f"{LOCAL}:{port}", failed="association")
        self.assertIn("local limit exceeded (2, 3, 2)", found["cause"]["what"])
        self.assertIn("try again later", found["cause"]["advice"])


class BrokenOtherwise(DiagnoseTestCase):
    """Less frequent faults."""

    async def test_in_words(self) -> None:
        """The output for people, without JSON."""
        port, _ = await self.twist_dicom("--ae-title", "ARCHIVE", "--require-called-aet")
        result = await self.tool("diagnose", f"WRONG@{LOCAL}:{port}")
        self.assertEqual((result.code, result.stderr), (3, b""))
        *steps, wrong, to_do = result.stdout.decode().splitlines()
        self.assertRegex(steps[-1], r"^  FAILED  association  \d+\.\d ms ")
        self.assertRegex(wrong, "^Wrong: the peer does not answer to the AE title WRONG")
        self.assertEqual(to_do, f"To do: give the AE title of the peer, as in TITLE@{LOCAL}:{port}")

    async def test_at_a_terminal(self) -> None:
        """Sentences are wrapped at the width of a terminal, and words stay whole."""
        process = self.terminal("diagnose", f"{LOCAL}:{peers.free_port()}")
        result = await process.wait(120)
        self.assertEqual(result.code, 3)
        lines = result.text.splitlines()
        self.assertLessEqual(max(map(len, lines)), 100)
        joined = " ".join(line.strip() for line in lines)
        self.assertIn("To do: check the port (104, 11112 and, for TLS, 2762 are usual), and that the peer runs", joined)

    async def test_other_services(self) -> None:
        for data, name in (
            (b"SSH-2.0-OpenSSH_9\r\n", "SSH"),
            (b"220 mail ESMTP\r\n", "SMTP"),
            (b"HTTP/1.1 400\r\n", "HTTP"),
        ):
            port = await self.listen(data)
            found = await self.diagnosed("not-dicom", f"{LOCAL}:{port}", failed="association")
            self.assertIn(name, found["cause"]["what"])

    async def test_unknown_host(self) -> None:
        found = await self.diagnosed("unknown-host", "nowhere.invalid:104", failed="look up name")
        self.assertIn("there is no host nowhere.invalid", found["cause"]["what"])

    async def test_no_unix_socket(self) -> None:
        await self.diagnosed("connect", f"unix:{peers.socket_path(self)}", failed="connect")

    async def test_our_certificate_is_refused(self) -> None:
        authority, other = self.authority(), self.authority("other")
        port = await self.secure(authority.issue("server", LOCAL), f"trustRoots={authority.path}")
        own = other.issue("client", "ct1")
        document = await self.json(
            "diagnose", "--tls-roots", authority.path, "--tls-certificate", own, f"{LOCAL}:{port}", code=3
        )
        self.assertEqual(document["cause"]["code"], "our-certificate", document)

    async def test_a_file_that_the_peer_would_not_take(self) -> None:
        port = await peers.dcmtk_storescp(self, self.folder / "out")
        file = peers.one_per_transfer_syntax()["1.2.840.10008.1.2.4.50"]
        found = await self.diagnosed("context", f"{LOCAL}:{port}", file.path, status=1)
        self.assertEqual([row["accepted"] for row in found["contexts"]], [True, False])

    async def test_echo_fails(self) -> None:
        server = await self.serve((evt.EVT_C_ECHO, lambda event: Status(0x0110)))
        found = await self.diagnosed("echo", f"{LOCAL}:{server.port}", status=1, failed="echo")
        self.assertIn("0x0110 Processing failure", found["cause"]["what"])

    async def test_user_not_let_in(self) -> None:
        server = await self.serve((evt.EVT_USER_ID, lambda event: (False, None)))
        found = await self.diagnosed(
            "user", "--user", "U", "--no-password", f"{LOCAL}:{server.port}", failed="association"
        )
        self.assertIn("check the user name and the password", found["cause"]["advice"])

    async def test_interrupted(self) -> None:
        """An interrupt while the peer is silent."""
        taken: Deferred[None] = Deferred()
        factory = Factory.forProtocol(type("Peer", (Greeting,), {"connectionMade": lambda self: taken.callback(None)}))
        port = await TCP4ServerEndpoint(reactor, 0, interface=LOCAL).listen(factory)
        self.addCleanup(port.stopListening)
        process = self.terminal("diagnose", f"{LOCAL}:{port.getHost().port}")
        await taken.addTimeout(120, reactor)
        process.type("\x03")
        result = await process.wait(120)
        self.assertEqual((result.code, result.text.replace("^C", "")), (1, "dicomtwist: interrupted\r\n"))


class Files(DiagnoseTestCase):
    """Files whose presentation contexts are proposed, and with ``--store`` sent."""

    async def test_they_are_proposed(self) -> None:
        """Without ``--store`` nothing is sent, and the result says so."""
        stores = Stores()
        server = await self.serve((evt.EVT_C_STORE, stores))
        path = self.instances(1)[0]
        document = await self.json("diagnose", f"{LOCAL}:{server.port}", path, code=0)
        self.assertEqual(
            [(row["sop_class"], row["accepted"]) for row in document["contexts"]],
            [(str(Verification), True), (str(CTImageStorage), True), (str(CTImageStorage), True)],
        )
        self.assertIsNone(document["stored"])
        self.assertEqual(stores.uids, [])
        result = await self.tool("diagnose", f"{LOCAL}:{server.port}", path)
        self.assertIn("Nothing was sent; --store sends some.", result.text)

    async def test_they_are_sent(self) -> None:
        """One of each SOP Class and transfer syntax."""
        stores = Stores()
        server = await self.serve((evt.EVT_C_STORE, stores))
        paths = self.instances(3)
        compressed = get_testdata_file("JPEG2000.dcm")
        document = await self.json("diagnose", "--store", f"{LOCAL}:{server.port}", *paths, compressed, code=0)
        self.assertEqual([one["path"] for one in document["stored"]], [str(paths[0]), str(compressed)])
        self.assertEqual(len(stores.uids), 2)
        self.assertEqual([step["step"] for step in document["steps"]].count("store"), 2)
        result = await self.tool("diagnose", "--store", f"{LOCAL}:{server.port}", paths[0])
        self.assertEqual(result.code, 0)
        self.assertIn("It works: 1 file stored", result.text)

    async def test_a_peer_that_refuses_them(self) -> None:
        server = await self.serve((evt.EVT_C_STORE, Stores(0xA700)))
        path = self.instances(1)[0]
        peer = f"{LOCAL}:{server.port}"
        document = await self.diagnosed("store", "--store", peer, path, status=1, failed="store")
        self.assertIn("0xA700", document["cause"]["what"])
        self.assertIn(str(path), document["cause"]["what"])
        self.assertEqual(document["steps"][-1]["step"], "release")

    async def test_a_peer_that_aborts(self) -> None:
        def abort(event: Any) -> int:
            event.assoc.abort()
            return 0xC000

        server = await self.serve((evt.EVT_C_STORE, abort))
        paths = self.instances(1)
        document = await self.diagnosed("store", "--store", f"{LOCAL}:{server.port}", *paths, status=1, failed="store")
        self.assertIn("the association ended", document["cause"]["what"])
        self.assertEqual(document["steps"][-1]["step"], "store")

    async def test_a_peer_that_accepts_another_uncompressed_syntax(self) -> None:
        """An uncompressed file is converted, so that one of its contexts suffices."""
        stores = Stores()
        ae = AE("SCP")
        self.addCleanup(ae.shutdown)
        ae.add_supported_context(Verification)
        ae.add_supported_context(CTImageStorage, "1.2.840.10008.1.2")
        server = await ae.start_server((LOCAL, 0), evt_handlers=[(evt.EVT_C_STORE, stores)])
        path = self.instances(1)[0]
        document = await self.json("diagnose", "--store", f"{LOCAL}:{server.port}", path, code=0)
        self.assertEqual([row["accepted"] for row in document["contexts"]], [True, False, True])
        self.assertEqual(len(stores.uids), 1)

    async def test_a_peer_that_accepts_none_of_their_contexts(self) -> None:
        ae = AE("SCP")
        self.addCleanup(ae.shutdown)
        ae.add_supported_context(Verification)
        server = await ae.start_server((LOCAL, 0))
        peer = f"{LOCAL}:{server.port}"
        await self.diagnosed("context", peer, *self.instances(1), status=1)
        await self.diagnosed("context", "--store", peer, *self.instances(1), status=1, failed="store")

    def test_nothing_to_send(self) -> None:
        result = self.misuse("diagnose", "--store", f"{LOCAL}:1")
        self.assertEqual(result.code, 2)
        self.assertIn("--store needs files", result.text)
