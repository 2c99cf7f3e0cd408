"""Segments of the inbox: what was acknowledged is found after any failure and any end, what failed is not."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.inbox.frames import Frame, FrameRefused, begin_of, frame_size
from dicomtwist.archive.inbox.recovery import BROKEN, MAX_SIZE, Recovery
from dicomtwist.archive.inbox.segments import MAX_SEGMENTS, NAME, SEGMENT_SIZE, InboxFull, Place, Segments
from dicomtwist.archive.storage import process_locks
from dicomtwist.archive.storage.system_calls import Buffer, FileSystem
from dicomtwist.archive.storage.types import Durability, StoreClosed
from tests.archive.inbox.media import Medium, PowerCut, Quota, frame, number_of
from tests.archive.storage.test_file_store import Failing, Recording

FULL, NONE = Durability.FULL, Durability.NONE
SIZE = 16 * 1024


class SegmentsTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir(parents=True)

    def make(
        self,
        durability: Durability = FULL,
        file_system: FileSystem | None = None,
        *,
        size: int = SIZE,
        most: int = 3,
        min_free: int = 0,
        folder: Path | None = None,
    ) -> Segments:
        made = Segments(
            os.fspath(folder or self.folder),
            file_system or FileSystem(),
            durability=durability,
            segment_size=size,
            max_segments=most,
            min_free=min_free,
        )
        self.addCleanup(made.close)
        return made

    def die(self, segments: Segments) -> None:
        """End a store as a kill does: its descriptors and locks are gone, its files stay."""
        for segment in (*segments._used.values(), *segments._ready):
            os.close(segment.fd)
        segments._used.clear()
        segments._ready.clear()

    def clear(self) -> None:
        for name in self.names():
            (self.folder / name).unlink()

    def names(self) -> list[str]:
        return sorted(os.listdir(self.folder))

    def left(self, folder: Path | None = None) -> list[int]:
        """Return the numbers of the frames that a start finds; nothing is damaged. The segments stay."""
        recovery = Recovery(os.fspath(folder or self.folder), FileSystem())
        numbers = [number_of(found.frame) for found in recovery]
        self.assertEqual((recovery.damaged, recovery.unreadable), (0, []))
        recovery.close()
        return numbers

    def fill(self, segments: Segments, first: int = 0) -> dict[int, Place]:
        """Append frames, one at a time, until the inbox is full."""
        places: dict[int, Place] = {}
        while True:
            number = first + len(places)
            try:
                (places[number],) = segments.append([frame(number)])
            except InboxFull:
                return places


class Appending(SegmentsTestCase):
    def test_what_was_appended(self) -> None:
        for durability in Durability:
            segments = self.make(durability)
            frames = [frame(number, 100 * number) for number in range(12)]
            places = [*segments.append(frames[:5]), *segments.append(frames[5:6]), *segments.append(frames[6:])]
            for one, place in zip(frames, places, strict=True):
                self.assertEqual(segments.read(place), b"".join(one.content))
            self.assertEqual(segments.waiting, 12)
            segments.done(places)
            self.assertEqual(segments.waiting, 0)
            self.assertEqual(segments.append([]), [])

    def test_one_write_and_one_sync(self) -> None:
        for durability, calls in ((FULL, ["free", "pwritev", "fdatasync"]), (NONE, ["free", "pwritev"])):
            disk = Recording()
            segments = self.make(durability, disk)
            segments.append([frame(0)])
            disk.calls.clear()
            segments.append([frame(number) for number in range(1, 8)])
            self.assertEqual([call.split()[0] for call in disk.calls], calls)

    def test_files(self) -> None:
        """They belong to the user and the group alone, and with durability full no append changes their size."""
        for durability, sizes in ((FULL, [SIZE]), (NONE, [frame_size(frame(0))])):
            segments = self.make(durability)
            segments.append([frame(0)])
            (name,) = self.names()
            status = (self.folder / name).stat()
            self.assertEqual([status.st_size], sizes)
            self.assertEqual(stat.S_IMODE(status.st_mode) & 0o037, 0)
            self.assertIsNotNone(NAME.fullmatch(name))
            self.die(segments)
            (self.folder / name).unlink()

    def test_many_buffers(self) -> None:
        content: list[Buffer] = [bytes([number % 256]) for number in range(5000)]
        segments = self.make()
        (place,) = segments.append([frame(0)._replace(content=content)])
        self.assertEqual(segments.read(place), b"".join(content))

    def test_few_bytes_at_once(self) -> None:
        chance = random.Random(1)

        class Dribbling(FileSystem):
            def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
                return os.pwrite(fd, b"".join(buffers)[: chance.randint(1, 700)], offset)

            def pread(self, fd: int, length: int, offset: int) -> bytes:
                return os.pread(fd, min(length, chance.randint(1, 700)), offset)

        segments = self.make(file_system=Dribbling())
        frames = [frame(number, 49 * number) for number in range(20)]
        for one, place in zip(frames, segments.append(frames), strict=True):
            self.assertEqual(segments.read(place), b"".join(one.content))
        self.die(segments)
        self.assertEqual(self.left(), list(range(20)))

    def test_no_progress(self) -> None:
        class Stuck(FileSystem):
            stuck = False

            def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
                return 0 if self.stuck else super().pwritev(fd, buffers, offset)

        disk = Stuck()
        segments = self.make(file_system=disk)
        segments.append([frame(0)])
        disk.stuck = True
        self.assertEqual(self.assertRaises(OSError, segments.append, [frame(1)]).errno, errno.EIO)
        disk.stuck = False
        segments.append([frame(2)])
        self.die(segments)
        self.assertEqual(self.left(), [0, 2])

    def test_refused(self) -> None:
        """A frame that cannot be written, or is too large, changes nothing; so do too many together."""
        segments = self.make()
        segments.append([frame(0)])
        for wrong in (
            [frame(1), frame(2)._replace(uids=("1.2", "1.3", "x"))],
            [frame(1, SIZE)],
            [frame(number, 5000) for number in range(1, 5)],
        ):
            self.assertRaises(FrameRefused, segments.append, wrong)
        segments.append([frame(9)])
        largest = max(length for length in range(SIZE - 512, SIZE) if frame_size(frame(10, length)) == SIZE)
        segments.append([frame(10, largest)])
        self.assertRaises(FrameRefused, segments.append, [frame(11, largest + 1)])
        self.die(segments)
        self.assertEqual(self.left(), [0, 9, 10])

    def test_closed(self) -> None:
        segments = self.make()
        segments.append([frame(0)])
        segments.close()
        self.assertRaises(StoreClosed, segments.append, [frame(1)])
        self.assertFalse(segments.make_spare())
        segments.close()

    def test_default_sizes(self) -> None:
        """A batch of the largest small instances fits into a segment several times."""
        self.assertGreater(SEGMENT_SIZE, 8 * 32 * 64 * 1024)
        self.assertGreater(MAX_SEGMENTS, 2)


class Retiring(SegmentsTestCase):
    def test_full(self) -> None:
        """Beyond the segments nothing is appended until one is retired."""
        for durability in Durability:
            segments = self.make(durability)
            places = self.fill(segments)
            size = frame_size(frame(0))
            self.assertEqual(len(places), 3 * (SIZE // size))
            self.assertEqual(len(self.names()), 3)
            self.assertFalse(segments.has_room(size))
            self.assertRaises(InboxFull, segments.append, [frame(99)])
            self.assertEqual(segments.sealed(), [])
            first = [place for place in places.values() if place.segment == 1]
            segments.done(first[1:])
            self.assertEqual(segments.sealed(), [])
            segments.done(first[:1])
            self.assertEqual(segments.sealed(), [1])
            self.assertFalse(segments.has_room(size))
            segments.retire(1)
            self.assertEqual(segments.sealed(), [])
            self.assertTrue(segments.has_room(size))
            self.assertRaises(LookupError, segments.read, first[0])
            (place,) = segments.append([frame(99)])
            self.assertEqual(place.segment, 4)
            self.assertEqual(len(self.names()), 3)
            self.die(segments)
            self.assertEqual(self.left(), [*range(len(first), len(places)), 99])
            self.clear()

    def test_room(self) -> None:
        segments = self.make(most=2)
        size = frame_size(frame(0))
        self.assertTrue(segments.has_room(size))
        segments.append([frame(0)])
        self.assertTrue(segments.has_room(SIZE))
        segments.append([frame(1, SIZE - 1000)])
        self.assertFalse(segments.has_room(size))
        self.assertTrue(segments.has_room(512))

    def test_not_yet(self) -> None:
        """A segment is not retired before nothing is appended any more and all is done."""
        segments = self.make()
        (place,) = segments.append([frame(0)])
        self.assertRaises(ValueError, segments.retire, 1)
        segments.seal()
        self.assertRaises(ValueError, segments.retire, 1)
        segments.done([place])
        self.assertRaises(LookupError, segments.retire, 2)
        segments.retire(1)
        self.assertRaises(LookupError, segments.retire, 1)

    def test_blocks_are_used_again(self) -> None:
        segments = self.make()
        files = []
        for first in (0, 100):
            places = self.fill(segments, first)
            files.append({(self.folder / name).stat().st_ino for name in self.names()})
            segments.seal()
            segments.done(places.values())
            for number in segments.sealed():
                segments.retire(number)
        self.assertEqual(files[0], files[1])
        self.assertEqual(len(self.names()), 3)

    def test_order(self) -> None:
        """The numbers rise in the order of use, whichever segment is retired first."""
        segments = self.make(most=4)
        places = self.fill(segments)
        segments.seal()
        segments.done(places.values())
        for number in (3, 1, 4, 2):
            segments.retire(number)
        again = self.fill(segments, 100)
        self.assertTrue(all(one.segment <= other.segment for one, other in pairwise(again.values())))
        self.die(segments)
        self.assertEqual(self.left(), list(again))

    def test_seal(self) -> None:
        segments = self.make()
        segments.seal()
        places = segments.append([frame(0)])
        segments.done(places)
        self.assertEqual(segments.sealed(), [])
        segments.seal()
        self.assertEqual(segments.sealed(), [1])
        segments.retire(1)
        segments.append([frame(1)])
        segments.seal()
        segments.append([frame(2)])
        self.assertEqual(segments.sealed(), [])
        self.die(segments)
        self.assertEqual(self.left(), [1, 2])

    def test_spare(self) -> None:
        """With a spare segment no append makes one."""
        disk = Recording()
        segments = self.make(file_system=disk)
        self.assertTrue(segments.make_spare())
        calls = ["free", "open", "pwritev", "fsync", "open", "fsync", "close"]  # the file, then its name
        self.assertEqual([call.split()[0] for call in disk.calls], calls)
        self.assertFalse(segments.make_spare())
        disk.calls.clear()
        segments.append([frame(0, 9000)])
        self.assertTrue(segments.make_spare())
        disk.calls.clear()
        segments.append([frame(1, 9000)])
        self.assertEqual([call.split()[0] for call in disk.calls], ["free", "pwritev", "fdatasync"])
        self.assertTrue(segments.make_spare())
        segments.append([frame(2, 9000)])
        self.assertFalse(segments.make_spare())

    def test_void(self) -> None:
        """A void frame is not found, and its neighbours are; of a retired segment nothing is changed."""
        for durability in Durability:
            segments = self.make(durability)
            places = segments.append([frame(number) for number in range(8)])
            segments.void([places[0], places[3], places[7]])
            segments.void([places[3], Place(77, 100, 100)])
            later = segments.append([frame(8)])
            self.assertEqual(segments.read(places[3]), b"".join(frame(3).content))
            segments.done([*places, *later])
            segments.seal()
            segments.retire(1)
            segments.append([frame(9)])
            segments.void(places)
            self.die(segments)
            self.assertEqual(self.left(), [9])
            (self.folder / self.names()[0]).unlink()

            segments = self.make(durability)
            places = segments.append([frame(number) for number in range(8)])
            segments.void([places[0], places[3], places[7]])
            segments.append([frame(8)])
            self.die(segments)
            self.assertEqual(self.left(), [1, 2, 4, 5, 6, 8])
            (self.folder / self.names()[0]).unlink()


class Closing(SegmentsTestCase):
    def test_nothing_is_left(self) -> None:
        for durability in Durability:
            segments = self.make(durability)
            places = self.fill(segments)
            segments.done(places.values())
            segments.seal()
            for number in segments.sealed():
                segments.retire(number)
            segments.close()
            self.assertEqual(self.names(), [])

    def test_what_is_not_retired_stays(self) -> None:
        segments = self.make()
        places = self.fill(segments)
        segments.done(place for place in places.values() if place.segment != 2)
        segments.retire(1)
        segments.close()
        self.assertEqual(self.left(), [number for number, place in places.items() if place.segment != 1])
        self.assertEqual(len(self.names()), 2)

    def test_no_descriptor_stays_open(self) -> None:
        before = len(os.listdir("/proc/self/fd"))
        segments = self.make()
        self.fill(segments)
        segments.close()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)


class FullDisk(SegmentsTestCase):
    def test_minimum(self) -> None:
        """Room is kept for the files of all instances that wait, above the minimum."""

        class Small(FileSystem):
            left = 0

            def free(self, path: str) -> int:
                return self.left

        disk = Small()
        segments = self.make(file_system=disk, min_free=100_000)
        disk.left = 100_000 + 3 * 8192 - 1
        places = [*segments.append([frame(0)]), *segments.append([frame(1)])]
        error = self.assertRaises(OSError, segments.append, [frame(2)])
        self.assertEqual(error.errno, errno.ENOSPC)
        segments.done(places[:1])
        segments.append([frame(3)])
        disk.left = 0
        self.assertRaises(OSError, segments.append, [frame(4)])
        disk.left = 10**9
        segments.append([frame(5)])
        self.die(segments)
        self.assertEqual(self.left(), [0, 1, 3, 5])

    def test_each_size(self) -> None:
        """The disk is full after any number of bytes: the sender is told, the others are in, and later there is room again."""
        for durability in Durability:
            for room in range(0, 3 * SIZE, 777):
                self.clear()
                disk = Quota(room)
                segments = self.make(durability, disk)
                stored: list[int] = []
                number = 0
                while True:
                    batch = [frame(number + index, 300 * index) for index in range(3)]
                    number += 3
                    try:
                        segments.append(batch)
                    except OSError as error:
                        self.assertEqual(error.errno, errno.ENOSPC)
                        if disk.room:
                            self.assertFalse([name for name in self.names() if not self.has_frames(name)])
                        break
                    except InboxFull:
                        break
                    stored += range(number - 3, number)
                disk.room = SIZE
                try:
                    segments.append([frame(number)])
                    stored.append(number)
                except InboxFull:
                    self.assertGreater(room, 2 * SIZE)
                self.die(segments)
                self.assertEqual(self.left(), stored, (durability, room))

    def has_frames(self, name: str) -> bool:
        return (self.folder / name).stat().st_size > 0


class Faults(SegmentsTestCase):
    """Any call fails: what failed is not found, all others are, and the inbox goes on."""

    def each(self, durability: Durability, code: int, act: Callable[[Segments, list[Place]], object]) -> set[str]:
        """
        Let each call of *act* fail in turn, on a store with two segments of frames, the first of them done.

        :returns: the names of the calls that failed.
        """
        seen: set[str] = set()
        for step in range(100):
            self.clear()
            disk = Failing()
            segments = self.make(durability, disk, most=5)
            places = [segments.append([frame(number, 7000)])[0] for number in range(4)]
            segments.done(places[:2])
            disk.arm(step, code)
            failed: OSError | None = None
            try:
                act(segments, places)
            except OSError as error:
                failed = error
            call = disk.failed
            disk.arm(-1, 0)
            if failed is not None:
                self.assertEqual(failed.errno, code)
                self.assertNotIn(2, segments.sealed())
            segments.append([frame(200)])
            self.die(segments)
            found = self.left()
            self.assertEqual([number for number in found if 2 <= number < 4 or number >= 200], [2, 3, 200], call)
            new = [number for number in found if 100 <= number < 200]
            if failed is not None:
                self.assertEqual(new, [], call)
            elif not call:
                self.assertGreaterEqual(step, 1)
                self.assertEqual(new, self.new, durability)
                return seen
            seen.add(call.split()[0])
        self.fail("it makes more calls than that")

    new: list[int]

    def test_append(self) -> None:
        for durability, calls in ((FULL, {"free", "pwritev", "fdatasync"}), (NONE, {"free", "pwritev"})):
            for code in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                self.new = [100, 101, 102]
                seen = self.each(
                    durability, code, lambda segments, _: segments.append([frame(number, 10) for number in self.new])
                )
                self.assertEqual(seen, calls)

    def test_append_to_a_new_segment(self) -> None:
        for durability in Durability:
            self.new = [100]
            seen = self.each(durability, errno.ENOSPC, lambda segments, _: segments.append([frame(100, 9000)]))
            self.assertGreaterEqual(seen, {"free", "open", "pwritev"})
            self.assertEqual("fsync" in seen, durability is FULL)

    def test_append_to_a_retired_segment(self) -> None:
        def act(segments: Segments, _: object) -> None:
            segments.retire(1)
            segments.append([frame(100, 9000)])

        for durability in Durability:
            self.new = [100]
            self.assertGreaterEqual(self.each(durability, errno.EIO, act), {"free", "rename", "pwritev"})

    def test_retire(self) -> None:
        """A segment that cannot be retired is returned again; the next time succeeds."""

        def act(segments: Segments, _: object) -> None:
            try:
                segments.retire(1)
            except OSError:
                self.assertEqual(segments.sealed(), [1])
                segments.retire(1)
            self.assertEqual(segments.sealed(), [])

        for durability in Durability:
            self.new = []
            self.assertGreaterEqual(self.each(durability, errno.EIO, act), {"rename"})

    def test_retire_for_ever(self) -> None:
        """A segment that was removed, and whose removal could not be synced, is retired in the end."""
        disk = Failing()
        segments = self.make(file_system=disk)
        (place,) = segments.append([frame(0)])
        segments.seal()
        segments.done([place])
        for step in (1, 2, 2):  # rename, open, fsync, then unlink, which is not counted
            disk.arm(step - 1, errno.EIO)
            self.assertRaises(OSError, segments.retire, 1)
            disk.arm(-1, 0)
        segments.retire(1)
        self.assertEqual((segments.sealed(), self.names()), ([], []))

    def test_spare(self) -> None:
        for durability in Durability:
            self.new = []
            seen = self.each(durability, errno.ENOSPC, lambda segments, _: segments.make_spare())
            self.assertGreaterEqual(seen, {"open"})

    def test_nothing_is_left_of_a_spare(self) -> None:
        for step in range(20):
            disk = Failing()
            segments = self.make(file_system=disk)
            disk.arm(step, errno.EIO)
            before = len(os.listdir("/proc/self/fd"))
            try:
                segments.make_spare()
            except OSError:
                self.assertEqual(self.names(), [])
                self.assertEqual(len(os.listdir("/proc/self/fd")), before)
                continue
            break
        self.assertGreater(step, 4)

    def test_void(self) -> None:
        """If it fails, the frames may be found or not; all others are."""

        def act(segments: Segments, places: list[Place]) -> None:
            segments.void(places[:2])

        for durability in Durability:
            self.new = []
            self.assertGreaterEqual(self.each(durability, errno.EIO, act), {"pread", "pwritev"})

    def test_after_a_failed_sync(self) -> None:
        """The segment is not used again: its pages count as clean, though they may not be on the medium."""
        disk = Failing()
        segments = self.make(file_system=disk)
        (first,) = segments.append([frame(0)])
        disk.arm(2, errno.EIO)
        self.assertRaises(OSError, segments.append, [frame(1)])
        self.assertTrue(disk.failed.startswith("fdatasync"))
        disk.arm(-1, 0)
        (second,) = segments.append([frame(2)])
        self.assertEqual((first.segment, second.segment), (1, 2))
        self.assertEqual(segments.read(first), b"".join(frame(0).content))
        (name,) = [name for name in self.names() if name.startswith("inbox-1-")]
        segments.done([first])
        self.assertEqual(segments.sealed(), [1])
        segments.retire(1)
        self.assertEqual(segments.sealed(), [])
        self.assertEqual(len(self.names()), 1)
        self.assertNotIn(name, self.names())
        self.die(segments)
        self.assertEqual(self.left(), [2])

    def test_wiping_fails(self) -> None:
        """Nothing more is appended behind frames that failed and may be found."""

        class Failed(FileSystem):
            fails = False

            def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
                if self.fails:
                    raise OSError(errno.EIO, "an error")
                return super().pwritev(fd, buffers, offset)

            def fdatasync(self, fd: int) -> None:
                self.fails = self.fails or self.armed
                if self.fails:
                    raise OSError(errno.EIO, "an error")

            armed = False

        disk = Failed()
        segments = self.make(file_system=disk)
        segments.append([frame(0)])
        disk.armed = True
        self.assertRaises(OSError, segments.append, [frame(1)])
        disk.armed = disk.fails = False
        (place,) = segments.append([frame(2)])
        self.assertEqual(place.segment, 2)
        self.die(segments)
        self.assertEqual([number for number in self.left() if number != 1], [0, 2])

    def test_wiping_fails_after_a_write(self) -> None:
        """A part of a batch is written, and neither the rest nor the wiping succeeds."""

        class Cut(FileSystem):
            left = -1

            def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
                if self.left == 0:
                    raise OSError(errno.ENOSPC, "an error")
                self.left -= 1
                data = b"".join(buffers)
                return os.pwrite(fd, data[:2048] if self.left == 0 else data, offset)

        for durability in Durability:
            self.clear()
            disk = Cut()
            segments = self.make(durability, disk)
            segments.append([frame(0)])
            disk.left = 1
            self.assertRaises(OSError, segments.append, [frame(1), frame(2)])
            disk.left = -1
            (place,) = segments.append([frame(3)])
            self.assertEqual(place.segment, 2)
            self.die(segments)
            self.assertEqual([number for number in self.left() if number != 1], [0, 3])


class Recovering(SegmentsTestCase):
    def test_again_until_finished(self) -> None:
        segments = self.make()
        places = self.fill(segments)
        self.die(segments)
        for _ in range(2):
            self.assertEqual(self.left(), list(places))
        recovery = Recovery(os.fspath(self.folder), FileSystem())
        found = list(recovery)
        self.assertEqual((len(found), recovery.found, recovery.torn), (len(places), len(places), 0))
        recovery.finish()
        recovery.finish()
        recovery.close()
        self.assertEqual((self.names(), recovery.set_aside), ([], []))
        self.assertEqual(list(Recovery(os.fspath(self.folder), FileSystem())), [])

    def test_numbers_go_on(self) -> None:
        """A store that starts while segments are left uses higher numbers."""
        segments = self.make()
        self.fill(segments)
        self.die(segments)
        later = self.make(most=1)
        (place,) = later.append([frame(500)])
        self.assertEqual(place.segment, 4)
        self.die(later)
        self.assertEqual(self.left()[-1], 500)

    def test_living_stores(self) -> None:
        """Segments of another store are not touched while it lives."""
        living, dead = self.make(), self.make()
        living.append([frame(1)])
        living.make_spare()
        dead.append([frame(2)])
        self.die(dead)
        recovery = Recovery(os.fspath(self.folder), FileSystem())
        self.assertEqual([number_of(found.frame) for found in recovery], [2])
        recovery.finish()
        self.assertEqual(len(self.names()), 2)
        living.append([frame(3)])
        self.die(living)
        self.assertEqual(self.left(), [1, 3])

    def test_no_locks(self) -> None:
        """Without locks no store has segments, so all of them are left over."""
        segments = self.make()
        segments.append([frame(1)])
        self.die(segments)

        class NoLocks:
            LOCK_EX = LOCK_NB = 0

            def flock(self, *_: object) -> None:
                raise OSError(errno.ENOLCK, "no locks")

        self.patch(process_locks, "fcntl", NoLocks())
        self.assertEqual(self.assertRaises(OSError, self.make().append, [frame(2)]).errno, errno.ENOLCK)
        self.assertEqual(self.left(), [1])
        self.assertEqual(len(self.names()), 1)

    def test_starting_meanwhile(self) -> None:
        """Another store that takes a new segment for a left-over one removes it; the next append makes another."""
        test = self

        class Meddling(FileSystem):
            meddles = True

            def open(self, path: str, flags: int, mode: int = 0o777) -> int:
                fd = super().open(path, flags, mode)
                if self.meddles:
                    self.meddles = False
                    test.recovery = Recovery(os.fspath(test.folder), FileSystem())
                    test.assertEqual(list(test.recovery), [])
                return fd

        segments = self.make(file_system=Meddling())
        self.assertEqual(self.assertRaises(OSError, segments.append, [frame(0)]).errno, errno.EAGAIN)
        segments.append([frame(1)])
        with self.assertRaises(FileNotFoundError):
            self.recovery.finish()
        self.recovery.close()
        self.die(segments)
        self.assertEqual(self.left(), [1])

    recovery: Recovery

    def test_no_regular_files(self) -> None:
        """A link, a FIFO, a folder with the name of a segment: the start says so, and leaves them."""
        outside = Path(self.mktemp())
        outside.mkdir()
        segments = self.make(folder=outside)
        segments.append([frame(0)])
        self.die(segments)
        (inside,) = outside.iterdir()
        generation = "-00ff00ff00ff00ff"
        (self.folder / f"inbox-1{generation}").symlink_to(inside.absolute())
        os.mkfifo(self.folder / f"inbox-2{generation}")
        (self.folder / f"inbox-3{generation}").mkdir()
        (self.folder / "inbox-x").write_bytes(b"?")
        (self.folder / f"inbox-4{generation}").write_bytes(b"")
        recovery = Recovery(os.fspath(self.folder), FileSystem())
        self.assertEqual(list(recovery), [])
        self.assertEqual([text.split("-")[1] for text in recovery.unreadable], ["1", "2", "3"])
        recovery.finish()
        self.assertEqual([name.split("-")[1] for name in self.names()], ["1", "2", "3", "x"])
        self.assertEqual(self.left(outside), [0])

    def test_numbers_of_others(self) -> None:
        """Segments of a store are found, even if a folder has the highest number that a name may have."""
        for number in (10**17, 10**18 - 2, 10**18 - 1):
            (self.folder / f"inbox-{number}-00ff00ff00ff00ff").mkdir()
            segments = self.make(most=2)
            kept = list(self.fill(segments))
            self.die(segments)
            recovery = Recovery(os.fspath(self.folder), FileSystem())
            self.assertEqual([number_of(found.frame) for found in recovery], kept)
            recovery.finish()
            self.assertEqual(len(recovery.unreadable), 1)
            (self.folder / f"inbox-{number}-00ff00ff00ff00ff").rmdir()

    def test_too_large(self) -> None:
        """A file that is too large for a segment is not searched: the start says so, leaves it, and reads the others."""
        segments = self.make()
        segments.append([frame(0)])
        self.die(segments)
        for number, size in ((1, MAX_SIZE + 1), (7, 1 << 42)):
            with (self.folder / f"inbox-{number}-00ff00ff00ff00ff").open("wb") as file:
                file.truncate(size)
        recovery = Recovery(os.fspath(self.folder), FileSystem())
        self.assertEqual([number_of(found.frame) for found in recovery], [0])
        self.assertEqual([text.split("-")[1] for text in recovery.unreadable], ["1", "7"])
        recovery.finish()
        self.assertEqual([name.split("-")[1] for name in self.names()], ["1", "7"])

    def test_damage(self) -> None:
        """A damaged segment is set aside; its other frames and the other segments are served, and the lost one is named."""
        segments = self.make()
        places = self.fill(segments)
        self.die(segments)
        for segment in (1, 3):
            second = [place for place in places.values() if place.segment == segment][1]
            (path,) = self.folder.glob(f"inbox-{segment}-*")
            with path.open("r+b") as file:
                file.seek(second.offset + 10)
                file.write(b"damage")
        recovery = Recovery(os.fspath(self.folder), FileSystem())
        found = [number_of(one.frame) for one in recovery]
        lost = sorted(set(places) - set(found))
        self.assertEqual(recovery.damaged, 2)
        self.assertEqual(recovery.damaged_uids, [f"1.2/1.2.3/1.2.3.{number}" for number in lost])
        self.assertEqual(recovery.found, len(places) - 2)
        recovery.finish()
        self.assertEqual([name.partition("-")[2].split("-")[1] for name in self.names()], ["1", "3"])
        self.assertEqual(self.names(), sorted(recovery.set_aside))
        self.assertTrue(all(name.startswith(BROKEN) for name in self.names()))
        self.assertEqual(self.left(), [])

    def test_damage_to_heads(self) -> None:
        """The first sectors of a segment and of a frame are lost."""
        for index in (0, 1):
            segments = self.make()
            places = segments.append([frame(number) for number in range(3)])
            segments.append([frame(3)])
            self.die(segments)
            (path,) = self.folder.glob("inbox-*")
            with path.open("r+b") as file:
                file.seek(begin_of(places[index].offset))
                file.write(b"?" * 512)
            recovery = Recovery(os.fspath(self.folder), FileSystem())
            self.assertEqual(
                [number_of(one.frame) for one in recovery], [number for number in range(4) if number != index]
            )
            self.assertEqual((recovery.damaged, recovery.damaged_uids), (1, []))
            recovery.finish()
            self.clear()

    def test_torn(self) -> None:
        """A last frame that is not whole is counted, and its segment is removed."""
        segments = self.make()
        places = [segments.append([frame(number)])[0] for number in range(3)]
        self.die(segments)
        (path,) = self.folder.glob("inbox-*")
        with path.open("r+b") as file:
            file.seek(places[-1].offset + 512)
            file.write(bytes(SIZE - places[-1].offset - 512))
        recovery = Recovery(os.fspath(self.folder), FileSystem())
        self.assertEqual([number_of(one.frame) for one in recovery], [0, 1])
        self.assertEqual((recovery.torn, recovery.damaged), (1, 0))
        recovery.finish()
        self.assertEqual(self.names(), [])

    def test_unreadable_blocks(self) -> None:
        """Blocks that the medium does not return cost their frames alone; the segment is set aside."""
        segments = self.make(size=64 * 1024)
        places = [segments.append([frame(number, 3000)])[0] for number in range(16)]
        self.die(segments)

        class Bad(FileSystem):
            blocks: Sequence[int] = ()

            def pread(self, fd: int, length: int, offset: int) -> bytes:
                if any(offset < 4096 * (block + 1) and offset + length > 4096 * block for block in self.blocks):
                    raise OSError(errno.EIO, "an error")
                return super().pread(fd, length, offset)

        for blocks in ((0,), (5,), (5, 6, 11), tuple(range(4, 16)), tuple(range(16))):
            disk = Bad()
            disk.blocks = blocks
            recovery = Recovery(os.fspath(self.folder), disk)
            readable = [
                number
                for number, place in enumerate(places)
                if not any(
                    begin_of(place.offset) < 4096 * (block + 1) and place.offset + place.length > 4096 * block
                    for block in blocks
                )
            ]
            self.assertEqual([number_of(one.frame) for one in recovery], readable)
            self.assertTrue(recovery._segments[0].broken)
            recovery.close()

    def test_kept(self) -> None:
        """A frame that no file can be made of keeps its segment from being removed."""
        segments = self.make()
        places = self.fill(segments)
        self.die(segments)
        recovery = Recovery(os.fspath(self.folder), FileSystem())
        for one in recovery:
            if places[number_of(one.frame)].segment == 2:
                recovery.keep()
        recovery.finish()
        self.assertEqual([name.split("-")[:3] for name in self.names()], [["broken", "inbox", "2"]])

    def test_each_call(self) -> None:
        """Any call fails: the next attempt, or the next start, has everything."""
        seen = set()
        for step in range(100):
            segments = self.make()
            places = self.fill(segments)
            self.die(segments)
            disk = Failing()
            disk.arm(step, errno.EIO)
            recovery = Recovery(os.fspath(self.folder), disk)
            try:
                found = [number_of(one.frame) for one in recovery]
                if not disk.failed or disk.failed.startswith("pread"):
                    self.assertEqual(found, list(places))
                recovery.finish()
            except OSError:
                # Frames before the failure may have become files; the segments that were read are removed.
                if disk.failed.startswith(("unlink", "rename", "fsync")):
                    recovery.finish()
            call = disk.failed
            recovery.close()
            if call.startswith("open") and self.names():
                self.assertEqual(self.left(), list(places))
            self.clear()
            if not call:
                break
            seen.add(call.split()[0])
        self.assertGreaterEqual(seen, {"open", "pread", "fsync"})

    def test_killed(self) -> None:
        """A program that is killed at any time has acknowledged nothing that is not found."""
        code = (
            "import sys\n"
            "from dicomtwist.archive.inbox.segments import Segments\n"
            "from dicomtwist.archive.storage.system_calls import FileSystem\n"
            "from dicomtwist.archive.storage.types import Durability\n"
            "from tests.archive.inbox.media import frame\n"
            "segments = Segments(sys.argv[1], FileSystem(), durability=Durability(sys.argv[2]), segment_size=65536)\n"
            "number = 0\n"
            "while sys.stdin.read(1):\n"
            "    segments.append([frame(number + index, 4000) for index in range(3)])\n"
            "    number += 3\n"
            "    print(number, flush=True)\n"
        )
        for round_number, durability in enumerate((NONE, FULL, NONE, FULL)):
            process = subprocess.Popen(
                [sys.executable, "-c", code, os.fspath(self.folder.absolute()), str(durability)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[3],
            )
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(b"." * 30)
            process.stdin.flush()
            lines = [process.stdout.readline() for _ in range(5 + round_number)]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
            process.wait()
            process.stdin.close()
            process.stdout.close()
            acknowledged = max(int(line) for line in lines if line.endswith(b"\n"))
            found = self.left()
            self.assertEqual(found[:acknowledged], list(range(acknowledged)))
            self.assertLessEqual(len(found), acknowledged + 3)
            self.clear()


class AnyOrder(SegmentsTestCase):
    """Random appends, retirements, failures, and a power cut in any call."""

    def setUp(self) -> None:
        super().setUp()
        self.held: dict[int, Place] = {}
        self.gone: set[int] = set()
        self.unsure: set[int] = set()
        self.finished: set[Place] = set()

    def test_power_cut(self) -> None:
        for seed in range(250):
            chance = random.Random(seed)
            self.folder = Path(self.mktemp())
            self.folder.mkdir(parents=True)
            disk = Medium(self.folder, chance)
            segments = self.make(file_system=disk)
            self.held, self.gone, self.unsure, self.finished = {}, set(), set(), set()
            number = 0
            last = chance.randrange(60)
            try:
                for step in range(60):
                    if step == last:
                        disk.arm(chance.randrange(12), 0)
                    elif chance.random() < 0.2:
                        disk.arm(chance.randrange(8), errno.EIO)
                    number = self.one_step(segments, chance, number)
                    if step != last and not disk.off and disk.code:
                        disk.arm(-1, 0)
            except PowerCut:
                pass
            target = Path(self.mktemp())
            disk.cut(target)
            self.die(segments)
            found = self.left(target)
            self.assertEqual(found, sorted(found), seed)
            self.assertEqual(sorted(set(self.held) - self.gone - self.unsure - set(found)), [], seed)
            self.assertEqual(sorted(set(found) & self.gone - self.unsure), [], seed)

    def one_step(self, segments: Segments, chance: random.Random, number: int) -> int:
        act = chance.choice((self.append, self.append, self.append, self.finish, self.spare, self.seal, self.void))
        return act(segments, chance, number)

    def append(self, segments: Segments, chance: random.Random, number: int) -> int:
        numbers = list(range(number, number + chance.randint(1, 4)))
        batch = [frame(one, chance.choice((0, 100, 1500, 3000))) for one in numbers]
        self.unsure |= set(numbers)
        try:
            places = segments.append(batch)
        except (OSError, InboxFull):
            # A write and the wiping of it may fail in turn; here only one call fails, so they are not found.
            self.gone |= set(numbers)
        else:
            self.held |= zip(numbers, places, strict=True)
        self.unsure -= set(numbers)
        return numbers[-1] + 1

    def finish(self, segments: Segments, chance: random.Random, number: int) -> int:
        """All instances of the segments before the last one become files, and those segments are retired."""
        last = max((place.segment for place in self.held.values()), default=0)
        old = {one for one, place in self.held.items() if place.segment < last}
        ended = [place for one, place in self.held.items() if one in old]
        segments.done([place for place in ended if place not in self.finished])
        self.finished |= set(ended)
        for retired in segments.sealed():
            self.unsure |= {one for one, place in self.held.items() if place.segment == retired}
            try:
                segments.retire(retired)
            except OSError:
                continue
            here = {one for one, place in self.held.items() if place.segment == retired}
            self.unsure -= here
            self.gone |= here
            for one in here:
                self.finished.discard(self.held.pop(one))
        return number

    def void(self, segments: Segments, chance: random.Random, number: int) -> int:
        if self.held:
            one = chance.choice(list(self.held))
            self.unsure.add(one)
            try:
                segments.void([self.held[one]])
            except OSError:
                return number
            self.gone.add(one)
            self.unsure.discard(one)
        return number

    def spare(self, segments: Segments, chance: random.Random, number: int) -> int:
        try:
            segments.make_spare()
        except OSError:
            pass
        return number

    def seal(self, segments: Segments, chance: random.Random, number: int) -> int:
        segments.seal()
        return number


class Threads(SegmentsTestCase):
    def test_append_and_retire(self) -> None:
        """One thread appends while another reads, finishes, seals and retires."""
        segments = self.make(NONE)
        waiting: list[tuple[Frame, Place]] = []
        arrived = threading.Condition()
        wrong: list[BaseException] = []
        total = 3000

        def move() -> None:
            moved = 0
            try:
                while moved < total:
                    with arrived:
                        arrived.wait_for(lambda: waiting)
                        batch, waiting[:] = list(waiting), []
                    for one, place in batch:
                        assert segments.read(place) == b"".join(one.content)
                    segments.done(place for _, place in batch)
                    moved += len(batch)
                    segments.seal()
                    segments.make_spare()
                    for number in segments.sealed():
                        segments.retire(number)
                    with arrived:
                        arrived.notify_all()
            except BaseException as error:
                wrong.append(error)
                with arrived:
                    arrived.notify_all()

        mover = threading.Thread(target=move)
        mover.start()
        number = 0
        while number < total and not wrong:
            batch = [frame(number + index, 200) for index in range(3)]
            try:
                places = segments.append(batch)
            except InboxFull:
                with arrived:
                    arrived.wait_for(lambda: wrong or segments.has_room(3000))
                continue
            with arrived:
                waiting += zip(batch, places, strict=True)
                arrived.notify_all()
            number += 3
        mover.join()
        self.assertEqual(wrong, [])
        self.assertEqual(segments.waiting, 0)
        segments.close()
        self.assertEqual(self.names(), [])
