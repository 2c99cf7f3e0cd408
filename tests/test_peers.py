"""The harness of the tests works: real peers talk to each other through it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import mock

from twisted.internet.defer import ensureDeferred
from twisted.trial.unittest import SkipTest, TestCase

from tests import peers

JPEG_LS_NEAR_LOSSLESS = "1.2.840.10008.1.2.4.81"


class ToolTests(TestCase):
    """
    Finding the tools.
    """

    def test_missing_skips(self) -> None:
        """
        A missing tool skips the test, visibly.
        """
        with mock.patch.dict(os.environ, {"CI": ""}):
            error = self.assertRaises(SkipTest, peers.require, "no-such-tool")
        self.assertIn("no-such-tool", str(error))

    def test_missing_fails_in_ci(self) -> None:
        """With ``CI=true`` in the environment a missing tool is a failure."""
        with mock.patch.dict(os.environ, {"CI": "true"}):
            self.assertRaises(peers.PeerError, peers.dcmtk, "no-such-tool")

    def test_not_a_script_of_the_same_name(self) -> None:
        """The console scripts of pynetdicom are not mistaken for DCMTK's tools."""
        path = Path(peers.dcmtk("storescp"))
        self.assertTrue(path.is_absolute())
        self.assertNotEqual(path.read_bytes()[:2], b"#!")


class ProcessTests(TestCase):
    """
    Running processes.
    """

    async def test_result(self) -> None:
        """The result has the exit code and both streams; the process gets the environment."""
        source = "import os, sys; print(os.environ['WORD']); print(*sys.argv[1:], file=sys.stderr); sys.exit(3)"
        result = await peers.run(sys.executable, "-c", source, Path("a"), 1, env={"WORD": "word"})
        self.assertEqual((result.code, result.stdout, result.stderr), (3, b"word\n", b"a 1\n"))
        self.assertEqual(result.text, "word\na 1\n")

    async def test_nodelay_can_be_left_out(self) -> None:
        """
        ``TCP_NODELAY`` is in the environment unless the test says otherwise.
        """
        source = "import os; print(os.environ.get('TCP_NODELAY'))"
        with_it = await peers.run(sys.executable, "-c", source)
        without = await peers.run(sys.executable, "-c", source, nodelay=False)
        self.assertEqual((with_it.stdout, without.stdout), (b"1\n", b"None\n"))

    async def test_timeout(self) -> None:
        """
        A process that does not end in time is killed.
        """
        with self.assertRaises(peers.PeerError) as raised:
            await peers.run(sys.executable, "-c", "import time; time.sleep(600)", timeout=0.2)
        self.assertIn("0.2 s without its end", str(raised.exception))

    async def test_ends_before_it_is_ready(self) -> None:
        """A server that does not start says why."""
        for ready in ("ready", peers.free_port()):
            with self.assertRaises(peers.PeerError) as raised:
                await peers.start(self, sys.executable, "-c", "raise SystemExit('no disk')", ready=ready)
            self.assertIn("no disk", str(raised.exception))

    async def test_ends_before_a_condition(self) -> None:
        """A wait for what a process does fails with its output when the process has ended."""
        source = "import sys; print('ready', flush=True); sys.stdin.read(1); raise SystemExit('no disk')"
        process = await peers.start(self, sys.executable, "-c", source, ready="ready")
        waiting = ensureDeferred(process.poll(lambda: False, "a file"))
        process.signal("KILL")
        with self.assertRaises(peers.PeerError) as raised:
            await waiting
        self.assertIn("ended before a file", str(raised.exception))
        self.assertIn("ready", str(raised.exception))
        await process.poll(lambda: True)

    async def test_a_child_holds_the_pipes(self) -> None:
        """A server that ignores SIGTERM, and whose child holds its pipes, can be stopped too."""
        source = (
            "import os, signal, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "if not os.fork(): time.sleep(2); os._exit(0)\n"
            "print('ready', flush=True); time.sleep(600)"
        )
        process = await peers.start(self, sys.executable, "-c", source, ready="ready")
        result = await process.stop(timeout=0.2)
        self.assertEqual(result.signal, 9)
        self.assertFalse(process.running)


