"""
The integrity check: an instance is in the index, readable on the disk to its end, and the one that the index names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from os import SEEK_END
from typing import Final, NamedTuple

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.completeness import Completeness, examine
from dicomtwist.archive.index.record import IndexedInstance
from dicomtwist.archive.storage.interfaces import Storage
from dicomtwist.datasets.header_scanner import HeaderScanner
from dicomtwist.dimse.status import CLASS_INSTANCE_CONFLICT, NO_SUCH_SOP_INSTANCE, PROCESSING_FAILURE
from dicomtwist.part10 import decode_uid, read_file_meta

__all__ = ["CHECKED_AT_ONCE", "Reference", "verify"]

#: The maximum number of instances that are looked up at once.
CHECKED_AT_ONCE: Final = 64
_PIECE: Final = 256 * 1024
_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
_UIDS: Final = frozenset((_SOP_CLASS, _SOP_INSTANCE))


class Reference(NamedTuple):
    """A reference to an instance, by SOP Class UID and SOP Instance UID."""

    sop_class_uid: str
    sop_instance_uid: str


class Damaged(Exception):
    """The file of an instance has changed since it was stored; the text says how."""


def verify(archive: Archive, references: Sequence[Reference], damaged: list[str]) -> list[int]:
    """
    Verify that the archive holds instances. The call blocks until all of them are read.

    With durability none each file is flushed to the medium first.

    :param references: the instances, at most :data:`CHECKED_AT_ONCE`.
    :param damaged: a list to which the function adds the path and the fault of each indexed file that is damaged.
    :returns: for each instance 0 or the Failure Reason (0008,1197): 0x0112 if there is no such instance, 0x0119 if it has
        another SOP Class, 0x0110 if its file cannot be read or has changed since it was stored.
    :raises IndexFailed: the database cannot be read.
    """
    archive.catch_up()
    with suppress(OSError):  # then the files that are not on the medium are read from the system's cache
        archive.settle()
    found: dict[str, list[IndexedInstance]] = {}
    for indexed in archive.index.find_instances({reference.sop_instance_uid for reference in references}):
        found.setdefault(indexed.uids[2], []).append(indexed)
    store = archive.store
    return [_verify(store, reference, found.get(reference.sop_instance_uid, []), damaged) for reference in references]


def _verify(store: Storage, reference: Reference, copies: Sequence[IndexedInstance], damaged: list[str]) -> int:
    if not copies:
        return NO_SUCH_SOP_INSTANCE
    same_class = [copy for copy in copies if copy.sop_class_uid == reference.sop_class_uid]
    if not same_class:
        return CLASS_INSTANCE_CONFLICT
    for copy in same_class:
        try:
            _read(store, copy)
        except Exception as error:
            damaged.append(f"{store.locate(*copy.uids)}: {error}")
        else:
            return 0
    return PROCESSING_FAILURE


def _read(store: Storage, indexed: IndexedInstance) -> None:
    """
    Read an instance to its end, and flush it to the medium.

    :raises Damaged: it has changed since it was stored.
    :raises OSError: it cannot be read.
    """
    with store.open_on_medium(*indexed.uids) as file:
        size = file.seek(0, SEEK_END)
        file.seek(0)
        if size != indexed.size:
            raise Damaged(f"it has {size} bytes, but {indexed.size} were stored")
        meta, start = read_file_meta(file)
        if meta.transfer_syntax_uid != indexed.transfer_syntax:
            raise Damaged("its transfer syntax has changed")
        scanner = HeaderScanner(indexed.transfer_syntax, _UIDS, required=_UIDS)
        file.seek(0)
        digest = hashlib.sha256(file.read(start))
        while piece := file.read(_PIECE):
            digest.update(piece)
            if not scanner.done:
                scanner.feed(piece)
        if indexed.digest is not None and digest.digest() != indexed.digest:
            raise Damaged("its bytes have changed")
        if not scanner.done:
            scanner.finish()
        uids = tuple(decode_uid(scanner.values.get(tag, b"")) for tag in (_SOP_CLASS, _SOP_INSTANCE))
        if uids != (indexed.sop_class_uid, indexed.uids[2]):
            raise Damaged("it holds another instance")
        if indexed.digest is None:
            # The index was made again from the file, which may have lost its end before.
            completeness, reason = examine(file, start, indexed.transfer_syntax)
            if completeness is Completeness.CUT_OFF:
                raise Damaged(reason)
    store.sync_path(*indexed.uids)
