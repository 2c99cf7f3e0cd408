"""
The removal of what is forwarded and not kept: instances whose rules say ``keep = false`` and whose tasks are all done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from twisted.logger import Logger

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.removal.holds import StudyLocked
from dicomtwist.archive.removal.remover import NotInArchive
from dicomtwist.archive.services.deletion import Deletion
from dicomtwist.errors import loggable
from dicomtwist.forwarding.tasks.store import TaskStore
from dicomtwist.runtime.executors import Executor

__all__ = ["UnkeptRemoval"]

#: For how long an instance stays after its last task was done, in seconds.
STAYS: Final = 60.0
#: The most instances that one look finds.
MAX_FOUND: Final = 1000
#: The time after which an instance that cannot be removed is tried again, in seconds.
TRY_AGAIN: Final = 600.0


class UnkeptRemoval:
    """
    Removes instances that are delivered and not kept. A study goes as a whole if the archive keeps nothing of it.

    Nothing is removed that has a task which is not done, or that a rule keeps, or that is locked: the tasks are looked at again
    while nothing is stored.

    :param store: the tasks, open.
    :param archive: the archive, open.
    :param deletion: deletes instances.
    :param executor: the threads that look at tasks and files.
    :param clock: returns the time, in seconds since 1970.

    :ivar removed: the number of instances that were removed.
    """

    log = Logger()

    def __init__(
        self,
        store: TaskStore,
        archive: Archive,
        deletion: Deletion,
        executor: Executor,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.removed = 0
        self._store = store
        self._archive = archive
        self._deletion = deletion
        self._executor = executor
        self._clock = clock
        self._is_stopped = False

    def stop(self) -> None:
        """Remove nothing further after the current instance or study."""
        self._is_stopped = True

    async def look(self) -> None:
        """
        Remove what can be removed now.

        :raises StoreError: the tasks cannot be read.
        """
        while not self._is_stopped:
            found = await self._executor.run(self._store.removable, self._clock() - STAYS, MAX_FOUND)
            for study in dict.fromkeys(one[0] for one in found):
                if self._is_stopped:
                    return
                await self._remove_from(study)
            if len(found) < MAX_FOUND:
                return

    async def _remove_from(self, study: str) -> None:
        """Remove what can be removed of a study."""
        free, held = await self._executor.run(self._look_at, study)
        whole: list[tuple[str, ...]] = [(study,)]
        targets = whole if held and held <= free else [(study, *one) for one in sorted(free & held)]
        gone = {(study, *one) for one in free - held}
        for target in targets:
            found = free & held if len(target) == 1 else {(target[1], target[2])}
            instances = {(study, *one) for one in found}
            if self._is_stopped:
                break
            try:
                await self._deletion.delete(
                    target, "forwarding with keep = false", unless=partial(self._why_not, target)
                )
            except NotInArchive:
                gone |= instances
            except Exception as error:
                if not isinstance(error, StudyLocked):
                    self.log.error(
                        "{uids} is forwarded, and cannot be removed for now: {reason}",
                        uids="/".join(target),
                        reason=loggable(error),
                    )
                await self._executor.run(
                    self._store.postpone_removal, sorted(instances), self._clock() + TRY_AGAIN - STAYS
                )
            else:
                self.removed += len(instances)
                gone |= instances
        await self._executor.run(self._store.removed, sorted(gone))

    # --- in threads

    def _look_at(self, study: str) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
        """Return the instances of a study that may be removed, and those that the archive has."""
        self._store.keep(study)
        return self._store.removable_in(study), self._held(study)

    def _held(self, study: str) -> set[tuple[str, str]]:
        self._archive.make_files()
        storage = self._archive.store
        return {(series, one) for series in storage.series_of(study) for one in storage.versions(study, series)}

    def _why_not(self, target: tuple[str, ...]) -> str:
        """Return why a study or an instance has to stay, ``""`` if it need not; nothing of it is being stored."""
        free = self._store.removable_in(target[0])
        wanted = self._held(target[0]) if len(target) == 1 else {(target[1], target[2])}
        return "" if wanted <= free else "it is to be forwarded again, or kept"
