"""
Why pixel data could not be decoded, encoded or rendered.
"""

from __future__ import annotations

from typing import Final

from dicomtwist.errors import DataSetError

__all__ = [
    "InvalidPixels",
    "InvalidView",
    "NoSuchFrame",
    "NotEncoded",
    "PixelsCrashed",
    "PixelsFailed",
    "PixelsStopped",
    "PixelsTimeout",
    "PixelsTooLarge",
    "UnsupportedPixels",
    "error_named",
]


class PixelsFailed(DataSetError):
    """Pixel data could not be decoded, encoded or rendered; the text says why. The other errors are derived from it."""


class UnsupportedPixels(PixelsFailed):
    """The instance has no image, or one that no codec here decodes or encodes."""


class NotEncoded(UnsupportedPixels):
    """The codec of the result does not encode the image, which is decoded; another one may."""


class InvalidPixels(PixelsFailed):
    """The pixel data, or the attributes that describe it, are damaged."""


class NoSuchFrame(PixelsFailed):
    """The image has fewer frames."""


class InvalidView(PixelsFailed):
    """The region that is asked for is outside of the image."""


class PixelsTooLarge(PixelsFailed):
    """The image, or the result, is larger than a limit allows, or needs more memory than a process may have."""


class PixelsTimeout(PixelsFailed):
    """The work took too long; its process was ended."""


class PixelsCrashed(PixelsFailed):
    """The process that did the work ended: a codec crashed, or the system ended it."""


class PixelsStopped(PixelsFailed):
    """The processes are stopped or being stopped."""


_KINDS: Final = {
    kind.__name__: kind
    for kind in (PixelsFailed, UnsupportedPixels, NotEncoded, InvalidPixels, InvalidView, NoSuchFrame, PixelsTooLarge)
}


def error_named(name: str, words: str) -> PixelsFailed:
    """
    Return the error that a child process reports.

    :param name: the name of its class.
    :param words: its text.
    """
    return _KINDS.get(name, PixelsFailed)(words)
