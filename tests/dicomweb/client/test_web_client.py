"""The client of DICOMweb with a scripted server: requests, pages, streams, refusals."""

from __future__ import annotations

import gzip
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from twisted.internet.defer import CancelledError, Deferred, succeed

from dicomtwist.dicomweb import (
    AccessDenied,
    DICOMwebClient,
    InvalidResponse,
    NoConnection,
    RequestFailed,
    RequestTimeout,
    ResourceNotFound,
    ServerUnavailable,
    StoredInstance,
    StoreOutcome,
    Timeouts,
)
from dicomtwist.dicomweb.client import Source
from dicomtwist.dicomweb.parameters import ParameterError
from tests.dicomweb.client.server import ClientTestCase, Connection, Received, Script, answer, multipart

CT = str(get_testdata_file("CT_small.dcm", download=False))
MR = str(get_testdata_file("MR_small.dcm", download=False))


def study(uid: str) -> dict[str, Any]:
    return {"0020000D": {"vr": "UI", "Value": [uid]}}


def studies(*uids: str) -> bytes:
    return json.dumps([study(uid) for uid in uids]).encode()


def stored(body: bytes, *, failed: dict[str, int] | None = None) -> bytes:
    """Return the response to a request to store that is sent with *body*; *failed* has the reasons of UIDs."""
    uids = [one for one in (str(dcmread(path).SOPInstanceUID) for path in (CT, MR)) if one.encode() in body]
    failed = failed or {}
    good = [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in uids if uid not in failed]
    bad = [
        {"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": [reason]}}
        for uid, reason in failed.items()
    ]
    document: dict[str, Any] = {}
    if good:
        document["00081199"] = {"vr": "SQ", "Value": good}
    if bad:
        document["00081198"] = {"vr": "SQ", "Value": bad}
    return json.dumps(document).encode()


def always(response: bytes | None) -> Script:
    """Return a script that gives each request the same response."""
    return lambda *_: response


async def found(matches: Any) -> list[Dataset]:
    return [match async for match in matches]


class Construction(ClientTestCase):
    def test_urls(self) -> None:
        for url in ("ftp://a/b", "pacs:104", "http://", "http://u:p@a/b", "http://a/b?c", "http://a:x/", "http://a b/"):
            with self.assertRaises(ValueError) as caught:
                DICOMwebClient(url)
            self.assertNotIn("u:p", str(caught.exception))
        for url, shown in (
            ("http://[::1]:8080/a/", "http://[::1]:8080/a"),
            ("https://PACS.example:443", "https://pacs.example"),
        ):
            self.assertEqual(str(DICOMwebClient(url).url), shown)

    def test_credentials_need_tls(self) -> None:
        for arguments in ({"token": "t"}, {"user": ("a", "b")}):
            with self.assertRaisesRegex(ValueError, "without TLS"):
                DICOMwebClient("http://pacs.example/", **arguments)
            DICOMwebClient("https://pacs.example/", **arguments)
            DICOMwebClient("http://localhost/", **arguments)
            DICOMwebClient("http://pacs.example/", clear_credentials=True, **arguments)
        with self.assertRaises(ValueError):
            DICOMwebClient("https://pacs.example/", token="t", user=("a", "b"))


