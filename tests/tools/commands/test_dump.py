"""``dicomtwist dump-association``."""

from __future__ import annotations

from dicomtwist import evt
from dicomtwist.presentation import ALL_TRANSFER_SYNTAXES
from dicomtwist.sop_class import CTImageStorage
from tests import peers
from tests.tools.common import ToolTestCase


class DumpAssociation(ToolTestCase):
    """The proposal and the answer of each presentation context."""

    async def test_storescp(self) -> None:
        """DCMTK accepts uncompressed transfer syntaxes only."""
        port = await peers.dcmtk_storescp(self, self.folder / "out")
        document = await self.json(
            "dump-association", "--propose", "CTImageStorage", "--each-syntax", f"127.0.0.1:{port}", code=1
        )
        rows = document["contexts"]
        self.assertEqual([row["proposed"] for row in rows], [[uid] for uid in ALL_TRANSFER_SYNTAXES])
        accepted = {row["transfer_syntax"] for row in rows if row["accepted"]}
        self.assertEqual(accepted, {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
        self.assertEqual({row["sop_class"] for row in rows}, {str(CTImageStorage)})
        answered = document["sides"]["answered"]
        self.assertEqual(answered["maximum_pdu_length"], 16384)
        self.assertTrue(answered["implementation_version_name"].startswith("OFFIS_DCMTK"))

    async def test_as_a_table(self) -> None:
        port = await peers.dcmtk_storescp(self, self.folder / "out")
        result = await self.tool(
            "dump-association", "--propose", "verification", "--propose", "worklist", f"PACS@127.0.0.1:{port}"
        )
        self.assertEqual(result.code, 1, result.text)
        text = result.stdout.decode()
        self.assertIn(f"DICOMTWIST and PACS@127.0.0.1:{port}\n", text)
        self.assertRegex(text, r"(?m)^  maximum PDU length +131072 +16384$")
        self.assertIn("1 of 2 presentation contexts accepted", text)
        self.assertRegex(text, r"(?m)^  1 +Verification SOP Class +any uncompressed +Explicit VR Little Endian$")
        self.assertRegex(
            text, r"(?m)^  3 +Modality Worklist Information Model - FIND .*rejected: Abstract Syntax Not Supported$"
        )

    async def test_all_there_is_to_store(self) -> None:
        """More than 128 presentation contexts take several associations."""
        server = await self.serve()
        document = await self.json("dump-association", f"127.0.0.1:{server.port}", code=0)
        self.assertGreater(document["proposed"], 128)
        self.assertEqual(document["accepted"], document["proposed"])
        self.assertEqual(len(document["contexts"]), document["proposed"])

    async def test_what_files_need(self) -> None:
        server = await self.serve()
        self.instances(2)
        document = await self.json("dump-association", f"127.0.0.1:{server.port}", self.folder / "study", code=0)
        self.assertEqual(
            [row["proposed"] for row in document["contexts"]], [["1.2.840.10008.1.2.1"], ["1.2.840.10008.1.2"]]
        )
        (self.folder / "empty").mkdir()
        result = await self.tool("dump-association", f"127.0.0.1:{server.port}", self.folder / "empty")
        self.assertEqual(result.code, 1)
        self.assertIn("none of the files is a DICOM file", result.stderr.decode())

    async def test_windows(self) -> None:
        server = await self.serve((evt.EVT_ASYNC_OPS, lambda event: (4, 1)))
        document = await self.json(
            "dump-association", "--async-ops", 8, "--propose", "verification", f"127.0.0.1:{server.port}", code=0
        )
        self.assertEqual(document["sides"]["proposed"]["operations_invoked"], 8)
        self.assertEqual(document["sides"]["answered"]["operations_performed"], 4)

    async def test_nobody_there(self) -> None:
        """Without an association, the proposal is still printed."""
        result = await self.tool("dump-association", "--propose", "CTImageStorage", f"127.0.0.1:{peers.free_port()}")
        self.assertEqual(result.code, 3, result.text)
        self.assertIn(
            "1 presentation context would be proposed by DICOMTWIST\n  CT Image Storage  any unc", result.text
        )
        self.assertIn("connection refused", result.stderr.decode())

    async def test_nothing_accepted(self) -> None:
        server = await self.serve()
        document = await self.json("dump-association", "--propose", "worklist", f"127.0.0.1:{server.port}", code=1)
        self.assertEqual((document["accepted"], document["cause"]["code"]), (0, "no-common-context"))
        self.assertEqual(len(document["contexts"]), 1)

    def test_what_cannot_be_proposed(self) -> None:
        for name in ("NoSuchStorage", "1.2.x", "check_uid", "1.2.840.10008.1.2"):
            result = self.misuse("dump-association", "--propose", name, "127.0.0.1:1")
            self.assertEqual(result.code, 2, result.text)
            self.assertIn("--propose", result.stderr.decode())
