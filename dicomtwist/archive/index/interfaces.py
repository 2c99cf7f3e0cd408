"""
The interfaces of an index, as Protocols: a database with one writer is one index, a database for several machines another.

All methods block and are meant for worker threads. If the database refuses a request, they raise
:class:`~dicomtwist.archive.storage.types.IndexFailed`, and the request has changed nothing. Queries are compiled to SQL, so
every index has a database that :mod:`dicomtwist.archive.query` can read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
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
        """Note that the files of *instances* are about to be replaced; :meth:`add` removes the note."""

    def elsewhere(self, instances: Collection[InstanceUIDs], /) -> dict[InstanceUIDs, InstanceUIDs]:
        """
        Return the instances whose SOP Instance UID the index has below another study or series, each with the UIDs that it
        has there.
        """

    def remove(self, instances: Iterable[InstanceUIDs], /) -> None:
        """Remove instances, and the series, studies and patients that become empty."""


class InstanceIndex(IndexWriter, Protocol):
    """The index as an archive sees it, from its start to its end."""

    def announced(self) -> list[InstanceUIDs]:
        """Return the instances whose files were being replaced when the previous run of the program ended."""

    def forget_announced(self, instances: Iterable[InstanceUIDs], /) -> None:
        """Remove the notes of replacements of *instances*, after they have been checked."""

    def remove_below(self, uids: Sequence[str], /) -> int:
        """Remove a study, a series or an instance, by its UIDs from the study on; return the number of instances."""

    def files(self) -> Iterator[tuple[str, str, list[str]]]:
        """
        Yield all indexed series, in the order of their UIDs: Study and Series Instance UID, and the SOP Instance UIDs.
        """

    def find_instances(self, sop_instance_uids: Iterable[str], /) -> list[IndexedInstance]:
        """Return the indexed instances with these SOP Instance UIDs, at most a few hundred at once."""

    def close(self) -> None:
        """Close the database; idempotent."""
