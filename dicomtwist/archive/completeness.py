"""
Whether a data set in a file is whole: it can be scanned to its last byte, and ends with its last element.

The index needs the front of a data set alone. A file that a full disk, a broken copy or a power cut has cut off behind it looks
like a whole one, and must not replace one.
"""

from __future__ import annotations

import enum
import os
import struct
import time
from collections.abc import Callable
from typing import BinaryIO, Final, NamedTuple

from dicomtwist.archive.instance import ReceivedInstance, is_beginning_of_stored, open_data_set
from dicomtwist.archive.storage.interfaces import Storage
from dicomtwist.archive.storage.types import IncompleteInstance
from dicomtwist.datasets.element_headers import DEFLATED, EXPLICIT_BIG_ENDIAN
from dicomtwist.datasets.header_scanner import HeaderError, HeaderScanner
from dicomtwist.part10 import NotDicomFile, read_file_meta

__all__ = ["Completeness", "Examined", "check_replacement", "examine", "examine_stored"]

#: The CPU time that one file may take, in seconds. A real file of 1 GB takes some milliseconds, because values are passed over;
#: 2 seconds are about 20 million elements.
MAX_SECONDS: Final = 2.0
#: The most bytes that a deflated data set may inflate to.
MAX_INFLATED: Final = 1024 * 1024 * 1024
#: Deflate makes at most 1032 bytes of one.
_MAX_RATIO: Final = 1100
#: The number of bytes that are read at once.
_PIECE: Final = 64 * 1024
#: The highest tag of a data element. Items and delimiters have higher ones.
_HIGHEST: Final = 0xFFFDFFFF


class Completeness(enum.IntEnum):
    """How whole a data set is; the order says which copy of an instance is better."""

    CUT_OFF = 0
    """It ends inside an element."""
    UNREADABLE = 1
    """Something in it, or behind its last element, is not an element; it may be whole or not."""
    WHOLE = 2
    """It ends with its last element, or with zeros behind that."""


class Examined(NamedTuple):
    """
    The result of :func:`examine`.

    :ivar reason: why the data set is not whole, as one line; empty if it is.
    """

    completeness: Completeness
    reason: str = ""


_WHOLE: Final = Examined(Completeness.WHOLE)


def examine(file: BinaryIO, start: int, transfer_syntax: str) -> Examined:
    """
    Examine whether a data set is whole. Long values are passed over, not read, unless the data set is deflated.

    :param file: a seekable file; its position is undefined afterwards.
    :param start: the position of the data set, in bytes.
    :param transfer_syntax: the UID of the transfer syntax of the data set.
    :raises OSError: it cannot be read.
    """
    end = file.seek(0, os.SEEK_END)
    scanner = HeaderScanner(
        transfer_syntax, (), stop_after=_HIGHEST, max_inflated=MAX_INFLATED, max_inflate_ratio=_MAX_RATIO
    )
    try:
        if not _scan(scanner, file, start, end):
            return Examined(Completeness.UNREADABLE, "the data set has too many elements to examine all")
    except HeaderError as error:
        return Examined(Completeness.UNREADABLE, str(error))
    try:
        scanner.finish()
    except HeaderError as error:
        if transfer_syntax in DEFLATED:
            return Examined(Completeness.CUT_OFF, str(error))
        return _examine_end(file, start, start + scanner.unfinished, transfer_syntax, str(error))
    return _WHOLE


def _scan(scanner: HeaderScanner, file: BinaryIO, start: int, end: int) -> bool:
    """Scan the bytes from *start* to *end*; return whether that was done in time, and no element ended the scan."""
    deadline = time.thread_time() + MAX_SECONDS
    position = start
    file.seek(start)
    while position < end:
        passed = scanner.pass_over(end - position)
        if passed:
            position = file.seek(position + passed)
            continue
        piece = file.read(min(_PIECE, end - position))
        if not piece:
            break  # the file has become shorter
        position += len(piece)
        if scanner.feed(piece) or time.thread_time() > deadline:
            return False
    return True


def _examine_end(file: BinaryIO, start: int, last: int, transfer_syntax: str, reason: str) -> Examined:
    """
    Examine a data set that ends inside the element at *last*: is that an element, or something behind the last one?

    Media and some programs fill files up with zeros; in big endian one zero may be the first byte of a tag as well. Other bytes
    may look like an element; then its tag is usually not above all others.
    """
    file.seek(last)
    header = file.read(8)
    if len(header) < 8 and not any(header):
        return _WHOLE
    if len(header) >= 4:
        group, element = struct.unpack_from(">HH" if transfer_syntax == EXPLICIT_BIG_ENDIAN else "<HH", header)
        tag = group << 16 | element
        ordered = HeaderScanner(transfer_syntax, (), stop_after=tag)
        if not _scan(ordered, file, start, last):
            size = file.seek(0, os.SEEK_END) - last
            return Examined(
                Completeness.UNREADABLE,
                f"the last {size} bytes are no element in its place: they begin with ({group:04X},{element:04X})",
            )
    return Examined(Completeness.CUT_OFF, reason)


def examine_stored(store: Storage, study_uid: str, series_uid: str, instance_uid: str) -> Examined:
    """
    Examine the stored copy of an instance.

    :raises OSError: it cannot be read.
    """
    with store.open(study_uid, series_uid, instance_uid) as file:
        return _examine_file(file)


def _examine_file(file: BinaryIO) -> Examined:
    try:
        meta, start = read_file_meta(file)
    except NotDicomFile as error:
        return Examined(Completeness.CUT_OFF, str(error))
    return examine(file, start, meta.transfer_syntax_uid)


def check_replacement(store: Storage, instance: ReceivedInstance) -> Callable[[], bool] | None:
    """
    Check that an instance which differs from the stored copy is not a damaged copy of it.

    A data set that is cut off replaces only one that is cut off as well, and not a longer one. One of a file must not be less
    whole in any other way either, nor the mere beginning of the stored one, with zeros or nothing behind it: nobody has stated
    where it ends, as a peer does.

    :returns: a function that returns whether the stored copy is still the one that was compared; ``None`` if the instance may
        replace any copy.
    :raises IncompleteInstance: the stored copy is better.
    """
    with open_data_set(store, instance) as file:
        new = examine(file, file.tell(), instance.transfer_syntax)
    if not instance.is_from_file and new.completeness is not Completeness.CUT_OFF:
        return None
    compared = _identify(store, instance)
    if new.completeness is not Completeness.WHOLE:
        try:
            stored = examine_stored(store, *instance.uids)
        except OSError:
            stored = Examined(Completeness.CUT_OFF)  # it is not better
        if new.completeness < stored.completeness:
            better = "a whole copy" if stored.completeness is Completeness.WHOLE else "a copy that is not cut off"
            raise IncompleteInstance(f"{better} is stored: {new.reason}")
    if is_beginning_of_stored(store, instance):
        raise IncompleteInstance(
            f"its data set is only the beginning of the one that is stored{new.reason and ': '}{new.reason}"
        )
    return lambda: _identify(store, instance) == compared


def _identify(store: Storage, instance: ReceivedInstance) -> tuple[int, ...]:
    """Return what identifies the stored copy; empty if there is none that can be read."""
    try:
        with store.open(*instance.uids) as file:
            status = os.fstat(file.fileno())
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
