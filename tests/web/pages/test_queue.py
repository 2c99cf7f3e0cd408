"""dicomtwist.web.pages.queue: the page of the queue of forwarding."""

from __future__ import annotations

from twisted.internet.defer import succeed

from dicomtwist.forwarding.operators.queue import ForwardQueue
from dicomtwist.forwarding.tasks.store import TaskStore
from dicomtwist.forwarding.tasks.types import Arrival, Definition, TaskState
from tests.web.pages.test_pages import PagesTestCase, hrefs


class Queue(PagesTestCase):
    def setUp(self) -> None:
        super().setUp()
        store = TaskStore(self.folder / ".forwarding")
        store.open()
        self.addCleanup(store.close)
        (rule,) = store.register([Definition("<b>all</b>", {}, (("A", "B"),))])
        store.make([Arrival("1.2", "1.2.1", f"1.2.1.{number}", (rule,)) for number in range(120)])
        (failed,) = store.claim(("A", "B"), 1, 1e10, 60, "x")
        store.finish([failed.ends(TaskState.FAILED, "0xA900 <script>")])
        queue = self.services.queue = ForwardQueue(self.ae.executors.forwarding)
        queue.store = store
        queue.ask_peers = lambda: succeed({"A": {"breaker": "open", "said": "connection refused <i>"}})

    async def test_tasks_and_destinations(self) -> None:
        text = (await self.page("/queue")).text
        for words in ("A,B", "is down: connection refused <i>", "119", "<b>all</b>", "1.2.1.0"):
            self.assertIn(words, text)
        self.assertNotIn("1.2.1.99", text)
        text = (await self.page("/queue?after=100")).text
        self.assertIn("1.2.1.99", text)
        text = (await self.page("/queue?state=failed")).text
        self.assertIn("0xA900 <script>", text)
        self.assertIn("No task matches.", (await self.page("/queue?destination=C&study=9.9")).text)

    async def test_behind_the_last_task(self) -> None:
        for path, words, first in (
            ("/queue?after=900", "There are no tasks behind the ID 900.", "/queue"),
            (
                "/queue?state=failed&after=900",
                "There are no tasks that match behind the ID 900.",
                "/queue?state=failed",
            ),
        ):
            found = await self.page(path)
            self.assertIn(words, found.text)
            self.assertEqual(hrefs(found, "first"), [first])

    async def test_wrong_parameters(self) -> None:
        for query in ("study=x", "state=x", "destination=%07", f"after={'9' * 40}", "after=x"):
            await self.page(f"/queue?{query}")

    async def test_without_forwarding(self) -> None:
        self.services.queue = None
        await self.get("/queue", status=404)
        self.assertNotIn("/queue", (await self.get("/server")).body.decode())

    async def test_only_for_operators(self) -> None:
        from dicomtwist.access.enforcement import Access, Policy

        self.server.access = Access(Policy(), self.ae.executors.passcodes)
        response = await self.client("192.0.2.1").request("GET", "/queue", [("Accept", "text/html")])
        self.assertIn(response.status, (401, 403))
