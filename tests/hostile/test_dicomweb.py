"""
``twist dicom --http`` among hostile clients of DICOMweb: rows 51 to 55. Each request ends in a status of the client's error, in
a correct response or in a close; another AE's C-ECHO is answered between them; the memory stays as it is.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import socket
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, cast
from urllib.parse import quote

from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, RLELossless
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from dicomtwist.datasets import encode_dataset
from tests.hostile.test_http import RELATED, HTTPTestCase, multipart
from tests.hostile.test_process import DEFLATED, EXPLICIT, file_of, instance

STUDY = "/studies/1.2.3"
SERIES = f"{STUDY}/series/1.2.3.1"
STORED = f"{SERIES}/instances/1.2.3.99"
DICOM = {"Content-Type": "application/dicom"}
#: The longest header that is read whole has 64 KiB.
LONG = 60_000


def request(
    target: str | bytes, fields: Mapping[str, str] | None = None, body: bytes | None = None, *, method: str = "GET"
) -> bytes:
    """Return a request after which the server closes the connection."""
    path = target if isinstance(target, bytes) else target.encode("latin-1")
    head = method.encode() + b" /dicom-web" + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    for name, value in (fields or {}).items():
        head += f"{name}: {value}\r\n".encode("latin-1")
    if body is not None and "Transfer-Encoding" not in (fields or {}):
        head += f"Content-Length: {len(body)}\r\n".encode()
    return head + b"\r\n" + (body or b"")


def stow(body: bytes, fields: Mapping[str, str] | None = None) -> bytes:
    """Return a request that stores."""
    return request("/studies", RELATED if fields is None else fields, body, method="POST")


def image(uid: str, syntax: str = EXPLICIT, **elements: Any) -> Dataset:
    """Return an image of 8 x 8 pixels, with other *elements*."""
    made = instance(uid)
    made.Rows = made.Columns = 8
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation = 7, 0
    made.add_new(0x7FE00010, "OB" if syntax != EXPLICIT else "OW", bytes(64))
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


class DICOMwebTestCase(HTTPTestCase):
    """A server process with DICOMweb, and what it answers to bytes."""

    async def echo(self) -> None:
        """Check that another AE's C-ECHO is answered, however long it takes."""
        async with await self.neighbour.associate("127.0.0.1", self.port) as assoc:
            self.assertTrue((await assoc.send_c_echo()).is_success)

    def exchange(self, data: bytes) -> Deferred[int | None]:
        """Send *data*; return the status of the response, ``None`` if the connection is closed without one."""

        def exchange() -> int | None:
            received = b""
            with socket.create_connection(("127.0.0.1", self.http), timeout=60) as connection:
                try:
                    connection.sendall(data)
                except OSError:
                    pass  # refused meanwhile; the response may be there
                try:
                    while piece := connection.recv(1 << 16):
                        received = received or piece
                        if received[9:10] in b"45":
                            break  # the server waits some seconds for what it discards, and for this end
                except ConnectionError:
                    pass
            return int(received.split(b" ", 2)[1]) if received.startswith(b"HTTP/1.") else None

        return deferToThread(exchange)

    async def check(self, rows: Iterable[tuple[str, bytes]], allowed: Iterable[int] = ()) -> dict[str, int | None]:
        """
        Check that each request ends with a close, an error of the client, or a status in *allowed*; and that echoes are
        answered meanwhile.

        :returns: the statuses by the names of the rows.
        """
        table = list(rows)
        found: dict[str, int | None] = {}
        for start in range(0, len(table), 10):
            part = table[start : start + 10]
            asked = gatherResults([self.exchange(data) for _, data in part])
            await self.echo()
            found.update(zip((name for name, _ in part), await asked, strict=True))
        wrong = {
            name: status
            for name, status in found.items()
            if status is not None and not 400 <= status < 500 and status not in allowed
        }
        self.assertEqual(wrong, {})
        return found


