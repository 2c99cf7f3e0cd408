"""
Whether the archive holds an instance: found in the index, read from the disk to its end, and what it says it is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from sqlalchemy import select

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.schema import instance, series, study
from dicomtwist.archive.query.search import StoredInstance, reading
from dicomtwist.archive.storage.file_store import INSTANCE_SUFFIX
from dicomtwist.archive.storage.types import Durability
from dicomtwist.datasets.header_scanner import HeaderError, HeaderScanner
from dicomtwist.dimse.status import CLASS_INSTANCE_CONFLICT, NO_SUCH_SOP_INSTANCE, PROCESSING_FAILURE
from dicomtwist.part10 import NotDicomFile, decode_uid, read_file_meta

__all__ = ["CHECKED_AT_ONCE", "Reference", "check"]

#: How many instances are looked for at once.
CHECKED_AT_ONCE: Final = 64
_PIECE: Final = 256 * 1024
_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018


class Reference(NamedTuple):
    """An instance that somebody refers to."""

    sop_class_uid: str
    sop_instance_uid: str


class Damaged(Exception):
    """The file of an instance is not what it was when it was stored; the text says how."""


def check(archive: Archive, references: Sequence[Reference], damaged: list[str]) -> list[int]:
    """
    Check instances; blocks for as long as it takes to read them.

    With durability none what is found is brought onto the medium first.

    :param references: which, :data:`CHECKED_AT_ONCE` at the most.
    :param damaged: where to add what is wrong with the files of those that are in the index and cannot be read.
    :returns: for each 0, or the Failure Reason (0008,1197): 0x0112 where it is not there, 0x0119 where it is one of
        another SOP Class, 0x0110 where its file cannot be read or is not what was stored.
    :raises IndexFailed: the database cannot be read.
    """
    found: dict[str, list[StoredInstance]] = {}
    for stored in _find(archive, {reference.sop_instance_uid for reference in references}):
        found.setdefault(stored.sop_instance_uid, []).append(stored)
    return [_check(archive, reference, found.get(reference.sop_instance_uid, []), damaged) for reference in references]


def _find(archive: Archive, uids: Iterable[str]) -> list[StoredInstance]:
    statement = (
        select(
            *(study.c.study_instance_uid, series.c.series_instance_uid, instance.c.sop_instance_uid),
            *(instance.c.sop_class_uid, instance.c.transfer_syntax, instance.c.size, instance.c.digest),
        )
        .join(series, instance.c.parent == series.c.id)
        .join(study, series.c.parent == study.c.id)
        .where(instance.c.sop_instance_uid.in_(sorted(uids)))
    )
    archive.catch_up()
    with reading(archive.index.engine) as connection:
        rows = connection.execute(statement).all()
    root = os.fspath(archive.root)
    return [
        StoredInstance(f"{root}/{in_study}/{in_series}/{uid}{INSTANCE_SUFFIX}", sop_class, uid, syntax, size, digest)
        for in_study, in_series, uid, sop_class, syntax, size, digest in rows
    ]


def _check(archive: Archive, reference: Reference, copies: Sequence[StoredInstance], damaged: list[str]) -> int:
    if not copies:
        return NO_SUCH_SOP_INSTANCE
    same_class = [copy for copy in copies if copy.sop_class_uid == reference.sop_class_uid]
    if not same_class:
        return CLASS_INSTANCE_CONFLICT
    for copy in same_class:
        try:
            _read(copy, sync=archive.store.durability is not Durability.FULL)
        except (Damaged, OSError, NotDicomFile, HeaderError) as error:
            damaged.append(f"{copy.path}: {error}")
        else:
            return 0
    return PROCESSING_FAILURE


def _read(stored: StoredInstance, *, sync: bool) -> None:
    """
    Read the file of an instance to its end.

    :raises Damaged: it is not what was stored.
    :raises OSError: it cannot be read.
    """
    with open(stored.path, "rb", buffering=0) as file:
        if sync:
            os.fsync(file.fileno())
        with suppress(OSError):
            # From the medium, not from what the system remembers of it.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(file.fileno()).st_size
        if size != stored.size:
            raise Damaged(f"{size} bytes where {stored.size} were stored")
        meta, start = read_file_meta(file)
        if meta.transfer_syntax_uid != stored.transfer_syntax:
            raise Damaged("its transfer syntax is another one")
        scanner = HeaderScanner(stored.transfer_syntax, frozenset((_SOP_CLASS, _SOP_INSTANCE)))
        file.seek(0)
        digest = hashlib.sha256(file.read(start))
        while piece := file.read(_PIECE):
            digest.update(piece)
            if not scanner.done:
                scanner.feed(piece)
        if stored.digest is not None and digest.digest() != stored.digest:
            raise Damaged("its bytes are not those that were stored")
        if not scanner.done:
            scanner.finish()
        uids = tuple(decode_uid(scanner.values.get(tag, b"")) for tag in (_SOP_CLASS, _SOP_INSTANCE))
        if uids != (stored.sop_class_uid, stored.sop_instance_uid):
            raise Damaged("it holds another instance")
    if sync:
        # The folders of series and study, and the one that these are in.
        folder = stored.path
        for _ in range(3):
            folder = os.path.dirname(folder)
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
