"""``/metrics`` and ``/health`` of a site in memory, with real threads."""

from __future__ import annotations

import builtins
import shutil
import sys
from dataclasses import dataclass
from threading import Event
from typing import Any

from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet import reactor as _reactor
from twisted.internet.defer import succeed
from twisted.internet.task import deferLater

from dicomtwist.access.policy import Policy
from dicomtwist.access.rules import DEFAULT_RULES, parse_rules
from dicomtwist.ae.monitor import ReactorLag
from dicomtwist.ae.server import Server
from dicomtwist.web.http.records import RequestRecord
from dicomtwist.web.monitoring import monitor as module
from dicomtwist.web.monitoring.definitions import METRICS
from dicomtwist.web.monitoring.monitor import Monitor
from dicomtwist.web.root import make_site
from tests.archive.samples import dataset, keep
from tests.web.site import Client, SiteTestCase

reactor: Any = _reactor


@dataclass
class Journal:
    """A journal."""

    name: str
    waiting: int | None = None
    dropped: int = 3


class Service:
    """A service that listens, as far as the monitor knows it."""

    def __init__(self) -> None:
        self.lag = ReactorLag(reactor, None)
        self.server: Server | None = None
        self.journals: list[Any] = [Journal("records"), Journal("audit", 77)]


def values(text: str) -> dict[tuple[str, ...], float]:
    """Return the samples of an exposition: by name and the values of their labels in the order of their names."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels) if name != "process")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class MonitoringTestCase(SiteTestCase):
    policy = Policy(DEFAULT_RULES, None, frozenset())

    def setUp(self) -> None:
        super().setUp()
        self.service = Service()
        self.monitor = self.services.monitor = Monitor(self.server, self.service)
        self.site = make_site(self.services)
        factory = self.ae.acceptor_factory(evt_handlers=self.server.handlers())
        self.service.server = Server(factory, reactor)

    async def scrape(self, client: Client | None = None) -> dict[tuple[str, ...], float]:
        response = await (client or self.client()).request("GET", "/metrics")
        self.assertEqual(response.status, 200, response.body)
        self.assertTrue(response.headers["content-type"].startswith("text/plain; version="), response.headers)
        return values(response.body.decode())


class Metrics(MonitoringTestCase):
    """The metrics of one process."""

    async def test_all_have_a_definition(self) -> None:
        text = (await self.client().request("GET", "/metrics")).body.decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        for name, family in families.items():
            metric = METRICS[f"{name}_total" if family.type == "counter" else name]
            self.assertEqual((family.type, family.documentation), (metric.kind, metric.words))
            for sample in family.samples:
                self.assertEqual(set(sample.labels) - {"le"}, {"process", *metric.labels}, name)

    async def test_openmetrics(self) -> None:
        response = await self.client().request("GET", "/metrics", [("Accept", "application/openmetrics-text")])
        self.assertTrue(response.headers["content-type"].startswith("application/openmetrics-text"))
        self.assertTrue(list(openmetrics.text_string_to_metric_families(response.body.decode())))

    async def test_requests_are_counted(self) -> None:
        client = self.client()
        before = await self.scrape(client)
        for _ in range(3):
            await client.request("GET", "/dicom-web/studies")
        await client.request("GET", "/dicom-web/studies/1.2/nothing")
        await client.request("BREW", "/dicom-web/studies")
        after = await self.scrape(client)
        total, route = "dicomtwist_http_requests_total", "/dicom-web/studies"
        self.assertEqual(after[total, "GET", route, "200"], 3)
        self.assertEqual(after[total, "GET", "other", "404"], 1)
        self.assertEqual(after[total, "other", "other", "405"], 1)
        self.assertEqual(after["dicomtwist_http_seconds_count", route], 3)
        self.assertEqual(after["dicomtwist_http_seconds_bucket", "+Inf", route], 3)
        self.assertGreater(after["dicomtwist_sent_bytes_total", "http"], before["dicomtwist_sent_bytes_total", "http"])
        self.assertEqual(after["dicomtwist_connections_open", "http"], 1)

    async def test_names_of_clients_make_no_series(self) -> None:
        client = self.client()
        await self.scrape(client)
        before = len(await self.scrape(client))
        for number in range(60):
            await client.request(f"M{number}", f"/dicom-web/{number}")
            await client.request("GET", f"/{number}")
        self.assertLess(len(await self.scrape(client)) - before, 30)

    async def test_instances(self) -> None:
        self.server.ingest.outcomes.add(("stored",), 2)
        found = await self.scrape()
        self.assertEqual(found["dicomtwist_instances_total", "stored"], 2)
        self.assertEqual(found["dicomtwist_inbox_instances",], 0)
        self.assertEqual(found["dicomtwist_journal_dropped_total", "records"], 3)
        self.assertEqual(found["dicomtwist_audit_waiting_bytes",], 77)
        self.assertGreater(found["dicomtwist_disk_free_bytes",], 0)

    async def test_deletions(self) -> None:
        keep(self.archive, dataset(1))
        await self.server.deletion.delete(["1.2.1"], "a test")
        found = await self.scrape()
        self.assertEqual(found["dicomtwist_deleted_instances_total",], 1)
        self.assertEqual(found["dicomtwist_retention_deleted_studies_total",], 0)
        self.assertEqual(found["dicomtwist_retention_kept_studies",], 0)

    async def test_other_processes(self) -> None:
        other = await self.monitor.collect()
        self.monitor.ask_others = lambda what: succeed({"worker-2": other, "worker-3": None})
        self.monitor.name = "worker-1"
        response = await self.client().request("GET", "/metrics")
        up = {
            sample.labels["process"]: sample.value
            for family in text_string_to_metric_families(response.body.decode())
            for sample in family.samples
            if sample.name == "dicomtwist_process_up"
        }
        self.assertEqual(up, {"worker-1": 1, "worker-2": 1, "worker-3": 0})

    async def test_a_disk_that_hangs(self) -> None:
        """The metrics come without it, and only one thread waits for it."""
        hangs = Event()
        self.addCleanup(hangs.set)
        self.patch(shutil, "disk_usage", lambda root: hangs.wait())
        self.patch(module, "PATIENCE", 0.01)
        self.patch(module, "FRESH", 0.0)
        for _ in range(5):
            found = await self.scrape()
        self.assertEqual(found["dicomtwist_disk_answers",], 0)
        self.assertEqual(found["dicomtwist_ready",], 0)
        self.assertEqual(found["dicomtwist_executor_busy_threads", "monitoring"], 1)
        self.assertNotIn(("dicomtwist_disk_free_bytes",), found)

    async def test_without_prometheus_client(self) -> None:
        real = builtins.__import__

        def without(name: str, *arguments: Any, **options: Any) -> Any:
            if name.startswith("prometheus_client"):
                raise ModuleNotFoundError(name=name)
            return real(name, *arguments, **options)

        loaded = sys.modules.pop("dicomtwist.web.monitoring.exposition", None)
        if loaded is not None:
            self.addCleanup(sys.modules.__setitem__, loaded.__name__, loaded)
        self.patch(builtins, "__import__", without)
        response = await self.client().request("GET", "/metrics")
        self.assertEqual(response.status, 501)
        self.assertIn("dicomtwist[metrics]", response.json["words"])


class WhoSeesThem(MonitoringTestCase):
    """The rules decide about the metrics, and health is open."""

    async def test_strangers(self) -> None:
        self.assertEqual((await self.client("10.0.0.1").request("GET", "/metrics")).status, 403)
        self.assertEqual((await self.client("10.0.0.1").request("GET", "/health/live")).status, 200)
        self.assertEqual((await self.client("10.0.0.1").request("GET", "/health/ready")).status, 200)
        found = await self.scrape()
        self.assertEqual(found["dicomtwist_refused_total", "http", "operation"], 1)

    async def test_rules(self) -> None:
        rules = parse_rules([{"from": "10.0.0.9", "allow": "admin"}, {"from": "10.0.0.8", "allow": "find"}])
        access = self.server.access
        assert access is not None
        access.policy = Policy(rules, None, frozenset())
        await self.scrape(self.client("10.0.0.9"))
        self.assertEqual((await self.client("10.0.0.8").request("GET", "/metrics")).status, 403)
        await self.scrape(self.client("127.0.0.1"))

    async def test_a_page_of_another_site(self) -> None:
        """A browser on this machine does not read the metrics for a page whose name leads here."""
        response = await self.client().request("GET", "/metrics", [("Host", "evil.example")])
        self.assertEqual(response.status, 403)


class Health(MonitoringTestCase):
    """The probes of a load balancer."""

    async def ready(self, client: Client | None = None) -> tuple[int, str]:
        response = await (client or self.client()).request("GET", "/health/ready")
        return response.status, response.body.decode()

    async def test_ready(self) -> None:
        self.assertEqual(await self.ready(), (200, "ready\n"))
        response = await self.client().request("HEAD", "/health/live")
        self.assertEqual((response.status, response.headers["cache-control"]), (200, "no-store"))

    async def test_starting(self) -> None:
        self.service.server = None
        self.assertEqual(await self.ready(), (503, "the server is starting or stopping\n"))

    async def test_no_room(self) -> None:
        self.archive.lacks_room = "secret words"
        self.assertEqual(await self.ready(), (503, "there is no room to store instances\n"))

    async def test_a_full_disk(self) -> None:
        self.archive.store.min_free = 2**62
        self.assertEqual(await self.ready(), (503, "the disk is full\n"))
        self.assertEqual((await self.client().request("GET", "/health/live")).status, 200)

    async def test_draining(self) -> None:
        """Health and metrics are told until the end, and nothing else."""
        client = self.client()
        self.site.is_draining = True
        self.assertEqual(await self.ready(), (503, "the server is stopping\n"))
        self.assertEqual((await self.scrape())["dicomtwist_ready",], 0)
        response = await client.request("GET", "/dicom-web/studies")
        self.assertEqual(response.status, 503)
        self.assertTrue(client.is_closed)


class Records(MonitoringTestCase):
    """The record of each request."""

    async def test_answered(self) -> None:
        records: list[RequestRecord] = []
        self.site.listeners.append(records.append)
        await self.client().request("GET", "/dicom-web/studies?PatientName=Doe")
        (record,) = records
        self.assertEqual((record.method, record.path), ("GET", "/dicom-web/studies"))
        self.assertEqual((record.route, record.status, record.ending), ("/dicom-web/studies", 200, "answered"))
        self.assertEqual((record.address, record.bytes_sent, record.bytes_received), ("127.0.0.1", 2, 0))
        self.assertNotIn("Doe", str(record.as_dict()))

    async def test_lost(self) -> None:
        records: list[RequestRecord] = []
        self.site.listeners.append(records.append)
        client = self.client()
        client.send(
            b"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nContent-Type: application/dicom\r\n\r\nabc"
        )
        client.lose()
        await deferLater(reactor, 0, lambda: None)
        (record,) = records
        self.assertEqual((record.method, record.status, record.ending), ("POST", None, "lost"))
        self.assertEqual(record.bytes_received, 3)
