"""
Frames rendered for display: in grayscale or colour, cropped, scaled, and encoded as JPEG, PNG or GIF (PS3.18 8.3.5).
Runs in child processes.
"""

from __future__ import annotations

from io import BytesIO
from typing import Final

import imagecodecs
import numpy as np
from PIL import Image as Picture
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut, convert_color_space

from dicomtwist.pixels.child.codecs import Array, FrameFormat, encoding
from dicomtwist.pixels.child.grayscale import displayed, stored_values
from dicomtwist.pixels.child.image import Image
from dicomtwist.pixels.errors import (
    InvalidPixels,
    NoSuchFrame,
    PixelsTooLarge,
    UnsupportedPixels,
)
from dicomtwist.pixels.options import MEDIA_TYPES, QUALITY, RenderOptions, View, Window
from dicomtwist.pixels.syntaxes import JPEG_LOSSY

__all__ = ["render", "rgb"]

#: The most pixels of a rendered image; that of an animation, of all frames together.
MAX_PIXELS: Final = 100_000_000
#: The most frames of an animation; the others are left out.
MAX_ANIMATED: Final = 1000
#: The time of a frame of an animation whose data set has none, in milliseconds.
_FRAME_TIME: Final = 100
#: Resampling begins with whole steps, if the image is larger than this many times the result in both directions.
_STEPS: Final = 3


def render(image: Image, frame: int, options: RenderOptions) -> bytes:
    """
    Render one frame; or all frames, as an animation.

    :param image: the image.
    :param frame: the number of the frame, from 0.
    :param options: how it is rendered.
    :returns: the encoded image.
    :raises NoSuchFrame: there are fewer frames.
    :raises InvalidPixels: the frame cannot be decoded.
    :raises InvalidView: the region is outside of it.
    :raises UnsupportedPixels: it cannot be displayed, or the media type is unknown.
    :raises NotEncoded: it cannot be encoded in the media type.
    :raises PixelsTooLarge: the result would have more than :data:`MAX_PIXELS`.
    """
    if options.media_type not in MEDIA_TYPES:
        raise UnsupportedPixels(f"images are not rendered as {options.media_type}")
    if options.animated and options.media_type == "image/gif" and image.count > 1:
        return _animation(image, options)
    if not 0 <= frame < image.count:
        raise NoSuchFrame(f"the image has {image.count} frames")
    if options.media_type == "image/jpeg" and options.view is None:
        shown = _shown(image, frame, options)
        with encoding():
            return _jpeg(shown, options.quality or QUALITY)
    picture = _picture(image, frame, options)
    with encoding():
        return _encoded(picture, options)


def _encoded(picture: Picture.Image, options: RenderOptions) -> bytes:
    output = BytesIO()
    if options.media_type == "image/jpeg":
        picture.save(output, "JPEG", quality=options.quality or QUALITY)
    elif options.media_type == "image/png":
        picture.save(output, "PNG", compress_level=3)
    else:
        picture.save(output, "GIF")
    return output.getvalue()


def _jpeg(shown: Array, quality: int) -> bytes:
    """Return an image as JPEG: the same bytes as Pillow gives, without its copies, which saves a tenth of the time."""
    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(shown), level=quality, subsampling="420"))


