"""
What an archive needs of a storage: the files below a folder are one, an object store can be another.

An instance is known by its Study, Series and SOP Instance UIDs; where it lies is the storage's own matter. Unless told
otherwise the UIDs have been checked (:func:`~dicomtwist.archive.storage.types.check_uids`). Everything blocks, is meant for
worker threads, and raises what the operating system refuses as an :class:`OSError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol

from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.types import Durability, InstanceUIDs, Written

__all__ = ["CommittingStorage", "ReceivingStorage", "SideFiles", "Storage", "Writer"]


class Writer(Protocol):
    """One instance that comes piece by piece; any failure removes what was written, and ends the writer."""

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append buffers, all bytes of them."""

    def seal(self) -> Written:
        """Return the instance, which is whole; it belongs to the caller."""

    def discard(self) -> None:
        """Remove what was written; without effect after :meth:`seal`."""


class ReceivingStorage(Protocol):
    """The storage as the reception of instances sees it."""

    @property
    def durability(self) -> Durability:
        """What has happened to an instance when the call that stores it returns."""

    def create(self) -> Writer:
        """Begin an instance that comes piece by piece."""


class CommittingStorage(Protocol):
    """The storage as a commit sees it: instances that are whole get their final names, or all is as it was."""

    @property
    def durability(self) -> Durability:
        """What has happened to an instance when the call that stores it returns."""

    def exists(self, study_uid: str, series_uid: str, instance_uid: str, /) -> bool:
        """Whether there is an instance."""

    def rename(
        self, source: str, study_uid: str, series_uid: str, instance_uid: str, /, *, exclusive: bool = False
    ) -> str:
        """
        Give the temporary file *source* its final name, which :meth:`sync_names` brings onto the medium.

        :raises FileExistsError: there is an earlier copy, though *exclusive*; both are as they were.
        """

    def set_aside(self, study_uid: str, series_uid: str, instance_uid: str, /) -> str:
        """Return a second name for the copy that is there, so that :meth:`put_back` can undo its replacement."""

    def put_back(self, temporary: str, study_uid: str, series_uid: str, instance_uid: str, /) -> None:
        """Undo a replacement: what was set aside gets its name back."""

    def sync_names(self, instances: Iterable[InstanceUIDs], /) -> dict[InstanceUIDs, OSError]:
        """Have the names of instances on the medium if durability asks for it; return those that failed, with why."""

    def remove(self, temporary: str, /) -> None:
        """Remove a temporary file, or what was set aside, quietly if that cannot be done."""

    def remove_instance(self, study_uid: str, series_uid: str, instance_uid: str, /) -> None:
        """Remove an instance, quietly if that cannot be done."""


class SideFiles(Protocol):
    """Files beside the instances, such as performed procedure steps, by their names."""

    def path(self, name: str, /) -> str:
        """Return where a file is, for people."""

    def put(self, buffers: Sequence[Buffer], name: str, /) -> None:
        """Write a file, in place of an earlier one; it is whole or not there."""

    def read(self, name: str, limit: int, /) -> bytes:
        """Return the content of a file, up to *limit* bytes of it."""

    def __contains__(self, name: str, /) -> bool:
        """Whether there is a file."""

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""

    def remove(self, name: str, /) -> None:
        """Remove a file, quietly if that cannot be done."""

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes that share the storage from what is locked as well."""


class Storage(ReceivingStorage, CommittingStorage, Protocol):
    """The storage as an archive sees it."""

    def prepare(self) -> int:
        """
        Make the storage ready, and return how many temporary files were left over and have been removed.

        :raises StoreUnusable: it cannot be used; the text says why and what to do.
        """

    def close(self) -> None:
        """Let go of the storage; idempotent."""

    def write_temporaries(self, contents: Sequence[Sequence[Buffer]], /) -> list[Written | BaseException]:
        """Write instances that are whole and have no final name yet; return each, or why there is none."""

    def open_temporary(self, temporary: Written, /) -> BinaryIO:
        """Open an instance that has no final name yet."""

    def open(self, study_uid: str, series_uid: str, instance_uid: str, /) -> BinaryIO:
        """Open an instance."""

    def open_on_medium(self, study_uid: str, series_uid: str, instance_uid: str, /) -> BinaryIO:
        """Open an instance so that it is read from the medium, where it is brought first if it may not be there."""

    def sync_path(self, study_uid: str, series_uid: str, instance_uid: str, /) -> None:
        """Bring the names that lead to an instance onto the medium if they may not be there."""

    def locate(self, study_uid: str, series_uid: str, instance_uid: str, /) -> str:
        """Return the path of an instance, whether or not it is there."""

    def name(self, study_uid: str, series_uid: str, instance_uid: str, /) -> str:
        """Return what the storage calls an instance, for people."""

    def side_folder(self, name: str, /) -> SideFiles:
        """Return the files beside the instances that are kept together under *name*."""

    def series(self) -> Iterator[tuple[tuple[str, str], set[str]]]:
        """
        Yield the series in the order of their UIDs: Study and Series Instance UID, and the SOP Instance UIDs in it.
        """
