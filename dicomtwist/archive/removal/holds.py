"""
Locks of studies: a study that is locked cannot be deleted, by nobody.

Each lock is a small file beside the instances, not a row of the index, since the index may be removed and is rebuilt from the
files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from dicomtwist.archive.storage.interfaces import SideFiles
from dicomtwist.archive.storage.types import StoreError, is_uid

__all__ = ["FOLDER", "Hold", "Holds", "StudyLocked"]

#: The folder of the locks, in that of the archive. A lock has the name of its study.
FOLDER: Final = ".holds"
#: The longest reason of a lock, in characters.
MAX_REASON: Final = 500
_MAX_FILE: Final = 64 * 1024


class StudyLocked(StoreError):
    """The study is locked, so that it cannot be deleted."""


class Hold(NamedTuple):
    """
    The lock of a study.

    :ivar reason: the reason; may be empty.
    :ivar by: words that name the client that has locked it.
    :ivar since: the time, in seconds since 1970.
    """

    reason: str
    by: str
    since: float


class Holds:
    """
    The locks of an archive. All methods block.

    :param folder: the files of the locks.
    """

    def __init__(self, folder: SideFiles) -> None:
        self._folder = folder

    def put(self, study_uid: str, hold: Hold) -> None:
        """
        Lock a study, or replace its lock. The study need not be there yet.

        :param study_uid: its UID, which is valid.
        :raises OSError: as it came, errno intact.
        """
        text = json.dumps({"reason": hold.reason[:MAX_REASON], "by": hold.by, "since": hold.since})
        self._folder.put([text.encode("utf-8", "replace")], study_uid)

    def remove(self, study_uid: str) -> bool:
        """Unlock a study; return whether it was locked."""
        is_locked = study_uid in self._folder
        self._folder.remove(study_uid)
        return is_locked

    def get(self, study_uid: str) -> Hold | None:
        """Return the lock of a study, ``None`` if it is not locked. A lock that cannot be read locks all the same."""
        if study_uid not in self._folder:
            return None
        try:
            found = json.loads(self._folder.read(study_uid, _MAX_FILE))
            return Hold(str(found["reason"]), str(found["by"]), float(found["since"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return Hold("", "", 0.0)

    def check(self, study_uid: str) -> None:
        """
        Check that a study may be deleted.

        :raises StudyLocked: it is locked.
        """
        if self.get(study_uid) is not None:
            raise StudyLocked("the study is locked")

    def all(self) -> Mapping[str, Hold]:
        """
        Return the locks of all studies.

        :raises OSError: they cannot be listed.
        """
        names = filter(is_uid, self._folder.names())
        return {name: hold for name in names if (hold := self.get(name)) is not None}
