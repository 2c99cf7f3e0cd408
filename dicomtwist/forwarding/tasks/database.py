"""
The database of the tasks: SQLite in a folder of the archive, or the PostgreSQL database that holds the index as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from dicomtwist.archive.index.sqlite import WRITING, sqlite_engine
from dicomtwist.archive.storage.types import StoreUnusable
from dicomtwist.forwarding.tasks.schema import migrate
from dicomtwist.forwarding.tasks.types import TasksFailed, TasksUnusable

__all__ = ["FILE", "TaskDatabase"]

#: The file of the tasks in the folder of forwarding.
FILE: Final = "tasks.sqlite"
#: The mode of the folder of forwarding.
_FOLDER_MODE: Final = 0o750


class TaskDatabase:
    """
    Transactions on the database of the tasks, in any thread.

    :param folder: the folder of the file, made if it is missing; ``None`` with *engine*.
    :param full: whether a commit is on the medium when it returns.
    :param engine: a database of PostgreSQL, which the caller disposes of.
    :raises TasksUnusable: the database cannot be used; the text says why.
    """

    def __init__(self, folder: Path | None, *, full: bool = True, engine: Engine | None = None) -> None:
        self._own: list[Engine] = []
        try:
            if engine is not None:
                self._safe = self._quick = engine
            else:
                assert folder is not None
                folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
                self._safe = self._quick = self._opened(folder / FILE, full)
                if full:
                    # Claims and leases are made again after a power cut, so that they need no sync.
                    self._quick = self._opened(folder / FILE, False)
            #: A random text that tells this database from another one that was in its place.
            self.identity = migrate(self._safe)
        except (OSError, SQLAlchemyError) as error:
            self.close()
            reason = getattr(error, "strerror", None) or getattr(error, "orig", None) or error
            raise TasksUnusable(f"the tasks of forwarding in {folder or 'PostgreSQL'}: {reason}") from error
        except StoreUnusable:
            self.close()
            raise

    def _opened(self, file: Path, full: bool) -> Engine:
        engine = sqlite_engine(file, full=full)
        self._own.append(engine)
        return engine

    @property
    def is_postgresql(self) -> bool:
        """Whether it is PostgreSQL, where several transactions write at the same time."""
        return self._safe.dialect.name == "postgresql"

    @contextmanager
    def writing(self, *, quick: bool = False) -> Iterator[Connection]:
        """
        Begin a transaction that writes; it is committed at the end.

        :param quick: whether the commit need not be on the medium: a power cut may undo it, and all that follow it up to the
            next other commit.
        :raises TasksFailed: the database refused; nothing has changed.
        """
        with self._checked(), (self._quick if quick else self._safe).connect() as plain:
            connection = plain.execution_options(**WRITING)
            with connection.begin():
                yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """
        Begin a transaction that reads.

        :raises TasksFailed: the database refused.
        """
        with self._checked(), self._quick.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            cause: Any = getattr(error, "orig", None) or error
            raise TasksFailed(f"the tasks of forwarding: {cause}") from error

    def close(self) -> None:
        """Close the database; idempotent."""
        while self._own:
            self._own.pop().dispose()
