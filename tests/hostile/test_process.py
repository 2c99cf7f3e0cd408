"""
``twist dicom`` as a process among hostile peers: rows 9, 10, 15 to 22 and 30 to 33. The tests check its memory and its
files, and that another AE's C-ECHO is answered meanwhile.
"""

from __future__ import annotations

import atexit
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, cast

from pydicom import Dataset
from pydicom.sequence import Sequence
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from dicomtwist import AE, Association, AssociationError
from dicomtwist.association.acceptor import MAX_SURPLUS
from dicomtwist.datasets import encode_dataset, outgoing_instance
from dicomtwist.dimse.messages import CStoreRQ
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelFind
from dicomtwist.testing import ScriptedPeer
from dicomtwist.ul.items import ProposedContext, UserInformation
from dicomtwist.ul.pdu import AAssociateRQ
from tests import peers
from tests.daemon import test_twist_dicom
from tests.hostile.common import pdata
from tests.publishing import publish

reactor = cast(Any, _reactor)

VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"

#: The memory that the process may need in addition at any time, in bytes: some data sets that are received, and the memory
#: that allocators do not return.
MARGIN = 64 * 1024**2
#: The time within which an echo is answered, in seconds, on a machine that is busy with other work too.
PROMPTLY = 5

#: The bytes before the status in a response.
STATUS = b"\0\0\0\x09\2\0\0\0"

REQUEST = AAssociateRQ(
    "ANY",
    "HOSTILE",
    (ProposedContext(1, VERIFICATION, (IMPLICIT,)), ProposedContext(3, CT, (EXPLICIT,))),
    UserInformation(maximum_length=16384),
).encode()


