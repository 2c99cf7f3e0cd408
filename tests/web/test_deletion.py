"""dicomtwist.web.deletion: DELETE, its statuses, and what searches and retrievals find afterwards."""

from __future__ import annotations

from unittest import mock

from twisted.internet import reactor
from twisted.internet.task import deferLater

from dicomtwist.access.enforcement import Policy
from dicomtwist.access.rules import parse_rules
from dicomtwist.archive.index.index import Index, IndexFailed
from dicomtwist.archive.removal.remover import Deleted
from dicomtwist.archive.services import deletion
from dicomtwist.archive.storage.removed import RemovedFiles
from tests.archive.samples import dataset, keep
from tests.web.site import SiteTestCase

STUDY = "/dicom-web/studies/1.2.1"
EVERY = [("Accept", "*/*")]


class Deletions(SiteTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.services.start()
        self.addCleanup(self.services.stop)
        for number, series, study in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)):
            keep(self.archive, dataset(number, series, study))

    timeout = 15

    async def settled(self) -> None:
        """Wait until the files of all deletions are removed."""
        while self.server.deletion.unpurged:
            await deferLater(reactor, 0.01, lambda: None)

    async def test_each_level(self) -> None:
        client = self.client()
        heard: list[tuple[Deleted, str]] = []
        self.server.deletion.listeners.append(lambda deleted, by: heard.append((deleted, by)))
        await client.request("GET", f"{STUDY}/metadata")
        for path, left, series in (
            (f"{STUDY}/series/1.2.1.1/instances/1.2.1.1.2", 2, 2),
            (f"{STUDY}/series/1.2.1.1", 1, 1),
            (STUDY, 0, 0),
        ):
            self.assertEqual((await client.request("GET", path, EVERY)).status, 200)
            response = await client.request("DELETE", path)
            self.assertEqual((response.status, response.body), (204, b""), path)
            self.assertEqual(len((await client.request("GET", f"{STUDY}/instances")).json), left)
            self.assertEqual(len((await client.request("GET", f"{STUDY}/series")).json), series)
            self.assertEqual((await client.request("GET", path, EVERY)).status, 404)
            self.assertEqual((await client.request("GET", f"{path}/metadata")).status, 404)
            self.assertEqual((await client.request("DELETE", path)).status, 404)
        self.assertEqual(len((await client.request("GET", "/dicom-web/studies")).json), 1)
        self.assertEqual([(deleted.instances, by) for deleted, by in heard], [(1, "127.0.0.1")] * 3)
        await self.settled()
        self.assertEqual(list(self.folder.glob(".removed-*")), [])
        self.assertEqual(list((self.folder / ".metadata").iterdir()), [])
        self.assertGreater(self.server.deletion.freed, 0)

    async def test_metadata_of_the_others(self) -> None:
        client = self.client()
        self.assertEqual(len((await client.request("GET", f"{STUDY}/metadata")).json), 3)
        await client.request("DELETE", f"{STUDY}/series/1.2.1.1/instances/1.2.1.1.2")
        self.assertEqual(len((await client.request("GET", f"{STUDY}/metadata")).json), 2)

    async def test_statuses(self) -> None:
        client = self.client()
        for path, status in (
            ("/dicom-web/studies", 405),
            ("/dicom-web/studies/1.2.x", 400),
            (f"{STUDY}/metadata", 405),
            ("/dicom-web/studies/9.9", 404),
            (f"{STUDY}/series/9.9", 404),
            (f"{STUDY}/series/1.2.1.1/instances/9.9", 404),
        ):
            self.assertEqual((await client.request("DELETE", path)).status, status, path)
        with mock.patch.object(Index, "remove_below", side_effect=IndexFailed("index: locked")):
            self.assertEqual((await client.request("DELETE", STUDY)).status, 503)
        self.assertEqual((await client.request("GET", STUDY, EVERY)).status, 200)

    async def test_files_that_cannot_be_removed(self) -> None:
        """The study is gone all the same, and the files are tried again."""
        client = self.client()
        with (
            mock.patch.object(RemovedFiles, "purge", side_effect=OSError(5, "no")),
            mock.patch.object(deletion, "TRY_AGAIN", 0.01),
        ):
            self.assertEqual((await client.request("DELETE", STUDY)).status, 204)
            self.assertEqual((await client.request("DELETE", "/dicom-web/studies/1.2.2")).status, 204)
        await self.settled()
        while list(self.folder.glob(".removed-*")):
            await deferLater(reactor, 0.01, lambda: None)

    async def test_a_start_removes_what_is_left(self) -> None:
        self.archive.delete(("1.2.1",))
        self.assertEqual(len(list(self.folder.glob(".removed-*"))), 1)
        await self.server.stop()
        self.server.deletion.start()
        await self.settled()
        self.assertEqual(list(self.folder.glob(".removed-*")), [])


class Rules(SiteTestCase):
    policy = Policy(parse_rules([{"allow": ["find", "get", "store", "replace"]}]))

    async def test_refused(self) -> None:
        keep(self.archive, dataset())
        client = self.client()
        self.assertEqual((await client.request("DELETE", STUDY)).status, 403)
        self.assertEqual((await client.request("GET", STUDY, EVERY)).status, 200)
        allowed = Policy(parse_rules([{"allow": ["delete"]}]))
        access = self.server.access
        assert access is not None
        access.policy = allowed
        self.assertEqual((await client.request("DELETE", STUDY)).status, 204)
