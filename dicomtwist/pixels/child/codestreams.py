"""
The headers of JPEG, JPEG-LS and JPEG 2000 codestreams: the size of the image, which a decoder would allocate memory for.
"""

from __future__ import annotations

from struct import error as StructError
from struct import unpack_from
from typing import Final, NamedTuple

__all__ = ["Codestream", "read_codestream"]

#: The markers of JPEG that begin a frame (T.81 table B.1), and SOF55 of JPEG-LS (T.87).
_STARTS_OF_FRAME: Final = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
_APP14: Final = 0xEE
#: The length of an Adobe marker that names a transform.
_ADOBE: Final = 14
_START_OF_SCAN: Final = 0xDA
_END: Final = 0xD9
#: How far the size marker of JPEG 2000 may be behind the boxes of a JP2 file.
_MAX_BOXES: Final = 64 * 1024


class Codestream(NamedTuple):
    """
    The contents of the header of a codestream.

    :ivar rows: the number of rows.
    :ivar columns: the number of columns.
    :ivar components: the number of components.
    :ivar precision: the bits of a value.
    :ivar signed: whether values are signed; JPEG has unsigned ones only.
    :ivar transform: the colour transform that an Adobe marker names: 0 none, 1 YCbCr; ``None`` without one.
    :ivar irreversible: whether JPEG 2000 has used the irreversible wavelet, or JPEG-LS has lost precision.
    """

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool = False
    transform: int | None = None
    irreversible: bool = False


def read_codestream(data: bytes) -> Codestream | None:
    """Return what the header of the codestream in *data* says; ``None`` if it is another codestream, or damaged."""
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg(data)
        at = 0 if data[:4] == b"\xff\x4f\xff\x51" else data.find(b"\xff\x4f\xff\x51", 0, _MAX_BOXES)
        if at == 0 or (at > 0 and data[4:6] == b"jP"):
            return _jpeg_2000(data, at)
    except (StructError, IndexError):
        pass
    return None


def _jpeg(data: bytes) -> Codestream | None:
    at, transform = 2, None
    frame: tuple[int, int, int, int] | None = None
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            return None
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == _END:
            return None
        if marker in (0x00, 0x01, 0xD8) or 0xD0 <= marker <= 0xD7:
            at += 2
            continue
        (length,) = unpack_from(">H", data, at + 2)
        if marker in _STARTS_OF_FRAME:
            precision, rows, columns, components = unpack_from(">BHHB", data, at + 4)
            frame = rows, columns, components, precision
        elif marker == _APP14 and length >= _ADOBE and data[at + 4 : at + 9] == b"Adobe":
            transform = data[at + 15]
        elif marker == _START_OF_SCAN:
            if frame is None:
                return None
            # NEAR of JPEG-LS follows the two bytes of each component (T.87 C.2.3).
            near = data[at + 5 + 2 * data[at + 4]]
            return Codestream(*frame, transform=transform, irreversible=near != 0)
        at += 2 + length


def _jpeg_2000(data: bytes, at: int) -> Codestream | None:
    width, height, left, top = unpack_from(">IIII", data, at + 8)
    (components,) = unpack_from(">H", data, at + 40)
    depth = data[at + 42]
    end = data.find(b"\xff\x90", at)
    style = data.find(b"\xff\x52", at, end if end > 0 else len(data))
    irreversible = style > 0 and len(data) > style + 13 and data[style + 13] == 0
    return Codestream(
        height - top, width - left, components, (depth & 0x7F) + 1, bool(depth & 0x80), None, irreversible
    )
