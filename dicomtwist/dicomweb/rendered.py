"""
Query parameters of rendered images and thumbnails (PS3.18 8.3.5), lists of frames, and the parameters of the URI service
(PS3.18 9.1.2).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from dicomtwist.dicomweb.media_types import Accept
from dicomtwist.dicomweb.parameters import NO_WARNINGS, ParameterError, Warnings, parse_query

__all__ = [
    "Rendering",
    "URIRequest",
    "Viewport",
    "Window",
    "parse_frames",
    "parse_rendering",
    "parse_uri_request",
]

#: The greatest width and height of a viewport, in pixels, and the most frames in one list.
MAX_VIEWPORT: Final = 8192
MAX_FRAMES: Final = 10_000
MAX_FRAME_NUMBER: Final = 2**31 - 1

_NUMBER: Final = re.compile(r"[+-]?(?:\d{1,15}(?:\.\d{0,15})?|\.\d{1,15})(?:[eE][+-]?\d{1,3})?", re.ASCII)
_UNSIGNED: Final = re.compile(r"\d{1,10}", re.ASCII)
_UID: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*", re.ASCII)
_FUNCTIONS: Final = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}
_PROFILES: Final = frozenset(("no", "yes", "srgb", "adobergb", "rommrgb", "displayp3"))
_ANNOTATIONS: Final = frozenset(("patient", "technique"))


@dataclass(frozen=True, slots=True)
class Viewport:
    """
    The size of a rendered image, and the region of the source image in it (PS3.18 8.3.5.1.3).

    :ivar width: the greatest width of the result, in pixels; ``None`` if the height alone bounds it.
    :ivar height: its greatest height. The image keeps its aspect ratio.
    :ivar left: the first column of the region, in pixels of the source image.
    :ivar top: its first row.
    :ivar region_width: the width of the region; ``None`` for the rest of the image.
    :ivar region_height: its height.
    :ivar flip_horizontally: whether the region is mirrored from left to right (a negative width in the request).
    :ivar flip_vertically: whether it is mirrored from top to bottom.
    """

    width: int | None
    height: int | None
    left: float = 0.0
    top: float = 0.0
    region_width: float | None = None
    region_height: float | None = None
    flip_horizontally: bool = False
    flip_vertically: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """
    A VOI window (PS3.3 C.11.2.1.2).

    :ivar center: the Window Center.
    :ivar width: the Window Width.
    :ivar function: the VOI LUT Function: LINEAR, LINEAR_EXACT or SIGMOID.
    """

    center: float
    width: float
    function: str = "LINEAR"


@dataclass(frozen=True, slots=True)
class Rendering:
    """
    How an image is to be rendered; what is ``None`` is left to the server.

    :ivar viewport: its size and region.
    :ivar window: its VOI window.
    :ivar quality: the quality of a lossy compression, from 1 to 100.
    :ivar region: the region as fractions of width and height: left, top, right, bottom, from the URI service.
    :ivar annotations: the annotations that are asked for: ``patient``, ``technique``.
    :ivar icc_profile: no, yes, srgb, adobergb, rommrgb or displayp3.
    :ivar frame: the frame, from 1, from the URI service.
    :ivar warnings: the parameters and values that are ignored.
    """

    viewport: Viewport | None = None
    window: Window | None = None
    quality: int | None = None
    region: tuple[float, float, float, float] | None = None
    annotations: tuple[str, ...] = ()
    icc_profile: str | None = None
    frame: int | None = None
    warnings: Warnings = field(default=NO_WARNINGS, compare=False)


def parse_rendering(query: str | bytes | Iterable[tuple[str, str]], *, thumbnail: bool = False) -> Rendering:
    """
    Parse the query parameters of a rendered resource.

    :param query: the query of the URL; or its parameters, decoded.
    :param thumbnail: whether it is that of a thumbnail, whose viewport has no region (PS3.18 8.3.5.2).
    :raises ParameterError: a value is invalid.
    """
    warnings = NO_WARNINGS
    found: dict[str, str] = {}
    for name, value in parse_query(query) if isinstance(query, str | bytes) else query:
        option = name.lower()
        if option in ("viewport", "window", "quality", "annotation", "iccprofile"):
            found[option] = value.strip()
        elif option not in ("accept", "charset"):
            warnings = warnings.with_ignored(name)
    profile = found.get("iccprofile", "").lower() or None
    if profile is not None and profile not in _PROFILES:
        raise ParameterError("iccprofile has an unknown value")
    annotations, warnings = _annotations(found.get("annotation", ""), warnings)
    return Rendering(
        viewport=_viewport(found["viewport"], thumbnail) if "viewport" in found else None,
        window=_window(found["window"]) if "window" in found else None,
        quality=_quality("quality", found["quality"]) if "quality" in found else None,
        annotations=annotations,
        icc_profile=profile,
        warnings=warnings,
    )


def _number(name: str, text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ParameterError(f"{name} has a value that is not a number")
    number = float(text)
    if not math.isfinite(number):
        raise ParameterError(f"{name} has a value that is not a number")
    return number


def _size(name: str, text: str) -> int:
    number = _number(name, text)
    if not 1 <= number <= MAX_VIEWPORT or number != int(number):
        raise ParameterError(f"{name} has to be a whole number from 1 to {MAX_VIEWPORT}")
    return int(number)


def _viewport(text: str, thumbnail: bool) -> Viewport:
    values = [one.strip() for one in text.split(",")]
    if len(values) not in ((2,) if thumbnail else (2, 3, 4, 5, 6)):
        raise ParameterError(
            "viewport has to be width,height" + ("" if thumbnail else " or width,height,x,y,width,height")
        )
    width, height = (_size("viewport", one) for one in values[:2])
    left, top, region_width, region_height = (
        _number("viewport", one) if one else None for one in (values[2:] + [""] * 4)[:4]
    )
    if (left or 0) < 0 or (top or 0) < 0 or region_width == 0 or region_height == 0:
        raise ParameterError("viewport has a region outside of the image")
    return Viewport(
        width,
        height,
        left or 0.0,
        top or 0.0,
        None if region_width is None else abs(region_width),
        None if region_height is None else abs(region_height),
        (region_width or 0) < 0,
        (region_height or 0) < 0,
    )


def _window(text: str) -> Window:
    values = [one.strip() for one in text.split(",")]
    if len(values) not in (2, 3):
        raise ParameterError("window has to be center,width,function")
    center, width = (_number("window", one) for one in values[:2])
    function = _FUNCTIONS.get(values[2].lower().replace("_", "-") if len(values) == 3 and values[2] else "linear")
    if function is None:
        raise ParameterError("window has an unknown function: there are linear, linear-exact and sigmoid")
    if width < 1 if function == "LINEAR" else width <= 0:
        raise ParameterError("window has a width that is too small")
    return Window(center, width, function)


def _quality(name: str, text: str) -> int:
    if not _UNSIGNED.fullmatch(text) or not 1 <= int(text) <= 100:
        raise ParameterError(f"{name} has to be a number from 1 to 100")
    return int(text)


def _annotations(text: str, warnings: Warnings) -> tuple[tuple[str, ...], Warnings]:
    found = []
    for one in text.split(","):
        name = one.strip().lower()
        if name in _ANNOTATIONS:
            found.append(name)
        elif name:
            warnings = warnings.with_ignored(f"annotation={name}")
    return tuple(found), warnings


def parse_frames(text: str) -> tuple[int, ...]:
    """
    Parse a list of frames, as the path of a URL has it: numbers from 1, divided by commas.

    :returns: the numbers, in the order of the request; a repeated one is repeated (PS3.18 10.4.1.1.6).
    :raises ParameterError: it is no such list, or has more than :data:`MAX_FRAMES` numbers.
    """
    texts = text.replace("%2C", ",").replace("%2c", ",").split(",")
    if len(texts) > MAX_FRAMES:
        raise ParameterError(f"more than {MAX_FRAMES} frames")
    return tuple(_frame(one.strip()) for one in texts)


def _frame(text: str) -> int:
    if not _UNSIGNED.fullmatch(text) or not 1 <= int(text) <= MAX_FRAME_NUMBER:
        raise ParameterError("a frame has to be a number from 1")
    return int(text)


#: The rendering that a request without parameters asks for.
AS_IT_IS: Final = Rendering()


@dataclass(frozen=True, slots=True)
class URIRequest:
    """
    A request of the URI service (PS3.18 9).

    :ivar study: the Study Instance UID.
    :ivar series: the Series Instance UID.
    :ivar instance: the SOP Instance UID.
    :ivar accept: the media types that it accepts; those of ``contentType`` take precedence.
    :ivar transfer_syntax: the UID of the transfer syntax of a response of type application/dicom; empty for the default,
        Explicit VR Little Endian (PS3.18 9.4.2.4); ``"*"``, which the standard does not have, for as it is stored.
    :ivar anonymize: whether the response is to be de-identified.
    :ivar charset: the character sets that it accepts.
    :ivar rendering: how an image is to be rendered.
    """

    study: str
    series: str
    instance: str
    accept: Accept
    transfer_syntax: str = ""
    anonymize: bool = False
    charset: str = ""
    rendering: Rendering = AS_IT_IS


def parse_uri_request(query: str | bytes | Iterable[tuple[str, str]], headers: Iterable[str] = ()) -> URIRequest:
    """
    Parse a request of the URI service.

    :param query: the query of the URL; or its parameters, decoded.
    :param headers: the values of the Accept header fields of the request.
    :raises ParameterError: a parameter is missing, or has an invalid value.
    """
    warnings = NO_WARNINGS
    known = {name.lower() for name in _URI_PARAMETERS}
    found: dict[str, str] = {}
    for name, value in parse_query(query) if isinstance(query, str | bytes) else query:
        if name.lower() not in known:
            warnings = warnings.with_ignored(name)
        elif value.strip():
            found[name.lower()] = value.strip()
    if found.get("requesttype", "").upper() != "WADO":
        raise ParameterError("requestType has to be WADO")
    uids = []
    for name in ("studyUID", "seriesUID", "objectUID"):
        value = found.get(name.lower(), "")
        if len(value) > 64 or not _UID.fullmatch(value):
            raise ParameterError(f"{name} has to be a UID")
        uids.append(value)
    syntax = found.get("transfersyntax", "")
    if syntax != "*" and syntax and (len(syntax) > 64 or not _UID.fullmatch(syntax)):
        raise ParameterError("transferSyntax has to be a UID")
    anonymize = found.get("anonymize", "no").lower()
    if anonymize not in ("yes", "no"):
        raise ParameterError("anonymize has to be yes")
    for name in ("presentationUID", "presentationSeriesUID"):
        if name.lower() in found:
            warnings = warnings.with_ignored(name, "is not supported")
    return URIRequest(
        study=uids[0],
        series=uids[1],
        instance=uids[2],
        accept=Accept.parse(headers, found.get("contenttype", ""), syntax),
        transfer_syntax=syntax,
        anonymize=anonymize == "yes",
        charset=found.get("charset", ""),
        rendering=_uri_rendering(found, warnings),
    )


_URI_PARAMETERS: Final = (
    *("requestType", "studyUID", "seriesUID", "objectUID", "contentType", "charset", "anonymize", "annotation"),
    *("rows", "columns", "region", "windowCenter", "windowWidth", "frameNumber", "imageQuality", "transferSyntax"),
    *("presentationUID", "presentationSeriesUID"),
)


def _uri_rendering(found: dict[str, str], warnings: Warnings) -> Rendering:
    rows, columns = (_size(name, found[name]) if name in found else None for name in ("rows", "columns"))
    center, width = (_number(name, found[name.lower()]) if name.lower() in found else None for name in _WINDOW)
    if (center is None) != (width is None):
        raise ParameterError("windowCenter and windowWidth have to be given together")
    window = None
    if center is not None and width is not None:
        if width < 1:
            raise ParameterError("windowWidth has to be 1 or more")
        window = Window(center, width)
    region = None
    if "region" in found:
        values = [_number("region", one.strip()) for one in found["region"].split(",")]
        if len(values) != 4 or not all(0 <= one <= 1 for one in values):
            raise ParameterError("region has to be four numbers from 0 to 1")
        if values[0] >= values[2] or values[1] >= values[3]:
            raise ParameterError("region has to be left,top,right,bottom")
        region = (values[0], values[1], values[2], values[3])
    annotations, warnings = _annotations(found.get("annotation", ""), warnings)
    return Rendering(
        viewport=Viewport(columns, rows) if rows or columns else None,
        window=window,
        quality=_quality("imageQuality", found["imagequality"]) if "imagequality" in found else None,
        region=region,
        annotations=annotations,
        frame=_frame(found["framenumber"]) if "framenumber" in found else None,
        warnings=warnings,
    )


_WINDOW: Final = ("windowCenter", "windowWidth")
