"""The operations of docs/guides/operations.md: backup, restore, and the index of another version."""

from __future__ import annotations

import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

from pydicom import Dataset
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelFind
from tests import peers
from tests.daemon.test_workers import ServerTestCase, instance
from tests.documentation import DOCS, blocks

PAGE = DOCS / "guides" / "operations.md"


def script(name: str) -> str:
    """Return a script that the page has."""
    (found,) = [block.text for block in blocks(PAGE) if block.key == "file" and block.value == name]
    return found


class Operations(ServerTestCase):
    async def serve(self, storage: Path) -> None:
        self.storage, self.port = storage, peers.free_port()
        await self.start(f'port = "tcp:{self.port}:interface=127.0.0.1"\n', port=self.port)

    async def found(self) -> set[str]:
        """Return the UIDs of the studies that the server finds."""
        ae = self.scu()
        ae.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", ""
        async with await ae.associate("127.0.0.1", self.port) as assoc:
            return {
                str(identifier.StudyInstanceUID)
                async for _, identifier in assoc.send_c_find(query, StudyRootQueryRetrieveInformationModelFind)
                if identifier is not None
            }

    async def test_backup_under_load(self) -> None:
        """All that was acknowledged before the copy begins is in it, and is found in another folder, without the index."""
        await self.serve(Path(self.mktemp()).absolute())
        stored: list[str] = []
        is_over = False

        async def send() -> None:
            async with await self.scu().associate("127.0.0.1", self.port) as assoc:
                while not is_over:
                    study = f"1.2.{len(stored) + 1}"
                    self.assertTrue((await assoc.send_c_store(instance(study))).is_success)
                    stored.append(study)

        sending = Deferred.fromCoroutine(send())
        await self.until(lambda: len(stored) >= 200)
        before = set(stored)
        copy = Path(self.mktemp()).absolute()
        commands = script("backup.sh").replace("/var/lib/dicom", str(self.storage)).replace("/backup/dicom", str(copy))
        result = await deferToThread(subprocess.run, ["/bin/sh", "-c", commands], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        during = len(stored)
        is_over = True
        await sending
        self.assertFalse((copy / ".index").exists())
        tasks = sqlite3.connect(copy / ".forwarding" / "tasks.sqlite")
        self.assertEqual(tasks.execute("PRAGMA integrity_check").fetchone(), ("ok",))
        tasks.close()
        self.server.signal("KILL")
        await self.server.wait(60)
        former = self.server
        await self.serve(copy)
        found = await self.found()
        self.assertEqual(before - found, set())
        self.assertLessEqual(found, set(stored))
        self.assertGreaterEqual(during, 200)
        self.assertNotIn("could not be made", self.server.text)
        self.server.signal("TERM")
        self.assertEqual((await self.server.wait(60)).code, 0)
        # The original has all of them.
        await self.serve(Path(shlex.split(former.command[former.command.index("--storage") + 1])[0]))
        self.assertEqual(await self.found(), set(stored))

    async def test_index_of_a_later_version(self) -> None:
        """An earlier program refuses it in one line, and rebuilds the index when it is moved away."""
        await self.serve(Path(self.mktemp()).absolute())
        async with await self.scu().associate("127.0.0.1", self.port) as assoc:
            self.assertTrue((await assoc.send_c_store(instance("1.2"))).is_success)
        self.server.signal("TERM")
        self.assertEqual((await self.server.wait(60)).code, 0)
        database = sqlite3.connect(self.storage / ".index" / "index.sqlite")
        with database:
            database.execute("UPDATE about SET value = '99' WHERE name = 'version'")
        database.close()
        result = await peers.run(
            *(sys.executable, "-m", "twisted", "dicom", "--storage", str(self.storage)),
            *("--port", f"tcp:{self.port}:interface=127.0.0.1"),
        )
        self.assertEqual(result.code, 64)
        words = (
            "the index has version 99, and this program knows versions up to 2; use the program that wrote it, or move"
        )
        self.assertIn(words, result.text)
        self.assertIn(words.partition(";")[0].replace("99", "3"), PAGE.read_text())
        shutil.move(self.storage / ".index", self.storage.with_suffix(".index"))
        await self.serve(self.storage)
        self.assertEqual(await self.found(), {"1.2"})
        self.assertIn("at this start 1 files were indexed", self.server.text)
