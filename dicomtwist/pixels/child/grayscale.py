"""
Grayscale images for display: the Modality and VOI transformations to values of 8 bits (PS3.3 C.11.1, C.11.2). Runs in child
processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.multival import MultiValue

from dicomtwist.pixels.child.codecs import Array, FrameFormat
from dicomtwist.pixels.errors import InvalidPixels
from dicomtwist.pixels.options import LINEAR, LINEAR_EXACT, SIGMOID, Window

__all__ = ["apply_window", "displayed", "stored_values"]

Values: TypeAlias = npt.NDArray[np.float64]


def apply_window(values: Values, window: Window) -> Values:
    """Return *values* as fractions from 0 to 1 of what is displayed."""
    center, width = window.center, window.width
    if window.function == SIGMOID:
        # The exponent is bounded, so that it does not overflow.
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if window.function == LINEAR_EXACT:
        return np.clip((values - center) / width + 0.5, 0, 1)
    center -= 0.5
    width -= 1
    if not width:
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)


def displayed(
    array: Array,
    dataset: Dataset,
    form: FrameFormat,
    frame: int,
    window: Window | None = None,
    whole: Array | None = None,
) -> Array:
    """
    Return a frame in grayscale as it is displayed, from 0 for black to 255 for white.

    Pixels with the Pixel Padding Value are black. Without any window, the values of the frame from the least to the greatest
    are displayed.

    :param array: its stored values.
    :param dataset: the data set of the image.
    :param frame: its number, from 0.
    :param window: a window that takes precedence over those of the data set.
    :param whole: the stored values of the whole frame, if *array* is a part of it.
    :raises InvalidPixels: a table of the data set cannot be applied.
    """
    array = stored_values(array, form)
    padding = None if form.floating else _padding(array, dataset)
    try:
        show = _transformation(array if whole is None else stored_values(whole, form), dataset, form, frame, window)
        if form.floating or form.allocated > 16:
            shown = show(array.astype(np.float64))
        else:
            shown = _by_table(array, form, show)
    except (InvalidPixels, MemoryError):
        raise
    except Exception as error:
        raise InvalidPixels(f"the values cannot be displayed: {error}"[:300]) from error
    if padding is not None:
        shown[padding] = 0
    return shown


def stored_values(array: Array, form: FrameFormat) -> Array:
    """Return *array* without the bits that are not stored, which once held overlays (PS3.5 8.1.1)."""
    if form.floating or form.stored == form.allocated or not array.size:
        return array
    if form.signed:
        unused = form.allocated - 1 - form.high_bit
        return (array << unused) >> (unused + form.high_bit + 1 - form.stored)
    shift, mask = form.high_bit + 1 - form.stored, (1 << form.stored) - 1
    if not shift and int(array.max()) <= mask:
        return array
    return (array >> shift) & mask


def _by_table(array: Array, form: FrameFormat, show: Callable[[Values], Array]) -> Array:
    """Return what *show* returns, by a table of all values that the frame may have: there are fewer than pixels."""
    least, greatest = int(array.min()), int(array.max())
    make = _table_of
    if isinstance(show, _Linear):
        # The images of a series have different extremes, and may share a table of somewhat more values.
        limits = np.iinfo(array.dtype)
        least, greatest = max(least & -_STEP, int(limits.min)), min(greatest | (_STEP - 1), int(limits.max))
        make = _show_table
    table = make(show, least, greatest, 1 << max(form.allocated, 8))
    return table.take(array.view(np.dtype(f"u{array.dtype.itemsize}")))


def _table_of(show: Callable[[Values], Array], least: int, greatest: int, length: int) -> Array:
    values = np.arange(least, greatest + 1)
    table = np.zeros(length, np.uint8)
    table[values & (length - 1)] = show(values.astype(np.float64))
    return table


#: The least and the greatest value of a table that is kept are rounded to multiples of it. 4,096 values take 0.05 ms.
_STEP: Final = 4096
#: The tables of the last images: those of a series often have the same, which takes 1 ms for values of 16 bits.
_show_table = lru_cache(maxsize=8)(_table_of)


@dataclass(frozen=True)
class _Linear:
    """
    A function from stored values to values of 8 bits, without a table of the data set. Equal ones return equal values.

    :ivar slope: the Rescale Slope.
    :ivar intercept: the Rescale Intercept.
    :ivar window: the window.
    :ivar inverted: whether low values are white.
    """

    slope: float
    intercept: float
    window: Window
    inverted: bool

    def __call__(self, values: Values) -> Array:
        return _shades(apply_window(values * self.slope + self.intercept, self.window), self.inverted)


def _shades(fractions: Values, inverted: bool) -> Array:
    if inverted:
        fractions = 1 - fractions
    return (np.nan_to_num(fractions, nan=0.0) * 255 + 0.5).astype(np.uint8)


def _transformation(
    whole: Array, dataset: Dataset, form: FrameFormat, frame: int, window: Window | None
) -> Callable[[Values], Array]:
    """
    Return the function from stored values to values of 8 bits.

    :param whole: the whole frame, whose range is displayed if there is no window.
    """
    inverted = form.photometric == "MONOCHROME1"
    modality = _modality(dataset, frame)
    voi = None if window is not None else _voi_table(dataset, frame)
    if voi is None:
        chosen = window if window is not None and window.is_valid else _window(dataset, frame)
        if chosen is None:
            chosen = _whole_range(whole, modality, form, None if form.floating else _padding(whole, dataset))
        if isinstance(modality, _Rescale):
            return _Linear(modality.slope, modality.intercept, chosen, inverted)
        voi = partial(apply_window, window=chosen)
    return lambda values: _shades(voi(modality(values)), inverted)


def _padding(array: Array, dataset: Dataset) -> Array | None:
    """Return which pixels are padding, ``None`` if none is (PS3.3 C.7.5.1.1.2)."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return None
    if isinstance(limit, int):
        found: Array = (array >= min(value, limit)) & (array <= max(value, limit))
    else:
        found = array == value
    return found if found.any() and not found.all() else None