class Search(ClientTestCase):
    async def test_one_page(self) -> None:
        client = self.serve(lambda *_: answer(200, studies("1.2", "1.3")))
        matches = await found(client.search_for_studies({"PatientName": "DOE*"}, include=["00081030"], fuzzy=True))
        self.assertEqual([match.StudyInstanceUID for match in matches], ["1.2", "1.3"])
        self.assertEqual(
            self.target(),
            "GET /dicom-web/studies?PatientName=DOE*&includefield=00081030&fuzzymatching=true&limit=1000",
        )
        self.assertIn("application/dicom+json", self.received[0].headers["accept"])

    async def test_pages(self) -> None:
        pages = [studies("1.1", "1.2"), studies("1.3", "1.4"), studies("1.5")]
        client = self.serve(lambda *_: answer(200, pages.pop(0)))
        matches = await found(client.search_for_studies(page=2))
        self.assertEqual([match.StudyInstanceUID for match in matches], [f"1.{one}" for one in range(1, 6)])
        self.assertEqual(
            [one.line.split("?")[1] for one in self.received],
            [
                "limit=2 HTTP/1.1",
                "limit=2&offset=2 HTTP/1.1",
                "limit=2&offset=4 HTTP/1.1",
            ],
        )

    async def test_a_server_with_a_smaller_limit_says_that_there_is_more(self) -> None:
        pages = [
            answer(200, studies("1.1"), Warning='299 x "There are additional results"'),
            answer(200, studies("1.2")),
        ]
        client = self.serve(lambda *_: pages.pop(0))
        self.assertEqual(len(await found(client.search_for_studies(page=5))), 2)

    async def test_a_server_that_ignores_pages(self) -> None:
        """One that ignores the offset is asked twice at most, one that ignores the limit once."""
        client = self.serve(lambda *_: answer(200, studies("1.1", "1.2")))
        self.assertEqual(len(await found(client.search_for_studies(page=2))), 2)
        self.assertEqual(len(self.received), 2)
        self.assertEqual(len(await found(client.search_for_studies(page=1))), 2)
        self.assertEqual(len(self.received), 3)

    async def test_limit(self) -> None:
        client = self.serve(lambda *_: answer(200, studies("1.1", "1.2", "1.3")))
        self.assertEqual(len(await found(client.search_for_studies(limit=2, offset=4))), 2)
        self.assertEqual(self.target(), "GET /dicom-web/studies?limit=2&offset=4")

    async def test_paths(self) -> None:
        client = self.serve(lambda *_: answer(204))
        for matches, path in (
            (client.search_for_series(), "series"),
            (client.search_for_series("1.2", {"Modality": "CT"}), "studies/1.2/series?Modality=CT&"),
            (client.search_for_instances(), "instances"),
            (client.search_for_instances("1.2"), "studies/1.2/instances"),
            (client.search_for_instances("1.2", "1.3"), "studies/1.2/series/1.3/instances"),
        ):
            self.assertEqual(await found(matches), [])
            self.assertTrue(self.received[-1].line.startswith(f"GET /dicom-web/{path}"), self.received[-1].line)

    async def test_arguments(self) -> None:
        client = self.serve(lambda *_: answer(204))
        with self.assertRaises(ParameterError):
            await found(client.search_for_studies({"Nonsense": "1"}))
        for uids in (("../x",), ("1.2", "a b"), ("", "1.2")):
            with self.assertRaises(ValueError):
                client.search_for_instances(*uids)

    async def test_compressed(self) -> None:
        body = gzip.compress(studies(*(f"1.{one}" for one in range(1000))))
        client = self.serve(lambda *_: answer(200, body, Content_Encoding="gzip"))
        self.assertEqual(len(await found(client.search_for_studies())), 1000)
        for wrong in (body[:-20], b"no gzip"):
            broken = self.serve(always(answer(200, wrong, Content_Encoding="gzip")))
            with self.assertRaises(InvalidResponse):
                await found(broken.search_for_studies())

    async def test_invalid(self) -> None:
        for body, media_type in (
            (b"[{", "application/dicom+json"),
            (b"{}", "application/json"),
            (b'[{"x": 1}]', "application/dicom+json"),
            (b"<html>", "text/html"),
        ):
            client = self.serve(always(answer(200, body, media_type)))
            with self.assertRaises(InvalidResponse):
                await found(client.search_for_studies())


