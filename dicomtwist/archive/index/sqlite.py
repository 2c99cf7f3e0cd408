"""SQLite as the database of the index: its settings and its log."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import (
    Connection,
    Engine,
    create_engine,
    event,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

#: The execution options of a connection that writes. It locks out other writers from the beginning of a transaction, so that
#: values read in the transaction are still valid when it writes. Other writers wait.
WRITING: Final = {"dicomtwist_writing": True}


#: The most bytes of an index that are copied into memory, if a crash and a full disk come together.
MAX_COPY: Final = 512 * 1024 * 1024

#: The size of SQLite's write-ahead log at which its content is written to the database, in bytes: a thousand pages.
_LOG_LENGTH: Final = 1000 * 4096


#: The number of compiled statements that an engine keeps.
MAX_STATEMENTS: Final = 64
#: The parameters of a statement are data of patients, which must not appear in the text of an error.
_OPTIONS: Final[dict[str, Any]] = {"hide_parameters": True, "query_cache_size": MAX_STATEMENTS}

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
    engine = create_engine(f"sqlite:///{path}", connect_args=arguments, pool_size=16, **_OPTIONS)

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


class ReadingDatabase:
    """
    The index of an archive whose file system is full or read-only, where SQLite cannot make the files beside the database that
    it needs otherwise. Nothing may write to the database meanwhile.

    :param path: the file of the database.
    :param is_alone: whether no other process of this program reads the database.

    :ivar engine: reads the database, or a copy in memory if a crash has left rows in the log that do not fit into the file.
    :ivar is_complete: whether it has all rows; not if that copy would take more than :data:`MAX_COPY`, or cannot be made.
    """

    def __init__(self, path: Path, *, is_alone: bool) -> None:
        self._copy: sqlite3.Connection | None = None
        self.is_complete = not _has_log(path) or (is_alone and _empty_log(path))
        address = f"file:{quote(str(path.absolute()))}?immutable=1"
        if not self.is_complete:
            name = f"file:dicomtwist-{id(self):x}?mode=memory&cache=shared"
            self._copy = _copy(path, name)
            if self._copy is not None:
                address, self.is_complete = name, True

        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(address, uri=True, cached_statements=256, check_same_thread=False)
            connection.isolation_level = None
            for pragma in ("case_sensitive_like=ON", "cache_size=-65536", "temp_store=MEMORY"):
                connection.execute(f"PRAGMA {pragma}")
            return connection

        self.engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=16, **_OPTIONS)
        event.listen(self.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))

    def close(self) -> None:
        """Close the database; idempotent."""
        self.engine.dispose()
        if self._copy is not None:
            self._copy.close()
            self._copy = None


def _log(path: Path) -> Path:
    return Path(f"{path}-wal")


def _has_log(path: Path) -> bool:
    try:
        return _log(path).stat().st_size > 0
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _exclusive(path: Path) -> sqlite3.Connection:
    """Open a database with an exclusive lock, with which SQLite needs no file for its shared memory."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    return connection


def _empty_log(path: Path) -> bool:
    """
    Write the content of a log that a crash left to the database, if there is room for it.

    :returns: whether the database has all rows.
    """
    try:
        with closing(_exclusive(path)) as connection:
            return not connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except (OSError, sqlite3.Error):
        return False


def _copy(path: Path, name: str) -> sqlite3.Connection | None:
    """Copy a database with its log into memory; return ``None`` if that cannot be done."""
    copy = None
    try:
        if path.stat().st_size + _log(path).stat().st_size > MAX_COPY:
            return None
        copy = sqlite3.connect(name, uri=True, check_same_thread=False)
        with closing(_exclusive(path)) as connection:
            connection.backup(copy)
        return copy
    except (OSError, sqlite3.Error):
        if copy is not None:
            copy.close()
        return None


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


# --- a look from outside

#: The time that is spent on reading the pages of a database, in seconds. A database of gigabytes is read in part.
INSPECTION_SECONDS: Final = 2.0
#: The number of SQLite's instructions between two looks at the clock.
_INSTRUCTIONS: Final = 10_000
_ADVICE: Final = "if it is damaged, move it away: it is rebuilt from the files"


def why_unusable(folder: Path, version: int) -> str | None:
    """
    Return why the SQLite index in *folder* cannot be used by this user, in words; ``None`` if it can, or is not there yet.
    This makes and changes no file.

    Rows that a running server, or a crash, has left in SQLite's log are not read: that would take the log's locks. Only the
    version is read beside such a log.

    :param version: the latest version of the tables that this program knows.
    """
    try:
        if not os.path.lexists(folder):
            return None
        if not folder.is_dir():
            return f"{folder} is not a folder"
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            return f"{folder} is not writable for this user"
        for path in sorted(folder.iterdir()):
            if path.is_file() and not os.access(path, os.R_OK | os.W_OK):
                return f"{path} is not readable and writable for this user: was a server run as another one?"
        file = folder / "index.sqlite"
        if not file.exists() or not file.stat().st_size:
            return None
        log = folder / "index.sqlite-wal"
        return _why_unreadable(file, version, is_whole=not log.exists() or not log.stat().st_size)
    except OSError as error:
        return f"{folder}: {error.strerror}"


def _why_unreadable(file: Path, version: int, *, is_whole: bool) -> str | None:
    # SQLite makes no file beside an immutable database, and takes no lock.
    address = f"file:{quote(str(file.absolute()))}?immutable=1"
    deadline = time.monotonic() + INSPECTION_SECONDS
    try:
        with closing(sqlite3.connect(address, uri=True)) as connection:
            if not connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'about'").fetchone()[0]:
                return None
            row = connection.execute("SELECT value FROM about WHERE name = 'version'").fetchone()
            found = int(row[0]) if row is not None else 0
            if found > version:
                return (
                    f"{file} has version {found}, and this program knows versions up to {version}; use the program "
                    "that wrote it, or move the index away: it is rebuilt from the files"
                )
            if is_whole:
                connection.set_progress_handler(lambda: time.monotonic() > deadline, _INSTRUCTIONS)
                (first,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                if first != "ok":
                    # SQLite's words name a table and a page, and no value.
                    return f"{file}: {' '.join(str(first).split())}; {_ADVICE}"
    except (sqlite3.Error, ValueError) as error:
        if getattr(error, "sqlite_errorname", "") != "SQLITE_INTERRUPT":
            return f"{file}: {error}; {_ADVICE}"
    return None
