"""The line of the log about a disk that is full: one a minute, however many instances are refused for it."""

from __future__ import annotations

from typing import Final, Protocol

from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.ae.server import in_bytes
from dicomtwist.archive.storage.types import NO_ROOM
from dicomtwist.errors import loggable
from dicomtwist.runtime.executors import Executor

__all__ = ["NoRoomLog"]

#: The time between two lines, in seconds.
INTERVAL: Final = 60.0


class Room(Protocol):
    """A storage that knows how much room it has."""

    def room(self) -> tuple[str, int]:
        """Return the folder of the storage, and the number of bytes that are free on its file system."""


class NoRoomLog:
    """
    Logs that instances are refused because there is no room, at most once in :data:`INTERVAL` seconds.

    :param storage: the storage that has no room.
    :param executor: the threads that ask the file system.
    """

    log = Logger()

    def __init__(self, storage: Room, executor: Executor) -> None:
        self._storage = storage
        self._executor = executor
        self._last: float | None = None
        self._refused = 0

    def takes(self, error: BaseException) -> bool:
        """
        Note that an instance was refused for *error*.

        :returns: whether the reason is that there is no room; nothing else needs to log it then.
        """
        if not isinstance(error, OSError) or error.errno not in NO_ROOM:
            return False
        self._refused += 1
        now = self._executor.seconds()
        if self._last is None or now - self._last >= INTERVAL:
            self._last = now
            # A file system that hangs must not hold up the reactor.
            self._executor.run_admitted(self._storage.room).addCallbacks(
                self._tell, self._unknown, callbackArgs=(error,), errbackArgs=(error,)
            )
        return True

    def _unknown(self, reason: Failure, error: OSError) -> None:
        self._tell(("the storage", None), error)

    def _tell(self, room: tuple[str, int | None], error: OSError) -> None:
        folder, free = room
        refused, self._refused = self._refused, 0
        self.log.error(
            "there is no room in {folder}: {log_free} free; {log_refused} refused since the last such line: {reason}",
            folder=folder,
            free=free,
            log_free="an unknown number of bytes" if free is None else in_bytes(free),
            refused=refused,
            log_refused="1 instance" if refused == 1 else f"{refused} instances",
            reason=loggable(error),
        )
