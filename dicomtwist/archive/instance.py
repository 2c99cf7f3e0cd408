"""An instance on its way into an archive, and its comparison with a stored copy."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import SEEK_END
from typing import BinaryIO, Final, Protocol

from dicomtwist.archive.index.record import Record
from dicomtwist.archive.index.sender import Sender
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

    def __call__(self, outcomes: Sequence[tuple[ReceivedInstance, BaseException | None]], /) -> None:
        """Take instances, each with its outcome: ``None`` if it is stored, else the error."""


def same_dataset(store: Storage, instance: ReceivedInstance) -> bool:
    """Whether the stored copy holds the data set of *instance*; ``False`` if it cannot be read."""
    return _begins_with(store, instance, operator.eq)


def is_beginning_of_stored(store: Storage, instance: ReceivedInstance) -> bool:
    """Whether the stored copy has the data set of *instance*, and more behind it; ``False`` if it cannot be read."""
    return _begins_with(store, instance, operator.gt)


def _begins_with(store: Storage, instance: ReceivedInstance, fits: Callable[[int, int], bool]) -> bool:
    """
    Whether the stored data set begins with that of *instance*.

    :param fits: called first, with the lengths of the stored data set and of the other one.
    """
    content = instance.content
    try:
        with store.open(*instance.uids) as first:
            meta, start = read_file_meta(first)
            if meta.transfer_syntax_uid != instance.transfer_syntax:
                return False
            length = _size(first) - start
            if not isinstance(content, Written):
                return fits(length, sum(map(len, content[1:]))) and all(
                    first.read(len(piece)) == piece for piece in content[1:]
                )
            with store.open_temporary(content) as second:
                _, start = read_file_meta(second)
                return fits(length, _size(second) - start) and _begins_with_rest(first, second)
    except (OSError, NotDicomFile):
        return False


def _size(file: BinaryIO) -> int:
    """Return the size of a file in bytes; its position does not change."""
    here = file.tell()
    size = file.seek(0, SEEK_END)
    file.seek(here)
    return size


def _begins_with_rest(first: BinaryIO, second: BinaryIO) -> bool:
    while piece := second.read(_PIECE):
        if piece != first.read(len(piece)):
            return False
    return True
