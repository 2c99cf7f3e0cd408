"""
The interfaces of a storage, as Protocols: files below a folder are one storage, an object store can be another.

The archive identifies an instance by its Study, Series and SOP Instance UIDs; only the storage knows where it lies. Unless
stated otherwise the caller has checked the UIDs (:func:`~dicomtwist.archive.storage.types.check_uids`). All methods block, are
meant for worker threads, and raise an :class:`OSError` if the operating system refuses a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol

from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.types import Durability, InstanceUIDs, Written

__all__ = ["CommittingStorage", "ReceivingStorage", "SideFiles", "Storage", "Writer"]


class Writer(Protocol):
    """Writes one instance piece by piece. Any failure removes what was written and ends the writer."""

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append buffers, all bytes of them."""

    def seal(self) -> Written:
        """Complete the instance and return it; it belongs to the caller from then on."""

    def discard(self) -> None:
        """Remove what was written; does nothing after :meth:`seal`."""


class ReceivingStorage(Protocol):
    """The storage as the reception of instances sees it."""

    @property
    def durability(self) -> Durability:
        """The state of an instance when the call that stores it returns."""

    def create(self) -> Writer:
        """Begin an instance that is written piece by piece."""

    def room(self) -> tuple[str, int]:
        """
        Return the folder of the storage, and the number of bytes that are free on its file system. Blocks.

        :raises OSError: the file system does not say.
        """


class CommittingStorage(Protocol):
    """The storage as a commit sees it: a complete instance gets its final name, or everything stays as it was."""

    @property
    def durability(self) -> Durability:
        """The state of an instance when the call that stores it returns."""

    def exists(self, study_uid: str, series_uid: str, instance_uid: str, /) -> bool:
        """Whether the storage holds an instance."""

    def write_temporaries(self, contents: Sequence[Sequence[Buffer]], /) -> list[Written | BaseException]:
        """Write complete instances without a final name; return for each the file or the reason of the failure."""

    def open_temporary(self, temporary: Written, /) -> BinaryIO:
        """Open an instance that has no final name yet, or a copy that was set aside."""

    def rename(
        self, source: str, study_uid: str, series_uid: str, instance_uid: str, /, *, exclusive: bool = False
    ) -> str:
        """
        Give the temporary file *source* its final name; :meth:`sync_names` then flushes that name to the medium.

        :raises FileExistsError: there is an earlier copy and *exclusive* is true; neither file has changed.
        """

    def set_aside(self, study_uid: str, series_uid: str, instance_uid: str, /) -> str:
        """Give the stored copy a second name and return it, so that :meth:`put_back` can undo a replacement."""

    def put_back(self, temporary: str, study_uid: str, series_uid: str, instance_uid: str, /) -> None:
        """Undo a replacement: the copy that was set aside gets its name back."""

    def copy_received(self, study_uid: str, series_uid: str, instance_uid: str, /) -> tuple[int, int]:
        """Return the time of the stored copy, in nanoseconds since 1970, and its size in bytes."""

    def sync_names(self, instances: Iterable[InstanceUIDs], /) -> dict[InstanceUIDs, OSError]:
        """Flush the names of instances to the medium if the durability asks for it; return the failures."""

    def remove(self, temporary: str, /) -> None:
        """Remove a temporary file or a copy that was set aside; a failure is ignored."""

    def remove_instance(self, study_uid: str, series_uid: str, instance_uid: str, /) -> None:
        """Remove an instance; a failure is ignored."""


class SideFiles(Protocol):
    """Files beside the instances, such as performed procedure steps, addressed by name."""

    def path(self, name: str, /) -> str:
        """Return the path of a file, for messages."""

    def put(self, buffers: Sequence[Buffer], name: str, /) -> None:
        """Write a file and replace an earlier one. A reader sees all of it or none."""

    def read(self, name: str, limit: int, /) -> bytes:
        """Return the content of a file, at most *limit* bytes of it."""

    def __contains__(self, name: str, /) -> bool:
        """Whether the file *name* exists."""

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""

    def remove(self, name: str, /) -> None:
        """Remove a file; a failure is ignored."""

    def locked(self) -> AbstractContextManager[None]:
        """Hold a lock that excludes the other processes that share the storage."""

    def try_locked(self) -> AbstractContextManager[bool]:
        """Hold that lock if no other holder has it, without waiting; the value is whether it is held."""


class Storage(ReceivingStorage, CommittingStorage, Protocol):
    """The storage as an archive sees it."""

    def prepare(self) -> int:
        """
        Make the storage ready, remove left-over temporary files, and return how many these were.

        :raises StoreUnusable: the storage cannot be used; the text says why and what to do.
        """

    def close(self) -> None:
        """Release the storage; idempotent."""

    def open(self, study_uid: str, series_uid: str, instance_uid: str, /) -> BinaryIO:
        """Open an instance."""

    def open_on_medium(self, study_uid: str, series_uid: str, instance_uid: str, /) -> BinaryIO:
        """Open an instance so that it is read from the medium; it is flushed there first if it may not be there yet."""

    def sync_path(self, study_uid: str, series_uid: str, instance_uid: str, /) -> None:
        """Flush the names that lead to an instance to the medium if they may not be there yet."""

    def describe(self, file: BinaryIO, /) -> tuple[int, str]:
        """
        Return the size of an open instance in bytes, and its version.

        The version is a text that is another one for every other copy of the instance that the storage has had.
        """

    def head(self, study_uid: str, series_uid: str, instance_uid: str, length: int, /) -> tuple[int, str, bytes]:
        """Return the size of an instance in bytes, its version, see :meth:`describe`, and its first *length* bytes."""

    def versions(self, study_uid: str, series_uid: str, /) -> dict[str, str]:
        """Return the SOP Instance UIDs of a series, each with the version of the instance; none if it has no instances."""

    def received(self, study_uid: str, /) -> float:
        """
        Return the time at which the last instance of a study was received, in seconds since 1970; 0 if it has none.
        """

    def series_of(self, study_uid: str, /) -> list[str]:
        """Return the Series Instance UIDs of a study, sorted; none if there is no such study."""

    def locate(self, study_uid: str, series_uid: str, instance_uid: str, /) -> str:
        """Return the path of an instance, whether or not it exists."""

    def name(self, study_uid: str, series_uid: str, instance_uid: str, /) -> str:
        """Return the name that the storage has for an instance, for messages."""

    def side_folder(self, name: str, /) -> SideFiles:
        """Return the files beside the instances that are stored together under *name*."""

    def series(self, unreadable: Callable[[str, str, OSError], None], /) -> Iterator[tuple[tuple[str, str], set[str]]]:
        """
        Yield each series, in the order of the UIDs: Study and Series Instance UID, and the SOP Instance UIDs in it.

        :param unreadable: called with the Study Instance UID, the Series Instance UID and the reason for a series that cannot
            be listed, before a later series is yielded; the Series Instance UID is empty if it is the whole study.
        """
