"""
``twist dicom --http`` behind a reverse proxy that serves it below a path, with dicomweb-client, in two processes: URLs in
responses lead back through the proxy, and instances are deleted.
"""

from __future__ import annotations

from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

from dicomweb_client import DICOMwebClient
from pydicom import dcmread
from requests import HTTPError
from twisted.internet.threads import deferToThread

from tests import peers
from tests.interop.twist import TwistTestCase
from tests.peers import DicomFile, dicom_files

#: The path of the proxy below which it has the server.
PREFIX: Final = "/hospital/pacs"

POLICY: Final = """
[[access.rule]]
allow = "all"
"""


class Proxy(ThreadingHTTPServer):
    """
    A reverse proxy, which gives its server another Host.

    :param port: the port of the server.
    :param tells: whether it says in X-Forwarded- fields what URL the client has used.
    """

    daemon_threads = True

    def __init__(self, port: int, *, tells: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.server = port
        self.tells = tells
        self.url = f"http://127.0.0.1:{self.server_port}{PREFIX}/dicom-web"
        self.paths: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        proxy: Any = self.server
        if not self.path.startswith(f"{PREFIX}/"):
            self.send_error(404)
            return
        proxy.paths.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        if proxy.tells:
            # A client that leaves its port out of Host is common, so the port has a field of its own.
            headers |= {
                "X-Forwarded-For": self.client_address[0],
                "X-Forwarded-Host": self.headers["Host"].partition(":")[0],
                "X-Forwarded-Port": str(proxy.server_port),
                "X-Forwarded-Proto": "http",
                "X-Forwarded-Prefix": PREFIX,
            }
        connection = HTTPConnection("127.0.0.1", proxy.server, timeout=60)
        connection.request(self.command, self.path.removeprefix(PREFIX), body or None, headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "server", "date"):
                self.send_header(name, value)
        if response.status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class Proxies(TwistTestCase):
    async def started(self, *, tells: bool) -> Proxy:
        """Start the server and a proxy; without the fields of the proxy the server is configured with its public URL."""
        port = peers.free_port()
        proxy = Proxy(port, tells=tells)
        thread = Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 30)
        self.addCleanup(proxy.server_close)
        self.addCleanup(proxy.shutdown)
        configuration = Path(self.mktemp()).absolute()
        configuration.write_text(POLICY)
        options = () if tells else ("--http-url", proxy.url)
        await self.twist("--http", f"tcp:{port}:interface=127.0.0.1", "--config", configuration, *options)
        await self.process.wait_for("HTTP listens")
        return proxy

    def use(self, proxy: Proxy) -> None:
        files = {Path(file.path).name: file for file in dicom_files()}
        client = DICOMwebClient(proxy.url)
        for name in ("CT_small.dcm", "MR_small_implicit.dcm"):
            self.roundtrip(client, proxy, files[name])
        self.deletions(client, [files["CT_small.dcm"], files["MR_small_implicit.dcm"]])

    def roundtrip(self, client: DICOMwebClient, proxy: Proxy, file: DicomFile) -> None:
        dataset = dcmread(file.path)
        response = client.store_instances([dataset])
        (stored,) = response.ReferencedSOPSequence
        uids = (file.study, file.series, file.sop_instance)
        expected = f"{proxy.url}/studies/{uids[0]}/series/{uids[1]}/instances/{uids[2]}"
        self.assertEqual(stored.RetrieveURL, expected)
        (found,) = client.search_for_instances(*uids[:2])
        self.assertEqual(found["00081190"]["Value"], [expected])
        for (metadata,) in (
            client.retrieve_study_metadata(uids[0]),
            client.retrieve_series_metadata(*uids[:2]),
            [client.retrieve_instance_metadata(*uids)],
        ):
            url = metadata["7FE00010"]["BulkDataURI"]
            self.assertEqual(url, f"{expected}/bulkdata/7FE00010")
            proxy.paths.clear()
            self.assertEqual(b"".join(client.retrieve_bulkdata(url)), dataset.PixelData)
            self.assertEqual(proxy.paths, [url.removeprefix(f"http://127.0.0.1:{proxy.server_port}")])
        self.assertEqual(client.retrieve_instance(*uids).SOPInstanceUID, file.sop_instance)

    def deletions(self, client: DICOMwebClient, files: list[DicomFile]) -> None:
        """Delete an instance, a series and a study; what is deleted is not found any more, and not deleted twice."""
        first, second = files
        for file, delete, uids in (
            (first, client.delete_instance, (first.study, first.series, first.sop_instance)),
            (second, client.delete_series, (second.study, second.series)),
            (first, client.delete_study, (first.study,)),
        ):
            if delete == client.delete_study:
                client.store_instances([dcmread(file.path)])
            delete(*uids)
            self.assertEqual(client.search_for_studies(search_filters={"StudyInstanceUID": file.study}), [])
            for again in (
                lambda delete=delete, uids=uids: delete(*uids),
                lambda file=file: client.retrieve_instance_metadata(file.study, file.series, file.sop_instance),
            ):
                with self.assertRaises(HTTPError) as caught:
                    again()
                self.assertEqual(caught.exception.response.status_code, 404)
        self.assertEqual(client.search_for_studies(), [])

    async def test_fields_of_the_proxy(self) -> None:
        proxy = await self.started(tells=True)
        await deferToThread(self.use, proxy)

    async def test_public_url(self) -> None:
        proxy = await self.started(tells=False)
        await deferToThread(self.use, proxy)
