"""``dicomtwist commit``."""

from __future__ import annotations

import json
from typing import Any

from pydicom import dcmread
from twisted.internet.defer import Deferred

from dicomtwist import AE, Association, evt
from dicomtwist.sop_class import StorageCommitmentPushModel
from tests import peers
from tests.interop.archives import orthanc, study
from tests.tools.common import ToolTestCase, reactor


class Archives(ToolTestCase):
    """Real archives."""

    async def test_twist_dicom(self) -> None:
        """Reports on the same association and at our port, for instances that the archive has and has not."""
        back = peers.free_port()
        port, _ = await self.twist_dicom("--peer", f"CT1=127.0.0.1:{back}")
        peer = f"127.0.0.1:{port}"
        held, missing = self.instances(2)
        (self.folder / "study" / "readme.txt").write_text("not DICOM")
        await self.tool("store", "-q", peer, held)
        result = await self.tool("commit", peer, self.folder / "study")
        self.assertEqual(result.code, 1, result.text)
        self.assertCountEqual(
            result.stdout.decode().splitlines(),
            [
                f"committed      1.2.826.0.1.0  {held}",
                f"NOT committed  1.2.826.0.1.1  {missing}  0x0112 No such SOP Instance",
            ],
        )
        self.assertEqual(result.stderr, b"1 instance committed, 1 not committed, 1 skipped\n")
        listen = ("--calling", "CT1", "--listen", f"tcp:{back}:interface=127.0.0.1")
        document = await self.json("commit", *listen, peer, held, code=0)
        self.assertEqual(
            document["instances"],
            [{"sop_instance_uid": "1.2.826.0.1.0", "path": str(held), "committed": True, "reason": None}],
        )
        uids = self.folder / "uids"
        sop_class = dcmread(held).SOPClassUID
        uids.write_text(
            f"SOPClassUID,SOPInstanceUID\n{sop_class},1.2.826.0.1.0\n# a comment\n{sop_class} no-uid\n1.2\n"
        )
        document = await self.json("commit", "--uids", uids, peer, code=1)
        self.assertEqual((document["committed"], document["failed"]), (1, 2))
        reasons = [item["reason"] or "" for item in document["instances"]]
        self.assertRegex("\n".join(reasons), r"(?s)no-uid.*the line must have a SOP Class UID")

    async def test_orthanc(self) -> None:
        """The archive reports on another association."""
        back = peers.free_port()
        port = await orthanc(self, study()[:1], {"CT1": back})
        listen = ("--calling", "CT1", "--listen", f"tcp:{back}:interface=127.0.0.1")
        paths = [file.path for file in study()[:2]]
        document = await self.json("commit", *listen, f"ORTHANC@127.0.0.1:{port}", *paths, code=1)
        committed = {item["path"]: item["committed"] for item in document["instances"]}
        self.assertEqual(committed, {str(paths[0]): True, str(paths[1]): False})

    def test_mistakes(self) -> None:
        for options, words in (
            ([], "give either PATHS or --uids"),
            ([str(self.folder), "--uids", "-"], "give either PATHS or --uids"),
            ([str(self.folder), "--wait", "0"], "is not a time"),
            ([str(self.folder / "none")], "does not exist"),
        ):
            result = self.misuse("commit", "127.0.0.1:1", *options)
            self.assertEqual(result.code, 2, result.text)
            self.assertIn(words, result.text)


class Conduct(ToolTestCase):
    """Peers that send no report."""

    async def serve_commitment(self, handler: Any, *more: Any) -> str:
        """Serve a handler of N-ACTION; return the peer."""
        ae = AE("SCP")
        ae.add_supported_context(StorageCommitmentPushModel)
        self.addCleanup(ae.shutdown)
        server = await ae.start_server(("127.0.0.1", 0), evt_handlers=[(evt.EVT_N_ACTION, handler), *more])
        return f"127.0.0.1:{server.port}"

    async def test_refused(self) -> None:
        peer = await self.serve_commitment(lambda event: 0x0213)
        document = await self.json("commit", peer, *self.instances(2), code=1)
        self.assertEqual({item["reason"] for item in document["instances"]}, {"refused: 0x0213 Resource limitation"})

    async def test_no_report(self) -> None:
        """The report is missing at the end of the wait, or since the peer ends the association."""
        peer = await self.serve_commitment(lambda event: 0)
        result = await self.tool("commit", "--wait", "0.2", peer, *self.instances(1))
        self.assertEqual(result.code, 1, result.text)
        self.assertIn("sent no report within 0.2 seconds", result.stderr.decode())
        self.assertIn("NOT committed  1.2.826.0.1.0", result.stdout.decode())

        def hang_up(event: Any) -> int:
            event.assoc.ae.reactor.callLater(0.1, event.assoc.abort)
            return 0

        peer = await self.serve_commitment(hang_up)
        document = await self.json("commit", peer, *self.instances(1), code=1)
        self.assertIn("use --listen", document["error"])

    async def test_interrupted(self) -> None:
        """An interrupt during the wait releases the association."""
        asked: Deferred[None] = Deferred()
        ended: Deferred[Association] = Deferred()

        def take(event: Any) -> int:
            asked.callback(None)
            return 0

        peer = await self.serve_commitment(take, (evt.EVT_RELEASED, lambda event: ended.callback(event.assoc)))
        process = await self.start_tool("commit", "--json", "-vv", peer, *self.instances(1))
        await asked.addTimeout(120, reactor)
        await process.wait_for("<- N-ACTION-RSP", 120)
        process.signal("INT")
        result = await process.wait(120)
        self.assertEqual(result.code, 1, result.text)
        document = json.loads(result.stdout)
        self.assertEqual((document["failed"], document["interrupted"]), (1, True))
        await ended

    async def test_nobody_there(self) -> None:
        document = await self.json("commit", f"127.0.0.1:{peers.free_port()}", *self.instances(1), code=3)
        self.assertEqual((document["cause"]["code"], document["instances"]), ("refused", []))
