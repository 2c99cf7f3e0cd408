"""dicomtwist.web.wado.alternatives: if the best representation cannot be made, the next one that is acceptable is given."""

from __future__ import annotations

import unittest
from pathlib import Path

from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless
from twisted.internet import reactor
from twisted.internet.defer import fail

from dicomtwist.archive.storage.types import InstanceUIDs
from dicomtwist.pixels.errors import NotEncoded
from dicomtwist.pixels.pool import Pixels
from dicomtwist.pixels.syntaxes import is_available
from tests.web.wado.sample import WADOTestCase, image, test_file
from tests.web.wado.test_frames import parts_of

COMPRESSED = "MR_small_jp2klossless.dcm"


class AlternativesTestCase(WADOTestCase):
    timeout = 120

    def setUp(self) -> None:
        super().setUp()
        pixels = Pixels(reactor, processes=1)
        self.addCleanup(pixels.stop)
        self.services.pixels = pixels

    def damage(self, uids: InstanceUIDs) -> Path:
        """Overwrite the beginning of the compressed pixel data of an instance; return its path."""
        path = self.archive.store.path(*uids)
        content = path.read_bytes()
        at = content.index(b"\xff\x4f\xff\x51")
        path.write_bytes(content[:at] + bytes(64) + content[at + 64 :])
        return path


