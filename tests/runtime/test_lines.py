"""Files of lines: rotation, several writers, disks that are full."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.runtime.lines.line_file import KEPT, LineFile
from dicomtwist.runtime.lines.line_writer import COMPLAIN_AFTER, MAX_WAITING, TRY_AGAIN, LineWriter


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def file(self, maximum: int | None = None) -> LineFile:
        file = LineFile(str(self.path), maximum)
        self.addCleanup(file.close)
        return file

    def test_append(self) -> None:
        self.path.write_bytes(b"before\n")
        file = self.file()
        file.append(b"one\n")
        file.append(b"two\nthree\n")
        self.assertEqual(self.path.read_bytes(), b"before\none\ntwo\nthree\n")

    def test_torn(self) -> None:
        """A write that was interrupted does not take the next line with it."""
        self.path.write_bytes(b"before\n" + b"in the mid")
        file = self.file()
        file.append(b"one\n")
        with self.path.open("ab") as other:
            other.write(b"to")
        file.append(b"two\n")
        self.assertEqual(self.path.read_bytes().splitlines(), [b"before", b"in the mid", b"one", b"to", b"two"])

    def test_a_pipe(self) -> None:
        """A pipe whose reader is gone is an error, and not a pipe that fills up."""
        os.mkfifo(self.path)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        file = self.file()
        file.append(b"one\n")
        self.assertEqual(os.read(reader, 100), b"one\n")
        os.close(reader)
        self.assertRaises(BrokenPipeError, file.append, b"two\n")

    def test_new_files_are_not_for_everybody(self) -> None:
        self.file().append(b"one\n")
        self.assertEqual(self.path.stat().st_mode & 0o007, 0)

    def test_rotated_from_outside(self) -> None:
        file = self.file()
        file.append(b"one\n")
        older = self.path.rename(self.path.with_suffix(".1"))
        file.append(b"two\n")
        file.close()
        file.append(b"three\n")
        self.assertEqual((older.read_bytes(), self.path.read_bytes()), (b"one\ntwo\n", b"three\n"))

    def test_rotated_by_size(self) -> None:
        file = self.file(maximum=20)
        for number in range(10 * (KEPT + 3)):
            file.append(b"line %03d\n" % number)
        files = [self.path, *(Path(f"{self.path}.{number}") for number in range(1, KEPT + 1))]
        content = [one.read_bytes() for one in files]
        self.assertTrue(all(len(one) <= 20 for one in content), content)
        self.assertFalse(Path(f"{self.path}.{KEPT + 1}").exists())
        self.assertTrue(content[0].endswith(b"line %03d\n" % (10 * (KEPT + 3) - 1)))

    def test_a_line_that_is_longer_than_the_maximum(self) -> None:
        file = self.file(maximum=10)
        file.append(b"x" * 100 + b"\n")
        file.append(b"y\n")
        self.assertEqual(self.path.read_bytes(), b"y\n")

    def test_several_writers(self) -> None:
        """No line is lost, torn or doubled, though each writer may rotate the file."""

        def write(name: int) -> None:
            file = self.file(maximum=10_000)
            for number in range(400):
                file.append(f"{name} {number} {'x' * (number % 50)}\n".encode())

        threads = [Thread(target=write, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = []
        for path in (self.path, *(Path(f"{self.path}.{number}") for number in range(1, KEPT + 1))):
            lines += path.read_bytes().splitlines() if path.exists() else []
        found = sorted((int(one.split()[0]), int(one.split()[1])) for one in lines)
        self.assertEqual(found, [(name, number) for name in range(4) for number in range(400)])

    def test_a_disk_that_becomes_full(self) -> None:
        """The beginning of a line that does not fit is taken back."""
        file = self.file()
        file.append(b"one\n")
        real = os.write
        self.patch(os, "write", lambda fd, data: real(fd, data[:3]))
        self.assertEqual(self.assertRaises(OSError, file.append, b"second\n").errno, errno.ENOSPC)
        self.patch(os, "write", real)
        file.append(b"three\n")
        self.assertEqual(self.path.read_bytes(), b"one\nthree\n")


class Executor(Clock):
    """An executor whose calls are done at once, or when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Any] | None = None
        self.call_later = self.callLater

    def run_admitted(self, function: Any, *arguments: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        done.addCallback(lambda _: maybeDeferred(function, *arguments))
        if self.held is None:
            done.callback(None)
        else:
            self.held.append(done)
        return done


class Disk(LineFile):
    """A file in memory, whose disk may be full."""

    def __init__(self) -> None:
        super().__init__("/a/file")
        self.content = b""
        self.is_full = False
        self.closed = 0

    def append(self, lines: bytes) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        self.content += lines

    def close(self) -> None:
        self.closed += 1


class WriterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.executor, self.disk = Executor(), Disk()
        executor: Any = self.executor
        self.writer: LineWriter[int] = LineWriter(executor, self.disk, self.encode, "numbers")
        self.logged: list[Any] = []
        observer: Any = self.logged.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def encode(self, number: int) -> bytes:
        return b"%d\n" % (6 // number if number < 3 else number)

    def complaints(self) -> list[str]:
        return [event["why"] for event in self.logged if "are not written" in event.get("log_format", "")]

    def test_in_batches(self) -> None:
        held: list[Any] = []
        self.executor.held = held
        for number in range(3, 8):
            self.writer.put(number)
        self.assertEqual(len(held), 1)
        held.pop().callback(None)
        self.assertEqual(self.disk.content, b"3\n")
        held.pop().callback(None)
        self.assertEqual(self.disk.content, b"3\n4\n5\n6\n7\n")

    def test_a_full_disk(self) -> None:
        """It is said once a minute, and nothing is lost when there is room again."""
        self.disk.is_full = True
        for number in range(10, 20):
            self.writer.put(number)
        self.executor.pump([TRY_AGAIN] * int(COMPLAIN_AFTER / TRY_AGAIN + 1))
        self.assertEqual(len(self.complaints()), 2, self.complaints())
        self.disk.is_full = False
        self.executor.advance(TRY_AGAIN)
        self.assertEqual(self.disk.content, b"".join(b"%d\n" % number for number in range(10, 20)))
        self.assertFalse(self.executor.getDelayedCalls())

    def test_too_many(self) -> None:
        self.disk.is_full = True
        self.writer.put(10, MAX_WAITING)
        self.writer.put(11)
        self.assertEqual(self.writer.dropped, 1)
        self.disk.is_full = False
        self.executor.advance(TRY_AGAIN)
        self.writer.put(12)
        self.assertEqual(self.disk.content, b"10\n12\n")

    def test_an_item_that_cannot_be_written(self) -> None:
        for number in (5, 0, 7):
            self.writer.put(number)
        self.executor.advance(TRY_AGAIN)
        self.assertEqual(self.disk.content, b"5\n7\n")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_items_that_cannot_be_written_in_a_batch(self) -> None:
        """Those alone are dropped, and the others do not wait."""
        held: list[Any] = []
        self.executor.held = held
        for number in (3, 4, 0, 5, 0, 6):
            self.writer.put(number)
        while held:
            held.pop().callback(None)
        self.assertEqual(self.disk.content, b"3\n4\n5\n6\n")
        self.assertEqual(self.writer.dropped, 2)
        self.assertFalse(self.executor.getDelayedCalls())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_reopen(self) -> None:
        self.writer.put(3)
        self.writer.reopen()
        self.assertEqual(self.disk.closed, 0)
        self.writer.put(4)
        self.assertEqual(self.disk.closed, 1)

    def test_stop(self) -> None:
        held: list[Any] = []
        self.executor.held = held
        for number in (3, 4):
            self.writer.put(number)
        stopping = self.writer.stop()
        self.assertNoResult(stopping)
        held.pop().callback(None)
        held.pop().callback(None)
        self.successResultOf(stopping)
        self.assertEqual((self.disk.content, self.disk.closed), (b"3\n4\n", 1))

    def test_stop_with_a_full_disk(self) -> None:
        """The log tells how many items are lost, although it has told just before that some wait."""
        self.disk.is_full = True
        self.writer.put(3)
        self.writer.put(4)
        self.successResultOf(self.writer.stop())
        self.assertFalse(self.executor.getDelayedCalls())
        self.assertEqual(self.writer.dropped, 2)
        told = [(one["waiting"], one["dropped"]) for one in self.logged if "waiting" in one]
        self.assertEqual(told, [(1, 0), (0, 2)])
