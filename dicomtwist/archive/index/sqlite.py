"""SQLite as the database of the index: its settings and its log."""

from __future__ import annotations

import os
import stat
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

#: The execution options of a connection that writes. It locks out other writers from the beginning of a transaction, so that
#: values read in the transaction are still valid when it writes. Other writers wait.
WRITING: Final = {"dicomtwist_writing": True}


#: The size of SQLite's write-ahead log at which its content is written to the database, in bytes: a thousand pages.
_LOG_LENGTH: Final = 1000 * 4096


#: The mode of the database, and so of the log and the shared memory that SQLite makes beside it: they hold what is known of
#: patients. The umask may take away more.
FILE_MODE: Final = 0o640


def sqlite_engine(path: Path, *, full: bool) -> Engine:
    """
    Return an engine for the index of an archive.

    :param path: the file of the database, made if it is missing.
    :param full: whether a commit is on the medium when it returns. If not, a crash of the machine may lose the last
        commits, but does not damage the database.
    :raises OSError: the file cannot be made.
    """
    _protect(path)
    arguments = {"timeout": 60, "cached_statements": 256, "check_same_thread": False}
    # The parameters of a statement are data of patients, which must not appear in the text of an error.
    engine = create_engine(f"sqlite:///{path}", connect_args=arguments, pool_size=16, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins no transaction itself; BEGIN does
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            f"synchronous={'FULL' if full else 'NORMAL'}",
            "foreign_keys=OFF",  # the writer ensures them; a check of the parent for each row takes time
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


def _protect(path: Path) -> None:
    """Make the file of a database, or take what others should not have from the modes of files that are there."""
    # SQLite would make it with mode 0644. It gives the mode of the database to the files that it makes beside it.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
    for suffix in ("", "-wal", "-shm", "-journal"):
        # By name: to close a descriptor of the file would end the locks that SQLite has in this process.
        name = f"{path}{suffix}"
        with suppress(FileNotFoundError, PermissionError):
            mode = stat.S_IMODE(os.stat(name).st_mode)
            if mode & ~FILE_MODE:
                os.chmod(name, mode & FILE_MODE)


def extend_log(engine: Engine, free: int) -> None:
    """
    Extend SQLite's log to its full length, and leave free pages in the database.

    A commit that writes pages which exist on the medium already is synced in half the time of one that makes a file longer.
    The function does nothing if little space is left.

    :param free: the number of bytes that are free on the file system of the database.
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
