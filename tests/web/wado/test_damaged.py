"""One file of several that is damaged, or was changed by hand, takes nothing else with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Final
from zipfile import ZipFile

from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from twisted.internet import reactor
from twisted.logger import formatEvent, globalLogPublisher

from dicomtwist.pixels.pool import Pixels
from dicomtwist.web.wado import instances
from tests.web.wado.sample import WADOTestCase, image, part10
from tests.web.wado.test_frames import parts_of

RELATED: Final = 'multipart/related; type="application/dicom"'


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.absolute())


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


#: What can be in place of a file.
DAMAGES: Final[dict[str, Callable[[Path], object]]] = {
    "noise": lambda path: path.write_bytes(os.urandom(5000)),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut off within its File Meta Information": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "long, without an end of its File Meta Information": lambda path: path.write_bytes(
        path.read_bytes()[:132] + b"\2\0\2\1OB\0\0\xff\xff\xff\x7f" + bytes(100_000)
    ),
    "a folder": _directory,
    "a loop": _loop,
    "a FIFO": _fifo,
}


class DamagedTestCase(WADOTestCase):
    timeout = 120

    def lines(self, events: Sequence[dict[str, Any]], word: str) -> int:
        """Return the number of log events that name the check of the archive and have *word*."""
        texts = [formatEvent(event) for event in events]
        return sum("archive check" in text and word in text for text in texts)

    @contextmanager
    def captured(self) -> Iterator[list[dict[str, Any]]]:
        """Collect the log events within the block."""
        events: list[Any] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        try:
            yield events
        finally:
            globalLogPublisher.removeObserver(observer)


class Damaged(DamagedTestCase):
    async def test_retrieval(self) -> None:
        client = self.client()
        for number, (name, damage) in enumerate(DAMAGES.items(), 1):
            study = f"1.2.{number}"
            several = [image(each, study=study, series=f"{study}.{each % 2}") for each in range(1, 5)]
            uids = await self.store(*several)
            damage(self.archive.store.path(*uids[1]))
            for level in (1, 2):
                of = uids[1][:level]
                rest = [one for one in uids if one[:level] == of and one != uids[1]]
                for accept in (
                    "*/*",
                    f"{RELATED}; transfer-syntax=*",
                    RELATED,
                    f"{RELATED}; transfer-syntax=1.2.840.10008.1.2",
                ):
                    response = await client.request("GET", self.path(of), [("Accept", accept)])
                    self.assertEqual(response.status, 200, (name, accept))
                    parts = [dcmread(BytesIO(content)) for _, content in parts_of(response)]
                    self.assertEqual([one.SOPInstanceUID for one in parts], [one[2] for one in rest], (name, accept))
                    self.assertIn("1 instances whose files cannot be read", response.headers["warning"])
                response = await client.request("GET", self.path(of), [("Accept", "application/zip")])
                self.assertEqual((response.status, int(response.headers["content-length"])), (200, len(response.body)))
                with ZipFile(BytesIO(response.body)) as archive:
                    self.assertEqual(archive.namelist(), [f"{series}/{one}.dcm" for _, series, one in rest])
                response = await client.request("GET", self.path(of, "/metadata"))
                self.assertEqual(response.status, 200, name)
                self.assertEqual({one["00080018"]["Value"][0] for one in response.json}, {one[2] for one in rest}, name)
                self.assertIn("warning", response.headers, name)
            for path in (self.path(uids[1]), self.path(uids[1], "/metadata"), self.path(uids[1], "/frames/1")):
                response = await client.request("GET", path)
                self.assertEqual(response.status, 500, (name, path))
                self.assertIn("cannot be read", response.json["words"])
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_log(self) -> None:
        uids = await self.store(*(image(number) for number in range(1, 5)))
        for one in uids[:2]:
            self.archive.store.path(*one).write_bytes(b"")
        with self.captured() as events:
            await self.client().request("GET", self.path(("1.2",)))
        self.assertEqual(self.lines(events, "2 files of 1.2 cannot be read"), 1)
        with self.captured() as events:
            await self.client().request("GET", self.path(uids[0]))
        self.assertEqual(self.lines(events, "cannot be read"), 1)

    async def test_all_are_damaged(self) -> None:
        uids = await self.store(image(1), image(2))
        for one in uids:
            self.archive.store.path(*one).write_bytes(b"")
        for accept in ("*/*", "application/zip"):
            response = await self.client().request("GET", self.path(("1.2",)), [("Accept", accept)])
            self.assertEqual((response.status, "words" in response.json), (500, True))

    async def test_behind_those_that_are_looked_at_first(self) -> None:
        """The header of the response is sent when they are found."""
        self.patch(instances, "MAX_SELECTED", 2)
        retrieve: Any = self.services.finder.retrieve

        async def in_small_pages(*arguments: Any, **keywords: Any) -> Any:
            result = await retrieve(*arguments, **keywords)
            pages = result.pages
            result.pages = lambda: pages(2)
            return result

        self.patch(self.services.finder, "retrieve", in_small_pages)
        uids = await self.store(*(image(number) for number in range(1, 8)))
        for one in (uids[2], uids[3], uids[6]):
            self.archive.store.path(*one).write_bytes(b"")
        for accept in (RELATED, "application/zip"):
            response = await self.client().request("GET", self.path(("1.2",)), [("Accept", accept)])
            self.assertEqual(response.status, 200)
            if accept == RELATED:
                self.assertEqual(len(parts_of(response)), 4)
            else:
                self.assertEqual(len(ZipFile(BytesIO(response.body)).namelist()), 4)

    async def test_a_folder_that_cannot_be_listed(self) -> None:
        """A series whose folder is lost keeps no other series of its study from its metadata."""
        uids = await self.store(image(1), image(1, series="1.2.2"))
        folder = self.archive.store.path(*uids[0]).parent
        shutil.rmtree(folder)
        folder.symlink_to(folder.absolute())
        response = await self.client().request("GET", self.path(("1.2",), "/metadata"))
        self.assertEqual(response.status, 200)
        self.assertEqual([one["00080018"]["Value"][0] for one in response.json], [uids[1][2]])


class Frames(DamagedTestCase):
    def setUp(self) -> None:
        super().setUp()
        pixels = self.services.pixels = Pixels(reactor, processes=1)
        self.addCleanup(pixels.stop)

    async def test_a_frame_far_behind(self) -> None:
        """A conversion that fails in its middle takes no other instance of the study with it."""
        frames = 12
        several = []
        for number in range(1, 4):
            one = image(number, Rows=512, Columns=512, NumberOfFrames=frames, PixelData=bytes(512 * 512 * 2 * frames))
            one.compress(RLELossless, generate_instance_uid=False)
            several.append(one)
        bad = list(generate_frames(several[1].PixelData, number_of_frames=frames))
        bad[-1] = b"\xff" * 80
        several[1].PixelData = encapsulate(bad)
        uids = await self.store(*several)
        for accept, expected in (
            (RELATED, [ExplicitVRLittleEndian, RLELossless, ExplicitVRLittleEndian]),
            (f"{RELATED}; transfer-syntax={ExplicitVRLittleEndian}", [ExplicitVRLittleEndian] * 2),
        ):
            response = await self.client().request("GET", self.path(uids[0][:1]), [("Accept", accept)])
            self.assertEqual(response.status, 200)
            found = [dcmread(BytesIO(content)) for _, content in parts_of(response)]
            self.assertEqual([one.file_meta.TransferSyntaxUID for one in found], expected)
            self.assertEqual(found[-1].PixelData, bytes(512 * 512 * 2 * frames))


class Rendered(DamagedTestCase):
    def setUp(self) -> None:
        super().setUp()
        pixels = self.services.pixels = Pixels(reactor, processes=1)
        self.addCleanup(pixels.stop)

    async def test_rendered(self) -> None:
        client = self.client()
        for number, (name, damage) in enumerate(DAMAGES.items(), 1):
            study = f"1.2.{number}"
            uids = await self.store(*(image(each, study=study, series=f"{study}.1") for each in range(1, 4)))
            damage(self.archive.store.path(*uids[1]))
            for level in (1, 2):
                path = self.path(uids[0][:level], "/rendered")
                response = await client.request("GET", path, [("Accept", "multipart/related; type=image/jpeg")])
                self.assertEqual((response.status, len(parts_of(response))), (200, 2), name)
                for rest in ("/rendered", "/thumbnail"):
                    response = await client.request("GET", self.path(uids[0][:level], rest))
                    self.assertEqual((response.status, response.headers["content-type"]), (200, "image/jpeg"), name)
            response = await client.request("GET", self.path(uids[1], "/rendered"))
            self.assertEqual((response.status, "words" in response.json), (500, True), name)
        self.assertEqual(self.flushLoggedErrors(), [])


class Changed(DamagedTestCase):
    """A file that was replaced, and the index does not know it: what the file says is given."""

    async def test_another_file(self) -> None:
        longer = {"ImageComments": "x" * 1000}
        for number, (other, accept, syntax) in enumerate(
            (
                (image(1, **longer), f"{RELATED}; transfer-syntax=*", ExplicitVRLittleEndian),
                (image(1, syntax=ImplicitVRLittleEndian), f"{RELATED}; transfer-syntax=*", ImplicitVRLittleEndian),
                (image(1, syntax=ImplicitVRLittleEndian), RELATED, ExplicitVRLittleEndian),
                (image(1, syntax=ImplicitVRLittleEndian, **longer), "application/zip", ImplicitVRLittleEndian),
                (image(1, **longer), "application/zip", ExplicitVRLittleEndian),
            )
        ):
            with self.subTest(number):
                uids = await self.store(image(1), image(2))
                path = self.archive.store.path(*uids[0])
                path.write_bytes(part10(other))
                with self.captured() as events:
                    for level in (1, 2):
                        response = await self.client().request("GET", self.path(uids[0][:level]), [("Accept", accept)])
                        self.assertEqual(response.status, 200)
                        if accept == "application/zip":
                            archive = ZipFile(BytesIO(response.body))
                            contents = [archive.read(name) for name in archive.namelist()]
                        else:
                            contents = [content for _, content in parts_of(response)]
                        self.assertEqual(len(contents), 2)
                        dataset = dcmread(BytesIO(contents[0]))
                        self.assertEqual(dataset.file_meta.TransferSyntaxUID, syntax)
                        self.assertEqual(dataset.get("ImageComments"), other.get("ImageComments"))
                        self.assertIn("have changed since they were stored", response.headers["warning"])
                self.assertEqual(self.lines(events, "1 files of 1.2"), 2)
                for rest, accepted in (
                    ("", "application/dicom; transfer-syntax=*"),
                    ("/metadata", "*/*"),
                    ("/frames/1", "*/*"),
                    ("/bulkdata/7FE00010", "*/*"),
                ):
                    response = await self.client().request("GET", self.path(uids[0], rest), [("Accept", accepted)])
                    self.assertEqual(response.status, 200, rest)

    async def test_what_cannot_be_given(self) -> None:
        """A replacement that is not acceptable is left out; alone it is 406, not a problem that waiting solves."""
        uids = await self.store(image(1), image(2))
        compressed = image(
            1, syntax="1.2.840.10008.1.2.4.80", PixelData=b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\4\0\0\0abcd"
        )
        compressed["PixelData"].is_undefined_length = True
        self.archive.store.path(*uids[0]).write_bytes(part10(compressed))
        response = await self.client().request(
            "GET", self.path(("1.2",)), [("Accept", f"{RELATED}; transfer-syntax=1.2.840.10008.1.2")]
        )
        self.assertEqual((response.status, len(parts_of(response))), (200, 1))
        self.archive.store.path(*uids[1]).unlink()
        response = await self.client().request(
            "GET", self.path(("1.2",)), [("Accept", f"{RELATED}; transfer-syntax=1.2.840.10008.1.2")]
        )
        self.assertEqual(response.status, 406)

    async def test_touched(self) -> None:
        uids = await self.store(image(1), image(2))
        os.utime(self.archive.store.path(*uids[0]), (1, 1))
        with self.captured() as events:
            for rest in ("", "/metadata"):
                response = await self.client().request("GET", self.path(("1.2",), rest))
                self.assertEqual((response.status, "warning" in response.headers), (200, False))
        self.assertEqual(self.lines(events, ""), 0)
