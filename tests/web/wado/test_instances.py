"""dicomtwist.web.wado.instances, .uri and .archive_zip: Part 10 files of studies, series and instances."""

from __future__ import annotations

import unittest
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomtwist.archive.reading import conversion
from dicomtwist.web.http.records import RequestRecord
from dicomtwist.web.wado.archive_zip import ArchiveWriter, archive_length
from tests.web.site import encode
from tests.web.wado.sample import WADOTestCase, image, part10, test_file
from tests.web.wado.test_frames import parts_of

ANY = ("Accept", 'multipart/related; type="application/dicom"; transfer-syntax=*')


class Instances(WADOTestCase):
    async def test_as_stored(self) -> None:
        names = ("CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "JPEG2000.dcm", "image_dfl.dcm")
        for name in names:
            (uids,) = await self.store(test_file(name))
            stored = self.stored(uids)
            syntax = dcmread(test_file(name), stop_before_pixels=True).file_meta.TransferSyntaxUID
            client = self.client()
            for accept in ([], [("Accept", "*/*")], [ANY]):
                response = await client.request("GET", self.path(uids), accept)
                self.assertEqual(response.status, 200)
                ((headers, content),) = parts_of(response)
                self.assertEqual(content, stored, name)
                self.assertEqual(headers["content-type"], f"application/dicom; transfer-syntax={syntax}")
                self.assertEqual(int(response.headers["content-length"]), len(response.body))
            accept = [("Accept", "application/dicom; transfer-syntax=*")]
            single = await client.request("GET", self.path(uids), accept)
            self.assertEqual(single.body, stored)
            self.assertEqual(single.headers["content-type"], f"application/dicom; transfer-syntax={syntax}")
            some = await client.request("GET", self.path(uids), [*accept, ("Range", "bytes=128-131")])
            self.assertEqual((some.status, some.body), (206, b"DICM"))
            same = await client.request("GET", self.path(uids), [*accept, ("If-None-Match", single.headers["etag"])])
            self.assertEqual(same.status, 304)

    async def test_converted(self) -> None:
        """Without a transfer syntax a response of application/dicom is in Explicit VR Little Endian (PS3.18 8.7.3)."""
        expected = dcmread(test_file("MR_small.dcm"))
        for whole in (conversion.WHOLE, 0):
            self.patch(conversion, "WHOLE", whole)
            for name in ("MR_small_implicit.dcm", "MR_small_bigendian.dcm"):
                (uids,) = await self.store(test_file(name))
                for accept, syntax in (
                    ("application/dicom", ExplicitVRLittleEndian),
                    ("application/dicom; transfer-syntax=1.2.840.10008.1.2", ImplicitVRLittleEndian),
                ):
                    response = await self.client().request("GET", self.path(uids), [("Accept", accept)])
                    self.assertEqual(response.status, 200)
                    dataset = dcmread(BytesIO(response.body))
                    self.assertEqual(dataset.file_meta.TransferSyntaxUID, syntax)
                    self.assertEqual(response.headers["content-type"], f"application/dicom; transfer-syntax={syntax}")
                    self.assertEqual(dataset.PixelData, expected.PixelData)
                    self.assertEqual(dataset.PatientName, expected.PatientName)

    async def test_not_acceptable(self) -> None:
        (uids,) = await self.store(test_file("CT_small.dcm"))
        client = self.client()
        for accept in (
            "image/png",
            "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.91",
            "application/dicom+json",
        ):
            for levels in (1, 2, 3):
                response = await client.request("GET", self.path(uids[:levels]), [("Accept", accept)])
                self.assertEqual(response.status, 406, accept)

    async def test_not_there(self) -> None:
        client = self.client()
        for levels in (1, 2, 3):
            for rest in ("", "/metadata"):
                response = await client.request("GET", self.path(("1.9", "1.9.1", "1.9.1.1")[:levels], rest))
                self.assertEqual(response.status, 404)

    async def test_study_and_series(self) -> None:
        images = [image(number, series=series) for series in ("1.2.1", "1.2.2") for number in (1, 2, 10)]
        images.append(image(1, series="1.2.3", syntax=ImplicitVRLittleEndian))
        uids = await self.store(*images)
        client = self.client()
        records: list[RequestRecord] = []
        self.site.listeners.append(records.append)
        self.addCleanup(self.site.listeners.clear)
        for path, count in ((self.path(("1.2",)), 7), (self.path(("1.2", "1.2.2")), 3)):
            response = await client.request("GET", path, [ANY])
            self.assertEqual(response.status, 200)
            self.assertEqual(int(response.headers["content-length"]), len(response.body))
            contents = [content for _, content in parts_of(response)]
            self.assertEqual(len(contents), count)
            self.assertLessEqual({*contents}, {self.stored(one) for one in uids})
        head = await client.request("HEAD", self.path(("1.2",)), [ANY])
        self.assertEqual((head.status, head.body), (200, b""))
        default = await client.request(
            "GET", self.path(("1.2",)), [("Accept", 'multipart/related; type="application/dicom"')]
        )
        for headers, content in parts_of(default):
            self.assertEqual(headers["content-type"], f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}")
            self.assertEqual(dcmread(BytesIO(content)).PixelData, images[0].PixelData)
        self.assertNotIn("content-length", default.headers)
        self.assertEqual([sum(one.sent.get("1.2", {}).values()) for one in records], [7, 3, 0, 7])

    async def test_one_that_is_damaged_is_given_as_it_is(self) -> None:
        """A data set that cannot be converted does not take the others with it."""
        uids = await self.store(image(1, syntax=ImplicitVRLittleEndian), image(2, syntax=ImplicitVRLittleEndian))
        path = self.archive.store.path(*uids[0])
        path.write_bytes(self.stored(uids[0])[:-10])
        accept = ("Accept", 'multipart/related; type="application/dicom"')
        parts = parts_of(await self.client().request("GET", self.path(("1.2",)), [accept]))
        self.assertTrue(parts[0][0]["content-type"].endswith("=1.2.840.10008.1.2"))
        self.assertEqual(parts[0][1], path.read_bytes())
        self.assertEqual(dcmread(BytesIO(parts[1][1])).file_meta.TransferSyntaxUID, ExplicitVRLittleEndian)

        for rest, status in (("", 200), ("; transfer-syntax=1.2.840.10008.1.2.1", 406)):
            wanted = ("Accept", f"application/dicom{rest}")
            response = await self.client().request("GET", self.path(uids[0]), [wanted])
            self.assertEqual(response.status, status)
            if not rest:
                self.assertEqual(response.body, path.read_bytes())

    async def test_more_than_a_page(self) -> None:
        self.patch(self.services.finder, "retrieve", self._in_small_pages(self.services.finder.retrieve))
        uids = await self.store(*(image(number) for number in range(1, 8)))
        response = await self.client().request("GET", self.path(("1.2",)), [ANY])
        self.assertEqual([content for _, content in parts_of(response)], [self.stored(one) for one in uids])

    def _in_small_pages(self, retrieve):
        async def found(*arguments, **keywords):
            result = await retrieve(*arguments, **keywords)
            pages = result.pages
            result.pages = lambda: pages(3)
            return result

        return found

    async def test_zip(self) -> None:
        uids = await self.store(image(1), image(2), image(1, series="1.2.3"))
        for path, count in ((self.path(("1.2",)), 3), (self.path(("1.2", "1.2.3")), 1), (self.path(uids[1]), 1)):
            response = await self.client().request("GET", path, [("Accept", "application/zip")])
            self.assertEqual((response.status, response.headers["content-type"]), (200, "application/zip"))
            self.assertEqual(int(response.headers["content-length"]), len(response.body))
            self.assertIn(".zip", response.headers["content-disposition"])
            with ZipFile(BytesIO(response.body)) as archive:
                self.assertIsNone(archive.testzip())
                self.assertEqual(len(archive.namelist()), count)
                for name in archive.namelist():
                    series, instance = name.removesuffix(".dcm").split("/")
                    self.assertEqual(archive.read(name), self.stored(("1.2", series, instance)))

    async def test_a_file_that_is_missing(self) -> None:
        """The others are given, with a warning; 404 if all are missing."""
        uids = await self.store(*(image(number) for number in range(1, 4)))
        for which, rest in ((0, 2), (2, 1), (1, 0)):
            self.archive.store.path(*uids[which]).unlink()
            for accept in (ANY, ("Accept", "application/zip")):
                response = await self.client().request("GET", self.path(("1.2",)), [accept])
                self.assertEqual(response.status, 200 if rest else 404)
                if response.status == 200:
                    self.assertIn(f"{3 - rest} instances whose files are missing", response.headers["warning"])
                    self.assertEqual(int(response.headers["content-length"]), len(response.body))
                    if accept is ANY:
                        self.assertEqual(len(parts_of(response)), rest)

    async def test_a_file_that_is_missing_at_the_beginning_of_many(self) -> None:
        self.patch(self.services.finder, "retrieve", self._in_small_pages(self.services.finder.retrieve))
        uids = await self.store(*(image(number) for number in range(1, 8)))
        for one in uids[:3]:
            self.archive.store.path(*one).unlink()
        response = await self.client().request("GET", self.path(("1.2",)), [ANY])
        self.assertEqual([content for _, content in parts_of(response)], [self.stored(one) for one in uids[3:]])
        self.assertIn("3 instances", response.headers["warning"])

    async def test_a_replacement_in_another_transfer_syntax(self) -> None:
        """The media type of a part is that of the file that is sent, whatever the index had."""
        (uids,) = await self.store(image(1))
        other = part10(image(1, syntax=ImplicitVRLittleEndian))
        self.archive.store.path(*uids).write_bytes(other)
        response = await self.client().request("GET", self.path(("1.2",)), [ANY])
        ((header, content),) = parts_of(response)
        self.assertEqual(header["content-type"], f"application/dicom; transfer-syntax={ImplicitVRLittleEndian}")
        self.assertEqual(content, other)
        wanted = ("Accept", f'multipart/related; type="application/dicom"; transfer-syntax={ExplicitVRLittleEndian}')
        response = await self.client().request("GET", self.path(("1.2",)), [wanted])
        ((header, content),) = parts_of(response)
        self.assertEqual(header["content-type"], f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}")
        self.assertEqual(dcmread(BytesIO(content)).PixelData, image(1).PixelData)
        self.assertIn("have changed since they were stored", response.headers["warning"])

    async def test_what_changes_meanwhile(self) -> None:
        """Fewer or more bytes than were announced are never taken for the whole, and are no error of this program."""
        heads = self.services.files.heads
        longer = part10(image(2, ImageComments="x" * 100))
        for accept in (ANY, ("Accept", "application/zip")):
            for content in (b"", longer):
                uids = await self.store(*(image(number) for number in range(1, 4)))
                path = self.archive.store.path(*uids[1])

                def changed(every: Any, path: Path = path, content: bytes = content) -> Any:
                    found = heads(every)
                    path.unlink()
                    if content:
                        path.write_bytes(content)
                    return found

                self.patch(self.services.files, "heads", changed)
                client = self.client()
                client.send(encode("GET", self.path(("1.2",)), [accept]))
                while not client.is_closed and b"\r\n\r\n" not in client.transport.value():
                    await client.transport.changed
                header, _, body = client.transport.value().partition(b"\r\n\r\n")
                if not header.startswith(b"HTTP/1.1 200"):
                    self.assertIn(header.split()[1], (b"404", b"503"))
                    self.assertNotIn(b"Content-Disposition", header)
                else:
                    length = int(header.partition(b"Content-Length: ")[2].split()[0])
                    self.assertLess(len(body), length)
                    self.assertTrue(client.is_closed)
                self.patch(self.services.files, "heads", heads)
                path.unlink(missing_ok=True)
        self.assertEqual(self.flushLoggedErrors(), [])


class URI(WADOTestCase):
    async def test_uri(self) -> None:
        (uids,) = await self.store(test_file("MR_small_implicit.dcm"))
        query = f"?requestType=WADO&studyUID={uids[0]}&seriesUID={uids[1]}&objectUID={uids[2]}"
        client = self.client()
        for more, syntax in (
            ("&contentType=application%2Fdicom", ExplicitVRLittleEndian),
            ("&contentType=application/dicom&transferSyntax=*", ImplicitVRLittleEndian),
            ("&contentType=application/dicom&transferSyntax=1.2.840.10008.1.2", ImplicitVRLittleEndian),
        ):
            response = await client.request("GET", f"/dicom-web/wado{query}{more}")
            self.assertEqual(response.status, 200, more)
            self.assertEqual(dcmread(BytesIO(response.body)).file_meta.TransferSyntaxUID, syntax)
        for more, status in (
            ("&contentType=application/dicom&transferSyntax=1.2.840.10008.1.2.4.91", 406),
            ("&contentType=application/dicom&anonymize=yes", 501),
            ("&contentType=text/plain", 406),
        ):
            response = await client.request("GET", f"/dicom-web/wado{query}{more}")
            self.assertEqual(response.status, status, more)
        self.assertEqual((await client.request("GET", "/dicom-web/wado?requestType=WADO")).status, 400)
        missing = query.replace(uids[2], "1.9")
        self.assertEqual((await client.request("GET", f"/dicom-web/wado{missing}")).status, 404)


class Zip(unittest.TestCase):
    def test_many_members(self) -> None:
        """An archive with more members than the fields of the first format count."""
        for count in (0, 1, 70_000):
            writer = ArchiveWriter()
            pieces: list[bytes] = []
            members = [(f"1.2/{number}.dcm", number % 5 * 3) for number in range(count)]
            for name, length in members:
                pieces += writer.member(name, length, lambda length=length: iter([b"abc"] * (length // 3)))  # type: ignore[misc]
            content = b"".join([*pieces, writer.end()])
            self.assertEqual(len(content), archive_length(members))
            with ZipFile(BytesIO(content)) as archive:
                self.assertIsNone(archive.testzip())
                self.assertEqual(archive.namelist(), [name for name, _ in members])

    def test_left_out(self) -> None:
        """The comment tells how many files are missing."""
        writer = ArchiveWriter()
        pieces = [*writer.member("1.dcm", 3, lambda: iter([b"abc"]))]
        writer.left_out = 2
        with ZipFile(BytesIO(b"".join([*pieces, writer.end()]))) as archive:
            self.assertIsNone(archive.testzip())
            self.assertEqual(archive.comment, b"2 instances are left out")

    def test_beyond_four_gigabytes(self) -> None:
        """The central directory of an archive whose members lie beyond 4 GiB; the zeros are not kept."""
        piece = bytes(1 << 20)
        length = (4 << 30) + 5
        members = [("1/long.dcm", length), ("1/behind.dcm", 3)]
        total, start, end = 0, b"", b""
        writer = ArchiveWriter()

        def long():
            yield from (piece for _ in range(4096))
            yield b"short"

        for data in [
            *self._ends(writer.member(*members[0], long)),
            *writer.member(*members[1], lambda: iter([b"end"])),
        ]:
            if isinstance(data, int):
                total += data
                continue
            total += len(data)
            start, end = start or data, end + data
        tail = writer.end()
        self.assertEqual(total + len(tail), archive_length(members))
        self.assertIn(b"PK\6\6", tail)
        self.assertIn((4 << 30).to_bytes(8, "little")[4:], tail)

    def _ends(self, pieces):
        return [len(piece) if len(piece) == 1 << 20 else piece for piece in pieces]
