"""An instance that is to be archived."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dicomtwist.archive.index.record import Record
from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.types import Written


@dataclass(slots=True, eq=False)
class ReceivedInstance:
    """
    An instance as it is handed to an archive.

    :ivar uids: its Study, Series and SOP Instance UIDs.
    :ivar transfer_syntax: how its data set is encoded.
    :ivar content: its file: what is before the data set and then the data set, contiguous bytes each; or a temporary file
        that :meth:`~dicomtwist.archive.storage.interfaces.Writer.seal` gave, which the archive takes over.
    :ivar describe: returns what the index is to know of it. Called in any thread, and not before it is needed; it does not
        fail.
    :ivar held: how many bytes *describe* keeps in memory, about.
    """

    uids: tuple[str, str, str]
    transfer_syntax: str
    content: Sequence[Buffer] | Written
    describe: Callable[[], Record]
    held: int
