"""dicomtwist.web.wado.metadata and .bulk_data: metadata, and the values that they refer to."""

from __future__ import annotations

import json
import os
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from dicomtwist.archive.reading import series_documents
from tests.web.wado.sample import WADOTestCase, image, part10, test_file
from tests.web.wado.test_frames import parts_of

BULK = ("Accept", "application/octet-stream")


class Metadata(WADOTestCase):
    async def test_levels(self) -> None:
        uids = await self.store(image(2), image(1), image(1, series="1.2.10"), image(1, study="1.3", series="1.3.1"))
        client = self.client()
        expected = {
            uid: json.loads(dcmread(self.archive.store.path(study, series, uid)).to_json())
            for study, series, uid in uids
        }
        for values in expected.values():
            del values["7FE00010"]
        for path, found in (
            (("1.2",), ["1.2.1.1", "1.2.1.2", "1.2.10.1"]),
            (("1.2", "1.2.1"), ["1.2.1.1", "1.2.1.2"]),
            (("1.2", "1.2.1", "1.2.1.2"), ["1.2.1.2"]),
            (("1.3",), ["1.3.1.1"]),
        ):
            for _ in range(2):
                response = await client.request("GET", self.path(path, "/metadata"))
                self.assertEqual((response.status, response.headers["content-type"]), (200, "application/dicom+json"))
                self.assertEqual([one["00080018"]["Value"][0] for one in response.json], found)
                for one in response.json:
                    pixels = one.pop("7FE00010")
                    self.assertEqual(pixels["vr"], "OW")
                    self.assertTrue(pixels["BulkDataURI"].startswith("http://127.0.0.1:8042/dicom-web/studies/1."))
                    self.assertEqual(one, expected[one["00080018"]["Value"][0]])

    async def test_conditions_and_encodings(self) -> None:
        await self.store(*(image(number) for number in range(1, 40)))
        client = self.client()
        path = self.path(("1.2", "1.2.1"), "/metadata")
        plain = await client.request("GET", path)
        packed = await client.request("GET", path, [("Accept-Encoding", "gzip, deflate, br")])
        self.assertEqual(packed.headers["content-encoding"], "gzip")
        self.assertEqual(packed.body, plain.body)
        self.assertEqual((await client.request("GET", path, [("Accept-Encoding", "gzip")])).body, plain.body)
        self.assertNotEqual(packed.headers["etag"], plain.headers["etag"])
        for headers, status in (
            ([("If-None-Match", plain.headers["etag"])], 304),
            ([("If-None-Match", f'"x", W/{plain.headers["etag"]}')], 304),
            ([("If-None-Match", packed.headers["etag"])], 200),
            ([("If-None-Match", packed.headers["etag"]), ("Accept-Encoding", "gzip")], 304),
            ([("If-None-Match", plain.headers["etag"]), ("Accept-Encoding", "gzip;q=0")], 304),
            ([("Accept", "application/json")], 200),
            ([("Accept", "application/dicom+xml")], 406),
            ([("Accept", "multipart/related; type=application/dicom+xml, application/json;q=0.5")], 200),
        ):
            self.assertEqual((await client.request("GET", path, headers)).status, status, headers)
        await self.store(image(40))
        response = await client.request("GET", path, [("If-None-Match", plain.headers["etag"])])
        self.assertEqual((response.status, len(response.json)), (200, 40))

    async def _values(self, keyword: str = "PatientComments") -> list[Any]:
        response = await self.client().request("GET", self.path(("1.2", "1.2.1"), "/metadata"))
        return [Dataset.from_json(one).get(keyword) for one in response.json] if response.status == 200 else []

    async def test_changes(self) -> None:
        """The document of a series is right after replacements, deletions, and damage."""
        uids = await self.store(*(image(number, PatientComments="first") for number in (1, 2, 3)))
        self.assertEqual(await self._values(), ["first"] * 3)
        await self.store(image(2, PatientComments="other"))
        self.assertEqual(await self._values(), ["first", "first", "other"])
        os.unlink(self.archive.store.path(*uids[0]))
        self.assertEqual(await self._values(), ["first", "other"])
        document = self.folder / ".metadata" / "1.2_1.2.1"
        content = document.read_bytes()
        for damaged in (b"", content[:20], content[:-5], content[:-5] + b"\0" * 5, os.urandom(100), content + b"x"):
            document.write_bytes(damaged)
            self.assertEqual(sorted(await self._values()), ["first", "other"])
        document.unlink()
        document.mkdir()
        self.assertEqual(sorted(await self._values()), ["first", "other"])
        document.rmdir()
        for one in uids[1:]:
            os.unlink(self.archive.store.path(*one))
        self.assertEqual(await self._values(), [])
        self.assertFalse(document.exists())

    async def test_one_that_cannot_be_read(self) -> None:
        uids = await self.store(image(1), image(2))
        path = self.archive.store.path(*uids[0])
        path.write_bytes(b"nothing")
        client = self.client()
        for _ in range(2):
            response = await client.request("GET", self.path(("1.2", "1.2.1"), "/metadata"))
            self.assertEqual([one["00080018"]["Value"][0] for one in response.json], ["1.2.1.2"])
            self.assertIn("cannot be read", response.headers["warning"])
        self.assertEqual((await client.request("GET", self.path(uids[0], "/metadata"))).status, 500)
        self.assertEqual((await client.request("GET", self.path(uids[0]))).status, 500)

    async def test_in_advance(self) -> None:
        """The document of a series is made when no further instance arrives."""
        self.patch(series_documents, "QUIET", 0.05)
        self.patch(series_documents, "LOOK", 0.01)
        documents = self.services.documents
        self.server.ingest.listeners.append(documents.changed)
        self.addCleanup(documents.stop)
        made = documents.made = series_documents.Deferred()  # type: ignore[attr-defined]
        write = documents._write

        def written(name: str, document: Any) -> None:
            write(name, document)
            self.ae.reactor.callFromThread(made.callback, name)

        self.patch(documents, "_write", written)
        await self.store(image(1), image(2))
        self.assertEqual(await made, "1.2_1.2.1")
        self.assertTrue((self.folder / ".metadata" / "1.2_1.2.1").exists())


