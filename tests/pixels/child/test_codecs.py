"""Frames decoded and encoded; pydicom is the oracle."""

from __future__ import annotations

import unittest
from dataclasses import replace
from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.pixels.utils import pixel_array

from dicomtwist.pixels.child.codecs import FrameFormat, decode_frame, encode_frame, native_array
from dicomtwist.pixels.child.codestreams import Codestream, read_codestream
from dicomtwist.pixels.child.image import open_image
from dicomtwist.pixels.errors import InvalidPixels, PixelsFailed, PixelsTooLarge, UnsupportedPixels
from dicomtwist.pixels.syntaxes import (
    COMPRESSED,
    ENCODABLE,
    JPEG_LOSSY,
    JPEG_LS_LOSSLESS,
    RLE,
    UNCOMPRESSED,
    can_transcode,
)
from tests.pixels.child.images import images, without_warnings


def form_of(allocated=16, stored=16, signed=False, samples=1, rows=13, columns=7, **others) -> FrameFormat:
    photometric = "MONOCHROME2" if samples == 1 else "RGB"
    return FrameFormat(rows, columns, samples, allocated, stored, stored - 1, signed, photometric, **others)


class AsPydicom(unittest.TestCase):
    def test_every_image(self) -> None:
        """The stored values of all frames are those of pydicom; frames of lossy JPEG are RGB here, as pydicom converts them."""
        checked = 0
        with without_warnings():
            for path, image in images():
                try:
                    expected = pixel_array(path, raw=image.syntax not in JPEG_LOSSY)
                except Exception:
                    continue  # pydicom cannot decode it, with the plugins that are installed
                with self.subTest(path.name):
                    found = [image.decode(frame) for frame in range(image.frames)]
                    np.testing.assert_array_equal(found if image.frames > 1 else found[0], expected)
                    checked += 1
        self.assertGreater(checked, 45)


class Decoding(unittest.TestCase):
    def test_signed_values_of_fewer_bits(self) -> None:
        """A codec gives 12 bits; the sign is extended."""
        form = form_of(stored=12, signed=True)
        array = np.arange(-45, 46, dtype=np.int16).reshape(form.shape)
        data = encode_frame(array, JPEG_LS_LOSSLESS, form)
        np.testing.assert_array_equal(decode_frame(data, JPEG_LS_LOSSLESS, form), array)

    def test_size_of_the_codestream(self) -> None:
        """A codestream that claims another size than the data set is refused before it is decoded."""
        small, large = form_of(), form_of(rows=14)
        for syntax in set(ENCODABLE) - set(UNCOMPRESSED) - {RLE}:
            data = encode_frame(np.zeros(large.shape, large.dtype), syntax, large)
            with self.assertRaisesRegex(InvalidPixels, "14 x 7"):
                decode_frame(data, syntax, small)

    def test_no_decoder(self) -> None:
        self.assertRaises(UnsupportedPixels, decode_frame, b"", "1.2.840.10008.1.2.4.100", form_of())

    @settings(max_examples=50, deadline=None)
    @given(st.sampled_from(COMPRESSED), st.data())
    def test_any_bytes(self, syntax: str, data: st.DataObject) -> None:
        """Damaged frames fail with an error of this package."""
        form = form_of(rows=4, columns=4, allocated=8, stored=8)
        if can_transcode(UNCOMPRESSED[0], syntax) and data.draw(st.booleans()):
            frame = bytearray(encode_frame(np.arange(16, dtype=np.uint8).reshape(4, 4), syntax, form))
            at = data.draw(st.integers(0, len(frame) - 1))
            frame[at] = data.draw(st.integers(0, 255))
            text = bytes(frame[: data.draw(st.integers(at, len(frame)))])
        else:
            text = data.draw(st.binary(max_size=100))
        try:
            self.assertEqual(decode_frame(text, syntax, form).shape, (4, 4))
        except PixelsFailed:
            pass


