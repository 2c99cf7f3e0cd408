"""The log of ``twist dicom``: JSON off a terminal, text on one, what an association was about, and its bounds."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

from pydicom import Dataset
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import SynchronousTestCase, TestCase

from dicomtwist import AE, AssociationRejected, UserIdentity, evt
from dicomtwist.daemon.log_options import LogFile, set_log
from dicomtwist.logs import JSONLog, LimitedByPeer, TextLog
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelFind as FIND
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelMove as MOVE
from dicomtwist.sop_class import Verification
from dicomtwist.ul.items import ProposedContext
from dicomtwist.ul.pdu import AAssociateRQ
from tests import peers
from tests.archive.samples import SECONDARY_CAPTURE, dataset
from tests.archive.test_no_room import disk, fill
from tests.daemon import test_twist_dicom

EXPLICIT = "1.2.840.10008.1.2.1"


class LogTestCase(TestCase):
    timeout = 180

    def setUp(self) -> None:
        self.storage = Path(self.mktemp())
        self.ae = AE("CT1")
        for uid in (Verification, FIND, MOVE):
            self.ae.add_requested_context(uid)
        self.ae.add_requested_context(SECONDARY_CAPTURE, EXPLICIT)

    async def start(self, *options: object, twist: tuple[str, ...] = ()) -> None:
        self.port = peers.free_port()
        port = f"tcp:{self.port}:interface=127.0.0.1"
        command = (sys.executable, "-m", "twisted", *twist, "dicom", "--storage", self.storage, "--port", port)
        self.server = await peers.start(self, *map(str, (*command, *options)), ready=self.port, timeout=60)

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the log, each a JSON object without control characters."""
        found = []
        for line in bytes(self.server.stdout).decode("ascii").splitlines():
            self.assertTrue(line.isprintable(), line)
            found.append(json.loads(line))
            self.assertTrue(found[-1]["message"].isprintable())
            self.assertLess(len(line), 8192)
        return found

    async def line(self, text: str) -> dict[str, Any]:
        """Wait for the line whose message has *text*."""
        await self.server.until(lambda: any(text in line["message"] for line in self.lines()), 30, f"{text!r}")
        return next(line for line in self.lines() if text in line["message"])