@unittest.skipUnless(is_available(), "the extra pixels is not installed")
class Alternatives(AlternativesTestCase):
    async def test_frames(self) -> None:
        """A frame that cannot be decoded is given as it is stored, if the client takes that."""
        (uids,) = await self.store(test_file(COMPRESSED))
        stored = next(generate_frames(dcmread(self.damage(uids)).PixelData, number_of_frames=1))
        client = self.client()
        for accept in (
            "application/octet-stream, */*",
            "application/octet-stream, */*;q=0.1",
            "application/octet-stream, image/*;q=0.5",
            "image/jls, image/jp2;q=0.9",
            "multipart/related; type=image/jls, multipart/related; type=image/jp2; q=0.2",
            'multipart/related; type="application/octet-stream", */*',
            "multipart/related; type=application/octet-stream, multipart/related; type=image/*; q=0.5",
            f'multipart/related; type="application/octet-stream"; transfer-syntax={ExplicitVRLittleEndian},'
            ' multipart/related; type="application/octet-stream"; transfer-syntax=*; q=0.5',
        ):
            for rest in ("/frames/1", "/pixeldata", "/bulkdata/7FE00010"):
                response = await client.request("GET", self.path(uids, rest), [("Accept", accept)])
                self.assertEqual(response.status, 200, (accept, rest, response.body[:200]))
                header, content = response.headers, response.body
                if header["content-type"].startswith("multipart"):
                    ((header, content),) = parts_of(response)
                self.assertIn(f"transfer-syntax={JPEG2000Lossless}", header["content-type"])
                self.assertEqual(content, stored, accept)
                head = await client.request("HEAD", self.path(uids, rest), [("Accept", accept)])
                self.assertEqual((head.status, head.body), (200, b""))
        for accept in ("application/octet-stream", "image/jls", "multipart/related; type=application/octet-stream"):
            response = await client.request("GET", self.path(uids, "/frames/1"), [("Accept", accept)])
            self.assertEqual(response.status, 406, accept)

    async def test_one_frame_of_several(self) -> None:
        """It is given as it is stored; the others as the client prefers."""
        sample = dcmread(test_file(COMPRESSED))
        good = next(generate_frames(sample.PixelData, number_of_frames=1))
        bad = bytes(64) + good[64:]
        expected = dcmread(test_file("MR_small.dcm")).PixelData
        for order in ((good, bad, good, bad, good), (bad, good, bad)):
            sample.PixelData = encapsulate(list(order))
            sample.NumberOfFrames = len(order)
            sample.SOPInstanceUID = f"1.2.3.{len(order)}"
            (uids,) = await self.store(sample)
            path = self.path(uids, "/frames/" + ",".join(str(number + 1) for number in range(len(order))))
            accept = "multipart/related; type=application/octet-stream, multipart/related; type=image/jp2; q=0.5"
            response = await self.client().request("GET", path, [("Accept", accept)])
            self.assertEqual(response.status, 200)
            parts = parts_of(response)
            self.assertEqual(len(parts), len(order))
            for number, ((header, content), one) in enumerate(zip(parts, order, strict=True), 1):
                self.assertTrue(header["content-location"].endswith(f"/frames/{number}"))
                self.assertEqual(header["content-type"].startswith("image/jp2"), one is bad, number)
                self.assertEqual(
                    content.rstrip(b"\0") == bad.rstrip(b"\0") if one is bad else content == expected, True
                )

    async def test_instances(self) -> None:
        (uids,) = await self.store(test_file(COMPRESSED))
        path = self.damage(uids)
        client = self.client()
        explicit = f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"
        related = f'multipart/related; type="application/dicom"; transfer-syntax={JPEGLSLossless}'
        for accept in (
            "application/dicom",
            f"{explicit}, */*",
            f"{explicit}, application/dicom; transfer-syntax={JPEG2000Lossless}; q=0.3",
            f"{related}, */*;q=0.1",
            f'{related}, multipart/related; type="application/dicom"; transfer-syntax=*; q=0.1',
        ):
            levels = (1, 2, 3) if "multipart" in accept else (3,)
            for level in levels:
                response = await client.request("GET", self.path(uids[:level]), [("Accept", accept)])
                self.assertEqual(response.status, 200, (accept, level, response.body[:200]))
                content = response.body
                if response.headers["content-type"].startswith("multipart"):
                    ((_, content),) = parts_of(response)
                self.assertEqual(content, path.read_bytes(), accept)
        for level, accept in ((3, explicit), (3, related), (2, related), (1, related)):
            response = await client.request("GET", self.path(uids[:level]), [("Accept", accept)])
            self.assertEqual(response.status, 406, (level, accept))
        response = await client.request("GET", self.path(uids), [("Accept", f"{explicit}, application/zip;q=0.1")])
        self.assertEqual((response.status, response.headers["content-type"]), (200, "application/zip"))

    async def test_uri_service(self) -> None:
        (uids,) = await self.store(test_file(COMPRESSED))
        path = self.damage(uids)
        client = self.client()
        query = f"/dicom-web/wado?requestType=WADO&studyUID={uids[0]}&seriesUID={uids[1]}&objectUID={uids[2]}"
        for more in ("&contentType=application/dicom", "&contentType=image/jpeg,application/dicom"):
            response = await client.request("GET", query + more)
            self.assertEqual((response.status, response.body), (200, path.read_bytes()), more)
        response = await client.request("GET", query, [("Accept", "image/png, */*;q=0.1")])
        self.assertEqual((response.status, response.headers["content-type"][:17]), (200, "application/dicom"))
        for more in ("&contentType=image/jpeg", f"&contentType=application/dicom&transferSyntax={JPEGLSLossless}"):
            self.assertEqual((await client.request("GET", query + more)).status, 406, more)

    async def test_rendered(self) -> None:
        """A codec that cannot encode an image, such as one of JPEG, which has 65,535 pixels a side at most."""
        (uids,) = await self.store(image(1))
        pixels = self.services.pixels
        assert pixels is not None
        render = pixels.render

        def fails_for_jpeg(path, frame, options, **more):
            if options.media_type == "image/jpeg":
                return fail(NotEncoded("the image is too wide"))
            return render(path, frame, options, **more)

        self.patch(pixels, "render", fails_for_jpeg)
        client = self.client()
        for accept in ("*/*", "image/jpeg, image/png;q=0.5", "image/*", ""):
            for rest in ("/rendered", "/frames/1/rendered", "/thumbnail"):
                headers = [("Accept", accept)] if accept else []
                response = await client.request("GET", self.path(uids, rest), headers)
                self.assertEqual((response.status, response.headers["content-type"]), (200, "image/png"), accept)
        response = await client.request("GET", self.path(uids, "/rendered"), [("Accept", "image/jpeg")])
        self.assertEqual(response.status, 406)
        for accept in ("image/jpeg, multipart/related; type=image/png", "multipart/related; type=image/*"):
            for level in (1, 2, 3):
                response = await client.request("GET", self.path(uids[:level], "/rendered"), [("Accept", accept)])
                ((header, _),) = parts_of(response)
                self.assertEqual(header["content-type"], "image/png")
