"""The record of an association with DCMTK's storescu and of one with its storescp."""

from __future__ import annotations

from pathlib import Path

from dicomtwist import evt
from tests.interop.common import CT, EXPLICIT, VERIFICATION, InteropTestCase, Recorder, Store
from tests.peers import dcmtk, dcmtk_storescp, dicom_files, run

FILES = [file for file in dicom_files() if file.sop_class == CT and file.transfer_syntax == EXPLICIT][:2]


class Records(InteropTestCase):
    """The record has DCMTK's requests and ours."""

    async def test_storescu(self) -> None:
        recorder, store = Recorder(), Store(0xB007)
        server = await self.serve((evt.EVT_C_STORE, store), (evt.EVT_RECORD, recorder))
        paths = [file.path for file in FILES]
        result = await run(dcmtk("storescu"), "-aet", "MODALITY", "127.0.0.1", server.port, *paths)
        self.assertEqual(result.code, 0, result.text)
        await recorder.wait()
        record = recorder.events[0].record
        self.assertEqual((record.mode, record.calling_ae_title), ("acceptor", "MODALITY"))
        self.assertTrue(record.implementation_version_name.startswith("OFFIS_DCMTK"))
        self.assertEqual(
            [(operation.sop_instance_uid, operation.status) for operation in record.operations],
            [(file.sop_instance, 0xB007) for file in FILES],
        )
        self.assertGreater(record.bytes_received, sum(len(dataset) for dataset in store.datasets))
        self.assertEqual((record.ending.kind, record.ending.by), ("released", "peer"))
        self.assertIn(CT, {context.abstract_syntax for context in record.contexts if context.result == 0})

    async def test_storescu_that_aborts(self) -> None:
        recorder = Recorder()
        server = await self.serve((evt.EVT_C_ECHO, lambda event: 0), (evt.EVT_RECORD, recorder))
        result = await run(dcmtk("echoscu"), "--abort", "127.0.0.1", server.port)
        self.assertEqual(result.code, 0, result.text)
        await recorder.wait()
        record = recorder.events[0].record
        self.assertEqual([(one.service, one.status) for one in record.operations], [("C-ECHO", 0)])
        self.assertEqual((record.ending.kind, record.ending.by), ("aborted", "peer"))

    async def test_storescp(self) -> None:
        port = await dcmtk_storescp(self, Path(self.mktemp()))
        recorder = Recorder()
        ae = self.requestor(VERIFICATION, (CT, EXPLICIT))
        async with await ae.associate("127.0.0.1", port, evt_handlers=[(evt.EVT_RECORD, recorder)]) as assoc:
            for file in FILES:
                self.assertTrue((await assoc.send_c_store(file.path)).is_success)
        await recorder.wait()
        record = recorder.events[0].record
        self.assertEqual(
            [(operation.direction, operation.sop_instance_uid, operation.status) for operation in record.operations],
            [("sent", file.sop_instance, 0) for file in FILES],
        )
        self.assertGreater(record.bytes_sent, sum(Path(file.path).stat().st_size for file in FILES) * 0.9)
        self.assertEqual((record.ending.kind, record.ending.by), ("released", "us"))
        self.assertIn(f"{len(FILES)} C-STORE sent; ", str(record))
