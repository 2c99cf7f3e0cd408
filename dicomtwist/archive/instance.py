"""
An instance on its way into an archive, its comparison with a stored copy, and the tasks that follow from its receipt.

A rule may say that an instance is to be sent elsewhere. The rules are matched while the instance is received, and the
outcome travels with it as a *note*: a few bytes, which lie beside a small instance in the inbox, so that its acknowledgement
costs no second sync. Tasks are made of the notes in the inbox before its segments are retired, and of all other notes before
success is told. So an instance that is acknowledged has its tasks, or a note that the next start makes them of.

A failure to make tasks is a failure to store: then the sender keeps its copy. An import has no sender, and makes no tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from os import SEEK_END
from typing import BinaryIO, Final, Protocol

from dicomtwist.access.rules import Requestor
from dicomtwist.archive.inbox.notes import Noted
from dicomtwist.archive.index.record import Record, Sender
from dicomtwist.archive.storage.interfaces import Storage
from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.types import Written
from dicomtwist.part10 import NotDicomFile, read_file_meta

#: The bytes that are compared at a time.
_PIECE: Final = 256 * 1024


class Notes(Protocol):
    """The rules at one time, which do not change. Used in any thread."""

    @property
    def tags(self) -> frozenset[int]:
        """The tags of the attributes that the rules look at."""

    def note(self, values: Mapping[int, bytes], transfer_syntax: str, requestor: Requestor, /) -> bytes:
        """
        Return the note of an instance, printable ASCII; empty if there is nothing to do.

        :param values: tag to raw value, as the scanner found them: those of the index and of :attr:`tags`.
        :param requestor: the sender.
        :raises Exception: the note cannot be made; the instance is refused.
        """


class TaskMaker(Protocol):
    """Makes tasks of notes. The methods block and are meant for worker threads."""

    @property
    def notes(self) -> Notes:
        """The rules as they are now; in any thread."""

    def open(self, *, alone: bool) -> None:
        """
        Begin; idempotent. The folder of the archive exists.

        :param alone: whether no other process that shares the archive is at work.
        :raises StoreUnusable: no tasks can be made; the text says why and what to do.
        """

    def make(self, noted: Sequence[Noted], /) -> None:
        """
        Make the tasks of some hundred instances at most, all or none. Afterwards they survive whatever an instance survives
        that the archive has stored. If there are tasks for the same copy of an instance, nothing happens.

        :raises StoreError: no task was made.
        """

    def close(self) -> None:
        """End; idempotent."""


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
    :ivar note: the note of which the tasks of the instance are made; empty for none, see :class:`Notes`.
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
    note: bytes = b""


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
