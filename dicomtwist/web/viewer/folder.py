"""
A folder of static files: which file a path of a URL leads to, and how a browser has to treat it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

__all__ = ["NoSuchFile", "StaticFile", "StaticFolder"]

#: The longest path of a URL that is looked for, in characters.
MAX_PATH: Final = 1024
#: The bytes of a file that are read at once.
READ_SIZE: Final = 256 * 1024

#: The media types of files by the ends of their names. The table of the operating system may lack some, and WebAssembly is
#: compiled while it arrives only with its own type.
MEDIA_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "gif": "image/gif",
    "htm": "text/html; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "ico": "image/x-icon",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "map": "application/json",
    "md": "text/plain; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "onnx": "application/octet-stream",
    "otf": "font/otf",
    "pdf": "application/pdf",
    "png": "image/png",
    "svg": "image/svg+xml",
    "ttf": "font/ttf",
    "txt": "text/plain; charset=utf-8",
    "wasm": "application/wasm",
    "webmanifest": "application/manifest+json",
    "webp": "image/webp",
    "woff": "font/woff",
    "woff2": "font/woff2",
    "xml": "application/xml",
}
#: The media types of files that compression makes shorter.
_COMPRESSIBLE: Final = re.compile(r"text/|application/(?:json|wasm|xml|manifest\+json)|image/(?:svg\+xml|x-icon)")
#: Matches names that have a hash of the content, so that a file of the name never changes: app.bundle.096daabbdde29bd851ab.js
_HASHED: Final = re.compile(r"(?:^|[.-])[0-9a-f]{16,64}(?:\.|$)")


class NoSuchFile(Exception):
    """There is no such file in the folder, or it must not be served."""


@dataclass(slots=True)
class StaticFile:
    """
    An open file.

    :ivar name: its name, without folders.
    :ivar file: the file.
    :ivar size: its length in bytes.
    :ivar version: changes when the content does.
    """

    name: str
    file: BinaryIO
    size: int
    version: str

    @property
    def media_type(self) -> str:
        """The media type, from the end of the name."""
        return MEDIA_TYPES.get(_suffix(self.name), "application/octet-stream")

    @property
    def is_compressible(self) -> bool:
        """Whether compression makes the content shorter."""
        return _COMPRESSIBLE.match(self.media_type) is not None

    @property
    def is_lasting(self) -> bool:
        """Whether the content of the name never changes."""
        return _HASHED.search(self.name) is not None

    def pieces(self) -> Iterator[bytes]:
        """Yield the content. Reading blocks."""
        left = self.size
        while left and (piece := self.file.read(min(left, READ_SIZE))):
            left -= len(piece)
            yield piece

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class StaticFolder:
    """
    A folder whose files anybody may have, but for those whose names begin with a dot. There are no listings.

    :param path: the folder. It may be a link, which may lead to another folder later.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, path: str) -> StaticFile:
        """
        Open a file. Blocks.

        :param path: the path of a URL below the folder, decoded: ``/assets/logo.svg``.
        :raises NoSuchFile: there is no such regular file, it may not be read, or a link leads out of the folder.
        """
        names = path.removeprefix("/").split("/")
        if len(path) > MAX_PATH or not all(map(_is_name, names)):
            raise NoSuchFile
        try:
            folder = self.path.resolve(strict=True)
            found = folder.joinpath(*names).resolve(strict=True)
            if not found.is_relative_to(folder):
                raise NoSuchFile
            # A FIFO would wait for a writer.
            descriptor = os.open(found, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (OSError, ValueError, RuntimeError):  # RuntimeError: a loop of links
            raise NoSuchFile from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise NoSuchFile
            version = f"{status.st_mtime_ns:x}-{status.st_size:x}"
            return StaticFile(names[-1], os.fdopen(descriptor, "rb"), status.st_size, version)
        except BaseException:
            os.close(descriptor)
            raise

    def open_page(self, path: str) -> StaticFile:
        """
        Open the file of a path, or ``index.html`` for one that is a page within the viewer, as ``/viewer`` of OHIF is. Blocks.

        :raises NoSuchFile: the path is that of a file that is missing, or names no page.
        """
        try:
            return self.open(path)
        except NoSuchFile:
            is_page = all(_is_name(name) for name in path.split("/") if name)
            if _suffix(path) in MEDIA_TYPES or not is_page or len(path) > MAX_PATH:
                raise
            return self.open("/index.html")


def _is_name(name: str) -> bool:
    """Return whether *name* may be that of a file or folder to be served."""
    return bool(name) and not name.startswith(".") and name.isprintable() and "\\" not in name


def _suffix(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name else ""
