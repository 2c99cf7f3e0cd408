"""
The inbox: small instances between their acknowledgement and their files.

An instance that is complete is appended to a segment, together with its neighbours, and acknowledged. Later, after a pause in
the arrivals or when many wait, it is *published*: its file gets its name. Later still it is *settled*: its file and the folders
above are on the medium, and the tasks of its note are made, so that the segment is not needed any more. If the program or the
machine ends in between, the next start makes files and tasks again (:mod:`dicomtwist.archive.inbox.replay`).
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

from dicomtwist.archive.inbox.frames import Frame
from dicomtwist.archive.inbox.notes import MakeTasks, Noted, copy_time, make_in_parts
from dicomtwist.archive.inbox.segments import InboxFull, Place, Segments
from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.types import InstanceUIDs, StoreError, Written

__all__ = ["MAX_CONTENT", "MAX_WAITING", "Inbox", "PublishedStorage", "Small", "make_file"]

#: An instance of up to this number of bytes goes into the inbox; a larger one becomes a file at once.
MAX_CONTENT: Final = 128 * 1024
#: The number of instances that may wait for their files; a caller with one more makes files of them first.
MAX_WAITING: Final = 4096
#: The number of files that are written and named together.
_GROUP: Final = 64
#: The difference between the times of instances that were received together, in nanoseconds.
_APART: Final = 1000


class Small(NamedTuple):
    """
    A small instance that is complete.

    :ivar uids: its Study, Series and SOP Instance UIDs.
    :ivar transfer_syntax: the transfer syntax of its data set.
    :ivar content: its DICOM file, each buffer contiguous.
    :ivar digest: the SHA-256 of the file; empty with durability none.
    :ivar held: the approximate number of bytes that *row* keeps in memory.
    :ivar row: makes the row of the instance from its size and digest; it holds no reference to the content.
    :ivar note: its note, of which tasks are made before its segment is retired.
    """

    uids: InstanceUIDs
    transfer_syntax: str
    content: Sequence[Buffer]
    digest: bytes
    held: int
    row: Callable[[Written], Any]
    note: bytes = b""


class RowQueue(Protocol):
    """The rows that follow the acknowledgements, see :class:`~dicomtwist.archive.index.write_behind.WriteBehind`."""

    def make_room(self) -> None:
        """If the queue is full, add its rows to the index."""

    def put(self, rows: Sequence[tuple[Callable[[], Any], InstanceUIDs]], size: int, /) -> None:
        """Queue rows, however many wait."""


class PublishedStorage(Protocol):
    """The storage as the inbox sees it: files get their names first, and are flushed to the medium later."""

    def write_acknowledged(self, contents: Sequence[tuple[Buffer, int]], /) -> list[Written | BaseException]:
        """
        Write instances that were acknowledged, unsynced and without a final name; return for each the file or the error.

        :param contents: the content of each, and the time of its receipt, which becomes the time of its file.
        """

    def publish(self, source: str, study_uid: str, series_uid: str, instance_uid: str, /) -> None:
        """Give the temporary file *source* its final name; it replaces an earlier copy."""

    def open(self, study_uid: str, series_uid: str, instance_uid: str, /) -> BinaryIO:
        """Open an instance."""

    def sync_files(self, instances: Iterable[InstanceUIDs], /, *, always: bool = False) -> dict[InstanceUIDs, OSError]:
        """Flush instances and their names to the medium, if the durability or *always* asks for it; return the failures."""

    def remove(self, temporary: str, /) -> None:
        """Remove a temporary file; a failure is ignored."""


@dataclass(slots=True, eq=False)
class _Entry:
    """An instance in the inbox, and where its content lies."""

    uids: InstanceUIDs
    place: Place
    received: int
    note: bytes


class _Kept(NamedTuple):
    """An instance that has a file and is still in a segment."""

    place: Place
    received: int


class Inbox:
    """
    The inbox of an archive, for use from any thread.

    :param store: the storage of the files.
    :param segments: the segments, in a folder of the same file system.
    :param rows: takes the rows of instances that are in the inbox.
    :param make_tasks: makes the tasks of instances that have a note and a file.
    """

    def __init__(
        self, store: PublishedStorage, segments: Segments, rows: RowQueue, make_tasks: MakeTasks | None = None
    ) -> None:
        self._make_tasks: MakeTasks = make_tasks or (lambda noted: None)
        self._store = store
        self._segments = segments
        self._rows = rows
        self._lock = threading.Lock()  # for the two dicts; nothing blocks while it is held
        # One thread at a time publishes, and one settles. A query waits for the first and not for the second; a thread that
        # needs both takes the second first.
        self._publishing = threading.Lock()
        self._settling = threading.Lock()
        self._waiting: dict[InstanceUIDs, _Entry] = {}
        self._unsettled: dict[InstanceUIDs, _Kept] = {}
        # Those of the second kind that a sync has failed for. The system reports such a failure once, and counts the pages as
        # clean then, so that the next sync succeeds without them.
        self._unflushed: set[InstanceUIDs] = set()
        # The instances that have files and no tasks yet. Their segments count them as not done, so that these stay.
        self._noted: dict[Place, _Entry] = {}
        self._tasking = threading.Lock()

    @property
    def min_free(self) -> int:
        """The number of bytes that must stay free on the file system; it may be changed."""
        return self._segments.min_free

    @min_free.setter
    def min_free(self, count: int) -> None:
        self._segments.min_free = count

    def __len__(self) -> int:
        """The number of instances that have no file yet."""
        return len(self._waiting)

    @property
    def unsettled(self) -> int:
        """The number of instances that have a file and are still in a segment."""
        return len(self._unsettled)

    def waits(self, uids: InstanceUIDs) -> bool:
        """Return whether an instance has no file yet. If not, it may have got one just before."""
        return uids in self._waiting

    def holds(self, uids: InstanceUIDs) -> bool:
        """Return whether an instance, which does not wait any more, is still in a segment."""
        return uids in self._unsettled

    def held_below(self, uids: Sequence[str]) -> list[InstanceUIDs]:
        """
        Return the instances of a study or series that are in a segment.

        :param uids: the Study Instance UID, or that and the Series Instance UID, or these and the SOP Instance UID.
        """
        below = tuple(uids)
        with self._lock:
            return [one for one in (*self._waiting, *self._unsettled) if one[: len(below)] == below]

    def append(self, instances: Sequence[Small]) -> None:
        """
        Take instances, all or none. With durability full they are on the medium afterwards.

        Only one thread at a time appends. If the inbox is full, the call makes files of what is in it first.

        :param instances: instances of at most :data:`MAX_CONTENT` bytes each; none of them waits.
        :raises OSError: as it came, errno intact.
        :raises IndexFailed: many rows wait, and the database refused them.
        :raises StoreError: the inbox is full, or closed.
        """
        if len(self._waiting) + len(instances) > MAX_WAITING:
            self._make_room(len(instances))
        self._rows.make_room()
        now = time.time_ns()
        # The order stays, also in the times of the files, which tell a start which of them was received first.
        times = range(now, now + len(instances) * _APART, _APART)
        frames = [
            Frame(one.uids, one.transfer_syntax, one.content, one.digest, received, one.note)
            for one, received in zip(instances, times, strict=True)
        ]
        try:
            places = self._segments.append(frames)
        except InboxFull:
            self.settle()
            places = self._segments.append(frames)
        with self._lock:
            for one, place, received in zip(instances, places, times, strict=True):
                self._waiting[one.uids] = _Entry(one.uids, place, received, one.note)
        self._rows.put(
            [
                (partial(one.row, Written("", place.length, one.digest)), one.uids)
                for one, place in zip(instances, places, strict=True)
            ],
            sum([one.held for one in instances]),
        )

    def _make_room(self, count: int) -> None:
        try:
            self.publish()
        except OSError:
            # The files of some instances cannot be made for now; the others do not wait for them.
            if len(self._waiting) + count > MAX_WAITING:
                raise

    def publish(self) -> None:
        """
        Give all instances that waited before the call their files.

        :raises OSError: a file could not be made. Its instance is safe and waits for the next call; all others have files.
        """
        with self._publishing:
            failure = self._publish()
        if failure is not None:
            raise failure

    def settle(self, *, everything: bool = False) -> None:
        """
        Make the tasks of notes, flush what is published to the medium, as durability asks for, and retire the segments that are
        not needed any more.

        :param everything: whether the segment that is being filled is retired as well. Then nothing that was appended before
            the call is left in the inbox.
        :raises OSError: as :meth:`publish`, or a file could not be flushed, or tasks could not be made; their segments stay.
        """
        with self._settling:
            if everything:
                self._segments.seal()
            with self._publishing:
                failure = self._publish()
            try:
                self._make_noted()
            except OSError as error:
                failure = error
            failure = self._retire() or failure
        if failure is not None:
            raise failure

    def release(self, instances: Iterable[InstanceUIDs]) -> None:
        """
        Let no start make files of these instances again: they are about to be replaced or removed. Their tasks are made.

        :raises OSError: as it came, errno intact. The instances are as before.
        """
        uids = list(instances)
        with self._settling:
            if any(one in self._waiting for one in uids):
                with self._publishing:
                    failure = self._publish()
                if failure is not None and any(one in self._waiting for one in uids):
                    raise failure
            held = {one: self._unsettled[one] for one in uids if one in self._unsettled}
            if not held:
                return
            if any(kept.place in self._noted for kept in held.values()):
                self._make_noted()
            # If the replacement fails, the old copies stay.
            self._flush(held)
            self._segments.void(kept.place for kept in held.values())
            with self._lock:
                for one in held:
                    del self._unsettled[one]

    def make_spare(self) -> None:
        """
        Make a segment in advance, so that no instance waits for one.

        :raises OSError: as it came, errno intact.
        """
        self._segments.make_spare()

    def close(self) -> None:
        """
        Settle everything and close the segments; idempotent. The next start settles what is left.

        :raises OSError: as :meth:`settle`; the segments are closed all the same.
        """
        try:
            self.settle(everything=True)
        finally:
            self._segments.close()

    # --- internals, in the thread that publishes or settles

    def _publish(self) -> OSError | None:
        """Make files of all instances that wait; return the reason why one could not be made."""
        with self._lock:
            entries = list(self._waiting.values())
        failure: OSError | None = None
        for start in range(0, len(entries), _GROUP):
            failure = self._publish_some(entries[start : start + _GROUP]) or failure
        return failure

    def _publish_some(self, entries: Sequence[_Entry]) -> OSError | None:
        failure: OSError | None = None
        contents: list[tuple[_Entry, bytes]] = []
        for entry in entries:
            try:
                self._void_earlier(entry)
                contents.append((entry, self._segments.read(entry.place)))
            except OSError as error:
                failure = error
        written = self._store.write_acknowledged([(content, entry.received) for entry, content in contents])
        published: list[_Entry] = []
        for (entry, _), file in zip(contents, written, strict=True):
            try:
                _name_file(self._store, entry.uids, file)
            except OSError as error:
                failure = error
            else:
                published.append(entry)
        with self._lock:
            for entry in published:
                del self._waiting[entry.uids]
                self._unsettled[entry.uids] = _Kept(entry.place, entry.received)
            # Tasks are made when the caller has let go of the lock that queries wait for.
            self._noted.update((entry.place, entry) for entry in published if entry.note)
        self._segments.done([entry.place for entry in published if not entry.note])
        return failure

    def _make_noted(self) -> None:
        """
        Make the tasks of all instances that have a note and a file.

        :raises OSError: that failed; a later call tries again.
        """
        with self._tasking:
            with self._lock:
                entries = list(self._noted.values())
            if not entries:
                return
            noted = [Noted(one.uids, one.note, copy_time(one.received), one.place.length) for one in entries]
            try:
                make_in_parts(self._make_tasks, noted)
            except StoreError as error:
                raise OSError(errno.EIO, str(error)) from error
            with self._lock:
                for one in entries:
                    del self._noted[one.place]
            self._segments.done([one.place for one in entries])

    def _void_earlier(self, entry: _Entry) -> None:
        """
        Let no start make a file of an earlier copy, whose file was removed from outside.

        :raises OSError: as it came, errno intact.
        """
        earlier = self._unsettled.get(entry.uids)
        if earlier is not None:
            if earlier.place in self._noted:
                self._make_noted()
            self._segments.void([earlier.place])

    def _retire(self) -> OSError | None:
        """Flush the files of the segments that are full or sealed, and retire them; return the reason why one stays."""
        failure: OSError | None = None
        for number in self._segments.sealed():
            with self._lock:
                held = {uids: kept for uids, kept in self._unsettled.items() if kept.place.segment == number}
            try:
                self._flush(held)
                with self._publishing:
                    # Nothing is voided meanwhile in what the segment becomes.
                    self._segments.retire(number)
            except OSError as error:
                failure = error
                continue
            with self._lock:
                for uids, kept in held.items():
                    # It may have come again meanwhile, after its file was removed from outside.
                    if self._unsettled.get(uids) is kept:
                        del self._unsettled[uids]
        return failure

    def _flush(self, held: Mapping[InstanceUIDs, _Kept]) -> None:
        """
        Flush instances that have files to the medium. A file for which that fails is made again from its segment, since the
        system's copy of it cannot be trusted any more.

        :raises OSError: one of them is not on the medium; a later call makes it again.
        """
        self._unflushed.update(self._store.sync_files(held))
        for uids in self._unflushed & held.keys():
            make_file(self._store, uids, self._segments.read(held[uids].place), held[uids].received)
            for error in self._store.sync_files([uids]).values():
                raise error
            self._unflushed.discard(uids)


def make_file(store: PublishedStorage, uids: InstanceUIDs, content: bytes, received: int) -> None:
    """
    Make the file of an instance that was acknowledged. It replaces an earlier one.

    :param received: the time of its receipt, in nanoseconds since 1970.
    :raises OSError: as it came, errno intact; an earlier file has not changed.
    """
    (file,) = store.write_acknowledged([(content, received)])
    _name_file(store, uids, file)


def _name_file(store: PublishedStorage, uids: InstanceUIDs, file: Written | BaseException) -> None:
    """Give a temporary file its final name, or raise the error in its place."""
    if not isinstance(file, Written):
        raise file
    try:
        store.publish(file.path, *uids)
    except BaseException:
        store.remove(file.path)
        raise
