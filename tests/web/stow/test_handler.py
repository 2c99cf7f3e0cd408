"""dicomtwist.web.stow: storage requests with all sorts of bodies."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pydicom.data
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from twisted.internet.defer import fail
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, eventAsText, globalLogPublisher
from twisted.web.resource import Resource
from twisted.web.server import Site as TwistedSite

from dicomtwist.access.policy import Policy
from dicomtwist.access.rules import parse_rules
from dicomtwist.archive.ingest import IncomingInstance
from dicomtwist.archive.storage.types import IndexFailed
from dicomtwist.dicomweb.multipart import MultipartCutter, MultipartWriter
from dicomtwist.errors import ExecutorFull
from dicomtwist.part10 import NotDicomFile, read_file_meta
from dicomtwist.web.http.limits import HTTPLimits
from dicomtwist.web.stow import body as body_module
from dicomtwist.web.stow.body import IncomingBody, SinglePart
from tests.archive.samples import SECONDARY_CAPTURE, dataset, encoded
from tests.web.site import Response, SiteTestCase, encode, reactor

STORED, FAILED, REASON = "00081199", "00081198", "00081197"


def part10(made: Dataset) -> bytes:
    """Return an instance as a file."""
    return b"".join(encoded(made)[1])


def multipart(contents: Iterable[bytes], kind: str = "application/dicom", closing: bool = True) -> bytes:
    writer = MultipartWriter("B")
    pieces = [writer.begin([("Content-Type", kind)]) + content for content in contents]
    return b"".join(pieces) + (writer.end() if closing else b"")


RELATED = ("Content-Type", 'multipart/related; type="application/dicom"; boundary=B')


def uids(response: Response, tag: str) -> list[str]:
    """Return the SOP Instance UIDs of a sequence in a response; empty texts for items without one."""
    items = response.json.get(tag, {"Value": []})["Value"]
    return [item.get("00081155", {"Value": [""]})["Value"][0] for item in items]


def reasons(response: Response) -> list[int]:
    return [item[REASON]["Value"][0] for item in response.json.get(FAILED, {"Value": []})["Value"]]


class StowTestCase(SiteTestCase):
    async def post(
        self, body: bytes, *headers: tuple[str, str], path: str = "/dicom-web/studies", address: str = "127.0.0.1"
    ) -> Response:
        return await self.client(address).request("POST", path, headers or (RELATED,), body)

    def stored(self) -> list[str]:
        """Return the SOP Instance UIDs of all files."""
        self.archive.catch_up()
        return sorted(path.stem for path in self.folder.rglob("*.dcm"))


class Storing(StowTestCase):
    async def test_stored(self) -> None:
        response = await self.post(multipart(part10(dataset(number)) for number in (1, 2)))
        self.assertEqual(response.status, 200)
        self.assertEqual(response.headers["content-type"], "application/dicom+json")
        base = "http://127.0.0.1:8042/dicom-web/studies/1.2.1"
        self.assertEqual(
            response.json,
            {
                "00081190": {"vr": "UR", "Value": [base]},
                STORED: {
                    "vr": "SQ",
                    "Value": [
                        {
                            "00081150": {"vr": "UI", "Value": [SECONDARY_CAPTURE]},
                            "00081155": {"vr": "UI", "Value": [f"1.2.1.1.{number}"]},
                            "00081190": {"vr": "UR", "Value": [f"{base}/series/1.2.1.1/instances/1.2.1.1.{number}"]},
                        }
                        for number in (1, 2)
                    ],
                },
            },
        )
        self.assertEqual(self.stored(), ["1.2.1.1.1", "1.2.1.1.2"])

    async def test_single_part(self) -> None:
        """A body that is one instance, of a known length and in chunks."""
        content = part10(dataset())
        response = await self.post(content, ("Content-Type", "application/dicom"))
        self.assertEqual((response.status, uids(response, STORED)), (200, ["1.2.1.1.1"]))
        client = self.client()
        headers = [("Content-Type", "application/dicom"), ("Transfer-Encoding", "chunked")]
        client.send(encode("POST", "/dicom-web/studies", headers))
        for start in range(0, len(content), 100):
            piece = content[start : start + 100]
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        client.send(b"0\r\n\r\n")
        self.assertEqual((await client.response()).status, 200)

    async def test_again(self) -> None:
        """A repeated instance is a success, in one body and in two, so that clients may send again."""
        body = multipart([part10(dataset())] * 3)
        for _ in range(2):
            response = await self.post(body)
            self.assertEqual((response.status, uids(response, STORED)), (200, ["1.2.1.1.1"] * 3))
        self.assertEqual(self.stored(), ["1.2.1.1.1"])

    async def test_files_of_pydicom(self) -> None:
        """The data sets of files are stored byte for byte, in pieces of any size; those that the archive cannot have fail."""
        paths = sorted((Path(pydicom.data.__file__).parent / "test_files").glob("*.dcm"))
        data = multipart(path.read_bytes() for path in paths)
        outcomes = []
        for size in (60_000, 1 << 20):
            client = self.client()
            client.send(encode("POST", "/dicom-web/studies", [RELATED, ("Content-Length", str(len(data)))]))
            for start in range(0, len(data), size):
                client.send(data[start : start + size])
                await deferLater(reactor, 0)
            response = await client.response()
            self.assertEqual(response.status, 202)
            outcomes.append((uids(response, STORED), uids(response, FAILED)))
        self.assertEqual(outcomes[0], outcomes[1])
        stored, failed = outcomes[0]
        self.assertEqual(len(stored) + len(failed), len(paths))
        self.assertGreater(len(stored), 60)
        self.archive.catch_up()
        sent = {self.data_set(path) for path in paths}
        kept = [self.data_set(path) for path in self.folder.rglob("*.dcm")]
        self.assertEqual(len(kept), len(set(stored)))
        self.assertEqual([one for one in kept if one not in sent], [])

    def data_set(self, path: Path) -> bytes:
        """Return the data set of a file, with its transfer syntax in front; nothing if it is no DICOM file."""
        with path.open("rb") as file:
            try:
                meta, _ = read_file_meta(file)
            except NotDicomFile:
                return b""
            return meta.transfer_syntax_uid.encode() + file.read()

    async def test_a_study_in_the_path(self) -> None:
        body = multipart([part10(dataset(study=1)), part10(dataset(study=2))])
        response = await self.post(body, path="/dicom-web/studies/1.2.2")
        self.assertEqual(
            (response.status, uids(response, STORED), uids(response, FAILED)), (202, ["1.2.2.1.1"], ["1.2.1.1.1"])
        )
        self.assertEqual(reasons(response), [0xA900])
        self.assertEqual(self.stored(), ["1.2.2.1.1"])

    async def test_parts_that_are_no_instances(self) -> None:
        headers = [("Content-Type", "application/dicom")]
        writer = MultipartWriter("B")
        body = b"".join(
            (
                *(writer.begin(headers), b"no DICOM"),
                *(writer.begin(headers), b""),
                *(writer.begin([("Content-Type", "image/png")]), bytes(5000)),
                *(writer.begin([]), part10(dataset())),
                *(writer.begin(headers), part10(dataset(2))[:200]),
                *(writer.begin(headers), part10(dataset(3, StudyInstanceUID=None))),
                writer.end(),
            )
        )
        response = await self.post(body)
        self.assertEqual((response.status, uids(response, STORED)), (202, ["1.2.1.1.1"]))
        self.assertEqual(uids(response, FAILED), ["", "", "", "", "1.2.1.1.3"])
        self.assertEqual(reasons(response), [0xC000, 0xC000, 0x0122, 0xC000, 0xA900])
        self.assertEqual(self.stored(), ["1.2.1.1.1"])

    async def test_uids_of_the_data_set_count(self) -> None:
        content = part10(dataset())
        old = content.replace(b"1.2.1.1.1", b"9.9.9.9.9", 1)
        self.assertNotEqual(old, content)
        response = await self.post(multipart([old]))
        self.assertEqual((response.status, uids(response, STORED)), (200, ["1.2.1.1.1"]))

    async def test_media_types(self) -> None:
        content = part10(dataset())
        for kind, body, status in (
            ("multipart/related; type=application/dicom; boundary=B", multipart([content]), 200),
            ("multipart/related; boundary=B", multipart([content]), 200),
            ('MULTIPART/Related; Boundary="B"; TYPE="Application/DICOM"', multipart([content]), 200),
            ('multipart/related; type="application/dicom"', multipart([content]), 400),
            ('multipart/related; type="application/dicom"; boundary=C', multipart([content]), 400),
            ('multipart/related; type="application/dicom+json"; boundary=B', multipart([content]), 415),
            ('multipart/related; type="application/dicom"; boundary=B', multipart([content], "text/plain"), 415),
            ("multipart/form-data; boundary=B", multipart([content]), 415),
            ("application/dicom+json", b"[]", 415),
            ("", content, 415),
            ("text", content, 415),
        ):
            response = await self.post(body, ("Content-Type", kind))
            self.assertEqual(response.status, status, kind)
        response = await self.post(b"", RELATED)
        self.assertEqual(response.status, 400)
        response = await self.post(multipart([]), RELATED)
        self.assertEqual(response.status, 400)
        response = await self.post(content, ("Content-Type", "application/dicom"), ("Content-Encoding", "gzip"))
        self.assertEqual(response.status, 415)

    async def test_many(self) -> None:
        """More instances than are stored at once, and than one piece of the response has."""
        body = multipart(part10(dataset(number)) for number in range(1, 2100))
        response = await self.post(body)
        self.assertEqual((response.status, len(uids(response, STORED))), (200, 2099))
        self.assertEqual(response.headers["transfer-encoding"], "chunked")


class Cut(StowTestCase):
    """Bodies that end too early keep their whole parts, and report these alone."""

    async def test_without_an_end(self) -> None:
        body = multipart([part10(dataset(1)), part10(dataset(2))], closing=False)
        response = await self.post(body[:-10])
        self.assertEqual((response.status, uids(response, STORED), uids(response, FAILED)), (202, ["1.2.1.1.1"], []))
        self.assertIn("without a closing boundary", response.headers["warning"])
        self.assertEqual(self.stored(), ["1.2.1.1.1"])

    async def test_at_each_byte(self) -> None:
        """Nothing but whole instances is stored, wherever the body ends."""
        data = multipart([part10(dataset(1)), part10(dataset(2))])
        second = data.index(b"--B", 10)
        for size in range(0, len(data), 97):
            response = await self.post(data[:size])
            self.assertEqual(response.status, 202 if size > second + 5 else 400, size)
            if response.status == 202:
                self.assertEqual(uids(response, STORED), ["1.2.1.1.1"])

    async def test_malformed_behind_an_instance(self) -> None:
        data = multipart([part10(dataset(1))], closing=False) + b"\r\n--B\r\nno field\r\n\r\nx\r\n--B--\r\n"
        first = data.index(b"\r\n--B\r\n", 10) + 7
        client = self.client()
        client.send(encode("POST", "/dicom-web/studies", [RELATED, ("Content-Length", str(len(data)))], data[:first]))
        client.send(data[first:])
        response = await client.response()
        self.assertEqual((response.status, uids(response, STORED)), (202, ["1.2.1.1.1"]))

    async def test_a_lost_connection(self) -> None:
        client = self.client()
        data = multipart([part10(dataset(1)), part10(dataset(2))])
        client.send(encode("POST", "/dicom-web/studies", [RELATED, ("Content-Length", str(len(data)))], data[:-300]))
        client.lose()
        self.clients.remove(client)
        while self.stored() != ["1.2.1.1.1"]:
            await self.ae.executors.housekeeping.run(lambda: None)
        big = dataset(5, EncapsulatedDocument=bytes(1 << 20))
        client = self.client()
        data = multipart([part10(big)])
        client.send(encode("POST", "/dicom-web/studies", [RELATED, ("Content-Length", str(len(data)))], data[:500_000]))
        client.lose()
        self.clients.remove(client)
        await self.post(multipart([part10(dataset(6))]))
        self.assertEqual(self.stored(), ["1.2.1.1.1", "1.2.1.1.6"])


class Limits(StowTestCase):
    limits = HTTPLimits(maximum_body=5000)

    async def test_too_long(self) -> None:
        """A length beyond the limit is refused before the body; a body without a length when it gets there."""
        client = self.client()
        headers = [RELATED, ("Content-Length", "5001"), ("Expect", "100-continue")]
        client.send(encode("POST", "/dicom-web/studies", headers))
        self.assertEqual((await client.response()).status, 413)
        client = self.client()
        client.send(encode("POST", "/dicom-web/studies", [RELATED, ("Transfer-Encoding", "chunked")]))
        body = multipart([part10(dataset(1)), part10(dataset(2, EncapsulatedDocument=bytes(6000)))])
        client.send(b"%x\r\n%b" % (len(body), body[:2000]))
        client.send(body[2000:])
        response = await client.response()
        self.assertEqual((response.status, uids(response, STORED)), (413, ["1.2.1.1.1"]))
        self.assertEqual(response.headers["connection"], "close")


class LongInstances(StowTestCase):
    async def test_too_long(self) -> None:
        """One instance has the limit of C-STORE; its neighbours are stored."""
        self.ae.settings.maximum_object_size = 200_000
        small, large = part10(dataset(1)), part10(dataset(2, EncapsulatedDocument=bytes(300_000)))
        data = multipart([small, large, part10(dataset(3))])
        client = self.client()
        client.send(encode("POST", "/dicom-web/studies", [RELATED, ("Content-Length", str(len(data)))]))
        for start in range(0, len(data), 65536):
            client.send(data[start : start + 65536])
        response = await client.response()
        self.assertEqual((response.status, uids(response, STORED)), (202, ["1.2.1.1.1", "1.2.1.1.3"]))
        self.assertEqual((uids(response, FAILED), reasons(response)), (["1.2.1.1.2"], [0xA700]))
        self.assertEqual((await self.post(multipart([large]))).status, 413)
        self.assertEqual(self.stored(), ["1.2.1.1.1", "1.2.1.1.3"])


class ForeignSite(StowTestCase):
    """The resource in another site than ours, which receives bodies as a whole."""

    def setUp(self) -> None:
        super().setUp()
        root = Resource()
        root.putChild(b"dicom-web", self.resource)
        self.site: Any = TwistedSite(root, reactor=reactor)

    async def test_stored(self) -> None:
        made = [part10(dataset(1)), part10(dataset(2, EncapsulatedDocument=bytes(1 << 20)))]
        response = await self.post(multipart(made))
        self.assertEqual((response.status, uids(response, STORED)), (200, ["1.2.1.1.1", "1.2.1.1.2"]))
        client = self.client()
        self.assertEqual((await client.request("GET", "/dicom-web/nowhere")).status, 404)
        self.assertEqual((await client.request("POST", "/dicom-web/studies", [RELATED], b"")).status, 400)


class Failing(StowTestCase):
    """Reasons of the server, none of which is a mistake of the client."""

    async def outcome(self, error: BaseException, *statuses: int) -> Response:
        def keep_all(instances: Any, deliver: Any) -> None:
            deliver([(one, error) for one in instances], False)

        with mock.patch.object(self.archive, "keep_all", keep_all):
            return await self.post(multipart([part10(dataset())]))

    async def test_statuses(self) -> None:
        for error, status, reason in (
            (OSError(errno.ENOSPC, "full"), 507, 0xA700),
            (ExecutorFull("receiving", 3), 503, 0xA700),
            (IndexFailed("a secret of the database"), 503, 0xA700),
            (RuntimeError("a defect"), 409, 0xA700),
        ):
            response = await self.outcome(error)
            self.assertEqual((response.status, reasons(response)), (status, [reason]), error)
            self.assertEqual("retry-after" in response.headers, status == 503)
            self.assertNotIn(b"secret", response.body)

    async def test_no_room(self) -> None:
        """A full disk is told before the body."""
        self.archive.lacks_room = "full"
        client = self.client()
        client.send(
            encode("POST", "/dicom-web/studies", [RELATED, ("Content-Length", "50"), ("Expect", "100-continue")])
        )
        self.assertEqual((await client.response()).status, 507)


class Access(StowTestCase):
    policy = Policy()

    async def test_strangers_store(self) -> None:
        """By default a stranger stores, and replaces nothing; the log names the nearest rule that would allow it."""
        logged: list[LogEvent] = []
        look = cast(ILogObserver, logged.append)
        globalLogPublisher.addObserver(look)
        self.addCleanup(globalLogPublisher.removeObserver, look)
        stranger = {"address": "10.1.2.3"}
        response = await self.post(multipart([part10(dataset())]), **stranger)
        self.assertEqual(response.status, 200)
        response = await self.post(multipart([part10(dataset())]), **stranger)
        self.assertEqual(response.status, 200)
        other = multipart([part10(dataset(PatientName="Roe^Jane"))])
        response = await self.post(other, **stranger)
        self.assertEqual((response.status, reasons(response)), (409, [0x0124]))
        self.assertEqual((await self.post(other)).status, 200)
        (line,) = [text for text in map(eventAsText, logged) if "0 instances" not in text and "refused" in text]
        self.assertIn(
            "POST of an HTTP client at 10.1.2.3: 1 instances refused: no rule allows replace: the instance is here with",
            line,
        )
        self.assertIn(
            "(1.2.1.1.1): the nearest is the default rule 'this machine': the address is '10.1.2.3', not", line
        )

    async def test_refused(self) -> None:
        assert self.server.access is not None
        self.server.access.policy = Policy(parse_rules([{"from": "10.1.0.0/16", "allow": ["find"]}]))
        client = self.client("10.1.2.3")
        client.send(
            encode("POST", "/dicom-web/studies", [RELATED, ("Content-Length", "50"), ("Expect", "100-continue")])
        )
        response = await client.response()
        self.assertEqual((response.status, response.json["words"]), (403, "no rule allows store"))


class Flow:
    """A body that is only fed."""

    length = None

    def __init__(self) -> None:
        self.is_paused = False

    def deliver_to(self, sink: Any) -> None:
        """Do nothing."""

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False


class InFlight(StowTestCase):
    """A body is read no faster than its instances are stored."""

    async def test_back_pressure(self) -> None:
        held: list[Any] = []
        flow = Flow()
        sink = IncomingBody(
            flow, MultipartCutter(b"B"), self.server.ingest, mock.Mock(may_replace=True, titles=("HTTP", ""))
        )
        with mock.patch.object(self.server.ingest, "keep_small", held.append):
            sink.data(multipart(part10(dataset(number)) for number in range(1, 100)))
            self.assertEqual((len(held), flow.is_paused), (body_module.MAX_IN_FLIGHT, True))
            sink.end()
            while held:
                held.pop(0).kept(None)
            await sink.done
        self.assertEqual((len(sink.parts), flow.is_paused), (99, False))

    async def test_a_large_instance(self) -> None:
        flow = Flow()
        sink = IncomingBody(flow, SinglePart(), self.server.ingest, mock.Mock(may_replace=True, titles=("HTTP", "")))
        content = part10(dataset(EncapsulatedDocument=bytes(12 << 20)))
        for start in range(0, len(content), 1 << 20):
            sink.data(content[start : start + (1 << 20)])
        self.assertTrue(flow.is_paused)
        sink.end()
        await sink.done
        self.assertEqual([part.error for part in sink.parts], [None])


class InOneStep(StowTestCase):
    """An instance that is too long for the inbox, and arrives with its end, is written and stored in one call of a thread."""

    async def test_stored(self) -> None:
        contents = [part10(dataset(number, EncapsulatedDocument=bytes([number]) * 300_000)) for number in range(1, 6)]
        contents.insert(2, part10(dataset(9)))
        data = multipart(contents)
        executor = self.server.ingest.executor
        for size in (len(data), 700_000, 100_000, 65_537):
            sink = IncomingBody(
                Flow(), MultipartCutter(b"B"), self.server.ingest, mock.Mock(may_replace=True, titles=("HTTP", ""))
            )
            with mock.patch.object(executor, "_enqueue", side_effect=executor._enqueue) as calls:
                for start in range(0, len(data), size):
                    sink.data(data[start : start + size])
                sink.end()
                await sink.done
            self.assertEqual([part.error for part in sink.parts], [None] * len(contents))
            if size == len(data):
                self.assertEqual(calls.call_count, len(contents))
            for content in contents:
                found = pydicom.dcmread(BytesIO(content))
                path = self.archive.store.path("1.2.1", "1.2.1.1", found.SOPInstanceUID)
                self.archive.catch_up()
                self.assertEqual(pydicom.dcmread(path), found)
                path.unlink()
            await self.removed()

    async def removed(self) -> None:
        """Remove what is stored, so that the next are not duplicates."""
        response = await self.client().request("DELETE", "/dicom-web/studies/1.2.1")
        self.assertEqual(response.status, 204)

    async def test_refused(self) -> None:
        """A full queue, and a disk without room, are told for each."""
        data = multipart(part10(dataset(number, EncapsulatedDocument=bytes(300_000))) for number in (1, 2))
        full = ExecutorFull("receiving", 3)
        with mock.patch.object(self.server.ingest.executor, "run", side_effect=lambda *_: fail(full)):
            response = await self.post(data)
        self.assertEqual((response.status, reasons(response)), (503, [0xA700] * 2))
        with mock.patch.object(self.archive.store.temporary_files, "refuses", True):
            response = await self.post(data)
        self.assertEqual((response.status, reasons(response)), (507, [0xA700] * 2))
        self.assertEqual(self.stored(), [])
        self.assertEqual(list((self.folder / ".incoming").glob("*.part")), [])
        self.assertEqual((await self.post(data)).status, 200)


class Pieces(StowTestCase):
    """However a body is divided into pieces, its parts are the same."""

    def test_any_pieces(self) -> None:
        contents = [part10(dataset(1)), part10(dataset(2, PatientComments="x" * 3000)), b"junk"]
        data = multipart(contents)

        @settings(max_examples=60, deadline=None)
        @given(st.lists(st.integers(1, 700), min_size=1, max_size=30))
        def check(sizes: list[int]) -> None:
            got: list[Any] = []

            def keep(incoming: IncomingInstance) -> None:
                got.append(incoming.small().content)
                incoming.kept(None)

            with mock.patch.object(self.server.ingest, "keep_small", keep):
                sink = IncomingBody(Flow(), MultipartCutter(b"B"), self.server.ingest, mock.Mock(titles=("HTTP", "")))
                start = 0
                for size in itertools.cycle(sizes):
                    sink.data(data[start : start + size])
                    start += size
                    if start >= len(data):
                        break
                sink.end()
            self.assertEqual(
                [bytes(one[1]) for one in got], [content[content.index(b"\x08\0\x16\0") :] for content in contents[:2]]
            )
            self.assertEqual(len(sink.parts), 3)

        check()
