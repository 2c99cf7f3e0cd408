"""
The transfer syntaxes that an archive prefers for a C-GET: those that its instances are stored in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.query.stored_syntaxes import FRESH, PATIENCE, StoredSyntaxes
from dicomtwist.archive.storage.types import Durability
from dicomtwist.errors import ExecutorFull
from tests.archive.samples import SECONDARY_CAPTURE, dataset, keep

CT = "1.2.840.10008.5.1.4.1.1.2"


class Slow:
    """An executor whose calls end when the test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[Deferred[Any], Any]] = []
        self.full = False

    def run(self, function: Any, *args: Any) -> Deferred[Any]:
        if self.full:
            return fail(ExecutorFull("querying", 1))
        result: Deferred[Any] = Deferred()
        self.calls.append((result, function))
        return result

    def finish(self) -> None:
        """Perform the first call."""
        result, function = self.calls.pop(0)
        try:
            result.callback(function())
        except Exception as error:
            result.errback(error)


class StoredSyntaxesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.archive = Archive(Path(self.mktemp()), durability=Durability.NONE)
        self.archive.open()
        self.addCleanup(self.archive.close)
        self.clock, self.executor = Clock(), Slow()
        executor: Any = self.executor
        self.stored = StoredSyntaxes(self.archive, executor, self.clock.seconds)

    def test_most_frequent_first(self) -> None:
        """
        Instances are counted by SOP Class and transfer syntax; the answer before the first count is empty.
        """
        for number, syntax in enumerate((ImplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian), 1):
            self.assertIsNone(keep(self.archive, dataset(number), syntax))
        self.assertIsNone(keep(self.archive, dataset(9, SOPClassUID=CT)))
        self.assertEqual(self.stored.of(CT), ())
        self.executor.finish()
        self.assertEqual(self.stored.of(SECONDARY_CAPTURE), [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
        self.assertEqual(self.stored.of(CT), [ExplicitVRLittleEndian])
        self.assertEqual(self.stored.of("1.2.3"), ())

    def test_counted_seldom(self) -> None:
        """
        One count runs at a time, and the next one only after a while, the longer the slower the last one was.
        """
        for _ in range(3):
            self.stored.of(CT)
        self.assertEqual(len(self.executor.calls), 1)
        self.clock.advance(2)
        self.executor.finish()
        self.clock.advance(2 * PATIENCE - 0.5)
        self.stored.of(CT)
        self.assertEqual(len(self.executor.calls), 0)
        self.clock.advance(0.5)
        self.stored.of(CT)
        self.assertEqual(len(self.executor.calls), 1)
        self.executor.finish()
        self.clock.advance(FRESH)
        self.stored.of(CT)
        self.assertEqual(len(self.executor.calls), 1)

    def test_failure(self) -> None:
        """
        An index that cannot be read, or threads without room, keep the last counts, and the next call tries again.
        """
        self.assertIsNone(keep(self.archive, dataset(1)))
        self.stored.of(CT)
        self.executor.finish()
        self.executor.full = True
        self.clock.advance(FRESH)
        self.assertEqual(self.stored.of(SECONDARY_CAPTURE), [ExplicitVRLittleEndian])
        self.executor.full = False
        self.clock.advance(FRESH)
        self.stored.of(CT)
        self.patch(self.archive.index, "engine", None)
        self.executor.finish()
        self.assertEqual(self.stored.of(SECONDARY_CAPTURE), [ExplicitVRLittleEndian])
