"""dicomtwist.web.wado.rendered: rendered images and thumbnails."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image as Picture
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from dicomtwist.archive.storage.types import InstanceUIDs
from dicomtwist.pixels.pool import Pixels
from dicomtwist.web.wado import rendered
from tests.web.site import Response, reactor
from tests.web.wado.sample import WADOTestCase, image, test_file
from tests.web.wado.test_frames import parts_of


def picture_of(response: Response) -> Any:
    return Picture.open(BytesIO(response.body))


class RenderedTestCase(WADOTestCase):
    """A site whose images are rendered by one process."""

    timeout = 120

    def setUp(self) -> None:
        super().setUp()
        pixels = self.services.pixels = Pixels(reactor, processes=1)
        self.addCleanup(pixels.stop)


class Documents(WADOTestCase):
    """Instances that are no images, on a server that renders none."""

    async def test_documents(self) -> None:
        """The rendered resource of a document is the document (PS3.18 Table 8.7.4-1)."""
        (uids,) = await self.store(
            image(1, EncapsulatedDocument=b"%PDF" + bytes(2000), MIMETypeOfEncapsulatedDocument="application/pdf")
        )
        client = self.client()
        path = self.path(uids, "/rendered")
        for accepted in ("", "*/*", "application/pdf", "text/html,application/xhtml+xml,*/*;q=0.8"):
            response = await client.request("GET", path, [("Accept", accepted)] if accepted else [])
            self.assertEqual((response.status, response.headers["content-type"]), (200, "application/pdf"), accepted)
            self.assertEqual(response.body, b"%PDF" + bytes(2000))
            self.assertNotIn("sandbox", response.headers["content-security-policy"])
        etag = response.headers["etag"]
        self.assertEqual((await client.request("GET", path, [("If-None-Match", etag)])).status, 304)
        response = await client.request("GET", path, [("Range", "bytes=0-3")])
        self.assertEqual((response.status, response.body), (206, b"%PDF"))
        self.assertEqual((await client.request("GET", path, [("Accept", "text/html")])).status, 406)
        for rest in ("/frames/1/rendered", "/thumbnail"):
            self.assertGreaterEqual((await client.request("GET", self.path(uids, rest))).status, 400, rest)

    async def test_videos(self) -> None:
        stream = bytes(range(256)) * 8
        (uids,) = await self.store(
            image(1, PixelData=encapsulate([stream]), NumberOfFrames=100, syntax="1.2.840.10008.1.2.4.102")
        )
        client = self.client()
        response = await client.request("GET", self.path(uids, "/rendered"), [("Accept", "video/mp4")])
        self.assertEqual((response.status, response.headers["content-type"]), (200, "video/mp4"))
        self.assertEqual(response.body, stream)
        response = await client.request("GET", self.path(uids, "/rendered"), [("Range", "bytes=256-511")])
        self.assertEqual((response.status, response.body), (206, bytes(range(256))))

    async def test_no_scripts(self) -> None:
        """A document that a browser would run is in a sandbox, whatever asks for it."""
        page = b"<script>alert(1)</script>" * 100
        (uids,) = await self.store(
            image(1, EncapsulatedDocument=page, MIMETypeOfEncapsulatedDocument="text/html"),
        )
        for rest in ("/rendered", "/bulkdata/00420011", "/bulkdata/00420011?accept=text/html"):
            response = await self.client().request("GET", self.path(uids, rest), [("Accept", "text/html,*/*;q=0.8")])
            self.assertEqual((response.status, response.headers["content-type"]), (200, "text/html"), rest)
            self.assertIn("sandbox", response.headers["content-security-policy"], rest)
            self.assertIn("default-src 'none'", response.headers["content-security-policy"], rest)

    async def test_neither(self) -> None:
        """Without processes that render, an image is not there; the reason stays."""
        (uids,) = await self.store(test_file("CT_small.dcm"))
        self.assertEqual((await self.client().request("GET", self.path(uids, "/rendered"))).status, 501)


class Rendered(RenderedTestCase):
    async def test_media_types(self) -> None:
        (uids,) = await self.store(test_file("CT_small.dcm"))
        client = self.client()
        path = self.path(uids, "/rendered")
        browser = "text/html,application/xhtml+xml,image/avif,image/webp,image/apng,*/*;q=0.8"
        for accepted, media_type in (
            ("", "image/jpeg"),
            ("*/*", "image/jpeg"),
            (browser, "image/jpeg"),
            ("image/jpeg", "image/jpeg"),
            ("image/png", "image/png"),
            ("image/gif;q=0.5, image/png;q=0.9", "image/png"),
            ("image/gif", "image/gif"),
        ):
            response = await client.request("GET", path, [("Accept", accepted)] if accepted else [])
            self.assertEqual((response.status, response.headers["content-type"]), (200, media_type), accepted)
            self.assertEqual(int(response.headers["content-length"]), len(response.body))
            self.assertEqual(picture_of(response).size, (128, 128))
            self.assertEqual(f"image/{picture_of(response).format.lower()}", media_type)
        for accepted in ("image/jls", "application/dicom", "text/html", "video/mp4"):
            self.assertEqual((await client.request("GET", path, [("Accept", accepted)])).status, 406, accepted)

    async def test_parameters(self) -> None:
        (uids,) = await self.store(test_file("CT_small.dcm"))
        client = self.client()
        path = self.path(uids, "/rendered")
        for query, size in (
            ("viewport=64,64", (64, 64)),
            ("viewport=64,32", (32, 32)),
            ("viewport=256,256,0,0,64,64", (256, 256)),
            ("window=40,400,linear", (128, 128)),
            ("window=40,400,SIGMOID&quality=10", (128, 128)),
        ):
            response = await client.request("GET", f"{path}?{query}")
            self.assertEqual((response.status, picture_of(response).size), (200, size), query)
        for query, status in (
            ("viewport=0,5", 400),
            ("viewport=a", 400),
            ("viewport=10,10,200,0", 400),
            ("window=40", 400),
            ("window=1,0,linear", 400),
            ("quality=0", 400),
        ):
            self.assertEqual((await client.request("GET", f"{path}?{query}")).status, status, query)
        response = await client.request("GET", f"{path}?annotation=patient,technique&iccprofile=srgb&other=1")
        self.assertEqual(response.status, 200)
        for words in ("annotation", "iccprofile", "other"):
            self.assertIn(words, response.headers["warning"])

    async def test_unchanged(self) -> None:
        (uids,) = await self.store(test_file("CT_small.dcm"))
        client = self.client()
        path = self.path(uids, "/rendered")
        response = await client.request("GET", path)
        tag = [("If-None-Match", response.headers["etag"])]
        self.assertEqual((await client.request("GET", path, tag)).status, 304)
        other = await client.request("GET", f"{path}?quality=50", tag)
        self.assertEqual(other.status, 200)
        self.assertNotEqual(other.headers["etag"], response.headers["etag"])
        head = await client.request("HEAD", path)
        self.assertEqual(head.headers["content-length"], str(len(response.body)))

    async def test_frames(self) -> None:
        frames = bytes(range(32)), bytes(range(32, 0, -1)), bytes(16) + bytes(range(16))
        (uids,) = await self.store(image(NumberOfFrames=3, PixelData=b"".join(frames)))
        client = self.client()
        response = await client.request("GET", self.path(uids, "/frames/2/rendered"))
        self.assertEqual((response.status, picture_of(response).size), (200, (4, 4)))
        response = await client.request("GET", self.path(uids, "/frames/3,1/rendered"))
        self.assertEqual(response.status, 200)
        parts = parts_of(response)
        self.assertEqual([headers["content-type"] for headers, _ in parts], ["image/jpeg"] * 2)
        self.assertTrue(parts[0][0]["content-location"].endswith("/frames/3/rendered"))
        for path, status in (("/frames/4/rendered", 404), ("/frames/0/rendered", 400), ("/frames/a/rendered", 400)):
            self.assertEqual((await client.request("GET", self.path(uids, path))).status, status, path)
        animated = await client.request("GET", self.path(uids, "/rendered"), [("Accept", "image/gif")])
        self.assertEqual(picture_of(animated).n_frames, 3)

    async def test_another_number_of_frames_than_stated(self) -> None:
        """The frames that exist are rendered; for others the response is 404."""
        frames = bytes(range(32)) + bytes(range(32, 0, -1)) + bytes(16) + bytes(range(16))
        short = image(1, NumberOfFrames=5, PixelData=frames[:80])
        dataset = image(2, NumberOfFrames=3, PixelData=frames)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.NumberOfFrames = 2
        many = image(3, NumberOfFrames=3, PixelData=frames)
        many.compress(RLELossless, generate_instance_uid=False)
        many.NumberOfFrames = 9
        client = self.client()
        for one, count in ((short, 2), (dataset, 3), (many, 3)):
            (uids,) = await self.store(one)
            for number in range(1, 10):
                response = await client.request("GET", self.path(uids, f"/frames/{number}/rendered"))
                self.assertEqual(response.status, 200 if number <= count else 404, number)
            for rest in ("/rendered", "/thumbnail"):
                self.assertEqual((await client.request("GET", self.path(uids, rest))).status, 200, rest)
            animated = await client.request("GET", self.path(uids, "/rendered"), [("Accept", "image/gif")])
            self.assertEqual(picture_of(animated).n_frames, count)

    async def test_no_image(self) -> None:
        without = image(2)
        del without.PixelData
        first, second = await self.store(image(1), without)
        client = self.client()
        self.assertEqual((await client.request("GET", self.path(second, "/rendered"))).status, 406)
        missing = (first[0], first[1], "1.9")
        self.assertEqual((await client.request("GET", self.path(missing, "/rendered"))).status, 404)
        damaged = image(3, Rows=400)
        (third,) = await self.store(damaged)
        response = await client.request("GET", self.path(third, "/rendered"))
        self.assertEqual(response.status, 406)
        self.assertEqual(response.json["words"], "the pixel data cannot be decoded")

    async def test_all_of_a_series(self) -> None:
        """A multipart body has the image of each instance that has one; a single part has one that stands for all."""
        without, damaged = image(2), image(3, Rows=400)
        del without.PixelData
        first, _, _, last = await self.store(image(1), without, damaged, image(4, series="1.2.2", NumberOfFrames=2))
        client = self.client()
        related = [("Accept", 'multipart/related; type="image/png"')]
        for uids, expected in ((first[:2], [first]), (first[:1], [first, last]), (last[:2], [last]), (first, [first])):
            path = self.path(uids, "/rendered?viewport=2,2")
            response = await client.request("GET", path, related)
            self.assertEqual(response.status, 200)
            self.assertEqual(response.headers["content-type"].partition(";")[0], "multipart/related")
            parts = parts_of(response)
            found = [headers["content-location"].partition("/dicom-web")[2] for headers, _ in parts]
            self.assertEqual(found, [self.path(one, "/rendered").removeprefix("/dicom-web") for one in expected])
            for headers, content in parts:
                self.assertEqual(headers["content-type"], "image/png")
                self.assertEqual(Picture.open(BytesIO(content)).size, (2, 2))
            self.assertEqual((await client.request("HEAD", path, related)).status, 200)
            single = await client.request("GET", path, [("Accept", "image/png")])
            self.assertEqual((single.headers["content-type"], picture_of(single).size), ("image/png", (2, 2)))
        one = await client.request("GET", self.path(last, "/frames/2/rendered"), related)
        self.assertEqual(len(parts_of(one)), 1)

    async def test_all_of_a_series_without_images(self) -> None:
        without = image()
        del without.PixelData
        (uids,) = await self.store(without)
        client = self.client()
        related = [("Accept", "multipart/related; type=image/jpeg")]
        for path, status in (
            (self.path(uids[:2]), 406),
            (self.path(("1.9",)), 404),
            (self.path((uids[0], "1.9")), 404),
        ):
            self.assertEqual((await client.request("GET", f"{path}/rendered", related)).status, status)
        self.patch(rendered, "MAX_RENDERED", 0)
        self.assertEqual((await client.request("GET", self.path(uids[:1], "/rendered"), related)).status, 413)

    async def test_no_processes(self) -> None:
        (uids,) = await self.store(image())
        self.services.pixels = None
        response = await self.client().request("GET", self.path(uids, "/rendered"))
        self.assertEqual(response.status, 501)
        self.assertIn("pixels", response.json["words"])


class Thumbnails(RenderedTestCase):
    async def test_every_level(self) -> None:
        uids, *_ = await self.store(test_file("JPEG2000.dcm"))
        client = self.client()
        for count in (1, 2, 3):
            response = await client.request("GET", self.path(uids[:count], "/thumbnail"))
            self.assertEqual(response.status, 200, response.body)
            self.assertEqual(picture_of(response).size, (64, 256))
        response = await client.request("GET", self.path(uids, "/frames/1/thumbnail?viewport=100,100"))
        self.assertEqual(picture_of(response).size, (25, 100))
        for path, status in (("/thumbnail?viewport=1,2,3,4", 400), ("/frames/2/thumbnail", 404)):
            self.assertEqual((await client.request("GET", self.path(uids, path))).status, status)
        for level in (("1.9",), (uids[0], "1.9")):
            self.assertEqual((await client.request("GET", self.path(level, "/thumbnail"))).status, 404)

    async def test_an_instance_without_an_image(self) -> None:
        """It does not stand for its series, if there is another one."""
        without = image(2)
        del without.PixelData
        first, _ = await self.store(image(1), without)
        client = self.client()
        for path in ("/thumbnail", "/rendered"):
            response = await client.request("GET", self.path(first[:2], path))
            self.assertEqual((response.status, picture_of(response).size), (200, (4, 4)))

    async def test_removed_meanwhile(self) -> None:
        """A file that is removed before the process reads it is not there: no error of this program."""
        uids, *_ = await self.store(test_file("JPEG2000.dcm"))
        pixels = self.services.pixels
        assert pixels is not None
        for name in ("render", "frames", "transcode"):
            real = getattr(pixels, name)

            def call(path: Any, *more: Any, real: Any = real, **named: Any) -> Any:
                Path(path).unlink(missing_ok=True)
                return real(path, *more, **named)

            self.patch(pixels, name, call)
        client = self.client()
        raw = ("Accept", 'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1')
        file = ("Accept", "application/dicom; transfer-syntax=1.2.840.10008.1.2.1")
        for path, fields in (("/thumbnail", []), ("/rendered", []), ("/frames/1", [raw]), ("", [file])):
            await self.store(test_file("JPEG2000.dcm"))
            response = await client.request("GET", self.path(uids, path), fields)
            self.assertEqual(response.status, 404, (path, response.body))

    async def test_cache(self) -> None:
        (uids,) = await self.store(image())
        client = self.client()
        path = self.path(uids, "/thumbnail")
        first = await client.request("GET", path)
        pixels = self.services.pixels
        assert pixels is not None
        await pixels.stop()
        self.assertEqual((await client.request("GET", path)).body, first.body)
        self.assertEqual((await client.request("GET", path + "?viewport=2,2")).status, 503)


class URI(RenderedTestCase):
    """WADO-URI, whose default for images is JPEG."""

    async def test_images(self) -> None:
        without = image(2, series="1.2.9")
        del without.PixelData
        first, second = await self.store(test_file("CT_small.dcm"), without)
        client = self.client()

        async def get(uids: InstanceUIDs, more: str) -> Response:
            query = f"requestType=WADO&studyUID={uids[0]}&seriesUID={uids[1]}&objectUID={uids[2]}{more}"
            return await client.request("GET", f"/dicom-web/wado?{query}")

        for more, size in (
            ("", (128, 128)),
            ("&contentType=image/jpeg", (128, 128)),
            ("&contentType=image/png&rows=64&columns=32", (32, 32)),
            ("&contentType=image/jpeg&region=0,0,0.5,0.25", (64, 32)),
            ("&contentType=image%2Fjpeg&windowCenter=40&windowWidth=400&imageQuality=50&frameNumber=1", (128, 128)),
        ):
            response = await get(first, more)
            self.assertEqual((response.status, picture_of(response).size), (200, size), more)
        response = await get(first, "&contentType=application/dicom")
        self.assertEqual(response.headers["content-type"].partition(";")[0], "application/dicom")
        response = await get(second, "")
        self.assertEqual(response.headers["content-type"].partition(";")[0], "application/dicom")
        for uids, more, status in (
            (first, "&contentType=image/jpeg&frameNumber=2", 404),
            (second, "&contentType=image/jpeg", 406),
            (first, "&contentType=image/jpeg&rows=0", 400),
        ):
            self.assertEqual((await get(uids, more)).status, status, more)
