"""How SQLite is used for the index."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Engine,
    create_engine,
    event,
)
from sqlalchemy.exc import SQLAlchemyError

#: The execution options of a connection that writes: nobody else does from the beginning of a transaction on, so that what
#: is read in it still holds when it is written. Others wait for their turn.
WRITING: Final = {"dicomtwist_writing": True}


#: How long SQLite's log gets before what is in it goes to the database, in bytes: a thousand pages.
_LOG_LENGTH: Final = 1000 * 4096


def sqlite_engine(path: Path, *, full: bool) -> Engine:
    """
    Return an engine for the index of an archive.

    :param path: the file of the database, made when it is missing.
    :param full: whether a commit is on the medium when it returns. If not, a crash of the machine may lose the last
        commits, and breaks nothing.
    """
    arguments = {"timeout": 60, "cached_statements": 256, "check_same_thread": False}
    # What a statement carries is of patients, and has no place in the text of an error.
    engine = create_engine(f"sqlite:///{path}", connect_args=arguments, pool_size=16, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where BEGIN says so
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            f"synchronous={'FULL' if full else 'NORMAL'}",
            "foreign_keys=OFF",  # the writer keeps them itself; a look at the parent for each row costs time
            "case_sensitive_like=ON",
            "cache_size=-65536",
            "journal_size_limit=67108864",
            "temp_store=MEMORY",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        writing = connection.get_execution_options().get("dicomtwist_writing")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def extend_log(engine: Engine, free: int) -> None:
    """
    Have SQLite's log as long as it gets, and free pages in the database: a commit whose pages have their place on the medium
    already is synced in half the time of one that makes a file longer. Nothing is done where little room is left.

    :param free: how many bytes may still be written where the database is.
    """
    if engine.dialect.name != "sqlite" or free < 64 * _LOG_LENGTH:
        return
    with suppress(SQLAlchemyError), engine.connect().execution_options(**WRITING) as connection:
        for statement in (
            "CREATE TABLE IF NOT EXISTS room (bytes BLOB)",
            f"INSERT INTO room VALUES (zeroblob({_LOG_LENGTH}))",
            "DROP TABLE room",
        ):
            connection.exec_driver_sql(statement)
            connection.commit()