class Refusals(ClientTestCase):
    async def test_words(self) -> None:
        for status, body, media_type, kind, words in (
            (
                400,
                b'{"words": "limit has to be a number"}',
                "application/json",
                RequestFailed,
                "limit has to be a number",
            ),
            (401, b"no\ntoken", "text/plain", AccessDenied, "no token"),
            (403, b'{"error": {"message": "no rule"}}', "application/json", AccessDenied, "no rule"),
            (404, b"", "text/plain", ResourceNotFound, ""),
            (503, b"<html>busy</html>", "text/html", ServerUnavailable, ""),
            (500, b'{"Message": "Bad", "Details": "more"}', "application/json", RequestFailed, "more: Bad"),
        ):
            client = self.serve(always(answer(status, body, media_type)))
            with self.assertRaises(kind) as caught:
                await found(client.search_for_studies())
            self.assertIs(type(caught.exception), kind)
            self.assertEqual((caught.exception.status, caught.exception.words), (status, words))

    async def test_retries(self) -> None:
        """A search is sent again after a lost connection, and if the server is busy; a deletion only in the latter case."""
        script = [None, answer(503, Retry_After="0"), answer(204)]

        def respond(request: Received, connection: Connection) -> bytes | None:
            response = script.pop(0)
            if response is None:
                connection.wire.loseConnection()
            return response

        client = self.serve(respond, retries=2)
        self.assertEqual(await found(client.search_for_studies()), [])
        self.assertEqual(len(self.received), 3)
        script[:] = [answer(503, Retry_After="0"), None]
        with self.assertRaises(NoConnection):
            await client.delete_study("1.2")
        script[:] = [answer(503, Retry_After="3600")]
        with self.assertRaises(ServerUnavailable):
            await client.delete_study("1.2")

    async def test_no_server(self) -> None:
        client = self.serve(lambda *_: None)
        await self.port.stopListening()
        with self.assertRaises(NoConnection):
            await client.delete_study("1.2")

    async def test_silence(self) -> None:
        begun = answer(200, b"[{}]")[:-2]
        for response, timer in ((None, "response"), (begun, "idle")):
            client = self.serve(always(response), timeouts=Timeouts(5.0, 0.05, 0.05))
            with self.assertRaises(RequestTimeout) as caught:
                await found(client.search_for_studies())
            self.assertEqual(caught.exception.timer, timer)

    async def test_silence_in_the_handshake(self) -> None:
        """The limit for the connection holds for the handshake of TLS as well, which a port without TLS never answers."""
        self.serve(lambda *_: None)
        url = f"https://127.0.0.1:{self.port.getHost().port}/dicom-web"
        client = self.client(url, timeouts=Timeouts(0.05, None, None))
        with self.assertRaisesRegex(NoConnection, "TLS handshake was not done within 0.05 seconds"):
            await client.delete_study("1.2")
        await self.server.connections[0].lost

    async def test_no_handshake(self) -> None:
        """The server closes the connection, or answers without TLS, in the handshake."""
        for response, words in ((b"", "closed|lost"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "TLS")):

            class Refusing(Connection):
                def dataReceived(self, data: bytes, response: bytes = response) -> None:
                    self.wire.write(response)
                    self.wire.loseConnection()

            self.serve(lambda *_: None)
            self.server.protocol = Refusing
            client = self.client(f"https://127.0.0.1:{self.port.getHost().port}/dicom-web")
            with self.assertRaisesRegex(NoConnection, words):
                await client.delete_study("1.2")

    async def test_cancel_in_the_handshake(self) -> None:
        begun: Deferred[None] = Deferred()

        class Silent(Connection):
            def dataReceived(self, data: bytes) -> None:
                begun.callback(None)

        self.serve(lambda *_: None)
        self.server.protocol = Silent
        client = self.client(f"https://127.0.0.1:{self.port.getHost().port}/dicom-web")
        deleting = client.delete_study("1.2")
        await begun
        deleting.cancel()
        with self.assertRaises(CancelledError):
            await deleting
        await self.server.connections[0].lost

    async def test_no_http(self) -> None:
        client = self.serve(lambda *_: b"\x02\x00 rubbish\r\n\r\n")
        with self.assertRaises(InvalidResponse):
            await found(client.search_for_studies())


class Credentials(ClientTestCase):
    async def test_they_are_sent(self) -> None:
        tokens = iter("ab")

        async def later() -> str:
            return "c"

        for arguments, value in (
            ({"token": "t"}, "Bearer t"),
            ({"token": lambda: next(tokens)}, "Bearer a"),
            ({"token": later}, "Bearer c"),
            ({"user": ("u", "p")}, "Basic dTpw"),
        ):
            client = self.serve(lambda *_: answer(204), headers={"X-Site": "1"}, **arguments)
            await found(client.search_for_studies())
            self.assertEqual(self.received[0].headers["authorization"], value)
            self.assertEqual(self.received[0].headers["x-site"], "1")

    async def test_they_stay_with_the_server(self) -> None:
        """A redirection to another origin is followed without them, and bulk data elsewhere is asked for without them."""
        self.serve(lambda *_: answer(204))
        other, server = f"http://127.0.0.1:{self.port.getHost().port}", self.server
        client = self.serve(always(answer(302, Location=f"{other}/x")), token="secret", headers={"X-Site": "1"})
        self.assertEqual(await found(client.search_for_studies()), [])
        self.assertEqual([part async for part in client.retrieve_bulkdata(f"{other}/b")], [])
        self.assertIn("authorization", self.received[0].headers)
        self.assertEqual([one.line for one in server.received], ["GET /x HTTP/1.1", "GET /b HTTP/1.1"])
        for one in server.received:
            self.assertNotIn("authorization", one.headers)
            self.assertNotIn("x-site", one.headers)

    async def test_redirections_are_bounded(self) -> None:
        for location in ("/dicom-web/again", "ftp://127.0.0.1/", "http://u@127.0.0.1/"):
            client = self.serve(always(answer(307, Location=location)))
            with self.assertRaises(InvalidResponse):
                await found(client.search_for_studies())
            self.assertLessEqual(len(self.received), 6)
        client = self.serve(lambda *_: answer(307, Location="http://elsewhere.example/"))
        with self.assertRaises(InvalidResponse):
            await client.store_instances(CT)


