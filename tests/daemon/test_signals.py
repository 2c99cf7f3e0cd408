"""Signals of ``twist dicom`` at any time, and the deadline of its stop."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.ae.server import CLOSE_SECONDS
from dicomtwist.daemon.archive_service import LATE
from dicomtwist.ul.items import ProposedContext, UserInformation
from dicomtwist.ul.pdu import AAssociateRQ
from tests import peers

VERIFICATION = "1.2.840.10008.1.1"

#: How long the tests wait for a process, in seconds; on a loaded machine its imports alone take a while.
PATIENCE = 120.0

#: ``twist dicom`` that waits at one place of its start until a file is there. It says when it has come to it.
PROGRAM = """
import builtins, importlib, importlib.abc, os, sys, time

place, go, *arguments = sys.argv[1:]

def wait():
    os.write(1, b"HERE\\n")
    while not os.path.exists(go):
        time.sleep(0.01)

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == place:
            wait()
        return None

sys.meta_path.insert(0, Finder())
if ":" in place:
    module, _, names = place.partition(":")
    *owner, name = names.split(".")

    class Patched(importlib.abc.MetaPathFinder):
        done = False

        def find_spec(self, imported, path, target=None):
            if imported == "dicomtwist.daemon.tap" and not self.done:
                self.done = True
                found = importlib.import_module(module)
                for part in owner:
                    found = getattr(found, part)
                original = getattr(found, name)

                def patched(*args, **kwargs):
                    wait()
                    return original(*args, **kwargs)

                setattr(found, name, patched)
            return None

    sys.meta_path.insert(0, Patched())

from twisted.application.twist._twist import Twist
Twist.main(["twist", "--log-format=text", "dicom", *arguments])
"""

#: ``twist dicom`` that sends signals to itself at one instant.
INSTANT = """
import builtins, os, signal, sys
from twisted.internet import reactor

place, sent, *arguments = sys.argv[1:]

def send(kill=os.kill, process=os.getpid(), numbers=[int(one) for one in sent.split(",")], write=os.write):
    write(1, b"SENT\\n")
    for number in numbers:
        kill(process, number)

def around(owner, name, before):
    original = getattr(owner, name)

    def patched(*args, **kwargs):
        if before:
            send()
        result = original(*args, **kwargs)
        if not before:
            send()
        return result

    setattr(owner, name, patched)

def end():
    reactor.callWhenRunning(reactor.callLater, 0, reactor.stop)

class Late:
    def __init__(self):
        self.send = send

    def __del__(self):
        self.send()

if place == "trigger":
    reactor.addSystemEventTrigger("during", "startup", send)
elif place == "running":
    reactor.callWhenRunning(send)
elif place == "timer":
    reactor.callWhenRunning(reactor.callLater, 0, send)
elif place == "stopped":
    reactor.addSystemEventTrigger("after", "shutdown", send)
    end()
elif place == "interpreter":
    builtins.late = Late()
    end()
else:
    moment, _, name = place.partition(" ")
    owner = reactor
    if name == "install":
        from twisted.internet import _signals
        owner = _signals._WithSignalHandling
    around(owner, name, moment == "before")

