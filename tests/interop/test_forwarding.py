"""The forwarder with real destinations: DCMTK, Orthanc, pynetdicom, ``twist dicom`` and servers of this package."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from dicomtwist import AE, evt
from dicomtwist.datasets.codec import UNCOMPRESSED
from dicomtwist.dicomweb import DICOMwebClient
from dicomtwist.forwarding.forwarder import Address, Forwarder
from dicomtwist.forwarding.parsing import parse_forward
from dicomtwist.forwarding.pseudonyms import Pseudonyms
from dicomtwist.forwarding.rules import ForwardRule
from dicomtwist.forwarding.tasks.store import TaskStore
from dicomtwist.forwarding.tasks.types import Arrival, Definition, Selection, Task, TaskState
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta
from dicomtwist.presentation import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts
from dicomtwist.settings import IMPLEMENTATION_CLASS_UID
from dicomtwist.sop_class import StorageCommitmentPushModel
from tests.interop.archives import expected_bytes, orthanc, study
from tests.interop.common import Recorder, Store, Stored
from tests.interop.test_dicomweb_stores import PLUGIN
from tests.interop.twist import TwistTestCase
from tests.peers import (
    DicomFile,
    dataset_bytes,
    dcmtk_storescp,
    dicom_files,
    free_port,
    missing_error,
    pynetdicom_script,
    reactor,
)

PSEUDONYMS = Pseudonyms(b"0123456789abcdef0123456789abcdef")

#: An SCP of pynetdicom that answers each SOP Instance UID that ends with a digit below 3 with a status of failure.
SCP = """
import sys
from pynetdicom import AE, evt, AllStoragePresentationContexts, ALL_TRANSFER_SYNTAXES
statuses = {"0": 0xA900, "1": 0xB007, "2": 0x0111}
def store(event):
    return statuses.get(event.request.AffectedSOPInstanceUID[-1], 0)
ae = AE("PYNETDICOM")
for context in AllStoragePresentationContexts[:120]:
    ae.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
ae.start_server(("127.0.0.1", int(sys.argv[1])), evt_handlers=[(evt.EVT_C_STORE, store)])
"""


def all_files() -> list[DicomFile]:
    """Return pydicom's files, each instance once."""
    return list({file.sop_instance: file for file in dicom_files()}.values())


class Files:
    """A source of instances in files."""

    def __init__(self, files: Iterable[DicomFile]) -> None:
        self.paths = {file.sop_instance: file.path for file in files}

    def locate(self, study: str, series: str, instance: str) -> str:
        """Return the path of an instance."""
        return self.paths[instance]


def read_rule(definition: Definition) -> ForwardRule:
    return parse_forward([dict(definition.table)], pseudonyms=PSEUDONYMS).rules[0]


