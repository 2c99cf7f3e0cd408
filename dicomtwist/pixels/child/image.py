"""
An image in a Part 10 file: its attributes, and the place of each frame. Runs in child processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any, BinaryIO, Final

from pydicom import Dataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from dicomtwist.datasets.codec import inflate
from dicomtwist.datasets.element_headers import (
    DEFLATED_LITTLE_ENDIAN,
    EXPLICIT_BIG_ENDIAN,
    IMPLICIT,
    UNDEFINED_LENGTH,
)
from dicomtwist.errors import DataSetError
from dicomtwist.part10 import FileMeta, NotDicomFile, read_file_meta
from dicomtwist.pixels.child.codecs import MAX_FRAME_BYTES, Array, FrameFormat, decode_frame, native_array
from dicomtwist.pixels.child.front import FRONT, PIXELS, read_front
from dicomtwist.pixels.encapsulation import Encapsulated, Fragment, frame_fragments, read_encapsulated
from dicomtwist.pixels.errors import InvalidPixels, NoSuchFrame, PixelsTooLarge, UnsupportedPixels
from dicomtwist.pixels.syntaxes import COMPRESSED, UNCOMPRESSED

__all__ = ["Image", "open_image"]

#: The most frames of an image. An hour of endoscopy has 200,000.
MAX_FRAMES: Final = 1_000_000

#: GE's private syntax: implicit VR little endian, but for the pixels.
_GE_BIG_ENDIAN_PIXELS: Final = "1.2.840.113619.5.2"

#: The elements that have to be in memory whatever their length is: it stays small beside a frame.
_ReadAt = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class PixelElement:
    """
    The element with the pixels.

    :ivar tag: its tag.
    :ivar vr: its VR; empty in implicit VR.
    :ivar offset: the offset of its value in the data set.
    :ivar length: the length of the value; ``None`` of an encapsulated one.
    """

    tag: int
    vr: str
    offset: int
    length: int | None


class Image:
    """
    An image that is open.

    :param file: the file, positioned anywhere; it stays open as long as frames are read.
    :raises NotDicomFile: it is not a Part 10 file.
    :raises UnsupportedPixels: it has no pixel data.
    :raises InvalidPixels: its data set cannot be read, or does not describe an image.

    :ivar meta: its File Meta Information.
    :ivar attributes: the attributes of its data set that say how frames are decoded and displayed, but for palettes. Images
        may share them, so they are not changed.
    :ivar element: the element with the pixels.
    :ivar form: how its frames are encoded.
    :ivar frames: the number of frames.
    """

    def __init__(self, file: BinaryIO) -> None:
        file.seek(0)
        self.meta: FileMeta
        self.meta, offset = read_file_meta(file)
        self.syntax = self.meta.transfer_syntax_uid
        if self.syntax not in UNCOMPRESSED and self.syntax not in COMPRESSED and self.syntax not in IMPLICIT:
            raise UnsupportedPixels(f"there is no decoder for the transfer syntax {self.syntax}")
        self._file, self._start = file, offset
        if self.syntax == DEFLATED_LITTLE_ENDIAN:
            file.seek(offset)
            self._file, self._start = BytesIO(inflate(file.read())), 0
        self.is_implicit = self.syntax in IMPLICIT
        self.is_big_endian = self.syntax == EXPLICIT_BIG_ENDIAN
        self.attributes: Dataset
        self.element: PixelElement
        front = None if self.is_big_endian else read_front(self.read_at(0, FRONT), is_implicit=self.is_implicit)
        if front is not None:
            self.attributes = front.attributes
            length = None if front.length == UNDEFINED_LENGTH else front.length
            self.element = PixelElement(front.tag, front.vr or "", front.offset, length)
        else:
            self.attributes, self.element = self.dataset, self._read[1]
        self.form = _form_of(self.attributes, self.element, self.syntax)
        self.frames = _frames_of(self.attributes)
        if self.frames > MAX_FRAMES:
            raise PixelsTooLarge(f"an image of {self.frames} frames")
        self._is_single_fragment = False

    @property
    def dataset(self) -> Dataset:
        """
        The data set up to the pixel data, in which values are decoded when they are asked for.

        :raises InvalidPixels: it cannot be read.
        :raises UnsupportedPixels: it has no pixel data.
        """
        return self._read[0]

    @cached_property
    def _read(self) -> tuple[Dataset, PixelElement]:
        try:
            return self._read_all()
        except (UnsupportedPixels, MemoryError):
            raise
        except Exception as error:
            raise InvalidPixels(f"the data set cannot be read: {error}"[:300]) from error

    def _read_all(self) -> tuple[Dataset, PixelElement]:
        """Read the data set by pydicom."""
        found: list[tuple[int, str | None, int]] = []

        def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
            if tag not in PIXELS:
                return False
            found.append((int(tag), vr, length))
            return True

        self._file.seek(self._start)
        dataset = read_dataset(self._file, self.is_implicit, not self.is_big_endian, stop_when=at_pixels)
        # A few data sets have no VRs although their transfer syntax says so, which pydicom detects.
        self.is_implicit = bool(dataset.original_encoding[0])
        if not found:
            raise UnsupportedPixels("the instance has no pixel data")
        tag, vr, length = found[0]
        header = 8 if self.is_implicit or vr not in ("OB", "OW", "OF", "OD", "UN", "OL", "OV") else 12
        offset = self._file.tell() - self._start + header
        return dataset, PixelElement(tag, vr or "", offset, None if length == UNDEFINED_LENGTH else length)

    def read_at(self, offset: int, length: int) -> bytes:
        """Read from the data set: *length* bytes at *offset*, fewer at its end."""
        self._file.seek(self._start + offset)
        return self._file.read(length)

    @property
    def is_encapsulated(self) -> bool:
        """Whether the frames are encapsulated (PS3.5 A.4)."""
        return self.element.length is None

    @cached_property
    def encapsulated(self) -> Encapsulated:
        """The items of encapsulated pixel data."""
        return read_encapsulated(self.read_at, self.element.offset)

    @cached_property
    def _fragments(self) -> list[tuple[Fragment, ...]]:
        extended = self.attributes.get("ExtendedOffsetTable") or b""
        table = [int.from_bytes(extended[at : at + 8], "little") for at in range(0, len(extended), 8)]
        return frame_fragments(self.read_at, self.encapsulated, self.frames, table)

    @cached_property
    def count(self) -> int:
        """
        The number of frames that exist, which Number of Frames may contradict. It is 1 at least: a single one that is cut off
        is damaged, not absent.

        :raises InvalidPixels: the fragments cannot be divided into frames.
        """
        if self.element.length is None:
            try:
                return max(1, len(self._fragments))
            except DataSetError as error:
                raise InvalidPixels(str(error)) from error
        pixels = self.form.rows * self.form.columns
        bits = pixels if self.form.allocated == 1 else 8 * self._native_length
        return min(self.frames, max(1, 8 * self.element.length // max(1, bits)))

    @property
    def _native_length(self) -> int:
        """The length of a frame that is not compressed, in bytes."""
        form = self.form
        return form.rows * form.columns * 2 * (form.allocated // 8) if form.is_subsampled else form.length

    @property
    def end(self) -> int:
        """The offset of the elements behind the pixels."""
        if self.element.length is None:
            return self.encapsulated.end
        return self.element.offset + self.element.length

    def compressed_frame(self, frame: int) -> bytes:
        """
        Return a frame of encapsulated pixel data as it is stored, its fragments joined.

        :param frame: its number, from 0.
        :raises NoSuchFrame: there are fewer frames.
        :raises InvalidPixels: the fragments cannot be divided into frames.
        """
        self._check_number(frame)
        fragments = self._fragments[frame]
        if sum(fragment.length for fragment in fragments) > MAX_FRAME_BYTES:
            raise PixelsTooLarge(f"a compressed frame of more than {MAX_FRAME_BYTES} bytes")
        return b"".join([self.read_at(*fragment) for fragment in fragments])

    def _check_number(self, frame: int) -> None:
        if not 0 <= frame < self.count:
            raise NoSuchFrame(f"the image has {self.count} frames")

    def check_count(self) -> None:
        """
        Check that encapsulated pixel data has as many frames as Number of Frames says.

        :raises InvalidPixels: it has not, or its fragments cannot be divided into frames.
        """
        try:
            if self.is_encapsulated and len(self._fragments) != self.frames:
                raise InvalidPixels(f"the pixel data has {len(self._fragments)} frames instead of {self.frames}")
        except DataSetError as error:
            raise InvalidPixels(str(error)) from error

    def decode(self, frame: int) -> Array:
        """
        Decode a frame.

        :param frame: its number, from 0.
        :returns: its stored values, with the samples of a pixel side by side.
        :raises NoSuchFrame: there are fewer frames.
        :raises InvalidPixels: it cannot be decoded.
        :raises UnsupportedPixels: there is no codec for it.
        """
        if self.is_encapsulated:
            return decode_frame(self.compressed_frame(frame), self.syntax, self.form)
        self._check_number(frame)
        return self._native(frame)

    def _native(self, frame: int) -> Array:
        form, element = self.form, self.element
        assert element.length is not None
        big_endian = self.is_big_endian or self.syntax == _GE_BIG_ENDIAN_PIXELS
        pixels = form.rows * form.columns
        if form.allocated == 1:
            first = frame * pixels
            data = self._value(first // 8, (first % 8 + pixels + 7) // 8)
            if first % 8:
                data = _shifted(data, first % 8)
            return native_array(data.ljust(form.length, b"\0"), form)
        length = self._native_length
        first = frame * length
        if form.allocated == 8 and big_endian and element.vr == "OW":
            # The bytes of each word are swapped (PS3.5 A.3, figure 8.2-1).
            data = self._value(first & ~1, length + (first & 1) + 1)
            swapped = bytearray(len(data) + (len(data) & 1))
            swapped[0::2], swapped[1::2] = (data + b"\0" * (len(data) & 1))[1::2], data[0::2]
            data = bytes(swapped[first & 1 : (first & 1) + length])
        else:
            data = self._value(first, length)
        return native_array(data, form, big_endian=big_endian)

    def _value(self, offset: int, length: int) -> bytes:
        assert self.element.length is not None
        return self.read_at(self.element.offset + offset, max(0, min(length, self.element.length - offset)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _shifted(data: bytes, bits: int) -> bytes:
    return (int.from_bytes(data, "little") >> bits).to_bytes(len(data), "little")


def open_image(source: str | os.PathLike[str] | bytes) -> Image:
    """
    Open an image.

    :param source: the path of a Part 10 file, or the bytes of one.
    :raises OSError: the file cannot be read.
    :raises InvalidPixels: it is not a Part 10 file, or as for :class:`Image`.
    :raises UnsupportedPixels: it has no image that can be decoded.
    """
    file: BinaryIO = BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
    try:
        return Image(file)
    except NotDicomFile as error:
        file.close()
        raise InvalidPixels(str(error)) from error
    except BaseException:
        file.close()
        raise


def _number(dataset: Dataset, keyword: str, default: int) -> int:
    try:
        value: Any = dataset.get(keyword)
        if isinstance(value, MultiValue | list | tuple):
            value = value[0] if value else None
        return default if value is None or value == "" else int(value)
    except (TypeError, ValueError, OverflowError, IndexError, NotImplementedError) as error:
        raise InvalidPixels(f"{keyword} is not a number") from error


def _frames_of(dataset: Dataset) -> int:
    """Return Number of Frames; without a valid one there is one frame."""
    try:
        return max(1, _number(dataset, "NumberOfFrames", 1))
    except InvalidPixels:
        return 1


def _form_of(dataset: Dataset, element: PixelElement, syntax: str) -> FrameFormat:
    floating = element.tag != 0x7FE00010
    allocated = {0x7FE00008: 32, 0x7FE00009: 64}.get(element.tag) or _number(dataset, "BitsAllocated", 0)
    stored = allocated if floating else _number(dataset, "BitsStored", allocated)
    samples = _number(dataset, "SamplesPerPixel", 1)
    if allocated == 1:
        stored = 1
    return FrameFormat(
        rows=_number(dataset, "Rows", 0),
        columns=_number(dataset, "Columns", 0),
        samples=samples,
        allocated=allocated,
        stored=stored,
        high_bit=stored - 1 if floating or allocated == 1 else _number(dataset, "HighBit", stored - 1),
        signed=not floating and _number(dataset, "PixelRepresentation", 0) == 1,
        photometric=str(dataset.get("PhotometricInterpretation") or ("MONOCHROME2" if samples == 1 else "RGB")).strip(),
        planar=element.length is not None and samples > 1 and _number(dataset, "PlanarConfiguration", 0) == 1,
        floating=floating,
    )