def instance(uid: str = "1.2.3.4", *, pixels: int = 100, **elements: Any) -> Dataset:
    """Return an instance that can be stored, with *elements* as they are given, valid or not."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CT, uid
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    dataset.PatientID = "P"
    dataset.add_new(0x7FE00010, "OW", bytes(pixels))
    for keyword, value in elements.items():
        setattr(dataset, keyword, "1")
        dataset[keyword]._value = value
    return dataset


def file_of(encoded: bytes, uid: str = "1.2.3.4", syntax: str = EXPLICIT, preamble: bytes = bytes(128)) -> BytesIO:
    """Return a Part 10 file of a data set that is already encoded."""
    meta = encode_preamble_and_meta(FileMeta(CT, uid, syntax, "1.2.3"))
    return BytesIO(preamble + meta[128:] + encoded)


def store_command(uid: str = "1.2.3.4", sop_class: str = CT) -> bytes:
    """Return the P-DATA-TF of a C-STORE request whose data set follows."""
    request = CStoreRQ(message_id=1, affected_sop_class_uid=sop_class, affected_sop_instance_uid=uid)
    return b"".join(ScriptedPeer.encode_message(3, request, b"")[:2])


def command(port: int, storage: Path, *options: str) -> list[str]:
    """Return the arguments of Python for a server."""
    return [
        *("-m", "twisted", "--log-format", "text", "dicom", "--storage", str(storage)),
        *("--port", f"tcp:{port}:interface=127.0.0.1", *options),
    ]


class ProcessTestCase(TestCase):
    """A server process with a storage of its own."""

    timeout = 300
    server: peers.Process | SharedProcess

    async def start(self, *options: str) -> None:
        """Start the server, and measure it after a little use."""
        self.storage = Path(self.mktemp())
        await self.run_server(*options)
        await self.note()

    async def note(self, uid: str = "1.2.3.99") -> None:
        """Measure the server after a little use: an instance *uid* is stored."""
        self.neighbour = AE("NEIGHBOUR")
        self.neighbour.add_requested_context(VERIFICATION)
        self.ae = AE("HOSTILE")
        for syntax in (EXPLICIT, IMPLICIT, DEFLATED):
            self.ae.add_requested_context(CT, syntax)
        async with self.association() as assoc:
            self.assertEqual(await assoc.send_c_store(file_of(encode_dataset(instance(uid), EXPLICIT), uid)), 0)
        await self.echo()
        await publish(self.port)
        # From here on the kernel records the peak of the process's memory (proc(5), clear_refs).
        Path(f"/proc/{self.server.pid}/clear_refs").write_text("5")
        self.base, self.before = self.memory(), self.files()
        self.assertEqual({path.suffix for path in self.before}, {".dcm"})

    async def run_server(self, *options: str) -> None:
        """Start a process on the storage."""
        self.port = peers.free_port()
        self.server = await peers.start(
            self, sys.executable, *command(self.port, self.storage, *options), ready=self.port, timeout=90
        )

    @asynccontextmanager
    async def association(self) -> AsyncIterator[Association]:
        """An association for images, which is released at the end unless it is over."""
        assoc = await self.ae.associate("127.0.0.1", self.port)
        try:
            yield assoc
        finally:
            if assoc.is_established:
                await assoc.release()

    def memory(self) -> int:
        """Return the memory of the process, in bytes."""
        return self.memory_of("VmRSS")

    def memory_of(self, key: str) -> int:
        """Return a memory value of the process, in bytes; ``VmHWM`` is the peak since :meth:`note`."""
        lines = Path(f"/proc/{self.server.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))

    def computed(self) -> float:
        """Return the processor time of the process in all of its threads, in seconds."""
        # The clock of another process, see clock_getcpuclockid(3): Linux encodes its ID as this number.
        return time.clock_gettime(~self.server.pid << 3 | 2)

    def files(self) -> dict[Path, bytes]:
        """
        Return every instance and temporary file with its content; index, inbox, documents of metadata, tasks of forwarding and
        similar files are not included.
        """
        return {
            path: path.read_bytes()
            for path in self.storage.rglob("*")
            if not {".index", ".metadata", ".forwarding"} & set(path.parts)
            and path.name != ".lock"
            and path.is_file()
            and not path.match(".incoming/inbox-*")
        }

    async def echo(self) -> None:
        """Check that another AE's C-ECHO is answered promptly."""
        asked = reactor.seconds()
        async with await self.neighbour.associate("127.0.0.1", self.port) as assoc:
            self.assertTrue((await assoc.send_c_echo()).is_success)
        self.assertLess(reactor.seconds() - asked, PROMPTLY)

    async def all_is_as_before(self, *more: str) -> None:
        """Check that the instances *more* are the only new files, and that the others are unchanged."""
        await self.echo()
        await publish(self.port)
        files = self.files()
        new = sorted(path.name for path in files if path not in self.before)
        self.assertEqual(new, sorted(f"{uid}.dcm" for uid in more))
        self.assertEqual({path: files.get(path) for path in self.before}, self.before)
        self.assertLess(self.memory_of("VmHWM"), self.base + MARGIN)
        self.assertNotIn("Traceback", self.server.text)

    async def hostile(self, data: bytes) -> test_twist_dicom.Silent:
        """Return a connection with an association, on which *data* are sent."""
        peer = await test_twist_dicom.connect(self.port, REQUEST)
        await peer.answered
        assert peer.transport is not None
        peer.transport.write(data)
        return peer

    async def flood(self, peer: test_twist_dicom.Silent, data: bytes, times: int) -> None:
        """Send *data* this many times; the neighbour's echoes are answered meanwhile."""
        for number in range(times):
            cast(Any, peer.transport).write(data)
            if number % 5 == 0:
                await self.echo()


