"""Durability none: an instance is acknowledged when its file has its name, and its row follows."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import AE, evt
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index import write_behind
from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.index.record import IndexRow
from dicomtwist.archive.ingest import Ingest
from dicomtwist.archive.move_schedule import PAUSE, TRY_AGAIN
from dicomtwist.archive.recovery import reconcile
from dicomtwist.archive.services.storage import StorageService
from dicomtwist.archive.storage.types import Durability, IndexFailed
from dicomtwist.presentation import build_context
from dicomtwist.runtime.executors import Executors
from tests.archive.samples import SECONDARY_CAPTURE, ask, dataset, files, handed, keep
from tests.memory import MemoryTestCase


class BehindTestCase(SynchronousTestCase):
    """An archive of its own for each test."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.archive = self.open()

    def open(self, durability: Durability = Durability.NONE, **options: Any) -> Archive:
        archive = Archive(self.root, durability=durability, **options)
        archive.open()
        self.addCleanup(archive.close)
        return archive

    def kept(self, *numbers: int, **elements: Any) -> None:
        for number in numbers:
            self.assertIsNone(keep(self.archive, dataset(number, **elements)))

    def indexed(self) -> int:
        return self.archive.index.counts()[Level.IMAGE]


class Following(BehindTestCase):
    """Rows are added later and together."""

    def test_rows_wait(self) -> None:
        self.kept(1, 2, 3)
        self.assertEqual((len(files(self.root)), self.archive.unindexed, self.indexed()), (3, 3, 0))
        self.archive.catch_up()
        self.assertEqual((self.archive.unindexed, self.indexed()), (0, 3))
        self.archive.catch_up()
        self.assertEqual(self.indexed(), 3)

    def test_who_asks_finds_all(self) -> None:
        self.kept(1, 2)
        self.assertEqual(len(ask(self.archive, "STUDY")), 1)
        self.assertEqual(self.archive.unindexed, 0)

    def test_no_more_than_so_many_wait(self) -> None:
        self.patch(write_behind, "MAX_BEHIND", 3)
        self.kept(1, 2, 3)
        self.assertEqual((self.archive.unindexed, self.indexed()), (3, 0))
        self.kept(4)
        self.assertEqual((self.archive.unindexed, self.indexed()), (1, 3))

    def test_no_more_than_so_many_bytes_wait(self) -> None:
        self.patch(write_behind, "MAX_BEHIND_BYTES", 5000)
        self.kept(1, 2, PatientComments="x" * 3000)  # which the record has as well
        self.assertEqual(self.archive.unindexed, 2)
        self.kept(3)
        self.assertEqual((self.archive.unindexed, self.indexed()), (1, 2))

    def test_replaced_while_its_row_waits(self) -> None:
        """The row of the old copy is not written after that of the new one."""
        self.kept(1, PatientComments="old")
        self.kept(1, PatientComments="new")
        (answer,) = ask(self.archive, "STUDY", PatientComments=None)
        self.assertEqual(answer.PatientComments, "new")

    def test_it_is_closed(self) -> None:
        self.kept(1, 2)
        self.archive.close()
        self.archive = self.open()
        self.assertEqual(self.indexed(), 2)

    def test_it_is_killed(self) -> None:
        """The next start finds the files."""
        self.kept(1, 2)
        self.archive._write_behind = None
        self.archive.close()
        self.archive = self.open()
        self.assertEqual(self.indexed(), 0)
        self.assertEqual(reconcile(self.archive).indexed, 2)
        self.assertEqual(self.indexed(), 2)

    def test_from_many_threads(self) -> None:
        outcomes: list[BaseException | None] = []

        def work(thread: int) -> None:
            for number in range(50):
                # All threads store every fifth instance.
                series = 99 if number % 5 == 0 else thread + 1
                self.archive.keep(handed(dataset(number, series)), outcomes.append)
                if number % 7 == 0:
                    self.archive.catch_up()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(outcomes, [None] * 300)
        self.archive.catch_up()
        self.assertEqual(self.indexed(), 6 * 40 + 10)
        self.assertEqual(len(files(self.root)), 6 * 40 + 10)

    def test_full_does_not_wait(self) -> None:
        self.archive.close()
        self.archive = self.open(Durability.FULL)
        self.kept(1)
        self.assertEqual((self.archive.unindexed, self.indexed()), (0, 1))

    def test_several_processes_do_not_wait(self) -> None:
        """Rows are added at once, since the next query may go to another process."""
        self.archive.close()
        self.archive = self.open(process="worker-0")
        self.kept(1)
        self.assertEqual((self.archive.unindexed, self.indexed()), (0, 1))


