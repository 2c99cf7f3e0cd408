"""
Data sets: encoding and decoding against pydicom and DCMTK, sources to send, streams that arrive.
"""

from __future__ import annotations

import io
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from dicomtwist.datasets import (
    CHUNK,
    BytesSource,
    CollectingSink,
    DataSetStream,
    FileSource,
    OutgoingInstance,
    codec,
    convert_file,
    decode_dataset,
    encode_dataset,
    file_meta_dataset,
    open_file_like,
    open_instance,
)
from dicomtwist.errors import DataSetError, DataSetTooLong
from dicomtwist.part10 import FileMeta, NotDicomFile, encode_preamble_and_meta, read_file_meta
from dicomtwist.runtime.executors import Executors
from tests import peers

SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
}
#: dcmconv's names for the same.
DCMCONV = {"implicit": "+ti", "explicit": "+te", "deflated": "+td", "big": "+tb"}


def testdata(name: str) -> str:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return path


def numbers(dataset: Dataset) -> list[tuple[int, str, object]]:
    """Return every element of a data set and of its sequences; values that pydicom keeps as bytes stay bytes."""
    return [(int(e.tag), e.VR, e.value) for e in dataset.iterall() if e.VR != "SQ"]


def data_set_of(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        read_file_meta(file)
        return file.read()


def sample() -> Dataset:
    """Return a data set with a value of every VR whose bytes depend on the byte order, also in a sequence."""
    item = Dataset()
    item.add_new(0x00280106, "US", 513)
    item.add_new(0x00660016, "OF", b"\1\2\3\4\5\6\7\10")
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = "1.2.3"
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = "Müller^Jürgen"
    dataset.add_new(0x00081115, "SQ", [item])
    dataset.add_new(0x00280002, "US", 1)
    dataset.add_new(0x00280100, "US", 16)
    dataset.add_new(0x00280103, "US", 0)
    dataset.add_new(0x00280009, "AT", [0x00181063, 0x00540010])
    dataset.add_new(0x00186020, "SL", [-2, 70000])
    dataset.add_new(0x00189073, "FD", 1.5)
    dataset.add_new(0x00660023, "OW", b"\1\2\3\4")
    dataset.add_new(0x00660022, "OD", bytes(range(16)))
    dataset.add_new(0x00660040, "OL", bytes(range(8)))
    dataset.add_new(0x7FE00001, "OV", bytes(range(24)))
    dataset.add_new(0x7FE00010, "OW", bytes(range(32)))
    return dataset


class CodecTests(SynchronousTestCase):
    """
    encode_dataset and decode_dataset.
    """

    def test_round_trip(self) -> None:
        """
        Encoding in an uncompressed transfer syntax and decoding gives the same data set.
        """
        for name, syntax in SYNTAXES.items():
            decoded = decode_dataset(encode_dataset(sample(), syntax), syntax)
            self.assertEqual(decoded.PatientName, "Müller^Jürgen", name)
            self.assertEqual(decoded[0x00081115].value[0][0x00280106].value, 513, name)
            self.assertEqual(decoded[0x00280009].value, [0x00181063, 0x00540010], name)
            self.assertEqual(decoded[0x00189073].value, 1.5, name)

    def test_as_pydicom_writes(self) -> None:
        """
        The bytes of a file's data set decode to the data set that pydicom reads from the file.
        """
        for name in ("CT_small.dcm", "MR_small.dcm", "rtplan.dcm", "MR_small_bigendian.dcm", "image_dfl.dcm"):
            path = testdata(name)
            dataset = dcmread(path)
            decoded = decode_dataset(data_set_of(path), dataset.file_meta.TransferSyntaxUID)
            self.assertEqual(numbers(decoded), numbers(dataset), name)

    def test_unchanged(self) -> None:
        """
        A data set that is encoded in the syntax that it was read in gives the bytes that were read.
        """
        for name in ("CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm"):
            dataset = dcmread(testdata(name))
            encoded = encode_dataset(dataset, dataset.file_meta.TransferSyntaxUID)
            self.assertEqual(encoded, data_set_of(testdata(name)), name)

    def test_source_is_left_alone(self) -> None:
        """
        Bytes are swapped in a copy.
        """
        dataset = dcmread(testdata("MR_small.dcm"))
        pixels = dataset.PixelData
        encode_dataset(dataset, ExplicitVRBigEndian)
        self.assertEqual(dataset.PixelData, pixels)

    def test_neither_meta_nor_command(self) -> None:
        """
        Elements of the groups 0000 and 0002 are not encoded with a data set.
        """
        dataset = sample()
        dataset.add_new(0x00000900, "US", 0)
        dataset.add_new(0x00020010, "UI", "1.2")
        decoded = decode_dataset(encode_dataset(dataset, ImplicitVRLittleEndian), ImplicitVRLittleEndian)
        self.assertEqual({element.tag.group for element in decoded} & {0, 2}, set())

    def test_cannot_be_encoded(self) -> None:
        """
        A value that cannot be encoded raises an error that names the transfer syntax.
        """
        dataset = Dataset()
        dataset.add_new(0x00280002, "US", 70000)
        error = self.assertRaises(DataSetError, encode_dataset, dataset, ExplicitVRLittleEndian)
        self.assertIn("Explicit VR Little Endian", str(error))

    def test_odd_swap(self) -> None:
        """
        A value of words with an odd number of bytes cannot be swapped.
        """
        raw = encode_dataset(sample(), ExplicitVRLittleEndian)
        dataset = decode_dataset(raw, ExplicitVRLittleEndian)
        dataset[0x7FE00010].value = b"123"
        self.assertRaises(DataSetError, encode_dataset, dataset, ExplicitVRBigEndian)

    def test_deflated_is_even(self) -> None:
        """
        A deflated data set is padded to an even length with one zero (PS3.5 A.5).
        """
        lengths = set()
        for length in range(40):
            dataset = Dataset()
            dataset.PatientID = "".join(chr(65 + (length * i * i) % 26) for i in range(length))
            encoded = encode_dataset(dataset, DeflatedExplicitVRLittleEndian)
            lengths.add(len(encoded) & 1)
            self.assertEqual(decode_dataset(encoded, DeflatedExplicitVRLittleEndian), dataset)
        self.assertEqual(lengths, {0})

    def test_deflate_limit(self) -> None:
        """
        A small data set that inflates beyond the limit is refused, before it is inflated whole.
        """
        self.patch(codec, "MAX_INFLATED", 1000)
        compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        bomb = compressor.compress(bytes(100_000)) + compressor.flush()
        error = self.assertRaises(DataSetError, decode_dataset, bomb, DeflatedExplicitVRLittleEndian)
        self.assertIn("more than 1000 bytes", str(error))

    def test_deflate_at_the_limit(self) -> None:
        """
        The limit itself is allowed.
        """
        plain = encode_dataset(sample(), ExplicitVRLittleEndian)
        self.patch(codec, "MAX_INFLATED", len(plain))
        encoded = encode_dataset(sample(), DeflatedExplicitVRLittleEndian)
        self.assertEqual(decode_dataset(encoded, DeflatedExplicitVRLittleEndian).SOPInstanceUID, "1.2.3")

    def test_deflate_broken(self) -> None:
        """
        Bytes that are not deflated, or are cut off, raise an error.
        """
        encoded = encode_dataset(sample(), DeflatedExplicitVRLittleEndian)
        for broken in (b"\xff" * 20, encoded[: len(encoded) // 2], b""):
            self.assertRaises(DataSetError, decode_dataset, broken, DeflatedExplicitVRLittleEndian)

    def test_cut_off(self) -> None:
        """
        A data set that ends inside an element is an error, in each syntax and wherever the cut is in the last element.
        """
        for name in ("implicit", "explicit", "big"):
            encoded = encode_dataset(sample(), SYNTAXES[name])
            for missing in (1, 2, 31, 32, 33, 36):
                error = self.assertRaises(DataSetError, decode_dataset, encoded[:-missing], SYNTAXES[name])
                self.assertIn(SYNTAXES[name].name, str(error))

    def test_cut_off_at_undefined_length(self) -> None:
        """
        A cut inside a sequence or compressed pixel data of undefined length is an error as well.
        """
        dataset = Dataset()
        item = Dataset()
        item.PatientID = "1234"
        dataset.add_new(0x00081115, "SQ", [item])
        dataset[0x00081115].is_undefined_length = True
        encoded = encode_dataset(dataset, ExplicitVRLittleEndian)
        self.assertEqual(decode_dataset(encoded, ExplicitVRLittleEndian), dataset)
        for end in range(1, len(encoded)):
            self.assertRaises(DataSetError, decode_dataset, encoded[:end], ExplicitVRLittleEndian)
        path = testdata("JPEG-lossy.dcm")
        encoded, syntax = data_set_of(path), dcmread(path).file_meta.TransferSyntaxUID
        self.assertEqual(decode_dataset(encoded, syntax).PixelData, dcmread(path).PixelData)
        for missing in (1, 8, 9, 1000, 9000):
            self.assertRaises(DataSetError, decode_dataset, encoded[:-missing], syntax)

    def test_empty(self) -> None:
        """
        No bytes are a data set without elements.
        """
        self.assertEqual(len(decode_dataset(b"", ImplicitVRLittleEndian)), 0)

    def test_file_meta(self) -> None:
        """
        File Meta Information becomes that of pydicom, without the elements that are absent.
        """
        meta = FileMeta("1.2.3", "1.2.4", "1.2.840.10008.1.2", "1.2.5", "NAME", "SOURCE")
        full = file_meta_dataset(meta)
        self.assertEqual(
            (full.MediaStorageSOPClassUID, full.MediaStorageSOPInstanceUID, full.TransferSyntaxUID),
            ("1.2.3", "1.2.4", ImplicitVRLittleEndian),
        )
        self.assertEqual(
            (full.ImplementationClassUID, full.ImplementationVersionName, full.SourceApplicationEntityTitle),
            ("1.2.5", "NAME", "SOURCE"),
        )
        self.assertEqual(len(file_meta_dataset(FileMeta("1.2.3", "1.2.4", "1.2.840.10008.1.2"))), 3)


class ConversionTests(TestCase):
    """
    Conversion between the uncompressed transfer syntaxes gives the same result as DCMTK's dcmconv.
    """

    async def both(self, path: str | Path, target: str) -> tuple[Dataset, Dataset]:
        """Return the file converted by dcmconv and by dicomtwist."""
        converted = Path(self.mktemp())
        result = await peers.run(peers.dcmtk("dcmconv"), DCMCONV[target], path, converted)
        self.assertEqual(result.code, 0, result.text)
        ours = decode_dataset(convert_file(path, SYNTAXES[target]), SYNTAXES[target])
        return ours, dcmread(converted)

    async def test_files(self) -> None:
        """
        From each syntax to each other, for images with 16 bits and with sequences: all elements have the same values, and
        pixel data has the same bytes.
        """
        names = ("CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "rtplan.dcm")
        for name in names:
            for target in SYNTAXES:
                ours, theirs = await self.both(testdata(name), target)
                ours_numbers = [each for each in numbers(ours) if each[0] & 0xFFFF]  # dcmconv drops group lengths
                self.assertEqual(ours_numbers, numbers(theirs), f"{name} to {target}")

    async def test_every_word_size(self) -> None:
        """
        OW, OF, OL, OD and OV are swapped by the size of their numbers, at the top and in sequences.
        """
        syntax = ExplicitVRLittleEndian
        path = Path(self.mktemp())
        meta = FileMeta("1.2.840.10008.5.1.4.1.1.7", "1.2.3", str(syntax), "1.2.5")
        path.write_bytes(encode_preamble_and_meta(meta) + encode_dataset(sample(), syntax))
        for target in SYNTAXES:
            ours, theirs = await self.both(path, target)
            self.assertEqual(numbers(ours), numbers(theirs), target)

    async def test_there_and_back(self) -> None:
        """
        A conversion to Big Endian and back gives the same bytes.
        """
        dataset = dcmread(testdata("MR_small.dcm"))
        big = decode_dataset(encode_dataset(dataset, ExplicitVRBigEndian), ExplicitVRBigEndian)
        self.assertNotEqual(big.PixelData, dataset.PixelData)
        self.assertEqual(encode_dataset(big, ExplicitVRLittleEndian), encode_dataset(dataset, ExplicitVRLittleEndian))


META = FileMeta("1.2.840.10008.5.1.4.1.1.7", "1.2.3", "1.2.840.10008.1.2.1", "1.2.5")


class Trickle(io.RawIOBase):
    """A file-like object that gives fewer bytes than asked for, and counts the calls of close."""

    def __init__(self, data: bytes, most: int) -> None:
        self._data = io.BytesIO(data)
        self._most = most
        self.closings = 0

    def read(self, count: int = -1) -> bytes:
        return self._data.read(min(count, self._most))

    def close(self) -> None:
        self.closings += 1


class SourceTests(TestCase):
    """
    Sources read a file in threads, ahead of what is sent.
    """

    def setUp(self) -> None:
        self.executor = Executors(reactor).retrieval
        self.executor.acquire()
        self.addCleanup(self.executor.release)

    def file(self, length: int) -> tuple[Path, bytes]:
        """Make a Part 10 file with a data set of *length* random bytes, which no test decodes."""
        data = os.urandom(length)
        path = Path(self.mktemp())
        path.write_bytes(encode_preamble_and_meta(META) + data)
        return path, data

    async def drain(self, opened: OutgoingInstance) -> list[bytes]:
        parts: list[bytes] = []
        last = False
        while not last:
            chunk = opened.source.read()
            if isinstance(chunk, Deferred):
                chunk = await chunk
            data, last = chunk
            parts.append(bytes(data))
        opened.source.close()
        return parts

    def lengths(self) -> Iterator[int]:
        head = len(encode_preamble_and_meta(META))
        for edge in (0, CHUNK - head, 2 * CHUNK - head, 3 * CHUNK):
            yield from (length for length in range(edge - 2, edge + 3) if length >= 0)

    async def test_paths(self) -> None:
        """
        For every length around the size of a chunk the data set arrives complete, in chunks of even length except the last.
        """
        for length in self.lengths():
            path, data = self.file(length)
            opened = await open_instance(path, self.executor)
            self.assertEqual(opened.meta, META)
            parts = await self.drain(opened)
            self.assertEqual(b"".join(parts) == data, True, length)
            self.assertEqual([len(part) & 1 for part in parts[:-1]], [0] * (len(parts) - 1), length)

    async def test_file_like(self) -> None:
        """
        An object with ``read`` gives the same, however few bytes it gives at once. It is read from its current position and
        left open.
        """
        for length in self.lengths():
            path, data = self.file(length)
            for most in (CHUNK, 70_001):
                file = Trickle(b"before" + path.read_bytes(), most)
                file.read(6)
                parts = await self.drain(await open_file_like(file, self.executor))  # type: ignore[arg-type]
                self.assertEqual(b"".join(parts) == data, True, length)
                self.assertEqual([len(part) & 1 for part in parts[:-1]], [0] * (len(parts) - 1), length)
                self.assertEqual(file.closings, 0)

    async def test_what_can_be_opened(self) -> None:
        """
        One function opens paths, bytes, open files and Datasets.
        """
        path, data = self.file(100)
        for instance in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
            opened = await open_instance(instance, self.executor)
            self.assertEqual(opened.meta, META)
            self.assertTrue(opened.is_in(META.transfer_syntax_uid))
            self.assertEqual(await self.drain(opened), [data])
        dataset = Dataset()
        await self.assertFailure(open_instance(dataset, self.executor), DataSetError)
        dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.3", "1.2.4"
        opened = await open_instance(dataset, self.executor)
        self.assertEqual(opened.meta, FileMeta("1.2.3", "1.2.4", ExplicitVRLittleEndian))
        self.assertFalse(opened.is_in(ExplicitVRLittleEndian))
        await opened.convert(ExplicitVRLittleEndian, self.executor)
        self.assertEqual(await self.drain(opened), [encode_dataset(dataset, ExplicitVRLittleEndian)])
        opened.close()
        await self.assertFailure(open_instance(7, self.executor), TypeError)  # type: ignore[arg-type]

    async def test_missing(self) -> None:
        """
        A missing file raises an error, and so does one that is not a Part 10 file.
        """
        await self.assertFailure(open_instance("no-such-file", self.executor), FileNotFoundError)
        path = Path(self.mktemp())
        path.write_bytes(b"text" * 100)
        await self.assertFailure(open_instance(path, self.executor), NotDicomFile)
        await self.assertFailure(open_file_like(io.BytesIO(b""), self.executor), NotDicomFile)

    async def test_closed_after_a_bad_start(self) -> None:
        """
        A file with a wrong beginning is not left open.
        """
        path = Path(self.mktemp())
        path.write_bytes(b"text" * 100)
        await self.assertFailure(open_instance(path, self.executor), NotDicomFile)
        folder = "/proc/self/fd"
        if not os.path.isdir(folder):
            raise SkipTest("no way to see the open files")
        opened = {os.path.realpath(f"{folder}/{number}") for number in os.listdir(folder)}
        self.assertNotIn(str(path.resolve()), opened)

    async def test_truncated_while_reading(self) -> None:
        """
        A file that becomes shorter fails; the error says how much is missing.
        """
        path, _ = self.file(4 * CHUNK)
        opened = await open_instance(path, self.executor)
        os.truncate(path, CHUNK + CHUNK // 2)
        error = await self.assertFailure(Deferred.fromCoroutine(self.drain(opened)), DataSetError)
        self.assertIn("before its size said", str(error))
        opened.source.close()

    async def test_growing_while_reading(self) -> None:
        """
        From a file that grows, only the bytes that it had when it was opened are sent.
        """
        path, data = self.file(2 * CHUNK + 100)
        opened = await open_instance(path, self.executor)
        with open(path, "ab") as file:
            file.write(bytes(5 * CHUNK))
        self.assertEqual(b"".join(await self.drain(opened)) == data, True)

    def source(self, file: Any, left: int | None = 10 * CHUNK) -> FileSource:
        return FileSource(file, self.executor, b"ab", left)

    async def test_closed_once(self) -> None:
        """
        Before the first read, between two, or while one is in progress: the file is closed exactly once, and never while a
        thread reads it.
        """
        for reads in range(4):
            file = Trickle(bytes(10 * CHUNK), CHUNK)
            source = self.source(file)
            for _ in range(reads):
                chunk = source.read()
                if isinstance(chunk, Deferred):
                    await chunk
            source.close()
            source.close()
            while file.closings == 0:
                await self.executor.run(int)
            self.assertEqual(file.closings, 1)

    async def test_closed_while_reading(self) -> None:
        """
        Closing waits for the read that is in progress, and drops its result.
        """
        gate = threading.Event()
        order: list[str] = []

        class Slow:
            def read(self, count: int) -> bytes:
                gate.wait(10)
                order.append("read")
                raise OSError("the disk is gone")

            def close(self) -> None:
                order.append("closed")

        source = self.source(Slow())
        source.read()
        source.close()
        self.assertEqual(order, [])
        gate.set()
        while "closed" not in order:
            await self.executor.run(int)
        self.assertEqual(order, ["read", "closed"])

    async def test_read_error(self) -> None:
        """
        An error of the file fails the read that it belongs to, and the file is closed once.
        """

        class Broken(Trickle):
            def read(self, count: int = -1) -> bytes:
                raise OSError("the disk is gone")

        file = Broken(b"", 1)
        source = self.source(file)
        source.read()
        chunk = source.read()
        assert isinstance(chunk, Deferred)
        await self.assertFailure(chunk, OSError)
        source.close()
        source.close()
        await self.executor.run(int)
        self.assertEqual(file.closings, 1)

    def test_bytes(self) -> None:
        """
        A data set in memory is one chunk, which is there at once.
        """
        source = BytesSource(b"abc")
        self.assertEqual(source.read(), (b"abc", True))
        source.close()


class Pauser:
    """Counts pauses, as a protocol does."""

    def __init__(self) -> None:
        self.paused = 0

    def pause_reading(self) -> None:
        self.paused += 1

    def resume_reading(self) -> None:
        self.paused -= 1


class Sink:
    """Records its calls."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def write(self, data: memoryview) -> None:
        self.calls.append(bytes(data))

    def finish(self) -> None:
        self.calls.append("finish")

    def fail(self, reason: Failure) -> None:
        self.calls.append(reason.value)


LOST = Failure(ConnectionError("lost"))


class StreamTests(SynchronousTestCase):
    """
    DataSetStream: three ways to read, each before, between and after the fragments.
    """

    def setUp(self) -> None:
        self.pauser = Pauser()
        self.stream = DataSetStream(self.pauser)

    def feed(self, *parts: bytes) -> None:
        for part in parts:
            self.stream.feed(memoryview(part))

    async def _iterate(self) -> list[bytes]:
        return [bytes(chunk) async for chunk in self.stream]

    def iterate(self) -> Deferred[list[bytes]]:
        return Deferred.fromCoroutine(self._iterate())

    def test_iterate(self) -> None:
        """
        ``async for`` gives each fragment, whether it arrived before or after the loop began.
        """
        self.feed(b"ab")
        reading = self.iterate()
        self.feed(b"cd")
        self.assertNoResult(reading)
        self.stream.end()
        self.assertEqual(self.successResultOf(reading), [b"ab", b"cd"])
        self.assertEqual(self.stream.received, 4)

    def test_iterate_late(self) -> None:
        """
        A stream that has ended can still be read.
        """
        self.feed(b"ab", b"cd")
        self.stream.end()
        parts: list[bytes] = self.successResultOf(self.iterate())
        self.assertEqual(b"".join(parts), b"abcd")

    def test_read(self) -> None:
        """
        ``read`` gives the whole data set.
        """
        self.feed(b"ab")
        reading = self.stream.read()
        self.feed(b"cd")
        self.stream.end()
        self.assertEqual(self.successResultOf(reading), b"abcd")

    def test_sink(self) -> None:
        """
        A sink gets the fragments that have arrived, those to come, and the end.
        """
        sink = Sink()
        self.feed(b"ab")
        self.stream.deliver_to(sink)
        self.feed(b"cd")
        self.stream.end()
        self.assertEqual(sink.calls, [b"ab", b"cd", "finish"])

    def test_sink_late(self) -> None:
        """
        A sink that is connected after the end, or after a failure, is called as well.
        """
        sink = Sink()
        self.feed(b"ab")
        self.stream.end()
        self.stream.deliver_to(sink)
        self.assertEqual(sink.calls, [b"ab", "finish"])
        self.setUp()
        sink = Sink()
        self.feed(b"ab")
        self.stream.fail(LOST)
        self.stream.deliver_to(sink)
        self.assertEqual(sink.calls, [b"ab", LOST.value])

    def test_one_sink(self) -> None:
        """
        A second reader is an error.
        """
        self.stream.deliver_to(Sink())
        self.assertRaises(RuntimeError, self.stream.deliver_to, Sink())
        self.assertRaises(RuntimeError, self.stream.read)

    def test_fails_before_it_is_read(self) -> None:
        """
        A later reader gets the fragments that arrived, then the failure.
        """
        self.feed(b"ab")
        self.stream.fail(LOST)
        self.assertIs(self.failureResultOf(self.iterate()).value, LOST.value)
        self.setUp()
        self.stream.fail(LOST)
        self.assertIs(self.failureResultOf(self.stream.read()).value, LOST.value)

    def test_fails_while_it_is_read(self) -> None:
        """
        A reader that waits gets the failure, once.
        """
        for read in (self.iterate, lambda: self.stream.read()):
            self.setUp()
            reading: Deferred[Any] = read()
            self.feed(b"ab")
            self.stream.fail(LOST)
            self.stream.fail(Failure(ValueError("later")))
            self.assertIs(self.failureResultOf(reading).value, LOST.value)

    def test_no_failure_after_the_end(self) -> None:
        """
        A data set that is complete stays complete.
        """
        self.feed(b"ab")
        self.stream.end()
        self.stream.fail(LOST)
        self.assertEqual(self.successResultOf(self.stream.read()), b"ab")

    def test_pauses_while_nobody_reads(self) -> None:
        """
        The bytes that wait are bounded: at one chunk the stream pauses reading from the peer, and a reader resumes it.
        """
        half = bytes(CHUNK // 2)
        self.feed(half)
        self.assertEqual(self.pauser.paused, 0)
        self.feed(half, half)
        self.assertEqual(self.pauser.paused, 1)
        reading = self.iterate()
        self.assertEqual(self.pauser.paused, 0)
        self.stream.end()
        self.assertEqual(len(self.successResultOf(reading)), 3)

    def test_resumed_by_each_way(self) -> None:
        """
        A sink, a read, a discard, the end and a failure resume reading from the peer as well.
        """
        ways: list[Any] = [
            lambda: self.stream.deliver_to(Sink()),
            lambda: self.stream.read(),
            lambda: self.stream.discard(lambda: None),
            lambda: self.stream.end(),
        ]
        for way in ways:
            self.setUp()
            self.feed(bytes(CHUNK))
            self.assertEqual(self.pauser.paused, 1)
            way()
            self.assertEqual(self.pauser.paused, 0)

    def test_nothing_to_resume_after_a_failure(self) -> None:
        """
        After a failure the connection has ended, and is not resumed.
        """
        self.feed(bytes(CHUNK))
        self.stream.fail(LOST)
        self.stream.deliver_to(Sink())
        self.assertEqual(self.pauser.paused, 1)

    def test_sink_pauses(self) -> None:
        """
        A sink pauses and resumes; a second call has no effect.
        """
        self.stream.deliver_to(Sink())
        self.stream.pause()
        self.stream.pause()
        self.assertEqual(self.pauser.paused, 1)
        self.stream.resume()
        self.stream.resume()
        self.assertEqual(self.pauser.paused, 0)
        self.stream.end()
        self.stream.pause()
        self.assertEqual(self.pauser.paused, 0)

    def test_discard(self) -> None:
        """
        The bytes that have arrived and those to come are dropped; the end is reported.
        """
        told: list[str] = []
        self.feed(b"ab")
        self.stream.discard(lambda: told.append("ended"))
        self.feed(b"cd")
        self.assertEqual(told, [])
        self.stream.end()
        self.assertEqual(told, ["ended"])

    def test_discard_after_the_end(self) -> None:
        """
        After the end of the data set, the end is reported at once; after a failure, never.
        """
        told: list[str] = []
        self.stream.end()
        self.stream.discard(lambda: told.append("ended"))
        self.assertEqual(told, ["ended"])
        self.setUp()
        self.stream.fail(LOST)
        self.stream.discard(lambda: told.append("failed"))
        self.assertEqual(told, ["ended"])

    def test_discard_then_failure(self) -> None:
        """
        A failure of a stream that is discarded is not reported.
        """
        told: list[str] = []
        self.stream.discard(lambda: told.append("ended"))
        self.stream.fail(LOST)
        self.assertEqual(told, [])

    def test_discard_takes_it_from_its_reader(self) -> None:
        """
        A sink that has taken a part fails once, and is called no more.
        """
        sink = Sink()
        self.stream.deliver_to(sink)
        self.feed(b"ab")
        self.stream.discard(lambda: None)
        self.feed(b"cd")
        self.stream.end()
        first, told = sink.calls
        self.assertEqual(first, b"ab")
        self.assertIsInstance(told, DataSetError)

    def test_discard_ends_an_iteration(self) -> None:
        """
        A reader that waits for the next fragment gets an error.
        """
        waiting = Deferred.fromCoroutine(self.stream.__anext__())
        self.stream.discard(lambda: None)
        self.failureResultOf(waiting, DataSetError)

    def test_collecting_sink(self) -> None:
        """
        It joins its fragments, and drops them at a failure.
        """
        sink = CollectingSink()
        sink.write(memoryview(b"ab"))
        sink.fail(LOST)
        self.assertIs(self.failureResultOf(sink.done).value, LOST.value)

    def test_collecting_up_to_a_limit(self) -> None:
        """
        A data set of as many bytes as the limit is collected; one more, and the sink says so when the data set has ended.
        """
        for length, kept in ((4, b"abcd"), (5, None), (9, None)):
            sink = CollectingSink(4)
            for byte in b"abcdefghi"[:length]:
                sink.write(memoryview(bytes((byte,))))
            self.assertNoResult(sink.done)
            sink.finish()
            if kept is None:
                error = self.failureResultOf(sink.done, DataSetTooLong).value
                self.assertEqual(str(error), "a data set of more than 4 bytes")
            else:
                self.assertEqual(self.successResultOf(sink.done), kept)
