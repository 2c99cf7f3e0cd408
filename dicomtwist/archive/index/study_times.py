"""
When studies were received and retrieved, and from whom, for the retention.

The facts are collected in memory and written together, some seconds later. They are in the index: if that is rebuilt, the times
of receipt are read from the files, and the senders are unknown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    and_,
    case,
    delete,
    func,
    select,
)

from dicomtwist.access.certificates import Certificate
from dicomtwist.access.rules import Requestor
from dicomtwist.archive.index.index import Index
from dicomtwist.archive.index.reading import reading
from dicomtwist.archive.index.schema import instance, series, study

__all__ = ["Order", "StudyFacts", "StudyTimes", "study_times"]

#: The studies whose facts wait to be written; those of others are lost, so that their files tell the time of receipt.
MAX_WAITING: Final = 100_000
#: The calling AE title that rules have for clients of HTTP.
HTTP: Final = "HTTP"
#: The studies that are written or read together.
PAGE: Final = 200

_TEXT = Text().with_variant(String(collation="C"), "postgresql")

# Not of the schema of the index: a program of an earlier version can use the database all the same.
metadata = MetaData()
study_times = Table(
    "study_times",
    metadata,
    Column("study_instance_uid", _TEXT, primary_key=True),
    Column("received", Float(53), nullable=False),
    Column("accessed", Float(53), nullable=False),
    Column("calling", _TEXT, nullable=False),
    Column("called", _TEXT, nullable=False),
)
# The users, addresses and certificates of the senders. A row counts if its time is that of the row above: an earlier version
# writes that alone.
study_senders = Table(
    "study_senders",
    metadata,
    Column("study_instance_uid", _TEXT, primary_key=True),
    Column("received", Float(53), nullable=False),
    Column("user_name", _TEXT, nullable=False),
    Column("address", _TEXT, nullable=False),
    Column("is_proxied", Integer, nullable=False),
    Column("certificate", _TEXT, nullable=False),
)


class Order(StrEnum):
    """The times that count for the age of a study, and for the order of deletions."""

    RECEIVED = "received"
    """The receipt of its last instance."""
    ACCESSED = "accessed"
    """The last retrieval, or the receipt if that is later."""


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """
    The facts about a study that the policy is matched against.

    :ivar uid: its Study Instance UID.
    :ivar received: the time at which its last instance was received, in seconds since 1970.
    :ivar accessed: the time of the last retrieval, 0 if there was none.
    :ivar calling: the calling AE title that has sent its last instance; empty if it is not known.
    :ivar called: the AE title that was called then.
    :ivar modalities: the modalities of its series.
    :ivar size: the size of its files in bytes.
    :ivar sender: the sender of its last instance, with user, address and certificate; ``None`` if it is not known.
    """

    uid: str
    received: float
    accessed: float = 0.0
    calling: str = ""
    called: str = ""
    modalities: tuple[str, ...] = ()
    size: int = 0
    sender: Requestor | None = None

    def time(self, order: Order) -> float:
        """Return the time that counts."""
        return max(self.received, self.accessed) if order is Order.ACCESSED else self.received


class _Receipt(NamedTuple):
    time: float
    sender: Requestor


class StudyTimes:
    """
    The facts about the studies of an archive.

    :param clock: returns the time, in seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = Lock()
        self._received: dict[str, _Receipt] = {}
        self._accessed: dict[str, float] = {}
        self._has_table = False

    # --- in any thread

    def note_received(self, study_uid: str, sender: Requestor) -> None:
        """Note that an instance of a study was received from *sender*."""
        if len(self._received) < MAX_WAITING or study_uid in self._received:
            self._received[study_uid] = _Receipt(self._clock(), sender)

    def note_accessed(self, study_uid: str) -> None:
        """Note that instances of a study are retrieved."""
        if len(self._accessed) < MAX_WAITING or study_uid in self._accessed:
            self._accessed[study_uid] = self._clock()

    @property
    def has_notes(self) -> bool:
        """Whether something was noted and is not written."""
        return bool(self._received or self._accessed)

    # --- in worker threads

    def write(self, index: Index) -> None:
        """
        Write what was noted.

        :raises IndexFailed: the database refused; the notes are written by a later call.
        """
        with self._lock:
            received, self._received = self._received, {}
            accessed, self._accessed = self._accessed, {}
            try:
                names = sorted({*received, *accessed})
                for start in range(0, len(names), PAGE):
                    with self._writing(index) as connection:
                        self._write(connection, names[start : start + PAGE], received, accessed)
            except BaseException:
                self._received = received | self._received
                self._accessed = accessed | self._accessed
                raise

    def _writing(self, index: Index) -> AbstractContextManager[Connection]:
        self._make_table(index)
        return index.writing()

    def _write(
        self, connection: Connection, names: Sequence[str], received: dict[str, _Receipt], accessed: dict[str, float]
    ) -> None:
        found = {row[0]: row for row in connection.execute(select(study_times).where(study_times.c[0].in_(names)))}
        rows, senders = [], []
        for name in names:
            before = found.get(name, (name, 0.0, 0.0, "", ""))
            receipt = received.get(name)
            if receipt is None and not before[1]:
                continue  # a study without its receipt: that is read from the files first
            time_of_receipt = before[1] if receipt is None else max(receipt.time, before[1])
            calling, called = before[3:5] if receipt is None else _titles(receipt.sender)
            rows.append(
                {
                    "study_instance_uid": name,
                    "received": time_of_receipt,
                    "accessed": max(accessed.get(name, 0.0), before[2]),
                    "calling": calling,
                    "called": called,
                }
            )
            if receipt is not None and receipt.sender.address:
                senders.append(_sender_row(name, time_of_receipt, receipt.sender))
        for table, new in ((study_times, rows), (study_senders, senders)):
            connection.execute(delete(table).where(table.c[0].in_([row["study_instance_uid"] for row in new])))
            if new:
                connection.execute(table.insert(), new)

    def unknown(self, index: Index) -> list[str]:
        """
        Return some studies whose receipt is not noted, at most :data:`PAGE`.

        :raises IndexFailed: the database cannot be read.
        """
        statement = (
            select(study.c.study_instance_uid)
            .outerjoin(study_times, study_times.c.study_instance_uid == study.c.study_instance_uid)
            .where(study_times.c.study_instance_uid.is_(None))
            .distinct()
            .limit(PAGE)
        )
        self._make_table(index)
        with reading(index.engine) as connection:
            return [*connection.execute(statement).scalars()]

    def note_times(self, index: Index, times: Iterable[tuple[str, float]]) -> None:
        """
        Write the times of receipt of studies whose senders are not known.

        :raises IndexFailed: the database refused.
        """
        rows = [
            {"study_instance_uid": uid, "received": received, "accessed": 0.0, "calling": "", "called": ""}
            for uid, received in times
        ]
        with self._lock, self._writing(index) as connection:
            names = [row["study_instance_uid"] for row in rows]
            known = select(study_times.c[0]).where(study_times.c[0].in_(names))
            there = {*connection.execute(known).scalars()}
            new = [row for row in rows if row["study_instance_uid"] not in there]
            if new:
                connection.execute(study_times.insert(), new)

    def forget_removed(self, index: Index) -> None:
        """
        Remove the facts about studies that are not in the archive any more.

        :raises IndexFailed: the database refused.
        """
        with self._lock, self._writing(index) as connection:
            for table in (study_times, study_senders):
                connection.execute(delete(table).where(table.c[0].not_in(select(study.c.study_instance_uid))))

    def oldest(self, index: Index, order: Order, after: tuple[float, str] = (0.0, "")) -> list[StudyFacts]:
        """
        Return the next studies in the order of their times, the oldest first, at most :data:`PAGE`.

        :param after: time and UID of the last study that the previous call has returned.
        :raises IndexFailed: the database cannot be read.
        """
        columns = study_times.c
        key: ColumnElement[float] = columns.received
        if order is Order.ACCESSED:
            key = case((columns.accessed > columns.received, columns.accessed), else_=columns.received)
        uid = columns.study_instance_uid
        statement = (
            select(study_times)
            .where(select(study.c.id).where(study.c.study_instance_uid == uid).exists())
            .where((key > after[0]) | and_(key == after[0], uid > after[1]))
            .order_by(key, uid)
            .limit(PAGE)
        )
        self._make_table(index)
        with reading(index.engine) as connection:
            return self._facts(connection, [tuple(row) for row in connection.execute(statement)])

    def facts(self, index: Index, study_uids: Sequence[str]) -> dict[str, StudyFacts]:
        """
        Return what is known about studies.

        :raises IndexFailed: the database cannot be read.
        """
        self._make_table(index)
        with reading(index.engine) as connection:
            rows = connection.execute(select(study_times).where(study_times.c[0].in_(study_uids))).all()
            found = {row[0]: row for row in rows}
            times = [tuple(found.get(uid, (uid, 0.0, 0.0, "", ""))) for uid in study_uids]
            return {one.uid: one for one in self._facts(connection, times)}

    def _facts(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> list[StudyFacts]:
        """
        Return the facts about studies.

        :param rows: their rows in the table of times.
        """
        uids = [row[0] for row in rows]
        uid = study.c.study_instance_uid
        of_studies = (
            select(uid, series.c.modality, func.sum(instance.c.size))
            .select_from(instance)
            .join(series, instance.c.parent == series.c.id)
            .join(study, series.c.parent == study.c.id)
            .where(uid.in_(uids))
            .group_by(uid, series.c.modality)
        )
        sizes: dict[str, dict[str, int]] = {}
        for name, modality, size in connection.execute(of_studies):
            sizes.setdefault(name, {})[modality] = int(size)
        senders = {row[0]: row for row in connection.execute(select(study_senders).where(study_senders.c[0].in_(uids)))}
        found = []
        for name, received, accessed, calling, called in rows:
            of_study = sizes.get(name, {})
            sender = _sender_of(senders.get(name), received, calling, called)
            modalities = tuple(sorted(of_study))
            found.append(
                StudyFacts(name, received, accessed, calling, called, modalities, sum(of_study.values()), sender)
            )
        return found

    def total(self, index: Index) -> int:
        """
        Return the size of all instances in bytes.

        :raises IndexFailed: the database cannot be read.
        """
        with reading(index.engine) as connection:
            return int(connection.execute(select(func.coalesce(func.sum(instance.c.size), 0))).scalar_one())

    def _make_table(self, index: Index) -> None:
        if not self._has_table and not index.is_reading:
            metadata.create_all(index.engine)
            self._has_table = True


def _titles(sender: Requestor) -> tuple[str, str]:
    """Return the calling and the called AE title; a client of HTTP has ``HTTP`` in place of the former."""
    return sender.calling or (HTTP if sender.address else ""), sender.called


def _sender_row(uid: str, received: float, sender: Requestor) -> dict[str, Any]:
    certificate = sender.certificate
    described = [] if certificate is None else [certificate.fingerprint, sorted(certificate.subject)]
    return {
        "study_instance_uid": uid,
        "received": received,
        "user_name": sender.user,
        "address": sender.address,
        "is_proxied": int(sender.proxied),
        "certificate": json.dumps(described) if described else "",
    }


def _sender_of(row: Any, received: float, calling: str, called: str) -> Requestor | None:
    if row is None or row[1] != received:
        return None
    _, _, user, address, is_proxied, described = row
    certificate = None
    if described:
        fingerprint, subject = json.loads(described)
        certificate = Certificate(frozenset((oid, value) for oid, value in subject), fingerprint)
    return Requestor(called, calling, address, bool(is_proxied), user, None, certificate)
