"""The engine of the index: the texts of its errors."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.index.sqlite import sqlite_engine


class ErrorTests(SynchronousTestCase):
    def test_no_values_of_patients(self) -> None:
        """An error of the database contains the statement but not its parameters, wherever it is logged."""
        engine = sqlite_engine(Path(self.mktemp()), full=True)
        self.addCleanup(engine.dispose)
        statement = text("SELECT * FROM nowhere WHERE name = :name")
        with engine.connect() as connection:
            error = self.assertRaises(SQLAlchemyError, connection.execute, statement, {"name": "Doe^Jane"})
        self.assertIn("nowhere", str(error))
        self.assertNotIn("Doe", str(error))
