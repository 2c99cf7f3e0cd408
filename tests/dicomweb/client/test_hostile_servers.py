"""The client of DICOMweb at servers that send what no server should: each ends in an error of the client, within bounds."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from dicomtwist.dicomweb import AccessDenied, DICOMwebError, InvalidResponse, NoConnection, ServerUnavailable
from dicomtwist.dicomweb.client.http import MAX_HEAD
from tests.dicomweb.client.server import ClientTestCase, Connection, Received, answer, multipart
from tests.dicomweb.client.test_web_client import CT, always, found, studies

JSON = "application/dicom+json"


def bomb(size: int, of: bytes = b" ") -> bytes:
    """Return gzip of *size* bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = of * (1 << 20)
    return b"".join([*(packer.compress(block) for _ in range(size >> 20)), packer.flush()])


class Heads(ClientTestCase):
    async def test_too_long(self) -> None:
        """Header fields without an end, long ones, interim responses without an end."""
        line = b"X-Field: " + b"x" * 1000 + b"\r\n"
        for begin, repeated in (
            (b"HTTP/1.1 200 OK\r\n", line),
            (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 1000),
            (b"HTTP/1.1 200 OK\r\nX: y\r\n", b" folded" * 100 + b"\r\n"),
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", line),
        ):
            client = self.serve(always(begin + repeated * (2 * MAX_HEAD // len(repeated))), retries=2)
            with self.assertRaises(InvalidResponse):
                await found(client.search_for_studies())
            self.assertEqual(len(self.received), 1)
            await self.server.connections[0].lost.addCallback(lambda _: None)
            self.server.connections.clear()

    async def test_many_fields(self) -> None:
        """A head below the limit is taken, on each request of a connection."""
        fields = {f"X_{number}": "x" * 100 for number in range(1000)}
        client = self.serve(always(answer(200, studies("1.2"), **fields)))
        for _ in range(5):
            self.assertEqual(len(await found(client.search_for_studies())), 1)
        self.assertEqual(len(self.server.connections), 1)

    async def test_not_http(self) -> None:
        for head in (
            b"HTTP/1.1 2x0 OK\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n[]\r\n0\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n\0\0\0",
            b"HTTP/1.1 304 Not Modified\r\n\r\n",
            b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        ):
            client = self.serve(lambda _, connection, head=head: ended(connection, head))  # type: ignore[misc]
            with self.assertRaises(DICOMwebError, msg=head):
                await found(client.search_for_studies())

    async def test_locations(self) -> None:
        for location in (
            "http://127.0.0.1:99999/",
            "http://127.0.0.1:x/",
            "http://[::1/",
            "http://127.0.0.1:1/a b",
            "http://127.0.0.1:1/\u00fc",
            "//@127.0.0.1/",
            "javascript:x",
        ):
            client = self.serve(always(answer(302, Location=location)))
            with self.assertRaises(InvalidResponse, msg=location):
                await found(client.search_for_studies())
            self.assertEqual(len(self.received), 1)

    async def test_uris_of_bulk_data(self) -> None:
        """A BulkDataURI that cannot be asked for is refused before anything is sent."""
        client = self.serve(always(answer(204)))
        for uri in ("http://[::1/", "file:///etc/passwd", "http://127.0.0.1/\u00fc", "http://u:p@127.0.0.1/", "a b"):
            with self.assertRaises(ValueError, msg=uri):
                await found(client.retrieve_bulkdata(uri))
        self.assertEqual(self.received, [])


class Bodies(ClientTestCase):
    async def test_members(self) -> None:
        """A compressed body may have several members, and zeros behind them."""
        whole = studies("1.2", "1.3")
        body = b"".join(gzip.compress(bytes([one])) for one in whole) + gzip.compress(b"") + b"\0" * 512
        client = self.serve(always(answer(200, body, Content_Encoding="gzip")))
        self.assertEqual(len(await found(client.search_for_studies())), 2)
        broken = self.serve(always(answer(200, gzip.compress(whole) + b"rubbish", Content_Encoding="gzip")))
        with self.assertRaises(InvalidResponse):
            await found(broken.search_for_studies())

    async def test_encodings(self) -> None:
        """An encoding that was not asked for is refused, whichever field names it."""
        for encoding in ("br", "gzip, gzip", "gzip, br", "zstd"):
            client = self.serve(always(answer(200, gzip.compress(b"[]"), Content_Encoding=encoding)))
            with self.assertRaises(InvalidResponse, msg=encoding):
                await found(client.search_for_studies())
        for encoding in ("identity", ""):
            client = self.serve(always(answer(200, b"[]", Content_Encoding=encoding)))
            self.assertEqual(await found(client.search_for_studies()), [])

    async def test_bombs(self) -> None:
        """The client bounds the inflated bytes of a response wherever it collects them."""
        large = bomb(128 << 20)
        client = self.serve(always(answer(200, large, Content_Encoding="gzip")))
        with self.assertRaises(InvalidResponse):
            await found(client.search_for_studies())
        with self.assertRaises(InvalidResponse):
            await client.retrieve_rendered("1.2")
        client = self.serve(always(answer(403, large, "text/plain", Content_Encoding="gzip")))
        with self.assertRaises(AccessDenied):
            await found(client.search_for_studies())

    async def test_json(self) -> None:
        deep = b'{"00400100":{"vr":"SQ","Value":[' * 5000
        for body in (
            b'[{"x":' + b"[" * 100_000,
            b"[" + deep + b"}]}" * 5000 + b"]",
            b'[{"00080018":{"vr":"UI","Value":["' + b"1" * (17 << 20) + b'"]}}]',
            b'[{"00280010":{"vr":"US","Value":[' + b"9" * 10_000 + b"]}}]",
            b'[{"00280010":{"vr":"US","Value":[1e999]}}]',
            b'[{"00280010":{"vr":"US","Value":[' + b"1," * 5_000_000 + b"1]}}]",
            b'[{"0020000D":{"vr":["UI"]}}]',
            b'[{"0020000D":[]}]',
            b'[{"0020000D":{"vr":"UI","Value":{}}}]',
            b'[{"7FE00010":{"vr":"OW","InlineBinary":"?"}}]',
            b"\xff\xfe[\0]\0",
            b"[{}] [{}]",
            b"[{}]x",
            b'{"0020000D":{"vr":"UI"}}',
            b"null",
            b'"',
            b"[[{}]]",
        ):
            client = self.serve(always(answer(200, body)))
            with self.assertRaises(InvalidResponse, msg=body[:60]):
                await found(client.search_for_studies())

    async def test_results(self) -> None:
        """Results of storing with other VRs than theirs say nothing of the instance."""
        for element in ({"vr": "US", "Value": [1]}, {"vr": "UI", "Value": ["1.2"]}, {"vr": "SQ", "Value": [None]}, {}):
            for tag in ("00081198", "00081199", "0008119A"):
                client = self.serve(always(answer(202, json.dumps({tag: element}).encode())))
                result = await client.store_instances(CT)
                self.assertEqual((result.stored, result.failed), (0, 1), (tag, element))

    async def test_multipart(self) -> None:
        field = b"X-Field: " + b"x" * 1000 + b"\r\n"
        for media_type, body in (
            ("multipart/related", b"--b\r\n\r\nabc\r\n--b--"),
            ('multipart/related; boundary=""', b"--\r\n\r\nabc\r\n----"),
            ("multipart/related; boundary=" + "b" * 1000, b""),
            ("multipart/related; boundary=b", b""),
            ("multipart/related; boundary=b", b"no part at all"),
            ("multipart/related; boundary=b", b"x" * 5_000_000),
            ("multipart/related; boundary=b", b"--b\r\n" + field * 1000),
            ("multipart/related; boundary=b", b"--b\r\nX" + b"x" * 1_000_000),
            ("multipart/related; boundary=b", b"--b\r\n\r\nabc\r\n--b"),
        ):
            client = self.serve(always(answer(200, body, media_type)))
            with self.assertRaises(InvalidResponse, msg=media_type + str(body[:30])):
                [await part.read() async for part in client.retrieve_study("1.2")]

    async def test_an_epilogue_without_an_end(self) -> None:
        """Nothing behind the last part keeps the loop from its end."""

        def respond(_: Received, connection: Connection) -> None:
            whole = multipart(b"abc")
            body = whole[whole.index(b"\r\n\r\n") + 4 :]
            connection.wire.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: multipart/related; boundary=b\r\nContent-Length: 99999999\r\n\r\n"
                + body
            )
            connection.wire.write(b"epilogue" * 100_000)

        client = self.serve(respond)
        self.assertEqual([await part.read() async for part in client.retrieve_study("1.2")], [b"abc"])

    async def test_lengths(self) -> None:
        """A connection that ends in the middle of a body, of each form."""
        for head in ("Content-Length: 1000", "Transfer-Encoding: chunked"):
            for body in (b"", b"20\r\n[{}"):
                response = f"HTTP/1.1 200 OK\r\nContent-Type: {JSON}\r\n{head}\r\n\r\n".encode() + body
                client = self.serve(lambda _, connection, response=response: ended(connection, response))  # type: ignore[misc]
                with self.assertRaises((NoConnection, InvalidResponse)):
                    await found(client.search_for_studies())


class Repeated(ClientTestCase):
    async def test_requests_that_a_proxy_may_have_passed_on(self) -> None:
        """After 502 and 504 a deletion is not sent again: the server may have performed it."""
        for status, count in ((502, 1), (504, 1), (503, 3), (429, 3)):
            client = self.serve(always(answer(status, Retry_After="0")), retries=2)
            with self.assertRaises(ServerUnavailable):
                await client.delete_study("1.2")
            self.assertEqual(len(self.received), count, status)
            with self.assertRaises(ServerUnavailable):
                await found(client.search_for_studies())
            self.assertEqual(len(self.received), count + 3, status)

    async def test_connections_that_are_closed_between_requests(self) -> None:
        """A server that closes after each response without saying so costs no attempt, with several connections neither."""
        client = self.serve(lambda _, connection: ended(connection, answer(200, b"[]")))
        for _ in range(3):
            self.assertEqual(await found(client.search_for_studies()), [])
            await gatherResults([Deferred.fromCoroutine(found(client.search_for_studies())) for _ in range(4)])

    async def test_connections_that_are_closed_after_a_request(self) -> None:
        """A server that answers one request of a connection, and closes at the next one, costs no attempt."""

        def respond(_: Received, connection: Connection) -> bytes | None:
            if getattr(connection, "had", False):
                connection.wire.loseConnection()
                return None
            connection.had = True  # type: ignore[attr-defined]
            return answer(200, b"[]")

        client = self.serve(respond)
        for _ in range(3):
            self.assertEqual(await found(client.search_for_studies()), [])
        self.assertEqual(len(self.received), 5)
        with self.assertRaises(NoConnection):
            await client.delete_study("1.2")

    async def test_waits_that_are_too_long(self) -> None:
        for wait in ("99999999", "9" * 400, "9" * 5000):
            client = self.serve(always(answer(503, Retry_After=wait)), retries=2)
            with self.assertRaises(ServerUnavailable):
                await found(client.search_for_studies())
            self.assertEqual(len(self.received), 1)


def ended(connection: Any, response: bytes) -> None:
    """Send a response, and close the connection."""
    connection.wire.write(response)
    connection.wire.loseConnection()