class SharedProcess:
    """
    A server that several tests use, one after the other, since its start costs more than they do. Its output is in a
    file.

    :ivar pid: its process ID.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.port, self.storage = peers.free_port(), folder / "storage"
        self._log = folder / "log"
        self._since = 0
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command(self.port, self.storage)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.pid = self._process.pid

    @property
    def text(self) -> str:
        """Return its output since the beginning of the test."""
        return self._log.read_bytes()[self._since :].decode("utf-8", "replace")

    async def begin(self) -> None:
        """Begin a test."""
        await peers.wait_listening(self.port, timeout=90)
        self._since = self._log.stat().st_size

    async def until(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait for a condition."""
        end = reactor.seconds() + timeout
        while not condition():
            if self._process.poll() is not None or reactor.seconds() > end:
                raise peers.PeerError(f"{timeout} s without {what}, or it ended\n{self.text}")
            await deferLater(reactor, 0.02)

    async def wait_for(self, text: str) -> None:
        """Wait until *text* is in its output."""
        await self.until(lambda: text in self.text, 30, f"the text {text!r}")

    def end(self) -> None:
        """End the server."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Storing(ProcessTestCase):
    """The tests use different UIDs, since all instances are stored in one archive."""

    shared: ClassVar[SharedProcess | None] = None

    async def share(self) -> None:
        """Begin with the shared server."""
        shared = self.shared
        if shared is None:
            # trial has no set-up method for a class.
            shared = type(self).shared = SharedProcess(Path(self.mktemp()).absolute())
            atexit.register(shared.end)
        await shared.begin()
        self.server, self.port, self.storage = shared, shared.port, shared.storage
        await self.note()

    async def test_names_that_climb(self) -> None:
        """Rows 15 to 17 and 22: text of a peer is never a file name, and no shell gets it."""
        await self.share()
        outside = self.outside()
        wrong = [
            "../../x",
            "/etc/x",
            "..",
            "",
            "1." * 150,
            "1.2\0.3",
            "$(touch x)",
            "`touch x`",
            "1.2/../3",
            "1.2.3;ls",
        ]
        async with self.association() as assoc:
            for text in wrong:
                for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
                    encoded = encode_dataset(instance(pixels=100, **{keyword: text}), EXPLICIT)
                    status = await assoc.send_c_store(file_of(encoded))
                    self.assertTrue(status.is_failure, f"{keyword} {text!r}: {status}")
            for text in ("../../x", "$(touch x)", "/etc/x", "..", "%_' OR 1=1--"):
                odd = instance("1.2.3.15", PatientID=text, StudyID=text)
                self.assertEqual(await assoc.send_c_store(file_of(encode_dataset(odd, EXPLICIT), "1.2.3.15")), 0)
            # This client believes the File Meta Information, and puts its UIDs into the command.
            self.patch(outgoing_instance, "identify", lambda meta, data: meta)
            for other in (instance("1.2.3.16"), instance("1.2.3.17", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")):
                status = await assoc.send_c_store(file_of(encode_dataset(other, EXPLICIT), "1.2.3.17"))
                self.assertEqual(status, 0xA900)
        for uid in (*wrong, "\xff\xfe"):
            # The UID is the same in the request and in the data set.
            peer = await self.hostile(store_command(uid) + pdata((3, 2, encode_dataset(instance(uid), EXPLICIT))))
            await self.server.until(lambda: STATUS in peer.received, 30, f"a response to {uid!r}")  # noqa: B023
            at = peer.received.index(STATUS) + len(STATUS)
            self.assertIn(int.from_bytes(peer.received[at : at + 2], "little"), (0xA900, 0xC000), uid)
            cast(Any, peer.transport).abortConnection()
            await peer.closed
        await self.all_is_as_before("1.2.3.15")
        self.assertEqual(self.outside(), outside)

    def outside(self) -> set[Path]:
        """Return the files in the server's directory and around its storage, and at places that paths could have led to."""
        folders = (Path.cwd(), self.storage.parent, self.storage.parent.parent, Path("/etc"))
        return {path for folder in folders for path in folder.iterdir() if path.name in ("x", "x.dcm")}

    async def test_data_sets_that_lie(self) -> None:
        """Rows 18 to 20, 32 and 33."""
        await self.share()

        def deflated(data: bytes) -> bytes:
            packer = zlib.compressobj(1, zlib.DEFLATED, -15)
            return packer.compress(data) + packer.flush()

        front = encode_dataset(instance("1.2.3.5"), EXPLICIT)
        pixels = struct.pack("<HH2s2xL", 0x7FE0, 0x10, b"OB", 1 << 27) + bytes(1 << 27)
        bomb = deflated(front[: front.index(b"\xe0\x7f\x10\x00")] + pixels)
        # These would be stored if nothing stopped them.
        other = encode_dataset(instance("1.2.3.8"), EXPLICIT)
        hidden = deflated(struct.pack("<HH2s2xL", 8, 1, b"UN", 1 << 27) + bytes(1 << 27) + other)
        opening = struct.pack("<HH2s2xL", 8, 0x1140, b"SQ", 0xFFFFFFFF) + struct.pack(
            "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
        )
        closing = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
        at = other.index(struct.pack("<HH", 0x20, 0xD))
        deep, shallow = (other[:at] + opening * depth + closing * depth + other[at:] for depth in (10_000, 10))
        nested = b""
        for _ in range(10_000):
            item = struct.pack("<HHL", 0xFFFE, 0xE000, len(nested)) + nested
            nested = struct.pack("<HH2s2xL", 8, 0x1140, b"SQ", len(item)) + item
        huge = struct.pack("<HH2s2xL", 8, 1, b"UN", 0xFFFFFFFE) + bytes(10)
        async with self.association() as assoc:
            self.assertEqual(await assoc.send_c_store(file_of(bomb, "1.2.3.5", DEFLATED)), 0)
            cases = (
                (hidden, DEFLATED, "inflates to more than"),
                (deep, EXPLICIT, "nested more than"),
                (opening * 10_000, EXPLICIT, "nested more than"),
                (huge, EXPLICIT, ""),
                (b"\0", EXPLICIT, ""),
            )
            for number, (data, syntax, words) in enumerate(cases):
                status = await assoc.send_c_store(file_of(data, "1.2.3.8", syntax))
                self.assertEqual(status, 0xC000)
                (line,) = [line for line in self.server.text.splitlines() if "was not stored" in line][number:]
                self.assertIn(words, line)
                await self.echo()
            self.assertEqual(await assoc.send_c_store(file_of(shallow, "1.2.3.8")), 0)
            at = front.index(struct.pack("<HH", 0x20, 0xD))
            status = await assoc.send_c_store(
                file_of(front[:at].replace(b"1.2.3.5\0", b"1.2.3.6\0") + nested + front[at:], "1.2.3.6")
            )
            self.assertIn(int(status), (0, 0xC000))  # skipped by its length, or refused as out of order
            contradictory = instance("1.2.3.7", Rows=65535, Columns=65535, BitsAllocated=8, NumberOfFrames="2147483647")
            self.assertEqual(
                await assoc.send_c_store(
                    file_of(encode_dataset(contradictory, EXPLICIT), "1.2.3.7", preamble=b"MZ" + b"\x90" * 126)
                ),
                0,
            )
        await publish(self.port)
        stored = self.storage / "1.2.3" / "1.2.3.1"
        self.assertEqual(peers.dataset_bytes(stored / "1.2.3.5.dcm"), bomb + b"\0" * (len(bomb) % 2))
        self.assertEqual((stored / "1.2.3.7.dcm").read_bytes()[:132], bytes(128) + b"DICM")
        (stored / "1.2.3.6.dcm").unlink(missing_ok=True)
        await self.all_is_as_before("1.2.3.5", "1.2.3.7", "1.2.3.8")

    async def test_cut_off(self) -> None:
        """
        Row 21: a sender closes in the middle, also when it sends an instance again: no partial file, the old copy intact.
        """
        await self.share()
        data = encode_dataset(instance("1.2.3.99", pixels=3_000_000), EXPLICIT)
        whole = store_command("1.2.3.99") + b"".join(
            pdata((3, 2 if place + 100_000 >= len(data) else 0, data[place : place + 100_000]))
            for place in range(0, len(data), 100_000)
        )
        # In the command set, at its end, in the first write, in a later write, before the last byte.
        begun = len(store_command("1.2.3.99"))
        cuts = [
            (offset, way) for way in ("reset", "close") for offset in (3, 60, begun, 5000, 1_100_000, len(whole) - 1)
        ]
        cuts += [(begun + count * len(pdata((3, 0, bytes(100_000)))), "abort") for count in (0, 1, 12, 29)]
        for offset, way in cuts:
            peer = await self.hostile(whole[:offset] + (b"\7\0\0\0\0\4\0\0\0\0" if way == "abort" else b""))
            assert peer.transport is not None
            if way == "reset":
                cast(Any, peer.transport).abortConnection()
            elif way == "close":
                peer.transport.loseConnection()
            await peer.closed
        # Each association logs a line when it has ended; one of them is that of the start.
        await self.server.until(
            lambda: self.server.text.count("'HOSTILE' at") > len(cuts), 30, "a line for each of the associations"
        )
        async with self.association() as assoc:
            self.assertEqual(
                await assoc.send_c_store(file_of(encode_dataset(instance("1.2.3.25"), EXPLICIT), "1.2.3.25")), 0
            )
        await self.all_is_as_before("1.2.3.25")

    async def test_pieces_of_one_byte(self) -> None:
        """Row 10: each fragment costs no more than its content, and nobody else waits for them."""
        await self.share()
        peer = await self.hostile(store_command())
        began = self.computed()
        await self.flood(peer, pdata(*[(3, 0, b"x")] * 18_000), 20)
        self.assertLess(self.computed() - began, 8)  # 20 us each are more than enough
        cast(Any, peer.transport).abortConnection()
        await peer.closed
        await self.server.wait_for("'HOSTILE' at 127.0.0.1 called 'ANY': nothing asked for")
        await self.all_is_as_before()

    async def test_disk(self) -> None:
        """Row 31: a file cannot grow any more: status 0xA700, nothing of it remains, and smaller instances are stored."""
        await self.share()
        before = resource.prlimit(self.server.pid, resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
        self.addCleanup(resource.prlimit, self.server.pid, resource.RLIMIT_FSIZE, before)
        async with self.association() as assoc:
            large = encode_dataset(instance("1.2.3.35", pixels=5_000_000), EXPLICIT)
            self.assertEqual(await assoc.send_c_store(file_of(large, "1.2.3.35")), 0xA700)
            await self.echo()
            small = encode_dataset(instance("1.2.3.36"), EXPLICIT)
            self.assertEqual(await assoc.send_c_store(file_of(small, "1.2.3.36")), 0)
        await self.all_is_as_before("1.2.3.36")

    async def test_wide_sequences(self) -> None:
        """Row 19: a sequence with many items is stored as well."""
        await self.share()
        wide = instance("1.2.3.45")
        wide.ReferencedImageSequence = Sequence([Dataset() for _ in range(20_000)])
        async with self.association() as assoc:
            self.assertEqual(await assoc.send_c_store(file_of(encode_dataset(wide, EXPLICIT), "1.2.3.45")), 0)
        await self.all_is_as_before("1.2.3.45")


class Exhausted(ProcessTestCase):
    async def test_file_descriptors(self) -> None:
        """
        Row 30: few descriptors are left, then none. New connections are rejected while that is possible, then closed;
        existing ones continue, and everything works again when descriptors are free.
        """
        await self.start("--acse-timeout", "60")
        assoc = await self.ae.associate("127.0.0.1", self.port)
        used = len(os.listdir(f"/proc/{self.server.pid}/fd"))
        limits = resource.prlimit(self.server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.server.pid, resource.RLIMIT_NOFILE, (used + 30, limits[1]))
        some, refused = await self.connections(30 - (used + 30) // 4)
        self.assertEqual(refused, 0)
        told = await test_twist_dicom.connect(self.port, REQUEST)
        await told.answered
        self.assertEqual(told.received, b"\3\0\0\0\0\4\0\2\3\2")
        await self.server.wait_for("file descriptors run out")
        status = await assoc.send_c_store(file_of(encode_dataset(instance("1.2.3.5"), EXPLICIT), "1.2.3.5"))
        self.assertTrue(status.is_success)
        silent, refused = await self.connections(60)
        await self.first(silent, 60 - 30 - refused)
        status = await assoc.send_c_store(file_of(encode_dataset(instance("1.2.3.6"), EXPLICIT), "1.2.3.6"))
        self.assertIn(status, (0, 0xA700))
        await self.close(*some, told, *silent)
        await self.server.wait_for("file descriptors are free again")
        more = ["1.2.3.6"] if status.is_success else []
        await self.all_is_as_before("1.2.3.5", *more)
        self.assertEqual(self.server.text.count("file descriptors run out"), 1)
        resource.prlimit(self.server.pid, resource.RLIMIT_NOFILE, limits)
        await assoc.release()
        await self.all_is_as_before("1.2.3.5", *more)

    async def connections(self, count: int) -> tuple[list[test_twist_dicom.Silent], int]:
        """
        Connect *count* times; return the connections, and the number of those that were reset before they were established.
        """
        results = await DeferredList(
            [test_twist_dicom.connect(self.port, b"") for _ in range(count)], consumeErrors=True
        )
        silent = [result for success, result in results if success]
        return silent, count - len(silent)

    async def first(self, silent: list[test_twist_dicom.Silent], count: int) -> None:
        """Wait until *count* of them are closed."""
        enough: Deferred[None] = Deferred()
        left = count

        def one(result: bytes) -> bytes:
            nonlocal left
            left -= 1
            if left == 0:
                enough.callback(None)
            return result

        for peer in silent:
            peer.closed.addCallback(one)
        if count > 0:
            await enough.addTimeout(60, reactor)

    async def close(self, *silent: test_twist_dicom.Silent) -> None:
        """Close the connections."""
        for peer in silent:
            if not peer.closed.called:
                cast(Any, peer.transport).abortConnection()
        await gatherResults([peer.closed for peer in silent])

    async def test_a_data_set_that_never_ends(self) -> None:
        """Row 9: a data set above the maximum length of an object."""
        limit = 1_500_000  # long enough for the archive to begin a file
        await self.start("--max-object-size", str(limit), "--acse-timeout", "2")
        some = pdata(*[(3, 0, bytes(1000))] * 100)
        peer = await self.hostile(store_command())
        await self.flood(peer, some, limit // 100_000 + 1)
        self.assertEqual((await peer.closed)[-10:], b"\7\0\0\0\0\4\0\0\2\6")
        await self.server.wait_for(f"a data set of more than {limit} bytes")
        await self.all_is_as_before()

    async def test_too_many_connections(self) -> None:
        """Row 30: connections beyond the limit are rejected, and the next ones are closed at once."""
        await self.start("--max-connections", "20", "--max-connections-per-peer", "10", "--acse-timeout", "60")
        silent, refused = await self.connections(10)
        self.assertEqual(refused, 0)
        peer = await test_twist_dicom.connect(self.port, REQUEST)
        await peer.answered
        self.assertEqual(peer.received, b"\3\0\0\0\0\4\0\2\3\2")
        more, refused = await self.connections(100)
        await self.first(more, 100 - (MAX_SURPLUS - 1) - refused)  # one of those that are open was rejected
        await self.close(*silent, peer, *more)
        await self.server.wait_for("connections are accepted again")
        await self.all_is_as_before()


class Killed(ProcessTestCase):
    async def test_in_a_load(self) -> None:
        """Row 36: after a restart each acknowledged instance is there and complete; all others are complete or absent."""
        await self.start()
        encoded = {f"1.2.3.4.{number}": b"" for number in range(60)}
        for number, uid in enumerate(encoded):
            # Every tenth is written to its file in parts.
            encoded[uid] = encode_dataset(instance(uid, pixels=1_500_000 if number % 10 == 9 else 1000), EXPLICIT)
        answered: list[str] = []

        async def send(uids: list[str]) -> None:
            assoc = await self.ae.associate("127.0.0.1", self.port)
            try:
                for uid in uids:
                    if (await assoc.send_c_store(file_of(encoded[uid], uid))).is_success:
                        answered.append(uid)
                    if len(answered) == 25:
                        os.kill(self.server.pid, signal.SIGKILL)
            except AssociationError:
                pass
            await assoc.when_ended()

        uids = list(encoded)
        await gatherResults([Deferred.fromCoroutine(send(uids[start::4])) for start in range(4)])
        assert isinstance(self.server, peers.Process)
        await self.server.wait(30)
        self.assertGreaterEqual(len(answered), 25)
        self.assertLess(len(answered), len(uids))
        await self.run_server()
        await self.echo()
        found = {path.stem: path for path in self.files()}
        self.assertEqual({path.suffix for path in found.values()}, {".dcm"})
        self.assertEqual(await self.queried(), set(found))
        self.assertLessEqual(set(answered), set(found))
        for uid in set(found) & set(uids):
            self.assertEqual(peers.dataset_bytes(found[uid]), encoded[uid])

    async def queried(self) -> set[str]:
        """Return the SOP Instance UIDs that a C-FIND finds."""
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "IMAGE"
        identifier.StudyInstanceUID, identifier.SeriesInstanceUID = "1.2.3", "1.2.3.1"
        identifier.SOPInstanceUID = ""
        ae = AE("ASKING")
        ae.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
        async with await ae.associate("127.0.0.1", self.port) as assoc:
            found = await assoc.send_c_find(identifier, StudyRootQueryRetrieveInformationModelFind).collect()
        return {str(answer.SOPInstanceUID) for answer in found}
