"""
Instances that nobody asked for, and files that are there, in ``dicomtwist get`` and ``move --receive``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import AE, build_context, evt
from dicomtwist.archive.storage.types import Unrequested
from dicomtwist.presentation import ALL_TRANSFER_SYNTAXES
from dicomtwist.sop_class import CTImageStorage, MRImageStorage
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelGet as STUDY_GET
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelMove as STUDY_MOVE
from dicomtwist.tools.files.receiving_folder import Requested
from dicomtwist.tools.options import SizeType
from tests.archive.samples import dataset, handed
from tests.interop.archives import study
from tests.memory import MemoryTestCase
from tests.tools.common import ToolTestCase

STUDY = f"StudyInstanceUID={study()[0].study}"


class RequestedTests(SynchronousTestCase):
    """The unique keys of the identifier decide."""

    def takes(self, elements: dict[str, Any], **keys: Any) -> bool:
        identifier = Dataset()
        for keyword, value in keys.items():
            setattr(identifier, keyword, value)
        try:
            Requested(identifier).check(handed(dataset(1, 2, 3, **elements)))
        except Unrequested:
            return False
        return True

    def test_keys(self) -> None:
        for keys, expected in (
            ({"StudyInstanceUID": "1.2.3"}, True),
            ({"StudyInstanceUID": ["1.2.9", "1.2.3"]}, True),
            ({"StudyInstanceUID": "1.2"}, False),
            ({"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.2"}, True),
            ({"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.9"}, False),
            ({"SOPInstanceUID": ["1.2.3.2.1", "1"]}, True),
            ({"SOPInstanceUID": ["1.2.3.2.2", "1"]}, False),
            ({"StudyInstanceUID": ""}, True),
            ({"StudyInstanceUID": "*"}, True),
            ({"PatientID": "P"}, True),
            ({"PatientID": "p "}, True),
            ({"PatientID": "Q"}, False),
            ({"PatientID": "Q*"}, True),
            ({"Modality": "CT"}, True),
            ({}, True),
        ):
            self.assertEqual(self.takes({}, **keys), expected, keys)
        self.assertFalse(self.takes({"PatientID": ""}, PatientID="P"))
        self.assertTrue(self.takes({"PatientID": " P\0"}, PatientID="P"))

    def test_sizes(self) -> None:
        for text, number in (("0", 0), ("500", 500), ("1k", 1024), ("2M", 2 << 20), ("10G", 10 << 30)):
            self.assertEqual(SizeType().parse(text), number)
        for text in ("", "-1", "1.5G", "M", "1GB"):
            self.assertRaises(ValueError, SizeType().parse, text)


class Elsewhere(MemoryTestCase):
    """The DIMSE timeout of a C-MOVE whose instances arrive on other associations."""

    def test_restarted(self) -> None:
        """It does not expire while there is progress elsewhere, and does when that ends."""
        self.scu.requested_contexts = [build_context(STUDY_MOVE)]
        peer = self.network.scripted_server(105)
        asking = self.asking(105)
        peer.accept()
        association = self.successResultOf(asking)
        arrived = [self.network.seconds()]
        association.progress_elsewhere = lambda: arrived[-1]
        moving = association.send_c_move(Dataset(), "HERE", STUDY_MOVE).when_done()
        for _ in range(20):
            self.network.advance(20)
            arrived.append(self.network.seconds())
            self.assertTrue(association.is_established)
        self.network.advance(29)
        self.assertTrue(association.is_established)
        self.network.advance(2)
        self.assertFalse(association.is_established)
        self.assertIn("did not answer", str(self.failureResultOf(moving).value))


class Receiving(ToolTestCase):
    """A peer that sends what it wants."""

    async def sending(self, *files: Any, roles: bool | None = True) -> str:
        """Start an SCP that sends these files to every C-GET; return its address."""

        def get(event: Any) -> Iterator[Any]:
            yield len(files)
            for file in files:
                yield 0xFF00, file

        ae = AE("SCP")
        ae.add_supported_context(STUDY_GET)
        ae.add_supported_context(CTImageStorage, ALL_TRANSFER_SYNTAXES, scu_role=roles, scp_role=roles)
        self.addCleanup(ae.shutdown)
        server = await ae.start_server(("127.0.0.1", 0), evt_handlers=[(evt.EVT_C_GET, get)])
        return f"127.0.0.1:{server.port}"

    def got(self) -> Sequence[Path]:
        return sorted((self.folder / "got").rglob("*.dcm"))

    async def test_not_asked_for(self) -> None:
        """Instances of another study are refused, with the reason; the others are stored, and the exit status is 1."""
        other = dcmread(study()[1].path)
        other.StudyInstanceUID = "1.2.3.4"
        path = self.folder / "other.dcm"
        other.save_as(path)
        peer = await self.sending(study()[0].path, str(path))
        document = await self.json("get", peer, self.folder / "got", "-k", STUDY, code=1)
        self.assertEqual(document["stored"], 1)
        self.assertEqual(list(document["refused"].values()), [1])
        self.assertIn("nobody asked for", document["error"])
        self.assertEqual([path.stem for path in self.got()], [study()[0].sop_instance])

    async def test_files_that_are_there(self) -> None:
        """A file with another data set stays without ``--overwrite``; one with the same counts as stored."""
        files = [file.path for file in study()[:2]]
        peer = await self.sending(*files)
        for _ in range(2):
            document = await self.json("get", peer, self.folder / "got", "-k", STUDY, code=0)
            self.assertEqual(document["stored"], 2)
        changed = dcmread(self.got()[0])
        changed.PatientComments = "mine"
        changed.save_as(self.got()[0])
        before = self.got()[0].read_bytes()
        document = await self.json("get", peer, self.folder / "got", "-k", STUDY, code=1)
        self.assertEqual((document["stored"], list(document["refused"].values())), (1, [1]))
        self.assertIn("--overwrite", document["error"])
        self.assertEqual(self.got()[0].read_bytes(), before)
        document = await self.json("get", "--overwrite", peer, self.folder / "got", "-k", STUDY, code=0)
        self.assertNotIn("PatientComments", dcmread(self.got()[0]))
        left = [path.name for path in (self.folder / "got" / ".incoming").iterdir() if path.is_file()]
        self.assertEqual([name for name in left if name != ".lock"], [])

    async def test_no_room(self) -> None:
        """``--min-free`` leaves room on the disk."""
        peer = await self.sending(study()[0].path)
        document = await self.json("get", "--min-free", "900000G", peer, self.folder / "got", "-k", STUDY, code=1)
        self.assertEqual((document["stored"], self.got()), (0, []))
        self.assertIn("0xA700", "".join(document["refused"]))
        self.assertRegex(document["error"], "^1 instance was refused here: 0xA700 Refused")

    async def test_what_we_refuse(self) -> None:
        """The reason is ours, and not that which the peer makes of it, for rows of a table and for a move as well."""
        wrong = []
        for number in range(2):
            dataset = dcmread(study()[number].path)
            dataset.SeriesInstanceUID = "1.2." + "3" * 61
            dataset.save_as(self.folder / f"{number}.dcm")
            wrong.append(str(self.folder / f"{number}.dcm"))
        peer = await self.sending(*wrong)
        reason = "2 instances were refused here: 0xC000 Error: cannot understand: a UID in the data set is not valid"
        result = await self.tool("get", peer, self.folder / "got", "-k", STUDY)
        self.assertIn(f"dicomtwist: {reason}\n", result.text)
        self.assertNotIn("0xA702", result.text)
        table = self.folder / "studies.csv"
        table.write_text(f"StudyInstanceUID\n{study()[0].study}\n")
        result = await self.tool("get", "--from", table, peer, self.folder / "got")
        self.assertIn(f"failed: line 2: StudyInstanceUID={study()[0].study}: {reason}\n", result.text)
        document = await self.json("get", "--from", table, peer, self.folder / "got", code=1)
        self.assertRegex(document["requests"][0]["error"], f"^{reason}; the peer answered: 0xA702")
        peer = await self.sending(wrong[0], study()[2].path)
        document = await self.json("get", peer, self.folder / "got", "-k", STUDY, code=1)
        self.assertRegex(document["error"], "^1 instance was refused here: 0xC000 ")
        self.assertEqual(document["stored"], 1)

    async def test_no_role(self) -> None:
        """A peer that accepts no role for us, and sends nothing, is named as the cause."""
        peer = await self.sending(study()[0].path, roles=None)
        document = await self.json("get", peer, self.folder / "got", "-k", STUDY, code=1)
        self.assertIn("role selection", document["error"])
        document = await self.json(
            "get", "--sop-class", "MRImageStorage", peer, self.folder / "got", "-k", STUDY, code=1
        )
        self.assertIn("none of the SOP Classes", document["error"])

    async def test_no_context(self) -> None:
        """A peer that cannot send some of the instances over this association: their number, and what may help."""
        other = dcmread(study()[0].path)
        other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = MRImageStorage
        other.SOPInstanceUID = "1.2.3.4.5"
        peer = await self.sending(study()[0].path, other, other)
        document = await self.json("get", peer, self.folder / "got", "-k", STUDY, code=1)
        self.assertEqual((document["stored"], document["failed"]), (1, 2))
        self.assertIn("did not send 2 instances", document["error"])
        self.assertIn("--sop-class", document["error"])

    async def test_no_match_without_a_role(self) -> None:
        """Many SCPs of C-GET answer no role, and send all the same: if the C-GET is a success, nothing matches."""
        peer = await self.sending(roles=None)
        document = await self.json("get", peer, self.folder / "got", "-k", STUDY, code=1)
        self.assertIn("nothing matches", document["error"])

    async def test_a_move_to_elsewhere(self) -> None:
        """A peer that has another address for our AE title reports success: the command says what has arrived, and why."""
        elsewhere = AE("ELSEWHERE")
        elsewhere.add_supported_context(CTImageStorage, ALL_TRANSFER_SYNTAXES)
        self.addCleanup(elsewhere.shutdown)
        other = await elsewhere.start_server(("127.0.0.1", 0), evt_handlers=[(evt.EVT_C_STORE, lambda event: 0)])

        def move(event: Any) -> Iterator[Any]:
            yield "127.0.0.1", other.port
            yield 1
            yield study()[0].path

        ae = AE("SCP")
        ae.add_supported_context(STUDY_MOVE)
        self.addCleanup(ae.shutdown)
        server = await ae.start_server(("127.0.0.1", 0), evt_handlers=[(evt.EVT_C_MOVE, move)])
        receives = ("--receive", self.folder / "got", "--listen", "tcp:0:interface=127.0.0.1")
        document = await self.json("move", *receives, f"127.0.0.1:{server.port}", "-k", STUDY, code=1)
        self.assertEqual((document["completed"], self.got()), (1, []))
        self.assertIn("the peer reports 1 instances sent, and 0 have arrived: it may have another", document["error"])
