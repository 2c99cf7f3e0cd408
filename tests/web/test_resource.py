"""dicomtwist.web.resource: routes, methods, problems, streamed responses, bodies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from dicomtwist.access.rules import Operation
from dicomtwist.errors import ExecutorFull
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route, Router
from dicomtwist.web.services import Services
from tests.web.site import SiteTestCase, encode

ANY = frozenset((Operation.ECHO,))


async def echo(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    request.answer_json({"values": dict(values), "query": request.query, "base": request.base_url})


async def body(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    request.answer(await request.read(1000), "text/plain")


async def stream(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(int(values["count"])):
            yield b"%d," % number

    await request.stream(pieces(), "text/plain")


async def fail(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    raise {"problem": Problem(409, "it is so"), "full": ExecutorFull("querying", 3)}.get(
        values["how"], RuntimeError("a secret")
    )


class Resource(SiteTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.resource.router = Router(
            (
                Route("GET", "/studies/{study}", ANY, echo),
                Route("POST", "/studies/{study}", ANY, body),
                Route("GET", "/stream/{count}", ANY, stream),
                Route("GET", "/fail/{how}", ANY, fail),
            )
        )

    async def test_get(self) -> None:
        response = await self.client().request("GET", "/dicom-web/studies/1.2.3?a=b%20c&a=%2A")
        self.assertEqual(response.status, 200)
        self.assertEqual(
            response.json,
            {
                "values": {"study": "1.2.3"},
                "query": [["a", "b c"], ["a", "*"]],
                "base": "http://127.0.0.1:8042/dicom-web",
            },
        )
        self.assertEqual(response.headers["x-content-type-options"], "nosniff")

    async def test_head_and_keep_alive(self) -> None:
        client = self.client()
        head = await client.request("HEAD", "/dicom-web/studies/1.2.3")
        self.assertEqual((head.status, head.body), (200, b""))
        get = await client.request("GET", "/dicom-web/studies/1.2.3")
        self.assertEqual(head.headers["content-length"], get.headers["content-length"])

    async def test_paths_and_methods(self) -> None:
        client = self.client()
        for method, path, status in (
            ("GET", "/dicom-web/nothing", 404),
            ("GET", "/dicom-web", 404),
            ("GET", "/dicom-web/studies/1.2.x", 400),
            ("GET", "/dicom-web/studies/1.2/../1.3", 404),
            ("DELETE", "/dicom-web/studies/1.2.3", 405),
            ("GET", "/dicom-web/studies/1.2.3?a=%FF", 400),
        ):
            response = await client.request(method, path)
            self.assertEqual(response.status, status, path)
            self.assertEqual(response.json["status"], status)
            if status == 405:
                self.assertEqual(response.headers["allow"], "GET, HEAD, OPTIONS, POST")

    async def test_problems(self) -> None:
        client = self.client()
        response = await client.request("GET", "/dicom-web/fail/problem")
        self.assertEqual((response.status, response.json), (409, {"status": 409, "words": "it is so"}))
        response = await client.request("GET", "/dicom-web/fail/problem", [("Accept", "text/html")])
        self.assertEqual(response.body, b"it is so\n")
        response = await client.request("GET", "/dicom-web/fail/full")
        self.assertEqual((response.status, response.headers["retry-after"]), (503, "5"))
        response = await client.request("GET", "/dicom-web/fail/else")
        self.assertEqual(response.status, 500)
        self.assertNotIn(b"secret", response.body)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_stream(self) -> None:
        response = await self.client().request("GET", "/dicom-web/stream/3")
        self.assertEqual((response.status, response.body), (200, b"0,1,2,"))
        self.assertEqual(response.headers["transfer-encoding"], "chunked")

    async def test_body(self) -> None:
        client = self.client()
        response = await client.request("POST", "/dicom-web/studies/1.2", body=b"abc")
        self.assertEqual((response.status, response.body), (200, b"abc"))
        self.assertNotIn("connection", response.headers)
        response = await client.request("POST", "/dicom-web/studies/1.2", body=b"abcd")
        self.assertEqual(response.body, b"abcd")
        client.send(encode("POST", "/dicom-web/studies/1.2", [("Transfer-Encoding", "chunked")]))
        client.send(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        self.assertEqual((await client.response()).body, b"abcde")

    async def test_a_response_before_the_end_of_the_body(self) -> None:
        client = self.client()
        client.send(encode("POST", "/dicom-web/studies/x", [("Content-Length", "100")], b"GET "))
        response = await client.response()
        self.assertEqual((response.status, response.headers["connection"]), (400, "close"))
        client.send(b"/ HTTP/1.1\r\nHost: a\r\n\r\n")
        self.assertEqual(client.transport.value(), b"")

    async def test_continue_after_the_checks(self) -> None:
        client = self.client()
        expect = [("Expect", "100-continue"), ("Content-Length", "3")]
        client.send(encode("POST", "/dicom-web/studies/1.2", expect))
        self.assertEqual((await client.response()).status, 100)
        client.send(b"abc")
        self.assertEqual((await client.response()).body, b"abc")
        client.send(encode("POST", "/dicom-web/studies/x", expect))
        self.assertEqual((await client.response()).status, 400)
