"""dicomtwist.web.wado.pieces: what threads write to real sockets arrives, in order, and in no other form than without them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from dicomtwist.archive.reading.content import READERS, Block, Content, Extent
from dicomtwist.archive.reading.stored_file import Source
from dicomtwist.runtime.executors import Bounds, Executor
from dicomtwist.web.http import site
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.wado import pieces
from dicomtwist.web.wado.pieces import ThreadPieces
from tests.web.http.test_writing import Narrow, Reader

reactor: Any = _reactor

#: More than the kernel keeps for a connection, and no multiple of a page.
LARGE = bytes(range(251)) * 40_000


#: Bytes, or a range of the file: the number of its first byte, and its length.
Made = bytes | tuple[int, int]


class Case(NamedTuple):
    """
    A response.

    :ivar blocks: its blocks.
    :ivar length: the length that is stated.
    """

    blocks: tuple[Made, ...]
    length: int | None = None


def body_of(case: Case) -> bytes:
    return b"".join(one if isinstance(one, bytes) else LARGE[one[0] : sum(one)] for one in case.blocks)


MIXED: tuple[Made, ...] = (
    b"head",
    (0, len(LARGE)),
    *(b"%d" % number * 900 for number in range(700)),
    (7, 100),
    (9, 70_000),
    b"",
    (1, 90_000),
)


class Served(Resource):
    """Answers with the blocks of a case."""

    isLeaf = True

    def __init__(self, executor: Executor, file: Path) -> None:
        super().__init__()
        self.cases: dict[bytes, Case] = {}
        self.closed = 0
        self.failures: list[BaseException | None] = []
        self.ended: Deferred[None] = Deferred()
        self._executor = executor
        self._file = file

    def render_GET(self, http: Any) -> int:
        absent: Any = None
        request = DICOMwebRequest(http, absent, absent, absent)
        case = self.cases[http.uri]
        sending = ThreadPieces(self._executor.share("x"), self._blocks(case), self._close)
        running = Deferred.fromCoroutine(request.stream(sending, "application/octet-stream", length=case.length))
        running.addErrback(self._failed, request)
        http.notifyFinish().addErrback(lambda _: running.cancel())
        return NOT_DONE_YET

    def _blocks(self, case: Case) -> Iterator[Block]:
        with self._file.open("rb") as file:
            for one in case.blocks:
                yield one if isinstance(one, bytes) else Extent(Source(file), *one)

    def _close(self) -> None:
        self.closed += 1
        reactor.callFromThread(self._tell)

    def _tell(self) -> None:
        ended, self.ended = self.ended, Deferred()
        ended.callback(None)

    def _failed(self, reason: Failure, request: DICOMwebRequest) -> None:
        self.failures.append(reason.value)
        if not reason.check(CancelledError) and not request.is_answered:
            request.answer(b"no", status=503)
        else:
            request.abort()


class Sending(TestCase):
    async def setUp(self) -> None:  # type: ignore[override]
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        file = folder / "file-of-ranges"
        file.write_bytes(LARGE)
        executor = Executor(reactor, "retrieval", Bounds(threads=2, max_queued=8))
        executor.acquire()
        self.addCleanup(executor.release)
        self.resource = Served(executor, file)
        self.site = Narrow(self.resource, reactor)
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(self.site)
        self.addCleanup(port.stopListening)
        self.endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)

    async def read(self, path: bytes, is_enough: Callable[[bytearray], bool] = lambda _: False, *fields: str) -> Reader:
        request = "\r\n".join((f"GET {path.decode()} HTTP/1.1", "Host: x", *fields, "", ""))
        reader: Reader = await connectProtocol(self.endpoint, Reader(request.encode(), is_enough))
        return reader

    async def whole(self, case: Case) -> bytes:
        """Return the body of a response after which the connection is closed."""
        self.resource.cases[b"/whole"] = case
        reader = await self.read(b"/whole", lambda _: False, "Connection: close")
        await reader.lost
        head, _, body = bytes(reader.received).partition(b"\r\n\r\n")
        if case.length is not None:
            self.assertIn(b"Content-Length: %d" % case.length, head.split(b"\r\n"))
            return body
        self.assertIn(b"Transfer-Encoding: chunked", head)
        return unchunked(body)

    async def test_whole(self) -> None:
        """Bytes and ranges of files, long and short, arrive in order; with a length, and in chunks."""
        several: tuple[tuple[Made, ...], ...] = (MIXED, MIXED[:1], MIXED[1:2], (b"",), ())
        for blocks in several:
            expected = body_of(Case(blocks))
            for length in (len(expected), None):
                self.assertTrue(await self.whole(Case(blocks, length)) == expected, (len(blocks), length))
        self.assertEqual(self.resource.failures, [])
        self.assertEqual(READERS.count, 0)

    async def test_connection_is_kept(self) -> None:
        """After what threads have written the connection serves further requests, and the bytes are counted."""
        case = Case(MIXED, len(body_of(Case(MIXED))))
        self.resource.cases = {b"/1": case, b"/2": Case(MIXED)}
        records: list[Any] = []
        self.site.listeners.append(records.append)
        reader = await self.read(b"/1", lambda received: received.endswith(LARGE[1:90_001]))
        await reader.done
        reader.done = Deferred()
        reader.received.clear()
        reader._is_enough = lambda received: received.endswith(b"\r\n0\r\n\r\n")
        reader.transport.write(b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.done
        self.assertTrue(unchunked(bytes(reader.received).partition(b"\r\n\r\n")[2]) == body_of(case))
        self.assertEqual([record.bytes_sent for record in records], [case.length, case.length])
        reader.transport.loseConnection()
        await reader.lost

    async def test_without_a_socket(self) -> None:
        """A transport that only the reactor may write to, as that of TLS, is sent the same."""
        expected = body_of(Case(MIXED))
        with mock.patch.object(site.StreamedRequest, "can_lend_socket", return_value=False):
            for length in (len(expected), None):
                self.assertTrue(await self.whole(Case(MIXED, length)) == expected)

    async def test_without_sendfile(self) -> None:
        """A file system without sendfile, and a platform without it."""
        expected = body_of(Case(MIXED))
        unsupported = mock.Mock(side_effect=OSError(errno.EINVAL, "not here"))
        for instead in (unsupported, None):
            with mock.patch.object(pieces, "_sendfile", instead):
                for length in (len(expected), None):
                    self.assertTrue(await self.whole(Case(MIXED, length)) == expected)
        unsupported.assert_called()

    async def test_wrong_lengths(self) -> None:
        """A client never takes a part for the whole, nor gets more than was announced."""
        length = len(LARGE)
        for blocks, stated in (
            (((0, length), b"more"), length),
            (((0, length), (0, length)), length),
            (((0, length - 1),), length),
            (((1, length),), length),  # the file is shorter than the range
            ((b"few", (length, 100_000)), 100_003),
        ):
            body = await self.whole(Case(blocks, stated))
            # Nothing is sent beyond the stated length. The client may miss the end: the connection may be reset.
            self.assertLessEqual(len(body), stated - (len(body_of(Case(blocks))) < stated))
            self.assertEqual(len(self.resource.failures), 1)
            self.assertNotIsInstance(self.resource.failures.pop(), CancelledError)

    async def test_too_much_at_once(self) -> None:
        """A length that is exceeded before anything is sent is a response of its own."""
        self.resource.cases[b"/"] = Case(((0, len(LARGE)),), 10)
        reader = await self.read(b"/", lambda received: received.endswith(b"no"))
        await reader.done
        self.assertIn(b" 503 ", bytes(reader.received).partition(b"\r\n")[0])
        reader.transport.loseConnection()
        await reader.lost

    async def test_client_leaves(self) -> None:
        """A client that leaves in the middle ends the work; files and sockets are closed."""
        self.resource.cases[b"/"] = Case((b"head", *[(0, len(LARGE))] * 20))
        before = descriptors()
        for is_reading in (True, False):
            ended = self.resource.ended
            reader = await self.read(b"/", lambda received: len(received) >= 1000)
            await reader.done
            if not is_reading:
                reader.transport.pauseProducing()
            reader.transport.abortConnection()
            await reader.lost
            await ended
        self.assertEqual(self.resource.closed, 2)
        self.assertEqual([type(one) for one in self.resource.failures], [CancelledError] * 2)
        self.assertEqual(READERS.count, 0)
        self.assertEqual(self.site.connections, set())
        self.assertEqual(descriptors(), before)

    async def test_client_takes_nothing(self) -> None:
        """A client that takes nothing keeps no thread, and is cut off when its time has passed."""
        self.resource.cases = {b"/": Case(((0, len(LARGE)),) * 20), b"/other": Case((b"other",), 5)}
        ended = self.resource.ended
        slow = [await self.read(b"/", lambda received: len(received) >= 1000) for _ in range(3)]
        for one in slow:
            await one.done
            one.transport.pauseProducing()
        other = await self.read(b"/other", lambda received: received.endswith(b"other"))
        await other.done
        other.transport.loseConnection()
        await other.lost
        # The last of them may still be on its way to be full.
        while len(channels := [one for one in self.site.connections if one._full_since is not None]) < len(slow):
            turn: Deferred[None] = Deferred()
            reactor.callLater(0.001, turn.callback, None)
            await turn
        for channel in channels:
            channel.look((channel._full_since or 0) + (channel.limits.write_timeout or 0) + 1)
        for one in slow:
            one.transport.resumeProducing()
            await one.lost
        await ended


def unchunked(body: bytes) -> bytes:
    """Return the content of a body in chunks."""
    file, found = BytesIO(body), []
    while size := int(file.readline(), 16):
        found.append(file.read(size))
        assert len(found[-1]) == size
        assert file.readline() == b"\r\n"
    assert file.read() == b"\r\n"
    return b"".join(found)


def descriptors() -> list[str]:
    """Return the open sockets and files of the tests."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the list itself
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(link for link in links if link.startswith("socket:") or link.endswith("file-of-ranges"))


class Blocks(TestCase):
    def test_what_is_not_read(self) -> None:
        """A range of a file is not read, but for words whose bytes change their order."""
        path = Path(self.mktemp())
        path.write_bytes(LARGE)
        with path.open("rb") as file:
            source = Source(file, 10)
            content = Content([b"abc", Extent(source, 5, 1000), Extent(source, 0, 4, 2)])
            first, extent, swapped = content.blocks()
            self.assertEqual((first, extent), (b"abc", Extent(source, 5, 1000)))
            self.assertEqual(swapped, bytes((LARGE[11], LARGE[10], LARGE[13], LARGE[12])))
            whole = b"".join(content.pieces())
            for start, stop in ((0, 3), (1, 500), (3, 1003), (500, 1005)):
                some = b"".join(
                    one if isinstance(one, bytes) else source.read(one.offset, one.length)
                    for one in content.blocks(start, stop)
                )
                self.assertEqual(some, whole[start:stop])
