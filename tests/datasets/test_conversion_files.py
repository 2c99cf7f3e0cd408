"""dicomtwist.datasets.conversion.files: large files in another uncompressed transfer syntax, without being read as a whole."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Final

from pydicom import Dataset, dcmread
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from dicomtwist.datasets.codec import decode_dataset
from dicomtwist.datasets.conversion import files as file_conversion
from dicomtwist.datasets.conversion.files import convert_file, open_converted
from dicomtwist.datasets.sources import BytesSource, DataSetSource
from dicomtwist.errors import DataSetError, DataSetTooLong
from dicomtwist.runtime.executors import Bounds, Executor
from tests.web.wado.sample import image, part10, test_file

SYNTAXES: Final = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)


class OpenConverted(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.executor = Executor(reactor, "decoding", Bounds(threads=1, max_queued=10))
        self.executor.acquire()
        self.addCleanup(self.executor.release)

    async def taken(self, source: DataSetSource) -> bytes:
        """Return all chunks of a source together; only the last may be odd."""
        found = b""
        is_last = False
        while not is_last:
            chunk = source.read()
            data, is_last = chunk if isinstance(chunk, tuple) else await chunk
            self.assertFalse(len(found) & 1)
            found += bytes(data)
        source.close()
        return found

    def stored(self, dataset: Dataset, syntax: str) -> Path:
        path = Path(self.mktemp())
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        path.write_bytes(part10(dataset))
        return path

    async def test_the_same_as_a_whole(self) -> None:
        self.patch(file_conversion, "WHOLE", 0)
        self.patch(file_conversion, "CHUNK", 512)
        names = ("CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "rtplan.dcm")
        more = [
            self.stored(image(NumberOfFrames=40, FloatPixelData=bytes(range(256)) * 20, PixelData=None), syntax)
            for syntax in SYNTAXES[:2]
        ]
        for path in (*map(test_file, names), *more):
            for target in SYNTAXES:
                expected = decode_dataset(convert_file(path, target), target)
                found = decode_dataset(await self.taken(open_converted(path, target, self.executor)), target)
                self.assertEqual(found, expected, f"{path} to {target}")

    async def test_memory(self) -> None:
        """The pixel data of a large file is not in memory."""
        path = self.stored(image(NumberOfFrames=1 << 20, ImageComments="behind"), ImplicitVRLittleEndian)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        source = open_converted(path, ExplicitVRBigEndian, self.executor)
        count, is_last = 0, False
        while not is_last:
            chunk = source.read()
            data, is_last = chunk if isinstance(chunk, tuple) else await chunk
            count += len(data)
        source.close()
        self.assertGreater(count, 32 << 20)
        self.assertLess(tracemalloc.get_traced_memory()[1], 8 << 20)

    async def test_without_pixel_data(self) -> None:
        """It is converted as a whole, within a limit."""
        dataset = image(EncapsulatedDocument=bytes(5 << 20))
        del dataset.PixelData
        path = self.stored(dataset, ExplicitVRLittleEndian)
        source = open_converted(path, ImplicitVRLittleEndian, self.executor)
        self.assertIsInstance(source, BytesSource)
        self.assertEqual(await self.taken(source), convert_file(path, ImplicitVRLittleEndian))
        self.patch(file_conversion, "MAX_DECODED", 4 << 20)
        self.assertRaises(DataSetTooLong, open_converted, path, ImplicitVRLittleEndian, self.executor)

    async def test_deflated(self) -> None:
        self.patch(file_conversion, "WHOLE", 0)
        path = test_file("image_dfl.dcm")
        for own, target in (
            (path, ExplicitVRLittleEndian),
            (test_file("CT_small.dcm"), DeflatedExplicitVRLittleEndian),
        ):
            found = decode_dataset(await self.taken(open_converted(own, target, self.executor)), target)
            self.assertEqual(found.PixelData, dcmread(own).PixelData)

    async def test_cut_off(self) -> None:
        path = self.stored(image(NumberOfFrames=1 << 18), ImplicitVRLittleEndian)
        content = path.read_bytes()
        path.write_bytes(content[:-100])
        self.assertRaises(DataSetError, open_converted, path, ExplicitVRLittleEndian, self.executor)
        path.write_bytes(content)
        source = open_converted(path, ExplicitVRLittleEndian, self.executor)
        path.write_bytes(content[: 6 << 20])
        with self.assertRaises(DataSetError):
            await self.taken(source)
        source.close()
