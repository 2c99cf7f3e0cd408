"""
Reading the index, in any number of threads; no reader waits for the writer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, Select, func, select
from sqlalchemy.exc import SQLAlchemyError

from dicomtwist.archive.index.record import IndexedInstance
from dicomtwist.archive.index.schema import instance, patient, series, study
from dicomtwist.archive.storage.types import IndexFailed
from dicomtwist.runtime.executors import is_turn_over
from dicomtwist.runtime.work import check_wanted, is_wanted

__all__ = [
    "TurnOver",
    "count_entities",
    "fetch_all",
    "find_instances",
    "instances_below",
    "reading",
    "series_below",
    "series_of",
]


#: The steps of SQLite's virtual machine between two questions whether the query is still wanted, or its turn over: some
#: milliseconds.
STEPS_BETWEEN: Final = 100_000


class TurnOver(Exception):
    """The turn of this thread ended in the middle of a statement."""


@contextmanager
def reading(engine: Engine, *, in_turns: bool = False, cached: bool = False) -> Iterator[Connection]:
    """
    Open a connection for reading.

    Of SQLite, a statement ends as soon as nobody waits for the call of the executor that this thread is at.

    :param in_turns: whether a statement ends when the turn of this thread is over as well.
    :param cached: whether compiled statements are kept in the bounded cache of *engine*, with the values that they were first
        executed with. It saves 0.3 ms or more for a statement that differs from an earlier one in its values alone.
    :raises CancelledError: nobody waits.
    :raises TurnOver: the turn is over.
    :raises IndexFailed: the database cannot be read.
    """
    is_interrupted = False

    def interrupt() -> bool:
        nonlocal is_interrupted
        is_interrupted = is_interrupted or (in_turns and is_turn_over())
        return is_interrupted or not is_wanted()

    try:
        with engine.connect() as connection, _interruptible(connection, interrupt):
            yield connection if cached else connection.execution_options(compiled_cache=None)
    except (SQLAlchemyError, sqlite3.Error) as error:
        check_wanted()
        if is_interrupted:
            raise TurnOver from error
        raise IndexFailed(f"index: {getattr(error, 'orig', None) or error}") from error


def fetch_all(connection: Connection, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
    """
    Execute a statement that reads from SQLite, and return its rows.

    SQLAlchemy is passed over, which takes longer than SQLite for a few rows that are found by a key. The statement is a
    transaction of its own.

    :param connection: a connection that has begun no transaction.
    :param parameters: the values of its parameters, in their order.
    :raises sqlite3.Error: the database cannot be read; :func:`reading` makes an error of the index of it.
    """
    driver: Any = connection.connection.driver_connection
    with closing(driver.execute(statement, parameters)) as cursor:
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


@contextmanager
def _interruptible(connection: Connection, interrupt: Callable[[], bool]) -> Iterator[None]:
    driver: Any = connection.connection.driver_connection
    watch = getattr(driver, "set_progress_handler", None)
    if watch is None:
        yield
        return
    watch(interrupt, STEPS_BETWEEN)
    try:
        yield
    finally:
        watch(None, 0)


class Subject(NamedTuple):
    """
    The study and the patient of an instance.

    :ivar study: the Study Instance UID.
    :ivar accession: the Accession Number.
    :ivar patient_id: the Patient ID.
    :ivar name: the Patient's Name.
    """

    study: str
    accession: str = ""
    patient_id: str = ""
    name: str = ""


def find_subjects(
    engine: Engine, *, instances: Iterable[str] = (), studies: Iterable[str] = ()
) -> list[tuple[str, str, Subject]]:
    """
    Return the subjects of instances or of studies, at most a few hundred at once, each with its SOP Instance UID and SOP Class
    UID; those are empty for studies.

    :raises IndexFailed: the database cannot be read.
    """
    facts = (study.c.study_instance_uid, study.c.accession_number, patient.c.patient_id, patient.c.patient_name)
    of_studies = select(*facts).join(patient, study.c.parent == patient.c.id)
    of_instances = (
        select(instance.c.sop_instance_uid, instance.c.sop_class_uid, *facts)
        .join(series, instance.c.parent == series.c.id)
        .join(study, series.c.parent == study.c.id)
        .join(patient, study.c.parent == patient.c.id)
    )
    found: list[tuple[str, str, Subject]] = []
    with reading(engine) as connection:
        if uids := sorted(studies):
            rows = connection.execute(of_studies.where(study.c.study_instance_uid.in_(uids)))
            found += [("", "", Subject(*row)) for row in rows]
        if uids := sorted(instances):
            rows = connection.execute(of_instances.where(instance.c.sop_instance_uid.in_(uids)))
            found += [(row[0], row[1], Subject(*row[2:])) for row in rows]
    return found


def count_entities(engine: Engine) -> dict[str, int]:
    """
    Return the numbers of ``"patients"``, ``"studies"``, ``"series"`` and ``"instances"``.

    A million instances take SQLite some ten milliseconds.

    :raises IndexFailed: the database cannot be read.
    """
    with reading(engine, cached=True) as connection:
        return {
            name: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
            for name, table in (("patients", patient), ("studies", study), ("series", series), ("instances", instance))
        }


def find_instances(engine: Engine, sop_instance_uids: Iterable[str]) -> list[IndexedInstance]:
    """
    Return the indexed instances with these SOP Instance UIDs, at most a few hundred at once.

    :raises IndexFailed: the database cannot be read.
    """
    statement = (
        select(
            *(study.c.study_instance_uid, series.c.series_instance_uid, instance.c.sop_instance_uid),
            *(instance.c.sop_class_uid, instance.c.transfer_syntax, instance.c.size, instance.c.digest),
        )
        .join(series, instance.c.parent == series.c.id)
        .join(study, series.c.parent == study.c.id)
        .where(instance.c.sop_instance_uid.in_(sorted(sop_instance_uids)))
    )
    with reading(engine) as connection:
        rows = connection.execute(statement).all()
    return [IndexedInstance((row[0], row[1], row[2]), *row[3:]) for row in rows]


def instances_below(connection: Connection, uids: Sequence[str]) -> list[tuple[str, str]]:
    """Return the Series and SOP Instance UIDs of the instances of a study or a series, or those of an instance."""
    found = series_of(uids, series.c.series_instance_uid, instance.c.sop_instance_uid)
    found = found.join(instance, instance.c.parent == series.c.id)
    if len(uids) > 2:
        found = found.where(instance.c.sop_instance_uid == uids[2])
    return [(series_uid, uid) for series_uid, uid in connection.execute(found)]


def series_below(connection: Connection, uids: Sequence[str]) -> list[str]:
    """Return the Series Instance UIDs that are rows of a study, of a series, or of that of an instance, sorted."""
    return sorted({*connection.execute(series_of(uids, series.c.series_instance_uid)).scalars()})


def series_of(uids: Sequence[str], *columns: Any) -> Select[Any]:
    """Select *columns* of the series of a study, or of one series; the study may be there below two patients."""
    found = select(*columns).select_from(series).join(study, series.c.parent == study.c.id)
    found = found.where(study.c.study_instance_uid == uids[0])
    return found.where(series.c.series_instance_uid == uids[1]) if len(uids) > 1 else found
