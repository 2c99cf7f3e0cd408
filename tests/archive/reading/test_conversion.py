"""dicomtwist.archive.reading.conversion: instances in other uncompressed transfer syntaxes, with long values."""

from __future__ import annotations

import unittest
import zlib
from io import BytesIO
from itertools import product
from struct import pack
from unittest.mock import patch

from pydicom import Dataset
from pydicom.sequence import Sequence

from dicomtwist.archive.reading import conversion
from dicomtwist.archive.reading.content import Content, Extent
from dicomtwist.archive.reading.conversion import LONG, converted
from dicomtwist.archive.reading.stored_file import StoredFile
from dicomtwist.datasets.codec import UNCOMPRESSED, DecodingLimits, decode_dataset, encode_dataset
from dicomtwist.errors import DataSetError, DataSetTooLong
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta, read_file_meta

IMPLICIT, EXPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"


def stored(data: bytes, syntax: str) -> StoredFile:
    """Return the open file of an instance."""
    file = encode_preamble_and_meta(FileMeta("1.2.840.10008.5.1.4.1.1.7", "1.2.3", syntax, "1.2")) + data
    return StoredFile(BytesIO(file), len(file), "a")


def data_set_of(content: Content) -> bytes:
    """Return the data set in a file."""
    data = b"".join(content.pieces())
    return data[read_file_meta(BytesIO(data))[1] :]


def copied(content: Content) -> list[int]:
    """Return the lengths of the values that stay in the file."""
    return [part.length for part in content.parts if isinstance(part, Extent)]


