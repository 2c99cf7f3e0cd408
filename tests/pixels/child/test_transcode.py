"""Data sets in another transfer syntax."""

from __future__ import annotations

import unittest
from io import BytesIO

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.pixels.utils import pixel_array

from dicomtwist.datasets.codec import decode_dataset
from dicomtwist.datasets.element_headers import EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta
from dicomtwist.pixels.child import transcode
from dicomtwist.pixels.child.image import Image, open_image
from dicomtwist.pixels.child.transcode import converted_frames, transcoded
from dicomtwist.pixels.errors import PixelsTooLarge, UnsupportedPixels
from dicomtwist.pixels.syntaxes import (
    COMPRESSED,
    ENCODABLE,
    JPEG_LS_LOSSLESS,
    RLE,
    UNCOMPRESSED,
    can_transcode,
)
from tests.pixels.child.images import images, without_warnings


def whole(image: Image, syntax: str) -> bytes:
    parts = []
    first: int | None = 0
    while first is not None:
        piece = transcoded(image, syntax, first)
        parts.append(piece.data)
        first = piece.next
    return b"".join(parts)


def file_of(data: bytes, syntax: str) -> bytes:
    return encode_preamble_and_meta(FileMeta("1.2", "1.3", syntax, "1.4")) + data


def result_of(name: str, syntax: str = EXPLICIT_LITTLE_ENDIAN) -> tuple[Dataset, Dataset]:
    """Return the data set of a file, and that of its conversion."""
    path = str(get_testdata_file(name, download=False))
    image = open_image(path)
    try:
        return dcmread(path), decode_dataset(whole(image, syntax), syntax)
    finally:
        image.close()


class EveryImage(unittest.TestCase):
    def setUp(self) -> None:
        self.addCleanup(setattr, transcode, "PIECE", transcode.PIECE)
        transcode.PIECE = 100_000  # type: ignore[misc]  # so that multi-frame images take several pieces

    def test_values_are_the_same(self) -> None:
        converted = 0
        with without_warnings():
            for path, image in images():
                for syntax in ENCODABLE:
                    if not can_transcode(image.syntax, syntax) or {image.syntax, syntax} < set(UNCOMPRESSED):
                        continue
                    with self.subTest(path.name, syntax=syntax):
                        try:
                            values = [image.decode(frame) for frame in range(image.frames)]
                        except Exception:
                            continue  # a damaged file
                        try:
                            result = open_image(file_of(whole(image, syntax), syntax))
                        except UnsupportedPixels:
                            self.assertIn(image.form.allocated, (1, 32, 64))
                            continue
                        for frame, expected in enumerate(values):
                            np.testing.assert_array_equal(result.decode(frame), expected)
                        converted += 1
        self.assertGreater(converted, 250)

    def test_pydicom_reads_them(self) -> None:
        read = 0
        with without_warnings():
            for path, image in images():
                if image.syntax not in COMPRESSED:
                    continue
                for syntax in (EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN):
                    with self.subTest(path.name, syntax=syntax):
                        try:
                            expected = pixel_array(path)
                        except Exception:
                            continue  # pydicom cannot decode it
                        found = pixel_array(BytesIO(file_of(whole(image, syntax), syntax)))
                        np.testing.assert_array_equal(found, expected)
                        read += 1
        self.assertGreater(read, 50)


class Attributes(unittest.TestCase):
    def test_all_others_stay(self) -> None:
        before, after = result_of("MR_small_RLE.dcm")
        del before.PixelData, after.PixelData
        self.assertEqual(before, after)

    def test_photometric_interpretation(self) -> None:
        for name, expected in (
            ("SC_rgb_dcmtk_+eb+cy+np.dcm", "RGB"),  # lossy JPEG in YBR_FULL_422
            ("SC_rgb_jpeg_dcmtk.dcm", "RGB"),
            ("SC_rgb_rle.dcm", "RGB"),
            ("SC_rgb_gdcm_KY.dcm", "RGB"),  # JPEG 2000 in YBR_RCT
        ):
            path = get_testdata_file(name, download=False)
            if path is None:
                continue
            with self.subTest(name):
                _, after = result_of(name)
                self.assertEqual((after.PhotometricInterpretation, after.PlanarConfiguration), (expected, 0))

    def test_loss_is_noted(self) -> None:
        _, after = result_of("SC_rgb_jpeg_dcmtk.dcm")
        self.assertEqual(after.LossyImageCompression, "01")
        self.assertEqual(after.LossyImageCompressionMethod, "ISO_10918_1")
        _, after = result_of("JPEG2000.dcm")
        self.assertEqual(after.LossyImageCompression, "01")
        _, after = result_of("MR_small_jp2klossless.dcm")
        self.assertNotEqual(after.get("LossyImageCompression"), "01")

    def test_elements_behind_the_pixels_stay(self) -> None:
        path = str(get_testdata_file("MR_small_RLE.dcm", download=False))
        dataset = dcmread(path)
        dataset.add_new(0xFFFCFFFC, "OB", b"\0" * 6)
        output = BytesIO()
        dataset.save_as(output)
        for syntax in (EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN, JPEG_LS_LOSSLESS):
            result = decode_dataset(whole(open_image(output.getvalue()), syntax), syntax)
            self.assertEqual(result[0xFFFCFFFC].value, b"\0" * 6)


class Limits(unittest.TestCase):
    def test_too_long_without_compression(self) -> None:
        image = open_image(str(get_testdata_file("MR_small_RLE.dcm", download=False)))
        self.addCleanup(image.close)
        image.frames = 1_000_000
        self.assertRaises(PixelsTooLarge, transcoded, image, EXPLICIT_LITTLE_ENDIAN)

    def test_no_encoder(self) -> None:
        image = open_image(str(get_testdata_file("MR_small_RLE.dcm", download=False)))
        self.addCleanup(image.close)
        for syntax in ("1.2.840.10008.1.2.4.50", RLE, "1.2.3"):
            self.assertRaises(UnsupportedPixels, transcoded, image, syntax)

    def test_frames_of_one_piece(self) -> None:
        image = open_image(str(get_testdata_file("SC_rgb_rle_2frame.dcm", download=False)))
        self.addCleanup(image.close)
        first, second = (image.decode(frame).tobytes() for frame in range(2))
        self.assertEqual(converted_frames(image, [1, 0], EXPLICIT_LITTLE_ENDIAN), [second, first])
