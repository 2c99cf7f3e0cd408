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
        """Orthanc's plugin sends what it has to a server of its configuration."""
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

        def send() -> tuple[int, Any]:
            connection = HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/instances")
            instances = json.loads(connection.getresponse().read())
            body = json.dumps({"Resources": instances, "Synchronous": True})
            connection.request("POST", "/dicom-web/servers/us/stow", body)
            response = connection.getresponse()
            return response.status, response.read()

        status, text = await deferToThread(send)
        self.assertEqual(status, 200, text)
        stored = await self.stored()
        self.assertEqual(stored.keys(), {file.sop_instance for file in files})

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
