"""Statements that read from SQLite without SQLAlchemy."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.index import reading as reading_module
from dicomtwist.archive.index.reading import fetch_all, reading
from dicomtwist.archive.index.sqlite import sqlite_engine
from dicomtwist.archive.storage.types import IndexFailed


class FetchAll(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.engine = sqlite_engine(self.path, full=True)
        self.addCleanup(self.engine.dispose)
        with self.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE people (id INTEGER, name TEXT)")
            connection.exec_driver_sql("INSERT INTO people VALUES (1, 'Doe^Jane'), (2, 'Roe^Richard')")

    def test_rows(self) -> None:
        with reading(self.engine) as connection:
            rows = fetch_all(connection, "SELECT id, name FROM people WHERE id >= ? AND name <> ?", [1, "Doe^Jane"])
        self.assertEqual(rows, [(2, "Roe^Richard")])

    def test_no_transaction_stays(self) -> None:
        """A later call sees what was committed meanwhile, on the same connection, and a writer does not wait."""
        with reading(self.engine) as connection:
            driver: Any = connection.connection.driver_connection
            for count in range(2, 5):
                self.assertEqual(fetch_all(connection, "SELECT count(*) FROM people", []), [(count,)])
                self.assertFalse(driver.in_transaction)
                with self.engine.begin() as writing:
                    writing.exec_driver_sql("INSERT INTO people VALUES (3, 'Roe^Jane')")

    def test_failures(self) -> None:
        """They are errors of the index, and say nothing of a patient."""
        for statement in ("SELECT name FROM nowhere WHERE name = ?", "SELECT a mistake ?"):
            with self.assertRaises(IndexFailed) as caught, reading(self.engine) as connection:
                fetch_all(connection, statement, ["Doe^Jane"])
            self.assertIsInstance(caught.exception.__cause__, sqlite3.Error)
            self.assertNotIn("Doe", str(caught.exception))
        with reading(self.engine) as connection:
            self.assertEqual(fetch_all(connection, "SELECT 1", []), [(1,)])

    def test_a_damaged_database(self) -> None:
        self.engine.dispose()
        content = bytearray(self.path.read_bytes())
        content[:100] = b"no database" * 9 + b"!"
        self.path.write_bytes(content)
        with self.assertRaises(IndexFailed), reading(self.engine) as connection:
            fetch_all(connection, "SELECT * FROM people", [])

    def test_nobody_waits(self) -> None:
        endless = "WITH RECURSIVE n(i) AS (SELECT ? UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        gone = mock.patch.object(reading_module, "is_wanted", lambda: False)
        raising = mock.patch.object(reading_module, "check_wanted", side_effect=CancelledError)
        with gone, raising, self.assertRaises(CancelledError), reading(self.engine) as connection:
            fetch_all(connection, endless, [1])