from twisted.application.twist._twist import Twist
Twist.main(["twist", "--log-format=text", "dicom", *arguments])
"""

#: The instants at which it does.
INSTANTS = (
    "before startRunning",
    "before install",
    "behind install",
    "trigger",
    "behind startRunning",
    "running",
    "timer",
    "stopped",
    "interpreter",
)

#: Places of the start: imports, the options, the folder, the index, the comparison of both, the services, the port.
PLACES = (
    "dicomtwist",
    "sqlalchemy",
    "dicomtwist.daemon.tap",
    "dicomtwist.daemon.configuration:add_configuration",
    "dicomtwist.archive.archive:Archive.open",
    "dicomtwist.archive.index.index:Index.__init__",
    "dicomtwist.archive.recovery:_merged",
    "dicomtwist.archive.server:ArchiveServer.start",
    "dicomtwist.service:DICOMService.startService",
)


class ProcessTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.storage = Path(self.mktemp())
        self.lines: list[str] = []
        self._output: Queue[str | None] = Queue()

    def run_process(self, command: Iterable[object]) -> None:
        self.process = subprocess.Popen(
            [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        output = self.process.stdout
        lines = self._output = Queue()

        def read() -> None:
            for line in output:
                lines.put(line)
            lines.put(None)  # the process, and those that it started, have ended

        reader = Thread(target=read, daemon=True)
        reader.start()

        def end() -> None:
            self.process.kill()
            self.process.wait()
            reader.join()
            output.close()

        self.addCleanup(end)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def until(self, text: str, times: int = 1) -> None:
        """Wait until the process has printed *text* that often."""
        deadline = time.monotonic() + PATIENCE
        while self.text.count(text) < times:
            try:
                line = self._output.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise AssertionError(f"{text!r} did not come:\n{self.text}") from None
            if line is None:
                raise AssertionError(f"the process ended before {text!r} came:\n{self.text}")
            self.lines.append(line)

    def ended(self) -> int:
        """Wait for the end of the process, and return its exit status."""
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the process did not end:\n{self.text}") from None
        while (line := self._output.get(timeout=PATIENCE)) is not None:
            self.lines.append(line)
        return status

    def start(self, *options: object) -> int:
        """Start a server and return its port."""
        port = peers.free_port()
        command = (sys.executable, "-m", "twisted", "--log-format=text", "dicom", "--storage", self.storage)
        self.run_process([*command, *options, "--port", f"tcp:{port}:interface=127.0.0.1"])
        self.until("listens at")
        return port


class DuringTheStart(ProcessTestCase):
    def begin(self, place: str, *options: object) -> Path:
        """Run a server until it comes to *place*; return the file for which it waits."""
        go = Path(self.mktemp())
        port = f"tcp:{peers.free_port()}:interface=127.0.0.1"
        self.run_process(
            [sys.executable, "-c", PROGRAM, place, go, "--storage", self.storage, "--port", port, *options]
        )
        self.lines.clear()
        self.until("HERE")
        return go

    def test_sigterm(self) -> None:
        for place in PLACES:
            with self.subTest(place=place):
                self.begin(place)
                self.process.terminate()
                self.assertEqual(self.ended(), 0, self.text)
                self.assertNotIn("Traceback", self.text)
                self.assertNotIn("Unhandled", self.text)

    def test_sighup_and_sigusr1(self) -> None:
        """They are handled when the server runs."""
        for place in (*PLACES[:2], *PLACES[-3:]):
            with self.subTest(place=place):
                go = self.begin(place)
                for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGHUP):
                    self.process.send_signal(number)
                go.touch()
                self.until("reloaded")
                self.until("0 associations, 0 connections")
                self.process.terminate()
                self.assertEqual(self.ended(), 0, self.text)
                self.assertNotIn("Traceback", self.text)

    def test_a_supervisor_and_its_workers(self) -> None:
        go = self.begin("dicomtwist.daemon.workers:Workers.start", "--workers", "2")
        for number in (signal.SIGHUP, signal.SIGUSR1):
            self.process.send_signal(number)
        go.touch()
        self.until("reloaded", 3)
        self.until("0 associations, 0 connections", 3)
        self.process.terminate()
        self.assertEqual(self.ended(), 0, self.text)

    def test_sigterm_when_the_workers_start(self) -> None:
        go = self.begin("dicomtwist.daemon.workers:Workers.start", "--workers", "2")
        self.process.terminate()
        go.touch()
        self.assertEqual(self.ended(), 0, self.text)
        self.assertNotIn("Traceback", self.text)

    def test_an_ignored_signal_stays_ignored_until_the_server_runs(self) -> None:
        """As under nohup."""
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        go = self.begin("sqlalchemy")
        self.process.send_signal(signal.SIGHUP)
        go.touch()
        self.until("listens at")
        self.process.terminate()
        self.assertEqual(self.ended(), 0, self.text)
        self.assertNotIn("reloaded", self.text)

    def test_while_the_reactor_starts(self) -> None:
        """
        The program stops for itself at each place where the reactor starts: before, in and behind the installation of its
        handlers, in the first functions that it calls, and while the interpreter ends.
        """
        for numbers in ([signal.SIGTERM], [signal.SIGHUP, signal.SIGTERM], [signal.SIGUSR1, signal.SIGTERM]):
            for place in INSTANTS:
                with self.subTest(place=place, numbers=numbers):
                    port = f"tcp:{peers.free_port()}:interface=127.0.0.1"
                    sent = ",".join(str(int(number)) for number in numbers)
                    command = (sys.executable, "-c", INSTANT, place, sent)
                    self.run_process([*command, "--storage", self.storage, "--port", port])
                    self.lines.clear()
                    self.assertEqual(self.ended(), 0, self.text)
                    self.assertIn("SENT", self.text)
                    self.assertNotIn("Traceback", self.text)
                    self.assertNotIn("Unhandled", self.text)


class Stop(ProcessTestCase):
    """The peers here are sockets that never close, and never answer an A-ABORT."""

    def connect(self, port: int, *, established: bool = True) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.addCleanup(connection.close)
        if established:
            self.associate(connection)
        return connection

    def associate(self, connection: socket.socket) -> None:
        information = UserInformation(maximum_length=0, implementation_class_uid="1.2.3")
        context = ProposedContext(1, VERIFICATION, ("1.2.840.10008.1.2",))
        connection.sendall(AAssociateRQ("ANY-SCP", "DEAF", (context,), information).encode())
        self.assertEqual(connection.recv(1), b"\2")

    def check_stop(self, grace: float) -> None:
        """Check that the process ends with status 0 before a stop is late, whatever the ACSE timeout is."""
        since = time.monotonic()
        self.process.terminate()
        self.assertEqual(self.ended(), 0, self.text)
        self.assertLess(time.monotonic() - since, grace + CLOSE_SECONDS + LATE)
        self.assertNotIn("is late", self.text)
        self.assertNotIn("Traceback", self.text)

    def test_peers_that_ignore_the_abort(self) -> None:
        port = self.start("--grace", "0.5", "--acse-timeout", "none")
        for _ in range(3):
            self.connect(port)
        half_closed = self.connect(port)
        half_closed.shutdown(socket.SHUT_WR)
        self.connect(port, established=False)
        half_a_request = self.connect(port, established=False)
        half_a_request.sendall(b"\1\0\0\0\1\0")
        self.check_stop(0.5)

    def test_peers_with_tls(self) -> None:
        found = peers.certificates()
        port = peers.free_port()
        self.start(
            *("--grace", "0.5", "--acse-timeout", "none", "--port"),
            f"dicomtls:{port}:interface=127.0.0.1:privateKey={found.server_key}:certKey={found.server_cert}"
            f":trustRoots={found.ca}",
        )
        if "2 ports" not in self.text:
            self.until("listens at", 2)
        context = ssl.create_default_context(cafile=str(found.ca))
        context.check_hostname = False
        context.load_cert_chain(str(found.client_cert), str(found.client_key))
        plain = self.connect(port, established=False)
        secure = context.wrap_socket(plain)
        self.addCleanup(secure.close)
        self.associate(secure)
        # One in the handshake, which has sent a part of its ClientHello.
        silent = self.connect(port, established=False)
        silent.sendall(b"\x16\3\1\0\xc8")
        self.check_stop(0.5)

    def test_workers(self) -> None:
        port = self.start("--grace", "0.5", "--acse-timeout", "none", "--workers", "2")
        self.until("all 2 workers are ready")
        for _ in range(4):
            self.connect(port)
        self.check_stop(0.5)

    def test_sigterm_twice(self) -> None:
        port = self.start("--grace", "1")
        self.connect(port)
        self.process.terminate()
        with closing(self.connect_until_refused(port)):
            self.process.terminate()
        self.assertEqual(self.ended(), 0, self.text)
        self.assertNotIn("Traceback", self.text)

    def test_sigint_twice(self) -> None:
        """So it is with Ctrl-C."""
        self.check_two(signal.SIGINT, signal.SIGINT, -signal.SIGINT)

    def test_sigint_behind_sigterm(self) -> None:
        self.check_two(signal.SIGTERM, signal.SIGINT, 0)

    def check_two(self, first: int, second: int, expected: int) -> None:
        port = self.start("--grace", "1")
        self.connect(port)
        self.process.send_signal(first)
        with closing(self.connect_until_refused(port)):
            self.process.send_signal(second)
        self.assertEqual(self.ended(), expected, self.text)
        self.assertNotIn("Traceback", self.text)

    def connect_until_refused(self, port: int) -> socket.socket:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
            except OSError:
                return socket.socket()

    def test_what_hangs_does_not_hold_the_process(self) -> None:
        """A stop that waits for ever ends with the deadline, by SIGKILL; here a thread that the reactor would join."""
        program = """
