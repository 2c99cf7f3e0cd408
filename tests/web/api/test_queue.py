"""dicomtwist.web.api.queue: the queue of forwarding as operators see it."""

from __future__ import annotations

import json
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian

from dicomtwist.access.policy import Policy
from dicomtwist.datasets.codec import encode_dataset
from dicomtwist.forwarding.operators.queue import Change, ForwardQueue
from dicomtwist.forwarding.parsing import parse_forward
from dicomtwist.forwarding.tasks.store import TaskStore
from dicomtwist.forwarding.tasks.types import Arrival, Definition, TaskState
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta
from dicomtwist.web.api.resource import APIResource
from tests.archive.samples import dataset
from tests.web.site import SiteTestCase

TABLES: list[dict[str, Any]] = [
    {"name": "ct", "modality": "OT", "to": [["A", "B"]]},
    {"name": "all", "calling": "CT*", "to": ["C"], "set": {"InstitutionName": "X"}},
]


class QueueTestCase(SiteTestCase):
    policy = Policy()

    def setUp(self) -> None:
        super().setUp()
        self.site.resource.putChild(b"api", APIResource(self.server, self.services))
        self.store = TaskStore(self.folder / ".forwarding")
        self.store.open()
        self.addCleanup(self.store.close)
        self.told = 0
        queue = self.queue = self.services.queue = ForwardQueue(self.ae.executors.forwarding, self.tell)
        queue.store = self.store
        queue.rules = parse_forward(TABLES)
        pairs = zip(queue.rules.rules, TABLES, strict=True)
        self.rules = self.store.register([Definition.of(rule, table) for rule, table in pairs])
        for number in (1, 2):
            self.store.make([Arrival("1.2.1", "1.2.1.1", f"1.2.1.1.{number}", tuple(self.rules), 7, 100)])

    def tell(self, what: Change) -> None:
        self.told += 1

    async def get(self, path: str, status: int = 200) -> Any:
        response = await self.client().request("GET", f"/api/queue{path}")
        self.assertEqual(response.status, status, response.body)
        return response.json

    async def post(self, path: str, body: Any, status: int = 200) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = await self.client().request("POST", f"/api/queue{path}", body=content)
        self.assertEqual(response.status, status, response.body)
        return response.json


