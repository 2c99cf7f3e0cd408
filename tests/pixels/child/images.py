"""The images of pydicom that are installed with it or in its cache, for the tests of this folder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom

from dicomtwist.pixels.child.image import Image, open_image
from dicomtwist.pixels.errors import PixelsFailed


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence pydicom about the damage that some of its files have on purpose."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def images() -> Iterator[tuple[Path, Image]]:
    """Yield the images that can be opened."""
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    for path in sorted(folder.glob("*.dcm")):
        try:
            image = open_image(path)
        except PixelsFailed:
            continue
        try:
            yield path, image
        finally:
            image.close()
