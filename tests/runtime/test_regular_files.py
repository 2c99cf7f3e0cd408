"""Tests of opening regular files only."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.datasets.outgoing_instance import open_path
from dicomtwist.runtime.executors import Executor
from dicomtwist.runtime.regular_files import open_regular, read_short
from dicomtwist.tools.files.file_scanner import Scanner
from dicomtwist.tools.runners.commit import ReferenceBatch, _read


class RegularFiles(SynchronousTestCase):
    """Other kinds of files are refused at once: FIFOs without a writer, sockets, devices, folders, and links to them."""

    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        os.mkfifo(folder / "fifo")
        (folder / "link").symlink_to(folder / "fifo")
        listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(listening.close)
        # A short path: one of a socket has 108 bytes at the most.
        before = os.getcwd()
        os.chdir(folder)
        self.addCleanup(os.chdir, before)
        listening.bind("socket")
        self.paths = ["fifo", "link", "socket", "/dev/zero", "/dev/null", "."]

    def test_refused(self) -> None:
        for path in self.paths:
            self.assertRaises(OSError, open_regular, path)
            self.assertRaises(OSError, open_regular, Path(path), 0)
            self.assertRaises(OSError, read_short, path, 100)

    def test_a_short_file(self) -> None:
        Path("short").write_bytes(b"12345")
        Path("empty").touch()
        self.assertIsNone(read_short("short", 4))
        for path, most, content in (("short", 5, b"12345"), ("short", 6, b"12345"), (Path("empty"), 0, b"")):
            self.assertEqual(read_short(path, most), (os.stat(path), content))
        self.assertRaises(FileNotFoundError, read_short, "missing", 10)

    def test_a_file(self) -> None:
        Path("file").write_bytes(b"content")
        Path("to file").symlink_to("file")
        for path in ("file", "to file"):
            with open_regular(path) as file:
                self.assertEqual(file.read(), b"content")

    def test_sending(self) -> None:
        """They are refused by C-STORE, whose thread would wait for ever, and by sub-operations."""
        executor: Executor = None  # type: ignore[assignment]
        for path in self.paths:
            self.assertRaises(OSError, open_path, path, executor)

    def test_tools(self) -> None:
        """The commands count them as unreadable."""
        batch = Scanner(self.paths[:-1], lambda instance: False).next_batch()
        assert batch is not None
        self.assertEqual([one.path for one in batch.unreadable], self.paths[:-1])
        references = ReferenceBatch()
        for path in self.paths:
            _read(path, references)
        self.assertEqual([path for path, _ in references.wrong], self.paths)