def _animation(image: Image, options: RenderOptions) -> bytes:
    first = _picture(image, 0, options)
    count = min(image.count, MAX_ANIMATED, max(1, MAX_PIXELS // (first.width * first.height)))
    time = image.attributes.get("FrameTime")
    rate = image.attributes.get("RecommendedDisplayFrameRate") or image.attributes.get("CineRate")
    try:
        duration = float(time) if time else 1000 / float(rate) if rate else _FRAME_TIME
    except (TypeError, ValueError, ZeroDivisionError):
        duration = _FRAME_TIME
    output = BytesIO()
    # Browsers slow down an animation of less than 20 ms a frame.
    first.save(
        output,
        "GIF",
        save_all=True,
        append_images=(_picture(image, frame, options) for frame in range(1, count)),
        duration=min(max(round(duration), 20), 10_000),
        loop=0,
        optimize=False,
    )
    return output.getvalue()


def _shown(image: Image, frame: int, options: RenderOptions) -> Array:
    """Return the pixels of a frame as they are displayed."""
    array = image.decode(frame)
    return _displayed(array, image, frame, options.window, array)


def _displayed(array: Array, image: Image, frame: int, window: Window | None, whole: Array) -> Array:
    """Return a part of a frame as it is displayed: *array*, of *whole*."""
    return _colours(array, image) if image.form.samples > 1 else _one_sample(array, image, frame, window, whole)


def _picture(image: Image, frame: int, options: RenderOptions) -> Picture.Image:
    """Return a frame as it is displayed, in the region and the size that are asked for."""
    view = options.view
    if view is None:
        return Picture.fromarray(np.ascontiguousarray(_shown(image, frame, options)))
    whole, form = image.decode(frame), image.form
    left, top, right, bottom = view.region(form.rows, form.columns)
    array = whole[top:bottom, left:right]
    size = _fitted(right - left, (bottom - top) * _aspect(image.attributes), view)
    # Fewer values are to be displayed if whole steps are left out first.
    step = min(array.shape[0] // max(size[1], 1), array.shape[1] // max(size[0], 1)) // _STEPS
    if step > 1:
        array = array[::step, ::step]
    shown = _displayed(np.ascontiguousarray(array), image, frame, options.window, whole)
    picture = Picture.fromarray(np.ascontiguousarray(shown))
    if picture.size != size:
        picture = picture.resize(size, Picture.Resampling.BICUBIC, reducing_gap=2.0)
    if view.flip_horizontally:
        picture = picture.transpose(Picture.Transpose.FLIP_LEFT_RIGHT)
    if view.flip_vertically:
        picture = picture.transpose(Picture.Transpose.FLIP_TOP_BOTTOM)
    return picture


def _fitted(width: float, height: float, view: View) -> tuple[int, int]:
    """Return the size of a region of that size, scaled to fit into *view* with its aspect ratio."""
    scales = [bound / length for bound, length in ((view.width, width), (view.height, height)) if bound]
    scale = min(scales, default=1.0)
    if not view.enlarge:
        scale = min(scale, 1.0)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size[0] * size[1] > MAX_PIXELS:
        raise PixelsTooLarge(f"a rendered image of {size[0]} x {size[1]} pixels")
    return size


def _aspect(dataset: Dataset) -> float:
    """Return the height of a pixel divided by its width (PS3.3 C.7.6.3.1.7)."""
    for keyword in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"):
        try:
            vertical, horizontal = (float(value) for value in dataset.get(keyword) or ())
            ratio = vertical / horizontal
        except (TypeError, ValueError, ZeroDivisionError):
            continue
        if 0.05 < ratio < 20:
            return 1.0 if abs(ratio - 1) < 0.01 else ratio
    return 1.0


def _one_sample(array: Array, image: Image, frame: int, window: Window | None, whole: Array) -> Array:
    form = image.form
    if form.photometric == "PALETTE COLOR":
        return _palette(stored_values(array, form), image.dataset)
    return displayed(array, image.attributes, form, frame, window, whole)


def _palette(array: Array, dataset: Dataset) -> Array:
    try:
        # The colours of all values that the frame has: there are fewer than pixels.
        least, greatest = int(array.min()), int(array.max())
        table = apply_color_lut(np.arange(least, greatest + 1, dtype=array.dtype), dataset)
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
    except Exception as error:
        raise InvalidPixels(f"the palette cannot be applied: {error}"[:300]) from error
    if table.dtype.itemsize > 1:
        # Some tables of 16 bits have values of 8 (PS3.3 C.7.6.3.1.5).
        table = table >> 8 if bits > 8 and int(table.max()) > 255 else table
    colours: Array = table.astype(np.uint8)[..., :3]
    return colours[array.astype(np.int64) - least]


def _colours(array: Array, image: Image) -> Array:
    """Return a frame in RGB with 8 bits."""
    form = image.form
    if form.floating or form.signed:
        raise UnsupportedPixels("colours that are not unsigned numbers")
    array = stored_values(array, form)
    if form.stored > 8:
        array = (array >> (form.stored - 8)).astype(np.uint8)
    elif form.stored < 8:
        array = (array.astype(np.uint16) * 255 // ((1 << form.stored) - 1)).astype(np.uint8)
    array = array.astype(np.uint8, copy=False)[..., :3]
    return rgb(array, form, image.syntax)


def rgb(array: Array, form: FrameFormat, syntax: str) -> Array:
    """
    Return decoded values of 8 bits as RGB.

    :param array: the values as :func:`~dicomtwist.pixels.child.codecs.decode_frame` gives them.
    :param syntax: the UID of the transfer syntax that they were decoded from: frames of lossy JPEG are RGB already.
    """
    if syntax in JPEG_LOSSY or not form.photometric.startswith("YBR_") or form.photometric in _TRANSFORMED:
        return array
    if form.photometric == "YBR_PARTIAL_422":
        # Luminance from 16 to 235, chrominance from 16 to 240 (PS3.3 C.7.6.3.1.2).
        spread = (array.astype(np.float32) - (16, 128, 128)) * (255 / 219, 255 / 224, 255 / 224) + (0, 128, 128)
        array = np.clip(np.rint(spread), 0, 255).astype(np.uint8)
    return convert_color_space(np.ascontiguousarray(array), "YBR_FULL", "RGB")


#: The photometric interpretations of JPEG 2000, whose decoder gives RGB.
_TRANSFORMED: Final = frozenset(("YBR_ICT", "YBR_RCT"))
