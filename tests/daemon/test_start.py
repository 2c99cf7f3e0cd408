"""A start that takes long, as that of a large archive does: health and metrics by HTTP before files and index are compared."""

from __future__ import annotations

import signal
import sys
from http.client import HTTPConnection
from pathlib import Path
from socket import create_connection, create_server
from typing import Any

from dicomtwist.archive.archive import Archive
from tests import peers
from tests.archive.samples import dataset, keep
from tests.daemon.test_signals import PROGRAM, ProcessTestCase

#: ``twist dicom`` whose comparison of files and index fails.
FAILING = """
import sys
from dicomtwist.archive import recovery
from dicomtwist.daemon import archive_service

def fail(*args, **kwargs):
    raise {error}

archive_service.reconcile = fail
from twisted.application.twist._twist import Twist
Twist.main(["twist", "--log-format=text", "dicom", *sys.argv[1:]])
"""


class LongStart(ProcessTestCase):
    def begin(self, *options: object) -> Path:
        """Run a server until it compares files and index; return the file for which it waits there."""
        go = Path(self.mktemp())
        self.port, self.http = peers.free_port(), peers.free_port()
        listen = "--port", f"tcp:{self.port}:interface=127.0.0.1", "--http", f"tcp:{self.http}:interface=127.0.0.1"
        place = "dicomtwist.archive.recovery:_merged"
        self.run_process([sys.executable, "-c", PROGRAM, place, go, "--storage", self.storage, *listen, *options])
        self.until("HERE")
        return go

    def get(self, path: str) -> Any:
        connection = HTTPConnection("127.0.0.1", self.http, timeout=60)
        self.addCleanup(connection.close)
        connection.request("GET", path)
        response: Any = connection.getresponse()
        response.text = response.read().decode()
        return response

    def check_starting(self) -> None:
        self.assertEqual(self.get("/health/live").status, 200)
        ready = self.get("/health/ready")
        self.assertEqual((ready.status, ready.text), (503, "the server is starting\n"))
        self.assertEqual(ready.headers["Retry-After"], "10")
        metrics = self.get("/metrics")
        self.assertEqual(metrics.status, 200)
        self.assertRegex(metrics.text, r"(?m)^dicomtwist_ready\{.*\} 0\.0$")
        for path in ("/dicom-web/studies", "/", "/api/archive", "/server"):
            answer = self.get(path)
            self.assertEqual(answer.status, 503, path)
            self.assertTrue(answer.headers["Retry-After"])

    def check_running(self) -> None:
        while (ready := self.get("/health/ready")).status != 200:
            self.assertEqual((ready.status, ready.text), (503, "the server is starting\n"))
        self.assertEqual(self.get("/dicom-web/studies").status, 200)
        create_connection(("127.0.0.1", self.port), timeout=60).close()

    def end(self) -> None:
        self.process.terminate()
        self.assertEqual(self.ended(), 0, self.text)
        self.assertNotIn("Traceback", self.text)

    def test_health(self) -> None:
        go = self.begin()
        self.check_starting()
        with self.assertRaises(ConnectionRefusedError):
            create_connection(("127.0.0.1", self.port), timeout=60)
        self.process.send_signal(signal.SIGUSR1)
        self.until("0 associations, 0 connections")
        go.touch()
        self.until("HTTP listens at")
        self.check_running()
        self.end()

    def test_workers(self) -> None:
        """The supervisor tells the health until its workers do."""
        go = self.begin("--workers", "2")
        self.check_starting()
        idle = create_connection(("127.0.0.1", self.http), timeout=60)
        self.addCleanup(idle.close)
        self.assertEqual(self.get("/health/live").status, 200)  # so the supervisor has the other connection as well
        go.touch()
        self.until("all 2 workers are ready")
        self.assertEqual(idle.recv(100), b"")
        for _ in range(8):
            self.check_running()
        self.end()

    def test_sigterm(self) -> None:
        """A stop does not wait for the comparison to end, and the next start begins it again."""
        archive = Archive(self.storage)
        archive.open()
        self.assertIsNone(keep(archive, dataset(1)))
        archive.close()
        go = self.begin("--audit", self.mktemp(), "--records", self.mktemp())
        self.process.terminate()
        with self.assertRaises(OSError):  # the stop has begun
            while True:
                create_connection(("127.0.0.1", self.http), timeout=60).close()
        go.touch()
        self.assertEqual(self.ended(), 0, self.text)
        self.assertNotIn("the archive has", self.text)
        self.assertNotIn("Traceback", self.text)

    def test_failure(self) -> None:
        """The program ends with one line and status 1."""
        for error, words in (
            ("OSError(5, 'Input/output error', 'archive/1.2')", "[Errno 5] Input/output error: 'archive/1.2'"),
            ("recovery.IndexFailed('the index refused')", "the index refused"),
        ):
            for options in ([], ["--workers", "2"]):
                with self.subTest(words=words, options=options):
                    http = f"tcp:{peers.free_port()}:interface=127.0.0.1"
                    port = f"tcp:{peers.free_port()}:interface=127.0.0.1"
                    program = FAILING.format(error=error)
                    listen = "--port", port, "--http", http
                    self.lines.clear()
                    self.run_process([sys.executable, "-c", program, "--storage", self.storage, *listen, *options])
                    self.assertEqual(self.ended(), 1, self.text)
                    self.assertIn(f"\ntwist dicom: {words}\n", "\n" + self.text)
                    self.assertNotIn("Traceback", self.text)

    def test_a_port_that_is_taken(self) -> None:
        with create_connection(("127.0.0.1", self.take())):
            self.assertEqual(self.ended(), 1, self.text)
        self.assertIn("twist dicom: Couldn't listen on 127.0.0.1:", self.text)
        self.assertNotIn("Traceback", self.text)

    def take(self) -> int:
        """Run a server at a port that another program has, and return it."""
        taken = create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        port = int(taken.getsockname()[1])
        command = (sys.executable, "-m", "twisted", "--log-format=text", "dicom", "--storage", self.storage)
        self.run_process([*command, "--port", f"tcp:{port}:interface=127.0.0.1"])
        return port