class Retrieval(ClientTestCase):
    async def test_instances(self) -> None:
        files = [Path(one).read_bytes() for one in (CT, MR)]
        client = self.serve(lambda *_: multipart(*files))
        parts = [await part.read() async for part in client.retrieve_study("1.2")]
        self.assertEqual(parts, files)
        self.assertEqual(self.target(), "GET /dicom-web/studies/1.2")
        self.assertEqual(
            self.received[0].headers["accept"], 'multipart/related; type="application/dicom"; transfer-syntax=*'
        )
        datasets = [await part.dataset() async for part in client.retrieve_series("1.2", "1.3")]
        self.assertEqual([one.Modality for one in datasets], ["CT", "MR"])

    async def test_what_is_not_read_is_dropped(self) -> None:
        client = self.serve(lambda *_: multipart(b"a" * 100_000, b"b"))
        self.assertEqual(
            [part.media_type.name async for part in client.retrieve_study("1.2")], ["application/dicom"] * 2
        )

    async def test_single_part(self) -> None:
        client = self.serve(lambda *_: answer(200, b"abc", "application/dicom; transfer-syntax=1.2.3"))
        (part,) = [
            (await part.read(), part.media_type.transfer_syntax)
            async for part in client.retrieve_instance("1", "2", "3")
        ]
        self.assertEqual(part, (b"abc", "1.2.3"))

    async def test_cut_off(self) -> None:
        whole = multipart(b"x" * 1000)
        for cut in (whole[:-9], whole[:-500]):

            def respond(_: Received, connection: Connection, cut: bytes = cut) -> None:
                connection.wire.write(cut)
                connection.wire.loseConnection()

            client = self.serve(respond)
            with self.assertRaises(NoConnection):
                [await part.read() async for part in client.retrieve_study("1.2")]
        client = self.serve(lambda *_: answer(200, b"--b\r\n\r\nabc", "multipart/related; boundary=b"))
        with self.assertRaises(InvalidResponse):
            [await part.read() async for part in client.retrieve_study("1.2")]

    async def test_limit(self) -> None:
        client = self.serve(lambda *_: multipart(b"x" * 1000))
        async with aclosing(client.retrieve_study("1.2")) as parts:
            part = await anext(parts)
            with self.assertRaises(InvalidResponse):
                await part.read(999)

    async def test_back_pressure(self) -> None:
        """While the loop does not go on, the server can send no more than buffers hold; closing it ends the connection."""
        client = self.serve(lambda *_: answer(200, b"x" * 40_000_000, "application/dicom"))
        async with aclosing(client.retrieve_study("1.2")) as parts:
            part = await anext(parts)
            await anext(aiter(part))
            (connection,) = self.server.connections
            self.assertFalse(connection.lost.called)
            lost = connection.lost.addCallback(lambda _: None)
        await lost
        connection.lost = succeed(None)

    async def test_frames_bulk_data_and_renderings(self) -> None:
        client = self.serve(lambda *_: multipart(b"1", b"2", part_type="image/jls"))
        frames = [
            (await part.read(), part.media_type.name) async for part in client.retrieve_frames("1", "2", "3", [1, 2])
        ]
        self.assertEqual(frames, [(b"1", "image/jls"), (b"2", "image/jls")])
        self.assertEqual(self.target(), "GET /dicom-web/studies/1/series/2/instances/3/frames/1,2")
        self.assertEqual(len([part async for part in client.retrieve_bulkdata("bulk/7", first=2, last=5)]), 2)
        self.assertEqual((self.target(1), self.received[1].headers["range"]), ("GET /dicom-web/bulk/7", "bytes=2-5"))
        self.server.script = lambda *_: answer(200, b"jpeg", "image/jpeg")
        parameters = {"window": "40,400,linear"}
        self.assertEqual(await client.retrieve_rendered("1", "2", "3", frame=2, parameters=parameters), b"jpeg")
        self.assertEqual(
            self.target(2), "GET /dicom-web/studies/1/series/2/instances/3/frames/2/rendered?window=40,400,linear"
        )
        self.assertEqual(await client.retrieve_rendered("1", thumbnail=True, media_type="image/png"), b"jpeg")
        self.assertEqual(
            (self.target(3), self.received[3].headers["accept"]), ("GET /dicom-web/studies/1/thumbnail", "image/png")
        )

    async def test_metadata(self) -> None:
        client = self.serve(lambda *_: answer(200, studies("1.2", "1.3")))
        self.assertEqual(len(await found(client.retrieve_metadata("1.2", "1.3"))), 2)
        self.assertEqual(self.target(), "GET /dicom-web/studies/1.2/series/1.3/metadata")


