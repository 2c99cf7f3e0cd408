"""``twist dicom --records``: a line for each association and request, a file that logrotate renames."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

from twisted.internet import reactor as _reactor
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import Agent, readBody

from dicomtwist.daemon.journals import records as journal
from dicomtwist.runtime.lines.line_writer import MAX_WAITING
from dicomtwist.web.http.records import RequestRecord
from tests import peers
from tests.daemon.test_workers import ServerTestCase, instance

reactor = cast(Any, _reactor)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Waiting(SynchronousTestCase):
    def test_long_queries(self) -> None:
        """Records that wait for a disk are bounded by their size: each is kept with the query of its URL."""
        record = RequestRecord(
            method="GET", path="/", route="/", status=200, address="127.0.0.1", proxied=False, secure=True, user="",
            identity="", certificate="", credentials=False, started=datetime.now(UTC), seconds=0.1, bytes_received=0,
            bytes_sent=0, ending="answered", query="x" * 60_000,
        )  # fmt: skip
        records = journal.Records(Mock(), Mock(seconds=lambda: 0.0))
        for _ in range(3000):
            records.request_ended(record)
        self.assertEqual(records.dropped, 3000 - MAX_WAITING // 61)


class Records(ServerTestCase):
    async def test_what_was_done(self) -> None:
        path = Path(self.mktemp()).absolute()
        port, http = peers.free_port(), peers.free_port()
        await self.start(
            f'records = "{path}"', "--workers", "2", "--port", f"tcp:{port}:interface=127.0.0.1",
            "--http", f"tcp:{http}:interface=127.0.0.1", port=port, ready="all 2 workers are ready",
        )  # fmt: skip
        ae = self.scu("CT1")
        assoc = await ae.associate("127.0.0.1", port)
        await assoc.send_c_echo()
        await assoc.send_c_store(instance("1.2.3"))
        await assoc.release()
        response = await Agent(reactor).request(b"GET", f"http://127.0.0.1:{http}/dicom-web/studies?limit=1".encode())
        body: Any = await readBody(response)
        await self.until(lambda: len(lines(path)) == 2)
        association, request = sorted(lines(path), key=lambda one: str(one["type"]))
        self.assertEqual((association["type"], association["calling_ae_title"]), ("association", "CT1"))
        self.assertEqual(
            [(one["service"], one["status"], one["count"]) for one in association["counts"]],
            [("C-ECHO", 0, 1), ("C-STORE", 0, 1)],
        )
        self.assertEqual(association["ending"]["kind"], "released")
        self.assertEqual((request["type"], request["method"]), ("request", "GET"))
        self.assertEqual((request["path"], request["status"]), ("/dicom-web/studies", 200))
        self.assertEqual(request["bytes_sent"], len(body))

        older = path.rename(path.with_suffix(".1"))
        self.server.signal("HUP")
        await self.until(lambda: self.server.text.count("reloaded the rules") >= 3)
        left_open = await ae.associate("127.0.0.1", port)
        await (await ae.associate("127.0.0.1", port)).release()
        await self.until(lambda: len(lines(path)) == 1)
        self.server.signal("TERM")
        await left_open.release()
        await self.server.wait()
        # The record of the association that ended during the stop is written as well.
        self.assertEqual([one["ending"]["kind"] for one in lines(path)], ["released", "released"])
        self.assertEqual(len(lines(older)), 2)
