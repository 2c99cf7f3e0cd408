"""
Notes: the rules that matched an instance when it was received, see :mod:`dicomtwist.archive.instance`.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from dicomtwist.archive.storage.interfaces import SideFiles
from dicomtwist.archive.storage.types import InstanceUIDs, StoreError

__all__ = ["FOLDER", "MakeTasks", "Noted", "SavedNotes", "copy_time", "make_in_parts"]

#: The folder of saved notes and of the tasks, in that of the archive.
FOLDER: Final = ".forwarding"
#: The number of notes of which tasks are made in one transaction.
_TOGETHER: Final = 256
#: The longest file of saved notes, in bytes: more than the inbox can hold.
MAX_SAVED: Final = 256 * 1024 * 1024

_SAVED: Final = re.compile(r"notes-[0-9a-f]{16}\.json")


class Noted(NamedTuple):
    """
    An instance that the archive has, and its note.

    :ivar uids: its Study, Series and SOP Instance UIDs.
    :ivar note: the note; empty for a copy that replaces another one and that no rule matches.
    :ivar received: the time of the file of the copy that the archive has, in microseconds since 1970. It tells that copy from
        others.
    :ivar size: the size of the file in bytes.
    """

    uids: InstanceUIDs
    note: bytes
    received: int
    size: int


#: Makes the tasks of instances, all or none; raises a :class:`~dicomtwist.archive.storage.types.StoreError` if it made none.
MakeTasks = Callable[[Sequence[Noted]], None]


def copy_time(nanoseconds: int) -> int:
    """Return the time of a file as :attr:`Noted.received` has it. Not every file system keeps nanoseconds."""
    return nanoseconds // 1000


def make_in_parts(make: MakeTasks, noted: Sequence[Noted]) -> None:
    """
    Make tasks of many notes, in several transactions.

    :raises StoreError: as *make*; tasks of some notes may be made.
    """
    for start in range(0, len(noted), _TOGETHER):
        make(noted[start : start + _TOGETHER])


class SavedNotes:
    """
    Notes that an archive which makes no tasks has found in its inbox, in files, until an archive that does takes them up.

    :param files: the files beside the instances.
    """

    def __init__(self, files: SideFiles) -> None:
        self._files = files

    def save(self, noted: Sequence[Noted]) -> None:
        """
        Write notes into a file of their own.

        :raises OSError: as it came, errno intact.
        """
        content = [[*one.uids, one.note.decode("ascii"), one.received, one.size] for one in noted]
        self._files.put([json.dumps(content).encode()], f"notes-{secrets.token_hex(8)}.json")

    def take_up(self, make: MakeTasks) -> int:
        """
        Make tasks of all notes that were saved, and remove their files.

        :returns: the number of notes.
        :raises OSError: a file cannot be read.
        :raises StoreError: as *make*, or a file is damaged. It stays.
        """
        count = 0
        for name in self._files.names():
            if _SAVED.fullmatch(name):
                noted = self._read(name)
                make_in_parts(make, noted)
                self._files.remove(name)
                count += len(noted)
        return count

    def _read(self, name: str) -> list[Noted]:
        try:
            return [
                Noted((str(study), str(series), str(instance)), str(note).encode("ascii"), int(received), int(size))
                for study, series, instance, note, received, size in json.loads(self._files.read(name, MAX_SAVED))
            ]
        except (ValueError, TypeError) as error:
            raise StoreError(f"{self._files.path(name)} is damaged; move it away to start without it") from error