class Tasks(QueueTestCase):
    async def test_list(self) -> None:
        found = await self.get("")
        self.assertEqual([one["instance"][-1] for one in found], ["1", "1", "2", "2"])
        first = found[0]
        self.assertEqual((first["destination"], first["rule"], first["state"]), ("A,B", "ct", "waiting"))
        self.assertEqual((first["tries"], first["next_try"], first["said"], first["study"]), (0, None, "", "1.2.1"))
        self.assertGreaterEqual(first["age"], 0)
        for query, count in (
            ("?destination=B", 2),
            ("?destination=C&instance=1.2.1.1.1", 1),
            ("?rule=all", 2),
            ("?study=9.9", 0),
            ("?state=failed&state=held", 0),
            ("?limit=1", 1),
            (f"?after={found[2]['id']}", 1),
            (f"?id={found[0]['id']}&id={found[3]['id']}", 2),
        ):
            self.assertEqual(len(await self.get(query)), count, query)
        for query in ("?else=1", "?limit=x", "?limit=1001", "?state=x", "?study=x", "?id=-1", "?after=1e9"):
            await self.get(query, 400)
        one = await self.get(f"/tasks/{first['id']}")
        self.assertEqual(one, {**first, "age": one["age"]})
        await self.get("/tasks/99999", 404)
        await self.get("/tasks/x", 400)

    async def test_changes(self) -> None:
        self.assertEqual(await self.post("/hold", {"destination": "C"}), {"tasks": 2})
        self.assertEqual(len(await self.get("?state=held")), 2)
        self.assertEqual(await self.post("/release", {"states": ["held"]}), {"tasks": 2})
        (claimed,) = self.store.claim(("C",), 1, 1e10, 60, "x")
        self.store.finish([claimed.ends(TaskState.FAILED, "0xA900 no such class")])
        (failed,) = await self.get("?state=failed")
        self.assertEqual((failed["said"], failed["tries"]), ("0xA900 no such class", 1))
        self.assertEqual(await self.post("/retry", {"ids": [failed["id"]]}), {"tasks": 1})
        self.assertEqual(self.told, 3)
        self.assertEqual(await self.post("/drop", {"all": True}), {"tasks": 4})
        self.assertEqual(await self.get(""), [])
        self.assertEqual(await self.post("/drop", {"rule": "all"}), {"tasks": 0})

    async def test_changes_that_select_nothing_are_refused(self) -> None:
        bodies: list[Any] = [b"", b"{", b"[]", {}, {"all": False}, {"else": 1}, {"ids": "1"}, {"ids": [True]}]
        bodies += [{"states": ["x"]}, {"states": 1}, {"study": "x"}, {"rule": 1}, {"ids": [0]}, {"states": [[]]}]
        for body in bodies:
            await self.post("/drop", body, 400)
        self.assertEqual(len(await self.get("")), 4)

    async def test_destinations(self) -> None:
        peers = {"A": {"breaker": "open", "said": "it refuses"}}
        self.queue.ask_peers = lambda: _fired(peers)
        found = {one["destination"]: one for one in await self.get("/destinations")}
        self.assertEqual(found["A,B"]["waiting"], 2)
        self.assertEqual(found["A,B"]["peers"], [{"name": "A", "breaker": "open", "said": "it refuses"}, {"name": "B"}])
        self.assertIsNotNone(found["C"]["oldest_age"])
        self.store.drop(_all())
        self.queue._numbers = (-100.0, [])
        found = {one["destination"]: one for one in await self.get("/destinations")}
        self.assertEqual((found["C"]["waiting"], found["C"]["oldest_age"]), (0, None))

    async def test_rules_that_tasks_keep(self) -> None:
        self.store.register([])
        self.queue.rules = parse_forward([])
        found = {one["rule"]: one for one in await self.get("/rules")}
        self.assertEqual((found["all"]["in_force"], found["all"]["table"]), (False, TABLES[1]))

    async def test_without_forwarding(self) -> None:
        self.queue.store = None
        for path in ("", "/rules"):
            self.assertEqual(await self.get(path), [])
        self.assertEqual(await self.post("/retry", {"all": True}), {"tasks": 0})
        self.services.queue = None
        await self.get("", 404)

    async def test_only_for_operators(self) -> None:
        """Strangers may do nothing here."""
        for method, path in (("GET", ""), ("POST", "/drop"), ("POST", "/explain"), ("GET", "/destinations")):
            response = await self.client("192.0.2.1").request(method, f"/api/queue{path}", body=b"")
            self.assertIn(response.status, (401, 403), path)


class Explanations(QueueTestCase):
    def file(self) -> bytes:
        meta = FileMeta("1.2.3", "1.2.4", ExplicitVRLittleEndian, "1.2.5")
        return encode_preamble_and_meta(meta) + encode_dataset(dataset(1), ExplicitVRLittleEndian)

    async def test_explain(self) -> None:
        found = await self.post("/explain?calling=CT1", self.file())
        self.assertEqual([(one["rule"], one["destinations"], one["changes"]) for one in found][1], ("all", ["C"], True))
        found = await self.post("/explain?calling=MR1&from=10.1.2.3", self.file())
        self.assertEqual((found[1]["sends"], found[1]["key"]), (False, "calling"))

    async def test_what_is_no_file(self) -> None:
        for body in (b"", b"x" * 1000, self.file()[:300]):
            await self.post("/explain", body, 400)
        for query in ("?else=1", "?from=x", "?certificate=/etc/passwd", f"?calling={'x' * 17}"):
            await self.post(f"/explain{query}", self.file(), 400)


def _fired(value: Any) -> Any:
    from twisted.internet.defer import succeed

    return succeed(value)


def _all() -> Any:
    from dicomtwist.forwarding.tasks.types import Selection

    return Selection()