class PortTests(TestCase):
    """Free ports."""

    def test_free_ports_differ(self) -> None:
        """
        No port is handed out twice.
        """
        self.assertEqual(len({peers.free_port() for _ in range(20)}), 20)

    async def test_nothing_listens(self) -> None:
        """Waiting for a server ends."""
        with self.assertRaises(peers.PeerError):
            await peers.wait_listening(peers.free_port(), timeout=0.1)


class FileTests(TestCase):
    """The files of pydicom."""

    def test_files(self) -> None:
        """There are many files of many kinds, and their data sets can be separated from the File Meta Information."""
        self.assertGreater(len(peers.dicom_files()), 60)
        self.assertGreater(len(peers.one_per_transfer_syntax()), 10)
        self.assertIn(JPEG_LS_NEAR_LOSSLESS, peers.one_per_transfer_syntax(without_study=True))
        for file in peers.dicom_files(without_study=True):
            # The first element of a data set is in a group above 2; if the data set is deflated, it may be anything.
            if file.transfer_syntax != "1.2.840.10008.1.2.1.99":
                self.assertNotEqual(peers.dataset_bytes(file.path)[:2], b"\x02\x00", file.name)


class DCMTKTests(TestCase):
    """DCMTK's tools talk to each other."""

    async def test_plain(self) -> None:
        """
        C-ECHO and C-STORE over TCP.
        """
        folder = Path(self.mktemp())
        port = await peers.dcmtk_storescp(self, folder, "+xa", "+B")
        echo = await peers.run(peers.dcmtk("echoscu"), "-v", "127.0.0.1", port)
        self.assertEqual(echo.code, 0, echo.text)
        file = peers.one_per_transfer_syntax()["1.2.840.10008.1.2.1"]
        store = await peers.run(peers.dcmtk("storescu"), "127.0.0.1", port, file.path)
        self.assertEqual(store.code, 0, store.text)
        (stored,) = folder.iterdir()
        self.assertEqual(peers.dataset_bytes(stored), peers.dataset_bytes(file.path))

    async def test_tls(self) -> None:
        """
        C-ECHO over mutual TLS, and no C-ECHO for a client whose certificate another authority signed.
        """
        pem = peers.certificates()
        server = ("+tls", pem.server_key, pem.server_cert, "+cf", pem.ca, "-rc")
        port = await peers.dcmtk_storescp(self, self.mktemp(), *server)
        echoscu = peers.dcmtk("echoscu")
        good = ("+tls", pem.client_key, pem.client_cert, "+cf", pem.ca)
        result = await peers.run(echoscu, "-v", *good, "localhost", port)
        self.assertEqual(result.code, 0, result.text)
        bad = ("+tls", pem.other_key, pem.other_cert, "+cf", pem.ca)
        result = await peers.run(echoscu, "-v", *bad, "localhost", port)
        self.assertNotEqual(result.code, 0, result.text)
        untrusting = ("+tls", pem.client_key, pem.client_cert, "+cf", pem.other_ca)
        result = await peers.run(echoscu, "-v", *untrusting, "localhost", port)
        self.assertNotEqual(result.code, 0, result.text)


SCP = """
import sys
from pynetdicom import AE, evt
ae = AE()
ae.add_supported_context("1.2.840.10008.1.1")
print("ready")
ae.start_server(("127.0.0.1", int(sys.argv[1])), evt_handlers=[(evt.EVT_C_ECHO, lambda event: 0)])
"""

SCU = """
import sys
from pynetdicom import AE
ae = AE()
ae.add_requested_context("1.2.840.10008.1.1")
association = ae.associate("127.0.0.1", int(sys.argv[1]))
print("status", association.send_c_echo().Status)
association.release()
"""


class PynetdicomTests(TestCase):
    """
    pynetdicom as a process of its own.
    """

    async def test_scp(self) -> None:
        """pynetdicom as a server."""
        port = peers.free_port()
        await peers.pynetdicom_script(self, SCP, port, ready=port)
        result = await peers.run(peers.dcmtk("echoscu"), "-v", "127.0.0.1", port)
        self.assertEqual(result.code, 0, result.text)

    async def test_scu(self) -> None:
        """pynetdicom as a client."""
        port = await peers.dcmtk_storescp(self, self.mktemp())
        process = await peers.pynetdicom_script(self, SCU, port)
        result = await process.wait()
        self.assertEqual((result.code, result.stdout), (0, b"status 0\n"), result.text)