class JSON(LogTestCase):
    async def test_association(self) -> None:
        """The line of an association says what was asked for, in words and as fields."""
        received: list[Any] = []

        def store(event: Any) -> int:
            received.append(event)
            return 0

        destination = AE("WS1")
        destination.add_supported_context(SECONDARY_CAPTURE, EXPLICIT)
        handlers = [(evt.EVT_C_STORE, store)]
        listening = await destination.start_server(("127.0.0.1", 0), evt_handlers=handlers)
        self.addCleanup(listening.shutdown)
        await self.start("--peer", f"WS1=127.0.0.1:{listening.port}")
        async with await self.ae.associate("127.0.0.1", self.port, ae_title="ARCHIVE") as assoc:
            for number in range(3):
                self.assertEqual(await assoc.send_c_store(dataset(number)), 0)
            keys = Dataset()
            keys.QueryRetrieveLevel, keys.StudyInstanceUID = "IMAGE", "1.2.1"
            keys.SeriesInstanceUID, keys.SOPInstanceUID = "1.2.1.1", ""
            await assoc.send_c_find(keys, FIND).collect()
            keys = Dataset()
            keys.QueryRetrieveLevel, keys.StudyInstanceUID = "STUDY", "1.2.1"
            self.assertEqual((await assoc.send_c_move(keys, "WS1", MOVE).when_done()).status, 0)
        self.assertEqual(len(received), 3)
        line = await self.line("called 'ARCHIVE'")
        self.assertIn(
            "'CT1' at 127.0.0.1 called 'ARCHIVE': 3 C-STORE, 1 C-FIND, 1 C-MOVE; 3 matches, 3 instances stored,"
            " 3 instances sent, 1 study, to 'WS1'; ",
            line["message"],
        )
        self.assertTrue(line["message"].endswith("; released"))
        self.assertEqual((line["peer"], line["address"], line["level"]), ("CT1", "127.0.0.1", "info"))
        self.assertEqual((line["called"], line["studies"], line["matches"]), ("ARCHIVE", 1, 3))
        self.assertEqual((line["instances_stored"], line["instances_sent"], line["destinations"]), (3, 3, ["WS1"]))
        self.assertGreater(line["bytes_received"], 1000)
        self.assertGreater(line["seconds"], 0)
        self.assertIsInstance(line["association"], int)
        for line in self.lines():
            self.assertLessEqual({"time", "level", "message", "association", "peer", "address"}, line.keys())

    async def test_refused_contexts(self) -> None:
        """They are in the ordinary log, with the reason, and the names of patients in place of UIDs are not."""
        await self.start()
        contexts = [ProposedContext(1, FIND, ("1.2.840.10008.1.2.4.90", "S3cret^Name"))]
        contexts += [
            ProposedContext(3 + 2 * number, f"1.2.840.10008.1.20.{number}", (EXPLICIT,)) for number in range(20)
        ]
        request = AAssociateRQ("A", "EVIL\x1b[2J", tuple(contexts))
        client = await test_twist_dicom.connect(self.port, request.encode())
        await client.answered
        client.transport.loseConnection()  # type: ignore[union-attr]
        self.assertEqual(client.received[0], 3)  # a title with a control character
        request = AAssociateRQ("A", 'it\'s "me"', tuple(contexts))
        client = await test_twist_dicom.connect(self.port, request.encode())
        await client.answered
        client.transport.loseConnection()  # type: ignore[union-attr]
        line = await self.line("of 21 presentation contexts not accepted: ")
        self.assertEqual(line["peer"], 'it\'s "me"')
        self.assertIn("none of its transfer syntaxes is supported: JPEG 2000 Image Compression", line["message"])
        self.assertIn("an invalid UID of 11 characters", line["message"])
        self.assertNotIn("S3cret", self.server.text)

    async def test_flood(self) -> None:
        """A peer that connects again and again has --log-rate lines in a minute, and a trace is not cut."""
        await self.start("--log-rate", "20", "--max-association-rate", "30")

        async def again() -> None:
            for _ in range(25):
                try:
                    async with await self.ae.associate("127.0.0.1", self.port):
                        pass
                except AssociationRejected:
                    pass

        await gatherResults([Deferred.fromCoroutine(again()) for _ in range(4)])
        told = await self.line("more than 20 lines in a minute")
        self.assertEqual(told["address"], "127.0.0.1")
        of_peer = [line for line in self.lines() if line["address"] == "127.0.0.1"]
        self.assertLessEqual(len(of_peer), 2 * (20 + 2))  # a new minute may begin meanwhile

    async def test_trace(self) -> None:
        """It names the access rules, shows each message, and no secret; its lines are JSON as well."""
        configuration = Path(self.mktemp())
        configuration.write_text(
            'trace = true\n[[access.rule]]\nname = "the scanners"\ncalling = "CT*"\nallow = ["echo"]\n'
            '[[access.rule]]\nname = "nobody"\ncalling = "X"\nallow = "all"\n'
        )
        await self.start("--config", configuration)
        identity = UserIdentity(2, b"alice", b"S3cretWord")
        async with await self.ae.associate("127.0.0.1", self.port, ext_neg=[identity]) as assoc:
            await assoc.send_c_echo()
            self.assertEqual(await assoc.send_c_store(dataset(1)), 0x0124)
        await self.line("C-STORE-RSP 2: 0x0124")
        line = await self.line("'the scanners'")
        self.assertIn("matches, and allows echo", line["message"])
        self.assertEqual(line["logger"], "dicomtwist.trace")
        self.assertNotIn("'nobody' matches", self.server.text)
        await self.line("no rule allows store")
        await self.line("user name and passcode, 'alice' (the passcode is not shown)")
        self.assertEqual((await self.line("<- C-ECHO-RQ 1"))["association"], line["association"])
        await self.line("A-RELEASE-RP")
        self.assertNotIn("S3cret", self.server.text)

    async def test_workers(self) -> None:
        """The processes write whole lines, each with its process ID."""
        await self.start("--workers", "2")
        await self.line("all 2 workers are ready")
        async with await self.ae.associate("127.0.0.1", self.port) as assoc:
            await assoc.send_c_store(dataset(1))
        await self.line("1 C-STORE")
        result = await self.server.stop()
        self.assertEqual(result.code, 0)
        self.assertGreater(len({line["process"] for line in self.lines()}), 1)