class Searches(DICOMwebTestCase):
    async def test_searches(self) -> None:
        """Row 51."""
        await self.start()
        uids = ",".join(f"1.2.3.{number}" for number in range(6000))
        nested = ".".join(["00081140"] * 3000)
        queries = {
            "thousands of fields": "includefield=00100010&" * 2500,
            "a list of fields": "includefield=" + ",".join(["PatientName"] * 4000),
            "unknown fields": "&".join(f"includefield=Name{number}" for number in range(3000)),
            "a deep field": f"includefield={nested}",
            "a deep key": f"{nested}=1",
            "UIDs": f"StudyInstanceUID={uids}",
            "the same key": "PatientName=a&" * 4000,
            "separators": "&" * LONG,
            "signs": "=" * LONG,
            "wildcards": "PatientName=" + "*?" * 20_000,
            "a fuzzy name": "fuzzymatching=true&PatientName=" + "a^" * 20_000,
            "fuzzy words": "fuzzymatching=true&PatientName=" + "abc%20" * 8000,
            "a limit": f"limit={10**30}",
            "digits": f"limit={'9' * LONG}",
            "a negative limit": "limit=-1",
            "an offset": f"offset={2**63}",
            "a limit of other digits": "limit=" + quote("\u0663"),
            "an exponent": "limit=1e9",
            "several limits": "limit=1&limit=2",
            "half an escape": "PatientName=%",
            "no escape": "PatientName=%zz%u0041",
            "a zero byte": "PatientName=%00",
            "control characters": "PatientName=%0d%0aX:%20y",
            "not UTF-8": "PatientName=%ff%fe",
            "long forms": "PatientName=%c0%ae%e0%80%ae",
            "surrogates": "PatientName=%ed%a0%80",
            "a byte order mark": "%ef%bb%bfPatientName=a",
            "combining": "PatientName=" + "%cc%81" * 10_000,
            "beyond Unicode": "PatientName=%f4%90%80%80",
            "SQL": "PatientID=" + quote("' OR 1=1--"),
            "a range": "StudyDate=99999999-00000000",
            "many ranges": "StudyDate=" + "20200101-" * 5000,
            "a number": "Rows=" + "9" * 5000,
            "infinity": "PatientWeight=inf&Rows=nan",
            "a tag": "FFFFFFFF=1&00000000=1&7FE00010=a&00020010=1.2",
        }
        levels = ("studies", "series", "instances")
        rows = [(name, request(f"/{levels[at % 3]}?{query}")) for at, (name, query) in enumerate(queries.items())]
        ranges = ",".join(f'application/dicom+json;q=0.{number % 1000:03};x="{number}"' for number in range(1200))
        for name, fields in {
            "a thousand media ranges": {"Accept": ranges},
            "parameters": {"Accept": "application/dicom+json" + ";a=b" * 10_000},
            "a quoted string": {"Accept": 'application/dicom+json;a="' + "\\" * LONG},
            "commas": {"Accept": "," * LONG},
            "an origin": {"Origin": "http://" + "a" * LONG},
            "credentials": {"Authorization": "Basic " + "A" * LONG},
            "addresses": {"X-Forwarded-For": ", ".join(["10.0.0.1"] * 5000), "X-Forwarded-Proto": "https" * 1000},
            "a host": {"X-Forwarded-Host": "a" * LONG},
            "a forged host": {"X-Forwarded-Host": "a/../<script>", "X-Forwarded-Prefix": "//evil/%0d%0a"},
            "encodings": {"Accept-Encoding": "gzip;q=" + "0" * LONG},
            "tags": {"If-None-Match": '"a",' * 10_000},
            "a range of bytes": {"Range": "bytes=0-0"},
            "an upgrade": {"Upgrade": "h2c, websocket", "HTTP2-Settings": "AAAA", "Sec-WebSocket-Version": "13"},
        }.items():
            rows.append((name, request("/studies", fields)))
        rows += [
            ("a long URL", request("/studies?" + "a" * 1_000_000)),
            ("a long path", request("/studies/" + "1." * 20_000 + "1/series")),
            ("slashes", request("/" * LONG)),
            ("a path that climbs", request("/studies/../../../etc/passwd")),
            ("an escaped path", request("/studies/%2e%2e%2f%2e%2e/series")),
            ("zeros in the path", request("/studies/1.2%00/series")),
            ("bytes in the path", request(b"/studies/\xff\xfe/series")),
            ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100)),
            ("a long method", b"A" * 10_000 + b" / HTTP/1.1\r\n\r\n"),
            ("HTTP/0.9", b"GET /dicom-web/studies\r\n"),
            ("a fragment", request("/studies#" + "a" * 1000)),
        ]
        found = await self.check(rows, (200, 204))
        for name in ("a negative limit", "an exponent", "not UTF-8", "a zero byte"):
            self.assertEqual(found[name], 400, name)
        self.assertEqual(found["a long URL"], 414)
        await self.all_is_as_before()


