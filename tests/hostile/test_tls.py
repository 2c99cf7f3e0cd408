"""Rows 3 and 34: a port with TLS and one without, peers that use the wrong protocol, and peers with wrong certificates."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ConnectionLost
from twisted.trial.unittest import TestCase

from dicomtwist import AE, AssociationLost
from tests import peers
from tests.certificates import DAY, NOW, Authority
from tests.daemon import test_twist_dicom

VERIFICATION = "1.2.840.10008.1.1"


def hello(maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """Return a ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = maximum
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


class TLSPort(TestCase):
    timeout = 300

    async def test_who_does_not_speak_it(self) -> None:
        """Each peer is closed within the ACSE timeout, with a log line that says why; nobody waits for it."""
        files = peers.certificates()
        secure, plain = peers.free_port(), peers.free_port()
        server = await peers.start(
            self,
            sys.executable,
            *("-m", "twisted", "--log-format", "text", "dicom", "--storage", self.mktemp(), "--acse-timeout", "3"),
            "--port",
            f"dicomtls:{secure}:privateKey={files.server_key}:certKey={files.server_cert}:trustRoots={files.ca}"
            ":interface=127.0.0.1",
            *("--port", f"tcp:{plain}:interface=127.0.0.1"),
            ready=secure,
            timeout=90,
        )
        await peers.wait_listening(plain, process=server)
        whole = hello()
        cases = [
            (secure, b""),  # silent
            (secure, whole[:5]),  # a handshake that stalls
            (secure, whole[:100]),
            (secure, whole),
            (secure, b"\1\0\0\0\0\xce\0\1" + bytes(198)),  # plain text
            (secure, b"GET / HTTP/1.1\r\n\r\n"),
            (secure, b"\x16\x03\x01\xff\xff" + b"\xff" * 5000),
            (plain, whole),
        ]
        silent = await gatherResults([test_twist_dicom.connect(port, data) for port, data in cases])
        await self.echo(f"tcp:127.0.0.1:{plain}")
        trusted = f"trustRoots={files.ca}:privateKey={files.client_key}:certKey={files.client_cert}"
        await self.echo(f"dicomtls:127.0.0.1:{secure}:{trusted}")
        answers = await gatherResults([peer.closed for peer in silent])
        self.assertEqual(answers[0], b"")
        self.assertEqual(answers[-1][:1], b"\7")
        await self.echo(f"dicomtls:127.0.0.1:{secure}:{trusted}")
        await server.until(lambda: server.text.count("no association: ") >= len(cases), 30, "a line for each of them")
        self.assertEqual(server.text.count("no association: "), len(cases), server.text)
        self.assertNotIn("Traceback", server.text)

    async def test_wrong_certificates(self) -> None:
        """Such a peer gets an alert, the log has the reason, and valid peers are accepted meanwhile."""
        folder = self.mktemp()
        Path(folder).mkdir()
        ours, theirs = Authority(folder, "ours"), Authority(folder, "theirs")
        key = ours.issue("server", "127.0.0.1")
        good, revoked = ours.issue("good"), ours.issue("revoked")
        strangers = {
            "expired": ours.issue("expired", not_before=NOW - 9 * DAY, not_after=NOW - DAY),
            "revoked": revoked,
            "other": theirs.issue("other"),
            "none": "",
        }
        port = peers.free_port()
        server = await peers.start(
            self,
            sys.executable,
            *("-m", "twisted", "--log-format", "text", "dicom", "--storage", self.mktemp(), "--acse-timeout", "20"),
            "--port",
            f"dicomtls:{port}:privateKey={key}:trustRoots={ours.path}:crl={ours.revocation_list('list', revoked)}"
            ":interface=127.0.0.1",
            ready=port,
            timeout=90,
        )
        endpoint = f"dicomtls:127.0.0.1:{port}:trustRoots={ours.path}"
        for number, (name, certificate) in enumerate(strangers.items(), 1):
            await self.refused(endpoint + (f":privateKey={certificate}" if certificate else ""))
            await server.until(
                lambda number=number: server.text.count("no association: ") >= number,  # type: ignore[misc]
                30,
                f"a line for the certificate that is {name}",
            )
            await self.echo(f"{endpoint}:privateKey={good}")
        # TLS 1.1: the alert protocol_version (70).
        old = bytes.fromhex("0302") + bytes(32) + bytes.fromhex("00 0004 c013002f 01 00")
        record = b"\x16\x03\x01" + (len(old) + 4).to_bytes(2, "big") + b"\1" + len(old).to_bytes(3, "big") + old
        peer = await test_twist_dicom.connect(port, record)
        self.assertEqual((await peer.closed)[-2:], bytes((2, 70)))
        await self.echo(f"{endpoint}:privateKey={good}")
        lines = [line for line in server.text.splitlines() if "no association: " in line]
        self.assertEqual(len(lines), len(strangers) + 1)
        for line, word in zip(lines, ("expired", "revoked", "trusted CA", "certificate", "version"), strict=True):
            self.assertIn(word, line)
        self.assertNotIn("Traceback", server.text)

    async def echo(self, endpoint: str) -> None:
        ae = AE("NEIGHBOUR")
        ae.add_requested_context(VERIFICATION)
        async with await ae.associate(endpoint) as assoc:
            self.assertTrue((await assoc.send_c_echo()).is_success)

    async def refused(self, endpoint: str) -> None:
        ae = AE("STRANGER")
        ae.add_requested_context(VERIFICATION)
        asking: Deferred[Any] = ae.associate(endpoint)
        await self.assertFailure(asking, SSL.Error, ConnectionLost, AssociationLost)
