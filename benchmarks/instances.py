"""
Generated instances to send: a real MR image with pixel data of a given size, and a SOP Instance UID for each.
"""

from __future__ import annotations

import io
import math
import os
import time
from functools import cache
from pathlib import Path

from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import UID

from benchmarks.harness import BenchmarkError

_SERIES = 4
# The UIDs of a kind all have the same length, so that they can be replaced in the encoded file.
_ROOT = "1.2.826.0.1.3680043.8.498.1"
#: The Study Instance UID of all instances.
STUDY = f"{_ROOT}.1"
#: The Series Instance UID of the first series.
SERIES = f"{_ROOT}.3.1"
_MARK = f"{_ROOT}.2.1999999999"
_SERIES_MARK = f"{_ROOT}.3.9"
_STUDY_MARK = f"{_ROOT}.5.199999"
_STUDY_SERIES_MARK = f"{_ROOT}.6.199999"


def _template(rows: int, studies: bool = False) -> tuple[bytes, int]:
    """
    Return a Part 10 file up to its square pixel data, and the length of the pixel data in bytes.

    :param studies: whether the instances belong to many studies, of one series each, instead of one study.
    """
    path = get_testdata_file("MR_small.dcm", download=False)
    assert isinstance(path, str)
    dataset = dcmread(path)
    if "DataSetTrailingPadding" in dataset:
        del dataset.DataSetTrailingPadding
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(_MARK)
    dataset.StudyInstanceUID = _STUDY_MARK if studies else STUDY
    dataset.SeriesInstanceUID = _STUDY_SERIES_MARK if studies else _SERIES_MARK
    dataset.Rows = dataset.Columns = rows
    dataset.PixelData = b"\0\0"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    length = rows * rows * 2
    # In Explicit VR Little Endian the length of Pixel Data comes right before its value.
    head = buffer.getvalue()[:-2]
    return head[:-4] + length.to_bytes(4, "little"), length


@cache
def _head_length() -> int:
    return len(_template(2)[0])


def study_uid(number: int) -> str:
    """Return the Study Instance UID of the study *number*, see *per_study* of :func:`make`."""
    return f"{_ROOT}.5.1{number:05}"


class Content:
    """
    The content of instances of one size.

    :param size: the approximate size of each, in bytes.
    :param series: the number of series that they belong to.
    :param per_study: the number of consecutive instances in a study of their own, with one series; 0 for one study in all.
    """

    def __init__(self, size: int, series: int = _SERIES, per_study: int = 0) -> None:
        self._series, self._per_study = series, per_study
        self._head, length = _template(math.isqrt(max(2, size - _head_length()) // 2), per_study > 0)
        block = os.urandom(min(length, 1 << 20))
        #: The pixels, which all instances share.
        self.pixels = (block * -(-length // len(block)))[:length]

    def head(self, number: int) -> bytes:
        """Return the Part 10 file of the instance *number* up to its pixels."""
        if not self._per_study:
            return _numbered(self._head, number, self._series)
        study = number // self._per_study
        head = _numbered(self._head, number).replace(_STUDY_MARK.encode(), study_uid(study).encode())
        return head.replace(_STUDY_SERIES_MARK.encode(), series_uid(study).encode())


def series_uid(number: int) -> str:
    """Return the Series Instance UID of the only series of the study *number*."""
    return f"{_ROOT}.6.1{number:05}"


def instance_uid(number: int) -> str:
    """Return the SOP Instance UID of the instance *number*."""
    return f"{_ROOT}.2.1{number:09}"


def make(folder: Path, count: int, size: int, first: int = 0, series: int = _SERIES, per_study: int = 0) -> list[Path]:
    """
    Write instances into a new folder.

    :param size: the approximate size of each, in bytes.
    :param first: the number of the first instance, from which its SOP Instance UID is made.
    :param series: see :class:`Content`, like *per_study*.
    """
    folder.mkdir()
    content = Content(size, series, per_study)
    paths = []
    for number in range(first, first + count):
        path = folder / f"{number:06}.dcm"
        with path.open("wb") as file:
            file.write(content.head(number))
            file.write(content.pixels)
        paths.append(path)
    return paths


def make_sparse(path: Path, rows: int) -> Path:
    """Write one instance with *rows* rows and columns, whose pixels of two bytes each take no room on the disk."""
    head, length = _template(rows)
    with path.open("wb") as file:
        file.write(_numbered(head, 0))
        file.truncate(len(head) + length)
    return path


def _numbered(head: bytes, number: int, series: int = _SERIES) -> bytes:
    return head.replace(_MARK.encode(), instance_uid(number).encode()).replace(
        _SERIES_MARK.encode(), f"{_ROOT}.3.{number % series + 1}".encode()
    )


def wait_stored(folder: Path, count: int) -> None:
    """
    Wait until *count* instances are stored below *folder*: the file of an acknowledged instance may follow a little later.

    :raises BenchmarkError: they are not there after ten seconds.
    """
    deadline = time.monotonic() + 10
    while (found := count_stored(folder)) < count:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{folder} has {found} instances of {count}")
        time.sleep(0.1)


def count_stored(folder: Path) -> int:
    """Return how many instances are stored below *folder*, not counting temporary files."""
    found = 0
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += sum(not name.startswith(".") for name in names)
    return found
