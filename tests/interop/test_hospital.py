"""
The way of an integration engineer: ``examples/hospital.toml`` is checked and served, scanners send over TLS, one is refused and
sends again after a change of the rules, and a viewer moves a study to a workstation.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import UID
from twisted.trial.unittest import TestCase

from tests import peers
from tests.peers import dataset_bytes

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "hospital.toml"


class Hospital(TestCase):
    timeout = 300

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.ports = {number: str(peers.free_port()) for number in ("2762", "11112", "11113")}
        certificates = peers.certificates()
        for name, source in (
            ("ca.pem", certificates.ca),
            ("pacs.pem", certificates.server_cert),
            ("pacs-key.pem", certificates.server_key),
            ("ct1.pem", certificates.client_cert),
            ("ct1-key.pem", certificates.client_key),
        ):
            shutil.copy(source, self.folder / name)
        text = EXAMPLE.read_text()
        for number, port in self.ports.items():
            text = re.sub(rf"\b{number}\b", port, text)
        text = text.replace("CN=ct1", "CN=client")  # as the certificates of the tests have it
        self.configuration = self.folder / "hospital.toml"
        self.configuration.write_text(text)
        self.study, self.other = self.folder / "study", self.folder / "other"
        self.study.mkdir()
        self.other.mkdir()
        dataset = dcmread(str(get_testdata_file("CT_small.dcm")))
        for count in range(5):
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.826.0.1.{count}")
            dataset.save_as((self.study if count < 2 else self.other) / f"{count}.dcm")
        self.study_uid = str(dataset.StudyInstanceUID)

    async def shell(self, command: str, code: int = 0) -> str:
        """Run *command* in the folder with this interpreter's ``twist`` and ``dicomtwist``; return what it prints."""
        python = f'"{sys.executable}" -m'
        command = re.sub(r"\bdicomtwist (?=\w)", f"{python} dicomtwist.tools ", command)
        command = re.sub(r"\btwist dicom\b", f"{python} twisted dicom", command)
        result = await peers.run("/bin/bash", "-c", f"cd '{self.folder}' && {command}", timeout=120)
        self.assertEqual(result.code, code, f"{command}\n{result.text}")
        return result.text

    async def start(self) -> Any:
        """Start the server of the configuration."""
        command = f"cd '{self.folder}' && exec '{sys.executable}' -m twisted dicom --config hospital.toml"
        return await peers.start(self, "/bin/bash", "-c", command, ready=int(self.ports["2762"]))

    def scanner(self, title: str) -> str:
        """Return the options of a command that calls as a scanner with the certificate."""
        return f"--calling {title} --tls-roots ca.pem --tls-certificate ct1.pem --tls-key ct1-key.pem"

    async def test_the_way(self) -> None:
        await self.shell("echo geheim | dicomtwist passwd --users users radiology")
        checked = await self.shell("twist dicom --config hospital.toml --check")
        self.assertIn("scanners", checked)
        self.assertRegex(checked, r"users +1 in users")
        case = "from=10.1.2.3,certificate=ct1.pem,operation=store"
        self.assertIn(
            "'scanners'", await self.shell(f"twist dicom --config hospital.toml --explain calling=CT1,{case}")
        )
        refused = await self.shell(f"twist dicom --config hospital.toml --explain calling=US1,{case}", 1)
        self.assertIn("not CT*, MR*", " ".join(refused.split()))
        server = await self.start()
        secure, plain = f"ARCHIVE@127.0.0.1:{self.ports['2762']}", f"ARCHIVE@127.0.0.1:{self.ports['11112']}"

        # A scanner with DCMTK, over TLS with its certificate.
        sent = await peers.run(
            *(peers.dcmtk("storescu"), "-aet", "CT1", "-aec", "ARCHIVE", "+tls"),
            *(self.folder / "ct1-key.pem", self.folder / "ct1.pem", "+cf", self.folder / "ca.pem"),
            *("127.0.0.1", self.ports["2762"], self.study / "0.dcm", self.study / "1.dcm"),
        )
        self.assertEqual(sent.code, 0, sent.text)
        # Without TLS, the AE title alone does not let a scanner in.
        sent = await peers.run(
            *(peers.dcmtk("storescu"), "-aet", "CT1", "-aec", "ARCHIVE"),
            *("127.0.0.1", self.ports["11112"], self.study / "0.dcm"),
        )
        self.assertNotEqual(sent.code, 0, sent.text)

        # Another scanner is refused, and sends again when the rules know it; what is there is not sent twice.
        send = f"dicomtwist store {self.scanner('US1')} --resume sent.journal {secure} other"
        self.assertIn("calling AE title", await self.shell(send, 3))
        await server.wait_for("the nearest is access.rule 1 'scanners'")
        self.configuration.write_text(self.configuration.read_text().replace('"MR*"]', '"MR*", "US*"]'))
        await self.shell("twist dicom --config hospital.toml --check")
        server.signal("HUP")
        await server.wait_for("reloaded the rules")
        self.assertRegex(await self.shell(send), r"stored +3")
        self.assertNotRegex(await self.shell(send), r"(?m)^ +stored +[1-9]")

        # A viewer: without its user nothing, with it a query, and a move to the workstation.
        find = f"find {plain} -k StudyInstanceUID={self.study_uid} -k NumberOfStudyRelatedInstances --csv -q"
        await self.shell(f"dicomtwist {find}", 3)
        (self.folder / "passcode").write_text("geheim\n")
        user = "--user radiology --password-file passcode"
        self.assertIn(f"{self.study_uid},5", await self.shell(f"dicomtwist {find} {user}"))
        workstation = self.folder / "workstation"
        workstation.mkdir()
        port = self.ports["11113"]
        await peers.start(
            self, peers.dcmtk("storescp"), "+B", "-aet", "WORKSTATION", "-od", workstation, port, ready=int(port)
        )
        await self.shell(f"dicomtwist move {plain} --to WORKSTATION -k StudyInstanceUID={self.study_uid} {user}")
        arrived = {dataset_bytes(path) for path in workstation.iterdir()}
        self.assertEqual(len(arrived), 5)
        # DCMTK encodes again what it sends.
        self.assertLessEqual({dataset_bytes(path) for path in self.other.iterdir()}, arrived)

        server.signal("TERM")
        self.assertEqual((await server.wait(60)).code, 0)
        self.assertNotIn("geheim", server.text)
        self.assertNotIn("Traceback", server.text)
