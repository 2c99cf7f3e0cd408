"""
The journal of ``--resume``: which instances the peer has acknowledged, so that they are not sent again.

It is a text file that only ever grows, with a JSON document on each line. The first says which peer it is about; each of
the others is an instance that the peer has stored, with the size and time of change of its file: a file that has changed
since is sent again. A line that is cut short, by a crash, is passed over. What was acknowledged in the last moments before
a crash may be missing; it is sent again, which does no harm.
"""

from __future__ import annotations

import fcntl
import json
import os
from hashlib import blake2b
from typing import IO, Any

from twisted.internet.defer import Deferred

from dicomtwist.runtime.executors import Executor
from dicomtwist.tools.files.file_scanner import Instance

_FORMAT = "dicomtwist store"
#: The longest line that is taken for one of ours, in bytes.
MAX_LINE = 64 * 1024


class JournalError(Exception):
    """A journal cannot be used; the text says why."""


class Journal:
    """
    A journal.

    :param path: its file, made where it is missing.
    :param peer: whom it is about.

    :ivar known: how many acknowledgements it had when it was opened.
    :ivar error: why it could not be written any more, ``None`` where it could.

    It is opened before the reactor runs. What it knows costs some 100 bytes of memory for each instance.
    """

    def __init__(self, path: str, peer: str) -> None:
        self._path = path
        self._known: set[bytes] = set()
        self._waiting: list[bytes] = []
        self._writing = False
        self._when_written: list[Deferred[None]] = []
        self.error: OSError | None = None
        try:
            self._file: IO[bytes] = open(path, "ab+")
        except OSError as error:
            raise JournalError(f"{path!r} cannot be opened: {error.strerror}") from None
        try:
            self._open(peer)
        except OSError as error:
            self._file.close()
            raise JournalError(f"{path!r} cannot be used: {error.strerror}") from None
        except BaseException:
            self._file.close()
            raise
        self.known = len(self._known)

    def _open(self, peer: str) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(f"{self._path!r} is in use by another dicomtwist") from None
        self._file.seek(0)
        header = self._file.readline(MAX_LINE)
        if not header:
            self._append([json.dumps({"journal": _FORMAT, "version": 1, "peer": peer}).encode() + b"\n"])
            return
        first = _parse(header)
        if first.get("journal") != _FORMAT or first.get("version") != 1:
            raise JournalError(f"{self._path!r} is no journal of dicomtwist store: name a file of its own")
        if first.get("peer") != peer:
            raise JournalError(f"{self._path!r} is about {first.get('peer')}, not about {peer}: name another file")
        ends_well = True
        while line := self._file.readline(MAX_LINE):
            ends_well = line.endswith(b"\n")
            entry = _parse(line)
            if isinstance(entry.get("path"), str):
                self._known.add(_key(entry["path"], entry.get("size"), entry.get("changed")))
        if not ends_well:
            self._append([b"\n"])

    def knows(self, instance: Instance) -> bool:
        """Whether an instance was acknowledged before, as its file is today; safe in any thread."""
        return (
            bool(self._known) and _key(os.path.abspath(instance.path), instance.size, instance.changed) in self._known
        )

    def acknowledged(self, instance: Instance, executor: Executor) -> None:
        """Note that the peer has stored an instance; written in a worker thread, together with what comes meanwhile."""
        entry = {"path": os.path.abspath(instance.path), "size": instance.size, "changed": instance.changed}
        self._waiting.append(json.dumps(entry).encode() + b"\n")
        self._write(executor)

    def _write(self, executor: Executor) -> None:
        if self._writing or not self._waiting or self.error is not None:
            return
        lines, self._waiting = self._waiting, []
        self._writing = True
        executor.run(self._append, lines).addErrback(self._failed).addCallback(self._written, executor)

    def _append(self, lines: list[bytes]) -> None:
        self._file.write(b"".join(lines))
        self._file.flush()

    def _failed(self, failure: Any) -> None:
        failure.trap(OSError)
        self.error = failure.value

    def _written(self, result: None, executor: Executor) -> None:
        self._writing = False
        self._write(executor)
        if not self._writing:
            waiting, self._when_written = self._when_written, []
            for deferred in waiting:
                deferred.callback(None)

    async def close(self) -> None:
        """Wait until all is written, and close it."""
        if self._writing:
            waiting: Deferred[None] = Deferred()
            self._when_written.append(waiting)
            await waiting
        try:
            self._file.close()
        except OSError as error:
            self.error = self.error or error


def _parse(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _key(path: str, size: object, changed: object) -> bytes:
    text = f"{size} {changed} {path}".encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=16).digest()
