"""The subcommands with the URL of a server of DICOMweb, at a terminal and in a pipe: as with any other peer."""

from __future__ import annotations

import csv
import re
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol

from tests import peers
from tests.interop.archives import study
from tests.tools.test_everywhere import LOCAL, NO_STUDY, STUDY, Everywhere

reactor: Any = _reactor


class Server(Protocol):
    """
    A server that sends the same to each whole request; nothing means silence.

    :cvar response: the response.
    :cvar taken: fires with the first request.
    """

    response = b""
    taken: Deferred[None]
    data = b""

    def dataReceived(self, data: bytes) -> None:
        wire: Any = self.transport
        self.data += data
        head, _, body = self.data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if length is not None and len(body) < int(length[1]):
            return
        if not self.taken.called:
            self.taken.callback(None)
        if self.response:
            wire.write(self.response)
            wire.loseConnection()
        else:
            wire.pauseProducing()


class Web(Everywhere):
    async def scripted(self, response: bytes) -> tuple[str, Deferred[None]]:
        """Start a server; return its URL, and when it has received something."""
        taken: Deferred[None] = Deferred()
        factory = Factory.forProtocol(type("Scripted", (Server,), {"response": response, "taken": taken}))
        factory.noisy = False
        port = await TCP4ServerEndpoint(reactor, 0, interface=LOCAL).listen(factory)
        self.addCleanup(port.stopListening)
        return f"http://{LOCAL}:{port.getHost().port}/dicom-web", taken

    async def test_works(self) -> None:
        """Successes at a terminal, and the table as CSV, which is that of the same query by C-FIND."""
        http, count = peers.free_port(), len(study())
        port, _ = await self.twist_dicom("--http", f"tcp:{http}:interface={LOCAL}")
        url = f"http://{LOCAL}:{http}/dicom-web"
        await self.works(rf"100%.*{count} stored\]\n(?s:.*)  stored  {count}\n", "store", url, *self.files())
        table = r"^StudyInstanceUID +PatientID\n\S+  \S+\n1 match\n"
        await self.works(table, "find", url, "-k", STUDY, "-k", "PatientID")
        await self.works(rf"  stored     {count}  in ", "get", url, self.folder / "got", "-k", STUDY)
        rows = []
        for peer in (url, f"{LOCAL}:{port}"):
            keys = ("-k", STUDY, "-k", "SeriesNumber", "-k", "Modality")
            result = await self.tool("find", "--csv", "--level", "SERIES", peer, *keys)
            self.assertEqual(result.code, 0, result.text)
            rows.append(sorted(csv.reader(result.stdout.decode().splitlines())))
        self.assertEqual(*rows)
        self.assertGreater(len(rows[0]), 1)

    async def test_fails(self) -> None:
        """Each failure in a pipe and at a terminal, with the server's words."""
        http = peers.free_port()
        await self.twist_dicom("--http", f"tcp:{http}:interface={LOCAL}")
        url = f"http://{LOCAL}:{http}/dicom-web"
        words = b"come back after lunch"
        length = b"Content-Type: text/plain\r\nContent-Length: 21\r\n\r\n" + words
        busy, _ = await self.scripted(b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\n" + length)
        large, _ = await self.scripted(b"HTTP/1.1 413 Large\r\n" + length)
        denied, _ = await self.scripted(b"HTTP/1.1 403 No\r\n" + length)
        torn, _ = await self.scripted(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\nContent-Length: 99\r\n\r\n[{"
        )
        page, _ = await self.scripted(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n")
        for code, said, args in (
            (3, "come back after lunch", ("find", busy)),
            (3, "come back after lunch", ("store", busy, *self.files())),
            (3, "come back after lunch", ("find", denied)),
            (3, "come back after lunch", ("store", denied, *self.files())),
            (1, "come back after lunch", ("store", large, *self.files())),
            (3, "closed|cut off|lost", ("find", torn)),
            (3, "is this a DICOMweb service", ("find", page)),
            (3, "404", ("find", url.replace("dicom-web", "nothing"))),
            (1, "found nothing|no instances|not found|not_found", ("get", url, self.folder / "none", "-k", NO_STUDY)),
        ):
            await self.fails(code, said, *args)
            await self.fails_at_a_terminal(code, re.sub("not_found$", "nothing", said), *args)

    async def test_interrupted(self) -> None:
        """Ctrl-C while the server is silent, in the middle of a request to store as well."""
        for args in (
            ("find",),
            ("get", self.folder / "got", "-k", STUDY),
            ("store", *self.files()),
        ):
            url, taken = await self.scripted(b"")
            name, *rest = args
            process = self.terminal(name, url, *rest)
            await taken.addTimeout(120, reactor)
            process.type("\x03")
            if name == "store":  # as with any other peer, the instances under way are answered first
                await process.wait_for("interrupt once more", 120)
                process.type("\x03")
            result = await process.wait(120)
            self.assertEqual(result.code, 1, f"{args}: {result.text}")
            self.assertIn("interrupted", result.text)
            self.assertNotIn("Traceback", result.text)
