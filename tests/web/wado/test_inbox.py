"""Instances that are stored in the inbox, and have no file yet, are retrieved at once."""

from __future__ import annotations

from dicomtwist.archive.archive import Archive
from tests.web.wado.sample import WADOTestCase, image
from tests.web.wado.test_frames import parts_of


class Inbox(WADOTestCase):
    def setUp(self) -> None:
        before = Archive.__init__

        def with_inbox(archive: Archive, *arguments: object, **keywords: object) -> None:
            before(archive, *arguments, **{**keywords, "inbox": True})  # type: ignore[arg-type]

        self.patch(Archive, "__init__", with_inbox)
        super().setUp()
        self.addCleanup(self.server.ingest.stop)

    async def test_at_once(self) -> None:
        client = self.client()
        for number, rest in enumerate(("/frames/1", "/metadata", "", "/bulkdata/7FE00010"), 1):
            (uids,) = await self.store(image(number, series=f"1.2.{number}"))
            for _ in range(2):
                response = await client.request("GET", self.path(uids, rest))
                self.assertEqual(response.status, 200, rest)
        for number in range(1, 4):
            await self.store(image(number, series="1.2.9"))
            response = await client.request("GET", self.path(("1.2", "1.2.9"), "/metadata"))
            self.assertEqual(len(response.json), number)
        await self.store(image(5, series="1.2.9"))
        accept = ("Accept", 'multipart/related; type="application/dicom"; transfer-syntax=*')
        response = await client.request("GET", self.path(("1.2", "1.2.9")), [accept])
        self.assertEqual(len(parts_of(response)), 4)

    async def test_replaced(self) -> None:
        """A copy that replaces another one is given at once."""
        client = self.client()
        for value in (1, 2, 3):
            (uids,) = await self.store(image(1, PixelData=bytes([value]) * 32, PatientComments=str(value)))
            response = await client.request(
                "GET", self.path(uids, "/frames/1"), [("Accept", "application/octet-stream")]
            )
            self.assertEqual(response.body, bytes([value]) * 32)
            response = await client.request("GET", self.path(uids[:2], "/metadata"))
            self.assertEqual(response.json[0]["00104000"]["Value"], [str(value)])
