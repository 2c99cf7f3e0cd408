"""
The index of an archive, opened for writing.

A lock in its folder excludes a second program; the processes of one program share the lock, each with an :class:`Index` of
its own. All methods block and are meant for worker threads; one call runs at a time.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, Engine, Select, bindparam, exists, func, select
from sqlalchemy.exc import SQLAlchemyError

from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.index.conflicts import Conflicts, Precedence, StoringTimes
from dicomtwist.archive.index.places import Places
from dicomtwist.archive.index.reading import (
    Subject,
    find_instances,
    find_subjects,
    instances_below,
    series_below,
    series_of,
)
from dicomtwist.archive.index.record import COLUMNS, IndexedInstance, IndexRow, Record, Row
from dicomtwist.archive.index.schema import (
    TABLES,
    IndexUnusable,
    Statement,
    check_version,
    instance,
    migrate,
    patient,
    replacing,
    series,
    study,
    upsert,
)
from dicomtwist.archive.index.sqlite import WRITING, ReadingDatabase, extend_log, sqlite_engine
from dicomtwist.archive.storage.process_locks import FileLock
from dicomtwist.archive.storage.system_calls import FileSystem
from dicomtwist.archive.storage.types import NO_ROOM, Durability, IndexFailed, InstanceUIDs, RowRefused

__all__ = ["Database", "Index", "IndexFailed"]

#: The database of an index: an engine of SQLAlchemy.
Database: TypeAlias = Engine

#: The folder of the index, in that of the archive. No UID begins with a dot, so no study can have this name.
FOLDER: Final = ".index"
#: The number of patients, of studies and of series whose rows are cached.
MAX_KNOWN_ENTITIES: Final = 4096
#: The number of patients for which a rebuild remembers which file their values are from, at about 250 bytes each.
MAX_TIMED_PATIENTS: Final = 1_000_000
#: The number of rows that are fetched at once when all rows are read.
_ROWS: Final = 5000

_NAME_OF_KEY: Final = {
    Level.PATIENT: "patient_key",
    Level.STUDY: "study_instance_uid",
    Level.SERIES: "series_instance_uid",
}


class _Entities:
    """The patients, studies or series of the database, with a cache of their rows."""

    def __init__(self, engine: Engine, level: Level, conflicts: Conflicts) -> None:
        self._conflicts = conflicts
        table = TABLES[level]
        columns = list(COLUMNS[level])
        parent = ["patient_key"] if level is Level.PATIENT else ["parent"]
        self.known: dict[tuple[Any, str], tuple[int, Row]] = {}
        # The writer assigns the ids, so an INSERT need not return one. It is the only writer during its transaction.
        self._highest = Statement(engine, select(func.max(table.c.id)), []).text
        self.next_id = 0
        # The files of a study and a series come one after the other, those of a patient do not.
        self._times = StoringTimes(MAX_TIMED_PATIENTS if level is Level.PATIENT else MAX_KNOWN_ENTITIES)
        key = table.c[_NAME_OF_KEY[level]]
        criterion = key == bindparam("key_")
        names = ["key_"]
        if level is not Level.PATIENT:
            criterion &= table.c.parent == bindparam("parent_")
            names.append("parent_")
        self.level = level
        self.insert = Statement(engine, table.insert(), ["id", *parent, *columns], values=True)
        self.find = Statement(engine, select(table.c.id, *(table.c[name] for name in columns)).where(criterion), names)
        self._same_key = Statement(engine, select(table.c.id).where(key == bindparam("key_")), ["key_"])
        values: Any = {table.c[name].name: bindparam(f"{name}_new") for name in columns}
        update = table.update().where(table.c.id == bindparam("id_")).values(values)
        self.update = Statement(engine, update, [*(f"{name}_new" for name in columns), "id_"])

    def look_again(self, cursor: Any) -> None:
        """Clear the cache and read the next id: another process may have written."""
        self.known.clear()
        cursor.execute(self._highest)
        self.next_id = (cursor.fetchone()[0] or 0) + 1

    def id_for(self, cursor: Any, parent: int, key: str, row: Row, one: IndexRow) -> int:
        """Return the id of an entity, after inserting or updating its row if it differs from *row*."""
        known, times, stored_at = self.known.get((parent, key)), self._times, one.stored_at
        if times and stored_at is None:
            times.clear()  # the files are indexed
        if known is not None and (known[1] is row or known[1] == row):
            if stored_at is not None:
                times.note_equal((parent, key), stored_at)
            return known[0]
        if known is None:
            cursor.execute(
                self.find.text, self.find.parameters([key] if self.level is Level.PATIENT else [key, parent])
            )
            found = cursor.fetchone()
            known = (found[0], tuple(found[1:])) if found else None
        if known is None:
            number = self.next_id
            self.next_id += 1
            if self.level is Level.STUDY and one.sender is not None:
                cursor.execute(self._same_key.text, self._same_key.parameters([key]))
                if cursor.fetchone() is not None:
                    self._conflicts.other_patient(key, one.sender, "/".join(one.record.uids))
            first = key if self.level is Level.PATIENT else parent
            cursor.execute(self.insert.text, self.insert.parameters([number, first, *row]))
            if stored_at is not None:
                times.note((parent, key), stored_at)
        else:
            number = known[0]
            if stored_at is not None:
                if known[1] != row:
                    row = times.settled(self.level, (parent, key), known[1], row, stored_at)
                else:
                    times.note_equal((parent, key), stored_at)
            elif known[1] != row:
                instance_name = "/".join(one.record.uids)
                row = self._conflicts.settled(self.level, key, known[1], row, one.sender, instance_name)
            if known[1] != row:
                cursor.execute(self.update.text, self.update.parameters([*row, number]))
        while len(self.known) >= MAX_KNOWN_ENTITIES:
            del self.known[next(iter(self.known))]
        self.known[(parent, key)] = (number, row)
        return number


class Index:
    """
    The database of an archive, opened for writing.

    :param folder: the folder of the index, made if it is missing.
    :param durability: whether a commit is on the medium when it returns.
    :param engine: a database other than the SQLite file in *folder*.
    :param lock: the file descriptor of the lock that another process of this program holds; it is taken over.
    :param file_system: the system calls to use, apart from those of the database.
    :param precedence: which values apply if instances disagree about their patient, study or series.
    :param reading: whether to open it for reading only, because its file system is full or read-only.

    :ivar is_reading: whether it is open for reading only.
    :ivar is_complete: whether a crash has left no rows that can only be read again when there is room.
    :raises IndexUnusable: another program has opened the index, its version is too new, or it is damaged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        durability: Durability = Durability.FULL,
        engine: Engine | None = None,
        lock: int = -1,
        file_system: FileSystem | None = None,
        precedence: Precedence = Precedence.LAST,
        reading: bool = False,
    ) -> None:
        fs = file_system or FileSystem()
        self.is_complete = True
        self.is_reading = reading
        self._reading: ReadingDatabase | None = None
        self._is_closed = False
        self._lock = RLock()
        self._file_lock = FileLock(os.path.join(folder, "lock"), lock)
        self._data_version: int | None = None
        self.folder = folder
        try:
            if not reading:
                fs.make_folder(os.fspath(folder))
            if lock < 0 and not self._lock_folder(reading):
                raise IndexUnusable(f"another program uses {folder}; stop it first")
            file = folder / "index.sqlite"
            if reading and engine is None:
                self._reading = ReadingDatabase(file, is_alone=lock < 0)
                self.engine, self.is_complete = self._reading.engine, self._reading.is_complete
            else:
                self.engine = engine or sqlite_engine(file, full=durability is Durability.FULL)
            self.found_version = check_version(self.engine) if reading else migrate(self.engine)
            if not reading and lock < 0 and durability is Durability.FULL:
                extend_log(self.engine, fs.free(os.fspath(folder)))
            self._open: Connection | None = None
        except (OSError, SQLAlchemyError, IndexUnusable) as error:
            if self._reading is not None:
                self._reading.close()
            elif hasattr(self, "engine"):
                self.engine.dispose()  # otherwise the files of the database stay open
            self._file_lock.close()
            if isinstance(error, IndexUnusable):
                raise
            raise IndexUnusable(
                f"cannot use the index in {folder}: {_reason(error)}; if it is damaged, move it away: it is rebuilt "
                "from the files"
            ) from error
        self._conflicts = Conflicts(precedence)
        self._entities = {level: _Entities(self.engine, level, self._conflicts) for level in _NAME_OF_KEY}
        # Drivers begin transactions themselves, except that of SQLite, whose isolation level is None.
        self._begin = "BEGIN IMMEDIATE" if self.engine.dialect.name == "sqlite" else ""
        self._places = Places(self.engine)
        self._insert = upsert(
            self.engine,
            instance,
            ["parent", "transfer_syntax", "size", "digest", *COLUMNS[Level.IMAGE]],
            ["parent", "sop_instance_uid"],
        )

    def _lock_folder(self, reading: bool) -> bool:
        """Lock the folder; return whether no other program has it locked."""
        try:
            return self._file_lock.try_exclusive()
        except OSError as error:
            # Without a lock there may be other readers, but no writer: there is no room for any.
            if reading and error.errno in NO_ROOM:
                return True
            raise

    @property
    def lock(self) -> int:
        """The file descriptor of the lock, for other processes of this program; each of them holds the lock."""
        return self._file_lock.fileno()

    def close(self) -> None:
        """Close the database; idempotent."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            if self._open is not None:
                self._open.close()
                self._open = None
            self._places.close()
            if self._reading is not None:
                self._reading.close()
            self.engine.dispose()
            self._file_lock.close()

    def add(self, instances: Sequence[IndexRow]) -> None:
        """
        Add *instances*, all or none; they replace rows of the same files.

        The attributes of a patient, study or series are those of the instance that was added last, unless the precedence or
        the sender of the instance says otherwise.

        :raises IndexFailed: the database refused.
        """
        if any(one.replaces for one in instances):
            with self._transaction() as cursor:
                rows = self._insert_rows(cursor, instances)
                for one, row in zip(instances, rows, strict=True):
                    if one.replaces:
                        self._remove_others(one.record, row[0])
                        self._connection.execute(_announced(one.record.uids))
            self._conflicts.commit()
            return
        # As above, but past SQLAlchemy: its transaction takes as long as the rest of the work.
        with self._lock, self._recovering():
            dbapi: Any = self._connection.connection.dbapi_connection
            cursor = dbapi.cursor()
            if self._begin:
                cursor.execute(self._begin)
            self._see_others(cursor)
            self._insert_rows(cursor, instances)
            dbapi.commit()
        self._conflicts.commit()

    def _insert_rows(self, cursor: Any, instances: Sequence[IndexRow]) -> list[tuple[Any, ...]]:
        rows = [self._row(cursor, one) for one in instances]
        cursor.executemany(self._insert.text, [self._insert.parameters(row) for row in rows])
        return rows

    def announce_replacing(self, instances: Iterable[InstanceUIDs]) -> None:
        """
        Note that the files of *instances* are about to be replaced; :meth:`add` removes the note.

        :param instances: their Study, Series and SOP Instance UIDs.
        :raises IndexFailed: the database refused.
        """
        with self._transaction():
            for uids in instances:
                self._connection.execute(_announced(uids))
                self._connection.execute(replacing.insert().values(path="/".join(uids)))

    def elsewhere(self, instances: Collection[InstanceUIDs]) -> dict[InstanceUIDs, InstanceUIDs]:
        """
        Return the instances whose SOP Instance UID the index has below another study or series, each with the UIDs that it
        has there.

        :param instances: their Study, Series and SOP Instance UIDs.
        :raises IndexFailed: the database cannot be read.
        """
        with _failures():
            return self._places.elsewhere(instances)

    def announced(self) -> list[InstanceUIDs]:
        """Return the instances whose files were being replaced when the previous run of the program ended."""
        with self._transaction():
            paths = self._connection.execute(select(replacing.c.path)).scalars().all()
        return [(study_uid, series_uid, uid) for study_uid, series_uid, uid in (path.split("/") for path in paths)]

    def forget_announced(self, instances: Iterable[InstanceUIDs]) -> None:
        """Remove the notes of replacements of *instances*, after they have been checked."""
        with self._transaction():
            for uids in instances:
                self._connection.execute(_announced(uids))

    def remove(self, instances: Iterable[InstanceUIDs]) -> None:
        """
        Remove instances, and the series, studies and patients that become empty.

        :param instances: their Study, Series and SOP Instance UIDs.
        :raises IndexFailed: the database refused.
        """
        with self._transaction():
            for uids in instances:
                self._delete(self._connection.execute(_rows_of(*uids)).all())
            self._forget()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """
        Open a transaction for tables beside those of the index.

        :raises IndexFailed: the database refused.
        """
        with self._transaction():
            yield self._connection

    def remove_below(self, uids: Sequence[str]) -> int:
        """
        Remove a study, a series or an instance, and what becomes empty above it.

        :param uids: the Study Instance UID, or that and the Series Instance UID, or these and the SOP Instance UID.
        :returns: the number of instances.
        :raises IndexFailed: the database refused.
        """
        with self._transaction():
            removed = _remove_below(self._connection, uids)
            self._forget()
        return removed

    def instances_below(self, uids: Sequence[str]) -> list[tuple[str, str]]:
        """
        Return the Series and SOP Instance UIDs of the instances of a study or a series, or those of an instance.

        :param uids: as for :meth:`remove_below`.
        :raises IndexFailed: the database refused.
        """
        with self._transaction():
            return instances_below(self._connection, uids)

    def series_below(self, uids: Sequence[str]) -> list[str]:
        """
        Return the Series Instance UIDs of a study, or that of a series or of an instance, if the index has them, sorted.

        :param uids: as for :meth:`remove_below`.
        :raises IndexFailed: the database refused.
        """
        with self._transaction():
            return series_below(self._connection, uids)

    def files(self) -> Iterator[tuple[str, str, list[str]]]:
        """
        Yield all indexed series, in the order of their UIDs: Study and Series Instance UID, and the SOP Instance UIDs.

        :raises IndexFailed: the database refused.
        """
        order = (study.c.study_instance_uid, series.c.series_instance_uid)
        uids = select(*order, series.c.id).join(study, series.c.parent == study.c.id).order_by(*order)
        names = select(instance.c.sop_instance_uid).where(instance.c.parent == bindparam("series"))
        with self._lock, _failures(), self.engine.connect() as connection:
            text = Statement(self.engine, names, ["series"])
            cursor: Any = connection.connection.cursor()
            before: tuple[str, str] | None = None
            found: list[str] = []
            for study_uid, series_uid, number in connection.execution_options(yield_per=_ROWS).execute(uids):
                if before not in (None, (study_uid, series_uid)):
                    assert before is not None
                    yield (*before, found)
                    found = []
                before = (study_uid, series_uid)
                cursor.execute(text.text, text.parameters([number]))
                found += [row[0] for row in cursor.fetchall()]
            if before is not None:
                yield (*before, found)

    def find_instances(self, sop_instance_uids: Iterable[str]) -> list[IndexedInstance]:
        """
        Return the indexed instances with these SOP Instance UIDs, at most a few hundred at once.

        :raises IndexFailed: the database cannot be read.
        """
        return find_instances(self.engine, sop_instance_uids)

    def find_subjects(
        self, *, instances: Iterable[str] = (), studies: Iterable[str] = ()
    ) -> list[tuple[str, str, Subject]]:
        """
        Return the subjects of instances or studies, see :func:`~dicomtwist.archive.index.reading.find_subjects`.

        :raises IndexFailed: the database cannot be read.
        """
        return find_subjects(self.engine, instances=instances, studies=studies)

    def counts(self) -> dict[Level, int]:
        """Return the numbers of patients, studies, series and instances."""
        with self._transaction():
            return {
                level: self._connection.execute(select(func.count()).select_from(table)).scalar_one()
                for level, table in TABLES.items()
            }

    # --- internals

    def _row(self, cursor: Any, one: IndexRow) -> tuple[Any, ...]:
        record, entities = one.record, self._entities
        patient_id = entities[Level.PATIENT].id_for(cursor, 0, record.patient_key, record.patient, one)
        study_id = entities[Level.STUDY].id_for(cursor, patient_id, record.study_uid, record.study, one)
        series_id = entities[Level.SERIES].id_for(cursor, study_id, record.series_uid, record.series, one)
        return (series_id, one.transfer_syntax, one.size, one.digest, *record.instance)

    def _remove_others(self, record: Record, series_id: int) -> None:
        """Remove the rows of the same file below another patient."""
        found = self._connection.execute(_rows_of(record.study_uid, record.series_uid, record.sop_instance_uid)).all()
        others = [row for row in found if row[1] != series_id]
        if others:
            self._delete(others)
            self._forget()

    def _delete(self, rows: Iterable[Any]) -> None:
        for instance_id, *above in rows:
            self._connection.execute(instance.delete().where(instance.c.id == instance_id))
            _remove_empty(self._connection, *above)

    @property
    def _connection(self) -> Connection:
        if self._open is None:
            self._open = self.engine.connect().execution_options(**WRITING)
            self._data_version = None
        return self._open

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with self._lock, self._recovering(), self._connection.begin():
            dbapi: Any = self._connection.connection
            cursor = dbapi.cursor()
            self._see_others(cursor)
            yield cursor

    @contextmanager
    def _recovering(self) -> Iterator[None]:
        if self._file_lock.fileno() < 0:
            raise IndexFailed("index: it is closed")
        try:
            with _failures():
                yield
        except BaseException:
            self._conflicts.roll_back()
            self._forget()
            self._reopen()
            raise

    def _reopen(self) -> None:
        """Drop the connection after a failure, since the ROLLBACK may have failed as well."""
        broken, self._open = self._open, None
        if broken is not None:
            # A closed SQLite connection keeps its lock while anything refers to one of its cursors, as a traceback does.
            with suppress(Exception):
                dbapi: Any = broken.connection.dbapi_connection
                dbapi.rollback()
            try:
                broken.invalidate()
                broken.close()
            except Exception:
                pass  # the driver's own exceptions; the connection is not used any more

    def _see_others(self, cursor: Any) -> None:
        """Clear the cache if another process has written since the last transaction; during this one no other writes."""
        if self.engine.dialect.name == "sqlite":
            cursor.execute("PRAGMA data_version")
            version = cursor.fetchone()[0]
            if version == self._data_version:
                return
            self._data_version = version
        elif self._data_version is not None:
            return
        else:
            self._data_version = 0
        for entities in self._entities.values():
            entities.look_again(cursor)

    def _forget(self) -> None:
        """Clear the cache: a transaction was rolled back, or rows were removed."""
        for entities in self._entities.values():
            entities.known.clear()


def _announced(uids: InstanceUIDs) -> Any:
    return replacing.delete().where(replacing.c.path == "/".join(uids))


def _rows_of(study_uid: str, series_uid: str, instance_uid: str) -> Select[Any]:
    return (
        select(instance.c.id, series.c.id, study.c.id, study.c.parent)
        .join(series, instance.c.parent == series.c.id)
        .join(study, series.c.parent == study.c.id)
        .where(
            instance.c.sop_instance_uid == instance_uid,
            series.c.series_instance_uid == series_uid,
            study.c.study_instance_uid == study_uid,
        )
    )


def _remove_below(connection: Connection, uids: Sequence[str]) -> int:
    """
    Remove a study, a series or an instance, and what becomes empty above it, in the transaction of *connection*.

    :param uids: the Study Instance UID, or that and the Series Instance UID, or these and the SOP Instance UID.
    :returns: the number of instances.
    """
    # The study may be there below two patients.
    found = series_of(uids, series.c.id, study.c.id, study.c.parent)
    removed = 0
    for series_id, study_id, patient_id in connection.execute(found).all():
        rows = instance.delete().where(instance.c.parent == series_id)
        if len(uids) > 2:
            rows = rows.where(instance.c.sop_instance_uid == uids[2])
        removed += connection.execute(rows).rowcount
        _remove_empty(connection, series_id, study_id, patient_id)
    return removed


def _remove_empty(connection: Connection, series_id: int, study_id: int, patient_id: int) -> None:
    """Remove a series, its study and its patient, as far as they are empty."""
    for table, number, child in (
        (series, series_id, instance),
        (study, study_id, series),
        (patient, patient_id, study),
    ):
        empty = ~exists().where(child.c.parent == number)
        connection.execute(table.delete().where(table.c.id == number, empty))


def _reason(error: BaseException) -> str:
    original = getattr(error, "orig", None)
    return str(original or error)


@contextmanager
def _failures() -> Iterator[None]:
    """Turn all exceptions of the database and its driver into :class:`IndexFailed`."""
    try:
        yield
    except SQLAlchemyError as error:
        raise _failure(getattr(error, "orig", None) or error)(f"index: {_reason(error)}") from error
    except Exception as error:
        # The drivers' own exceptions have no common base: by PEP 249 each module defines its own.
        if type(error).__module__.partition(".")[0] in ("sqlite3", "psycopg", "psycopg2"):
            raise _failure(error)(f"index: {error}") from error
        raise


def _failure(error: BaseException) -> type[IndexFailed]:
    """Return the type of the exception for an error of a driver: is it about the values, or about the database?"""
    # sqlite3 has, by its version, one of two general types for a value that it cannot bind.
    hopeless = type(error).__name__ == "DataError" or str(error).startswith("Error binding parameter")
    return RowRefused if hopeless else IndexFailed
