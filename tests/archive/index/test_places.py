"""Where the index has an instance, while rows are being written and when the connection breaks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.places import Places
from dicomtwist.archive.storage.types import IndexFailed
from tests.archive.samples import dataset, keep

STORED = ("1.2.1", "1.2.1.1", "1.2.1.1.1")
BELOW_ANOTHER = ("1.9", "1.9.1", "1.2.1.1.1")


class Elsewhere(SynchronousTestCase):
    def setUp(self) -> None:
        self.archive = Archive(Path(self.mktemp()))
        self.archive.open()
        self.addCleanup(self.archive.close)
        one = dataset(1)
        self.assertEqual((one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID), STORED)
        keep(self.archive, one)
        self.index = self.archive.index

    def test_places(self) -> None:
        wanted = [STORED, BELOW_ANOTHER, ("1.2.1", "1.9.1", "1.2.1.1.1"), ("1.2.1", "1.2.1.1", "1.2.3")]
        self.assertEqual(self.index.elsewhere(wanted), dict.fromkeys(wanted[1:3], STORED))
        self.assertEqual(self.index.elsewhere([]), {})

    def test_it_waits_for_no_row(self) -> None:
        """Another thread writes, and has not committed: what it has removed or added is not seen yet."""
        looked, written = threading.Event(), threading.Event()

        def write() -> None:
            with self.index._transaction() as cursor:
                cursor.execute("DELETE FROM instance")
                written.set()
                looked.wait(60)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            self.assertTrue(written.wait(60))
            self.assertEqual(self.index.elsewhere([BELOW_ANOTHER]), {BELOW_ANOTHER: STORED})
        finally:
            looked.set()
            thread.join(60)
        self.assertEqual(self.index.elsewhere([BELOW_ANOTHER]), {})

    def test_what_was_committed_last_is_seen(self) -> None:
        for number in range(2, 6):
            one = dataset(number)
            place = (one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID)
            other = ("1.9", "1.9.1", one.SOPInstanceUID)
            self.assertEqual(self.index.elsewhere([other]), {})
            keep(self.archive, one)
            self.assertEqual(self.index.elsewhere([other]), {other: place})

    def test_a_broken_connection(self) -> None:
        """It is replaced, and only one is held at a time."""
        pool: Any = self.index.engine.pool
        self.index.elsewhere([STORED])
        held = pool.checkedout()
        for _ in range(3):
            connection: Any = self.index._places._open
            connection.connection.dbapi_connection.close()
            self.assertEqual(self.index.elsewhere([BELOW_ANOTHER]), {BELOW_ANOTHER: STORED})
            self.assertEqual(pool.checkedout(), held)

    def test_a_database_that_cannot_be_read(self) -> None:
        with self.index._transaction() as cursor:
            cursor.execute("ALTER TABLE instance RENAME TO gone")
        for _ in range(2):
            self.assertRaises(IndexFailed, self.index.elsewhere, [STORED])
        with self.index._transaction() as cursor:
            cursor.execute("ALTER TABLE gone RENAME TO instance")
        self.assertEqual(self.index.elsewhere([BELOW_ANOTHER]), {BELOW_ANOTHER: STORED})

    def test_closed(self) -> None:
        places = Places(self.index.engine)
        places.elsewhere([STORED])
        for _ in range(2):
            places.close()
            self.assertRaises(IndexFailed, places.elsewhere, [STORED])
        self.index.close()
        self.assertRaises(IndexFailed, self.index.elsewhere, [STORED])
