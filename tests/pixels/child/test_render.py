"""Rendered images; pydicom's transformations are the oracle."""

from __future__ import annotations

import unittest
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image as Picture
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from dicomtwist.pixels.child.codecs import FrameFormat
from dicomtwist.pixels.child.grayscale import displayed
from dicomtwist.pixels.child.image import Image, open_image
from dicomtwist.pixels.child.render import render
from dicomtwist.pixels.errors import InvalidView, NoSuchFrame, PixelsTooLarge, UnsupportedPixels
from dicomtwist.pixels.options import QUALITY, RenderOptions, View, Window
from tests.pixels.child.images import images, without_warnings

PNG = RenderOptions("image/png")


def rendered(image: Image, options: RenderOptions = PNG, frame: int = 0) -> Any:
    return np.asarray(Picture.open(BytesIO(render(image, frame, options)))).astype(int)


def opened(name: str = "CT_small.dcm", **changes: object) -> Image:
    dataset = dcmread(str(get_testdata_file(name, download=False)))
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    output = BytesIO()
    dataset.save_as(output)
    return open_image(output.getvalue())


def by_pydicom(dataset: Dataset, array: Any) -> Any:
    """Return a frame with the VOI transformation of pydicom, scaled from the range of its results to 0 to 255."""
    shown = apply_voi_lut(apply_modality_lut(array, dataset), dataset).astype(float)
    if dataset.get("VOILUTSequence"):
        least, greatest = 0.0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:
        bits = dataset.BitsStored
        ends = np.array((-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1))
        least, greatest = ends * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    scaled = (shown - least) / (greatest - least) * 255
    return 255 - scaled if dataset.PhotometricInterpretation == "MONOCHROME1" else scaled


class AsPydicom(unittest.TestCase):
    def test_every_image_with_a_window(self) -> None:
        checked = 0
        with without_warnings():
            for path, image in images():
                dataset = image.dataset
                if image.form.samples > 1 or not ("WindowCenter" in dataset or "VOILUTSequence" in dataset):
                    continue
                try:
                    expected = by_pydicom(dcmread(path), pixel_array(path, index=0))
                except Exception:
                    continue  # pydicom cannot decode it
                with self.subTest(path.name):
                    np.testing.assert_allclose(rendered(image), expected, atol=1)
                    checked += 1
        self.assertGreaterEqual(checked, 5)

    def test_windows(self) -> None:
        for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
            for center, width in ((40, 400), (0.5, 1), (1000, 1), (-500, 3000)):
                for photometric in ("MONOCHROME1", "MONOCHROME2"):
                    with self.subTest(function, center=center, width=width, photometric=photometric):
                        image = opened(
                            WindowCenter=center,
                            WindowWidth=width,
                            VOILUTFunction=function,
                            PhotometricInterpretation=photometric,
                        )
                        expected = by_pydicom(image.dataset, image.decode(0))
                        np.testing.assert_allclose(rendered(image), expected, atol=1)

    def test_a_window_of_the_request_takes_precedence(self) -> None:
        image = opened(WindowCenter=0, WindowWidth=1)
        expected = rendered(opened(WindowCenter=40, WindowWidth=400))
        found = rendered(image, RenderOptions("image/png", window=Window(40, 400)))
        np.testing.assert_array_equal(found, expected)

    def test_tables(self) -> None:
        """A Modality LUT and a VOI LUT, applied one after the other."""
        modality, voi = Dataset(), Dataset()
        modality.LUTDescriptor, modality.LUTData = [2048, 0, 16], [at * 2 for at in range(2048)]
        modality["LUTDescriptor"].VR = modality["LUTData"].VR = "US"
        voi.LUTDescriptor, voi.LUTData = [4096, 0, 16], [at * 16 for at in range(4096)]
        voi["LUTDescriptor"].VR = voi["LUTData"].VR = "US"
        dataset = Dataset()
        dataset.ModalityLUTSequence, dataset.VOILUTSequence = Sequence([modality]), Sequence([voi])
        array = np.array([[0, 1, 100], [2047, 2048, 3000]], np.uint16)
        form = FrameFormat(2, 3, 1, 16, 12, 11, False, "MONOCHROME2")
        expected = apply_voi_lut(apply_modality_lut(array, dataset), dataset) / 65535 * 255
        np.testing.assert_allclose(displayed(array, dataset, form, 0), expected, atol=1)

    def test_colours(self) -> None:
        with without_warnings():
            for name in ("SC_rgb_rle.dcm", "SC_ybr_full_uncompressed.dcm", "SC_ybr_full_422_uncompressed.dcm"):
                path = get_testdata_file(name, download=False)
                if path is None:
                    continue
                with self.subTest(name):
                    np.testing.assert_array_equal(rendered(open_image(str(path))), pixel_array(str(path)))