class Formats(LogTestCase):
    async def test_chosen(self) -> None:
        """The option behind ``dicom`` takes precedence over that of ``twist``."""
        for twist, options, is_json in (
            ((), (), True),
            ((), ("--log-format", "text"), False),
            (("--log-format=text",), (), False),
            (("--log-format=json",), (), True),
            (("--log-format=text",), ("--log-format", "json"), True),
        ):
            await self.start(*options, twist=twist)
            # The port may be open before the first line of the log has come through the pipe.
            await self.server.stop()
            first = bytes(self.server.stdout).splitlines()[0]
            self.assertEqual(first.startswith(b'{"time": "'), is_json, first)

    async def terminal(self, *options: str, twist: tuple[str, ...] = ()) -> list[str]:
        """Serve an association with the output on a terminal; return its lines."""
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        port = peers.free_port()
        command = (sys.executable, "-m", "twisted", *twist, "dicom", *options, "--storage", str(self.storage))
        with subprocess.Popen(
            (*command, "--port", f"tcp:{port}:interface=127.0.0.1"),
            stdout=theirs,
            env={**os.environ, "COLUMNS": "70"},
        ) as process:
            try:
                await peers.wait_listening(port)
                async with await self.ae.associate("127.0.0.1", port) as assoc:
                    await assoc.send_c_echo()
            finally:
                process.terminate()
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # a terminal that is closed
            while data := os.read(ours, 65536):
                text += data
        return text.decode().split("\r\n")

    async def test_terminal(self) -> None:
        """On a terminal it is text, in lines that fit."""
        lines = await self.terminal("--trace")
        self.assertTrue(any("context 1: Verification SOP Class" in line for line in lines))
        self.assertEqual([line for line in lines if len(line) > 70], [])
        self.assertRegex(lines[0], r"^\d\d:\d\d:\d\d\.\d{3} ")

    async def test_file_beside_a_terminal(self) -> None:
        """A file gets JSON, unless text is asked for."""
        for options, is_json in (((), True), (("--log-format=text",), False)):
            file = Path(self.mktemp())
            await self.terminal(twist=(f"--log-file={file}", *options))
            self.assertEqual(file.read_text().startswith('{"time"'), is_json)

    def test_mistake(self) -> None:
        result = subprocess.run(
            (sys.executable, "-m", "twisted", "dicom", "--log-format", "xml", "--storage", str(self.storage)),
            capture_output=True,
            check=False,
        )
        self.assertEqual(result.returncode, 64)
        self.assertIn(b"--log-format is text or json, not 'xml'", result.stderr)

    def test_options_of_twist(self) -> None:
        """The observer is made from the options of ``twist``; worker processes get the format from there."""
        for chosen, name, kind in ((None, "text", TextLog), ("json", "json", JSONLog)):
            twist: dict[str, Any] = {"logFormat": "text"}
            set_log(twist, chosen, 5)
            self.assertEqual(twist["logFormat"], name)
            with open(os.devnull, "w", encoding="utf-8") as file:
                made = twist["fileLogObserverFactory"](file)
            self.assertIsInstance(made, LimitedByPeer)
            self.assertIsInstance(made._formatter, kind)
        set_log(None, "json", 5)


class WhatAnOperatorAsks(LogTestCase):
    async def test_an_instance_that_is_not_stored(self) -> None:
        """The line names the instance. No line of Twisted's about ports is between ours."""
        await self.start("--duplicates", "reject")
        async with await self.ae.associate("127.0.0.1", self.port) as assoc:
            self.assertEqual(await assoc.send_c_store(dataset(1)), 0x0000)
            self.assertEqual(await assoc.send_c_store(dataset(1)), 0x0111)
        line = await self.line("was not stored, status 0x0111")
        self.assertEqual(line["instance"], "1.2.1.1.1")
        self.assertIn("the instance 1.2.1.1.1 from 'CT1' was not stored", line["message"])
        self.assertEqual([one["message"] for one in self.lines() if "starting on" in one["message"]], [])


class FullDisk(LogTestCase):
    async def test_one_line(self) -> None:
        """It names the folder and the free space, once a minute, however many instances are refused."""
        folder = disk(self, "16m")
        self.storage = folder / "archive"
        await self.start("--min-free", "0")
        filler = fill(folder)
        self.addCleanup(filler.unlink)
        refused = 0
        for _ in range(3):
            async with await self.ae.associate("127.0.0.1", self.port) as assoc:
                for number in range(30):
                    refused += await assoc.send_c_store(dataset(number)) == 0xA700
        self.assertGreater(refused, 60)
        line = await self.line("there is no room in ")
        self.assertEqual(line["folder"], str(self.storage))
        self.assertIn("bytes free", line["message"])
        self.assertEqual(line["level"], "error")
        self.assertLess(line["free"], 10_000)
        await self.line("30 C-STORE (30 failed)")
        self.assertEqual(len([one for one in self.lines() if one["level"] in ("error", "critical", "warn")]), 1)