class Storage(ClientTestCase):
    async def test_batches(self) -> None:
        client = self.serve(lambda request, _: answer(200, stored(request.body)))
        results: list[StoredInstance] = []
        sources: list[Source] = [CT, dcmread(MR), Path(CT).read_bytes(), __file__, "missing"]
        result = await client.store_instances(sources, on_result=results.append, study="1.2")
        self.assertEqual((result.stored, result.failed), (3, 2))
        self.assertEqual(len(self.received), 1)
        self.assertEqual(self.target(), "POST /dicom-web/studies/1.2")
        self.assertEqual(self.received[0].body.count(Path(CT).read_bytes()), 2)
        self.assertIn("No such file", "".join(one.words for one in result.failures))
        await client.store_instances([CT, MR, CT], max_batch=2)
        await client.store_instances([CT, MR, CT], max_batch_bytes=1)
        self.assertEqual(len(self.received), 1 + 2 + 3)

    async def test_results(self) -> None:
        uid = str(dcmread(MR).SOPInstanceUID)
        for status in (202, 409):

            def respond(request: Received, _: Connection, status: int = status) -> bytes:
                return answer(status, stored(request.body, failed={uid: 0x0122}))

            client = self.serve(respond)
            result = await client.store_instances([CT, MR])
            self.assertEqual((result.stored, result.failed), (1, 1))
            (failure,) = result.failures
            self.assertEqual(
                (failure.sop_instance, failure.reason, failure.outcome), (uid, 0x0122, StoreOutcome.FAILED)
            )
            self.assertIn("SOP Class", failure.words)

    async def test_a_response_without_results(self) -> None:
        client = self.serve(lambda *_: answer(200, b"", "text/plain"))
        self.assertEqual((await client.store_instances([CT, MR])).stored, 2)
        client = self.serve(lambda *_: answer(202, b"<xml/>", "application/dicom+xml"))
        self.assertEqual((await client.store_instances([CT, MR])).failed, 2)

    async def test_a_refused_batch_is_divided(self) -> None:
        uid = str(dcmread(MR).SOPInstanceUID).encode()

        def respond(request: Received, _: Connection) -> bytes:
            return answer(400, b"bad", "text/plain") if uid in request.body else answer(200, stored(request.body))

        client = self.serve(respond)
        result = await client.store_instances([CT, CT, MR, CT])
        self.assertEqual((result.stored, result.failed), (3, 1))
        self.assertIn("bad", result.failures[0].words)

    async def test_refusal_before_the_end_of_the_body(self) -> None:
        """The words of a server that refuses a body, and reads no more of it, are in the error."""
        client = self.serve(lambda *_: None)
        self.server.early = lambda _: answer(403, b"no rule allows store", "text/plain")
        with self.assertRaises(AccessDenied) as caught:
            await client.store_instances([b"" + Path(CT).read_bytes() + bytes(30_000_000)])
        self.assertEqual(caught.exception.words, "no rule allows store")

    async def test_continue(self) -> None:
        client = self.serve(lambda request, _: answer(200, stored(request.body)))

        def respond(request: Received, _: Connection) -> bytes:
            return b"HTTP/1.1 100 Continue\r\n\r\n" + answer(200, stored(request.body))

        self.server.script = respond
        self.assertEqual((await client.store_instances([CT])).stored, 1)

    async def test_cancel(self) -> None:
        client = self.serve(lambda *_: None)
        arrived: Deferred[None] = Deferred()

        def respond(*_: object) -> None:
            arrived.callback(None)

        self.server.script = respond
        storing = client.store_instances([CT])
        await arrived
        storing.cancel()
        with self.assertRaises(CancelledError):
            await storing
        (connection,) = self.server.connections
        await connection.lost
        connection.lost = succeed(None)
