"""
Data sets in another transfer syntax: their frames decoded, and encoded again without loss. Runs in child processes.

The result is made in pieces, a number of frames each, so that neither process has more than some frames in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from struct import pack
from typing import Final, NamedTuple

import numpy as np
from pydicom import Dataset
from pydicom.filereader import read_dataset

from dicomtwist.datasets.codec import encode_dataset
from dicomtwist.datasets.element_headers import IMPLICIT_LITTLE_ENDIAN, ITEM, SEQUENCE_END, UNDEFINED_LENGTH
from dicomtwist.pixels.child.codecs import Array, encode_frame, encoding
from dicomtwist.pixels.child.codestreams import read_codestream
from dicomtwist.pixels.child.image import Image
from dicomtwist.pixels.child.render import rgb
from dicomtwist.pixels.errors import PixelsTooLarge, UnsupportedPixels
from dicomtwist.pixels.syntaxes import JPEG_LOSSY, UNCOMPRESSED, can_transcode

__all__ = ["Piece", "converted_frames", "transcoded"]

#: The bytes of frames after which a piece ends; the frame that reaches them is in it.
PIECE: Final = 4 * 1024 * 1024

#: The most bytes of pixels without compression: the length of an element has 32 bits.
_MAX_NATIVE: Final = UNDEFINED_LENGTH - 1
#: The frames whose bits together are whole bytes, whatever their size is.
_WHOLE_BYTES: Final = 8
#: How images were compressed with loss (PS3.3 C.7.6.1.1.5.2), by the transfer syntax.
_METHODS: Final = {
    **dict.fromkeys(JPEG_LOSSY, "ISO_10918_1"),
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
    "1.2.840.10008.1.2.4.93": "ISO_15444_2",
    "1.2.840.10008.1.2.4.203": "ISO_15444_15",
}


class Piece(NamedTuple):
    """
    A piece of a result.

    :ivar data: its bytes.
    :ivar next: the frame that the next piece begins with, ``None`` if this is the last one.
    :ivar length: the length of the whole result in bytes; ``None`` if it is not known.
    """

    data: bytes
    next: int | None
    length: int | None = None


def transcoded(image: Image, syntax: str, first: int = 0) -> Piece:
    """
    Return a piece of the data set in another transfer syntax.

    :param image: the image.
    :param syntax: the UID of the transfer syntax.
    :param first: the frame that the piece begins with; 0 for the first piece.
    :raises UnsupportedPixels: there is no encoder for *syntax*, or it cannot encode the image.
    :raises InvalidPixels: a frame cannot be decoded.
    :raises PixelsTooLarge: the pixels are too long for an element without compression.
    :raises DataSetError: the data set cannot be encoded.
    """
    if not can_transcode(image.syntax, syntax):
        raise UnsupportedPixels(f"the transfer syntax {image.syntax} is not converted to {syntax}")
    native = syntax in UNCOMPRESSED
    parts: list[bytes] = []
    length = None
    pixels = image.form.length * image.frames if native else 0
    if image.form.allocated == 1:
        pixels = (image.form.rows * image.form.columns * image.frames + 7) // 8 if native else 0
    if pixels > _MAX_NATIVE:
        raise PixelsTooLarge(f"pixels of {pixels} bytes, too many for an element without compression")
    if first == 0:
        image.check_count()
        parts.append(_head(image, syntax, pixels if native else None))
    end = _add_frames(parts, image, syntax, first)
    if end < image.frames:
        return Piece(b"".join(parts), end)
    if native:
        parts.append(b"\0" * (pixels & 1))
    else:
        parts.append(pack("<HHI", SEQUENCE_END >> 16, SEQUENCE_END & 0xFFFF, 0))
    parts.append(_tail(image, syntax))
    data = b"".join(parts)
    if first == 0:
        length = len(data)
    return Piece(data, None, length)


def _add_frames(parts: list[bytes], image: Image, syntax: str, first: int) -> int:
    """Append frames from *first* on to *parts*; return the next one."""
    if image.form.allocated == 1 and syntax in UNCOMPRESSED:
        # Frames of single bits follow each other without padding (PS3.5 8.1.1).
        pixels = image.form.rows * image.form.columns
        count = max(PIECE // pixels, 1) // _WHOLE_BYTES * _WHOLE_BYTES or _WHOLE_BYTES
        end = min(first + count, image.frames)
        bits = np.concatenate([image.decode(frame).reshape(-1) for frame in range(first, end)])
        parts.append(np.packbits(bits, bitorder="little").tobytes())
        return end
    total = 0
    for frame in range(first, image.frames):
        data = _frame(image, frame, syntax)
        if syntax not in UNCOMPRESSED:
            parts.append(pack("<HHI", ITEM >> 16, ITEM & 0xFFFF, len(data)))
        parts.append(data)
        total += len(data)
        if total >= PIECE:
            return frame + 1
    return image.frames


def converted_frames(image: Image, frames: Sequence[int], syntax: str) -> list[bytes]:
    """
    Return frames in another transfer syntax: of as many as have :data:`PIECE` bytes together, and none from the first on that
    fails, unless it is the first of all.

    :param image: the image.
    :param frames: the numbers of the frames, from 0.
    :param syntax: the UID of the transfer syntax.
    :raises NoSuchFrame: there are fewer frames.
    :raises UnsupportedPixels: there is no encoder for *syntax*, or it cannot encode the image.
    :raises InvalidPixels: a frame cannot be decoded.
    """
    found: list[bytes] = []
    total = 0
    for frame in frames:
        try:
            found.append(_frame(image, frame, syntax))
        except Exception:
            # The frames before it are given. The next job begins with this one, and says what is wrong with it.
            if not found:
                raise
            break
        total += len(found[-1])
        if total >= PIECE:
            break
    return found


def _frame(image: Image, frame: int, syntax: str) -> bytes:
    values = _values(image, frame)
    with encoding():
        return encode_frame(values, syntax, image.form)


def _values(image: Image, frame: int) -> Array:
    array = image.decode(frame)
    form = image.form
    if form.photometric == "YBR_PARTIAL_422" and image.syntax not in JPEG_LOSSY and form.allocated == 8:
        return rgb(array, form, image.syntax)
    return array


def _head(image: Image, syntax: str, pixels: int | None) -> bytes:
    """Return the data set up to the value of Pixel Data, of *pixels* bytes; ``None`` of an encapsulated one."""
    dataset = Dataset({tag: image.dataset.get_item(tag) for tag in list(image.dataset.keys())})
    dataset.set_original_encoding(image.is_implicit, not image.is_big_endian, image.dataset.original_character_set)
    form = image.form
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in dataset:
            del dataset[keyword]
    if form.samples > 1:
        dataset.PhotometricInterpretation = _photometric(image)
        dataset.PlanarConfiguration = 0
    _note_loss(dataset, image)
    head = encode_dataset(dataset, syntax)
    length = UNDEFINED_LENGTH if pixels is None else pixels + (pixels & 1)
    if syntax == IMPLICIT_LITTLE_ENDIAN:
        header = pack("<HHI", 0x7FE0, 0x0010, length)
    else:
        vr = b"OW" if pixels is not None and (form.allocated > 8 or form.allocated == 1) else b"OB"
        header = pack("<HH2s2xI", 0x7FE0, 0x0010, vr, length)
    table = pack("<HHI", ITEM >> 16, ITEM & 0xFFFF, 0) if pixels is None else b""
    return head + header + table


def _photometric(image: Image) -> str:
    """Return the Photometric Interpretation of the frames as they are decoded."""
    photometric = image.form.photometric
    if not photometric.startswith("YBR_"):
        return photometric
    if image.syntax in JPEG_LOSSY or photometric in ("YBR_ICT", "YBR_RCT", "YBR_PARTIAL_422"):
        return "RGB"
    return "YBR_FULL"


def _note_loss(dataset: Dataset, image: Image) -> None:
    """Note in *dataset* that the image was compressed with loss, which its transfer syntax says no longer."""
    if image.syntax not in _METHODS:
        return
    compressed = image.compressed_frame(0)
    stream = read_codestream(compressed)
    if image.syntax not in JPEG_LOSSY and (stream is None or not stream.irreversible):
        return
    dataset.LossyImageCompression = "01"
    if not dataset.get("LossyImageCompressionMethod"):
        dataset.LossyImageCompressionMethod = _METHODS[image.syntax]
        if not dataset.get("LossyImageCompressionRatio"):
            dataset.LossyImageCompressionRatio = round(image.form.length / max(len(compressed), 1), 2)


def _tail(image: Image, syntax: str) -> bytes:
    """Return the elements behind Pixel Data."""
    rest = image.read_at(image.end, -1)
    if len(rest) < 8:
        return b""
    return encode_dataset(read_dataset(BytesIO(rest), image.is_implicit, not image.is_big_endian), syntax)