class Retrievals(DICOMwebTestCase):
    async def test_retrievals(self) -> None:
        """Row 52."""
        await self.start()
        inflated = encode_dataset(instance("1.2.3.70"), EXPLICIT)[:-100]
        bomb = inflated + b"\x09\x00\x10\x10OB\0\0" + (300 << 20).to_bytes(4, "little")
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        deflated = (
            packer.compress(bomb) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
        )
        stored = await self.exchange(stow(file_of(deflated, "1.2.3.70", DEFLATED).getvalue(), DICOM))
        bombs = f"{SERIES}/instances/1.2.3.70"
        ones = ",".join(["1"] * 5000)
        rows = [
            ("a million frames", request(f"{STORED}/frames/{'1,' * 1_000_000}1")),
            ("twenty thousand frames", request(f"{STORED}/frames/{'1,' * 20_000}1")),
            ("frames", request(f"{STORED}/frames/{ones}", {"Accept": "*/*"})),
            ("frame 0", request(f"{STORED}/frames/0")),
            ("a negative frame", request(f"{STORED}/frames/-1")),
            ("a large frame", request(f"{STORED}/frames/{10**30}")),
            ("a fraction", request(f"{STORED}/frames/1.5")),
            ("no frames", request(f"{STORED}/frames/,,,")),
            ("ranges", request(f"{STORED}/bulkdata/7FE00010", {"Range": "bytes=" + "0-0," * 10_000 + "1-1"})),
            ("a range beyond", request(f"{STORED}/bulkdata/7FE00010", {"Range": f"bytes={10**30}-"})),
            ("a suffix", request(f"{STORED}/bulkdata/7FE00010", {"Range": f"bytes=-{10**30}"})),
            ("a backward range", request(f"{STORED}/bulkdata/7FE00010", {"Range": "bytes=9-1"})),
            ("other units", request(f"{STORED}/bulkdata/7FE00010", {"Range": "lines=" + "1" * LONG})),
            ("a deep path", request(f"{STORED}/bulkdata/{'00081140/1/' * 4000}00100010")),
            ("a path that climbs", request(f"{STORED}/bulkdata/../../../../../etc/passwd")),
            ("an escaped path", request(f"{STORED}/bulkdata/..%2f..%2fetc%2fpasswd%00")),
            ("an item", request(f"{STORED}/bulkdata/00081140/{10**30}/00100010")),
            (
                "syntaxes",
                request(STORED, {"Accept": ",".join([f"application/dicom;transfer-syntax=1.2.{'3' * 60}"] * 600)}),
            ),
            ("a tag of the entity", request(STORED, {"If-None-Match": '"' + "a" * LONG, "If-Range": "x" * 10})),
            (
                "a condition",
                request(f"{SERIES}/metadata", {"If-Modified-Since": "9" * 5000, "Accept-Encoding": "gzip"}),
            ),
            (
                "a UID that climbs",
                request("/wado?requestType=WADO&studyUID=../..&seriesUID=1&objectUID=%2fetc%2fpasswd"),
            ),
            ("a type", request("/wado?requestType=" + "WADO" * 10_000)),
            ("values", request("/wado?" + "objectUID=1.2&" * 4000)),
            ("a part of a deflated bomb", request(f"{bombs}/bulkdata/00091010", {"Range": "bytes=0-9"})),
            ("frames of a deflated bomb", request(f"{bombs}/frames/1")),
            ("metadata of a deflated bomb", request(f"{bombs}/metadata")),
            ("metadata of its series", request(f"{SERIES}/metadata")),
            (
                "a deflated bomb, converted",
                request(bombs, {"Accept": "application/dicom;transfer-syntax=1.2.840.10008.1.2"}),
            ),
            ("a deflated bomb, rendered", request(f"{bombs}/rendered")),
            ("a ZIP archive of everything", request(STUDY, {"Accept": "application/zip"})),
            ("all of a study", request(STUDY)),
        ]
        found = await self.check(rows, (200, 206, 304))
        self.assertEqual(found["a million frames"], 414)
        self.assertEqual(found["twenty thousand frames"], 400)
        await self.all_is_as_before(*(["1.2.3.70"] if stored == 200 else []))

    async def test_clients_that_go(self) -> None:
        """Row 52: slow readers, and clients that vanish, leave no descriptors and no memory behind."""
        await self.start()
        body = multipart(*(f"1.2.3.{number}" for number in range(100, 104)), size=4 << 20)
        self.assertEqual(await self.exchange(stow(body)), 200)
        await self.note("1.2.3.98")  # what the server needs for four instances at once is in the base
        descriptors = self.descriptors()
        slow = []
        for accept in ("multipart/related; type=application/dicom", "application/zip"):
            data = request(STUDY, {"Accept": accept})
            slow += await gatherResults([self.connect(data) for _ in range(60)])
            await self.echo()
        await gatherResults([peer.answered for peer in slow])
        for peer in slow:
            cast(Any, peer.transport).pauseProducing()
        await self.echo()
        self.assertEqual(await self.exchange(request(STORED)), 200)
        for peer in slow:
            cast(Any, peer.transport).abortConnection()
        for _ in range(100):
            gone = await self.connect(request(f"{STUDY}/metadata") + request(STUDY))
            cast(Any, gone.transport).abortConnection()
        await self.server.until(lambda: self.descriptors() <= descriptors + 8, 120, "closed descriptors")
        await self.all_is_as_before()

    def descriptors(self) -> int:
        """
        Return the number of the server's open descriptors. Those of the index are left out: its pool keeps as many connections
        as there were queries at once.
        """
        folder, found = f"/proc/{self.server.pid}/fd", 0
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found += ".sqlite" not in os.readlink(f"{folder}/{name}")
        return found


