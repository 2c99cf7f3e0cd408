"""Each file of examples/ does what its first lines say, against DCMTK, ``twist dicom`` and the other examples."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from urllib.request import urlopen

import pydicom
from pydicom import Dataset
from pydicom.data import get_testdata_file
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from dicomtwist import AE
from dicomtwist.sop_class import ModalityPerformedProcedureStep
from tests import peers
from tests.certificates import Authority

EXAMPLES = Path(__file__).parent.parent / "examples"
CT = str(get_testdata_file("CT_small.dcm"))
JPEG_2000 = str(get_testdata_file("JPEG2000.dcm"))

#: Runs the notebook of its argument and prints the outputs of its cells.
RUN_NOTEBOOK = """
import sys
import nbclient, nbformat

notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
for cell in notebook.cells:
    for output in cell.get("outputs", ()):
        print((output.get("text") or output.data["text/plain"]).strip())
"""


def fetch(url: str) -> bytes:
    """Return the body of a page; blocks."""
    with urlopen(url) as response:
        body: bytes = response.read()
    return body


class ExampleTestCase(TestCase):
    """Runs examples as processes."""

    timeout = 120

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()

    async def example(self, name: str, *arguments: object) -> peers.Result:
        """Run an example to its end."""
        result = await peers.run(sys.executable, EXAMPLES / name, *arguments)
        self.assertEqual(result.code, 0, result.text)
        return result

    async def server(self, name: str, *arguments: object) -> tuple[peers.Process, int]:
        """Start an example that listens; *arguments* come before its endpoint. Return it and its port."""
        port = peers.free_port()
        endpoint = f"tcp:{port}:interface=127.0.0.1"
        process = await peers.start(self, sys.executable, EXAMPLES / name, *arguments, endpoint, ready=port)
        return process, port

    async def archive(self, *more: str) -> int:
        """Start ``twist dicom`` and return its port."""
        port = peers.free_port()
        options = ["--storage", self.folder / "archive", "--port", f"tcp:{port}:interface=127.0.0.1", *more]
        await peers.start(self, sys.executable, "-m", "twisted", "dicom", *options, ready=port)
        return port


class Examples(ExampleTestCase):
    def test_each_is_in_the_list_and_has_a_test(self) -> None:
        """The README names every file, and a test runs it."""
        names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
        self.assertGreaterEqual(len(names), 8)
        self.assertEqual(set(re.findall(r"\]\((\w+\.(?:py|ipynb))\)", (EXAMPLES / "README.md").read_text())), names)
        source = Path(__file__).read_text()
        for name in names:
            self.assertIn(f'"{name}"', source)

    async def test_storage_scp(self) -> None:
        """Uncompressed images from DCMTK and compressed ones from an example arrive byte for byte."""
        _, port = await self.server("storage_scp.py", self.folder / "received")
        sent = await peers.run(peers.dcmtk("storescu"), "127.0.0.1", port, CT)
        self.assertEqual(sent.code, 0, sent.text)
        study = self.folder / "study"
        study.mkdir()
        (study / "jpeg").symlink_to(JPEG_2000)
        result = await self.example("send_folder.py", study, "127.0.0.1", port)
        self.assertIn("1 of 1 files sent", result.text)
        for path in (CT, JPEG_2000):
            expected = pydicom.dcmread(path)
            received = pydicom.dcmread(self.folder / "received" / f"{expected.SOPInstanceUID}.dcm")
            self.assertEqual(received.file_meta.TransferSyntaxUID, expected.file_meta.TransferSyntaxUID)
            self.assertEqual(received.PixelData, expected.PixelData)
        self.assertEqual(list((self.folder / "received").glob("*.part")), [])

    async def test_send_folder(self) -> None:
        """A file that the peer does not take is named; the others are sent."""
        port = await peers.dcmtk_storescp(self, self.folder / "received")
        study = self.folder / "study"
        study.mkdir()
        (study / "a.dcm").symlink_to(CT)
        (study / "b.dcm").symlink_to(JPEG_2000)  # storescp takes uncompressed transfer syntaxes only
        (study / "notes.txt").write_text("no image")
        result = await self.example("send_folder.py", study, "127.0.0.1", port)
        self.assertIn("1 of 2 files sent", result.text)
        self.assertRegex(result.text, r"b\.dcm: not sent: ")

    async def test_forwarder(self) -> None:
        """One peer takes all, another none of one kind, and a second run sends nothing again."""
        port = await peers.dcmtk_storescp(self, self.folder / "all", "+xa")
        some = await peers.dcmtk_storescp(self, self.folder / "some")
        study = self.folder / "study"
        study.mkdir()
        (study / "a.dcm").symlink_to(CT)
        (study / "b.dcm").symlink_to(JPEG_2000)
        (study / "notes.txt").write_text("no image")
        for _ in range(2):
            result = await self.example("forwarder.py", study, f"ALL=127.0.0.1:{port}", f"SOME=127.0.0.1:{some}")
            self.assertIn("ALL has 2 of 2\n", result.text)
            self.assertIn("SOME has 1 of 2\n", result.text)
            self.assertRegex(result.text, r"b\.dcm: not taken by SOME: ")
        self.assertEqual(len(list((self.folder / "all").iterdir())), 2)

    async def test_query_scp(self) -> None:
        _, port = await self.server("query_scp.py")
        keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", "PatientName=d*", "-k", "StudyInstanceUID")
        result = await peers.run(peers.dcmtk("findscu"), "-S", *keys, "127.0.0.1", port)
        self.assertEqual(re.findall(r"498\.(\d)", result.text), ["1", "2"])
        refused = await peers.run(
            peers.dcmtk("findscu"), "-v", "-S", "-k", "QueryRetrieveLevel=SERIES", "127.0.0.1", port
        )
        self.assertIn("DataSetDoesNotMatchSOPClass", refused.text.replace(" ", ""))

    async def test_get_client(self) -> None:
        port = await self.archive()
        stored = await peers.run(peers.dcmtk("storescu"), "127.0.0.1", port, CT)
        self.assertEqual(stored.code, 0, stored.text)
        image = pydicom.dcmread(CT)
        study = self.folder / "study"
        result = await self.example("get_client.py", "127.0.0.1", port, "ARCHIVE", image.StudyInstanceUID, study)
        self.assertIn("0x0000 Success: 1 retrieved, 0 failed", result.text)
        self.assertEqual(pydicom.dcmread(study / f"{image.SOPInstanceUID}.dcm").PixelData, image.PixelData)

    async def test_worklist_scp(self) -> None:
        _, port = await self.server("worklist_scp.py")
        keys = ("-k", "PatientName", "-k", "(0040,0100)[0].Modality=CT")
        result = await peers.run(peers.dcmtk("findscu"), "-W", *keys, "127.0.0.1", port)
        self.assertIn("Doe^Jane", result.text)
        self.assertNotIn("Roe^Rick", result.text)

    async def test_mpps_scp(self) -> None:
        process, port = await self.server("mpps_scp.py")
        modality = AE("CT1")
        modality.add_requested_context(ModalityPerformedProcedureStep)
        async with await modality.associate("127.0.0.1", port) as assoc:
            step = Dataset()
            step.PerformedProcedureStepStatus = "IN PROGRESS"
            status, _ = await assoc.send_n_create(step, ModalityPerformedProcedureStep, "1.2.3")
            self.assertEqual(status, 0x0000)
            step.PerformedProcedureStepStatus = "COMPLETED"
            for expected in (0x0000, 0x0110):
                status, _ = await assoc.send_n_set(step, ModalityPerformedProcedureStep, "1.2.3")
                self.assertEqual(status, expected)
        await process.wait_for("1.2.3 is COMPLETED")

    async def test_gateway(self) -> None:
        """Success is the destination's; without the destination the sender is refused."""
        destination = await peers.dcmtk_storescp(self, self.folder / "received")
        for port_behind, code, counts in (
            (destination, 0, {"forwarded": 1, "failed": 0}),
            (peers.free_port(), None, {"forwarded": 0, "failed": 1}),
        ):
            port, web = peers.free_port(), peers.free_port()
            endpoints = [f"tcp:{number}:interface=127.0.0.1" for number in (port, web)]
            command = [sys.executable, EXAMPLES / "gateway.py", *endpoints, "127.0.0.1", port_behind]
            await peers.start(self, *map(str, command), ready=port)
            sent = await peers.run(peers.dcmtk("storescu"), "127.0.0.1", port, CT)
            self.assertEqual(sent.code == 0, code == 0, sent.text)
            page = await deferToThread(fetch, f"http://127.0.0.1:{web}/")
            self.assertEqual({**json.loads(page), "associations": 0}, {"associations": 0, **counts})
        self.assertEqual(len(list((self.folder / "received").iterdir())), 1)

    async def test_gateway_port_taken(self) -> None:
        """A gateway whose DICOM or HTTP port is taken ends and names the port, instead of running without it."""
        taken = await peers.dcmtk_storescp(self, self.folder / "received")
        for ports in ((taken, peers.free_port()), (peers.free_port(), taken)):
            endpoints = [f"tcp:{number}:interface=127.0.0.1" for number in ports]
            result = await peers.run(sys.executable, EXAMPLES / "gateway.py", *endpoints, "127.0.0.1", taken)
            self.assertEqual(result.code, 1, result.text)
            self.assertIn(f":{taken}: [Errno", result.text)
            self.assertNotIn("AttributeError", result.text)

    async def test_gateway_compressed(self) -> None:
        """Compressed images go through unchanged, beside uncompressed ones."""
        behind, port, web = await self.archive(), peers.free_port(), peers.free_port()
        endpoints = [f"tcp:{number}:interface=127.0.0.1" for number in (port, web)]
        await peers.start(
            self, sys.executable, str(EXAMPLES / "gateway.py"), *endpoints, "127.0.0.1", behind, ready=port
        )
        for name in (CT, JPEG_2000, CT):
            result = await self.example("pool_client.py", "127.0.0.1", port, "GATEWAY", name)
            self.assertIn(f"{name}: 0x0000 Success", result.text)
        page = await deferToThread(fetch, f"http://127.0.0.1:{web}/")
        self.assertEqual(json.loads(page)["forwarded"], 3)
        stored = [pydicom.dcmread(path) for path in (self.folder / "archive").rglob("*.dcm")]
        by_uid = {dataset.SOPInstanceUID: dataset for dataset in stored}
        for name in (CT, JPEG_2000):
            expected = pydicom.dcmread(name)
            received = by_uid[expected.SOPInstanceUID]
            self.assertEqual(received.file_meta.TransferSyntaxUID, expected.file_meta.TransferSyntaxUID)
            self.assertEqual(received.PixelData, expected.PixelData)

    async def test_dicomweb_router(self) -> None:
        """Images go through byte for byte; what the server refuses, and a server that is not there, are told."""
        http = peers.free_port()
        await self.archive("--http", f"tcp:{http}:interface=127.0.0.1", "--max-object-size", "20000")
        url = f"http://127.0.0.1:{http}/dicom-web"
        _, port = await self.server("dicomweb_router.py", url)
        result = await self.example("pool_client.py", "127.0.0.1", port, "ROUTER", CT, JPEG_2000)
        for name, status in ((JPEG_2000, "0x0000 Success"), (CT, "0xA7")):
            self.assertIn(f"{name}: {status}", result.text)
        (stored,) = (self.folder / "archive").rglob("*.dcm")
        self.assertEqual(pydicom.dcmread(stored).PixelData, pydicom.dcmread(JPEG_2000).PixelData)
        _, port = await self.server("dicomweb_router.py", f"http://127.0.0.1:{peers.free_port()}/dicom-web")
        result = await self.example("pool_client.py", "127.0.0.1", port, "ROUTER", CT)
        self.assertIn(f"{CT}: 0xA700", result.text)

    async def test_pool_client(self) -> None:
        port = await peers.dcmtk_storescp(self, self.folder / "received")
        result = await self.example("pool_client.py", "127.0.0.1", port, "ANY", CT, self.folder / "missing.dcm")
        self.assertIn("C-ECHO: 0x0000 Success", result.text)
        self.assertIn(f"{CT}: 0x0000 Success", result.text)
        self.assertIn("missing.dcm: [Errno 2]", result.text)

    async def test_mutual_tls(self) -> None:
        authority = Authority(str(self.folder), "ca")
        server, client = authority.issue("server", "localhost"), authority.issue("client", "CT1")
        result = await self.example("mutual_tls.py", server, client, authority.path)
        self.assertIn("with a certificate: 0x0000 Success\n", result.text)
        self.assertRegex(result.text, r"without: .*certificate")

    async def test_script(self) -> None:
        """Files that the archive takes are sent and found; a path without a file has a line of its own."""
        port = await self.archive()
        result = await self.example(
            "script.py", "127.0.0.1", port, "ARCHIVE", CT, JPEG_2000, self.folder / "missing.dcm"
        )
        self.assertIn("C-ECHO: 0x0000 Success\n", result.text)
        self.assertIn(f"{CT}: 0x0000 Success\n", result.text)
        self.assertIn(f"{JPEG_2000}: 0x0000 Success\n", result.text)
        self.assertIn("missing.dcm: [Errno 2]", result.text)
        self.assertIn("CompressedSamples^CT1, 1 instances\n", result.text)

    async def test_notebook(self) -> None:
        """Each cell of "notebook.ipynb" runs in a kernel and prints what it should."""
        result = await peers.run(sys.executable, "-c", RUN_NOTEBOOK, EXAMPLES / "notebook.ipynb")
        self.assertEqual(result.code, 0, result.text)
        self.assertIn("<Server of ARCHIVE at [('127.0.0.1', ", result.text)
        self.assertIn("0x0000 Success\nVerification SOP Class\n", result.text)
        self.assertIn("CompressedSamples^CT1\n", result.text)
        self.assertIn("Doe^Jane\n", result.text)
        self.assertIn("\n2\nTrue\n", result.text)

    async def test_in_memory(self) -> None:
        """ "test_in_memory.py" passes as a test, run by trial."""
        temporary = f"--temp-directory={self.folder / 'trial'}"
        result = await peers.run(sys.executable, "-m", "twisted.trial", temporary, EXAMPLES / "test_in_memory.py")
        self.assertIn("PASSED (successes=2)", result.text)

    async def test_gateway_in_memory(self) -> None:
        """ "test_gateway.py" passes as a test, run by trial from another folder."""
        temporary = f"--temp-directory={self.folder / 'trial'}"
        result = await peers.run(sys.executable, "-m", "twisted.trial", temporary, EXAMPLES / "test_gateway.py")
        self.assertIn("PASSED (successes=2)", result.text)