class LittleRoom(LogTestCase):
    async def test_at_the_start(self) -> None:
        """A start says that everything will be refused; a refusal says why, without the number of the error."""
        await self.start("--min-free", "900000G")
        line = await self.line("free, less than --min-free (966.4 TB): instances are refused")
        self.assertEqual(line["level"], "warn")
        async with await self.ae.associate("127.0.0.1", self.port) as assoc:
            self.assertEqual(await assoc.send_c_store(dataset(1)), 0xA700)
        line = await self.line("there is no room in ")
        self.assertTrue(line["message"].endswith(": less than --min-free (921600000 MiB) is free"), line)


class Rotation(LogTestCase):
    """logrotate renames the file, and sends SIGHUP."""

    async def test_workers(self) -> None:
        """All processes write to the new file, also if the configuration has a mistake, which the log says there."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        configuration, log = folder / "archive.toml", folder / "archive.log"
        configuration.write_text("")
        await self.start("--workers", "2", "--config", configuration, twist=(f"--log-file={log}",))

        def messages() -> list[str]:
            return [json.loads(line)["message"] for line in log.read_text().splitlines()] if log.exists() else []

        def has(count: int, text: str) -> bool:
            return sum(text in one for one in messages()) >= count

        await self.server.poll(lambda: has(1, "all 2 workers are ready"), "the workers")
        log.rename(folder / "archive.log.1")
        before = (folder / "archive.log.1").read_bytes()
        configuration.write_text("nonsense = 1")
        self.server.signal("HUP")
        await self.server.poll(lambda: has(3, "opened the log file"), "the new file")
        await self.server.poll(lambda: has(1, "the reload failed, nothing is changed: "), "the mistake")
        async with await self.ae.associate("127.0.0.1", self.port) as assoc:
            await assoc.send_c_echo()
        await self.server.poll(lambda: has(1, "1 C-ECHO"), "the line of the association")
        self.assertEqual((folder / "archive.log.1").read_bytes(), before)


class Reopening(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.file = self.path.open("a")
        self.addCleanup(self.file.close)

    def test_renamed(self) -> None:
        self.file.write("one")
        self.path.rename(f"{self.path}.1")
        LogFile(self.file).reopen()
        self.file.write("two")
        self.file.flush()
        self.assertEqual((Path(f"{self.path}.1").read_text(), self.path.read_text()), ("one", "two"))
        self.assertFalse(os.get_inheritable(self.file.fileno()))

    def test_a_full_disk(self) -> None:
        """The new file may be where there is room; it gets what the old one did not take."""

        def flush() -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.file.write("one")
        self.path.rename(f"{self.path}.1")
        with mock.patch.object(self.file, "flush", flush):
            LogFile(self.file).reopen()
        self.file.flush()
        self.assertEqual((Path(f"{self.path}.1").read_text(), self.path.read_text()), ("", "one"))

    def test_as_it_was(self) -> None:
        """A reload without a rotation changes nothing."""
        self.file.write("one")
        LogFile(self.file).reopen()
        self.file.write("two")
        self.file.flush()
        self.assertEqual(self.path.read_text(), "onetwo")

    def test_it_cannot_be_opened(self) -> None:
        """The log goes on in the old file."""
        self.path.rename(f"{self.path}.1")
        self.path.mkdir()
        LogFile(self.file).reopen()
        self.file.write("one")
        self.file.flush()
        self.assertEqual(Path(f"{self.path}.1").read_text(), "one")

    def test_no_file(self) -> None:
        """Streams stay as they are, pipes as well: to open one would wait for its reader."""
        os.mkfifo(f"{self.path}.pipe")
        reader = os.open(f"{self.path}.pipe", os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        pipe = Path(f"{self.path}.pipe").open("w")
        self.addCleanup(pipe.close)
        for file in (sys.stdout, sys.__stderr__, StringIO(), pipe):
            assert file is not None
            LogFile(file).reopen()
