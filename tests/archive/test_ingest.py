"""Ingest: the way of an instance from the wire to the disk, and the statuses of its failures."""

from __future__ import annotations

import errno
import os
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from dicomtwist import AE, AssociationError, evt
from dicomtwist.archive import ingest as receiver
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.ingest import MAX_UNWRITTEN, WRITE_SIZE, Ingest
from dicomtwist.archive.recovery import reconcile
from dicomtwist.archive.services.storage import StorageService, status_for
from dicomtwist.archive.storage.system_calls import FileSystem
from dicomtwist.archive.storage.types import Durability
from dicomtwist.datasets import encode_dataset
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta
from dicomtwist.runtime.executors import Executors
from tests import peers

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def instance(pixels: int = 1000, **elements: object) -> Dataset:
    """A made-up instance with *pixels* bytes of pixel data."""
    dataset = Dataset()
    dataset.SOPClassUID = SECONDARY_CAPTURE
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.StudyInstanceUID = "1.2.3"
    dataset.SeriesInstanceUID = "1.2.3.1"
    dataset.PatientID = "P"
    dataset.add_new(0x7FE00010, "OB", bytes(pixels))
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


class Failing(FileSystem):
    """A file system on which one call fails, from its n-th time on."""

    def __init__(self, call: str, code: int, after: int = 0) -> None:
        self.call, self.code, self.after = call, code, after
        self.broken = True

    def _maybe(self, call: str) -> None:
        if self.broken and call == self.call:
            if self.after:
                self.after -= 1
            else:
                raise OSError(self.code, os.strerror(self.code))

    def open(self, path, flags, mode=0o777):
        self._maybe("open")
        return super().open(path, flags, mode)

    def writev(self, fd, buffers):
        self._maybe("writev")
        return super().writev(fd, buffers)

    def fsync(self, fd):
        self._maybe("fsync")
        super().fsync(fd)

    def rename(self, source, target):
        self._maybe("rename")
        super().rename(source, target)

    def name(self, fd, target):
        self._maybe("name")
        super().name(fd, target)

    def mkdir(self, path, mode=0o777):
        self._maybe("mkdir")
        super().mkdir(path, mode)


class Unhurried:
    """A flow that nothing pauses."""

    def pause(self) -> None:
        """The data set is here already."""

    def resume(self) -> None:
        """Likewise."""


class ReceiverCase(TestCase):
    """A server on loopback that stores on a real disk."""

    timeout = 60

    async def start(self, file_system: FileSystem | None = None, durability: Durability = Durability.FULL) -> None:
        """Start a server with a storage of its own."""
        self.folder = Path(self.mktemp())
        self.archive = Archive(self.folder, durability=durability, file_system=file_system)
        self.archive.open()
        self.executor = Executors(reactor).receiving
        self.executor.acquire()
        self.receiver = Ingest(self.archive, self.executor)
        ae = AE("SCP")
        ae.settings.promiscuous = True
        ae.add_supported_context("1.2.840.10008.1.1")
        self.server = await ae.start_server(
            ("127.0.0.1", 0), evt_handlers=[(evt.EVT_C_STORE, StorageService(self.receiver).handle_store)]
        )
        self.scu = AE("SCU")
        self.scu.add_requested_context(SECONDARY_CAPTURE, [ExplicitVRLittleEndian])
        self.scu.add_requested_context(SECONDARY_CAPTURE, [DeflatedExplicitVRLittleEndian])

        archive, executor, server, receiver = self.archive, self.executor, self.server, self.receiver

        def stop() -> Deferred[None]:
            receiver.stop()
            executor.release()
            archive.close()
            return server.shutdown()

        self.addCleanup(stop)

    def turn(self) -> Deferred[None]:
        """Run one iteration of the reactor."""
        done: Deferred[None] = Deferred()
        reactor.callLater(0, done.callback, None)
        return done

    def files(self) -> list[Path]:
        """All files of the storage."""
        files = (path for path in self.folder.rglob("*") if path.is_file() and path.name != ".lock")
        return sorted(path for path in files if ".index" not in path.parts)

    def associate(self):
        """An association with the server."""
        return self.scu.associate("127.0.0.1", self.server.port)


