"""dicomtwist.web.http.channel and .site: what a connection may do, and for how long."""

from __future__ import annotations

import unittest
from typing import Any

from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from dicomtwist.runtime.networks import Networks
from dicomtwist.web.http.body import Body
from dicomtwist.web.http.channel import LINGER, MAX_DISCARDED, MIN_PROGRESS
from dicomtwist.web.http.limits import MAX_BODY_LENGTH, MAX_HEADER_FIELDS, MAX_HEADER_LENGTH, HTTPLimits
from dicomtwist.web.http.site import Site, StreamingResource
from tests.web.site import Client, Response, encode, parse


class Plain(Resource):
    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bytes] = []

    def render(self, request: Any) -> bytes:
        self.seen.append(request.uri)
        return b"%d" % len(request.content.read())


class Streamed(StreamingResource, Resource):
    """Takes a body, and answers at its end, or when it fails."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.received = 0
        self.reason: Failure | None = None
        self.body: Any = None

    def begin(self, request: Any, body: Body) -> None:
        self.request, self.body = request, body
        body.deliver_to(self)

    def data(self, data: bytes) -> None:
        self.received += len(data)

    def end(self) -> None:
        self.answer(200)

    def fail(self, reason: Failure) -> None:
        self.reason = reason
        self.answer(getattr(reason.value, "status", 413))

    def answer(self, status: int) -> None:
        if self.request.channel is not None:
            self.request.setResponseCode(status)
            self.request.setHeader(b"Content-Length", b"0")
            self.request.finish()


class Silent(Resource):
    """Answers later."""

    isLeaf = True

    def render(self, request: Any) -> int:
        self.request = request
        return 1  # NOT_DONE_YET


class ChannelTestCase(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.plain, self.streamed, self.silent = Plain(), Streamed(), Silent()
        root = Resource()
        for name, child in ((b"plain", self.plain), (b"streamed", self.streamed), (b"silent", self.silent)):
            root.putChild(name, child)
        self.limits = HTTPLimits(maximum_connections=8, maximum_connections_per_peer=4, maximum_body=1 << 20)
        self.site = Site(root, self.clock, self.limits, Networks(loopback=True))

    def client(self, address: str = "10.1.2.3") -> Client:
        return Client(self.site, address)

    def advance(self, seconds: float) -> None:
        self.clock.pump([0.5] * int(2 * seconds))

    def received(self, client: Client) -> list[Response]:
        """Return the responses that were sent so far."""
        found, rest = [], client.transport.value()
        while rest:
            one = parse(rest, closed=True)
            assert one is not None, rest
            response, rest = one
            found.append(response)
        client.transport.clear()
        return found

    def statuses(self, client: Client) -> list[int]:
        return [response.status for response in self.received(client)]


class Time(ChannelTestCase):
    def test_silence(self) -> None:
        client = self.client()
        self.advance(29)
        self.assertFalse(client.is_closed)
        self.advance(3)
        self.assertTrue(client.is_closed)

    def test_between_requests(self) -> None:
        client = self.client()
        client.send(encode("GET", "/plain"))
        self.advance(70)
        self.assertFalse(client.is_closed)
        client.send(encode("GET", "/plain"))
        self.advance(70)
        self.assertEqual((self.statuses(client), client.is_closed), ([200, 200], False))
        self.advance(7)
        self.assertTrue(client.is_closed)

    def test_a_header_byte_by_byte(self) -> None:
        """The time is that of the whole header, however its bytes arrive."""
        client = self.client()
        for byte in encode("GET", "/plain", [("X", "y" * 100)])[:32]:
            client.send(bytes([byte]))
            self.advance(1)
        self.assertEqual(self.statuses(client), [408])
        self.assertEqual(self.plain.seen, [])
        self.advance(LINGER + 2)
        self.assertTrue(client.transport.disconnected)

    def test_a_body_that_stops(self) -> None:
        client = self.client()
        client.send(encode("POST", "/streamed", [("Content-Length", "100000")]))
        client.send(bytes(MIN_PROGRESS))
        self.advance(31)
        self.assertEqual(self.statuses(client), [])
        self.advance(2)
        self.assertEqual(self.statuses(client), [408])

    def test_a_body_in_drops(self) -> None:
        """A byte now and then is no progress."""
        client = self.client()
        client.send(encode("POST", "/streamed", [("Content-Length", "100000")]))
        for _ in range(33):
            client.send(b"x")
            self.advance(1)
        self.assertEqual(self.statuses(client), [408])

    def test_a_body_that_is_paused(self) -> None:
        """The time does not count while this side does not read."""
        client = self.client()
        client.send(encode("POST", "/streamed", [("Content-Length", "10")]))
        self.streamed.body.pause()
        self.assertEqual(client.transport.producerState, "paused")
        self.advance(100)
        self.streamed.body.resume()
        self.assertEqual(client.transport.producerState, "producing")
        client.send(bytes(10))
        self.assertEqual(self.statuses(client), [200])

    def test_a_client_that_takes_nothing(self) -> None:
        client = self.client()
        client.send(encode("GET", "/silent"))
        self.advance(200)
        self.assertFalse(client.is_closed)  # the response takes long
        client.protocol.pauseProducing()
        self.advance(50)
        client.protocol.resumeProducing()
        client.protocol.pauseProducing()
        self.advance(50)
        self.assertFalse(client.is_closed)
        self.advance(12)
        self.assertTrue(client.transport.disconnected)

    def test_no_timers_without_connections(self) -> None:
        client = self.client()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        client.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Size(ChannelTestCase):
    def test_long_headers(self) -> None:
        for request, status in (
            (encode("GET", "/plain?" + "x" * (MAX_HEADER_LENGTH - 200)), 200),
            (encode("GET", "/" + "x" * MAX_HEADER_LENGTH), 414),
            (encode("GET", "/plain", [("X", "y" * MAX_HEADER_LENGTH)]), 431),
            (encode("GET", "/plain", [("X", "y" * 1000)] * 90), 431),
            (encode("GET", "/plain", [("X", "y")] * (MAX_HEADER_FIELDS - 1)), 200),
            (encode("GET", "/plain", [("X", "y")] * 100_000), 431),
            (b"GET /plain HTTP/1.1\r\nX: " + b"y" * (MAX_HEADER_LENGTH + 100), 431),
            (b"y" * (MAX_HEADER_LENGTH + 100), 414),
        ):
            client = self.client()
            for start in range(0, len(request), 65536):
                client.send(request[start : start + 65536])
            responses = self.received(client)
            self.assertEqual([one.status for one in responses], [status], request[:60])
            if status != 200:
                self.assertEqual(responses[0].headers["connection"], "close")
            client.lose()

    def test_bodies(self) -> None:
        """A body is bounded if it goes into memory, and a streamed one as well."""
        for path, size, status in (
            ("/plain", MAX_BODY_LENGTH, 200),
            ("/plain", MAX_BODY_LENGTH + 1, 413),
            ("/streamed", self.limits.maximum_body, 200),
            ("/streamed", self.limits.maximum_body + 1, 413),
        ):
            client = self.client()
            client.send(encode("POST", path, [("Content-Length", str(size))]))
            client.send(bytes(size))
            self.assertEqual(self.statuses(client), [status], (path, size))
            client.lose()

    def test_discarding_ends(self) -> None:
        """Behind a response that came before the end of the body, the client may send on for a while."""
        client = self.client()
        client.send(encode("POST", "/streamed", [("Transfer-Encoding", "chunked")]))
        client.send(b"200000\r\n" + bytes(0x1FFFFF))
        self.assertEqual(self.statuses(client), [413])
        piece = bytes(1 << 20)
        for _ in range(MAX_DISCARDED >> 20):
            client.send(piece)
        self.assertFalse(client.transport.disconnected)
        client.send(piece)
        self.assertTrue(client.transport.disconnected)
        self.assertEqual(self.plain.seen, [])

    def test_chunks(self) -> None:
        headers = [("Transfer-Encoding", "chunked")]
        for body, status in (
            (b"3\r\nabc\r\n0\r\n\r\n", 200),
            (b"3;x=y\r\nabc\r\n0\r\nTrailer: x\r\n\r\n", 200),
            (b"-3\r\nabc\r\n0\r\n\r\n", 400),
            (b"0x3\r\nabc\r\n0\r\n\r\n", 400),
            (b"3 \r\nabc\r\n0\r\n\r\n", 400),
            (b"3\r\nabcd\r\n0\r\n\r\n", 400),
            (b"3\nabc\n0\n\n" + bytes(2000), 400),
            (b"f" * 2000, 400),
            (b"3\r\nabc\r\n0\r\n" + b"T: x\r\n" * 20_000, 400),
        ):
            for path in ("/streamed", "/plain"):
                client = self.client()
                client.send(encode("POST", path, headers) + body)
                self.assertEqual(self.statuses(client), [status], body[:30])
                client.lose()


class Shapes(ChannelTestCase):
    """Requests whose end two programs might see at different places, and other malformed ones: 400, and the end."""

    HIDDEN = b"GET /plain?hidden HTTP/1.1\r\nHost: a\r\n\r\n"

    def test_smuggling(self) -> None:
        for fields in (
            "Content-Length: 3\r\nContent-Length: 4",
            "Content-Length: 3\r\nContent-Length: 3",
            "Content-Length: 3, 4",
            "Content-Length: +3",
            "Content-Length: -3",
            "Content-Length: 0x3",
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 3",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding : chunked",
            "Content-Length : 3",
            "Content-Length: " + "9" * 5000,
            "Host: b",
            "No colon",
            ": no name",
            "Nul: \0",
        ):
            request = f"POST /plain HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n".encode() + self.HIDDEN
            client = self.client()
            client.send(request)
            self.assertEqual(self.statuses(client), [400], fields)
            client.send(self.HIDDEN)
            self.assertEqual(self.statuses(client), [], fields)
            client.lose()
        self.assertEqual(self.plain.seen, [])

    def test_malformed(self) -> None:
        for request in (
            b"GET /plain\r\n\r\n",
            b"GET  /plain HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /plain HTTP/1.1 x\r\nHost: a\r\n\r\n",
            b"GET /plain HTTP/1.1\r\n\r\n",  # no Host
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
            b"\x01\x00\x00\x00\x00\xcd\x00\x01\r\n\r\n",  # DICOM
        ):
            client = self.client()
            client.send(request)
            self.assertEqual(self.statuses(client), [400], request)
            client.lose()

    def test_none_of_http(self) -> None:
        """Bytes that no request begins with are refused at once; their end would have to be waited for."""
        for data in (
            b"\x16",
            b"\x16\x03\x01\x02\x00",
            b"\x01\x00\x00\x00\x00\xcd",
            b"\x00" * 100,
            b"\x80",
            b" GET /plain",
            b"{}",
        ):
            for has_served in (False, True):
                client = self.client()
                if has_served:
                    client.send(b"GET /plain HTTP/1.1\r\nHost: a\r\n\r\n")
                    self.assertEqual(self.statuses(client), [200])
                client.send(data)
                self.assertEqual(self.statuses(client), [400], data)
                client.lose()

    def test_empty_lines_and_pieces(self) -> None:
        """An empty line may be before a request, and a piece of it may begin with any byte."""
        client = self.client()
        client.send(b"\r\nGET /plain HTTP/1.1\r\nHost: a\r\n\r\nGET")
        client.send(b" /plain HTTP/1.1\r\nHost: a\r\nX:")
        client.send(b"\xe4\r\n\r\n")
        self.clock.pump([0] * 3)
        self.assertEqual(self.statuses(client), [200, 200])

    def test_forms_of_targets(self) -> None:
        client = self.client()
        client.send(b"GET http://a/plain?x HTTP/1.1\r\nHost: a\r\n\r\n")
        client.send(b"GET /plain?y HTTP/1.0\r\n\r\n")
        self.assertEqual((self.statuses(client), self.plain.seen), ([200, 200], [b"/plain?x", b"/plain?y"]))
        self.assertTrue(client.is_closed)

    def test_turns(self) -> None:
        """Of the requests that came together on many connections, few are handled in one turn of the reactor."""
        clients = [self.client("127.0.0.1") for _ in range(6)]
        for client in clients:
            client.send(b"GET /plain HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        self.assertEqual(len(self.plain.seen), 6)
        clients.pop().lose()  # its turn is not taken
        seen: list[int] = []
        site: Any = self.site
        go_on = site._go_on

        def go_on_and_count() -> None:
            go_on()
            seen.append(len(self.plain.seen))

        site._go_on = go_on_and_count
        self.clock.pump([0] * 3)
        self.assertEqual((seen, len(self.plain.seen)), ([14, 16], 16))

    def test_pipelining(self) -> None:
        """Requests that come together are answered in their order; behind a slow one the rest is not read without a bound."""
        client = self.client()
        client.send(b"".join(encode("GET", f"/plain?{number}") for number in range(300)))
        # Each has a turn of the reactor, so that other connections have theirs between them.
        self.assertEqual(self.statuses(client), [200])
        client.send(encode("GET", "/plain?299") * 400)
        self.assertEqual(client.transport.producerState, "paused")
        self.clock.pump([0] * 1000)
        self.assertEqual(self.statuses(client), [200] * 699)
        self.assertEqual(client.transport.producerState, "producing")
        self.assertEqual(self.plain.seen[-1], b"/plain?299")
        client.send(encode("GET", "/silent"))
        client.send(encode("GET", "/plain") * 1000)
        self.assertEqual(client.transport.producerState, "paused")
        self.silent.request.finish()
        self.clock.pump([0] * 1100)
        self.assertEqual(self.statuses(client)[1:], [200] * 1000)

    def test_continue(self) -> None:
        client = self.client()
        client.send(encode("POST", "/streamed", [("Content-Length", "3"), ("Expect", "100-continue")]))
        self.assertEqual(client.transport.value(), b"HTTP/1.1 100 Continue\r\n\r\n")
        client.transport.clear()
        client.send(b"abc")
        self.assertEqual(self.statuses(client), [200])


class Connections(ChannelTestCase):
    def test_one_address(self) -> None:
        clients = [self.client() for _ in range(6)]
        self.assertEqual([one.transport.disconnected for one in clients], [False] * 4 + [True] * 2)
        self.assertFalse(self.client("10.9.9.9").is_closed)
        for client in clients:
            client.lose()
        self.assertFalse(self.client().is_closed)

    def test_trusted_proxies(self) -> None:
        """A proxy has the connections of all its clients."""
        self.assertFalse(any(self.client("127.0.0.1").is_closed for _ in range(8)))

    def test_all(self) -> None:
        clients = [self.client(f"10.1.1.{number}") for number in range(9)]
        self.assertEqual([one.is_closed for one in clients], [False] * 8 + [True])

    def test_drain(self) -> None:
        """A stop closes connections without a request at once, and the others after their response."""
        idle, busy, receiving = self.client(), self.client(), self.client()
        busy.send(encode("GET", "/silent"))
        receiving.send(encode("POST", "/streamed", [("Content-Length", "3")]))
        done = self.site.drain()
        self.assertEqual([one.is_closed for one in (idle, busy, receiving)], [True, False, False])
        receiving.send(b"abc")
        self.assertEqual(self.statuses(receiving), [200])
        self.assertTrue(receiving.is_closed)
        self.site.abort()
        for client in (idle, busy, receiving):
            client.lose()
        self.assertTrue(done.called)
