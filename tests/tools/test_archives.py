"""The command with real archives: Orthanc and dcmqrscp."""

from __future__ import annotations

from tests import peers
from tests.interop.archives import dcmqrscp, orthanc
from tests.tools.common import ToolTestCase


class Archives(ToolTestCase):
    """The operations of a first day with an archive."""

    async def test_orthanc(self) -> None:
        """Store a file in each transfer syntax, store them again with the journal, and diagnose the peer."""
        files = list({file.sop_instance: file for file in peers.one_per_transfer_syntax().values()}.values())
        port = await orthanc(self, files[:1])
        peer = f"ORTHANC@127.0.0.1:{port}"
        self.assertEqual((await self.json("echo", peer, code=0))["answers"], 1)
        command = ("store", "--associations", 3, "--resume", self.folder / "journal", peer)
        paths = [file.path for file in files]
        document = await self.json(*command, *paths, code=0)
        self.assertEqual((document["stored"], document["failed"]), (len(files), 0), document)
        self.assertEqual((await self.json(*command, *paths, code=0))["stored_before"], len(files))
        document = await self.json("dump-association", "--propose", "query", peer, code=1)
        accepted = {row["name"] for row in document["contexts"] if row["accepted"]}
        self.assertIn("Study Root Query/Retrieve Information Model - FIND", accepted)
        self.assertIsNone((await self.json("diagnose", peer, code=0))["cause"])

    async def test_a_title_that_dcmqrscp_does_not_have(self) -> None:
        port = await dcmqrscp(self, [])
        self.assertEqual((await self.json("echo", f"DCMQRSCP@127.0.0.1:{port}", code=0))["answers"], 1)
        document = await self.json("diagnose", f"WRONG@127.0.0.1:{port}", code=3)
        self.assertEqual(document["cause"]["code"], "called-title", document)
