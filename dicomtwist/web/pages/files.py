"""
The files of the pages: the style sheet, the scripts, the icon. They are in memory, and their URLs change with their content.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Final

from dicomtwist.web.http.compression import MIN_COMPRESSED, gzip

__all__ = ["File", "file_named", "path_of"]

_FOLDER: Final = Path(__file__).parent / "static"
#: The files that are served, and their media types.
_MEDIA_TYPES: Final = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "images.js": "text/javascript; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "htmx.LICENSE": "text/plain; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class File:
    """
    A file of the pages.

    :ivar content: its content.
    :ivar compressed: its content in gzip; empty if that is no shorter.
    :ivar media_type: its media type.
    :ivar version: changes with its content.
    """

    content: bytes
    compressed: bytes
    media_type: str
    version: str


@cache
def file_named(name: str) -> File | None:
    """Return a file, ``None`` if there is none of that name. It is read from the disk once."""
    if name not in _MEDIA_TYPES:
        return None
    content = (_FOLDER / name).read_bytes()
    compressed = gzip(content) if len(content) >= MIN_COMPRESSED else b""
    return File(content, compressed, _MEDIA_TYPES[name], blake2b(content, digest_size=8).hexdigest())


def path_of(name: str) -> str:
    """Return the path of a file below that of the pages, with its version."""
    file = file_named(name)
    return f"/static/{name}" if file is None else f"/static/{name}?v={file.version}"