class BulkData(WADOTestCase):
    async def _follow(self, uids: Any, headers: Any = (BULK,)) -> dict[str, bytes]:
        """Return the values that the metadata of an instance refer to."""
        client = self.client()
        ((metadata),) = (await client.request("GET", self.path(uids, "/metadata"))).json
        found = {}

        async def walk(dataset: dict[str, Any]) -> None:
            for tag, element in dataset.items():
                if "BulkDataURI" in element:
                    url = element["BulkDataURI"]
                    self.assertTrue(url.startswith("http://127.0.0.1:8042/"), url)
                    response = await client.request("GET", url.removeprefix("http://127.0.0.1:8042"), headers)
                    self.assertEqual(response.status, 200)
                    found[tag] = response.body
                if element["vr"] == "SQ":
                    for item in element.get("Value", ()):
                        await walk(item)

        await walk(metadata)
        return found

    async def test_values(self) -> None:
        path = test_file("CT_small.dcm")
        (uids,) = await self.store(path)
        dataset = dcmread(path)
        found = await self._follow(uids)
        self.assertEqual(found["7FE00010"], dataset.PixelData)
        for tag, value in found.items():
            self.assertEqual(value, dataset[int(tag, 16)].value)

    async def test_in_items_and_other_encodings(self) -> None:
        item = Dataset()
        item.Rows = item.Columns = 64
        item.BitsAllocated = 16
        item.PixelData = bytes(range(256)) * 16
        for number, syntax in enumerate((ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian), 1):
            dataset = image(number, syntax=syntax, IconImageSequence=[item])
            dataset.is_little_endian = syntax != ExplicitVRBigEndian
            content = part10(dataset)
            uids = await self._store(content)
            read = dcmread(self.archive.store.path(*uids))
            found = await self._follow(uids)
            expected = read.PixelData
            if syntax == ExplicitVRBigEndian:
                expected = b"".join(expected[at : at + 2][::-1] for at in range(0, len(expected), 2))
            self.assertEqual(found["7FE00010"][:32], expected[:32])

    async def test_encapsulated_and_documents(self) -> None:
        path = test_file("JPEG2000.dcm")
        (uids,) = await self.store(path)
        dataset = dcmread(path)
        (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
        response = await self.client().request("GET", self.path(uids, "/bulkdata/7FE00010"))
        ((headers, content),) = parts_of(response)
        self.assertEqual(content, frame)
        self.assertIn("image/jp2", headers["content-type"])
        response = await self.client().request("GET", self.path(uids, "/pixeldata"))
        self.assertEqual(parts_of(response)[0][1], frame)
        document = image(
            1, EncapsulatedDocument=b"%PDF" + bytes(2000), MIMETypeOfEncapsulatedDocument="application/pdf"
        )
        (uids,) = await self.store(document)
        client = self.client()
        path = self.path(uids, "/bulkdata/00420011")  # type: ignore[assignment]
        response = await client.request("GET", str(path), [("Accept", "application/pdf")])
        self.assertEqual((response.headers["content-type"], response.body[:4]), ("application/pdf", b"%PDF"))
        response = await client.request("GET", str(path), [BULK])
        self.assertEqual(response.headers["content-type"], "application/octet-stream")
        part = await client.request("GET", str(path), [BULK, ("Range", "bytes=-4")])
        self.assertEqual((part.status, part.body), (206, bytes(4)))
        for rest, status in (
            ("00420010", 404),
            ("7FE00010/0/00100010", 404),
            ("x", 404),
            ("00081140/0", 404),
            ("00420011/..", 404),
        ):
            response = await client.request("GET", self.path(uids, f"/bulkdata/{rest}"), [BULK])
            self.assertEqual(response.status, status, rest)
