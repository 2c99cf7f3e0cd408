"""
The segments of the inbox: preallocated files that small instances are appended to, with one write and one sync for all that are
complete at a time.

A segment is named ``inbox-<number>-<generation>``; the numbers rise in the order of use, and only frames of the generation in
the name count (:mod:`dicomtwist.archive.inbox.frames`). A retired segment gets the name of its next use, so its stale frames
are forgotten at once, and its blocks are used again: overwriting them changes no metadata, which makes the sync cheap.

All functions block and are meant for worker threads. One thread at a time appends; other threads may call the other methods
meanwhile.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import secrets
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

from dicomtwist.archive.inbox.frames import GENERATION_LENGTH, Frame, FrameRefused
from dicomtwist.archive.inbox.segment import Place, Segment
from dicomtwist.archive.storage.process_locks import FileLock
from dicomtwist.archive.storage.system_calls import FileSystem
from dicomtwist.archive.storage.types import Durability, StoreClosed, StoreError

__all__ = ["MAX_SEGMENTS", "NAME", "SEGMENT_SIZE", "InboxFull", "Place", "Segments"]

#: The size of a segment in bytes.
SEGMENT_SIZE: Final = 32 * 1024 * 1024
#: The number of segments of a store.
MAX_SEGMENTS: Final = 8
#: The names of segments: their number and their generation.
NAME: Final = re.compile(r"inbox-([0-9]{1,18})-([0-9a-f]{16})")

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_MODE: Final = 0o640
#: A file with this number or a higher one, in the name of a segment, is not ours: numbers count on from those that are lower.
#: Else the next number might have more digits than a name has, and no start would find that segment.
_ALIEN: Final = 10**17
#: The unit in which a file takes room on most file systems, in bytes.
_BLOCK: Final = 4096


class InboxFull(StoreError):
    """All segments are in use: the instance has to wait until one is retired, or to become a file at once."""


class Segments:
    """
    The inbox of one store.

    Several stores, in one process or in several, may share a folder: each has segments of its own, and holds a lock on each.

    :param folder: the folder of the segments; it exists.
    :param file_system: the system calls to use.
    :param durability: with full, an instance is on the medium when :meth:`append` returns. With none the segments are neither
        filled with zeros nor synced.
    :param min_free: the number of bytes that must stay free on the file system when all instances of the inbox have become
        files; otherwise :meth:`append` fails with ENOSPC.
    :param segment_size: the size of a segment in bytes.
    :param max_segments: the number of segments, at least 2.
    """

    def __init__(
        self,
        folder: str,
        file_system: FileSystem,
        *,
        durability: Durability,
        min_free: int = 0,
        segment_size: int = SEGMENT_SIZE,
        max_segments: int = MAX_SEGMENTS,
    ) -> None:
        self.folder = folder
        self.segment_size = segment_size
        self.max_segments = max_segments
        self.min_free = min_free
        self._fs = file_system
        self._syncs = durability is Durability.FULL
        self._lock = threading.Lock()  # for the attributes below; nothing blocks while it is held
        # Held during an append, so that no segment is sealed and retired under it.
        self._appending = threading.Lock()
        # Held while a segment gets a name, so that the numbers of ready ones rise and nothing is retired meanwhile.
        self._naming = threading.Lock()
        self._numbers: itertools.count[int] | None = None
        self._open: Segment | None = None
        self._ready: deque[Segment] = deque()
        self._used: dict[int, Segment] = {}
        self._waiting = 0
        self._waiting_room = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """The number of instances that are not done."""
        return self._waiting

    # --- the thread that appends

    def has_room(self, size: int) -> bool:
        """Whether :meth:`append` finds room for frames of *size* bytes together without :class:`InboxFull`."""
        with self._lock:
            segment = self._open
            fits = segment is not None and segment.end + size <= self.segment_size
            return fits or bool(self._ready) or len(self._used) < self.max_segments

    def append(self, frames: Sequence[Frame]) -> list[Place]:
        """
        Append frames; with durability full they are on the medium afterwards, all with one sync.

        :returns: the places of their contents, in the same order.
        :raises FrameRefused: a frame cannot be encoded (see :func:`~dicomtwist.archive.inbox.frames.frame_size`), or all
            together are larger than a segment.
        :raises InboxFull: no segment has room for them, and there are :attr:`max_segments`.
        :raises OSError: as it came, errno intact. In each case none of the frames is in the inbox.
        """
        with self._appending:
            if self._closed:
                raise StoreClosed("the inbox is closed")
            return self._append(frames)

    def _append(self, frames: Sequence[Frame]) -> list[Place]:
        segment = self._open or self._open_next()
        batch = segment.encode(frames)
        if batch.end - segment.end > self.segment_size:
            raise FrameRefused(f"{batch.end - segment.end} bytes do not fit into a segment of {self.segment_size}")
        places = batch.places
        room = sum([_room(place) for place in places])
        if self._fs.free(self.folder) < self.min_free + self._waiting_room + room:
            raise OSError(errno.ENOSPC, "too little room to make files of what is in the inbox", self.folder)
        if batch.end > self.segment_size:
            segment = self._open_next()
            batch = segment.encode(frames)
            places = batch.places
        try:
            segment.write(batch)
        except BaseException:
            if segment.distrusted:
                self._seal(segment)
            raise
        with self._lock:
            segment.end = batch.end
            segment.live += len(places)
            self._waiting += len(places)
            self._waiting_room += room
        return places

    def _open_next(self) -> Segment:
        """Seal the open segment and open another one."""
        segment = self._take_ready()
        if segment is None:
            with self._naming:
                segment = self._take_ready() or self._create()
        with self._lock:
            if self._open is not None:
                self._open.sealed = True
            self._used[segment.number] = segment
            self._open = segment
        return segment

    def _take_ready(self) -> Segment | None:
        with self._lock:
            return self._ready.popleft() if self._ready else None

    # --- other threads

    def read(self, place: Place) -> bytes:
        """
        Return a content.

        :raises LookupError: its segment is retired, or is being retired.
        :raises OSError: it cannot be read.
        """
        segment = self._used[place.segment]
        content = segment.read(place)
        if self._used.get(place.segment) is not segment:
            raise LookupError("the segment was retired meanwhile")
        return content

    def done(self, places: Iterable[Place]) -> None:
        """Note that these instances are files now."""
        with self._lock:
            for place in places:
                self._used[place.segment].live -= 1
                self._waiting -= 1
                self._waiting_room -= _room(place)

    def void(self, places: Iterable[Place]) -> None:
        """
        Let no start make files of these frames again, before their instances are replaced or removed. With durability full that
        is on the medium afterwards. Nothing happens to frames of retired segments.

        :raises OSError: as it came, errno intact.
        """
        by_segment: dict[int, list[Place]] = {}
        for place in places:
            by_segment.setdefault(place.segment, []).append(place)
        with self._naming:
            for number, held in by_segment.items():
                segment = self._used.get(number)
                if segment is not None:
                    segment.void(held)

    def seal(self) -> None:
        """Let the next append use another segment, so that the open one can be retired. If that is empty, it stays open."""
        with self._appending:
            segment = self._open
            if segment is not None and segment.end:
                self._seal(segment)

    def _seal(self, segment: Segment) -> None:
        with self._lock:
            segment.sealed = True
            if self._open is segment:
                self._open = None

    def sealed(self) -> list[int]:
        """Return the numbers of the segments that nothing is appended to any more and all of whose instances are done."""
        with self._lock:
            return [number for number, segment in self._used.items() if segment.sealed and not segment.live]

    def retire(self, number: int) -> None:
        """
        Forget the frames of a segment that :meth:`sealed` has returned, whose files are on the medium as durability asks for.
        The segment is used again.

        :raises ValueError: instances in it are not done, or more may be appended.
        :raises OSError: as it came, errno intact; :meth:`sealed` goes on to return it.
        """
        with self._naming:
            with self._lock:
                segment = self._used[number]
                if segment.live or not segment.sealed:
                    raise ValueError(f"segment {number} is in use")
                del self._used[number]
            try:
                if segment.distrusted:
                    with suppress(FileNotFoundError):  # the sync of the folder failed the last time
                        self._fs.unlink(segment.path)
                else:
                    self._rename(segment)
                if self._syncs:
                    self._fs.sync_folder(self.folder)
            except BaseException:
                # The old name may come back after a power cut, so what is written then would not be found.
                segment.distrusted = True
                with self._lock:
                    self._used[number] = segment
                raise
            if segment.distrusted:
                self._fs.close_quietly(segment.fd)
            else:
                segment.end, segment.sealed = 0, False
                with self._lock:
                    self._ready.append(segment)

    def make_spare(self) -> bool:
        """
        Make a segment in advance if none is ready, so that no append has to wait for one.

        :returns: whether one was made.
        :raises OSError: as it came, errno intact; nothing is left of it.
        """
        with self._naming:
            if self._ready or len(self._used) >= self.max_segments or self._closed:
                return False
            segment = self._create()
            with self._lock:
                self._ready.append(segment)
        return True

    def close(self) -> None:
        """
        Remove the segments that are empty or retired, and release the others for the next start; idempotent. No other call may
        be under way.
        """
        with self._lock:
            self._closed = True
            segments = [*self._used.values(), *self._ready]
            self._used.clear()
            self._ready.clear()
            self._open = None
        for segment in segments:
            # Frames that are done may have files that are not on the medium: only retiring tells.
            if not segment.end:
                self._fs.unlink_quietly(segment.path)
            self._fs.close_quietly(segment.fd)
        if segments and self._syncs:
            with suppress(OSError):
                self._fs.sync_folder(self.folder)

    # --- names

    def _new_name(self) -> tuple[int, bytes, str]:
        if self._numbers is None:
            names = map(NAME.fullmatch, self._fs.listdir(self.folder))
            taken = (int(name[1]) for name in names if name)
            self._numbers = itertools.count(max((number for number in taken if number < _ALIEN), default=0) + 1)
        number, generation = next(self._numbers), secrets.token_bytes(GENERATION_LENGTH)
        return number, generation, os.path.join(self.folder, f"inbox-{number}-{generation.hex()}")

    def _create(self) -> Segment:
        with self._lock:
            if len(self._used) + len(self._ready) >= self.max_segments:
                raise InboxFull(f"all {self.max_segments} segments of the inbox are in use")
        fs = self._fs
        if self._syncs and fs.free(self.folder) < self.min_free + self._waiting_room + self.segment_size:
            # Else filling it would take the last room from all others for a moment.
            raise OSError(errno.ENOSPC, "too little room for a segment of the inbox", self.folder)
        number, generation, path = self._new_name()
        fd = fs.open(path, _CREATE, _MODE)
        try:
            if not FileLock(path, fd).try_exclusive():
                # Another store that is starting has taken the empty segment for a left-over one, and removes it.
                raise OSError(errno.EAGAIN, "another store is starting with the same folder", path)
            segment = Segment(number, generation, path, fd, fs, syncs=self._syncs)
            if self._syncs:
                segment.fill(self.segment_size)
                fs.sync_folder(self.folder)
        except BaseException:
            fs.unlink_quietly(path)
            fs.close_quietly(fd)
            raise
        return segment

    def _rename(self, segment: Segment) -> None:
        """Give a segment the name of its next use."""
        number, generation, path = self._new_name()
        self._fs.rename(segment.path, path)
        segment.number, segment.generation, segment.path = number, generation, path


def _room(place: Place) -> int:
    """Return the room that the file of an instance takes, in bytes: one block more, for its name and its metadata."""
    return (place.length + 2 * _BLOCK - 1) // _BLOCK * _BLOCK