class Receiver(ReceiverCase):
    """Receiving a single instance."""

    async def test_small_and_large(self) -> None:
        """Small and large instances are stored with the bytes that were sent."""
        await self.start()
        async with await self.associate() as assoc:
            for number, size in enumerate((0, 1, 1000, WRITE_SIZE - 500, WRITE_SIZE + 2, 7 * WRITE_SIZE + 4)):
                dataset = instance(size + size % 2, SOPInstanceUID=f"1.2.3.4.{number}")
                self.assertEqual(await assoc.send_c_store(dataset), 0)
                path = self.folder / "1.2.3" / "1.2.3.1" / f"1.2.3.4.{number}.dcm"
                self.assertEqual(peers.dataset_bytes(path), encode_dataset(dataset, ExplicitVRLittleEndian))
                self.assertEqual(dcmread(path).file_meta.MediaStorageSOPInstanceUID, f"1.2.3.4.{number}")
        self.assertEqual(len(self.files()), 6)

    async def test_deflated(self) -> None:
        """A deflated data set is stored unchanged, and its UIDs are found."""
        await self.start()
        self.scu.requested_contexts = self.scu.requested_contexts[1:]
        async with await self.associate() as assoc:
            self.assertEqual(await assoc.send_c_store(instance(100_000)), 0)
        (path,) = self.files()
        self.assertEqual(dcmread(path).file_meta.TransferSyntaxUID, DeflatedExplicitVRLittleEndian)
        self.assertEqual(dcmread(path).PixelData, bytes(100_000))

    async def test_what_cannot_be_stored(self) -> None:
        """Missing and different UIDs, and UIDs that leave the folder: a failure that says why, and nothing on the disk."""
        await self.start()
        async with await self.associate() as assoc:
            for size in (1000, 3 * WRITE_SIZE):
                for elements, code, words in (
                    ({"StudyInstanceUID": None}, 0xA900, "Study Instance UID"),
                    ({"SeriesInstanceUID": ""}, 0xA900, "Series Instance UID"),
                    ({"StudyInstanceUID": "1.2.x"}, 0xC000, "UID"),
                ):
                    dataset = instance(size)
                    for keyword, value in elements.items():
                        if value is None:
                            delattr(dataset, keyword)
                        else:
                            dataset[keyword]._value = value
                    status = await assoc.send_c_store(dataset)
                    self.assertEqual(status, code)
                    self.assertIn(words, status.error_comment)
            self.assertEqual(await assoc.send_c_store(instance()), 0, "the association lives on")
        self.assertEqual(len(self.files()), 1)

    async def send(self, assoc: Any, data: bytes, number: int = 1) -> Any:
        """Send a data set as it is, as the instance *number*."""
        meta = FileMeta(SECONDARY_CAPTURE, f"1.2.3.4.{number}", str(ExplicitVRLittleEndian), "1.2.3")
        file = BytesIO(encode_preamble_and_meta(meta) + data)
        return await assoc.send_c_store(file)

    async def test_unusual_data_sets(self) -> None:
        """Unusual data sets that can be read are stored, indexed, and indexed again if the index is lost."""
        await self.start()
        parts = {element.tag: b"" for element in instance(0)}
        for element in instance(0):
            one = Dataset()
            one.add(element)
            parts[element.tag] = encode_dataset(one, ExplicitVRLittleEndian)
        whole = b"".join(parts.values())
        pixels = b"\xe0\x7f\x10\x00OW\0\0\x00\x20\x00\0" + bytes(0x2000)
        large = b"\xe0\x7f\x10\x00OW\0\0\x00\x00\x20\0" + bytes(0x200000)
        odd = b"".join(
            bytes((9, 0, at, 0x10)) + vr + b"\x04\x00abcd"
            for at, vr in enumerate((b"??", b"--", b"  ", b"un", b"ZZ"), 1)
        )
        comment = b"\x10\x00\x20\x00LO\x04\x00"  # Patient ID
        sent = {
            1: odd + whole,
            2: b"".join(reversed(parts.values())),
            3: pixels + whole,
            4: large + whole,
            5: comment + b"AAAA" + comment + b"BBBB" + whole,
            6: comment + b"AAAA" + whole + odd,
        }
        async with await self.associate() as assoc:
            for number, data in sent.items():
                uid = parts[Tag(0x00080018)]
                renamed = data.replace(uid, b"\x08\x00\x18\x00UI\x0a\x00" + f"1.2.3.4.{number}\0".encode(), 1)
                status = await self.send(assoc, renamed, number)
                self.assertEqual((number, int(status)), (number, 0), status.error_comment)
                path = self.folder / "1.2.3" / "1.2.3.1" / f"1.2.3.4.{number}.dcm"
                self.assertEqual(peers.dataset_bytes(path), renamed)
        uids = {(study, series, uid) for study, series, found in self.archive.index.files() for uid in found}
        self.assertEqual(len(uids), len(sent))
        self.archive.index.remove(uids)
        self.assertEqual(reconcile(self.archive).indexed, len(sent))

    async def test_what_cannot_be_filed_is_refused_with_the_reason(self) -> None:
        await self.start()
        whole = encode_dataset(instance(0), ExplicitVRLittleEndian)
        uid = b"\x20\x00\x0d\x00UI\x06\x001.2.4\0"
        for padding in (b"", b"\xe0\x7f\x10\x00OW\0\0\x00\x00\x20\0" + bytes(0x200000)):
            async with await self.associate() as assoc:
                for data, code, words in (
                    (uid + whole, 0xC000, "(0020,000D) is in the data set twice"),
                    (whole.replace(b"\x08\x00\x16\x00", b"\x08\x00\x17\x00"), 0xA900, "no SOP Class UID"),
                ):
                    status = await self.send(assoc, data + padding)
                    self.assertEqual(int(status), code, words)
                    self.assertIn(words, status.error_comment)
        self.assertEqual(self.files(), [])

    async def test_file_meta_information_in_a_data_set(self) -> None:
        """
        It is refused: other programs would take it for that of the file, in which the transfer syntax is another one.
        (Our requestor takes it for that of the file as well, so that the data set is brought past it.)
        """
        await self.start()
        meta = b"\x02\x00\x10\x00UI\x12\x001.2.840.10008.1.2\0"
        said = FileMeta(SECONDARY_CAPTURE, "1.2.3.4", str(ExplicitVRLittleEndian), "1.2.3")
        for size in (0, 3 * WRITE_SIZE):
            incoming = self.receiver.begin(said, Unhurried())
            incoming.write(memoryview(meta + encode_dataset(instance(size), ExplicitVRLittleEndian)))
            incoming.finish()
            error = await incoming.result
            assert error is not None
            status = status_for(error)
            self.assertEqual(int(status), 0xC000)
            self.assertIn("begins with File Meta Information", status.error_comment or "")
        self.assertEqual(self.files(), [])

    async def test_a_file_with_two_kinds_of_file_meta_information(self) -> None:
        """In files that were stored before, the first one counts: the next start finds the right transfer syntax."""
        await self.start()
        meta = b"\x02\x00\x10\x00UI\x12\x001.2.840.10008.1.2\0"
        said = FileMeta(SECONDARY_CAPTURE, "1.2.3.4", str(ExplicitVRLittleEndian), "1.2.3")
        data = encode_dataset(instance(10), ExplicitVRLittleEndian)
        path = self.folder / "1.2.3" / "1.2.3.1" / "1.2.3.4.dcm"
        path.parent.mkdir(parents=True)
        path.write_bytes(encode_preamble_and_meta(said) + meta + data)
        found = reconcile(self.archive)
        self.assertEqual((found.indexed, found.unreadable), (1, 0))
        (indexed,) = self.archive.index.find_instances(["1.2.3.4"])
        self.assertEqual(indexed.transfer_syntax, ExplicitVRLittleEndian)

    async def test_a_failing_disk(self) -> None:
        """ENOSPC, EIO, EROFS at each step: 0xA700, nothing left, and the next one is stored once there is room."""
        for size in (1000, 3 * WRITE_SIZE):
            for call in ("open", "writev", "fsync", "name", "mkdir"):
                for code in (errno.ENOSPC, errno.EIO, errno.EROFS):
                    disk = Failing(call, code)
                    disk.broken = False
                    await self.start(disk)
                    disk.broken = True
                    async with await self.associate() as assoc:
                        status = await assoc.send_c_store(instance(size))
                        self.assertEqual(status, 0xA700, (call, code))
                        self.assertIn(errno.errorcode[code], status.error_comment)
                        self.assertEqual(self.files(), [], (call, code))
                        disk.broken = False
                        self.assertEqual(await assoc.send_c_store(instance(size)), 0)
                    self.assertEqual(len(self.files()), 1)
                    await self.server.shutdown()

    async def test_a_disk_that_fails_in_the_middle(self) -> None:
        """The rest of the instance is received and dropped; the old copy stays."""
        disk = Failing("writev", errno.ENOSPC, after=10**6)
        await self.start(disk)
        async with await self.associate() as assoc:
            self.assertEqual(await assoc.send_c_store(instance(1000)), 0)
            before = [path.read_bytes() for path in self.files()]
            disk.after = 3
            self.assertEqual(await assoc.send_c_store(instance(40 * WRITE_SIZE)), 0xA700)
            self.assertEqual([path.read_bytes() for path in self.files()], before)

    async def test_the_end_comes_before_it_is_known_that_a_write_failed(self) -> None:
        """The last byte arrives before or after a write fails: the instance is refused once, and nothing of it is left."""
        for after in range(6):
            disk = Failing("writev", errno.EIO, after=10**6)
            await self.start(disk)
            async with await self.associate() as assoc:
                for size in (2 * WRITE_SIZE, 2 * WRITE_SIZE + 50, 3 * WRITE_SIZE, 5 * WRITE_SIZE):
                    disk.after = after % 2  # there are at least two writes
                    status = await assoc.send_c_store(instance(size, SOPInstanceUID=f"1.2.3.4.{size}"))
                    self.assertEqual(status, 0xA700)
                    self.assertEqual(self.files(), [])
            await self.server.shutdown()

    async def test_a_peer_that_goes_in_the_middle(self) -> None:
        """Abort and connection loss while an instance arrives: nothing partial is left, and the old copy stays."""
        await self.start()
        async with await self.associate() as assoc:
            self.assertEqual(await assoc.send_c_store(instance(1000)), 0)
        before = [path.read_bytes() for path in self.files()]
        for ending in ("abort", "lose"):
            assoc = await self.associate()
            sending = assoc.send_c_store(instance(60 * WRITE_SIZE))
            (acceptor,) = self.server.active_associations
            while acceptor.bytes_received < 10 * WRITE_SIZE:
                await self.turn()
            if ending == "abort":
                assoc.abort()
            else:
                assoc.protocol.transport.abortConnection()
            await self.assertFailure(sending, AssociationError)
            await gatherResults([assoc.when_ended(), acceptor.when_ended()])
            while len(self.files()) > 1:
                await self.turn()
            self.assertEqual([path.read_bytes() for path in self.files()], before)

    async def test_reading_waits_for_a_slow_disk(self) -> None:
        """The unwritten data is bounded, however fast the peer sends."""
        gate = threading.Event()
        gate.set()

        class Slow(FileSystem):
            """A disk that does not write until the test allows it."""

            def writev(self, fd, buffers):
                gate.wait(30)
                return super().writev(fd, buffers)

        await self.start(Slow(), Durability.NONE)
        gate.clear()
        self.addCleanup(gate.set)
        async with await self.associate() as assoc:
            sending = assoc.send_c_store(instance(64 * WRITE_SIZE))
            (acceptor,) = self.server.active_associations
            while acceptor.protocol.read_paused_since is None:
                await self.turn()
            came = acceptor.bytes_received
            self.assertLess(came, MAX_UNWRITTEN + 2 * WRITE_SIZE)
            gate.set()
            self.assertEqual(await sending, 0)
        (path,) = self.files()
        self.assertGreater(path.stat().st_size, 64 * WRITE_SIZE)

    async def test_two_associations_store_the_same_instance(self) -> None:
        """At the same time: both are acknowledged, and there is one complete file."""
        await self.start()
        assocs = await gatherResults([self.associate() for _ in range(4)])
        sizes = [2 * WRITE_SIZE, 3 * WRITE_SIZE, 1000, 2000]
        statuses = await gatherResults(
            [assoc.send_c_store(instance(size)) for assoc, size in zip(assocs, sizes, strict=True)]
        )
        self.assertEqual(statuses, [0] * 4)
        await gatherResults([assoc.release() for assoc in assocs])
        (path,) = self.files()
        self.assertIn(len(dcmread(path)[0x7FE00010].value), sizes)


