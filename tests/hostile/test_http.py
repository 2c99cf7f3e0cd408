"""
``twist dicom --http`` as a process among hostile clients of HTTP: rows 46 to 49. Another AE's C-ECHO is answered meanwhile, and
the memory stays as it is. :mod:`tests.web.http.test_channel` has the same clients without a process.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from dicomtwist.datasets import encode_dataset
from dicomtwist.dicomweb.multipart import MultipartWriter
from tests import peers
from tests.certificates import Authority
from tests.daemon.test_twist_dicom import Silent, connect
from tests.hostile import test_process
from tests.hostile.test_process import EXPLICIT, file_of, instance

RELATED = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=B'}


def multipart(*uids: str, size: int = 0) -> bytes:
    """Return a body with instances."""
    writer = MultipartWriter("B")
    body = b""
    for uid in uids:
        made = instance(uid)
        if size:
            made.add_new(0x00420011, "OB", bytes(size))
        path = file_of(encode_dataset(made, EXPLICIT), uid)
        body += writer.begin([("Content-Type", "application/dicom")]) + path.getvalue()
    return body + writer.end()


class HTTPTestCase(test_process.ProcessTestCase):
    """A server process with DICOMweb."""

    async def start(self, *options: str) -> None:
        self.http = peers.free_port()
        await super().start("--http", f"tcp:{self.http}:interface=127.0.0.1", *options)

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Deferred[tuple[int, bytes]]:
        """Send one request on a connection of its own; return the status and the body of the response."""

        def ask() -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=60)
            try:
                connection.request(method, f"/dicom-web{path}", body, headers or {})
                response = connection.getresponse()
                return response.status, response.read()
            finally:
                connection.close()

        return deferToThread(ask)

    def connect(self, data: bytes) -> Deferred[Silent]:
        """Return a connection on which *data* is sent."""
        return connect(self.http, data)


class Clients(HTTPTestCase):
    async def test_slow_and_malformed(self) -> None:
        """Hundreds of connections that hang, headers without an end, pipelined requests, and bodies that are cut off."""
        await self.start()
        head = b"POST /dicom-web/studies HTTP/1.1\r\nHost: a\r\n"
        body = multipart("1.2.3.50", "1.2.3.51")
        opened = []
        for data in (
            b"",
            b"GET /dicom-web/studies HTTP/1.1\r\nX: ",
            head + b"Content-Type: application/dicom\r\nContent-Length: 100000000\r\n\r\n" + bytes(100_000),
            head + f"Content-Type: {RELATED['Content-Type']}\r\nContent-Length: 10000000\r\n\r\n".encode() + b"--B\r\n",
            head
            + f"Content-Type: {RELATED['Content-Type']}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body[:-99],
            b"GET /dicom-web/nowhere HTTP/1.1\r\nHost: a\r\n\r\n" * 1000,
        ):
            opened += await gatherResults([self.connect(data) for _ in range(40)])
            await self.echo()
        for data in (
            b"GET /" + b"x" * 1_000_000,
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000,
            head + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 100_000,
            head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ):
            peer = await self.connect(data)
            await peer.answered
            self.assertRegex(peer.received[:12], rb"HTTP/1.1 4..")
            cast(Any, peer.transport).abortConnection()
        self.assertEqual((await self.ask("GET", "/nowhere"))[0], 404)
        for peer in opened:
            cast(Any, peer.transport).abortConnection()
        await self.all_is_as_before("1.2.3.50")

    async def test_a_body_of_any_length(self) -> None:
        """A body is streamed: a large one needs no memory, and one that is too long ends when it is."""
        await self.start("--max-connections-per-peer", "1000")
        piece = bytes(1 << 20)

        def pieces() -> Any:
            yield multipart("1.2.3.50", size=100)[:-7]  # without the closing boundary
            yield b"\r\n--B\r\nContent-Type: application/dicom\r\n\r\n" + bytes(128) + b"DICM"
            for _ in range(300):
                yield piece

        status, text = await self.ask("POST", "/studies", pieces(), RELATED)
        self.assertEqual(status, 202)
        self.assertIn(b"1.2.3.50", text)
        await self.all_is_as_before("1.2.3.50")

    async def test_many_clients(self) -> None:
        """Clients that store at once all get their answers."""
        await self.start()
        answers = await gatherResults(
            [self.ask("POST", "/studies", multipart(f"1.2.3.{number}"), RELATED) for number in range(100, 140)]
        )
        self.assertEqual([status for status, _ in answers], [200] * 40)
        await self.all_is_as_before(*(f"1.2.3.{number}" for number in range(100, 140)))


class Server(HTTPTestCase):
    """The options of HTTP, with several processes and TLS."""

    async def test_workers_and_tls(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        ca = Authority(str(folder), "ca")
        server, client = ca.issue("server", "127.0.0.1"), ca.issue_without_names("client")
        config = folder / "archive.toml"
        (folder / "users").write_text("")
        self.http = peers.free_port()
        files = f"privateKey={server}:trustRoots={ca.path}"
        endpoint = f"dicomtls:{self.http}:interface=127.0.0.1:{files}:clientCertificate=optional"
        config.write_text(
            f"""
workers = 2
http = "{endpoint}"
[access]
users = "{folder / "users"}"
[[access.rule]]
certificate = "CN=client"
allow = "store"
[[access.rule]]
calling = ["NEIGHBOUR", "HOSTILE", "P*"]
allow = "all"
"""
        )
        await test_process.ProcessTestCase.start(self, "--config", str(config))

        def ask(certificate: str) -> int:
            context = ssl.create_default_context(cafile=ca.path)
            if certificate:
                context.load_cert_chain(certificate)
            connection = http.client.HTTPSConnection("127.0.0.1", self.http, timeout=60, context=context)
            connection.request("POST", "/dicom-web/studies", multipart("1.2.3.50"), RELATED)
            status = connection.getresponse().status
            connection.close()
            return status

        for _ in range(4):
            self.assertEqual(await deferToThread(ask, client), 200)
            self.assertEqual(await deferToThread(ask, ""), 401)
        await self.all_is_as_before("1.2.3.50")
