"""
The journal of ``--resume``: the instances that the peer has acknowledged, so that they are not sent again.

The journal is a text file that only grows, with a JSON document on each line. The first line names the peer. Each other
line is an instance that the peer has stored, with the size and modification time of its file: a file that has changed
since then is sent again. An incomplete line, left by a crash, is skipped. Acknowledgements from the last moments before a
crash may be missing; their instances are sent again, which does no harm.
"""

from __future__ import annotations

import fcntl
import json
import os
from hashlib import blake2b
from typing import IO, Any

from twisted.internet.defer import Deferred

from dicomtwist.runtime.executors import Executor
from dicomtwist.tools.files.file_scanner import ScannedInstance

_FORMAT = "dicomtwist store"
#: The longest line that is read, in bytes.
MAX_LINE = 64 * 1024


class JournalError(Exception):
    """A journal cannot be used; the text says why and what to do."""


class ResumeJournal:
    """
    The journal of one peer.

    :param path: the file, which is created if it is missing.
    :param peer: the peer, as the command line names it.

    :ivar known: the number of acknowledgements when the journal was opened.
    :ivar error: why the journal could not be written, ``None`` if it could.

    It is opened before the reactor runs. Each acknowledgement takes some 100 bytes of memory.
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
            raise JournalError(f"{self._path!r} is not a journal of dicomtwist store: name another file")
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

    def contains(self, instance: ScannedInstance) -> bool:
        """Whether an instance was acknowledged and its file has not changed since; safe in any thread."""
        return (
            bool(self._known) and _key(os.path.abspath(instance.path), instance.size, instance.changed) in self._known
        )

    def add(self, instance: ScannedInstance, executor: Executor) -> None:
        """Record that the peer has stored an instance. A worker thread writes all records that arrive meanwhile at once."""
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
        """Wait until everything is written, and close the file."""
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