class Stores(DICOMwebTestCase):
    async def test_bodies(self) -> None:
        """Row 53."""
        await self.start()
        part = b"--B\r\nContent-Type: application/dicom\r\n\r\n"
        good = file_of(encode_dataset(instance("1.2.3.80"), EXPLICIT), "1.2.3.80").getvalue()
        nested = encode_dataset(instance("1.2.3.81"), EXPLICIT)[:-112]
        nested += b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 10_000
        deep = file_of(nested, "1.2.3.81").getvalue()
        names = "a" * 9000
        rows = [
            ("a million empty parts", stow(b"--B\r\n\r\n\r\n" * 1_000_000 + b"--B--")),
            ("a million delimiters", stow(b"--B\r\n" * 1_000_000)),
            ("no parts", stow(b"--B--\r\n")),
            ("nothing", stow(b"")),
            ("a preamble", stow(bytes(20 << 20))),
            ("a long header", stow(b"--B\r\nX: " + b"a" * 2_000_000)),
            ("many fields", stow(b"--B\r\n" + b"X: y\r\n" * 200_000)),
            ("fields without a colon", stow(b"--B\r\n" + b"X\r\n" * 1000 + b"\r\n")),
            ("zeros in a header", stow(b"--B\r\nContent-Type: application/dicom\0\r\n\r\n" + good + b"\r\n--B--")),
            ("a long boundary", stow(b"", {"Content-Type": f"multipart/related; boundary={'B' * 10_240}"})),
            ("no boundary", stow(good, {"Content-Type": "multipart/related; type=application/dicom"})),
            ("an empty boundary", stow(good, {"Content-Type": 'multipart/related; boundary=""'})),
            ("a strange boundary", stow(good, {"Content-Type": 'multipart/related; boundary="\\\r\n\x00"'})),
            ("parameters", stow(good, {"Content-Type": "multipart/related" + "; boundary=B" * 4000})),
            ("a type", stow(good, {"Content-Type": "application/dicom; " + names * 6})),
            ("two types", stow(good, {"Content-Type": "application/dicom, text/html"})),
            ("no type", stow(good, {})),
            ("parts in parts", stow(b"--B\r\nContent-Type: multipart/mixed; boundary=B\r\n\r\n" * 10_000 + b"--B--")),
            ("JSON", stow(b"[" * 1_000_000, {"Content-Type": "application/dicom+json"})),
            ("JSON in a part", stow(b"--B\r\nContent-Type: application/dicom+json\r\n\r\n" + b'{"a":' * 1_000_000)),
            ("XML", stow(b"<!DOCTYPE a [<!ENTITY b '&b;&b;'>]>", {"Content-Type": "application/dicom+xml"})),
            ("gzip", stow(gzip.compress(bytes(50 << 20)), {**DICOM, "Content-Encoding": "gzip"})),
            ("gzip of parts", stow(gzip.compress(part + good), {**RELATED, "Content-Encoding": "gzip, gzip, br"})),
            ("a coded transfer", stow(b"0\r\n\r\n", {**DICOM, "Transfer-Encoding": "gzip, chunked"})),
            ("many chunks", stow(b"1\r\n-\r\n" * 300_000 + b"0\r\n\r\n", {**RELATED, "Transfer-Encoding": "chunked"})),
            ("an extension", stow(b"1;" + b"a" * 1_000_000, {**RELATED, "Transfer-Encoding": "chunked"})),
            ("zeros", stow(bytes(1 << 20), DICOM)),
            ("no data set", stow(part + bytes(128) + b"DICM\r\n--B--")),
            ("a study of another name", request("/studies/1.2.4", DICOM, good, method="POST")),
            ("a study that climbs", request("/studies/..%2f..", DICOM, good, method="POST")),
            ("a pipeline", stow(part + good[:200], {**RELATED, "Content-Length": "3"}) + b"G" * 1000),
            ("a PUT", request("/studies", DICOM, good, method="PUT")),
            ("a DELETE", request("/studies", method="DELETE")),
        ]
        found = await self.check(rows)
        self.assertEqual({name: found[name] for name in ("gzip", "JSON")}, {"gzip": 415, "JSON": 415})
        # Data sets that are kept as they come, as by C-STORE: what they claim is not followed.
        lie = good.replace(b"1.2.3.80", b"1.2.3.82")[:-104] + b"\xf0\xff\xff\xff" + bytes(100)
        bodies = {"1.2.3.80": good, "1.2.3.81": deep, "1.2.3.82": lie, "1.2.3.83": good.replace(b"3.80", b"3.83")[:-20]}
        kept = {}
        for uid, body in bodies.items():
            self.assertIn(await self.exchange(stow(body, DICOM)), (200, 409), uid)
            path = f"{SERIES}/instances/{uid}"
            if await self.exchange(request(path, {"Accept": "*/*"})) == 200:
                kept[uid] = path
        self.assertIn("1.2.3.80", kept)
        rows = [
            (f"{path}{more}", request(f"{path}{more}", fields))
            for path in (*kept.values(), SERIES)
            for more, fields in (
                ("", {"Accept": "application/dicom; transfer-syntax=1.2.840.10008.1.2"}),
                ("", {"Accept": "multipart/related; type=application/dicom; transfer-syntax=1.2.840.10008.1.2"}),
                ("/metadata", {}),
                ("/frames/1", {}),
                ("/pixeldata", {}),
                ("/bulkdata/7FE00010", {}),
                ("/rendered", {}),
            )
        ]
        await self.check(rows, (200,))
        await self.all_is_as_before(*kept)