import os, time
from twisted.internet import reactor
from dicomtwist.daemon import signals
signals.STOP_SECONDS = 0.1
signals.limit_stop(reactor, lambda: 0.1)
reactor.callInThread(time.sleep, 3600)
reactor.callWhenRunning(reactor.stop)
reactor.run()
"""
        self.run_process([sys.executable, "-c", program])
        self.assertEqual(self.ended(), -signal.SIGKILL)
        self.assertIn("the stop is late", self.text)

    def test_without_a_grace(self) -> None:
        """Associations have no limit, but all that is still under way when they have ended has one."""
        port = peers.free_port()
        empty = Path(self.mktemp())
        empty.mkdir()
        program = f"""
import time
from dicomtwist.daemon import archive_service, signals
signals.STOP_SECONDS, archive_service.LATE = 1.0, 0.1
archive_service.import_folder = lambda *arguments, **names: time.sleep(3600)
from twisted.application.twist._twist import Twist
Twist.main(["twist", "--log-format=text", "dicom", "--grace", "none", "--storage", {str(self.storage)!r},
    "--import", {str(empty)!r}, "--port", "tcp:{port}:interface=127.0.0.1"])
"""
        self.run_process([sys.executable, "-c", program])
        self.until("listens at")
        with closing(self.connect(port)) as connection:
            self.process.terminate()
            self.connect_until_refused(port)
            self.assertRaises(subprocess.TimeoutExpired, self.process.wait, 3.0)
            self.assertNotIn("is late", self.text)
            connection.sendall(b"\5\0\0\0\0\4\0\0\0\0")
        self.assertEqual(self.ended(), 0, self.text)
        self.assertIn("the stop is late, and does not wait for what is still under way", self.text)

    def test_the_deadline_without_a_grace(self) -> None:
        """It counts from the end of the associations."""
        program = """
import time
from twisted.internet import reactor, task
from dicomtwist.daemon import signals
signals.STOP_SECONDS = 0.1
drained = signals.limit_stop(reactor, lambda: None)
reactor.addSystemEventTrigger("before", "shutdown", task.deferLater, reactor, 0.5, print, "drained", flush=True)
reactor.addSystemEventTrigger("during", "shutdown", drained)
reactor.addSystemEventTrigger("during", "shutdown", time.sleep, 3600)
reactor.callWhenRunning(reactor.stop)
reactor.run()
"""
        self.run_process([sys.executable, "-c", program])
        self.assertEqual(self.ended(), -signal.SIGKILL)
        self.assertIn("drained", self.text)
        self.assertIn("the stop is late", self.text)
