"""dicomtwist.web.wado.frames: frames of instances."""

from __future__ import annotations

from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from dicomtwist.dicomweb.media_types import MediaType
from dicomtwist.dicomweb.multipart import MultipartCutter, PartBegins, PartData, boundary_of
from tests.web.site import Response
from tests.web.wado.sample import WADOTestCase, image, test_file


def parts_of(response: Response) -> list[tuple[dict[str, str], bytes]]:
    """Return the parts of a multipart response: their header fields and contents."""
    media_type = MediaType.parse(response.headers["content-type"])
    assert media_type.name == "multipart/related", media_type
    cutter = MultipartCutter(boundary_of(media_type.parameters["boundary"]))
    parts: list[tuple[dict[str, str], bytes]] = []
    for event in cutter.feed(response.body):
        if isinstance(event, PartBegins):
            parts.append((event.headers, b""))
        elif isinstance(event, PartData):
            parts[-1] = (parts[-1][0], parts[-1][1] + bytes(event.data))
    cutter.finish()
    return parts


class Frames(WADOTestCase):
    async def test_native(self) -> None:
        (uids,) = await self.store(image(NumberOfFrames=3, PixelData=bytes(range(96))))
        client = self.client()
        response = await client.request("GET", self.path(uids, "/frames/3,1,3"))
        self.assertEqual(response.status, 200)
        self.assertEqual(int(response.headers["content-length"]), len(response.body))
        parts = parts_of(response)
        self.assertEqual(
            [content for _, content in parts], [bytes(range(64, 96)), bytes(range(32)), bytes(range(64, 96))]
        )
        self.assertEqual(parts[0][0]["content-type"], "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1")
        self.assertTrue(parts[0][0]["content-location"].endswith("/frames/3"))
        for path, status in (
            ("/frames/4", 404),
            ("/frames/0", 400),
            ("/frames/a", 400),
            ("/frames/1,,2", 400),
            ("/frames/1%2C2", 200),
        ):
            response = await client.request("GET", self.path(uids, path))
            self.assertEqual(response.status, status, path)
        for missing in ((uids[0], uids[1], "1.9"), ("1.9", uids[1], uids[2])):
            self.assertEqual((await client.request("GET", self.path(missing, "/frames/1"))).status, 404)

    async def test_cut_off(self) -> None:
        """Values that the file does not have are no mistake of the client, and their refusal has no entity tag."""
        (uids,) = await self.store(image(NumberOfFrames=2, PixelData=bytes(range(64))))
        path = self.archive.store.path(*uids)
        path.write_bytes(path.read_bytes()[:-40])
        for of_instance in ("/frames/2", "/pixeldata", "/bulkdata/7FE00010"):
            for accept in ("*/*", "application/octet-stream"):
                response = await self.client().request("GET", self.path(uids, of_instance), [("Accept", accept)])
                self.assertEqual(response.status, 406, (of_instance, accept))
                self.assertFalse({"etag", "accept-ranges"} & set(response.headers))

    async def test_a_wrong_number_of_frames(self) -> None:
        """The frames that exist are given, with a warning; for others the response is 404."""
        pixels = encapsulate([b"abcd", b"efgh", b"ijkl"], fragments_per_frame=2)
        for stated in (1, 2, 5):
            (uids,) = await self.store(image(stated, syntax=RLELossless, NumberOfFrames=stated, PixelData=pixels))
            for frames, status in (("3", 200), ("4", 404), ("2,3", 200)):
                response = await self.client().request("GET", self.path(uids, f"/frames/{frames}"))
                self.assertEqual(response.status, status, frames)
                if status == 200:
                    words = f"Number of Frames is {stated}, but the pixel data has 3 frames"
                    self.assertIn(words, response.headers["warning"])
                    expected = [b"efgh", b"ijkl"] if frames == "2,3" else [b"ijkl"]
                    self.assertEqual([content for _, content in parts_of(response)], expected)

    async def test_fewer_frames_than_stated(self) -> None:
        """The frames of native pixel data that are there are given, with a warning; for others the response is 404."""
        data = bytes(range(80))
        client = self.client()
        for number, syntax in enumerate((ExplicitVRLittleEndian, ImplicitVRLittleEndian), 1):
            # Two and a half of five frames.
            (uids,) = await self.store(image(number, syntax=syntax, NumberOfFrames=5, PixelData=data))
            for frames, numbers in (("1", [1]), ("2", [2]), ("2,1", [2, 1])):
                response = await client.request("GET", self.path(uids, f"/frames/{frames}"))
                self.assertEqual(response.status, 200)
                expected = [data[32 * (one - 1) : 32 * one] for one in numbers]
                self.assertEqual([content for _, content in parts_of(response)], expected)
                words = "Number of Frames is 5, but the pixel data has 2 frames"
                self.assertIn(words, response.headers["warning"])
            for frames in ("3", "1,3", "5", "6"):
                response = await client.request("GET", self.path(uids, f"/frames/{frames}"))
                self.assertEqual((response.status, response.json["words"]), (404, "the instance has 2 frames"))
            for rest in ("/pixeldata", "/bulkdata/7FE00010"):
                response = await client.request("GET", self.path(uids, rest), [("Accept", "application/octet-stream")])
                self.assertEqual((response.status, response.body), (200, data))
        (uids,) = await self.store(image(3, NumberOfFrames=2, PixelData=bytes(20)))
        self.assertEqual((await client.request("GET", self.path(uids, "/frames/1"))).status, 404)
        bits = image(
            4, NumberOfFrames=10, PixelData=b"\xff\x0f", Rows=3, Columns=3, BitsAllocated=1, BitsStored=1, HighBit=0
        )
        (uids,) = await self.store(bits)
        response = await client.request("GET", self.path(uids, "/frames/1"), [("Accept", "application/octet-stream")])
        self.assertEqual((response.status, response.body), (200, b"\xff\x01"))
        self.assertEqual((await client.request("GET", self.path(uids, "/frames/2"))).status, 404)

    async def test_single_part(self) -> None:
        (uids,) = await self.store(image(NumberOfFrames=2, PixelData=bytes(range(64))))
        client = self.client()
        path = self.path(uids, "/frames/2")
        accept = ("Accept", "application/octet-stream")
        response = await client.request("GET", path, [accept])
        self.assertEqual(response.body, bytes(range(32, 64)))
        self.assertEqual(
            response.headers["content-type"], "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
        )
        head = await client.request("HEAD", path, [accept])
        self.assertEqual((head.headers["content-length"], head.body), ("32", b""))
        etag = response.headers["etag"]
        unchanged = await client.request("GET", path, [accept, ("If-None-Match", etag)])
        self.assertEqual((unchanged.status, unchanged.body), (304, b""))
        part = await client.request("GET", path, [accept, ("Range", "bytes=4-7"), ("If-Range", etag)])
        self.assertEqual((part.status, part.body), (206, bytes(range(36, 40))))
        self.assertEqual(part.headers["content-range"], "bytes 4-7/32")
        beyond = await client.request("GET", path, [accept, ("Range", "bytes=32-")])
        self.assertEqual((beyond.status, beyond.headers["content-range"]), (416, "bytes */32"))
        for accepted, status in (("image/jpeg", 406), ("application/dicom", 406), ("text/html, */*;q=0.1", 200)):
            response = await client.request("GET", path, [("Accept", accepted)])
            self.assertEqual(response.status, status, accepted)

    async def test_other_byte_orders_and_vrs(self) -> None:
        """Uncompressed frames are in Explicit VR Little Endian."""
        for number, syntax in enumerate((ImplicitVRLittleEndian, ExplicitVRBigEndian), 1):
            dataset = dcmread(test_file("MR_small_bigendian.dcm" if number == 2 else "MR_small_implicit.dcm"))
            self.assertEqual(dataset.file_meta.TransferSyntaxUID, syntax)
            dataset.SOPInstanceUID = f"1.2.3.{number}"
            (uids,) = await self.store(dataset)
            response = await self.client().request("GET", self.path(uids, "/frames/1"))
            ((headers, content),) = parts_of(response)
            self.assertEqual(content, dcmread(test_file("MR_small.dcm")).PixelData)
            self.assertIn("transfer-syntax=1.2.840.10008.1.2.1", headers["content-type"])
            accept = (
                "Accept",
                f'multipart/related; type="application/octet-stream"; transfer-syntax={ExplicitVRBigEndian}',
            )
            response = await self.client().request("GET", self.path(uids, "/frames/1"), [accept])
            self.assertEqual(response.status, 406, "the bytes would not be in the order that was asked for")

    async def test_encapsulated(self) -> None:
        path = test_file("JPEG2000.dcm")
        dataset = dcmread(path)
        (uids,) = await self.store(path)
        frames = list(generate_frames(dataset.PixelData, number_of_frames=1))
        client = self.client()
        syntax = dataset.file_meta.TransferSyntaxUID
        for accept, media_type in (
            ("", "image/jp2"),
            ("*/*", "image/jp2"),
            ("multipart/related; type=application/octet-stream; transfer-syntax=*", "application/octet-stream"),
            ('multipart/related; type="image/jp2"', "image/jp2"),
            ("multipart/related; type=image/jp2; transfer-syntax=" + syntax, "image/jp2"),
        ):
            response = await client.request("GET", self.path(uids, "/frames/1"), [("Accept", accept)] if accept else [])
            self.assertEqual(response.status, 200, accept)
            ((headers, content),) = parts_of(response)
            self.assertEqual(content, frames[0])
            self.assertEqual(headers["content-type"], f"{media_type}; transfer-syntax={syntax}")
        self.assertNotEqual(syntax, JPEG2000Lossless)
        single = await client.request("GET", self.path(uids, "/frames/1"), [("Accept", "image/jp2")])
        self.assertEqual(single.body, frames[0])

    async def test_many(self) -> None:
        """The lengths of many frames are not added up before the first is sent."""
        (uids,) = await self.store(image(NumberOfFrames=1000))
        path = self.path(uids, "/frames/" + ",".join(map(str, range(1, 1001))))
        response = await self.client().request("GET", path)
        self.assertNotIn("content-length", response.headers)
        self.assertEqual([content for _, content in parts_of(response)], [bytes(range(32))] * 1000)

    async def test_without_pixel_data(self) -> None:
        dataset = image()
        del dataset.PixelData
        (uids,) = await self.store(dataset)
        response = await self.client().request("GET", self.path(uids, "/frames/1"))
        self.assertEqual(response.status, 404)
