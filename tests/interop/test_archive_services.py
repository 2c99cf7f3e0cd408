"""
The services of ``twist dicom`` besides storage: worklist, performed procedure steps, storage commitment, each with peers of
other makers.
"""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from twisted.internet.task import deferLater
from twisted.web.client import Agent, FileBodyProducer, readBody

from dicomtwist import build_role, evt
from dicomtwist.sop_class import (
    CTImageStorage,
    ModalityWorklistInformationModelFind,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)
from tests import peers
from tests.archive.services.test_mpps import end, step
from tests.archive.services.worklists import code, item, items, query, write
from tests.interop.archives import wlmscpfs
from tests.interop.common import InteropTestCase

WORKLIST = str(ModalityWorklistInformationModelFind)
STORED: Final = "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322"  # the instance of CT_small.dcm
MISSING: Final = "1.2.3.4"


class ArchiveTestCase(InteropTestCase):
    """
    :ivar port: the port of ``twist dicom``, whose AE title is TWIST.
    :ivar folder: the folder of its worklist.
    """

    timeout = 180

    async def twist(self, *options: object) -> None:
        """Start ``twist dicom``, or restart it."""
        if not hasattr(self, "port"):
            self.root = Path(self.mktemp()).absolute()
            self.folder = self.root / "worklist"
            self.folder.mkdir(parents=True)
            self.port = peers.free_port()
        self.process = await peers.start(
            self,
            sys.executable,
            *("-m", "twisted", "--log-format", "text", "dicom", "--ae-title", "TWIST"),
            *("--port", f"tcp:{self.port}:interface=127.0.0.1", "--storage", self.root / "storage"),
            *("--worklist", self.folder, *options),
            ready=self.port,
        )

    def kept_steps(self) -> list[Dataset]:
        return [dcmread(path) for path in sorted((self.root / "storage" / ".mpps").glob("*.dcm"))]


# --- the worklist

#: Queries to which wlmscpfs and dicomtwist give equal answers.
SAME: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"PatientName": "VIVALDI^ANTONIO"},
    {"PatientName": "VIVALDI*"},
    {"PatientName": "*"},
    {"PatientName": "*^*"},
    {"PatientName": "?OZART*"},
    {"PatientName": "NOBODY"},
    {"PatientID": "V1"},
    {"AccessionNumber": "1003"},
    {"AccessionNumber": "100*"},
    {"Modality": "CT"},
    {"Modality": "XX"},
    {"ScheduledStationAETitle": "AB45"},
    {"ScheduledStationAETitle": "AB45", "Modality": "CT"},
    {"ScheduledProcedureStepStartDate": "20240107"},
    {"ScheduledProcedureStepStartDate": "20240106-20240107"},
    {"ScheduledProcedureStepStartDate": "20240107-"},
    {"ScheduledProcedureStepStartDate": "-20240105"},
    {"ScheduledProcedureStepStartTime": "160700"},
    {"ScheduledProcedureStepStartTime": "090000-120000"},
    {"ScheduledProcedureStepStartTime": "120000-"},
    {"ScheduledProcedureStepStartDate": "20240107", "ScheduledProcedureStepStartTime": "090000-100000"},
    {"ScheduledPerformingPhysicianName": "ROSS"},
    {"ScheduledPerformingPhysicianName": "MEYER*"},
    {"RequestedProcedureID": "RP3"},
    {"PatientSex": "F"},
    {"ScheduledStationAETitle": "AA32"},
    {"ScheduledStationAETitle": "AA33"},
    {"ScheduledProcedureStepStartTime": "0900-1200"},
    {"ScheduledProcedureStepStartTime": "-12"},
    {"ScheduledProcedureStepStartDate": "20240105-20240107", "ScheduledProcedureStepStartTime": "120000-100000"},
    {"ScheduledProcedureStepStartDate": "20240105-20240107", "ScheduledProcedureStepStartTime": "090000-120000"},
    {"PatientName": "Müller*", "SpecificCharacterSet": "ISO_IR 100"},
    {"ScheduledProcedureStepDescription": "", "ScheduledProcedureStepLocation": "", "PatientWeight": ""},
)


