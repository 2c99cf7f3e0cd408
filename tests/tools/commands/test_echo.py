"""``dicomtwist echo``."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from dicomtwist import Status, evt
from tests import peers
from tests.tools.common import ToolTestCase, reactor


class Echo(ToolTestCase):
    """C-ECHO with real peers."""

    async def test_twist_dicom(self) -> None:
        port, _ = await self.twist_dicom("--ae-title", "ARCHIVE", "--require-called-aet")
        result = await self.tool("echo", f"ARCHIVE@127.0.0.1:{port}")
        self.assertEqual(result.code, 0, result.text)
        self.assertRegex(
            result.stdout.decode(), rf"^ARCHIVE@127\.0\.0\.1:{port} answered: 0x0000 Success\nin \d+\.\d\d ms\n$"
        )
        self.assertEqual(result.stderr, b"")

    async def test_storescp(self) -> None:
        port = await peers.dcmtk_storescp(self, self.folder / "out")
        document = await self.json("echo", f"localhost:{port}", "--count", 20, code=0)
        self.assertEqual((document["associations"], document["answers"]), (1, 20))
        self.assertEqual(document["statuses"], {"0x0000": 20})
        self.assertGreater(document["mean_seconds"], 0)
        self.assertIsNone(document["cause"])

    async def test_storescp_over_tls(self) -> None:
        certificates = peers.certificates()
        port = await peers.dcmtk_storescp(
            self,
            self.folder / "out",
            *("+tls", certificates.server_key, certificates.server_cert, "+cf", certificates.ca),
        )
        own = ("--tls-certificate", certificates.client_cert, "--tls-key", certificates.client_key)
        result = await self.tool("echo", "--tls-roots", certificates.ca, *own, f"127.0.0.1:{port}")
        self.assertEqual(result.code, 0, result.text)
        endpoint = (
            f"dicomtls:127.0.0.1:{port}:trustRoots={certificates.ca}:privateKey={certificates.client_key}"
            f":certKey={certificates.client_cert}"
        )
        result = await self.tool("echo", f"TLS@{endpoint}")
        self.assertEqual(result.code, 0, result.text)

    async def test_several_associations(self) -> None:
        server = await self.serve()
        document = await self.json("echo", f"127.0.0.1:{server.port}", "--associations", 4, "--count", 3, code=0)
        self.assertEqual((document["associations"], document["answers"]), (4, 12))

    async def test_unix_socket_and_ipv6(self) -> None:
        path = peers.socket_path(self)
        await self.serve(address=f"unix:{path}")
        self.assertEqual((await self.tool("echo", f"A@unix:{path}")).code, 0)
        server = await self.serve(address=("::1", 0))
        for peer in (f"[::1]:{server.port}", f"tcp6:[::1]:{server.port}"):
            result = await self.tool("echo", peer)
            self.assertEqual(result.code, 0, result.text)

    async def test_calling_title(self) -> None:
        server = await self.serve(require_calling_aet=["GOOD"])
        self.assertEqual((await self.tool("echo", "--calling", "GOOD", f"127.0.0.1:{server.port}")).code, 0)
        result = await self.tool("echo", f"127.0.0.1:{server.port}")
        self.assertEqual(result.code, 3)
        self.assertIn("does not accept our AE title DICOMTWIST", result.stderr.decode())

    async def test_a_status_that_is_no_success(self) -> None:
        server = await self.serve((evt.EVT_C_ECHO, lambda event: 0x0122))
        result = await self.tool("echo", f"127.0.0.1:{server.port}")
        self.assertEqual(result.code, 1, result.text)
        self.assertIn("0x0122 SOP Class not supported", result.stdout.decode())

    async def test_nobody_there(self) -> None:
        port = peers.free_port()
        result = await self.tool("echo", f"127.0.0.1:{port}")
        self.assertEqual((result.code, result.stdout), (3, b""))
        (line,) = result.stderr.decode().splitlines()
        self.assertIn(f"nothing listens at 127.0.0.1:{port}", line)
        document = await self.json("echo", f"127.0.0.1:{port}", code=3)
        self.assertEqual(document["cause"]["code"], "refused")

    async def test_an_association_that_does_not_last(self) -> None:
        def abort(event: Any) -> int:
            event.assoc.abort("for the test")
            return 0

        server = await self.serve((evt.EVT_C_ECHO, abort))
        result = await self.tool("echo", f"127.0.0.1:{server.port}")
        self.assertEqual(result.code, 1, result.text)
        self.assertIn("aborted by the peer", result.stderr.decode())

    async def test_quiet_and_verbose(self) -> None:
        server = await self.serve()
        peer = f"127.0.0.1:{server.port}"
        self.assertEqual((await self.tool("echo", "-q", peer)).text, "")
        verbose = (await self.tool("echo", "-v", peer)).stderr.decode()
        self.assertIn("association accepted, 1 of 1 presentation context", verbose)
        self.assertIn("association released", verbose)
        self.assertNotIn("C-ECHO-RQ", verbose)
        debug = (await self.tool("echo", "-vv", peer)).stderr.decode()
        self.assertIn("-> C-ECHO-RQ 1", debug)
        self.assertIn("<- C-ECHO-RSP 1: 0x0000 Success", debug)

    async def test_interrupted(self) -> None:
        """Ctrl-C while the peer does not answer prints one line and aborts the association."""
        asked: Deferred[Any] = Deferred()
        never: Deferred[int] = Deferred()

        def hold(event: Any) -> Deferred[int]:
            asked.callback(event.assoc)
            return never

        server = await self.serve((evt.EVT_C_ECHO, hold))
        process = await self.start_tool("echo", f"127.0.0.1:{server.port}")
        association = await asked.addTimeout(60, reactor)
        process.signal("INT")
        result = await process.wait()
        self.assertEqual(result.code, 1, result.text)
        self.assertEqual(result.text, "dicomtwist: interrupted\n")
        await association.when_ended()
        self.assertTrue(association.is_aborted)

    async def test_what_a_peer_says_is_harmless(self) -> None:
        """Escape sequences from a peer do not reach the terminal."""
        server = await self.serve((evt.EVT_C_ECHO, lambda event: Status(0x0110, "C-ECHO", error_comment="\x1b[31mRED")))
        result = await self.tool("echo", f"127.0.0.1:{server.port}")
        self.assertEqual(result.code, 1)
        self.assertNotIn(b"\x1b", result.stdout + result.stderr)
