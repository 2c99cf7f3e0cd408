"""The line of the log about a disk that is full: one a minute, however much is refused for it, by whatever service."""

from __future__ import annotations

import errno
from collections import Counter
from typing import Final, Protocol

from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.ae.server import in_bytes
from dicomtwist.archive.storage.types import NO_ROOM, lacks_room
from dicomtwist.errors import loggable
from dicomtwist.runtime.executors import Executor

__all__ = ["NoRoomLog", "refusal_words"]

#: The time between two lines, in seconds.
INTERVAL: Final = 60.0


class Room(Protocol):
    """A storage that knows how much room it has."""

    def room(self) -> tuple[str, int]:
        """Return the folder of the storage, and the number of bytes that are free on its file system."""


class NoRoomLog:
    """
    Logs that instances and other things are refused because there is no room, at most once in :data:`INTERVAL` seconds.

    All services of an archive share one.

    :param storage: the storage that has no room.
    :param executor: the threads that ask the file system.
    """

    log = Logger()

    def __init__(self, storage: Room, executor: Executor) -> None:
        self._storage = storage
        self._executor = executor
        self._last: float | None = None
        self._refused: Counter[str] = Counter()

    def takes(self, error: BaseException, what: str = "instance") -> bool:
        """
        Note that something was refused for *error*.

        :param what: a name of it in the singular.
        :returns: whether the reason is that there is no room; nothing else needs to log it then.
        """
        if not lacks_room(error):
            return False
        self._refused[what] += 1
        now = self._executor.seconds()
        if self._last is None or now - self._last >= INTERVAL:
            self._last = now
            # A file system that hangs must not hold up the reactor.
            self._executor.run_admitted(self._storage.room).addCallbacks(
                self._tell, self._unknown, callbackArgs=(error,), errbackArgs=(error,)
            )
        return True

    def _unknown(self, reason: Failure, error: BaseException) -> None:
        self._tell(("the storage", None), error)

    def _tell(self, room: tuple[str, int | None], error: BaseException) -> None:
        folder, free = room
        refused, self._refused = self._refused, Counter()
        self.log.error(
            "there is no room in {folder}: {log_free} free; {log_refused} refused since the last such line: {reason}",
            folder=folder,
            free=free,
            log_free="an unknown number of bytes" if free is None else in_bytes(free),
            refused=refused.total(),
            log_refused=" and ".join(_counted(count, what) for what, count in refused.items()),
            reason=error.strerror if isinstance(error, OSError) and error.strerror else loggable(error),
        )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def refusal_words(error: OSError) -> str:
    """Return the Error Comment about *error*, without the path of a file."""
    name = errno.errorcode.get(error.errno or 0, "error")
    if error.errno in NO_ROOM:
        return f"the disk is {'read-only' if error.errno == errno.EROFS else 'full'} ({name})"
    return f"storage: {name}"
