"""
What an archive needs of an index: a database of one writer is one, a database that several machines write can be another.

Everything blocks and is meant for worker threads; what the database refuses is
:class:`~dicomtwist.archive.storage.types.IndexFailed`, and then nothing of what was asked for is in it. Queries are compiled
to SQL, so whatever index there is has a database that :mod:`dicomtwist.archive.query` asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from dicomtwist.archive.index.record import IndexedInstance, IndexRow
from dicomtwist.archive.storage.types import InstanceUIDs

__all__ = ["IndexWriter", "InstanceIndex", "RowSink"]


class RowSink(Protocol):
    """The index as a queue of rows sees it."""

    def add(self, instances: Sequence[IndexRow], /) -> None:
        """Add instances, in one transaction; rows of the same instances are replaced."""


class IndexWriter(RowSink, Protocol):
    """The index as a commit sees it."""

    def announce_replacing(self, instances: Iterable[InstanceUIDs], /) -> None:
        """Note that the files of *instances* are about to be replaced; :meth:`add` takes it back."""

    def remove(self, instances: Iterable[InstanceUIDs], /) -> None:
        """Remove instances, and series, studies and patients that are empty then."""


class InstanceIndex(IndexWriter, Protocol):
    """The index as an archive sees it, from its start to its end."""

    def announced(self) -> list[InstanceUIDs]:
        """Return the instances whose files were being replaced when the program before this one ended."""

    def forget_announced(self) -> None:
        """Take back all that was announced: what became of it is known."""

    def files(self) -> Iterator[tuple[str, str, list[str]]]:
        """
        Yield all that is indexed, a series at a time in the order of their UIDs: Study and Series Instance UID, and the
        SOP Instance UIDs.
        """

    def find_instances(self, sop_instance_uids: Iterable[str], /) -> list[IndexedInstance]:
        """Return all that is indexed of instances, by their SOP Instance UIDs: a few hundred at the most."""

    def close(self) -> None:
        """Let go of the database; idempotent."""
