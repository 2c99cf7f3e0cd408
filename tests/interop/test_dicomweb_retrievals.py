"""
Instances from pydicom's files go into ``twist dicom`` by STOW-RS, and come back by WADO-RS byte for byte; dicomweb-client
retrieves as well.
"""

from __future__ import annotations

import json
import warnings
from array import array
from base64 import b64encode
from collections.abc import Callable
from http.client import HTTPConnection
from io import BytesIO
from typing import Any

from dicomweb_client import DICOMwebClient
from pydicom import dcmread
from pydicom.encaps import generate_frames
from twisted.internet.threads import deferToThread

from dicomtwist.part10 import read_file_meta
from tests import peers
from tests.dicomweb.test_json_encoder import OTHERS, standard
from tests.interop.twist import TwistTestCase
from tests.peers import DicomFile

ANY = 'multipart/related; type="application/dicom"; transfer-syntax=*'


def data_set_of(content: bytes) -> bytes:
    """Return the data set in a Part 10 file: the File Meta Information is that of the archive."""
    return content[read_file_meta(BytesIO(content))[1] :]


class Retrievals(TwistTestCase):
    async def started(self, use: Callable[[], Any]) -> Any:
        """Start an archive with HTTP, and call *use* in a thread."""
        self.http = peers.free_port()
        await self.twist("--http", f"tcp:{self.http}:interface=127.0.0.1")
        return await deferToThread(use)

    def request(self, method: str, path: str, body: bytes = b"", **fields: str) -> tuple[Any, bytes]:
        """Return the response to a request, and its body."""
        connection = HTTPConnection("127.0.0.1", self.http, timeout=60)
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        connection.request(method, f"/dicom-web{path}", body or None, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response, content

    def stow(self, file: DicomFile) -> int:
        """Store a file; return the status of the response."""
        with open(file.path, "rb") as opened:
            body = b"--B\r\nContent-Type: application/dicom\r\n\r\n" + opened.read() + b"\r\n--B--\r\n"
        content_type = 'multipart/related; type="application/dicom"; boundary=B'
        return int(self.request("POST", "/studies", body, Content_Type=content_type)[0].status)

    async def test_every_file(self) -> None:
        files = peers.dicom_files()

        def use() -> None:
            done = 0
            for file in files:
                if self.stow(file) != 200:
                    continue
                done += 1
                path = f"/studies/{file.study}/series/{file.series}/instances/{file.sop_instance}"
                with open(file.path, "rb") as opened:
                    expected = opened.read()
                response, content = self.request("GET", path, Accept="application/dicom; transfer-syntax=*")
                self.assertEqual(response.status, 200, file)
                self.assertEqual(data_set_of(content), data_set_of(expected), file)
                self._found(path, file)
                self._metadata(path, expected, file)
            self.assertGreater(done, len(files) * 0.9)

        await self.started(use)

    def _found(self, path: str, file: DicomFile) -> None:
        """Check that a search finds the instance, and nothing else."""
        response, content = self.request(
            "GET", f"/instances?SOPInstanceUID={file.sop_instance}&StudyInstanceUID={file.study}"
        )
        self.assertEqual(response.status, 200, file)
        (found,) = json.loads(content)
        self.assertEqual(found["00080018"]["Value"], [file.sop_instance])
        self.assertEqual(found["0020000E"]["Value"], [file.series])
        self.assertTrue(found["00081190"]["Value"][0].endswith(f"/dicom-web{path}"), file)

    def _metadata(self, path: str, expected: bytes, file: DicomFile) -> None:
        """Check that the metadata are those of pydicom, with the values that BulkDataURIs lead to; pixel data aside."""
        response, content = self.request("GET", path + "/metadata")
        self.assertEqual(response.status, 200, file)
        dataset = dcmread(BytesIO(expected))
        (found,) = json.loads(content)
        self.assertEqual("7FE00010" in found, "PixelData" in dataset, file)
        if "7FE00010" in found:
            self._value(found.pop("7FE00010"), file, "*/*")
        self._resolve(found, file, is_big_endian=not dataset.is_little_endian)
        if file.path.rpartition("/")[2] in OTHERS:
            self.assertEqual(found["00080018"]["Value"], [file.sop_instance])
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = standard(dataset.to_json_dict())
        made.pop("7FE00010", None)
        self.assertEqual(
            found, json.loads(json.dumps({tag: one for tag, one in made.items() if tag[:4] != "0002"})), file
        )

    def _resolve(self, model: dict[str, Any], file: DicomFile, *, is_big_endian: bool) -> None:
        """Put the values that BulkDataURIs lead to into the metadata *model*."""
        for element in model.values():
            if "BulkDataURI" in element:
                data = self._value(element, file)
                del element["BulkDataURI"]
                if is_big_endian and element["vr"] == "OW":
                    words = array("H", data)
                    words.byteswap()
                    data = words.tobytes()
                element["InlineBinary"] = b64encode(data).decode()
            elif element["vr"] == "SQ":
                for item in element.get("Value", []):
                    self._resolve(item, file, is_big_endian=is_big_endian)

    def _value(
        self, element: dict[str, Any], file: DicomFile, accept: str = "application/octet-stream, */*;q=0.5"
    ) -> bytes:
        """Return what a BulkDataURI leads to."""
        url = element["BulkDataURI"]
        self.assertTrue(url.startswith(f"http://127.0.0.1:{self.http}/dicom-web/studies/"), url)
        response, data = self.request("GET", url.partition("/dicom-web")[2], Accept=accept)
        self.assertEqual(response.status, 200, (file, url))
        return data

    async def test_dicomweb_client(self) -> None:
        """dicomweb-client retrieves studies, series, instances, metadata, frames and bulk data."""
        files = {file.path.rpartition("/")[2]: file for file in peers.dicom_files()}
        some = [
            files[name] for name in ("CT_small.dcm", "MR_small_implicit.dcm", "JPEG2000.dcm", "examples_ybr_color.dcm")
        ]

        def use() -> None:
            client = DICOMwebClient(f"http://127.0.0.1:{self.http}/dicom-web")
            for file in some:
                self.assertEqual(self.stow(file), 200)
                uids = (file.study, file.series, file.sop_instance)
                expected = dcmread(file.path)
                stored = ("application/dicom", "*")
                for found in (
                    client.retrieve_study(uids[0], media_types=(stored,)),
                    client.retrieve_series(*uids[:2], media_types=(stored,)),
                    [client.retrieve_instance(*uids, media_types=(stored,))],
                    [client.retrieve_instance(*uids)],
                    list(client.iter_study(uids[0])),
                ):
                    (one,) = found
                    self.assertEqual(one.SOPInstanceUID, expected.SOPInstanceUID)
                    self.assertEqual(one.Rows, expected.Rows)
                for metadata in (
                    client.retrieve_study_metadata(uids[0]),
                    client.retrieve_series_metadata(*uids[:2]),
                    [client.retrieve_instance_metadata(*uids)],
                ):
                    self.assertEqual(metadata[0]["00080018"]["Value"], [file.sop_instance])
                if expected.file_meta.TransferSyntaxUID.is_encapsulated:
                    count = int(expected.get("NumberOfFrames", 1))
                    frames = list(generate_frames(expected.PixelData, number_of_frames=count))
                    media_type = "image/jpeg" if count > 1 else "image/jp2"
                    media_types: Any = ((media_type, expected.file_meta.TransferSyntaxUID),)
                else:
                    size = len(expected.PixelData) // int(expected.get("NumberOfFrames", 1))
                    frames = [expected.PixelData[at : at + size] for at in range(0, len(expected.PixelData), size)]
                    media_types = (("application/octet-stream", "1.2.840.10008.1.2.1"),)
                numbers = [1, len(frames)]
                found_frames = client.retrieve_instance_frames(*uids, frame_numbers=numbers, media_types=media_types)
                self.assertEqual(found_frames, [frames[0], frames[-1]])
                url = metadata[0]["7FE00010"]["BulkDataURI"]
                if not expected.file_meta.TransferSyntaxUID.is_encapsulated:
                    self.assertEqual(b"".join(client.retrieve_bulkdata(url)), expected.PixelData)

        await self.started(use)
