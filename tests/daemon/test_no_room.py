"""``twist dicom`` that starts on a full disk."""

from __future__ import annotations

import sys

from pydicom import Dataset
from twisted.trial.unittest import TestCase

from dicomtwist import AE, build_role, evt
from dicomtwist.archive.archive import Archive
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelFind as FIND
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelGet as GET
from tests import peers
from tests.archive.samples import SECONDARY_CAPTURE, dataset, keep
from tests.archive.test_no_room import disk, fill


class FullDisk(TestCase):
    timeout = 300

    def setUp(self) -> None:
        self.folder = disk(self, "16m")
        self.storage = self.folder / "archive"
        archive = Archive(self.storage)
        archive.open()
        for number in range(3):
            self.assertIsNone(keep(archive, dataset(number)))
        archive.close()
        self.got: list[str] = []

    async def check(self, *options: str, processes: int = 1) -> None:
        filler = fill(self.folder)
        port = peers.free_port()
        command = (
            sys.executable,
            "-m",
            "twisted",
            "--log-format=text",
            "dicom",
            "--storage",
            str(self.storage),
            "--min-free",
            "0",
        )
        listening = f"tcp:{port}:interface=127.0.0.1"
        server = await peers.start(self, *command, *options, "--port", listening, ready=port, timeout=120)
        if processes > 1:
            await server.wait_for("workers are ready", 120)
        await server.until(lambda: server.text.count("stores nothing for now") == processes, 60, "the reason")
        ae = AE("SCU")
        for model in (FIND, GET):
            ae.add_requested_context(model)
        ae.add_requested_context(SECONDARY_CAPTURE, "1.2.840.10008.1.2.1")
        roles = [build_role(SECONDARY_CAPTURE, scu_role=True, scp_role=True)]
        handlers = [(evt.EVT_C_STORE, self.store)]
        async with await ae.associate("127.0.0.1", port, ext_neg=roles, evt_handlers=handlers) as association:
            status = await association.send_c_store(dataset(9))
            self.assertEqual(status, 0xA700)
            self.assertIn("ENOSPC", str(status.error_comment))
            keys = Dataset()
            keys.QueryRetrieveLevel, keys.StudyInstanceUID = "STUDY", "1.2.1"
            self.assertEqual([int(status) async for status, _ in association.send_c_find(keys, FIND)], [0xFF00, 0])
            self.assertEqual((await association.send_c_get(keys, GET).when_done()).status, 0)
            self.assertEqual(sorted(self.got), [f"1.2.1.1.{number}" for number in range(3)])
        filler.unlink()
        await server.until(lambda: server.text.count("there is room again") >= processes, 60, "the room")
        async with await ae.associate("127.0.0.1", port) as association:
            status = await association.send_c_store(dataset(9))
            self.assertEqual(status, 0, server.text)
        server.signal("TERM")
        result = await server.wait(60)
        self.assertEqual(result.code, 0, result.text)
        self.assertNotIn("Traceback", result.text)

    def store(self, event: evt.StoreEvent) -> int:
        self.got.append(str(event.request.affected_sop_instance_uid))
        return 0

    async def test_one_process(self) -> None:
        await self.check()

    async def test_workers(self) -> None:
        """Each process opens the archive again by itself."""
        await self.check("--workers", "2", processes=3)
