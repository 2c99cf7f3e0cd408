from __future__ import annotations

import unittest
from io import BytesIO

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_file_meta_info
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomtwist.datasets.element_headers import UNDEFINED_LENGTH
from dicomtwist.pixels.child.front import _KEYWORDS, FRONT, read_front
from dicomtwist.pixels.child.image import Image
from tests.pixels.child.images import images, without_warnings


def encoded(dataset: Dataset, syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """Return the data set alone, as it is encoded."""
    output = BytesIO()
    pydicom.dcmwrite(output, dataset, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    return output.getvalue()


def small(**attributes: object) -> Dataset:
    dataset = Dataset()
    dataset.Rows = dataset.Columns = 2
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.add_new("PixelData", "OB", b"abcd")
    return dataset


def with_sequence() -> Dataset:
    """Return an image with sequences and items of undefined length in front of its pixels."""
    inner = Dataset()
    inner.CodeValue = "1"
    inner.is_undefined_length_sequence_item = True
    outer = Dataset()
    outer.PurposeOfReferenceCodeSequence = Sequence([inner])
    outer["PurposeOfReferenceCodeSequence"].is_undefined_length = True
    outer.is_undefined_length_sequence_item = True
    dataset = small(ReferencedImageSequence=Sequence([outer, outer]))
    dataset["ReferencedImageSequence"].is_undefined_length = True
    return dataset


class Reading(unittest.TestCase):
    def test_as_pydicom_reads_it(self) -> None:
        walked = 0
        with without_warnings():
            for path, image in images():
                with self.subTest(path.name):
                    front = read_front(image.read_at(0, FRONT), is_implicit=image.is_implicit)
                    if image.is_big_endian or front is None:
                        continue
                    walked += 1
                    dataset, element = image._read
                    for keyword in _KEYWORDS:
                        self.assertEqual(front.attributes.get(keyword), dataset.get(keyword), keyword)
                    length = None if front.length == UNDEFINED_LENGTH else front.length
                    found = front.tag, front.vr or "", front.offset, length
                    self.assertEqual(found, (element.tag, element.vr, element.offset, element.length))
        self.assertGreater(walked, 30)

    def test_nested_sequences_are_skipped(self) -> None:
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            front = read_front(encoded(with_sequence(), syntax), is_implicit=syntax == ImplicitVRLittleEndian)
            assert front is not None
            self.assertEqual(front.attributes.Rows, 2)
            self.assertEqual((front.tag, front.length), (0x7FE00010, 4))

    def test_equal_attributes_are_shared(self) -> None:
        one, two, other = (
            read_front(encoded(small(PatientName=name, WindowWidth=width)), is_implicit=False)
            for name, width in (("A", "1"), ("B^Long", "1"), ("A", "2"))
        )
        assert one is not None and two is not None and other is not None
        self.assertIs(one.attributes, two.attributes)
        self.assertEqual((one.attributes.WindowWidth, other.attributes.WindowWidth), (1, 2))


class Unusual(unittest.TestCase):
    def test_cut_data_sets(self) -> None:
        for dataset in (small(), with_sequence()):
            for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
                data = encoded(dataset, syntax)
                pixels = data.index(b"\xe0\x7f\x10\0")
                for length in range(pixels + 8):
                    with self.subTest(syntax=syntax.name, length=length):
                        cut = data[:length]
                        self.assertIsNone(read_front(cut, is_implicit=syntax == ImplicitVRLittleEndian))

    def test_what_is_left_to_pydicom(self) -> None:
        lut = Dataset()
        lut.LUTDescriptor, lut.LUTData = [1, 0, 8], [1]
        wanted = small(VOILUTSequence=Sequence([lut]))
        wanted["VOILUTSequence"].is_undefined_length = True
        deep = small()
        for _ in range(12):
            item, deep = deep, small()
            item.is_undefined_length_sequence_item = True
            deep.ReferencedImageSequence = Sequence([item])
            deep["ReferencedImageSequence"].is_undefined_length = True
        data = encoded(small())
        rows = data.index(b"\x28\0\x10\0")
        columns = data.index(b"\x28\0\x11\0")
        for words, odd in {
            "a wanted sequence of undefined length": encoded(wanted),
            "deep nesting": encoded(deep),
            "an unknown VR": data.replace(b"\x28\0\x10\0US", b"\x28\0\x10\0ZZ"),
            "elements out of order": data[:rows] + data[columns : columns + 10] + data[rows : rows + 10],
            "an element twice": data[:rows] + data[rows : rows + 10] + data[rows:],
            "no VRs": encoded(small(), ImplicitVRLittleEndian),
            "nothing": b"",
        }.items():
            with self.subTest(words):
                self.assertIsNone(read_front(odd, is_implicit=False))
        self.assertIsNone(read_front(data, is_implicit=True))

    def test_images_are_opened_all_the_same(self) -> None:
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = UID("1.2.3")
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            head = BytesIO()
            write_file_meta_info(DicomIO(head), meta)
            file = BytesIO(bytes(128) + b"DICM" + head.getvalue() + encoded(small(), syntax))
            image = Image(file)
            self.assertEqual(image.is_implicit, syntax == ImplicitVRLittleEndian)
            self.assertEqual(image.decode(0).tolist(), [[97, 98], [99, 100]])
            self.assertEqual(image.dataset.Rows, 2)
