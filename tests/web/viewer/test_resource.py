"""dicomtwist.web.viewer.resource: a viewer in memory, beside the DICOMweb of the same site."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.address import IPv4Address

from dicomtwist.access.policy import Policy
from dicomtwist.access.rules import Rules
from dicomtwist.web.viewer.resource import ViewerRoot
from tests.web.site import Client, Response, SiteTestCase

BUNDLE = "app.0123456789abcdef0123.js"
SCRIPT = "let a = 1;\n" * 1000


class Viewers(SiteTestCase):
    policy = Policy(Rules(()), None, frozenset())

    def setUp(self) -> None:
        super().setUp()
        self.root = Path(self.mktemp())
        self.root.mkdir()
        (self.root / "index.html").write_text("<p>the viewer</p>")
        (self.root / BUNDLE).write_text(SCRIPT)
        self.entrance = self.site.entrance(ViewerRoot(self.services, self.root))

    def client(self, address: str = "127.0.0.1") -> Client:
        """Return a new connection to the port of the viewer."""
        client = Client(self.entrance, address)
        self.clients.append(client)
        return client

    async def get(self, path: str, **headers: str) -> Response:
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        return await self.client("192.0.2.1").request("GET", path, fields)

    async def test_pages_are_public(self) -> None:
        """Anybody has the files, with the fields that isolate the page; the data have rules."""
        for path in ("/", "/index.html", "/viewer?StudyInstanceUIDs=1.2.3", "/viewer/x"):
            response = await self.get(path)
            self.assertEqual((response.status, response.body), (200, b"<p>the viewer</p>"), path)
            self.assertEqual(response.headers["content-type"], "text/html; charset=utf-8")
            self.assertEqual(response.headers["cross-origin-opener-policy"], "same-origin")
            self.assertEqual(response.headers["cross-origin-embedder-policy"], "require-corp")
            self.assertEqual(response.headers["x-content-type-options"], "nosniff")
            self.assertEqual(response.headers["cache-control"], "no-cache")
        self.assertEqual((await self.get("/dicom-web/studies")).status, 403)

    async def test_missing(self) -> None:
        for path in ("/gone.js", "/%2e%2e/x", "/assets%2f..%2f..%2fx.js", "/%00", "/%ff.js"):
            self.assertEqual((await self.get(path)).status, 404, path)

    async def test_methods(self) -> None:
        client = self.client()
        head = await client.request("HEAD", f"/{BUNDLE}")
        self.assertEqual((head.status, head.body, head.headers["content-length"]), (200, b"", str(len(SCRIPT))))
        for method in ("POST", "PUT", "DELETE"):
            response = await self.client().request(method, "/", body=b"x")
            self.assertEqual((response.status, response.headers["allow"]), (405, "GET, HEAD"), method)

    async def test_cached(self) -> None:
        """A name with a hash lasts; a file that has not changed is not sent again."""
        plain = await self.get(f"/{BUNDLE}")
        self.assertEqual(plain.headers["cache-control"], "public, max-age=31536000, immutable")
        self.assertEqual(plain.body.decode(), SCRIPT)
        packed = await self.get(f"/{BUNDLE}", Accept_Encoding="gzip")
        self.assertEqual(packed.headers["content-encoding"], "gzip")
        self.assertEqual(packed.body.decode(), SCRIPT)
        self.assertNotEqual(plain.headers["etag"], packed.headers["etag"])
        again = await self.get(f"/{BUNDLE}", Accept_Encoding="gzip", If_None_Match=packed.headers["etag"])
        self.assertEqual((again.status, again.body), (304, b""))
        again = await self.get(f"/{BUNDLE}", If_None_Match=packed.headers["etag"])
        self.assertEqual(again.status, 200)

    async def test_config(self) -> None:
        """The configuration of the folder holds but for its data sources, which are this server."""
        (self.root / "app-config.js").write_text("window.config = {name: 'own'};")
        response = await self.get("/app-config.js")
        text = response.body.decode()
        self.assertTrue(text.startswith("window.config = {name: 'own'};"))
        self.assertIn('"friendlyName": "ARCHIVE"', text)
        self.assertIn('"" || window.location.origin + "/dicom-web"', text)
        self.services.public_url = "https://pacs.example/dicom-web"
        self.assertIn('"https://pacs.example/dicom-web" || ', (await self.get("/app-config.js")).body.decode())
        (self.root / "app-config.js").unlink()
        self.assertEqual((await self.get("/app-config.js")).status, 200)

    async def test_one_site(self) -> None:
        """The connections of both ports have one limit, and end together."""
        viewer, images = self.client(), super().client()
        self.assertEqual(len(self.site.connections), 2)
        self.assertEqual((await images.request("GET", "/")).status, 404)
        self.assertEqual((await viewer.request("GET", "/")).status, 200)
        self.site.limits.maximum_connections = 2
        self.assertIsNone(self.entrance.buildProtocol(IPv4Address("TCP", "127.0.0.1", 4)))
        self.site.limits.maximum_connections = 2000
        self.site.drain()
        self.assertTrue(viewer.is_closed and images.is_closed)
