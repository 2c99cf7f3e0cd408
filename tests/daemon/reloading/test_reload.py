"""SIGHUP: the options of a running server change, in one process and in several."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from urllib.request import urlopen

from pydicom import Dataset
from twisted.internet.threads import deferToThread

from dicomtwist import AE, AssociationRejected
from dicomtwist.sop_class import ModalityWorklistInformationModelFind
from tests import peers
from tests.daemon.test_workers import ServerTestCase, instance


class Options(ServerTestCase):
    """A reload applies options, and names those that need a restart."""

    async def reload(self, text: str, words: str = "reloaded", times: int = 1) -> None:
        self.configuration.write_text(text)
        count = self.server.text.count(words)
        self.server.signal("HUP")
        await self.until(lambda: self.server.text.count(words) >= count + times)

    def worklist(self, name: str) -> Path:
        """Make a folder with one scheduled step for the patient *name*."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        item, step = Dataset(), Dataset()
        item.PatientName, item.PatientID = name, name
        step.Modality = "CT"
        item.ScheduledProcedureStepSequence = [step]
        item.save_as(folder / "1.wl", implicit_vr=False, little_endian=True)
        return folder

    async def patients(self, port: int) -> list[str]:
        ae = AE("SCU")
        ae.add_requested_context(ModalityWorklistInformationModelFind)
        query = Dataset()
        query.PatientName = ""
        async with await ae.associate("127.0.0.1", port) as assoc:
            return [
                str(identifier.PatientName)
                async for status, identifier in assoc.send_c_find(query, ModalityWorklistInformationModelFind)
                if identifier is not None
            ]

    async def test_one_process(self) -> None:
        port, http = peers.free_port(), peers.free_port()
        folders = [self.worklist("ONE"), self.worklist("OTHER")]
        records = [Path(self.mktemp()).absolute() for _ in range(2)]
        ports = f'port = "tcp:{port}:interface=127.0.0.1"\nhttp = "tcp:{http}:interface=127.0.0.1"\n'
        first = ports + f'worklist = "{folders[0]}"\nrecords = "{records[0]}"\n'
        second = ports + f'worklist = "{folders[1]}"\nrecords = "{records[1]}"\n'
        await self.start(first, port=port)
        open_one = await self.scu().associate("127.0.0.1", port)
        self.assertTrue((await open_one.send_c_store(instance("1.2"))).is_success)
        self.assertEqual(await self.patients(port), ["ONE"])
        url = f"http://127.0.0.1:{http}/dicom-web/studies"
        await self.reload(
            second + 'max-associations = 1\nhttp-url = "https://pacs.example/dw"\nmax-object-size = 100\n'
            'log-level = "debug"\nlog-format = "json"\ndurability = "none"\nae-title = "X"\n'
        )
        await self.server.wait_for("needs a restart")
        applied = "http-url, log-format, log-level, max-associations, max-object-size, records, worklist"
        self.assertIn(f"changed, and applied: {applied}", self.server.text)
        line = self.server.text.splitlines()[-1]
        self.assertEqual(json.loads(line)["message"], "changed, but needs a restart: ae-title, durability")
        await self.assertFailure(self.scu().associate("127.0.0.1", port), AssociationRejected)
        body = await deferToThread(lambda: urlopen(url, timeout=30).read())
        self.assertIn(b"https://pacs.example/dw/studies/1.2", body)
        await open_one.release()
        self.assertEqual(await self.patients(port), ["OTHER"])
        # A mistake leaves all of it as it is, with the words of --check.
        mistake = first + "max-pdu = 7\n"
        await self.reload(mistake, "nothing is changed")
        check = await peers.run(
            *(sys.executable, "-m", "twisted", "dicom", "--config", str(self.configuration)),
            *("--storage", str(self.storage), "--check"),
        )
        (words,) = re.findall(r"twist dicom: (.*); see twist dicom --help", check.text)
        message = json.loads(self.server.text.splitlines()[-1])["message"]
        self.assertEqual(message, f"the reload failed, nothing is changed: {words}")
        self.assertEqual(await self.patients(port), ["OTHER"])
        # Without the options the defaults hold again.
        await self.reload(first)
        async with (
            await self.scu().associate("127.0.0.1", port) as assoc,
            await self.scu().associate("127.0.0.1", port),
        ):
            self.assertTrue((await assoc.send_c_store(instance("1.3"))).is_success)
        self.assertEqual(await self.patients(port), ["ONE"])
        self.server.signal("TERM")
        self.assertEqual((await self.server.wait(60)).code, 0)
        titles = [
            [
                one["ending"]["kind"]
                for one in map(json.loads, file.read_text().splitlines())
                if one["type"] == "association"
            ]
            for file in records
        ]
        self.assertEqual(titles[0], ["released"] * 4)
        self.assertEqual(titles[1], ["rejected", "released", "released", "released"])

    async def test_workers(self) -> None:
        """All have the new options, also one that starts later, whatever the file says by then."""
        port = peers.free_port()
        line = f'port = "tcp:{port}:interface=127.0.0.1"\n'
        await self.start(line, "--workers", "2", port=port)
        await self.server.wait_for("all 2 workers are ready", 90)
        await self.reload(line + 'trace = true\nae-title = "LATER"\n', times=3)
        self.assertEqual(self.server.text.count("changed, and applied: trace"), 3)
        self.configuration.write_text(line + 'allow-calling = "NOBODY"\n')
        pids = [int(pid) for pid in re.findall(r"worker \d is ready: process (\d+)", self.server.text)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await self.until(lambda: len(re.findall("worker . is ready", self.server.text)) == 4)
        count = self.server.text.count("<- A-ASSOCIATE-RQ")
        async with await self.scu().associate("127.0.0.1", port) as assoc:
            self.assertTrue((await assoc.send_c_echo()).is_success)
        await self.until(lambda: self.server.text.count("<- A-ASSOCIATE-RQ") > count)
        self.assertNotIn("LATER listens", self.server.text)
        await self.reload(line + 'allow-calling = "NOBODY"\n', times=3)
        await self.assertFailure(self.scu().associate("127.0.0.1", port), AssociationRejected)
        self.server.signal("TERM")
        self.assertEqual((await self.server.wait(60)).code, 0)