ALL: Final = "1234567"
#: Queries with different answers: keys, the last digits of our and of their Accession Numbers.
DIFFERENT: Final[tuple[tuple[dict[str, Any], str, str], ...]] = (
    # Names are matched without regard to case, which is optional (PS3.4 C.2.2.2.1).
    ({"PatientName": "vivaldi^antonio"}, "12", ""),
    # For these keys K.6.1.2 requires single value matching only; their VRs have the wildcards of C.2.2.2.4.
    ({"PatientID": "B?"}, "67", ""),
    ({"PatientID": "*1"}, "123456", ""),
    ({"Modality": "C*"}, "246", ""),
    # These are optional keys, which an SCP may ignore (C.2.2.1.3); it ignores them, dicomtwist does not.
    ({"RequestedProcedureDescription": "Procedure 1"}, "147", ALL),
    ({"StudyInstanceUID": "1.2.7.4"}, "4", ALL),
    ({"StudyInstanceUID": ["1.2.7.1", "1.2.7.5"]}, "15", ALL),
    ({"RequestedProcedureCodeSequence": [code("C1")]}, "1357", ALL),
    ({"ScheduledStationName": "STN3"}, "3", ALL),
)


class WorklistTests(ArchiveTestCase):
    def setUp(self) -> None:
        self.items = items()

    async def twist(self, *options: object) -> None:
        await super().twist(*options)
        for number, one in enumerate(self.items):
            write(self.folder / f"{number:03}.wl", one)

    async def answers(self, port: int, title: str, asked: Dataset) -> list[Dataset]:
        """Return the answers of a worklist, in the order of its accession numbers."""
        ae = self.requestor(WORKLIST)
        async with await ae.associate("127.0.0.1", port, ae_title=title) as assoc:
            found = await assoc.send_c_find(asked, WORKLIST).collect()
        for one in found:
            one.decode()
        return sorted(found, key=lambda one: str(one.get("AccessionNumber")))

    async def test_as_wlmscpfs(self) -> None:
        """The answers to a table of queries are equal, element for element."""
        await self.twist()
        port = await wlmscpfs(self, self.items, "-csk")
        for keys in SAME:
            theirs = await self.answers(port, "WORKLIST", query(**keys))
            ours = await self.answers(self.port, "TWIST", query(**keys))
            self.assertEqual(
                [one.to_json_dict() for one in ours], [one.to_json_dict() for one in theirs], f"asked for {keys}"
            )
        for keys, expected, others in DIFFERENT:
            for title, number, digits in (("TWIST", self.port, expected), ("WORKLIST", port, others)):
                found = await self.answers(number, title, query(**keys))
                self.assertEqual("".join(one.AccessionNumber[-1] for one in found), digits, f"{title}: {keys}")

    async def test_sequences_that_are_asked_for_without_keys(self) -> None:
        """
        wlmscpfs returns all keys that it knows, even empty ones; dicomtwist returns those that exist (PS3.4 C.2.2.2.6).
        """
        await self.twist()
        port = await wlmscpfs(self, self.items, "-csk")
        asked = query(PatientID="V1", RequestedProcedureCodeSequence=[], ScheduledProtocolCodeSequence=[])
        ours, theirs = await self.answers(self.port, "TWIST", asked), await self.answers(port, "WORKLIST", asked)
        self.assertEqual(
            [one.RequestedProcedureCodeSequence for one in ours], [[code("C1", "Something")], [code("C0", "Something")]]
        )
        for mine, other in zip(ours, theirs, strict=True):
            self.assertLessEqual(
                {one.tag for one in mine.RequestedProcedureCodeSequence[0]},
                {one.tag for one in other.RequestedProcedureCodeSequence[0]},
            )
            self.assertEqual(mine.ScheduledProcedureStepSequence[0].ScheduledProtocolCodeSequence, [])

    async def test_findscu(self) -> None:
        """DCMTK's SCU queries while files are added, changed and removed."""
        await self.twist()
        keys = ("PatientName=VIVALDI*", "AccessionNumber", "(0040,0100)[0].Modality=CT")
        arguments = [argument for key in keys for argument in ("-k", key)]

        async def found(title: str = "TWIST") -> str:
            flags = ("-v", "-W", "-aec", title, *arguments)
            result = await peers.run(peers.dcmtk("findscu"), *flags, "127.0.0.1", self.port)
            self.assertEqual(result.code, 0, result.text)
            self.assertIn("Received Final Find Response (Success)", result.text)
            return result.text

        self.assertEqual((await found()).count("[1002"), 1)
        write(self.folder / "new.wl", item(9, PatientName="VIVALDI^TERESA", AccessionNumber="1009", Modality="CT"))
        self.assertIn("[1009", await found())
        write(self.folder / "new.wl", item(9, PatientName="VIVALDI^TERESA", AccessionNumber="100A", Modality="CT"))
        self.assertIn("[100A", await found())
        (self.folder / "new.wl").unlink()
        self.assertNotIn("[100A", await found())
        (self.folder / "CT1").mkdir()
        write(self.folder / "CT1" / "own.wl", item(9, PatientName="VIVALDI", AccessionNumber="100B", Modality="CT"))
        self.assertNotIn("[100B", await found())
        self.assertIn("[100B", await found("CT1"))

    async def test_dump2dcm(self) -> None:
        """Files that DCMTK made from its dumps, with and without File Meta Information."""
        await super().twist()
        dump = self.root / "item.dump"
        dump.write_text(
            "(0008,0050) SH [1010]\n(0010,0010) PN [CORELLI^ARCANGELO]\n(0010,0020) LO [C1]\n"
            "(0040,0100) SQ\n(fffe,e000) -\n(0008,0060) CS [MR]\n(0040,0002) DA [20240101]\n(fffe,e00d) -\n(fffe,e0dd) -\n"
        )
        for number, flags in enumerate((["+F"], ["-F"], ["-F", "+ti"], ["+F", "+ti"], ["+F", "+tb"], ["+F", "+td"])):
            result = await peers.run(peers.dcmtk("dump2dcm"), *flags, dump, self.folder / f"{number}.wl")
            self.assertEqual(result.code, 0, result.text)
        found = await self.answers(self.port, "TWIST", query(PatientID="C1", Modality="MR"))
        self.assertEqual([one.PatientName for one in found], ["CORELLI^ARCANGELO"] * 6)

    async def test_pynetdicom(self) -> None:
        await self.twist()
        process = await peers.pynetdicom_script(self, FIND, self.port)
        result = await process.wait()
        self.assertEqual(result.text.split(), ["0xFF00", "1002", "0xFF00", "1004", "0xFF00", "1006", "0x0000", "None"])


