"""``retrieve()`` of the two faces: in plain scripts, and in coroutines of asyncio."""

from __future__ import annotations

import sys
from pathlib import Path

from twisted.internet.threads import deferToThread

import dicomtwist.sync
from dicomtwist.retrieval import Outcome, StoreUnusable
from tests import peers
from tests.interop.archives import Archive, ArchiveTestCase, study

STUDY = study()[0].study

#: A script that retrieves, prints the result, and is then interrupted in another retrieval.
SCRIPT = """
import os, signal, sys, threading
import dicomtwist.sync

_, port, study, folder = sys.argv
totals = dicomtwist.sync.retrieve("127.0.0.1", int(port), (uid for uid in [study, "1.2.3"]), folder, ae="SCRIPT",
                                  layout="{Modality}/{SOPInstanceUID}.dcm", on_result=lambda one: print(one.outcome))
print(totals.stored, dict(totals.requests))

def endless():
    while True:
        yield "1.2.3"

threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    dicomtwist.sync.retrieve("127.0.0.1", int(port), endless(), folder)
except KeyboardInterrupt:
    print("interrupted")
"""

#: The same with asyncio.
COROUTINE = """
import asyncio, sys
import dicomtwist.asyncio

_, port, study, folder = sys.argv

async def uids():
    yield study
    await asyncio.sleep(0.01)
    yield "1.2.3"

async def endless():
    while True:
        await asyncio.sleep(0)
        yield "1.2.3"

async def main():
    totals = await dicomtwist.asyncio.retrieve("127.0.0.1", int(port), uids(), folder, ae="SCRIPT",
        layout="{Modality}/{SOPInstanceUID}.dcm", on_result=lambda one: print(one.outcome))
    print(totals.stored, dict(totals.requests))
    try:
        async with asyncio.timeout(0.5):
            await dicomtwist.asyncio.retrieve("127.0.0.1", int(port), endless(), folder)
    except TimeoutError:
        print("interrupted")

asyncio.run(main())
"""


class Faces(ArchiveTestCase):
    timeout = 120

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()

    async def check(self, code: str) -> None:
        server = await self.serve_archive(Archive(study()))
        result = await peers.run(
            sys.executable, "-W", "error::RuntimeWarning", "-c", code, server.port, STUDY, self.folder
        )
        self.assertEqual(result.code, 0, result.text)
        lines = result.text.splitlines()
        self.assertEqual(lines[:2], ["retrieved", "not found"])
        self.assertTrue(lines[2].startswith(f"{len(study())} "), result.text)
        self.assertEqual(lines[3:], ["interrupted"])
        self.assertEqual(len(list(self.folder.rglob("*.dcm"))), len(study()))

    async def test_a_script(self) -> None:
        """A script retrieves, and Ctrl-C ends a retrieval; the program ends after it."""
        await self.check(SCRIPT)

    async def test_a_coroutine(self) -> None:
        """A coroutine retrieves what an asynchronous generator names, and a timeout ends a retrieval."""
        await self.check(COROUTINE)

    async def test_beside_a_reactor(self) -> None:
        server = await self.serve_archive(Archive(study()))
        totals = await deferToThread(
            dicomtwist.sync.retrieve, "127.0.0.1", server.port, {"StudyInstanceUID": STUDY}, self.folder
        )
        self.assertEqual(dict(totals.requests), {Outcome.RETRIEVED: 1})

    async def test_failures(self) -> None:
        """Errors of the arguments and of the folder are those of the function."""
        for wanted, folder, kind in (
            ({"Nonsense": "1"}, self.folder, ValueError),
            ({"PatientID": ""}, self.folder, ValueError),
            (STUDY, self.folder / "missing" / "folder", StoreUnusable),
        ):
            with self.assertRaises(kind):
                await deferToThread(dicomtwist.sync.retrieve, "127.0.0.1", peers.free_port(), wanted, folder)
