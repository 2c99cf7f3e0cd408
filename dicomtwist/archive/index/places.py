"""
Where the index has a SOP Instance UID: asked for each new instance before it is stored.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from threading import Lock
from typing import Any, Final

from sqlalchemy import Connection, Engine, Select, bindparam, select

from dicomtwist.archive.index.schema import Statement, instance, series, study
from dicomtwist.archive.storage.types import IndexFailed, InstanceUIDs

__all__ = ["Places"]

_UID: Final = "instance_uid"


class Places:
    """
    Reads where instances are, on a connection of its own.

    On the connection that writes, a look-up would wait until the rows of earlier instances are in the database and on the
    medium, and all senders with it. A row is not seen before its commit; until then it is found in the queue of the rows
    (:class:`~dicomtwist.archive.index.write_behind.WriteBehind`).

    :param engine: the database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._statement = Statement(engine, _places(), [_UID])
        # SQLite reads each statement in a transaction of its own; other drivers begin one that has to end.
        self._has_transactions = engine.dialect.name != "sqlite"
        self._lock = Lock()
        self._open: Connection | None = None
        self._is_closed = False

    def elsewhere(self, instances: Collection[InstanceUIDs]) -> dict[InstanceUIDs, InstanceUIDs]:
        """
        Return the instances whose SOP Instance UID the index has below another study or series, each with the UIDs that it
        has there.

        :param instances: their Study, Series and SOP Instance UIDs.
        :raises IndexFailed: it is closed.
        :raises Exception: the database cannot be read: an exception of SQLAlchemy or of the driver.
        """
        with self._lock:
            if self._is_closed:
                raise IndexFailed("index: it is closed")
            if self._open is not None:
                with suppress(Exception):  # a connection that was open may be broken, a new one may not
                    return self._read(self._open, instances)
                self._drop()
            self._open = self._engine.connect()
            try:
                return self._read(self._open, instances)
            except BaseException:
                self._drop()
                raise

    def _read(self, connection: Connection, instances: Collection[InstanceUIDs]) -> dict[InstanceUIDs, InstanceUIDs]:
        found: dict[InstanceUIDs, InstanceUIDs] = {}
        # Past SQLAlchemy, since every instance that is stored is looked for: this takes some microseconds for each.
        dbapi: Any = connection.connection.dbapi_connection
        cursor, statement = dbapi.cursor(), self._statement
        try:
            for uids in instances:
                cursor.execute(statement.text, statement.parameters((uids[2],)))
                for study_uid, series_uid in cursor.fetchall():
                    if (study_uid, series_uid) != uids[:2]:
                        found[uids] = (study_uid, series_uid, uids[2])
                        break
        finally:
            cursor.close()
        if self._has_transactions:
            dbapi.rollback()
        return found

    def close(self) -> None:
        """Release the connection; idempotent. Nothing is read any more."""
        with self._lock:
            self._is_closed = True
            self._drop()

    def _drop(self) -> None:
        dropped, self._open = self._open, None
        if dropped is not None:
            with suppress(Exception):  # the driver's own exceptions; the connection is not used any more
                dropped.invalidate()
            with suppress(Exception):
                dropped.close()


def _places() -> Select[Any]:
    return (
        select(study.c.study_instance_uid, series.c.series_instance_uid)
        .select_from(instance)
        .join(series, instance.c.parent == series.c.id)
        .join(study, series.c.parent == study.c.id)
        .where(instance.c.sop_instance_uid == bindparam(_UID))
    )