class Held(FileSystem):
    """A file system whose first write waits, and which records the calls from then on."""

    def __init__(self, fails_at: int = -1) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[str] = []
        self.fails_at = fails_at
        self._writes = 0

    def hold(self) -> None:
        self.gate.clear()
        self.is_held = False
        self._writes = 0
        self.calls.clear()

    def writev(self, fd, buffers):
        self.is_held = True
        self.gate.wait(30)
        self._writes += 1
        if self._writes - 1 == self.fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.calls.append("write")
        return super().writev(fd, buffers)

    def start_writing(self, fd, offset, length):
        self.calls.append("start")
        super().start_writing(fd, offset, length)

    def fsync(self, fd):
        self.calls.append("sync")
        super().fsync(fd)


class Together(ReceiverCase):
    """Small instances that are completed while another one is written."""

    async def together(self, disk: Held, numbers: list[int], durability: Durability = Durability.FULL) -> list[int]:
        """Send instances with these *numbers*; the first is held until all others are complete. Return the statuses."""
        await self.start(disk, durability)
        self.receiver._max_writers = 1
        assocs = await gatherResults([self.associate() for _ in numbers])
        self.assertEqual(await assocs[0].send_c_store(instance(SOPInstanceUID="1.2.3.4.99")), 0)
        disk.hold()
        self.addCleanup(disk.gate.set)
        sending = []
        for number, assoc in zip(numbers, assocs, strict=True):
            sending.append(assoc.send_c_store(instance(1000 + number, SOPInstanceUID=f"1.2.3.4.{number}")))
            # The first instance is taken alone; the others are completed while it is being written.
            while not disk.is_held or len(self.receiver._whole) < len(sending) - 1:
                await self.turn()
        disk.gate.set()
        statuses = await gatherResults(sending)
        await gatherResults([assoc.release() for assoc in assocs])
        while self.receiver._writers:
            await self.turn()
        return [int(status) for status in statuses]

    async def test_are_on_their_way_before_the_first_is_waited_for(self) -> None:
        disk = Held()
        self.assertEqual(await self.together(disk, [0, 2, 4, 6]), [0] * 4)
        self.assertEqual(disk.calls[:2], ["write", "sync"])
        rest = disk.calls[disk.calls.index("start") - 1 :]
        # Then the names, in one folder.
        self.assertEqual(rest, ["write", "start"] * 3 + ["sync"] * 3 + ["sync"])
        self.assertEqual(len(self.files()), 5)
        for number in (0, 2, 4, 6):
            path = self.folder / "1.2.3" / "1.2.3.1" / f"1.2.3.4.{number}.dcm"
            self.assertEqual(len(dcmread(path)[0x7FE00010].value), 1000 + number)

    async def test_one_that_cannot_be_written(self) -> None:
        """The other instances are stored all the same."""
        for durability in Durability:
            self.assertEqual(await self.together(Held(fails_at=2), [0, 2, 4, 6], durability), [0, 0, 0xA700, 0])
            self.assertEqual(len(self.files()), 4)
            self.assertEqual(self.archive.store.temporary_files.unnamed, 0)

    async def test_one_that_cannot_be_stored(self) -> None:
        await self.together(Held(), [0])
        wrong = instance(SOPInstanceUID="1.2.3.4.7")
        wrong.StudyInstanceUID = ""
        assocs = await gatherResults([self.associate() for _ in range(2)])
        statuses = await gatherResults([
            assocs[0].send_c_store(wrong), assocs[1].send_c_store(instance(SOPInstanceUID="1.2.3.4.8")),
        ])  # fmt: skip
        self.assertEqual(statuses, [0xA900, 0])
        await gatherResults([assoc.release() for assoc in assocs])

    async def test_the_same_instance(self) -> None:
        """All are acknowledged, and there is one file."""
        for durability in Durability:
            self.assertEqual(await self.together(Held(), [0, 2, 2, 2], durability), [0] * 4)
            self.assertEqual(len(self.files()), 3)

    async def test_more_than_are_written_together(self) -> None:
        self.patch(receiver, "BATCH", 3)
        self.assertEqual(await self.together(Held(), list(range(0, 20, 2))), [0] * 10)
        self.assertEqual(len(self.files()), 11)

    async def test_committed_by_another_thread(self) -> None:
        """An import may commit what peers send; the outcome reaches the peer although no work of this object ends then."""
        await self.start()
        keep_all = self.archive.keep_all
        others: list[threading.Thread] = []

        def later(instances, deliver):
            others.append(threading.Thread(target=keep_all, args=(instances, deliver)))

        async with await self.associate() as assoc:
            self.archive.keep_all = later  # type: ignore[method-assign]
            sending = assoc.send_c_store(instance())
            while not others or self.receiver._writers:
                await self.turn()
            others[0].start()
            self.assertEqual(await sending, 0)
        others[0].join()

    async def test_a_mistake_of_ours(self) -> None:
        """No sender waits for ever, and the next instance is stored."""
        await self.start()
        keep_all = self.archive.keep_all

        def wrong(instances, deliver):
            raise RuntimeError("a mistake")

        async with await self.associate() as assoc:
            self.archive.keep_all = wrong  # type: ignore[method-assign]
            self.assertEqual(await assoc.send_c_store(instance()), 0xA700)
            self.archive.keep_all = keep_all  # type: ignore[method-assign]
            self.assertEqual(await assoc.send_c_store(instance()), 0)
