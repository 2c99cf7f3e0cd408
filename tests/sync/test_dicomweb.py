"""The client of DICOMweb for code that blocks, beside the reactor of the tests, at a scripted server."""

from __future__ import annotations

import gc
from typing import Any

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from dicomtwist import ReactorConflict
from dicomtwist.dicomweb import InvalidResponse, ResourceNotFound
from dicomtwist.sync import DICOMwebClient
from tests.dicomweb.client.server import ClientTestCase, answer, multipart
from tests.dicomweb.client.test_web_client import always, studies


class Blocking(ClientTestCase):
    def blocking(self, response: bytes | None, **arguments: Any) -> DICOMwebClient:
        """Return a client of a server that gives each request the same response."""
        client = DICOMwebClient(str(self.serve(always(response)).url), retries=0, **arguments)
        self.addCleanup(deferToThread, client.close)
        return client

    async def test_values(self) -> None:
        client = self.blocking(answer(200, studies("1.2", "1.3")))
        found = await deferToThread(lambda: [one.StudyInstanceUID for one in client.search_for_studies()])
        self.assertEqual(found, ["1.2", "1.3"])
        client = self.blocking(multipart(b"a" * 100_000, b"b", b"c"))
        parts = await deferToThread(lambda: [part.read() for part in client.retrieve_study("1.2")])
        self.assertEqual(parts, [b"a" * 100_000, b"b", b"c"])
        pieces = await deferToThread(lambda: [b"".join(part) for part in client.retrieve_study("1.2")])
        self.assertEqual(pieces, parts)
        skipped = await deferToThread(lambda: [part.media_type.name for part in client.retrieve_study("1.2")])
        self.assertEqual(skipped, ["application/dicom"] * 3)

    async def test_errors(self) -> None:
        client = self.blocking(answer(404, b"no such study", "text/plain"))
        with self.assertRaisesRegex(ResourceNotFound, "no such study"):
            await deferToThread(list, client.retrieve_study("1.2"))
        with self.assertRaises(ResourceNotFound):
            await deferToThread(client.delete_study, "1.2")
        with self.assertRaises(ValueError):
            await deferToThread(list, client.retrieve_study("../x"))
        self.assertRaises(ReactorConflict, next, client.retrieve_study("1.2"))
        self.assertRaises(ValueError, DICOMwebClient, "http://pacs.example", token="secret")
        self.assertRaises(ValueError, DICOMwebClient, "ftp://pacs.example")
        client = self.blocking(answer(200, b"[{}", "application/json"))
        items = client.search_for_studies()
        with self.assertRaises(InvalidResponse):
            await deferToThread(list, items)
        self.assertEqual(await deferToThread(list, items), [])

    async def test_left_early(self) -> None:
        """A loop that ends early closes the connection: by ``break``, by the end of a block, or when it is dropped."""

        def breaks(client: DICOMwebClient) -> None:
            for _ in client.retrieve_study("1.2"):
                break

        def leaves(client: DICOMwebClient) -> None:
            with client.retrieve_study("1.2") as parts:
                next(iter(next(parts)))

        def drops(client: DICOMwebClient) -> None:
            parts = client.retrieve_study("1.2")
            next(iter(next(parts)))
            del parts

        for use in (breaks, leaves, drops):
            client = self.blocking(answer(200, b"x" * 40_000_000, "application/dicom"))
            await deferToThread(use, client)
            gc.collect()
            await deferLater(reactor, 0)
            (connection,) = self.server.connections
            self.server.connections.clear()
            await connection.lost
