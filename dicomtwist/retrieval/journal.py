"""
The journals of ``--resume``: what is done, so that it is not done again.

A journal is a text file that only grows, with a JSON document on each line. The first line names the peer. Each other line of
a journal of ``store`` is an instance that the peer has stored, with the size and modification time of its file: a file that
has changed since then is sent again. Each of ``get`` and ``retrieve()`` has the keys of a request whose instances are
all in the folder. An incomplete line, left
by a crash, is skipped. Entries from the last moments before a crash may be missing; what they say is done again, which does no
harm.
"""

from __future__ import annotations

import fcntl
import json
from hashlib import blake2b
from typing import IO, Any, Final

from twisted.internet.defer import Deferred

from dicomtwist.retrieval.keyword_json import to_json
from dicomtwist.retrieval.results import Request
from dicomtwist.runtime.executors import Executor

#: The longest line that is read, in bytes.
MAX_LINE: Final = 64 * 1024


__all__ = ["Journal", "JournalError", "RetrievalJournal", "digest"]


class JournalError(ValueError):
    """A journal cannot be used; the text says why and what to do."""


class Journal:
    """
    A journal of one peer, with what the subclasses record.

    :param path: the file, which is created if it is missing.
    :param peer: the peer, as the command line names it.
    :param about: the other things that the entries depend on, such as the folder; a journal about something else is refused.

    :ivar known: the number of entries when the journal was opened.
    :ivar error: why the journal could not be written, ``None`` if it could.

    It is opened before the reactor runs. Each entry takes some 100 bytes of memory.
    """

    #: The subcommand that writes it.
    format = ""

    def __init__(self, path: str, peer: str, **about: str) -> None:
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
            self._open({"peer": peer, **about})
        except OSError as error:
            self._file.close()
            raise JournalError(f"{path!r} cannot be used: {error.strerror}") from None
        except BaseException:
            self._file.close()
            raise
        self.known = len(self._known)

    def key(self, entry: dict[str, Any]) -> bytes | None:
        """Return the digest of what an entry records, ``None`` if it is no entry of this journal."""
        raise NotImplementedError

    def _open(self, about: dict[str, str]) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(f"{self._path!r} is in use by another dicomtwist") from None
        self._file.seek(0)
        header = self._file.readline(MAX_LINE)
        if not header:
            self._append([json.dumps({"journal": self.format, "version": 1, **about}).encode() + b"\n"])
            return
        first = _parse(header)
        if first.get("journal") != self.format or first.get("version") != 1:
            raise JournalError(f"{self._path!r} is not a journal of {self.format}: name another file")
        for name, wanted in about.items():
            if first.get(name) != wanted:
                raise JournalError(f"{self._path!r} is about {first.get(name)}, not about {wanted}: name another file")
        ends_well = True
        while line := self._file.readline(MAX_LINE):
            ends_well = line.endswith(b"\n")
            key = self.key(_parse(line))
            if key is not None:
                self._known.add(key)
        if not ends_well:
            self._append([b"\n"])

    def holds(self, entry: dict[str, Any]) -> bool:
        """Whether *entry* was there when the journal was opened; safe in any thread."""
        return bool(self._known) and self.key(entry) in self._known

    def record(self, entry: dict[str, Any], executor: Executor) -> None:
        """Add an entry. A worker thread writes all entries that arrive meanwhile at once."""
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


class RetrievalJournal(Journal):
    """The journal of ``dicomtwist get`` and of ``retrieve()``: the requests whose instances are all in the folder."""

    format = "dicomtwist get"

    def key(self, entry: dict[str, Any]) -> bytes | None:
        """Return the digest of the keys of a row."""
        keys = entry.get("keys")
        return digest(json.dumps(keys, sort_keys=True)) if isinstance(keys, dict) else None

    def contains(self, request: Request) -> bool:
        """Whether *request* was complete when the journal was opened."""
        return bool(self._known) and self.holds(_keys_of(request))

    def add(self, request: Request, executor: Executor) -> None:
        """Record that *request* is complete."""
        self.record(_keys_of(request), executor)


def _keys_of(request: Request) -> dict[str, Any]:
    level = {"QueryRetrieveLevel": request.level} if request.level else {}
    return {"keys": {**to_json(request.keys), **level}}


def _parse(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def digest(text: str) -> bytes:
    """Return what a journal keeps of an entry in memory."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
