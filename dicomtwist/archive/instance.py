"""An instance on its way into an archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dicomtwist.archive.index.record import Record
from dicomtwist.archive.index.sender import Sender
from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.types import Written


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
    :ivar sender: the sender of the instance; ``None`` for an instance that may replace others without a line in the log.
    """

    uids: tuple[str, str, str]
    transfer_syntax: str
    content: Sequence[Buffer] | Written
    describe: Callable[[], Record]
    held: int
    sender: Sender | None = None
