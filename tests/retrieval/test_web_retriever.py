"""Retrieval into a folder from a scripted server of DICOMweb: lost connections, refusals, a stop."""

from __future__ import annotations

import json
from pathlib import Path

from pydicom import dcmread
from pydicom.data import get_testdata_file
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import deferLater

from dicomtwist.dicomweb import AccessDenied, NoConnection
from dicomtwist.retrieval import Outcome, RequestResult, retrieve_from_web
from tests.dicomweb.client.server import ClientTestCase, Connection, Received, answer, multipart

FILES = [Path(str(get_testdata_file(name, download=False))) for name in ("CT_small.dcm", "MR_small.dcm")]
CT, MR = (dcmread(path) for path in FILES)


def listing(*datasets: object) -> bytes:
    """Return the response to a search for instances."""
    matches = [
        {
            f"{tag:08X}": {"vr": "UI", "Value": [str(getattr(one, keyword))]}
            for tag, keyword in (
                (0x0020000D, "StudyInstanceUID"),
                (0x0020000E, "SeriesInstanceUID"),
                (0x00080018, "SOPInstanceUID"),
                (0x00080016, "SOPClassUID"),
            )
        }
        for one in datasets
    ]
    return answer(200, json.dumps(matches).encode())


class WebRetrieverTests(ClientTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.results: list[RequestResult] = []

    async def test_a_cut_response(self) -> None:
        """The instance that has arrived whole stays, the rest is retrieved again, and nothing counts as refused."""
        content = FILES[0].read_bytes()
        uid = str(CT.SOPInstanceUID)
        other = dcmread(FILES[0])
        other.SOPInstanceUID = uid[:-1] + "0"
        second = content.replace(uid.encode(), other.SOPInstanceUID.encode())
        script = [multipart(content, second)[:-3000], listing(CT, other), multipart(second)]

        def respond(_: Received, connection: Connection) -> bytes | None:
            response = script.pop(0)
            if len(script) == 2:
                connection.wire.write(response)
                connection.wire.loseConnection()
                return None
            return response

        client = self.serve(respond)
        getting = retrieve_from_web(client, CT.StudyInstanceUID, self.folder, on_result=self.results.append)
        totals = await getting
        self.assertEqual((totals.stored, totals.failed, totals.refused), (2, 0, {}), self.results)
        self.assertEqual(len(list(self.folder.rglob("*.dcm"))), 2)
        self.assertTrue(self.target(2).endswith(f"/instances/{other.SOPInstanceUID}"))

    async def test_an_instance_of_another_study(self) -> None:
        client = self.serve(lambda *_: multipart(FILES[0].read_bytes(), FILES[1].read_bytes(), b"rubbish"))
        totals = await retrieve_from_web(client, CT.StudyInstanceUID, self.folder)
        self.assertEqual((totals.stored, totals.refused.total()), (1, 2))
        self.assertEqual(totals.requests, {Outcome.FAILED: 1})

    async def test_what_the_server_does_not_send(self) -> None:
        """An instance that the server lists and does not send has failed."""
        self.folder.mkdir()
        (self.folder / CT.StudyInstanceUID).mkdir()
        client = self.serve(lambda request, _: listing(CT) if "?" in request.line else answer(404))
        totals = await retrieve_from_web(client, CT.StudyInstanceUID, self.folder, on_result=self.results.append)
        self.assertEqual((totals.requests, totals.failed), ({Outcome.FAILED: 1}, 1))
        self.assertEqual(self.results[0].failed_instances, [CT.SOPInstanceUID])

    async def test_classes(self) -> None:
        """With SOP Classes, instances of these alone are requested."""

        def respond(request: Received, _: Connection) -> bytes:
            return listing(CT, MR) if "?" in request.line else multipart(FILES[0].read_bytes())

        client = self.serve(respond)
        classes = [CT.SOPClassUID]
        totals = await retrieve_from_web(client, CT.StudyInstanceUID, self.folder, sop_classes=classes)
        self.assertEqual((totals.stored, len(self.received)), (1, 2))
        self.assertTrue(self.target(1).endswith(f"/instances/{CT.SOPInstanceUID}"))

    async def test_no_server(self) -> None:
        client = self.serve(lambda *_: answer(403, b"no rule allows get", "text/plain"))
        with self.assertRaises(AccessDenied) as caught:
            await retrieve_from_web(client, ["1.2", "1.3"], self.folder)
        self.assertEqual(caught.exception.words, "no rule allows get")
        self.port.stopListening()
        nobody = self.client("http://127.0.0.1:1/")
        with self.assertRaises(NoConnection):
            await retrieve_from_web(nobody, "1.2", self.folder)

    async def test_cancel(self) -> None:
        arrived: Deferred[None] = Deferred()

        def respond(*_: object) -> None:
            arrived.callback(None)

        client = self.serve(respond)
        getting = retrieve_from_web(client, ["1.2", "1.3"], self.folder)
        await arrived
        getting.cancel()
        with self.assertRaises(CancelledError):
            await getting
        (connection,) = self.server.connections
        await connection.lost
        connection.lost = succeed(None)
        await deferLater(client.reactor, 0)