class Rules(unittest.TestCase):
    def test_no_window(self) -> None:
        """All values are displayed, but padding, which is black."""
        array = np.array([[-2000, 0], [50, 100]], np.int16)
        dataset = Dataset()
        dataset.PixelPaddingValue = -2000
        for photometric, expected in (("MONOCHROME2", [[0, 0], [128, 255]]), ("MONOCHROME1", [[0, 255], [128, 0]])):
            form = FrameFormat(2, 2, 1, 16, 16, 15, True, photometric)
            self.assertEqual(displayed(array, dataset, form, 0).tolist(), expected)

    def test_no_number_of_frames(self) -> None:
        """An image whose Number of Frames is no number from 1 has one frame, as its frames that are not rendered."""
        expected = rendered(opened()).tolist()
        for text in (b"-1", b"0 ", b"1A", b"", b"  ", b"x\\2"):
            raw = RawDataElement(Tag("NumberOfFrames"), "IS", len(text), text, 0, False, True)
            dataset = dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
            dataset._dict[raw.tag] = raw
            output = BytesIO()
            with without_warnings():
                dataset.save_as(output)
                image = open_image(output.getvalue())
                self.assertEqual((image.frames, rendered(image).tolist()), (1, expected), text)

    def test_functional_groups(self) -> None:
        """The window of the frame takes precedence over that of all frames."""

        def group(center: float) -> Dataset:
            item, window = Dataset(), Dataset()
            window.WindowCenter, window.WindowWidth = center, 2
            item.FrameVOILUTSequence = Sequence([window])
            return item

        dataset = Dataset()
        dataset.SharedFunctionalGroupsSequence = Sequence([group(100)])
        dataset.PerFrameFunctionalGroupsSequence = Sequence([Dataset(), group(10)])
        form = FrameFormat(1, 2, 1, 8, 8, 7, False, "MONOCHROME2")
        array = np.array([[50, 150]], np.uint8)
        self.assertEqual(displayed(array, dataset, form, 0).tolist(), [[0, 255]])
        self.assertEqual(displayed(array, dataset, form, 1).tolist(), [[255, 255]])

    def test_floats(self) -> None:
        form = FrameFormat(1, 4, 1, 32, 32, 31, False, "MONOCHROME2", floating=True)
        array = np.array([[0.0, 0.5, 1.0, np.nan]], np.float32)
        self.assertEqual(displayed(array, Dataset(), form, 0).tolist(), [[0, 128, 255, 0]])

    def test_bits_that_are_not_stored(self) -> None:
        form = FrameFormat(1, 3, 1, 16, 12, 11, False, "MONOCHROME2")
        array = np.array([[0xF000, 0x0FFF, 0x1800]], np.uint16)
        self.assertEqual(displayed(array, Dataset(), form, 0).tolist(), [[0, 255, 128]])

    def test_tables_of_a_series_are_shared(self) -> None:
        for kind in (np.int16, np.uint16, np.uint8, np.int8):
            with self.subTest(kind.__name__):
                limits = np.iinfo(kind)
                form = FrameFormat(1, 4, 1, limits.bits, limits.bits, limits.bits - 1, limits.min < 0, "MONOCHROME2")
                array = np.array([[limits.min, 1, 100, limits.max]], kind)
                self.assertEqual(displayed(array, Dataset(), form, 0, Window(51, 101)).tolist(), [[0, 1, 254, 255]])
                few = array[:, 1:3].copy()
                self.assertEqual(displayed(few, Dataset(), form, 0, Window(51, 101)).tolist(), [[1, 254]])


class Encoding(unittest.TestCase):
    def test_jpeg_is_that_of_pillow(self) -> None:
        for name in ("CT_small.dcm", "SC_rgb_rle_2frame.dcm"):
            with self.subTest(name):
                image = open_image(str(get_testdata_file(name, download=False)))
                self.addCleanup(image.close)
                for quality in (None, 1, 100):
                    plain = rendered(image).astype(np.uint8)
                    output = BytesIO()
                    Picture.fromarray(plain).save(output, "JPEG", quality=quality or QUALITY)
                    self.assertEqual(render(image, 0, RenderOptions(quality=quality)), output.getvalue())


class Views(unittest.TestCase):
    def test_sizes(self) -> None:
        image = opened()
        for view, size in (
            (View(64, 64), (64, 64)),
            (View(64, 32), (32, 32)),
            (View(256, None), (256, 256)),
            (View(256, 256, enlarge=False), (128, 128)),
            (View(None, 20, 0, 0, 64, 32), (40, 20)),
            (View(fractions=(0.5, 0.25, 1, 0.5)), (64, 32)),
            (View(None, None, 100, 120, 500, 500), (28, 8)),
        ):
            with self.subTest(view):
                found = rendered(image, RenderOptions("image/png", view=view))
                self.assertEqual(found.shape[::-1], size)

    def test_region(self) -> None:
        image = opened()
        all_of_it = rendered(image)
        for view, expected in (
            (View(None, None, 10, 20, 30, 40), all_of_it[20:60, 10:40]),
            (View(flip_horizontally=True), all_of_it[:, ::-1]),
            (View(flip_vertically=True), all_of_it[::-1]),
        ):
            np.testing.assert_array_equal(rendered(image, RenderOptions("image/png", view=view)), expected)

    def test_pixels_that_are_not_square(self) -> None:
        image = opened(PixelSpacing=[2, 1])
        self.assertEqual(rendered(image).shape, (128, 128))
        self.assertEqual(rendered(image, RenderOptions("image/png", view=View(256, 256))).shape, (256, 128))

    def test_outside(self) -> None:
        image = opened()
        self.assertRaises(InvalidView, render, image, 0, RenderOptions(view=View(10, 10, 128, 0)))
        wide = opened(PixelSpacing=[1, 10])
        self.assertRaises(PixelsTooLarge, render, wide, 0, RenderOptions(view=View(None, 8192)))
        self.assertRaises(NoSuchFrame, render, image, 1, RenderOptions())
        self.assertRaises(UnsupportedPixels, render, image, 0, RenderOptions("image/tiff"))


class Animations(unittest.TestCase):
    def test_all_frames(self) -> None:
        image = open_image(str(get_testdata_file("SC_rgb_rle_2frame.dcm", download=False)))
        self.addCleanup(image.close)
        picture: Any = Picture.open(BytesIO(render(image, 0, RenderOptions("image/gif", animated=True))))
        self.assertEqual(picture.n_frames, 2)
        picture = Picture.open(BytesIO(render(image, 1, RenderOptions("image/gif"))))
        self.assertEqual(picture.n_frames, 1)
