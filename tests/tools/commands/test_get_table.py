"""``dicomtwist get --from``: the rows of a table, from real archives, interrupted and resumed."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import UID
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from dicomtwist import AE, evt
from dicomtwist.presentation import ALL_TRANSFER_SYNTAXES
from dicomtwist.sop_class import CTImageStorage
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelGet as GET
from tests import peers
from tests.interop.archives import dcmqrscp, orthanc, study
from tests.peers import DicomFile
from tests.tools.common import ToolTestCase
from tests.tools.lossy import serve

#: How many studies there are, with three images each.
STUDIES = 60
LAYOUT = "{PatientID}/{StudyDate}/{SeriesNumber}/{InstanceNumber:02}.dcm"


@cache
def images(studies: int = STUDIES) -> tuple[DicomFile, ...]:
    """Write the images of some studies; each study has its own patient and accession number."""
    folder = Path(mkdtemp())
    dataset = dcmread(str(get_testdata_file("MR_small.dcm")))
    made = []
    for number in range(studies):
        dataset.StudyInstanceUID = UID(f"1.2.826.0.3.{number}")
        dataset.SeriesInstanceUID = UID(f"1.2.826.0.3.{number}.1")
        dataset.AccessionNumber, dataset.PatientID = f"A{number:03}", f"P{number:03}"
        dataset.StudyDate = "20240131"
        for instance in range(3):
            uid = dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(
                f"1.2.826.0.3.{number}.1.{instance}"
            )
            dataset.InstanceNumber = str(instance + 1)
            path = folder / f"{number}-{instance}.dcm"
            dataset.save_as(path)
            made.append(
                DicomFile(
                    str(path),
                    str(dataset.file_meta.TransferSyntaxUID),
                    str(dataset.SOPClassUID),
                    str(uid),
                    str(dataset.StudyInstanceUID),
                    str(dataset.SeriesInstanceUID),
                )
            )
    return tuple(made)


class TableTestCase(ToolTestCase):
    def table(self, text: str) -> Path:
        path = self.folder / "studies.csv"
        path.write_text(text)
        return path

    def whole(self, folder: str = "got") -> int:
        """Check that each file in *folder* is whole, and return their number."""
        paths = list((self.folder / folder).rglob("*.dcm"))
        for path in paths:
            self.assertEqual(len(dcmread(path).PixelData), 8192, path)
        return len(paths)

    async def get(self, peer: str, *options: object, code: int = 0) -> dict[str, Any]:
        return await self.json("get", peer, self.folder / "got", *options, code=code)


class Archives(TableTestCase):
    """Orthanc and dcmqrscp."""

    async def test_orthanc(self) -> None:
        """Accession numbers in a table as a spreadsheet writes it: found, not found, wrong, twice; then all UIDs."""
        port = await orthanc(self, images())
        peer = f"ORTHANC@127.0.0.1:{port}"
        rows = "".join(f'{number};"A{number:03}";Müller\n' for number in range(STUDIES))
        table = self.table(f"\ufeffNo;Accession Number;Name\n{rows}1;A001;again\n2;A999;nobody\n3;;empty\n;;\n")
        journal = self.folder / "journal"
        options = ("--from", table, "--layout", LAYOUT, "--resume", journal)
        result = await self.tool("get", peer, self.folder / "got", *options)
        self.assertEqual(result.code, 1, result.text)
        for pattern in (
            rf"(?m)^  found +{STUDIES}$",
            r"(?m)^  not found +1$",
            r"(?m)^  failed +1$",
            r"(?m)^  duplicates +1 ",
            rf"(?m)^  stored +{3 * STUDIES} +in ",
            r"(?m)^not found: line 63: AccessionNumber=A999$",
            r"(?m)^failed: line 64: AccessionNumber is empty$",
            r"(?m)^keys: AccessionNumber$",
        ):
            self.assertRegex(result.text, pattern)
        self.assertEqual(self.whole(), 3 * STUDIES)
        self.assertTrue((self.folder / "got" / "P007" / "20240131" / "1" / "03.dcm").exists())
        document = await self.get(peer, *options, code=1)
        self.assertEqual((document["done_before"], document["stored"], document["not_found"]), (STUDIES, 0, 1))
        self.assertEqual(len(document["requests"]), STUDIES + 2)
        table = self.table("studyinstanceuid\n" + "".join(f"1.2.826.0.3.{number}\n" for number in range(STUDIES)))
        document = await self.get(peer, "--from", table, "--associations", 3, "--layout", LAYOUT)
        counts = (document["found"], document["stored"], document["existing"], document["collisions"])
        self.assertEqual(counts, (STUDIES, 3 * STUDIES, 3 * STUDIES, 0))
        self.assertEqual(self.whole(), 3 * STUDIES)

    async def test_other_keys(self) -> None:
        """Patients, series and single images; what find prints as CSV is a table."""
        port = await orthanc(self, [*study(), *images(4)])
        peer = f"ORTHANC@127.0.0.1:{port}"
        first = study()[0]
        series = sum(file.series == first.series for file in study())
        for text, options, count in (
            ("MRN,Study Date\nP001,2024-01-31\nP002,20240131\n", (), 6),
            (f"SeriesInstanceUID\n{first.series}\n", (), series),
            (
                f"StudyInstanceUID,SeriesInstanceUID,SOPInstanceUID\n{first.study},{first.series},{first.sop_instance}\n",
                (),
                1,
            ),
            (f"StudyInstanceUID\n{first.study}\n1.2.826.0.3.1\n", ("--level", "SERIES", "-k", "Modality=MR"), 3),
        ):
            document = await self.json(
                "get", peer, self.folder / str(count), "--from", self.table(text), *options, code=1 if options else 0
            )
            self.assertEqual((document["stored"], document["not_found"]), (count, len(options) // 4), text)
        command = f'find -q --csv {peer} -k AccessionNumber="A00*" | dicomtwist get {peer} {self.folder}/all --from -'
        script = f'dicomtwist() {{ "$PYTHON" -m dicomtwist.tools "$@"; }}; dicomtwist {command}'
        result = await peers.run("/bin/bash", "-c", script, env={"PYTHON": sys.executable}, timeout=120)
        self.assertEqual(result.code, 0, result.text)
        self.assertRegex(result.text, r"found +4\n")
        # The Patient Root model is chosen by the keys; an accession number is found first.
        for key, count in (("PatientID=P001", 3), ("AccessionNumber=A002", 3)):
            document = await self.json("get", peer, self.folder / key, "-k", key, code=0)
            self.assertEqual(document["stored"], count)

    async def test_dcmqrscp(self) -> None:
        port = await dcmqrscp(self, images(4))
        peer = f"DCMQRSCP@127.0.0.1:{port}"
        document = await self.get(peer, "--from", self.table("AccessionNumber\nA001\nA003\nA009\n"), code=1)
        self.assertEqual((document["found"], document["not_found"], document["stored"]), (2, 1, 6))
        document = await self.get(peer, "--from", self.table("PatientID\nP001\nP002\n"))
        self.assertEqual((document["found"], document["stored"], document["existing"]), (2, 6, 3))


class Interrupted(TableTestCase):
    """An interrupted retrieval goes on where it was, and no file is half."""

    async def test_by_the_user(self) -> None:
        """After SIGINT and after SIGKILL, the same command retrieves the rest."""
        port = await orthanc(self, images())
        rows = "".join(f"A{number:03}\n" for number in range(STUDIES))
        for layout, signal_name in (("{SOPInstanceUID}.dcm", "INT"), (None, "KILL"), (LAYOUT, "KILL")):
            folder = self.folder / f"{signal_name}{layout is None}"
            command: list[object] = ["get", f"ORTHANC@127.0.0.1:{port}", folder]
            command += ["--from", self.table(f"AccessionNumber\n{rows}"), "--resume", f"{folder}.journal"]
            command += ["--layout", layout] if layout else []
            process = await self.start_tool(*command, "-v")
            await process.wait_for("3 completed", 120)
            process.signal(signal_name)
            result = await process.wait(120)
            self.assertNotEqual(result.code, 0)
            if signal_name == "INT":
                self.assertIn("run the same command again to continue", result.text)
            before = self.whole(folder.name)
            document = await self.json(*command, code=0)
            self.assertEqual(document["found"] + document["done_before"], STUDIES)
            self.assertLessEqual(before, 3 * STUDIES)
            self.assertEqual(self.whole(folder.name), 3 * STUDIES)
            left = [path.name for path in (folder / ".incoming").iterdir() if path.name != ".lock"]
            self.assertEqual(left, [])

    async def test_a_report_of_each_row(self) -> None:
        """The report of an interrupted retrieval has each row in the order of the table, also those that were not begun."""
        asked: Deferred[None] = Deferred()

        async def get(event: Any) -> AsyncIterator[Any]:
            yield 1
            if event.identifier.StudyInstanceUID == "1.2.1":
                yield 0xFF00, study()[0].path
            else:
                asked.callback(None)
                await Deferred()

        ae = AE("SCP")
        ae.add_supported_context(GET)
        ae.add_supported_context(CTImageStorage, ALL_TRANSFER_SYNTAXES, scu_role=True, scp_role=True)
        self.addCleanup(ae.shutdown)
        server = await ae.start_server(("127.0.0.1", 0), evt_handlers=[(evt.EVT_C_GET, get)])
        uids = ["1.2.1", "", "1.2.2", "1.2.3", "1.2.3", "x", "1.2.4"]
        table = self.table("StudyInstanceUID,No\n" + "".join(f"{uid},{number}\n" for number, uid in enumerate(uids)))
        command: list[object] = ["get", f"127.0.0.1:{server.port}", self.folder / "got", "--from", table]
        command += ["--resume", self.folder / "journal", "--layout", LAYOUT, "--json"]
        process = await self.start_tool(*command)
        await asked.addTimeout(120, reactor)
        process.signal("INT")
        result = await process.wait(120)
        document = json.loads(result.stdout)
        rows = [(row["line"], row["outcome"]) for row in document["requests"]]
        expected = ["failed", "failed", "interrupted", "not begun", "failed", "not begun"]
        self.assertEqual(rows, list(zip((2, 3, 4, 5, 7, 8), expected, strict=True)))
        counts = [document[name] for name in ("failed_requests", "not_done", "not_begun", "duplicates", "interrupted")]
        self.assertEqual(counts, [3, 3, 2, 1, True])

    async def test_by_the_peer(self) -> None:
        """Connections that are cut in the middle of an instance: the command goes on over other ones."""
        port, _ = await self.twist_dicom()
        peer = f"ARCHIVE@127.0.0.1:{port}"
        result = await self.tool("store", "-q", peer, *[file.path for file in images()])
        self.assertEqual(result.code, 0, result.text)
        proxy = await serve(self, port, (150_000, 400_000))
        table = self.table("AccessionNumber\n" + "".join(f"A{number:03}\n" for number in range(STUDIES)))
        options = ("--from", table, "--resume", self.folder / "journal")
        document = await self.get(f"ARCHIVE@127.0.0.1:{proxy}", *options)
        self.assertEqual((document["found"], self.whole()), (STUDIES, 3 * STUDIES))


class Mistakes(TableTestCase):
    def test_command_lines(self) -> None:
        table = self.table("Name\nx\n")
        good = self.folder / "good.csv"
        good.write_text("StudyInstanceUID\n1.2\n")
        journal = self.folder / "journal"
        journal.write_text(json.dumps({"journal": "dicomtwist store", "version": 1, "peer": "x"}) + "\n")
        for options, words in (
            (["--from", table], "no column is a StudyInstanceUID"),
            (["--from", self.folder / "none.csv"], "does not exist"),
            (["--from", good, "--column", "Nr"], "there is no such column"),
            (["--from", good, "--layout", "../{PatientID}"], "--layout"),
            (["--from", good, "--resume", journal], "not a journal of dicomtwist get"),
            (["-k", "StudyInstanceUID=1.2", "--resume", journal], "give --from"),
            (["--column", "x", "-k", "StudyInstanceUID=1.2"], "give --from"),
            ([], "nothing selects"),
        ):
            result = self.misuse("get", "127.0.0.1:1", self.folder / "x", *options)
            self.assertEqual(result.code, 2, result.text)
            self.assertIn(words, result.text)

    async def test_nobody_there(self) -> None:
        """Exit status 3, and nothing is said about rows."""
        table = self.table("StudyInstanceUID\n1.2\n1.3\n")
        document = await self.get(f"127.0.0.1:{peers.free_port()}", "--from", table, code=3)
        self.assertEqual((document["cause"]["code"], document["not_done"]), ("refused", 2))
        document = await self.get(f"127.0.0.1:{peers.free_port()}", "--from", self.table("StudyInstanceUID\n"), code=1)
        self.assertEqual((document["requests"], document["error"]), ([], "the table has no rows"))
