"""Notifications of twist dicom to the service manager (sd_notify(3))."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from uuid import uuid4

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from dicomtwist.daemon.notify import EXTEND_EVERY, Notifier
from tests import peers


class Server(TestCase):
    timeout = 180

    async def check(self, address: str, variable: str, *options: str) -> None:
        """Start a server, reload it with a mistake in its configuration and without, and stop it."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        file = folder / "archive.toml"
        text = f'storage = "{folder}/archive"\nport = "tcp:0:interface=127.0.0.1"\ngrace = 1\n'
        file.write_text(text)
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(manager.close)
        manager.bind(address)
        manager.settimeout(60)

        async def told() -> str:
            while (text := (await deferToThread(manager.recv, 4096)).decode()).startswith("EXTEND_TIMEOUT_USEC="):
                pass  # the machine is slow
            return text

        arguments = ["-m", "twisted", "dicom", "--config", file, *options]
        server = await peers.start(self, sys.executable, *arguments, env={"NOTIFY_SOCKET": variable})
        self.assertEqual(await told(), "READY=1")
        self.assertIn("listens at", server.text)
        for content in (text, text + "nonsense = 1\n"):
            file.write_text(content)
            server.signal("HUP")
            self.assertRegex(await told(), r"\ARELOADING=1\nMONOTONIC_USEC=\d+\Z")
            self.assertEqual(await told(), "READY=1")
        server.signal("TERM")
        self.assertEqual(await told(), "STOPPING=1")
        self.assertEqual((await server.wait(60)).code, 0, server.text)
        manager.setblocking(False)
        self.assertRaises(BlockingIOError, manager.recv, 4096)

    async def test_path(self) -> None:
        # Addresses have at most 108 bytes, fewer than the path of a test's folder may have.
        name = f"/tmp/dicomtwist-{uuid4().hex[:8]}"
        self.addCleanup(lambda: Path(name).unlink(missing_ok=True))
        await self.check(name, name)

    async def test_abstract_with_workers(self) -> None:
        """The supervisor alone notifies."""
        name = f"dicomtwist-{uuid4().hex}"
        await self.check("\0" + name, "@" + name, "--workers", "2")


class Notifications(SynchronousTestCase):
    def setUp(self) -> None:
        self.sent: list[str] = []
        self.notifier = Notifier({})
        self.patch(self.notifier, "_send", lambda state: self.sent.append(state.partition("=")[0]))

    def test_overlapping_reloads(self) -> None:
        """The server is ready when the last one has ended, successfully or not."""
        first: Deferred[None] = Deferred()
        second: Deferred[None] = Deferred()
        results = [self.notifier.during(lambda: first), self.notifier.during(lambda: second)]
        first.callback(None)
        self.assertEqual(self.sent, ["RELOADING", "RELOADING"])
        second.errback(ValueError())
        self.assertEqual(self.sent, ["RELOADING", "RELOADING", "READY"])
        self.successResultOf(results[0])
        self.failureResultOf(results[1], ValueError)

    def test_long_start(self) -> None:
        """The manager is asked to wait until the server is ready, or stops."""
        for end in (self.notifier.ready, self.notifier.stopping):
            self.sent.clear()
            self.notifier._address = "@manager"
            clock = Clock()
            self.notifier.starting(clock)
            clock.pump([EXTEND_EVERY] * 3)
            self.assertEqual(self.sent, ["EXTEND_TIMEOUT_USEC"] * 3)
            end()
            self.assertEqual(clock.getDelayedCalls(), [])

    def test_manager_that_is_gone(self) -> None:
        """An address that nobody reads, or that is invalid, changes nothing."""
        for address in ("", "/nonexistent/socket", "@" + "x" * 200, "vsock:2:1"):
            notifier = Notifier({"NOTIFY_SOCKET": address})
            notifier.ready()
            self.assertEqual(self.successResultOf(notifier.during(lambda: succeed(1))), 1)
            notifier.stopping()
