"""
The replay of the inbox at a start: instances that were still in a segment when the program or the machine ended become files
again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from dicomtwist.archive.inbox.inbox import PublishedStorage, make_file
from dicomtwist.archive.inbox.notes import FOLDER, MakeTasks, Noted, SavedNotes, copy_time, make_in_parts
from dicomtwist.archive.inbox.recovery import Recovery
from dicomtwist.archive.storage.file_store import InstanceStore
from dicomtwist.archive.storage.system_calls import FileSystem
from dicomtwist.archive.storage.types import NO_ROOM, InstanceUIDs, StoreError, StoreUnusable

__all__ = ["Replayed", "replay", "replay_at_start"]

#: Failures of the file system itself, for which a start tries again later.
_PASSING: Final = NO_ROOM | {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@dataclass(slots=True)
class Replayed:
    """
    The result of a replay.

    :ivar instances: the number of instances that the segments held.
    :ivar made: the number of files that were missing or not whole, and were made again.
    :ivar noted: the number of instances that had a note.
    :ivar notes: lines for the operator: instances that are damaged, segments that are set aside.
    """

    instances: int = 0
    made: int = 0
    noted: int = 0
    notes: list[str] = field(default_factory=list)


def replay(
    store: PublishedStorage,
    folder: str,
    file_system: FileSystem,
    take_notes: Callable[[Sequence[Noted]], None] = lambda noted: None,
) -> Replayed:
    """
    Make files of the instances in all segments that earlier runs left behind, and tasks of their notes, then remove the
    segments.

    A file that is there and holds the same bytes is left as it is. A segment with damage is set aside, with the name
    ``broken-...``, after all that can be read has become files. If the program ends before the end of the replay, the next
    start does the same again.

    :param store: the storage, prepared.
    :param folder: the folder of the segments.
    :param file_system: the system calls to use.
    :param take_notes: makes the tasks of all instances that have a note, some of which may be made already. A note of an
        instance that cannot become a file counts as well: an operator may bring the file back.
    :raises OSError: the folder cannot be read, there is no room for the files, or one cannot be flushed to the medium. All
        segments stay.
    :raises Exception: as *take_notes*; all segments stay.
    """
    result = Replayed()
    recovery = Recovery(folder, file_system)
    try:
        made: set[InstanceUIDs] = set()
        # The earlier run has acknowledged these with durability full, whatever this one has.
        durable: set[InstanceUIDs] = set()
        noted: list[Noted] = []
        for found in recovery:
            uids = found.frame.uids
            (content,) = found.frame.content
            result.instances += 1
            if found.frame.note:
                received = copy_time(found.frame.received)
                noted.append(Noted(uids, found.frame.note, received, len(content)))
            try:
                if not _holds(store, file_system, uids, bytes(content)):
                    _make_file(store, uids, bytes(content), found.frame.received)
                    result.made += 1
                (durable if found.frame.digest else made).add(uids)
            except OSError as error:
                if error.errno in _PASSING:
                    raise
                recovery.keep()
                result.notes.append(f"{'/'.join(uids)} cannot become a file: {error.strerror or error}")
        for failure in (*store.sync_files(durable, always=True).values(), *store.sync_files(made).values()):
            raise failure
        if noted:
            take_notes(noted)
            result.noted = len(noted)
        recovery.finish()
    finally:
        recovery.close()
    result.notes += _damage(recovery)
    return result


def replay_at_start(store: InstanceStore, file_system: FileSystem, make_tasks: MakeTasks | None) -> Replayed:
    """
    Replay the segments that earlier runs of an archive left behind.

    :param make_tasks: makes the tasks of notes, also of those that were saved; ``None`` to save them for an archive that does.
    :raises StoreUnusable: files or tasks cannot be made. All segments stay.
    """
    folder = store.temporary_files.folder
    saved = SavedNotes(store.side_folder(FOLDER))
    try:
        if make_tasks is None:
            result = replay(store, folder, file_system, saved.save)
            if result.noted:
                result.notes.append(
                    f"{result.noted} instances are to be forwarded; a start with rules of forwarding makes their tasks"
                )
        else:
            saved.take_up(make_tasks)
            result = replay(store, folder, file_system, partial(make_in_parts, make_tasks))
    except OSError as error:
        raise StoreUnusable(
            f"cannot make files of the instances in the inbox {folder}: {error.strerror or error}; "
            "they are safe there, start again"
        ) from error
    except StoreError as error:
        raise StoreUnusable(
            f"cannot make the tasks of the instances in the inbox {folder}: {error}; they are safe there, start again"
        ) from error
    return result


def _make_file(store: PublishedStorage, uids: InstanceUIDs, content: bytes, received: int) -> None:
    """Make the file of an instance; try twice before the instance is set aside with its segment."""
    try:
        make_file(store, uids, content, received)
    except OSError as error:
        if error.errno in _PASSING:
            raise
        make_file(store, uids, content, received)


def _holds(store: PublishedStorage, file_system: FileSystem, uids: InstanceUIDs, content: bytes) -> bool:
    """Whether the file of an instance holds *content*."""
    try:
        with store.open(*uids) as file:
            # If an earlier run could not flush it, the system's copy is not what the medium has, and no sync says so again.
            file_system.drop_cache(file.fileno())
            return file.read(len(content) + 1) == content
    except OSError:
        return False


def _damage(recovery: Recovery) -> Iterable[str]:
    if recovery.damaged:
        uids = ", ".join(recovery.damaged_uids) or "their UIDs cannot be read"
        yield f"{recovery.damaged} places hold instances that were acknowledged and cannot be read any more: {uids}"
    for line in recovery.unreadable:
        yield f"this is no segment of the inbox and stays where it is: {line}"
    for name in recovery.set_aside:
        yield f"a damaged segment is set aside as {name}; all that can be read in it has become files"
