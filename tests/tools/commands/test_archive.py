"""``dicomtwist archive``, at a running server and in the folder of a stopped one."""

from __future__ import annotations

import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from pydicom import dcmread
from twisted.internet import reactor as _reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol

from dicomtwist.archive.archive import Archive
from dicomtwist.tools.runners.archive import StoppedFolder, open_archive
from dicomtwist.tools.server.api import OperationFailed
from tests import peers
from tests.archive.samples import dataset, keep
from tests.tools.common import ToolTestCase

reactor: Any = _reactor


class Another(Protocol):
    """A server that sends the same to each request."""

    status = 200
    body = b""

    def dataReceived(self, data: bytes) -> None:
        wire: Any = self.transport
        wire.write(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%b" % (self.status, len(self.body), self.body))
        wire.loseConnection()


class Archives(ToolTestCase):
    async def lines(self, *arguments: Any, code: int = 0) -> list[dict[str, Any]]:
        """Run a subcommand with ``--json``; return what it prints."""
        result = await self.tool("archive", *arguments, "--json")
        self.assertEqual(result.code, code, result.text)
        return [json.loads(line) for line in result.stdout.decode().splitlines()]

    def make(self) -> Path:
        """Make an archive of three studies in a folder."""
        folder = self.folder / "storage"
        archive = Archive(folder)
        archive.open()
        for study in (1, 2, 3):
            for number in (1, 2):
                keep(archive, dataset(number, study=study))
        archive.close()
        return folder

    async def every_operation(self, place: tuple[Any, ...], storage: Path) -> None:
        """Run all operations but ``rebuild``; at the end study 1.2.3 is left."""
        (found,) = await self.lines("stat", *place)
        self.assertEqual((found["studies"], found["instances"], found["locked"]), (3, 6, 0))
        await self.lines("lock", *place, "--reason", "case 17", "1.2.1")
        (study,) = await self.lines("list", *place, "--locked")
        self.assertEqual((study["study"], study["instances"], study["lock"]["reason"]), ("1.2.1", 2, "case 17"))
        self.assertIsNotNone(study["received"])
        refused, gone = await self.lines("delete", *place, "--yes", "1.2.1", "1.2.2", code=1)
        self.assertEqual((refused["done"], gone["done"]), (False, True))
        self.assertIn("the study is locked", refused["reason"])
        await self.lines("unlock", *place, "1.2.1")
        (missing,) = await self.lines("unlock", *place, "1.2.1", code=1)
        self.assertIn("not locked", missing["reason"])
        out = self.folder / f"out-{len(place)}-{place[0][2:]}"
        (exported,) = await self.lines("export", *place, "--to", out, "1.2.1")
        self.assertEqual(exported["instances"], 2)
        copies = sorted(out.rglob("*"))
        self.assertEqual([path.name for path in copies if path.is_file()], ["1.2.1.1.1.dcm", "1.2.1.1.2.dcm"])
        self.assertEqual(dcmread(out / "1.2.1" / "1.2.1.1" / "1.2.1.1.1.dcm").SOPInstanceUID, "1.2.1.1.1")
        for path in copies:
            if path.is_file():
                self.assertEqual(path.read_bytes(), (storage / path.relative_to(out)).read_bytes())
        await self.lines("export", *place, "--to", out, "9.9", code=1)
        await self.lines("delete", *place, "--yes", "1.2.1/1.2.1.1/1.2.1.1.1", "1.2.1/1.2.1.1")
        (unknown,) = await self.lines("delete", *place, "--yes", "1.2.1", code=1)
        self.assertIn("no such study", unknown["reason"])
        shutil.copytree(storage / "1.2.3", self.folder / "aside")
        shutil.rmtree(storage / "1.2.3")
        (checked,) = await self.lines("check", *place)
        self.assertEqual((checked["instances"], checked["lost"]), (0, 2))
        shutil.copytree(self.folder / "aside", storage / "1.2.3")
        shutil.rmtree(self.folder / "aside")
        (checked,) = await self.lines("check", *place)
        self.assertEqual((checked["instances"], checked["indexed"]), (2, 2))
        self.assertEqual([study["study"] for study in await self.lines("list", *place)], ["1.2.3"])

    async def test_a_folder(self) -> None:
        folder = self.make()
        place = ("--storage", folder)
        await self.every_operation(place, folder)
        await self.lines("lock", *place, "1.2.3")
        (folder / ".index" / "index.sqlite").write_bytes(b"damaged" * 1000)
        result = await self.tool("archive", "stat", *place)
        self.assertEqual(result.code, 1)
        self.assertIn("move it away", result.text)
        (found,) = await self.lines("rebuild", *place)
        self.assertEqual((found["instances"], found["indexed"]), (2, 2))
        (found,) = await self.lines("stat", *place)
        self.assertEqual(found["locked"], 1)

    def test_a_folder_without_an_index(self) -> None:
        """A backup without the index is restored: the words say what makes it, and that does."""
        folder = self.make()
        shutil.rmtree(folder / ".index")
        with self.assertRaises(OperationFailed) as caught, open_archive("", folder, None, None):
            pass
        self.assertIn(f"'dicomtwist archive rebuild --storage {folder}' makes it", str(caught.exception))
        self.assertFalse((folder / ".index").exists())
        with open_archive("", folder, None, None, rebuilds=True) as archive:
            found = archive.check(all_files=True)
            self.assertEqual((found["instances"], found["indexed"]), (6, 6))
        with open_archive("", folder, None, None) as archive:
            self.assertEqual(archive.stat()["instances"], 6)
        self.assertEqual([path.name for path in folder.glob(".index*")], [".index"])

    def test_another_folder(self) -> None:
        """No index is made in a folder that is mistyped."""
        folder = self.folder / "home"
        (folder / "letters").mkdir(parents=True)
        for rebuilds in (False, True):
            with self.assertRaises(OperationFailed) as caught, open_archive("", folder, None, None, rebuilds=rebuilds):
                pass
            self.assertIn(
                "is not the folder of an archive: it has neither an index (.index) nor studies", str(caught.exception)
            )
        self.assertEqual([path.name for path in folder.iterdir()], ["letters"])

    def test_a_folder_with_files_that_cannot_be_read(self) -> None:
        """The others are exported."""

        def open_one(study: str, series: str, uid: str) -> BytesIO:
            if uid == "1.2.2":
                raise PermissionError(13, "Permission denied")
            return BytesIO(b"content")

        archive: Any = Mock()
        archive.index.instances_below.return_value = [("1.2", f"1.2.{number}") for number in (1, 2, 3)]
        archive.store.open = open_one
        failed = self.assertRaises(OperationFailed, StoppedFolder(archive, None).export, ["1"], self.folder)
        self.assertIn("2 instances were exported, and 1 were not, the first is 1.2.2: ", str(failed))
        self.assertEqual(sorted(path.stem for path in self.folder.rglob("*.dcm")), ["1.2.1", "1.2.3"])

    async def test_a_server(self) -> None:
        self.make()
        http = peers.free_port()
        _, storage = await self.twist_dicom("--http", f"tcp:{http}:interface=127.0.0.1")
        url = f"http://127.0.0.1:{http}"
        await self.every_operation(("--url", url), storage)
        (found,) = await self.lines("rebuild", "--url", url)
        self.assertEqual(found["indexed"], 2)
        (storage / "1.2.3" / "1.2.3.1" / "1.2.3.1.2.dcm").unlink()
        (part,) = await self.lines("export", "--url", url, "--to", self.folder / "part", "1.2.3", code=1)
        self.assertIn("1 instances were exported, and not all", part["reason"])
        self.assertEqual(len([*(self.folder / "part").rglob("*.dcm")]), 1)
        result = await self.tool("archive", "list", "--url", url)
        self.assertRegex(result.stdout.decode(), r"(?m)^received .*\n\S+ +\d+ B +[12]  no      1\.2\.3$")
        result = await self.tool("archive", "stat", "--storage", storage)
        self.assertEqual(result.code, 1)
        self.assertIn("a server uses", result.text)

    async def test_another_server(self) -> None:
        """The server of something else, or of somebody else: one line, without the control characters of its answer."""
        factory = Factory.forProtocol(Another)
        factory.noisy = False
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        self.addCleanup(port.stopListening)
        place = ("--url", f"http://127.0.0.1:{port.getHost().port}")
        out = self.folder / "out"
        stat, list_, check, export = ("stat",), ("list",), ("check",), ("export", "--to", out, "1.2")
        for body, status, commands in (
            (b"{}", 200, (stat, list_, check, export)),
            (b"[" * 100_000, 200, (stat,)),
            (b'{"number": 1, "state": "failed", "reason": "\u001b[31m\n"}', 200, (check,)),
            (b'{"words": "\u001b[31m\nmore"}', 403, (stat,)),
        ):
            self.patch(Another, "body", body)
            self.patch(Another, "status", status)
            for command in commands:
                result = await self.tool("archive", *command, *place)
                self.assertEqual(result.code, 1, (body, command, result.text))
                self.assertEqual(len(result.text.strip().splitlines()), 1, result.text)
                self.assertNotIn("\x1b", result.text)
        row = {"study": "\x1b]0;1.2\x07", "size": 1, "instances": 1, "received": None, "lock": None}
        self.patch(Another, "body", json.dumps([row]).encode())
        self.patch(Another, "status", 200)
        result = await self.tool("archive", "list", *place)
        self.assertIn(r"\x1b]0;1.2\x07", result.text)

    async def test_mistakes(self) -> None:
        token = Path(self.mktemp())
        token.write_text("secret\nof two lines\n")
        for code, words, arguments in (
            (2, "contradict each other", ("stat", "--url", "http://127.0.0.1:1", "--storage", self.folder)),
            (2, "each a UID", ("delete", "--yes", "../1.2")),
            (2, "each a UID", ("delete", "--yes", "1.2/1.3/1.4/1.5")),
            (2, "give its UID", ("lock", "1.2/1.3")),
            (1, "cannot reach", ("stat", "--url", f"http://127.0.0.1:{peers.free_port()}")),
            (1, "not a URL of HTTP", ("stat", "--url", "ftp://127.0.0.1")),
            (1, "not a URL of HTTP", ("stat", "--url", "http://[::1")),
            (1, "a b", ("stat", "--url", "http://a b/")),
            (1, "failed", ("stat", "--url", f"http://{'a' * 70}.example/")),
            (1, "such as a second line", ("stat", "--token-file", str(token))),
            (1, "not the folder of an archive", ("stat", "--storage", self.folder)),
            (1, "Delete 1.2?", ("delete", "1.2")),
        ):
            result = await self.tool("archive", *arguments)
            self.assertEqual(result.code, code, result.text)
            self.assertIn(words, result.text)
            self.assertNotIn("Traceback", result.text)
            self.assertNotIn("secret", result.text)