class Failing(BehindTestCase):
    """The database refuses."""

    def setUp(self) -> None:
        super().setUp()
        self.refuses = ""
        add = self.archive.index.add

        def maybe(rows: list[IndexRow]) -> None:
            if self.refuses and any(row.record.sop_instance_uid.endswith(self.refuses) for row in rows):
                raise IndexFailed("index: it is full")
            add(rows)

        self.archive.index.add = maybe  # type: ignore[method-assign,assignment]

    def test_tried_again(self) -> None:
        self.kept(1, 2, 3)
        self.refuses = ".2"
        self.assertRaises(IndexFailed, self.archive.catch_up)
        self.assertEqual((self.archive.unindexed, self.indexed()), (1, 2))
        self.refuses = ""
        self.archive.catch_up()
        self.assertEqual((self.archive.unindexed, self.indexed()), (0, 3))

    def test_a_mistake_of_ours(self) -> None:
        self.kept(1, 2)
        add, self.archive.index.add = self.archive.index.add, lambda rows: 1 // 0  # type: ignore[method-assign,assignment]
        self.assertRaises(ZeroDivisionError, self.archive.catch_up)
        self.assertEqual(self.archive.unindexed, 2)
        self.archive.index.add = add  # type: ignore[method-assign]
        self.archive.catch_up()
        self.assertEqual(self.indexed(), 2)

    def test_who_would_be_one_too_many_is_refused(self) -> None:
        self.patch(write_behind, "MAX_BEHIND", 2)
        self.refuses = "1"
        self.kept(1, 11)
        self.assertIsInstance(keep(self.archive, dataset(21)), IndexFailed)
        self.assertEqual(len(files(self.root)), 2)
        self.refuses = ""
        self.kept(21)
        self.archive.catch_up()
        self.assertEqual(self.indexed(), 3)


class Receiving(MemoryTestCase):
    """The moment when the index catches up."""

    def setUp(self) -> None:
        super().setUp()
        self.archive = Archive(Path(self.mktemp()), durability=Durability.NONE)
        self.archive.open()
        self.addCleanup(self.archive.close)
        self.executor = Executors(self.network).receiving
        self.executor.acquire()
        self.receiver = Ingest(self.archive, self.executor)
        self.scp = AE("SCP", reactor=self.network)
        self.scp.add_supported_context(SECONDARY_CAPTURE)
        self.listen((evt.EVT_C_STORE, StorageService(self.receiver).handle_store))
        self.assoc = self.network.result_of(
            self.scu.associate("127.0.0.1", 104, contexts=[build_context(SECONDARY_CAPTURE)])
        )

    def tearDown(self) -> None:
        self.receiver.stop()
        self.executor.release()
        self.assoc.abort()
        self.network.flush()
        self.network.result_of(self.scp.shutdown())
        super().tearDown()

    def store(self, number: int) -> None:
        self.assertEqual(self.network.result_of(self.assoc.send_c_store(dataset(number))), 0)

    def test_after_a_pause(self) -> None:
        self.store(1)
        self.assertEqual(self.archive.unindexed, 1)
        self.network.advance(PAUSE * 0.6)
        self.store(2)
        self.network.advance(PAUSE * 0.6)
        self.assertEqual(self.archive.unindexed, 2, "something has come meanwhile")
        self.network.advance(PAUSE * 1.1)
        self.assertEqual((self.archive.unindexed, self.archive.index.counts()[Level.IMAGE]), (0, 2))
        self.store(3)
        self.network.advance(PAUSE * 1.1)
        self.assertEqual(self.archive.unindexed, 0)

    def test_what_is_kept_of_a_large_one_counts(self) -> None:
        """Its pixels are in the file; only the indexed values of its header are in memory."""
        self.patch(write_behind, "MAX_BEHIND_BYTES", 5000)
        for number in (1, 2):
            large = dataset(number, PatientComments="x" * 6000)
            large.add_new(0x7FE00010, "OB", bytes(200_000))
            self.assertEqual(self.network.result_of(self.assoc.send_c_store(large)), 0)
        self.assertEqual(self.archive.unindexed, 1)

    def test_the_database_refuses(self) -> None:
        add, self.archive.index.add = self.archive.index.add, self.refuse  # type: ignore[method-assign,assignment]
        self.store(1)
        self.network.advance(PAUSE * 1.1)
        self.assertEqual(self.flushLoggedErrors(), [], "a line, not a traceback")
        self.assertEqual(self.archive.unindexed, 1)
        self.archive.index.add = add  # type: ignore[method-assign]
        self.store(2)
        self.network.advance(TRY_AGAIN)
        self.network.advance(PAUSE * 1.1)
        self.assertEqual(self.archive.unindexed, 0)

    def refuse(self, rows: Any) -> None:
        raise IndexFailed("index: it is full")

    def test_stopped_while_it_waits(self) -> None:
        self.store(1)
        waiting = len(self.network.getDelayedCalls())
        self.receiver.stop()
        self.assertEqual(len(self.network.getDelayedCalls()), waiting - 1)
        self.archive.close()
        self.archive.open()
        self.assertEqual(self.archive.index.counts()[Level.IMAGE], 1)
