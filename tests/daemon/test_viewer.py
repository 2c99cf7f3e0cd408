"""``twist dicom --viewer`` as processes: the ports of the viewer and of DICOMweb, the limits of HTTP, signals."""

from __future__ import annotations

import os
import signal
import sys
from http.client import HTTPConnection
from pathlib import Path

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests import peers


class Viewer(TestCase):
    timeout = 120

    async def ask(self, method: str, path: str, body: bytes | None = None, *, port: int = 0) -> tuple[int, bytes]:
        """Send a request; return the status and the body of the response."""

        def ask() -> tuple[int, bytes]:
            connection = HTTPConnection("127.0.0.1", port or self.viewer, timeout=60)
            headers = {} if body is None else {"Content-Type": "application/dicom"}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = response.status, response.read()
            connection.close()
            return answer

        return await deferToThread(ask)

    async def test_workers(self) -> None:
        """All processes serve the viewer; its port is kept by a reload; the limits are those of the options."""
        folder = Path(self.mktemp()).absolute()
        (folder / "dist").mkdir(parents=True)
        (folder / "dist" / "index.html").write_text("<p>the viewer</p>")
        port, self.viewer, http = peers.free_port(), peers.free_port(), peers.free_port()
        server = await peers.start(
            self,
            sys.executable,
            *("-m", "twisted", "--log-format", "text", "dicom", "--storage", folder / "storage", "--workers", "2"),
            *("--port", f"tcp:{port}:interface=127.0.0.1", "--http", f"tcp:{http}:interface=127.0.0.1"),
            *("--viewer", folder / "dist", "--viewer-http", f"tcp:{self.viewer}:interface=127.0.0.1"),
            *("--http-max-body", "1000", "--http-idle-timeout", "none", "--image-processes", "0"),
            ready=self.viewer,
            timeout=60,
        )
        await server.until(lambda: "all 2 workers are ready" in server.text, 60, "its workers")
        for _ in range(2):
            self.assertEqual(await self.ask("GET", "/viewer"), (200, b"<p>the viewer</p>"))
            self.assertEqual(await self.ask("GET", "/dicom-web/studies"), (200, b"[]"))
            self.assertEqual(await self.ask("GET", "/dicom-web/studies", port=http), (200, b"[]"))
            self.assertEqual((await self.ask("GET", "/viewer", port=http))[0], 404)
            self.assertEqual((await self.ask("POST", "/dicom-web/studies", bytes(1001)))[0], 413)
            os.kill(server.pid, signal.SIGHUP)
            await server.until(lambda: "reloaded" in server.text, 30, "the reload")
        os.kill(server.pid, signal.SIGUSR1)
        mark = "0 associations, 0 connections, 0 HTTP connections; since the start"
        await server.until(lambda: server.text.count(mark) >= 3, 60, "a line of each process")
        self.assertEqual((await server.stop()).code, 0, server.text)
        self.assertNotIn("Traceback", server.text)
        self.assertNotIn("Unhandled", server.text)
