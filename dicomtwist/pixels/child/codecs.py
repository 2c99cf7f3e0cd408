"""
Frames decoded and encoded, one at a time, by the codecs of imagecodecs. Runs in child processes.

imagecodecs was measured beside pydicom's plugins, for a frame of 512 x 512 with 16 bits, in milliseconds: JPEG 2000 24 (54 to
63), HTJ2K 1.4, JPEG-LS 3.4, lossless JPEG 1.4. It is under the licence BSD-3; pylibjpeg-libjpeg is under GPL-3.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import imagecodecs
import numpy as np
import numpy.typing as npt

from dicomtwist.pixels.child.codestreams import Codestream, read_codestream
from dicomtwist.pixels.errors import InvalidPixels, NotEncoded, PixelsFailed, PixelsTooLarge, UnsupportedPixels
from dicomtwist.pixels.syntaxes import (
    DEFLATED_FRAMES,
    ENCAPSULATED_UNCOMPRESSED,
    HTJ2K,
    HTJ2K_LOSSLESS,
    JPEG_2000,
    JPEG_2000_LOSSLESS,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LOSSY,
    JPEG_LS,
    JPEG_LS_LOSSLESS,
    JPEG_XL,
    RLE,
)

__all__ = ["MAX_FRAME_BYTES", "FrameFormat", "decode_frame", "encode_frame", "encoding", "native_array"]

#: The most bytes of one frame, decoded. The largest mammograms and radiographs have 100 MB.
MAX_FRAME_BYTES: Final = 256 * 1024 * 1024

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """
    The attributes of the Image Pixel module that say how a frame is encoded (PS3.3 C.7.6.3).

    :ivar rows: Rows.
    :ivar columns: Columns.
    :ivar samples: Samples per Pixel.
    :ivar allocated: Bits Allocated.
    :ivar stored: Bits Stored.
    :ivar high_bit: High Bit.
    :ivar signed: whether Pixel Representation says that the values are signed.
    :ivar photometric: Photometric Interpretation.
    :ivar planar: whether Planar Configuration says that each sample has a plane of its own.
    :ivar floating: whether the values are floating-point numbers.
    :raises InvalidPixels: no frame can have these values.
    :raises PixelsTooLarge: a frame has more than :data:`MAX_FRAME_BYTES`.
    """

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    photometric: str
    planar: bool = False
    floating: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.rows <= 0xFFFFFFFF and 0 < self.columns <= 0xFFFFFFFF):
            raise InvalidPixels("Rows or Columns are missing or 0")
        if self.samples not in (1, 3, 4):
            raise InvalidPixels(f"{self.samples} Samples per Pixel")
        if self.allocated not in (1, 8, 16, 32, 64) or (self.allocated == 64 and not self.floating):
            raise UnsupportedPixels(f"{self.allocated} Bits Allocated")
        if not 0 < self.stored <= self.allocated or not self.stored - 1 <= self.high_bit < self.allocated:
            raise InvalidPixels(f"{self.stored} Bits Stored with High Bit {self.high_bit} of {self.allocated}")
        if self.length > MAX_FRAME_BYTES:
            raise PixelsTooLarge(
                f"a frame of {self.rows} x {self.columns} pixels has more than {MAX_FRAME_BYTES} bytes"
            )

    @property
    def is_subsampled(self) -> bool:
        """Whether two pixels of an uncompressed frame share their chrominance (PS3.3 C.7.6.3.1.2)."""
        return self.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422") and self.samples == 3

    @property
    def length(self) -> int:
        """The length of a decoded frame in bytes; that of several frames of single bits is not a multiple of it."""
        pixels = self.rows * self.columns
        return (pixels + 7) // 8 if self.allocated == 1 else pixels * self.samples * self.allocated // 8

    @property
    def used(self) -> int:
        """The number of the low bits of a value up to the High Bit."""
        return self.high_bit + 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values, in the byte order of this machine."""
        if self.floating:
            return np.dtype(f"f{self.allocated // 8}")
        return np.dtype(f"{'i' if self.signed else 'u'}{max(self.allocated // 8, 1)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a frame: rows, columns, and samples if there are several."""
        return (self.rows, self.columns) if self.samples == 1 else (self.rows, self.columns, self.samples)


def native_array(data: bytes, form: FrameFormat, *, big_endian: bool = False) -> Array:
    """
    Return the values of an uncompressed frame, with the samples of a pixel side by side.

    :param data: the frame; one of single bits begins with its first bit.
    :param big_endian: whether the bytes of a value are in big endian.
    :raises InvalidPixels: it is too short.
    """
    pixels = form.rows * form.columns
    if form.allocated == 1:
        _check_length(data, form.length)
        bits = np.unpackbits(np.frombuffer(data, np.uint8, form.length), bitorder="little", count=pixels)
        return bits.reshape(form.shape)
    dtype = form.dtype.newbyteorder(">" if big_endian else "<")
    if form.is_subsampled:
        return _upsampled(data, form, dtype)
    _check_length(data, form.length)
    array = np.frombuffer(data, dtype, pixels * form.samples).astype(form.dtype, copy=False)
    if form.samples > 1 and form.planar:
        return np.ascontiguousarray(array.reshape(form.samples, form.rows, form.columns).transpose(1, 2, 0))
    return array.reshape(form.shape)


def _check_length(data: bytes, length: int) -> None:
    if len(data) < length:
        raise InvalidPixels(f"a frame of {len(data)} bytes, not {length}")


def _upsampled(data: bytes, form: FrameFormat, dtype: np.dtype[Any]) -> Array:
    """Return a frame in which two pixels share their chrominance: Y1 Y2 Cb Cr."""
    if form.columns & 1:
        raise InvalidPixels("subsampled chrominance with an odd number of columns")
    pairs = form.rows * form.columns // 2
    _check_length(data, 4 * pairs * dtype.itemsize)
    given = np.frombuffer(data, dtype, 4 * pairs).reshape(pairs, 4)
    array = np.empty((pairs, 2, 3), form.dtype)
    array[:, :, 0] = given[:, :2]
    array[:, :, 1:] = given[:, None, 2:]
    return array.reshape(form.shape)


# --- decoding


def decode_frame(data: bytes, syntax: str, form: FrameFormat) -> Array:
    """
    Decode a frame of encapsulated pixel data.

    :param data: its fragments, joined.
    :param syntax: the UID of the transfer syntax.
    :returns: the values, in the shape and the type of *form*, with the samples of a pixel side by side. Frames of lossy JPEG in
        YCbCr, and those of JPEG 2000 with a component transformation, are RGB.
    :raises UnsupportedPixels: there is no codec for it.
    :raises InvalidPixels: it cannot be decoded, or is not what *form* says.
    """
    decoder = _DECODERS.get(syntax)
    if decoder is None:
        raise UnsupportedPixels(f"there is no decoder for the transfer syntax {syntax}")
    stream = read_codestream(data)
    if stream is not None:
        if (stream.rows, stream.columns) != (form.rows, form.columns) or stream.components != form.samples:
            raise InvalidPixels(
                f"the compressed frame has {stream.rows} x {stream.columns} pixels of {stream.components} samples,"
                f" the data set says {form.rows} x {form.columns} of {form.samples}"
            )
    elif syntax in _WITH_CODESTREAM:
        raise InvalidPixels("a compressed frame without the header of its codestream")
    try:
        array = decoder(data, form, stream)
    except (InvalidPixels, UnsupportedPixels, MemoryError):
        raise
    except Exception as error:
        raise InvalidPixels(f"a frame cannot be decoded: {error}"[:300]) from error
    return _as_stored(array, form, stream)


def _as_stored(array: Array, form: FrameFormat, stream: Codestream | None) -> Array:
    """Return what a codec gives as the values of the data set."""
    if array.size != form.rows * form.columns * form.samples:
        raise InvalidPixels(f"a decoded frame of {array.size} values, not of {form.shape}")
    array = array.reshape(form.shape)
    if array.dtype == form.dtype:
        return array if stream is None or not form.signed else _extended(array, form, stream)
    if array.dtype.itemsize > form.dtype.itemsize:
        most = int(array.max()) if array.size else 0
        if most >> form.allocated:
            raise InvalidPixels(f"a value of more than {form.allocated} bits")
    if form.signed and array.dtype.kind == "u":
        return _extended(array.astype(form.dtype), form, stream)
    return array.astype(form.dtype)


def _extended(array: Array, form: FrameFormat, stream: Codestream | None) -> Array:
    """Extend the sign of values that a codec has given as unsigned ones of fewer bits; unless one has bits above these."""
    bits = form.used if stream is None else min(stream.precision, form.used)
    unused = form.allocated - bits
    if unused <= 0 or (stream is not None and stream.signed) or (_as_unsigned(array) >> bits).any():
        return array
    return (array << unused) >> unused


def _as_unsigned(array: Array) -> Array:
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


def _decode_jpeg(data: bytes, form: FrameFormat, stream: Codestream | None) -> Array:
    if form.samples == 1:
        return imagecodecs.jpeg8_decode(data)
    # RGB that was not transformed before its compression has no marker that says so in many files, and decoders take it for
    # YCbCr. The data set is right then, as in pydicom.
    transform = None if stream is None else stream.transform
    is_rgb = transform == 0 or (transform is None and form.photometric == "RGB")
    return imagecodecs.jpeg8_decode(data, colorspace="rgb" if is_rgb else "ycbcr", outcolorspace="rgb")


def _decode_lossless_jpeg(data: bytes, form: FrameFormat, stream: Codestream | None) -> Array:
    try:
        return imagecodecs.jpegsof3_decode(data)
    except Exception:
        # A few files are not lossless although their transfer syntax says so.
        return imagecodecs.jpeg8_decode(data)


def _decode_jpeg_ls(data: bytes, form: FrameFormat, stream: Codestream | None) -> Array:
    return imagecodecs.jpegls_decode(data)


def _decode_jpeg_2000(data: bytes, form: FrameFormat, stream: Codestream | None) -> Array:
    return imagecodecs.jpeg2k_decode(data, planar=False)


def _decode_htj2k(data: bytes, form: FrameFormat, stream: Codestream | None) -> Array:
    return imagecodecs.htj2k_decode(data, planar=False)


def _decode_jpeg_xl(data: bytes, form: FrameFormat, stream: Codestream | None) -> Array:
    return imagecodecs.jpegxl_decode(data)


def _decode_rle(data: bytes, form: FrameFormat, stream: Codestream | None) -> Array:
    if form.allocated == 1:
        plane = FrameFormat(1, form.length, 1, 8, 8, 7, False, "")
        packed = _decode_rle(data, plane, None).astype(np.uint8)
        return native_array(packed.tobytes(), form)
    planes = form.samples * form.dtype.itemsize
    count = int.from_bytes(data[:4], "little")
    if count != planes or len(data) < 64:
        raise InvalidPixels(f"an RLE header of {count} segments, not {planes}")
    starts = [int.from_bytes(data[at : at + 4], "little") for at in range(4, 4 + 4 * planes, 4)]
    ends = [*starts[1:], len(data)]
    if any(not 64 <= start <= end <= len(data) for start, end in zip(starts, ends, strict=True)):
        raise InvalidPixels("an RLE header with segments outside of the frame")
    pixels = form.rows * form.columns
    segments = np.zeros((planes, pixels), np.uint8)
    for plane_number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        decoded = imagecodecs.packbits_decode(data[start:end], out=pixels + 4096)
        if len(decoded) < pixels:
            raise InvalidPixels(f"an RLE segment of {len(decoded)} bytes, not {pixels}")
        segments[plane_number] = np.frombuffer(decoded, np.uint8, pixels)
    # The segment of the most significant byte is the first one of a sample (PS3.5 G.2).
    interleaved = segments.reshape(form.samples, form.dtype.itemsize, pixels).transpose(2, 0, 1)
    values = np.ascontiguousarray(interleaved).view(form.dtype.newbyteorder(">"))
    return values.astype(form.dtype, copy=False).reshape(form.shape)


def _inflated(data: bytes, form: FrameFormat, stream: Codestream | None) -> Array:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    return native_array(inflater.decompress(data, form.length + 1), form)


def _uncompressed(data: bytes, form: FrameFormat, stream: Codestream | None) -> Array:
    return native_array(data, form)


_Decoder = Callable[[bytes, FrameFormat, "Codestream | None"], Array]

_DECODERS: Final[dict[str, _Decoder]] = {
    **dict.fromkeys(JPEG_LOSSY, _decode_jpeg),
    **dict.fromkeys(JPEG_LOSSLESS, _decode_lossless_jpeg),
    **dict.fromkeys(JPEG_LS, _decode_jpeg_ls),
    **dict.fromkeys(JPEG_2000, _decode_jpeg_2000),
    **dict.fromkeys(HTJ2K, _decode_htj2k),
    **dict.fromkeys(JPEG_XL, _decode_jpeg_xl),
    RLE: _decode_rle,
    DEFLATED_FRAMES: _inflated,
    ENCAPSULATED_UNCOMPRESSED: _uncompressed,
}
_WITH_CODESTREAM: Final = JPEG_LOSSY | JPEG_LOSSLESS | JPEG_LS | JPEG_2000 | HTJ2K


# --- encoding


@contextmanager
def encoding() -> Iterator[None]:
    """
    Encode an image.

    :raises NotEncoded: the codec cannot encode it: it is too large for the format, for example.
    """
    try:
        yield
    except (PixelsFailed, MemoryError):
        raise
    except Exception as error:
        raise NotEncoded(f"{type(error).__name__}: {error}"[:300]) from error


def encode_frame(array: Array, syntax: str, form: FrameFormat) -> bytes:
    """
    Encode a frame without loss.

    :param array: its values, in the shape and the type of *form*.
    :param syntax: the UID of the transfer syntax; an uncompressed one gives the values in little endian.
    :returns: one fragment; that of a compressed frame has an even length.
    :raises UnsupportedPixels: there is no encoder for it, or it cannot encode such values.
    """
    encoder = _ENCODERS.get(syntax)
    if encoder is None:
        return _packed(array, form)
    if form.floating or form.allocated not in (8, 16):
        raise UnsupportedPixels(f"values of {form.allocated} bits cannot be compressed")
    data = encoder(np.ascontiguousarray(array), form)
    return data + b"\0" * (len(data) & 1)


def _packed(array: Array, form: FrameFormat) -> bytes:
    if form.allocated == 1:
        return np.packbits(array.reshape(-1), bitorder="little").tobytes()
    if sys.byteorder == "big":
        array = array.byteswap()
    return array.tobytes()


def _bits(array: Array, form: FrameFormat) -> int:
    """
    Return how many bits a codestream needs for the values.

    Those above the High Bit may be in use all the same: for an overlay, as they once were (PS3.5 8.1.1), or for padding that
    is out of range. A codestream of fewer bits would have other values.
    """
    above = array >> (form.used - 1 if form.signed else form.used)
    is_outside = (above != 0) & (above != -1) if form.signed else above != 0
    return form.allocated if is_outside.any() else form.used


def _unsigned(array: Array, form: FrameFormat) -> Array:
    """Return signed values as unsigned ones of the bits in use, as JPEG and JPEG-LS encode them."""
    if not form.signed:
        return array
    return _as_unsigned(array) & ((1 << _bits(array, form)) - 1)


def _encode_jpeg(array: Array, form: FrameFormat) -> bytes:
    space = "grayscale" if form.samples == 1 else "rgb"
    return bytes(
        imagecodecs.jpeg8_encode(
            _unsigned(array, form),
            lossless=True,
            predictor=1,
            bitspersample=form.allocated,
            colorspace=space,
            outcolorspace=space,
        )
    )


def _encode_jpeg_ls(array: Array, form: FrameFormat) -> bytes:
    values = _unsigned(array, form)
    # Noise takes more bytes than it has, and more than the codec expects.
    return bytes(imagecodecs.jpegls_encode(values, out=2 * values.nbytes + 1024))


def _encode_jpeg_2000(array: Array, form: FrameFormat) -> bytes:
    return bytes(
        imagecodecs.jpeg2k_encode(
            array, level=0, codecformat="j2k", reversible=True, mct=False, bitspersample=_bits(array, form)
        )
    )


def _encode_htj2k(array: Array, form: FrameFormat) -> bytes:
    return bytes(imagecodecs.htj2k_encode(array, reversible=True, planar=False, rgb=False))


def _encode_rle(array: Array, form: FrameFormat) -> bytes:
    size = array.dtype.itemsize
    swapped = np.ascontiguousarray(array).astype(array.dtype.newbyteorder(">"))
    planes = swapped.view(np.uint8).reshape(form.rows, form.columns, form.samples, size)
    segments = []
    for sample in range(form.samples):
        for byte in range(size):
            rows = np.ascontiguousarray(planes[:, :, sample, byte])
            # Each row is encoded by itself (PS3.5 G.3.1).
            segment = b"".join(bytes(imagecodecs.packbits_encode(row.tobytes())) for row in rows)
            segments.append(segment + b"\0" * (len(segment) & 1))
    header = [len(segments)]
    offset = 64
    for segment in segments:
        header.append(offset)
        offset += len(segment)
    header += [0] * (16 - len(header))
    return np.array(header, "<u4").tobytes() + b"".join(segments)


_Encoder = Callable[[Array, FrameFormat], bytes]

_ENCODERS: Final[dict[str, _Encoder]] = {
    JPEG_LOSSLESS_SV1: _encode_jpeg,
    JPEG_LS_LOSSLESS: _encode_jpeg_ls,
    JPEG_2000_LOSSLESS: _encode_jpeg_2000,
    HTJ2K_LOSSLESS: _encode_htj2k,
    RLE: _encode_rle,
}