class Encoding(unittest.TestCase):
    def test_without_loss(self) -> None:
        random = np.random.default_rng(1)
        for allocated, stored, signed, samples in (
            *((8, 8, False, 1), (8, 8, False, 3), (8, 8, True, 1), (8, 7, True, 1), (16, 16, False, 1)),
            *((16, 16, True, 1), (16, 12, False, 1), (16, 12, True, 1), (16, 16, False, 3)),
        ):
            form = form_of(allocated, stored, signed, samples, 61, 53)
            ends = (-(1 << stored - 1), (1 << stored - 1) - 1) if signed else (0, (1 << stored) - 1)
            array = random.integers(*ends, size=form.shape, endpoint=True).astype(form.dtype)
            for syntax in ENCODABLE:
                with self.subTest(form, syntax=syntax):
                    data = encode_frame(array, syntax, form)
                    decoded = native_array(data, form) if syntax in UNCOMPRESSED else decode_frame(data, syntax, form)
                    np.testing.assert_array_equal(decoded, array)
                    self.assertTrue(syntax in UNCOMPRESSED or len(data) % 2 == 0)

    def test_bits_that_are_not_stored(self) -> None:
        """Values keep the bits below those that are stored, and those above: of an overlay, or of padding out of range."""
        random = np.random.default_rng(2)
        for allocated, signed, samples in product((8, 16), (False, True), (1, 3)):
            for stored, high_bit in (
                (allocated - 4, allocated - 5),
                (allocated - 4, allocated - 1),
                (1, allocated - 1),
            ):
                form = replace(form_of(allocated, stored, signed, samples, 17, 15), high_bit=high_bit)
                ends = np.iinfo(form.dtype)
                anything = random.integers(ends.min, ends.max, size=form.shape, endpoint=True).astype(form.dtype)
                unused = allocated - 1 - high_bit
                within = (anything << unused) >> unused
                for padding in (ends.min, ends.max):
                    outside = within.copy()
                    outside.flat[0] = padding
                    for array, syntax in product((anything, within, outside), set(ENCODABLE) - set(UNCOMPRESSED)):
                        with self.subTest(form, syntax=syntax):
                            decoded = decode_frame(encode_frame(array, syntax, form), syntax, form)
                            np.testing.assert_array_equal(decoded, array)

    def test_unsupported(self) -> None:
        form = form_of(32, 32)
        self.assertRaises(UnsupportedPixels, encode_frame, np.zeros(form.shape, form.dtype), RLE, form)


class Forms(unittest.TestCase):
    def test_impossible(self) -> None:
        for error, arguments in (
            (InvalidPixels, {"rows": 0}),
            (InvalidPixels, {"samples": 2}),
            (InvalidPixels, {"stored": 17}),
            (UnsupportedPixels, {"allocated": 12, "stored": 12}),
            (PixelsTooLarge, {"rows": 65535, "columns": 65535}),
        ):
            with self.assertRaises(error):
                form_of(**arguments)

    def test_subsampled(self) -> None:
        form = FrameFormat(1, 4, 3, 8, 8, 7, False, "YBR_FULL_422")
        array = native_array(bytes((1, 2, 10, 20, 3, 4, 30, 40)), form)
        self.assertEqual(array.tolist(), [[[1, 10, 20], [2, 10, 20], [3, 30, 40], [4, 30, 40]]])

    def test_planes(self) -> None:
        form = form_of(8, 8, False, 3, 1, 2, planar=True)
        self.assertEqual(native_array(bytes(range(6)), form).tolist(), [[[0, 2, 4], [1, 3, 5]]])


class Codestreams(unittest.TestCase):
    def test_headers(self) -> None:
        for name, expected in (
            ("SC_rgb_dcmtk_+eb+cr.dcm", Codestream(100, 100, 3, 8, transform=0)),
            ("SC_rgb_jpeg.dcm", Codestream(256, 256, 3, 8)),
            ("JPEG2000.dcm", Codestream(1024, 256, 1, 16, signed=True, irreversible=True)),
            ("MR_small_jpeg_ls_lossless.dcm", Codestream(64, 64, 1, 16)),
        ):
            image = open_image(str(get_testdata_file(name, download=False)))
            self.addCleanup(image.close)
            with self.subTest(name):
                self.assertEqual(read_codestream(image.compressed_frame(0)), expected)

    @given(st.binary(max_size=100))
    def test_any_bytes(self, data: bytes) -> None:
        for start in (b"", b"\xff\xd8", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "):
            read_codestream(start + data)
