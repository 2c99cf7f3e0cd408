"""
The tables of the index, and the migration of a database of an earlier version.

By default the database is SQLite, in the folder of the archive. All statements are made by SQLAlchemy Core, so that they
suit the database of the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    inspect,
    select,
)

from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.index.record import COLUMNS
from dicomtwist.archive.index.sqlite import WRITING, extend_log, sqlite_engine
from dicomtwist.archive.storage.types import StoreUnusable

__all__ = [
    "SCHEMA_VERSION",
    "WRITING",
    "IndexUnusable",
    "Statement",
    "about",
    "check_version",
    "extend_log",
    "instance",
    "migrate",
    "patient",
    "replacing",
    "series",
    "sqlite_engine",
    "study",
    "upsert",
]

#: The version of the tables below. A change of the tables raises it, and adds a step to :data:`MIGRATIONS` that converts the
#: tables of the previous version.
SCHEMA_VERSION: Final = 2

metadata = MetaData()

_ID = BigInteger().with_variant(Integer, "sqlite")
# Texts are compared as bytes in every database, as the ranges and prefixes of DICOM require, whatever its locale.
_TEXT = Text().with_variant(String(collation="C"), "postgresql")


def _texts(level: Level) -> list[Column[str]]:
    return [Column(name, _TEXT, nullable=False, server_default="") for name in COLUMNS[level]]


patient = Table(
    "patient",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("patient_key", _TEXT, nullable=False, unique=True),
    *_texts(Level.PATIENT),
)
study = Table(
    "study",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("in_patient", _ID, ForeignKey("patient.id"), nullable=False, key="parent"),
    *_texts(Level.STUDY),
)
series = Table(
    "series",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=False),
    Column("in_study", _ID, ForeignKey("study.id"), nullable=False, key="parent"),
    *_texts(Level.SERIES),
)
instance = Table(
    "instance",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("in_series", _ID, ForeignKey("series.id"), nullable=False, key="parent"),
    Column("transfer_syntax", _TEXT, nullable=False),
    Column("size", BigInteger, nullable=False),
    # Null if the row was made from a file that recovery found, or the instance was received with durability none.
    Column("digest", LargeBinary),
    *_texts(Level.IMAGE),
)
#: Files that are being replaced. If the program dies before the index has the new row, recovery reads the file again.
replacing = Table("replacing", metadata, Column("path", _TEXT, primary_key=True))
#: Facts about the database itself, such as its version.
about = Table("about", metadata, Column("name", _TEXT, primary_key=True), Column("value", _TEXT, nullable=False))

# A UID is unique below its parent only. A study may exist below two patients, and a series below two studies: the index
# keeps them apart, as the storage keeps their files, since an entity below the wrong patient is worse than one that is
# there twice.
Index("study_in_patient", study.c.parent, study.c.study_instance_uid, unique=True)
Index("series_in_study", series.c.parent, series.c.series_instance_uid, unique=True)
Index("instance_in_series", instance.c.parent, instance.c.sop_instance_uid, unique=True)
for _column in (
    *(patient.c.patient_id, patient.c.name_alphabetic, patient.c.name_ideographic, patient.c.name_phonetic),
    *(patient.c.patient_birth_date, study.c.study_instance_uid, study.c.study_date, study.c.accession_number),
    *(study.c.study_id, series.c.series_instance_uid, series.c.modality, instance.c.sop_instance_uid),
):
    Index(f"{_column.table.name}_by_{_column.name}", _column)

TABLES: Final = {Level.PATIENT: patient, Level.STUDY: study, Level.SERIES: series, Level.IMAGE: instance}

#: version -> the step that converts the tables of that version into those of the next. All steps share a transaction.
MIGRATIONS: Final[dict[int, Callable[[Connection], object]]] = {
    1: lambda connection: connection.exec_driver_sql(
        f"ALTER TABLE instance ADD COLUMN digest {instance.c.digest.type.compile(connection.dialect)}"
    )
}


class IndexUnusable(StoreUnusable):
    """The index cannot be used; the text says why and what to do."""


def migrate(
    engine: Engine,
    *,
    version: int = SCHEMA_VERSION,
    migrations: Mapping[int, Callable[[Connection], object]] | None = None,
) -> int:
    """
    Create the tables, or convert those of an earlier version, in one transaction.

    :returns: the version that was found; 0 if there were no tables.
    :raises IndexUnusable: the tables are of a later version.
    """
    steps = MIGRATIONS if migrations is None else migrations
    with engine.begin() as connection:
        found = _found_version(connection)
        if found > version:
            raise IndexUnusable(
                f"the index has version {found}, and this program knows versions up to {version}; use the program "
                "that wrote it, or move the index away: it is rebuilt from the files"
            )
        if not found:
            metadata.create_all(connection)
            connection.execute(about.insert().values(name="version", value=str(version)))
        else:
            for step in range(found, version):
                steps[step](connection)
            if found < version:
                connection.execute(about.update().where(about.c.name == "version").values(value=str(version)))
    return found


def check_version(engine: Engine) -> int:
    """
    Return the version of the tables.

    :raises IndexUnusable: it is not the current one, so that the tables would have to be converted.
    """
    with engine.connect() as connection:
        found = _found_version(connection)
    if found != SCHEMA_VERSION:
        raise IndexUnusable(f"the index has version {found}, and there is no room to convert it to {SCHEMA_VERSION}")
    return found


def _found_version(connection: Connection) -> int:
    if not inspect(connection).has_table("about"):
        return 0
    return int(connection.execute(select(about.c.value).where(about.c.name == "version")).scalar_one())


class Statement:
    """
    A statement that is compiled once, for rows that are passed directly to the driver.

    :param statement: an INSERT, UPDATE, DELETE or SELECT.
    :param names: the names of its parameters, in the order of the values of :meth:`parameters`.
    """

    __slots__ = ("_names", "_order", "text")

    def __init__(self, engine: Engine, statement: Any, names: Sequence[str], *, values: bool = False) -> None:
        compiled: Any = statement.compile(engine, column_keys=list(names) if values else None)
        self.text = str(compiled)
        self._names = tuple(names)
        # A driver needs either a tuple, in the order of the text, or a dictionary.
        self._order: tuple[int, ...] | None = None
        if compiled.positional:
            order = tuple(self._names.index(name) for name in compiled.positiontup)
            self._order = () if order == tuple(range(len(order))) else order

    def parameters(self, values: Sequence[Any]) -> Any:
        """Return *values* in the form that the driver needs."""
        if self._order is None:
            return dict(zip(self._names, values, strict=True))
        return [values[at] for at in self._order] if self._order else values


def upsert(engine: Engine, table: Table, names: Sequence[str], unique: Sequence[str]) -> Statement:
    """Return an INSERT of *names*; an existing row with equal columns *unique* is updated instead."""
    from sqlalchemy.dialects import postgresql, sqlite

    module: Any = postgresql if engine.dialect.name == "postgresql" else sqlite
    insert = module.insert(table)
    values = {table.c[name].name: insert.excluded[table.c[name].name] for name in names if name not in unique}
    insert = insert.on_conflict_do_update(index_elements=[table.c[name] for name in unique], set_=values)
    return Statement(engine, insert, names, values=True)
