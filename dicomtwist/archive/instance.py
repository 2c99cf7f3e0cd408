"""An instance on its way into an archive, and its comparison with a stored copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from os import SEEK_END
from typing import BinaryIO, Final, Protocol

from dicomtwist.archive.index.record import Record, Sender
from dicomtwist.archive.storage.interfaces import Storage
from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.types import Written
from dicomtwist.part10 import NotDicomFile, read_file_meta

#: The bytes that are compared at a time.
_PIECE: Final = 256 * 1024


@dataclass(slots=True, eq=False)
class ReceivedInstance:
    """
    A complete instance that is handed to an archive.

    :ivar uids: its Study, Series and SOP Instance UIDs.
    :ivar transfer_syntax: the transfer syntax of its data set.
    :ivar content: its file: first the bytes before the data set, then those of the data set, each buffer contiguous; or a
        temporary file that :meth:`~dicomtwist.archive.storage.interfaces.Writer.seal` returned. The archive takes that over.
    :ivar describe: makes the index record. It is called in any thread, only when the record is needed, and does not fail.
    :ivar held: the approximate number of bytes that *describe* keeps in memory.
    :ivar is_from_file: whether it is from a file, which may have lost its end unseen; a peer states where a data set ends.
    :ivar sender: the sender of the instance; ``None`` for an instance that may replace others without a line in the log.
    """

    uids: tuple[str, str, str]
    transfer_syntax: str
    content: Sequence[Buffer] | Written
    describe: Callable[[], Record]
    held: int
    sender: Sender | None = None
    is_from_file: bool = False


class Deliver(Protocol):
    """A function that is told the outcomes of instances, in any thread."""

    def __call__(self, outcomes: Sequence[tuple[ReceivedInstance, BaseException | None]], more: bool, /) -> None:
        """
        Take instances, each with its outcome: ``None`` if it is stored, else the error.

        :param more: whether the thread goes on to store other instances, so that the outcomes should not wait for its end.
        """


def same_dataset(store: Storage, instance: ReceivedInstance) -> bool:
    """Whether the stored copy holds the data set of *instance*; ``False`` if it cannot be read."""
    try:
        with _stored_data_set(store, instance) as first, open_data_set(store, instance) as second:
            return _size(first) - first.tell() == _size(second) - second.tell() and _begins_with_rest(first, second)
    except (OSError, NotDicomFile):
        return False


def is_beginning_of_stored(store: Storage, instance: ReceivedInstance) -> bool:
    """
    Whether the stored copy has more than the data set of *instance*, which differs from it: that may have zeros in place of its
    end, as a file that was made in its full size before it was written. ``False`` if the stored copy cannot be read.
    """
    try:
        with _stored_data_set(store, instance) as first, open_data_set(store, instance) as second:
            return _begins_with_rest(first, second, _length_without_zeros(second))
    except (OSError, NotDicomFile):
        return False


@contextmanager
def _stored_data_set(store: Storage, instance: ReceivedInstance) -> Iterator[BinaryIO]:
    """
    Open the stored copy of *instance*, at the beginning of its data set.

    :raises OSError: it cannot be read, or has another transfer syntax.
    """
    with store.open(*instance.uids) as file:
        meta, _ = read_file_meta(file)
        if meta.transfer_syntax_uid != instance.transfer_syntax:
            raise OSError("another transfer syntax")
        yield file


@contextmanager
def open_data_set(store: Storage, instance: ReceivedInstance) -> Iterator[BinaryIO]:
    """
    Open *instance* at the beginning of its data set.

    :raises OSError: it cannot be read.
    """
    content = instance.content
    if isinstance(content, Written):
        with store.open_temporary(content) as file:
            read_file_meta(file)
            yield file
    else:
        yield BytesIO(b"".join(content[1:]))


def _size(file: BinaryIO) -> int:
    """Return the size of a file in bytes; its position does not change."""
    here = file.tell()
    size = file.seek(0, SEEK_END)
    file.seek(here)
    return size


def _length_without_zeros(file: BinaryIO) -> int:
    """Return the length of the rest of a file without the zeros at its end; its position does not change."""
    here = file.tell()
    end = _size(file)
    while end > here:
        start = max(here, end - _PIECE)
        file.seek(start)
        left = len(file.read(end - start).rstrip(b"\0"))
        end = start + left
        if left:
            break
    file.seek(here)
    return end - here


def _begins_with_rest(first: BinaryIO, second: BinaryIO, length: int | None = None) -> bool:
    """Whether *first* goes on with the rest of *second*, or with its next *length* bytes."""
    left = _size(second) - second.tell() if length is None else length
    while left > 0:
        piece = second.read(min(_PIECE, left))
        if not piece or piece != first.read(len(piece)):
            return False
        left -= len(piece)
    return True
