"""dicomtwist.web.wado.transcoding: compressed instances and frames in other transfer syntaxes."""

from __future__ import annotations

import unittest
from io import BytesIO

from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless
from twisted.internet import reactor

from dicomtwist.pixels.pool import Pixels
from dicomtwist.pixels.syntaxes import is_available
from tests.web.wado.sample import WADOTestCase, test_file
from tests.web.wado.test_frames import parts_of

COMPRESSED = "MR_small_jp2klossless.dcm"
PLAIN = "MR_small.dcm"


@unittest.skipUnless(is_available(), "the extra pixels is not installed")
class Transcoding(WADOTestCase):
    def setUp(self) -> None:
        super().setUp()
        pixels = Pixels(reactor, processes=1)
        self.addCleanup(pixels.stop)
        self.services.pixels = pixels

    async def test_instances(self) -> None:
        (uids,) = await self.store(test_file(COMPRESSED))
        expected = dcmread(test_file(PLAIN)).PixelData
        client = self.client()
        for accept, syntax in (
            ("application/dicom", ExplicitVRLittleEndian),
            ('multipart/related; type="application/dicom"', ExplicitVRLittleEndian),
            (f"application/dicom; transfer-syntax={JPEGLSLossless}", JPEGLSLossless),
            ("application/dicom; transfer-syntax=*", JPEG2000Lossless),
        ):
            for path in (self.path(uids), self.path(uids[:1])) if "multipart" in accept else (self.path(uids),):
                response = await client.request("GET", path, [("Accept", accept)])
                self.assertEqual(response.status, 200)
                content = response.body
                if "multipart" in accept:
                    ((headers, content),) = parts_of(response)
                    self.assertEqual(headers["content-type"], f"application/dicom; transfer-syntax={syntax}")
                dataset = dcmread(BytesIO(content))
                self.assertEqual(dataset.file_meta.TransferSyntaxUID, syntax)
                if syntax == ExplicitVRLittleEndian:
                    self.assertEqual(dataset.PixelData, expected)
        query = f"requestType=WADO&studyUID={uids[0]}&seriesUID={uids[1]}&objectUID={uids[2]}"
        response = await client.request("GET", f"/dicom-web/wado?{query}&contentType=application/dicom")
        self.assertEqual(dcmread(BytesIO(response.body)).PixelData, expected)

    async def test_frames(self) -> None:
        (uids,) = await self.store(test_file(COMPRESSED))
        expected = dcmread(test_file(PLAIN)).PixelData
        client = self.client()
        for accept in ("application/octet-stream", "multipart/related; type=application/octet-stream"):
            response = await client.request("GET", self.path(uids, "/frames/1"), [("Accept", accept)])
            self.assertEqual(response.status, 200)
            content = response.body
            if "multipart" in accept:
                ((headers, content),) = parts_of(response)
                self.assertIn(ExplicitVRLittleEndian, headers["content-type"])
            self.assertEqual(content, expected)

    async def test_one_that_cannot_be_decoded(self) -> None:
        """The instance is given as it is stored, unless another transfer syntax is asked for."""
        uids = await self.store(test_file(COMPRESSED))
        path = self.archive.store.path(*uids[0])
        content = path.read_bytes()
        path.write_bytes(content[:-3000] + bytes(3000 - 8) + content[-8:])
        accept = ("Accept", 'multipart/related; type="application/dicom"')
        client = self.client()
        response = await client.request("GET", self.path(uids[0][:1]), [accept])
        ((headers, part),) = parts_of(response)
        self.assertIn(JPEG2000Lossless, headers["content-type"])
        self.assertEqual(part, path.read_bytes())
        response = await client.request("GET", self.path(uids[0]), [("Accept", "application/dicom")])
        self.assertEqual(response.body, path.read_bytes())
        wanted = ("Accept", f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}")
        response = await client.request("GET", self.path(uids[0]), [wanted])
        self.assertEqual(response.status, 406)
        self.assertIn("words", response.json)
