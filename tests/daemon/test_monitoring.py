"""The metrics of ``twist dicom`` with several processes, under load, and its health while it stops."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, cast

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ConnectionRefusedError
from twisted.web.client import Agent, HTTPConnectionPool, readBody

from dicomtwist import AE
from tests import peers
from tests.daemon.test_workers import ServerTestCase, instance

reactor = cast(Any, _reactor)


class Monitoring(ServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        pool = HTTPConnectionPool(reactor, persistent=False)
        self.agent = Agent(reactor, connectTimeout=10, pool=pool)
        self.http = peers.free_port()

    async def get(self, path: str) -> tuple[int, str]:
        response = await self.agent.request(b"GET", f"http://127.0.0.1:{self.http}{path}".encode())
        body: Any = await readBody(response)
        return response.code, body.decode()

    async def totals_of_all(self) -> Counter[tuple[str, ...]]:
        """Return the sums over all processes. On a machine that is busy one of them may answer too late, so ask again."""
        while True:
            found, up = await self.totals()
            if up == {"supervisor", "worker-1", "worker-2"}:
                return found

    async def totals(self) -> tuple[Counter[tuple[str, ...]], set[str]]:
        """Return the sums over the processes, by name and labels, and the processes that answered."""
        status, text = await self.get("/metrics")
        self.assertEqual(status, 200, text)
        found: Counter[tuple[str, ...]] = Counter()
        up = set()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = (value for name, value in sorted(sample.labels.items()) if name != "process")
                found[(sample.name, *labels)] += int(sample.value)
                if sample.name == "dicomtwist_process_up" and sample.value:
                    up.add(sample.labels["process"])
        return found, up

    async def test_one_scrape_shows_all_workers(self) -> None:
        port = peers.free_port()
        await self.start(
            "", "--workers", "2", "--port", f"tcp:{port}:interface=127.0.0.1",
            "--http", f"tcp:{self.http}:interface=127.0.0.1", port=port, ready="all 2 workers are ready",
        )  # fmt: skip
        before = await self.totals_of_all()
        await gatherResults(
            [Deferred.fromCoroutine(_work(self.scu(f"SCU{number}"), port, number)) for number in range(8)]
        )
        after = await self.totals_of_all()
        gained = after - before
        operations = "dicomtwist_dimse_operations_total"
        self.assertEqual(gained[operations, "C-ECHO", "0x0000"], 24)
        self.assertEqual(gained[operations, "C-STORE", "0x0000"], 16)
        self.assertEqual(gained["dicomtwist_dimse_seconds_count", "C-STORE"], 16)
        self.assertEqual(gained["dicomtwist_dimse_seconds_bucket", "+Inf", "C-ECHO"], 24)
        self.assertEqual(gained["dicomtwist_associations_total", "", "released", "acceptor"], 8)
        self.assertEqual(gained["dicomtwist_instances_total", "stored"], 16)
        self.assertGreater(gained["dicomtwist_received_bytes_total", "dimse"], 16 * 100)
        self.assertEqual(await self.get("/health/live"), (200, "live\n"))
        self.assertEqual(await self.get("/health/ready"), (200, "ready\n"))
        await self.see_all_on_the_page()

    async def see_all_on_the_page(self) -> None:
        """A worker shows the associations of all. If one of them is late, ask again."""
        titles = {f"SCU{number}" for number in range(8)}
        ended: list[dict[str, Any]] = []
        while {one["calling"] for one in ended} != titles:
            ended = json.loads((await self.get("/api/associations"))[1])["ended"]
        self.assertEqual({one["ending"] for one in ended}, {"released"})
        self.assertEqual(sum(op["count"] for one in ended for op in one["operations"]), 24 + 16)
        self.assertLessEqual({one["process"] for one in ended}, {"worker-1", "worker-2"})
        status, page = await self.get("/activity?show=associations")
        self.assertEqual(status, 200)
        status, page = await self.get("/server")
        self.assertIn("supervisor", page)
        self.assertIn("worker-2", page)

    async def test_health_while_it_stops(self) -> None:
        """As long as an association goes on, a load balancer is told that the server is not ready; then the port is closed."""
        port = peers.free_port()
        await self.start(
            "", "--grace", "60", "--port", f"tcp:{port}:interface=127.0.0.1",
            "--http", f"tcp:{self.http}:interface=127.0.0.1", port=port,
        )  # fmt: skip
        assoc = await self.scu().associate("127.0.0.1", port)
        self.assertEqual((await self.get("/health/ready"))[0], 200)
        self.server.signal("TERM")
        while (await self.get("/health/ready"))[0] == 200:
            pass
        self.assertEqual(await self.get("/health/live"), (200, "live\n"))
        self.assertEqual((await self.get("/dicom-web/studies"))[0], 503)
        await assoc.release()
        await self.server.wait()
        await self.assertFailure(
            self.agent.request(b"GET", f"http://127.0.0.1:{self.http}/".encode()), ConnectionRefusedError
        )


async def _work(ae: AE, port: int, number: int) -> None:
    assoc = await ae.associate("127.0.0.1", port)
    for _ in range(3):
        await assoc.send_c_echo()
    for index in range(2):
        await assoc.send_c_store(instance(f"1.2.{number}.{index + 1}"))
    await assoc.release()