class ForwardingTests(TwistTestCase):
    timeout = 180

    async def forward(
        self, files: Sequence[DicomFile], peers: dict[str, Address], *tables: dict[str, Any], ae: AE | None = None
    ) -> Forwarder:
        """Make the tasks of *files* for all rules, and start a forwarder."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        self.tasks = store = TaskStore(folder)
        store.open()
        self.addCleanup(store.close)
        rules = [{"name": f"rule {number}", **table} for number, table in enumerate(tables, 1)]
        parsed = parse_forward(rules, pseudonyms=PSEUDONYMS).rules
        numbers = store.register([Definition.of(rule, table) for rule, table in zip(parsed, rules, strict=True)])
        uids = [(one.study or "1.2", one.series or "1.2.3", one.sop_instance) for one in files]
        store.make([Arrival(*one, tuple(numbers), 1) for one in uids])
        if ae is None:
            ae = AE("FORWARDER")
            self.addCleanup(ae.shutdown)
        forwarder = Forwarder(ae, store, Files(files), peers, read_rule=read_rule, grace=2)
        forwarder.startService()
        self.addCleanup(forwarder.stopService)
        return forwarder

    def all_tasks(self, *states: TaskState, peer: str = "") -> list[Task]:
        """Return the tasks in one of *states*."""
        return self.tasks.find(Selection(destination=peer, states=frozenset(states)), 10_000)

    async def until_ended(self, peer: str = "") -> tuple[int, int]:
        """Wait until no task waits or is being sent; return how many are done, and how many have failed."""
        while self.all_tasks(TaskState.WAITING, TaskState.SENDING, peer=peer):
            await deferLater(reactor, 0.05)
        return len(self.all_tasks(TaskState.DONE, peer=peer)), len(self.all_tasks(TaskState.FAILED, peer=peer))

    async def receiver(self, store: Any, **settings: Any) -> str:
        """Start a server of this package, and return its address."""
        server = await self.serve((evt.EVT_C_STORE, store), **settings)
        return f"127.0.0.1:{server.port}"

    # --- DCMTK

    async def test_storescp(self) -> None:
        """All of pydicom's files arrive at storescp byte for byte, on one association each for up to 60 kinds of them."""
        folder = Path(self.mktemp()).absolute()
        port = await dcmtk_storescp(self, folder, "+xa", "+B", "-pm")
        files = all_files()
        await self.forward(files, {"DCMTK": f"127.0.0.1:{port}"}, {"to": "DCMTK"})
        done, _ = await self.until_ended()
        refused = Counter(task.said for task in self.all_tasks(TaskState.FAILED))
        self.assertGreater(done, len(files) - 10, refused)
        self.assertTrue(all("0xA9" in said or "0xC" in said or "context" in said for said in refused), refused)
        came = Counter(zlib.crc32(dataset_bytes(str(path))) for path in folder.iterdir())
        sent = {task.instance for task in self.all_tasks(TaskState.DONE)}
        self.assertEqual(came, Counter(zlib.crc32(expected_bytes(file)) for file in files if file.sop_instance in sent))

    async def test_storescp_that_takes_implicit_vr_only(self) -> None:
        """Uncompressed instances are converted, with a rule that changes them as well; others fail with words."""
        folder = Path(self.mktemp()).absolute()
        port = await dcmtk_storescp(self, folder, "+xi", "-pm")
        files = [file for file in all_files() if file.study][:60]
        await self.forward(
            files,
            {"DCMTK": f"127.0.0.1:{port}"},
            {"to": "DCMTK", "set": {"InstitutionName": "CHANGED"}},
        )
        await self.until_ended()
        done = {task.instance for task in self.all_tasks(TaskState.DONE)}
        convertible = {file.sop_instance for file in files if file.transfer_syntax in UNCOMPRESSED}
        self.assertLessEqual(done, convertible)
        self.assertGreater(len(done), len(convertible) - 3)
        failed = [task for task in self.all_tasks(TaskState.FAILED) if task.instance not in convertible]
        self.assertTrue(failed)
        self.assertTrue(all("context" in task.said for task in failed), failed)
        for path in folder.iterdir():
            came = dcmread(path)
            self.assertEqual(came.file_meta.TransferSyntaxUID, ImplicitVRLittleEndian)
            self.assertEqual(came.InstitutionName, "CHANGED")

    async def test_storescp_that_aborts(self) -> None:
        """It takes each instance and aborts; nothing is lost, and the other destinations have all meanwhile."""
        aborting = await dcmtk_storescp(self, Path(self.mktemp()).absolute(), "--abort-after")
        refusing = await dcmtk_storescp(self, Path(self.mktemp()).absolute(), "--refuse")
        slow = await dcmtk_storescp(self, Path(self.mktemp()).absolute(), "--sleep-after", 2)
        folder = Path(self.mktemp()).absolute()
        good = await dcmtk_storescp(self, folder)
        addresses = {"ABORTS": aborting, "REFUSES": refusing, "SLOW": slow, "GOOD": good, "GONE": free_port()}
        files = study()
        forwarder = await self.forward(
            files,
            {name: f"127.0.0.1:{port}" for name, port in addresses.items()},
            {"to": ["ABORTS", "REFUSES", "SLOW", "GOOD", "GONE"]},
        )
        self.assertEqual(await self.until_ended("GOOD"), (len(files), 0))
        self.assertEqual(len(list(folder.iterdir())), len(files))
        self.assertLess(len(self.all_tasks(TaskState.DONE, peer="SLOW")), len(files))
        while not all(forwarder.peers[name].breaker.said for name in ("ABORTS", "REFUSES", "GONE")):
            await deferLater(reactor, 0.05)
        for name in ("ABORTS", "REFUSES", "GONE"):
            self.assertEqual(self.all_tasks(TaskState.DONE, TaskState.FAILED, peer=name), [])
        await forwarder.stopService()
        waiting = [task.said for task in self.all_tasks(TaskState.WAITING) if task.destination == ("REFUSES",)]
        self.assertTrue(all("reject" in said for said in waiting), waiting)

    # --- servers of this package

    async def test_more_kinds_than_an_association_has_contexts(self) -> None:
        """150 SOP Classes, each in two transfer syntaxes, need several associations."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        files: list[DicomFile] = []
        for number, context in enumerate(AllStoragePresentationContexts[:150]):
            for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
                one = Dataset()
                one.SOPClassUID = str(context.abstract_syntax)
                one.SOPInstanceUID = f"1.2.{number}.{len(files)}"
                one.file_meta = FileMetaDataset()
                one.file_meta.TransferSyntaxUID = syntax
                path = folder / f"{len(files)}.dcm"
                dcmwrite(path, one, enforce_file_format=True)
                files.append(DicomFile(str(path), syntax, one.SOPClassUID, one.SOPInstanceUID, "1.2", "1.2.3"))
        store = Store()
        associations = Recorder()
        server = await self.serve((evt.EVT_C_STORE, store), (evt.EVT_ESTABLISHED, associations))
        await self.forward(files, {"MANY": f"127.0.0.1:{server.port}"}, {"to": "MANY"})
        self.assertEqual(await self.until_ended(), (len(files), 0))
        self.assertEqual(
            Counter((one.sop_instance, one.transfer_syntax) for one in store.stored),
            Counter((file.sop_instance, file.transfer_syntax) for file in files),
        )
        self.assertLessEqual(len(associations.events), 20)

    async def test_window(self) -> None:
        """Requests do not wait for the answers of others, if the peer accepts a window."""
        answers: list[Deferred[int]] = []
        full: Deferred[None] = Deferred()

        def store(event: evt.StoreEvent) -> Deferred[int]:
            answer: Deferred[int] = Deferred()
            answers.append(answer)
            if len(answers) == 7:
                full.callback(None)
            return answer

        server = await self.serve(
            (evt.EVT_C_STORE, store), (evt.EVT_ASYNC_OPS, lambda event: (7, 7)), maximum_operations=7
        )
        await self.forward(study(), {"A": f"127.0.0.1:{server.port}"}, {"to": "A"})
        await full
        for answer in answers:
            answer.callback(0)
        self.assertEqual(await self.until_ended(), (7, 0))

    async def test_changed(self) -> None:
        """De-identified in each transfer syntax, short and long, over an association and by STOW-RS: pixels as they were."""
        files = self.variants()
        store = Store()
        http = free_port()
        await self.twist("--http", f"tcp:{http}:interface=127.0.0.1")
        base = f"http://127.0.0.1:{http}/dicom-web"
        await self.forward(
            files,
            {"DIMSE": await self.receiver(store), "WEB": base},
            {"to": ["DIMSE", "WEB"], "deidentify": True, "set": {"PatientID": "TRIAL-1"}},
        )
        self.assertEqual(await self.until_ended(), (2 * len(files), 0), self.all_tasks(TaskState.FAILED))
        self.assertEqual(len(store.stored), len(files))
        uids = {one.sop_instance for one in store.stored}
        self.assertTrue(uids.isdisjoint(file.sop_instance for file in files))
        sent = {PSEUDONYMS.uid(file.sop_instance): dcmread(file.path) for file in files}
        for one in store.stored:
            self.check_changed(one, sent[one.sop_instance])
        client = DICOMwebClient(base)
        self.addCleanup(client.close)
        found = [match async for match in client.search_for_instances(keys={"PatientID": "TRIAL-1"})]
        self.assertEqual({str(match.SOPInstanceUID) for match in found}, uids)

    def variants(self) -> list[DicomFile]:
        """Write a study whose instances have each uncompressed transfer syntax, or are compressed; some are long."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        (original,) = [one for one in study() if one is study()[0]]
        files: list[DicomFile] = []
        for syntax in (
            *(ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian),
            RLELossless,
        ):
            for rows in (16, 1500):
                one = dcmread(original.path)
                one.Rows, one.Columns, one.BitsAllocated, one.BitsStored, one.HighBit = rows, 512, 16, 16, 15
                one.PixelData = bytes(range(256)) * (rows * 4)
                one.DataSetTrailingPadding = b"who was here"
                one.SOPInstanceUID = f"{original.sop_instance}.{len(files)}"
                one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
                implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
                if syntax == RLELossless:
                    one.compress(RLELossless)
                one.file_meta.TransferSyntaxUID = syntax
                path = folder / f"{len(files)}.dcm"
                if syntax == RLELossless:
                    dcmwrite(path, one, enforce_file_format=True)
                else:
                    dcmwrite(path, one, implicit_vr=implicit, little_endian=little, force_encoding=True)
                uids = original.sop_class, one.SOPInstanceUID, original.study, original.series
                files.append(DicomFile(str(path), syntax, *uids))
        return files

    def check_changed(self, one: Stored, sent: Dataset) -> None:
        """Check an instance that was de-identified on the way."""
        meta = FileMeta(one.sop_class, one.sop_instance, one.transfer_syntax, IMPLEMENTATION_CLASS_UID)
        came = dcmread(BytesIO(encode_preamble_and_meta(meta) + one.dataset))
        self.assertEqual(one.transfer_syntax, sent.file_meta.TransferSyntaxUID)
        self.assertEqual(came.PixelData, sent.PixelData)
        self.assertEqual((came.PatientID, came.PatientIdentityRemoved), ("TRIAL-1", "YES"))
        self.assertEqual(came.StudyInstanceUID, PSEUDONYMS.uid(sent.StudyInstanceUID))
        self.assertNotIn("DataSetTrailingPadding", came)

    async def test_twist(self) -> None:
        """``twist dicom`` in another process, with a search as confirmation."""
        await self.twist()
        files = [file for file in all_files() if file.study and file.transfer_syntax == ExplicitVRLittleEndian][:30]
        table = {"to": "TWIST", "confirm": "query", "associations": 2}
        await self.forward(files, {"TWIST": f"127.0.0.1:{self.port}"}, table)
        done, _ = await self.until_ended()
        self.assertGreater(done, 25, self.all_tasks(TaskState.FAILED))
        stored = {path.name.removesuffix(".dcm") for path in (self.root / "storage").rglob("*.dcm")}
        self.assertEqual(len(stored), done)

    # --- pynetdicom

    async def test_pynetdicom(self) -> None:
        """Statuses: a failure for good, a warning and a duplicate, which count as done."""
        port = free_port()
        await pynetdicom_script(self, SCP, port, ready=port)
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        files: list[DicomFile] = []
        for digit in range(5):
            one = dcmread(study()[0].path)
            one.SOPInstanceUID = f"1.2.3.4.{digit}"
            path = folder / f"{digit}.dcm"
            one.save_as(path)
            files.append(
                DicomFile(
                    str(path), study()[0].transfer_syntax, study()[0].sop_class, one.SOPInstanceUID, "1.2", "1.2.3"
                )
            )
        await self.forward(files, {"PYNETDICOM": f"127.0.0.1:{port}"}, {"to": "PYNETDICOM"})
        self.assertEqual(await self.until_ended(), (4, 1))
        said = {task.instance[-1]: task.said[:6] for task in self.all_tasks(TaskState.DONE, TaskState.FAILED)}
        self.assertEqual(said, {"0": "0xA900", "1": "0xB007", "2": "0x0111", "3": "", "4": ""})

    # --- Orthanc

    async def test_orthanc(self) -> None:
        """Over associations with storage commitment, whose report comes on one of its own; and by STOW-RS with a search."""
        if not PLUGIN.exists():
            raise missing_error("not installed: Orthanc's plugin (Debian and Ubuntu: apt-get install orthanc-dicomweb)")
        ae = AE("FORWARDER")
        self.addCleanup(ae.shutdown)
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        server = await ae.start_server("tcp:0:interface=127.0.0.1")
        http = free_port()
        port = await orthanc(
            self,
            study()[:1],
            {"FORWARDER": server.port},
            HttpServerEnabled=True,
            HttpPort=http,
            AuthenticationEnabled=False,
            Plugins=[str(PLUGIN)],
        )
        files = [file for file in all_files() if file.study and file.transfer_syntax in ALL_TRANSFER_SYNTAXES][:40]
        forwarder = await self.forward(
            files,
            {"ORTHANC": f"127.0.0.1:{port}", "WEB": f"http://127.0.0.1:{http}/dicom-web"},
            {"to": "ORTHANC", "confirm": "commit"},
            {"to": "WEB", "confirm": "query"},
            ae=ae,
        )
        for route in forwarder.commitments.routes:
            server.bind(route.event, route.handler)
        await self.until_ended()
        for peer in ("ORTHANC", "WEB"):
            done = self.all_tasks(TaskState.DONE, peer=peer)
            self.assertGreater(len(done), len(files) - 5, [one.said for one in self.all_tasks(TaskState.FAILED)])
        self.assertEqual(forwarder.commitments.waiting, 0)
