"""
The ``dicomtwist`` command as a process, with pipes or at a terminal.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, cast

from click.testing import CliRunner
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import UID
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from dicomtwist import AE, AllStoragePresentationContexts, Server, evt
from dicomtwist.presentation import ALL_TRANSFER_SYNTAXES
from dicomtwist.sop_class import Verification
from dicomtwist.tools.cli import dicomtwist
from tests import peers

reactor = cast(Any, _reactor)


class Terminal(peers.Process):
    """A process at a pseudo-terminal: what it prints on either stream is in ``stdout``."""

    def type(self, text: str) -> None:
        """Type *text*; Ctrl-C is ``"\\x03"``."""
        cast(Any, self.transport).write(text.encode())


class ToolTestCase(TestCase):
    """
    A test that runs the command.

    :ivar folder: an empty folder of its own.
    """

    # Each process takes a second to start, and many times that on a busy machine.
    timeout = 600

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()

    async def tool(self, *args: object, env: dict[str, str] | None = None) -> peers.Result:
        """Run the command to its end, with pipes for its output."""
        return await peers.run(sys.executable, "-m", "dicomtwist.tools", *args, env=env, timeout=120)

    async def json(self, *args: object, code: int) -> dict[str, Any]:
        """Run the command with ``--json`` and return its only document; check the exit status of process and document."""
        result = await self.tool(*args, "--json")
        self.assertEqual(result.code, code, result.text)
        self.assertEqual(result.stdout.count(b"\n"), 1, result.text)
        document: dict[str, Any] = json.loads(result.stdout)
        self.assertEqual(document["exit_status"], code)
        return document

    def misuse(self, *args: object) -> peers.Result:
        """Run a wrong command line in this process, which is faster and gives the same result."""
        result = CliRunner().invoke(dicomtwist, [str(arg) for arg in args], prog_name="dicomtwist")
        return peers.Result(result.exit_code, None, result.stdout.encode(), result.stderr.encode())

    async def start_tool(self, *args: object) -> peers.Process:
        """Start the command, with pipes for its output."""
        return await peers.start(self, sys.executable, "-m", "dicomtwist.tools", *args)

    def terminal(self, *args: object) -> Terminal:
        """Start the command at a terminal; the end of the test kills it."""
        return self.at_terminal([sys.executable, "-m", "dicomtwist.tools", *map(str, args)])

    def at_terminal(self, command: list[str], env: dict[str, str] | None = None) -> Terminal:
        """Start a program at a terminal; the end of the test kills it."""
        process = Terminal(command)
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40", **(env or {})}
        reactor.spawnProcess(process, command[0], command, env=env, path=os.getcwd(), usePTY=True)
        self.addCleanup(lambda: Deferred.fromCoroutine(process.stop("KILL")))
        return process

    async def serve(
        self, *handlers: Any, address: Any = ("127.0.0.1", 0), title: str = "SCP", **settings: Any
    ) -> Server:
        """Start a server in this process that accepts Verification and every storage class."""
        ae = AE(title)
        ae.requestor_order = True  # so that a test can choose what is accepted by what it proposes
        ae.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax or "", ALL_TRANSFER_SYNTAXES)
        for name, value in settings.items():
            assert hasattr(ae, name), name
            setattr(ae, name, value)
        self.addCleanup(ae.shutdown)
        return await ae.start_server(address, evt_handlers=handlers)

    async def twist_dicom(self, *options: str, tls: str = "") -> tuple[int, Path]:
        """
        Start ``twist dicom``; return its port and its folder.

        :param tls: the options of a port that speaks TLS, as an endpoint string has them; without them it speaks none.
        """
        port, storage = peers.free_port(), self.folder / "storage"
        endpoint = f"dicomtls:{port}:interface=127.0.0.1:{tls}" if tls else f"tcp:{port}:interface=127.0.0.1"
        arguments = ("-m", "twisted", "--log-format", "text", "dicom", "--storage", storage, "--port", endpoint)
        await peers.start(self, sys.executable, *arguments, *options, ready=port)
        return port, storage

    def instances(self, count: int, folder: Path | None = None) -> list[Path]:
        """Write *count* small CT images with different SOP Instance UIDs."""
        folder = folder or self.folder / "study"
        folder.mkdir(exist_ok=True)
        dataset = dcmread(str(get_testdata_file("CT_small.dcm")))
        paths = []
        for number in range(count):
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.826.0.1.{number}")
            paths.append(folder / f"{number}.dcm")
            dataset.save_as(paths[-1])
        return paths


class Stores:
    """
    A handler of C-STORE that records the SOP Instance UIDs, and can hold its responses back.

    :ivar uids: the SOP Instance UIDs that have arrived.
    :ivar status: the status of the responses.
    """

    def __init__(self, status: int = 0, *, holds: bool = False) -> None:
        self.uids: list[str] = []
        self.status = status
        self._holds = holds
        self._held: list[Deferred[int]] = []
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def __call__(self, event: evt.StoreEvent) -> int | Deferred[int]:
        """Handle a C-STORE."""
        self.uids.append(event.request.affected_sop_instance_uid)
        result: int | Deferred[int] = self.status
        if self._holds:
            result = Deferred()
            self._held.append(result)
        for count, waiting in [entry for entry in self._waiting if entry[0] <= len(self.uids)]:
            self._waiting.remove((count, waiting))
            waiting.callback(None)
        return result

    async def wait(self, count: int) -> None:
        """Wait until *count* requests have arrived."""
        if len(self.uids) < count:
            waiting: Deferred[None] = Deferred()
            self._waiting.append((count, waiting))
            await waiting.addTimeout(60, reactor)

    def answer(self) -> None:
        """Answer the held requests, and answer further ones at once."""
        self._holds = False
        held, self._held = self._held, []
        for deferred in held:
            deferred.callback(self.status)