class Images(DICOMwebTestCase):
    async def test_parameters(self) -> None:
        """Row 54: parameters of rendered images."""
        await self.start()
        path = f"{SERIES}/instances/1.2.3.60"
        stored = file_of(encode_dataset(image("1.2.3.60"), EXPLICIT), "1.2.3.60").getvalue()
        self.assertEqual(await self.exchange(stow(stored, DICOM)), 200)
        queries = (
            f"viewport={10**9},{10**9}",
            f"viewport={'9' * LONG}",
            "viewport=nan,inf",
            "viewport=1e308,1e-308",
            "viewport=8,8,nan,nan,inf,inf",
            "viewport=8,8,-1e300,1e300,1e-300,1e-300",
            "viewport=8,8,0,0,0.0000001,8",
            "viewport=" + "1," * 20_000,
            "viewport=" + quote("\u0661,\u0661"),
            "viewport=,",
            "window=nan,nan,linear",
            "window=inf,inf,linear",
            "window=1e999,1,linear",
            "window=1e308,1e308,sigmoid",
            "window=-1e308,1e-308,linear-exact",
            "window=0,0,linear",
            "window=1,2," + "a" * LONG,
            f"quality={10**30}",
            "quality=-1",
            "quality=%00",
            "annotation=" + "patient," * 5000,
            "iccprofile=" + "a" * LONG,
            "&".join(f"name{number}=1" for number in range(4000)),
            "accept=" + "image/jpeg," * 4000,
            "accept=image/svg%2bxml",
        )
        rows = [(query[:60], request(f"{path}/rendered?{query}")) for query in queries]
        rows += [(f"thumbnail {query[:60]}", request(f"{path}/thumbnail?{query}")) for query in queries]
        rows += [
            (f"frames {frames[:60]}", request(f"{path}/frames/{frames}/rendered"))
            for frames in ("1," * 20_000, "0", str(2**63), "-1", "nan", "1,1,1,2", "%00")
        ]
        uids = "requestType=WADO&studyUID=1.2.3&seriesUID=1.2.3.1&objectUID=1.2.3.60"
        rows += [
            (f"URI {more[:60]}", request(f"/wado?{uids}&{more}"))
            for more in (
                f"rows={10**9}&columns={10**9}",
                "region=nan,nan,nan,nan",
                "region=0,0,1e-300,1e-300",
                "windowCenter=nan&windowWidth=inf",
                f"frameNumber={10**30}",
                f"imageQuality={10**30}",
                "contentType=" + "image/jpeg," * 4000,
            )
        ]
        found = await self.check(rows, (200,))
        for name in (f"viewport={10**9},{10**9}", "viewport=nan,inf", "window=nan,nan,linear", "window=0,0,linear"):
            self.assertEqual(found[name], 400, name)
        await self.all_is_as_before("1.2.3.60")

    async def test_pixels(self) -> None:
        """Row 55: images that claim more than there is, and codestreams that are larger than they claim."""
        await self.start()
        rle = bytes.fromhex("01000000") + (64).to_bytes(4, "little") + bytes(56) + b"\x81\0" * 100_000
        size = (0xFFFFFFF0).to_bytes(4, "big")
        j2k = b"\xff\x4f\xff\x51\0\x29\0\0" + size * 2 + bytes(8) + size * 2 + bytes(8) + b"\0\1\7\1\1\xff\x52"
        made = {
            "pixels": (image("1.2.3.61", Rows=65535, Columns=65535), EXPLICIT),
            "frames": (image("1.2.3.62", NumberOfFrames=2**31 - 1), EXPLICIT),
            "bits": (image("1.2.3.63", BitsAllocated=65535, BitsStored=1, HighBit=65535), EXPLICIT),
            "no rows": (image("1.2.3.64", Rows=0), EXPLICIT),
            "a run": (
                image("1.2.3.65", RLELossless, Rows=60000, Columns=60000, PixelData=encapsulate([rle])),
                RLELossless,
            ),
            "a codestream": (image("1.2.3.66", JPEG2000Lossless, PixelData=encapsulate([j2k])), JPEG2000Lossless),
            "garbage": (image("1.2.3.67", JPEG2000Lossless, PixelData=encapsulate([bytes(64)])), JPEG2000Lossless),
            "offsets": (
                image("1.2.3.68", RLELossless, NumberOfFrames=10**6, PixelData=encapsulate([rle[:100]])),
                RLELossless,
            ),
        }
        uids = []
        rows = []
        for name, (dataset, syntax) in made.items():
            uid = str(dataset.SOPInstanceUID)
            if syntax != EXPLICIT:
                dataset["PixelData"].VR = "OB"
                dataset["PixelData"].is_undefined_length = True
            body = file_of(encode_dataset(dataset, syntax), uid, syntax).getvalue()
            self.assertEqual(await self.exchange(stow(body, DICOM)), 200, name)
            uids.append(uid)
            path = f"{SERIES}/instances/{uid}"
            rows += [
                (f"{name}: rendered", request(f"{path}/rendered")),
                (f"{name}: animated", request(f"{path}/rendered", {"Accept": "image/gif"})),
                (f"{name}: thumbnail", request(f"{path}/thumbnail")),
                (f"{name}: frames", request(f"{path}/frames/1", {"Accept": "application/octet-stream"})),
                (f"{name}: a later frame", request(f"{path}/frames/999999/rendered")),
                (f"{name}: converted", request(path, {"Accept": f"application/dicom;transfer-syntax={EXPLICIT}"})),
                (f"{name}: metadata", request(f"{path}/metadata")),
                (f"{name}: pixels", request(f"{path}/pixeldata")),
            ]
        rows.append(("all", request(f"{STUDY}/rendered", {"Accept": "multipart/related; type=image/jpeg"})))
        await self.check(rows, (200,))
        await self.all_is_as_before(*uids)
