"""dicomtwist.web.api.archive: what operators ask of an archive, and files that are removed by hand."""

from __future__ import annotations

import shutil
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import succeed
from twisted.internet.task import deferLater

from dicomtwist.access.enforcement import Policy
from dicomtwist.access.rules import parse_rules
from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.removal.policy import parse_retention
from dicomtwist.web.api.resource import APIResource
from dicomtwist.web.monitoring.monitor import Monitor
from dicomtwist.web.monitoring.overview import Overview
from tests.archive.samples import dataset, keep
from tests.web.site import SiteTestCase

STUDY = "/api/archive/studies/1.2.1"


class APITestCase(SiteTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.site.resource.putChild(b"api", APIResource(self.server, self.services))
        for number, study in ((1, 1), (2, 1), (1, 2)):
            keep(self.archive, dataset(number, study=study))


class Operators(APITestCase):
    async def test_show(self) -> None:
        found = (await self.client().request("GET", "/api/archive")).json
        self.assertEqual([found[name] for name in ("patients", "studies", "series", "instances")], [1, 2, 2, 3])
        self.assertEqual(found["size"], sum(path.stat().st_size for path in self.folder.glob("1*/*/*.dcm")))
        self.assertEqual((found["locked"], found["retention"]), (0, None))

    async def test_retention_of_several_processes(self) -> None:
        """One process deletes; the counts are those of all, and not known if one does not answer."""
        monitor = Monitor(self.server)
        others: dict[str, Any] = {"supervisor": {"deleted": 3, "kept": 2}, "worker-2": {"deleted": 0, "kept": 0}}
        monitor.ask_others = lambda what: succeed(others if what == "retention" else {})
        self.services.overview = Overview(monitor, self.server)
        self.server.retention.policy = parse_retention({"age": "1y"})
        for deleted, kept in ((3, 2), (None, None)):
            found = (await self.client().request("GET", "/api/archive")).json["retention"]
            self.assertEqual((found["deleted"], found["kept"]), (deleted, kept))
            others["worker-2"] = None

    async def test_studies(self) -> None:
        client = self.client()
        first, second = (await client.request("GET", "/api/archive/studies")).json
        self.assertEqual((first["study"], first["instances"], first["modalities"]), ("1.2.1", 2, ["OT"]))
        for query, expected in (
            ("?limit=1", [first]),
            ("?limit=1&offset=1", [second]),
            ("?study=1.2.2&study=9.9", [second]),
            ("?patient_id=P", [first, second]),
            ("?patient_id=none", []),
            ("?locked=true", []),
        ):
            self.assertEqual((await client.request("GET", f"/api/archive/studies{query}")).json, expected, query)
        for query in ("?limit=x", "?study=x", "?else=1", "?offset=-1"):
            self.assertEqual((await client.request("GET", f"/api/archive/studies{query}")).status, 400, query)
        self.assertEqual((await client.request("GET", STUDY)).json, first)
        self.assertEqual((await client.request("GET", "/api/archive/studies/9.9")).status, 404)

    async def test_locks(self) -> None:
        client = self.client()
        response = await client.request("PUT", f"{STUDY}/lock", body=b'{"reason": "case 17"}')
        self.assertEqual(response.status, 204)
        found = (await client.request("GET", STUDY)).json["lock"]
        self.assertEqual((found["reason"], found["by"]), ("case 17", "127.0.0.1"))
        for path in (STUDY, "/dicom-web/studies/1.2.1", f"{STUDY}/series/1.2.1.1"):
            response = await client.request("DELETE", path)
            self.assertEqual((response.status, response.json["words"]), (409, "the study is locked"))
        self.assertEqual(self.archive.index.counts()[Level.IMAGE], 3)
        self.assertEqual(len((await client.request("GET", "/api/archive/studies?locked=true")).json), 1)
        self.assertEqual((await client.request("DELETE", f"{STUDY}/lock")).status, 204)
        self.assertEqual((await client.request("DELETE", f"{STUDY}/lock")).status, 404)
        self.assertEqual((await client.request("DELETE", STUDY)).status, 204)
        for body in (b"{", b"[]", b'{"reason": 1}', b'{"reason": "' + 600 * b"x" + b'"}'):
            self.assertEqual((await client.request("PUT", f"{STUDY}/lock", body=body)).status, 400)

    async def check(self, path: str) -> dict[str, object]:
        client = self.client()
        state = (await client.request("POST", path)).json
        while state["state"] == "running":
            await deferLater(reactor, 0.01, lambda: None)
            state = (await client.request("GET", "/api/archive/check")).json
        self.assertEqual(state["state"], "done")
        result: dict[str, object] = state["result"]
        return result

    async def test_check(self) -> None:
        """Files that are removed and added by hand are noticed without a restart."""
        shutil.move(self.folder / "1.2.1", self.folder / "1.2.9")
        shutil.move(self.folder / "1.2.9", self.folder / "aside")
        found = await self.check("/api/archive/check")
        self.assertEqual((found["instances"], found["lost"]), (1, 2))
        shutil.move(self.folder / "aside", self.folder / "1.2.1")
        found = await self.check("/api/archive/check")
        self.assertEqual((found["instances"], found["lost"], found["indexed"]), (3, 0, 2))
        found = await self.check("/api/archive/rebuild")
        self.assertEqual((found["instances"], found["indexed"]), (3, 3))
        self.assertEqual(self.archive.index.counts()[Level.IMAGE], 3)

    async def test_one_check_at_a_time(self) -> None:
        """A check of another process counts, and one whose process has ended has failed."""
        client = self.client()
        folder = self.archive.store.side_folder(".maintenance")
        folder.put([b'{"number": 1, "kind": "check", "state": "running"}'], "state")
        with folder.try_locked() as is_held:
            self.assertTrue(is_held)
            self.assertEqual((await client.request("GET", "/api/archive/check")).json["state"], "running")
            self.assertEqual((await client.request("POST", "/api/archive/check")).status, 409)
        self.assertEqual((await client.request("GET", "/api/archive/check")).json["state"], "failed")
        folder.put([b"damaged"], "state")
        self.assertEqual((await client.request("GET", "/api/archive/check")).json["state"], "idle")

    async def test_a_folder_removed_by_hand(self) -> None:
        """The first retrieval is answered with 404, and searches find nothing from then on."""
        client = self.client()
        shutil.rmtree(self.folder / "1.2.1")
        paths = ("/series/1.2.1.1/instances/1.2.1.1.1", "", "/series/1.2.1.1/metadata")
        for path in paths:
            response = await client.request("GET", f"/dicom-web/studies/1.2.1{path}", [("Accept", "*/*")])
            self.assertEqual(response.status, 404, path)
        while self.archive.index.counts()[Level.IMAGE] > 1:
            await deferLater(reactor, 0.01, lambda: None)
        self.assertEqual(len((await client.request("GET", "/dicom-web/studies")).json), 1)


class Rules(APITestCase):
    policy = Policy(parse_rules([{"allow": ["find", "get", "delete"]}]))

    async def test_refused(self) -> None:
        client = self.client()
        for method, path, status in (
            ("GET", "/api/archive", 403),
            ("GET", "/api/archive/studies", 403),
            ("PUT", f"{STUDY}/lock", 403),
            ("DELETE", f"{STUDY}/lock", 403),
            ("POST", "/api/archive/check", 403),
            ("POST", "/api/archive/rebuild", 403),
            ("DELETE", STUDY, 204),
        ):
            self.assertEqual((await client.request(method, path)).status, status, path)
