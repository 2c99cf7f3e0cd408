"""The spool: nothing that was appended is lost, at a crash or a full disk, and it stays within its bound."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.audit import spool as module
from dicomtwist.audit.spool import Position, Spool


class SpoolTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())

    def spool(self, maximum: int = 10_000_000) -> Spool:
        found = Spool(self.folder, maximum)
        self.addCleanup(found.close)
        return found

    def all(self, spool: Spool, position: Position | None = None) -> tuple[list[bytes], Position]:
        found: list[bytes] = []
        position = spool.first() if position is None else position
        while True:
            lines, position = spool.read(position)
            if not lines:
                return found, position
            found += lines


class Spools(SpoolTestCase):
    def test_in_order_over_restarts(self) -> None:
        self.patch(module, "SEGMENT", 100)
        expected = []
        for run in range(5):
            spool = self.spool()
            for number in range(20):
                line = b"message %d %d" % (run, number)
                spool.append(line + b"\n")
                expected.append(line)
        self.assertEqual(self.all(self.spool())[0], expected)

    def test_long_messages(self) -> None:
        """Messages that are longer than one reading neither stop the others nor skip them."""
        self.patch(module, "MAX_READ", 20)
        self.patch(module, "SEGMENT", 100)
        expected = [b"x" * size for size in (1, 19, 20, 21, 500, 3, 40, 41, 2)]
        spool = self.spool()
        for line in expected:
            spool.append(line + b"\n")
        self.assertEqual(self.all(spool)[0], expected)

    def test_delivered(self) -> None:
        self.patch(module, "SEGMENT", 100)
        spool = self.spool()
        for number in range(100):
            spool.append(b"message %d\n" % number)
        _, position = spool.read(spool.first())
        lines_after, after = spool.read(position)
        spool.delivered(position)
        again = self.spool()
        self.assertEqual(self.all(again)[0][: len(lines_after)], lines_after)
        self.assertEqual(self.all(again)[0][-1], b"message 99")
        _, end = self.all(again, after)
        again.delivered(end)
        self.assertLessEqual(len(again.segments()), 1)
        self.assertEqual(self.all(self.spool())[0], [])
        self.spool().append(b"next\n")
        self.assertEqual(self.all(self.spool())[0], [b"next"])

    def test_delivered_on_a_full_disk(self) -> None:
        """The spool itself may fill the disk: what is delivered makes room before the position is noted."""
        self.patch(module, "SEGMENT", 30)
        spool = self.spool()
        for number in range(10):
            spool.append(b"message %d\n" % number)
        end = self.all(spool)[1]

        def write(path: Path, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with mock.patch.object(Path, "write_text", write):
            self.assertRaises(OSError, spool.delivered, end)
        self.assertEqual(len(spool.segments()), 1)
        self.assertEqual(self.all(self.spool())[0][-1:], [b"message 9"])
        spool.delivered(end)
        self.assertEqual(self.all(self.spool())[0], [])

    def test_a_reader_that_follows(self) -> None:
        self.patch(module, "SEGMENT", 30)
        writer, reader = self.spool(), self.spool()
        position = reader.first()
        for number in range(50):
            writer.append(b"message %d\n" % number)
            lines, position = self.all(reader, position)
            self.assertEqual(lines, [b"message %d" % number])
            reader.delivered(position)
        self.assertLessEqual(len(reader.segments()), 2)

    def test_torn_by_a_crash(self) -> None:
        spool = self.spool()
        spool.append(b"one\ntwo\n")
        path = self.folder / f"{spool.segments()[0]:08}.messages"
        path.write_bytes(path.read_bytes() + b"thr")
        self.assertEqual(self.all(spool)[0], [b"one", b"two"])
        self.spool().append(b"four\n")
        self.assertEqual(self.all(self.spool())[0], [b"one", b"two", b"four"])

    def test_a_full_disk(self) -> None:
        """A reader that has seen the beginning of what is taken back misses nothing."""
        writer, reader = self.spool(), self.spool()
        writer.append(b"one\n")
        real = os.write

        def write(file: int, data: bytes) -> int:
            count = real(file, data[:4])
            self.assertEqual(reader.read(Position(reader.first().segment, 0))[0], [b"one", b"two"])
            return count

        self.patch(os, "write", write)
        position = self.all(reader)[1]
        self.assertEqual(self.assertRaises(OSError, writer.append, b"two\nthree\n").errno, errno.ENOSPC)
        ahead = Position(position.segment, position.offset + 4)
        self.patch(os, "write", real)
        writer.append(b"two\nthree\n")
        self.assertEqual(self.all(reader, ahead)[0], [b"two", b"three"])

    def test_bounded(self) -> None:
        self.patch(module, "SEGMENT", 20)
        spool = self.spool(maximum=100)
        for _ in range(10):
            spool.append(b"nine....\n")
        self.assertEqual(self.assertRaises(OSError, spool.append, b"x" * 50 + b"\n").errno, errno.EDQUOT)
        _, position = self.all(spool)
        spool.delivered(position)
        spool.append(b"x" * 50 + b"\n")

    def test_one_segment(self) -> None:
        """A spool that one segment has filled takes messages again when that is delivered."""
        for segment in (20, 1000):
            self.patch(module, "SEGMENT", segment)
            spool = self.spool(maximum=100)
            spool.append(b"x" * 90 + b"\n")
            self.assertEqual(self.assertRaises(OSError, spool.append, b"x" * 50 + b"\n").errno, errno.EDQUOT)
            _, position = self.all(spool)
            spool.delivered(position)
            spool.append(b"x" * 50 + b"\n")
            self.assertEqual(self.all(spool, position)[0], [b"x" * 50])
            spool.delivered(self.all(spool, position)[1])

    def test_not_for_everybody(self) -> None:
        self.spool().append(b"one\n")
        self.assertEqual(self.folder.stat().st_mode & 0o007, 0)
        self.assertEqual([path.stat().st_mode & 0o007 for path in self.folder.iterdir()], [0])


class AnyOrder(SynchronousTestCase):
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.sampled_from(("append", "read", "settle", "restart", "lose")), max_size=40))
    def test_at_least_once(self, steps: list[str]) -> None:
        """Each message is read at least once, and the first time in order."""
        self.patch(module, "SEGMENT", 40)
        folder = Path(self.mktemp())
        spool = Spool(folder)
        read: list[bytes] = []
        position = settled = spool.first()
        count = 0
        for step in [*steps, "lose", "read"]:
            if step == "append":
                spool.append(b"%d\n" % count)
                count += 1
            elif step == "read":
                while (found := spool.read(position))[0]:
                    read += found[0]
                    position = found[1]
            elif step == "settle":
                settled = position
                spool.delivered(settled)
            else:
                if step == "restart":
                    spool.close()
                    spool = Spool(folder)
                position = spool.first()
        spool.close()
        first = list(dict.fromkeys(read))
        self.assertEqual(first, [b"%d" % number for number in range(count)])