def _whole_range(
    array: Array, modality: Callable[[Values], Values], form: FrameFormat, padding: Array | None
) -> Window:
    """Return a window from the least to the greatest value of a frame."""
    if form.allocated == 1:
        least, greatest = 0.0, 1.0
    else:
        counted = array if padding is None else array[~padding]
        if form.floating:
            counted = counted[np.isfinite(counted)]
        if not counted.size:
            return Window(0, 1, LINEAR_EXACT)
        ends = modality(np.array([counted.min(), counted.max()], np.float64))
        least, greatest = float(ends.min()), float(ends.max())
    return Window((least + greatest) / 2, max(greatest - least, 1e-300), LINEAR_EXACT)


# --- what the data set says


def _items(dataset: Dataset, frame: int, macro: str) -> Iterator[Dataset]:
    """Yield the data sets that may hold an attribute: the functional groups of the frame and of all frames, the image."""
    for keyword, at in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        groups = dataset.get(keyword)
        if groups is not None and len(groups) > at:
            found = groups[at].get(macro)
            if found:
                yield found[0]
    yield dataset


@dataclass(frozen=True)
class _Rescale:
    """The Modality transformation by Rescale Slope and Rescale Intercept."""

    slope: float
    intercept: float

    def __call__(self, values: Values) -> Values:
        return values * self.slope + self.intercept


def _modality(dataset: Dataset, frame: int) -> Callable[[Values], Values]:
    for item in _items(dataset, frame, "PixelValueTransformationSequence"):
        if item.get("ModalityLUTSequence"):
            return _table(item.ModalityLUTSequence[0])[0]
        slope, intercept = _first(item, "RescaleSlope"), _first(item, "RescaleIntercept")
        if slope is not None and intercept is not None:
            return _Rescale(slope, intercept)
    return _Rescale(1.0, 0.0)


def _window(dataset: Dataset, frame: int) -> Window | None:
    for item in _items(dataset, frame, "FrameVOILUTSequence"):
        center, width = _first(item, "WindowCenter"), _first(item, "WindowWidth")
        if center is not None and width is not None:
            function = str(item.get("VOILUTFunction") or LINEAR).strip().upper()
            found = Window(center, width, function if function in (LINEAR_EXACT, SIGMOID) else LINEAR)
            if found.is_valid:
                return found
    return None


def _voi_table(dataset: Dataset, frame: int) -> Callable[[Values], Values] | None:
    for item in _items(dataset, frame, "FrameVOILUTSequence"):
        tables = item.get("VOILUTSequence")
        if tables:
            look_up, greatest = _table(tables[0])
            return lambda values: np.clip(look_up(values) / greatest, 0, 1)
    return None


def _table(item: Dataset) -> tuple[Callable[[Values], Values], float]:
    """Return the function of a Modality LUT or VOI LUT, and the greatest value that it has (PS3.3 C.11.1.1, C.11.2.1.1)."""
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = count or 65536
    data = item.LUTData
    if isinstance(data, bytes):
        kind = np.uint16 if len(data) >= 2 * count else np.uint8
        entries = np.frombuffer(data, kind, count).astype(np.float64)
    else:
        entries = np.array(data if isinstance(data, MultiValue | list) else [data], np.float64)[:count]
    if not entries.size:
        raise InvalidPixels("a LUT without entries")
    if first > 0x7FFF and item["LUTDescriptor"].VR == "SS":
        first -= 0x10000

    def look_up(values: Values) -> Values:
        return entries[np.clip(values - first, 0, len(entries) - 1).astype(np.int64)]

    return look_up, float((1 << min(max(bits, 1), 16)) - 1)


def _first(dataset: Dataset, keyword: str) -> float | None:
    """Return the first value of an attribute, ``None`` without one."""
    value: Any = dataset.get(keyword)
    if isinstance(value, MultiValue | list | tuple):
        value = value[0] if len(value) else None
    return None if value is None or value == "" else float(value)