def instance(size: int = 80_000) -> Dataset:
    """Return a data set with long values, and elements around them that depend on each other."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.PatientName = "山田^太郎"
    private = dataset.private_block(0x0009, "SIEMENS CT VA0 COAD", create=True)
    private.add_new(0x10, "UN", bytes(range(256)) * (size // 256))
    private.add_new(0x11, "UN", b"abcd")
    item = Dataset()
    item.TextValue = "é" * 1000
    dataset.ContentSequence = Sequence([item, item])
    dataset.PixelRepresentation = 1
    dataset.SmallestImagePixelValue = -5
    dataset.add_new(0x00420011, "OB", bytes(range(256)) * (size // 256))
    dataset.EncapsulatedDocumentLength = size
    dataset.add_new(0x00660016, "OF", pack("<4f", 1, 2, 3, 4) * (size // 16))
    dataset.add_new(0x00660129, "OL", pack("<4I", 1, 2, 3, 4) * (size // 16))
    dataset.add_new(0x00281201, "OW", pack("<4H", 1, 2, 3, 4) * (size // 8))
    dataset.add_new(0x7FE00009, "OD", pack("<2d", 1, 2) * (size // 16))
    dataset.TextValue = "ü" * size
    return dataset


class Converted(unittest.TestCase):
    def test_long_values_stay_in_the_file(self) -> None:
        """The result is that of pydicom, byte for byte, and long values are not in memory."""
        plain = encode_dataset(instance(), EXPLICIT)
        for source, target in product(map(str, UNCOMPRESSED), repeat=2):
            if source == target:
                continue
            data = encode_dataset(decode_dataset(plain, EXPLICIT), source)
            expected = encode_dataset(decode_dataset(data, source), target)
            with stored(data, source) as file:
                content = converted(file, target)
                self.assertEqual(data_set_of(content), expected, (source, target))
                self.assertEqual(content.length, sum(map(len, content.pieces())))
                self.assertEqual(len(copied(content)), 0 if target == DEFLATED else 7, (source, target))
                if target != DEFLATED:
                    kept = sum(len(part) for part in content.parts if isinstance(part, bytes))
                    self.assertLess(kept, 16_000)

    def test_nothing_long(self) -> None:
        data = encode_dataset(instance(256), IMPLICIT)
        with stored(data, IMPLICIT) as file:
            content = converted(file, EXPLICIT)
        self.assertEqual(data_set_of(content), encode_dataset(decode_dataset(data, IMPLICIT), EXPLICIT))
        self.assertEqual(copied(content), [])

    def test_behind_pixels(self) -> None:
        dataset = instance()
        dataset.Rows = dataset.Columns = 8
        dataset.BitsAllocated = 16
        del dataset[0x7FE00009]
        dataset.add_new(0x7FE00010, "OW", bytes(range(128)))
        dataset.add_new(0xFFFCFFFC, "OB", bytes(LONG + 2))
        data = encode_dataset(dataset, IMPLICIT)
        with stored(data, IMPLICIT) as file:
            content = converted(file, EXPLICIT)
            self.assertEqual(data_set_of(content), encode_dataset(decode_dataset(data, IMPLICIT), EXPLICIT))
            self.assertEqual(copied(content)[-2:], [128, LONG + 2])

    def test_cut_off(self) -> None:
        """A value that is not there as a whole makes no content that ends too early."""
        dataset = Dataset()
        dataset.SOPInstanceUID = "1.2.3"
        dataset.add_new(0x00420011, "OB", bytes(300_000))
        data = encode_dataset(dataset, EXPLICIT)
        for length in (len(data) - 1, len(data) - 200_000, 13):
            with stored(data[:length], EXPLICIT) as file, self.assertRaises(DataSetError):
                converted(file, IMPLICIT)

    def test_not_in_order(self) -> None:
        """Elements that are not in order are converted as pydicom does, or not at all."""
        first = Dataset()
        first.add_new(0x00420011, "OB", bytes(LONG + 2))
        second = Dataset()
        second.SOPInstanceUID = "1.2.3"
        for data in (
            encode_dataset(first, EXPLICIT) + encode_dataset(second, EXPLICIT),
            encode_dataset(first, EXPLICIT) * 2,
        ):
            with stored(data, EXPLICIT) as file:
                try:
                    found = data_set_of(converted(file, IMPLICIT))
                except DataSetError:
                    continue
            self.assertEqual(found, encode_dataset(decode_dataset(data, EXPLICIT), IMPLICIT))

    def test_bounds(self) -> None:
        """Values that are decoded are bounded, in bytes, elements and values; those that are copied are not."""
        many = b"".join(pack("<HHI", 0x0009, number, 0) for number in range(0x1000, 0x1400)) * 3
        dataset = Dataset()
        dataset.ContourData = [1.5] * 3000
        for data in (many, encode_dataset(dataset, IMPLICIT)):
            with (
                stored(data, IMPLICIT) as file,
                patch.object(conversion, "_LIMITS", DecodingLimits(elements=1000, values=1000)),
                self.assertRaises(DataSetTooLong),
            ):
                converted(file, EXPLICIT)
        data = encode_dataset(instance(), IMPLICIT)
        with stored(data, IMPLICIT) as file, patch.object(conversion, "MAX_ELEMENTS", 5000):
            self.assertEqual(len(copied(converted(file, EXPLICIT))), 7)
            with self.assertRaises(DataSetTooLong):
                converted(file, DEFLATED)
        with (
            stored(data, IMPLICIT) as file,
            patch.object(conversion, "MAX_ELEMENTS", 1000),
            self.assertRaises(DataSetTooLong),
        ):
            converted(file, EXPLICIT)

    def test_deflated_bomb(self) -> None:
        """A short file that is long when it is inflated is bounded as others are."""
        dataset = instance(256)
        dataset.add_new(0x00420011, "OB", bytes(10_000_000))
        packer = zlib.compressobj(wbits=-15)
        data = packer.compress(encode_dataset(dataset, EXPLICIT)) + packer.flush()
        with stored(data, DEFLATED) as file:
            content = converted(file, IMPLICIT)
            self.assertEqual(copied(content), [10_000_000])
            self.assertEqual(data_set_of(content), encode_dataset(dataset, IMPLICIT))
