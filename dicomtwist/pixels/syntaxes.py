"""
The transfer syntaxes that images can be decoded from and encoded in. Imports no codec.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from dicomtwist.datasets.element_headers import (
    DEFLATED_LITTLE_ENDIAN,
    EXPLICIT_BIG_ENDIAN,
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT_LITTLE_ENDIAN,
)

__all__ = ["COMPRESSED", "ENCODABLE", "UNCOMPRESSED", "can_transcode", "is_available"]


def _jpeg(*ends: int) -> frozenset[str]:
    return frozenset(f"1.2.840.10008.1.2.4.{end}" for end in ends)


JPEG_LOSSLESS_SV1: Final = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS: Final = "1.2.840.10008.1.2.4.80"
JPEG_2000_LOSSLESS: Final = "1.2.840.10008.1.2.4.90"
HTJ2K_LOSSLESS: Final = "1.2.840.10008.1.2.4.201"
RLE: Final = "1.2.840.10008.1.2.5"
DEFLATED_FRAMES: Final = "1.2.840.10008.1.2.8.1"
ENCAPSULATED_UNCOMPRESSED: Final = "1.2.840.10008.1.2.1.98"

#: Lossy JPEG, with the processes that are retired: they are sequential or progressive Huffman codes as well.
JPEG_LOSSY: Final = _jpeg(50, 51, 53, 55)
#: Lossless JPEG with Huffman codes; 14 and 28 to 31 are the numbers of its processes.
JPEG_LOSSLESS: Final = _jpeg(57, 58, 65, 70)
JPEG_LS: Final = _jpeg(80, 81)
JPEG_2000: Final = _jpeg(90, 91, 92, 93)
HTJ2K: Final = _jpeg(201, 202, 203)
JPEG_XL: Final = _jpeg(110, 111, 112)

#: The compressed and encapsulated transfer syntaxes that images are decoded from.
COMPRESSED: Final = (
    *sorted(JPEG_LOSSY | JPEG_LOSSLESS | JPEG_LS | JPEG_2000 | HTJ2K | JPEG_XL),
    *(RLE, DEFLATED_FRAMES, ENCAPSULATED_UNCOMPRESSED),
)

#: The uncompressed transfer syntaxes, the preferred first.
UNCOMPRESSED: Final = (
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT_LITTLE_ENDIAN,
    DEFLATED_LITTLE_ENDIAN,
    EXPLICIT_BIG_ENDIAN,
)

#: The transfer syntaxes that images are encoded in, without loss; the preferred first.
ENCODABLE: Final = (
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT_LITTLE_ENDIAN,
    JPEG_LS_LOSSLESS,
    JPEG_2000_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    RLE,
    HTJ2K_LOSSLESS,
)


def is_available() -> bool:
    """Return whether the packages of the extra ``pixels`` are installed."""
    return all(find_spec(name) is not None for name in ("numpy", "imagecodecs", "PIL"))


def can_transcode(source: str, target: str) -> bool:
    """
    Return whether images in one transfer syntax can be encoded in another one.

    :param source: the UID of the transfer syntax that they are in.
    :param target: the UID of another one.
    """
    return source != target and target in ENCODABLE and (source in COMPRESSED or source in UNCOMPRESSED)