FIND: Final = """
import sys
from pydicom import Dataset
from pynetdicom import AE
from pynetdicom.sop_class import ModalityWorklistInformationFind as model
ae = AE("MODALITY")
ae.add_requested_context(model)
assoc = ae.associate("127.0.0.1", int(sys.argv[1]), ae_title="TWIST")
asked, step = Dataset(), Dataset()
asked.AccessionNumber = ""
step.Modality = "CT"
asked.ScheduledProcedureStepSequence = [step]
for status, found in assoc.send_c_find(asked, model):
    print(f"0x{status.Status:04X}", found and found.AccessionNumber)
assoc.release()
"""


# --- performed procedure steps


STEPS: Final = """
import sys
from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.sop_class import ModalityPerformedProcedureStep as step, ModalityPerformedProcedureStepRetrieve as get
port, folder, uid = int(sys.argv[1]), sys.argv[2], "1.2.3.4.5"
ae = AE("MODALITY")
ae.add_requested_context(step)
ae.add_requested_context(get)
assoc = ae.associate("127.0.0.1", port, ae_title="TWIST")
begin, end = (dcmread(f"{folder}/{name}.dcm", force=True) for name in ("begin", "end"))
for status, _ in (
    assoc.send_n_set(end, step, uid),
    assoc.send_n_create(begin, step, uid),
    assoc.send_n_create(begin, step, uid),
    assoc.send_n_set(end, step, uid),
    assoc.send_n_set(end, step, uid),
):
    print(f"0x{status.Status:04X}", f"0x{status.ErrorID:04X}" if "ErrorID" in status else "")
status, found = assoc.send_n_get([0x00100010, 0x00400252], get, uid)
print(f"0x{status.Status:04X}", found.PatientName, found.PerformedProcedureStepStatus)
del begin.PatientID
status, _ = assoc.send_n_create(begin, step, "1.2.3.4.6")
print(f"0x{status.Status:04X}", status.ErrorComment)
assoc.release()
"""


