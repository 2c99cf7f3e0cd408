"""Targets in the server of DICOMweb: connections of HTTP, and the images that the processes for pixels decode."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from importlib.util import find_spec
from io import BytesIO
from typing import Any
from unittest.mock import patch

from pydicom import Dataset
from pydicom.encaps import encapsulate
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from dicomtwist.datasets import encode_dataset
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta
from dicomtwist.web.http.body import Body
from dicomtwist.web.http.limits import HTTPLimits
from dicomtwist.web.http.site import Site, StreamingResource
from fuzz.log_watch import LogWatch

PEER = IPv4Address("TCP", "10.1.2.3", 40000)
#: A time that is longer than all timeouts of one connection together, in seconds.
FOR_EVER = 1000
#: The longest body that is taken, in bytes.
MAX_BODY = 2000
#: The longest frame that is decoded, in bytes.
MAX_FRAME = 1 << 20

Seen = list[tuple[bytes, bytes, bytes]]


class _Taken(StreamingResource, Resource):
    """
    Takes bodies, and answers at their end.

    :ivar seen: method, URI and body of each whole request.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Seen = []

    def getChildWithDefault(self, path: bytes, request: Any) -> Any:
        return self

    def render(self, request: Any) -> bytes:
        self.seen.append((request.method, request.uri, request.content.read()))
        return b"ok"

    def begin(self, request: Any, body: Body) -> None:
        body.deliver_to(_Sink(self, request))


class _Sink:
    """Takes the body of one request."""

    def __init__(self, resource: _Taken, request: Any) -> None:
        self._resource, self._request = resource, request
        self._body = bytearray()

    def data(self, data: bytes) -> None:
        self._body += data
        assert len(self._body) <= MAX_BODY

    def end(self) -> None:
        request = self._request
        self._resource.seen.append((request.method, request.uri, bytes(self._body)))
        self._answer(200)

    def fail(self, reason: Failure) -> None:
        self._answer(getattr(reason.value, "status", 400))

    def _answer(self, status: int) -> None:
        request = self._request
        if request.channel is not None and not request.finished:
            request.setResponseCode(status)
            request.setHeader(b"Content-Length", b"0")
            request.finish()


class _Transport(StringTransport):
    def setTcpNoDelay(self, enabled: bool) -> None:
        """Do nothing."""


def _conversation(data: bytes, size: int) -> tuple[Seen, list[bytes], bool]:
    """Return the whole requests in *data*, the status lines of the responses, and whether the connection is closed."""
    clock = Clock()
    resource = _Taken()
    site = Site(resource, clock, HTTPLimits(maximum_body=MAX_BODY))
    channel = site.buildProtocol(PEER)
    assert channel is not None
    transport: Any = _Transport(peerAddress=PEER)  # type: ignore[no-untyped-call]
    channel.makeConnection(transport)
    for at in range(0, len(data), size):
        if transport.disconnecting or transport.disconnected:
            break
        channel.dataReceived(data[at : at + size])
        clock.advance(0)
    clock.pump([0] * 200)  # one request of a connection at a time, each in its turn
    lines = [line for line in transport.value().split(b"\r\n") if line.startswith(b"HTTP/1.")]
    is_closed = bool(transport.disconnecting or transport.disconnected)
    clock.pump([FOR_EVER / 10] * 20)
    assert transport.disconnecting or transport.disconnected, "the connection stays for ever"
    channel.connectionLost(Failure(ConnectionDone()))
    assert not clock.getDelayedCalls(), "a timer is left"
    return resource.seen, lines, is_closed


def http(data: bytes) -> None:
    """Send bytes to the HTTP server. The requests that it finds, and its responses, do not depend on the pieces."""
    if not data:
        return
    size, data = 1 + data[0] % 64, data[1:]
    with LogWatch() as log:
        whole = _conversation(data, max(1, len(data)))
        pieces = _conversation(data, size)
        log.check()
    assert whole == pieces, (whole, pieces)


def pixels(data: bytes) -> None:
    """
    Render, convert and transcode the image in a Part 10 file, as a process for pixels does. The first byte chooses what is
    done; each answer is a result, or names an error.
    """
    from dicomtwist.pixels.child import codecs, image
    from dicomtwist.pixels.child.worker import Worker

    if not data:
        return
    job = JOBS[data[0] % len(JOBS)]
    with (
        patch.object(codecs, "MAX_FRAME_BYTES", MAX_FRAME),
        patch.object(image, "MAX_FRAME_BYTES", MAX_FRAME),
        patch.object(Worker, "_limit_time", lambda _: None),  # it would be that of this process
    ):
        header, payload = Worker(1).perform(deepcopy(job), data[1:])
    if "error" in header:
        assert isinstance(header["words"], str) and not payload
    else:
        assert "errno" not in header, "there is no file"
        assert payload or job["do"] != "render"


EXPLICIT, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"
JOBS: tuple[dict[str, Any], ...] = ()


def _image(syntax: str) -> bytes:
    """Return a Part 10 file with an image of 8 x 8 pixels in a transfer syntax."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.NumberOfFrames = 2
    dataset.Rows = dataset.Columns = 8
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.WindowCenter, dataset.WindowWidth = 100, 50
    dataset.RescaleIntercept, dataset.RescaleSlope = -1, 2
    dataset.add_new(0x7FE00010, "OB", bytes(range(128)))
    if syntax == RLE:
        rle = b"\1\0\0\0\x40\0\0\0" + bytes(56)
        frames = [rle + b"\x3f" + bytes(range(64)) + b"\0", rle + b"\xc1\7" + b"\0\0"]
        dataset["PixelData"].value = encapsulate(frames)
        dataset["PixelData"].is_undefined_length = True
    meta = FileMeta(dataset.SOPClassUID, dataset.SOPInstanceUID, syntax, "1.2")
    return BytesIO(encode_preamble_and_meta(meta) + encode_dataset(dataset, syntax)).getvalue()


WEB_TARGETS = {"http": http}
if find_spec("imagecodecs") is not None:
    from dicomtwist.pixels.options import RenderOptions, View

    JOBS = (
        {"do": "render", "frame": None, "options": asdict(RenderOptions())},
        {"do": "render", "frame": 1, "options": asdict(RenderOptions("image/png", View(16, 4)))},
        {"do": "render", "frame": 0, "options": asdict(RenderOptions("image/gif", animated=True))},
        {"do": "frames", "frames": [1, 0], "syntax": EXPLICIT},
        {"do": "transcode", "first": 0, "syntax": EXPLICIT},
        {"do": "transcode", "first": 0, "syntax": RLE},
    )
    WEB_TARGETS["pixels"] = pixels


def web_seeds() -> dict[str, list[bytes]]:
    """Return the seeds of the targets."""
    requests = (
        b"GET /studies?limit=1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /studies HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3000\r\n\r\n" + bytes(3000),
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"GET http://a/b?c HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\nX:\t y \r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    )
    found = {"http": [bytes((at,)) + one for at, one in enumerate((*requests, b"".join(requests[:6])))]}
    if "pixels" in WEB_TARGETS:
        found["pixels"] = [
            bytes((number,)) + _image(syntax)
            for number in range(len(JOBS))
            for syntax in (EXPLICIT, RLE, "1.2.840.10008.1.2")
        ]
    return found
