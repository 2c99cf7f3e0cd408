"""Frames and file systems for the tests of the inbox."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections.abc import Sequence
from pathlib import Path

from dicomtwist.archive.inbox.frames import Frame
from dicomtwist.archive.storage.system_calls import Buffer, FileSystem

_SECTOR = 512


def frame(number: int, length: int = 1000) -> Frame:
    """Return a frame whose content tells its number; every second one has a digest."""
    content = random.Random(number).randbytes(length)
    digest = hashlib.sha256(content).digest() if number % 2 else b""
    half = length // 2
    return Frame(("1.2", "1.2.3", f"1.2.3.{number}"), "1.2.840.10008.1.2.1", [content[:half], content[half:]], digest)


def number_of(one: Frame) -> int:
    """Return the number of a frame, after a check of its content."""
    number = int(one.uids[2].rpartition(".")[2])
    content = b"".join(one.content)
    expected = frame(number, len(content))
    assert content == b"".join(expected.content)
    assert one._replace(content=[]) == expected._replace(content=[])
    return number


class PowerCut(BaseException):
    """The machine is off."""


class _Node:
    """A file: the bytes on the medium, and the writes that only the cache has."""

    def __init__(self) -> None:
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes]] = []

    def write(self, offset: int, data: bytes) -> None:
        self.durable.extend(bytes(max(0, offset + len(data) - len(self.durable))))
        self.durable[offset : offset + len(data)] = data

    def flush(self) -> None:
        for offset, data in self.pending:
            self.write(offset, data)
        self.pending.clear()

    def flush_some(self, chance: random.Random) -> None:
        """Any sectors of the pending writes reach the medium, in any order."""
        sectors = [
            (offset + begin, data[begin : begin + _SECTOR])
            for offset, data in self.pending
            for begin in range(0, len(data), _SECTOR)
        ]
        share = chance.choice((0.0, 0.2, 0.5, 0.9, 1.0))
        for offset, data in sectors:
            if chance.random() < share:
                self.write(offset, data)
        self.pending.clear()


class Medium(FileSystem):
    """
    The real file system, which also keeps what a power cut would leave of one folder, and fails where it is told to.

    Names reach the medium in their order, some of them before the folder is synced. After a sync that fails, some of the writes
    are lost for ever and later syncs succeed, as on Linux.
    """

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = os.fspath(folder)
        self.chance = chance
        self.left = -1
        self.code = 0
        self.failed = ""
        self.off = False
        self._open: dict[int, _Node | None] = {}
        self._names: dict[str, _Node] = {}
        self._durable_names: dict[str, _Node] = {}
        self._pending_names: list[dict[str, _Node]] = []

    def arm(self, left: int, code: int) -> None:
        """Let the call after *left* others fail with *code*, or with a power cut if that is 0."""
        self.left, self.code, self.failed = left, code, ""

    def _step(self, name: str) -> None:
        if self.off:
            raise PowerCut
        if self.left >= 0:
            self.left -= 1
            if self.left < 0:
                self.failed = name
                if not self.code:
                    self.off = True
                    raise PowerCut
                raise OSError(self.code, os.strerror(self.code))

    def _renamed(self) -> None:
        self._pending_names.append(dict(self._names))

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        self._step("open")
        fd = super().open(path, flags, mode)
        if path == self.folder:
            self._open[fd] = None
            return fd
        if path not in self._names:
            self._names[path] = _Node()
            self._renamed()
        self._open[fd] = self._names[path]
        return fd

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        try:
            self._step("pwritev")
        except OSError:
            raise
        except PowerCut:
            self._note(fd, offset, b"".join(buffers))  # it was under way
            raise
        data = b"".join(buffers)
        if self.chance.random() < 0.2:
            data = data[: self.chance.randint(1, len(data))]
        self._note(fd, offset, data)
        return os.pwrite(fd, data, offset)

    def _note(self, fd: int, offset: int, data: bytes) -> None:
        node = self._open[fd]
        assert node is not None
        node.pending.append((offset, data))

    def fdatasync(self, fd: int) -> None:
        self._sync(fd, "fdatasync")

    def fsync(self, fd: int) -> None:
        self._sync(fd, "fsync")

    def _sync(self, fd: int, name: str) -> None:
        node = self._open[fd]
        try:
            self._step(name)
        except OSError:
            if node is not None:
                node.flush_some(self.chance)
            raise
        if node is not None:
            node.flush()
        else:
            self._durable_names = dict(self._names)
            self._pending_names.clear()

    def close(self, fd: int) -> None:
        super().close(fd)
        del self._open[fd]

    def rename(self, source: str, target: str) -> None:
        self._step("rename")
        super().rename(source, target)
        self._names[target] = self._names.pop(source)
        self._renamed()

    def unlink(self, path: str) -> None:
        self._step("unlink")
        super().unlink(path)
        del self._names[path]
        self._renamed()

    def free(self, path: str) -> int:
        self._step("free")
        return super().free(path)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self._step("pread")
        return super().pread(fd, length, offset)

    def listdir(self, path: str) -> list[str]:
        self._step("listdir")
        return super().listdir(path)

    def cut(self, target: Path) -> None:
        """Make the folder *target* as a power cut leaves it."""
        target.mkdir()
        names = self.chance.choice([self._durable_names, *self._pending_names])
        for node in {id(node): node for node in (*self._names.values(), *names.values())}.values():
            node.flush_some(self.chance)
        for path, node in names.items():
            (target / os.path.basename(path)).write_bytes(node.durable)


class Quota(FileSystem):
    """A file system that has room for so many bytes of files that :meth:`pwritev` makes longer; room is never given back."""

    def __init__(self, room: int) -> None:
        self.room = room

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        data = b"".join(buffers)
        size = os.fstat(fd).st_size
        grown = max(0, offset + len(data) - size)
        if grown > self.room:
            data = data[: max(0, len(data) - grown + self.room)]
            if not data:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            grown = max(0, offset + len(data) - size)
        self.room -= grown
        return os.pwrite(fd, data, offset)