class ProcedureStepTests(ArchiveTestCase):
    async def test_pynetdicom(self) -> None:
        """A step from its beginning to its end, and later changes; the stored step is complete, even after a kill."""
        await self.twist()
        for name, dataset in (("begin", step(PatientName="Doe^Jane")), ("end", end())):
            dataset.save_as(self.root / f"{name}.dcm", implicit_vr=True, little_endian=True)
        process = await peers.pynetdicom_script(self, STEPS, self.port, self.root)
        result = await process.wait()
        lines = [line.strip() for line in result.text.strip().splitlines()]
        self.assertEqual(lines, [
            "0x0112", "0x0000", "0x0111", "0x0000", "0x0110 0xA710", "0x0000 Doe^Jane COMPLETED",
            "0x0120 missing: PatientID",
        ])  # fmt: skip
        await self.process.stop("KILL")
        (kept,) = self.kept_steps()
        self.assertEqual((kept.PerformedProcedureStepStatus, kept.PatientName), ("COMPLETED", "Doe^Jane"))
        dump = await peers.run(peers.dcmtk("dcmdump"), "-q", next((self.root / "storage" / ".mpps").glob("*.dcm")))
        self.assertEqual(dump.code, 0, dump.text)


# --- storage commitment


class CommitmentTests(ArchiveTestCase):
    async def orthanc(self) -> None:
        """Start an Orthanc that knows the server as *twist*."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        settings = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.http,
            "DicomAet": "ORTHANC",
            "DicomPort": self.orthanc_port,
            "DicomModalities": {"twist": {"AET": "TWIST", "Host": "127.0.0.1", "Port": self.port}},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        process = await peers.start(self, peers.tool("Orthanc"), folder / "orthanc.json", ready=self.http, timeout=60)
        await process.wait_for("Orthanc has started", 60)

    async def rest(self, path: str, body: Any = None) -> Any:
        """Call Orthanc's REST API; with a body it is a POST."""
        from twisted.internet import reactor

        producer = None if body is None else FileBodyProducer(BytesIO(body))
        agent: Any = Agent(reactor)
        url = f"http://127.0.0.1:{self.http}{path}".encode()
        response = await agent.request(b"GET" if body is None else b"POST", url, None, producer)
        self.assertEqual(response.code, 200)
        return json.loads(await readBody(response))

    async def outcome(self, path: str) -> dict[str, Any]:
        """Wait for the result of a commitment that Orthanc requested."""
        from twisted.internet import reactor

        while True:
            told: dict[str, Any] = await self.rest(path)
            if told["Status"] != "Pending":
                return told
            await deferLater(reactor, 0.2)

    def pending(self) -> list[Path]:
        return list((self.root / "storage" / ".commitment").glob("*.json"))

    async def begin(self) -> None:
        self.http, self.orthanc_port = peers.free_port(), peers.free_port()
        await self.twist("--peer", f"ORTHANC=127.0.0.1:{self.orthanc_port}")

    async def store(self) -> None:
        ae = self.requestor((CTImageStorage, "1.2.840.10008.1.2.1"))
        async with await ae.associate("127.0.0.1", self.port) as assoc:
            self.assertEqual(await assoc.send_c_store(str(get_testdata_file("CT_small.dcm"))), 0)

    async def test_orthanc_stores_and_asks(self) -> None:
        """Orthanc sends its instances and requests commitment; it gets the result on an association of ours."""
        await self.begin()
        await self.orthanc()
        content = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
        uploaded = await self.rest("/instances", content)
        sent = await self.rest(
            "/modalities/twist/store", json.dumps({"Resources": [uploaded["ID"]], "StorageCommitment": True}).encode()
        )
        told = await self.outcome(f"/storage-commitment/{sent['StorageCommitmentTransactionUID']}")
        self.assertEqual((told["Status"], told["RemoteAET"]), ("Success", "TWIST"))
        self.assertEqual([each["SOPInstanceUID"] for each in told["Success"]], [STORED])

    async def test_orthanc_asks_for_what_is_not_there(self) -> None:
        await self.begin()
        await self.orthanc()
        await self.store()
        wanted = [[CTImageStorage, STORED], [CTImageStorage, MISSING], ["1.2.840.10008.5.1.4.1.1.4", STORED]]
        body = json.dumps({"DicomInstances": wanted}).encode()
        started = await self.rest("/modalities/twist/storage-commitment", body)
        told = await self.outcome(started["Path"])
        self.assertEqual(told["Status"], "Failure")
        self.assertEqual([each["SOPInstanceUID"] for each in told["Success"]], [STORED])
        failed = [(each["SOPClassUID"], each["SOPInstanceUID"], each["FailureReason"]) for each in told["Failures"]]
        self.assertEqual(failed, [(CTImageStorage, MISSING, 0x0112), ("1.2.840.10008.5.1.4.1.1.4", STORED, 0x0119)])
        await self._until(lambda: not self.pending())

    async def test_our_own_scu(self) -> None:
        """The result arrives on the association of the request, and after a kill on another one."""
        results: list[tuple[int, Dataset]] = []

        def report(event: evt.EventReportEvent) -> int:
            results.append((event.event_type, event.event_information))
            return 0

        self.http, self.orthanc_port = peers.free_port(), peers.free_port()
        known = self.mktemp()
        Path(known).write_text("# nobody yet\n")
        await self.twist("--peer", f"@{Path(known).absolute()}")
        await self.store()
        ae = self.requestor(str(StorageCommitmentPushModel))
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        asked = Dataset()
        asked.TransactionUID = "2.25.71"
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = CTImageStorage, STORED
        asked.ReferencedSOPSequence = [reference]
        target = (StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
        handlers = [(evt.EVT_N_EVENT_REPORT, report)]
        role = build_role(StorageCommitmentPushModel, scu_role=True)
        asking = ae.associate("127.0.0.1", self.port, evt_handlers=handlers, ext_neg=[role])
        async with await asking as assoc:
            self.assertEqual((await assoc.send_n_action(asked, 1, *target))[0], 0)
            await self._until(lambda: len(results) == 1)
        asked.TransactionUID = "2.25.72"
        async with await ae.associate("127.0.0.1", self.port) as assoc:
            self.assertEqual((await assoc.send_n_action(asked, 1, *target))[0], 0)
        await self.process.stop("KILL")
        self.assertEqual(len(self.pending()), 1)
        server = await ae.start_server(("127.0.0.1", 0), evt_handlers=handlers)
        Path(known).write_text(f"{ae.ae_title}=tcp:127.0.0.1:{server.port}\n")
        await self.twist("--peer", f"@{Path(known).absolute()}")
        await self._until(lambda: len(results) == 2 and not self.pending())
        self.assertEqual([(kind, each.TransactionUID) for kind, each in results], [(1, "2.25.71"), (1, "2.25.72")])
        self.assertEqual(results[1][1].ReferencedSOPSequence[0].ReferencedSOPInstanceUID, STORED)

    async def _until(self, condition: Any) -> None:
        """Wait for the server; fail with its output if it ends before."""
        await self.process.poll(condition)
