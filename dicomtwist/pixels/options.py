"""
How images are rendered: options that the server sends to a child process. Imports no codec.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any, Final, NamedTuple

from dicomtwist.pixels.errors import InvalidView

__all__ = ["LINEAR", "LINEAR_EXACT", "MEDIA_TYPES", "QUALITY", "SIGMOID", "RenderOptions", "View", "Window"]

#: The media types of rendered images.
MEDIA_TYPES: Final = ("image/jpeg", "image/png", "image/gif")
#: The quality of a JPEG image that is not asked for another one, from 1 to 100.
QUALITY: Final = 90

#: The VOI LUT Functions.
LINEAR: Final = "LINEAR"
LINEAR_EXACT: Final = "LINEAR_EXACT"
SIGMOID: Final = "SIGMOID"


class Window(NamedTuple):
    """
    A window of values that is displayed (PS3.3 C.11.2.1.2).

    :ivar center: Window Center.
    :ivar width: Window Width.
    :ivar function: VOI LUT Function.
    """

    center: float
    width: float
    function: str = LINEAR

    @property
    def is_valid(self) -> bool:
        """Whether the function is defined for this width."""
        if not (isfinite(self.center) and isfinite(self.width)):
            return False
        return self.width >= 1 if self.function == LINEAR else self.width > 0


@dataclass(frozen=True, slots=True)
class View:
    """
    The size of a rendered image, and the region of the source image in it.

    :ivar width: the greatest width of the result in pixels; ``None`` if the height alone bounds it.
    :ivar height: its greatest height.
    :ivar left: the first column of the region, in pixels of the source image.
    :ivar top: its first row.
    :ivar region_width: its width; ``None`` for the rest of the image.
    :ivar region_height: its height.
    :ivar flip_horizontally: whether it is mirrored from left to right.
    :ivar flip_vertically: whether it is mirrored from top to bottom.
    :ivar fractions: the region as fractions of width and height: left, top, right, bottom.
    :ivar enlarge: whether a smaller image is enlarged.
    """

    width: int | None = None
    height: int | None = None
    left: float = 0.0
    top: float = 0.0
    region_width: float | None = None
    region_height: float | None = None
    flip_horizontally: bool = False
    flip_vertically: bool = False
    fractions: tuple[float, float, float, float] | None = None
    enlarge: bool = True

    def region(self, rows: int, columns: int) -> tuple[int, int, int, int]:
        """
        Return the region of an image: left, top, right, bottom, in pixels.

        :raises InvalidView: it is outside of the image.
        """
        if self.fractions is not None:
            left, top, right, bottom = self.fractions
            return (
                min(int(left * columns), columns - 1),
                min(int(top * rows), rows - 1),
                max(min(round(right * columns), columns), int(left * columns) + 1),
                max(min(round(bottom * rows), rows), int(top * rows) + 1),
            )
        left, top = int(self.left), int(self.top)
        if left >= columns or top >= rows:
            raise InvalidView("the region is outside of the image")
        right = columns if self.region_width is None else min(columns, round(self.left + self.region_width))
        bottom = rows if self.region_height is None else min(rows, round(self.top + self.region_height))
        return left, top, max(right, left + 1), max(bottom, top + 1)


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """
    How an image is rendered.

    :ivar media_type: one of :data:`MEDIA_TYPES`.
    :ivar view: its size and region; ``None`` for all pixels as they are.
    :ivar window: the VOI window; ``None`` for that of the data set.
    :ivar quality: the quality of JPEG from 1 to 100; ``None`` for :data:`QUALITY`.
    :ivar animated: whether a GIF has all frames.
    """

    media_type: str = "image/jpeg"
    view: View | None = None
    window: Window | None = None
    quality: int | None = None
    animated: bool = False

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RenderOptions:
        """Return the options that the server sent to this process."""
        view, window = value.pop("view", None), value.pop("window", None)
        if view is not None:
            fractions = view.pop("fractions", None)
            view = View(**view, fractions=None if fractions is None else tuple(fractions))
        return cls(**value, view=view, window=None if window is None else Window(*window))
