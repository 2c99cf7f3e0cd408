"""
Storage requests of real clients of DICOMweb: dicomweb-client, Orthanc's plugin and curl. The stored data sets are theirs, byte
for byte.
"""

from __future__ import annotations

import json
import shutil
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from dicomweb_client import DICOMwebClient
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from twisted.internet.threads import deferToThread

from tests import peers
from tests.interop.archives import orthanc
from tests.interop.twist import TwistTestCase
from tests.publishing import publish

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


class Clients(TwistTestCase):
    async def twist(self, *options: object) -> None:
        self.http = peers.free_port()
        await super().twist("--http", f"tcp:{self.http}:interface=127.0.0.1", *options)
        self.url = f"http://127.0.0.1:{self.http}/dicom-web"

    async def stored(self) -> dict[str, bytes]:
        """Return the data set of each stored instance, by its SOP Instance UID."""
        await publish(self.port, "TWIST")
        return {path.stem: peers.dataset_bytes(path) for path in (self.root / "storage").rglob("*.dcm")}

    async def test_dicomweb_client(self) -> None:
        await self.twist()
        files = [
            file for file in peers.one_per_transfer_syntax().values() if file.transfer_syntax == ExplicitVRLittleEndian
        ]
        datasets = [dcmread(file.path) for file in files]
        answer: Any = await deferToThread(DICOMwebClient(self.url).store_instances, datasets)
        self.assertEqual(len(answer.ReferencedSOPSequence), len(files))
        self.assertNotIn("FailedSOPSequence", answer)
        self.assertEqual((await self.stored()).keys(), {file.sop_instance for file in files})
        # In the study of another one it is refused, and dicomweb-client says so.
        answer = await deferToThread(
            lambda: DICOMwebClient(self.url).store_instances(
                [*datasets, self.other(datasets[0])], datasets[0].StudyInstanceUID
            )
        )
        self.assertEqual(answer.FailedSOPSequence[0].FailureReason, 0xA900)

    def other(self, dataset: Any) -> Any:
        changed: Any = dcmread(dataset.filename)
        changed.StudyInstanceUID = "1.2.3"
        changed.SOPInstanceUID = changed.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        return changed

    async def test_orthanc(self) -> None:
        """Orthanc's plugin stores, searches and retrieves at a server of its configuration."""
        if not PLUGIN.exists():
            raise peers.missing_error(
                "not installed: Orthanc's plugin (Debian and Ubuntu: apt-get install orthanc-dicomweb)"
            )
        await self.twist()
        files = list(peers.one_per_transfer_syntax().values())[:6]
        port = peers.free_port()
        await orthanc(
            self,
            files,
            HttpServerEnabled=True,
            HttpPort=port,
            RemoteAccessAllowed=False,
            Plugins=[str(PLUGIN)],
            DicomWeb={"Servers": {"us": [f"{self.url}/"]}},
        )

        def ask(method: str, path: str, document: Any = None) -> Any:
            connection = HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request(method, path, None if document is None else json.dumps(document))
            response = connection.getresponse()
            text = response.read()
            connection.close()
            self.assertEqual(response.status, 200, (path, text))
            return json.loads(text)

        def use() -> tuple[list[Any], int, list[str]]:
            instances = ask("GET", "/instances")
            ask("POST", "/dicom-web/servers/us/stow", {"Resources": instances, "Synchronous": True})
            found = ask("POST", "/dicom-web/servers/us/qido", {"Uri": "/studies"})
            for one in instances:
                ask("DELETE", f"/instances/{one}")
            wanted = [{"Study": file.study} for file in files[:3]]
            wanted += [
                {"Study": file.study, "Series": file.series, "Instance": file.sop_instance} for file in files[3:]
            ]
            result = ask("POST", "/dicom-web/servers/us/retrieve", {"Resources": wanted, "Synchronous": True})
            return found, int(result["ReceivedInstancesCount"]), ask("GET", "/instances")

        found, received, instances = await deferToThread(use)
        stored = await self.stored()
        self.assertEqual(stored.keys(), {file.sop_instance for file in files})
        self.assertEqual(
            {{key.upper(): value for key, value in one.items()}["0020000D"]["Value"] for one in found},
            {file.study for file in files},
        )
        self.assertGreaterEqual(received, len(files))
        self.assertEqual(len(instances), len(files))

    async def test_curl(self) -> None:
        """curl sends one file as it is, with Expect: 100-continue if it is long."""
        curl = shutil.which("curl")
        if curl is None:
            raise peers.missing_error("not installed: curl")
        await self.twist()
        files = list(peers.one_per_transfer_syntax().values())
        for file in files:
            result = await peers.run(
                *(curl, "-s", "--fail", "-H", "Content-Type: application/dicom", "-H", "Expect: 100-continue"),
                *("--data-binary", f"@{file.path}", f"{self.url}/studies"),
            )
            self.assertEqual(result.code, 0, result.text)
            self.assertIn(file.sop_instance, result.text)
            self.assertEqual((await self.stored())[file.sop_instance], peers.dataset_bytes(file.path), file.name)
